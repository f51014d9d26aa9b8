//! A request that is awaited, with a time limit that can be set before.

use std::future::{Future, IntoFuture};
use std::time::Duration;

use rafted_value::BoxFuture;
use tokio::time::Instant;

use crate::error::KvError;

/// How long a request may take unless it says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one group is tried before it is looked whether it is still the right one: longer than an election.
const ATTEMPT: Duration = Duration::from_millis(1_500);

/// A request that is awaited.
#[must_use = "a request is sent when it is awaited"]
pub struct Request<T> {
    timeout: Duration,
    send: Box<dyn FnOnce(Limit) -> BoxFuture<Result<T, KvError>> + Send>,
}

/// How long a request may take, and until when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) timeout: Duration,
    pub(crate) deadline: Instant,
}

impl Limit {
    /// From now.
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { timeout, deadline: rafted_value::deadline_in(timeout) }
    }

    /// How long it may still take.
    pub(crate) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// How long one attempt may take: then it is looked whether the group is still the right one.
    pub(crate) fn attempt(&self) -> Duration {
        self.left().min(ATTEMPT)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.left().is_zero()
    }

    /// Waits, not beyond the deadline.
    pub(crate) async fn pause(&self, pause: Duration) {
        tokio::time::sleep(pause.min(self.left())).await;
    }
}

impl<T> Request<T> {
    pub(crate) fn new<F>(timeout: Duration, send: impl FnOnce(Limit) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<T, KvError>> + Send + 'static,
    {
        Self { timeout, send: Box::new(|limit| Box::pin(send(limit))) }
    }

    /// The whole time it may take, retries included, from when it is awaited.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

impl<T> IntoFuture for Request<T> {
    type Output = Result<T, KvError>;
    type IntoFuture = BoxFuture<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        (self.send)(Limit::new(self.timeout))
    }
}

impl<T> std::fmt::Debug for Request<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}
