//! One run: nodes, clients, and what befalls them, drawn from a seed; then everything is healed, and must come back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use super::client::{Client, Shared};
use super::clock::VirtualClock;
use super::counts::{Counts, Event};
use super::history;
use super::members::{Placement, leader};
use super::network::{Network, Trouble};
use super::node::{End, Node, Surroundings};
use super::plant::Plant;
use super::settings;
use super::truth::Truth;
use crate::config::GroupConfig;
use crate::disk::faulty::Fault;
use crate::group::UntypedReplica;
use crate::runtime::Scope;
use crate::status::{LogPosition, Role, Status};

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
    pub(crate) counts: Counts,
    pub(crate) fingerprint: (u64, u64),
}

pub(crate) struct World {
    random: StdRng,
    /// How often a step brings something bad.
    trouble: f64,
    nodes: Vec<Node>,
    around: Surroundings,
    placement: Placement,
    shared: Arc<Shared>,
    /// Steps so far.
    steps: u64,
    looks: BTreeMap<String, Look>,
    /// Replicas whose disk is gone and that are still members.
    lost_disks: BTreeSet<crate::status::ReplicaId>,
}

/// What was seen of a node at the last step.
#[derive(Default)]
struct Look {
    snapshot: Option<LogPosition>,
    segment_use: u64,
    is_full: bool,
}

/// Runs a seed; what went wrong, with what led to it.
pub(crate) fn run(seed: u64, plant: Plant) -> Result<Report, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(seed, plant);
        let outcome = world.live().await;
        let truth = &world.around.truth;
        let told = |error| format!("seed {seed}, {plant:?}: step {}: {error}\n{}", world.steps, truth.story());
        outcome.map_err(told)?;
        Ok(Report { counts: truth.counts(), fingerprint: truth.fingerprint() })
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
        let (steps, looks, lost_disks) = (0, BTreeMap::new(), BTreeSet::new());
        Self { random, trouble, nodes, around, placement, shared, steps, looks, lost_disks }
    }

    async fn live(&mut self) -> Result<(), String> {
        self.found().await?;
        if self.random.random_bool(0.3) {
            // Before its log has segments in reserve.
            let at = self.random.random_range(0..self.nodes.len());
            let used = self.nodes[at].disk.used_bytes();
            self.nodes[at].disk.set_capacity(Some(used + 40_000));
        }
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
                truth: self.around.truth.clone(),
                is_stubborn: n == 1,
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
            self.befall().await;
        }
        if self.random.random_bool(0.3) {
            self.placement.go_on(&mut self.nodes, &self.around).await;
        }
        self.look()?;
        self.steps += 1;
        self.around.truth.violation().map_or(Ok(()), Err)
    }

    /// Every replica is judged as it is now.
    fn look(&mut self) -> Result<(), String> {
        let truth = &self.around.truth;
        for node in &self.nodes {
            if let Some(fatal) = node.replica().and_then(UntypedReplica::fatal)
                && node.must_end().is_none()
            {
                return Err(format!("{} has stopped: {fatal}", node.name));
            }
            let Some((index, length, hash)) = node.state() else { continue };
            truth.judge(&node.name, |ledger, _| ledger.sees_state(index, length, hash));
            let (Some(status), Some(running)) = (node.status(), &node.running) else { continue };
            let settings = settings::number(&status.config);
            truth.judge(&node.name, |ledger, _| ledger.sees_settings(index, settings));
            if status.role == Role::Leader {
                truth.leads(status.term, status.replica.get());
                if Some(status.term) >= truth.newest_term() {
                    truth.judge(&node.name, |ledger, _| ledger.sees_newest_leader(status.last_log_index));
                    self.check_matched(&status)?;
                }
            }
            let segment_use = running.store.wal().active_use();
            let is_full = running.store.wal().is_full();
            let now = Look { snapshot: status.snapshot, segment_use, is_full };
            let before = self.looks.insert(node.name.clone(), now).unwrap_or_default();
            if status.snapshot > before.snapshot {
                truth.count(Event::Snapshot);
            }
            if is_full && !before.is_full {
                truth.count(Event::DiskFull);
            }
            truth.count_many(Event::SegmentRolled, segment_use.saturating_sub(before.segment_use.max(1)));
        }
        Ok(())
    }

    /// What the newest leader was told is in a replica's log is there, also after a restart.
    fn check_matched(&self, leader: &Status) -> Result<(), String> {
        for (replica, last) in self.nodes.iter().filter_map(Node::log_end) {
            let matched = leader.matched.get(&replica).copied().flatten();
            if matched > last {
                return Err(format!("the leader takes {replica} to have entry {matched:?}, its log ends at {last:?}"));
            }
        }
        Ok(())
    }

    async fn look_after_nodes(&mut self) -> Result<(), String> {
        for at in 0..self.nodes.len() {
            if let Some(how) = self.nodes[at].must_end() {
                self.around.truth.count(Event::DiskFault);
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
            Err(_) if node.disk.crashed() || node.disk.has_failed() => {
                self.around.truth.count(Event::DiskFault);
                self.end(at, End::PowerLost);
            }
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
        self.around.truth.count(match how {
            End::Killed => Event::Killed,
            End::Stopped => Event::Stopped,
            End::PowerLost => Event::PowerLost,
            End::DiskLost => Event::DiskLost,
        });
        if how == End::DiskLost {
            self.lost_disks.extend(node.id());
            self.looks.remove(&node.name);
        }
        node.end(&self.around, how, seed);
        node.start_at = Some(Instant::now() + Duration::from_millis(pause));
    }

    async fn stop(&mut self, at: usize) {
        self.nodes[at].stop(&self.around).await;
        self.end(at, End::Stopped);
    }

    /// Something bad, or at least something unusual.
    async fn befall(&mut self) {
        let at = self.random.random_range(0..self.nodes.len());
        // Leaders have it harder.
        let at = match leader(&self.nodes) {
            Some((leads, _)) if self.random.random_bool(0.4) => leads,
            _ => at,
        };
        let is_up = self.nodes[at].running.is_some();
        match self.random.random_range(0..23) {
            0..=2 if is_up => self.end(at, End::Killed),
            3 if is_up => self.end(at, End::PowerLost),
            // In the midst of a write, or shortly before a sync.
            4 if is_up => {
                let operation = self.nodes[at].disk.operations() + self.random.random_range(0..4);
                self.nodes[at].disk.fail_at(operation, Fault::Crash);
            }
            5..=6 if is_up => {
                let fault = if self.random.random_bool(0.7) { Fault::Crash } else { Fault::Fail };
                let operation = self.nodes[at].disk.operations() + self.random.random_range(0..40);
                self.nodes[at].disk.fail_at(operation, fault);
            }
            7 => self.lose_disk(at),
            8 => {
                let many: Vec<usize> = (0..self.nodes.len()).filter(|&at| self.nodes[at].running.is_some()).collect();
                let how = if self.random.random_bool(0.5) { End::Killed } else { End::PowerLost };
                self.around.truth.count(Event::AllEnded);
                many.into_iter().for_each(|at| self.end(at, how));
            }
            9..=10 => self.partition(at),
            11 => self.leave_an_old_leader(),
            12..=13 => self.around.network.heal(),
            14 => {
                let mut often = || self.random.random_range(0.0..0.3);
                let trouble = Trouble { lost: often(), late: often(), twice: often() };
                self.around.network.trouble(trouble);
            }
            15..=16 => self.want_others(),
            17 => self.ask(at),
            18 => {
                let wrong = self.random.random_range(-5_000..5_000);
                self.nodes[at].clock.set_wrong_by(wrong);
                self.around.truth.count(Event::ClockJumped);
            }
            19 => {
                let used = self.nodes[at].disk.used_bytes();
                let room = if self.random.random_bool(0.4) { None } else { Some(used + 40_000) };
                self.nodes[at].disk.set_capacity(room);
            }
            20 if is_up => self.stop(at).await,
            21..=22 => {
                let is_slow = self.random.random_bool(0.5);
                self.nodes[at].set_slow(is_slow);
                if is_slow {
                    self.around.truth.count(Event::DiskSlow);
                }
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
            self.around.truth.count(Event::Cut);
        } else {
            self.around.truth.count(Event::CutOneWay);
        }
    }

    /// Cuts the leader and the stubborn client off from all others, which elect another.
    fn leave_an_old_leader(&mut self) {
        let Some((leads, _)) = leader(&self.nodes) else { return };
        let side = BTreeSet::from([self.nodes[leads].name.clone(), "c1".to_owned()]);
        let others = self.nodes.iter().map(|node| node.name.clone());
        let rest: BTreeSet<String> = others.filter(|name| !side.contains(name)).collect();
        self.around.truth.tell(format!("{side:?} are left with each other"));
        self.around.network.heal();
        self.around.network.cut(&side, &rest);
        self.around.network.cut(&rest, &side);
        self.around.truth.count(Event::Cut);
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
                self.around.truth.is_heir(to);
                drop(running.scope.spawn(async move { replica.transfer_leader(to).await }));
            }
        }
    }

    fn heal(&mut self) {
        self.around.truth.tell("all is healed".into());
        self.around.network.heal();
        self.around.network.spare_receivers();
        for node in &mut self.nodes {
            node.set_slow(false);
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
        let wanted = self.nodes.iter().filter(|node| self.placement.wanted.contains(&node.name));
        for number in wanted.filter_map(Node::status).map(|status| settings::number(&status.config)) {
            self.shared.settings.lock().unwrap().check(number)?;
        }
        history::check(&self.shared.history.lock().unwrap(), items)
    }
}
