//! A value's commands, replies, queries and answers <-> the bytes that groups carry.

use bytes::Bytes;

use crate::command::{Command, CommandId, Recipient};
use crate::config::{ENCODING_VERSION, GroupConfig};
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
    let (to, stamp) = (Recipient::Value, LogTime::default());
    Ok(Command { id, to, schema: V::VERSION, stamp, key_hash, payload }.encode().freeze())
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
    let (to, stamp) = (Recipient::Value, LogTime::default());
    Some(Command { id, to, schema: version, stamp, key_hash, payload }.encode().freeze())
}

/// Encodes a change of a group's settings, which runs once. Its reply is empty.
pub fn encode_config_change(config: &GroupConfig, id: CommandId) -> Bytes {
    let (id, to, stamp, payload) = (Some(id), Recipient::Group, LogTime::default(), config.encode());
    Command { id, to, schema: ENCODING_VERSION, stamp, key_hash: 0, payload }.encode().freeze()
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
