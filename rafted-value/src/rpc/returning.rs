//! What a restarted replica asks, and what others know of it <-> bytes.

use super::{RequestBody, read_bool};
use crate::codec::{Malformed, Reader, Writer};
use crate::starts::Start;
use crate::status::{LogPosition, Member, Members, ReplicaId};
use crate::verdict::ToldLeader;

/// What a replica knows of the directory of another one's node, and of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Who says it.
    pub(crate) replica: ReplicaId,
    /// The latest start that it knows now: the one it was told, unless it knew of another one than it was told.
    pub(crate) start: Option<Start>,
    /// The members as it knows them.
    pub(crate) members: Members,
    /// What the asking replica has told it as its leader.
    pub(crate) told: Option<ToldLeader>,
}

pub(super) fn write_returned(writer: &mut Writer, kind: u8, node: u64, start: Start, after: Option<Start>) {
    writer.u8(kind);
    writer.u64(node);
    write_start(writer, start);
    writer.option(after, write_start);
}

pub(super) fn read_returned(reader: &mut Reader) -> Result<RequestBody, Malformed> {
    let (node, start, after) = (reader.u64()?, read_start(reader)?, reader.option(read_start)?);
    Ok(RequestBody::Returned { node, start, after, asker: Member::read(reader)? })
}

pub(super) fn write_seen(writer: &mut Writer, kind: u8, seen: &Seen) {
    writer.u8(kind);
    writer.u64(seen.replica.get());
    writer.option(seen.start, write_start);
    writer.option(seen.told, |writer, told| {
        writer.u64(told.term);
        writer.u64(told.entries);
    });
    let members = &seen.members;
    writer.option(members.position, |writer, position| {
        writer.u64(position.term);
        writer.u64(position.index);
    });
    writer.u8(u8::from(members.committed));
    writer.length(members.voters.len());
    for set in &members.voters {
        writer.length(set.len());
        set.iter().for_each(|id| writer.u64(id.get()));
    }
    writer.length(members.replicas.len());
    for (id, member) in &members.replicas {
        writer.u64(id.get());
        member.write(writer);
    }
}

pub(super) fn read_seen(reader: &mut Reader) -> Result<Seen, Malformed> {
    let replica = read_id(reader)?;
    let start = reader.option(read_start)?;
    let told = reader.option(|reader| Ok(ToldLeader { term: reader.u64()?, entries: reader.u64()? }))?;
    let position = reader.option(|reader| Ok(LogPosition { term: reader.u64()?, index: reader.u64()? }))?;
    let mut members = Members { position, committed: read_bool(reader)?, ..Members::default() };
    for _ in 0..reader.count(4)? {
        let ids = (0..reader.count(8)?).map(|_| read_id(reader)).collect::<Result<_, _>>()?;
        members.voters.push(ids);
    }
    for _ in 0..reader.count(8)? {
        members.replicas.insert(read_id(reader)?, Member::read(reader)?);
    }
    Ok(Seen { replica, start, members, told })
}

fn write_start(writer: &mut Writer, start: Start) {
    writer.u64(start.boot);
    writer.u64(start.number);
}

fn read_start(reader: &mut Reader) -> Result<Start, Malformed> {
    Ok(Start { boot: reader.u64()?, number: reader.u64()? })
}

fn read_id(reader: &mut Reader) -> Result<ReplicaId, Malformed> {
    ReplicaId::new(reader.u64()?).ok_or_else(|| reader.malformed())
}
