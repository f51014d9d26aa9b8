//! Keeps what is measured.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};

#[derive(Default)]
pub struct Recorded {
    numbers: Mutex<HashMap<Key, Arc<AtomicU64>>>,
    samples: Mutex<HashMap<Key, Arc<Samples>>>,
}

/// How many there were.
#[derive(Default)]
struct Samples(AtomicU64);

impl HistogramFn for Samples {
    fn record(&self, _: f64) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Recorder for Recorded {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.numbers.lock().unwrap().entry(key.clone()).or_default().clone())
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.numbers.lock().unwrap().entry(key.clone()).or_default().clone())
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.samples.lock().unwrap().entry(key.clone()).or_default().clone())
    }
}

impl Recorded {
    /// The count, or the number of samples, or a gauge's bits, under exactly this name and these labels.
    pub fn number(&self, name: &'static str, labels: &'static [(&'static str, &'static str)]) -> u64 {
        let key = Key::from_parts(name, labels);
        let counted = self.numbers.lock().unwrap().get(&key).map(|number| number.load(Ordering::SeqCst));
        let sampled = || self.samples.lock().unwrap().get(&key).map(|samples| samples.0.load(Ordering::SeqCst));
        counted.or_else(sampled).unwrap_or(0)
    }
}

/// The names of all metrics that the crate has.
pub fn names() -> Vec<&'static str> {
    let source = include_str!("../../src/stats.rs");
    source.split('"').filter(|text| text.starts_with("rafted_value_")).collect()
}
