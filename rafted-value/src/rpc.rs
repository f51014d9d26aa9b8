//! What replicas of a group say to each other: requests and answers <-> bytes.
//!
//! ```text
//! request:  format u8 | cluster u128 | generation u64 | incarnation u64 | from u64 | to u64 | group str | kind u8 | body
//! answer:   format u8 | kind u8 | body
//! ```
//!
//! `to` is a ReplicaId, or 0 for "whichever replica of the group is on your node", which only requests of
//! clients may say. A receiver that does not host exactly that replica answers `WrongReplica`.

mod membership;
mod outcome;
mod returning;
mod snapshot;

use bytes::Bytes;

use self::outcome::{read_not_happened, read_unknown, write_not_happened, write_unknown};
pub(crate) use self::returning::Seen;
pub(crate) use self::snapshot::{SnapshotForm, SnapshotId, read_snapshot_meta, write_snapshot_meta};
use self::snapshot::{read_offer, read_snapshot, write_offer, write_snapshot};

use crate::change::Change;
use crate::codec::{Malformed, Reader, Writer};
use crate::error::{CommandError, MembershipError, NotHappened, QueryError, UnknownOutcome};
use crate::openraft_types::{LogId, SnapshotMeta, Vote, read_log_id, read_vote, write_log_id, write_vote};
use crate::starts::Start;
use crate::status::{Member, ReplicaId};
use crate::value::LogTime;

const FORMAT: u8 = 1;

/// From which replica to which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The cluster.
    pub cluster: ClusterTag,
    /// The group's incarnation; unsafe recovery raises it.
    pub incarnation: u64,
    /// The sender, `None` for a client.
    pub from: Option<ReplicaId>,
    /// The receiver, `None` for any replica of the group.
    pub to: Option<ReplicaId>,
    /// The group's name.
    pub group: String,
}

/// Which cluster, and how often it was recovered or restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ClusterTag {
    /// Minted at bootstrap.
    pub id: u128,
    /// Raised by recovery and restore.
    pub generation: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Request {
    pub(crate) envelope: Envelope,
    pub(crate) body: RequestBody,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum RequestBody {
    Append(Append),
    Vote {
        vote: Vote,
        last: Option<LogId>,
        transfer: bool,
    },
    PreVote {
        vote: Vote,
        last: Option<LogId>,
        transfer: bool,
    },
    TransferLeader {
        from: Vote,
        to: u64,
        last: Option<LogId>,
    },
    /// Followed by the snapshot's bytes from `offset` on.
    Snapshot {
        vote: Vote,
        meta: SnapshotMeta,
        id: SnapshotId,
        offset: u64,
    },
    /// How much of this snapshot do you have?
    SnapshotOffer {
        vote: Vote,
        meta: SnapshotMeta,
        id: SnapshotId,
        form: SnapshotForm,
    },
    /// An encoded `command.rs`, for the leader.
    Command(Bytes),
    /// An encoded query of the value, for the leader.
    Query(Bytes),
    /// An encoded query of the value, for whoever gets it.
    QueryAny(Bytes),
    /// An encoded query of the value, for any replica whose value is proven to have all that was committed that long
    /// before the query arrived.
    QueryWithStaleness {
        max: std::time::Duration,
        query: Bytes,
    },
    /// For the leader: how many entries hold all that is committed now?
    ReadIndex,
    /// Which version of the value does your program have (it reads that one's commands and those before it), and what
    /// does your clock say?
    Facts,
    /// Who are you, and do you know members? From the founder, it also asks for the promise that nobody else founds.
    Hello {
        founder: bool,
    },
    /// For the leader: change the members, or hand over, and answer within this time.
    Change {
        change: Change,
        within: std::time::Duration,
    },
    /// For the leader: is this replica a member?
    Seat {
        replica: u64,
    },
    /// This is the start of my directory: remember it, in place of this one, which is its own, and say which one you
    /// know.
    Returned {
        node: u64,
        start: Start,
        after: Option<Start>,
        /// Where I am: the receiver may wait for somebody to ask.
        asker: Member,
    },
    /// To a member that does not answer, or that does not lead although nobody does: this is where I am.
    Introduce(Member),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Append {
    pub(crate) vote: Vote,
    pub(crate) previous: Option<LogId>,
    pub(crate) commit: Option<LogId>,
    /// Term, index and payload as `openraft_types.rs` encodes it.
    pub(crate) entries: Vec<(u64, u64, Bytes)>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    AppendSuccess,
    AppendPartial(Option<LogId>),
    AppendConflict,
    AppendHigherVote(Vote),
    Vote {
        vote: Vote,
        granted: bool,
        last: Option<LogId>,
    },
    TransferAccepted,
    TransferVoteChanged {
        expected: Vote,
        actual: Vote,
    },
    TransferLogNotFlushed {
        expected: Option<LogId>,
        actual: Option<LogId>,
    },
    Snapshot {
        vote: Vote,
    },
    /// Send the snapshot from here on.
    SnapshotAt {
        offset: u64,
    },
    /// Others are being received, or this one is: come again.
    SnapshotBusy,
    /// The program cannot read it.
    SnapshotUnreadable {
        reason: String,
    },
    Reply(Bytes),
    ReadIndex {
        entries: u64,
    },
    Facts {
        newest: u32,
        wall: LogTime,
    },
    Hello {
        replica: u64,
        node: u64,
        incarnation: u64,
        initialized: bool,
    },
    Done,
    /// Not hosted here: "unreachable", never a vote or a log answer.
    WrongReplica,
    NotLeader {
        leader: Option<(u64, Member)>,
    },
    NotHappened(NotHappened),
    Unknown(UnknownOutcome),
    Failed(String),
    /// The change was not made, or is not known to have been.
    NotChanged(MembershipError),
    /// It goes on; ask again.
    NotYet,
    /// The sender is of an incarnation that unsafe recovery has ended.
    Ended {
        incarnation: u64,
    },
    /// As a majority has it: the replica is a member, or none.
    Seat {
        member: bool,
    },
    /// What is known of a directory that has started.
    Seen(Seen),
}

/// In a hello: whichever incarnation the receiver is of.
pub(crate) const ANY_INCARNATION: u64 = u64::MAX;

/// Reads who a request is for, without its body.
pub fn peek(request: &Bytes) -> Result<Envelope, Malformed> {
    let mut reader = Reader::new(request.clone(), "request");
    read_envelope(&mut reader)
}

/// Where `to` stands in a request: behind format, cluster, generation, incarnation and `from`.
const TO_AT: std::ops::Range<usize> = 41..49;

/// Whether a request comes from a client, or from whoever asks any replica of a group, and not from a replica to
/// exactly one other: what keeps a group alive must never wait behind these.
pub(crate) fn is_to_anyone(request: &[u8]) -> bool {
    request.get(TO_AT).is_none_or(|to| to.iter().all(|&byte| byte == 0))
}

/// The answer to a client's request that a node has no room for.
pub(crate) fn overloaded(requests: usize) -> Bytes {
    Answer::NotHappened(NotHappened::Overloaded { group: "of this node".into(), queued: requests }).encode()
}

impl Request {
    pub(crate) fn encode(&self) -> Bytes {
        let size = match &self.body {
            RequestBody::Append(append) => append.entries.iter().map(|(_, _, payload)| payload.len() + 20).sum(),
            RequestBody::Command(bytes) | RequestBody::Query(bytes) | RequestBody::QueryAny(bytes) => bytes.len(),
            RequestBody::QueryWithStaleness { query, .. } => query.len(),
            _ => 64,
        };
        let mut writer = Writer::with_capacity(size + 160 + self.envelope.group.len());
        let envelope = &self.envelope;
        writer.u8(FORMAT);
        writer.u128(envelope.cluster.id);
        writer.u64(envelope.cluster.generation);
        writer.u64(envelope.incarnation);
        writer.u64(envelope.from.map_or(0, ReplicaId::get));
        writer.u64(envelope.to.map_or(0, ReplicaId::get));
        writer.str(&envelope.group);
        self.body.write(&mut writer);
        writer.into_bytes()
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes, "request");
        let envelope = read_envelope(&mut reader)?;
        Ok(Self { envelope, body: RequestBody::read(reader)? })
    }
}

fn read_envelope(reader: &mut Reader) -> Result<Envelope, Malformed> {
    if reader.u8()? != FORMAT {
        return Err(Malformed("request: unknown format, the nodes run versions that do not know each other"));
    }
    Ok(Envelope {
        cluster: ClusterTag { id: reader.u128()?, generation: reader.u64()? },
        incarnation: reader.u64()?,
        from: ReplicaId::new(reader.u64()?),
        to: ReplicaId::new(reader.u64()?),
        group: reader.string()?,
    })
}

impl RequestBody {
    fn write(&self, writer: &mut Writer) {
        match self {
            Self::Append(append) => {
                writer.u8(1);
                write_vote(writer, &append.vote);
                writer.option(append.previous, write_log_id);
                writer.option(append.commit, write_log_id);
                writer.length(append.entries.len());
                for (term, index, payload) in &append.entries {
                    writer.u64(*term);
                    writer.u64(*index);
                    writer.slice(payload);
                }
            }
            Self::Vote { vote, last, transfer } => write_vote_request(writer, 2, vote, *last, *transfer),
            Self::PreVote { vote, last, transfer } => write_vote_request(writer, 3, vote, *last, *transfer),
            Self::TransferLeader { from, to, last } => {
                writer.u8(4);
                write_vote(writer, from);
                writer.u64(*to);
                writer.option(*last, write_log_id);
            }
            Self::Snapshot { vote, meta, id, offset } => {
                write_snapshot(writer, 5, vote, meta, *id);
                writer.u64(*offset);
            }
            Self::SnapshotOffer { vote, meta, id, form } => write_offer(writer, vote, meta, *id, *form),
            Self::Command(bytes) => write_raw(writer, 6, bytes),
            Self::Query(bytes) => write_raw(writer, 7, bytes),
            Self::QueryAny(bytes) => write_raw(writer, 8, bytes),
            Self::QueryWithStaleness { max, query } => {
                writer.u8(20);
                write_duration(writer, *max);
                writer.raw(query);
            }
            Self::ReadIndex => writer.u8(21),
            Self::Facts => writer.u8(22),
            Self::Hello { founder } => {
                writer.u8(9);
                writer.u8(u8::from(*founder));
            }
            Self::Change { change, within } => {
                writer.u8(10);
                write_duration(writer, *within);
                membership::write_change(writer, change);
            }
            Self::Seat { replica } => {
                writer.u8(30);
                writer.u64(*replica);
            }
            Self::Returned { node, start, after, asker } => {
                returning::write_returned(writer, 31, *node, *start, *after);
                asker.write(writer);
            }
            Self::Introduce(member) => {
                writer.u8(32);
                member.write(writer);
            }
        }
    }

    fn read(mut reader: Reader) -> Result<Self, Malformed> {
        let body = match reader.u8()? {
            1 => {
                let vote = read_vote(&mut reader)?;
                let previous = reader.option(read_log_id)?;
                let commit = reader.option(read_log_id)?;
                let count = reader.count(20)?;
                let mut entries = Vec::with_capacity(count);
                for _ in 0..count {
                    entries.push((reader.u64()?, reader.u64()?, reader.slice()?));
                }
                Self::Append(Append { vote, previous, commit, entries })
            }
            2 => {
                let (vote, last, transfer) = read_vote_request(&mut reader)?;
                Self::Vote { vote, last, transfer }
            }
            3 => {
                let (vote, last, transfer) = read_vote_request(&mut reader)?;
                Self::PreVote { vote, last, transfer }
            }
            4 => Self::TransferLeader {
                from: read_vote(&mut reader)?,
                to: reader.u64()?,
                last: reader.option(read_log_id)?,
            },
            5 => {
                let (vote, meta, id) = read_snapshot(&mut reader)?;
                Self::Snapshot { vote, meta, id, offset: reader.u64()? }
            }
            6 => return Ok(Self::Command(reader.rest())),
            7 => return Ok(Self::Query(reader.rest())),
            8 => return Ok(Self::QueryAny(reader.rest())),
            20 => {
                let max = read_duration(&mut reader)?;
                return Ok(Self::QueryWithStaleness { max, query: reader.rest() });
            }
            21 => Self::ReadIndex,
            22 => Self::Facts,
            9 => Self::Hello { founder: read_bool(&mut reader)? },
            10 => {
                let within = read_duration(&mut reader)?;
                Self::Change { change: membership::read_change(&mut reader)?, within }
            }
            30 => Self::Seat { replica: reader.u64()? },
            31 => returning::read_returned(&mut reader)?,
            32 => Self::Introduce(Member::read(&mut reader)?),
            11 => {
                let (vote, meta, id, form) = read_offer(&mut reader)?;
                Self::SnapshotOffer { vote, meta, id, form }
            }
            _ => return Err(reader.malformed()),
        };
        reader.end()?;
        Ok(body)
    }
}

fn write_raw(writer: &mut Writer, kind: u8, bytes: &Bytes) {
    writer.u8(kind);
    writer.raw(bytes);
}

fn write_vote_request(writer: &mut Writer, kind: u8, vote: &Vote, last: Option<LogId>, transfer: bool) {
    writer.u8(kind);
    write_vote(writer, vote);
    writer.option(last, write_log_id);
    writer.u8(u8::from(transfer));
}

fn read_vote_request(reader: &mut Reader) -> Result<(Vote, Option<LogId>, bool), Malformed> {
    Ok((read_vote(reader)?, reader.option(read_log_id)?, read_bool(reader)?))
}

fn read_bool(reader: &mut Reader) -> Result<bool, Malformed> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(reader.malformed()),
    }
}

impl Answer {
    pub(crate) fn encode(&self) -> Bytes {
        let size = if let Self::Reply(bytes) = self { bytes.len() } else { 64 };
        let mut writer = Writer::with_capacity(size + 8);
        writer.u8(FORMAT);
        match self {
            Self::AppendSuccess => writer.u8(1),
            Self::AppendPartial(last) => {
                writer.u8(2);
                writer.option(*last, write_log_id);
            }
            Self::AppendConflict => writer.u8(3),
            Self::AppendHigherVote(vote) => {
                writer.u8(4);
                write_vote(&mut writer, vote);
            }
            Self::Vote { vote, granted, last } => {
                writer.u8(5);
                write_vote(&mut writer, vote);
                writer.u8(u8::from(*granted));
                writer.option(*last, write_log_id);
            }
            Self::TransferAccepted => writer.u8(6),
            Self::TransferVoteChanged { expected, actual } => {
                writer.u8(7);
                write_vote(&mut writer, expected);
                write_vote(&mut writer, actual);
            }
            Self::TransferLogNotFlushed { expected, actual } => {
                writer.u8(8);
                writer.option(*expected, write_log_id);
                writer.option(*actual, write_log_id);
            }
            Self::Snapshot { vote } => {
                writer.u8(9);
                write_vote(&mut writer, vote);
            }
            Self::Reply(bytes) => write_raw(&mut writer, 10, bytes),
            Self::ReadIndex { entries } => {
                writer.u8(20);
                writer.u64(*entries);
            }
            Self::Facts { newest, wall } => {
                writer.u8(21);
                writer.u32(*newest);
                writer.u64(wall.as_millis());
            }
            Self::Hello { replica, node, incarnation, initialized } => {
                writer.u8(11);
                writer.u64(*replica);
                writer.u64(*node);
                writer.u64(*incarnation);
                writer.u8(u8::from(*initialized));
            }
            Self::Done => writer.u8(12),
            Self::WrongReplica => writer.u8(13),
            Self::NotLeader { leader } => {
                writer.u8(14);
                writer.option(leader.as_ref(), |writer, (replica, member)| {
                    writer.u64(*replica);
                    member.write(writer);
                });
            }
            Self::NotHappened(reason) => {
                writer.u8(15);
                write_not_happened(&mut writer, reason);
            }
            Self::Unknown(reason) => {
                writer.u8(16);
                write_unknown(&mut writer, reason);
            }
            Self::Failed(message) => {
                writer.u8(17);
                writer.str(message);
            }
            Self::NotChanged(refusal) => {
                writer.u8(30);
                membership::write_refusal(&mut writer, refusal);
            }
            Self::NotYet => writer.u8(31),
            Self::Ended { incarnation } => {
                writer.u8(33);
                writer.u64(*incarnation);
            }
            Self::Seat { member } => {
                writer.u8(32);
                writer.u8(u8::from(*member));
            }
            Self::SnapshotAt { offset } => {
                writer.u8(18);
                writer.u64(*offset);
            }
            Self::SnapshotBusy => writer.u8(19),
            Self::Seen(seen) => returning::write_seen(&mut writer, 34, seen),
            Self::SnapshotUnreadable { reason } => {
                writer.u8(35);
                writer.slice(reason.as_bytes());
            }
        }
        writer.into_bytes()
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes, "answer");
        if reader.u8()? != FORMAT {
            return Err(Malformed("answer: unknown format, the nodes run versions that do not know each other"));
        }
        let answer = match reader.u8()? {
            1 => Self::AppendSuccess,
            2 => Self::AppendPartial(reader.option(read_log_id)?),
            3 => Self::AppendConflict,
            4 => Self::AppendHigherVote(read_vote(&mut reader)?),
            5 => Self::Vote {
                vote: read_vote(&mut reader)?,
                granted: read_bool(&mut reader)?,
                last: reader.option(read_log_id)?,
            },
            6 => Self::TransferAccepted,
            7 => Self::TransferVoteChanged { expected: read_vote(&mut reader)?, actual: read_vote(&mut reader)? },
            8 => Self::TransferLogNotFlushed {
                expected: reader.option(read_log_id)?,
                actual: reader.option(read_log_id)?,
            },
            9 => Self::Snapshot { vote: read_vote(&mut reader)? },
            10 => return Ok(Self::Reply(reader.rest())),
            11 => Self::Hello {
                replica: reader.u64()?,
                node: reader.u64()?,
                incarnation: reader.u64()?,
                initialized: read_bool(&mut reader)?,
            },
            20 => Self::ReadIndex { entries: reader.u64()? },
            21 => Self::Facts { newest: reader.u32()?, wall: LogTime::from_millis(reader.u64()?) },
            12 => Self::Done,
            13 => Self::WrongReplica,
            14 => Self::NotLeader { leader: reader.option(|reader| Ok((reader.u64()?, Member::read(reader)?)))? },
            15 => Self::NotHappened(read_not_happened(&mut reader)?),
            16 => Self::Unknown(read_unknown(&mut reader)?),
            17 => Self::Failed(reader.string()?),
            30 => Self::NotChanged(membership::read_refusal(&mut reader)?),
            31 => Self::NotYet,
            33 => Self::Ended { incarnation: reader.u64()? },
            32 => Self::Seat { member: read_bool(&mut reader)? },
            18 => Self::SnapshotAt { offset: reader.u64()? },
            19 => Self::SnapshotBusy,
            34 => Self::Seen(returning::read_seen(&mut reader)?),
            35 => Self::SnapshotUnreadable { reason: reader.string()? },
            _ => return Err(reader.malformed()),
        };
        reader.end()?;
        Ok(answer)
    }
}

fn write_duration(writer: &mut Writer, duration: std::time::Duration) {
    writer.u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
}

fn read_duration(reader: &mut Reader) -> Result<std::time::Duration, Malformed> {
    Ok(std::time::Duration::from_millis(reader.u64()?))
}

#[cfg(test)]
mod tests;
