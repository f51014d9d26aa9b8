//! Outcomes of commands and queries as answers.

use bytes::Bytes;

use super::*;

impl From<Result<Bytes, CommandError>> for Answer {
    fn from(result: Result<Bytes, CommandError>) -> Self {
        match result {
            Ok(reply) => Self::Reply(reply),
            Err(CommandError::NotHappened(reason)) => Self::NotHappened(reason),
            Err(CommandError::Unknown(reason)) => Self::Unknown(reason),
            Err(CommandError::Failed(message)) => Self::Failed(message),
        }
    }
}

impl From<Result<Bytes, QueryError>> for Answer {
    fn from(result: Result<Bytes, QueryError>) -> Self {
        match result {
            Ok(reply) => Self::Reply(reply),
            Err(QueryError::NotHappened(reason)) => Self::NotHappened(reason),
            Err(QueryError::Failed(message)) => Self::Failed(message),
        }
    }
}

pub(super) fn write_not_happened(writer: &mut Writer, reason: &NotHappened) {
    match reason {
        NotHappened::NoLeader { group, waited } => {
            writer.u8(1);
            writer.str(group);
            write_duration(writer, *waited);
        }
        NotHappened::TooLarge { bytes, max_bytes } => {
            writer.u8(2);
            writer.u64(*bytes as u64);
            writer.u64(*max_bytes as u64);
        }
        NotHappened::Overloaded { group, queued } => {
            writer.u8(3);
            writer.str(group);
            writer.u64(*queued as u64);
        }
        NotHappened::Stopped { group, reason } => {
            writer.u8(4);
            writer.str(group);
            writer.str(reason);
        }
        NotHappened::Malformed(message) => {
            writer.u8(5);
            writer.str(message);
        }
        NotHappened::DiskFull { group } => {
            writer.u8(6);
            writer.str(group);
        }
        NotHappened::VersionNotReadable { group, version, readable, lagging } => {
            writer.u8(21);
            writer.str(group);
            writer.u32(*version);
            writer.option(*readable, Writer::u32);
            writer.length(lagging.len());
            lagging.iter().for_each(|name| writer.str(name));
        }
        NotHappened::TooFarAhead { group, log_time, not_after } => {
            writer.u8(22);
            writer.str(group);
            writer.u64(log_time.as_millis());
            writer.u64(not_after.as_millis());
        }
        NotHappened::Stale { group, max, waited } => {
            writer.u8(20);
            writer.str(group);
            write_duration(writer, *max);
            write_duration(writer, *waited);
        }
    }
}

pub(super) fn read_not_happened(reader: &mut Reader) -> Result<NotHappened, Malformed> {
    Ok(match reader.u8()? {
        1 => NotHappened::NoLeader { group: reader.string()?, waited: read_duration(reader)? },
        2 => NotHappened::TooLarge { bytes: reader.u64()? as usize, max_bytes: reader.u64()? as usize },
        3 => NotHappened::Overloaded { group: reader.string()?, queued: reader.u64()? as usize },
        4 => NotHappened::Stopped { group: reader.string()?, reason: reader.string()? },
        5 => NotHappened::Malformed(reader.string()?),
        6 => NotHappened::DiskFull { group: reader.string()? },
        22 => NotHappened::TooFarAhead {
            group: reader.string()?,
            log_time: LogTime::from_millis(reader.u64()?),
            not_after: LogTime::from_millis(reader.u64()?),
        },
        21 => {
            let (group, version) = (reader.string()?, reader.u32()?);
            let readable = reader.option(Reader::u32)?;
            let mut lagging = Vec::new();
            for _ in 0..reader.count(4)? {
                lagging.push(reader.string()?);
            }
            NotHappened::VersionNotReadable { group, version, readable, lagging }
        }
        20 => {
            NotHappened::Stale { group: reader.string()?, max: read_duration(reader)?, waited: read_duration(reader)? }
        }
        _ => return Err(reader.malformed()),
    })
}

pub(super) fn write_unknown(writer: &mut Writer, reason: &UnknownOutcome) {
    match reason {
        UnknownOutcome::Timeout(waited) => {
            writer.u8(1);
            write_duration(writer, *waited);
        }
        UnknownOutcome::Expired { log_time } => {
            writer.u8(2);
            writer.option(*log_time, |writer, log_time| writer.u64(log_time.as_millis()));
        }
        UnknownOutcome::ReplyGone => writer.u8(4),
        UnknownOutcome::Interrupted(message) => {
            writer.u8(3);
            writer.str(message);
        }
    }
}

pub(super) fn read_unknown(reader: &mut Reader) -> Result<UnknownOutcome, Malformed> {
    Ok(match reader.u8()? {
        1 => UnknownOutcome::Timeout(read_duration(reader)?),
        2 => UnknownOutcome::Expired { log_time: reader.option(|reader| Ok(LogTime::from_millis(reader.u64()?)))? },
        4 => UnknownOutcome::ReplyGone,
        3 => UnknownOutcome::Interrupted(reader.string()?),
        _ => return Err(reader.malformed()),
    })
}
