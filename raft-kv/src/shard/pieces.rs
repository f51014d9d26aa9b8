//! A shard's way into a snapshot and out of it: pieces of keys in order, so that a snapshot of a large shard needs a few
//! hundred KiB beside the shard, and what commands change meanwhile.
//!
//! ```text
//! head | keys .. | clients ..
//! ```

use std::sync::Arc;

use rafted_value::rkyv::{Archive, Deserialize, Serialize};
use rafted_value::{PieceError, PieceReader, PieceWriter, UpgradeError, Value};

use super::Shard;
use super::archive::{AsList, Entries, Key};
use super::clients::KeyClients;
use super::keys::Record;
use super::phase::Ownership;
use crate::keyed_value::KeyedValue;

/// A piece ends with the entry that makes it so large, as far as values know their sizes.
const PIECE_BYTES: u64 = 128 << 10;
/// A piece ends with this entry at the latest: sizes may be those of what lies inline only.
const PIECE_ENTRIES: usize = 1_024;
/// What an entry takes besides its key and value.
const ENTRY_BYTES: u64 = 32;

/// The first piece: all that is no entry.
#[derive(Archive, Serialize, Deserialize)]
#[rkyv(crate = rafted_value::rkyv)]
struct Head {
    ownership: Ownership,
    last_version: u64,
    load: u64,
}

/// A further piece.
#[derive(Archive, Serialize, Deserialize)]
#[rkyv(crate = rafted_value::rkyv)]
enum Piece<K: Archive> {
    Keys(#[rkyv(with = AsList)] Entries<Record<K>>),
    Clients(#[rkyv(with = AsList)] Entries<KeyClients>),
}

pub(super) fn write<K: KeyedValue>(shard: &Shard<K>, pieces: &mut PieceWriter<'_>) -> Result<(), PieceError> {
    let Shard { ownership, last_version, load, .. } = shard;
    pieces.write(&Head { ownership: ownership.clone(), last_version: *last_version, load: *load })?;
    in_runs(shard.keys.entries(), |record| record.size, |run| pieces.write(&Piece::<K>::Keys(run)))?;
    in_runs(shard.clients.entries(), KeyClients::size, |run| pieces.write(&Piece::<K>::Clients(run)))
}

pub(super) fn read<K: KeyedValue>(version: u32, pieces: &mut PieceReader<'_>) -> Result<Shard<K>, UpgradeError> {
    let known = <Shard<K> as Value>::VERSION;
    if version != known {
        return Err(UpgradeError::UnknownVersion { found: version, known });
    }
    let Head { ownership, last_version, load } = pieces.read()?.ok_or(PieceError::Missing)?;
    let mut shard = Shard { ownership, last_version, load, ..Shard::default() };
    while let Some(piece) = pieces.read()? {
        match piece {
            Piece::Keys(run) => shard.keys.restore(run),
            Piece::Clients(run) => shard.clients.restore(run),
        }
    }
    Ok(shard)
}

/// Cuts entries into runs of about [`PIECE_BYTES`]. A run holds its entries by reference counts.
fn in_runs<'a, V: 'a>(
    entries: impl Iterator<Item = (&'a Key, &'a Arc<V>)>,
    size: impl Fn(&V) -> u64,
    mut put: impl FnMut(Entries<V>) -> Result<(), PieceError>,
) -> Result<(), PieceError> {
    let (mut run, mut bytes) = (Vec::new(), 0_u64);
    for (key, value) in entries {
        run.push((key.clone(), value.clone()));
        bytes = bytes.saturating_add(size(value)).saturating_add(key.as_str().len() as u64 + ENTRY_BYTES);
        if bytes >= PIECE_BYTES || run.len() >= PIECE_ENTRIES {
            put(std::mem::take(&mut run))?;
            bytes = 0;
        }
    }
    if run.is_empty() { Ok(()) } else { put(run) }
}
