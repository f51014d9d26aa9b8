//! openraft's runtime: tokio's, but for two things that a simulation must own: which tasks belong to a node, so that a
//! kill ends them all at once, and where randomness comes from, so that the same seed gives the same trace.
//!
//! Outside a [`Scope`] tasks are tokio's and randomness is the operating system's.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::{AsyncRuntime, OptionalSend};
use rand::distr::StandardUniform;
use rand::distr::uniform::{SampleRange, SampleUniform};
use rand::prelude::Distribution;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

type Tokio = openraft::impls::TokioRuntime;

tokio::task_local! {
    static SCOPE: Scope;
}

/// The tasks and the randomness of one simulated node. Whatever is spawned by a task of the scope belongs to it.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    inner: Arc<Mutex<Owned>>,
}

#[derive(Debug)]
struct Owned {
    random: StdRng,
    tasks: Vec<AbortHandle>,
    /// Tasks that have ended are forgotten when there are so many.
    sweep_at: usize,
    ended: bool,
}

const FIRST_SWEEP: usize = 256;

impl Scope {
    /// A scope whose randomness is that of `seed`.
    #[cfg(test)]
    pub(crate) fn new(seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let owned = Owned { random, tasks: Vec::new(), sweep_at: FIRST_SWEEP, ended: false };
        Self { inner: Arc::new(Mutex::new(owned)) }
    }

    /// Runs a future in the scope, as a part of the task that polls it.
    #[cfg(test)]
    pub(crate) async fn run<F: Future>(&self, future: F) -> F::Output {
        SCOPE.scope(self.clone(), future).await
    }

    /// Spawns a task that belongs to the scope.
    #[cfg(test)]
    pub(crate) fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        SCOPE.sync_scope(self.clone(), || spawn(future))
    }

    /// Ends every task of the scope where it is; whatever is spawned in it later ends at once.
    #[cfg(test)]
    pub(crate) fn end(&self) {
        let mut owned = self.lock();
        owned.ended = true;
        owned.tasks.drain(..).for_each(|task| task.abort());
    }

    fn own(&self, task: AbortHandle) {
        let mut owned = self.lock();
        if owned.ended {
            return task.abort();
        }
        if owned.tasks.len() >= owned.sweep_at {
            owned.tasks.retain(|task| !task.is_finished());
            owned.sweep_at = FIRST_SWEEP.max(2 * owned.tasks.len());
        }
        owned.tasks.push(task);
    }

    fn lock(&self) -> MutexGuard<'_, Owned> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Spawns a task; in a scope, it belongs to it.
#[track_caller]
pub(crate) fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    let Ok(scope) = SCOPE.try_with(Scope::clone) else { return tokio::spawn(future) };
    let task = tokio::spawn(SCOPE.scope(scope.clone(), future));
    scope.own(task.abort_handle());
    task
}

/// Spawns a task on a set; in a scope, it belongs to it, too.
#[track_caller]
pub(crate) fn spawn_on<F>(tasks: &mut JoinSet<F::Output>, future: F)
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    match SCOPE.try_with(Scope::clone) {
        Ok(scope) => scope.own(tasks.spawn(SCOPE.scope(scope.clone(), future))),
        Err(_) => drop(tasks.spawn(future)),
    }
}

/// A random value.
pub(crate) fn random<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    SCOPE.try_with(|scope| scope.lock().random.random()).unwrap_or_else(|_| rand::random())
}

/// A random value of a range.
pub(crate) fn random_range<T: SampleUniform>(range: impl SampleRange<T> + Clone) -> T {
    let within = range.clone();
    SCOPE.try_with(|scope| scope.lock().random.random_range(within)).unwrap_or_else(|_| rand::random_range(range))
}

/// What openraft spawns with, sleeps by and draws from.
#[derive(Debug)]
pub(crate) struct Runtime {
    inner: Tokio,
}

impl AsyncRuntime for Runtime {
    type JoinError = <Tokio as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <Tokio as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <Tokio as AsyncRuntime>::Sleep;
    type Instant = <Tokio as AsyncRuntime>::Instant;
    type TimeoutError = <Tokio as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <Tokio as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = StdRng;
    type Mpsc = <Tokio as AsyncRuntime>::Mpsc;
    #[cfg(not(test))]
    type Watch = <Tokio as AsyncRuntime>::Watch;
    #[cfg(test)]
    type Watch = watch::OrderedWatch;
    type Oneshot = <Tokio as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <Tokio as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Tokio::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        Tokio::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        Tokio::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        Tokio::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        Tokio::is_panic(join_error)
    }

    fn thread_rng() -> StdRng {
        StdRng::seed_from_u64(random())
    }

    fn new(threads: usize) -> Self {
        Self { inner: Tokio::new(threads) }
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.inner.block_on(future)
    }
}

/// Watch channels: tokio's, but in tests, where the order of waking must not be chance.
#[cfg(not(test))]
pub(crate) use tokio::sync::watch;

#[cfg(test)]
pub(crate) mod watch;

#[cfg(test)]
mod tests {
    use super::*;

    async fn draws() -> (u64, u64, u64) {
        let child = spawn(async { random::<u64>() });
        let here = Runtime::thread_rng().random::<u64>();
        (here, child.await.unwrap(), random_range(0..u64::MAX))
    }

    #[tokio::test]
    async fn the_same_seed_draws_the_same_in_every_task() {
        let first = Scope::new(7).run(draws()).await;
        let again = Scope::new(7).run(draws()).await;
        let other = Scope::new(8).run(draws()).await;
        assert_eq!(first, again);
        assert_ne!(first, other);
        assert_ne!(draws().await, draws().await, "outside a scope it is the system's");
    }

    #[tokio::test]
    async fn the_end_of_a_scope_ends_the_tasks_of_its_tasks() {
        let scope = Scope::new(1);
        let (alive, mut gone) = tokio::sync::mpsc::channel::<()>(1);
        scope
            .run(async {
                spawn(async move {
                    let grandchild = spawn(async move {
                        let _alive = alive;
                        std::future::pending::<()>().await;
                    });
                    grandchild.await.ok();
                });
            })
            .await;
        tokio::task::yield_now().await;
        assert!(gone.try_recv().is_err_and(|error| error == tokio::sync::mpsc::error::TryRecvError::Empty));
        scope.end();
        assert_eq!(gone.recv().await, None, "nobody holds the sender any more");
        let late = scope.spawn(std::future::pending::<()>());
        assert!(late.await.unwrap_err().is_cancelled());
    }
}
