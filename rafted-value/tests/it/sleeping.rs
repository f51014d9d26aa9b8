//! Groups that sleep: what they cost, what wakes them, and what does not.

use std::time::Duration;

use rafted_value::{Role, UntypedReplica, encode_command};

use crate::cluster::{Cluster, Command, Journal, PATIENCE, eventually};

const THREE: [&str; 3] = ["n1", "n2", "n3"];
/// Several election timeouts, and longer than a leader may be silent before it is called isolated.
const LONG: Duration = Duration::from_millis(1_500);
const IDLE: Duration = Duration::from_millis(50);

fn replica<'a>(cluster: &'a Cluster, name: &str) -> &'a UntypedReplica {
    &cluster.nodes[name].replica
}

fn sent(cluster: &Cluster) -> u64 {
    THREE
        .iter()
        .flat_map(|from| THREE.iter().map(move |to| (from, to)))
        .map(|(from, to)| cluster.hub.sent(from, to))
        .sum()
}

fn terms(cluster: &Cluster) -> Vec<u64> {
    cluster.nodes.values().map(|node| node.replica.status().term).collect()
}

/// Lets the group sleep, but for `without`; answers who leads.
async fn put_to_sleep(cluster: &Cluster, without: &[&str]) -> String {
    let leader = cluster.wait_leader().await;
    let is_asleep = || {
        let Some(rest) = replica(cluster, &leader).at_rest(IDLE) else { return false };
        let missing: Vec<_> = rest.others.iter().filter(|(id, _)| rest.lagging.contains(id)).collect();
        if missing.iter().any(|(_, name)| !without.contains(&name.as_str())) {
            return false;
        }
        let others = rest.others.iter().filter(|(_, name)| !without.contains(&name.as_str()));
        let agreed = others.map(|(_, name)| replica(cluster, name).follow_to_sleep(rest.leader, rest.term, rest.last));
        agreed.filter(|agrees| !agrees).count() == 0 && replica(cluster, &leader).fall_asleep(&rest)
    };
    eventually("the group sleeps", is_asleep).await;
    leader
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sleeping_group_says_nothing_and_its_leader_leads_on() {
    let cluster = Cluster::memory(&THREE).await;
    cluster.add("n1", 1).await.unwrap();
    let leader = put_to_sleep(&cluster, &[]).await;
    let (before, term) = (sent(&cluster), terms(&cluster));
    // That nothing happens takes its time.
    tokio::time::sleep(LONG).await;
    assert_eq!(sent(&cluster), before);
    assert_eq!(terms(&cluster), term);
    let status = replica(&cluster, &leader).status();
    assert_eq!((status.role, status.is_asleep, status.unresponsive.len()), (Role::Leader, true, 0));
    assert!(replica(&cluster, &leader).wake());
    let status = replica(&cluster, &leader).status();
    assert_eq!((status.role, status.is_asleep, status.unresponsive.len()), (Role::Leader, false, 0));
    tokio::time::sleep(LONG).await;
    assert_eq!(terms(&cluster), term, "its members still sleep, and hear it");
    assert_eq!(replica(&cluster, &leader).status().role, Role::Leader);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_leaves_a_group_asleep_and_a_command_wakes_it_without_an_election() {
    let cluster = Cluster::memory(&THREE).await;
    cluster.add("n1", 1).await.unwrap();
    let leader = put_to_sleep(&cluster, &[]).await;
    tokio::time::sleep(LONG).await;
    let term = terms(&cluster);
    for name in THREE {
        assert_eq!(cluster.all(name).await.unwrap(), [1]);
    }
    assert!(THREE.iter().all(|name| replica(&cluster, name).is_asleep()), "a query needs a round of heartbeats only");
    let other = THREE.into_iter().find(|name| *name != leader).unwrap();
    // Not refused because of old answers: that would cost the caller a pause, and the next heartbeat.
    let bytes = encode_command::<Journal>(&Command::Add(2), None, 0).unwrap();
    replica(&cluster, &leader).propose(bytes, PATIENCE).await.unwrap();
    assert_eq!(cluster.add(other, 3).await.unwrap(), 3);
    eventually("all are awake", || THREE.iter().all(|name| !replica(&cluster, name).is_asleep())).await;
    tokio::time::sleep(LONG).await;
    assert_eq!(terms(&cluster), term);
    put_to_sleep(&cluster, &[]).await;
    assert_eq!(cluster.all("n2").await.unwrap(), [1, 2, 3]);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_after_the_question_keeps_a_leader_awake() {
    let cluster = Cluster::memory(&THREE).await;
    let leader = cluster.wait_leader().await;
    let leader = replica(&cluster, &leader);
    eventually("at rest", || leader.at_rest(IDLE).is_some()).await;
    assert!(leader.at_rest(Duration::from_secs(600)).is_none(), "not for so long");
    let rest = leader.at_rest(IDLE).unwrap();
    cluster.add("n1", 1).await.unwrap();
    assert!(!leader.fall_asleep(&rest) && !leader.is_asleep());
    assert!(leader.at_rest(IDLE).is_none(), "something has just happened");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_wakes_alone_deposes_nobody_and_wakes_its_leader() {
    let cluster = Cluster::memory(&THREE).await;
    cluster.add("n1", 1).await.unwrap();
    let leader = put_to_sleep(&cluster, &[]).await;
    tokio::time::sleep(LONG).await;
    let term = terms(&cluster);
    let other = THREE.into_iter().find(|name| *name != leader).unwrap();
    assert!(replica(&cluster, other).wake());
    replica(&cluster, other).elect().await;
    eventually("the leader wakes", || !replica(&cluster, &leader).is_asleep()).await;
    tokio::time::sleep(LONG).await;
    assert_eq!(terms(&cluster), term);
    put_to_sleep(&cluster, &[]).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_whose_leader_is_gone_elect_another_once_they_are_woken() {
    let mut cluster = Cluster::memory(&THREE).await;
    cluster.add("n1", 1).await.unwrap();
    let leader = put_to_sleep(&cluster, &[]).await;
    cluster.stop(&leader).await;
    let left: Vec<_> = cluster.names();
    let before = terms(&cluster);
    tokio::time::sleep(LONG).await;
    assert_eq!(terms(&cluster), before, "they sleep on");
    replica(&cluster, &left[0]).elect().await;
    tokio::time::sleep(LONG).await;
    assert_eq!(terms(&cluster), before, "the other one holds its leader alive");
    replica(&cluster, &left[1]).set_leader_gone(true);
    eventually("the other one is woken", || !replica(&cluster, &left[1]).is_asleep()).await;
    assert_eq!(cluster.add(&left[1], 2).await.unwrap(), 2);
    assert!(terms(&cluster).iter().all(|term| *term > before[0]));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_sleeps_without_a_member_that_is_gone_and_gives_it_all_when_it_is_back() {
    let cluster = Cluster::memory(&THREE).await;
    let leader = cluster.wait_leader().await;
    let gone = THREE.into_iter().find(|name| *name != leader).unwrap();
    cluster.hub.isolate(gone, &THREE);
    let here = THREE.into_iter().find(|name| *name != gone).unwrap();
    cluster.add(here, 1).await.unwrap();
    let leader = put_to_sleep(&cluster, &[gone]).await;
    let id = replica(&cluster, gone).spec().replica;
    let mut before = sent(&cluster);
    // What was under way comes to its end; then nobody is tried again and again.
    let is_quiet = || {
        let now = sent(&cluster);
        std::mem::replace(&mut before, now) == now
    };
    eventually("nobody is tried", is_quiet).await;
    assert!(replica(&cluster, &leader).is_asleep());
    cluster.hub.heal();
    replica(&cluster, &leader).wake();
    replica(&cluster, &leader).retry_members([id]).await;
    eventually("it has all", || cluster.local(gone) == [1]).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_may_sleep_from_its_start_on() {
    let mut cluster = Cluster::durable(&THREE, Default::default()).await;
    cluster.add("n1", 1).await.unwrap();
    for name in THREE {
        cluster.stop(name).await;
    }
    for name in THREE {
        cluster.start(name).await;
        replica(&cluster, name).doze();
    }
    tokio::time::sleep(LONG).await;
    assert!(cluster.leader().is_none() && THREE.iter().all(|name| replica(&cluster, name).is_asleep()));
    replica(&cluster, "n1").wake();
    assert_eq!(cluster.add("n3", 2).await.unwrap(), 2);
    cluster.shutdown().await;
}
