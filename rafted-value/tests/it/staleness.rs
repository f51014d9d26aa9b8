//! Reads with a bound on their age, from any member's own value.

use std::time::Duration;

use rafted_value::{NotHappened, QueryError, decode_answer, encode_query};

use crate::cluster::{Cluster, GROUP, Journal, PATIENCE, Query};

const THREE: [&str; 3] = ["n1", "n2", "n3"];
const HOUR: Duration = Duration::from_secs(3_600);

async fn read(cluster: &Cluster, at: &str, max: Duration, timeout: Duration) -> Result<Vec<i64>, QueryError> {
    let query = encode_query::<Journal>(&Query::All).unwrap();
    let answer = cluster.nodes[at].replica.read_with_staleness(query, max, timeout).await?;
    Ok(decode_answer::<Journal>(&answer).unwrap())
}

async fn a_follower(cluster: &Cluster) -> (String, String) {
    let leader = cluster.wait_leader().await;
    let follower = THREE.iter().find(|name| **name != leader).unwrap();
    (leader, (*follower).to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_staleness_every_member_answers_with_all_that_was_acknowledged() {
    let cluster = Cluster::memory(&THREE).await;
    for count in 1..=40 {
        cluster.add("n1", count).await.unwrap();
        for name in THREE {
            let read = read(&cluster, name, Duration::ZERO, PATIENCE).await.unwrap();
            assert_eq!(read.len() as i64, count, "at {name}");
        }
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_cut_off_answers_up_to_its_bound_and_not_beyond() {
    let cluster = Cluster::memory(&THREE).await;
    cluster.add("n1", 1).await.unwrap();
    let (leader, cut_off) = a_follower(&cluster).await;
    let error = {
        cluster.hub.isolate(&cut_off, &THREE);
        read(&cluster, &cut_off, HOUR, Duration::from_millis(100)).await.unwrap_err()
    };
    let is_stale = |error: &QueryError| matches!(error, QueryError::NotHappened(NotHappened::Stale { .. }));
    assert!(is_stale(&error) && error.is_retryable(), "without any proof: {error}");
    cluster.hub.heal();
    assert_eq!(read(&cluster, &cut_off, HOUR, PATIENCE).await.unwrap(), [1]);
    cluster.hub.isolate(&cut_off, &THREE);
    cluster.add(&leader, 2).await.unwrap();
    assert_eq!(read(&cluster, &cut_off, HOUR, Duration::ZERO).await.unwrap(), [1], "old, and young enough");
    let error = read(&cluster, &cut_off, Duration::from_millis(1), Duration::from_millis(200)).await.unwrap_err();
    assert!(is_stale(&error), "{error}");
    // Any member will do for a client: one that can prove it answers in place of the one that cannot.
    let query = encode_query::<Journal>(&Query::All).unwrap();
    cluster.hub.heal();
    cluster.hub.cut(&cut_off, &leader);
    let answer = cluster.client(&cut_off).query_with_staleness(GROUP, query, Duration::ZERO, PATIENCE).await.unwrap();
    assert_eq!(decode_answer::<Journal>(&answer).unwrap(), [1, 2]);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_share_a_proof_and_use_it_again() {
    let cluster = Cluster::memory(&THREE).await;
    cluster.add("n1", 1).await.unwrap();
    let (leader, follower) = a_follower(&cluster).await;
    read(&cluster, &follower, Duration::ZERO, PATIENCE).await.unwrap();
    let before = cluster.hub.sent(&follower, &leader);
    let many = (0..1_000).map(|_| read(&cluster, &follower, Duration::ZERO, PATIENCE));
    for answer in futures_util::future::join_all(many).await {
        assert_eq!(answer.unwrap(), [1]);
    }
    let rounds = cluster.hub.sent(&follower, &leader) - before;
    assert!((1..200).contains(&rounds), "{rounds} rounds for 1,000 queries");
    let before = cluster.hub.sent(&follower, &leader);
    for _ in 0..100 {
        assert_eq!(read(&cluster, &follower, HOUR, Duration::ZERO).await.unwrap(), [1]);
    }
    assert_eq!(cluster.hub.sent(&follower, &leader), before, "the proof is young enough");
    cluster.shutdown().await;
}
