//! A client process: appends and reads, retries what is unknown under the same id, and writes down what it was told.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use super::clock::VirtualClock;
use super::counts::Event;
use super::history::{Operation, Outcome, Record};
use super::ledger::Ledger;
use super::network::Network;
use super::node::GROUP;
use super::settings::{self, Settings};
use super::truth::Truth;
use super::value::{Chain, Change, Look, Order};
use crate::client::{GroupClient, Route};
use crate::clock::Clock;
use crate::encoding::{decode_answer, decode_reply, encode_command, encode_query};
use crate::error::{CommandError, QueryError};
use crate::group::UntypedReplica;
use crate::rpc::ClusterTag;
use crate::runtime::random_range;
use crate::session::ClientSession;

/// Of 100 operations, so many are reads, and so many pad the value.
const READS: u32 = 35;
/// And of these, so many may be old.
const READS_WITHIN: u32 = 10;
const MAX_AGE: Duration = Duration::from_millis(500);
const PADS: u32 = 3;
/// And so many change settings.
const SETTINGS: u32 = 1;
/// Larger than what lives in the log, so that snapshots become files.
const MAX_PADDING: u64 = 100_000;
/// The longest command has so many bytes more than the shortest.
const MAX_FILLER: usize = 3_000;
/// How often an unknown command is sent again under its id.
const RETRIES: u32 = 2;
/// A session lasts for so many operations, as if the process were started anew.
const SESSION_OPERATIONS: u64 = 60;

/// What all clients share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) history: Mutex<Vec<Record>>,
    pub(crate) settings: Mutex<Settings>,
    /// Counts invocations and answers.
    moments: AtomicU64,
    pub(crate) stop: AtomicBool,
}

impl Shared {
    fn moment(&self) -> u64 {
        self.moments.fetch_add(1, Ordering::Relaxed)
    }
}

/// What there was when an operation was asked for.
#[derive(Clone, Copy)]
struct Asked {
    /// How many invocations and answers of all clients.
    moment: u64,
    at: Duration,
    /// How long the list was, as somebody was told.
    told: u64,
}

pub(crate) struct Client {
    pub(crate) name: String,
    pub(crate) nodes: Vec<String>,
    pub(crate) network: Network,
    pub(crate) clock: Arc<VirtualClock>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) truth: Arc<Truth>,
    /// Whether it turns to others only when it is told to, and asks again soon: it finds leaders that are none any more.
    pub(crate) is_stubborn: bool,
}

impl Client {
    pub(crate) async fn run(self) {
        let (here, nodes, leader) = (self.name.clone(), self.nodes.clone(), Mutex::new(None));
        let route = ClientRoute { here, nodes, leader, is_stubborn: self.is_stubborn };
        let groups = GroupClient::new(Arc::new(route), self.network.transport(&self.name));
        let mut session = ClientSession::random();
        for count in 1.. {
            if self.shared.stop.load(Ordering::Relaxed) {
                return;
            }
            if count % SESSION_OPERATIONS == 0 {
                session = ClientSession::random();
            }
            tokio::time::sleep(Duration::from_millis(random_range(0..60))).await;
            // The impatient turn elsewhere, and come back, while others still wait.
            let timeout = match random_range(0..2) {
                _ if self.is_stubborn => random_range(50..200),
                0 => random_range(50..400),
                _ => random_range(300..3_000),
            };
            let timeout = Duration::from_millis(timeout);
            match random_range(0..100) {
                roll if roll < READS_WITHIN => self.read_within(&groups, timeout).await,
                roll if roll < READS => self.read(&groups, timeout).await,
                roll if roll < READS + PADS => self.pad(&groups, &session, timeout).await,
                roll if roll < READS + PADS + SETTINGS => self.change_settings(&groups, &session, timeout).await,
                _ => self.append(&groups, &session, timeout).await,
            }
        }
    }

    async fn append(&self, groups: &GroupClient, session: &ClientSession, timeout: Duration) {
        let item = self.truth.ledger(Ledger::next_item);
        let open = session.open(self.clock.wall(), timeout * (RETRIES + 1)).await;
        let bytes = encode_command::<Chain>(&filled(Change::Append(item)), Some(open.id()), 0).unwrap();
        let asked = self.asked();
        let mut outcome = Outcome::Unknown;
        let mut was_unknown = false;
        for _ in 0..=RETRIES {
            match groups.command(GROUP, bytes.clone(), timeout).await {
                Ok(reply) => {
                    outcome = Outcome::Appended(decode_reply::<Chain>(&reply).unwrap());
                    if was_unknown {
                        self.truth.count(Event::RetriedAfterUnknown);
                    }
                    break;
                }
                Err(CommandError::Unknown(_)) => was_unknown = true,
                // The attempt before may have happened, or may happen yet.
                Err(CommandError::NotHappened(_)) if was_unknown => {}
                Err(CommandError::NotHappened(_)) => {
                    outcome = Outcome::NotHappened;
                    break;
                }
                Err(CommandError::Failed(message)) => panic!("the value failed: {message}"),
            }
        }
        self.record(Operation::Append(item), outcome, asked);
    }

    async fn pad(&self, groups: &GroupClient, session: &ClientSession, timeout: Duration) {
        let open = session.open(self.clock.wall(), timeout).await;
        let bytes =
            encode_command::<Chain>(&filled(Change::Pad(random_range(0..MAX_PADDING))), Some(open.id()), 0).unwrap();
        // It changes nothing that anybody reads.
        let _ = groups.command(GROUP, bytes, timeout).await;
    }

    async fn change_settings(&self, groups: &GroupClient, session: &ClientSession, timeout: Duration) {
        let number = self.shared.settings.lock().unwrap().ask(self.shared.moment());
        let open = session.open(self.clock.wall(), timeout).await;
        let changed = groups.change_config(GROUP, &settings::numbered(number), open.id(), timeout).await;
        if changed.is_ok() {
            self.truth.count(Event::SettingsChanged);
        }
        let is_refused = matches!(changed, Err(CommandError::NotHappened(_)));
        self.shared.settings.lock().unwrap().answer(number, changed.is_ok(), is_refused, self.shared.moment());
    }

    async fn read(&self, groups: &GroupClient, timeout: Duration) {
        let asked = self.asked();
        let answer = groups.query(GROUP, encode_query::<Chain>(&Look::All).unwrap(), timeout).await;
        self.record_read(Operation::Read, answer, asked);
    }

    async fn read_within(&self, groups: &GroupClient, timeout: Duration) {
        let max = random_range(Duration::ZERO..MAX_AGE);
        let asked = self.asked();
        let query = encode_query::<Chain>(&Look::All).unwrap();
        let answer = groups.query_with_staleness(GROUP, query, max, timeout).await;
        self.record_read(Operation::ReadWithin(max), answer, asked);
    }

    fn record_read(&self, operation: Operation, answer: Result<Bytes, QueryError>, asked: Asked) {
        let outcome = match answer {
            Ok(answer) => {
                let seen = decode_answer::<Chain>(&answer).unwrap();
                Outcome::Read { length: seen.length, hash: seen.hash }
            }
            Err(QueryError::NotHappened(_)) => Outcome::NotHappened,
            Err(QueryError::Failed(message)) => panic!("the value failed: {message}"),
        };
        self.record(operation, outcome, asked);
    }

    fn asked(&self) -> Asked {
        let told = self.truth.ledger(|ledger| ledger.told());
        Asked { moment: self.shared.moment(), at: self.clock.monotonic(), told }
    }

    /// Judges an outcome at once, and keeps it for the history.
    fn record(&self, operation: Operation, outcome: Outcome, asked: Asked) {
        let event = match (operation, outcome) {
            (_, Outcome::Appended(_)) => Some(Event::Appended),
            (Operation::ReadWithin(_), Outcome::Read { .. }) => Some(Event::ReadWithin),
            (_, Outcome::Read { .. }) => Some(Event::Read),
            (_, Outcome::Unknown) => Some(Event::Unknown),
            (_, Outcome::NotHappened) => None,
        };
        event.into_iter().for_each(|event| self.truth.count(event));
        self.truth.judge(&self.name, |ledger, now| match (operation, outcome) {
            (Operation::Append(item), Outcome::Appended(place)) => ledger.acknowledges(item, place, asked.told, now),
            (Operation::Append(item), Outcome::NotHappened) => ledger.refuses(item),
            (Operation::Read, Outcome::Read { length, hash }) => {
                ledger.answers(length, hash, asked.told)?;
                ledger.tell(length, now);
                Ok(())
            }
            (Operation::ReadWithin(max), Outcome::Read { length, hash }) => {
                ledger.answers(length, hash, ledger.told_before(asked.at.saturating_sub(max)))
            }
            _ => Ok(()),
        });
        let (to, to_at) = (self.shared.moment(), self.clock.monotonic());
        let record = Record { operation, outcome, from: asked.moment, to, from_at: asked.at, to_at };
        self.shared.history.lock().unwrap().push(record);
    }
}

/// Most commands are short, some take several sectors of a disk.
fn filled(change: Change) -> Order {
    let longest = if random_range(0..4) == 0 { MAX_FILLER } else { 100 };
    Order { change, filler: vec![0xF1; random_range(0..longest)] }
}

#[derive(Debug)]
struct ClientRoute {
    here: String,
    nodes: Vec<String>,
    leader: Mutex<Option<String>>,
    /// Goes on asking who led once, until it is told of another.
    is_stubborn: bool,
}

impl Route for ClientRoute {
    fn here(&self) -> &str {
        &self.here
    }
    fn local(&self, _: &str) -> Option<UntypedReplica> {
        None
    }
    fn nodes(&self, _: &str) -> Vec<String> {
        self.nodes.clone()
    }
    fn identity(&self, _: &str) -> Option<(ClusterTag, u64)> {
        Some((ClusterTag::default(), 0))
    }
    fn leader(&self, _: &str) -> Option<String> {
        self.leader.lock().unwrap().clone()
    }
    fn set_leader(&self, _: &str, node: Option<&str>) {
        if node.is_some() || !self.is_stubborn {
            *self.leader.lock().unwrap() = node.map(str::to_owned);
        }
    }
}
