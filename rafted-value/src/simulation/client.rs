//! A client process: appends and reads, retries what is unknown under the same id, and writes down what it was told.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use super::clock::VirtualClock;
use super::history::{Operation, Outcome, Record};
use super::network::Network;
use super::node::GROUP;
use super::value::{Chain, Change, Look};
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
/// Larger than what lives in the log, so that snapshots become files.
const MAX_PADDING: u64 = 100_000;
/// How often an unknown command is sent again under its id.
const RETRIES: u32 = 2;
/// A session lasts for so many operations, as if the process were started anew.
const SESSION_OPERATIONS: u64 = 60;

/// What all clients share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) history: Mutex<Vec<Record>>,
    /// Counts invocations and answers.
    moments: AtomicU64,
    items: AtomicU64,
    pub(crate) stop: AtomicBool,
}

impl Shared {
    fn moment(&self) -> u64 {
        self.moments.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn item_count(&self) -> u64 {
        self.items.load(Ordering::Relaxed)
    }
}

/// How many invocations and answers there were before, and when it is.
type Moment = (u64, Duration);

pub(crate) struct Client {
    pub(crate) name: String,
    pub(crate) nodes: Vec<String>,
    pub(crate) network: Network,
    pub(crate) clock: Arc<VirtualClock>,
    pub(crate) shared: Arc<Shared>,
}

impl Client {
    pub(crate) async fn run(self) {
        let route = ClientRoute { here: self.name.clone(), nodes: self.nodes.clone(), leader: Mutex::new(None) };
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
            let timeout = Duration::from_millis(random_range(300..3_000));
            match random_range(0..100) {
                roll if roll < READS_WITHIN => self.read_within(&groups, timeout).await,
                roll if roll < READS => self.read(&groups, timeout).await,
                roll if roll < READS + PADS => self.pad(&groups, &session, timeout).await,
                _ => self.append(&groups, &session, timeout).await,
            }
        }
    }

    async fn append(&self, groups: &GroupClient, session: &ClientSession, timeout: Duration) {
        let item = self.shared.items.fetch_add(1, Ordering::Relaxed) + 1;
        let open = session.open(self.clock.wall(), timeout * (RETRIES + 1)).await;
        let bytes = encode_command::<Chain>(&Change::Append(item), Some(open.id()), 0).unwrap();
        let from = self.moment();
        let mut outcome = Outcome::Unknown;
        let mut was_unknown = false;
        for _ in 0..=RETRIES {
            match groups.command(GROUP, bytes.clone(), timeout).await {
                Ok(reply) => {
                    outcome = Outcome::Appended(decode_reply::<Chain>(&reply).unwrap());
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
        self.record(Operation::Append(item), outcome, from);
    }

    async fn pad(&self, groups: &GroupClient, session: &ClientSession, timeout: Duration) {
        let open = session.open(self.clock.wall(), timeout).await;
        let bytes = encode_command::<Chain>(&Change::Pad(random_range(0..MAX_PADDING)), Some(open.id()), 0).unwrap();
        // It changes nothing that anybody reads.
        let _ = groups.command(GROUP, bytes, timeout).await;
    }

    async fn read(&self, groups: &GroupClient, timeout: Duration) {
        let from = self.moment();
        let answer = groups.query(GROUP, encode_query::<Chain>(&Look::All).unwrap(), timeout).await;
        self.record_read(Operation::Read, answer, from);
    }

    async fn read_within(&self, groups: &GroupClient, timeout: Duration) {
        let max = random_range(Duration::ZERO..MAX_AGE);
        let from = self.moment();
        let query = encode_query::<Chain>(&Look::All).unwrap();
        let answer = groups.query_with_staleness(GROUP, query, max, timeout).await;
        self.record_read(Operation::ReadWithin(max), answer, from);
    }

    fn record_read(&self, operation: Operation, answer: Result<Bytes, QueryError>, from: Moment) {
        let outcome = match answer {
            Ok(answer) => {
                let seen = decode_answer::<Chain>(&answer).unwrap();
                Outcome::Read { length: seen.length, hash: seen.hash }
            }
            Err(QueryError::NotHappened(_)) => Outcome::NotHappened,
            Err(QueryError::Failed(message)) => panic!("the value failed: {message}"),
        };
        self.record(operation, outcome, from);
    }

    fn moment(&self) -> Moment {
        (self.shared.moment(), self.clock.monotonic())
    }

    fn record(&self, operation: Operation, outcome: Outcome, (from, from_at): Moment) {
        let (to, to_at) = self.moment();
        let record = Record { operation, outcome, from, to, from_at, to_at };
        self.shared.history.lock().unwrap().push(record);
    }
}

#[derive(Debug)]
struct ClientRoute {
    here: String,
    nodes: Vec<String>,
    leader: Mutex<Option<String>>,
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
        *self.leader.lock().unwrap() = node.map(str::to_owned);
    }
}
