//! Why a replica's id is never used twice: a replica leaves its node and comes back with an empty log, while a
//! member still lives in the old configuration, in which that node's replica votes.
//!
//! ```text
//! n1 (leads)  n2    n3    n4
//!   |---------|-----|           first members: n1 n2 n3; then n3 is cut off
//!   |               x     |     n2's replica is replaced by one on n4; an entry is committed by n1 and n4
//!   |         |     x     |     n2 has a replica again, empty; n1 and n4 do not reach it
//!             |<----|           n3 asks n2 for its vote: two of n1, n2, n3 would be enough
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use rafted_value::{Member, ReplicaId, Role, encode_query};

use crate::cluster::{Cluster, Journal, Query, eventually};

/// Requests that must have been turned away before it is said that they are.
const ENOUGH: u64 = 6;

async fn voters(cluster: &Cluster, leader: &str, voters: BTreeSet<ReplicaId>, at: u64) {
    let leader = &cluster.nodes[leader].replica;
    leader.change_voters(voters, leader.status().members.position, at).await.unwrap();
}

async fn learner(cluster: &Cluster, leader: &str, name: &str, at: u64) -> ReplicaId {
    let id = cluster.nodes[name].replica.spec().replica;
    let leader = &cluster.nodes[leader].replica;
    let member = Member { decided_at: at, ..cluster.member(name) };
    leader.add_learner(id, member, leader.status().members.position).await.unwrap();
    id
}

/// Up to the moment in which n3, of the old configuration, meets the replica that came back to n2.
/// Returns the cluster and the id that n2's replica had at first.
async fn until_the_replica_is_back() -> (Cluster, ReplicaId) {
    let mut cluster = Cluster::memory(&["n1", "n2", "n3"]).await;
    let id_of = |cluster: &Cluster, name: &str| cluster.nodes[name].replica.spec().replica;
    cluster.add("n1", 1).await.unwrap();
    eventually("all have it", || ["n1", "n2", "n3"].iter().all(|name| cluster.local(name) == [1])).await;
    cluster.lead("n1").await;
    cluster.hub.isolate("n3", &["n1", "n2", "n4"]);
    cluster.start("n4").await;
    let (n1, old, n3) = (id_of(&cluster, "n1"), id_of(&cluster, "n2"), id_of(&cluster, "n3"));
    let n4 = learner(&cluster, "n1", "n4", 1).await;
    eventually("the learner has it", || cluster.local("n4") == [1]).await;
    voters(&cluster, "n1", BTreeSet::from([n1, n3, n4]), 1).await;
    cluster.stop("n2").await;
    assert_eq!(cluster.add("n1", 2).await.unwrap(), 2, "committed by n1 and n4");
    // In memory, so that its store is a new one: this is what a replica that is created again finds.
    cluster.start("n2").await;
    for other in ["n1", "n4"] {
        cluster.hub.cut(other, "n2");
        cluster.hub.cut("n2", other);
    }
    (cluster, old)
}

/// n3 and n2 reach each other again, and nobody else.
fn mend(cluster: &Cluster) {
    cluster.hub.heal();
    for name in ["n2", "n3"] {
        for other in ["n1", "n4"] {
            cluster.hub.cut(other, name);
            cluster.hub.cut(name, other);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_left_and_came_back_does_not_vote_for_its_former_self() {
    let (mut cluster, _) = until_the_replica_is_back().await;
    let before = cluster.hub.strangers("n3", "n2");
    mend(&cluster);
    eventually("n3 asks for votes", || cluster.hub.strangers("n3", "n2") >= before + ENOUGH).await;
    assert_ne!(cluster.nodes["n3"].replica.status().role, Role::Leader);
    cluster.hub.heal();
    let back = learner(&cluster, "n1", "n2", 2).await;
    eventually("all have both", || ["n1", "n2", "n3", "n4"].iter().all(|name| cluster.local(name) == [1, 2])).await;
    let id_of = |name: &str| cluster.nodes[name].replica.spec().replica;
    let without_n4 = BTreeSet::from([id_of("n1"), back, id_of("n3")]);
    voters(&cluster, "n1", without_n4, 2).await;
    cluster.stop("n4").await;
    assert_eq!(cluster.add("n2", 3).await.unwrap(), 3);
    assert_eq!(cluster.all("n3").await.unwrap(), [1, 2, 3]);
    cluster.shutdown().await;
}

/// The same interleaving with the one thing changed that the test above relies on: it loses an acknowledged entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_an_id_used_twice_the_same_interleaving_would_undo_a_committed_entry() {
    let (cluster, old) = until_the_replica_is_back().await;
    cluster.hub.reuse_id("n2", old, cluster.nodes["n2"].replica.spec().replica);
    mend(&cluster);
    eventually("n3 leads by the empty log's vote", || cluster.nodes["n3"].replica.status().role == Role::Leader).await;
    let query = encode_query::<Journal>(&Query::All).unwrap();
    let answer = cluster.nodes["n3"].replica.read(query, Duration::from_secs(10)).await.unwrap();
    let read: Vec<i64> = rafted_value::decode_answer::<Journal>(&answer).unwrap();
    assert_eq!(read, [1], "a linearizable read without the entry that was acknowledged");
    cluster.shutdown().await;
}
