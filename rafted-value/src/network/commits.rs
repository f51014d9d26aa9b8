//! What is committed goes to a follower with the next entries, where these come soon.
//!
//! ```text
//!   entries ----------------------------------------------> sent at once
//!   a commit alone --> waits a moment --> entries come ----> sent with them
//!                                    \--> none come -------> sent alone
//!   the last of the stream (a heartbeat, a probe) ---------> sent at once
//! ```
//!
//! A commit alone costs a message and its answer for each follower, as much as the entry did, at the very moment in which
//! the leader answers the client; and entries that come meanwhile would wait for its answer.

use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use openraft::raft::AppendEntriesRequest;

use crate::openraft_types::Types;

/// How long followers may hear of a commit later than they could, besides the clock's granularity: longer than a round
/// of a single client among near members, and not long for whoever reads from a follower.
const MAX_WAIT: Duration = Duration::from_millis(1);

/// The requests of one stream, without the commits that went with later ones.
pub(super) fn with_next_entries(
    requests: impl Stream<Item = AppendEntriesRequest<Types>> + Unpin,
) -> impl Stream<Item = AppendEntriesRequest<Types>> {
    stream::unfold(requests.fuse(), |mut requests| async move {
        let mut request = requests.next().await?;
        if request.entries.is_empty() {
            let mut waited = std::pin::pin!(tokio::time::sleep(MAX_WAIT));
            while request.entries.is_empty() {
                tokio::select! {
                    biased;
                    next = requests.next() => match next {
                        // It says all that the one before it said.
                        Some(next) => request = next,
                        None => break,
                    },
                    () = &mut waited => break,
                }
            }
        }
        Some((request, requests))
    })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::sync::mpsc;
    use tokio::time::Instant;

    use super::*;
    use crate::openraft_types::{entry, log_id, vote};

    /// A request for the entry of this index, or for none behind it, and what it says is committed.
    fn request(index: u64, has_entry: bool, commit: u64) -> AppendEntriesRequest<Types> {
        let entries = if has_entry { vec![entry(1, index, openraft::EntryPayload::Blank)] } else { Vec::new() };
        let previous = if has_entry { index - 1 } else { index };
        let (prev_log_id, leader_commit) = (Some(log_id(1, previous)), Some(log_id(1, commit)));
        AppendEntriesRequest { vote: vote(1, 1, true), prev_log_id, entries, leader_commit }
    }

    fn of(receiver: mpsc::UnboundedReceiver<AppendEntriesRequest<Types>>) -> impl Stream<Item = (usize, u64)> {
        let requests = stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) });
        with_next_entries(Box::pin(requests))
            .map(|request| (request.entries.len(), request.leader_commit.map_or(0, |id| id.index)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_goes_with_entries_that_come_soon_and_alone_when_none_do() {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut sent = std::pin::pin!(of(receiver));
        sender.send(request(5, true, 4)).unwrap();
        assert_eq!(sent.next().now_or_never(), Some(Some((1, 4))), "entries go at once");
        sender.send(request(5, false, 5)).unwrap();
        assert_eq!(sent.next().now_or_never(), None, "a commit waits");
        sender.send(request(6, true, 5)).unwrap();
        assert_eq!(sent.next().now_or_never(), Some(Some((1, 5))), "and goes with the next entry");
        let start = Instant::now();
        sender.send(request(6, false, 6)).unwrap();
        assert_eq!(sent.next().await, Some((0, 6)), "or alone");
        assert_eq!(start.elapsed(), MAX_WAIT);
        sender.send(request(6, false, 7)).unwrap();
        assert_eq!(sent.next().now_or_never(), None);
        sender.send(request(6, false, 8)).unwrap();
        assert_eq!(sent.next().await, Some((0, 8)), "a later commit takes the place of an earlier one");
    }

    #[tokio::test(start_paused = true)]
    async fn a_single_request_goes_at_once() {
        let (sender, receiver) = mpsc::unbounded_channel();
        sender.send(request(5, false, 5)).unwrap();
        drop(sender);
        let mut sent = std::pin::pin!(of(receiver));
        assert_eq!(sent.next().now_or_never(), Some(Some((0, 5))), "a heartbeat");
        assert_eq!(sent.next().now_or_never(), Some(None));
    }
}
