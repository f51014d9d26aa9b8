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
