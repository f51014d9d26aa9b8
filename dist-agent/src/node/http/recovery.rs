//! Groups that lost their majority: found, planned for, recovered. Answered as soon as the node is registered: the groups
//! without which a node does not serve may be among them.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Json;
use axum::routing::get;
use raft_fleet::{Absence, Fleet, LeaderlessGroup, RecoverError, RecoveryOutcome, RecoveryPlan};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Shared;
use super::error::{ApiError, Code};
use super::request::Options;

/// What the answer needs to reach the caller before that one gives up.
const ANSWER_MARGIN: Duration = Duration::from_millis(50);

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/recovery", get(plan).post(apply))
}

/// What is asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Apply {
    plan: String,
}

async fn plan(State(shared): State<Shared>, options: Options) -> Result<Json<Value>, ApiError> {
    let fleet = registered(&shared)?;
    let looking = async { Ok::<_, RecoverError>((fleet.leaderless_groups().await, fleet.recovery_plan().await?)) };
    let late = |_| ApiError::new(Code::NotReady, "some nodes did not answer in time; give more time with X-Timeout-Ms");
    let (leaderless, plan) = tokio::time::timeout(options.timeout(), looking).await.map_err(late)??;
    let groups = plan.groups.iter().map(|group| {
        let fenced = group.fenced.iter().map(|fenced| json!({"node": fenced.node, "absence": word(fenced.absence)}));
        json!({
            "group": group.group, "chosen": group.chosen, "survivors": group.survivors, "entries": group.entries,
            "uncertain_entries": group.uncertain_entries, "may_lose_acknowledged": group.may_lose_acknowledged,
            "fenced": fenced.collect::<Vec<_>>(),
        })
    });
    let hopeless = plan.hopeless.iter().map(|hopeless| json!({"group": hopeless.group, "reason": hopeless.reason}));
    Ok(Json(json!({
        "leaderless": leaderless.iter().map(leaderless_row).collect::<Vec<_>>(),
        "groups": groups.collect::<Vec<_>>(),
        "hopeless": hopeless.collect::<Vec<_>>(),
        "left_out": plan.left_out,
        "text": plan.to_string(),
        "plan": plan.to_text(),
    })))
}

async fn apply(State(shared): State<Shared>, options: Options, body: Body) -> Result<Json<Value>, ApiError> {
    let fleet = registered(&shared)?;
    let body = options.body(body).await?;
    let given: Apply = serde_json::from_slice(&body)
        .map_err(|error| ApiError::invalid(format!("the body is not {{\"plan\": …}}: {error}")))?;
    let plan = RecoveryPlan::from_text(&given.plan).map_err(|error| ApiError::invalid(error.to_string()))?;
    let late = |_| {
        let message = "the groups did not answer in time; the same plan may be applied again without harm";
        ApiError::new(Code::UnknownOutcome, message)
    };
    // On its own task: a caller that goes away leaves nothing half asked.
    let recovering = tokio::spawn(async move { fleet.recover(&plan).await });
    let patience = options.timeout().saturating_sub(ANSWER_MARGIN);
    let ended = tokio::time::timeout(patience, recovering).await.map_err(late)?;
    let outcomes = ended.map_err(|error| ApiError::new(Code::UnknownOutcome, error.to_string()))??;
    let rows = outcomes.into_iter().map(
        |(group, outcome)| json!({"group": group, "outcome": outcome_word(&outcome), "message": outcome.to_string()}),
    );
    Ok(Json(json!({"groups": rows.collect::<Vec<_>>()})))
}

fn registered(shared: &Shared) -> Result<Fleet, ApiError> {
    let fleet = shared.fleet();
    let message = "this node is not registered in its cluster yet; retry, or ask another node";
    if fleet.is_ready() { Ok(fleet.clone()) } else { Err(ApiError::new(Code::NotReady, message)) }
}

fn leaderless_row(group: &LeaderlessGroup) -> Value {
    let member = |(node, absence): &(String, Option<Absence>)| json!({"node": node, "absence": absence.map(word)});
    json!({
        "name": group.name,
        "since_ms": group.since.as_millis(),
        "members": group.members.iter().map(member).collect::<Vec<_>>(),
        "majority_lost": group.is_majority_lost,
    })
}

fn word(absence: Absence) -> &'static str {
    match absence {
        Absence::Unreachable => "unreachable",
        Absence::Dead => "dead",
        Absence::Missing => "missing",
        Absence::Gone => "gone",
    }
}

fn outcome_word(outcome: &RecoveryOutcome) -> &'static str {
    match outcome {
        RecoveryOutcome::Recovered => "recovered",
        RecoveryOutcome::AlreadyRecovered => "already_recovered",
        RecoveryOutcome::Begun => "begun",
        RecoveryOutcome::Outdated { .. } => "outdated",
        RecoveryOutcome::NotHappened { .. } => "not_happened",
        RecoveryOutcome::Unknown { .. } => "unknown",
    }
}

impl From<RecoverError> for ApiError {
    fn from(error: RecoverError) -> Self {
        let code = match error {
            RecoverError::OtherCluster { .. } => Code::InvalidRequest,
            RecoverError::NotReady => Code::NotReady,
        };
        Self::new(code, error.to_string())
    }
}
