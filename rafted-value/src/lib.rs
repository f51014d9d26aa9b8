#![doc = include_str!("../README.md")]
#![cfg_attr(
    not(feature = "quic"),
    allow(dead_code, reason = "what only groups that stand alone need comes with their transport")
)]

#[cfg(test)]
mod simulation;
mod inspection;
#[cfg(test)]
mod alone;
#[cfg(feature = "quic")]
mod replica;
#[cfg(feature = "quic")]
mod quic;
#[cfg(feature = "quic")]
mod caretaker;
#[cfg(feature = "quic")]
mod returning;
#[cfg(feature = "quic")]
mod formation;
#[cfg(feature = "quic")]
mod seat;
mod client;
mod group;
mod encoding;
mod membership;
mod admission;
mod proposer;
mod gathering;
mod roster;
mod compactor;
mod hook_runner;
mod freshness;
mod peers;
mod reader;
mod sleeper;
mod installer;
mod network;
mod log_store;
mod machine;
mod readable;
mod store;
mod snapshot;
mod backlog;
mod any_value;
mod hook;
mod node_file;
mod recovery;
mod sender;
mod rpc;
mod change;
mod verdict;
mod starts;
mod openraft_types;
mod session;
mod sessions;
mod wal;
mod disk;
mod command;
mod clock;
mod error;
mod status;
mod config;
mod codec;
mod transport;
mod threads;
mod runtime;
mod value;
mod pieces;
mod wire;
pub mod stats;

pub use crate::any_value::ValueFactory;
pub use crate::change::MAX_CATCH_UP_LAG;
pub use crate::client::{GroupClient, Route, deadline_in};
pub use crate::clock::{Clock, SystemClock};
pub use crate::codec::Malformed;
pub use crate::command::{CommandId, SessionId};
pub use crate::config::{ConfigError, GroupConfig, MAX_QUERY_BYTES};
pub use crate::encoding::{
    decode_answer, decode_reply, encode_command, encode_command_as, encode_config_change, encode_query,
};
pub use crate::error::{
    CommandError, DeleteError, InitializeError, MembersError, MembershipError, NotHappened, QueryError, StartError,
    StoreError, UnknownOutcome,
};
pub use crate::group::{ReplicaSpec, Rest, StatusChanges, UntypedReplica, wrong_replica};
pub use crate::hook::{AppliedCommand, LeaderHook, Leading};
pub use crate::inspection::{
    Finding, InspectedRecord, InspectedReplica, InspectedVote, Inspection, RecordContent, Verification,
};
pub use crate::pieces::{PieceError, PieceReader, PieceWriter};
pub use crate::proposer::ProposeError;
#[cfg(feature = "quic")]
pub use crate::quic::{QuicTransport, serve};
pub use crate::reader::ReadError;
pub use crate::recovery::{Found, PlanError, RECOVERY_TERM_STEP, RecoveryPlan, RecoveryReport, plan as plan_recovery};
#[cfg(feature = "quic")]
pub use crate::replica::{
    CommandRequest, ConfigRequest, DEFAULT_MEMBERSHIP_TIMEOUT, DEFAULT_TIMEOUT, MembershipRequest, QueryRequest,
    Replica, ReplicaBuilder,
};
pub use crate::rpc::{ClusterTag, Envelope, peek};
pub use crate::session::{
    ClientSession, MAX_OPEN_SERIALS, MAX_REPEATABLE, MAX_SERIAL_WINDOW, OpenCommand, RECORD_MARGIN,
};
pub use crate::snapshot::SnapshotLimits;
pub use crate::starts::{Start as DirectoryStart, Starts as DirectoryStarts};
pub use crate::status::{LogPosition, Member, Members, ReplicaId, Role, Status};
pub use crate::store::{NodeIdentity, Recovered, RecoveryError, Store, StoreConfig, StoredReplica};
pub use crate::transport::{Body, BoxFuture, Handler, Transport, TransportError};
pub use crate::value::{Context, LogTime, UpgradeError, Value};
pub use crate::wal::{InspectedSegment, LogEnd, SegmentState, WalError, WalStats};
pub use crate::wire::{Wire, WireError, decode, encode};
#[doc(hidden)]
pub use rkyv;
