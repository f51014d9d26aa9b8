//! The one concrete type config, and the only aliases of openraft's types in the workspace. Log data and
//! replies are opaque bytes; encoding happens at the group handle.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;

use crate::codec::{Malformed, Reader, Writer};
use crate::status::{LogPosition, Member, Members, ReplicaId};
use crate::value::LogTime;

openraft::declare_raft_types!(
    /// The concrete type config.
    pub(crate) Types:
        D = EntryData,
        R = Applied,
        NodeId = u64,
        Node = Member,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = crate::runtime::Runtime,
);

pub(crate) type Entry = openraft::type_config::alias::EntryOf<Types>;
pub(crate) type LogId = openraft::type_config::alias::LogIdOf<Types>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<Types>;
pub(crate) type Membership = openraft::Membership<u64, Member>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;
type Payload = openraft::EntryPayload<EntryData, u64, Member>;

/// A command's bytes in the log: an envelope of `command.rs`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct EntryData(pub(crate) Bytes);

impl fmt::Debug for EntryData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for EntryData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying an entry answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Applied {
    /// A blank or a membership: nobody asked.
    Nothing,
    /// The encoded reply, and the entry's index.
    Reply(Bytes),
    /// Past its `not_after`, or at or below its session's low-water mark: whether it ran before is not known.
    Expired {
        /// The time for the group.
        log_time: LogTime,
    },
    /// It ran before, and its reply was not kept.
    ReplyGone,
    /// It did not run: what it asks to be remembered for is too long.
    TooFarAhead {
        /// The time for the group.
        log_time: LogTime,
        /// The command's.
        not_after: LogTime,
    },
    /// It did not run: too many commands are remembered.
    Crowded,
    /// The user's code panicked, or the command's bytes are not of the value's type.
    Failed(String),
}

const KEPT_REPLY: u8 = 0;
const KEPT_FAILURE: u8 = 1;

impl Applied {
    /// What a session keeps of it, to answer a repetition.
    pub(crate) fn to_kept(&self) -> Bytes {
        let (kind, bytes) = match self {
            Self::Reply(reply) => (KEPT_REPLY, &reply[..]),
            Self::Failed(message) => (KEPT_FAILURE, message.as_bytes()),
            _ => (KEPT_REPLY, &[][..]),
        };
        let mut writer = Writer::with_capacity(1 + bytes.len());
        writer.u8(kind);
        writer.raw(bytes);
        writer.into_bytes()
    }

    /// Reads what [`Applied::to_kept`] wrote.
    pub(crate) fn from_kept(kept: Bytes) -> Self {
        match kept.first() {
            Some(&KEPT_REPLY) => Self::Reply(kept.slice(1..)),
            Some(_) => Self::Failed(String::from_utf8_lossy(&kept[1..]).into_owned()),
            None => Self::ReplyGone,
        }
    }
}

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    openraft::LogId::new(openraft::vote::leader_id_std::CommittedLeaderId::new(term), index)
}

pub(crate) fn vote(term: u64, voted_for: u64, committed: bool) -> Vote {
    openraft::Vote { leader_id: openraft::impls::leader_id_std::LeaderId { term, voted_for }, committed }
}

pub(crate) fn entry(term: u64, index: u64, payload: Payload) -> Entry {
    openraft::Entry { log_id: log_id(term, index), payload }
}

pub(crate) fn position(id: LogId) -> LogPosition {
    LogPosition { term: **id.committed_leader_id(), index: id.index }
}

pub(crate) fn members_of(effective: &StoredMembership, committed: &StoredMembership) -> Members {
    let membership = effective.membership();
    let ids = |voters: &BTreeSet<u64>| voters.iter().copied().filter_map(ReplicaId::new).collect();
    let replica = |(&id, member): (&u64, &Member)| Some((ReplicaId::new(id)?, member.clone()));
    Members {
        replicas: membership.nodes().filter_map(replica).collect(),
        voters: membership.get_joint_config().iter().map(ids).collect(),
        position: effective.log_id().map(position),
        committed: effective.log_id() == committed.log_id(),
    }
}

const PAYLOAD_BLANK: u8 = 0;
const PAYLOAD_COMMAND: u8 = 1;
const PAYLOAD_MEMBERSHIP: u8 = 2;

/// An entry's payload in the log and on the wire: one byte for its kind, then its bytes.
pub(crate) fn encode_payload(payload: &Payload) -> Bytes {
    match payload {
        Payload::Blank => Bytes::from_static(&[PAYLOAD_BLANK]),
        Payload::Normal(data) => {
            let mut writer = Writer::with_capacity(1 + data.0.len());
            writer.u8(PAYLOAD_COMMAND);
            writer.raw(&data.0);
            writer.into_bytes()
        }
        Payload::Membership(membership) => {
            let mut writer = Writer::default();
            writer.u8(PAYLOAD_MEMBERSHIP);
            write_membership(&mut writer, membership);
            writer.into_bytes()
        }
    }
}

/// Reads what [`encode_payload`] wrote; a command shares the buffer.
pub(crate) fn decode_payload(bytes: Bytes) -> Result<Payload, Malformed> {
    let mut reader = Reader::new(bytes, "log entry");
    match reader.u8()? {
        PAYLOAD_BLANK => reader.end().map(|()| Payload::Blank),
        PAYLOAD_COMMAND => Ok(Payload::Normal(EntryData(reader.rest()))),
        PAYLOAD_MEMBERSHIP => {
            let membership = read_membership(&mut reader)?;
            reader.end().map(|()| Payload::Membership(membership))
        }
        _ => Err(reader.malformed()),
    }
}

/// The command in an encoded payload, if it is one; shares the buffer.
pub(crate) fn command_of(payload: &Bytes) -> Option<Bytes> {
    (payload.first() == Some(&PAYLOAD_COMMAND)).then(|| payload.slice(1..))
}

pub(crate) fn write_membership(writer: &mut Writer, membership: &Membership) {
    let configs = membership.get_joint_config();
    writer.length(configs.len());
    for voters in configs {
        writer.length(voters.len());
        voters.iter().for_each(|&voter| writer.u64(voter));
    }
    let nodes: Vec<_> = membership.nodes().collect();
    writer.length(nodes.len());
    for (&id, member) in nodes {
        writer.u64(id);
        member.write(writer);
    }
}

pub(crate) fn read_membership(reader: &mut Reader) -> Result<Membership, Malformed> {
    let mut configs = Vec::new();
    for _ in 0..reader.count(4)? {
        let mut voters = BTreeSet::new();
        for _ in 0..reader.count(8)? {
            voters.insert(reader.u64()?);
        }
        configs.push(voters);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..reader.count(8)? {
        let id = reader.u64()?;
        nodes.insert(id, Member::read(reader)?);
    }
    Membership::new(configs, nodes).map_err(|_| reader.malformed())
}

pub(crate) fn write_log_id(writer: &mut Writer, id: LogId) {
    writer.u64(**id.committed_leader_id());
    writer.u64(id.index);
}

pub(crate) fn read_log_id(reader: &mut Reader) -> Result<LogId, Malformed> {
    let term = reader.u64()?;
    Ok(log_id(term, reader.u64()?))
}

pub(crate) fn write_vote(writer: &mut Writer, vote: &Vote) {
    writer.u64(vote.leader_id.term);
    writer.u64(vote.leader_id.voted_for);
    writer.u8(u8::from(vote.committed));
}

pub(crate) fn read_vote(reader: &mut Reader) -> Result<Vote, Malformed> {
    let (term, voted_for) = (reader.u64()?, reader.u64()?);
    match reader.u8()? {
        0 => Ok(vote(term, voted_for, false)),
        1 => Ok(vote(term, voted_for, true)),
        _ => Err(reader.malformed()),
    }
}
