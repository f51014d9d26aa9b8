//! Runs one replica's hook: tells it of elections and members, and makes the calls that wait, one at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::mpsc;

use crate::hook::{AnyHook, Call, HookQueue, Queued, ReadValue};
use crate::machine::{Raft, Shared};
use crate::openraft_types::members_of;
use crate::stats;
use crate::status::{Member, ReplicaId};

/// Prepares a replica for its hook, if it has one: before anything is applied.
pub(crate) fn prepare(shared: &Shared) -> Option<(Arc<dyn AnyHook>, mpsc::Receiver<Queued>)> {
    let hook = shared.factory().hook()?.clone();
    let (queue, calls) = HookQueue::new(shared.group());
    shared.set_hooks(Arc::new(queue));
    Some((hook, calls))
}

/// Says how the hook's queue asks who leads: as soon as the core runs, before it can have been elected.
pub(crate) fn connect(raft: &Raft, shared: &Shared) {
    let asked = raft.server_metrics();
    if let Some(queue) = shared.hooks() {
        queue.set_is_leader_of(move |term| {
            let metrics = asked.borrow_watched();
            metrics.state.is_leader() && metrics.vote.leader_id.term == term
        });
    }
}

/// Turns what openraft tells into calls, until the replica stops. Elections are noticed where entries are applied, too.
pub(crate) async fn observe(raft: Raft, shared: Arc<Shared>) {
    let Some(queue) = shared.hooks().cloned() else { return };
    let mut metrics = raft.server_metrics();
    let mut known: Option<(u64, BTreeMap<ReplicaId, Member>)> = None;
    loop {
        // In this order: it may be elected in between.
        let told = queue.leads();
        let now = metrics.borrow_watched().clone();
        let leads = now.state.is_leader().then_some(now.vote.leader_id.term);
        if told != 0 && leads != Some(told) {
            queue.step_down(told);
        }
        if let Some(term) = leads {
            queue.see_leadership(term);
        }
        known = leads.map(|term| {
            let members = members_of(&now.committed_membership_config, &now.committed_membership_config).replicas;
            if let Some((_, before)) = known.take().filter(|(known, _)| *known == term) {
                tell_of_members(term, &before, &members, &queue);
            }
            (term, members)
        });
        if WatchReceiver::changed(&mut metrics).await.is_err() {
            return;
        }
    }
}

fn tell_of_members(
    term: u64,
    before: &BTreeMap<ReplicaId, Member>,
    now: &BTreeMap<ReplicaId, Member>,
    queue: &HookQueue,
) {
    // Before it has everything, it learns of members that others have let in; and a group's first members are not let in
    // by anybody.
    if queue.leads() != term || before.is_empty() {
        return;
    }
    let added = now.iter().filter(|(id, _)| !before.contains_key(id));
    added.for_each(|(_, member)| queue.push(Call::MemberAdded { term, member: member.clone() }));
    let removed = before.iter().filter(|(id, _)| !now.contains_key(id));
    removed.for_each(|(_, member)| queue.push(Call::MemberRemoved { term, member: member.clone() }));
}

/// Makes the calls, until the queue's other end is gone or this is dropped; a call under way is then given up at its
/// next await.
pub(crate) async fn run(hook: Arc<dyn AnyHook>, shared: Arc<Shared>, mut queue: mpsc::Receiver<Queued>) {
    while let Some(queued) = queue.recv().await {
        let source: Arc<dyn ReadValue> = shared.clone();
        let call = hook.clone().call(source, queued.call);
        let (alive, ended) = tokio::sync::oneshot::channel::<()>();
        let runtime = tokio::runtime::Handle::current();
        let called = tokio::task::spawn_blocking(move || {
            runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = call => {}
                    _ = ended => {}
                }
            });
        });
        if let Err(error) = called.await {
            stats::count(stats::FAILED_HOOK_CALLS, shared.group());
            tracing::error!(group = shared.group(), %error, "a hook failed; the next call comes");
        }
        drop(alive);
    }
}
