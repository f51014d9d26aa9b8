//! A client of etcd's gRPC API: put, linearizable get, and who leads. The few messages are written by hand.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::uri::PathAndQuery;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use super::grpc::BytesCodec;
use super::{Client, PeerOptions};

const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const STATUS: &str = "/etcdserverpb.Maintenance/Status";

/// How long the members have to start and to elect.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections to the leader, taken in turn: one alone was seen to hold etcd back.
const CONNECTIONS: usize = 8;

/// Clones share the connections.
#[derive(Clone)]
pub struct Etcd {
    leader: Vec<Channel>,
}

/// Connects to the leader, once there is one.
pub async fn connect(options: &PeerOptions) -> Result<Etcd> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        for member in &options.members {
            if let Ok(true) = leads(member.address).await {
                let mut leader = Vec::new();
                for _ in 0..CONNECTIONS {
                    leader.push(channel(member.address).await?);
                }
                return Ok(Etcd { leader });
            }
        }
        ensure!(Instant::now() < deadline, "etcd has no leader after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn channel(address: SocketAddr) -> Result<Channel> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true).connect().await?)
}

async fn leads(address: SocketAddr) -> Result<bool> {
    let status = unary(channel(address).await?, STATUS, Bytes::new()).await?;
    // StatusResponse { header: 1 { member_id: 2 }, leader: 4 }
    let header = bytes_field(&status, 1)?.context("no header")?;
    let (member, leader) = (number_field(header, 2)?, number_field(&status, 4)?);
    Ok(leader.is_some() && member == leader)
}

async fn unary(channel: Channel, path: &'static str, message: Bytes) -> Result<Bytes> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await?;
    Ok(grpc.unary(Request::new(message), PathAndQuery::from_static(path), BytesCodec).await?.into_inner())
}

impl Etcd {
    fn channel(&self, key: u64) -> Channel {
        self.leader[key as usize % self.leader.len()].clone()
    }
}

impl Client for Etcd {
    async fn write(&self, key: u64, body: &[u8]) -> Result<()> {
        // PutRequest { key: 1, value: 2 }
        let mut message = Vec::with_capacity(body.len() + 16);
        put_bytes(&mut message, 1, &key.to_be_bytes());
        put_bytes(&mut message, 2, body);
        unary(self.channel(key), PUT, message.into()).await.map(drop)
    }

    async fn read(&self, key: u64, body: &[u8]) -> Result<()> {
        // RangeRequest { key: 1 }, linearizable unless it says "serializable"
        let mut message = Vec::with_capacity(16);
        put_bytes(&mut message, 1, &key.to_be_bytes());
        let answer = unary(self.channel(key), RANGE, message.into()).await?;
        // RangeResponse { kvs: 2 { value: 5 } }
        let row = bytes_field(&answer, 2)?.context("the key is not there")?;
        ensure!(bytes_field(row, 5)? == Some(body), "key {key} holds something else");
        Ok(())
    }
}

const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const BYTES: u64 = 2;
const FIXED_32: u64 = 5;

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn put_varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

fn put_bytes(to: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(to, field << 3 | BYTES);
    put_varint(to, bytes.len() as u64);
    to.extend_from_slice(bytes);
}

fn take<'a>(from: &mut &'a [u8], count: usize) -> Result<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(count).context("a message that ends early")?;
    *from = rest;
    Ok(taken)
}

fn take_varint(from: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(from, 1)?[0];
        value |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    bail!("a number of more than 64 bits")
}

/// The first field of this number.
fn field(message: &[u8], wanted: u64) -> Result<Option<Field<'_>>> {
    let mut rest = message;
    while !rest.is_empty() {
        let tag = take_varint(&mut rest)?;
        let found = match tag & 7 {
            VARINT => Field::Number(take_varint(&mut rest)?),
            BYTES => {
                let length = take_varint(&mut rest)?;
                Field::Bytes(take(&mut rest, usize::try_from(length)?)?)
            }
            FIXED_64 => Field::Bytes(take(&mut rest, 8)?),
            FIXED_32 => Field::Bytes(take(&mut rest, 4)?),
            other => bail!("a field of unknown kind {other}"),
        };
        if tag >> 3 == wanted {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn bytes_field(message: &[u8], wanted: u64) -> Result<Option<&[u8]>> {
    match field(message, wanted)? {
        Some(Field::Bytes(bytes)) => Ok(Some(bytes)),
        Some(Field::Number(_)) => bail!("field {wanted} is a number"),
        None => Ok(None),
    }
}

fn number_field(message: &[u8], wanted: u64) -> Result<Option<u64>> {
    match field(message, wanted)? {
        Some(Field::Number(number)) => Ok(Some(number)),
        Some(Field::Bytes(_)) => bail!("field {wanted} is no number"),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_others_and_broken_messages_are_errors() {
        let mut message = vec![0x08, 0x96, 0x01, 0x11, 1, 2, 3, 4, 5, 6, 7, 8];
        put_bytes(&mut message, 2, b"testing");
        put_bytes(&mut message, 300, &[7; 200]);
        assert_eq!(number_field(&message, 1).unwrap(), Some(150));
        assert_eq!(bytes_field(&message, 2).unwrap(), Some(&[1, 2, 3, 4, 5, 6, 7, 8][..]));
        assert_eq!(bytes_field(&message, 300).unwrap(), Some(&[7; 200][..]));
        assert_eq!(bytes_field(&message, 9).unwrap(), None);
        assert!(bytes_field(&message, 1).is_err());
        assert!(bytes_field(&message[..message.len() - 1], 300).is_err());
        assert!(number_field(&[0xFF; 20], 1).is_err());
    }
}
