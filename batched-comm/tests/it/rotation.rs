//! Certificates and CAs that are exchanged while messages flow.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use batched_comm::{ConnectError, Endpoint, Identity, tls};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::support::*;

/// What is done to each node in a round.
type Change<'a> = &'a dyn Fn(&Node);

/// A CA in a directory.
fn new_ca() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    tls::init_ca(dir.path()).unwrap();
    dir
}

/// What an operator does to a node: brings files, and has them read.
struct Node {
    dir: TempDir,
    endpoint: Endpoint,
}

impl Node {
    /// With its certificate by `ca`.
    async fn start(ca: &Path, name: &str) -> Node {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(ca.join("ca.pem"), dir.path().join("ca.pem")).unwrap();
        bring_certificate(dir.path(), ca, name);
        let endpoint = Endpoint::bind(any_port(), Identity::load(dir.path(), name).unwrap()).await.unwrap();
        Node { dir, endpoint }
    }

    fn reload(&self) {
        let identity = Identity::load(self.dir.path(), self.endpoint.name().as_str()).unwrap();
        self.endpoint.set_identity(&identity).unwrap();
    }
}

fn bring_certificate(to: &Path, ca: &Path, name: &str) {
    tls::issue(ca, name, &[]).unwrap();
    for file in [format!("{name}.pem"), format!("{name}.key")] {
        fs::copy(ca.join(&file), to.join(&file)).unwrap();
    }
}

/// A new connection in each direction.
async fn can_connect(a: &Endpoint, b: &Endpoint) {
    for (from, to) in [(a, b), (b, a)] {
        assert_eq!(from.probe(to.local_address(), DEADLINE).await.unwrap(), *to.name());
    }
}

async fn cannot_connect(a: &Endpoint, b: &Endpoint) {
    for (from, to) in [(a, b), (b, a)] {
        match from.probe(to.local_address(), DEADLINE).await {
            Err(ConnectError::Handshake { reason, .. }) => assert!(reason.contains("certificate"), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
}

/// Numbered casts from one to the other and calls back, until told to stop; all must arrive.
struct Traffic {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    tasks: [JoinHandle<u64>; 3],
}

impl Traffic {
    fn start(a: &Endpoint, b: &Endpoint) -> Traffic {
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let mut mailbox = b.mailbox("numbers", 1 << 20).unwrap();
        echo(a.mailbox("echo", 1000).unwrap());
        let casts = tokio::spawn({
            let (stop, from, to) = (stop.clone(), a.clone(), at(b, "numbers"));
            async move {
                let mut sent = 0;
                while !stop.load(Ordering::SeqCst) {
                    from.send(&to, &note(sent)).await.unwrap();
                    sent += 1;
                    tokio::task::yield_now().await;
                }
                from.send(&to, &note(u64::MAX)).await.unwrap();
                sent
            }
        });
        let receives = tokio::spawn({
            let received = received.clone();
            async move {
                loop {
                    let number = mailbox.recv().await.unwrap().decode::<Note>().unwrap().number;
                    let expected = received.load(Ordering::SeqCst);
                    if number == u64::MAX {
                        return expected;
                    }
                    assert_eq!(number, expected, "one is missing or out of order");
                    received.store(expected + 1, Ordering::SeqCst);
                }
            }
        });
        let calls = tokio::spawn({
            let (stop, from, to) = (stop.clone(), b.clone(), at(a, "echo"));
            async move {
                let mut answered = 0;
                while !stop.load(Ordering::SeqCst) {
                    assert_eq!(from.call(&to, &note(answered), DEADLINE).await.unwrap(), note(answered));
                    answered += 1;
                }
                answered
            }
        });
        Traffic { stop, received, tasks: [casts, receives, calls] }
    }

    /// Messages go on arriving.
    async fn flows(&self) {
        let before = self.received.load(Ordering::SeqCst);
        eventually("message", || self.received.load(Ordering::SeqCst) > before + 10).await;
    }

    async fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        let [casts, receives, calls] = self.tasks;
        let sent = soon("the sender", casts).await.unwrap();
        assert_eq!(soon("the last message", receives).await.unwrap(), sent, "all that was sent arrived");
        assert!(soon("the caller", calls).await.unwrap() > 0);
    }
}

#[tokio::test]
async fn a_ca_is_exchanged_under_load_and_nothing_is_lost() {
    let (old, new) = (new_ca(), new_ca());
    let nodes = [Node::start(old.path(), "a").await, Node::start(old.path(), "b").await];
    let [a, b] = [&nodes[0].endpoint, &nodes[1].endpoint];
    connect(a, b).await;
    let traffic = Traffic::start(a, b);
    // Two that are not part of it, one of each CA.
    let outdated = Node::start(old.path(), "outdated").await;
    let early = Node::start(new.path(), "early").await;
    can_connect(a, &outdated.endpoint).await;
    cannot_connect(a, &early.endpoint).await;
    let old_ca = old.path().join("ca.pem");
    let new_ca = new.path().join("ca.pem");
    let rounds: [(&str, Change<'_>); 3] = [
        ("the new CA is trusted, too", &|node| tls::trust(node.dir.path(), &new_ca).unwrap()),
        ("the new CA issues", &|node| {
            bring_certificate(node.dir.path(), new.path(), node.endpoint.name().as_str());
        }),
        ("the old CA is trusted no more", &|node| tls::distrust(node.dir.path(), &old_ca).unwrap()),
    ];
    for (round, change) in rounds {
        // One node after the other: all that is between is seen, too.
        for node in &nodes {
            change(node);
            node.reload();
            traffic.flows().await;
            can_connect(a, b).await;
            println!("{round} at {}", node.endpoint.name());
        }
        match round {
            "the new CA is trusted, too" => {
                // In between, nodes of both CAs are welcome once they trust both, too.
                tls::trust(outdated.dir.path(), &new_ca).unwrap();
                tls::trust(early.dir.path(), &old_ca).unwrap();
                outdated.reload();
                early.reload();
                can_connect(a, &outdated.endpoint).await;
                can_connect(a, &early.endpoint).await;
                can_connect(&early.endpoint, &outdated.endpoint).await;
            }
            "the new CA issues" => can_connect(b, &outdated.endpoint).await,
            _ => {
                // Its certificate is by the old CA, whatever it trusts.
                cannot_connect(a, &outdated.endpoint).await;
                can_connect(a, &early.endpoint).await;
            }
        }
    }
    traffic.flows().await;
    traffic.end().await;
    for (from, to) in [(a, b), (b, a)] {
        let peers = from.peers();
        let peer = peers.iter().find(|peer| peer.name == *to.name()).unwrap();
        assert_eq!(
            (peer.traffic.connections, peer.traffic.messages_dropped),
            (1, 0),
            "the connection stood throughout"
        );
    }
}

#[tokio::test]
async fn a_reissued_certificate_is_used_for_new_connections_while_old_ones_stand() {
    let ca = new_ca();
    let nodes = [Node::start(ca.path(), "a").await, Node::start(ca.path(), "b").await];
    let [a, b] = [&nodes[0].endpoint, &nodes[1].endpoint];
    connect(a, b).await;
    let traffic = Traffic::start(a, b);
    for _ in 0..3 {
        for node in &nodes {
            fs::remove_file(ca.path().join(format!("{}.key", node.endpoint.name()))).unwrap();
            bring_certificate(node.dir.path(), ca.path(), node.endpoint.name().as_str());
            node.reload();
            traffic.flows().await;
            can_connect(a, b).await;
        }
    }
    traffic.end().await;
    assert_eq!(a.peers()[0].traffic.connections, 1);
}
