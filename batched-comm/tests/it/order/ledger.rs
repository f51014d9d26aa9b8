//! What was sent, what came, and what must not have come.

use std::collections::HashMap;

/// From one node to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pair {
    pub from: usize,
    pub to: usize,
}

/// How the connection to a peer stood at a moment, and which it was.
#[derive(Debug, Clone, Copy)]
pub struct Lane {
    /// How often the count of connections began anew.
    pub epoch: u64,
    pub connections: u64,
    pub is_up: bool,
    /// Messages to this peer that were dropped so far.
    pub dropped: u64,
}

impl Lane {
    pub fn is_same(&self, other: &Lane) -> bool {
        (self.epoch, self.connections) == (other.epoch, other.connections)
    }
}

/// How a call ended for its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By this start of the server.
    Answered {
        server: u64,
    },
    /// With the answer to another call.
    OthersAnswer {
        of: u64,
    },
    NotSent,
    Lost,
    Timeout,
    Unanswered,
    GivenUp,
    Impossible(&'static str),
}

/// What happened in a run, and what should not have.
#[derive(Default)]
pub struct Ledger {
    streams: HashMap<Pair, Stream>,
    epochs: HashMap<Pair, u64>,
    calls: Vec<Call>,
    answered: HashMap<Pair, u64>,
    pub violations: Vec<String>,
}

#[derive(Default)]
struct Stream {
    /// By the sender's generation; the place is the number.
    messages: HashMap<u32, Vec<Message>>,
    /// The last message that was sent over a connection: by generation, epoch and connection.
    last_in_lane: HashMap<(u32, u64, u64), u64>,
    last_received: Option<(u32, u64)>,
    received: u64,
    sent: u64,
}

#[derive(Clone, Copy)]
enum Message {
    /// It is being sent.
    Open,
    /// It was not taken.
    Refused,
    Sent {
        after: Option<u64>,
        received: bool,
    },
}

struct Call {
    pair: Pair,
    handled_by: Option<u64>,
    ended: Option<Ended>,
}

/// Sums over runs.
#[derive(Debug, Default)]
pub struct Totals {
    pub sent: u64,
    pub received: u64,
    pub calls: u64,
    pub answered: u64,
    pub not_sent: u64,
    pub lost: u64,
    pub timeouts: u64,
    pub unanswered: u64,
}

impl Totals {
    pub fn add(&mut self, other: &Totals) {
        self.sent += other.sent;
        self.received += other.received;
        self.calls += other.calls;
        self.answered += other.answered;
        self.not_sent += other.not_sent;
        self.lost += other.lost;
        self.timeouts += other.timeouts;
        self.unanswered += other.unanswered;
    }
}

impl Ledger {
    /// The sender counts its connections to the receiver from zero again.
    pub fn forget_lanes(&mut self, pair: Pair) {
        *self.epochs.entry(pair).or_default() += 1;
    }

    pub fn epoch(&self, pair: Pair) -> u64 {
        self.epochs.get(&pair).copied().unwrap_or_default()
    }

    /// A message is about to be sent: it may come from now on.
    pub fn attempt(&mut self, pair: Pair, generation: u32, number: u64) {
        let messages = self.streams.entry(pair).or_default().messages.entry(generation).or_default();
        assert_eq!(messages.len() as u64, number);
        messages.push(Message::Open);
    }

    /// It was taken, over this connection, or it was not.
    pub fn sent(&mut self, pair: Pair, generation: u32, number: u64, lane: Option<Lane>) {
        let stream = self.streams.entry(pair).or_default();
        let message = match lane {
            None => Message::Refused,
            Some(lane) => {
                stream.sent += 1;
                let after = stream.last_in_lane.insert((generation, lane.epoch, lane.connections), number);
                Message::Sent { after, received: false }
            }
        };
        stream.messages.entry(generation).or_default()[number as usize] = message;
    }

    pub fn received(&mut self, pair: Pair, generation: u32, number: u64) {
        let stream = self.streams.entry(pair).or_default();
        stream.received += 1;
        let what = format!("{pair:?}: message {number} of generation {generation}");
        if stream.last_received.is_some_and(|last| (generation, number) <= last) {
            self.violations.push(format!("{what} came after {:?}", stream.last_received));
        }
        stream.last_received = Some((generation, number));
        let Some(messages) = stream.messages.get_mut(&generation) else {
            return self.violations.push(format!("{what} came, and there was none"));
        };
        let state = |number: u64| messages.get(number as usize).copied();
        match state(number) {
            Some(Message::Sent { after, received: false }) => {
                let before = after.and_then(state);
                if let Some(Message::Sent { received: false, .. }) = before {
                    let gap = "came, and the one before it over the same connection had not";
                    self.violations.push(format!("{what} {gap}: {after:?}"));
                }
                messages[number as usize] = Message::Sent { after, received: true };
            }
            Some(Message::Sent { received: true, .. }) => self.violations.push(format!("{what} came twice")),
            Some(Message::Refused) => self.violations.push(format!("{what} came, and its sender was told it was not")),
            Some(Message::Open) => self.violations.push(format!("{what} came before it was sent")),
            None => self.violations.push(format!("{what} came, and there was none")),
        }
    }

    /// The token of a new call.
    pub fn begin_call(&mut self, pair: Pair) -> u64 {
        self.calls.push(Call { pair, handled_by: None, ended: None });
        self.calls.len() as u64 - 1
    }

    /// A request has come to a handler.
    pub fn handle_call(&mut self, token: u64, node: usize, server: u64) {
        let Some(call) = self.calls.get_mut(token as usize) else {
            return self.violations.push(format!("request {token} came, and there was none"));
        };
        let what = format!("{:?}: request {token}", call.pair);
        if call.pair.to != node {
            self.violations.push(format!("{what} came to node {node}"));
        }
        if let Some(first) = call.handled_by.replace(server) {
            self.violations.push(format!("{what} came to {server:#x}, and before to {first:#x}"));
        }
        if call.ended == Some(Ended::NotSent) {
            self.violations.push(format!("{what} came, and its caller was told it was not sent"));
        }
    }

    pub fn end_call(&mut self, token: u64, ended: Ended) {
        let call = &mut self.calls[token as usize];
        call.ended = Some(ended);
        let what = format!("{:?}: request {token}", call.pair);
        match (ended, call.handled_by) {
            (Ended::Answered { server }, handled_by) => {
                *self.answered.entry(call.pair).or_default() += 1;
                if handled_by != Some(server) {
                    self.violations.push(format!("{what} was handled by {handled_by:?}, answered by {server:#x}"));
                }
            }
            (Ended::OthersAnswer { of }, _) => {
                self.violations.push(format!("{what} got the answer to request {of}"));
            }
            (Ended::NotSent, Some(server)) => {
                self.violations.push(format!("{what} was not sent, and {server:#x} handled it"));
            }
            (Ended::Unanswered, None) => {
                self.violations.push(format!("{what} was left unanswered by nobody"));
            }
            (Ended::Impossible(why), _) => self.violations.push(format!("{what}: {why}")),
            _ => {}
        }
    }

    pub fn received_of(&self, pair: Pair) -> u64 {
        self.streams.get(&pair).map_or(0, |stream| stream.received)
    }

    pub fn answered_of(&self, pair: Pair) -> u64 {
        self.answered.get(&pair).copied().unwrap_or_default()
    }

    pub fn totals(&self) -> Totals {
        let ended = |wanted: Ended| self.calls.iter().filter(|call| call.ended == Some(wanted)).count() as u64;
        Totals {
            sent: self.streams.values().map(|stream| stream.sent).sum(),
            received: self.streams.values().map(|stream| stream.received).sum(),
            calls: self.calls.len() as u64,
            answered: self.answered.values().sum(),
            not_sent: ended(Ended::NotSent),
            lost: ended(Ended::Lost),
            timeouts: ended(Ended::Timeout),
            unanswered: ended(Ended::Unanswered),
        }
    }
}
