//! The seeds of this node, looked for while somebody wants them; and what is told when nobody is found.
//!
//! ```text
//! who looks for the cluster --wants--> the task `run` --asks every discovery--> found, which replaces what there was
//!                           <--what was found last----
//! ```
//!
//! A discovery that takes long, or fails, holds up no other one, and takes away nothing that it has found before.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use batched_comm::NodeName;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::discovery::{Discovery, DiscoveryError, Found};
use crate::telling::Telling;

/// How long a discovery may take; longer than a name.
const PATIENCE: Duration = Duration::from_secs(10);
/// Before the next look.
const PAUSE: Duration = Duration::from_secs(1);
/// Nodes that are started together need not find each other at once.
const UNANSWERED_FOR: Duration = Duration::from_secs(3);
/// Failures that are told, when there are more.
const MAX_TOLD: usize = 8;

/// Where others may be.
pub(crate) struct Seeds {
    node: NodeName,
    sources: Vec<Arc<dyn Discovery>>,
    wanted: Notify,
    found: watch::Sender<Known>,
    unanswered: Mutex<Telling>,
}

#[derive(Debug, Clone, Default)]
struct Known {
    seeds: Arc<[SocketAddr]>,
    /// Whether the first look has ended.
    is_complete: bool,
}

/// What came of a try to reach others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Try {
    /// Whether anybody answered.
    pub(crate) answered: bool,
    /// Who was tried besides, with what happened.
    pub(crate) failures: Vec<(String, String)>,
}

impl Seeds {
    pub(crate) fn new(node: NodeName, sources: Vec<Arc<dyn Discovery>>) -> Self {
        let unanswered = Mutex::new(Telling::after(UNANSWERED_FOR));
        Self { node, sources, wanted: Notify::new(), found: watch::Sender::new(Known::default()), unanswered }
    }

    /// What was found last, once everybody was asked, or so much time is over.
    pub(crate) async fn get(&self, patience: Duration) -> Arc<[SocketAddr]> {
        self.are_known(patience).await;
        self.found.borrow().seeds.clone()
    }

    /// Waits, at most for so long, until every discovery has answered once or was given up; whether that is so.
    pub(crate) async fn are_known(&self, patience: Duration) -> bool {
        self.wanted.notify_one();
        let mut found = self.found.subscribe();
        let complete = tokio::time::timeout(patience, found.wait_for(|known| known.is_complete)).await;
        complete.is_ok_and(|complete| complete.is_ok())
    }

    /// Never ends by itself: looks when somebody wants seeds.
    pub(crate) async fn run(&self) {
        let mut telling = Telling::after(Duration::ZERO);
        let mut latest = vec![Found::default(); self.sources.len()];
        loop {
            self.wanted.notified().await;
            let mut looks: FuturesUnordered<_> = self.sources.iter().enumerate().map(look).collect();
            while let Some((at, found)) = looks.next().await {
                // What cannot be found now may well be where it was.
                let keeps = found.seeds.is_empty() && !found.problems.is_empty();
                let seeds = if keeps { std::mem::take(&mut latest[at].seeds) } else { found.seeds };
                latest[at] = Found { seeds, problems: found.problems };
                self.set(&Found::of_all(latest.clone()), looks.is_empty());
            }
            let problems = Found::of_all(latest.clone()).problems;
            let problems = (!problems.is_empty()).then(|| list(problems.iter()));
            if let Some(next) = telling.next(Instant::now().into_std(), problems.as_deref()) {
                tracing::warn!(
                    node = %self.node,
                    "seeds could not be found: {}; looking again every {PAUSE:?}, and telling it again in {:?}",
                    problems.unwrap_or_default(), next.again_in
                );
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn set(&self, found: &Found, is_last: bool) {
        self.found.send_if_modified(|known| {
            let changes = known.seeds[..] != found.seeds[..] || (is_last && !known.is_complete);
            if changes {
                known.seeds = found.seeds.clone().into();
                known.is_complete |= is_last;
            }
            changes
        });
    }

    /// Tells, now and then, of tries that nobody answers.
    pub(crate) fn tell(&self, tried: &Try) {
        let who = list(tried.failures.iter().map(|(who, _)| who));
        let silent = (!tried.answered).then_some(who.as_str());
        let next =
            self.unanswered.lock().unwrap_or_else(PoisonError::into_inner).next(Instant::now().into_std(), silent);
        if let Some(next) = next {
            tracing::warn!(
                node = %self.node,
                "no other node has answered for {:?}: {tried}; trying again now, and telling it again in {:?}",
                next.lasts, next.again_in
            );
        }
    }
}

async fn look((at, source): (usize, &Arc<dyn Discovery>)) -> (usize, Found) {
    let too_slow = || DiscoveryError::TooSlow { what: "a discovery".into(), after: PATIENCE };
    let found = tokio::time::timeout(PATIENCE, source.find()).await;
    (at, found.unwrap_or_else(|_| Found { seeds: Vec::new(), problems: vec![too_slow()] }))
}

impl Try {
    /// This and another try at the same time.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.answered |= other.answered;
        for failure in other.failures {
            if !self.failures.iter().any(|(who, _)| *who == failure.0) {
                self.failures.push(failure);
            }
        }
        self
    }
}

impl fmt::Display for Try {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.failures.is_empty() {
            return f.write_str("no seed but this node itself is known, and nobody has come");
        }
        // Many errors name who it was.
        let failures = self
            .failures
            .iter()
            .map(|(who, what)| if what.starts_with(who) { what.clone() } else { format!("{who} ({what})") });
        f.write_str(&list(failures))
    }
}

/// The first ones, and how many there are besides.
fn list(items: impl ExactSizeIterator<Item: fmt::Display>) -> String {
    let more = items.len().saturating_sub(MAX_TOLD);
    let told: Vec<String> = items.take(MAX_TOLD).map(|item| item.to_string()).collect();
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    told.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU16, Ordering};

    use super::*;
    use crate::discovery::Finding;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// Finds one seed of this port, nothing at 0, and never an end at 1.
    #[derive(Default)]
    struct Changing {
        port: AtomicU16,
        looks: AtomicU16,
    }

    impl Discovery for Changing {
        fn find(&self) -> Finding<'_> {
            Box::pin(async {
                self.looks.fetch_add(1, Ordering::Relaxed);
                match self.port.load(Ordering::Relaxed) {
                    0 => Found { seeds: Vec::new(), problems: vec![DiscoveryError::Other("broken".into())] },
                    1 => std::future::pending().await,
                    port => Found { seeds: vec![at(port)], problems: Vec::new() },
                }
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn seeds_are_looked_for_on_every_try_and_a_failure_keeps_those_of_before() {
        let source = Arc::new(Changing::default());
        let seeds = Arc::new(Seeds::new("n1".parse().unwrap(), vec![source.clone()]));
        let running = tokio::spawn({
            let seeds = seeds.clone();
            async move { seeds.run().await }
        });
        let ports = async || -> Vec<u16> { seeds.get(PATIENCE).await.iter().map(|seed| seed.port()).collect() };
        assert_eq!(ports().await, [0; 0], "it fails, and says so at once");
        for port in [7, 8] {
            source.port.store(port, Ordering::Relaxed);
            tokio::time::sleep(PAUSE).await;
            let _ = ports().await;
            tokio::time::sleep(PAUSE / 2).await;
            assert_eq!(ports().await, [port], "what has changed is followed");
        }
        for broken in [0, 1] {
            source.port.store(broken, Ordering::Relaxed);
            let before = Instant::now();
            for _ in 0..30 {
                assert_eq!(ports().await, [8], "and kept, where nothing better is known");
                tokio::time::sleep(PAUSE).await;
            }
            assert!(before.elapsed() < PAUSE * 31, "nobody was held up");
        }
        let looks = source.looks.load(Ordering::Relaxed);
        assert!((30..50).contains(&looks), "{looks} looks: no more than one a second");
        running.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_first_look_for_ever() {
        let source = Arc::new(Changing { port: 1.into(), ..Changing::default() });
        let seeds = Seeds::new("n1".parse().unwrap(), vec![source]);
        tokio::select! {
            () = seeds.run() => {}
            found = seeds.get(PAUSE) => assert!(found.is_empty()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_discovery_that_never_answers_holds_up_no_other() {
        let sources: [Arc<dyn Discovery>; 2] = [1, 7].map(|port| {
            let changing: Arc<dyn Discovery> = Arc::new(Changing { port: AtomicU16::new(port), ..Changing::default() });
            changing
        });
        let seeds = Seeds::new("n1".parse().unwrap(), sources.into());
        let looking = async {
            assert_eq!(seeds.get(PAUSE).await[..], [at(7)]);
            assert!(!seeds.are_known(PAUSE).await, "one has not answered");
            assert_eq!(seeds.get(PATIENCE).await[..], [at(7)]);
            assert!(seeds.are_known(Duration::ZERO).await, "and was given up");
        };
        tokio::select! {
            () = seeds.run() => {}
            () = looking => {}
        }
    }

    #[test]
    fn who_was_tried_is_told_with_what_happened() {
        let failed = |at| (format!("n{at}"), if at == 1 { "n1 is gone" } else { "gone" }.to_owned());
        let told = Try { answered: false, failures: (0..10).map(failed).collect() }.to_string();
        assert!(told.starts_with("n0 (gone), n1 is gone, ") && told.ends_with("n7 (gone), and 2 more"), "{told}");
        assert!(Try::default().to_string().contains("no seed"));
    }
}
