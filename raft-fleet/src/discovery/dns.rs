//! Asks name servers for the hosts and ports of a service (RFC 2782), and for the addresses of the hosts.
//!
//! ```text
//! a server --UDP--> answer -----------------------> read
//!          |       \--cut off--TCP--> answer -----> read
//!          \--nothing usable in time--> the next server
//! ```
//!
//! The messages are `dns/message.rs`; hosts that a person names are looked up by the system instead.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout_at};

use self::message::{Answer, Question, Unusable};

mod message;

/// How long one server may take.
const SERVER_PATIENCE: Duration = Duration::from_millis(1_200);
/// Servers that are asked, as in the system's own resolver.
const MAX_SERVERS: usize = 3;
/// The longest answer over UDP: without extensions it is 512 bytes, and some servers send more.
const MAX_UDP_BYTES: usize = 4_096;
/// Hosts of one service whose addresses are looked up.
const MAX_HOSTS: usize = 64;
const DNS_PORT: u16 = 53;
/// Where the system says which name servers it has.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Why name servers have not answered a question.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DnsError {
    /// The system names no server.
    #[error("/etc/resolv.conf names no name server; name some there, or to the seeds' list")]
    NoServers,
    /// There is none of this name.
    #[error("there is no such service in DNS; correct its name, or add its records")]
    NotFound,
    /// The service has hosts, and none of them an address.
    #[error("none of its hosts has an address: {0:?}; add their records")]
    NoAddresses(Vec<String>),
    /// The name cannot be asked for.
    #[error("the name cannot be asked for: {0}")]
    Name(String),
    /// No server gave a usable answer.
    #[error("no name server answers: {0}; see whether they work")]
    NoAnswer(String),
}

/// The servers to ask; `None`: those of the system, as they are when it is asked.
#[derive(Debug, Clone, Default)]
pub(super) struct Dns {
    servers: Option<Arc<[SocketAddr]>>,
}

impl Dns {
    pub(super) fn at(servers: Vec<SocketAddr>) -> Self {
        Self { servers: Some(servers.into()) }
    }

    /// Where a service is: by priority, then by weight.
    pub(super) async fn service(&self, name: &str) -> Result<Vec<SocketAddr>, DnsError> {
        let servers = self.servers().await?;
        let answer = ask(&servers, name, Question::Service).await?;
        let mut services = answer.services;
        services.sort_by_key(|service| (service.priority, std::cmp::Reverse(service.weight)));
        services.retain(|service| !service.host.is_empty());
        services.truncate(MAX_HOSTS);
        if services.is_empty() {
            return Err(DnsError::NotFound);
        }
        let known = &answer.others;
        let found = join_all(services.iter().map(|service| async {
            let told = known.iter().filter(|(host, _)| *host == service.host);
            let told: Vec<IpAddr> = told.map(|(_, address)| *address).collect();
            if told.is_empty() { addresses(&servers, &service.host).await } else { told }
        }))
        .await;
        let with_port = found.iter().zip(&services);
        let all: Vec<SocketAddr> = with_port
            .flat_map(|(addresses, service)| addresses.iter().map(|address| SocketAddr::new(*address, service.port)))
            .collect();
        if all.is_empty() {
            return Err(DnsError::NoAddresses(services.into_iter().map(|service| service.host).collect()));
        }
        Ok(all)
    }

    async fn servers(&self) -> Result<Vec<SocketAddr>, DnsError> {
        let mut servers = match &self.servers {
            Some(servers) => servers.to_vec(),
            None => {
                let read = tokio::task::spawn_blocking(|| std::fs::read_to_string(Path::new(RESOLV_CONF))).await;
                read.ok().and_then(Result::ok).map(|text| name_servers(&text)).unwrap_or_default()
            }
        };
        servers.truncate(MAX_SERVERS);
        if servers.is_empty() { Err(DnsError::NoServers) } else { Ok(servers) }
    }
}

/// The servers that a `resolv.conf` names.
fn name_servers(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next())?
    });
    // The interface behind a % is for link-local addresses only.
    let addresses = servers.filter_map(|server| server.split('%').next()?.parse::<IpAddr>().ok());
    addresses.map(|address| SocketAddr::new(address, DNS_PORT)).collect()
}

/// Of both kinds; none when there is no answer, which other hosts of the service may have.
async fn addresses(servers: &[SocketAddr], host: &str) -> Vec<IpAddr> {
    let (v4, v6) = tokio::join!(ask(servers, host, Question::V4), ask(servers, host, Question::V6));
    [v4, v6].into_iter().flatten().flat_map(|answer| answer.addresses).collect()
}

/// Asks one server after the other.
async fn ask(servers: &[SocketAddr], name: &str, question: Question) -> Result<Answer, DnsError> {
    let mut failures = Vec::new();
    for server in servers {
        match ask_one(*server, name, question).await {
            Ok(answer) => return Ok(answer),
            Err(Unusable::NotFound) => return Err(DnsError::NotFound),
            Err(Unusable::Name(reason)) => return Err(DnsError::Name(reason)),
            Err(other) => failures.push(format!("{server}: {other}")),
        }
    }
    Err(DnsError::NoAnswer(failures.join("; ")))
}

async fn ask_one(server: SocketAddr, name: &str, question: Question) -> Result<Answer, Unusable> {
    let deadline = Instant::now() + SERVER_PATIENCE;
    let id = rand::random();
    let query = message::query(id, name, question)?;
    let is_cut = |answer: &Result<Answer, Unusable>| *answer == Err(Unusable::Truncated);
    let over_udp = async {
        let local: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind(SocketAddr::new(local, 0)).await?;
        socket.connect(server).await?;
        socket.send(&query).await?;
        let mut bytes = vec![0; MAX_UDP_BYTES];
        loop {
            let length = socket.recv(&mut bytes).await?;
            match message::read(&bytes[..length], id, name, question) {
                // Somebody guesses, or it is late: the answer may still come.
                Err(Unusable::Foreign) => {}
                answer => return answer,
            }
        }
    };
    let over_tcp = async {
        let mut stream = TcpStream::connect(server).await?;
        let length = u16::try_from(query.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], &query].concat()).await?;
        let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut bytes).await?;
        message::read(&bytes, id, name, question)
    };
    let timed_out = || Unusable::Io(format!("nothing within {SERVER_PATIENCE:?}"));
    let answer = timeout_at(deadline, over_udp).await.map_err(|_| timed_out())?;
    if is_cut(&answer) { timeout_at(deadline, over_tcp).await.map_err(|_| timed_out())? } else { answer }
}

#[cfg(test)]
mod tests;
