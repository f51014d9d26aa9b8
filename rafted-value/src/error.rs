//! What can go wrong, sorted by the only question that matters to a caller: did it happen?

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::status::{LogPosition, ReplicaId};
use crate::value::LogTime;

/// Why a command has no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The command did not run and will not: sending it again is safe.
    #[error("the command did not happen: {0}")]
    NotHappened(#[from] NotHappened),
    /// The command may have run or may still run.
    #[error("the command may or may not have happened: {0}")]
    Unknown(#[from] UnknownOutcome),
    /// The user's code panicked on every replica, or did not know the command.
    #[error("the value's code failed: {0}")]
    Failed(String),
}

/// Why a query has no answer. A query changes nothing: asking again is always safe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// It could not be read now.
    #[error("the query was not answered: {0}")]
    NotHappened(#[from] NotHappened),
    /// The user's code panicked, or did not know the query.
    #[error("the value's code failed: {0}")]
    Failed(String),
}

/// Why something is known not to have happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotHappened {
    /// No leader was found before the deadline.
    #[error("group {group} has no leader that could be reached within {waited:?}; retry, or see the group's status")]
    NoLeader {
        /// The group.
        group: String,
        /// How long it was tried.
        waited: Duration,
    },
    /// The command or query is over the limit.
    #[error("{bytes} bytes were given, at most {max_bytes} are allowed; split it, or see the group's settings")]
    TooLarge {
        /// What was given.
        bytes: usize,
        /// What is allowed.
        max_bytes: usize,
    },
    /// As many commands are under way as may be: at the group's leader, or from this process.
    #[error("{queued} commands are under way, as many as group {group} or this process may have; retry later")]
    Overloaded {
        /// The group.
        group: String,
        /// How many are under way.
        queued: usize,
    },
    /// The replica or group is not here or was stopped.
    #[error("group {group} is not served here: {reason}")]
    Stopped {
        /// The group.
        group: String,
        /// Why.
        reason: String,
    },
    /// The leader's disk is full; what it has acknowledged is safe.
    #[error("the disk of the leader of group {group} is full; free space there, or move the leader")]
    DiskFull {
        /// The group.
        group: String,
    },
    /// Not every member's program reads commands of this version yet.
    #[error(
        "a command of version {version} was given, which the members {lagging:?} of group {group} are not known to read; \
         upgrade them, or send what version {readable:?} reads"
    )]
    VersionNotReadable {
        /// The group.
        group: String,
        /// The command's version.
        version: u32,
        /// The newest version that is known to be read by every member, if any is.
        readable: Option<u32>,
        /// The nodes that do not read it, or have not said so.
        lagging: Vec<String>,
    },
    /// The command's time is far ahead of the group's.
    #[error(
        "the command would have to be remembered until {not_after}, hours after the time of group {group}, {log_time}: the \
         clock of the process that sent it is wrong, or its group's nodes' are"
    )]
    TooFarAhead {
        /// The group.
        group: String,
        /// The time for the group.
        log_time: LogTime,
        /// Until when the command was to be remembered.
        not_after: LogTime,
    },
    /// A member could not prove in time that its value is young enough.
    #[error(
        "this member of group {group} could not prove within {waited:?} that it has all that was committed {max:?} \
         before; retry, allow more, or ask for what any member has"
    )]
    Stale {
        /// The group.
        group: String,
        /// How old the answer may be.
        max: Duration,
        /// How long it was tried.
        waited: Duration,
    },
    /// It cannot be encoded.
    #[error("{0}")]
    Malformed(String),
}

/// Why an outcome is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownOutcome {
    /// The deadline came first.
    #[error("no reply within {0:?}")]
    Timeout(Duration),
    /// It is past the time up to which the group remembers whether it ran.
    #[error("its session has expired in the group, whose time is {log_time:?}")]
    Expired {
        /// The time for the group, where it has said so: see [`ClientSession::learn_from`](crate::ClientSession::learn_from).
        log_time: Option<LogTime>,
    },
    /// It ran before, and its reply was too much to keep.
    #[error("it ran before, and its reply is no longer kept; read what became of it")]
    ReplyGone,
    /// The replica stopped after it had taken the command.
    #[error("{0}")]
    Interrupted(String),
}

impl CommandError {
    /// Whether the command may have run.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }

    /// Whether the same command, as a new one, may succeed later without harm.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::NotHappened(reason) if reason.is_retryable())
    }
}

impl QueryError {
    /// Whether the same query may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::NotHappened(reason) if reason.is_retryable())
    }
}

impl NotHappened {
    /// Whether waiting may help.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::TooLarge { .. } | Self::Malformed(_))
    }
}

/// Why a lone group's members or leader were not changed by name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// The replica that runs on this node is a voting member.
    #[error("{name} is a member already; nothing is to be done")]
    AlreadyJoined {
        /// The node.
        name: String,
    },
    /// No member is on this node.
    #[error("{name} is no member; the members are {members:?}")]
    NotMember {
        /// Who was named.
        name: String,
        /// Who could have been.
        members: Vec<String>,
    },
    /// The member has no vote yet, so that it cannot lead.
    #[error("{name} does not vote yet; wait until it has all entries")]
    NotVoter {
        /// The node.
        name: String,
    },
    /// One change at a time; a change that a lost leader left half done is finished by the next one.
    #[error("another change of the members is under way; retry soon")]
    ChangeInProgress,
    /// Too few of the members that would remain answer.
    #[error(
        "{answering} of the {voters} members that would vote answer and have the entries, {needed} must; bring them back first"
    )]
    WouldBreakQuorum {
        /// Who answers and has the entries.
        answering: usize,
        /// How many must.
        needed: usize,
        /// How many would vote.
        voters: usize,
    },
    /// The leader is not removed, nor is the only member.
    #[error("{name} leads; replace the leader first")]
    IsLeader {
        /// The node.
        name: String,
    },
    /// The member has not answered for a while, or the node to be added did not answer.
    #[error("{name} does not answer ({}); see that it runs and can be reached", silence(*silent_for))]
    Unresponsive {
        /// The node.
        name: String,
        /// Since when, where that is known.
        silent_for: Option<Duration>,
    },
    /// The member that is to lead did not get all entries in time.
    #[error("{name} lacks {entries} entries; retry when it has caught up")]
    Behind {
        /// The node.
        name: String,
        /// How many it lacks.
        entries: u64,
    },
    /// A later request to replace the leader took this one's place, or cancelled it.
    #[error("a later request took this one's place, or cancelled it")]
    Superseded,
    /// The leader was replaced, but by another one: that one was elected meanwhile.
    #[error("{name} leads now; ask again")]
    LedByAnother {
        /// Who leads.
        name: String,
    },
    /// The members were not changed.
    #[error("the members were not changed: {0}")]
    NotHappened(#[from] NotHappened),
    /// The members may or may not have been changed: look at the status, or ask for the same again.
    #[error("the members may or may not have been changed: {0}; ask for the same again")]
    Unknown(#[from] UnknownOutcome),
}

fn silence(silent_for: Option<Duration>) -> String {
    silent_for.map_or_else(|| "not once".to_owned(), |silent| format!("for {silent:?}"))
}

impl MembershipError {
    /// Whether the change may have been made, or may still be.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }

    /// Whether a repeated request is refused because an earlier one has done it.
    pub(crate) fn says_that_it_was_made(&self) -> bool {
        matches!(self, Self::AlreadyJoined { .. } | Self::NotMember { .. })
    }

    /// Whether the same change may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::ChangeInProgress | Self::WouldBreakQuorum { .. } | Self::NotVoter { .. } => true,
            Self::Unresponsive { .. } | Self::Behind { .. } | Self::LedByAnother { .. } => true,
            Self::NotHappened(reason) => reason.is_retryable(),
            Self::AlreadyJoined { .. } | Self::NotMember { .. } | Self::IsLeader { .. } => false,
            Self::Superseded | Self::Unknown(_) => false,
        }
    }
}

/// Why the members of a group were not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembersError {
    /// Only the leader changes members.
    #[error("this replica does not lead; the leader is {leader:?}")]
    NotLeader {
        /// The leader, where it is known.
        leader: Option<ReplicaId>,
    },
    /// The members are not those the caller looked at, or another change is under way.
    #[error("the members were changed at {found:?}, the step was decided for {expected:?}; look again")]
    Changed {
        /// What the caller saw.
        expected: Option<LogPosition>,
        /// What is.
        found: Option<LogPosition>,
    },
    /// The step was decided before a step that was taken already.
    #[error("the step was decided at index {given}, a later one of index {taken} was taken; look again")]
    Outdated {
        /// The step's index.
        given: u64,
        /// The latest taken step's index.
        taken: u64,
    },
    /// The change would leave no voter, or names a replica that is no member.
    #[error("not allowed: {0}")]
    NotAllowed(String),
    /// The outcome is not known: look at the members again.
    #[error("the change may or may not have been made: {0}")]
    Unknown(String),
}

/// Why a member's data was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// Only a removed member's data is worth nothing to its group.
    #[error("this is a member of group {group}, as far as it knows; remove it first, from another member")]
    NotRemoved {
        /// The group.
        group: String,
    },
    /// The storage refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a group could not be initialized.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitializeError {
    /// It has a log already.
    #[error("the group has members already")]
    AlreadyInitialized,
    /// Wrong members.
    #[error("not allowed: {0}")]
    NotAllowed(String),
    /// The storage failed.
    #[error("{0}")]
    Storage(String),
}

/// Why a replica or a store did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A snapshot is missing or damaged while its log is gone.
    #[error(
        "group {group}: {reason}; the replica's data is damaged: restore it, or wipe the directory so that the node joins as new"
    )]
    Damaged {
        /// The group.
        group: String,
        /// What is wrong.
        reason: String,
    },
    /// Another version of the program wrote what this one finds.
    #[error(
        "group {group}: this program cannot read what is stored: {reason}; nothing is damaged, run the newer program"
    )]
    Unreadable {
        /// The group.
        group: String,
        /// Which version wrote it.
        reason: String,
    },
    /// The replica runs already, in this process.
    #[error("replica {replica} of group {group} runs already; shut it down first")]
    Running {
        /// The group.
        group: String,
        /// The replica.
        replica: ReplicaId,
    },
    /// The group removed this replica; it never comes back.
    #[error(
        "replica {replica} was removed from group {group}; delete it with Store::remove_replica, and the node can join as new"
    )]
    Removed {
        /// The group.
        group: String,
        /// The replica.
        replica: ReplicaId,
    },
    /// openraft refused.
    #[error("group {group} did not start: {reason}")]
    Raft {
        /// The group.
        group: String,
        /// Its words.
        reason: String,
    },
    /// A setting or argument is wrong.
    #[error("{0}")]
    Invalid(String),
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("{path}: {error}; check the path, its permissions and the space on its disk", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Its words.
        error: io::Error,
    },
    /// Another process uses it.
    #[error("{path} is in use by another process; stop that one, or give each node a directory of its own", path = path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// It is another node's.
    #[error("{path} belongs to node {found}, this node is named {given}; give the node its own directory", path = path.display())]
    WrongName {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who asked.
        given: String,
    },
    /// It was put back from an older copy of itself: it lacks votes and entries that others count on.
    #[error(
        "{path} was rolled back to an older copy, members of its groups know more of it than is in it; wipe it, and the node joins as new", path = path.display()
    )]
    RolledBack {
        /// The directory.
        path: PathBuf,
    },
    /// A file is not what it was when it was written, or was written by a newer program.
    #[error("{file}, byte {offset}: {reason}; restore the directory, or wipe it so that the node joins as new", file = file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// Another version of the program wrote it.
    #[error("{file} has format {found}, this program knows {known}: run a program that knows it; nothing is damaged", file = file.display())]
    OtherFormat {
        /// The file.
        file: PathBuf,
        /// Its format.
        found: u8,
        /// This program's.
        known: u8,
    },
    /// The log refused.
    #[error("{path}: {reason}", path = path.display())]
    Log {
        /// The log's directory.
        path: PathBuf,
        /// Its words, with file and offset.
        reason: String,
    },
}
