//! Finds a group's leader and gets one command or query answered within a deadline, across elections,
//! redirects and lost connections. What it never does: report as failed what may have happened, or send a
//! command again that could run twice.
//!
//! ```text
//!             reply ---------------------------------------------> done
//! attempt --> not leader, with a hint --> the hinted node at once
//!             not leader, wrong node, not sent --> the next node, after a pause once all were tried
//!             lost, or unknown there --> "maybe": again under the same id; without an id: unknown
//! deadline -> maybe: unknown outcome; else: did not happen
//! ```

mod changing;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::command::CommandId;
use crate::config::{GroupConfig, LARGEST_COMMAND_BYTES};
use crate::encoding::{encode_command, encode_command_as, encode_config_change};
use crate::error::{CommandError, NotHappened, QueryError, UnknownOutcome};
use crate::group::{UntypedReplica, check_length};
use crate::proposer::ProposeError;
use crate::reader::ReadError;
use crate::rpc::{Answer, ClusterTag, Envelope, Request, RequestBody};
use crate::status::Member;
use crate::transport::{Transport, TransportError};
use crate::value::Value;
use crate::wire::WireError;

/// Where the replicas of a group are, as far as this process knows.
pub trait Route: Send + Sync + 'static {
    /// This node's name; its requests do not leave it.
    fn here(&self) -> &str;
    /// This node's replica of the group.
    fn local(&self, group: &str) -> Option<UntypedReplica>;
    /// The nodes to try, best first.
    fn nodes(&self, group: &str) -> Vec<String>;
    /// The cluster, and the group's incarnation; `None` while the group is not known here.
    fn identity(&self, group: &str) -> Option<(ClusterTag, u64)>;
    /// The node that last answered as the leader or was named as such.
    fn leader(&self, group: &str) -> Option<String>;
    /// Remembers the leader's node, or forgets it.
    fn set_leader(&self, group: &str, node: Option<&str>);
    /// Hears where a member is. Networks that know the nodes by other means need not listen.
    fn learn(&self, member: &Member) {
        let _ = member;
    }
}

/// Sends commands and queries to the leaders of groups. Clones share it.
#[derive(Clone)]
pub struct GroupClient {
    route: Arc<dyn Route>,
    transport: Arc<dyn Transport>,
}

/// The first attempt's patience; it doubles with each one that was lost.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);
const LONGEST_PATIENCE: Duration = Duration::from_secs(8);
/// About thirty years: what cannot be added to the clock.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(1_000_000_000);
/// Between rounds over all nodes: about a third of an election.
const PAUSE: Duration = Duration::from_millis(40);
/// Redirects that are followed without a pause.
const MAX_PROMPT_REDIRECTS: u32 = 3;

enum Outcome {
    Done(Bytes),
    /// The user's code failed.
    Failed(String),
    /// Final, and nothing happened.
    Refused(NotHappened),
    /// Try elsewhere; nothing happened.
    Elsewhere {
        leader: Option<String>,
    },
    /// May have happened.
    Maybe(UnknownOutcome),
}

impl GroupClient {
    /// A client that finds replicas by `route` and reaches them by `transport`.
    pub fn new(route: Arc<dyn Route>, transport: Arc<dyn Transport>) -> Self {
        Self { route, transport }
    }

    /// Gets an encoded command (see [`encode_command`](crate::encode_command)) answered. With an id it is sent
    /// as often as needed and runs once; without one it is sent again only while it is known not to have happened, and the
    /// first node that may have taken it has all of the time.
    pub async fn command(&self, group: &str, command: Bytes, timeout: Duration) -> Result<Bytes, CommandError> {
        // Refused here already: it would be refused there, after all of it was sent.
        let max_bytes = self.route.local(group).map_or(LARGEST_COMMAND_BYTES, |replica| replica.max_command_bytes());
        if command.len() > max_bytes + crate::command::HEADER_BYTES {
            let bytes = command.len() - crate::command::HEADER_BYTES;
            return Err(NotHappened::TooLarge { bytes, max_bytes }.into());
        }
        let has_id = crate::command::has_id(&command);
        let deadline = deadline_in(timeout);
        let mut search = Search::new(self, group, deadline);
        let mut maybe = None;
        while let Some((node, patience)) = search.next().await {
            // What cannot be sent again gains nothing by an early end.
            let patience = if has_id { patience } else { deadline.saturating_duration_since(Instant::now()) };
            match self.attempt(group, &node, RequestBody::Command(command.clone()), patience).await {
                Outcome::Done(reply) => {
                    self.route.set_leader(group, Some(&node));
                    return Ok(reply);
                }
                Outcome::Failed(message) => return Err(CommandError::Failed(message)),
                Outcome::Refused(reason) => {
                    // An earlier attempt may have got further than this one.
                    return Err(maybe.map_or(CommandError::NotHappened(reason), CommandError::Unknown));
                }
                Outcome::Elsewhere { leader } => search.elsewhere(&node, leader),
                Outcome::Maybe(reason @ (UnknownOutcome::Expired { .. } | UnknownOutcome::ReplyGone)) => {
                    return Err(reason.into());
                }
                Outcome::Maybe(reason) if !has_id => return Err(reason.into()),
                Outcome::Maybe(reason) => {
                    maybe = Some(reason);
                    search.lost(&node);
                }
            }
        }
        Err(match maybe {
            Some(_) => UnknownOutcome::Timeout(timeout).into(),
            None => NotHappened::NoLeader { group: group.to_owned(), waited: timeout }.into(),
        })
    }

    /// Gets a typed command answered, as [`GroupClient::command`] does; the reply is encoded. While a member of the group
    /// does not read the program's version, it goes in an older form, where the value has one.
    pub async fn typed_command<V: Value>(
        &self,
        group: &str,
        command: &V::Command,
        id: Option<CommandId>,
        key_hash: u32,
        timeout: Duration,
    ) -> Result<Bytes, CommandError> {
        let malformed = |error: WireError| NotHappened::Malformed(error.to_string());
        let deadline = deadline_in(timeout);
        let mut version = V::VERSION;
        let mut bytes = encode_command::<V>(command, id, key_hash).map_err(malformed)?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let refusal = match self.command(group, bytes, left).await {
                Err(CommandError::NotHappened(refusal)) => refusal,
                outcome => return outcome,
            };
            // Each turn goes to an older version, so that this ends.
            let older = match &refusal {
                NotHappened::VersionNotReadable { readable: Some(older), .. } if *older < version => *older,
                _ => return Err(refusal.into()),
            };
            let Some(again) = encode_command_as::<V>(older, command, id, key_hash) else { return Err(refusal.into()) };
            (version, bytes) = (older, again);
        }
    }

    /// Gets the group's settings changed, on every member and for all that join later; once, by the id. See
    /// [`GroupConfig`] for what of them waits for a restart.
    pub async fn change_config(
        &self,
        group: &str,
        config: &GroupConfig,
        id: CommandId,
        timeout: Duration,
    ) -> Result<(), CommandError> {
        self.command(group, encode_config_change(config, id), timeout).await.map(drop)
    }

    /// Gets an encoded query of at most [`MAX_QUERY_BYTES`](crate::MAX_QUERY_BYTES) answered, linearizably.
    pub async fn query(&self, group: &str, query: Bytes, timeout: Duration) -> Result<Bytes, QueryError> {
        check_length(&query)?;
        let deadline = deadline_in(timeout);
        let mut search = Search::new(self, group, deadline);
        while let Some((node, patience)) = search.next().await {
            match self.attempt(group, &node, RequestBody::Query(query.clone()), patience).await {
                Outcome::Done(answer) => {
                    self.route.set_leader(group, Some(&node));
                    return Ok(answer);
                }
                Outcome::Failed(message) => return Err(QueryError::Failed(message)),
                Outcome::Refused(reason) => return Err(reason.into()),
                Outcome::Elsewhere { leader } => search.elsewhere(&node, leader),
                Outcome::Maybe(_) => search.lost(&node),
            }
        }
        Err(NotHappened::NoLeader { group: group.to_owned(), waited: timeout }.into())
    }

    /// Gets an encoded query answered by any member, this node's own first, from a value that has at least all that was
    /// committed `max` before this call; see
    /// [`UntypedReplica::read_with_staleness`](crate::UntypedReplica::read_with_staleness).
    pub async fn query_with_staleness(
        &self,
        group: &str,
        query: Bytes,
        max: Duration,
        timeout: Duration,
    ) -> Result<Bytes, QueryError> {
        check_length(&query)?;
        let mut search = Search::new(self, group, deadline_in(timeout));
        search.hint = self.route.local(group).map(|_| self.route.here().to_owned());
        while let Some((node, patience)) = search.next().await {
            let body = RequestBody::QueryWithStaleness { max, query: query.clone() };
            match self.attempt(group, &node, body, patience).await {
                Outcome::Done(answer) => return Ok(answer),
                Outcome::Failed(message) => return Err(QueryError::Failed(message)),
                // It lags, or hears no leader: another member may do better.
                Outcome::Refused(NotHappened::Stale { .. }) | Outcome::Maybe(_) => search.lost(&node),
                Outcome::Refused(reason) => return Err(reason.into()),
                Outcome::Elsewhere { .. } => search.elsewhere(&node, None),
            }
        }
        Err(NotHappened::Stale { group: group.to_owned(), max, waited: timeout }.into())
    }

    async fn attempt(&self, group: &str, node: &str, body: RequestBody, patience: Duration) -> Outcome {
        if node == self.route.here() {
            return match (self.route.local(group), body) {
                (Some(replica), RequestBody::Command(command)) => {
                    from_proposal(replica.propose(command, patience).await)
                }
                (Some(replica), RequestBody::Query(query)) => from_read(replica.read(query, patience).await),
                (Some(replica), RequestBody::QueryWithStaleness { max, query }) => {
                    from_read(replica.read_with_staleness(query, max, patience).await.map_err(ReadError::from))
                }
                _ => Outcome::Elsewhere { leader: None },
            };
        }
        let Some((cluster, incarnation)) = self.route.identity(group) else {
            return Outcome::Elsewhere { leader: None };
        };
        let envelope = Envelope { cluster, incarnation, from: None, to: None, group: group.to_owned() };
        let request = Request { envelope, body }.encode();
        match self.transport.call(node, request, patience).await {
            Ok(answer) => from_answer(answer),
            Err(TransportError::NotSent(_)) => Outcome::Elsewhere { leader: None },
            Err(TransportError::Lost(reason)) => Outcome::Maybe(UnknownOutcome::Interrupted(reason)),
        }
    }
}

impl std::fmt::Debug for GroupClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupClient").field("here", &self.route.here()).finish_non_exhaustive()
    }
}

fn from_proposal(result: Result<Bytes, ProposeError>) -> Outcome {
    match result {
        Ok(reply) => Outcome::Done(reply),
        Err(ProposeError::NotLeader { leader }) => Outcome::Elsewhere { leader: leader.map(|(_, member)| member.name) },
        Err(ProposeError::Command(CommandError::Failed(message))) => Outcome::Failed(message),
        Err(ProposeError::Command(CommandError::Unknown(reason))) => Outcome::Maybe(reason),
        Err(ProposeError::Command(CommandError::NotHappened(reason))) => refused(reason),
    }
}

fn from_read(result: Result<Bytes, ReadError>) -> Outcome {
    match result {
        Ok(answer) => Outcome::Done(answer),
        Err(ReadError::NotLeader { leader }) => Outcome::Elsewhere { leader: leader.map(|(_, member)| member.name) },
        Err(ReadError::NoAnswer { waited }) => Outcome::Maybe(UnknownOutcome::Timeout(waited)),
        Err(ReadError::Query(QueryError::Failed(message))) => Outcome::Failed(message),
        Err(ReadError::Query(QueryError::NotHappened(reason))) => refused(reason),
    }
}

fn from_answer(answer: Bytes) -> Outcome {
    match Answer::decode(answer) {
        Ok(Answer::Reply(reply)) => Outcome::Done(reply),
        Ok(Answer::Failed(message)) => Outcome::Failed(message),
        Ok(Answer::NotLeader { leader }) => Outcome::Elsewhere { leader: leader.map(|(_, member)| member.name) },
        Ok(Answer::WrongReplica | Answer::Ended { .. }) => Outcome::Elsewhere { leader: None },
        Ok(Answer::NotHappened(reason)) => refused(reason),
        Ok(Answer::Unknown(reason)) => Outcome::Maybe(reason),
        Ok(other) => Outcome::Maybe(UnknownOutcome::Interrupted(format!("an answer to another question: {other:?}"))),
        Err(error) => Outcome::Maybe(UnknownOutcome::Interrupted(error.to_string())),
    }
}

fn refused(reason: NotHappened) -> Outcome {
    match reason {
        NotHappened::Stopped { .. } | NotHappened::NoLeader { .. } => Outcome::Elsewhere { leader: None },
        other => Outcome::Refused(other),
    }
}

/// The end of a timeout that starts now; far away where the clock cannot tell a time so late.
pub fn deadline_in(timeout: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(timeout).unwrap_or_else(|| now + LONGEST_TIMEOUT)
}

/// Which node to ask next, and how long to wait for it.
struct Search<'a> {
    client: &'a GroupClient,
    group: &'a str,
    deadline: Instant,
    hint: Option<String>,
    /// This round's nodes that were not tried yet; `None` before the first is needed.
    candidates: Option<std::vec::IntoIter<String>>,
    redirects: u32,
    patience: Duration,
    /// Did not answer in this round: asked again only in the next one.
    silent: Option<String>,
}

impl<'a> Search<'a> {
    fn new(client: &'a GroupClient, group: &'a str, deadline: Instant) -> Self {
        let hint = client.route.leader(group);
        Self { client, group, deadline, hint, candidates: None, redirects: 0, patience: FIRST_PATIENCE, silent: None }
    }

    async fn next(&mut self) -> Option<(String, Duration)> {
        loop {
            let left = self.deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            let patience = left.min(self.patience);
            if let Some(node) = self.hint.take() {
                return Some((node, patience));
            }
            let silent = self.silent.clone();
            let nodes = || self.client.route.nodes(self.group).into_iter();
            let candidates = self.candidates.get_or_insert_with(nodes);
            if let Some(node) = candidates.find(|node| Some(node) != silent.as_ref()) {
                return Some((node, patience));
            }
            let jitter = crate::runtime::random_range(0.5..1.5);
            tokio::time::sleep(PAUSE.mul_f64(jitter).min(left)).await;
            self.redirects = 0;
            self.silent = None;
            self.hint = self.client.route.leader(self.group);
            self.candidates = None;
        }
    }

    /// The node did not answer: the others next, and more patience, since it may only be slow.
    fn lost(&mut self, asked: &str) {
        self.patience = self.patience.saturating_mul(2).min(LONGEST_PATIENCE);
        self.silent = Some(asked.to_owned());
        self.elsewhere(asked, None);
    }

    fn elsewhere(&mut self, asked: &str, leader: Option<String>) {
        match leader {
            Some(leader) if leader != asked && self.redirects < MAX_PROMPT_REDIRECTS => {
                self.redirects += 1;
                self.client.route.set_leader(self.group, Some(&leader));
                self.hint = Some(leader);
            }
            _ => {
                if self.client.route.leader(self.group).as_deref() == Some(asked) {
                    self.client.route.set_leader(self.group, None);
                }
            }
        }
    }
}
