//! The simulated network itself, without a clock: time comes in.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::task::Waker;
use std::time::{Duration, Instant};

use quinn::udp::EcnCodepoint;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use ring::hmac;

use super::flows::Flows;
use super::{Link, MAX_DATAGRAM_BYTES, MAX_DATAGRAMS_IN_FLIGHT, MAX_NODES, NetTraffic};

/// A stateless reset: bytes that look like a packet, and a token.
const RESET_NOISE_BYTES: usize = 24;
const RESET_TOKEN_BYTES: usize = 16;

pub(super) struct State {
    chance: StdRng,
    /// By address.
    nodes: HashMap<SocketAddr, Node>,
    /// Sockets and datagrams so far.
    numbers: u64,
    default_link: Link,
    links: HashMap<(SocketAddr, SocketAddr), Link>,
    cuts: HashSet<(SocketAddr, SocketAddr)>,
    flows: Flows,
    traffic: NetTraffic,
}

/// Where datagrams arrive.
struct Node {
    /// Which socket has the address now.
    socket: u64,
    reset_key: hmac::Key,
    inbox: BinaryHeap<Reverse<Datagram>>,
    reader: Option<Waker>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Datagram {
    at: Instant,
    /// Those of one moment arrive as they were sent.
    number: u64,
    from: SocketAddr,
    bytes: Vec<u8>,
    /// As bits, which have an order.
    ecn: Option<u8>,
}

/// What there is to receive.
pub(super) enum Received {
    Datagram {
        from: SocketAddr,
        bytes: Vec<u8>,
        ecn: Option<EcnCodepoint>,
    },
    /// Nothing now, nor before then; `None`: nothing is on its way.
    NothingBefore(Option<Instant>),
}

impl State {
    pub(super) fn new(seed: u64) -> State {
        State {
            chance: StdRng::seed_from_u64(seed),
            nodes: HashMap::new(),
            numbers: 0,
            default_link: Link::default(),
            links: HashMap::new(),
            cuts: HashSet::new(),
            flows: Flows::default(),
            traffic: NetTraffic::default(),
        }
    }

    pub(super) fn set_default_link(&mut self, link: Link) {
        self.default_link = link;
    }

    pub(super) fn set_link(&mut self, from: SocketAddr, to: SocketAddr, link: Link) {
        self.links.insert((from, to), link);
    }

    pub(super) fn cut(&mut self, from: SocketAddr, to: SocketAddr) {
        self.cuts.insert((from, to));
    }

    pub(super) fn heal(&mut self, from: SocketAddr, to: SocketAddr) {
        self.cuts.remove(&(from, to));
    }

    pub(super) fn heal_all(&mut self) {
        self.cuts.clear();
    }

    pub(super) fn traffic(&self) -> NetTraffic {
        self.traffic
    }

    /// The number of a new socket, its address, and a seed for its user.
    pub(super) fn bind(&mut self, address: SocketAddr, reset_key: hmac::Key) -> io::Result<(u64, SocketAddr, u64)> {
        if self.nodes.len() >= MAX_NODES {
            return Err(io::Error::other(format!("a test network has at most {MAX_NODES} nodes")));
        }
        let mut address = address;
        if address.port() == 0 {
            let free = (1..=u16::MAX).find(|port| !self.nodes.contains_key(&SocketAddr::new(address.ip(), *port)));
            // There are fewer nodes than ports.
            address.set_port(free.unwrap_or(1));
        }
        if self.nodes.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let socket = self.number();
        self.nodes.insert(address, Node { socket, reset_key, inbox: BinaryHeap::new(), reader: None });
        Ok((socket, address, self.chance.random()))
    }

    /// A socket was dropped.
    pub(super) fn close(&mut self, socket: u64, address: SocketAddr) {
        if self.nodes.get(&address).is_some_and(|node| node.socket == socket) {
            self.crash(address);
        }
    }

    pub(super) fn crash(&mut self, address: SocketAddr) {
        if let Some(node) = self.nodes.remove(&address) {
            self.traffic.lost += node.inbox.len() as u64;
        }
    }

    /// Puts a datagram on its way; gives whom to wake.
    pub(super) fn send(
        &mut self,
        now: Instant,
        (socket, from): (u64, SocketAddr),
        to: SocketAddr,
        bytes: &[u8],
        ecn: Option<EcnCodepoint>,
    ) -> Option<Waker> {
        self.traffic.sent += 1;
        let is_there = self.nodes.get(&from).is_some_and(|node| node.socket == socket);
        let seen = if is_there { self.flows.see(from, to, bytes) } else { Default::default() };
        self.traffic.handshakes += u64::from(seen.handshake);
        let link = self.links.get(&(from, to)).unwrap_or(&self.default_link).clone();
        let passes = is_there
            && !seen.dead
            && bytes.len() <= MAX_DATAGRAM_BYTES
            && !self.cuts.contains(&(from, to))
            && !self.happens(link.loss);
        if !passes {
            self.traffic.lost += 1;
            return None;
        }
        let ecn = ecn.map(|ecn| ecn as u8);
        let mut waker = self.put(now, &link, from, to, bytes, ecn);
        if self.happens(link.duplicates) {
            self.traffic.duplicated += 1;
            waker = self.put(now, &link, from, to, bytes, ecn).or(waker);
        }
        waker
    }

    /// The next datagram for a socket; `reader` is woken when there is an earlier one than was said.
    pub(super) fn receive(&mut self, now: Instant, socket: u64, address: SocketAddr, reader: &Waker) -> Received {
        let Some(node) = self.nodes.get_mut(&address).filter(|node| node.socket == socket) else {
            return Received::NothingBefore(None);
        };
        while let Some(Reverse(next)) = node.inbox.peek() {
            if next.at > now {
                break;
            }
            let Some(Reverse(datagram)) = node.inbox.pop() else { break };
            if self.cuts.contains(&(datagram.from, address)) {
                self.traffic.lost += 1;
                continue;
            }
            self.traffic.delivered += 1;
            let ecn = datagram.ecn.and_then(EcnCodepoint::from_bits);
            return Received::Datagram { from: datagram.from, bytes: datagram.bytes, ecn };
        }
        node.reader = Some(reader.clone());
        Received::NothingBefore(node.inbox.peek().map(|Reverse(next)| next.at))
    }

    /// Drops the connections over which `sender` sends to `receiver`, and has `receiver` reset them; gives whom
    /// to wake.
    pub(super) fn drop_connections(&mut self, now: Instant, sender: SocketAddr, receiver: SocketAddr) -> Option<Waker> {
        let ids = self.flows.drop_current(sender, receiver);
        let reset_key = self.nodes.get(&receiver)?.reset_key.clone();
        let mut waker = None;
        for id in ids {
            let mut reset = vec![0; RESET_NOISE_BYTES];
            self.chance.fill(&mut reset[..]);
            // A short header, with the bit that is always set.
            reset[0] = reset[0] & 0x3f | 0x40;
            reset.extend_from_slice(&hmac::sign(&reset_key, &id).as_ref()[..RESET_TOKEN_BYTES]);
            let link = Link::with_delay(Duration::ZERO..Duration::ZERO);
            waker = self.put(now, &link, receiver, sender, &reset, None).or(waker);
        }
        waker
    }

    fn put(
        &mut self,
        now: Instant,
        link: &Link,
        from: SocketAddr,
        to: SocketAddr,
        bytes: &[u8],
        ecn: Option<u8>,
    ) -> Option<Waker> {
        let delay = if link.delay.is_empty() { link.delay.start } else { self.chance.random_range(link.delay.clone()) };
        let number = self.number();
        let node = self.nodes.get_mut(&to).filter(|node| node.inbox.len() < MAX_DATAGRAMS_IN_FLIGHT);
        // What would arrive after the end of time never does.
        let (Some(node), Some(at)) = (node, now.checked_add(delay)) else {
            self.traffic.lost += 1;
            return None;
        };
        let is_next = node.inbox.peek().is_none_or(|Reverse(next)| at < next.at);
        node.inbox.push(Reverse(Datagram { at, number, from, bytes: bytes.to_vec(), ecn }));
        if is_next { node.reader.take() } else { None }
    }

    /// Chance is asked only where there is one, and a probability that is none counts as the nearest.
    fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.chance.random_bool(probability.min(1.0))
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Two {
        state: State,
        a: (u64, SocketAddr),
        b: (u64, SocketAddr),
        start: Instant,
    }

    fn two(seed: u64) -> Two {
        let key = || hmac::Key::new(hmac::HMAC_SHA256, b"key");
        let mut state = State::new(seed);
        let mut bind = |address: &str| {
            let (socket, address, _) = state.bind(address.parse().unwrap(), key()).unwrap();
            (socket, address)
        };
        let (a, b) = (bind("10.0.0.1:1"), bind("10.0.0.2:1"));
        Two { state, a, b, start: Instant::now() }
    }

    impl Two {
        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        fn send(&mut self, ms: u64, bytes: &[u8]) {
            self.state.send(self.at(ms), self.a, self.b.1, bytes, Some(EcnCodepoint::Ce));
        }

        fn receive(&mut self, ms: u64) -> Vec<Vec<u8>> {
            let mut received = Vec::new();
            while let Received::Datagram { from, bytes, ecn } =
                self.state.receive(self.at(ms), self.b.0, self.b.1, Waker::noop())
            {
                assert_eq!((from, ecn), (self.a.1, Some(EcnCodepoint::Ce)));
                received.push(bytes);
            }
            received
        }
    }

    #[test]
    fn a_datagram_arrives_when_the_links_delay_is_over() {
        let mut two = two(1);
        let ms = Duration::from_millis;
        two.state.set_link(two.a.1, two.b.1, Link::with_delay(ms(20)..ms(20)));
        two.send(0, b"x");
        assert!(two.receive(19).is_empty());
        let next = two.state.receive(two.at(19), two.b.0, two.b.1, Waker::noop());
        assert!(matches!(next, Received::NothingBefore(at) if at == Some(two.at(20))));
        assert_eq!(two.receive(20), [b"x"]);
        two.state.set_link(two.a.1, two.b.1, Link::with_delay(ms(10)..ms(30)));
        let count = |two: &mut Two, at| two.receive(at).len();
        for _ in 0..1000 {
            two.send(100, b"y");
        }
        assert_eq!(count(&mut two, 109), 0);
        let early = count(&mut two, 120);
        assert!((400..600).contains(&early), "{early}");
        assert_eq!(early + count(&mut two, 130), 1000);
    }

    #[test]
    fn the_same_seed_has_the_same_losses_and_duplicates() {
        let run = |seed| {
            let mut two = two(seed);
            two.state.set_default_link(Link::default().with_loss(0.3).with_duplicates(0.2));
            for n in 0..1000_u16 {
                two.send(0, &n.to_be_bytes());
            }
            (two.receive(1), two.state.traffic())
        };
        let (received, traffic) = run(3);
        assert_eq!(run(3), (received.clone(), traffic));
        assert_ne!(run(4).0, received);
        assert!((250..350).contains(&traffic.lost), "{traffic:?}");
        assert!((90..190).contains(&traffic.duplicated), "{traffic:?}");
        assert_eq!(traffic.delivered, received.len() as u64);
        assert_eq!(traffic.delivered, traffic.sent - traffic.lost + traffic.duplicated);
    }

    #[test]
    fn a_cut_lets_nothing_arrive_that_is_on_its_way_and_is_of_one_direction() {
        let mut two = two(1);
        two.send(0, b"lost");
        two.state.cut(two.a.1, two.b.1);
        two.send(0, b"lost, too");
        assert!(two.receive(5).is_empty());
        two.state.send(two.at(0), two.b, two.a.1, b"back", None);
        let back = two.state.receive(two.at(5), two.a.0, two.a.1, Waker::noop());
        assert!(matches!(back, Received::Datagram { .. }));
        two.state.heal(two.a.1, two.b.1);
        two.send(6, b"through");
        assert_eq!(two.receive(10), [b"through"]);
        assert_eq!(two.state.traffic().lost, 2);
    }

    #[test]
    fn a_crashed_node_is_not_heard_and_its_address_is_free() {
        let mut two = two(1);
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"key");
        assert!(two.state.bind(two.a.1, key.clone()).is_err());
        two.state.crash(two.a.1);
        two.send(0, b"a ghost");
        let (again, ..) = two.state.bind(two.a.1, key).unwrap();
        two.send(0, b"a ghost");
        assert!(two.receive(5).is_empty());
        two.state.close(two.a.0, two.a.1);
        two.a.0 = again;
        two.send(5, b"alive");
        assert_eq!(two.receive(9), [b"alive"]);
    }

    #[test]
    fn what_is_too_long_or_too_much_or_too_late_is_lost() {
        let mut two = two(1);
        two.send(0, &[0; MAX_DATAGRAM_BYTES + 1]);
        assert!(two.receive(5).is_empty());
        for _ in 0..=MAX_DATAGRAMS_IN_FLIGHT {
            two.send(5, &[0; MAX_DATAGRAM_BYTES]);
        }
        assert_eq!(two.receive(10).len(), MAX_DATAGRAMS_IN_FLIGHT);
        two.state.set_default_link(Link::with_delay(Duration::MAX..Duration::MAX));
        two.send(10, b"never");
        assert_eq!(two.state.traffic().lost, 3);
    }
}
