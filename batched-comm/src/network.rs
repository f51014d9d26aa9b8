//! One task for all that an endpoint does between its socket and its mailboxes: QUIC's drivers and the lanes.
//!
//! ```text
//!   socket --> endpoint's driver --> connection's driver --> lane's reader --> mailboxes, callers
//!          <--                   <-- connection's driver <-- lane's writer <-- outbox
//! ```
//!
//! A datagram passes through all of them at once. As tasks of the runtime each would wake the next one, and with it, on
//! a runtime of several threads, an idle thread that finds nothing to do: that was half of the CPU time of a node that
//! answers calls. Here they wake each other within one task, and only whoever takes a message is woken outside of it.
//!
//! The task has a thread of its own, which user code never enters: a node whose handlers block all threads of the
//! runtime still answers pings, and takes what comes until its queues are full. It is a task of the user's runtime
//! where the settings say so, and in a simulated network, which has that runtime's time.

use std::any::Any;
use std::fmt;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::{AbortHandle, Abortable};
use futures_util::stream::{FuturesUnordered, Stream};
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};

type Part = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The thread's name, as a debugger shows it.
const THREAD_NAME: &str = "batched-comm";

/// Gives the network's task something more to do. The task ends with the last of these, once all parts have ended.
#[derive(Clone)]
pub(crate) struct Network {
    /// Their number is bounded by that of the connections.
    parts: mpsc::UnboundedSender<Part>,
}

impl Network {
    /// A network with a thread of its own, which ends by itself; and the runtime on it, for the socket.
    pub(crate) fn on_own_thread() -> io::Result<(Network, runtime::Handle)> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (network, task) = Network::new();
        let run = move || runtime.block_on(tokio::task::unconstrained(task));
        thread::Builder::new().name(THREAD_NAME.into()).spawn(run)?;
        Ok((network, handle))
    }

    /// A network that is a task of `runtime`.
    pub(crate) fn on(runtime: &runtime::Handle) -> Network {
        let (network, task) = Network::new();
        runtime.spawn(tokio::task::unconstrained(task));
        network
    }

    /// A network, and the task that it is.
    fn new() -> (Network, NetworkTask) {
        let (parts, new_parts) = mpsc::unbounded_channel();
        (Network { parts }, NetworkTask { new_parts, parts: FuturesUnordered::new() })
    }

    /// Runs `part` until it ends. When it panics, it ends alone.
    pub(crate) fn spawn(&self, part: impl Future<Output = ()> + Send + 'static) {
        let guarded = AssertUnwindSafe(part).catch_unwind().map(|ended| {
            if let Err(panic) = ended {
                tracing::error!(panic = text(&*panic), "a part of the network failed");
            }
        });
        // After the end of the runtime, nothing runs.
        let _ = self.parts.send(Box::pin(guarded));
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Network")
    }
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

/// Runs all parts.
struct NetworkTask {
    new_parts: mpsc::UnboundedReceiver<Part>,
    parts: FuturesUnordered<Part>,
}

impl Future for NetworkTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut is_last = false;
        loop {
            match self.new_parts.poll_recv(context) {
                Poll::Ready(Some(part)) => self.parts.push(part),
                Poll::Ready(None) => {
                    is_last = true;
                    break;
                }
                Poll::Pending => break,
            }
        }
        loop {
            match Pin::new(&mut self.parts).poll_next(context) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) if is_last => return Poll::Ready(()),
                // Nothing to do until there are more parts.
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// quinn's runtime: its drivers are parts of the network.
pub(crate) struct NetworkRuntime {
    network: Network,
    inner: Arc<dyn quinn::Runtime>,
}

impl NetworkRuntime {
    pub(crate) fn new(network: Network, inner: Arc<dyn quinn::Runtime>) -> NetworkRuntime {
        NetworkRuntime { network, inner }
    }
}

impl quinn::Runtime for NetworkRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn quinn::AsyncTimer>> {
        self.inner.new_timer(at)
    }

    fn spawn(&self, driver: Part) {
        self.network.spawn(driver);
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> std::io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        self.inner.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        self.inner.now()
    }
}

impl fmt::Debug for NetworkRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NetworkRuntime")
    }
}

/// A part that panicked, or was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed;

/// Parts that belong together: they end with this.
pub(crate) struct PartSet<T> {
    network: Network,
    running: Vec<(AbortHandle, oneshot::Receiver<T>)>,
}

impl<T: Send + 'static> PartSet<T> {
    pub(crate) fn new(network: Network) -> PartSet<T> {
        PartSet { network, running: Vec::new() }
    }

    pub(crate) fn spawn(&mut self, part: impl Future<Output = T> + Send + 'static) {
        let (abort, registration) = AbortHandle::new_pair();
        let (ended, end) = oneshot::channel();
        self.network.spawn(async move {
            // At the end of this statement, the part is gone, and then it is told.
            let result = Abortable::new(part, registration).await;
            if let Ok(result) = result {
                // Nobody may be interested.
                let _ = ended.send(result);
            }
        });
        self.running.push((abort, end));
    }

    /// What came of the next part that ends; `None` when there is none. Nothing is lost when the future is dropped.
    pub(crate) async fn join_next(&mut self) -> Option<Result<T, Failed>> {
        std::future::poll_fn(|context| {
            for index in 0..self.running.len() {
                if let Poll::Ready(ended) = self.running[index].1.poll_unpin(context) {
                    self.running.swap_remove(index);
                    return Poll::Ready(Some(ended.map_err(|_| Failed)));
                }
            }
            if self.running.is_empty() { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }

    /// Ends all parts, and returns when they are gone.
    pub(crate) async fn shutdown(&mut self) {
        self.abort();
        while self.join_next().await.is_some() {}
    }
}

impl<T> PartSet<T> {
    fn abort(&self) {
        self.running.iter().for_each(|(abort, _)| abort.abort());
    }
}

impl<T> Drop for PartSet<T> {
    fn drop(&mut self) {
        self.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn the_task_ends_with_the_last_handle_and_the_last_part() {
        let (network, task) = Network::new();
        let running = tokio::spawn(task);
        let (go, gone) = oneshot::channel::<()>();
        network.spawn(async move { gone.await.unwrap() });
        drop(network);
        tokio::task::yield_now().await;
        assert!(!running.is_finished());
        go.send(()).unwrap();
        timeout(DEADLINE, running).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_part_that_panics_ends_alone() {
        let (network, task) = Network::new();
        tokio::spawn(task);
        let mut parts = PartSet::new(network);
        parts.spawn(async { panic!("as planned") });
        assert_eq!(timeout(DEADLINE, parts.join_next()).await.unwrap(), Some(Err(Failed)));
        parts.spawn(async { 7 });
        assert_eq!(timeout(DEADLINE, parts.join_next()).await.unwrap(), Some(Ok(7)));
        assert_eq!(parts.join_next().await, None);
    }

    #[tokio::test]
    async fn after_a_shutdown_the_parts_are_gone() {
        struct Guard(Arc<AtomicU64>);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let (network, task) = Network::new();
        tokio::spawn(task);
        let dropped = Arc::new(AtomicU64::new(0));
        let mut parts = PartSet::<()>::new(network);
        for _ in 0..3 {
            let guard = Guard(dropped.clone());
            parts.spawn(async move {
                let _guard = guard;
                std::future::pending().await
            });
        }
        timeout(DEADLINE, parts.shutdown()).await.unwrap();
        assert_eq!(dropped.load(Ordering::SeqCst), 3);
    }
}
