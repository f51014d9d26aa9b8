//! Kills the nodes when this process is killed itself and cannot do so.
//!
//! A small shell process holds the ids of the children. It reads from a pipe of which this process holds the other
//! end: when that closes without the children having been taken off, it kills what is left.

use std::{
    io::{self, Write},
    process::{Child, ChildStdin, Command, Stdio},
};

/// Reads `add PID` and `drop PID`; at the end of input kills those that were added and not dropped.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
pids=
while read -r verb pid; do
    case $verb in
        add) pids="$pids $pid" ;;
        drop)
            left=
            for one in $pids; do [ "$one" = "$pid" ] || left="$left $one"; done
            pids=$left ;;
    esac
done
[ -z "$pids" ] || kill -KILL $pids 2>/dev/null
"#;

/// The watching process. Where there is no shell there is none.
#[derive(Debug)]
pub struct Guard {
    shell: Option<(Child, ChildStdin)>,
}

impl Guard {
    /// Starts the watching process.
    pub fn start() -> Guard {
        Guard { shell: start_shell().ok().flatten() }
    }

    /// The process is to be killed when this one ends without a word.
    pub fn add(&mut self, pid: u32) {
        self.tell("add", pid);
    }

    /// The process has ended, and its id may belong to another one soon.
    pub fn remove(&mut self, pid: u32) {
        self.tell("drop", pid);
    }

    fn tell(&mut self, verb: &str, pid: u32) {
        if let Some((_, input)) = &mut self.shell
            && let Err(error) = writeln!(input, "{verb} {pid}")
        {
            eprintln!("the process that watches over the nodes is gone ({error}); they may outlive a kill -9");
            self.shell = None;
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some((mut shell, input)) = self.shell.take() {
            drop(input);
            // It ends by itself now; a failure to wait leaves nothing to do.
            let _ = shell.wait();
        }
    }
}

#[cfg(unix)]
fn start_shell() -> io::Result<Option<(Child, ChildStdin)>> {
    use std::os::unix::process::CommandExt;
    let mut shell = Command::new("/bin/sh")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    Ok(shell.stdin.take().map(|input| (shell, input)))
}

#[cfg(not(unix))]
fn start_shell() -> io::Result<Option<(Child, ChildStdin)>> {
    Ok(None)
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("600").spawn().unwrap()
    }

    #[test]
    fn what_was_not_taken_off_is_killed_at_the_end() {
        let (mut left, mut taken_off) = (sleeper(), sleeper());
        let mut guard = Guard::start();
        guard.add(left.id());
        guard.add(taken_off.id());
        guard.remove(taken_off.id());
        drop(guard);
        assert!(!left.wait().unwrap().success());
        assert!(taken_off.try_wait().unwrap().is_none());
        taken_off.kill().unwrap();
        taken_off.wait().unwrap();
    }
}
