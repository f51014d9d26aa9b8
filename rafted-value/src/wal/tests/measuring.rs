//! Every metric of the log moves when what it counts happens.

use super::recorder::{Recorded, names};
use super::*;
use crate::stats;

#[test]
fn what_is_written_and_what_fails_is_measured() {
    let recorded = Recorded::default();
    let _recording = metrics::set_default_local_recorder(&recorded);
    let number = |name| recorded.number(name, &[]);
    let disk = FaultyDisk::default();
    let (wal, mut appender) = open(&disk);
    wal.create(replica(1), nobody());
    wal.append(1, vec![entry(1, 0, b"a"), entry(1, 1, b"b")], nobody());
    step_all(&mut appender);
    wal.append(1, vec![entry(1, 2, b"c")], nobody());
    step_all(&mut appender);
    let told = wal.stats();
    assert_eq!(number(stats::LOG_ENTRIES), 3);
    assert_eq!(number(stats::LOG_BYTES), told.bytes);
    assert_eq!(number(stats::LOG_SYNCS), told.syncs);
    assert_eq!(number(stats::LOG_SYNC_SECONDS), told.batches);
    assert_eq!(f64::from_bits(number(stats::LOG_SEGMENTS)), told.segments as f64);
    assert_eq!(number(stats::LOG_FAILURES), 0);
    wal.fail("a disk that cannot be read");
    wal.fail("and once more");
    assert_eq!(number(stats::LOG_FAILURES), 1);
    for name in names().into_iter().filter(|name| name.starts_with("rafted_value_log_")) {
        assert!(number(name) > 0, "{name}");
    }
}
