//! What the messages about snapshots say of them <-> bytes.

use crate::codec::{Malformed, Reader, Writer};
use crate::openraft_types::{
    SnapshotMeta, StoredMembership, Vote, read_log_id, read_membership, read_vote, write_log_id, write_membership,
    write_vote,
};

/// Which snapshot: two of one state have different bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SnapshotId {
    /// Drawn at random when it was built.
    pub(crate) id: u64,
    /// Its length in bytes.
    pub(crate) length: u64,
}

/// What a program must know to read a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SnapshotForm {
    /// The number of its format.
    pub(crate) format: u8,
    /// The value's version.
    pub(crate) version: u32,
}

pub(super) fn write_snapshot(writer: &mut Writer, kind: u8, vote: &Vote, meta: &SnapshotMeta, id: SnapshotId) {
    writer.u8(kind);
    write_vote(writer, vote);
    write_snapshot_meta(writer, meta);
    writer.u64(id.id);
    writer.u64(id.length);
}

pub(super) fn read_snapshot(reader: &mut Reader) -> Result<(Vote, SnapshotMeta, SnapshotId), Malformed> {
    let (vote, meta) = (read_vote(reader)?, read_snapshot_meta(reader)?);
    Ok((vote, meta, SnapshotId { id: reader.u64()?, length: reader.u64()? }))
}

pub(super) fn write_offer(writer: &mut Writer, vote: &Vote, meta: &SnapshotMeta, id: SnapshotId, form: SnapshotForm) {
    write_snapshot(writer, 11, vote, meta, id);
    writer.u8(form.format);
    writer.u32(form.version);
}

pub(super) fn read_offer(reader: &mut Reader) -> Result<(Vote, SnapshotMeta, SnapshotId, SnapshotForm), Malformed> {
    let (vote, meta, id) = read_snapshot(reader)?;
    Ok((vote, meta, id, SnapshotForm { format: reader.u8()?, version: reader.u32()? }))
}

pub(crate) fn write_snapshot_meta(writer: &mut Writer, meta: &SnapshotMeta) {
    writer.option(meta.last_log_id, write_log_id);
    writer.option(*meta.last_membership.log_id(), write_log_id);
    write_membership(writer, meta.last_membership.membership());
}

pub(crate) fn read_snapshot_meta(reader: &mut Reader) -> Result<SnapshotMeta, Malformed> {
    let last_log_id = reader.option(read_log_id)?;
    let membership_at = reader.option(read_log_id)?;
    let membership = read_membership(reader)?;
    Ok(SnapshotMeta { last_log_id, last_membership: StoredMembership::new(membership_at, membership) })
}
