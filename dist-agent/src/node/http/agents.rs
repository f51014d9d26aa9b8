//! Agents: commands, queries, lists.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Json;
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Shared;
use super::error::{ApiError, Code};
use super::request::{ApiPath, ApiQuery, Options, Page, cursor};
use crate::id::AgentId;
use crate::node::codec::Codec;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/agents/{quota}/{module}/{key}/command", post(command))
        .route("/agents/{quota}/{module}/{key}/query", post(query))
        .route("/agents/{quota}/{module}/{key}/watch", get(|| async { ApiError::not_yet("watching an agent") }))
        .route("/agents/{quota}", get(list).delete(delete))
}

/// In this order: module, body, rate, quota.
async fn command(
    State(shared): State<Shared>,
    ApiPath((quota, module, key)): ApiPath<(String, String, String)>,
    options: Options,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let serving = shared.serving()?;
    let id = AgentId::new(quota, module, key)?;
    let codec = codec(&shared, id.module())?;
    let body = options.body(body).await?;
    let command = codec.command(&body).map_err(|error| malformed("command", &id, &error))?;
    options.check_rate()?;
    let timeout = options.timeout();
    let reply = serving.agents.command_bytes(&id, command, options.idempotency, timeout).await?;
    let reply = codec.reply(&reply).map_err(|error| ApiError::new(Code::Internal, error.to_string()))?;
    Ok(Json(json!({"reply": reply})))
}

async fn query(
    State(shared): State<Shared>,
    ApiPath((quota, module, key)): ApiPath<(String, String, String)>,
    options: Options,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let serving = shared.serving()?;
    let id = AgentId::new(quota, module, key)?;
    let codec = codec(&shared, id.module())?;
    let body = options.body(body).await?;
    let query = codec.query(&body).map_err(|error| malformed("query", &id, &error))?;
    options.check_rate()?;
    let answer = serving.agents.query_bytes(&id, query, options.timeout()).await?;
    let answer = codec.answer(&answer).map_err(|error| ApiError::new(Code::Internal, error.to_string()))?;
    Ok(Json(json!({"answer": answer})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    module: Option<String>,
    cursor: Option<String>,
    limit: Option<u32>,
}

async fn list(
    State(shared): State<Shared>,
    ApiPath(quota): ApiPath<String>,
    ApiQuery(listed): ApiQuery<Listed>,
    options: Options,
) -> Result<Json<Value>, ApiError> {
    let page = Page::new(listed.cursor, listed.limit);
    let (after, limit) = (page.after()?, page.limit()?);
    let module = listed.module.as_deref();
    let agents = &shared.serving()?.agents;
    let found = agents.list(&quota, module, after.as_deref(), limit, options.timeout()).await?;
    let rows = found.agents.iter().map(|id| json!({"module": id.module(), "key": id.key()}));
    let mut answer = json!({"agents": rows.collect::<Vec<_>>()});
    if let Some(next) = found.next {
        answer["next"] = cursor(&next).into();
    }
    Ok(Json(answer))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Deleted {
    module: String,
}

async fn delete(
    State(shared): State<Shared>,
    ApiPath(quota): ApiPath<String>,
    ApiQuery(deleted): ApiQuery<Deleted>,
    options: Options,
) -> Result<StatusCode, ApiError> {
    shared.serving()?.agents.remove_module(&quota, &deleted.module, options.timeout()).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn codec(shared: &Shared, module: &str) -> Result<Arc<dyn Codec>, ApiError> {
    shared.codecs().get(module).ok_or_else(|| {
        let known = shared.codecs().names().join(", ");
        ApiError::new(Code::UnknownModule, format!("the module {module:?} is not known: known are {known}"))
    })
}

fn malformed(what: &str, id: &AgentId, error: &impl std::fmt::Display) -> ApiError {
    ApiError::invalid(format!("the body is not a {what} of the module {:?}: {error}", id.module()))
}
