//! Changes of a group's settings, and whether what is proposed can be read: what must be known before anything is logged.

use std::time::Duration;

use super::{UntypedReplica, refused};
use crate::command::{Command, CommandId, Recipient};
use crate::config::GroupConfig;
use crate::encoding::encode_config_change;
use crate::error::NotHappened;
use crate::proposer::ProposeError;
use crate::value::UpgradeError;

impl UntypedReplica {
    /// Proposes new settings for the whole group; only the leader takes them. They hold, here, when this returns: see
    /// [`GroupConfig`] for what of them waits for a restart. Under one id it is done once.
    pub async fn change_config(
        &self,
        config: &GroupConfig,
        id: CommandId,
        timeout: Duration,
    ) -> Result<(), ProposeError> {
        self.propose(encode_config_change(config, id), timeout).await.map(drop)
    }

    /// A command that a replica cannot read would stop it, now or after an upgrade: it must not get into the log.
    pub(super) async fn check_readable(&self, command: &Command) -> Result<(), ProposeError> {
        let malformed = |error: &dyn std::fmt::Display| {
            refused(NotHappened::Malformed(format!("this node cannot read the command: {error}")))
        };
        let factory = self.inner.shared.factory();
        match command.to {
            Recipient::Group => {
                GroupConfig::decode(command.schema, &command.payload).map(drop).map_err(|error| malformed(&error))
            }
            Recipient::Value => self.check(command).await?.map_err(|error| match error {
                UpgradeError::UnknownVersion { found: version, .. } if version > factory.version() => {
                    refused(NotHappened::VersionNotReadable {
                        group: self.inner.spec.group.clone(),
                        version,
                        readable: Some(factory.version()),
                        lagging: vec![self.inner.store.node().name],
                    })
                }
                error => malformed(&error),
            }),
        }
    }

    /// The user's code reads what another version wrote: not on a thread of the network.
    async fn check(&self, command: &Command) -> Result<Result<(), UpgradeError>, ProposeError> {
        let factory = self.inner.shared.factory();
        let (schema, payload) = (command.schema, command.payload.clone());
        if schema == factory.version() {
            return Ok(factory.check(schema, &payload));
        }
        let factory = factory.clone();
        let checked = self.inner.store.threads().run(move || factory.check(schema, &payload)).await;
        let group = self.inner.spec.group.clone();
        checked.map_err(|error| refused(NotHappened::Stopped { group, reason: error.to_string() }))
    }
}
