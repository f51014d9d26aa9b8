//! Changes of a replicated value's members, from whichever member.

use std::future::{Future, IntoFuture};
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use super::{Inner, Replica};
use crate::change::Change;
use crate::client::deadline_in;
use crate::error::{DeleteError, MembershipError, NotHappened};
use crate::rpc::{Answer, RequestBody};
use crate::status::{Member, ReplicaId};
use crate::value::Value;

/// How long a change of members may take unless it says otherwise: a new member is given nearly all entries first.
pub const DEFAULT_MEMBERSHIP_TIMEOUT: Duration = Duration::from_secs(30);
/// One attempt to hear which replica runs on a node that is to be added.
const HELLO_PATIENCE: Duration = Duration::from_secs(2);
const HELLO_PAUSE: Duration = Duration::from_millis(100);

/// A change of members on its way; await it. Asking for the same again is always safe.
pub struct MembershipRequest<V> {
    replica: Replica<V>,
    ask: Ask,
    timeout: Duration,
}

enum Ask {
    Add { name: String, address: SocketAddr },
    Change(Change),
}

impl<V: Value> Replica<V> {
    /// Adds the node of this name, which runs a replica that [waits](super::ReplicaBuilder::wait_to_be_added) or
    /// [joins](super::ReplicaBuilder::join_through), as a member with a vote, once it lacks at most
    /// [`MAX_CATCH_UP_LAG`](crate::MAX_CATCH_UP_LAG) entries. Where a member of that name lost its disk, the new replica
    /// takes its place.
    pub fn add_member(&self, name: &str, address: SocketAddr) -> MembershipRequest<V> {
        self.request(Ask::Add { name: name.to_owned(), address })
    }

    /// Removes the member on the node of this name, which need not be up. It stops when it hears of it, and cannot
    /// disturb the group before. The leader is not removed: [replace](Replica::replace_leader) it first.
    pub fn remove_member(&self, name: &str) -> MembershipRequest<V> {
        self.request(Ask::Change(Change::Remove { name: name.to_owned() }))
    }

    /// Hands the leadership to the member on the node of this name, once it has the entries. A later request takes
    /// an earlier one's place, and with `None` only ends an earlier one; what was handed over already stays so.
    pub fn replace_leader(&self, name: Option<&str>) -> MembershipRequest<V> {
        self.request(Ask::Change(Change::ReplaceLeader { name: name.map(str::to_owned) }))
    }

    /// Stops a member that was removed, and deletes what it has stored; the node can then join as new.
    pub async fn delete_data(&self) -> Result<(), DeleteError> {
        let inner = &self.inner;
        inner.replica.delete_data().await?;
        self.shutdown().await;
        Ok(())
    }

    fn request(&self, ask: Ask) -> MembershipRequest<V> {
        MembershipRequest { replica: self.clone(), ask, timeout: DEFAULT_MEMBERSHIP_TIMEOUT }
    }
}

impl<V: Value> MembershipRequest<V> {
    /// How long it may take, retries included; [`DEFAULT_MEMBERSHIP_TIMEOUT`] unless set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    async fn run(self) -> Result<(), MembershipError> {
        let inner = &self.replica.inner;
        inner.check_member()?;
        let deadline = deadline_in(self.timeout);
        let change = match self.ask {
            Ask::Change(change) => change,
            Ask::Add { name, address } => inner.addition(name, address, deadline).await?,
        };
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        inner.client.change(&inner.group, change, left).await
    }
}

impl Inner {
    /// Asks the node which replica it runs.
    async fn addition(
        &self,
        name: String,
        address: SocketAddr,
        deadline: tokio::time::Instant,
    ) -> Result<Change, MembershipError> {
        let mut member = Member { name, node: 0, zone: String::new(), decided_at: 0, addresses: vec![address] };
        self.route.learn(&member);
        let started = tokio::time::Instant::now();
        loop {
            let hello = self.replica.sender().request(None, RequestBody::Hello { founder: false });
            let answer = self.transport.call(&member.name, hello, HELLO_PATIENCE).await;
            if let Ok(Ok(Answer::Hello { replica, node, initialized, .. })) = answer.map(Answer::decode)
                && let Some(replica) = ReplicaId::new(replica)
            {
                self.check_origin(&member.name, replica, initialized)?;
                member.node = node;
                return Ok(Change::Add { replica, member });
            }
            if tokio::time::Instant::now() + HELLO_PAUSE >= deadline {
                return Err(MembershipError::Unresponsive { name: member.name, silent_for: Some(started.elapsed()) });
            }
            tokio::time::sleep(HELLO_PAUSE).await;
        }
    }

    /// A replica that has members, and is none here, is of another group of the same name.
    fn check_origin(&self, name: &str, replica: ReplicaId, initialized: bool) -> Result<(), MembershipError> {
        let is_known = self.replica.status().members.replicas.contains_key(&replica);
        if !initialized || is_known {
            return Ok(());
        }
        let message = format!(
            "{name} has data of a group of this name, and is no member of this one; delete its data, and add it as new"
        );
        Err(NotHappened::Malformed(message).into())
    }
}

impl<V: Value> IntoFuture for MembershipRequest<V> {
    type Output = Result<(), MembershipError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}
