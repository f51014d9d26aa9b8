//! Commands of a version that is not in use yet wait here, beside those that need not, until it is known whether every
//! member reads them.
//!
//! ```text
//! proposer --version not known to be read--> here: has the leader applied an entry of its own term? do all members read it?
//!    ^                                         |
//!    '------------------ yes ------------------'--- no: refused
//! ```
//!
//! Before a leader has applied an entry of its own term, its state may lack what is committed: it could take a version for
//! new that is in use, or a group for empty that is not.

use std::sync::Arc;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::mpsc;

use crate::command;
use crate::error::CommandError;
use crate::machine::{Raft, Shared};
use crate::peers::Peers;
use crate::proposer::{Proposal, ProposeError, has_applied_own_term};
use crate::roster::Roster;

/// Commands that are judged together.
const MAX_JUDGED: usize = 1_024;

/// Judges what comes, and gives back what may be proposed. Runs until the queue's senders are gone.
pub(crate) async fn run(
    peers: Peers,
    shared: Arc<Shared>,
    mut roster: Roster,
    mut queue: mpsc::UnboundedReceiver<Proposal>,
    admitted: mpsc::WeakUnboundedSender<Proposal>,
) {
    let mut waiting = Vec::new();
    while queue.recv_many(&mut waiting, MAX_JUDGED).await > 0 {
        if !applied_own_term(&peers.raft).await {
            let leader = peers.leader();
            waiting.drain(..).for_each(|proposal| {
                proposal.reply.send(Err(ProposeError::NotLeader { leader: leader.clone() }));
            });
            continue;
        }
        for mut proposal in waiting.drain(..) {
            let term = peers.raft.metrics().borrow_watched().current_term;
            let in_use = shared.version_in_use();
            let judged = match command::schema(&proposal.command) {
                Some(version) => roster.admit(version, in_use).await,
                None => Ok(()),
            };
            match (judged, admitted.upgrade()) {
                (Ok(()), Some(admitted)) => {
                    proposal.admitted_in = Some(term);
                    // It is gone only with the replica, and the caller hears of that.
                    let _ = admitted.send(proposal);
                }
                (Ok(()), None) => {}
                (Err(refusal), _) => proposal.reply.send(Err(CommandError::NotHappened(refusal).into())),
            }
        }
    }
}

/// Waits until this has applied an entry of the term that it leads; `false` once it does not lead.
async fn applied_own_term(raft: &Raft) -> bool {
    let mut metrics = raft.metrics();
    loop {
        if let Some(applied) = has_applied_own_term(raft) {
            if applied {
                return true;
            }
        } else {
            return false;
        }
        if WatchReceiver::changed(&mut metrics).await.is_err() {
            return false;
        }
    }
}
