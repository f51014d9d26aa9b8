//! What many callers ask for at once costs few messages.

use rafted_value::{decode_answer, encode_command, encode_query};

use crate::cluster::{Cluster, Command, Journal, PATIENCE, Query};

const THREE: [&str; 3] = ["n1", "n2", "n3"];
/// At the leader, a few rounds serve all that came before them; heartbeats are counted, too.
const MAX_ROUNDS: u64 = 100;
const CLIENTS: i64 = 256;
/// Entries, the news that they are committed, and a heartbeat or two.
const MAX_APPENDS: u64 = 16;

/// What the leader has sent to the others, each.
fn sent(cluster: &Cluster, leader: &str) -> Vec<u64> {
    THREE.iter().filter(|name| **name != leader).map(|name| cluster.hub.sent(leader, name)).collect()
}

fn since(cluster: &Cluster, leader: &str, before: &[u64]) -> Vec<u64> {
    sent(cluster, leader).iter().zip(before).map(|(now, before)| now - before).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_share_rounds_of_heartbeats() {
    let cluster = Cluster::memory(&THREE).await;
    cluster.add("n1", 1).await.unwrap();
    let leader = cluster.wait_leader().await;
    let before = sent(&cluster, &leader);
    let replica = &cluster.nodes[&leader].replica;
    let query = encode_query::<Journal>(&Query::All).unwrap();
    for answer in futures_util::future::join_all((0..1_000).map(|_| replica.read(query.clone(), PATIENCE))).await {
        assert_eq!(decode_answer::<Journal>(&answer.unwrap()).unwrap(), [1]);
    }
    let rounds = since(&cluster, &leader, &before);
    let majority_was_asked = rounds.iter().any(|&rounds| rounds > 0);
    assert!(majority_was_asked && rounds.iter().all(|&rounds| rounds < MAX_ROUNDS), "{rounds:?} for 1,000 queries");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_many_clients_share_rounds_of_replication() {
    let cluster = Cluster::memory(&THREE).await;
    cluster.add("n1", 0).await.unwrap();
    let leader = cluster.wait_leader().await;
    let before = sent(&cluster, &leader);
    let replica = &cluster.nodes[&leader].replica;
    let command = |n| encode_command::<Journal>(&Command::Add(n), None, 0).unwrap();
    for outcome in futures_util::future::join_all((1..=CLIENTS).map(|n| replica.propose(command(n), PATIENCE))).await {
        outcome.unwrap();
    }
    let appends = since(&cluster, &leader, &before);
    assert_eq!(cluster.local(&leader).len() as i64, CLIENTS + 1);
    assert!(appends.iter().all(|&appends| appends <= MAX_APPENDS), "{appends:?} for {CLIENTS} commands");
    cluster.shutdown().await;
}
