//! A replica by itself, for tests: a group of one on a store, without a network.

mod at_once;
mod bounded;
mod crash;
mod failing;
mod frozen;
mod full;
mod hung;
mod pinned;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::any_value::ValueFactory;
use crate::config::GroupConfig;
use crate::encoding::encode_command;
use crate::group::{ReplicaSpec, UntypedReplica};
use crate::rpc::ClusterTag;
use crate::status::{Member, Role};
use crate::store::Store;
use crate::transport::{Body, BoxFuture, Transport, TransportError};
use crate::value::Value;

/// For anything that other threads do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Two of them make a snapshot that does not fit into the log.
pub(crate) const COMMAND_BYTES: usize = 40_000;

/// All that it was ever given.
#[derive(Debug, Clone, PartialEq, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub(crate) struct Bag(Vec<Vec<u8>>);

impl Value for Bag {
    type Command = Vec<u8>;
    type Reply = ();
    type Query = ();
    type Answer = ();
    fn command(&mut self, bytes: Vec<u8>) {
        self.0.push(bytes);
    }
    fn query(&self, (): ()) {}
}

struct NoNetwork;

impl Transport for NoNetwork {
    fn call(&self, _: &str, _: Bytes, _: Duration) -> BoxFuture<Result<Bytes, TransportError>> {
        Box::pin(async { Err(TransportError::NotSent("there is no network".into())) })
    }

    fn call_with_body(
        &self,
        node: &str,
        request: Bytes,
        _: Box<dyn Body>,
        timeout: Duration,
    ) -> BoxFuture<Result<Bytes, TransportError>> {
        self.call(node, request, timeout)
    }
}

/// Creates a group of one, and waits until it leads.
pub(crate) async fn start(store: &Store, group: &str) -> UntypedReplica {
    start_as(store, group, GroupConfig::default(), ValueFactory::of::<Bag>(None)).await
}

/// As [`start`], with other settings and another value.
pub(crate) async fn start_as(store: &Store, group: &str, config: GroupConfig, factory: ValueFactory) -> UntypedReplica {
    let replica = store.create_replica(group, 3, Vec::new()).await.unwrap();
    let (group, cluster) = (group.to_owned(), ClusterTag::default());
    let spec = ReplicaSpec { group, incarnation: 3, replica, cluster, config, is_alone: false };
    let started = UntypedReplica::start(store, spec, factory, Arc::new(NoNetwork)).await.unwrap();
    started.initialize([(replica, Member::default())].into()).await.unwrap();
    let mut changes = started.status_changes();
    while started.status().role != Role::Leader {
        assert!(tokio::time::timeout(PATIENCE, changes.changed()).await.unwrap());
    }
    started
}

/// Waits for what nobody tells of; fails with `what` after [`PATIENCE`].
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Runs commands of [`COMMAND_BYTES`] each.
pub(crate) async fn add(replica: &UntypedReplica, count: usize) {
    for _ in 0..count {
        let command = encode_command::<Bag>(&vec![7; COMMAND_BYTES], None, 0).unwrap();
        replica.propose(command, PATIENCE).await.unwrap();
    }
}
