//! Ctrl-C and its kin, told apart from the children's: they run in process groups of their own.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How many were received. A signal is the process's, so its count is, too.
static RECEIVED: AtomicUsize = AtomicUsize::new(0);

/// From now on SIGINT, SIGTERM and SIGHUP are counted and do not end the process.
#[cfg(unix)]
pub fn install() -> std::io::Result<()> {
    use signal_hook::{
        consts::{SIGHUP, SIGINT, SIGTERM},
        iterator::Signals,
    };
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for _ in signals.forever() {
            RECEIVED.fetch_add(1, Ordering::SeqCst);
        }
    })?;
    Ok(())
}

/// Elsewhere Ctrl-C ends the process; its children end with the console's window.
#[cfg(not(unix))]
pub fn install() -> std::io::Result<()> {
    Ok(())
}

/// How many were received so far.
pub fn received() -> usize {
    RECEIVED.load(Ordering::SeqCst)
}

/// Whether the user wants an end.
pub fn interrupted() -> bool {
    received() > 0
}

/// An error where the user wants an end.
pub fn check() -> anyhow::Result<()> {
    if interrupted() {
        return Err(Interrupted.into());
    }
    Ok(())
}

/// The user wants an end.
#[derive(Clone, Copy, Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "interrupted")
    }
}

impl std::error::Error for Interrupted {}
