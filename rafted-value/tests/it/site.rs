//! Typed replicas over the real transport: endpoints on loopback, with TLS, whose members come and go.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use batched_comm::{Endpoint, Identity};
use rafted_value::{GroupConfig, Replica, ReplicaBuilder, Role, Store};

use crate::cluster::{Command, Journal, Query, eventually, open};

pub struct Node {
    pub endpoint: Endpoint,
    pub store: Store,
    pub replica: Replica<Journal>,
}

impl Node {
    pub fn address(&self) -> SocketAddr {
        self.endpoint.local_address()
    }

    pub fn role(&self) -> Role {
        self.replica.status().role
    }

    pub fn is_voter(&self) -> bool {
        let status = self.replica.status();
        status.members.is_voter(status.replica)
    }

    /// The names of the members it knows.
    pub fn members(&self) -> Vec<String> {
        let members = self.replica.status().members;
        let mut names: Vec<String> = members.replicas.into_values().map(|member| member.name).collect();
        names.sort();
        names
    }

    async fn stop(self) {
        self.replica.shutdown().await;
        self.store.close().await;
        self.endpoint.shutdown().await;
    }
}

/// Nodes of one group, each with a directory or in memory.
pub struct Site {
    pub nodes: BTreeMap<String, Node>,
    identities: BTreeMap<String, Identity>,
    dirs: Option<tempfile::TempDir>,
    config: GroupConfig,
}

pub type Builder = ReplicaBuilder<Journal>;

impl Site {
    pub fn memory() -> Self {
        Self::new(None)
    }

    pub fn durable() -> Self {
        Self::new(Some(tempfile::tempdir().unwrap()))
    }

    fn new(dirs: Option<tempfile::TempDir>) -> Self {
        let ca = Identity::in_memory_ca().unwrap();
        let names = ["n1", "n2", "n3", "n4", "n5", "n6", "n7"];
        let identities = names.map(|name| (name.to_owned(), ca.issue(name).unwrap())).into();
        Self { nodes: BTreeMap::new(), identities, dirs, config: GroupConfig::default() }
    }

    /// With other settings, for the nodes that start from here on.
    pub fn with_config(self, config: GroupConfig) -> Self {
        Self { config, ..self }
    }

    pub fn dir(&self, name: &str) -> Option<PathBuf> {
        self.dirs.as_ref().map(|dirs| dirs.path().join(name))
    }

    pub async fn store(&self, name: &str) -> Store {
        match self.dir(name) {
            Some(dir) => open(dir, name).await,
            None => Store::memory(name),
        }
    }

    pub fn identity(&self, name: &str) -> Identity {
        self.identities[name].clone()
    }

    pub async fn endpoint(&self, name: &str) -> Endpoint {
        Endpoint::bind(([127, 0, 0, 1], 0).into(), self.identities[name].clone()).await.unwrap()
    }

    /// Starts a node of which the builder is told how it gets in.
    pub async fn start(&mut self, name: &str, tell: impl FnOnce(Builder, SocketAddr) -> Builder) {
        let endpoint = self.endpoint(name).await;
        let store = self.store(name).await;
        let builder = tell(Replica::builder("journal").config(self.config.clone()), endpoint.local_address());
        let replica = builder.start(&store, &endpoint).await.unwrap();
        self.nodes.insert(name.to_owned(), Node { endpoint, store, replica });
    }

    /// `n1`, and the others joined through it; all of them vote.
    pub async fn grow(&mut self, names: &[&str]) {
        self.start("n1", |builder, own| builder.member("n1", own)).await;
        for name in names {
            self.join(name, "n1").await;
        }
    }

    /// Starts a node that joins through another, and waits until it votes.
    pub async fn join(&mut self, name: &str, through: &str) {
        let address = self.node(through).address();
        self.start(name, |builder, _| builder.join_through(through, address)).await;
        let node = self.node(name);
        eventually("it votes", || node.is_voter()).await;
    }

    pub fn node(&self, name: &str) -> &Node {
        &self.nodes[name]
    }

    pub fn replica(&self, name: &str) -> &Replica<Journal> {
        &self.nodes[name].replica
    }

    pub async fn stop(&mut self, name: &str) {
        self.nodes.remove(name).unwrap().stop().await;
    }

    pub async fn add(&self, name: &str, n: i64) -> u64 {
        self.replica(name).command(Command::Add(n)).timeout(crate::cluster::PATIENCE).await.unwrap()
    }

    pub async fn all(&self, name: &str) -> Vec<i64> {
        self.replica(name).query(Query::All).timeout(crate::cluster::PATIENCE).await.unwrap()
    }

    pub async fn leader(&self) -> String {
        let leads = || self.nodes.iter().find(|(_, node)| node.role() == Role::Leader);
        eventually("a leader", || leads().is_some()).await;
        leads().unwrap().0.clone()
    }

    pub async fn shutdown(mut self) {
        while let Some((_, node)) = self.nodes.pop_first() {
            node.stop().await;
        }
    }
}
