//! Whether a replica asks to be let in when it starts again, whatever its log says and whatever became of it meanwhile.

use std::time::Instant;

use batched_comm::{Endpoint, Identity, MemoryCa};
use tokio::task::JoinSet;

use super::*;
use crate::any_value::ValueFactory;
use crate::config::GroupConfig;
use crate::group::ReplicaSpec;
use crate::quic::{QuicTransport, serve};
use crate::replica::Replica;
use crate::status::Role;
use crate::store::Store;
use crate::value::Value;
use crate::wal::Position;

#[derive(Debug, Clone, PartialEq, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Count(u64);

impl Value for Count {
    type Command = ();
    type Reply = ();
    type Query = ();
    type Answer = u64;
    fn command(&mut self, (): ()) {
        self.0 += 1;
    }
    fn query(&self, (): ()) -> u64 {
        self.0
    }
}

const GROUP: &str = "count";
const DEADLINE: Duration = Duration::from_secs(20);

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn endpoint(ca: &MemoryCa, name: &str) -> Endpoint {
    Endpoint::bind(([127, 0, 0, 1], 0).into(), ca.issue(name).unwrap()).await.unwrap()
}

/// Lets a replica on `endpoint` in without a vote, and has it take the log; it neither asks nor looks after itself.
async fn take_log(leader: &Replica<Count>, store: &Store, endpoint: &Endpoint) -> ReplicaId {
    let replica = store.create_replica(GROUP, 0, Vec::new()).await.unwrap();
    let cluster = ClusterTag::default();
    let config = GroupConfig::default();
    let spec = ReplicaSpec { group: GROUP.into(), incarnation: 0, replica, cluster, config, is_alone: true };
    let mailbox = QuicTransport::mailbox_of(GROUP);
    let transport = Arc::new(QuicTransport::new(endpoint.clone(), &mailbox));
    let raw = UntypedReplica::start(store, spec, ValueFactory::of::<Count>(None), transport).await.unwrap();
    let mut tasks = JoinSet::new();
    serve(endpoint, &mailbox, Arc::new(raw.clone()), &mut tasks).unwrap();
    let addresses = vec![endpoint.local_address()];
    let member = Member { name: "n2".into(), node: 2, zone: String::new(), decided_at: 0, addresses };
    let leading = leader.untyped();
    leading.add_learner(replica, member, leading.status().members.position).await.unwrap();
    eventually("it has the log", || raw.status().applied == leading.status().applied).await;
    tasks.shutdown().await;
    raw.shutdown().await;
    replica
}

/// What became of a replica while it was down, and what it does then.
struct Case {
    name: &'static str,
    /// Its log ends before its admission.
    lacks_admission: bool,
    /// That it was let in is written down.
    is_noted: bool,
    is_removed: bool,
    ends_as: Role,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_was_removed_does_not_come_back_by_itself() {
    let case = |name, lacks_admission, is_noted, is_removed, ends_as| Case {
        name,
        lacks_admission,
        is_noted,
        is_removed,
        ends_as,
    };
    let table = [
        case("its log has others only, it was never let in", true, false, true, Role::Follower),
        case("its log has others only, it was let in and removed", true, true, true, Role::Removed),
        case("its log has itself without a vote, and so has the group", false, false, false, Role::Follower),
        case("its log has itself without a vote, it was removed", false, false, true, Role::Removed),
        case("the same, and its admission is written down", false, true, true, Role::Removed),
    ];
    for case in table {
        comes_to(case).await;
    }
}

async fn comes_to(case: Case) {
    let ca = Identity::in_memory_ca().unwrap();
    let (one, two) = (endpoint(&ca, "n1").await, endpoint(&ca, "n2").await);
    let (store, other) = (Store::memory("n1"), Store::memory("n2"));
    let leader = Replica::<Count>::builder(GROUP).member("n1", one.local_address()).start(&store, &one).await.unwrap();
    leader.command(()).await.unwrap();
    let (n2, addresses) = (two.name().clone(), vec![two.local_address()]);
    one.set_peer(&n2, addresses);
    two.set_peer(&one.name().clone(), vec![one.local_address()]);
    let replica = take_log(&leader, &other, &two).await;
    if case.is_removed {
        leader.remove_member("n2").timeout(DEADLINE).await.unwrap();
    }
    if case.lacks_admission {
        let entries = other.wal().read(replica.get(), 0..u64::MAX, usize::MAX).unwrap();
        // The last one is its admission.
        let [.., before, _] = &entries[..] else { panic!("{entries:?}") };
        let (term, index) = (before.term, before.index);
        other.wal().save_committed(replica.get(), Position { term, index });
        other.wal().truncate_after(replica.get(), Some(index));
    }
    if case.is_noted {
        other.note_admitted(replica).await.unwrap();
    }
    let again =
        Replica::<Count>::builder(GROUP).join_through("n1", one.local_address()).start(&other, &two).await.unwrap();
    eventually(case.name, || again.status().role == case.ends_as).await;
    if case.ends_as == Role::Removed {
        assert_eq!(leader.status().members.replicas.len(), 1, "{}: it came back meanwhile", case.name);
    } else {
        assert_eq!(again.status().replica, replica);
        eventually(case.name, || again.status().members.is_voter(replica)).await;
    }
    again.shutdown().await;
    leader.shutdown().await;
    two.shutdown().await;
    one.shutdown().await;
}
