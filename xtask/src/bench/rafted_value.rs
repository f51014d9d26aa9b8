//! The rows of rafted-value: against etcd, and against openraft alone.
//!
//! Three node processes and one client process on each side; CPU time is that of all four. In memory, one process.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Options;
use super::child::Round;
use super::cluster::{Cluster, NODES, Side, has_etcd};
use super::load::{Kind, Work};
use super::protocols;
use super::row::{Rounds, Row, Target};
use super::side::{Measured, at_least, at_most, describe, exactly, undisturbed};
use super::snapshots;

/// The size of what is written and read.
const BYTES: usize = 64;
/// Closed loops in the rows that are about throughput.
const CLIENTS: usize = 256;
const SOME_CLIENTS: usize = 64;
/// Groups that share the nodes' logs in `entries-per-sync`.
const GROUPS: usize = 2_000;
/// Longer than for calls: logs and their segments are warm after it.
const WARM_UP: Duration = Duration::from_secs(1);

/// Measures rows that share their rounds.
type Group<'a> = fn(&mut Bench<'a>) -> Result<Vec<Row>>;

struct Bench<'a> {
    options: &'a Options,
    tls: &'a Path,
    has_etcd: bool,
    clusters: HashMap<Side, Cluster>,
}

/// One side's rounds, and the client's part of the CPU time per operation.
#[derive(Default)]
struct Split {
    all: Measured,
    client_us: Rounds,
}

/// All rows.
pub fn measure(options: &Options) -> Result<Vec<Row>> {
    let tls = tempfile::tempdir().context("no folder for certificates")?;
    let names = [NODES.as_slice(), &["client"]].concat();
    protocols::make_certificates(tls.path(), &names)?;
    let has_etcd = has_etcd()?;
    if !has_etcd {
        println!("etcd is not on the PATH (Debian: etcd-server): what is measured against it has no ratio");
    }
    Bench { options, tls: tls.path(), has_etcd, clusters: HashMap::new() }.rows()
}

impl<'a> Bench<'a> {
    fn rows(mut self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        let groups: [(&[&str], Group<'a>); 6] = [
            (&["durable-1-p50", "durable-1-p99"], |bench| bench.one_client(Kind::Write)),
            (&["durable-64"], Bench::some_clients),
            (&["durable-256", "durable-256-p99", "durable-256-cpu"], |bench| bench.many_clients(Kind::Write)),
            (&["query-1-p50", "query-1-p99"], |bench| bench.one_client(Kind::Read)),
            (&["query-256", "query-256-p99", "query-256-cpu"], |bench| bench.many_clients(Kind::Read)),
            (&["entries-per-sync"], Bench::entries_per_sync),
        ];
        for (names, group) in groups.into_iter().filter(|(names, _)| self.options.wants(names)) {
            println!("{} …", names.join(", "));
            rows.extend(group(&mut self)?);
        }
        // Nobody who is measured shares the machine with who was measured before.
        self.clusters.clear();
        if self.options.wants(&snapshots::NAMES) {
            println!("{} …", snapshots::NAMES.join(", "));
            rows.extend(snapshots::measure(self.options, self.tls)?);
        }
        if self.options.wants(&["memory-256-cpu"]) {
            println!("memory-256-cpu …");
            rows.extend(self.in_memory()?);
        }
        Ok(rows)
    }

    fn work(&self, kind: Kind, tasks: usize) -> Work {
        let measure = Duration::from_secs_f64(self.options.seconds);
        Work { kind, bytes: BYTES, tasks, warm_up: WARM_UP, measure }
    }

    /// Takes turns between the sides, and measures each once a round.
    fn interleave(&mut self, sides: &[Side], work: Work) -> Result<Vec<Split>> {
        for side in sides {
            if !self.clusters.contains_key(side) {
                let cluster = Cluster::start(*side, self.tls).with_context(|| format!("{side:?} does not start"))?;
                self.clusters.insert(*side, cluster);
            }
        }
        let mut measured: Vec<_> = sides.iter().map(|_| Split::default()).collect();
        for _ in 0..self.options.rounds {
            for (side, measured) in sides.iter().zip(&mut measured) {
                let (round, client_us) = self.round(*side, work)?;
                println!("  {side:?} {:?} {}: {}", work.kind, work.tasks, describe(&round));
                measured.all.add(&round);
                measured.client_us.add(client_us, Some(client_us));
            }
        }
        Ok(measured)
    }

    fn round(&mut self, side: Side, work: Work) -> Result<(Round, f64)> {
        let cluster = self.clusters.get_mut(&side).context("not started")?;
        let mut client_us = f64::NAN;
        let round = undisturbed(self.options, || {
            let (round, client) = cluster.round(work)?;
            client_us = client;
            Ok(round)
        })?;
        Ok((round, client_us))
    }

    /// Ours, and etcd where there is one.
    fn beside_etcd(&mut self, work: Work) -> Result<(Split, Option<Split>)> {
        let sides = [Side::Ours { groups: 1 }, Side::Etcd];
        let count = if self.has_etcd { 2 } else { 1 };
        let mut measured = self.interleave(&sides[..count], work)?.into_iter();
        Ok((measured.next().context("nothing was measured")?, measured.next()))
    }

    fn one_client(&mut self, kind: Kind) -> Result<Vec<Row>> {
        let (ours, etcd) = self.beside_etcd(self.work(kind, 1))?;
        let etcd = etcd.map(|split| split.all);
        let (names, target) = match kind {
            Kind::Read => (["query-1-p50", "query-1-p99"], None),
            _ => (["durable-1-p50", "durable-1-p99"], at_most(0.6)),
        };
        Ok(vec![
            versus(names[0], "us", &ours.all.p50_us, etcd.as_ref().map(|etcd| &etcd.p50_us), target),
            versus(names[1], "us", &ours.all.p99_us, etcd.as_ref().map(|etcd| &etcd.p99_us), None),
        ])
    }

    fn some_clients(&mut self) -> Result<Vec<Row>> {
        let (ours, etcd) = self.beside_etcd(self.work(Kind::Write, SOME_CLIENTS))?;
        let etcd = etcd.as_ref().map(|split| &split.all.per_second);
        Ok(vec![versus("durable-64", "1/s", &ours.all.per_second, etcd, None)])
    }

    fn many_clients(&mut self, kind: Kind) -> Result<Vec<Row>> {
        let (ours, etcd) = self.beside_etcd(self.work(kind, CLIENTS))?;
        let names = match kind {
            Kind::Read => ["query-256", "query-256-p99", "query-256-cpu", "query-256-client-cpu"],
            _ => ["durable-256", "durable-256-p99", "durable-256-cpu", "durable-256-client-cpu"],
        };
        let of = |pick: fn(&Split) -> &Rounds| etcd.as_ref().map(pick);
        Ok(vec![
            versus(names[0], "1/s", &ours.all.per_second, of(|etcd| &etcd.all.per_second), at_least(5.0)),
            versus(names[1], "us", &ours.all.p99_us, of(|etcd| &etcd.all.p99_us), None),
            versus(names[2], "us", ours.all.cpu(), of(|etcd| etcd.all.cpu()), None),
            versus(names[3], "us", &ours.client_us, of(|etcd| &etcd.client_us), None),
        ])
    }

    /// A sync serves all groups of a node. The value is that of all nodes together: how many entries come while a sync
    /// lasts. Where syncs are fast and processors few, that is less than the clients that wait: most of them then wait for
    /// a processor. (On a disk whose syncs last as long as clients take to come back, a test counts half of the clients.)
    fn entries_per_sync(&mut self) -> Result<Vec<Row>> {
        self.clusters.clear();
        let side = Side::Ours { groups: GROUPS };
        let mut cluster = Cluster::start(side, self.tls).context("thousands of groups do not start")?;
        let mut per_sync = Rounds::default();
        for _ in 0..self.options.rounds {
            let before = cluster.log_count()?;
            let work = self.work(Kind::Write, CLIENTS);
            let (round, _) = cluster.round(work)?;
            let after = cluster.log_count()?;
            let value = (after.entries - before.entries) / (after.batches - before.batches);
            println!("  {GROUPS} groups, {CLIENTS} writers: {value:.1} entries per sync, {}", describe(&round));
            per_sync.add(value, Some(round.cpu_us));
        }
        Ok(vec![Row::alone("entries-per-sync", "entries", &per_sync, at_least(0.5 * CLIENTS as f64))])
    }

    fn in_memory(&mut self) -> Result<Vec<Row>> {
        let sides = [Side::InProcess, Side::Openraft, Side::InMemory];
        let measured = self.interleave(&sides, self.work(Kind::Write, CLIENTS))?;
        let [ours, openraft, over_quic] = exactly(measured.into_iter().map(|split| split.all).collect())?;
        let (peer, cpu) = ("openraft alone", openraft.cpu());
        Ok(vec![
            Row::against("memory-256-cpu", "us", ours.cpu(), (peer, cpu), at_most(3.0)),
            Row::against("memory-256", "1/s", &ours.per_second, (peer, &openraft.per_second), None),
            Row::against("memory-256-quic-cpu", "us", over_quic.cpu(), (peer, cpu), None),
        ])
    }
}

/// A row against etcd; without it, neither ratio nor target.
fn versus(name: &'static str, unit: &'static str, ours: &Rounds, etcd: Option<&Rounds>, target: Option<Target>) -> Row {
    match etcd {
        Some(etcd) => Row::against(name, unit, ours, ("etcd", etcd), target),
        None => Row::alone(name, unit, ours, None),
    }
}
