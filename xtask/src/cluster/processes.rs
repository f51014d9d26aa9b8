//! One node process: spawned, killed, paused, stopped, and never left behind.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// How much of a log's end is looked at for its last lines.
const TAIL_BYTES: u64 = 16 * 1024;

/// How often a child is asked whether it has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How to start a process, as often as needed.
#[derive(Clone, Debug)]
pub struct Launch {
    pub program: PathBuf,
    pub arguments: Vec<String>,
    /// Gets what the process says; appended to.
    pub log: PathBuf,
}

/// A process and what became of it.
#[derive(Debug)]
pub struct Process {
    launch: Launch,
    state: State,
}

/// A child is held exactly while it may run.
#[derive(Debug)]
enum State {
    NotStarted,
    Running {
        child: Child,
        since: Instant,
    },
    Paused {
        child: Child,
        since: Instant,
    },
    /// By us.
    Killed,
    /// By us, in good time.
    Stopped,
    /// By itself, which nobody asked for.
    Ended(ExitStatus),
}

/// What a process does, without its handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    NotStarted,
    Running { uptime: Duration },
    Paused { uptime: Duration },
    Killed,
    Stopped,
    Ended(ExitStatus),
}

impl Process {
    pub fn new(launch: Launch) -> Process {
        Process { launch, state: State::NotStarted }
    }

    pub fn log(&self) -> &Path {
        &self.launch.log
    }

    /// Starts it where it does not run; answers its id.
    pub fn start(&mut self) -> Result<u32> {
        if self.pid().is_some() {
            bail!("it runs already");
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.launch.log);
        let log = log.with_context(|| format!("cannot write {}", self.launch.log.display()))?;
        let mut command = Command::new(&self.launch.program);
        command.args(&self.launch.arguments).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        own_process_group(&mut command);
        let child = command.spawn().with_context(|| format!("cannot start {}", self.launch.program.display()))?;
        let pid = child.id();
        self.state = State::Running { child, since: Instant::now() };
        Ok(pid)
    }

    /// Replaces the arguments of the next start.
    pub fn set_arguments(&mut self, arguments: Vec<String>) {
        self.launch.arguments = arguments;
    }

    /// The id while it runs or is paused. It has not been waited for, so the id is nobody else's.
    pub fn pid(&mut self) -> Option<u32> {
        self.notice_end();
        match &self.state {
            State::Running { child, .. } | State::Paused { child, .. } => Some(child.id()),
            State::NotStarted | State::Killed | State::Stopped | State::Ended(_) => None,
        }
    }

    /// What it does now.
    pub fn standing(&mut self) -> Standing {
        self.notice_end();
        match &self.state {
            State::NotStarted => Standing::NotStarted,
            State::Running { since, .. } => Standing::Running { uptime: since.elapsed() },
            State::Paused { since, .. } => Standing::Paused { uptime: since.elapsed() },
            State::Killed => Standing::Killed,
            State::Stopped => Standing::Stopped,
            State::Ended(status) => Standing::Ended(*status),
        }
    }

    /// Sends SIGKILL and does not wait: for several at once. [`reap`](Self::reap) belongs to it.
    pub fn send_kill(&mut self) -> Result<()> {
        match &mut self.state {
            State::Running { child, .. } | State::Paused { child, .. } => {
                child.kill().context("cannot kill the process")
            }
            _ => bail!("it does not run"),
        }
    }

    /// Waits for the end of a process that got SIGKILL.
    pub fn reap(&mut self) -> Result<()> {
        if let State::Running { child, .. } | State::Paused { child, .. } = &mut self.state {
            child.wait().context("cannot wait for the process")?;
            self.state = State::Killed;
        }
        Ok(())
    }

    /// SIGSTOP.
    pub fn pause(&mut self) -> Result<()> {
        self.notice_end();
        match std::mem::replace(&mut self.state, State::NotStarted) {
            State::Running { child, since } => {
                let sent = send(&child, Signal::Pause);
                self.state =
                    if sent.is_ok() { State::Paused { child, since } } else { State::Running { child, since } };
                sent
            }
            other => {
                self.state = other;
                bail!("it does not run")
            }
        }
    }

    /// SIGCONT.
    pub fn resume(&mut self) -> Result<()> {
        self.notice_end();
        match std::mem::replace(&mut self.state, State::NotStarted) {
            State::Paused { child, since } => {
                let sent = send(&child, Signal::Resume);
                self.state =
                    if sent.is_ok() { State::Running { child, since } } else { State::Paused { child, since } };
                sent
            }
            other => {
                self.state = other;
                bail!("it is not paused")
            }
        }
    }

    /// Asks it to stop in good time (SIGTERM; a paused one goes on first) and does not wait.
    pub fn send_stop(&mut self) {
        if let State::Paused { .. } = self.state {
            // Where this fails the process has ended, or the kill after the deadline ends it.
            let _ = self.resume();
        }
        if let State::Running { child, .. } = &self.state {
            let _ = send(child, Signal::Stop);
        }
    }

    /// Waits for the end of a process that was asked to stop; says whether it came before the deadline. `hurry` is
    /// asked again and again whether to wait no longer.
    pub fn wait_stopped(&mut self, deadline: Instant, hurry: impl Fn() -> bool) -> bool {
        loop {
            let (State::Running { child, .. } | State::Paused { child, .. }) = &mut self.state else {
                return true;
            };
            match child.try_wait() {
                Ok(Some(_)) => {
                    self.state = State::Stopped;
                    return true;
                }
                Ok(None) if Instant::now() < deadline && !hurry() => {
                    std::thread::sleep(POLL_INTERVAL);
                }
                Ok(None) | Err(_) => return false,
            }
        }
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.launch.log, lines).unwrap_or_else(|error| format!("(no log: {error})"))
    }

    /// The CPU time that it has used, where the system tells.
    pub fn cpu_time(&mut self) -> Option<Duration> {
        self.pid().and_then(cpu_time)
    }

    /// The memory that it has, in bytes, where the system tells.
    pub fn memory(&mut self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    }

    fn notice_end(&mut self) {
        if let State::Running { child, .. } | State::Paused { child, .. } = &mut self.state
            && let Ok(Some(status)) = child.try_wait()
        {
            self.state = State::Ended(status);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let State::Running { child, .. } | State::Paused { child, .. } = &mut self.state {
            // A failure means that it has ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

enum Signal {
    Stop,
    Pause,
    Resume,
}

/// Only for a child that has not been waited for: its id is then its own.
#[cfg(unix)]
fn send(child: &Child, signal: Signal) -> Result<()> {
    use rustix::process::{Pid, Signal as Unix, kill_process};
    let signal = match signal {
        Signal::Stop => Unix::TERM,
        Signal::Pause => Unix::STOP,
        Signal::Resume => Unix::CONT,
    };
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.context("the process has no usable id")?;
    kill_process(pid, signal).context("cannot send the signal")
}

#[cfg(not(unix))]
fn send(_: &Child, signal: Signal) -> Result<()> {
    match signal {
        Signal::Stop => Ok(()), // it is killed after the deadline
        Signal::Pause | Signal::Resume => bail!("this system has no signal for it"),
    }
}

/// Ctrl-C in the terminal is ours alone: we stop the nodes in order.
#[cfg(unix)]
fn own_process_group(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
}

#[cfg(not(unix))]
fn own_process_group(_: &mut Command) {}

#[cfg(target_os = "linux")]
fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name in parentheses: state is field 3, user and system ticks are fields 14 and 15.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let per_second = rustix::param::clock_ticks_per_second();
    Some(Duration::from_millis(ticks * 1_000 / per_second.max(1)))
}

#[cfg(not(target_os = "linux"))]
fn cpu_time(_: u32) -> Option<Duration> {
    None
}

fn tail(path: &Path, lines: usize) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    Ok(all[all.len().saturating_sub(lines)..].join("\n"))
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn process(directory: &Path, script: &str) -> Process {
        let arguments = vec!["-c".to_owned(), script.to_owned()];
        Process::new(Launch { program: "/bin/sh".into(), arguments, log: directory.join("log") })
    }

    fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !condition() {
            assert!(Instant::now() < deadline, "not within 10 s: {what}");
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    fn is_alive(pid: u32) -> bool {
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::test_kill_process(pid).is_ok()
    }

    #[test]
    fn a_killed_process_starts_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = process(directory.path(), "echo up; exec sleep 600");
        assert_eq!(process.standing(), Standing::NotStarted);
        assert!(process.send_kill().is_err());
        let first = process.start().unwrap();
        assert!(process.start().is_err(), "not twice");
        wait_until("a line in the log", || process.log_tail(5) == "up");
        process.send_kill().unwrap();
        process.reap().unwrap();
        assert_eq!(process.standing(), Standing::Killed);
        let second = process.start().unwrap();
        assert_ne!(first, second);
        wait_until("two lines in the log", || process.log_tail(5) == "up\nup");
        assert_eq!(process.log_tail(1), "up");
    }

    #[test]
    fn a_process_that_ends_by_itself_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = process(directory.path(), "echo bad disk >&2; exit 3");
        process.start().unwrap();
        wait_until("the end", || process.pid().is_none());
        assert!(matches!(process.standing(), Standing::Ended(status) if status.code() == Some(3)));
        assert_eq!(process.log_tail(20), "bad disk");
    }

    #[test]
    fn stop_waits_for_a_process_that_obeys_and_tells_of_one_that_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let mut obeys = process(directory.path(), "trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done");
        obeys.start().unwrap();
        wait_until("the trap is set", || obeys.log_tail(1) == "up");
        obeys.pause().unwrap();
        assert!(matches!(obeys.standing(), Standing::Paused { .. }));
        obeys.send_stop();
        assert!(obeys.wait_stopped(Instant::now() + Duration::from_secs(10), || false));
        assert_eq!(obeys.standing(), Standing::Stopped);

        let directory = tempfile::tempdir().unwrap();
        let mut stubborn = process(directory.path(), "trap '' TERM; echo up; while :; do sleep 0.01; done");
        stubborn.start().unwrap();
        wait_until("the trap is set", || stubborn.log_tail(1) == "up");
        stubborn.send_stop();
        assert!(!stubborn.wait_stopped(Instant::now() + Duration::from_millis(50), || false));
        let far = Instant::now() + Duration::from_secs(600);
        assert!(!stubborn.wait_stopped(far, || true), "in a hurry");
    }

    #[test]
    fn a_dropped_process_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = process(directory.path(), "exec sleep 600");
        let pid = process.start().unwrap();
        process.pause().unwrap();
        assert!(is_alive(pid));
        drop(process);
        assert!(!is_alive(pid));
    }

    #[test]
    fn pausing_and_resuming_ask_for_the_right_state() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = process(directory.path(), "exec sleep 600");
        assert!(process.pause().is_err());
        process.start().unwrap();
        assert!(process.resume().is_err());
        process.pause().unwrap();
        assert!(process.pause().is_err());
        process.resume().unwrap();
        assert!(matches!(process.standing(), Standing::Running { .. }));
    }
}
