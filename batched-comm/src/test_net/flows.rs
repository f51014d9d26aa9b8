//! What a network sees of QUIC from outside: connection ids, and when a handshake begins.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::net::SocketAddr;

use crate::tls::CONNECTION_ID_BYTES;

/// Connections between two nodes that can be dropped at once; older ones are forgotten.
const MAX_CONNECTIONS: usize = 16;
/// Ids that are remembered, to drop what has them or to count handshakes once.
const MAX_IDS: usize = 16 * 1024;

/// The id of a connection as its packets bear it: the one that the receiver has chosen.
pub(super) type ConnectionId = [u8; CONNECTION_ID_BYTES];

/// QUIC's long header: set in the first byte.
const LONG_HEADER: u8 = 0x80;
/// The packet's type in a long header; zero is an Initial.
const TYPE: u8 = 0x30;

#[derive(Default)]
pub(super) struct Flows {
    /// The ids that were last used from one node to another, the latest last.
    current: HashMap<(SocketAddr, SocketAddr), VecDeque<ConnectionId>>,
    dead: Remembered<ConnectionId>,
    /// Ids of handshakes, as either side calls them.
    handshakes: Remembered<Vec<u8>>,
}

/// What the network learned of a datagram.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// It belongs to a connection that was dropped.
    pub(super) dead: bool,
    /// It begins a handshake.
    pub(super) handshake: bool,
}

impl Flows {
    pub(super) fn see(&mut self, from: SocketAddr, to: SocketAddr, datagram: &[u8]) -> Seen {
        let Some((first, rest)) = datagram.split_first() else { return Seen::default() };
        if first & LONG_HEADER != 0 {
            let handshake = first & TYPE == 0 && self.begins_handshake(rest);
            return Seen { dead: false, handshake };
        }
        let Some(id) = rest.first_chunk::<CONNECTION_ID_BYTES>() else { return Seen::default() };
        if self.dead.contains(id) {
            return Seen { dead: true, handshake: false };
        }
        let current = self.current.entry((from, to)).or_default();
        if current.back() != Some(id) {
            current.retain(|known| known != id);
            current.push_back(*id);
            if current.len() > MAX_CONNECTIONS {
                current.pop_front();
            }
        }
        Seen::default()
    }

    /// Drops what goes from one node to another now; gives the ids.
    pub(super) fn drop_current(&mut self, from: SocketAddr, to: SocketAddr) -> Vec<ConnectionId> {
        let ids: Vec<_> = self.current.remove(&(from, to)).into_iter().flatten().collect();
        ids.iter().for_each(|id| self.dead.insert(*id));
        ids
    }

    /// Whether an Initial, here without its first byte, is the first of its handshake: it goes to an id that
    /// the dialler made up, where all later ones go to an id that the receiver chose.
    fn begins_handshake(&mut self, rest: &[u8]) -> bool {
        let Some((_version, ids)) = rest.split_at_checked(4) else { return false };
        let Some((to, ids)) = take_id(ids) else { return false };
        let Some((from, _)) = take_id(ids) else { return false };
        let is_first = !self.handshakes.contains(&to.to_vec());
        self.handshakes.insert(to.to_vec());
        self.handshakes.insert(from.to_vec());
        is_first
    }
}

fn take_id(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

/// The latest of many things.
struct Remembered<T> {
    all: HashSet<T>,
    by_age: VecDeque<T>,
}

impl<T> Default for Remembered<T> {
    fn default() -> Self {
        Remembered { all: HashSet::new(), by_age: VecDeque::new() }
    }
}

impl<T: Clone + Eq + Hash> Remembered<T> {
    fn contains(&self, thing: &T) -> bool {
        self.all.contains(thing)
    }

    fn insert(&mut self, thing: T) {
        if self.all.insert(thing.clone()) {
            self.by_age.push_back(thing);
        }
        if self.by_age.len() > MAX_IDS
            && let Some(oldest) = self.by_age.pop_front()
        {
            self.all.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn initial(to: &[u8], from: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xc3, 0, 0, 0, 1, to.len() as u8];
        bytes.extend_from_slice(to);
        bytes.push(from.len() as u8);
        bytes.extend_from_slice(from);
        bytes
    }

    #[test]
    fn a_handshake_is_counted_once_however_many_packets_it_has() {
        let mut flows = Flows::default();
        let (a, b) = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:1".parse().unwrap());
        assert!(flows.see(a, b, &initial(b"made up ", b"of a")).handshake);
        assert!(!flows.see(a, b, &initial(b"made up ", b"of a")).handshake, "sent again");
        assert!(!flows.see(b, a, &initial(b"of a", b"of b")).handshake, "the answer");
        assert!(!flows.see(a, b, &initial(b"of b", b"of a")).handshake, "the answer's answer");
        assert!(flows.see(a, b, &initial(b"another!", b"of a2")).handshake);
        for cut in 0..12 {
            assert!(!flows.see(a, b, &initial(b"cut off!", b"")[..cut]).handshake);
        }
    }

    #[test]
    fn what_goes_over_a_dropped_connection_is_dead_and_nothing_else_is() {
        let mut flows = Flows::default();
        let (a, b) = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:1".parse().unwrap());
        let packet = |id: u8| [&[0x40], &[id; CONNECTION_ID_BYTES][..], b"sealed"].concat();
        assert_eq!(flows.see(a, b, &packet(1)), Seen::default());
        assert_eq!(flows.drop_current(b, a), Vec::<ConnectionId>::new());
        assert_eq!(flows.drop_current(a, b), [[1; CONNECTION_ID_BYTES]]);
        assert!(flows.see(a, b, &packet(1)).dead);
        assert!(!flows.see(a, b, &packet(2)).dead);
        assert!(!flows.see(a, b, b"").dead);
    }
}
