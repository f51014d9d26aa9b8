//! The cache experiment, by itself: five nodes, 5,000 keys, nodes that die, and a look at every key after each step.
//!
//! ```text
//!   fill - look - for the node that leads most shards, then for another one:
//!                     kill - read all - look - fill again - start - read all - look
//!        - kill all at once under writes - start all - read all - look
//! ```

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use anyhow::{Result, anyhow, bail};

use super::{
    command::Which,
    console::{Console, wait_for},
    load::DEMO,
    record::Report,
    table::grouped,
};

/// How many keys are written.
const KEYS: u64 = 5_000;

/// How many writes are acknowledged before all nodes are killed under them.
const WRITES_BEFORE_KILL: u64 = 1_000;

/// Below this a killed node takes the majority away.
pub const MIN_NODES: usize = 3;

/// A key of which `--plant-loss` says that it was written.
const PLANTED_KEY: &str = "planted";

/// What the experiment does besides.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// One write that was never sent counts as acknowledged: the experiment must find it.
    pub plant_loss: bool,
    /// All nodes may be killed at once: they are durable.
    pub kill_all: bool,
}

/// Runs it; an error where anything was lost or stale.
pub fn run(console: &mut Console<'_>, plan: Plan) -> Result<()> {
    let mut total = Report::default();
    step(&format!("fill the keyspace {DEMO:?} with {} keys", grouped(KEYS)));
    console.fill(KEYS)?;
    if plan.plant_loss {
        console.load().record().acknowledged(PLANTED_KEY, b"never sent");
    }
    look(console, &mut total)?;

    let busiest = console.busiest()?;
    kill_and_start(console, &busiest, "the node that leads most shards", &mut total)?;
    let another = console.another(&busiest)?;
    kill_and_start(console, &another, "another node", &mut total)?;

    if plan.kill_all {
        step("kill -9 all nodes at once, under writes");
        kill_all_under_writes(console)?;
        step("start them all");
        console.start(&Which::All)?;
        look(console, &mut total)?;
    } else {
        step("not killing all nodes at once: in memory, that forgets everything");
    }
    console.nodes().check_alive()?;
    println!("\n{} reads in all", grouped(total.checked));
    println!("lost {}, stale {}", total.lost.len(), total.stale.len());
    if !total.is_clean() {
        bail!("not everything that was acknowledged was there");
    }
    Ok(())
}

fn kill_and_start(console: &mut Console<'_>, victim: &str, what: &str, total: &mut Report) -> Result<()> {
    let which = Which::One(victim.to_owned());
    step(&format!("kill -9 {victim}, {what}"));
    console.kill(&which)?;
    look(console, total)?;
    step("fill again");
    console.fill(KEYS)?;
    step(&format!("start {victim} again"));
    console.start(&which)?;
    look(console, total)
}

/// Reads every key and shows the keys by node.
fn look(console: &mut Console<'_>, total: &mut Report) -> Result<()> {
    let report = console.check()?;
    if !report.unread.is_empty() {
        bail!("not every key could be read");
    }
    total.checked += report.checked;
    // A key counts once, however often it is missed.
    for (all, found) in [(&mut total.lost, report.lost), (&mut total.stale, report.stale)] {
        all.extend(found);
        all.sort();
        all.dedup();
    }
    console.settled_stat()
}

/// The writes that were on their way have an unknown outcome; those that were acknowledged must be there.
fn kill_all_under_writes(console: &mut Console<'_>) -> Result<()> {
    let (stop, ended) = (AtomicBool::new(false), AtomicBool::new(false));
    let acknowledged = AtomicU64::new(0);
    let (load, nodes, client) = console.parts();
    let tally = thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let tally = load.fill_on_and_on(KEYS, &stop, &acknowledged);
            ended.store(true, Ordering::SeqCst);
            tally
        });
        let killed = wait_for(&acknowledged, WRITES_BEFORE_KILL, &ended).and_then(|()| nodes.kill(&Which::All, client));
        stop.store(true, Ordering::SeqCst);
        let tally = writing.join().map_err(|_| anyhow!("the writers panicked"));
        killed.and(tally)
    })?;
    if let Some(first) = tally.failed.first() {
        bail!("{} writes failed before the nodes were killed, the first: {first}", tally.failed.len());
    }
    println!("all nodes killed (SIGKILL) after {} writes", grouped(tally.acknowledged));
    Ok(())
}

fn step(what: &str) {
    println!("\n== {what}");
}
