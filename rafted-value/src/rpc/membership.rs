//! Changes of members, and why one was refused <-> bytes.

use super::outcome::{read_not_happened, read_unknown, write_not_happened, write_unknown};
use super::{read_duration, write_duration};
use crate::change::Change;
use crate::codec::{Malformed, Reader, Writer};
use crate::error::MembershipError;
use crate::status::{Member, ReplicaId};

pub(super) fn write_change(writer: &mut Writer, change: &Change) {
    match change {
        Change::Add { replica, member } => write_replica(writer, 1, *replica, member),
        Change::Describe { replica, member } => write_replica(writer, 4, *replica, member),
        Change::Remove { name } => write_name(writer, 2, name),
        Change::ReplaceLeader { name } => {
            writer.u8(3);
            writer.option(name.as_deref(), Writer::str);
        }
    }
}

pub(super) fn read_change(reader: &mut Reader) -> Result<Change, Malformed> {
    Ok(match reader.u8()? {
        1 => Change::Add { replica: read_replica(reader)?, member: Member::read(reader)? },
        4 => Change::Describe { replica: read_replica(reader)?, member: Member::read(reader)? },
        2 => Change::Remove { name: reader.string()? },
        3 => Change::ReplaceLeader { name: reader.option(Reader::string)? },
        _ => return Err(reader.malformed()),
    })
}

pub(super) fn write_refusal(writer: &mut Writer, refusal: &MembershipError) {
    match refusal {
        MembershipError::AlreadyJoined { name } => write_name(writer, 1, name),
        MembershipError::NotMember { name, members } => {
            write_name(writer, 2, name);
            writer.length(members.len());
            members.iter().for_each(|member| writer.str(member));
        }
        MembershipError::NotVoter { name } => write_name(writer, 3, name),
        MembershipError::ChangeInProgress => writer.u8(4),
        MembershipError::WouldBreakQuorum { answering, needed, voters } => {
            writer.u8(5);
            [answering, needed, voters].into_iter().for_each(|&count| writer.length(count));
        }
        MembershipError::IsLeader { name } => write_name(writer, 6, name),
        MembershipError::Unresponsive { name, silent_for } => {
            write_name(writer, 7, name);
            writer.option(*silent_for, write_duration);
        }
        MembershipError::Superseded => writer.u8(8),
        MembershipError::LedByAnother { name } => write_name(writer, 9, name),
        MembershipError::Behind { name, entries } => {
            write_name(writer, 12, name);
            writer.u64(*entries);
        }
        MembershipError::NotHappened(reason) => {
            writer.u8(10);
            write_not_happened(writer, reason);
        }
        MembershipError::Unknown(reason) => {
            writer.u8(11);
            write_unknown(writer, reason);
        }
    }
}

pub(super) fn read_refusal(reader: &mut Reader) -> Result<MembershipError, Malformed> {
    Ok(match reader.u8()? {
        1 => MembershipError::AlreadyJoined { name: reader.string()? },
        2 => {
            let name = reader.string()?;
            let count = reader.count(4)?;
            MembershipError::NotMember { name, members: (0..count).map(|_| reader.string()).collect::<Result<_, _>>()? }
        }
        3 => MembershipError::NotVoter { name: reader.string()? },
        4 => MembershipError::ChangeInProgress,
        5 => MembershipError::WouldBreakQuorum {
            answering: reader.u32()? as usize,
            needed: reader.u32()? as usize,
            voters: reader.u32()? as usize,
        },
        6 => MembershipError::IsLeader { name: reader.string()? },
        7 => MembershipError::Unresponsive { name: reader.string()?, silent_for: reader.option(read_duration)? },
        8 => MembershipError::Superseded,
        9 => MembershipError::LedByAnother { name: reader.string()? },
        10 => MembershipError::NotHappened(read_not_happened(reader)?),
        11 => MembershipError::Unknown(read_unknown(reader)?),
        12 => MembershipError::Behind { name: reader.string()?, entries: reader.u64()? },
        _ => return Err(reader.malformed()),
    })
}

fn write_replica(writer: &mut Writer, kind: u8, replica: ReplicaId, member: &Member) {
    writer.u8(kind);
    writer.u64(replica.get());
    member.write(writer);
}

fn read_replica(reader: &mut Reader) -> Result<ReplicaId, Malformed> {
    ReplicaId::new(reader.u64()?).ok_or_else(|| reader.malformed())
}

fn write_name(writer: &mut Writer, kind: u8, name: &str) {
    writer.u8(kind);
    writer.str(name);
}
