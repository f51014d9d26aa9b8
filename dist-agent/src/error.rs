//! What a request to an agent or a quota can end in, sorted by what its caller must know: did it happen?

use std::time::Duration;

use crate::id::{AgentId, IdError};

/// Why a command or query of an agent, or of the quotas, has no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentError {
    /// A name or key is not allowed.
    #[error(transparent)]
    Id(#[from] IdError),
    /// No code of this name is registered.
    #[error("the module {module:?} is not known here: known are {}", known.join(", "))]
    UnknownModule {
        /// What was given.
        module: String,
        /// What is registered.
        known: Vec<String>,
    },
    /// The command or query is not what the module expects.
    #[error("the module {module:?} does not understand the request: {reason}")]
    Malformed {
        /// The module.
        module: String,
        /// What is wrong.
        reason: String,
    },
    /// The quota does not exist.
    #[error("the quota {quota:?} does not exist: create it first")]
    QuotaNotFound {
        /// What was given.
        quota: String,
    },
    /// The agent is not active, and its quota allows no further one.
    #[error("the quota {quota:?} allows {limit} agents, {used} are active: raise its limit or end some")]
    QuotaLimitReached {
        /// The quota.
        quota: String,
        /// What it allows.
        limit: u64,
        /// What is in use.
        used: u64,
    },
    /// A query found no agent. It activates none.
    #[error("the agent {id} is not active: send it a command first")]
    AgentNotFound {
        /// Which.
        id: Box<AgentId>,
    },
    /// The agent's code panicked. Its state is as it was before.
    #[error("{reason}; its state is unchanged")]
    AgentFailed {
        /// Its words.
        reason: String,
    },
    /// Too much is under way, or places of the quota are held by others for the moment. Nothing happened.
    #[error("{reason}; retry in {retry_after:?}")]
    Overloaded {
        /// What.
        reason: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// It is over the limit. Nothing happened.
    #[error("{reason}")]
    TooLarge {
        /// What was given and what is allowed.
        reason: String,
    },
    /// An idempotency key was used for another request.
    #[error("the idempotency key {key} was used for another request: use a new serial for each request")]
    IdempotencyConflict {
        /// The key.
        key: IdempotencyKey,
    },
    /// The request is older than what is remembered. It was not run now.
    #[error("the serial of the idempotency key {key} is too old to say whether it ran: it was not run now")]
    SerialTooOld {
        /// The key.
        key: IdempotencyKey,
    },
    /// The request ran, but its reply was too large to keep.
    #[error("the request of idempotency key {key} ran before, its reply was too large to keep")]
    AlreadyDone {
        /// The key.
        key: IdempotencyKey,
    },
    /// It is known not to have happened: sending it again is safe.
    #[error("it did not happen: {reason}")]
    NotHappened {
        /// Why.
        reason: String,
    },
    /// It may have happened, or may still happen.
    #[error("it may or may not have happened: {reason}")]
    Unknown {
        /// Why.
        reason: String,
    },
}

impl AgentError {
    /// Whether it may have happened.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }

    /// Whether the same request may succeed later without harm.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::NotHappened { .. } | Self::Overloaded { .. } | Self::QuotaLimitReached { .. })
    }
}

/// Names a request, so that it runs once however often it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey {
    client: String,
    serial: u64,
}

/// Text that is no idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the idempotency key {given:?} is not CLIENT:SERIAL with 1 to {MAX_CLIENT_BYTES} of A-Z a-z 0-9 _ - and a whole number below 2^64"
)]
pub struct IdempotencyKeyError {
    /// What was given, cut to what a message can hold.
    pub given: String,
}

/// The longest client name in an idempotency key.
pub const MAX_CLIENT_BYTES: usize = 64;

const MAX_QUOTED_CHARS: usize = 100;

impl IdempotencyKey {
    /// A key of parts that are checked.
    pub fn new(client: &str, serial: u64) -> Result<Self, IdempotencyKeyError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if client.is_empty() || client.len() > MAX_CLIENT_BYTES || !client.bytes().all(allowed) {
            return Err(IdempotencyKeyError::of(&format!("{client}:{serial}")));
        }
        Ok(Self { client: client.to_owned(), serial })
    }

    /// The client.
    pub fn client(&self) -> &str {
        &self.client
    }

    /// The client's number of the request.
    pub fn serial(&self) -> u64 {
        self.serial
    }
}

impl std::str::FromStr for IdempotencyKey {
    type Err = IdempotencyKeyError;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        let (client, serial) = given.split_once(':').ok_or_else(|| IdempotencyKeyError::of(given))?;
        // A sign would parse, too.
        if !serial.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(IdempotencyKeyError::of(given));
        }
        let serial = serial.parse().map_err(|_| IdempotencyKeyError::of(given))?;
        Self::new(client, serial)
    }
}

impl std::fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.client, self.serial)
    }
}

impl IdempotencyKeyError {
    fn of(given: &str) -> Self {
        Self { given: given.chars().take(MAX_QUOTED_CHARS).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idempotency_keys_are_read_or_refused() {
        for good in ["c:0", "Client_1-a:18446744073709551615", &format!("{}:7", "c".repeat(64))] {
            assert_eq!(good.parse::<IdempotencyKey>().unwrap().to_string(), good);
        }
        let long = format!("{}:7", "c".repeat(65));
        for bad in
            ["", "c", ":", ":1", "c:", "c:-1", "c:+1", "c:1:2", "c d:1", "c.d:1", "c:18446744073709551616", &long]
        {
            assert!(bad.parse::<IdempotencyKey>().is_err(), "{bad:?}");
        }
    }
}
