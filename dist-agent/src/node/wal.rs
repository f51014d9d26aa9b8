//! `wal`: looks into the data directory of a node that does not run, and writes nothing.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use rafted_value::{
    Finding, InspectedRecord, InspectedReplica, InspectedSegment, InspectedVote, Inspection, LogEnd, LogPosition,
    RecordContent, ReplicaId, SegmentState, StoreError, Verification, WalError,
};
use serde_json::{Value, json};

use super::settings::{Output, WalArgs, WalCommand};
use super::table::Table;

/// Why a command did not print what it should.
#[derive(Debug, thiserror::Error)]
enum WalCommandError {
    /// The directory cannot be read, or is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log cannot be read, or is damaged.
    #[error(transparent)]
    Log(#[from] WalError),
    /// A wrong id, or a wrong directory.
    #[error("{dir} has no replica {replica}; `wal inspect` without --replica lists those that it has")]
    NoReplica {
        /// What was given.
        replica: ReplicaId,
        /// Where.
        dir: String,
    },
    /// Standard output is closed or full.
    #[error("the answer could not be printed: {0}")]
    Print(#[from] std::io::Error),
}

/// There is damage.
const DAMAGED: u8 = 1;
/// The directory could not be read, or the answer not be printed: whether there is damage is not known.
const UNREADABLE: u8 = 2;

/// Runs one command. The exit code is 0, 1 for damage, 2 where nothing can be said.
pub(crate) fn run(args: &WalArgs) -> ExitCode {
    let sound = match &args.command {
        WalCommand::Inspect { dir, replica: None } => inspect(dir, args.output),
        WalCommand::Inspect { dir, replica: Some(replica) } => records(dir, *replica, args.output),
        WalCommand::Verify { dir } => verify(dir, args.output),
    };
    match sound {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(DAMAGED),
        Err(error) => {
            eprintln!("dist-agent wal: {error}");
            ExitCode::from(UNREADABLE)
        }
    }
}

/// Whether all that was read is sound. What is not is told first, and all else is of what stands before it.
fn inspect(dir: &Path, output: Output) -> Result<bool, WalCommandError> {
    let inspection = Inspection::open(dir)?;
    let is_sound = inspection.damage().is_empty();
    let log_end = if is_sound { Some(inspection.end()?) } else { None };
    let node = inspection
        .node()
        .map(|node| json!({"name": node.name, "id": format!("{:016x}", node.node_id), "boot": node.boot}));
    let json = json!({
        "node": node,
        "damage": inspection.damage().iter().map(finding).collect::<Vec<_>>(),
        "end": log_end.as_ref().map(end),
        "segments": inspection.segments().iter().map(segment).collect::<Vec<_>>(),
        "replicas": inspection.replicas().iter().map(replica).collect::<Vec<_>>(),
    });
    let text = || {
        let who = match inspection.node() {
            Some(node) => format!("node {}, id {:016x}, started {} times", node.name, node.node_id, node.boot),
            None => "there is no node file that can be read".to_owned(),
        };
        let damage: String = inspection.damage().iter().map(|found| format!("damage: {found}\n")).collect();
        let end = match is_sound {
            true => end_in_words(&json["end"]),
            false => "what follows is of what can be read before the damage".to_owned(),
        };
        let segment_fields =
            ["file", "state", "use", "first_sequence", "last_sequence", "used_bytes", "live_bytes", "file_bytes"];
        let replica_fields = [
            "replica",
            "group",
            "incarnation",
            "vote",
            "first",
            "last",
            "entries",
            "purged",
            "committed",
            "snapshot",
            "snapshot_file",
        ];
        let cells = in_words(&json);
        let segments = Table::of(&cells, "segments", &segment_fields).render();
        let replicas = Table::of(&cells, "replicas", &replica_fields).render();
        format!("{damage}{who}\n{end}\n\n{segments}\n{replicas}")
    };
    print(&json, text, output)?;
    Ok(is_sound)
}

/// Whether the log is sound; the damage, at which the records end, goes where errors go.
fn records(dir: &Path, replica: ReplicaId, output: Output) -> Result<bool, WalCommandError> {
    let inspection = Inspection::open(dir)?;
    if !inspection.replicas().iter().any(|found| found.replica == replica) {
        return Err(WalCommandError::NoReplica { replica, dir: dir.display().to_string() });
    }
    // One line each, as they are read: there may be more than memory holds.
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut printed = Ok(());
    inspection.records(replica, |found| {
        if printed.is_ok() {
            let json = record(&found);
            printed = match output {
                Output::Json => writeln!(out, "{json}"),
                Output::Table => writeln!(out, "{}", record_in_words(&json)),
            };
        }
    })?;
    printed?;
    out.flush()?;
    inspection.damage().iter().for_each(|found| eprintln!("dist-agent wal: damage: {found}"));
    Ok(inspection.damage().is_empty())
}

/// Whether all is sound.
fn verify(dir: &Path, output: Output) -> Result<bool, WalCommandError> {
    let Verification { findings, segments, log_bytes, replicas, snapshots, snapshot_bytes, end: log_end } =
        Inspection::verify(dir)?;
    let json = json!({
        "sound": findings.is_empty(),
        "findings": findings.iter().map(finding).collect::<Vec<_>>(),
        "segments": segments,
        "log_bytes": log_bytes,
        "replicas": replicas,
        "snapshots": snapshots,
        "snapshot_bytes": snapshot_bytes,
        "end": log_end.as_ref().map(end),
    });
    let text = || {
        let mut text: String = findings.iter().map(|found| format!("damage: {found}\n")).collect();
        if log_end.is_some() {
            text += &format!(
                "read {segments} segments with {log_bytes} bytes of log, {replicas} replicas, {snapshots} snapshots \
                 with {snapshot_bytes} bytes\n{}\n",
                end_in_words(&json["end"])
            );
        }
        text + if findings.is_empty() { "no damage\n" } else { "" }
    };
    print(&json, text, output)?;
    Ok(findings.is_empty())
}

fn print(json: &Value, text: impl FnOnce() -> String, output: Output) -> Result<(), WalCommandError> {
    let text = match output {
        Output::Json => format!("{json}\n"),
        Output::Table => text(),
    };
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

fn finding(found: &Finding) -> Value {
    json!({"file": found.file.display().to_string(), "offset": found.offset, "what": found.what})
}

fn segment(segment: &InspectedSegment) -> Value {
    let state = match segment.state {
        SegmentState::Active => "active",
        SegmentState::Used => "used",
        SegmentState::Freed => "freed",
        SegmentState::Unread => "unread",
        SegmentState::Spare => "spare",
        SegmentState::Unfinished => "unfinished",
    };
    json!({
        "file": segment.file.file_name().map(|name| name.to_string_lossy()),
        "state": state,
        "use": segment.segment_use,
        "first_sequence": segment.sequences.map(|(first, _)| first),
        "last_sequence": segment.sequences.map(|(_, last)| last),
        "used_bytes": segment.used_bytes,
        "live_bytes": segment.live_bytes,
        "file_bytes": segment.file_bytes,
    })
}

fn replica(replica: &InspectedReplica) -> Value {
    json!({
        "replica": replica.replica.to_string(),
        "group": replica.group,
        "incarnation": replica.incarnation,
        "vote": replica.vote.map(vote),
        "first": replica.first_index,
        "last": replica.last.map(position),
        "entries": replica.entries,
        "purged": replica.purged.map(position),
        "committed": replica.committed.map(position),
        "snapshot": replica.snapshot.map(position),
        "snapshot_file": replica.snapshot_file,
    })
}

fn position(position: LogPosition) -> Value {
    json!({"term": position.term, "index": position.index})
}

fn vote(vote: InspectedVote) -> Value {
    json!({"term": vote.term, "for": vote.voted_for.map(|id| id.to_string()), "leads": vote.committed})
}

/// The same with positions and votes as people read them: term and index, term and receiver.
fn in_words(json: &Value) -> Value {
    match json {
        Value::Array(list) => list.iter().map(in_words).collect(),
        Value::Object(fields) => match (fields.get("term"), fields.get("index"), fields.get("for")) {
            (Some(term), Some(index), _) => format!("{term}/{index}").into(),
            (Some(term), _, Some(receiver)) => {
                let leads = if fields.get("leads") == Some(&Value::Bool(true)) { ", leads" } else { "" };
                format!("{term}/{}{leads}", receiver.as_str().unwrap_or("nobody")).into()
            }
            _ => fields
                .iter()
                .map(|(name, value)| (name.clone(), in_words(value)))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        },
        other => other.clone(),
    }
}

fn record(found: &InspectedRecord) -> Value {
    let (kind, what) = match &found.content {
        RecordContent::Created => ("created", Value::Null),
        RecordContent::Removed => ("removed", Value::Null),
        RecordContent::Entry { position: at, kind, payload_bytes } => {
            ("entry", json!({"at": position(*at), "kind": kind, "payload_bytes": payload_bytes}))
        }
        RecordContent::Vote(given) => ("vote", json!({"vote": vote(*given)})),
        RecordContent::Truncated(after) => ("truncated", json!({"after": after})),
        RecordContent::Purged(at) => ("purged", json!({"at": position(*at)})),
        RecordContent::Committed(at) => ("committed", json!({"at": position(*at)})),
        RecordContent::Snapshot { position: at, file } => ("snapshot", json!({"at": at.map(position), "file": file})),
        RecordContent::Closed => ("closed", Value::Null),
    };
    json!({
        "file": found.file.file_name().map(|name| name.to_string_lossy()),
        "offset": found.offset,
        "bytes": found.bytes,
        "live": found.is_live,
        "kind": kind,
        "what": what,
    })
}

fn record_in_words(json: &Value) -> String {
    let words = in_words(json);
    let word = |field: &str| words[field].as_str().unwrap_or_default().to_owned();
    let what = words["what"].as_object().into_iter().flatten();
    let what: Vec<String> = what
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| format!("{name} {}", value.as_str().map_or(value.to_string(), str::to_owned)))
        .collect();
    let live = if json["live"] == true { "live" } else { "dead" };
    let line = format!("{} {:>10} {live} {:<9} {}", word("file"), json["offset"], word("kind"), what.join(", "));
    line.trim_end().to_owned()
}

fn end(end: &LogEnd) -> Value {
    let at = |state: &str, file: &Path, offset: &u64| json!({"state": state, "file": file.display().to_string(), "offset": offset});
    match end {
        LogEnd::Empty => json!({"state": "empty"}),
        LogEnd::Closed => json!({"state": "closed"}),
        LogEnd::NotClosed { file, offset } => at("not_closed", file, offset),
        LogEnd::Torn { file, offset } => at("torn", file, offset),
    }
}

fn end_in_words(end: &Value) -> String {
    let at = format!("{}, byte {}", end["file"].as_str().unwrap_or_default(), end["offset"]);
    match end["state"].as_str() {
        Some("closed") => "the log was closed in order".to_owned(),
        Some("not_closed") => format!("the node stopped without closing the log; it ends at {at}"),
        Some("torn") => format!(
            "the node stopped while it wrote at {at}: a torn tail, which nobody was told of, is no damage, and goes \
             with the next start"
        ),
        _ => "there is no log".to_owned(),
    }
}
