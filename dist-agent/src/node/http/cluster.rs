//! Nodes and groups.

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

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/nodes", get(nodes))
        .route("/groups", get(groups))
        .route("/nodes/{node}", delete(remove))
        .route("/nodes/{node}/drain", post(drain).delete(activate))
}

async fn nodes(State(shared): State<Shared>) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!({"nodes": shared.serving()?.nodes()})))
}

async fn groups(State(shared): State<Shared>) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!({"groups": shared.serving()?.groups()})))
}

/// Begins it. How far it is, and that it is done, is seen in the list of nodes.
async fn drain(
    State(shared): State<Shared>,
    ApiPath(node): ApiPath<String>,
    options: Options,
) -> Result<StatusCode, ApiError> {
    check_name("node name", &node)?;
    let fleet = shared.serving()?.fleet().clone();
    tokio::time::timeout(options.timeout(), fleet.begin_drain(&node)).await.map_err(late)??;
    Ok(StatusCode::ACCEPTED)
}

/// Cancels it.
async fn activate(
    State(shared): State<Shared>,
    ApiPath(node): ApiPath<String>,
    options: Options,
) -> Result<StatusCode, ApiError> {
    check_name("node name", &node)?;
    let fleet = shared.serving()?.fleet().clone();
    tokio::time::timeout(options.timeout(), fleet.activate(&node)).await.map_err(late)??;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove(
    State(shared): State<Shared>,
    ApiPath(node): ApiPath<String>,
    options: Options,
) -> Result<StatusCode, ApiError> {
    check_name("node name", &node)?;
    let fleet = shared.serving()?.fleet().clone();
    tokio::time::timeout(options.timeout(), fleet.remove_node(&node)).await.map_err(late)??;
    Ok(StatusCode::NO_CONTENT)
}

fn late(_: tokio::time::error::Elapsed) -> ApiError {
    ApiError::new(Code::UnknownOutcome, "the cluster did not answer in time: look at the nodes")
}

impl From<NodeError> for ApiError {
    fn from(error: NodeError) -> Self {
        let message = error.to_string();
        let code = match error {
            NodeError::NotFound { .. } => Code::NodeNotFound,
            NodeError::InUse { .. } | NodeError::LastNode { .. } => Code::NotRemovable,
            NodeError::AlreadyDraining { .. }
            | NodeError::AlreadyActive { .. }
            | NodeError::Dead { .. }
            | NodeError::Cancelled { .. } => Code::WrongState,
            NodeError::NotHappened(reason) => return AgentError::from(reason).into(),
            NodeError::StillDraining { .. } | NodeError::Unknown(_) => Code::UnknownOutcome,
            NodeError::Failed(_) => Code::Internal,
        };
        Self::new(code, message)
    }
}
