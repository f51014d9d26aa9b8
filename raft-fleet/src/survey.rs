//! Asks all nodes what they have of some groups, and answers that question.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use rafted_value::{ReplicaId, Role};

use crate::message::{AskReports, Reports};
use crate::node::Node;
use crate::recovery::Survey;
use crate::report::Report;

/// Groups in one question; a node reads the logs of all their replicas for the answer.
const GROUPS_PER_QUESTION: usize = 100;
/// How long a node may take for one answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks every registered node. One that is silent, or does not answer in time, is missing in the result.
pub(crate) async fn survey(node: &Node, groups: &BTreeSet<String>) -> Survey {
    let view = node.view.get();
    let asked = view.nodes().filter(|(name, _)| !node.peers.is_silent(name));
    let answers =
        asked.map(|(name, record)| async move { (record.node_id, ask(node, name, record.node_id, groups).await) });
    let mut survey = Survey::default();
    for (node_id, answer) in join_all(answers).await {
        if let Some(reports) = answer {
            survey.answered.insert(node_id);
            survey.reports.extend(reports);
        }
    }
    survey
}

/// All answers of one node, or none: an answer to a part of the questions would look like lost replicas.
async fn ask(node: &Node, name: &str, node_id: u64, groups: &BTreeSet<String>) -> Option<Vec<Report>> {
    let groups: Vec<_> = groups.iter().cloned().collect();
    let mut all = Vec::new();
    for part in groups.chunks(GROUPS_PER_QUESTION) {
        match node.call(name, &AskReports { groups: part.to_vec() }, PATIENCE).await {
            Ok(Reports::Of { node_id: answered, reports }) if answered == node_id => all.extend(reports),
            Ok(_) => return None,
            Err(error) => {
                tracing::info!(node = name, %error, "what a node has is not known");
                return None;
            }
        }
    }
    Some(all)
}

/// What this node has of these groups.
pub(crate) async fn own_reports(node: &Node, groups: Vec<String>) -> Reports {
    if !node.is_running() {
        return Reports::NotHere;
    }
    match node.store.recovery_reports_of(groups.into_iter().collect()).await {
        Ok(reports) => {
            let leads = |id: ReplicaId| {
                node.replicas.get(id).is_some_and(|hosted| hosted.replica.status().role == Role::Leader)
            };
            let reports = reports.into_iter().map(|report| {
                let leads = leads(report.replica);
                Report::new(report, leads)
            });
            Reports::Of { node_id: node.start.node_id, reports: reports.collect() }
        }
        Err(error) => {
            tracing::warn!(%error, "what this node has of some groups could not be read");
            Reports::NotHere
        }
    }
}
