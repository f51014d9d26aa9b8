//! What is heard of warnings and metrics in this process, for the tests that look at them.

use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex, Once, PoisonError};

use metrics::{Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};

/// Counters' names with their labels, once for each time that they were raised, and warnings with their fields.
static HEARD: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Listens from now on.
pub fn listen() {
    static BEGINNING: Once = Once::new();
    BEGINNING.call_once(|| {
        metrics::set_global_recorder(Listener).unwrap();
        tracing::subscriber::set_global_default(Listener).unwrap();
    });
}

/// Whether something was heard that has all these parts.
pub fn was_heard(parts: &[&str]) -> bool {
    let heard = HEARD.lock().unwrap_or_else(PoisonError::into_inner);
    heard.iter().any(|heard| parts.iter().all(|part| heard.contains(part)))
}

fn hear(what: String) {
    HEARD.lock().unwrap_or_else(PoisonError::into_inner).push(what);
}

struct Listener;

struct Raised(String);

impl CounterFn for Raised {
    fn increment(&self, _: u64) {
        hear(self.0.clone());
    }

    fn absolute(&self, _: u64) {}
}

impl Recorder for Listener {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        // Only what belongs to a group: the others are raised all the time.
        if key.labels().len() == 0 {
            return Counter::noop();
        }
        let labels: Vec<String> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        Counter::from_arc(Arc::new(Raised(format!("{} {}", key.name(), labels.join(" ")))))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {}={value:?}", field.name()).unwrap();
    }
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN && metadata.is_event()
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::WARN)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line("warning".into());
        event.record(&mut line);
        hear(line.0);
    }

    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}
