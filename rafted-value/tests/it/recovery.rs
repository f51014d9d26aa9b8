//! Unsafe recovery of groups that lost their majority: a plan from what survives, applied to stopped replicas.

use rafted_value::{PlanError, Recovered, RecoveryError, RecoveryReport, Role, plan_recovery};

use crate::cluster::{PATIENCE, eventually};
use crate::site::Site;

const NAMES: [&str; 7] = ["n1", "n2", "n3", "n4", "n5", "n6", "n7"];

/// What the stopped node of this name has of the group.
async fn report(site: &Site, name: &str) -> RecoveryReport {
    let store = site.store(name).await;
    let report = store.recovery_reports().await.unwrap().remove(0);
    store.close().await;
    report
}

/// Applies a plan on each of the nodes; how it went.
async fn recover(site: &Site, names: &[&str], reports: &[RecoveryReport]) -> Vec<Recovered> {
    let plan = plan_recovery(reports).unwrap();
    let mut outcomes = Vec::new();
    for name in names {
        let store = site.store(name).await;
        outcomes.push(store.recover(&plan).await.unwrap());
        store.close().await;
    }
    outcomes
}

/// A group of `count` loses all but the `survivors`, of which the last one has the newest log.
async fn loses_its_majority(count: usize, survivors: &[&str]) {
    let mut site = Site::durable();
    site.grow(&NAMES[1..count]).await;
    for n in 0..10 {
        site.add("n1", n).await;
    }
    let newest = *survivors.last().unwrap();
    for late in survivors.iter().filter(|name| **name != newest) {
        site.stop(late).await;
    }
    for n in 10..20 {
        site.add(newest, n).await;
    }
    let expected: Vec<i64> = (0..20).collect();
    let has_all = |site: &Site, name: &str| {
        let replica = site.replica(name).clone();
        replica
            .untyped()
            .read_local(|journal: &crate::cluster::Journal, _| journal.added == (0..20).collect::<Vec<i64>>())
    };
    eventually("the newest has all", || has_all(&site, newest) == Some(true)).await;
    for name in &NAMES[..count] {
        if site.nodes.contains_key(*name) {
            site.stop(name).await;
        }
    }
    let mut reports = Vec::new();
    for name in survivors {
        reports.push(report(&site, name).await);
    }
    let plan = plan_recovery(&reports).unwrap();
    assert_eq!(plan.members[&plan.chosen].name, newest);
    assert_eq!(plan.lost.len(), count - survivors.len());
    assert!(recover(&site, survivors, &reports).await.iter().all(|outcome| *outcome == Recovered::Done));
    assert!(recover(&site, survivors, &reports).await.iter().all(|outcome| *outcome == Recovered::AlreadyDone));
    let mut through = None;
    for name in survivors {
        let known = through;
        site.start(name, |builder, _| match known {
            Some((name, address)) => builder.join_through(name, address),
            None => builder.wait_to_be_added(),
        })
        .await;
        through = Some((*name, site.node(name).address()));
    }
    for name in survivors {
        assert_eq!(site.all(name).await, expected, "at {name}");
    }
    site.add(newest, 20).await;
    let mut kept: Vec<_> = survivors.to_vec();
    kept.sort_unstable();
    assert_eq!(site.node(newest).members(), kept);
    the_lost_come_back(site, count, survivors, expected).await;
}

/// The nodes that were given up start with what they had: they are set aside, and join as new without it.
async fn the_lost_come_back(mut site: Site, count: usize, survivors: &[&str], mut expected: Vec<i64>) {
    let through = survivors[0];
    let address = site.node(through).address();
    let lost: Vec<&str> = NAMES[..count].iter().filter(|name| !survivors.contains(name)).copied().collect();
    for name in &lost {
        site.start(name, |builder, _| builder.join_through(through, address)).await;
    }
    // They are a majority of the old members, and may well elect a leader among themselves.
    for name in &lost {
        eventually("it is set aside", || site.node(name).role() == Role::Removed).await;
        assert!(site.replica(name).command(crate::cluster::Command::Add(99)).await.is_err());
    }
    expected.push(20);
    assert_eq!(site.all(through).await, expected);
    let again = lost[0];
    site.replica(again).delete_data().await.unwrap();
    site.stop(again).await;
    site.join(again, through).await;
    assert_eq!(site.all(again).await, expected);
    site.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_recovers() {
    loses_its_majority(3, &["n3"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_of_three_recovers() {
    loses_its_majority(3, &["n1"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_five_recover_from_the_newer_log() {
    loses_its_majority(5, &["n2", "n4"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_of_seven_recover_from_the_newest_log() {
    loses_its_majority(7, &["n6", "n1", "n3"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_or_can_go_on_by_itself_is_not_recovered() {
    let mut site = Site::durable();
    site.grow(&["n2", "n3"]).await;
    site.add("n1", 1).await;
    site.stop("n2").await;
    let mut reports = vec![report(&site, "n2").await];
    let running = &site.node("n1").store;
    let plan = plan_recovery(&running.recovery_reports().await.unwrap()).unwrap();
    assert!(matches!(running.recover(&plan).await, Err(RecoveryError::Running { .. })));
    site.stop("n1").await;
    reports.push(report(&site, "n1").await);
    assert!(matches!(plan_recovery(&reports), Err(PlanError::MajoritySurvives { survivors: 2, voters: 3, .. })));
    // A plan from an old report is refused once the replica has gone on.
    let old = plan_recovery(&reports[..1]).unwrap();
    for name in ["n1", "n2"] {
        let known = site.nodes.get("n3").map(|node| node.address()).unwrap();
        site.start(name, |builder, _| builder.join_through("n3", known)).await;
    }
    site.replica("n2").command(crate::cluster::Command::Add(2)).timeout(PATIENCE).await.unwrap();
    site.stop("n2").await;
    let store = site.store("n2").await;
    assert!(matches!(store.recover(&old).await, Err(RecoveryError::Changed { .. })));
    store.close().await;
    site.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_waits_is_added_to_a_recovered_group() {
    let mut site = Site::durable();
    site.grow(&["n2"]).await;
    site.add("n1", 1).await;
    site.stop("n2").await;
    site.stop("n1").await;
    let reports = [report(&site, "n1").await];
    assert_eq!(recover(&site, &["n1"], &reports).await, [Recovered::Done]);
    site.start("n1", |builder, _| builder.wait_to_be_added()).await;
    // It knows of no group, nor that this one was recovered.
    site.start("n3", |builder, _| builder.wait_to_be_added()).await;
    let address = site.node("n3").address();
    site.replica("n1").add_member("n3", address).timeout(PATIENCE).await.unwrap();
    site.add("n3", 2).await;
    assert_eq!(site.all("n3").await, [1, 2]);
    // Also from its next start on.
    site.stop("n3").await;
    site.start("n3", |builder, _| builder.wait_to_be_added()).await;
    site.add("n3", 3).await;
    site.shutdown().await;
}
