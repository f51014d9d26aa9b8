//! Why a log does not open.

use std::io;
use std::path::PathBuf;

/// Why a log does not open.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The operating system refused.
    #[error("the log cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// Something that was synced is not there any more.
    #[error(
        "the log is damaged: {what} ({} at byte {offset}). Entries that were acknowledged may be lost here: restore \
         the directory from a copy, or wipe it, and the node joins as a new one",
        file.display()
    )]
    Damage {
        /// The damaged file.
        file: PathBuf,
        /// The byte in it where reading stopped.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// A segment of another log.
    #[error("{} belongs to another log than the other segments here: move it away", file.display())]
    Foreign {
        /// The file.
        file: PathBuf,
    },
    /// Written by a newer program.
    #[error(
        "{} has log format {found} at byte {offset}, and this program reads up to {supported}: use the newer program",
        file.display()
    )]
    Version {
        /// The file.
        file: PathBuf,
        /// The byte in it from which on it has that format.
        offset: u64,
        /// Its format.
        found: u32,
        /// The newest that is known here.
        supported: u32,
    },
}
