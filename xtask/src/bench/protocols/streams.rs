//! QUIC without batches: a unidirectional stream per message, a bidirectional one per call, one long one for bytes.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, SendStream, VarInt};
use tokio::sync::Mutex;

use super::{Client, Counter, PeerOptions, Role, serve_commands, tls};

const PROTOCOL: &[u8] = b"bench";
/// Enough that no caller ever waits for another's stream to be gone.
const MAX_STREAMS: u32 = 10_000;
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
/// The first byte of a unidirectional stream that is one message, and of one that never ends.
const MESSAGE: u8 = 0;
const PIECES: u8 = 1;

fn transport() -> Arc<quinn::TransportConfig> {
    let mut transport = quinn::TransportConfig::default();
    transport.max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS));
    transport.max_concurrent_uni_streams(VarInt::from_u32(MAX_STREAMS));
    Arc::new(transport)
}

pub async fn serve(options: &PeerOptions) -> Result<()> {
    let crypto = QuicServerConfig::try_from(tls::server(&options.tls, PROTOCOL)?)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport());
    let endpoint = Endpoint::server(config, options.address)?;
    let counter = Counter::default();
    let address = endpoint.local_addr()?;
    tokio::spawn(accept(endpoint, counter.clone()));
    serve_commands(address, &counter).await
}

async fn accept(endpoint: Endpoint, counter: Counter) {
    while let Some(incoming) = endpoint.accept().await {
        let Ok(connection) = incoming.await else { continue };
        tokio::spawn(messages(connection.clone(), counter.clone()));
        tokio::spawn(calls(connection, counter.clone()));
    }
}

async fn messages(connection: Connection, counter: Counter) {
    while let Ok(mut stream) = connection.accept_uni().await {
        let counter = counter.clone();
        tokio::spawn(async move {
            let mut first = [0];
            stream.read_exact(&mut first).await.ok()?;
            if first[0] == MESSAGE {
                stream.read_to_end(MAX_MESSAGE_BYTES).await.ok()?;
                counter.add(1);
            } else {
                while let Some(chunk) = stream.read_chunk(MAX_MESSAGE_BYTES, true).await.ok()? {
                    counter.add(chunk.bytes.len() as u64);
                }
            }
            Some(())
        });
    }
}

async fn calls(connection: Connection, counter: Counter) {
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        let counter = counter.clone();
        tokio::spawn(async move {
            let body = recv.read_to_end(MAX_MESSAGE_BYTES).await.ok()?;
            send.write_all(&body).await.ok()?;
            send.finish().ok()?;
            counter.add(1);
            Some(())
        });
    }
}

#[derive(Clone)]
pub struct Streams {
    connection: Connection,
    pieces: Arc<Mutex<SendStream>>,
    _endpoint: Endpoint,
}

pub async fn connect(options: &PeerOptions) -> Result<Streams> {
    let mut endpoint = Endpoint::client("127.0.0.1:0".parse()?)?;
    let crypto = QuicClientConfig::try_from(tls::client(&options.tls, PROTOCOL)?)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport());
    endpoint.set_default_client_config(config);
    let connection = endpoint.connect(options.address, tls::name(Role::Server))?.await.context("no connection")?;
    let mut pieces = connection.open_uni().await?;
    pieces.write_all(&[PIECES]).await?;
    Ok(Streams { connection, pieces: Arc::new(Mutex::new(pieces)), _endpoint: endpoint })
}

impl Client for Streams {
    async fn cast(&self, body: &[u8]) -> Result<()> {
        let mut stream = self.connection.open_uni().await?;
        stream.write_all(&[MESSAGE]).await?;
        stream.write_all(body).await?;
        Ok(stream.finish()?)
    }

    async fn call(&self, body: &[u8]) -> Result<()> {
        let (mut send, mut recv) = self.connection.open_bi().await?;
        send.write_all(body).await?;
        send.finish()?;
        let answer = recv.read_to_end(MAX_MESSAGE_BYTES).await?;
        ensure!(answer == body, "the answer is another one");
        Ok(())
    }

    async fn stream(&self, piece: &[u8]) -> Result<()> {
        Ok(self.pieces.lock().await.write_all(piece).await?)
    }
}
