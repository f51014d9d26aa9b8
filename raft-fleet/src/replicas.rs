//! The replicas that this node hosts: made, started, found, removed.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use rafted_value::{
    ClusterTag, GroupConfig, RecoveryPlan, ReplicaId, ReplicaSpec, Role, Store, StoredReplica, Transport,
    UntypedReplica, ValueFactory, messages,
};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use crate::cluster::CLUSTER_GROUP;
use crate::message::Position;

messages! {
    /// What is stored with a replica.
    pub(crate) struct Detail {
        /// The registered name of its value's type.
        pub(crate) type_name: String,
        /// The group's membership for which it was made; `None`: for the group's first members.
        pub(crate) after: Option<Position>,
    }
}

/// A replica that runs.
#[derive(Debug, Clone)]
pub(crate) struct Hosted {
    pub(crate) replica: UntypedReplica,
    pub(crate) type_name: Arc<str>,
    pub(crate) after: Option<Position>,
}

impl Hosted {
    pub(crate) fn id(&self) -> ReplicaId {
        self.replica.spec().replica
    }

    pub(crate) fn group(&self) -> &str {
        &self.replica.spec().group
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.replica.spec().incarnation
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.group() == CLUSTER_GROUP
    }
}

/// Why a replica was not made, started or removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReplicaError {
    #[error("the type {0} is not registered on this node")]
    UnknownType(String),
    #[error("this node is in no cluster yet")]
    NoCluster,
    #[error("{0}")]
    Failed(String),
}

/// All replicas of this node.
pub(crate) struct Replicas {
    store: Store,
    types: HashMap<String, ValueFactory>,
    config: GroupConfig,
    transport: Arc<dyn Transport>,
    /// The cluster group's replica has its own, which a gate may close.
    cluster_transport: Arc<dyn Transport>,
    cluster: OnceLock<ClusterTag>,
    running: RwLock<Running>,
    /// One permit: replicas are made and removed one at a time, so that a repeated request finds the first.
    changing: Semaphore,
    /// Replicas whose status may have changed.
    pub(crate) dirty: Arc<Dirty>,
    watchers: Mutex<JoinSet<()>>,
}

#[derive(Default)]
struct Running {
    by_id: HashMap<ReplicaId, Hosted>,
    by_group: HashMap<String, Vec<ReplicaId>>,
}

/// A set of replicas to look at; it is bounded by the number of replicas.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    replicas: Mutex<BTreeSet<ReplicaId>>,
    marked: Notify,
}

impl Dirty {
    pub(crate) fn mark(&self, replica: ReplicaId) {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner).insert(replica);
        self.marked.notify_one();
    }

    /// Waits for marks, and takes them.
    pub(crate) async fn take(&self) -> BTreeSet<ReplicaId> {
        loop {
            let taken = std::mem::take(&mut *self.replicas.lock().unwrap_or_else(PoisonError::into_inner));
            if !taken.is_empty() {
                return taken;
            }
            self.marked.notified().await;
        }
    }
}

impl Replicas {
    pub(crate) fn new(
        store: Store,
        types: HashMap<String, ValueFactory>,
        config: GroupConfig,
        transport: Arc<dyn Transport>,
        cluster_transport: Arc<dyn Transport>,
    ) -> Self {
        Self {
            store,
            types,
            config,
            transport,
            cluster_transport,
            cluster: OnceLock::new(),
            running: RwLock::default(),
            changing: Semaphore::new(1),
            dirty: Arc::default(),
            watchers: Mutex::default(),
        }
    }

    /// Says which cluster the replicas belong to; it never changes while the node runs.
    pub(crate) fn set_cluster(&self, cluster: ClusterTag) {
        let _ = self.cluster.set(cluster);
    }

    pub(crate) fn cluster(&self) -> Option<ClusterTag> {
        self.cluster.get().copied()
    }

    /// The replica with this id.
    pub(crate) fn get(&self, id: ReplicaId) -> Option<Hosted> {
        self.read(|running| running.by_id.get(&id).cloned())
    }

    /// The replica of a group that is most likely to know something: the leader, else one with members.
    pub(crate) fn of_group(&self, group: &str) -> Option<Hosted> {
        let mut hosted = self.all_of_group(group);
        if hosted.len() > 1 {
            hosted.sort_by_key(|hosted| {
                let status = hosted.replica.status();
                let is_member = status.members.replicas.contains_key(&status.replica);
                (hosted.incarnation(), status.role == Role::Leader, is_member)
            });
        }
        hosted.pop()
    }

    pub(crate) fn all_of_group(&self, group: &str) -> Vec<Hosted> {
        self.read(|running| {
            let ids = running.by_group.get(group).map(Vec::as_slice).unwrap_or_default();
            ids.iter().filter_map(|id| running.by_id.get(id).cloned()).collect()
        })
    }

    pub(crate) fn all(&self) -> Vec<Hosted> {
        self.read(|running| running.by_id.values().cloned().collect())
    }

    /// The groups' replicas that do not sleep; the cluster group's never does.
    pub(crate) fn awake(&self) -> Vec<Hosted> {
        let is_awake = |hosted: &&Hosted| !hosted.replica.is_asleep() && !hosted.is_cluster();
        self.read(|running| running.by_id.values().filter(is_awake).cloned().collect())
    }

    /// What the store holds of a group, running or not.
    pub(crate) fn stored(&self) -> Vec<StoredReplica> {
        self.store.replicas()
    }

    /// What the store holds of one replica, running or not.
    pub(crate) fn stored_as(&self, id: ReplicaId) -> Option<StoredReplica> {
        self.store.replica(id)
    }

    /// Mints a replica's id, or finds the one that was minted for the same purpose. Synced on return.
    pub(crate) async fn mint(&self, group: &str, incarnation: u64, detail: &Detail) -> Result<ReplicaId, ReplicaError> {
        if !self.types.contains_key(&detail.type_name) {
            return Err(ReplicaError::UnknownType(detail.type_name.clone()));
        }
        let bytes = rafted_value::encode(detail).map_err(failed)?.to_vec();
        let _permit = self.changing.acquire().await.map_err(failed)?;
        let same = |stored: &StoredReplica| {
            stored.group == group && stored.incarnation == incarnation && stored.detail == bytes
        };
        if let Some(stored) = self.store.replicas().into_iter().find(same) {
            return Ok(stored.replica);
        }
        self.store.create_replica(group, incarnation, bytes).await.map_err(failed)
    }

    /// Starts a stored replica; one that runs already is left alone.
    pub(crate) async fn start(&self, id: ReplicaId) -> Result<Hosted, ReplicaError> {
        let _permit = self.changing.acquire().await.map_err(failed)?;
        if let Some(hosted) = self.get(id) {
            return Ok(hosted);
        }
        let stored =
            self.stored_as(id).ok_or_else(|| ReplicaError::Failed(format!("replica {id} is not stored here")))?;
        let hosted = self.open(stored).await?;
        self.insert(hosted.clone());
        Ok(hosted)
    }

    async fn open(&self, stored: StoredReplica) -> Result<Hosted, ReplicaError> {
        let detail: Detail = rafted_value::decode(&stored.detail).map_err(failed)?;
        let factory = self.types.get(&detail.type_name).cloned();
        let factory = factory.ok_or_else(|| ReplicaError::UnknownType(detail.type_name.clone()))?;
        let is_cluster = stored.group == CLUSTER_GROUP;
        let transport = if is_cluster { &self.cluster_transport } else { &self.transport };
        let spec = ReplicaSpec {
            group: stored.group,
            incarnation: stored.incarnation,
            replica: stored.replica,
            cluster: self.cluster().ok_or(ReplicaError::NoCluster)?,
            config: self.config.clone(),
            is_alone: false,
        };
        let replica = UntypedReplica::start(&self.store, spec, factory, transport.clone()).await.map_err(failed)?;
        Ok(Hosted { replica, type_name: detail.type_name.into(), after: detail.after })
    }

    fn insert(&self, hosted: Hosted) {
        let id = hosted.id();
        let mut changes = hosted.replica.status_changes();
        let dirty = self.dirty.clone();
        let woken = dirty.clone();
        hosted.replica.on_wake(move || woken.mark(id));
        self.write(|running| {
            running.by_group.entry(hosted.group().to_owned()).or_default().push(id);
            running.by_id.insert(id, hosted);
        });
        dirty.mark(id);
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        while watchers.try_join_next().is_some() {}
        watchers.spawn(async move {
            while changes.changed().await {
                dirty.mark(id);
            }
            dirty.mark(id);
        });
    }

    /// Stops a replica and deletes what it stored. Only with proof that it is no longer needed.
    pub(crate) async fn remove(&self, id: ReplicaId) -> Result<(), ReplicaError> {
        let _permit = self.changing.acquire().await.map_err(failed)?;
        if let Some(hosted) = self.withdraw(id) {
            hosted.replica.shutdown().await;
        }
        if self.store.replica(id).is_some() {
            self.store.remove_replica(id).await.map_err(failed)?;
        }
        self.dirty.mark(id);
        Ok(())
    }

    /// Stops a replica; what it stored stays. `false` if it did not run.
    pub(crate) async fn stop(&self, id: ReplicaId) -> bool {
        let Ok(_permit) = self.changing.acquire().await else { return false };
        let Some(hosted) = self.withdraw(id) else { return false };
        hosted.replica.shutdown().await;
        self.dirty.mark(id);
        true
    }

    /// Makes a plan true for a replica that does not run, and starts it.
    pub(crate) async fn recover(&self, id: ReplicaId, plan: &RecoveryPlan) -> Result<(), ReplicaError> {
        {
            let _permit = self.changing.acquire().await.map_err(failed)?;
            self.store.recover(plan).await.map_err(failed)?;
        }
        self.start(id).await.map(drop)
    }

    fn withdraw(&self, id: ReplicaId) -> Option<Hosted> {
        self.write(|running| {
            let hosted = running.by_id.remove(&id)?;
            if let Some(ids) = running.by_group.get_mut(hosted.group()) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    running.by_group.remove(hosted.group());
                }
            }
            Some(hosted)
        })
    }

    /// Lets go of replicas that have stopped by themselves, so that they can be started again; what they stored
    /// stays.
    pub(crate) async fn drop_stopped(&self) {
        let Ok(_permit) = self.changing.acquire().await else { return };
        let all = self.all().into_iter();
        for id in all.filter(|hosted| hosted.replica.status().role == Role::Stopped).map(|hosted| hosted.id()) {
            if let Some(hosted) = self.withdraw(id) {
                hosted.replica.shutdown().await;
            }
            self.dirty.mark(id);
        }
    }

    /// Stops all replicas; what they stored stays.
    pub(crate) async fn shutdown(&self) {
        self.changing.close();
        let hosted = self.write(|running| std::mem::take(running).by_id);
        let stopping: JoinSet<()> =
            hosted.into_values().map(|hosted| async move { hosted.replica.shutdown().await }).collect();
        stopping.join_all().await;
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }

    fn read<T>(&self, read: impl FnOnce(&Running) -> T) -> T {
        read(&self.running.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, write: impl FnOnce(&mut Running) -> T) -> T {
        write(&mut self.running.write().unwrap_or_else(PoisonError::into_inner))
    }
}

fn failed(error: impl std::fmt::Display) -> ReplicaError {
    ReplicaError::Failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use rafted_value::{Body, BoxFuture, TransportError};

    use super::*;
    use crate::cluster::Cluster;

    struct Nowhere;

    impl Transport for Nowhere {
        fn call(&self, _: &str, _: Bytes, _: Duration) -> BoxFuture<Result<Bytes, TransportError>> {
            Box::pin(async { Err(TransportError::NotSent("there is nobody".into())) })
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

    #[tokio::test]
    async fn a_replica_that_has_stopped_can_be_started_again() {
        let store = Store::memory("n1");
        let types = HashMap::from([("t".to_owned(), ValueFactory::of::<Cluster>(None))]);
        let nowhere: Arc<dyn Transport> = Arc::new(Nowhere);
        let replicas = Replicas::new(store.clone(), types, GroupConfig::default(), nowhere.clone(), nowhere);
        replicas.set_cluster(ClusterTag { id: 1, generation: 0 });
        let detail = Detail { type_name: "t".into(), after: None };
        let mut ids = Vec::new();
        for group in ["stopped", "running"] {
            let id = replicas.mint(group, 1, &detail).await.unwrap();
            replicas.start(id).await.unwrap();
            ids.push(id);
        }
        replicas.get(ids[0]).unwrap().replica.shutdown().await;
        replicas.drop_stopped().await;
        assert!(replicas.get(ids[0]).is_none() && replicas.all_of_group("stopped").is_empty());
        assert!(replicas.get(ids[1]).is_some());
        let again = replicas.start(ids[0]).await.unwrap();
        assert_ne!(again.replica.status().role, Role::Stopped);
        replicas.shutdown().await;
        store.close().await;
    }
}
