//! Answers what other nodes ask of this one: the mailbox `fleet`.

use std::sync::Arc;
use std::time::Duration;

use batched_comm::{Incoming, Mailbox, Message, Request};
use rafted_value::Role;
use tokio::task::JoinSet;

use crate::bootstrap::{Event, Part};
use crate::cleanup;
use crate::cluster::{CLUSTER_GROUP, NodePhase};
use crate::following;
use crate::hibernation::{follow_to_sleep, lost_leader, not_leading};
use crate::message::{
    AskReports, CreateReplica, Created, Follow, GivePromise, GroupMembers, Here, IAm, KnownStart, LastStart, Leading,
    Membership, Namesake, Position, PromiseTaken, Released, RollAnswer, RollCall, Sleep, Slept, Start, Where,
    WhoAreYou,
};
use crate::node::Node;
use crate::replicas::Detail;
use crate::survey::own_reports;

/// Messages that wait.
pub(crate) const MAILBOX_CAPACITY: usize = 4_096;
/// Messages that are being answered; more wait in the mailbox.
const MAX_IN_FLIGHT: usize = 1_024;
/// How long this node's view may take to come as far as that of the one who asks.
const VIEW_PATIENCE: Duration = Duration::from_secs(1);

/// Ends with the mailbox.
pub(crate) async fn serve(node: Arc<Node>, mut mailbox: Mailbox) {
    let mut answering = JoinSet::new();
    loop {
        tokio::select! {
            incoming = mailbox.recv(), if answering.len() < MAX_IN_FLIGHT => match incoming {
                Some(incoming) => {
                    answering.spawn(answer(node.clone(), incoming));
                }
                None => return,
            },
            Some(_) = answering.join_next(), if !answering.is_empty() => {}
        }
    }
}

async fn answer(node: Arc<Node>, incoming: Incoming) {
    let from = incoming.from.clone();
    let result = match incoming.type_number {
        Where::TYPE => on::<Where, _>(incoming, |request| where_are_you(&node, from.as_str(), request)).await,
        GivePromise::TYPE => on::<GivePromise, _>(incoming, |given| take_promise(&node, from.as_str(), given)).await,
        LastStart::TYPE => on::<LastStart, _>(incoming, |question| last_start(&node, from.as_str(), question)).await,
        WhoAreYou::TYPE => on::<WhoAreYou, _>(incoming, |_| who_am_i(&node)).await,
        Follow::TYPE => on::<Follow, _>(incoming, |follow| following::serve(&node, follow.since)).await,
        CreateReplica::TYPE => on::<CreateReplica, _>(incoming, |request| create_replica(&node, request)).await,
        Membership::TYPE => on::<Membership, _>(incoming, |question| members_of(&node, question)).await,
        Sleep::TYPE => {
            on::<Sleep, _>(incoming, |sleep: Sleep| {
                std::future::ready(Slept { asleep: follow_to_sleep(&node, &sleep.beds) })
            })
            .await
        }
        RollCall::TYPE => {
            on::<RollCall, _>(incoming, |roll: RollCall| {
                std::future::ready(RollAnswer { not_leading: not_leading(&node, &roll.sleepers) })
            })
            .await
        }
        AskReports::TYPE => on::<AskReports, _>(incoming, |question| own_reports(&node, question.groups)).await,
        Released::TYPE => match incoming.decode::<Released>() {
            Ok(released) => {
                cleanup::released(&node, released).await;
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        },
        Leading::TYPE => incoming.decode::<Leading>().map_err(|error| error.to_string()).map(|leading| {
            for led in leading.groups {
                if !led.leads {
                    lost_leader(&node, from.as_str(), &led.group, led.incarnation, led.term);
                }
                node.leaders.learn(from.as_str(), led);
            }
        }),
        number => Err(format!("message {number} is not known here")),
    };
    if let Err(reason) = result {
        tracing::warn!(%from, reason, "a message was not understood; the nodes may run different versions");
    }
}

async fn on<R: Request, F: Future<Output = R::Reply>>(
    incoming: Incoming,
    answer: impl FnOnce(R) -> F,
) -> Result<(), String> {
    let request = incoming.decode::<R>().map_err(|error| error.to_string())?;
    let reply = answer(request).await;
    // Who asked may be gone by now; it asks again.
    drop(incoming.reply(&reply));
    Ok(())
}

async fn where_are_you(node: &Node, from: &str, request: Where) -> Here {
    node.meet(from, &request.address);
    let view = node.view.get();
    let mut nodes = node.contacts.get();
    nodes.extend(view.nodes().map(|(name, record)| (name.clone(), record.address.clone())));
    nodes.insert(node.name.to_string(), node.address.to_string());
    let namesake = view.node(from).map(|record| Namesake { node_id: record.node_id, address: record.address.clone() });
    Here { standing: node.memory.get().bootstrap.standing(), nodes, namesake }
}

async fn take_promise(node: &Node, from: &str, given: GivePromise) -> PromiseTaken {
    let promise = given.promise;
    let is_honest = promise.node == from && !node.is_here(from) && matches!(node.part, Part::Initiator { .. });
    if !is_honest {
        return PromiseTaken { taken: false };
    }
    let node_id = promise.node_id;
    let event = Event::PromiseArrived { cluster: given.cluster, promise };
    match node.bootstrap(event).await {
        Ok(state) => PromiseTaken { taken: state.has_promise_of(from, node_id) },
        Err(failure) => {
            node.fail(failure);
            PromiseTaken { taken: false }
        }
    }
}

async fn last_start(node: &Node, from: &str, question: LastStart) -> KnownStart {
    node.meet(from, &question.address);
    let known = node.memory.get().known.get(from).map(|known| known.start);
    KnownStart { known: known.filter(|start| *start != Start::default()) }
}

async fn who_am_i(node: &Node) -> IAm {
    IAm { start: node.start, replicas: node.replicas.stored().len() as u64 }
}

async fn create_replica(node: &Node, request: CreateReplica) -> Created {
    match try_create(node, request).await {
        Ok(created) => created,
        Err(reason) => Created::Refused(reason),
    }
}

async fn try_create(node: &Node, request: CreateReplica) -> Result<Created, String> {
    let known = async {
        node.running().await;
        node.view.wait(|cluster| (cluster.changed_at >= request.known_at).then_some(())).await;
    };
    if tokio::time::timeout(VIEW_PATIENCE, known).await.is_err() {
        return Err("this node is not registered, or its copy of the cluster's state is behind".into());
    }
    let view = node.view.get();
    if view.node(node.name.as_str()).is_some_and(|record| record.phase == NodePhase::Draining) {
        return Err("this node gives its replicas away".into());
    }
    if request.group != CLUSTER_GROUP
        && view.group(&request.group).is_none_or(|group| group.incarnation != request.incarnation)
    {
        return Err("there is no such incarnation of the group".into());
    }
    let detail = Detail { type_name: request.type_name, after: request.after };
    let minted = node.replicas.mint(&request.group, request.incarnation, &detail).await;
    let id = minted.map_err(|error| error.to_string())?;
    node.replicas.start(id).await.map_err(|error| error.to_string())?;
    Ok(Created::Replica { node_id: node.start.node_id, replica: id.get() })
}

async fn members_of(node: &Node, question: Membership) -> GroupMembers {
    let led = node.replicas.all_of_group(&question.group).into_iter().find_map(|hosted| {
        let status = hosted.replica.status();
        let leads = status.role == Role::Leader && hosted.incarnation() == question.incarnation;
        (leads && status.members.committed).then_some(status.members)
    });
    match led.and_then(|members| Some((members.position?, members))) {
        Some((position, members)) => GroupMembers::Committed {
            position: Position { term: position.term, index: position.index },
            replicas: members.replicas.keys().map(|id| id.get()).collect(),
        },
        None => GroupMembers::NotHere,
    }
}
