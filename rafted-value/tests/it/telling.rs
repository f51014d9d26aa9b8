//! What is heard of warnings and metrics in this process, for the tests that look at them: there is one listener for all.

use std::fmt::{Debug, Write};
use std::sync::{Mutex, Once, OnceLock, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};

use crate::recorder::Recorded;

/// Warnings with their fields.
static HEARD: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Listens from now on.
pub fn listen() {
    static BEGINNING: Once = Once::new();
    BEGINNING.call_once(|| {
        tracing::subscriber::set_global_default(Listener).unwrap();
    });
}

/// What is measured from the first call on.
pub fn recorded() -> &'static Recorded {
    static RECORDED: OnceLock<&'static Recorded> = OnceLock::new();
    RECORDED.get_or_init(|| {
        let recorded: &'static Recorded = Box::leak(Box::default());
        metrics::set_global_recorder(recorded).unwrap();
        recorded
    })
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
