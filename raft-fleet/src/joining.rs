//! How this node comes to its cluster: drives `bootstrap.rs` with what others answer.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use batched_comm::{ConnectError, NodeName, PeerState, Refusal};
use futures_util::future::join_all;
use rafted_value::{InitializeError, Member, ReplicaId};
use tokio::time::Instant;

use crate::bootstrap::{Bootstrap, ClusterKey, Event, Part, Promise, Standing};
use crate::cluster::{CLUSTER_GROUP, CLUSTER_INCARNATION, voter_count};
use crate::error::NodeFailure;
use crate::message::{GivePromise, Here, Namesake, Where};
use crate::node::Node;
use crate::placement;
use crate::replicas::{Detail, Hosted};
use crate::seeds::Try;

/// The registered name of the cluster group's type. No user's type may have it.
pub(crate) const CLUSTER_TYPE: &str = "cluster";
/// How long one other node has to say where it stands; it doubles from round to round, so that seeds that are
/// not there yet do not hold up those that are.
const FIRST_PATIENCE: Duration = Duration::from_millis(250);
pub(crate) const MAX_PATIENCE: Duration = Duration::from_secs(2);
/// How long an initiator may ask for another cluster than the one that this node has promised to.
const OTHER_PATIENCE: Duration = Duration::from_secs(8);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// Ends when this node is in a cluster, to which it is then bound.
pub(crate) async fn join(node: &Arc<Node>) -> Result<(), NodeFailure> {
    for known in node.memory.get().known.iter() {
        node.meet(known.0, &known.1.address);
    }
    let (mut pause, mut patience) = (FIRST_PAUSE, FIRST_PATIENCE);
    let mut remembered = node.memory.subscribe();
    let mut other_since: Option<Instant> = None;
    loop {
        remembered.borrow_and_update();
        let state = node.memory.get().bootstrap.clone();
        if let Some(cluster) = state.bound_to() {
            node.bind(cluster).await?;
        }
        if matches!(state, Bootstrap::Decided { .. } | Bootstrap::Promised { .. }) {
            node.is_founder.store(true, Ordering::Relaxed);
        }
        match state {
            Bootstrap::Member { .. } => return Ok(()),
            Bootstrap::Decided { members, .. } => {
                initialize(node, members).await?;
                node.bootstrap(Event::Initialized).await?;
                continue;
            }
            Bootstrap::Promised { cluster } if is_initialized(&start_cluster_replica(node).await?) => {
                // The group that the initiator made has reached this node; the initiator may be gone by now.
                node.bootstrap(Event::Heard(Standing::Member { cluster })).await?;
                continue;
            }
            Bootstrap::Promised { .. } | Bootstrap::Fresh | Bootstrap::Collecting { .. } => {}
        }
        let seeds_are_known = node.seeds.are_known(patience).await;
        let (tried, heard) = match state.bound_to() {
            Some(own) => {
                let (checked, asked) = tokio::join!(check_seeds(node, own, patience), ask_everybody(node, patience));
                let (tried, heard) = asked?;
                (tried.and(checked?), heard)
            }
            None => ask_everybody(node, patience).await?,
        };
        node.seeds.tell(&tried);
        check_promise(&state, &heard, &mut other_since)?;
        patience = (patience * 2).min(MAX_PATIENCE);
        let changed = take_in(node, heard).await?;
        // An initiator begins only after it has asked once: it may have lost its disk in a cluster that lives.
        let may_begin = seeds_are_known && matches!(node.part, Part::Initiator { .. });
        if may_begin && node.memory.get().bootstrap == Bootstrap::Fresh {
            begin(node).await?;
            continue;
        }
        if !changed {
            let jittered = pause.mul_f64(rand::random_range(0.5..1.0));
            // Woken early by a promise that arrived meanwhile.
            let _ = tokio::time::timeout(jittered, remembered.changed()).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }
}

/// An error when a promise is worth nothing any more: its initiator has lost its memory, and begins another
/// cluster. One that begins while the promised cluster is there gives up as soon as it hears of that.
fn check_promise(
    state: &Bootstrap,
    heard: &[(String, Here)],
    other_since: &mut Option<Instant>,
) -> Result<(), NodeFailure> {
    let Bootstrap::Promised { cluster: own } = state else { return Ok(()) };
    let mut asking = heard.iter().filter_map(|(_, here)| match here.standing {
        Standing::Asking { cluster } if cluster != *own => Some(cluster.id),
        _ => None,
    });
    let Some(other) = asking.next() else {
        *other_since = None;
        return Ok(());
    };
    if other_since.get_or_insert_with(Instant::now).elapsed() > OTHER_PATIENCE {
        return Err(NodeFailure::ForeignCluster { own: own.id, other });
    }
    Ok(())
}

/// Mints a cluster id, and stores it with this node's own promise.
async fn begin(node: &Node) -> Result<(), NodeFailure> {
    let cluster = ClusterKey { id: rand::random(), generation: 0 };
    let own = own_promise(node).await?;
    node.bootstrap(Event::Begin { cluster, own }).await.map(drop)
}

/// This node's word, with its replica of the cluster group, made and synced.
async fn own_promise(node: &Node) -> Result<Promise, NodeFailure> {
    Ok(Promise {
        node: node.name.to_string(),
        node_id: node.start.node_id,
        zone: node.zone.clone(),
        replica: mint_cluster_replica(node).await?.get(),
    })
}

async fn mint_cluster_replica(node: &Node) -> Result<ReplicaId, NodeFailure> {
    let detail = Detail { type_name: CLUSTER_TYPE.to_owned(), after: None };
    let minted = node.replicas.mint(CLUSTER_GROUP, CLUSTER_INCARNATION, &detail).await;
    minted.map_err(|error| NodeFailure::Storage(error.to_string()))
}

async fn start_cluster_replica(node: &Node) -> Result<Hosted, NodeFailure> {
    let id = mint_cluster_replica(node).await?;
    let hosted = node.replicas.start(id).await.map_err(|error| NodeFailure::Storage(error.to_string()))?;
    if !is_initialized(&hosted) {
        // It has never taken part in anything: there is nothing that could have been rolled back.
        node.gate.open();
    }
    Ok(hosted)
}

fn is_initialized(hosted: &Hosted) -> bool {
    hosted.replica.status().members.position.is_some()
}

/// Writes the first members of the cluster group into this node's replica. Repeated after a crash with the same
/// members, which never change once they are stored.
async fn initialize(node: &Node, members: Vec<Promise>) -> Result<(), NodeFailure> {
    let count = voter_count(members.len(), node.config.cluster_voters()) as usize;
    let others = members.iter().filter(|promise| !node.is_here(&promise.node));
    let others = others.map(|promise| (promise.node.as_str(), promise.zone.as_str()));
    // This node is among them, because only a member can write the first entry; the reconciler corrects that.
    let mut voters = placement::place(CLUSTER_GROUP, others, count.saturating_sub(1));
    voters.push(node.name.as_str());
    let first = members.iter().filter(|promise| voters.contains(&promise.node.as_str()));
    let first: BTreeMap<ReplicaId, Member> = first.filter_map(first_member).collect();
    let hosted = start_cluster_replica(node).await?;
    match hosted.replica.initialize(first).await {
        Ok(()) | Err(InitializeError::AlreadyInitialized) => Ok(()),
        Err(error) => Err(NodeFailure::Storage(error.to_string())),
    }
}

fn first_member(promise: &Promise) -> Option<(ReplicaId, Member)> {
    let (name, zone) = (promise.node.clone(), promise.zone.clone());
    Some((
        ReplicaId::new(promise.replica)?,
        Member { name, node: promise.node_id, zone, decided_at: 0, addresses: Vec::new() },
    ))
}

/// Asks seeds and all other nodes that were heard of where they stand.
async fn ask_everybody(node: &Node, patience: Duration) -> Result<(Try, Vec<(String, Here)>), NodeFailure> {
    let found = find_seeds(node, patience).await?;
    let (asked, heard) = ask_contacts(node, patience).await;
    Ok((found.and(asked), heard))
}

async fn ask_contacts(node: &Node, patience: Duration) -> (Try, Vec<(String, Here)>) {
    let question = Where { address: node.address.to_string() };
    let contacts = node.contacts.get();
    let answers = join_all(contacts.keys().map(|name| node.call(name, &question, patience))).await;
    let (mut tried, mut heard) = (Try::default(), Vec::new());
    for ((name, address), answer) in contacts.into_iter().zip(answers) {
        match answer {
            Ok(here) => heard.push((name, here)),
            Err(error) => tried.failures.push((format!("{name} at {address}"), error.to_string())),
        }
    }
    tried.answered = !heard.is_empty();
    (tried, heard)
}

/// Learns the names of seeds that are not known yet.
async fn find_seeds(node: &Node, patience: Duration) -> Result<Try, NodeFailure> {
    let known: Vec<String> = node.contacts.get().into_values().collect();
    let probes = probe_seeds(node, patience, |seed| !known.contains(&seed.to_string())).await;
    for (seed, probe) in &probes {
        // Who listens on one address only cannot be met at another.
        if matches!(probe, Err(ConnectError::Refused { refusal: Refusal::OwnName { .. }, .. }))
            && !node.listens_anywhere()
        {
            let (name, address) = (node.name.to_string(), seed.to_string());
            return Err(NodeFailure::NameInUse { name, address });
        }
    }
    Ok(outcome(node, &probes))
}

type Probe = (SocketAddr, Result<NodeName, ConnectError>);

/// Asks the seeds who they are, and meets those that answer.
async fn probe_seeds(node: &Node, patience: Duration, is_wanted: impl Fn(&SocketAddr) -> bool) -> Vec<Probe> {
    let seeds = node.seeds.get(patience).await;
    let others = seeds.iter().filter(|seed| **seed != node.address && is_wanted(seed));
    let probes = others.map(|seed| async { (*seed, node.endpoint.probe(*seed, patience).await) });
    let probes = join_all(probes).await;
    for (seed, probe) in &probes {
        match probe {
            Ok(name) => node.meet(name.as_str(), &seed.to_string()),
            Err(error) => tracing::debug!(%seed, %error, "a seed was not reached, trying again"),
        }
    }
    probes
}

/// A seed may be this node itself, under another address.
fn outcome(node: &Node, probes: &[Probe]) -> Try {
    let is_other = |(_, probe): &Probe| probe.as_ref().is_ok_and(|name| *name != node.name);
    let failures =
        probes.iter().filter_map(|(seed, probe)| Some((seed.to_string(), probe.as_ref().err()?.to_string())));
    Try { answered: probes.iter().any(is_other), failures: failures.collect() }
}

/// Whether anything came of the answers. That a cluster is there counts before that one is being made.
async fn take_in(node: &Arc<Node>, heard: Vec<(String, Here)>) -> Result<bool, NodeFailure> {
    for (_, here) in &heard {
        for (name, address) in &here.nodes {
            node.meet(name, address);
        }
        check_namesake(node, here.namesake.as_ref()).await?;
    }
    let before = node.memory.get().bootstrap.clone();
    for (_, here) in &heard {
        if matches!(here.standing, Standing::Member { .. }) {
            node.bootstrap(Event::Heard(here.standing)).await?;
        }
    }
    for (from, here) in &heard {
        if let Standing::Asking { cluster } = here.standing {
            promise(node, from, cluster).await?;
        }
    }
    Ok(node.memory.get().bootstrap != before)
}

/// Two running nodes of one name would take each other's connections away: the second one stops at once.
async fn check_namesake(node: &Node, namesake: Option<&Namesake>) -> Result<(), NodeFailure> {
    let Some(namesake) = namesake.filter(|namesake| namesake.node_id != node.start.node_id) else { return Ok(()) };
    let Ok(address) = namesake.address.parse() else { return Ok(()) };
    // At this node's own address, nobody else can be.
    if address == node.address {
        return Ok(());
    }
    let is_there = match node.endpoint.probe(address, MAX_PATIENCE).await {
        Ok(name) => name == node.name,
        Err(ConnectError::Refused { refusal: Refusal::OwnName { .. }, .. }) => true,
        Err(_) => false,
    };
    if is_there {
        let (name, address) = (node.name.to_string(), namesake.address.clone());
        return Err(NodeFailure::NameInUse { name, address });
    }
    Ok(())
}

/// Gives this node's word to the initiator, or gives it again.
async fn promise(node: &Arc<Node>, initiator: &str, cluster: ClusterKey) -> Result<(), NodeFailure> {
    let may = node.part == Part::Founder && node.memory.get().bootstrap == Bootstrap::Fresh;
    if may {
        // The replica is minted first: once the promise is stored, it is complete.
        mint_cluster_replica(node).await?;
        node.bootstrap(Event::Heard(Standing::Asking { cluster })).await?;
    }
    if node.memory.get().bootstrap != (Bootstrap::Promised { cluster }) {
        return Ok(());
    }
    node.bind(cluster).await?;
    start_cluster_replica(node).await?;
    let given = GivePromise { cluster, promise: own_promise(node).await? };
    match node.call(initiator, &given, MAX_PATIENCE).await {
        Ok(answer) => tracing::debug!(initiator, taken = answer.taken, "promised to be a first member"),
        Err(error) => tracing::debug!(initiator, %error, "the promise did not arrive, trying again"),
    }
    Ok(())
}

/// Looks for the nodes of this node's cluster once more: the seeds, and whom the others know.
pub(crate) async fn look_around(node: &Node, own: ClusterKey) -> Result<(), NodeFailure> {
    let (checked, asked) = tokio::join!(check_seeds(node, own, MAX_PATIENCE), ask_contacts(node, MAX_PATIENCE));
    let (tried, heard) = asked;
    node.seeds.tell(&tried.and(checked?));
    let connected = node.endpoint.peers().into_iter().filter(|peer| matches!(peer.state, PeerState::Up { .. }));
    let connected: HashSet<String> = connected.map(|peer| peer.name.to_string()).collect();
    for (name, address) in heard.iter().flat_map(|(_, here)| &here.nodes) {
        // Of a node that is connected, nobody else knows the address better.
        if !connected.contains(name) {
            node.meet(name, address);
        }
    }
    Ok(())
}

/// Meets the seeds; an error when some belong to another cluster, and none to this one.
pub(crate) async fn check_seeds(node: &Node, own: ClusterKey, patience: Duration) -> Result<Try, NodeFailure> {
    let probes = probe_seeds(node, patience, |_| true).await;
    let tried = outcome(node, &probes);
    let foreign = probes.iter().find_map(|(_, probe)| match probe {
        Err(ConnectError::Refused { refusal: Refusal::OtherCluster { given, own: theirs }, .. }) => {
            Some(if given.id == own.id && given.generation == own.generation { theirs.id } else { given.id })
        }
        _ => None,
    });
    match foreign {
        Some(other) if !tried.answered => Err(NodeFailure::ForeignCluster { own: own.id, other }),
        _ => Ok(tried),
    }
}
