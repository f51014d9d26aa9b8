//! Groups by name from any node; where their replicas and leaders are.

use std::collections::BTreeSet;

use raft_fleet::{GroupError, GroupInfo, GroupState};

use crate::harness::{Int, IntCommand, World, eventually, increment, leader, members, places, shutdown_all, value};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_groups_on_four_nodes_in_two_zones_count_from_any_node() {
    let world = World::new(4, 4).zones(2);
    let fleets = world.start_all(0..4).await;
    for group in 0..5 {
        fleets[0].add_group::<Int>(&format!("consensus{group}"), 3).await.unwrap();
    }
    for group in 0..5 {
        let (name, node) = (format!("consensus{group}"), group % 4);
        assert_eq!(increment(&fleets[node], &name).await, 0, "{name}");
        for other in (0..4).filter(|other| *other != node) {
            assert_eq!(value(&fleets[other], &name).await, 1, "{name} from n{other}");
        }
    }
    for fleet in &fleets {
        let all_run = || {
            let groups = fleet.groups();
            let runs = |group: &GroupInfo| matches!(group.state, GroupState::Running | GroupState::Hibernating);
            (groups.len() == 5 && groups.iter().all(runs)).then_some(groups)
        };
        for group in eventually("every node knows every leader", all_run).await {
            assert_eq!(group.members.len(), 3, "{group:?}");
            let zones: BTreeSet<_> = group.members.iter().map(|name| name[1..].parse::<usize>().unwrap() % 2).collect();
            assert_eq!(zones.len(), 2, "{group:?} is in both zones");
        }
    }
    for group in 0..5 {
        let name = format!("consensus{group}");
        let preferred = fleets[0].places(&name, 3)[0].clone();
        let leads = || (leader(&fleets[3], &name).as_deref() == Some(&preferred)).then_some(());
        eventually("the leader is the preferred one", leads).await;
    }
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_very_many_replicas_has_one_on_every_node_and_grows_with_them() {
    let world = World::new(2, 3);
    let mut fleets = world.start_all(0..2).await;
    fleets[0].add_group::<Int>("all", u32::MAX).await.unwrap();
    assert_eq!(increment(&fleets[1], "all").await, 0);
    eventually("two members", || (members(&fleets[0], "all").len() == 2).then_some(())).await;
    fleets.extend(world.start_all(2..3).await);
    eventually("three members", || (members(&fleets[2], "all").len() == 3).then_some(())).await;
    assert_eq!(increment(&fleets[2], "all").await, 1);
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adding_twice_and_removing_what_is_not_there_are_errors() {
    let world = World::new(2, 2);
    let fleets = world.start_all(0..2).await;
    fleets[0].add_group::<Int>("g", 2).await.unwrap();
    let exists = GroupError::AlreadyExists { name: "g".into() };
    assert_eq!(fleets[1].add_group::<Int>("g", 2).await.unwrap_err(), exists);
    let not_found = GroupError::NotFound { name: "h".into() };
    assert_eq!(fleets[1].remove_group("h").await.unwrap_err(), not_found);
    assert!(matches!(fleets[0].add_group::<Int>("cluster", 1).await, Err(GroupError::InvalidName { .. })));
    assert_eq!(fleets[0].add_group::<Int>("none", 0).await, Err(GroupError::NoReplicas));
    let unknown = fleets[0].group::<Int>("h").query(()).await.unwrap_err();
    assert!(unknown.to_string().contains("there is no group of this name"), "{unknown}");
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_group_leaves_nothing_and_starts_empty_when_it_is_added_again() {
    let world = World::new(3, 3).on_disk();
    let fleets = world.start_all(0..3).await;
    fleets[0].add_group::<Int>("g", 3).await.unwrap();
    assert_eq!(increment(&fleets[0], "g").await, 0);
    fleets[1].remove_group("g").await.unwrap();
    let again = async {
        loop {
            match fleets[2].add_group::<Int>("g", 3).await {
                Err(GroupError::CleanupOngoing { .. }) => tokio::task::yield_now().await,
                other => return other,
            }
        }
    };
    crate::harness::within("added again", again).await.unwrap();
    assert_eq!(increment(&fleets[0], "g").await, 0, "it starts empty");
    for fleet in &fleets {
        let replicas = fleet.store().replicas();
        let of_group: Vec<_> = replicas.iter().filter(|stored| stored.group == "g").collect();
        assert_eq!(of_group.len(), 1, "{of_group:?}");
    }
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_join_and_leave_take_and_give_replicas_while_clients_count() {
    let world = World::new(3, 6).zones(3);
    let mut fleets = world.start_all(0..3).await;
    let groups: Vec<_> = (0..4).map(|group| format!("g{group}")).collect();
    for group in &groups {
        fleets[0].add_group::<Int>(group, 3).await.unwrap();
    }
    let (client, counted) = (fleets[0].clone(), groups.clone());
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let counting = tokio::spawn(async move {
        let mut counts = vec![0; counted.len()];
        while !*stopped.borrow_and_update() {
            for (group, count) in counted.iter().zip(&mut counts) {
                assert_eq!(increment(&client, group).await, *count, "{group}");
                *count += 1;
            }
        }
        counts
    });
    fleets.extend(world.start_all(3..6).await);
    let settled = |fleet: &raft_fleet::Fleet| {
        let are_placed = groups.iter().all(|group| members(fleet, group) == places(fleet, group, 3));
        (fleet.nodes().len() == 6 && are_placed).then_some(())
    };
    eventually("groups are where six nodes want them", || settled(&fleets[0])).await;
    for node in ["n5", "n4", "n3"] {
        crate::harness::within("drained", fleets[0].drain(node)).await.unwrap();
    }
    let back = || groups.iter().all(|group| members(&fleets[0], group) == ["n0", "n1", "n2"]).then_some(());
    eventually("groups are where three nodes want them", back).await;
    stop.send(true).unwrap();
    let counts = counting.await.unwrap();
    for (group, count) in groups.iter().zip(counts) {
        assert_eq!(value(&fleets[1], group).await, count, "{group}: nothing lost, nothing doubled");
    }
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_side_reads_and_proposes() {
    let world = World::new(1, 1);
    let fleets = world.start_all(0..1).await;
    fleets[0].add_group::<Int>("g", 1).await.unwrap();
    let led = fleets[0].led::<Int>("g").unwrap();
    assert_eq!(led.propose(IntCommand::Increment).await.unwrap(), 0);
    assert_eq!(led.read(|value, _| raft_fleet::rafted_value::Value::query(value, ())), Some(1));
    assert_eq!(fleets[0].led_groups().len(), 1);
    assert!(fleets[0].led::<Int>("other").is_none());
    shutdown_all(fleets).await;
}
