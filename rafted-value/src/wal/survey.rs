//! Which files a log's directory has, and what each is, by its header. Nothing is written.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::WalError;
use super::record::{
    FIRST_OFFSET, FORMAT_VERSION, SEGMENT_HEADER_BYTES, Salt, SegmentHeader, SegmentHeaderError, UNUSED,
};
use super::scan::{Flaw, find_header};
use super::segment::{SegmentFile, segment_number};
use crate::disk::Disk;

/// A segment's file.
pub(super) struct Found {
    pub(super) segment: SegmentFile,
    pub(super) length: u64,
    /// None if it has no valid one.
    pub(super) header: Option<SegmentHeader>,
}

/// A segment that holds, or held, batches.
pub(super) struct FoundUsed {
    pub(super) segment: SegmentFile,
    pub(super) length: u64,
    pub(super) header: SegmentHeader,
}

/// The segments of a directory.
#[derive(Default)]
pub(super) struct Survey {
    /// The salt of all of them; none if there is no segment with a valid header.
    pub(super) salt: Option<Salt>,
    /// By use.
    pub(super) used: BTreeMap<u64, FoundUsed>,
    /// Nothing was written to them for a use that counts.
    pub(super) spares: Vec<Found>,
    pub(super) next_number: u32,
}

impl Found {
    pub(super) fn damage(&self, offset: u64, what: impl Into<String>) -> WalError {
        damage(&self.segment, offset, what)
    }
}

impl FoundUsed {
    pub(super) fn damage(&self, offset: u64, what: impl Into<String>) -> WalError {
        damage(&self.segment, offset, what)
    }

    pub(super) fn flawed(&self, flaw: Flaw) -> WalError {
        match flaw {
            Flaw::Damage { offset, what } => self.damage(offset, what),
            Flaw::Version { offset, found } => {
                let (file, found, supported) = (self.segment.path.clone(), u32::from(found), u32::from(FORMAT_VERSION));
                WalError::Version { file, offset, found, supported }
            }
        }
    }

    /// Reads the file into `bytes`, in place of what is there.
    pub(super) fn read_into(&self, bytes: &mut Vec<u8>) -> Result<(), WalError> {
        read_into(&self.segment, self.length, bytes)
    }
}

pub(super) fn damage(segment: &SegmentFile, offset: u64, what: impl Into<String>) -> WalError {
    WalError::Damage { file: segment.path.clone(), offset, what: what.into() }
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WalError {
    let path: PathBuf = path.to_owned();
    move |source| WalError::Io { action, path, source }
}

/// Looks at every segment's header.
pub(super) fn survey(disk: &dyn Disk, dir: &Path) -> Result<Survey, WalError> {
    let (all, next_number) = find(disk, dir)?;
    let salt = common_salt(&all)?;
    let mut survey = Survey { salt, used: BTreeMap::new(), spares: Vec::new(), next_number };
    let mut suspects = Vec::new();
    for found in all {
        match found.header {
            Some(header) if header.segment_use == UNUSED => survey.spares.push(found),
            Some(header) => {
                let Found { segment, length, .. } = found;
                let found = FoundUsed { segment, length, header };
                if let Some(twin) = survey.used.insert(header.segment_use, found) {
                    return Err(twin.damage(32, format!("two segments have use {}", header.segment_use)));
                }
            }
            None => suspects.push(found),
        }
    }
    let newest = survey.used.last_key_value().map(|(&segment_use, _)| segment_use);
    for suspect in suspects {
        check_unused(&suspect, salt, newest.unwrap_or(UNUSED) + 1)?;
        survey.spares.push(suspect);
    }
    if let (None, Some(spare)) = (newest, survey.spares.first().filter(|_| salt.is_some())) {
        // Spares are made after the first segment's header was synced.
        return Err(spare.damage(0, "all segments are prepared for use, and those in use are missing"));
    }
    Ok(survey)
}

fn find(disk: &dyn Disk, dir: &Path) -> Result<(Vec<Found>, u32), WalError> {
    let mut all = Vec::new();
    let mut next_number = 1;
    for name in disk.list(dir).map_err(failed("list", dir))? {
        let Some(number) = segment_number(&name) else {
            continue;
        };
        next_number = next_number.max(number.saturating_add(1));
        let path = dir.join(&name);
        let file = disk.open(&path).map_err(failed("open", &path))?;
        let length = file.len().map_err(failed("read", &path))?;
        let mut header = vec![0; SEGMENT_HEADER_BYTES.min(length as usize)];
        file.read_at(&mut header, 0).map_err(failed("read", &path))?;
        let header = match SegmentHeader::decode(&header) {
            Ok(header) => Some(header),
            Err(SegmentHeaderError::Invalid) => None,
            Err(SegmentHeaderError::Version(found)) => {
                return Err(WalError::Version { file: path, offset: 0, found, supported: u32::from(FORMAT_VERSION) });
            }
        };
        all.push(Found { segment: SegmentFile { path, file }, length, header });
    }
    Ok((all, next_number))
}

fn common_salt(found: &[Found]) -> Result<Option<Salt>, WalError> {
    let mut common: Option<Salt> = None;
    for found in found {
        match (found.header, common) {
            (Some(header), None) => common = Some(header.salt),
            (Some(header), Some(salt)) if header.salt != salt => {
                return Err(WalError::Foreign { file: found.segment.path.clone() });
            }
            _ => {}
        }
    }
    Ok(common)
}

/// A segment without a header may be one that was being made or reused at a crash; then nothing was written to
/// it for `next_use`. If something was, its header was synced before, and is damaged now.
fn check_unused(suspect: &Found, salt: Option<Salt>, next_use: u64) -> Result<(), WalError> {
    let mut bytes = Vec::new();
    read_into(&suspect.segment, suspect.length, &mut bytes)?;
    let body = bytes.get(SEGMENT_HEADER_BYTES..).unwrap_or_default();
    let written = match salt {
        Some(salt) => find_header(&bytes, FIRST_OFFSET as usize, &salt, next_use, |_| true).is_some(),
        None => body.iter().any(|&byte| byte != 0),
    };
    if written { Err(suspect.damage(0, "the segment's header is not valid")) } else { Ok(()) }
}

fn read_into(segment: &SegmentFile, length: u64, bytes: &mut Vec<u8>) -> Result<(), WalError> {
    // What is there already need not be zeroed again.
    bytes.resize(length as usize, 0);
    segment.file.read_at(bytes, 0).map_err(failed("read", &segment.path))
}
