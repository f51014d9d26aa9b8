//! One command on its way, through refusals and new tries, until its outcome is known or its time is over.

use std::time::Duration;

use raft_kv::{KvError, fingerprint};
use tokio::time::Instant;

use super::{Inner, malformed, other_version};
use crate::agent_state::{AGENTS_KEYSPACE, AgentCommand, AgentReply, Refused, UserCommand};
use crate::error::{AgentError, IdempotencyKey};
use crate::grants::{Place, PoolName};
use crate::id::AgentId;
use crate::quotas::Asked;

/// The pauses while others hold the places of a quota.
const FIRST_PAUSE: Duration = Duration::from_millis(40);
const LONGEST_PAUSE: Duration = Duration::from_millis(320);

/// A limit that is reached is asked for once more after this: agents that have just gone are counted by then.
const SETTLED_AFTER: Duration = Duration::from_millis(600);

pub(super) struct Sending<'a> {
    agents: &'a Inner,
    id: &'a AgentId,
    stored: String,
    /// Of the stored key.
    hash: u64,
    command: Vec<u8>,
    /// The module's.
    version: u32,
    key: Option<IdempotencyKey>,
    deadline: Instant,
    /// When the limit was first found to be reached.
    limit_reached: Option<Instant>,
    pause: Duration,
}

/// What a try came to.
enum Tried {
    Replied(Vec<u8>),
    /// The quota was deleted and made again.
    QuotaChanged,
    /// The agent would be activated. The shard's log time in ms, if it told.
    NeedsPlace {
        log_time: u64,
    },
}

impl<'a> Sending<'a> {
    pub(super) fn new(
        agents: &'a Inner,
        id: &'a AgentId,
        command: Vec<u8>,
        key: Option<IdempotencyKey>,
        timeout: Duration,
    ) -> Result<Self, AgentError> {
        let stored = id.stored();
        let version = agents.version_of(id)?;
        let (hash, deadline) = (fingerprint(stored.as_bytes()), rafted_value::deadline_in(timeout));
        let (limit_reached, pause) = (None, FIRST_PAUSE);
        Ok(Self { agents, id, stored, hash, command, version, key, deadline, limit_reached, pause })
    }

    pub(super) async fn run(mut self) -> Result<Vec<u8>, AgentError> {
        let mut given = None;
        // What to say when the time is over.
        let mut why = None;
        loop {
            let left = self.left();
            if left.is_zero() {
                let reason = || AgentError::NotHappened { reason: "the deadline came first".to_owned() };
                return Err(why.unwrap_or_else(reason));
            }
            let incarnation = self.agents.quotas.incarnation(self.id.quota(), left).await.map_err(before_it_ran)?;
            let pool = self.pool(incarnation)?;
            let place = self.place(&pool, given.take());
            let log_time = match self.send(incarnation, place).await? {
                Tried::Replied(reply) => return Ok(reply),
                Tried::QuotaChanged => {
                    self.agents.quotas.forget(self.id.quota());
                    continue;
                }
                Tried::NeedsPlace { log_time } => log_time,
            };
            let asked = self.agents.quotas.ask_for_place(&pool, log_time, self.left());
            match asked.await.map_err(before_it_ran)? {
                Asked::Place(place) => given = Some(place),
                Asked::Gone => self.agents.quotas.forget(self.id.quota()),
                Asked::Held => {
                    why = Some(AgentError::places_held(self.id.quota()));
                    self.pause().await;
                }
                Asked::LimitReached { limit, used } => {
                    let refused = AgentError::QuotaLimitReached { quota: self.id.quota().to_owned(), limit, used };
                    if self.is_settled() {
                        return Err(refused);
                    }
                    why = Some(refused);
                    self.pause().await;
                }
            }
        }
    }

    async fn send(&self, incarnation: u64, place: Option<Place>) -> Result<Tried, AgentError> {
        let command = AgentCommand::User(UserCommand {
            incarnation,
            version: self.version,
            tick_millis: u64::try_from(self.agents.config.tick_interval().as_millis()).unwrap_or(u64::MAX),
            stamp: place.as_ref().map(|place| place.stamp().clone()),
            command: self.command.clone(),
        });
        let mut request = self.agents.keyspace.command(&self.stored, command).timeout(self.left());
        if let Some(key) = &self.key {
            // Of the module's command alone: a try with a place is the same request.
            request = request.idempotency(key.client(), key.serial(), fingerprint(&self.command));
        }
        let ran = match request.versioned().await {
            Ok(ran) => ran,
            Err(error) => {
                if !error.is_unknown() {
                    place.into_iter().for_each(Place::put_back);
                }
                return Err(self.refused(error));
            }
        };
        let activated = !ran.repeated && matches!(ran.reply, AgentReply::Ran { activated: true, .. });
        let expired = matches!(ran.reply, AgentReply::Refused(Refused::StampExpired { .. }));
        match place {
            Some(place) if expired => place.expired(),
            Some(place) if !activated => place.put_back(),
            _ => {}
        }
        self.tried(ran.reply)
    }

    fn tried(&self, reply: AgentReply) -> Result<Tried, AgentError> {
        match reply {
            AgentReply::Ran { reply, activated } => {
                if activated {
                    metrics::counter!("dist_agent_activations_total").increment(1);
                }
                self.agents.recent.insert(self.hash);
                Ok(Tried::Replied(reply))
            }
            AgentReply::Failed(reason) => Err(AgentError::AgentFailed { reason }),
            AgentReply::Dropped => Err(AgentError::Unknown { reason: "the shard answered another command".into() }),
            AgentReply::Refused(refused) => match refused {
                Refused::NeedsStamp => {
                    self.agents.recent.remove(self.hash);
                    Ok(Tried::NeedsPlace { log_time: 0 })
                }
                Refused::StampExpired { log_time } => Ok(Tried::NeedsPlace { log_time }),
                Refused::OldIncarnation => Ok(Tried::QuotaChanged),
                Refused::UnknownModule => Err(self.agents.unknown_module(self.id)),
                Refused::OtherVersion { known } => Err(other_version(self.id, self.version, known)),
                Refused::Malformed(reason) => Err(malformed(self.id, reason)),
            },
        }
    }

    fn refused(&self, error: KvError) -> AgentError {
        match (error, &self.key) {
            (KvError::SerialTooOld { .. }, Some(key)) => AgentError::SerialTooOld { key: key.clone() },
            (KvError::AlreadyDone { .. }, Some(key)) => AgentError::AlreadyDone { key: key.clone() },
            (KvError::IdempotencyConflict { .. }, Some(key)) => AgentError::IdempotencyConflict { key: key.clone() },
            (error, _) => error.into(),
        }
    }

    /// The place that was just given, or one that this node holds and the agent may need.
    fn place(&self, pool: &PoolName, given: Option<Place>) -> Option<Place> {
        match given {
            Some(place) if place.is_of(pool) => Some(place),
            other => {
                other.into_iter().for_each(Place::put_back);
                let likely = !self.agents.recent.contains(self.hash);
                likely.then(|| self.agents.quotas.held_place(pool)).flatten()
            }
        }
    }

    fn pool(&self, incarnation: u64) -> Result<PoolName, AgentError> {
        let shard = self.agents.kv.shard_of(AGENTS_KEYSPACE, &self.stored);
        let reason = || "the keyspace of agents is not known on this node yet".to_owned();
        let holder = shard.ok_or_else(|| AgentError::NotHappened { reason: reason() })?;
        Ok(PoolName { quota: self.id.quota().to_owned(), incarnation, holder: holder.to_string() })
    }

    /// Whether the limit has been found reached for so long that it is.
    fn is_settled(&mut self) -> bool {
        self.limit_reached.get_or_insert_with(Instant::now).elapsed() >= SETTLED_AFTER
    }

    async fn pause(&mut self) {
        tokio::time::sleep_until(self.deadline.min(Instant::now() + self.pause)).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// What failed before the command was sent: whatever became of that, the command did not happen.
fn before_it_ran(error: AgentError) -> AgentError {
    match error {
        AgentError::Unknown { reason } | AgentError::AgentFailed { reason } => AgentError::NotHappened { reason },
        other => other,
    }
}
