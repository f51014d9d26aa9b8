//! A group of one answers at once, its first election included: measured in virtual time, in which nothing but what is
//! waited for takes any.

use std::path::Path;

use tokio::time::Instant;

use super::*;
use crate::clock::SystemClock;
use crate::disk::faulty::FaultyDisk;
use crate::runtime::Scope;
use crate::wal::{Appender, Step, WalConfig};

/// What the log's thread takes for one of its steps.
const STEP: Duration = Duration::from_millis(1);
/// Below the shortest election timeout: nobody waits for one. The most is for threads, whose work waits in a simulation.
const AT_ONCE: Duration = Duration::from_millis(40);

async fn write(mut appender: Appender) {
    while appender.step() != Step::Stopped {
        tokio::time::sleep(STEP).await;
        if appender.ask_again() == Step::Stopped {
            return;
        }
    }
}

#[test]
fn a_group_of_one_answers_at_once() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        for seed in 0..20 {
            let scope = Scope::new(seed);
            let config = WalConfig::default().with_segment_bytes(256 * 1024);
            let (disk, clock) = (Arc::new(FaultyDisk::default()), Arc::new(SystemClock::default()));
            let (store, appender) = scope
                .run(async { Store::open_simulated(disk, Path::new("/data"), "n1", clock, config) })
                .await
                .unwrap();
            scope.spawn(write(appender));
            let lives = scope.spawn(async move {
                let begun = Instant::now();
                let replica = start(&store, "g").await;
                assert!(begun.elapsed() < 3 * AT_ONCE, "seed {seed}: {:?} until it leads", begun.elapsed());
                for _ in 0..10 {
                    let begun = Instant::now();
                    add(&replica, 1).await;
                    assert!(begun.elapsed() < AT_ONCE, "seed {seed}: {:?} for a command", begun.elapsed());
                }
                replica.shutdown().await;
            });
            lives.await.unwrap();
            scope.end();
        }
    });
}
