//! Keyspaces on three nodes.

use std::collections::{BTreeMap, BTreeSet};

use raft_kv::{FixedSetting, KvError, Page, Phase, Policy, Precondition, Put};
use rafted_value::LogTime;

use crate::harness::{DEADLINE, World, eventually, lists, shard_groups, stop, stop_all, within};
use crate::values::{List, ListCommand};

fn policy(shards: u32) -> Policy {
    Policy::new().with_shards(shards..=64).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyspace_serves_from_every_node_until_it_is_deleted() {
    let world = World::new(3);
    let nodes = world.start_all().await;
    let created = nodes[0].create_keyspace::<List>("lists", policy(8)).timeout(DEADLINE).await.unwrap();
    assert_eq!(created.name(), "lists");

    // What one node has written, every other one reads at once.
    for number in 0..30_u32 {
        let (writer, reader) = (lists(&nodes[number as usize % 3]), lists(&nodes[(number as usize + 1) % 3]));
        let key = format!("{}/{:02}", ["a", "b"][number as usize % 2], number / 2);
        for item in 0..3 {
            assert_eq!(writer.command(&key, ListCommand::Append(item)).await, Ok(u64::from(item) + 1), "{key}");
            assert_eq!(reader.query(&key, ()).await.unwrap().len(), item as usize + 1, "{key}");
        }
    }

    let keys = |range: std::ops::Range<u32>| range.map(|n| format!("b/{n:02}")).collect::<Vec<_>>();
    assert_eq!(lists(&nodes[1]).list("b/", None, 10).await, Ok(Page { keys: keys(0..10), more: true }));
    assert_eq!(lists(&nodes[2]).list("b/", Some("b/09"), 10).await, Ok(Page { keys: keys(10..15), more: false }));
    let counts: BTreeMap<String, u64> = [("a".to_owned(), 15), ("b".to_owned(), 15)].into();
    assert_eq!(lists(&nodes[0]).count_by_account().await, Ok(counts));

    let shards = nodes[2].shards("lists").await.unwrap();
    assert_eq!((shards[0].lower.0, shards[7].upper.0, shards.len()), (0, u32::MAX, 8));
    let stats: Vec<_> = shards.iter().map(|shard| shard.stats.clone().unwrap()).collect();
    assert_eq!(stats.iter().map(|stats| stats.keys).sum::<u64>(), 30);
    assert_eq!(stats.iter().map(|stats| stats.load).sum::<u64>(), 90);
    assert!(stats.iter().all(|stats| matches!(stats.phase, Phase::Serving { .. })), "{stats:?}");
    let led = || {
        let groups = nodes.iter().flat_map(|kv| kv.led_shards::<List>("lists"));
        let groups: BTreeSet<String> = groups.map(|shard| shard.group().to_owned()).collect();
        (groups.len() == 8).then_some(())
    };
    eventually("every shard is led by a node that knows it", led).await;
    let group = nodes[0].shard_of("lists", "a/00").unwrap();
    assert!(shards.iter().any(|shard| shard.group == *group));

    within("delete", nodes[2].delete_keyspace("lists").into_future()).await.unwrap();
    let missing = KvError::KeyspaceNotFound { name: "lists".into() };
    for kv in &nodes {
        assert_eq!(lists(kv).query("a/00", ()).await, Err(missing.clone()));
        assert_eq!(lists(kv).command("a/00", ListCommand::Look).await, Err(missing.clone()));
    }
    for kv in &nodes {
        eventually("no group is left", || shard_groups(kv).is_empty().then_some(())).await;
    }
    stop_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keyspaces_are_created_changed_and_made_again() {
    let world = World::new(3);
    let nodes = world.start_all().await;
    let [first, second, third] = &nodes[..] else { panic!() };
    let unknown = first.create_keyspace_of_type("x", "no such type", policy(1)).await;
    assert_eq!(unknown, Err(KvError::UnknownType { type_name: "no such type".into() }));
    let invalid = first.create_keyspace_of_type("x/y", "list", policy(1)).await;
    assert_eq!(invalid, Err(KvError::InvalidName { given: "x/y".into() }));

    assert_eq!(first.put_keyspace("lists", "list", policy(2)).timeout(DEADLINE).await, Ok(Put::Created));
    let exists = KvError::AlreadyExists { name: "lists".into(), type_name: "list".into() };
    assert_eq!(second.create_keyspace::<List>("lists", policy(2)).await.unwrap_err(), exists);
    let changed = policy(1).with_max_keys_per_shard(7).unwrap();
    assert_eq!(second.put_keyspace("lists", "list", changed.clone()).await, Ok(Put::Changed));
    let info = third.keyspace_info("lists").await.unwrap();
    assert_eq!((info.policy, info.shards, info.is_serving), (changed, 2, true));
    let not_yet = KvError::NotYet { keyspace: "lists".into(), setting: FixedSetting::Shards, present: 2 };
    assert_eq!(third.set_policy("lists", policy(3)).await, Err(not_yet));

    assert_eq!(lists(first).command("k", ListCommand::Append(1)).await, Ok(1));
    within("delete", third.delete_keyspace("lists").into_future()).await.unwrap();
    third.create_keyspace::<List>("lists", policy(1)).timeout(DEADLINE).await.unwrap();
    for kv in &nodes {
        let found = lists(kv).query("k", ()).await.unwrap_err();
        assert_eq!(found, KvError::KeyNotFound { keyspace: "lists".into(), key: "k".into() });
    }
    let names: Vec<String> = first.keyspaces().await.unwrap().into_iter().map(|info| info.name).collect();
    assert_eq!(names, ["lists"]);
    stop_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_names_and_ticks_hold_over_the_network() {
    let world = World::new(3);
    let nodes = world.start_all().await;
    nodes[0].create_keyspace::<List>("lists", policy(2)).timeout(DEADLINE).await.unwrap();
    let append = |node: usize, item| lists(&nodes[node]).command("k", ListCommand::Append(item));

    let first = append(0, 1).require(Precondition::Absent).idempotency("c", 5, 1).versioned().await.unwrap();
    let again = append(1, 1).require(Precondition::Absent).idempotency("c", 5, 1).versioned().await.unwrap();
    assert_eq!((again.reply, again.version, again.repeated), (first.reply, first.version, true));
    let found = KvError::PreconditionFailed { version: first.version };
    assert_eq!(append(2, 1).require(Precondition::Absent).await, Err(found));
    let version = first.version.unwrap();
    assert_eq!(append(2, 2).require(Precondition::VersionIs(version)).await, Ok(2));
    let (items, newer) = lists(&nodes[1]).query("k", ()).versioned().await.unwrap();
    assert!(items == [1, 2] && newer > version);

    // What is due goes by a tick of the shard's leader.
    assert_eq!(lists(&nodes[0]).command("k", ListCommand::Until(Some(1))).await, Ok(2));
    let due =
        || nodes.iter().flat_map(|kv| kv.led_shards::<List>("lists")).find(|shard| shard.next_deadline().is_some());
    let shard = eventually("a leader with a deadline", due).await;
    assert_eq!((shard.due(LogTime::from_millis(0)), shard.due(LogTime::from_millis(1))), (0, 1));
    assert_eq!(shard.propose_tick(1_000).await.unwrap().ran, ["k"]);
    let gone = KvError::KeyNotFound { keyspace: "lists".into(), key: "k".into() };
    assert_eq!(lists(&nodes[2]).query("k", ()).await, Err(gone));
    stop_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_append_is_there_once_and_in_order_when_a_node_dies() {
    const CLIENTS: usize = 8;
    const ITEMS: u32 = 60;
    let world = World::new(3);
    let mut nodes = world.start_all().await;
    nodes[0].create_keyspace::<List>("lists", policy(8)).timeout(DEADLINE).await.unwrap();
    let victim = nodes.pop().unwrap();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let keyspace = lists(&nodes[client % 2]);
            tokio::spawn(async move {
                let key = format!("client {client}");
                for item in 0..ITEMS {
                    let append = keyspace.command(&key, ListCommand::Append(item)).timeout(DEADLINE);
                    assert_eq!(append.await, Ok(u64::from(item) + 1), "{key}");
                }
                keyspace.query(&key, ()).timeout(DEADLINE).await.unwrap()
            })
        })
        .collect();
    let written = || {
        let loads = nodes.iter().flat_map(|kv| kv.led_shards::<List>("lists"));
        let load: u64 = loads.filter_map(|shard| shard.read(|shard, _| shard.stats().load)).sum();
        (load > 40).then_some(())
    };
    eventually("some are written", written).await;
    stop(victim).await;
    for client in clients {
        let items = within("a client", client).await.unwrap();
        assert_eq!(items, (0..ITEMS).collect::<Vec<_>>());
    }
    stop_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_ends_also_when_the_node_that_drives_it_dies() {
    let world = World::new(3);
    let mut nodes = world.start_all().await;
    nodes[0].create_keyspace::<List>("lists", policy(6)).timeout(DEADLINE).await.unwrap();
    let leads = |kv: &raft_kv::Kv| kv.fleet().led_groups().iter().any(|group| group.name == raft_kv::KEYSPACES_GROUP);
    let driver = eventually("somebody leads the keyspaces", || nodes.iter().position(leads)).await;
    let driver = nodes.remove(driver);
    let deleting = driver.delete_keyspace("lists").into_future();
    let deleting = tokio::spawn(deleting);
    let missing = |error| matches!(error, Err(KvError::KeyspaceNotFound { .. }));
    let accepted = async { while !missing(nodes[0].keyspace_info("lists").await) {} };
    within("the deletion is accepted", accepted).await;
    deleting.abort();
    stop(driver).await;
    for kv in &nodes {
        eventually("no group is left", || shard_groups(kv).is_empty().then_some(())).await;
    }
    stop_all(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_outlive_a_restart_of_all_nodes() {
    let world = World::new(3).on_disk();
    let nodes = world.start_all().await;
    nodes[0].create_keyspace::<List>("lists", policy(3)).timeout(DEADLINE).await.unwrap();
    for number in 0..20 {
        let append = lists(&nodes[1]).command(&format!("k{number}"), ListCommand::Append(number));
        assert_eq!(append.idempotency("c", 1, 0).await, Ok(1));
    }
    stop_all(nodes).await;
    let nodes = world.start_all().await;
    for number in 0..20 {
        let (key, keyspace) = (format!("k{number}"), lists(&nodes[2]));
        assert_eq!(keyspace.query(&key, ()).timeout(DEADLINE).await.unwrap(), [number]);
        let again = keyspace.command(&key, ListCommand::Append(number)).idempotency("c", 1, 0);
        assert!(again.versioned().await.unwrap().repeated, "{key}");
    }
    stop_all(nodes).await;
}
