//! A value replicated by Raft.

mod codec;
mod command;
mod session;
mod status;
mod transport;
mod value;
mod wire;

pub use crate::codec::Malformed;
pub use crate::command::{CommandId, SessionId};
pub use crate::session::{ClientSession, MAX_OPEN_SERIALS, OpenCommand, RECORD_MARGIN};
pub use crate::status::{LogPosition, Member, Members, ReplicaId, Role, Status};
pub use crate::transport::{Body, BoxFuture, Transport, TransportError};
pub use crate::value::{Context, LogTime, UpgradeError, Value};
pub use crate::wire::{Wire, WireError, decode, encode};
#[doc(hidden)]
pub use rkyv;
