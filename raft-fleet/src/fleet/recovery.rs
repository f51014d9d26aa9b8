//! Groups that lost their majority: listed, planned for, and recovered, by a person's word.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt;
use rafted_value::CommandError;
use tokio::time::Instant;

use super::Fleet;
use crate::bootstrap::ClusterKey;
use crate::cluster::{Command, GroupPhase, Refusal, Reply};
use crate::error::RecoverError;
use crate::recovery::{
    Finding, GroupRecovery, LeaderlessGroup, MAX_PLANNED_GROUPS, RecoveryOutcome, RecoveryPlan, Survey, judge,
    members_of,
};
use crate::survey::survey;

/// Recoveries that are decided at once.
const AT_ONCE: usize = 16;
/// How long the cluster group may take to decide one.
const DECISION_PATIENCE: Duration = Duration::from_secs(10);
/// How long a recovered group may take to have a leader.
const LEADER_PATIENCE: Duration = Duration::from_secs(10);

impl Fleet {
    /// The groups of which this node has heard no leader for a while, with what the nodes that answer say of them: at most
    /// [`MAX_PLANNED_GROUPS`], in order of their names. A leader that this node has not heard of yet keeps a group from the
    /// list.
    pub async fn leaderless_groups(&self) -> Vec<LeaderlessGroup> {
        let node = self.node();
        let since = node.leaderless.get();
        let asked: BTreeSet<_> = since.keys().take(MAX_PLANNED_GROUPS).cloned().collect();
        let found = self.ask(&asked).await;
        let view = node.view.get();
        let groups = since.into_iter().filter(|(name, _)| asked.contains(name));
        let leaderless = groups.filter_map(|(name, since)| {
            let group = view.group(&name)?;
            if judge(&view, &found, &name, group) == Finding::Led {
                return None;
            }
            let (members, is_majority_lost) = members_of(&view, &found, &name, group);
            Some(LeaderlessGroup { name, since, members, is_majority_lost })
        });
        leaderless.collect()
    }

    /// What would have to be done for all groups of which no majority answers: whose log would decide, what may be lost, who
    /// would be given up. Looks at what the nodes have, and changes nothing.
    pub async fn recovery_plan(&self) -> Result<RecoveryPlan, RecoverError> {
        let node = self.node();
        let mut plan = RecoveryPlan::new(self.cluster_key()?);
        let leaderless = node.leaderless.get();
        plan.left_out = leaderless.len().saturating_sub(MAX_PLANNED_GROUPS) as u64;
        let groups: BTreeSet<_> = leaderless.into_keys().take(MAX_PLANNED_GROUPS).collect();
        let found = self.ask(&groups).await;
        let view = node.view.get();
        for name in &groups {
            if let Some(group) = view.group(name) {
                plan.add(name, judge(&view, &found, name, group));
            }
        }
        Ok(plan)
    }

    /// Has groups go on as a plan says, each for itself: one that is not any more as it was when the plan was made is left
    /// alone. What was lost with the majority is lost for good: read the plan first. Applying it again does no harm.
    pub async fn recover(&self, plan: &RecoveryPlan) -> Result<Vec<(String, RecoveryOutcome)>, RecoverError> {
        let (own, given) = (self.cluster_key()?, plan.cluster());
        if own != given {
            return Err(RecoverError::OtherCluster { given: given.id, own: own.id });
        }
        let found = self.ask(&plan.groups.iter().map(|planned| planned.group.clone()).collect()).await;
        let recoveries: Vec<_> = plan.groups.iter().map(|planned| self.recover_group(planned, &found)).collect();
        let mut outcomes: Vec<_> = futures_util::stream::iter(recoveries).buffer_unordered(AT_ONCE).collect().await;
        outcomes.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(outcomes)
    }

    async fn recover_group(&self, planned: &GroupRecovery, found: &Survey) -> (String, RecoveryOutcome) {
        (planned.group.clone(), self.decide(planned, found).await)
    }

    async fn decide(&self, planned: &GroupRecovery, found: &Survey) -> RecoveryOutcome {
        let (node, name) = (self.node(), &planned.group);
        let outdated = |reason: &str| RecoveryOutcome::Outdated { reason: reason.to_owned() };
        let recovery = {
            let view = node.view.get();
            let Some(group) = view.group(name) else { return outdated("there is no such group any more") };
            if group.recovery.as_ref().is_some_and(|made| made.is_same(planned.recovery())) {
                return match group.phase {
                    GroupPhase::Recovering => RecoveryOutcome::Begun,
                    _ => RecoveryOutcome::AlreadyRecovered,
                };
            }
            match judge(&view, found, name, group) {
                Finding::Recoverable(now)
                    if now.recovery().is_same(planned.recovery()) && now.fenced == planned.fenced =>
                {
                    now.recovery().clone()
                }
                Finding::Recoverable(_) => return outdated("its members, their nodes or their logs have changed"),
                Finding::Led => return outdated("it has a leader"),
                Finding::GoesOn => return outdated("a majority of its members is there"),
                Finding::BeingRecovered => return outdated("another recovery is under way"),
                Finding::Hopeless(reason) => return outdated(&reason),
            }
        };
        tracing::warn!(group = name, survivors = ?planned.survivors, fenced = ?planned.fenced, "is recovered without its majority");
        let command = Command::Recover { group: name.clone(), recovery };
        match node.cluster_command(command, DECISION_PATIENCE).await {
            Ok(Reply::Done { index }) => self.recovered(name, index).await,
            Ok(Reply::Refused(Refusal::GroupNotFound)) => outdated("there is no such group any more"),
            Ok(Reply::Refused(_)) => outdated("another recovery was made of it"),
            Err(CommandError::NotHappened(reason)) => RecoveryOutcome::NotHappened { reason: reason.to_string() },
            Err(error) => RecoveryOutcome::Unknown { reason: error.to_string() },
        }
    }

    /// Waits until the group has a leader.
    async fn recovered(&self, name: &str, index: u64) -> RecoveryOutcome {
        let deadline = Instant::now() + LEADER_PATIENCE;
        let settled = self.node().view.wait(|cluster| {
            let is_known = cluster.changed_at >= index;
            let recovers = cluster.group(name).is_some_and(|group| group.phase == GroupPhase::Recovering);
            (is_known && !recovers).then_some(())
        });
        match tokio::time::timeout_at(deadline, settled).await {
            Ok(()) => RecoveryOutcome::Recovered,
            Err(_) => RecoveryOutcome::Begun,
        }
    }

    async fn ask(&self, groups: &BTreeSet<String>) -> Survey {
        if groups.is_empty() { Survey::default() } else { survey(self.node(), groups).await }
    }

    fn cluster_key(&self) -> Result<ClusterKey, RecoverError> {
        let node = self.node();
        let tag = node.replicas.cluster().filter(|_| node.is_running()).ok_or(RecoverError::NotReady)?;
        Ok(ClusterKey { id: tag.id, generation: tag.generation })
    }
}
