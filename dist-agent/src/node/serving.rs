//! The parts of a node that serves, and what they tell of the cluster.

use std::time::Duration;

use raft_fleet::{Fleet, GroupState, NodeState};
use raft_kv::{Kv, KvError, Phase, ShardInfo};

use super::overview::{GroupRow, NodeRow, Overview, QuotaRow, ShardRow};
use crate::agents::Agents;

/// Under which name a node tells the others where it serves HTTP.
pub(crate) const HTTP_ATTRIBUTE: &str = "http";

/// How long the question for a leader may take: longer than an election, shorter than a load balancer's patience.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the page may be gathered.
const OVERVIEW_TIMEOUT: Duration = Duration::from_secs(2);

/// The most quotas on the page.
const MAX_QUOTAS: u32 = 100;

/// A node's parts. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Serving {
    pub(crate) kv: Kv,
    pub(crate) agents: Agents,
}

impl Serving {
    pub(crate) fn fleet(&self) -> &Fleet {
        self.kv.fleet()
    }

    /// Whether the leaders of the cluster's own groups answer.
    pub(crate) async fn reaches_leaders(&self) -> Result<(), String> {
        if !self.fleet().is_ready() {
            return Err("this node is no part of its cluster now".to_owned());
        }
        let quotas = async {
            let probe = self.agents.quotas().list(None, 1, PROBE_TIMEOUT).await;
            probe.map(drop).map_err(|error| format!("the quotas do not answer: {error}"))
        };
        let keyspaces = async {
            match tokio::time::timeout(PROBE_TIMEOUT, self.kv.keyspaces()).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(format!("the keyspaces do not answer: {error}")),
                Err(_) => Err(format!("the keyspaces did not answer within {PROBE_TIMEOUT:?}")),
            }
        };
        let (quotas, keyspaces) = tokio::join!(quotas, keyspaces);
        quotas.and(keyspaces)
    }

    pub(crate) fn nodes(&self) -> Vec<NodeRow> {
        let row = |node: raft_fleet::NodeInfo| NodeRow {
            id: format!("{:016x}", node.node_id),
            state: match node.state {
                NodeState::Active => "active",
                NodeState::Unreachable => "unreachable",
                NodeState::Draining => "draining",
                NodeState::Dead => "dead",
            },
            http: node.attributes.get(HTTP_ATTRIBUTE).cloned().unwrap_or_default(),
            left: node.drain.map(|drain| drain.replicas),
            name: node.name,
            zone: node.zone,
            address: node.address,
        };
        self.fleet().nodes().into_iter().map(row).collect()
    }

    pub(crate) fn groups(&self) -> Vec<GroupRow> {
        let row = |group: raft_fleet::GroupInfo| GroupRow {
            name: group.name,
            leader: group.leader.map(|leader| leader.to_string()),
            replicas: group.members,
            term: group.term,
            state: match group.state {
                GroupState::Running => "active",
                GroupState::Hibernating => "hibernating",
                GroupState::Forming | GroupState::Leaderless | GroupState::Recovering => "leaderless",
            },
        };
        self.fleet().groups().into_iter().map(row).collect()
    }

    pub(crate) async fn shards(&self, keyspace: &str) -> Result<Vec<ShardRow>, KvError> {
        Ok(self.kv.shards(keyspace).await?.into_iter().map(shard_row).collect())
    }

    /// What the page shows; what cannot be read in time is named.
    pub(crate) async fn overview(&self) -> Overview {
        let mut overview = Overview {
            node: self.fleet().name().to_string(),
            nodes: self.nodes(),
            groups: self.groups(),
            ..Overview::default()
        };
        let (shards, quotas) = tokio::join!(self.all_shards(), self.first_quotas());
        match shards {
            Ok(shards) => overview.shards = shards,
            Err(gap) => overview.gaps.push(gap),
        }
        match quotas {
            Ok(quotas) => overview.quotas = quotas,
            Err(gap) => overview.gaps.push(gap),
        }
        overview
    }

    async fn all_shards(&self) -> Result<Vec<(String, ShardRow)>, String> {
        let gather = async {
            let mut all = Vec::new();
            for keyspace in self.kv.keyspaces().await? {
                let shards = self.shards(&keyspace.name).await?;
                all.extend(shards.into_iter().map(|shard| (keyspace.name.clone(), shard)));
            }
            Ok::<_, KvError>(all)
        };
        match tokio::time::timeout(OVERVIEW_TIMEOUT, gather).await {
            Ok(result) => result.map_err(|error| format!("The shards are not shown: {error}")),
            Err(_) => Err("The shards are not shown: they did not answer in time".to_owned()),
        }
    }

    async fn first_quotas(&self) -> Result<Vec<QuotaRow>, String> {
        let quotas = self.agents.quotas();
        let gather = async {
            let mut rows = Vec::new();
            for name in quotas.list(None, MAX_QUOTAS, OVERVIEW_TIMEOUT).await? {
                let quota = quotas.get(&name, OVERVIEW_TIMEOUT).await?;
                rows.push(QuotaRow { quota: quota.name, limit: quota.limit, count: quota.count });
            }
            Ok::<_, crate::error::AgentError>(rows)
        };
        match tokio::time::timeout(OVERVIEW_TIMEOUT, gather).await {
            Ok(result) => result.map_err(|error| format!("The quotas are not shown: {error}")),
            Err(_) => Err("The quotas are not shown: they did not answer in time".to_owned()),
        }
    }
}

fn shard_row(shard: ShardInfo) -> ShardRow {
    let stats = shard.stats.as_ref();
    ShardRow {
        lower: shard.lower.0,
        upper: shard.upper.0,
        keys: stats.map(|stats| stats.keys),
        bytes: stats.map(|stats| stats.bytes),
        load: stats.map(|stats| stats.load),
        phase: stats.map_or("unknown", |stats| phase(&stats.phase)),
        group: shard.group,
    }
}

fn phase(phase: &Phase) -> &'static str {
    match phase {
        Phase::Fresh => "fresh",
        Phase::Serving { .. } => "serving",
        Phase::Receiving { .. } => "receiving",
        Phase::Frozen { .. } => "frozen",
        Phase::Dropped => "dropped",
    }
}
