//! A shard of raft-kv with a million keys, replicated by one group: commands while snapshots are taken, or none.
//!
//! ```text
//!   server:  "snapshots on" | "snapshots off" --> {"snapshots": taken in between}       and all that a node answers
//!   client:  "fill KEYS BYTES"                --> {"seconds"}                           and all that a client answers
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, TryStreamExt};
use raft_kv::{HashRange, KeyedValue, Outcome, Precondition, Run, Shard, ShardCommand, ShardId, ShardReply, Step};
use rafted_value::{
    ClientSession, Clock, GroupClient, Replica, SystemClock, UntypedReplica, decode_reply, encode_command,
};
use serde_json::json;
use tokio::sync::watch;

use super::raft::{TIMEOUT, bind, clients, group_name, open_store};
use super::{Client, PeerOptions, do_work, input, now_us, parse};

/// What the shard holds.
pub const KEYS: u64 = 1_000_000;
/// A value's bytes: with its key of twelve bytes, the whole is 256 MiB.
pub const VALUE_BYTES: usize = 256;
/// Commands in flight while the shard is filled.
const FILLERS: usize = 1_024;
/// How often a node looks whether its snapshot is there.
const LOOK: Duration = Duration::from_millis(20);

rafted_value::messages! {
    /// A value of a key.
    pub struct Blob { bytes: Vec<u8> }
}

impl KeyedValue for Blob {
    const NAME: &'static str = "blob";
    type Command = Vec<u8>;
    type Reply = bool;
    type Query = ();
    type Answer = Vec<u8>;

    fn command(current: Option<&Self>, _key: &str, bytes: Vec<u8>) -> Outcome<Self, bool> {
        Outcome::set(Self { bytes }, current.is_some())
    }

    fn query(&self, _key: &str, (): ()) -> Vec<u8> {
        self.bytes.clone()
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// A node with a replica of the shard.
pub async fn serve(options: &PeerOptions) -> Result<()> {
    let endpoint = bind(options).await?;
    let store = open_store(options).await?;
    let mut builder = Replica::<Shard<Blob>>::builder(&group_name(0));
    for member in &options.members {
        builder = builder.member(&member.name, member.address);
    }
    let replica = builder.start(&store, &endpoint).await?;
    let (is_on, mut taking) = (watch::Sender::new(false), None);
    println!("ready {} {}", endpoint.local_address(), now_us());
    let mut input = input();
    while let Some(line) = input.next_line().await? {
        match line.as_str() {
            "count" => {
                let (log, applied) = (store.log_stats(), *replica.untyped().applied().borrow());
                let snapshot = replica.status().snapshot.map_or(0, |position| position.index + 1);
                let (entries, batches) = (log.entries, log.batches);
                let count = json!({ "applied": applied, "entries": entries, "batches": batches, "snapshot": snapshot });
                println!("{count}");
            }
            "snapshots on" => {
                is_on.send_replace(true);
                taking = Some(tokio::spawn(take_snapshots(replica.untyped().clone(), is_on.subscribe())));
                println!("{}", json!({ "snapshots": 0 }));
            }
            "snapshots off" => {
                is_on.send_replace(false);
                let taken = taking.take().context("they were not on")?.await?;
                println!("{}", json!({ "snapshots": taken }));
            }
            other => bail!("a node knows no command {other:?}"),
        }
    }
    Ok(())
}

/// One after the other, until it is switched off; how many there were.
async fn take_snapshots(replica: UntypedReplica, is_on: watch::Receiver<bool>) -> u64 {
    let position = || replica.status().snapshot;
    let mut taken = 0;
    while *is_on.borrow() {
        let before = position();
        replica.snapshot().await;
        // When nothing is applied any more, no other is taken; one that was begun is waited for.
        while position() == before && (*is_on.borrow() || replica.status().applied != before) {
            tokio::time::sleep(LOOK).await;
        }
        taken += u64::from(position() != before);
    }
    taken
}

/// Writes to keys of the whole shard.
#[derive(Clone)]
struct ShardClient {
    group: Arc<(String, GroupClient)>,
    session: ClientSession,
    clock: SystemClock,
    next: Arc<AtomicU64>,
}

impl ShardClient {
    async fn command(&self, command: &ShardCommand<Vec<u8>>) -> Result<ShardReply<bool>> {
        let (group, client) = &*self.group;
        let open = self.session.open(self.clock.wall(), TIMEOUT).await;
        let bytes = encode_command::<Shard<Blob>>(command, Some(open.id()), 0)?;
        Ok(decode_reply::<Shard<Blob>>(&client.command(group, bytes, TIMEOUT).await?)?)
    }

    async fn put(&self, key: u64, body: &[u8]) -> Result<()> {
        let key = format!("key/{key:08}");
        let run = Run { key, precondition: Precondition::None, once: None, command: body.to_vec() };
        let reply = self.command(&ShardCommand::Run(run)).await?;
        ensure!(matches!(reply, ShardReply::Ran(_)), "{reply:?}");
        Ok(())
    }

    async fn fill(&self, keys: u64, bytes: usize) -> Result<()> {
        let id = ShardId { keyspace: 1, shard: 0 };
        let served = self.command(&ShardCommand::Take(Step::Serve { id, range: HashRange::ALL })).await?;
        ensure!(matches!(served, ShardReply::Taken(Ok(()))), "{served:?}");
        let body = vec![1; bytes];
        let puts = futures_util::stream::iter(0..keys).map(|key| self.put(key, &body));
        puts.buffer_unordered(FILLERS).try_collect().await
    }
}

impl Client for ShardClient {
    /// To any of the keys: they are all over the shard.
    async fn write(&self, _task: u64, body: &[u8]) -> Result<()> {
        self.put(scattered(self.next.fetch_add(1, Ordering::Relaxed)) % KEYS, body).await
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): its outputs look random.
fn scattered(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// A client process.
pub async fn connect(options: &PeerOptions) -> Result<()> {
    let group = clients(options).await?.pop().context("no group")?;
    let (session, clock) = (ClientSession::random(), SystemClock::default());
    let client = ShardClient { group: Arc::new(group), session, clock, next: Arc::default() };
    println!("ready");
    let mut input = input();
    while let Some(line) = input.next_line().await? {
        if let ["fill", keys, bytes] = line.split_whitespace().collect::<Vec<_>>()[..] {
            let start = Instant::now();
            client.fill(keys.parse()?, bytes.parse()?).await?;
            println!("{}", json!({ "seconds": start.elapsed().as_secs_f64() }));
        } else {
            do_work(&client, parse(&line).with_context(|| format!("no work: {line:?}"))?).await?;
        }
    }
    Ok(())
}
