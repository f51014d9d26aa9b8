//! What was acknowledged, and what a read may therefore answer.
//!
//! A write is *possible* from the moment it is sent. When it is answered it is the acknowledged one; when its
//! outcome stays unknown it remains possible for ever, since it may take effect at any later time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// How many keys a report names of each kind.
const NAMED_KEYS: usize = 5;

/// The writes of this run by key.
#[derive(Debug, Default)]
pub struct Record {
    keys: BTreeMap<String, Writes>,
}

#[derive(Debug, Default)]
struct Writes {
    acknowledged: Option<Vec<u8>>,
    possible: BTreeSet<Vec<u8>>,
}

/// What a read tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The last acknowledged value, or one whose outcome is unknown.
    Fine,
    /// An acknowledged value is absent.
    Lost,
    /// A value that a later acknowledged one has replaced, or that nobody wrote.
    Stale,
}

impl Record {
    /// To be called before a write is sent.
    pub fn sending(&mut self, key: &str, value: &[u8]) {
        self.keys.entry(key.to_owned()).or_default().possible.insert(value.to_owned());
    }

    /// The write was answered.
    pub fn acknowledged(&mut self, key: &str, value: &[u8]) {
        let writes = self.keys.entry(key.to_owned()).or_default();
        writes.possible.remove(value);
        writes.acknowledged = Some(value.to_owned());
    }

    /// The write is known not to have happened.
    pub fn not_happened(&mut self, key: &str, value: &[u8]) {
        if let Some(writes) = self.keys.get_mut(key) {
            writes.possible.remove(value);
        }
    }

    /// The keys of which something was acknowledged, in order.
    pub fn acknowledged_keys(&self) -> Vec<String> {
        let keys = self.keys.iter().filter(|(_, writes)| writes.acknowledged.is_some());
        keys.map(|(key, _)| key.clone()).collect()
    }

    /// Judges what a linearizable read answered while no write was on its way.
    pub fn judge(&self, key: &str, read: Option<&[u8]>) -> Verdict {
        let Some(Writes { acknowledged: Some(acknowledged), possible }) = self.keys.get(key) else {
            return Verdict::Fine;
        };
        match read {
            None => Verdict::Lost,
            Some(value) if value == acknowledged || possible.contains(value) => Verdict::Fine,
            Some(_) => Verdict::Stale,
        }
    }
}

/// What a check of all keys found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How many keys were read.
    pub checked: u64,
    /// Keys whose acknowledged value is absent.
    pub lost: Vec<String>,
    /// Keys that answered another value.
    pub stale: Vec<String>,
    /// Keys that could not be read, each with the reason.
    pub unread: Vec<String>,
    /// How many were not tried after so many that could not be read.
    pub skipped: u64,
}

impl Report {
    /// Counts one verdict.
    pub fn add(&mut self, key: &str, verdict: Verdict) {
        self.checked += 1;
        match verdict {
            Verdict::Fine => {}
            Verdict::Lost => self.lost.push(key.to_owned()),
            Verdict::Stale => self.stale.push(key.to_owned()),
        }
    }

    /// Whether every key was read and is as it must be.
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.stale.is_empty() && self.unread.is_empty() && self.skipped == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (lost, stale) = (self.lost.len(), self.stale.len());
        write!(f, "checked {} keys, lost {lost}, stale {stale}", self.checked)?;
        if !self.unread.is_empty() {
            write!(f, ", not readable {}", self.unread.len())?;
        }
        if self.skipped > 0 {
            write!(f, ", not tried {}", self.skipped)?;
        }
        for (what, keys) in [("lost", &self.lost), ("stale", &self.stale), ("not readable", &self.unread)] {
            for key in keys.iter().take(NAMED_KEYS) {
                write!(f, "\n  {what}: {key}")?;
            }
            if keys.len() > NAMED_KEYS {
                write!(f, "\n  {what}: and {} more", keys.len() - NAMED_KEYS)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_judged_by_what_was_answered() {
        let mut record = Record::default();
        for value in ["one", "two"] {
            record.sending("k", value.as_bytes());
            record.acknowledged("k", value.as_bytes());
        }
        record.sending("k", b"unknown");
        record.sending("k", b"refused");
        record.not_happened("k", b"refused");
        record.sending("never", b"answered");
        // (key, what a read answers, verdict)
        let rows = [
            ("k", Some("two"), Verdict::Fine),
            ("k", Some("unknown"), Verdict::Fine),
            ("k", Some("one"), Verdict::Stale),
            ("k", Some("refused"), Verdict::Stale),
            ("k", Some("of nobody"), Verdict::Stale),
            ("k", None, Verdict::Lost),
            ("never", None, Verdict::Fine),
            ("never", Some("answered"), Verdict::Fine),
        ];
        for (key, read, verdict) in rows {
            assert_eq!(record.judge(key, read.map(str::as_bytes)), verdict, "{key} {read:?}");
        }
        assert_eq!(record.acknowledged_keys(), ["k"]);
    }

    #[test]
    fn a_report_counts_and_names_some() {
        let mut report = Report::default();
        report.add("k1", Verdict::Fine);
        assert!(report.is_clean());
        assert_eq!(report.to_string(), "checked 1 keys, lost 0, stale 0");
        for key in ["k2", "k3", "k4", "k5", "k6", "k7"] {
            report.add(key, Verdict::Lost);
        }
        report.add("k8", Verdict::Stale);
        assert!(!report.is_clean());
        let text = report.to_string();
        assert!(text.starts_with("checked 8 keys, lost 6, stale 1\n  lost: k2\n"), "{text}");
        assert!(text.ends_with("  lost: and 1 more\n  stale: k8"), "{text}");
    }

    #[test]
    fn an_unread_key_is_not_clean() {
        let report = Report { unread: vec!["k1: no answer".into()], ..Report::default() };
        assert!(!report.is_clean());
    }
}
