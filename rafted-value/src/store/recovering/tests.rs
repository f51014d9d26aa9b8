//! Power is lost at each operation of the disk while a plan is applied: it is applied as a whole, or not at all.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::super::Surroundings;
use super::*;
use crate::disk::Disk;
use crate::disk::faulty::{Fault, FaultyDisk};
use crate::recovery::plan;
use crate::status::Member;
use crate::wal::{LogEntry, MIN_SEGMENT_BYTES, SnapshotPointer, WalConfig};

fn open(disk: &FaultyDisk) -> Result<Store, StoreError> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let config = WalConfig::default().with_segment_bytes(MIN_SEGMENT_BYTES);
    Store::open_in(Surroundings::system(), disk, PathBuf::from("/n1"), "n1".into(), |disk, dir| {
        Wal::open(disk, dir, config)
    })
}

async fn appended(store: &Store, replica: ReplicaId, entries: Vec<LogEntry>) {
    let (told, synced) = oneshot::channel();
    store.inner.wal.append(replica.get(), entries, Box::new(move |result| drop(told.send(result))));
    synced.await.unwrap().unwrap();
}

/// A store whose replica, one of three, has a vote in term 3 and ten entries.
async fn used() -> FaultyDisk {
    let disk = FaultyDisk::default();
    let store = open(&disk).unwrap();
    let replica = store.create_replica("g", 0, b"detail".to_vec()).await.unwrap();
    let member =
        |n: u64| Member { name: format!("n{n}"), node: n, zone: String::new(), decided_at: 0, addresses: Vec::new() };
    let ids = [replica.get(), 2, 3];
    let nodes: BTreeMap<u64, Member> = ids.into_iter().zip(1..).map(|(id, n)| (id, member(n))).collect();
    let membership = Membership::new(vec![ids.into()], nodes).unwrap();
    let first = encode_payload(&openraft::EntryPayload::Membership(membership));
    let blank = encode_payload(&openraft::EntryPayload::Blank);
    let entries = (0..10).map(|index| LogEntry {
        term: 1,
        index,
        payload: if index == 0 { first.clone() } else { blank.clone() },
    });
    appended(&store, replica, entries.collect()).await;
    store.inner.wal.save_committed(replica.get(), Position { term: 1, index: 7 });
    let (told, synced) = oneshot::channel();
    let vote = VoteRecord { term: 3, voted_for: 2, committed: true };
    store.inner.wal.save_vote(replica.get(), vote, Box::new(move |result| drop(told.send(result))));
    synced.await.unwrap().unwrap();
    store.close().await;
    disk
}

async fn reports(store: &Store) -> Vec<RecoveryReport> {
    store.recovery_reports().await.unwrap()
}

#[tokio::test]
async fn a_plan_becomes_true_once_and_is_refused_where_the_replica_has_changed() {
    let disk = used().await;
    let store = open(&disk).unwrap();
    let before = reports(&store).await;
    assert_eq!(before[0].members.replicas.len(), 3);
    assert!(before[0].members.committed);
    let plan = plan(&before).unwrap();
    assert_eq!(plan.uncertain_entries, 2);
    let claim = store.claim(plan.chosen).unwrap();
    assert!(matches!(store.recover(&plan).await, Err(RecoveryError::Running { .. })));
    drop(claim);
    let other = RecoveryPlan { members: BTreeMap::new(), ..plan.clone() };
    assert_eq!(store.recover(&other).await.unwrap(), Recovered::NotHere);
    assert_eq!(reports(&store).await, before, "nothing of this has changed anything");
    // It was started after another survivor was recovered, and retired; and once more, after a crash in between.
    store.note_removed(plan.chosen).await.unwrap();
    assert_eq!(store.recover(&plan).await.unwrap(), Recovered::Done);
    assert!(!store.is_removed(plan.chosen), "the recovered group has it");
    store.note_removed(plan.chosen).await.unwrap();
    assert_eq!(store.recover(&plan).await.unwrap(), Recovered::AlreadyDone);
    assert!(!store.is_removed(plan.chosen), "the recovered group has it");
    assert_eq!(store.recover(&plan).await.unwrap(), Recovered::AlreadyDone);
    let after = &reports(&store).await[0];
    assert_eq!((after.incarnation, after.term), (1, 3 + (1 << 20)));
    assert_eq!(after.last, Some(LogPosition { term: plan.term, index: 10 }));
    assert_eq!(after.members.replicas, plan.members);
    assert_eq!(store.replicas()[0].detail, b"detail");
    let again = RecoveryPlan { term: plan.term + 1, ..plan.clone() };
    assert!(matches!(store.recover(&again).await, Err(RecoveryError::Changed { .. })));
    store.close().await;
}

#[tokio::test]
async fn a_crash_at_any_operation_leaves_all_of_a_recovery_or_nothing() {
    let base = used().await;
    let store = open(&base).unwrap();
    let before = reports(&store).await;
    let plan = plan(&before).unwrap();
    store.close().await;
    drop(store);
    let whole = base.reopen();
    let store = open(&whole).unwrap();
    let opened = whole.operations();
    store.recover(&plan).await.unwrap();
    let after = reports(&store).await;
    let operations = whole.operations();
    drop(store);
    assert!(operations > opened, "it is written");
    let mut outcomes = [0, 0];
    for at in opened..operations {
        for seed in 0..20 {
            let disk = base.reopen();
            let store = open(&disk).unwrap();
            disk.fail_at(at, Fault::Crash);
            let told = store.recover(&plan).await;
            drop(store);
            let store = open(&disk.restart(seed)).unwrap();
            let found = reports(&store).await;
            assert!(found == before || found == after, "crash at {at}, seed {seed}: {found:#?}");
            assert!(told.is_err() || found == after, "crash at {at}, seed {seed}: it was told to be done");
            outcomes[usize::from(found == after)] += 1;
            // Doing it again completes it.
            assert!(matches!(store.recover(&plan).await.unwrap(), Recovered::Done | Recovered::AlreadyDone));
            assert_eq!(reports(&store).await, after);
            store.close().await;
        }
    }
    assert!(outcomes.iter().all(|count| *count > 0), "both outcomes were seen: {outcomes:?}");
}

#[tokio::test]
async fn a_log_that_ends_before_its_snapshot_gives_way_to_it() {
    // Power was lost while a snapshot was installed: it is pointed to, and what is older was not purged yet.
    for (term, index) in [(2, 20), (2, 5)] {
        let disk = used().await;
        let store = open(&disk).unwrap();
        let replica = store.replicas()[0].replica;
        let snapshot = Position { term, index };
        let mut meta = crate::codec::Writer::default();
        let member =
            |n: u64| Member { name: format!("n{n}"), node: n, zone: String::new(), decided_at: 0, addresses: vec![] };
        let nodes = BTreeMap::from([(replica.get(), member(1)), (4, member(4)), (5, member(5))]);
        let membership = Membership::new(vec![nodes.keys().copied().collect()], nodes).unwrap();
        let last_membership = StoredMembership::new(Some(log_id(2, index - 1)), membership);
        let last_log_id = Some(log_id(term, index));
        crate::rpc::write_snapshot_meta(
            &mut meta,
            &crate::openraft_types::SnapshotMeta { last_log_id, last_membership },
        );
        let meta = meta.into_bytes();
        let pointer =
            SnapshotPointer { position: Some(snapshot), meta, file: String::new(), inline: Bytes::from_static(b"s") };
        let (told, synced) = oneshot::channel();
        store.inner.wal.save_snapshot(replica.get(), pointer, Box::new(move |result| drop(told.send(result))));
        synced.await.unwrap().unwrap();
        let reports = reports(&store).await;
        let names: Vec<_> = reports[0].members.replicas.values().map(|member| member.node).collect();
        assert!(names.contains(&5), "the snapshot's members are newer than the log's: {names:?}");
        let plan = plan(&reports).unwrap();
        assert_eq!(store.recover(&plan).await.unwrap(), Recovered::Done);
        store.close().await;
        drop(store);
        let store = open(&disk).unwrap();
        let state = store.inner.wal.state(replica.get()).unwrap();
        assert_eq!(state.last, Some(Position { term: plan.term, index: index + 1 }), "behind the snapshot");
        assert_eq!(state.last_purged, Some(snapshot));
        store.close().await;
    }
}
