//! A shard does what a plain map would: random commands from a seed, keys at the borders of its range, the whole
//! state compared after every step.

use std::collections::{BTreeMap, BTreeSet};

use raft_kv::{
    HashRange, KeyHash, Once, Precondition, Ran, Refused, Removed, Run, Shard, ShardAnswer, ShardCommand, ShardId,
    ShardQuery, ShardReply, Step, Ticked,
};
use rafted_value::{Context, LogTime, Value, decode, encode};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::values::{List, ListCommand};

const SEEDS: u64 = 40;
const STEPS: u64 = 400;

#[derive(Default)]
struct Model {
    /// Items, deadline, version.
    keys: BTreeMap<String, (Vec<u32>, Option<u64>, u64)>,
    /// What each named request answered.
    named: BTreeMap<(String, String, u64), ShardReply<u64>>,
    version: u64,
    load: u64,
}

impl Model {
    fn run(&mut self, now: u64, run: &Run<ListCommand>) -> ShardReply<u64> {
        let name = run.once.as_ref().map(|once| (run.key.clone(), once.client.clone(), once.serial));
        if let Some(reply) = name.as_ref().and_then(|name| self.named.get(name)) {
            return reply.clone();
        }
        let found = self.keys.get(&run.key).map(|(.., version)| *version);
        let holds = match run.precondition {
            Precondition::None => true,
            Precondition::Present => found.is_some(),
            Precondition::Absent => found.is_none(),
            Precondition::VersionIs(version) => found == Some(version),
        };
        let reply = if holds {
            self.version = (self.version + 1).max(now << 10);
            self.load += 1;
            let (items, until, _) = self.keys.get(&run.key).cloned().unwrap_or_default();
            let length = items.len() as u64;
            let reply = match &run.command {
                ListCommand::Append(item) => {
                    let items = [items, vec![*item]].concat();
                    self.keys.insert(run.key.clone(), (items, until, self.version));
                    length + 1
                }
                ListCommand::Until(until) => {
                    self.keys.insert(run.key.clone(), (items, *until, self.version));
                    length
                }
                ListCommand::Clear => {
                    self.keys.remove(&run.key);
                    length
                }
                ListCommand::Look => length,
            };
            let version = self.keys.get(&run.key).map(|(.., version)| *version);
            ShardReply::Ran(Ran { reply, version, repeated: false })
        } else {
            ShardReply::Refused(Refused::PreconditionFailed { version: found })
        };
        if let Some(name) = name {
            let again = match reply.clone() {
                ShardReply::Ran(ran) => ShardReply::Ran(Ran { repeated: true, ..ran }),
                other => other,
            };
            self.named.insert(name, again);
        }
        reply
    }

    fn tick(&mut self, now: u64, limit: usize) -> Ticked {
        let due = |(key, (_, until, _)): (&String, &(Vec<u32>, Option<u64>, u64))| {
            until.filter(|&until| until <= now).map(|until| (until, key.clone()))
        };
        let due: BTreeSet<(u64, String)> = self.keys.iter().filter_map(due).collect();
        let more = due.len() > limit;
        let ran: Vec<String> = due.into_iter().take(limit).map(|(_, key)| key).collect();
        for key in &ran {
            self.version = (self.version + 1).max(now << 10);
            self.load += 1;
            self.keys.remove(key);
        }
        Ticked { ran, failed: Vec::new(), more }
    }

    fn remove_prefix(&mut self, prefix: &str, limit: usize) -> Removed {
        let matching: Vec<String> = self.keys.keys().filter(|key| key.starts_with(prefix)).cloned().collect();
        for key in matching.iter().take(limit) {
            self.keys.remove(key);
            self.load += 1;
        }
        Removed { count: matching.len().min(limit) as u64, more: matching.len() > limit }
    }
}

/// Keys whose hashes lie close to both borders of the range, on both sides.
fn border_keys(range: HashRange) -> Vec<String> {
    let mut keys: Vec<(u32, String)> = Vec::new();
    for number in 0..4_000 {
        let key = format!("{}/{number}", ["a", "b", "ab"][number % 3]);
        let hash = KeyHash::of(&key).0;
        let distance = hash.abs_diff(range.lower().0).min(hash.abs_diff(range.upper().0));
        keys.push((distance, key));
    }
    keys.sort();
    keys.into_iter().take(24).map(|(_, key)| key).collect()
}

fn random_command(random: &mut StdRng, keys: &[String], model: &Model, now: u64) -> ShardCommand<ListCommand> {
    match random.random_range(0..20) {
        0 => ShardCommand::Tick { limit: random.random_range(0..4) },
        1 if random.random_range(0..5) == 0 => {
            let prefix = ["a/", "b/", "ab/", "a"].choose(random).unwrap();
            ShardCommand::RemovePrefix { prefix: (*prefix).into(), limit: random.random_range(0..5) }
        }
        _ => {
            let key = keys.choose(random).unwrap().clone();
            let command = match random.random_range(0..8) {
                0 => ListCommand::Clear,
                1 => ListCommand::Look,
                2 => ListCommand::Until(None),
                3 => ListCommand::Until(Some(now + random.random_range(0..50))),
                _ => ListCommand::Append(random.random()),
            };
            let version = model.keys.get(&key).map_or(1, |(.., version)| *version);
            let precondition = match random.random_range(0..8) {
                0 => Precondition::Present,
                1 => Precondition::Absent,
                2 => Precondition::VersionIs(version),
                3 => Precondition::VersionIs(version.saturating_sub(1)),
                _ => Precondition::None,
            };
            let once = (random.random_range(0..3) == 0).then(|| Once {
                client: ["c", "d"].choose(random).unwrap().to_string(),
                serial: random.random_range(0..40),
                fingerprint: 0,
            });
            ShardCommand::Run(Run { key, precondition, once, command })
        }
    }
}

fn compare(shard: &Shard<List>, model: &Model, range: HashRange, keys: &[String], what: &str) {
    let context = Context::new(LogTime::default(), 0, None);
    for key in keys {
        let answer = shard.query(ShardQuery::Get { key: key.clone(), query: () });
        let expected = match model.keys.get(key) {
            _ if !range.contains(KeyHash::of(key)) => ShardAnswer::Moved { wait: false },
            Some((items, _, version)) => ShardAnswer::Got { answer: items.clone(), version: *version },
            None => ShardAnswer::NotFound,
        };
        assert_eq!(answer, expected, "{what}: {key}");
    }
    let listed: Vec<&str> = shard.iter().map(|(key, _)| key).collect();
    let expected: Vec<&str> = model.keys.keys().map(String::as_str).collect();
    assert_eq!(listed, expected, "{what}");
    let stats = shard.stats();
    let bytes: u64 = model.keys.iter().map(|(key, (items, ..))| (key.len() + items.len() * 4) as u64).sum();
    assert_eq!((stats.keys, stats.bytes, stats.load), (model.keys.len() as u64, bytes, model.load), "{what}");
    let deadline = model.keys.values().filter_map(|(_, until, _)| *until).min();
    assert_eq!(shard.next_deadline().map(LogTime::as_millis), deadline, "{what}");
    let mut accounts = BTreeMap::new();
    for key in model.keys.keys() {
        *accounts.entry(key.split_once('/').unwrap().0.to_owned()).or_insert(0_u64) += 1;
    }
    assert_eq!(shard.accounts(&context).counts, accounts, "{what}");
}

fn simulate(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let ranges = HashRange::divide(random.random_range(1..5));
    let range = *ranges.choose(&mut random).unwrap();
    let keys = border_keys(range);
    let (mut shard, mut model) = (Shard::<List>::default(), Model::default());
    let serve = Step::Serve { id: ShardId { keyspace: 1, shard: 0 }, range };
    assert_eq!(shard.command(ShardCommand::Take(serve)), ShardReply::Taken(Ok(())));
    let mut now = 0;
    for step in 0..STEPS {
        now += random.random_range(0..5);
        let command = random_command(&mut random, &keys, &model, now);
        let what = format!("seed {seed}, step {step}: {command:?}");
        let expected = match &command {
            ShardCommand::Run(run) if !range.contains(KeyHash::of(&run.key)) => ShardReply::Moved { wait: false },
            ShardCommand::Run(run) => model.run(now, run),
            ShardCommand::Tick { limit } => ShardReply::Ticked(model.tick(now, *limit as usize)),
            ShardCommand::RemovePrefix { prefix, limit } => {
                ShardReply::Removed(model.remove_prefix(prefix, *limit as usize))
            }
            ShardCommand::Take(_) => unreachable!(),
        };
        let reply = shard.command_in(&Context::new(LogTime::from_millis(now), step, None), command);
        assert_eq!(reply, expected, "{what}");
        compare(&shard, &model, range, &keys, &what);
        if random.random_range(0..20) == 0 {
            // A replica that is restored from a snapshot goes on as the others do.
            let bytes = encode(&shard).unwrap();
            let restored: Shard<List> = decode(&bytes).unwrap();
            assert_eq!(&encode(&restored).unwrap()[..], &bytes[..], "{what}");
            shard = restored;
        }
    }
}

#[test]
fn a_shard_does_what_a_plain_map_does() {
    for seed in 0..SEEDS {
        simulate(seed);
    }
}
