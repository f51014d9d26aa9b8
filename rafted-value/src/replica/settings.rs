//! A change of a replicated value's settings, from whichever member.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;

use super::{DEFAULT_TIMEOUT, Replica};
use crate::config::GroupConfig;
use crate::error::CommandError;
use crate::value::Value;

/// A change of settings on its way; await it.
pub struct ConfigRequest<V> {
    replica: Replica<V>,
    config: GroupConfig,
    timeout: Duration,
}

impl<V: Value> Replica<V> {
    /// Changes the settings of the whole group, as one entry of its log: on every member, over those it was started
    /// with, also after restarts, and on those that join later. [`Replica::status`] shows them; see [`GroupConfig`] for
    /// what of them waits for a restart.
    pub fn change_config(&self, config: GroupConfig) -> ConfigRequest<V> {
        ConfigRequest { replica: self.clone(), config, timeout: DEFAULT_TIMEOUT }
    }
}

impl<V: Value> ConfigRequest<V> {
    /// How long it may take, retries included; [`DEFAULT_TIMEOUT`] unless set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    async fn run(self) -> Result<(), CommandError> {
        let inner = &self.replica.inner;
        inner.check_member()?;
        let started = tokio::time::Instant::now();
        let open = inner.open(self.timeout).await?;
        let left = self.timeout.saturating_sub(started.elapsed());
        inner.client.change_config(&inner.group, &self.config, open.id(), left).await
    }
}

impl<V: Value> IntoFuture for ConfigRequest<V> {
    type Output = Result<(), CommandError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}
