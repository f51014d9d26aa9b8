//! One run: nodes, clients, and what befalls them, drawn from a seed; then everything is healed, and must come back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use super::client::{Client, Shared};
use super::clock::VirtualClock;
use super::history::{self, Outcome};
use super::members::{Placement, leader};
use super::network::Network;
use super::node::{End, Node, Surroundings};
use super::plant::Plant;
use super::truth::Truth;
use crate::config::GroupConfig;
use crate::disk::faulty::Fault;
use crate::group::UntypedReplica;
use crate::runtime::Scope;
use crate::status::Role;

const NODES: usize = 5;
const CLIENTS: usize = 3;
/// How long things go wrong.
const TROUBLE: Duration = Duration::from_secs(8);
/// After that, everything must be back within this time.
const RECOVERY: Duration = Duration::from_secs(60);
const MAX_STEP: Duration = Duration::from_millis(60);

/// What a run was, so that one sees that it was not empty.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Report {
    pub(crate) appended: u64,
    pub(crate) read: u64,
    pub(crate) unknown: u64,
    pub(crate) terms: u64,
    pub(crate) ends: u64,
    pub(crate) fingerprint: (u64, u64),
}

pub(crate) struct World {
    seed: u64,
    random: StdRng,
    /// How often a step brings something bad.
    trouble: f64,
    nodes: Vec<Node>,
    around: Surroundings,
    placement: Placement,
    shared: Arc<Shared>,
    report: Report,
    /// Replicas whose disk is gone and that are still members.
    lost_disks: BTreeSet<crate::status::ReplicaId>,
}

/// Runs a seed; what went wrong, with what led to it.
pub(crate) fn run(seed: u64, plant: Plant) -> Result<Report, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(seed, plant);
        let outcome = world.live().await;
        world.report.fingerprint = world.around.truth.fingerprint();
        outcome.map_err(|error| format!("seed {seed}, {plant:?}: {error}\n{}", world.around.truth.story()))?;
        Ok(world.report.clone())
    })
}

impl World {
    fn new(seed: u64, plant: Plant) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let truth = Arc::new(Truth::new(Instant::now()));
        let network = Network::new(random.random(), truth.clone(), plant);
        let entries = random.random_range(10..80);
        let config = GroupConfig::default().with_snapshot_after_entries(entries).unwrap();
        let trouble = [0.02, 0.08, 0.25][random.random_range(0..3)];
        let start = Instant::now();
        let nodes: Vec<Node> = (1..=NODES).map(|n| Node::new(&format!("n{n}"), start, plant)).collect();
        let around = Surroundings { network, truth, plant, config };
        let (placement, shared) = (Placement::default(), Arc::default());
        let (report, lost_disks) = (Report::default(), BTreeSet::new());
        Self { seed, random, trouble, nodes, around, placement, shared, report, lost_disks }
    }

    async fn live(&mut self) -> Result<(), String> {
        self.found().await?;
        let clients = self.start_clients();
        let end = Instant::now() + TROUBLE;
        while Instant::now() < end {
            self.step(true).await?;
        }
        self.shared.stop.store(true, Ordering::Relaxed);
        self.heal();
        let end = Instant::now() + RECOVERY;
        while !(self.is_back() && clients.iter().all(tokio::task::JoinHandle::is_finished)) {
            if Instant::now() > end {
                let states: Vec<_> = self.nodes.iter().map(|node| (&node.name, node.status())).collect();
                return Err(format!("not back after {RECOVERY:?}: {states:#?}"));
            }
            self.step(false).await?;
        }
        for client in clients {
            client.await.map_err(|error| format!("a client: {error}"))?;
        }
        self.judge()
    }

    /// The first members: three or five nodes.
    async fn found(&mut self) -> Result<(), String> {
        let count = if self.random.random_bool(0.6) { 3 } else { NODES };
        self.placement.wanted = self.nodes.iter().take(count).map(|node| node.name.clone()).collect();
        for at in 0..self.nodes.len() {
            self.start(at).await?;
        }
        for node in self.nodes.iter_mut().take(count) {
            node.create_replica(&self.around).await.map_err(|error| error.to_string())?;
        }
        let members = self.nodes.iter().take(count).filter_map(|node| Some((node.id()?, node.member(0)?))).collect();
        let (Some(founder), Some(running)) = (self.nodes[0].replica(), &self.nodes[0].running) else {
            return Err("the first node does not run".into());
        };
        let founder = founder.clone();
        let founded = running.scope.spawn(async move { founder.initialize(members).await });
        founded.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    fn start_clients(&mut self) -> Vec<tokio::task::JoinHandle<()>> {
        let names: Vec<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
        let start = Instant::now();
        let mut tasks = Vec::new();
        for n in 1..=CLIENTS {
            let clock = Arc::new(VirtualClock::new(start));
            clock.set_wrong_by(self.random.random_range(-2_000..2_000));
            let client = Client {
                name: format!("c{n}"),
                nodes: names.clone(),
                network: self.around.network.clone(),
                clock,
                shared: self.shared.clone(),
            };
            tasks.push(Scope::new(self.random.random()).spawn(client.run()));
        }
        tasks
    }

    /// Some time passes, with or without trouble; what must hold is looked at.
    async fn step(&mut self, trouble: bool) -> Result<(), String> {
        tokio::time::sleep(self.random.random_range(Duration::from_millis(1)..MAX_STEP)).await;
        self.look_after_nodes().await?;
        if trouble && self.random.random_bool(self.trouble) {
            self.befall();
        }
        if self.random.random_bool(0.3) {
            self.placement.go_on(&mut self.nodes, &self.around).await;
        }
        for node in &self.nodes {
            if let Some(fatal) = node.replica().and_then(UntypedReplica::fatal)
                && node.must_end().is_none()
            {
                return Err(format!("{} has stopped: {fatal}", node.name));
            }
            if let Some(status) = node.status()
                && status.role == Role::Leader
            {
                self.around.truth.leads(status.term, status.replica.get());
            }
        }
        self.around.truth.violation().map_or(Ok(()), Err)
    }

    async fn look_after_nodes(&mut self) -> Result<(), String> {
        for at in 0..self.nodes.len() {
            if let Some(how) = self.nodes[at].must_end() {
                self.end(at, how);
            }
            let is_due = self.nodes[at].start_at.is_some_and(|start| start <= Instant::now());
            if self.nodes[at].running.is_none() && is_due {
                self.start(at).await?;
            }
        }
        Ok(())
    }

    async fn start(&mut self, at: usize) -> Result<(), String> {
        let seed = self.random.random();
        let node = &mut self.nodes[at];
        match node.start(&self.around, seed).await {
            Ok(()) => self.around.truth.tell(format!("{} starts", node.name)),
            // The fault that was waiting for it.
            Err(_) if node.disk.crashed() || node.disk.has_failed() => self.end(at, End::PowerLost),
            // A full disk: somebody makes room, and starts it again.
            Err(_) if node.disk.is_full() => {
                node.disk.set_capacity(None);
                self.end(at, End::Killed);
            }
            Err(error) => return Err(format!("{} does not start: {error}", node.name)),
        }
        Ok(())
    }

    fn end(&mut self, at: usize, how: End) {
        let seed = self.random.random();
        let pause = match self.random.random_range(0..3) {
            0 => self.random.random_range(0..20),
            1 => self.random.random_range(0..400),
            _ => self.random.random_range(0..2_000),
        };
        let node = &mut self.nodes[at];
        self.around.truth.tell(format!("{} {how:?}, back in {pause} ms", node.name));
        if how == End::DiskLost {
            self.lost_disks.extend(node.id());
        }
        node.end(&self.around, how, seed);
        node.start_at = Some(Instant::now() + Duration::from_millis(pause));
        self.report.ends += 1;
    }

    /// Something bad, or at least something unusual.
    fn befall(&mut self) {
        let at = self.random.random_range(0..self.nodes.len());
        // Leaders have it harder.
        let at = match leader(&self.nodes) {
            Some((leads, _)) if self.random.random_bool(0.4) => leads,
            _ => at,
        };
        let is_up = self.nodes[at].running.is_some();
        match self.random.random_range(0..20) {
            0..=2 if is_up => self.end(at, End::Killed),
            3..=4 if is_up => self.end(at, End::PowerLost),
            5..=6 if is_up => {
                let fault = if self.random.random_bool(0.7) { Fault::Crash } else { Fault::Fail };
                let operation = self.nodes[at].disk.operations() + self.random.random_range(0..40);
                self.nodes[at].disk.fail_at(operation, fault);
            }
            7 => self.lose_disk(at),
            8 => {
                let many: Vec<usize> = (0..self.nodes.len()).filter(|&at| self.nodes[at].running.is_some()).collect();
                let how = if self.random.random_bool(0.5) { End::Killed } else { End::PowerLost };
                many.into_iter().for_each(|at| self.end(at, how));
            }
            9..=11 => self.partition(at),
            12..=13 => self.around.network.heal(),
            14 => {
                let (loss, late) = (self.random.random_range(0.0..0.3), self.random.random_range(0.0..0.3));
                self.around.network.trouble(loss, late);
            }
            15..=16 => self.want_others(),
            17 => self.ask(at),
            18 => {
                let wrong = self.random.random_range(-5_000..5_000);
                self.nodes[at].clock.set_wrong_by(wrong);
            }
            19 => {
                let used = self.nodes[at].disk.used_bytes();
                let room = if self.random.random_bool(0.5) { None } else { Some(used + 40_000) };
                self.nodes[at].disk.set_capacity(room);
            }
            _ => {}
        }
    }

    /// Loses a disk, if the group can do without: all others have theirs, and the members are certain.
    fn lose_disk(&mut self, at: usize) {
        let Some((leads, status)) = leader(&self.nodes) else { return };
        let members = &status.members;
        self.lost_disks.retain(|id| members.replicas.contains_key(id));
        let certain = members.committed && !members.is_joint() && self.lost_disks.is_empty();
        let others_are_up =
            members.voters.iter().flatten().all(|id| {
                self.nodes.iter().any(|node| node.id() == Some(*id)) && crate::change::is_close(&status, *id)
            });
        if at != leads && certain && others_are_up && members.voter_ids().len() >= 3 {
            self.end(at, End::DiskLost);
        }
    }

    fn partition(&mut self, at: usize) {
        let all: BTreeSet<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
        let clients: BTreeSet<String> = (1..=CLIENTS).map(|n| format!("c{n}")).collect();
        let mut side: BTreeSet<String> = BTreeSet::from([self.nodes[at].name.clone()]);
        if self.random.random_bool(0.5) {
            side.extend(all.iter().filter(|_| self.random.random_bool(0.4)).cloned());
        }
        side.extend(clients.iter().filter(|_| self.random.random_bool(0.4)).cloned());
        let rest: BTreeSet<String> = all.union(&clients).filter(|name| !side.contains(*name)).cloned().collect();
        self.around.truth.tell(format!("{side:?} are cut off"));
        self.around.network.cut(&side, &rest);
        // Some cuts are of one direction.
        if self.random.random_bool(0.8) {
            self.around.network.cut(&rest, &side);
        }
    }

    fn want_others(&mut self) {
        let count = if self.random.random_bool(0.7) { 3 } else { NODES };
        let mut names: Vec<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
        while names.len() > count {
            let gone = self.random.random_range(0..names.len());
            names.remove(gone);
        }
        self.around.truth.tell(format!("{names:?} are wanted"));
        self.placement.wanted = names.into_iter().collect();
    }

    /// Asks a replica for something that it may do at any time.
    fn ask(&mut self, at: usize) {
        let (Some(replica), Some(running)) = (self.nodes[at].replica(), &self.nodes[at].running) else { return };
        let replica = replica.clone();
        match self.random.random_range(0..3) {
            0 => drop(running.scope.spawn(async move { replica.snapshot().await })),
            1 => drop(running.scope.spawn(async move { replica.elect().await })),
            _ => {
                let to = self.nodes[self.random.random_range(0..NODES)].id();
                let Some(to) = to else { return };
                drop(running.scope.spawn(async move { replica.transfer_leader(to).await }));
            }
        }
    }

    fn heal(&mut self) {
        self.around.truth.tell("all is healed".into());
        self.around.network.heal();
        for node in &mut self.nodes {
            node.disk.set_capacity(None);
            node.disk.fail_at(u64::MAX, Fault::Fail);
            node.clock.set_wrong_by(0);
            if node.running.is_none() {
                node.start_at.get_or_insert(Instant::now());
            }
        }
    }

    /// Every wanted node is a member and has applied all that the leader has.
    fn is_back(&self) -> bool {
        let Some((_, leader)) = leader(&self.nodes) else { return false };
        let has_all = |node: &Node| {
            node.status().is_some_and(|status| status.applied.map(|at| at.index) == leader.last_log_index)
        };
        let wanted = |node: &&Node| self.placement.wanted.contains(&node.name);
        self.placement.is_reached(&self.nodes) && self.nodes.iter().filter(wanted).all(has_all)
    }

    /// The history against what the replicas have.
    fn judge(&mut self) -> Result<(), String> {
        let wanted = self.nodes.iter().filter(|node| self.placement.wanted.contains(&node.name));
        let lists: Vec<Vec<u64>> = wanted.filter_map(Node::items).collect();
        let Some(items) = lists.first() else { return Err("no replica is left".into()) };
        if lists.iter().any(|list| list != items) {
            return Err(format!("replicas differ: {lists:?}"));
        }
        let history = self.shared.history.lock().unwrap().clone();
        for record in &history {
            match record.outcome {
                Outcome::Appended(_) => self.report.appended += 1,
                Outcome::Read { .. } => self.report.read += 1,
                Outcome::Unknown => self.report.unknown += 1,
                Outcome::NotHappened => {}
            }
        }
        self.report.terms = self.around.truth.leader_count() as u64;
        if let Some(&invented) = items.iter().find(|&&item| item == 0 || item > self.shared.item_count()) {
            return Err(format!("nobody appended {invented} (seed {})", self.seed));
        }
        history::check(&history, items)
    }
}
