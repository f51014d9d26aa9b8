//! The cluster group itself has lost its majority for good: nothing can decide any more, also no recovery of other groups.
//! What is left of the cluster is brought back with its nodes stopped, directory by directory.
//!
//! ```text
//! all nodes that are left, stopped --cluster_report--> reports --plan_cluster_recovery--> plan, for a person to look at
//!                                                                  plan --recover_cluster, on each of them--> start them
//!
//! the newest copy of the cluster group:    goes on as its only member; the fleet gives it others once it runs
//! every other copy:                        deleted
//! every directory in the plan:             is of the cluster's next generation
//! ```
//!
//! The generation fences: nodes of another one refuse each other's connections. A node that was left out cannot come back
//! with what it has: it is told so, and joins as new once its directory was wiped. What the lost copies alone had decided is
//! lost: registrations, groups that were added or removed, recoveries. **One** plan may be applied, from the reports of
//! **all** nodes that are left: two plans would make two clusters.
//!
//! The lost nodes keep their places until the purge window is over: remove them, so that the cluster group, which then has
//! one copy, gets others at once. Groups that lost their own majority are recovered once the nodes run, see `recovery.rs`.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use rafted_value::{
    ClusterTag, Found, Inspection, LogPosition, PlanError, ReplicaId, Store, StoreError, messages, plan_recovery,
};

use crate::bootstrap::{Bootstrap, ClusterKey};
use crate::cluster::{CLUSTER_GROUP, CLUSTER_INCARNATION};
use crate::error::{FleetError, NodeFailure, PlanUnreadable};
use crate::memory::Memory;
use crate::report::{LogEnd, Recovery, Report};
use crate::written;

messages! {
    /// What a stopped node has of the cluster group.
    pub struct ClusterReport {
        node: String,
        node_id: u64,
        cluster: ClusterKey,
        replicas: Vec<Report>,
    }

    /// How the cluster group goes on.
    pub struct ClusterRecoveryPlan {
        cluster: ClusterKey,
        generation: u64,
        /// Names and memories: those that reported.
        nodes: Vec<(String, u64)>,
        chosen: String,
        lost: Vec<String>,
        entries: u64,
        may_lose_acknowledged: bool,
        recovery: Recovery,
    }
}

/// What a plan was to a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterRecovered {
    /// The cluster group goes on with this node's copy.
    Chosen,
    /// The node is of the new generation, and has no copy.
    Follows,
    /// It was done before.
    AlreadyDone,
}

/// Why a directory was not looked at, or not changed, or why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the node remembers of its cluster cannot be read or written.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// It holds no node, or one that has come to no cluster.
    #[error("{directory} holds no node that is in a cluster")]
    NoCluster {
        /// Which.
        directory: String,
    },
    /// The reports are of two clusters, or two generations of one.
    #[error("the reports of {one} and {other} are not of one cluster and generation; give those of one")]
    TwoClusters {
        /// A node.
        one: String,
        /// Another.
        other: String,
    },
    /// A node reported twice; it may have run in between.
    #[error("{node} reported twice; give its last report")]
    ReportedTwice {
        /// Which.
        node: String,
    },
    /// There is no plan for what is left.
    #[error("there is no plan: {0}")]
    NoPlan(#[from] PlanError),
    /// The plan is not about this directory.
    #[error("{node} is not in the plan; make a plan from the reports of all nodes that are left")]
    NotInPlan {
        /// The directory's node.
        node: String,
    },
    /// The node has run since it reported.
    #[error("{node} has changed since it reported; make a new plan from new reports")]
    Changed {
        /// Which.
        node: String,
    },
    /// The log could not be written.
    #[error("{node} was not recovered: {reason}; the same plan may be applied again")]
    Failed {
        /// Which.
        node: String,
        /// Why.
        reason: String,
    },
}

/// What the stopped node with this directory has of the cluster group. Counts as a start of the directory.
pub async fn cluster_report(directory: impl AsRef<Path>) -> Result<ClusterReport, OfflineError> {
    let opened = Opened::open(directory.as_ref()).await?;
    let report = opened.report().await;
    opened.store.close().await;
    report
}

/// Plans from the reports of all nodes that are left.
pub fn plan_cluster_recovery(reports: &[ClusterReport]) -> Result<ClusterRecoveryPlan, OfflineError> {
    let first = reports.first().ok_or(PlanError::NoReports)?;
    let mut seen = BTreeSet::new();
    for report in reports {
        if report.cluster != first.cluster {
            return Err(OfflineError::TwoClusters { one: first.node.clone(), other: report.node.clone() });
        }
        if !seen.insert(&report.node) {
            return Err(OfflineError::ReportedTwice { node: report.node.clone() });
        }
    }
    let replicas: Vec<_> = reports.iter().flat_map(|report| &report.replicas).filter_map(Report::to_report).collect();
    let mut plan = plan_recovery(&replicas)?;
    let lost = plan.lost.values().map(|member| member.name.clone()).collect();
    // It alone: another survivor would wait for a majority of the members that it knows before it takes part.
    plan.members.retain(|id, _| *id == plan.chosen);
    let chosen = plan.members.values().map(|member| member.name.clone()).collect();
    Ok(ClusterRecoveryPlan {
        cluster: first.cluster,
        generation: first.cluster.generation + 1,
        nodes: reports.iter().map(|report| (report.node.clone(), report.node_id)).collect(),
        chosen,
        lost,
        entries: plan.last.map_or(0, |last| last.index + 1),
        may_lose_acknowledged: plan.may_lose_acknowledged,
        recovery: Recovery::new(&plan, CLUSTER_INCARNATION),
    })
}

/// Makes a plan true for the stopped node with this directory. Durable on return; doing it again is fine.
pub async fn recover_cluster(
    directory: impl AsRef<Path>,
    plan: &ClusterRecoveryPlan,
) -> Result<ClusterRecovered, OfflineError> {
    let opened = Opened::open(directory.as_ref()).await?;
    let recovered = opened.recover(plan).await;
    opened.store.close().await;
    recovered
}

/// A stopped node's directory.
struct Opened {
    store: Store,
    memory: Memory,
    node: String,
    node_id: u64,
    cluster: ClusterKey,
}

impl Opened {
    async fn open(directory: &Path) -> Result<Self, OfflineError> {
        let no_cluster = || OfflineError::NoCluster { directory: directory.display().to_string() };
        let name = Inspection::open(directory)?.node().map(|node| node.name.clone()).ok_or_else(no_cluster)?;
        let store = Store::open(directory, &name).await?;
        match Self::of(&store, name) {
            Ok(Some(opened)) => Ok(opened),
            Ok(None) => {
                store.close().await;
                Err(no_cluster())
            }
            Err(error) => {
                store.close().await;
                Err(error)
            }
        }
    }

    fn of(store: &Store, node: String) -> Result<Option<Self>, OfflineError> {
        let memory = Memory::open(store)?;
        let Bootstrap::Member { cluster } = memory.get().bootstrap else { return Ok(None) };
        Ok(Some(Self { store: store.clone(), memory, node, node_id: store.node().node_id, cluster }))
    }

    async fn report(&self) -> Result<ClusterReport, OfflineError> {
        let reports = self.store.recovery_reports_of([CLUSTER_GROUP.to_owned()].into()).await?;
        Ok(ClusterReport {
            node: self.node.clone(),
            node_id: self.node_id,
            cluster: self.cluster,
            replicas: reports.into_iter().map(|report| Report::new(report, false)).collect(),
        })
    }

    async fn recover(&self, plan: &ClusterRecoveryPlan) -> Result<ClusterRecovered, OfflineError> {
        let next = ClusterKey { id: plan.cluster.id, generation: plan.generation };
        if !plan.nodes.contains(&(self.node.clone(), self.node_id)) || self.cluster.id != plan.cluster.id {
            return Err(OfflineError::NotInPlan { node: self.node.clone() });
        }
        if self.cluster == next && self.store.node().cluster == Some(tag(next)) {
            return Ok(ClusterRecovered::AlreadyDone);
        }
        if self.cluster != plan.cluster && self.cluster != next {
            return Err(OfflineError::Changed { node: self.node.clone() });
        }
        let mut recovered = ClusterRecovered::Follows;
        for report in self.report().await?.replicas {
            let Some(id) = ReplicaId::new(report.replica) else { continue };
            if report.replica == plan.recovery.chosen {
                self.choose(plan, id, &report).await?;
                recovered = ClusterRecovered::Chosen;
            } else {
                self.store.remove_replica(id).await?;
            }
        }
        // Last: a directory of the new generation has all the rest.
        self.memory.set_cluster(next).await.map_err(FleetError::from)?;
        let (store, tag) = (self.store.clone(), tag(next));
        let failed = |reason: String| OfflineError::Failed { node: self.node.clone(), reason };
        let stored = tokio::task::spawn_blocking(move || store.set_cluster(tag)).await;
        stored.map_err(|error| failed(error.to_string()))??;
        Ok(recovered)
    }

    async fn choose(&self, plan: &ClusterRecoveryPlan, id: ReplicaId, report: &Report) -> Result<(), OfflineError> {
        let failed = |reason: String| OfflineError::Failed { node: self.node.clone(), reason };
        let changed = || OfflineError::Changed { node: self.node.clone() };
        let planned = plan.recovery.survivor(id).ok_or_else(changed)?;
        let behind = |last: LogEnd| LogEnd { term: plan.recovery.term, index: last.index + 1 };
        let done = planned.last.map_or(LogEnd { term: plan.recovery.term, index: 0 }, behind);
        if report.last != planned.last && report.last != Some(done) {
            return Err(changed());
        }
        let last = planned.last.map(LogPosition::from);
        let found = Found { incarnation: report.incarnation, term: report.term, last };
        let made = plan.recovery.to_plan(CLUSTER_GROUP, CLUSTER_INCARNATION, id, found);
        let made = made.ok_or_else(|| failed("the plan names no replica".to_owned()))?;
        self.store.recover(&made).await.map(drop).map_err(|error| failed(error.to_string()))
    }
}

fn tag(key: ClusterKey) -> ClusterTag {
    ClusterTag { id: key.id, generation: key.generation }
}

impl ClusterReport {
    /// The report as hexadecimal digits, to bring it to where the plan is made.
    pub fn to_text(&self) -> String {
        written::to_text(rafted_value::encode(self))
    }

    /// Reads what [`ClusterReport::to_text`] wrote.
    pub fn from_text(text: &str) -> Result<Self, PlanUnreadable> {
        Ok(rafted_value::decode(&written::from_text(text)?)?)
    }

    /// The node's name.
    pub fn node(&self) -> &str {
        &self.node
    }
}

impl ClusterRecoveryPlan {
    /// The plan as hexadecimal digits, to bring it to the nodes.
    pub fn to_text(&self) -> String {
        written::to_text(rafted_value::encode(self))
    }

    /// Reads what [`ClusterRecoveryPlan::to_text`] wrote.
    pub fn from_text(text: &str) -> Result<Self, PlanUnreadable> {
        Ok(rafted_value::decode(&written::from_text(text)?)?)
    }

    /// Whether decisions of the cluster group that were acknowledged may be lost.
    pub fn may_lose_acknowledged(&self) -> bool {
        self.may_lose_acknowledged
    }
}

impl fmt::Display for ClusterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.replicas.iter().map(|report| report.last.map_or(0, |last| last.index + 1)).max();
        match entries {
            Some(entries) => writeln!(f, "{}: a copy of the cluster group, {entries} entries", self.node),
            None => writeln!(f, "{}: no copy of the cluster group", self.node),
        }
    }
}

impl fmt::Display for ClusterRecoveryPlan {
    /// For the person who decides.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = self.nodes.iter().map(|(node, _)| node.as_str()).collect::<Vec<_>>().join(", ");
        writeln!(f, "cluster {:032x} goes on as generation {} with {nodes}", self.cluster.id, self.generation)?;
        writeln!(f, "  the copy of {} decides: {} entries", self.chosen, self.entries)?;
        writeln!(f, "  copies that are given up: {}", self.lost.join(", "))?;
        match self.may_lose_acknowledged {
            true => {
                writeln!(f, "  decisions MAY BE LOST: a majority may have had them without the nodes that are left")
            }
            false => writeln!(f, "  no decision is lost"),
        }
    }
}

impl From<NodeFailure> for OfflineError {
    fn from(failure: NodeFailure) -> Self {
        Self::Fleet(failure.into())
    }
}
