//! Two versions of a value in one group: upgraded node by node under commands, and not downgraded by accident.

use std::time::Duration;

use rafted_value::{
    Clock, CommandError, GroupConfig, MembersError, NotHappened, ProposeError, Role, StartError, SystemClock,
    UpgradeError, Value, ValueFactory, decode, decode_reply, encode, encode_command,
};

use crate::cluster::{Cluster, GROUP, PATIENCE, eventually};

/// Of an encoded command, before what the value is given.
const HEADER_BYTES: usize = 64;
const THREE: [&str; 3] = ["n1", "n2", "n3"];

rafted_value::messages! {
    #[derive(Default)]
    pub struct Old { added: Vec<i64> }
    pub enum OldCommand { Add(i64) }
    #[derive(Default)]
    pub struct New { names: Vec<String>, added: Vec<i64> }
    pub enum NewCommand { Name(String), Add(i64) }
}

impl Value for Old {
    type Command = OldCommand;
    type Reply = u64;
    type Query = ();
    type Answer = u64;

    fn command(&mut self, OldCommand::Add(n): OldCommand) -> u64 {
        self.added.push(n);
        self.added.len() as u64
    }

    fn query(&self, (): ()) -> u64 {
        self.added.len() as u64
    }
}

impl Value for New {
    const VERSION: u32 = 2;
    type Command = NewCommand;
    type Reply = u64;
    type Query = ();
    type Answer = u64;

    fn command(&mut self, command: NewCommand) -> u64 {
        match command {
            NewCommand::Name(name) => self.names.push(name),
            NewCommand::Add(n) => self.added.push(n),
        }
        self.added.len() as u64
    }

    fn query(&self, (): ()) -> u64 {
        self.added.len() as u64
    }

    fn upgrade(version: u32, bytes: &[u8]) -> Result<Self, UpgradeError> {
        match version {
            1 => Ok(Self { names: Vec::new(), added: decode::<Old>(bytes)?.added }),
            found => Err(UpgradeError::UnknownVersion { found, known: 2 }),
        }
    }

    fn upgrade_command(version: u32, bytes: &[u8]) -> Result<NewCommand, UpgradeError> {
        match version {
            1 => {
                let OldCommand::Add(n) = decode(bytes)?;
                Ok(NewCommand::Add(n))
            }
            found => Err(UpgradeError::UnknownVersion { found, known: 2 }),
        }
    }

    fn downgrade_command(version: u32, command: &NewCommand) -> Option<Vec<u8>> {
        match (version, command) {
            (1, NewCommand::Add(n)) => encode(&OldCommand::Add(*n)).ok().map(|bytes| bytes.to_vec()),
            _ => None,
        }
    }
}

async fn send<V: Value<Reply = u64>>(cluster: &Cluster, at: &str, command: V::Command) -> Result<u64, CommandError> {
    let open = cluster.session.open(SystemClock::default().wall(), PATIENCE).await;
    let client = cluster.client(at);
    let reply = client.typed_command::<V>(GROUP, &command, Some(open.id()), 0, PATIENCE).await?;
    Ok(decode_reply::<V>(&reply).unwrap())
}

/// What a node has applied, by whichever program.
fn local(cluster: &Cluster, name: &str) -> Vec<i64> {
    let replica = &cluster.nodes[name].replica;
    let old = replica.read_local(|value: &Old, _| value.added.clone());
    old.or_else(|| replica.read_local(|value: &New, _| value.added.clone())).unwrap()
}

fn old() -> ValueFactory {
    ValueFactory::of::<Old>(None)
}

fn new() -> ValueFactory {
    ValueFactory::of::<New>(None)
}

fn small_snapshots() -> GroupConfig {
    GroupConfig::default().with_snapshot_after_entries(20).unwrap()
}

/// Commands of both programs from every node; the newer program's reach the older one in its form.
async fn add_from_everywhere(cluster: &Cluster, expected: &mut Vec<i64>) {
    for name in THREE {
        for _ in 0..5 {
            let next = expected.len() as i64;
            assert_eq!(send::<Old>(cluster, name, OldCommand::Add(next)).await.unwrap(), next as u64 + 1);
            assert_eq!(send::<New>(cluster, name, NewCommand::Add(next + 1)).await.unwrap(), next as u64 + 2);
            expected.extend([next, next + 1]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_upgraded_node_by_node_under_commands_and_not_downgraded() {
    let mut cluster = Cluster::durable_as(&THREE, small_snapshots(), old()).await;
    let mut expected = Vec::new();
    add_from_everywhere(&cluster, &mut expected).await;
    let snapshots = || THREE.iter().all(|name| cluster.nodes[*name].replica.status().snapshot.is_some());
    eventually("snapshots by the old program", snapshots).await;
    for (upgraded, name) in THREE.into_iter().enumerate() {
        cluster.stop(name).await;
        cluster.start_as(name, new()).await.unwrap();
        add_from_everywhere(&cluster, &mut expected).await;
        if upgraded < 2 {
            loop {
                let refused = send::<New>(&cluster, name, NewCommand::Name("x".into())).await.unwrap_err();
                let CommandError::NotHappened(NotHappened::VersionNotReadable { version, readable, lagging, .. }) =
                    &refused
                else {
                    panic!("{refused}");
                };
                assert!(*version == 2 && !lagging.is_empty() && refused.is_retryable());
                // The one that was upgraded last may have been asked a moment before.
                if lagging.iter().all(|name| THREE[upgraded + 1..].contains(&name.as_str())) {
                    assert_eq!(*readable, Some(1));
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    // The last one to be upgraded may have been asked a moment ago.
    let mut named = send::<New>(&cluster, "n1", NewCommand::Name("x".into())).await;
    while let Err(CommandError::NotHappened(NotHappened::VersionNotReadable { .. })) = named {
        tokio::time::sleep(Duration::from_millis(20)).await;
        named = send::<New>(&cluster, "n1", NewCommand::Name("x".into())).await;
    }
    assert_eq!(named.unwrap() as usize, expected.len());
    add_from_everywhere(&cluster, &mut expected).await;
    for name in THREE {
        eventually("everyone has everything", || local(&cluster, name) == expected).await;
        let names = cluster.nodes[name].replica.read_local(|value: &New, _| value.names.clone());
        assert_eq!(names.unwrap(), ["x"]);
    }
    // By the log first, and by a snapshot afterwards: the old program says what is wrong and harms nothing.
    for by in ["log", "snapshot"] {
        if by == "snapshot" {
            let before = cluster.nodes["n2"].replica.status().snapshot;
            cluster.nodes["n2"].replica.snapshot().await;
            eventually("a snapshot", || cluster.nodes["n2"].replica.status().snapshot != before).await;
        }
        cluster.stop("n2").await;
        let error = cluster.start_as("n2", old()).await.unwrap_err();
        assert!(matches!(error, StartError::Unreadable { .. }), "by the {by}: {error}");
        let message = error.to_string();
        assert!(message.contains("version 2") && message.contains("run the newer program"), "by the {by}: {message}");
        cluster.start_as("n2", new()).await.unwrap();
        eventually("nothing was harmed", || local(&cluster, "n2") == expected).await;
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_program_takes_no_entry_and_no_snapshot_that_it_cannot_read_and_neither_stops_nor_differs() {
    for by_snapshot in [false, true] {
        let mut cluster = Cluster::durable_as(&THREE, small_snapshots(), new()).await;
        send::<Old>(&cluster, "n1", OldCommand::Add(0)).await.unwrap();
        for n in 1..=if by_snapshot { 60 } else { 3 } {
            send::<New>(&cluster, "n1", NewCommand::Add(n)).await.unwrap();
        }
        let expected = local(&cluster, &cluster.wait_leader().await);
        cluster.start_as("n4", old()).await.unwrap();
        let leader = cluster.wait_leader().await;
        let id = cluster.nodes["n4"].replica.spec().replica;
        let replica = cluster.nodes[&leader].replica.clone();
        replica.add_learner(id, cluster.member("n4"), replica.status().members.position).await.unwrap();
        let mut voters = replica.status().members.voter_ids();
        voters.insert(id);
        let tried = cluster.hub.sent(&leader, "n4");
        eventually("it is tried for a while", || cluster.hub.sent(&leader, "n4") > tried + 10).await;
        let status = cluster.nodes["n4"].replica.status();
        assert_eq!(status.role, Role::Learner);
        assert!(expected.starts_with(&local(&cluster, "n4")) && local(&cluster, "n4").len() <= 1);
        // Whether it is made a voter or not, it holds up nobody, and it gets everything from the newer program.
        let changed = replica.change_voters(voters, replica.status().members.position, 0).await;
        assert!(matches!(changed, Ok(()) | Err(MembersError::NotAllowed(_))), "{changed:?}");
        send::<New>(&cluster, "n2", NewCommand::Add(99)).await.unwrap();
        cluster.stop("n4").await;
        cluster.start_as("n4", new()).await.unwrap();
        let all = local(&cluster, &cluster.wait_leader().await);
        eventually("it has everything", || local(&cluster, "n4") == all).await;
        cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_a_newer_program_is_refused_before_its_first_byte() {
    let mut cluster = Cluster::durable_as(&THREE, small_snapshots(), new()).await;
    // Entries that both programs read, so that only the snapshot is in the way.
    for n in 0..60 {
        send::<Old>(&cluster, "n1", OldCommand::Add(n)).await.unwrap();
    }
    cluster.start_as("n4", old()).await.unwrap();
    let leader = cluster.wait_leader().await;
    let id = cluster.nodes["n4"].replica.spec().replica;
    let replica = cluster.nodes[&leader].replica.clone();
    replica.add_learner(id, cluster.member("n4"), replica.status().members.position).await.unwrap();
    eventually("its offer is refused", || cluster.hub.unreadable(&leader, "n4") > 0).await;
    send::<Old>(&cluster, "n2", OldCommand::Add(60)).await.unwrap();
    assert_eq!(cluster.hub.bodies(&leader, "n4"), 0);
    cluster.stop("n4").await;
    cluster.start_as("n4", new()).await.unwrap();
    let all = local(&cluster, &cluster.wait_leader().await);
    eventually("the newer program has everything", || local(&cluster, "n4") == all).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_command_are_not_logged_so_that_no_later_program_meets_them() {
    let mut cluster = Cluster::durable_as(&THREE, GroupConfig::default(), old()).await;
    send::<Old>(&cluster, "n1", OldCommand::Add(1)).await.unwrap();
    let leader = cluster.wait_leader().await;
    let last = |cluster: &Cluster| cluster.nodes[&leader].replica.status().last_log_index;
    let before = last(&cluster);
    for length in [0, 1, 15, 16, 40] {
        let mut bytes = encode_command::<Old>(&OldCommand::Add(2), None, 0).unwrap()[..HEADER_BYTES].to_vec();
        bytes.resize(HEADER_BYTES + length, 0xA5);
        let refused = cluster.client("n2").command(GROUP, bytes.into(), PATIENCE).await.unwrap_err();
        assert!(matches!(refused, CommandError::NotHappened(NotHappened::Malformed(_))), "{length}: {refused}");
    }
    assert_eq!(last(&cluster), before, "nothing was logged");
    for name in THREE {
        cluster.stop(name).await;
    }
    for name in THREE {
        cluster.start_as(name, new()).await.unwrap();
    }
    assert_eq!(send::<New>(&cluster, "n3", NewCommand::Add(2)).await.unwrap(), 2);
    cluster.shutdown().await;
}

/// Keeps a node's value as it is, until what is returned is dropped.
async fn hold(cluster: &Cluster, name: &str) -> std::sync::mpsc::Sender<()> {
    let replica = cluster.nodes[name].replica.clone();
    let (holds, held) = tokio::sync::oneshot::channel();
    let (release, released) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        replica.read_local(|_: &New, _| {
            holds.send(()).unwrap();
            // Ends when the other end is dropped.
            let _ = released.recv();
        })
    });
    held.await.unwrap();
    release
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_judges_versions_by_all_that_was_committed_before() {
    for (case, is_new_in_use) in [("the group looks empty to it", false), ("the new version looks unused to it", true)]
    {
        let mut cluster = Cluster::durable_as(&THREE, GroupConfig::default(), old()).await;
        for name in if is_new_in_use { &THREE[..] } else { &THREE[..2] } {
            cluster.stop(name).await;
            cluster.start_as(name, new()).await.unwrap();
        }
        cluster.lead("n1").await;
        if is_new_in_use {
            send::<Old>(&cluster, "n1", OldCommand::Add(0)).await.unwrap();
            eventually("it has applied", || local(&cluster, "n2") == [0]).await;
        }
        let held = hold(&cluster, "n2").await;
        if is_new_in_use {
            send::<New>(&cluster, "n1", NewCommand::Name("x".into())).await.unwrap();
        } else {
            send::<Old>(&cluster, "n1", OldCommand::Add(1)).await.unwrap();
        }
        let last = |name: &str| cluster.nodes[name].replica.status().last_log_index;
        eventually("n2 has logged it", || last("n2") == last("n1")).await;
        cluster.hub.isolate("n3", &THREE);
        cluster.lead("n2").await;
        let before = last("n2");
        let command = encode_command::<New>(&NewCommand::Name("y".into()), None, 0).unwrap();
        let mut proposed = Box::pin(cluster.nodes["n2"].replica.propose(command, PATIENCE));
        let soon = tokio::time::timeout(Duration::from_millis(400), &mut proposed).await;
        assert!(soon.is_err() && last("n2") == before, "{case}: it was judged: {soon:?}");
        drop(held);
        match (&mut proposed).await {
            Ok(_) => assert!(is_new_in_use, "{case}: n3 may have the old program"),
            Err(refused) => {
                assert!(!is_new_in_use, "{case}: {refused:?}");
                let ProposeError::Command(CommandError::NotHappened(refused)) = refused else { panic!("{refused:?}") };
                let NotHappened::VersionNotReadable { readable, lagging, .. } = refused else { panic!("{refused:?}") };
                assert_eq!((readable, lagging), (Some(1), vec!["n3".to_owned()]), "{case}");
            }
        }
        drop(proposed);
        cluster.hub.heal();
        cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_a_version_in_use_do_not_wait_for_a_member_that_says_nothing() {
    let mut cluster = Cluster::durable_as(&THREE, GroupConfig::default(), old()).await;
    send::<Old>(&cluster, "n1", OldCommand::Add(0)).await.unwrap();
    // Which forget what was said of the members' programs.
    for name in ["n1", "n2"] {
        cluster.stop(name).await;
        cluster.start_as(name, new()).await.unwrap();
    }
    cluster.lead("n1").await;
    cluster.hub.silence("n1", "n3");
    let leader = cluster.nodes["n1"].replica.clone();
    let command = encode_command::<New>(&NewCommand::Name("x".into()), None, 0).unwrap();
    let mut new = Box::pin(leader.propose(command, PATIENCE));
    assert!(futures_util::poll!(&mut new).is_pending());
    let mut passed = 0;
    let refused = loop {
        let command = encode_command::<Old>(&OldCommand::Add(1), None, 0).unwrap();
        tokio::select! {
            biased;
            refused = &mut new => break refused.unwrap_err(),
            added = leader.propose(command, PATIENCE) => drop(added.unwrap()),
        }
        passed += 1;
    };
    let refusal = CommandError::NotHappened(NotHappened::VersionNotReadable {
        group: GROUP.into(),
        version: 2,
        readable: Some(1),
        lagging: vec!["n3".into()],
    });
    assert_eq!(refused, ProposeError::Command(refusal));
    assert!(passed > 0, "they waited for n3");
    drop(new);
    cluster.hub.heal();
    cluster.shutdown().await;
}
