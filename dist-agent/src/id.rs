//! The logical address of an agent: quota, module, key.

use std::fmt;

/// The longest name of a quota or module.
pub const MAX_NAME_BYTES: usize = 128;

/// The longest key of an agent.
pub const MAX_KEY_BYTES: usize = 1_024;

/// Which agent: a quota that counts it, a module that is its code, and a key of the user's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentId {
    quota: String,
    module: String,
    key: String,
}

/// A name or key outside what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// A quota's or module's name.
    #[error("the {what} {given:?} is not a name: 1 to {MAX_NAME_BYTES} of A-Z a-z 0-9 _ . - are allowed")]
    Name {
        /// "quota" or "module".
        what: &'static str,
        /// What was given, cut to what a message can hold.
        given: String,
    },
    /// An agent's key.
    #[error("a key of {bytes} bytes was given: 1 to {MAX_KEY_BYTES} bytes of UTF-8 are allowed")]
    Key {
        /// How long the given key is.
        bytes: usize,
    },
    /// A stored key that is not of an agent.
    #[error("{given:?} is not the stored key of an agent: QUOTA/MODULE/KEY is expected")]
    Stored {
        /// What was given, cut to what a message can hold.
        given: String,
    },
}

impl AgentId {
    /// An id of parts that are checked.
    pub fn new(quota: impl Into<String>, module: impl Into<String>, key: impl Into<String>) -> Result<Self, IdError> {
        let (quota, module, key) = (quota.into(), module.into(), key.into());
        check_name("quota", &quota)?;
        check_name("module", &module)?;
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return Err(IdError::Key { bytes: key.len() });
        }
        Ok(Self { quota, module, key })
    }

    /// The quota.
    pub fn quota(&self) -> &str {
        &self.quota
    }

    /// The module.
    pub fn module(&self) -> &str {
        &self.module
    }

    /// The key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The key in the keyspace of agents. Names hold no `/`, so that it is unambiguous, and the agents of a
    /// quota, and of a module in it, are those of a prefix.
    pub fn stored(&self) -> String {
        format!("{}{SEPARATOR}{}{SEPARATOR}{}", self.quota, self.module, self.key)
    }

    /// Reads what [`AgentId::stored`] wrote.
    pub fn from_stored(stored: &str) -> Result<Self, IdError> {
        let mut parts = stored.splitn(3, SEPARATOR);
        match (parts.next(), parts.next(), parts.next()) {
            (Some(quota), Some(module), Some(key)) => Self::new(quota, module, key),
            _ => Err(IdError::Stored { given: cut(stored) }),
        }
    }

    /// What the stored keys of a quota's agents begin with, all or those of one module.
    pub fn prefix(quota: &str, module: Option<&str>) -> Result<String, IdError> {
        check_name("quota", quota)?;
        match module {
            None => Ok(format!("{quota}{SEPARATOR}")),
            Some(module) => {
                check_name("module", module)?;
                Ok(format!("{quota}{SEPARATOR}{module}{SEPARATOR}"))
            }
        }
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.quota, self.module, self.key)
    }
}

/// Whether `given` may name a quota, module or keyspace.
pub fn check_name(what: &'static str, given: &str) -> Result<(), IdError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if given.is_empty() || given.len() > MAX_NAME_BYTES || !given.bytes().all(allowed) {
        return Err(IdError::Name { what, given: cut(given) });
    }
    Ok(())
}

const SEPARATOR: char = '/';
const MAX_QUOTED_CHARS: usize = 150;

fn cut(given: &str) -> String {
    given.chars().take(MAX_QUOTED_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_key_reads_back_whatever_the_key_holds() {
        for key in ["k", "a/b/c", "/", "//", "é\u{0}\n", "%2F", &"x".repeat(MAX_KEY_BYTES)] {
            let id = AgentId::new("acme", "room", key).unwrap();
            assert_eq!(AgentId::from_stored(&id.stored()).unwrap(), id, "key {key:?}");
        }
    }

    #[test]
    fn different_ids_have_different_stored_keys() {
        let ids = [("a", "b", "c/d"), ("a", "b.c", "d"), ("a.b", "c", "d"), ("a", "b", "c"), ("a", "c", "b")];
        let stored: std::collections::BTreeSet<String> =
            ids.iter().map(|(q, m, k)| AgentId::new(*q, *m, *k).unwrap().stored()).collect();
        assert_eq!(stored.len(), ids.len());
    }

    #[test]
    fn a_prefix_holds_its_quota_and_no_other() {
        let prefix = AgentId::prefix("a", None).unwrap();
        assert!(AgentId::new("a", "m", "k").unwrap().stored().starts_with(&prefix));
        assert!(!AgentId::new("ab", "m", "k").unwrap().stored().starts_with(&prefix));
        let prefix = AgentId::prefix("a", Some("m")).unwrap();
        assert!(AgentId::new("a", "m", "k").unwrap().stored().starts_with(&prefix));
        assert!(!AgentId::new("a", "mm", "k").unwrap().stored().starts_with(&prefix));
    }

    #[test]
    fn wrong_parts_are_refused_with_what_was_given() {
        let long = "n".repeat(MAX_NAME_BYTES + 1);
        for name in ["", "a b", "a/b", "ä", &long] {
            assert!(matches!(AgentId::new(name, "m", "k"), Err(IdError::Name { what: "quota", .. })), "{name:?}");
            assert!(matches!(AgentId::new("q", name, "k"), Err(IdError::Name { what: "module", .. })), "{name:?}");
        }
        assert_eq!(AgentId::new("q", "m", ""), Err(IdError::Key { bytes: 0 }));
        let key = "k".repeat(MAX_KEY_BYTES + 1);
        assert_eq!(AgentId::new("q", "m", key), Err(IdError::Key { bytes: MAX_KEY_BYTES + 1 }));
        for stored in ["", "a", "a/b", "a/b/", "/b/c"] {
            assert!(AgentId::from_stored(stored).is_err(), "{stored:?}");
        }
    }
}
