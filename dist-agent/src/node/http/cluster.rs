//! Nodes and groups.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Json;
use axum::routing::{delete, get, post};
use raft_fleet::NodeError;
use serde_json::{Value, json};

use super::Shared;
use super::error::{ApiError, Code};
use super::request::{ApiPath, Options};
use crate::error::AgentError;
use crate::id::check_name;

/// A drain that is refused is refused within this; one that is not goes on behind the answer.
const DRAIN_REFUSAL: Duration = Duration::from_millis(500);

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/nodes", get(nodes))
        .route("/groups", get(groups))
        .route("/nodes/{node}", delete(remove))
        .route("/nodes/{node}/drain", post(drain))
}

async fn nodes(State(shared): State<Shared>) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!({"nodes": shared.serving()?.nodes()})))
}

async fn groups(State(shared): State<Shared>) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!({"groups": shared.serving()?.groups()})))
}

/// Begins it. Whether it is done is seen in the list of nodes.
async fn drain(State(shared): State<Shared>, ApiPath(node): ApiPath<String>) -> Result<StatusCode, ApiError> {
    check_name("node name", &node)?;
    let fleet = shared.serving()?.fleet().clone();
    let draining = tokio::spawn(async move {
        let result = fleet.drain(&node).await;
        if let Err(error) = &result {
            tracing::warn!(%node, %error, "a node is not drained");
        }
        result
    });
    match tokio::time::timeout(DRAIN_REFUSAL, draining).await {
        Ok(Ok(Err(error))) => Err(error.into()),
        // Done, or under way.
        Ok(Ok(Ok(()))) | Err(_) => Ok(StatusCode::ACCEPTED),
        Ok(Err(error)) => Err(ApiError::new(Code::UnknownOutcome, error.to_string())),
    }
}

async fn remove(
    State(shared): State<Shared>,
    ApiPath(node): ApiPath<String>,
    options: Options,
) -> Result<StatusCode, ApiError> {
    check_name("node name", &node)?;
    let fleet = shared.serving()?.fleet().clone();
    let late = |_| ApiError::new(Code::UnknownOutcome, "the cluster did not answer in time: look at the nodes");
    tokio::time::timeout(options.timeout(), fleet.remove_node(&node)).await.map_err(late)??;
    Ok(StatusCode::NO_CONTENT)
}

impl From<NodeError> for ApiError {
    fn from(error: NodeError) -> Self {
        let message = error.to_string();
        let code = match error {
            NodeError::NotFound { .. } => Code::NodeNotFound,
            NodeError::InUse { .. } => Code::NotRemovable,
            NodeError::NotHappened(reason) => return AgentError::from(reason).into(),
            NodeError::StillDraining { .. } | NodeError::Unknown(_) => Code::UnknownOutcome,
            NodeError::Failed(_) => Code::Internal,
        };
        Self::new(code, message)
    }
}
