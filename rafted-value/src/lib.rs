//! A value replicated by Raft.

mod any_value;
mod client;
mod clock;
mod codec;
mod command;
mod config;
mod disk;
mod encoding;
mod error;
mod group;
mod log_store;
mod machine;
mod membership;
mod network;
mod node_file;
mod openraft_types;
mod proposer;
mod reader;
mod rpc;
mod session;
mod snapshot;
mod status;
mod store;
mod transport;
mod value;
mod wal;
mod wire;

pub use crate::any_value::ValueFactory;
pub use crate::client::{GroupClient, Route};
pub use crate::clock::{Clock, SystemClock};
pub use crate::codec::Malformed;
pub use crate::command::{CommandId, SessionId};
pub use crate::config::{ConfigError, GroupConfig};
pub use crate::encoding::{decode_answer, decode_reply, encode_command, encode_query};
pub use crate::error::{
    CommandError, InitializeError, MembersError, NotHappened, QueryError, StartError, StoreError, UnknownOutcome,
};
pub use crate::group::{ReplicaSpec, StatusChanges, UntypedReplica, wrong_replica};
pub use crate::proposer::ProposeError;
pub use crate::reader::ReadError;
pub use crate::rpc::{ClusterTag, Envelope, peek};
pub use crate::session::{ClientSession, MAX_OPEN_SERIALS, OpenCommand, RECORD_MARGIN};
pub use crate::status::{LogPosition, Member, Members, ReplicaId, Role, Status};
pub use crate::store::{NodeIdentity, Store, StoredReplica};
pub use crate::transport::{Body, BoxFuture, Transport, TransportError};
pub use crate::value::{Context, LogTime, UpgradeError, Value};
pub use crate::wal::{WalError, WalStats};
pub use crate::wire::{Wire, WireError, decode, encode};
#[doc(hidden)]
pub use rkyv;
