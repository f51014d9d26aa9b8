//! Requests to one agent whose type the caller knows: builders that are awaited.

use std::fmt;
use std::future::IntoFuture;
use std::marker::PhantomData;
use std::time::Duration;

use rafted_value::{BoxFuture, decode, encode};

use super::Agents;
use crate::behaviour::Agent;
use crate::config::DEFAULT_TIMEOUT;
use crate::error::{AgentError, IdempotencyKey};
use crate::id::AgentId;

/// One agent, active or not. Cheap to clone.
pub struct AgentHandle<A> {
    agents: Agents,
    id: AgentId,
    agent: PhantomData<fn() -> A>,
}

impl<A: Agent> AgentHandle<A> {
    pub(super) fn new(agents: Agents, id: AgentId) -> Self {
        Self { agents, id, agent: PhantomData }
    }

    /// Which.
    pub fn id(&self) -> &AgentId {
        &self.id
    }

    /// Runs a command, once; it activates the agent where that has no state yet. The reply comes when it is durable on
    /// a majority. Await it, or set a [`timeout`](AgentCommandRequest::timeout) first.
    pub fn command(&self, command: A::Command) -> AgentCommandRequest<A> {
        AgentCommandRequest { handle: self.clone(), command, key: None, timeout: DEFAULT_TIMEOUT }
    }

    /// Reads, linearizably; it activates nothing. Await it, or set a [`timeout`](AgentQueryRequest::timeout) first.
    pub fn query(&self, query: A::Query) -> AgentQueryRequest<A> {
        AgentQueryRequest { handle: self.clone(), query, timeout: DEFAULT_TIMEOUT }
    }
}

impl<A> Clone for AgentHandle<A> {
    fn clone(&self) -> Self {
        Self { agents: self.agents.clone(), id: self.id.clone(), agent: PhantomData }
    }
}

impl<A> fmt::Debug for AgentHandle<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentHandle({})", self.id)
    }
}

/// A command that is awaited.
#[must_use = "a command is sent when it is awaited"]
pub struct AgentCommandRequest<A: Agent> {
    handle: AgentHandle<A>,
    command: A::Command,
    key: Option<IdempotencyKey>,
    timeout: Duration,
}

impl<A: Agent> AgentCommandRequest<A> {
    /// The whole time it may take, retries included; [`DEFAULT_TIMEOUT`] otherwise.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Names the request, so that it runs once also when another process sends it again.
    pub fn idempotency(mut self, key: IdempotencyKey) -> Self {
        self.key = Some(key);
        self
    }
}

impl<A: Agent> IntoFuture for AgentCommandRequest<A> {
    type Output = Result<A::Reply, AgentError>;
    type IntoFuture = BoxFuture<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let AgentHandle { agents, id, .. } = &self.handle;
            let command = encode(&self.command).map_err(|error| malformed(id, &error))?.to_vec();
            // Encoded; what follows may wait, and the command need not.
            let reply = agents.command_bytes(id, command, self.key, self.timeout).await?;
            decode(&reply).map_err(|error| AgentError::Unknown { reason: error.to_string() })
        })
    }
}

/// A query that is awaited.
#[must_use = "a query is sent when it is awaited"]
pub struct AgentQueryRequest<A: Agent> {
    handle: AgentHandle<A>,
    query: A::Query,
    timeout: Duration,
}

impl<A: Agent> AgentQueryRequest<A> {
    /// The whole time it may take, retries included; [`DEFAULT_TIMEOUT`] otherwise.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

impl<A: Agent> IntoFuture for AgentQueryRequest<A> {
    type Output = Result<A::Answer, AgentError>;
    type IntoFuture = BoxFuture<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let AgentHandle { agents, id, .. } = &self.handle;
            let query = encode(&self.query).map_err(|error| malformed(id, &error))?.to_vec();
            let answer = agents.query_bytes(id, query, self.timeout).await?;
            decode(&answer).map_err(|error| AgentError::NotHappened { reason: error.to_string() })
        })
    }
}

fn malformed(id: &AgentId, error: &impl fmt::Display) -> AgentError {
    super::malformed(id, error.to_string())
}
