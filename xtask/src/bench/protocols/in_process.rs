//! rafted-value in memory, three replicas in one process without a network: what the crate itself costs.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use rafted_value::{
    Body, BoxFuture, ClusterTag, GroupClient, GroupConfig, Member, ReplicaId, ReplicaSpec, Store, Transport,
    TransportError, UntypedReplica, ValueFactory,
};

use super::raft::{Members, RaftClient, Table, group_name};

const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// The replicas of the process by node; requests are function calls.
#[derive(Default)]
struct Hub(OnceLock<BTreeMap<&'static str, UntypedReplica>>);

#[derive(Clone)]
struct Link(Arc<Hub>);

impl Link {
    fn target(&self, node: &str) -> Result<UntypedReplica, TransportError> {
        let found = self.0.0.get().and_then(|replicas| replicas.get(node)).cloned();
        found.ok_or_else(|| TransportError::NotSent(format!("{node} does not run yet")))
    }
}

impl Transport for Link {
    fn call(&self, node: &str, request: Bytes, timeout: Duration) -> BoxFuture<Result<Bytes, TransportError>> {
        let target = self.target(node);
        Box::pin(async move { Ok(target?.handle(request, timeout).await) })
    }

    fn call_with_body(
        &self,
        node: &str,
        request: Bytes,
        body: Box<dyn Body>,
        _timeout: Duration,
    ) -> BoxFuture<Result<Bytes, TransportError>> {
        let target = self.target(node);
        Box::pin(async move { Ok(target?.handle_with_body(request, body).await) })
    }
}

/// Three nodes; the client is on the leader's.
pub async fn connect() -> Result<RaftClient> {
    let link = Link(Arc::default());
    let group = group_name(0);
    let (mut replicas, mut members) = (BTreeMap::new(), BTreeMap::<ReplicaId, Member>::new());
    for name in NODES {
        let store = Store::memory(name);
        let replica = store.create_replica(&group, 0, Vec::new()).await?;
        let spec = ReplicaSpec {
            group: group.clone(),
            incarnation: 0,
            replica,
            cluster: ClusterTag::default(),
            config: GroupConfig::default(),
            is_alone: false,
        };
        let node = store.node().node_id;
        let addresses = Vec::new();
        let member = Member { name: name.to_owned(), node, zone: String::new(), addresses, decided_at: 0 };
        members.insert(replica, member);
        let factory = ValueFactory::of::<Table>(None);
        replicas.insert(name, UntypedReplica::start(&store, spec, factory, Arc::new(link.clone())).await?);
    }
    let first = replicas.get(NODES[0]).cloned().context("no node")?;
    link.0.0.set(replicas).ok().context("set twice")?;
    // Who initializes is elected first.
    first.initialize(members).await?;
    let route = Members::new(NODES[0], NODES.map(str::to_owned).to_vec(), Some(first));
    let client = RaftClient::new(vec![(group, GroupClient::new(Arc::new(route), Arc::new(link)))]);
    client.ready().await?;
    Ok(client)
}
