//! How far a long start is: told once a second at most, and nothing of a short one. Time comes in.

use std::time::Duration;

/// The first report comes after this, and each further one.
const INTERVAL: Duration = Duration::from_secs(1);

/// Counts what is read of what there is.
#[derive(Debug)]
pub(super) struct Progress {
    segments: u64,
    bytes: u64,
    read: Report,
    next_report: Duration,
}

/// What was read so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) segments: u64,
    pub(super) bytes: u64,
    /// Of all bytes.
    pub(super) percent: u64,
}

impl Progress {
    /// All that is to be read.
    pub(super) fn new(segments: u64, bytes: u64) -> Self {
        Self { segments, bytes, read: Report::default(), next_report: INTERVAL }
    }

    /// One more segment was read, `elapsed` after the start; what to tell, if it is time.
    pub(super) fn segment_read(&mut self, bytes: u64, elapsed: Duration) -> Option<Report> {
        self.read.segments += 1;
        self.read.bytes += bytes;
        self.read.percent = (self.read.bytes * 100).checked_div(self.bytes).unwrap_or(100);
        let due = elapsed >= self.next_report && self.read.segments < self.segments;
        due.then(|| {
            self.next_report = elapsed + INTERVAL;
            self.read
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_start_is_told_of_once_a_second_and_a_short_one_never() {
        let mut progress = Progress::new(10, 1000);
        let millis = [300, 900, 1100, 1200, 2000, 2100, 2200, 5000, 5100, 9000];
        let told: Vec<_> = millis
            .into_iter()
            .filter_map(|at| progress.segment_read(100, Duration::from_millis(at)))
            .map(|report| (report.segments, report.bytes, report.percent))
            .collect();
        // Not at the end: a summary comes then.
        assert_eq!(told, [(3, 300, 30), (6, 600, 60), (8, 800, 80)]);
        let mut short = Progress::new(2, 0);
        assert_eq!(short.segment_read(0, Duration::from_millis(5)), None);
    }
}
