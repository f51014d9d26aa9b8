//! raft-fleet: a node of a fleet, which is told line by line what to do with its groups. It calls them by the library's own
//! handle, from a node that may or may not hold their replicas.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use raft_fleet::batched_comm::Identity;
use raft_fleet::rafted_value::{Value, messages};
use raft_fleet::{Fleet, FleetConfig, GroupState};
use serde_json::{Value as Json, json};

use super::{PeerOptions, input, now_us};
use crate::load::percentiles;

/// Groups that are added, or asked, at once.
const AT_ONCE: usize = 64;
/// Commands of one group under way at once while it is filled.
const FILLING: usize = 256;
/// Idle groups are what is measured.
const SLEEP_AFTER: Duration = Duration::from_secs(5);
/// How long one command may take.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Filled in beside the number, so that an entry is as large as a small record.
const PADDING: usize = 64;

messages! {
    #[derive(Default)]
    pub struct Sum { n: u64 }
    pub struct Add { n: u64, padding: Vec<u8> }
}

impl Value for Sum {
    type Command = Add;
    type Reply = u64;
    type Query = ();
    type Answer = u64;

    fn command(&mut self, add: Add) -> u64 {
        self.n += add.n;
        self.n
    }

    fn query(&self, (): ()) -> u64 {
        self.n
    }
}

/// A node: runs until its input ends, or it is killed.
pub async fn serve(options: &PeerOptions) -> Result<()> {
    let seeds: Vec<_> = options.members.iter().map(|member| member.address).collect();
    let mut builder = Fleet::builder(&options.name)
        .listen(options.address)
        .identity(Identity::load(&options.tls, &options.name)?)
        .seeds(seeds)
        .config(FleetConfig::default().with_sleep_after(Some(SLEEP_AFTER))?)
        .register::<Sum>("sum")?;
    if options.groups > 0 {
        builder = builder.bootstrap_expect(u32::try_from(options.groups)?);
    }
    builder = match &options.data {
        Some(data) => builder.data_dir(data),
        None => builder.in_memory(),
    };
    let fleet = builder.start().await?;
    println!("ready {} {}", fleet.address(), now_us());
    let mut input = input();
    while let Some(line) = input.next_line().await? {
        let answer = obey(&fleet, &line).await.with_context(|| format!("told {line:?}"))?;
        println!("{answer}");
    }
    Ok(())
}

async fn obey(fleet: &Fleet, line: &str) -> Result<Json> {
    let words: Vec<_> = line.split_whitespace().collect();
    let number = |text: &str| text.parse::<usize>().with_context(|| format!("{text:?} is no number"));
    Ok(match words[..] {
        ["ready"] => {
            fleet.ready().await?;
            json!({})
        }
        ["state", from, to] => state(fleet, number(from)?, number(to)?),
        ["add", from, to] => add(fleet, number(from)?, number(to)?).await?,
        ["led-by", name] => led_by(fleet, name),
        ["one-by-one", from, to] => one_by_one(fleet, number(from)?, number(to)?).await?,
        ["ask", from, to] => ask(fleet, number(from)?, number(to)?).await?,
        ["fill", from, to, entries] => fill(fleet, number(from)?, number(to)?, number(entries)?).await?,
        ["load", from, to, tasks, ms] => {
            let time = Duration::from_millis(number(ms)? as u64);
            load(fleet, number(from)?, number(to)?, number(tasks)?, time).await?
        }
        _ => bail!("a node of a fleet knows no such command"),
    })
}

fn name(group: usize) -> String {
    format!("bench-{group}")
}

/// How far these groups have come, as this node sees them.
fn state(fleet: &Fleet, from: usize, to: usize) -> Json {
    let (mut led, mut asleep, mut placed) = (0, 0, 0);
    let names: std::collections::HashSet<_> = (from..to).map(name).collect();
    for info in fleet.groups().into_iter().filter(|info| names.contains(&info.name)) {
        led += usize::from(info.leader.is_some());
        asleep += usize::from(info.state == GroupState::Hibernating);
        let (mut members, mut places) = (info.members, fleet.places(&info.name, info.replicas));
        members.sort();
        places.sort();
        placed += usize::from(members == places);
    }
    json!({ "led": led, "asleep": asleep, "placed": placed, "nodes": fleet.nodes().len() })
}

fn led_by(fleet: &Fleet, node: &str) -> Json {
    let led =
        fleet.groups().into_iter().filter(|info| info.leader.as_ref().is_some_and(|leader| leader.as_str() == node));
    let numbers = led.filter_map(|info| info.name.strip_prefix("bench-")?.parse::<usize>().ok());
    json!({ "groups": numbers.collect::<Vec<_>>() })
}

async fn add(fleet: &Fleet, from: usize, to: usize) -> Result<Json> {
    let start = Instant::now();
    let adding = (from..to).map(|group| async move { fleet.add_group::<Sum>(&name(group), 3).await });
    let mut adding = futures_util::stream::iter(adding).buffer_unordered(AT_ONCE);
    while let Some(added) = adding.next().await {
        added?;
    }
    Ok(json!({ "seconds": start.elapsed().as_secs_f64() }))
}

async fn command(fleet: &Fleet, group: usize) -> Result<Duration> {
    let start = Instant::now();
    let add = Add { n: 1, padding: vec![7; PADDING] };
    fleet.group::<Sum>(&name(group)).command(add).timeout(TIMEOUT).await?;
    Ok(start.elapsed())
}

/// A command to one group after the other.
async fn one_by_one(fleet: &Fleet, from: usize, to: usize) -> Result<Json> {
    let mut took = Vec::new();
    for group in from..to {
        took.push(command(fleet, group).await?);
    }
    Ok(percentiles(took))
}

/// A command to all groups: when had so many of them answered?
async fn ask(fleet: &Fleet, from: usize, to: usize) -> Result<Json> {
    let start = Instant::now();
    let asking = (from..to).map(|group| async move { command(fleet, group).await });
    let mut asking = futures_util::stream::iter(asking).buffer_unordered(AT_ONCE);
    let mut answered = Vec::new();
    while let Some(took) = asking.next().await {
        took?;
        answered.push(start.elapsed());
    }
    Ok(percentiles(answered))
}

/// So many entries in each group.
async fn fill(fleet: &Fleet, from: usize, to: usize, entries: usize) -> Result<Json> {
    let start = Instant::now();
    for group in from..to {
        let commands = (0..entries).map(|_| command(fleet, group));
        let mut commands = futures_util::stream::iter(commands).buffer_unordered(FILLING);
        while let Some(done) = commands.next().await {
            done?;
        }
    }
    Ok(json!({ "seconds": start.elapsed().as_secs_f64() }))
}

/// Closed loops, each over its share of the groups; with the longest time that one of them had no answer. Every command
/// must have run once.
async fn load(fleet: &Fleet, from: usize, to: usize, tasks: usize, time: Duration) -> Result<Json> {
    ensure!(tasks > 0 && tasks <= to - from, "1 to {} tasks for so many groups, given {tasks}", to - from);
    let is_over = Arc::new(AtomicBool::new(false));
    let mut loops = tokio::task::JoinSet::new();
    for task in 0..tasks {
        let (fleet, is_over) = (fleet.clone(), is_over.clone());
        loops.spawn(async move {
            let mut took = Vec::new();
            for group in (from + task..to).step_by(tasks).cycle() {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                took.push(command(&fleet, group).await?);
            }
            anyhow::Ok(took)
        });
    }
    tokio::time::sleep(time).await;
    is_over.store(true, Ordering::Relaxed);
    let mut took = Vec::new();
    while let Some(done) = loops.join_next().await {
        took.extend(done??);
    }
    Ok(percentiles(took))
}
