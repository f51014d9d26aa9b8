//! How many entries share a sync, counted on a disk whose syncs last as long as their callers take to come back.

use super::*;

const WRITERS: u64 = 256;
const GROUPS: u64 = 2000;

/// Callers with one entry on its way each, who come back while the next sync runs, each time to another group.
struct Writers {
    wal: Wal,
    /// Who was told, and writes again.
    told: Arc<Mutex<Vec<u64>>>,
    /// By group: the next index.
    next: Mutex<BTreeMap<u64, u64>>,
}

impl Writers {
    fn write(&self, writer: u64) {
        let mut next = lock(&self.next);
        // Each writer has groups of its own, as raft's cores have their own replicas.
        let turn = next.values().sum::<u64>();
        let group = 1 + (writer + WRITERS * (turn % (GROUPS / WRITERS))) % GROUPS;
        let index = next.entry(group).or_default();
        let told = self.told.clone();
        let done = Box::new(move |result: io::Result<()>| {
            result.unwrap();
            lock(&told).push(writer);
        });
        self.wal.append(group, vec![entry(1, *index, &[7; 64])], done);
        *index += 1;
    }

    fn come_back(&self) {
        let told = std::mem::take(&mut *lock(&self.told));
        told.into_iter().for_each(|writer| self.write(writer));
    }
}

#[test]
fn a_sync_serves_half_of_the_writers_at_least_whatever_the_number_of_groups() {
    // Of the writers, so many come first, and the others during the first sync.
    for first in [1, 60, 128, 255] {
        let disk = FaultyDisk::default();
        let config = WalConfig::default().with_segment_bytes(1 << 20);
        let (wal, mut appender) = Wal::open_stepped(Arc::new(disk.clone()), Path::new(DIR), config).unwrap();
        (1..=GROUPS).for_each(|id| wal.create(replica(id), nobody()));
        step_all(&mut appender);
        let writers = Arc::new(Writers { wal: wal.clone(), told: Arc::default(), next: Mutex::default() });
        (0..first).for_each(|writer| writers.write(writer));
        let late: Arc<Mutex<Vec<u64>>> = Arc::new(Mutex::new((first..WRITERS).collect()));
        let during = writers.clone();
        disk.during_sync(move || {
            std::mem::take(&mut *lock(&late)).into_iter().for_each(|writer| during.write(writer));
            during.come_back();
        });
        let before = wal.stats();
        for _ in 0..200 {
            if appender.step() == Step::Idle {
                writers.come_back();
            }
        }
        let after = wal.stats();
        let (entries, batches) = (after.entries - before.entries, after.batches - before.batches);
        let syncs = after.syncs - before.syncs;
        assert!(entries * 2 >= WRITERS * batches - WRITERS, "{entries} entries in {batches} batches");
        // What prepares segments is synced, too: that costs a few in a hundred.
        assert!(entries * 2 * 10 >= WRITERS * syncs * 9, "{entries} entries in {syncs} syncs");
        // The hook holds the log: they must let go of each other.
        disk.during_sync(|| {});
    }
}
