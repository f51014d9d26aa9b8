//! The cluster group loses its majority for good, and what is left is brought back with its nodes stopped.

use raft_fleet::{
    ClusterRecovered, ClusterRecoveryPlan, ClusterReport, Fleet, NodeError, NodeFailure, OfflineError, RecoveryOutcome,
    cluster_report, plan_cluster_recovery, recover_cluster,
};

use crate::harness::{Int, World, eventually, increment, members, places, shutdown_all, start, value, within};

/// The reports of stopped nodes, as they come over a person's clipboard.
async fn reports(world: &World, nodes: &[usize]) -> Vec<ClusterReport> {
    let mut reports = Vec::new();
    for &node in nodes {
        let report = cluster_report(world.directory(node)).await.unwrap();
        assert_eq!(report.node(), world.name(node));
        reports.push(ClusterReport::from_text(&report.to_text()).unwrap());
    }
    reports
}

fn has_cluster_replica(fleet: &Fleet) -> bool {
    fleet.store().replicas().iter().any(|stored| stored.group == "cluster")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_lost_its_own_majority_goes_on_from_the_newest_copy_and_keeps_its_groups() {
    let world = World::new(3, 4).on_disk();
    let mut fleets = world.start_all(0..3).await;
    fleets.extend(world.start_all([3]).await);
    let voters = || {
        let voters: Vec<usize> = (0..4).filter(|&node| has_cluster_replica(&fleets[node])).collect();
        let names: Vec<_> = voters.iter().map(|&node| world.name(node)).collect();
        (fleets[0].nodes().len() == 4 && names == places(&fleets[0], "cluster", 3)).then_some(voters)
    };
    let voters = eventually("three voters, in their places", voters).await;
    fleets[0].add_group::<Int>("g", 3).await.unwrap();
    eventually("placed", || (members(&fleets[0], "g") == places(&fleets[0], "g", 3)).then_some(())).await;
    for count in 0..5 {
        assert_eq!(increment(&fleets[0], "g").await, count);
    }
    // One voter is left, and the node that does not vote.
    let of_group = members(&fleets[0], "g");
    let other = (0..4).find(|node| !voters.contains(node)).unwrap();
    let (left, lost) = ([voters[0], other], [voters[1], voters[2]]);
    shutdown_all(fleets).await;
    let majority = plan_cluster_recovery(&reports(&world, &voters[..2]).await);
    assert!(matches!(majority, Err(OfflineError::NoPlan(_))), "two of three can go on by themselves: {majority:?}");
    let given = reports(&world, &left).await;
    let plan = plan_cluster_recovery(&given).unwrap();
    assert!(plan.may_lose_acknowledged(), "{plan}");
    let plan = ClusterRecoveryPlan::from_text(&plan.to_text()).unwrap();
    let outsider = recover_cluster(world.directory(lost[0]), &plan).await;
    assert!(matches!(outsider, Err(OfflineError::NotInPlan { .. })), "{outsider:?}");
    assert_eq!(recover_cluster(world.directory(left[0]), &plan).await.unwrap(), ClusterRecovered::Chosen);
    assert_eq!(recover_cluster(world.directory(left[1]), &plan).await.unwrap(), ClusterRecovered::Follows);
    for node in left {
        assert_eq!(recover_cluster(world.directory(node), &plan).await.unwrap(), ClusterRecovered::AlreadyDone);
    }
    assert!(matches!(
        plan_cluster_recovery(&reports(&world, &[left[0], lost[0]]).await),
        Err(OfflineError::TwoClusters { .. })
    ));
    let mut fleets = world.start_all(left).await;
    assert_eq!(fleets[0].nodes().len(), 4, "it knows what the copy knew");
    // The lost keep their places until they are removed, or dead.
    for node in lost {
        let removed = async {
            while let Err(error) = fleets[0].remove_node(&world.name(node)).await {
                assert!(matches!(error, NodeError::InUse { .. }), "{error}");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        within("removed", removed).await;
    }
    eventually("the other one votes, too", || has_cluster_replica(&fleets[1]).then_some(())).await;
    // The group has a majority among the nodes that are left, or is recovered by the cluster group, which works again.
    let survivors = of_group.iter().filter(|name| left.iter().any(|&node| world.name(node) == **name)).count();
    if survivors < 2 {
        let plan = eventually_plan(&fleets[0]).await;
        let outcomes = within("recovered", fleets[0].recover(&plan)).await.unwrap();
        assert_eq!(outcomes, [("g".to_owned(), RecoveryOutcome::Recovered)]);
    }
    assert_eq!(value(&fleets[1], "g").await, 5);
    assert_eq!(increment(&fleets[0], "g").await, 5);
    // A node that was left out is told, and comes back as new once it was wiped.
    let returned = start(|| world.builder(lost[0])).await;
    let failure = within("refusal", returned.failed()).await;
    assert!(matches!(failure, NodeFailure::ForeignCluster { .. }), "{failure}");
    shutdown_all(vec![returned]).await;
    std::fs::remove_dir_all(world.directory(lost[0])).unwrap();
    let returned = start(|| world.builder(lost[0])).await;
    within("ready", returned.ready()).await.unwrap();
    fleets.push(returned);
    assert_eq!(increment(&fleets[2], "g").await, 6);
    shutdown_all(fleets).await;
}

async fn eventually_plan(fleet: &Fleet) -> raft_fleet::RecoveryPlan {
    let deadline = tokio::time::Instant::now() + crate::harness::DEADLINE;
    loop {
        let plan = fleet.recovery_plan().await.unwrap();
        if !plan.groups.is_empty() {
            return plan;
        }
        assert!(tokio::time::Instant::now() < deadline, "no plan: {plan}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_without_a_cluster_and_one_in_use_are_refused() {
    let empty = tempfile::tempdir().unwrap();
    assert!(cluster_report(empty.path()).await.is_err());
    let world = World::new(1, 1).on_disk();
    let fleets = world.start_all(0..1).await;
    assert!(cluster_report(world.directory(0)).await.is_err(), "it runs");
    shutdown_all(fleets).await;
    let report = cluster_report(world.directory(0)).await.unwrap();
    let twice = plan_cluster_recovery(&[report.clone(), report.clone()]);
    assert!(matches!(twice, Err(OfflineError::ReportedTwice { .. })), "{twice:?}");
    assert!(matches!(plan_cluster_recovery(&[report]), Err(OfflineError::NoPlan(_))), "it is all there");
}
