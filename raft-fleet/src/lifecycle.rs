//! The tasks of a node, from its start to its end.
//!
//! ```text
//! join (bootstrap.rs) --> register (gate.rs) --> running --> failed: replicas and connections end
//!                    \--> follow the cluster's state, draw its consequences, for ever
//! ```

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::JoinSet;

use crate::cleanup::clean_up;
use crate::draining::report_drain;
use crate::error::NodeFailure;
use crate::following::{draw_consequences, follow};
use crate::founding::{found_groups, initialize_groups};
use crate::hibernation::{call_the_roll, put_to_sleep, wake_groups};
use crate::joining::join;
use crate::lookout::look_out;
use crate::monitor::monitor;
use crate::node::{Node, Progress};
use crate::reconciler::reconcile;
use crate::recovering::carry_out;
use crate::registration::{check_own_seeds, register, revive_replicas, stay_registered};

/// Before a task that panicked is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Every long task of a node.
pub(crate) fn spawn_tasks(node: &Arc<Node>, tasks: &mut JoinSet<()>) {
    supervise(tasks, node, "membership", live);
    supervise(tasks, node, "stop", stop_on_failure);
    supervise(tasks, node, "reconciler", reconcile);
    supervise(tasks, node, "founding", found_groups);
    supervise(tasks, node, "initializing", initialize_groups);
    supervise(tasks, node, "recovering", carry_out);
    supervise(tasks, node, "cleanup", clean_up);
    supervise(tasks, node, "monitor", monitor);
    supervise(tasks, node, "lookout", look_out);
    supervise(tasks, node, "draining", report_drain);
    supervise(tasks, node, "revival", revive_replicas);
    supervise(tasks, node, "seeds", |node| async move { node.seeds.run().await });
    supervise(tasks, node, "waking", wake_groups);
    supervise(tasks, node, "sleep", put_to_sleep);
    supervise(tasks, node, "roll call", call_the_roll);
    supervise(tasks, node, "peers", |node| async move { node.peers.run(&node.endpoint).await });
}

/// Runs a task, and again when it panics: none of them keeps anything that the next one could not find out.
fn supervise<F: Future<Output = ()> + Send + 'static>(
    tasks: &mut JoinSet<()>,
    node: &Arc<Node>,
    name: &'static str,
    run: impl Fn(Arc<Node>) -> F + Send + 'static,
) {
    let node = node.clone();
    tasks.spawn(async move {
        while AssertUnwindSafe(run(node.clone())).catch_unwind().await.is_err() {
            tracing::error!(node = %node.name, task = name, "a task panicked, and is started again");
            tokio::time::sleep(RESTART_PAUSE).await;
        }
    });
}

/// Comes to the cluster, then follows it for ever.
async fn live(node: Arc<Node>) {
    if let Err(failure) = join(&node).await {
        node.fail_for_good(failure).await;
        return;
    }
    let registering = async {
        if let Err(failure) = register(&node).await {
            node.fail_for_good(failure).await;
        }
    };
    // A cluster of its own would go on by itself, with seeds that belong to another one.
    let checking = async {
        if let Err(failure) = check_own_seeds(&node).await {
            node.fail(failure);
        }
    };
    tokio::join!(follow(&node), draw_consequences(&node), registering, checking, stay_registered(&node));
}

/// A node that is no part of its cluster serves nothing; a failed log is such a failure.
async fn stop_on_failure(node: Arc<Node>) {
    let mut storage = node.store.failed();
    let mut progress = node.progress.subscribe();
    loop {
        let failure = match &*progress.borrow_and_update() {
            Progress::Failed(failure) => Some(failure.clone()),
            Progress::Joining | Progress::Running => None,
        };
        if let Some(failure) = failure {
            node.replicas.shutdown().await;
            if failure != NodeFailure::ShutDown {
                node.endpoint.shutdown().await;
            }
            return;
        }
        tokio::select! {
            Ok(()) = storage.changed() => {
                let reason = storage.borrow_and_update().clone();
                if let Some(reason) = reason {
                    node.fail(NodeFailure::Storage(reason));
                }
            }
            Ok(()) = progress.changed() => {}
            else => return,
        }
    }
}
