//! A value's commands, replies, queries and answers <-> the bytes that groups carry.

use bytes::Bytes;

use crate::command::{Command, CommandId};
use crate::value::{LogTime, Value};
use crate::wire::{WireError, decode, encode};

/// Encodes a command. With an id it runs once, however often it arrives; without one its repetition must do no
/// harm. `key_hash` is the hash of the key that it is about, zero where there is none.
pub fn encode_command<V: Value>(
    command: &V::Command,
    id: Option<CommandId>,
    key_hash: u32,
) -> Result<Bytes, WireError> {
    let payload = Bytes::from_owner(encode(command)?);
    Ok(Command { id, schema: V::VERSION, stamp: LogTime::default(), key_hash, payload }.encode().freeze())
}

/// Encodes a command as the older `version` of the value reads it; `None` where that cannot be said in that version
/// (see [`Value::downgrade_command`]).
pub fn encode_command_as<V: Value>(
    version: u32,
    command: &V::Command,
    id: Option<CommandId>,
    key_hash: u32,
) -> Option<Bytes> {
    let payload = Bytes::from(V::downgrade_command(version, command)?);
    Some(Command { id, schema: version, stamp: LogTime::default(), key_hash, payload }.encode().freeze())
}

/// Decodes a command's reply.
pub fn decode_reply<V: Value>(reply: &[u8]) -> Result<V::Reply, WireError> {
    decode(reply)
}

/// Encodes a query.
pub fn encode_query<V: Value>(query: &V::Query) -> Result<Bytes, WireError> {
    Ok(Bytes::from_owner(encode(query)?))
}

/// Decodes a query's answer.
pub fn decode_answer<V: Value>(answer: &[u8]) -> Result<V::Answer, WireError> {
    decode(answer)
}
