//! Groups that lose their majority: listed, planned for, recovered by a person's word, and fenced.

use std::time::Duration;

use raft_fleet::{Absence, Fleet, FleetEvent, GroupState, LeaderlessGroup, RecoveryOutcome, RecoveryPlan};

use crate::harness::{
    DEADLINE, Int, IntCommand, World, eventually, increment, members, places, shutdown_all, value, within,
};

/// Five nodes on disk, and a group of three on them that has counted to ten.
async fn counted(world: &World) -> Vec<Fleet> {
    let fleets = world.start_all(0..5).await;
    fleets[0].add_group::<Int>("g", 3).await.unwrap();
    eventually("placed", || (members(&fleets[0], "g") == places(&fleets[0], "g", 3)).then_some(())).await;
    for count in 0..10 {
        assert_eq!(increment(&fleets[count as usize % 5], "g").await, count);
    }
    fleets
}

fn index_of(fleets: &[Fleet], name: &str) -> usize {
    fleets.iter().position(|fleet| fleet.name().as_str() == name).unwrap()
}

fn number(name: &str) -> usize {
    name[1..].parse().unwrap()
}

/// The nodes of the group's members: the one that stays, and the two that go; the cluster group keeps a majority.
async fn lose(fleets: &mut Vec<Fleet>, group: &str) -> (String, Vec<String>) {
    let mut placed = members(&fleets[0], group);
    let stays = placed.remove(0);
    for name in &placed {
        let gone = fleets.remove(index_of(fleets, name));
        within("shutdown", gone.shutdown()).await;
    }
    (stays, placed)
}

async fn leaderless(fleet: &Fleet, group: &str) -> LeaderlessGroup {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let found = fleet.leaderless_groups().await.into_iter().find(|leaderless| leaderless.name == group);
        if let Some(found) = found {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "{group} is not listed: {:?}", fleet.groups());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A plan that has the group in it.
async fn plan_of(fleet: &Fleet, group: &str) -> RecoveryPlan {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let plan = fleet.recovery_plan().await.unwrap();
        if plan.groups.iter().any(|planned| planned.group == group) {
            return plan;
        }
        assert!(tokio::time::Instant::now() < deadline, "there is no plan for {group}: {plan}; {:?}", fleet.groups());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn outcome(fleet: &Fleet, plan: &RecoveryPlan) -> RecoveryOutcome {
    let outcomes = within("recovery", fleet.recover(plan)).await.unwrap();
    assert_eq!(outcomes.len(), 1, "{outcomes:?}");
    outcomes[0].1.clone()
}

fn replicas_of(fleet: &Fleet, group: &str) -> Vec<(u64, u64)> {
    let stored = fleet.store().replicas().into_iter().filter(|stored| stored.group == group);
    stored.map(|stored| (stored.replica.get(), stored.incarnation)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_without_its_majority_waits_for_a_person_and_goes_on_with_all_that_its_survivor_had() {
    let world = World::new(5, 5).on_disk();
    let mut fleets = counted(&world).await;
    let mut events = fleets[0].events();
    let first = fleets[0].name().to_string();
    let old: Vec<u64> = fleets.iter().flat_map(|fleet| replicas_of(fleet, "g")).map(|(replica, _)| replica).collect();
    assert_eq!(old.len(), 3);
    let (stays, gone) = lose(&mut fleets, "g").await;
    let asked = &fleets[0];
    let found = leaderless(asked, "g").await;
    assert!(!found.is_majority_lost, "they may come back: {found:?}");
    let absent = |name: &str| found.members.iter().find(|(member, _)| member == name).unwrap().1;
    assert_eq!(absent(&stays), None);
    assert!(gone.iter().all(|name| absent(name) == Some(Absence::Unreachable)), "{found:?}");
    let plan = plan_of(asked, "g").await;
    let planned = &plan.groups[0];
    assert_eq!((&planned.chosen, &planned.survivors), (&stays, &vec![stays.clone()]));
    assert!(planned.may_lose_acknowledged, "two of three may have had more");
    assert!(planned.entries >= 11 && planned.fenced.len() == 2, "{plan}");
    // Looking changes nothing, and nothing happens by itself.
    let refused = asked.group::<Int>("g").command(IntCommand::Increment).timeout(Duration::from_millis(500)).await;
    assert!(refused.is_err());
    assert_eq!(asked.groups()[0].state, GroupState::Leaderless);
    let kept = RecoveryPlan::from_text(&plan.to_text()).unwrap();
    assert_eq!(outcome(asked, &kept).await, RecoveryOutcome::Recovered);
    assert_eq!(outcome(asked, &kept).await, RecoveryOutcome::AlreadyRecovered);
    assert_eq!(value(asked, "g").await, 10, "all that the survivor had");
    assert_eq!(increment(asked, "g").await, 10);
    if first == asked.name().as_str() {
        let told =
            async { while events.recv().await.unwrap() != (FleetEvent::GroupRecovered { group: "g".into() }) {} };
        within("told", told).await;
    }
    assert!(asked.recovery_plan().await.unwrap().is_empty());
    // The dead come back, a majority of what the group was: nobody hears their replicas.
    fleets.extend(world.start_all(gone.iter().map(|name| number(name))).await);
    for count in 11..20 {
        assert_eq!(increment(&fleets[count as usize % 5], "g").await, count);
    }
    let incarnation = fleets[0].groups()[0].incarnation;
    for name in &gone {
        let fleet = &fleets[index_of(&fleets, name)];
        let is_new = || {
            let replicas = replicas_of(fleet, "g");
            (replicas.len() == 1 && !old.contains(&replicas[0].0) && replicas[0].1 == incarnation).then_some(())
        };
        eventually("a new replica in place of the one that was given up", is_new).await;
    }
    eventually("back in its places", || (members(&fleets[0], "g") == places(&fleets[0], "g", 3)).then_some(())).await;
    // The members that it has now are enough without the survivor.
    let survivor = fleets.remove(index_of(&fleets, &stays));
    within("shutdown", survivor.shutdown()).await;
    assert_eq!(value(&fleets[0], "g").await, 20);
    assert_eq!(increment(&fleets[1], "g").await, 20);
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_is_refused_when_a_majority_came_back_or_another_plan_was_applied() {
    let world = World::new(5, 5).on_disk();
    let mut fleets = counted(&world).await;
    let (_, gone) = lose(&mut fleets, "g").await;
    let early = plan_of(&fleets[0], "g").await;
    fleets.extend(world.start_all([number(&gone[0])]).await);
    assert_eq!(increment(&fleets[0], "g").await, 10);
    let refused = outcome(&fleets[0], &early).await;
    assert!(matches!(refused, RecoveryOutcome::Outdated { .. }), "{refused}");
    assert_eq!(increment(&fleets[1], "g").await, 11);
    // It is lost again, with more entries than the first plan knows.
    let again = fleets.remove(index_of(&fleets, &gone[0]));
    within("shutdown", again.shutdown()).await;
    let late = plan_of(&fleets[0], "g").await;
    let refused = outcome(&fleets[1], &early).await;
    assert!(matches!(refused, RecoveryOutcome::Outdated { .. }), "{refused}");
    assert_eq!(outcome(&fleets[1], &late).await, RecoveryOutcome::Recovered);
    let refused = outcome(&fleets[0], &early).await;
    assert!(matches!(refused, RecoveryOutcome::Outdated { .. }), "{refused}");
    assert_eq!(value(&fleets[2], "g").await, 12);
    shutdown_all(fleets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_survivors_of_five_go_on_together() {
    let world = World::new(5, 7).on_disk();
    let fleets = world.start_all(0..7).await;
    fleets[0].add_group::<Int>("g", 5).await.unwrap();
    eventually("placed", || (members(&fleets[0], "g") == places(&fleets[0], "g", 5)).then_some(())).await;
    for count in 0..10 {
        assert_eq!(increment(&fleets[0], "g").await, count);
    }
    let placed = members(&fleets[0], "g");
    // The cluster group needs its own majority: only groups' members that it can spare go for good.
    let voters = members_of_cluster(&fleets).await;
    let spare: Vec<_> = placed.iter().filter(|name| !voters.contains(*name)).collect();
    let needed: Vec<_> = placed.iter().filter(|name| voters.contains(*name)).collect();
    let gone: Vec<String> = spare.into_iter().chain(needed).take(3).cloned().collect();
    let is_enough = voters.iter().filter(|name| !gone.contains(name)).count() * 2 > voters.len();
    assert!(is_enough, "{voters:?} without {gone:?}");
    let mut fleets = fleets;
    for name in &gone {
        let node = fleets.remove(index_of(&fleets, name));
        within("shutdown", node.shutdown()).await;
    }
    let plan = plan_of(&fleets[0], "g").await;
    assert_eq!(plan.groups[0].survivors.len(), 2, "{plan}");
    assert_eq!(outcome(&fleets[0], &plan).await, RecoveryOutcome::Recovered);
    assert_eq!(increment(&fleets[1], "g").await, 10);
    // Both are members, and both are needed.
    let incarnation = fleets[0].groups()[0].incarnation;
    for name in &plan.groups[0].survivors {
        let fleet = &fleets[index_of(&fleets, name)];
        assert_eq!(replicas_of(fleet, "g").iter().map(|(_, of)| *of).collect::<Vec<_>>(), [incarnation]);
    }
    shutdown_all(fleets).await;
}

/// The nodes that vote in the cluster group.
async fn members_of_cluster(fleets: &[Fleet]) -> Vec<String> {
    let has = |fleet: &&Fleet| !replicas_of(fleet, "cluster").is_empty();
    let voters = || {
        let voters: Vec<_> = fleets.iter().filter(has).map(|fleet| fleet.name().to_string()).collect();
        (voters.len() == 5).then_some(voters)
    };
    eventually("five voters", voters).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_of_another_cluster_is_refused_and_a_whole_fleet_has_nothing_to_plan() {
    let one = World::new(1, 1);
    let other = World::new(1, 1);
    let (a, b) = (one.start_all(0..1).await, other.start_all(0..1).await);
    a[0].add_group::<Int>("g", 1).await.unwrap();
    let plan = a[0].recovery_plan().await.unwrap();
    assert!(plan.is_empty(), "{plan}");
    assert!(a[0].leaderless_groups().await.is_empty());
    assert_eq!(a[0].recover(&plan).await, Ok(Vec::new()));
    assert!(matches!(b[0].recover(&plan).await, Err(raft_fleet::RecoverError::OtherCluster { .. })));
    shutdown_all(a).await;
    shutdown_all(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_slept_when_it_lost_its_majority_is_listed_although_nobody_waits_for_it() {
    let world = World::new(5, 5).on_disk().sleepy();
    let mut fleets = counted(&world).await;
    // Its leader, which stays, knows.
    let asleep = || {
        let leader = fleets[0].groups()[0].leader.clone()?.to_string();
        let sleeps = fleets[index_of(&fleets, &leader)].groups()[0].state == GroupState::Hibernating;
        sleeps.then_some(leader)
    };
    let leader = eventually("it sleeps", asleep).await;
    for name in members(&fleets[0], "g").iter().filter(|name| **name != leader) {
        let gone = fleets.remove(index_of(&fleets, name));
        within("shutdown", gone.shutdown()).await;
    }
    let found = leaderless(&fleets[0], "g").await;
    assert_eq!(found.members.iter().filter(|(_, absence)| absence.is_some()).count(), 2, "{found:?}");
    let plan = plan_of(&fleets[1], "g").await;
    assert_eq!(outcome(&fleets[1], &plan).await, RecoveryOutcome::Recovered);
    assert_eq!(increment(&fleets[0], "g").await, 10);
    shutdown_all(fleets).await;
}
