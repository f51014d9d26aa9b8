//! Where work runs that blocks or that belongs to users: never on the threads of raft and network. In a simulation it
//! runs in place, after a while of virtual time.

use std::io;

use tokio::task::JoinHandle;

/// Threads for blocking work. Clones are the same threads.
#[derive(Debug, Clone)]
pub(crate) enum Threads {
    /// The blocking threads of a runtime.
    Pool(tokio::runtime::Handle),
    /// None: as tasks of the simulated node.
    #[cfg(test)]
    Simulated,
}

#[cfg(test)]
const MAX_SIMULATED_WAIT: std::time::Duration = std::time::Duration::from_millis(4);

impl Threads {
    /// Starts work. It runs to its end, also when nobody waits for it any more.
    pub(crate) fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        match self {
            Self::Pool(handle) => handle.spawn_blocking(work),
            #[cfg(test)]
            Self::Simulated => crate::runtime::spawn(async move {
                // Most work is done at once; some waits for a thread.
                if crate::runtime::random_range(0..4) == 0 {
                    tokio::time::sleep(crate::runtime::random_range(std::time::Duration::ZERO..MAX_SIMULATED_WAIT))
                        .await;
                }
                work()
            }),
        }
    }

    /// Runs work and waits for it. An error means that it panicked, or that the threads are gone.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        self.spawn(work).await.map_err(io::Error::other)
    }
}
