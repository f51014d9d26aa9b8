//! How a lane ends in order, so that nothing is lost that either side has taken. Pure.
//!
//! A lane is two streams, and each side ends its own: after the last message it has taken comes the stream's
//! end. Who has read the other's end, and knows its own acknowledged, closes the connection; not before, since
//! closing cuts off what is still on its way. So two nodes that shut down at the same time both deliver
//! everything.
//!
//! ```text
//!              Stop                 OwnEnded               PeerEnded
//!    Flowing ---------> Finishing ------------> Listening -----------> Closed
//!       |                   |                                            ^
//!       |                   | PeerEnded                                  |
//!       | PeerEnded         v                  OwnEnded                  |
//!       +-------------> Flushing ----------------------------------------+
//!
//!    OwnEnded leads from Flowing to Listening: nothing can be written any more, and what came before that is
//!    still to be read. Broken and Overdue lead to Closed.
//! ```

use thiserror::Error;

/// How far the end of a lane has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closing {
    /// Not at all: messages flow.
    Flowing,
    /// This node shuts down: what it has taken is being written, answers that it owes included. The peer may
    /// still send.
    Finishing,
    /// This node's side has ended. The peer may still send.
    Listening,
    /// The peer's side has ended. What this node has taken is being written.
    Flushing,
    /// Nothing more comes or goes.
    Closed,
}

/// What happens to the end of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClosingEvent {
    /// This node shuts down.
    Stop,
    /// This node's end is acknowledged, or nothing can be written any more.
    OwnEnded,
    /// The end of what the peer sends was read.
    PeerEnded,
    /// Nothing can be read any more.
    Broken,
    /// It has taken too long.
    Overdue,
}

/// An event in a state where it cannot happen: a bug of the driver.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("{event:?} cannot happen to a lane that is {state:?}")]
pub(crate) struct IllegalClosing {
    pub(crate) state: Closing,
    pub(crate) event: ClosingEvent,
}

impl Closing {
    /// All legal transitions.
    pub(crate) fn next(self, event: ClosingEvent) -> Result<Closing, IllegalClosing> {
        use Closing::{Closed, Finishing, Flowing, Flushing, Listening};
        use ClosingEvent::{Broken, Overdue, OwnEnded, PeerEnded, Stop};
        Ok(match (self, event) {
            (Flowing, Stop) => Finishing,
            // Asked again, or asked when it ends anyway.
            (Finishing | Listening | Flushing, Stop) => self,
            (Flowing | Finishing, OwnEnded) => Listening,
            (Flowing | Finishing, PeerEnded) => Flushing,
            (Flushing, OwnEnded) | (Listening, PeerEnded) => Closed,
            (Flowing | Finishing | Listening, Broken) => Closed,
            (Finishing | Listening | Flushing, Overdue) => Closed,
            (state, event) => return Err(IllegalClosing { state, event }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Closing::{Closed, Finishing, Flowing, Flushing, Listening};
    use ClosingEvent::{Broken, Overdue, OwnEnded, PeerEnded, Stop};

    const EVENTS: [ClosingEvent; 5] = [Stop, OwnEnded, PeerEnded, Broken, Overdue];

    #[test]
    fn every_event_in_every_state() {
        let mut table = String::new();
        for state in [Flowing, Finishing, Listening, Flushing, Closed] {
            for event in EVENTS {
                let next = state.next(event).map_or("cannot happen".to_owned(), |next| format!("{next:?}"));
                table += &format!("{state:?} + {event:?} -> {next}\n");
            }
        }
        expect_test::expect![[r#"
            Flowing + Stop -> Finishing
            Flowing + OwnEnded -> Listening
            Flowing + PeerEnded -> Flushing
            Flowing + Broken -> Closed
            Flowing + Overdue -> cannot happen
            Finishing + Stop -> Finishing
            Finishing + OwnEnded -> Listening
            Finishing + PeerEnded -> Flushing
            Finishing + Broken -> Closed
            Finishing + Overdue -> Closed
            Listening + Stop -> Listening
            Listening + OwnEnded -> cannot happen
            Listening + PeerEnded -> Closed
            Listening + Broken -> Closed
            Listening + Overdue -> Closed
            Flushing + Stop -> Flushing
            Flushing + OwnEnded -> Closed
            Flushing + PeerEnded -> cannot happen
            Flushing + Broken -> cannot happen
            Flushing + Overdue -> Closed
            Closed + Stop -> cannot happen
            Closed + OwnEnded -> cannot happen
            Closed + PeerEnded -> cannot happen
            Closed + Broken -> cannot happen
            Closed + Overdue -> cannot happen
        "#]]
        .assert_eq(&table);
    }

    /// One side, with what was put on its way to it.
    struct Side {
        state: Closing,
        /// It has written its end, which the other is still to read; and the acknowledgement, to come back.
        end_to_read: bool,
        acknowledgement: bool,
        has_read_end: bool,
    }

    /// Two sides, and every order in which ends are written, read and acknowledged: whoever closes has read
    /// the other's end or is told so by the other's closing, and both always close.
    #[test]
    fn whatever_the_order_both_read_the_others_end_before_anybody_closes() {
        let mut orders = 0;
        for stops in [[true, false], [false, true], [true, true]] {
            for order in 0..6_u64.pow(8) {
                if order % 97 != 0 {
                    // A part of all orders: each step comes in every place.
                    continue;
                }
                walk(stops, order);
                orders += 1;
            }
        }
        assert!(orders > 10_000, "{orders}");
    }

    fn walk(stops: [bool; 2], order: u64) {
        let side = || Side { state: Flowing, end_to_read: false, acknowledgement: false, has_read_end: false };
        let mut sides = [side(), side()];
        let mut asked = [false, false];
        let mut digits = order;
        // After the given order, in turn until nothing is left to do.
        for step in 0..40_u64 {
            let digit = if step < 8 { digits % 6 } else { step % 6 };
            digits /= 6;
            let (this, other) = ((digit % 2) as usize, 1 - (digit % 2) as usize);
            match digit / 2 {
                0 if stops[this] && !asked[this] => {
                    asked[this] = true;
                    if sides[this].state != Closed {
                        sides[this].state = sides[this].state.next(Stop).unwrap();
                    }
                }
                1 if matches!(sides[this].state, Finishing | Flushing) && !sides[this].acknowledgement => {
                    // Writes its end; the other's QUIC acknowledges it before the other reads it.
                    (sides[other].end_to_read, sides[this].acknowledgement) = (true, true);
                }
                2 if sides[this].end_to_read && !sides[this].has_read_end => {
                    sides[this].has_read_end = true;
                    sides[this].state = sides[this].state.next(PeerEnded).unwrap();
                }
                2 if sides[this].acknowledgement && matches!(sides[this].state, Finishing | Flushing) => {
                    sides[this].state = sides[this].state.next(OwnEnded).unwrap();
                }
                _ => {}
            }
            for side in &sides {
                assert!(side.state != Closed || side.has_read_end, "{stops:?} {order}");
            }
        }
        assert!(sides.iter().all(|side| side.state == Closed), "{stops:?} {order}: both close");
    }
}
