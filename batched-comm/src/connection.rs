//! A peer's connection as an enum, and who wins when both sides dial.
//!
//! ```text
//!             Dial             Reached            Established
//!    Idle ------------> Dialling ------> Greeting ------------> Up <-----> Suspect
//!     ^  \                 |                |                   |   Silent    |
//!     |   \ Dial           | Failed         | Failed            | Down        | Down
//!     |    BackingOff <----+----------------+-------------------+-------------+
//!     +-------- (instead of BackingOff, when there is no address to dial)
//!
//!    Established by the peer's dialling leads from every state on the left to Up.
//! ```
//!
//! A peer is `Up` only when its hello was answered: TLS 1.3 lets a client go on before the server has
//! judged its certificate. A connection that goes down soon after counts as a failed attempt: else two nodes of one
//! name would take a peer from each other many times a second, for as long as both run.

use std::time::{Duration, Instant};

use thiserror::Error;

/// Who dialled a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialled {
    ByUs,
    ByPeer,
}

/// The connection to one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Connection {
    /// Not connected, and no address to dial.
    Idle,
    /// Not connected; `attempt` attempts in a row have failed, or come to a connection that did not last.
    BackingOff { attempt: u32, until: Instant },
    /// A QUIC connection is being made.
    Dialling { attempt: u32 },
    /// There is a QUIC connection, and our hello was sent over it.
    Greeting { attempt: u32 },
    /// The hello was answered; messages flow. `attempt`: as before it.
    Up { dialled: Dialled, instance: u64, since: Instant, attempt: u32 },
    /// Up, and nothing was heard for a while.
    Suspect { dialled: Dialled, instance: u64, up_since: Instant, since: Instant, attempt: u32 },
}

/// What happens to a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// It is time to dial.
    Dial,
    /// The QUIC connection stands; the hello goes out.
    Reached,
    /// Dialling or the hello failed. `retry_at`: when to dial again, `None` when there is no address.
    Failed { retry_at: Option<Instant> },
    /// A hello was answered.
    Established { dialled: Dialled, instance: u64, now: Instant },
    /// Nothing was heard for a while.
    Silent { now: Instant },
    /// Something was heard again.
    Heard,
    /// The connection is gone. `lasted`: it stood long enough to be none of the attempts that failed.
    Down { retry_at: Option<Instant>, lasted: bool },
}

/// An event in a state where it cannot happen: a bug of the driver.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("{event:?} cannot happen to a connection that is {state:?}")]
pub(crate) struct Illegal {
    pub(crate) state: Connection,
    pub(crate) event: Event,
}

/// What to do with a hello from the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Take the connection; what there was goes.
    Accept,
    /// The one there is, or the one that is being greeted, stays.
    Refuse,
}

impl Connection {
    /// How many attempts in a row have failed, or come to a connection that did not last.
    pub(crate) fn attempt(&self) -> u32 {
        match self {
            Connection::BackingOff { attempt, .. }
            | Connection::Dialling { attempt }
            | Connection::Greeting { attempt }
            | Connection::Up { attempt, .. }
            | Connection::Suspect { attempt, .. } => *attempt,
            Connection::Idle => 0,
        }
    }

    /// Since when there is a connection, if there is one.
    pub(crate) fn up_since(&self) -> Option<Instant> {
        match self {
            Connection::Up { since, .. } => Some(*since),
            Connection::Suspect { up_since, .. } => Some(*up_since),
            _ => None,
        }
    }

    /// All legal transitions.
    pub(crate) fn next(self, event: Event) -> Result<Connection, Illegal> {
        use Connection::{BackingOff, Dialling, Greeting, Idle, Suspect, Up};
        let wait = |attempt: u32, retry_at: Option<Instant>| match retry_at {
            Some(until) => BackingOff { attempt, until },
            None => Idle,
        };
        let before = self.attempt();
        Ok(match (self, event) {
            (Idle, Event::Dial) => Dialling { attempt: 0 },
            (BackingOff { attempt, .. }, Event::Dial) => Dialling { attempt },
            (Dialling { attempt }, Event::Reached) => Greeting { attempt },
            (Dialling { attempt } | Greeting { attempt }, Event::Failed { retry_at }) => {
                wait(attempt.saturating_add(1), retry_at)
            }
            (
                Idle | BackingOff { .. } | Dialling { .. } | Greeting { .. },
                Event::Established { dialled: dialled @ Dialled::ByPeer, instance, now },
            )
            | (Greeting { .. }, Event::Established { dialled, instance, now }) => {
                Up { dialled, instance, since: now, attempt: before }
            }
            (Up { dialled, instance, since, attempt }, Event::Silent { now }) => {
                Suspect { dialled, instance, up_since: since, since: now, attempt }
            }
            (Suspect { dialled, instance, up_since, attempt, .. }, Event::Heard) => {
                Up { dialled, instance, since: up_since, attempt }
            }
            (Up { .. } | Suspect { .. }, Event::Down { retry_at, lasted: true }) => wait(0, retry_at),
            (Up { attempt, .. } | Suspect { attempt, .. }, Event::Down { retry_at, lasted: false }) => {
                wait(attempt.saturating_add(1), retry_at)
            }
            (state, event) => return Err(Illegal { state, event }),
        })
    }

    /// What to do with a hello from the peer's start `instance`; `own_is_lower`: our name is the lower
    /// of the two.
    ///
    /// When both dial, the connection dialled by the lower name wins: the lower one refuses while its own
    /// hello is on its way, and the higher one takes what it is offered. So not both are refused, and not
    /// both are taken. A start that was not known before wins always: it knows nothing of the old
    /// connection.
    pub(crate) fn offered(&self, own_is_lower: bool, peer_instance: u64) -> Verdict {
        match *self {
            Connection::Greeting { .. } if own_is_lower => Verdict::Refuse,
            Connection::Up { dialled: Dialled::ByUs, instance, .. } if own_is_lower && instance == peer_instance => {
                Verdict::Refuse
            }
            _ => Verdict::Accept,
        }
    }
}

/// The starts of a peer that were connected, the current one and the one before.
#[derive(Debug, Default)]
pub(crate) struct Starts {
    current: Option<u64>,
    former: Option<u64>,
}

impl Starts {
    /// Takes the start that is connected now. `true`: it is back after another one took its place, so that both
    /// run, under one name.
    pub(crate) fn connected(&mut self, instance: u64) -> bool {
        if self.current == Some(instance) {
            return false;
        }
        let is_back = self.former == Some(instance);
        self.former = self.current.replace(instance);
        is_back
    }
}

/// How long to wait before the next attempt: full jitter below a bound that doubles (AWS Architecture
/// Blog, "Exponential Backoff and Jitter"). `random` is in 0 to 1.
pub(crate) fn backoff(attempt: u32, lower: Duration, upper: Duration, random: f64) -> Duration {
    let factor = 1u32.checked_shl(attempt).unwrap_or(u32::MAX);
    lower.saturating_mul(factor).min(upper).mul_f64(random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(now: Instant) -> Vec<(&'static str, Connection)> {
        let up = |dialled| Connection::Up { dialled, instance: 1, since: now, attempt: 2 };
        let suspect =
            Connection::Suspect { dialled: Dialled::ByUs, instance: 1, up_since: now, since: now, attempt: 2 };
        vec![
            ("Idle", Connection::Idle),
            ("BackingOff", Connection::BackingOff { attempt: 2, until: now }),
            ("Dialling", Connection::Dialling { attempt: 2 }),
            ("Greeting", Connection::Greeting { attempt: 2 }),
            ("Up by us", up(Dialled::ByUs)),
            ("Up by peer", up(Dialled::ByPeer)),
            ("Suspect", suspect),
        ]
    }

    fn short(state: &Connection) -> String {
        match state {
            Connection::Up { dialled, attempt, .. } => format!("Up {dialled:?} {attempt}"),
            Connection::Suspect { attempt, .. } => format!("Suspect {attempt}"),
            Connection::BackingOff { attempt, .. } => format!("BackingOff {attempt}"),
            Connection::Dialling { attempt } => format!("Dialling {attempt}"),
            Connection::Greeting { attempt } => format!("Greeting {attempt}"),
            Connection::Idle => "Idle".into(),
        }
    }

    #[test]
    fn every_event_in_every_state() {
        let now = Instant::now();
        let established = |dialled| Event::Established { dialled, instance: 2, now };
        let events = [
            ("Dial", Event::Dial),
            ("Reached", Event::Reached),
            ("Failed", Event::Failed { retry_at: Some(now) }),
            ("Failed, no address", Event::Failed { retry_at: None }),
            ("Established by us", established(Dialled::ByUs)),
            ("Established by peer", established(Dialled::ByPeer)),
            ("Silent", Event::Silent { now }),
            ("Heard", Event::Heard),
            ("Down", Event::Down { retry_at: Some(now), lasted: true }),
            ("Down soon", Event::Down { retry_at: Some(now), lasted: false }),
            ("Down, no address", Event::Down { retry_at: None, lasted: true }),
        ];
        let mut table = String::new();
        for (event_name, event) in &events {
            for (state_name, state) in states(now) {
                if let Ok(next) = state.next(event.clone()) {
                    table += &format!("{state_name} + {event_name} -> {}\n", short(&next));
                }
            }
        }
        expect_test::expect![[r#"
            Idle + Dial -> Dialling 0
            BackingOff + Dial -> Dialling 2
            Dialling + Reached -> Greeting 2
            Dialling + Failed -> BackingOff 3
            Greeting + Failed -> BackingOff 3
            Dialling + Failed, no address -> Idle
            Greeting + Failed, no address -> Idle
            Greeting + Established by us -> Up ByUs 2
            Idle + Established by peer -> Up ByPeer 0
            BackingOff + Established by peer -> Up ByPeer 2
            Dialling + Established by peer -> Up ByPeer 2
            Greeting + Established by peer -> Up ByPeer 2
            Up by us + Silent -> Suspect 2
            Up by peer + Silent -> Suspect 2
            Suspect + Heard -> Up ByUs 2
            Up by us + Down -> BackingOff 0
            Up by peer + Down -> BackingOff 0
            Suspect + Down -> BackingOff 0
            Up by us + Down soon -> BackingOff 3
            Up by peer + Down soon -> BackingOff 3
            Suspect + Down soon -> BackingOff 3
            Up by us + Down, no address -> Idle
            Up by peer + Down, no address -> Idle
            Suspect + Down, no address -> Idle
        "#]]
        .assert_eq(&table);
    }

    #[test]
    fn who_wins_when_both_dial() {
        let mut table = String::new();
        for (name, state) in states(Instant::now()) {
            let verdicts = [(true, 1), (false, 1), (true, 2), (false, 2)]
                .map(|(lower, instance)| format!("{:?}", state.offered(lower, instance)));
            table += &format!("{name}: {}\n", verdicts.join(", "));
        }
        // lower, higher; then the same for a peer that was restarted
        expect_test::expect![[r#"
            Idle: Accept, Accept, Accept, Accept
            BackingOff: Accept, Accept, Accept, Accept
            Dialling: Accept, Accept, Accept, Accept
            Greeting: Refuse, Accept, Refuse, Accept
            Up by us: Refuse, Accept, Accept, Accept
            Up by peer: Accept, Accept, Accept, Accept
            Suspect: Accept, Accept, Accept, Accept
        "#]]
        .assert_eq(&table);
    }

    #[test]
    fn a_start_that_is_back_after_another_one_runs_beside_it() {
        let mut starts = Starts::default();
        let rows =
            [(1, false), (1, false), (2, false), (2, false), (1, true), (1, false), (2, true), (3, false), (1, false)];
        for (row, (instance, is_back)) in rows.into_iter().enumerate() {
            assert_eq!(starts.connected(instance), is_back, "row {row}");
        }
    }

    #[test]
    fn the_wait_doubles_up_to_its_bound() {
        let ms = Duration::from_millis;
        let bounds: Vec<_> = (0..7).map(|n| backoff(n, ms(50), ms(1000), 1.0)).collect();
        assert_eq!(bounds, [50, 100, 200, 400, 800, 1000, 1000].map(ms));
        assert_eq!(backoff(3, ms(50), ms(1000), 0.5), ms(200));
        assert_eq!(backoff(u32::MAX, ms(50), ms(1000), 0.0), ms(0));
    }
}
