//! As whom a replica asks the others of its group: what stands on each of its requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::rpc::{ClusterTag, Envelope, Request, RequestBody};
use crate::status::ReplicaId;

/// A replica's name to the others. Clones share the incarnation.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    cluster: ClusterTag,
    group: Arc<str>,
    replica: ReplicaId,
    /// Rises only while the replica holds nothing.
    incarnation: Arc<AtomicU64>,
}

impl Sender {
    pub(crate) fn new(cluster: ClusterTag, group: &str, replica: ReplicaId, incarnation: u64) -> Self {
        Self { cluster, group: group.into(), replica, incarnation: Arc::new(AtomicU64::new(incarnation)) }
    }

    pub(crate) fn group(&self) -> &str {
        &self.group
    }

    pub(crate) fn replica(&self) -> ReplicaId {
        self.replica
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::Acquire)
    }

    /// From here on it is of this incarnation, unless it is of a later one.
    pub(crate) fn rise(&self, incarnation: u64) {
        self.incarnation.fetch_max(incarnation, Ordering::AcqRel);
    }

    /// To one replica, or to whichever is on the node.
    pub(crate) fn envelope(&self, to: Option<ReplicaId>) -> Envelope {
        Envelope {
            cluster: self.cluster,
            incarnation: self.incarnation(),
            from: Some(self.replica),
            to,
            group: self.group.as_ref().to_owned(),
        }
    }

    /// An encoded request.
    pub(crate) fn request(&self, to: Option<ReplicaId>, body: RequestBody) -> Bytes {
        Request { envelope: self.envelope(to), body }.encode()
    }
}
