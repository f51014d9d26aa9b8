//! Ticks: one task per node, over the shards that it leads. It proposes an entry only where something is due, so
//! that a shard without deadlines stays silent.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use raft_kv::{Kv, LedShard};
use rafted_value::LogTime;
use tokio::task::JoinSet;

use crate::agent_state::{AGENTS_KEYSPACE, AgentCell};
use crate::on_tick::{tick_at, tick_begins};

/// The most agents whose timeouts run in one entry: others' commands wait for no more than these.
const MAX_AGENTS_PER_ENTRY: u32 = 1_000;

/// Proposes ticks, until it is dropped.
pub(crate) struct Ticker {
    kv: Kv,
    interval: Duration,
    /// The shards whose ticks are under way, and what carries them.
    busy: HashSet<String>,
    running: JoinSet<String>,
}

impl Ticker {
    pub(crate) fn new(kv: Kv, interval: Duration) -> Self {
        Self { kv, interval, busy: HashSet::new(), running: JoinSet::new() }
    }

    pub(crate) async fn run(mut self) {
        loop {
            let next_tick = tokio::time::sleep(until_next_tick(wall(), self.interval));
            tokio::pin!(next_tick);
            loop {
                tokio::select! {
                    () = &mut next_tick => break,
                    Some(done) = self.running.join_next() => self.finished(done),
                }
            }
            self.start_due(wall());
        }
    }

    fn start_due(&mut self, now: LogTime) {
        for shard in self.kv.led_shards::<AgentCell>(AGENTS_KEYSPACE) {
            let due = shard.next_deadline().is_some_and(|deadline| deadline <= now);
            if due && self.busy.insert(shard.group().to_owned()) {
                self.running.spawn(tick(shard));
            }
        }
    }

    fn finished(&mut self, done: Result<String, tokio::task::JoinError>) {
        match done {
            Ok(group) => {
                self.busy.remove(&group);
            }
            // Which one it was is not known, so all may be tried again: a tick that runs twice does no harm.
            Err(_) => self.busy.clear(),
        }
    }
}

/// Runs all that is due in one shard.
async fn tick(shard: LedShard<AgentCell>) -> String {
    loop {
        match shard.propose_tick(MAX_AGENTS_PER_ENTRY).await {
            Ok(ticked) if ticked.more && !ticked.ran.is_empty() => {}
            Ok(_) => break,
            Err(error) => {
                tracing::debug!(group = shard.group(), %error, "a tick was not run; the next one will");
                break;
            }
        }
    }
    shard.group().to_owned()
}

fn until_next_tick(now: LogTime, interval: Duration) -> Duration {
    let next = tick_begins(tick_at(now, interval).saturating_add(1), interval);
    Duration::from_millis(next.as_millis().saturating_sub(now.as_millis()).max(1))
}

/// Near log time, which decides in the shard whether anything is due.
fn wall() -> LogTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    LogTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_come_at_the_borders_of_their_interval() {
        let second = Duration::from_secs(1);
        assert_eq!(until_next_tick(LogTime::from_millis(5_300), second), Duration::from_millis(700));
        assert_eq!(until_next_tick(LogTime::from_millis(5_000), second), second);
        assert_eq!(until_next_tick(LogTime::from_millis(5_999), second), Duration::from_millis(1));
    }
}
