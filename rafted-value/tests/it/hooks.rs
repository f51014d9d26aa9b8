//! Hooks run on the leader only, after the commit, and harm nobody.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rafted_value::{AppliedCommand, LeaderHook, Leading, Member, Role};
use tokio::sync::Notify;

use crate::cluster::{Command, Journal, PATIENCE, eventually};
use crate::site::Site;

/// Writes down what it is told, by node.
#[derive(Clone)]
struct Diary {
    node: &'static str,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Diary {
    fn write(&self, line: String) {
        self.lines.lock().unwrap().push(format!("{}: {line}", self.node));
    }
}

impl LeaderHook<Journal> for Diary {
    async fn elected(&self, leading: &Leading<Journal>) {
        // It may be newer than the election.
        assert!(leading.read(|journal, _| journal.added.len()).is_some());
        // A hook may wait: it has a runtime with timers.
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.write("elected".into());
    }

    async fn stepped_down(&self, _term: u64) {
        self.write("stepped down".into());
    }

    async fn command_applied(&self, leading: &Leading<Journal>, applied: &AppliedCommand<Journal>) {
        assert!(leading.read(|journal, _| journal.added.len() as u64).unwrap() >= applied.reply);
        self.write(format!("{:?} = {}", applied.command, applied.reply));
    }

    async fn member_added(&self, _: &Leading<Journal>, member: &Member) {
        self.write(format!("{} added", member.name));
    }

    async fn member_removed(&self, _: &Leading<Journal>, member: &Member) {
        self.write(format!("{} removed", member.name));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_alone_tells_its_hook_of_elections_commands_and_members() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let diary = |node| Diary { node, lines: lines.clone() };
    let mut site = Site::memory();
    site.start("n1", |builder, own| builder.member("n1", own).hook(diary("n1"))).await;
    site.add("n1", 7).await;
    let through = site.node("n1").address();
    site.start("n2", |builder, _| builder.join_through("n1", through).hook(diary("n2"))).await;
    eventually("it votes", || site.node("n2").is_voter()).await;
    site.add("n2", 8).await;
    site.replica("n1").replace_leader(Some("n2")).timeout(PATIENCE).await.unwrap();
    site.add("n1", 9).await;
    site.replica("n2").remove_member("n1").timeout(PATIENCE).await.unwrap();
    let expected = [
        "n1: elected",
        "n1: Add(7) = 1",
        "n1: n2 added",
        "n1: Add(8) = 2",
        "n1: stepped down",
        "n2: elected",
        "n2: Add(9) = 3",
        "n2: n1 removed",
    ];
    let of = |node: &str, lines: &[String]| -> Vec<String> {
        lines.iter().filter(|line| line.starts_with(node)).cloned().collect()
    };
    let all: Vec<String> = expected.map(str::to_owned).to_vec();
    for node in ["n1", "n2"] {
        eventually("the hook is told", || of(node, &lines.lock().unwrap()).len() >= of(node, &all).len()).await;
        assert_eq!(of(node, &lines.lock().unwrap()), of(node, &all));
    }
    site.shutdown().await;
}

/// Panics at odd numbers, and notes the others.
struct Clumsy(Arc<Mutex<Vec<i64>>>);

impl LeaderHook<Journal> for Clumsy {
    async fn command_applied(&self, _: &Leading<Journal>, applied: &AppliedCommand<Journal>) {
        let Command::Add(n) = applied.command else { return };
        assert!(n % 2 == 0, "as asked");
        self.0.lock().unwrap().push(n);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_panics_is_called_again_for_the_next_command() {
    let noted = Arc::new(Mutex::new(Vec::new()));
    let mut site = Site::memory();
    let hook = Clumsy(noted.clone());
    site.start("n1", |builder, own| builder.member("n1", own).hook(hook)).await;
    for n in 0..6 {
        site.add("n1", n).await;
    }
    eventually("the others come", || *noted.lock().unwrap() == [0, 2, 4]).await;
    assert_eq!(site.node("n1").role(), Role::Leader);
    site.shutdown().await;
}

/// Hangs at the first command until it is let go.
struct Stuck {
    let_go: Arc<Notify>,
    calls: Arc<Mutex<u64>>,
}

impl LeaderHook<Journal> for Stuck {
    async fn command_applied(&self, _: &Leading<Journal>, _: &AppliedCommand<Journal>) {
        let first = {
            let mut calls = self.calls.lock().unwrap();
            *calls += 1;
            *calls == 1
        };
        if first {
            self.let_go.notified().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_hangs_holds_up_no_command_and_what_it_misses_is_counted() {
    let (let_go, calls) = (Arc::new(Notify::new()), Arc::new(Mutex::new(0)));
    let mut site = Site::memory();
    let hook = Stuck { let_go: let_go.clone(), calls: calls.clone() };
    site.start("n1", |builder, own| builder.member("n1", own).hook(hook)).await;
    site.add("n1", 0).await;
    eventually("it hangs", || *calls.lock().unwrap() == 1).await;
    for n in 1..1_100 {
        site.add("n1", n).await;
    }
    let dropped = site.replica("n1").untyped().dropped_hook_calls();
    // One is under way and 1,024 wait.
    assert_eq!(dropped, 1_100 - 1_025);
    let_go.notify_one();
    eventually("those that waited come", || *calls.lock().unwrap() == 1_100 - dropped).await;
    site.shutdown().await;
}
