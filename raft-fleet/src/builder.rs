//! What a node needs to start, and its start.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use batched_comm::{Endpoint, Identity, NodeName};
use rafted_value::{
    ClientSession, DirectoryStart, GroupClient, QuicTransport, Store, SystemClock, Transport, Value, ValueFactory,
    serve,
};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;

use crate::bootstrap::Part;
use crate::carrier::Carrier;
use crate::cluster::Cluster;
use crate::config::FleetConfig;
use crate::discovery::{Discovery, Seed, SeedList};
use crate::error::FleetError;
use crate::fleet::{Fleet, Types};
use crate::gate::{Gate, Gated};
use crate::joining::CLUSTER_TYPE;
use crate::leaderless::Leaderless;
use crate::leaders::Leaders;
use crate::lifecycle;
use crate::memory::Memory;
use crate::message::{FLEET_MAILBOX, RAFT_MAILBOX, Start};
use crate::node::{Confirmed, Node, Progress};
use crate::peers::Peers;
use crate::replicas::Replicas;
use crate::router::Router;
use crate::routes::{Contacts, Routes};
use crate::seeds::Seeds;
use crate::service;
use crate::view::View;
use crate::waking::Waking;

/// Events that a slow listener may fall behind before it misses some.
const EVENT_BACKLOG: usize = 1_024;

/// Collects what a node needs. See [`Fleet::builder`].
pub struct FleetBuilder {
    name: String,
    zone: String,
    listen: Option<SocketAddr>,
    advertise: Option<SocketAddr>,
    storage: Option<Storage>,
    identity: Option<Identity>,
    seeds: Vec<SocketAddr>,
    discoveries: Vec<Arc<dyn Discovery>>,
    bootstrap_expect: Option<u32>,
    bootstrap_node: Option<String>,
    replace: bool,
    attributes: BTreeMap<String, String>,
    config: FleetConfig,
    types: Types,
}

enum Storage {
    Directory(PathBuf),
    Memory,
}

impl Fleet {
    /// A node of this name, which stands in its certificate, too.
    pub fn builder(name: &str) -> FleetBuilder {
        FleetBuilder {
            name: name.to_owned(),
            zone: String::new(),
            listen: None,
            advertise: None,
            storage: None,
            identity: None,
            seeds: Vec::new(),
            discoveries: Vec::new(),
            bootstrap_expect: None,
            bootstrap_node: None,
            replace: false,
            attributes: BTreeMap::new(),
            config: FleetConfig::default(),
            types: Types::default(),
        }
    }
}

impl FleetBuilder {
    /// The zone in which the node stands: replicas of a group spread over zones. Default: none.
    pub fn zone(mut self, zone: &str) -> Self {
        self.zone = zone.to_owned();
        self
    }

    /// Where the node listens. Needed.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = Some(address);
        self
    }

    /// Where others reach the node. Default: where it listens.
    pub fn advertise(mut self, address: SocketAddr) -> Self {
        self.advertise = Some(address);
        self
    }

    /// Where the node keeps what must survive it. This or [`FleetBuilder::in_memory`] is needed.
    pub fn data_dir(mut self, directory: impl AsRef<Path>) -> Self {
        self.storage = Some(Storage::Directory(directory.as_ref().to_owned()));
        self
    }

    /// Keeps everything in memory: after a restart, the node is a new member. It takes its name over from its
    /// former self as soon as that one is unreachable, as with [`FleetBuilder::replace`]: that memory is gone.
    pub fn in_memory(mut self) -> Self {
        self.storage = Some(Storage::Memory);
        self
    }

    /// The node's certificate and key. Needed.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Addresses of nodes that know the cluster, the same list on every node; this node's own may be among them.
    /// Without seeds, the node waits for others to come.
    pub fn seeds(mut self, seeds: Vec<SocketAddr>) -> Self {
        self.seeds = seeds;
        self
    }

    /// Finds seeds in another way, besides [`FleetBuilder::seeds`] and what was given before: a [`SeedFile`], a
    /// [`SeedList`] with names, or one of your own. It is asked on every try.
    ///
    /// [`SeedFile`]: crate::SeedFile
    /// [`SeedList`]: crate::SeedList
    pub fn discovery(mut self, discovery: impl Discovery) -> Self {
        self.discoveries.push(Arc::new(discovery));
        self
    }

    /// How many nodes make a new cluster together, at least 1. The first of [`FleetBuilder::seeds`] makes it, when this
    /// many, itself included, have promised to take part; all others only join. Where there are none, because seeds are
    /// found otherwise, [`FleetBuilder::bootstrap_node`] says who makes it: who comes first in what is found may change.
    /// Without it, a node with seeds or with [`FleetBuilder::bootstrap_node`] joins a cluster that exists, and one
    /// without is a cluster of one.
    ///
    /// Expect more than half of the nodes that are given this: then not even an initiator that has lost its disk, and is
    /// cut off from its cluster, finds enough others for a second one.
    pub fn bootstrap_expect(mut self, nodes: u32) -> Self {
        self.bootstrap_expect = Some(nodes);
        self
    }

    /// The name of the node that makes a new cluster, instead of the one that listens on the first seed; it needs
    /// [`FleetBuilder::bootstrap_expect`], too.
    pub fn bootstrap_node(mut self, name: &str) -> Self {
        self.bootstrap_node = Some(name.to_owned());
        self
    }

    /// Takes the name over from an unreachable node at once, instead of waiting until that one is purged.
    pub fn replace(mut self, replace: bool) -> Self {
        self.replace = replace;
        self
    }

    /// Something that other nodes read of this one in [`NodeInfo::attributes`](crate::NodeInfo::attributes), such
    /// as where it serves HTTP.
    pub fn attribute(mut self, key: &str, value: &str) -> Self {
        self.attributes.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Replaces the default settings.
    pub fn config(mut self, config: FleetConfig) -> Self {
        self.config = config;
        self
    }

    /// Lets groups of values of type `V` live here, under a name that is the same on every node.
    pub fn register<V: Value>(self, type_name: &str) -> Result<Self, FleetError> {
        self.add_type::<V>(type_name, None)
    }

    /// The same, with what [`Context::environment`](rafted_value::Context::environment) gives to the value's code.
    pub fn register_with<V: Value>(
        self,
        type_name: &str,
        environment: Arc<dyn Any + Send + Sync>,
    ) -> Result<Self, FleetError> {
        self.add_type::<V>(type_name, Some(environment))
    }

    fn add_type<V: Value>(
        mut self,
        type_name: &str,
        environment: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Self, FleetError> {
        if type_name.is_empty() || type_name == CLUSTER_TYPE || self.types.factories.contains_key(type_name) {
            return Err(FleetError::Setting(format!(
                "the type name {type_name:?} is empty, taken, or this crate's own; choose another one"
            )));
        }
        self.types.factories.insert(type_name.to_owned(), ValueFactory::of::<V>(environment));
        self.types.names.entry(TypeId::of::<V>()).or_insert_with(|| type_name.to_owned());
        Ok(self)
    }

    /// Starts the node. It runs when this returns; it is part of its cluster when [`Fleet::ready`] returns.
    pub async fn start(self) -> Result<Fleet, FleetError> {
        let name: NodeName = self.name.parse()?;
        let missing = |what: &str| FleetError::Setting(format!("node {name} has no {what}; give it to the builder"));
        let listen = self.listen.ok_or_else(|| missing("address to listen on"))?;
        let identity = self.identity.clone().ok_or_else(|| missing("identity"))?;
        let storage = self.storage.as_ref().ok_or_else(|| missing("data directory (nor is it in memory)"))?;
        self.check(&name, &identity)?;
        // Before the directory is opened, which raises the boot number.
        let endpoint = Endpoint::bind(listen, identity).await?;
        let opened = match storage {
            Storage::Directory(directory) => Store::open(directory, name.as_str()).await,
            Storage::Memory => Ok(Store::memory(name.as_str())),
        };
        let store = match opened {
            Ok(store) => store,
            Err(error) => {
                endpoint.shutdown().await;
                return Err(error.into());
            }
        };
        match self.assemble(store.clone(), endpoint.clone()) {
            Ok(fleet) => Ok(fleet),
            Err(error) => {
                endpoint.shutdown().await;
                store.close().await;
                Err(error)
            }
        }
    }

    fn check(&self, name: &NodeName, identity: &Identity) -> Result<(), FleetError> {
        if identity.name() != name {
            let (name, certified) = (name.to_string(), identity.name().to_string());
            return Err(FleetError::OtherIdentity { name, certified });
        }
        let setting = |text: &str| Err(FleetError::Setting(text.to_owned()));
        if self.bootstrap_expect == Some(0) {
            return setting("bootstrap_expect is 0; a cluster has at least 1 node");
        }
        let has_initiator = !self.seeds.is_empty() || self.bootstrap_node.is_some();
        if self.bootstrap_expect.is_some() && !self.discoveries.is_empty() && !has_initiator {
            return setting(
                "bootstrap_expect is given, and seeds are found by a discovery, which names no first one: name the node \
                 that makes the cluster with `bootstrap_node`, on every node the same, or leave bootstrap_expect out to \
                 join a cluster that exists",
            );
        }
        let reachable_by = self.advertise.or(self.listen);
        if reachable_by.is_some_and(|address| address.ip().is_unspecified()) {
            return setting("the node listens on every address; say with `advertise` by which one others reach it");
        }
        Ok(())
    }

    /// What this node may do to make a cluster: configuration alone decides.
    fn part(&self, listen: SocketAddr, advertise: SocketAddr) -> Part {
        let is_first = match (&self.bootstrap_node, self.seeds.first()) {
            (Some(initiator), _) => *initiator == self.name,
            (None, Some(first)) => *first == listen || *first == advertise,
            (None, None) => self.discoveries.is_empty(),
        };
        let alone = self.seeds.is_empty() && self.discoveries.is_empty() && self.bootstrap_node.is_none();
        let expect = self.bootstrap_expect.or(alone.then_some(1));
        match (is_first, expect) {
            (true, Some(expect)) => Part::Initiator { expect: expect as usize },
            (false, _) if self.bootstrap_expect.is_some() => Part::Founder,
            _ => Part::Joiner,
        }
    }

    fn assemble(self, store: Store, endpoint: Endpoint) -> Result<Fleet, FleetError> {
        let listen = endpoint.local_address();
        let address = self.advertise.unwrap_or(listen);
        let part = self.part(listen, address);
        let identity = store.node();
        let DirectoryStart { boot, number } = store.starts().latest();
        let start = Start { node_id: identity.node_id, boot, number, start: endpoint.instance() };
        let memory = Memory::open(&store)?;
        if let Some(refused) = memory.get().refused {
            return Err(refused.failure(&self.name).into());
        }
        let list = SeedList::new(self.seeds.into_iter().map(Seed::from));
        let sources = [Arc::new(list) as Arc<dyn Discovery>].into_iter().chain(self.discoveries).collect();
        let seeds = Seeds::new(endpoint.name().clone(), sources);
        let expected_nodes = self.bootstrap_expect.unwrap_or(1) as usize;
        let gate = Gate::default();
        let transport: Arc<dyn Transport> = Arc::new(QuicTransport::new(endpoint.clone(), RAFT_MAILBOX));
        let gated: Arc<dyn Transport> = Arc::new(Gated { gate: gate.clone(), transport: transport.clone() });
        let mut factories: HashMap<String, ValueFactory> = self.types.factories.clone();
        factories.insert(CLUSTER_TYPE.to_owned(), ValueFactory::of::<Cluster>(None));
        let replicas = Replicas::new(store.clone(), factories, self.config.group().clone(), transport.clone(), gated);
        let replicas = Arc::new(replicas);
        let (view, leaders, peers) = (Arc::new(View::new()), Arc::<Leaders>::default(), Arc::new(Peers::new()));
        let contacts = Arc::<Contacts>::default();
        let waking = Arc::<Waking>::default();
        let routes = Routes {
            here: self.name.clone(),
            view: view.clone(),
            replicas: replicas.clone(),
            leaders: leaders.clone(),
            peers: peers.clone(),
            contacts: contacts.clone(),
            waking: waking.clone(),
            cluster_voters: self.config.cluster_voters(),
        };
        let carrier = Carrier { transport, peers: peers.clone() };
        let mut tasks = JoinSet::new();
        let mailbox_taken = |error: batched_comm::MailboxError| FleetError::Setting(error.to_string());
        let mailbox = endpoint.mailbox(FLEET_MAILBOX, service::MAILBOX_CAPACITY).map_err(mailbox_taken)?;
        let router = Router { replicas: replicas.clone(), gate: gate.clone(), waking: waking.clone() };
        serve(&endpoint, RAFT_MAILBOX, Arc::new(router), &mut tasks).map_err(mailbox_taken)?;
        let node = Arc::new(Node {
            name: endpoint.name().clone(),
            zone: self.zone,
            address,
            attributes: self.attributes,
            seeds,
            part,
            replace: self.replace || matches!(self.storage, Some(Storage::Memory)),
            start,
            config: self.config,
            store,
            endpoint,
            session: ClientSession::random(),
            clock: SystemClock::default(),
            memory,
            gate,
            view,
            confirmed: Confirmed::default(),
            replicas,
            leaders,
            leaderless: Leaderless::default(),
            peers,
            waking,
            contacts,
            client: GroupClient::new(Arc::new(routes), Arc::new(carrier)),
            is_founder: AtomicBool::new(false),
            progress: watch::Sender::new(Progress::Joining),
            leads_cluster: watch::Sender::new(None),
            events: broadcast::Sender::new(EVENT_BACKLOG),
        });
        tasks.spawn(service::serve(node.clone(), mailbox));
        lifecycle::spawn_tasks(&node, &mut tasks);
        Ok(Fleet::new(node, tasks, self.types, expected_nodes))
    }
}

#[cfg(test)]
mod tests;
