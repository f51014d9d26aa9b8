//! gRPC with tonic: unary calls, or a bidirectional stream per caller. Bodies are bytes, so nothing is encoded.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::{Result, bail, ensure};
use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder, Streaming};
use tonic::server::{NamedService, StreamingService, UnaryService};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};
use tower_service::Service;

use super::{Client, Counter, PeerOptions, Role, serve_commands, tls};

const UNARY: &str = "/bench.Echo/Unary";
const STREAMING: &str = "/bench.Echo/Streaming";
/// Messages of one stream that wait to be sent.
const STREAM_DEPTH: usize = 16;

#[derive(Clone, Copy, Default)]
pub struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = BytesCodec;
    type Decoder = BytesCodec;

    fn encoder(&mut self) -> BytesCodec {
        BytesCodec
    }

    fn decoder(&mut self) -> BytesCodec {
        BytesCodec
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// Answers with what it was sent.
#[derive(Clone)]
struct Echo {
    counter: Counter,
}

impl NamedService for Echo {
    const NAME: &'static str = "bench.Echo";
}

impl UnaryService<Bytes> for Echo {
    type Response = Bytes;
    type Future = Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        self.counter.add(1);
        ready(Ok(Response::new(request.into_inner())))
    }
}

impl StreamingService<Bytes> for Echo {
    type Response = Bytes;
    type ResponseStream = Echoes;
    type Future = Ready<Result<Response<Echoes>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        ready(Ok(Response::new(Echoes { from: request.into_inner(), counter: self.counter.clone() })))
    }
}

struct Echoes {
    from: Streaming<Bytes>,
    counter: Counter,
}

impl tokio_stream::Stream for Echoes {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = Pin::new(&mut self.from).poll_next(context);
        if let Poll::Ready(Some(Ok(_))) = &next {
            self.counter.add(1);
        }
        next
    }
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let echo = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(BytesCodec);
            Ok(match request.uri().path() {
                UNARY => grpc.unary(echo, request).await,
                STREAMING => grpc.streaming(echo, request).await,
                _ => Status::unimplemented("there is no such method").into_http(),
            })
        })
    }
}

pub async fn serve(options: &PeerOptions) -> Result<()> {
    let identity = identity(options)?;
    let ca = Certificate::from_pem(tls::read(&options.tls, "ca.pem")?);
    let listener = TcpListener::bind(options.address).await?;
    let (address, counter) = (listener.local_addr()?, Counter::default());
    let mut server =
        Server::builder().tcp_nodelay(true).tls_config(ServerTlsConfig::new().identity(identity).client_ca_root(ca))?;
    let server = server.add_service(Echo { counter: counter.clone() });
    tokio::select! {
        done = server.serve_with_incoming(TcpListenerStream::new(listener)) => Ok(done?),
        done = serve_commands(address, &counter) => done,
    }
}

fn identity(options: &PeerOptions) -> Result<Identity> {
    let name = tls::name(options.role);
    let (chain, key) = (format!("{name}.pem"), format!("{name}.key"));
    Ok(Identity::from_pem(tls::read(&options.tls, &chain)?, tls::read(&options.tls, &key)?))
}

async fn channel(options: &PeerOptions) -> Result<Channel> {
    let ca = Certificate::from_pem(tls::read(&options.tls, "ca.pem")?);
    let config =
        ClientTlsConfig::new().domain_name(tls::name(Role::Server)).ca_certificate(ca).identity(identity(options)?);
    let endpoint = Endpoint::from_shared(format!("https://{}", options.address))?.tcp_nodelay(true);
    Ok(endpoint.tls_config(config)?.connect().await?)
}

/// Clones share one connection.
#[derive(Clone)]
pub struct Unary {
    channel: Channel,
}

pub async fn connect_unary(options: &PeerOptions) -> Result<Unary> {
    Ok(Unary { channel: channel(options).await? })
}

impl Client for Unary {
    async fn call(&self, body: &[u8]) -> Result<()> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await?;
        let request = Request::new(Bytes::copy_from_slice(body));
        let answer = grpc.unary(request, PathAndQuery::from_static(UNARY), BytesCodec).await?;
        ensure!(answer.get_ref() == body, "the answer is another one");
        Ok(())
    }
}

/// Clones share one connection; each has a stream of its own.
pub struct StreamPerCaller {
    channel: Channel,
    stream: Mutex<Option<(mpsc::Sender<Bytes>, Streaming<Bytes>)>>,
}

impl Clone for StreamPerCaller {
    fn clone(&self) -> Self {
        StreamPerCaller { channel: self.channel.clone(), stream: Mutex::new(None) }
    }
}

pub async fn connect_streaming(options: &PeerOptions) -> Result<StreamPerCaller> {
    Ok(StreamPerCaller { channel: channel(options).await?, stream: Mutex::new(None) })
}

impl Client for StreamPerCaller {
    async fn call(&self, body: &[u8]) -> Result<()> {
        let mut stream = self.stream.lock().await;
        if stream.is_none() {
            let (requests, receiver) = mpsc::channel(STREAM_DEPTH);
            let mut grpc = tonic::client::Grpc::new(self.channel.clone());
            grpc.ready().await?;
            let request = Request::new(ReceiverStream::new(receiver));
            let answers = grpc.streaming(request, PathAndQuery::from_static(STREAMING), BytesCodec).await?;
            *stream = Some((requests, answers.into_inner()));
        }
        let Some((requests, answers)) = stream.as_mut() else { bail!("no stream") };
        requests.send(Bytes::copy_from_slice(body)).await?;
        let answer = answers.message().await?;
        ensure!(answer.as_deref() == Some(body), "the answer is another one");
        Ok(())
    }
}
