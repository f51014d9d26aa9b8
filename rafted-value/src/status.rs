//! Who is in a group, and how a replica sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::codec::{Malformed, Reader, Writer};
use crate::config::GroupConfig;

/// A replica's id in its group: random, non-zero, minted for each creation of a replica and never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(u64);

impl ReplicaId {
    /// `None` for zero, which stands for "any replica of the group" on the wire.
    pub fn new(id: u64) -> Option<Self> {
        (id != 0).then_some(Self(id))
    }

    /// A new one from the operating system's randomness.
    pub fn random() -> Self {
        Self(crate::runtime::random::<u64>().max(1))
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl std::fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A position in a group's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogPosition {
    /// The term of the leader that wrote the entry.
    pub term: u64,
    /// The entry's index; the first is 0.
    pub index: u64,
}

/// Where a replica lives: the payload that the group's membership keeps for each replica.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Member {
    /// The name of its node.
    pub name: String,
    /// The number of its node's memory: another one after the node's disk was lost.
    pub node: u64,
    /// The zone of its node, empty where there are none.
    pub zone: String,
    /// The index in the deciding group's log at which a step was decided: the one that added this member, or a later one that
    /// left it here; 0 for the first members. See [`Members::decided_at`].
    pub decided_at: u64,
    /// Where its node is reached, best first; empty where the layer above keeps addresses by itself. A member whose
    /// address changed says so to the leader, so that the others learn it from the membership.
    pub addresses: Vec<SocketAddr>,
}

const ADDRESS_V4: u8 = 4;
const ADDRESS_V6: u8 = 6;

impl Member {
    pub(crate) fn write(&self, writer: &mut Writer) {
        writer.str(&self.name);
        writer.u64(self.node);
        writer.str(&self.zone);
        writer.u64(self.decided_at);
        writer.length(self.addresses.len());
        for address in &self.addresses {
            match address.ip() {
                IpAddr::V4(ip) => {
                    writer.u8(ADDRESS_V4);
                    writer.u32(ip.to_bits());
                }
                IpAddr::V6(ip) => {
                    writer.u8(ADDRESS_V6);
                    writer.u128(ip.to_bits());
                }
            }
            writer.u32(u32::from(address.port()));
        }
    }

    pub(crate) fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        let (name, node, zone) = (reader.string()?, reader.u64()?, reader.string()?);
        let decided_at = reader.u64()?;
        let mut addresses = Vec::new();
        for _ in 0..reader.count(9)? {
            let ip = match reader.u8()? {
                ADDRESS_V4 => IpAddr::V4(Ipv4Addr::from_bits(reader.u32()?)),
                ADDRESS_V6 => IpAddr::V6(Ipv6Addr::from_bits(reader.u128()?)),
                _ => return Err(reader.malformed()),
            };
            let port = u16::try_from(reader.u32()?).map_err(|_| reader.malformed())?;
            addresses.push(SocketAddr::new(ip, port));
        }
        Ok(Self { name, node, zone, decided_at, addresses })
    }
}

/// The members of a group as of one membership entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members {
    /// Every replica, voters and learners, by id.
    pub replicas: BTreeMap<ReplicaId, Member>,
    /// The sets of voters: one, or two while a change is under way; each must agree.
    pub voters: Vec<BTreeSet<ReplicaId>>,
    /// The entry that says so; `None` before the group exists.
    pub position: Option<LogPosition>,
    /// Whether that entry is known to be committed.
    pub committed: bool,
}

impl Members {
    /// Whether two sets of voters must agree: a change of membership is half done.
    pub fn is_joint(&self) -> bool {
        self.voters.len() > 1
    }

    /// Whether the replica votes in any set.
    pub fn is_voter(&self, id: ReplicaId) -> bool {
        self.voters.iter().any(|voters| voters.contains(&id))
    }

    /// The replica on the node of this name. While one replica takes another's place there, the one that votes.
    pub fn named(&self, name: &str) -> Option<(ReplicaId, &Member)> {
        let mut named =
            self.replicas.iter().filter(|(_, member)| member.name == name).map(|(&id, member)| (id, member));
        let first = named.next()?;
        Some(if self.is_voter(first.0) { first } else { named.find(|(id, _)| self.is_voter(*id)).unwrap_or(first) })
    }

    /// The highest index at which a step was decided that the group has taken: no step that was decided before it is
    /// taken any more.
    pub fn decided_at(&self) -> u64 {
        self.replicas.values().map(|member| member.decided_at).max().unwrap_or(0)
    }

    /// The ids of all voters.
    pub fn voter_ids(&self) -> BTreeSet<ReplicaId> {
        self.voters.iter().flatten().copied().collect()
    }

    /// The ids of replicas that do not vote.
    pub fn learner_ids(&self) -> BTreeSet<ReplicaId> {
        self.replicas.keys().copied().filter(|&id| !self.is_voter(id)).collect()
    }
}

/// A replica's part in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Receives entries, does not vote; also a replica that is not yet, or no more, in the membership.
    Learner,
    /// Votes and follows.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
    /// Was elected and not replaced as far as it knows, but no majority has answered it for a while: it answers
    /// nothing, and others may lead.
    Isolated,
    /// Stopped, by request or because its storage failed.
    Stopped,
    /// Stopped because the group removed it.
    Removed,
    /// Has restarted, and takes no part until enough members of the lone group have said that they know of no newer start of
    /// its directory, nor, the leader, of entries that it lacks.
    Returning,
    /// Stopped because its directory was put back from an older copy, of which it has forgotten votes and entries that
    /// others count on: wipe the directory, and its node joins as new.
    RolledBack,
}

/// How a replica sees its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// This replica.
    pub replica: ReplicaId,
    /// Its part.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// The leader it knows, which may be itself.
    pub leader: Option<ReplicaId>,
    /// The members it knows, committed or not.
    pub members: Members,
    /// The last entry in its log.
    pub last_log_index: Option<u64>,
    /// The last entry it applied.
    pub applied: Option<LogPosition>,
    /// The last entry in its newest snapshot.
    pub snapshot: Option<LogPosition>,
    /// On a leader: the last index known to be in each replica's log.
    pub matched: BTreeMap<ReplicaId, Option<u64>>,
    /// On a leader: the other replicas that have not answered for a while, and how long that is; without a time,
    /// one has not answered since this replica leads.
    pub unresponsive: BTreeMap<ReplicaId, Option<Duration>>,
    /// Whether it sleeps: nothing happens in its group, and it costs nothing.
    pub is_asleep: bool,
    /// The settings of the group, as far as this replica has applied; before the group has agreed on any, those with
    /// which this replica was started.
    pub config: GroupConfig,
    /// Whether part of these settings (the timing) holds here only once this replica starts again.
    pub config_awaits_restart: bool,
}

impl Status {
    /// The leader's place, where it is known.
    pub fn leader_member(&self) -> Option<(ReplicaId, &Member)> {
        let id = self.leader?;
        self.members.replicas.get(&id).map(|member| (id, member))
    }
}
