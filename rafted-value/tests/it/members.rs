//! Members come and go, from whichever member it is asked, over the real transport.

use std::future::IntoFuture;
use std::time::Duration;

use rafted_value::{
    CommandError, DeleteError, GroupConfig, MAX_OPEN_SERIALS, MembershipError, NotHappened, QueryError, Replica, Role,
    StartError,
};

use crate::cluster::{Command, Journal, PATIENCE, Query, eventually};
use crate::site::Site;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_starts_alone_and_others_join_through_any_member() {
    let mut site = Site::memory();
    site.start("n1", |builder, own| builder.member("n1", own)).await;
    assert_eq!(site.add("n1", 1).await, 1);
    site.join("n2", "n1").await;
    // Through a member that does not lead, and the only one it is told of.
    site.join("n3", "n2").await;
    for name in ["n1", "n2", "n3"] {
        eventually("all know all", || site.node(name).members() == ["n1", "n2", "n3"]).await;
        site.add(name, 2).await;
        assert_eq!(site.all(name).await[0], 1);
    }
    // The others do without the first, which is where all addresses were told.
    site.stop("n1").await;
    site.add("n2", 3).await;
    assert_eq!(site.all("n3").await, [1, 2, 2, 2, 3]);
    site.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_node_is_added_from_any_member_and_only_once() {
    let mut site = Site::memory();
    site.grow(&["n2"]).await;
    site.start("n3", |builder, _| builder.wait_to_be_added()).await;
    let address = site.node("n3").address();
    let adding = site.replica("n2").add_member("n3", address).timeout(PATIENCE);
    adding.await.unwrap();
    eventually("it votes", || site.node("n3").is_voter()).await;
    let again = site.replica("n1").add_member("n3", address).timeout(PATIENCE).await;
    assert_eq!(again, Err(MembershipError::AlreadyJoined { name: "n3".into() }));
    let nobody = ([127, 0, 0, 1], 9).into();
    let timeout = Duration::from_millis(300);
    let error = site.replica("n1").add_member("n4", nobody).timeout(timeout).await.unwrap_err();
    assert!(matches!(&error, MembershipError::Unresponsive { name, .. } if name == "n4"), "{error}");
    assert_eq!(site.node("n1").members(), ["n1", "n2", "n3"]);
    site.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_the_same_name_is_not_mixed_into_this_one() {
    let mut site = Site::memory();
    site.grow(&[]).await;
    site.add("n1", 1).await;
    site.start("n2", |builder, own| builder.member("n2", own)).await;
    site.add("n2", 2).await;
    let address = site.node("n2").address();
    let error = site.replica("n1").add_member("n2", address).timeout(PATIENCE).await.unwrap_err();
    assert!(error.to_string().contains("delete its data"), "{error}");
    assert_eq!((site.all("n1").await, site.all("n2").await), (vec![1], vec![2]));
    site.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_stops_says_so_and_joins_again_as_new() {
    let mut site = Site::durable();
    site.grow(&["n2", "n3"]).await;
    site.add("n1", 1).await;
    let kept = site.replica("n3").delete_data().await;
    assert!(matches!(kept, Err(DeleteError::NotRemoved { .. })), "a member's data is not deleted");
    site.replica("n2").remove_member("n3").timeout(PATIENCE).await.unwrap();
    eventually("it says so", || site.node("n3").role() == Role::Removed).await;
    let replica = site.replica("n3");
    let command = replica.command(Command::Add(2)).await.unwrap_err();
    assert!(
        matches!(&command, CommandError::NotHappened(NotHappened::Stopped { reason, .. }) if reason.contains("removed"))
    );
    let query = replica.query(Query::All).await.unwrap_err();
    assert!(matches!(query, QueryError::NotHappened(NotHappened::Stopped { .. })), "{query}");
    assert!(replica.query_any_member(Query::All).await.is_err());
    assert!(replica.remove_member("n1").await.is_err());
    assert_eq!(site.all("n1").await, [1], "the others go on");
    // It stays removed over a restart, until its data is deleted.
    site.stop("n3").await;
    let (store, endpoint) = (site.store("n3").await, site.endpoint("n3").await);
    let builder = || Replica::<Journal>::builder("journal").join_through("n1", site.node("n1").address());
    let refused = builder().start(&store, &endpoint).await.unwrap_err();
    let StartError::Removed { replica: old, .. } = refused else { panic!("{refused}") };
    store.remove_replica(old).await.unwrap();
    let replica = builder().start(&store, &endpoint).await.unwrap();
    assert_ne!(replica.status().replica, old);
    eventually("it votes", || replica.status().members.is_voter(replica.status().replica)).await;
    assert_eq!(replica.query(Query::All).await.unwrap(), [1]);
    // Removed once more, its data is deleted by the handle.
    site.replica("n1").remove_member("n3").timeout(PATIENCE).await.unwrap();
    eventually("it says so", || replica.status().role == Role::Removed).await;
    replica.delete_data().await.unwrap();
    assert!(store.replicas().is_empty());
    store.close().await;
    endpoint.shutdown().await;
    site.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_removed_while_it_was_down_hears_of_it() {
    let mut site = Site::durable();
    site.grow(&["n2", "n3"]).await;
    site.add("n1", 1).await;
    site.stop("n3").await;
    site.replica("n1").remove_member("n3").timeout(PATIENCE).await.unwrap();
    let term = site.replica("n1").status().term;
    // It is told again what it was told when it joined, and must not join once more.
    let address = site.node("n1").address();
    site.start("n3", |builder, _| builder.join_through("n1", address)).await;
    eventually("it says so", || site.node("n3").role() == Role::Removed).await;
    assert_eq!(site.replica("n1").status().term, term, "nor did it raise the term");
    assert_eq!(site.node("n1").members(), ["n1", "n2"]);
    site.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_strangers_and_the_quorum_are_not_removed() {
    let mut site = Site::memory();
    site.grow(&["n2", "n3"]).await;
    let leader = site.leader().await;
    let others: Vec<String> = site.nodes.keys().filter(|name| **name != leader).cloned().collect();
    let (down, up) = (&others[0], &others[1]);
    let asked = site.replica(up);
    let remove = |name: &str| asked.remove_member(name).timeout(PATIENCE);
    assert_eq!(remove(&leader).await, Err(MembershipError::IsLeader { name: leader.clone() }));
    let stranger = remove("n9").await;
    assert!(matches!(stranger, Err(MembershipError::NotMember { .. })), "{stranger:?}");
    site.stop(down).await;
    let status = || site.replica(&leader).status();
    let is_missed = || status().unresponsive.len() == 1;
    eventually("it is missed", is_missed).await;
    let (missed, silent_for) = status().unresponsive.pop_first().unwrap();
    assert_eq!(&status().members.replicas[&missed].name, down);
    assert!(silent_for.is_some_and(|silent| silent >= Duration::from_secs(1)), "{silent_for:?}");
    let error = site.replica(&leader).remove_member(up).timeout(PATIENCE).await.unwrap_err();
    assert!(matches!(error, MembershipError::WouldBreakQuorum { answering: 1, needed: 2, voters: 2 }), "{error}");
    site.replica(up).remove_member(down).timeout(PATIENCE).await.unwrap();
    site.add(up, 1).await;
    site.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_replaced_by_name_from_any_member() {
    let mut site = Site::memory();
    site.grow(&["n2", "n3"]).await;
    for name in ["n3", "n2", "n1", "n1"] {
        for asked in ["n1", "n2", "n3"] {
            site.replica(asked).replace_leader(Some(name)).timeout(PATIENCE).await.unwrap();
            eventually("it leads", || site.node(name).role() == Role::Leader).await;
        }
        site.add("n2", 1).await;
    }
    site.replica("n2").replace_leader(None).timeout(PATIENCE).await.unwrap();
    site.stop("n3").await;
    eventually("it is missed", || site.replica("n1").status().unresponsive.len() == 1).await;
    let error = site.replica("n2").replace_leader(Some("n3")).timeout(PATIENCE).await.unwrap_err();
    assert!(matches!(&error, MembershipError::Unresponsive { name, .. } if name == "n3"), "{error}");
    assert_eq!(site.node("n1").role(), Role::Leader);
    site.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_request_to_replace_the_leader_overrides_and_none_cancels() {
    let seconds = Duration::from_secs;
    // So slow that a stopped member is not yet called unresponsive: a request waits for it.
    let slow = GroupConfig::default().with_timing(Duration::from_millis(50), seconds(20), seconds(40)).unwrap();
    let mut site = Site::memory().with_config(slow);
    site.grow(&["n2", "n3"]).await;
    site.stop("n3").await;
    for n in 0..40 {
        site.add("n1", n).await;
    }
    let first = site.replica("n1").replace_leader(Some("n3")).timeout(PATIENCE).into_future();
    tokio::pin!(first);
    assert!(futures_util::poll!(&mut first).is_pending(), "it waits until that one has the entries");
    site.replica("n2").replace_leader(None).timeout(PATIENCE).await.unwrap();
    assert_eq!(first.await, Err(MembershipError::Superseded));
    assert_eq!(site.node("n1").role(), Role::Leader);
    let second = site.replica("n1").replace_leader(Some("n3")).timeout(PATIENCE).into_future();
    tokio::pin!(second);
    assert!(futures_util::poll!(&mut second).is_pending(), "it waits again");
    site.replica("n2").replace_leader(Some("n2")).timeout(PATIENCE).await.unwrap();
    assert!(second.await.is_err());
    assert_eq!(site.node("n2").role(), Role::Leader);
    let behind = site.replica("n1").replace_leader(Some("n3")).timeout(Duration::from_millis(300)).await;
    assert!(behind.is_err(), "it never gets the entries");
    site.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_moved_to_another_address_is_found() {
    let mut site = Site::durable();
    site.grow(&["n2", "n3"]).await;
    site.stop("n3").await;
    let through = site.node("n2").address();
    site.start("n3", |builder, _| builder.join_through("n2", through)).await;
    let now = site.node("n3").address();
    let known = |name: &str| {
        let members = site.replica(name).status().members;
        members.named("n3").is_some_and(|(_, member)| member.addresses == [now])
    };
    eventually("the members know where it is", || known("n1") && known("n2")).await;
    site.add("n3", 1).await;
    site.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_builder_that_is_told_nothing_or_two_things_does_not_start() {
    let mut site = Site::memory();
    site.grow(&[]).await;
    let (store, endpoint) = (site.store("n2").await, site.endpoint("n2").await);
    let address = endpoint.local_address();
    let builder = || Replica::<Journal>::builder("journal");
    for builder in [builder(), builder().member("n2", address).wait_to_be_added(), builder().member("n1", address)] {
        let refused = builder.start(&store, &endpoint).await.unwrap_err();
        assert!(matches!(refused, StartError::Invalid(_)), "{refused}");
    }
    endpoint.shutdown().await;
    site.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_waits_for_a_serial_no_longer_than_its_timeout() {
    let mut site = Site::memory();
    // Without the other one there is no leader, and commands stay open.
    site.start("n1", |builder, own| builder.member("n1", own).member("n2", ([127, 0, 0, 1], 1).into())).await;
    let command = |timeout| site.replica("n1").command(Command::Add(1)).timeout(timeout).into_future();
    let mut open: Vec<_> = (0..MAX_OPEN_SERIALS).map(|_| command(PATIENCE)).collect();
    for command in &mut open {
        assert!(futures_util::poll!(tokio::task::unconstrained(command)).is_pending());
    }
    let refused = tokio::time::timeout(PATIENCE, command(Duration::from_millis(50))).await.expect("its timeout holds");
    let queued = MAX_OPEN_SERIALS;
    assert_eq!(refused, Err(NotHappened::Overloaded { group: "journal".into(), queued }.into()));
    let change = site.replica("n1").change_config(GroupConfig::default()).timeout(Duration::from_millis(50));
    let refused = tokio::time::timeout(PATIENCE, change.into_future()).await.expect("its timeout holds");
    assert_eq!(refused, Err(NotHappened::Overloaded { group: "journal".into(), queued }.into()));
    drop(open);
    let refused = command(Duration::from_millis(50)).await;
    assert!(matches!(refused, Err(CommandError::NotHappened(NotHappened::NoLeader { .. }))), "{refused:?}");
    site.shutdown().await;
}

/// The one way in which a caller may ask again after an unknown outcome.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_under_its_callers_number_runs_once_however_often_it_is_asked_for() {
    let mut site = Site::memory();
    site.grow(&["n2", "n3"]).await;
    let replica = site.replica("n1");
    let number = replica.open_command(PATIENCE).await.unwrap();
    // Whoever gives up at once does not know.
    let hasty = replica.command(Command::Add(1)).once(&number).timeout(Duration::from_millis(1)).await;
    assert!(hasty.is_ok() || hasty.is_err_and(|error| error.is_unknown() || error.is_retryable()));
    for _ in 0..3 {
        assert_eq!(replica.command(Command::Add(1)).once(&number).timeout(PATIENCE).await.unwrap(), 1);
    }
    let other = replica.open_command(PATIENCE).await.unwrap();
    assert_eq!(replica.command(Command::Add(1)).once(&other).timeout(PATIENCE).await.unwrap(), 2, "another number");
    assert_eq!(site.all("n2").await, [1, 1]);
    site.shutdown().await;
}
