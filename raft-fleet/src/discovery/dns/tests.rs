//! Name servers on loopback.

use std::sync::atomic::{AtomicUsize, Ordering};

use simple_dns::rdata::{A, RData, SRV};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A name server of one zone; it ends when it is dropped.
struct Server {
    address: SocketAddr,
    over_tcp: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

#[derive(Clone, Copy, PartialEq)]
enum Habit {
    /// Answers.
    Answers,
    /// Says over UDP that the answer does not fit.
    CutsOff,
    /// Is broken.
    Fails,
    /// Answers first as somebody who guesses would.
    IsForestalled,
}

impl Server {
    async fn start(habit: Habit) -> Self {
        // A port that is free for both.
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (tcp, udp);
            }
        };
        let address = tcp.local_addr().unwrap();
        let (mut tasks, over_tcp) = (JoinSet::new(), Arc::<AtomicUsize>::default());
        tasks.spawn(async move {
            let mut bytes = [0; 512];
            while let Ok((length, from)) = udp.recv_from(&mut bytes).await {
                if habit == Habit::IsForestalled {
                    let mut guess = reply(&bytes[..length], Habit::Answers);
                    guess[0] ^= 1;
                    udp.send_to(&guess, from).await.unwrap();
                }
                udp.send_to(&reply(&bytes[..length], habit), from).await.unwrap();
            }
        });
        let counter = over_tcp.clone();
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
                stream.read_exact(&mut query).await.unwrap();
                let reply = reply(&query, Habit::Answers);
                stream.write_u16(reply.len() as u16).await.unwrap();
                stream.write_all(&reply).await.unwrap();
            }
        });
        Self { address, over_tcp, _tasks: tasks }
    }
}

/// The zone: `n1.corp` and `n2.corp` offer `_db._udp.corp`, the second one first.
fn reply(query: &[u8], habit: Habit) -> Vec<u8> {
    let mut packet = Packet::parse(query).unwrap().into_reply();
    let (name, kind) = (packet.questions[0].qname.to_string(), packet.questions[0].qtype);
    let record = |rdata| ResourceRecord::new(Name::new(&name).unwrap().into_owned(), CLASS::IN, 10, rdata);
    let srv =
        |priority, port, host| record(RData::SRV(SRV { priority, weight: 0, port, target: Name::new(host).unwrap() }));
    match (habit, name.as_str(), kind) {
        (Habit::Fails, _, _) => *packet.rcode_mut() = RCODE::ServerFailure,
        (Habit::CutsOff, _, _) => packet.set_flags(PacketFlag::TRUNCATION),
        (_, "_db._udp.corp", QTYPE::TYPE(TYPE::SRV)) => {
            packet.answers = vec![srv(2, 7101, "n1.corp"), srv(1, 7102, "n2.corp"), srv(3, 7103, "gone.corp")];
        }
        (_, "_none._udp.corp", QTYPE::TYPE(TYPE::SRV)) => packet.answers = vec![srv(0, 0, ".")],
        (_, "_lost._udp.corp", QTYPE::TYPE(TYPE::SRV)) => packet.answers = vec![srv(0, 1, "gone.corp")],
        (_, "n1.corp" | "n2.corp", QTYPE::TYPE(TYPE::A)) => {
            packet.answers = vec![record(RData::A(A { address: 0x7f00_0001 }))];
        }
        (_, "n1.corp" | "n2.corp", _) => {}
        _ => *packet.rcode_mut() = RCODE::NameError,
    }
    packet.build_bytes_vec_compressed().unwrap()
}

fn both() -> Vec<SocketAddr> {
    vec![at(7102), at(7101)]
}

#[tokio::test]
async fn a_service_is_found_by_priority_and_hosts_without_an_address_are_left_out() {
    let server = Server::start(Habit::Answers).await;
    let dns = Dns::at(vec![server.address]);
    assert_eq!(dns.service("_db._udp.corp").await, Ok(both()));
    assert_eq!(dns.service("_none._udp.corp").await, Err(DnsError::NotFound), "the record says that there is none");
    assert_eq!(dns.service("_other._udp.corp").await, Err(DnsError::NotFound));
    assert_eq!(dns.service("_lost._udp.corp").await, Err(DnsError::NoAddresses(vec!["gone.corp".into()])));
}

#[tokio::test]
async fn what_does_not_fit_is_asked_for_over_tcp() {
    let server = Server::start(Habit::CutsOff).await;
    assert_eq!(Dns::at(vec![server.address]).service("_db._udp.corp").await, Ok(both()));
    assert!(server.over_tcp.load(Ordering::Relaxed) > 1);
}

#[tokio::test]
async fn a_server_that_fails_or_is_silent_is_followed_by_the_next() {
    let (broken, good) = (Server::start(Habit::Fails).await, Server::start(Habit::IsForestalled).await);
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut servers = vec![silent.local_addr().unwrap(), broken.address];
    let alone = Dns::at(servers.clone()).service("_db._udp.corp").await.unwrap_err().to_string();
    assert!(alone.contains("nothing within") && alone.contains("ServerFailure"), "{alone}");
    servers.push(good.address);
    let answer = ask(&servers, "_db._udp.corp", Question::Service).await.unwrap();
    assert_eq!(answer.services.len(), 3);
    assert_eq!(Dns::at(Vec::new()).service("_db._udp.corp").await, Err(DnsError::NoServers));
}

#[test]
fn the_systems_servers_are_read() {
    let text = "# ours\nsearch corp\nnameserver 10.0.0.53\nnameserver fe80::1%eth0\nnameserver\nnameserver x\n";
    let expected: [SocketAddr; 2] = ["10.0.0.53:53".parse().unwrap(), "[fe80::1]:53".parse().unwrap()];
    assert_eq!(name_servers(text), expected);
}
