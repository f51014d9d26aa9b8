//! What can go wrong, sorted by the only question that matters to a caller: did it happen?

use std::time::Duration;

use rafted_value::{CommandError, NotHappened, QueryError, UnknownOutcome};

use crate::keyspaces::{FixedSetting, MAX_KEYSPACES};
use crate::policy::PolicyError;
use crate::shard::{KEPT_FOR, MAX_CLIENTS_PER_KEY, MAX_KEPT_REPLY_BYTES, WINDOW};

/// The longest key in bytes.
pub const MAX_KEY_BYTES: usize = 2_048;

/// The longest name of a keyspace or type in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// The longest name of a client that names its requests.
pub const MAX_CLIENT_BYTES: usize = 64;

/// Why a request has no reply or answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum KvError {
    /// It did not run and will not: sending it again is safe.
    #[error("nothing happened: {0}")]
    NotHappened(#[from] NotHappened),
    /// It did not run and will not: the key was on its way from one shard to another all the time.
    #[error("nothing happened: {key:?} of {keyspace} had no owner for {waited:?}; retry")]
    Moving {
        /// The keyspace.
        keyspace: String,
        /// The key.
        key: String,
        /// How long it was tried.
        waited: Duration,
    },
    /// It did not run: the keyspace's shards do not serve yet.
    #[error("nothing happened: the shards of {keyspace} do not serve yet, after {waited:?}; retry")]
    NotServing {
        /// The keyspace.
        keyspace: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// It may have run or may still run.
    #[error("it may or may not have happened: {0}")]
    Unknown(#[from] UnknownOutcome),
    /// The value's code panicked, or did not know the command.
    #[error("the value's code failed: {0}")]
    Failed(String),
    /// The key has no value.
    #[error("{keyspace} has no key {key:?}")]
    KeyNotFound {
        /// The keyspace.
        keyspace: String,
        /// The key.
        key: String,
    },
    /// There is no such keyspace.
    #[error("there is no keyspace {name}; create it first")]
    KeyspaceNotFound {
        /// What was given.
        name: String,
    },
    /// There is a keyspace of this name.
    #[error("there is a keyspace {name} already, of type {type_name}")]
    AlreadyExists {
        /// The name.
        name: String,
        /// The type of its values.
        type_name: String,
    },
    /// The keyspace's values are of another type.
    #[error("the values of {keyspace} are of type {type_name}, the request is for {expected}")]
    WrongType {
        /// The keyspace.
        keyspace: String,
        /// The type of its values.
        type_name: String,
        /// The type that was asked for.
        expected: String,
    },
    /// The type was not registered.
    #[error("the type {type_name} is not registered on this node; register it before the node starts, on every node")]
    UnknownType {
        /// What was given.
        type_name: String,
    },
    /// There are too many keyspaces.
    #[error("there are {MAX_KEYSPACES} keyspaces, which is the limit; delete one first")]
    TooManyKeyspaces,
    /// The policy cannot be followed.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The policy asks for a change that cannot be made yet.
    #[error("not yet: {keyspace} has {present} {}, which is fixed when it is created; keep it, or make another keyspace",
        match setting { FixedSetting::Shards => "shards", FixedSetting::Replicas => "replicas of each shard" })]
    NotYet {
        /// The keyspace.
        keyspace: String,
        /// What is fixed.
        setting: FixedSetting,
        /// What it is.
        present: u32,
    },
    /// No name of a keyspace or type.
    #[error("{given:?} is no name: 1 to {MAX_NAME_BYTES} of A-Z a-z 0-9 _ . - are allowed")]
    InvalidName {
        /// What was given.
        given: String,
    },
    /// No key.
    #[error("a key of {bytes} bytes was given, 1 to {MAX_KEY_BYTES} are allowed")]
    InvalidKey {
        /// What was given.
        bytes: usize,
    },
    /// No name of a client.
    #[error("{given:?} is no client's name: 1 to {MAX_CLIENT_BYTES} of A-Z a-z 0-9 _ - are allowed")]
    InvalidClient {
        /// What was given.
        given: String,
    },
    /// It did not run: the key's version is not the one that was asked for.
    #[error("the precondition failed: the key's version is {version:?}; read it again")]
    PreconditionFailed {
        /// The version that was found; `None` when the key had no value.
        version: Option<u64>,
    },
    /// It did not run now: the serial is below the client's window, or its reply is no longer kept.
    #[error(
        "serial {serial} of {client} is too old: the {WINDOW} highest are kept, for {KEPT_FOR:?}; use a new serial"
    )]
    SerialTooOld {
        /// The client.
        client: String,
        /// The serial.
        serial: u64,
    },
    /// It ran before, and its reply was too large to keep.
    #[error("serial {serial} of {client} has run; its reply of more than {MAX_KEPT_REPLY_BYTES} bytes was not kept")]
    AlreadyDone {
        /// The client.
        client: String,
        /// The serial.
        serial: u64,
    },
    /// It did not run: the serial was used for another request.
    #[error("serial {serial} of {client} was used for another request on this key; use a new serial")]
    IdempotencyConflict {
        /// The client.
        client: String,
        /// The serial.
        serial: u64,
    },
    /// It did not run: the key remembers as many clients as it may.
    #[error(
        "nothing happened: the key remembers {MAX_CLIENTS_PER_KEY} clients of the last {KEPT_FOR:?}, which is the limit"
    )]
    TooManyClients,
}

impl KvError {
    /// Whether it may have happened.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }

    /// Whether the same request may succeed later without harm.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotHappened(reason) => reason.is_retryable(),
            Self::Moving { .. } | Self::NotServing { .. } => true,
            _ => false,
        }
    }
}

impl From<CommandError> for KvError {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::NotHappened(reason) => Self::NotHappened(reason),
            CommandError::Unknown(reason) => Self::Unknown(reason),
            CommandError::Failed(message) => Self::Failed(message),
        }
    }
}

impl From<QueryError> for KvError {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::NotHappened(reason) => Self::NotHappened(reason),
            QueryError::Failed(message) => Self::Failed(message),
        }
    }
}

/// Checks a key.
pub(crate) fn check_key(key: &str) -> Result<(), KvError> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(KvError::InvalidKey { bytes: key.len() });
    }
    Ok(())
}

/// Checks the name of a keyspace or type.
pub(crate) fn check_name(name: &str) -> Result<(), KvError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(allowed) {
        return Err(KvError::InvalidName { given: name.to_owned() });
    }
    Ok(())
}

/// Checks the name of a client.
pub(crate) fn check_client(name: &str) -> Result<(), KvError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if name.is_empty() || name.len() > MAX_CLIENT_BYTES || !name.bytes().all(allowed) {
        return Err(KvError::InvalidClient { given: name.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_keys_are_bounded() {
        for name in ["a", "A.b_c-9", &"x".repeat(128)] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in ["", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        for key in ["a", "ключ/ \0", &"x".repeat(MAX_KEY_BYTES)] {
            assert_eq!(check_key(key), Ok(()), "{key}");
        }
        for key in ["", &"x".repeat(MAX_KEY_BYTES + 1)] {
            assert!(check_key(key).is_err(), "{key}");
        }
        for client in ["", "a.b", &"x".repeat(65)] {
            assert!(check_client(client).is_err(), "{client}");
        }
        assert_eq!(check_client("web-1_x"), Ok(()));
    }
}
