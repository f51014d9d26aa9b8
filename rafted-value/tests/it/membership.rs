//! Changes of members while links are cut: what is undone, what is refused, what never disturbs.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rafted_value::{Member, MembersError, ReplicaId, Role};

use crate::cluster::{Cluster, PATIENCE, eventually};

const THREE: [&str; 3] = ["n1", "n2", "n3"];

fn stranger() -> (ReplicaId, Member) {
    let member = Member { name: "n9".into(), node: 9, zone: String::new(), decided_at: 0, addresses: Vec::new() };
    (ReplicaId::random(), member)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_one_never_steps_down() {
    let cluster = Cluster::memory(&["n1"]).await;
    cluster.add("n1", 0).await.unwrap();
    let before = cluster.nodes["n1"].replica.status();
    // Far beyond the time after which a leader of several that hears nobody is called isolated.
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        cluster.add("n1", 1).await.unwrap();
        let status = cluster.nodes["n1"].replica.status();
        assert_eq!((status.role, status.term), (Role::Leader, before.term));
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overwritten_change_of_members_is_pending_no_more() {
    let cluster = Cluster::memory(&THREE).await;
    cluster.add("n1", 1).await.unwrap();
    let old = cluster.wait_leader().await;
    let replica = cluster.nodes[&old].replica.clone();
    let before = replica.status().members;
    cluster.hub.isolate(&old, &THREE);
    let (id, member) = stranger();
    let adding = replica.add_learner(id, member.clone(), before.position);
    assert!(tokio::time::timeout(Duration::from_millis(200), adding).await.is_err(), "nobody can have committed it");
    let pending = replica.status().members;
    assert!(!pending.committed && pending.replicas.contains_key(&id), "{pending:?}");
    let other = THREE.iter().find(|name| **name != old).unwrap();
    cluster.add(other, 2).await.unwrap();
    cluster.hub.heal();
    eventually("the change is undone", || {
        let now = replica.status().members;
        now.committed && !now.replicas.contains_key(&id) && now.voters == before.voters
    })
    .await;
    // The next change is not refused as if that one were under way.
    let leader = cluster.wait_leader().await;
    let leading = &cluster.nodes[&leader].replica;
    leading.add_learner(id, member, leading.status().members.position).await.unwrap();
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_cannot_raise_the_term() {
    let cluster = Cluster::memory(&THREE).await;
    cluster.add("n1", 1).await.unwrap();
    let leader = cluster.wait_leader().await;
    let removed = *THREE.iter().find(|name| **name != leader).unwrap();
    cluster.hub.isolate(removed, &THREE);
    let replica = &cluster.nodes[&leader].replica;
    let status = replica.status();
    let voters: BTreeSet<_> = status
        .members
        .voter_ids()
        .into_iter()
        .filter(|id| *id != cluster.nodes[removed].replica.spec().replica)
        .collect();
    replica.change_voters(voters, status.members.position, 0).await.unwrap();
    let term = replica.status().term;
    // It knows nothing of its removal, hears no leader, and asks for votes again and again.
    let asked = || THREE.iter().map(|other| cluster.hub.sent(removed, other)).sum::<u64>();
    let before = asked();
    cluster.hub.heal();
    eventually("it has asked often", || asked() >= before + 20).await;
    cluster.add(&leader, 2).await.unwrap();
    assert_eq!(replica.status().term, term);
    assert_eq!(replica.status().role, Role::Leader);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_done_change_is_finished_by_the_next_leader() {
    let mut cluster = Cluster::memory(&THREE).await;
    cluster.start("n4").await;
    cluster.add("n1", 1).await.unwrap();
    let old = cluster.wait_leader().await;
    let (id, member) = (cluster.nodes["n4"].replica.spec().replica, cluster.member("n4"));
    let replica = cluster.nodes[&old].replica.clone();
    replica.add_learner(id, member, replica.status().members.position).await.unwrap();
    eventually("it catches up", || cluster.local("n4") == [1]).await;
    let mut voters = replica.status().members.voter_ids();
    voters.insert(id);
    let position = replica.status().members.position;
    let changing = tokio::spawn(async move { replica.change_voters(voters, position, 0).await });
    let half = || cluster.nodes.values().find(|node| node.replica.status().members.is_joint());
    while !changing.is_finished() && half().is_none() {
        tokio::task::yield_now().await;
    }
    cluster.hub.isolate(&old, &["n1", "n2", "n3", "n4"]);
    let finish = async {
        loop {
            let leader =
                cluster.nodes.values().find(|node| node.name != old && node.replica.status().role == Role::Leader);
            if let Some(leader) = leader {
                let members = leader.replica.status().members;
                if members.committed && !members.is_joint() {
                    return members;
                }
                // It may have been finished, or the entry undone, meanwhile: look again.
                let _ = leader.replica.finish_joint(members.position).await;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let members = tokio::time::timeout(PATIENCE, finish).await.unwrap();
    assert!(members.voters.len() == 1 && (3..=4).contains(&members.voter_ids().len()), "{members:?}");
    changing.abort();
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_decided_before_one_that_was_taken_is_refused_by_every_later_leader() {
    let mut cluster = Cluster::memory(&THREE).await;
    cluster.start("n4").await;
    cluster.add("n1", 1).await.unwrap();
    let id = |cluster: &Cluster, name: &str| cluster.nodes[name].replica.spec().replica;
    let first = cluster.wait_leader().await;
    let leading = cluster.nodes[&first].replica.clone();
    let position = || leading.status().members.position;
    // A learner comes and goes: nobody who is left was added by a step.
    let learner = Member { decided_at: 10, ..cluster.member("n4") };
    leading.add_learner(id(&cluster, "n4"), learner, position()).await.unwrap();
    leading.remove_learner(id(&cluster, "n4"), position(), 20).await.unwrap();
    assert_eq!(leading.status().members.decided_at(), 20);
    // Any voter but the next leader goes, too, whichever of them carries the index.
    let others: Vec<_> = THREE.iter().filter(|name| **name != first).collect();
    let voters: BTreeSet<_> = [first.as_str(), others[0]].map(|name| id(&cluster, name)).into();
    leading.change_voters(voters.clone(), position(), 30).await.unwrap();
    eventually("the other voter knows", || cluster.nodes[*others[0]].replica.status().members.voter_ids() == voters)
        .await;
    leading.transfer_leader(id(&cluster, others[0])).await.unwrap();
    let second = cluster.nodes[*others[0]].replica.clone();
    eventually("the other leads", || second.status().role == Role::Leader && second.status().members.committed).await;
    let (position, outdated) = (second.status().members.position, |given| MembersError::Outdated { given, taken: 30 });
    let late = Member { decided_at: 29, ..cluster.member("n4") };
    let add = second.add_learner(id(&cluster, "n4"), late.clone(), position).await;
    assert_eq!(add, Err(outdated(29)));
    let remove = second.remove_learner(id(&cluster, "n4"), position, 0).await;
    assert_eq!(remove, Err(outdated(0)));
    let alone = BTreeSet::from([id(&cluster, others[0])]);
    assert_eq!(second.change_voters(alone.clone(), position, 20).await, Err(outdated(20)));
    // What was decided at the same index, or later, is taken.
    second.add_learner(id(&cluster, "n4"), Member { decided_at: 30, ..late }, position).await.unwrap();
    second.remove_learner(id(&cluster, "n4"), second.status().members.position, 30).await.unwrap();
    second.change_voters(alone, second.status().members.position, 31).await.unwrap();
    assert_eq!(second.status().members.decided_at(), 31);
    cluster.shutdown().await;
}
