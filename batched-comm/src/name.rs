//! Names: of nodes, of mailboxes, of both together, and of the cluster.
//!
//! A name is checked once, when it is made; whoever holds one need not look again.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

/// The longest name of a node, in bytes.
pub const MAX_NODE_NAME_BYTES: usize = 128;

/// The longest name of a mailbox, in bytes.
pub const MAX_MAILBOX_NAME_BYTES: usize = 64;

/// What a person calls a node ("n1"): 1 to 128 of `A-Z a-z 0-9 _ . -`.
///
/// It stands in the node's certificate, and both sides of a connection check it there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(Arc<str>);

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a mailbox is called ("raft"): 1 to 64 of `A-Z a-z 0-9 _ . - : /`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MailboxName(Arc<str>);

impl MailboxName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where a message goes: a mailbox of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The node that owns the mailbox.
    pub node: NodeName,
    /// The mailbox there.
    pub mailbox: MailboxName,
}

impl Address {
    /// The mailbox called `mailbox` of `node`.
    ///
    /// # Errors
    /// When `mailbox` is not a mailbox's name.
    pub fn new(node: &NodeName, mailbox: &str) -> Result<Address, NameError> {
        Ok(Address { node: node.clone(), mailbox: mailbox.parse()? })
    }

    /// From parts that were checked before.
    pub fn from_parts(node: NodeName, mailbox: MailboxName) -> Address {
        Address { node, mailbox }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.mailbox, self.node)
    }
}

/// Which cluster a node belongs to; carried in every hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId {
    /// Minted once, when the cluster is made.
    pub id: u128,
    /// Raised by recovery and restore: nodes of different generations do not talk.
    pub generation: u64,
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}.{}", self.id, self.generation)
    }
}

/// Why some text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    /// No text, or too much.
    #[error("a {what}'s name has 1 to {max_bytes} characters, this one has {given_bytes}")]
    Length {
        /// "node" or "mailbox".
        what: &'static str,
        /// How long it was.
        given_bytes: usize,
        /// How long it may be.
        max_bytes: usize,
    },
    /// A character that no name may have.
    #[error("{given:?} is no {what}'s name: {character:?} is not allowed (letters, digits and {allowed} are)")]
    Character {
        /// "node" or "mailbox".
        what: &'static str,
        /// The text.
        given: String,
        /// The first character that is wrong.
        character: char,
        /// The signs that are allowed beside letters and digits.
        allowed: &'static str,
    },
}

fn check(what: &'static str, text: &str, max_bytes: usize, allowed: &'static str) -> Result<Arc<str>, NameError> {
    if text.is_empty() || text.len() > max_bytes {
        return Err(NameError::Length { what, given_bytes: text.len(), max_bytes });
    }
    match text.chars().find(|c| !c.is_ascii_alphanumeric() && !allowed.contains(*c)) {
        Some(character) => Err(NameError::Character { what, given: text.to_owned(), character, allowed }),
        None => Ok(text.into()),
    }
}

macro_rules! text_name {
    ($name:ident, $what:literal, $max_bytes:expr, $allowed:literal) => {
        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                check($what, text, $max_bytes, $allowed).map(Self)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = NameError;

            fn try_from(text: &str) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

text_name!(NodeName, "node", MAX_NODE_NAME_BYTES, "_.-");
text_name!(MailboxName, "mailbox", MAX_MAILBOX_NAME_BYTES, "_.-:/");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_checked_when_it_is_made() {
        let long = "x".repeat(MAX_NODE_NAME_BYTES + 1);
        let rows = [
            ("n1", true),
            ("Node_1.eu-west", true),
            (&long[1..], true),
            ("", false),
            (&long[..], false),
            ("a b", false),
            ("ä", false),
            ("a/b", false),
        ];
        for (text, good) in rows {
            assert_eq!(text.parse::<NodeName>().is_ok(), good, "{text:?}");
        }
        assert!("kv/7:in".parse::<MailboxName>().is_ok());
    }

    #[test]
    fn a_bad_name_says_what_is_wrong() {
        let error = "a b".parse::<NodeName>().unwrap_err().to_string();
        assert_eq!(error, "\"a b\" is no node's name: ' ' is not allowed (letters, digits and _.- are)");
    }
}
