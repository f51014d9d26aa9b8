//! A member whose directory was put back from an older copy never takes part again; one that only restarted does.

use std::path::Path;
use std::time::Duration;

use batched_comm::Endpoint;
use rafted_value::{CommandError, GroupConfig, NotHappened, Replica, Role, Store, StoreError};

use crate::cluster::{Command, Journal, PATIENCE, eventually};
use crate::site::{Node, Site};

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A copy of a node's directory, kept beside.
fn back_up(site: &Site, name: &str) {
    let dir = site.dir(name).unwrap();
    copy(&dir, &dir.with_extension("copy"));
}

fn put_back(site: &Site, name: &str) {
    let dir = site.dir(name).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    copy(&dir.with_extension("copy"), &dir);
}

/// Starts a node again that knows the members from its log.
async fn restart(site: &mut Site, name: &str) {
    let through: Vec<_> = site.nodes.iter().map(|(name, node)| (name.clone(), node.address())).collect();
    site.start(name, |builder, _| match through.as_slice() {
        [] => builder.wait_to_be_added(),
        through => through.iter().fold(builder, |builder, (name, address)| builder.join_through(name, *address)),
    })
    .await;
}

async fn three() -> Site {
    let mut site = Site::durable();
    site.grow(&["n2", "n3"]).await;
    for n in 1..=3 {
        site.add("n1", n).await;
    }
    site
}

async fn applied(site: &Site, name: &str, count: usize) {
    let local = || site.replica(name).untyped().read_local(|journal: &Journal, _| journal.added.len());
    eventually("it has all", || local() == Some(count)).await;
}

async fn is_not_opened_again(dir: &Path, name: &str) {
    let deadline = std::time::Instant::now() + PATIENCE;
    let error = loop {
        match Store::open(dir, name).await {
            // Whoever wrote that it was rolled back has yet to let go.
            Err(StoreError::Locked { .. }) if std::time::Instant::now() < deadline => tokio::task::yield_now().await,
            opened => break opened.unwrap_err(),
        }
    };
    assert!(matches!(error, StoreError::RolledBack { .. }), "{error}");
}

async fn is_refused(mut site: Site, name: &str, expected: Vec<i64>) {
    eventually("it is refused", || site.node(name).role() == Role::RolledBack).await;
    let refused = site.replica(name).command(Command::Add(9)).await.unwrap_err();
    let says = |reason: &str| reason.contains("rolled back");
    assert!(
        matches!(&refused, CommandError::NotHappened(NotHappened::Stopped { reason, .. }) if says(reason)),
        "{refused}"
    );
    site.stop(name).await;
    let dir = site.dir(name).unwrap();
    is_not_opened_again(&dir, name).await;
    // As it is told: wiped, it joins as new, and has all.
    std::fs::remove_dir_all(&dir).unwrap();
    let through = site.nodes.keys().next().unwrap().clone();
    site.join(name, &through).await;
    assert_eq!(site.all(name).await, expected);
    site.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_from_before_its_last_start_is_refused() {
    let mut site = three().await;
    site.stop("n3").await;
    back_up(&site, "n3");
    restart(&mut site, "n3").await;
    site.add("n3", 4).await;
    applied(&site, "n3", 4).await;
    site.stop("n3").await;
    put_back(&site, "n3");
    restart(&mut site, "n3").await;
    is_refused(site, "n3", vec![1, 2, 3, 4]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_refused_also_after_it_was_started_often_while_nobody_could_be_asked() {
    let mut site = three().await;
    site.stop("n3").await;
    back_up(&site, "n3");
    restart(&mut site, "n3").await;
    // Before, nobody may have heard of this start, and nothing of it is lost with the copy.
    eventually("it takes part", || site.node("n3").role() == Role::Follower).await;
    site.stop("n3").await;
    put_back(&site, "n3");
    for _ in 0..3 {
        // Its boot number is soon above the one that the others know.
        let store = site.store("n3").await;
        store.close().await;
    }
    restart(&mut site, "n3").await;
    is_refused(site, "n3", vec![1, 2, 3]).await;
}

/// Its start is newer than any that the others have seen: only the leader knows that it had more entries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_taken_while_it_ran_is_refused_by_the_leader() {
    let mut site = three().await;
    let leader = site.leader().await;
    let name = ["n1", "n2", "n3"].into_iter().find(|name| *name != leader).unwrap();
    applied(&site, name, 3).await;
    back_up(&site, name);
    site.add(&leader, 4).await;
    applied(&site, name, 4).await;
    site.stop(name).await;
    put_back(&site, name);
    restart(&mut site, name).await;
    assert_eq!(site.leader().await, leader, "it is the same leader that knows it");
    is_refused(site, name, vec![1, 2, 3, 4]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_only_restart_serve_with_one_down_and_when_all_restart() {
    let mut site = three().await;
    site.stop("n1").await;
    site.stop("n2").await;
    restart(&mut site, "n2").await;
    assert_eq!(site.add("n2", 4).await, 4, "two of three");
    site.stop("n3").await;
    site.stop("n2").await;
    for name in ["n1", "n2", "n3"] {
        restart(&mut site, name).await;
    }
    assert_eq!(site.add("n1", 5).await, 5);
    for name in ["n1", "n2", "n3"] {
        assert_eq!(site.all(name).await, [1, 2, 3, 4, 5], "{name}");
    }
    site.shutdown().await;
}

/// The leader tells it where it is: all that its log names are gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_finds_back_into_a_group_whose_other_members_were_all_replaced() {
    let mut site = three().await;
    let address = site.node("n3").address();
    site.stop("n3").await;
    site.join("n4", "n1").await;
    site.join("n5", "n4").await;
    site.replica("n4").replace_leader(Some("n4")).timeout(PATIENCE).await.unwrap();
    for name in ["n1", "n2"] {
        site.replica("n4").remove_member(name).timeout(PATIENCE).await.unwrap();
        site.stop(name).await;
    }
    // At the same address, and told of nobody.
    let endpoint = Endpoint::bind(address, site.identity("n3")).await.unwrap();
    let store = site.store("n3").await;
    let builder = Replica::<Journal>::builder("journal").config(GroupConfig::default()).wait_to_be_added();
    let replica = builder.start(&store, &endpoint).await.unwrap();
    site.nodes.insert("n3".into(), Node { endpoint, store, replica });
    applied(&site, "n3", 3).await;
    site.add("n3", 4).await;
    assert_eq!(site.all("n3").await, [1, 2, 3, 4]);
    site.shutdown().await;
}

/// Nobody else could say anything: it waits for the one that can, and then serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_takes_part_once_the_other_is_there() {
    let mut site = Site::durable();
    site.grow(&["n2"]).await;
    site.add("n1", 1).await;
    site.stop("n1").await;
    site.stop("n2").await;
    restart(&mut site, "n2").await;
    let early = site.replica("n2").command(Command::Add(2)).timeout(Duration::from_millis(500)).await;
    assert!(early.is_err() && site.node("n2").role() == Role::Returning, "{early:?}");
    restart(&mut site, "n1").await;
    assert_eq!(site.add("n2", 3).await as usize, site.all("n1").await.len());
    site.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_restarts_before_it_is_added_is_added() {
    let mut site = Site::durable();
    site.grow(&["n2"]).await;
    site.add("n1", 1).await;
    site.start("n3", |builder, _| builder.wait_to_be_added()).await;
    site.stop("n3").await;
    site.start("n3", |builder, _| builder.wait_to_be_added()).await;
    let address = site.node("n3").address();
    site.replica("n1").add_member("n3", address).timeout(PATIENCE).await.unwrap();
    assert_eq!(site.all("n3").await, [1]);
    site.shutdown().await;
}

/// When the copy was taken, there was nobody else: only who it is told of now, or meets, can say what came later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_from_when_it_was_alone_is_refused() {
    let mut site = Site::durable();
    site.grow(&[]).await;
    site.add("n1", 1).await;
    site.stop("n1").await;
    back_up(&site, "n1");
    site.start("n1", |builder, own| builder.member("n1", own)).await;
    for name in ["n2", "n3"] {
        site.join(name, "n1").await;
    }
    // Else the first half of the change still needs n1.
    let is_settled = || {
        let members = site.replica("n2").status().members;
        members.voter_ids().len() == 3 && members.committed && !members.is_joint()
    };
    eventually("all three vote", is_settled).await;
    site.replica("n1").replace_leader(Some("n2")).timeout(PATIENCE).await.unwrap();
    site.stop("n1").await;
    site.add("n2", 2).await;
    put_back(&site, "n1");
    restart(&mut site, "n1").await;
    is_refused(site, "n1", vec![1, 2]).await;
}

/// The only other member that is up led when it had more, and no majority confirms that it still does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_refused_by_a_leader_that_has_no_majority_without_it() {
    let mut site = three().await;
    let leader = site.leader().await;
    let others: Vec<_> = ["n1", "n2", "n3"].into_iter().filter(|name| *name != leader).collect();
    let (down, name) = (others[0], others[1]);
    applied(&site, name, 3).await;
    back_up(&site, name);
    site.stop(down).await;
    // On the leader and on this one alone.
    site.add(&leader, 4).await;
    applied(&site, name, 4).await;
    site.stop(name).await;
    put_back(&site, name);
    restart(&mut site, name).await;
    eventually("it is refused", || site.node(name).role() == Role::RolledBack).await;
    restart(&mut site, down).await;
    is_refused(site, name, vec![1, 2, 3, 4]).await;
}

/// A directory is one: what the members of one group know ends the replicas of all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_group_knows_of_a_directory_holds_for_all_its_groups() {
    let mut site = three().await;
    let own = site.node("n3").address();
    let other = |own| Replica::<Journal>::builder("other").member("n3", own);
    let node = site.node("n3");
    let replica = other(own).start(&node.store, &node.endpoint).await.unwrap();
    replica.command(Command::Add(1)).timeout(PATIENCE).await.unwrap();
    replica.shutdown().await;
    site.stop("n3").await;
    back_up(&site, "n3");
    restart(&mut site, "n3").await;
    site.add("n3", 4).await;
    site.stop("n3").await;
    put_back(&site, "n3");
    restart(&mut site, "n3").await;
    let node = site.node("n3");
    // This group has nobody else who could know.
    match other(own).start(&node.store, &node.endpoint).await {
        Ok(replica) => eventually("it stops", || replica.status().role == Role::RolledBack).await,
        Err(error) => assert!(error.to_string().contains("rolled back"), "{error}"),
    }
    is_refused(site, "n3", vec![1, 2, 3, 4]).await;
}
