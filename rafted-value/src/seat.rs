//! Whether a lone group's leader still takes a replica for a member.

use std::time::Duration;

use crate::client::Route;
use crate::group::UntypedReplica;
use crate::rpc::{Answer, RequestBody};
use crate::transport::Transport;

/// One member's time to answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// Asks the members that the replica knows, until a leader says it; `None` if none does.
pub(crate) async fn ask(replica: &UntypedReplica, transport: &dyn Transport, route: &dyn Route) -> Option<bool> {
    let status = replica.status();
    for member in status.members.replicas.values().filter(|member| member.name != route.here()) {
        let request = replica.sender().request(None, RequestBody::Seat { replica: status.replica.get() });
        let answer = transport.call(&member.name, request, PATIENCE).await;
        match answer.map(Answer::decode) {
            Ok(Ok(Answer::Seat { member })) => return Some(member),
            // A person has recovered the group without this replica.
            Ok(Ok(Answer::Ended { .. })) => return Some(false),
            Ok(Ok(Answer::NotLeader { leader: Some((_, leader)) })) => route.learn(&leader),
            _ => {}
        }
    }
    None
}
