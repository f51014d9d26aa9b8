//! Keyspaces and their shards.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Json;
use axum::routing::get;
use raft_kv::{KeyedValue as _, KeyspaceInfo, KvError, Policy, Put};
use serde_json::{Map, Value, json};

use super::Shared;
use super::error::{ApiError, Code};
use super::request::{ApiPath, Options, from_json};
use crate::agent_state::{AGENTS_KEYSPACE, AgentCell};
use crate::id::check_name;
use crate::node::blob::Blob;

/// What a policy says of splits and merges, which this version does not do.
const SPLITTING_FIELDS: [&str; 5] =
    ["max_keys_per_shard", "max_bytes_per_shard", "max_load_per_shard", "merge_ratio", "cool_down_ms"];

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/keyspaces", get(list))
        .route("/keyspaces/{keyspace}", get(read).put(put).delete(delete))
        .route("/keyspaces/{keyspace}/shards", get(shards))
}

async fn list(State(shared): State<Shared>, options: Options) -> Result<Json<Value>, ApiError> {
    let kv = shared.serving()?.kv;
    let keyspaces = reading(&options, kv.keyspaces()).await?;
    Ok(Json(json!({"keyspaces": keyspaces.iter().map(row).collect::<Vec<_>>()})))
}

async fn read(
    State(shared): State<Shared>,
    ApiPath(keyspace): ApiPath<String>,
    options: Options,
) -> Result<Json<Value>, ApiError> {
    check_name("keyspace", &keyspace)?;
    let kv = shared.serving()?.kv;
    Ok(Json(row(&reading(&options, kv.keyspace_info(&keyspace)).await?)))
}

async fn shards(
    State(shared): State<Shared>,
    ApiPath(keyspace): ApiPath<String>,
    options: Options,
) -> Result<Json<Value>, ApiError> {
    check_name("keyspace", &keyspace)?;
    let serving = shared.serving()?;
    let shards = reading(&options, serving.shards(&keyspace)).await?;
    Ok(Json(json!({"shards": shards})))
}

/// Answers when the shards serve.
async fn put(
    State(shared): State<Shared>,
    ApiPath(keyspace): ApiPath<String>,
    options: Options,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let kv = shared.serving()?.kv;
    check_name("keyspace", &keyspace)?;
    let policy = read_policy(&options.body(body).await?)?;
    let type_name = if keyspace == AGENTS_KEYSPACE { AgentCell::NAME } else { Blob::NAME };
    match kv.put_keyspace(&keyspace, type_name, policy).timeout(options.timeout()).await? {
        Put::Created => Ok(StatusCode::CREATED),
        Put::Changed => Ok(StatusCode::NO_CONTENT),
    }
}

async fn delete(
    State(shared): State<Shared>,
    ApiPath(keyspace): ApiPath<String>,
    options: Options,
) -> Result<StatusCode, ApiError> {
    check_name("keyspace", &keyspace)?;
    if keyspace == AGENTS_KEYSPACE {
        return Err(ApiError::invalid("the keyspace of agents cannot be deleted: delete quotas instead"));
    }
    let kv = shared.serving()?.kv;
    kv.delete_keyspace(&keyspace).timeout(options.timeout()).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn row(keyspace: &KeyspaceInfo) -> Value {
    json!({
        "name": keyspace.name,
        "type": keyspace.type_name,
        "shards": keyspace.shards,
        "state": if keyspace.is_serving { "serving" } else { "creating" },
        "policy": keyspace.policy,
    })
}

/// An empty body is the default policy.
fn read_policy(body: &[u8]) -> Result<Policy, ApiError> {
    if body.is_empty() {
        return Ok(Policy::default());
    }
    let fields: Map<String, Value> = from_json(body)?;
    // First what is wrong, then what is only not there yet.
    let policy: Policy = from_json(body)?;
    if let Some(field) = SPLITTING_FIELDS.iter().find(|field| fields.contains_key(**field)) {
        return Err(ApiError::not_yet(&format!("{field}: shards are not split or merged;")));
    }
    if fields.contains_key("max_shards") && policy.shards().start() != policy.shards().end() {
        let what = "a max_shards other than min_shards: shards are not split or merged;";
        return Err(ApiError::not_yet(what));
    }
    Ok(policy)
}

async fn reading<T>(options: &Options, request: impl Future<Output = Result<T, KvError>>) -> Result<T, ApiError> {
    let late = |_| ApiError::new(Code::NoLeader, "the keyspaces did not answer before the request's deadline");
    Ok(tokio::time::timeout(options.timeout(), request).await.map_err(late)??)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Policy, Code> {
        read_policy(text.as_bytes()).map_err(|error| error.code)
    }

    #[test]
    fn a_policy_is_read_or_refused() {
        assert_eq!(read("").unwrap(), Policy::default());
        let shards = |text: &str| read(text).unwrap().shards();
        assert_eq!(shards(r#"{"min_shards": 4}"#), 4..=64);
        assert_eq!(shards(r#"{"min_shards": 4, "max_shards": 4, "replicas": 1}"#), 4..=4);
        for wrong in ["{", "[]", r#"{"min_shards": 0}"#, r#"{"shards": 4}"#, r#"{"min_shards": 4, "max_shards": 3}"#] {
            assert_eq!(read(wrong).unwrap_err(), Code::InvalidRequest, "{wrong}");
        }
    }

    #[test]
    fn what_needs_splits_is_not_taken_in_silence() {
        let not_yet = [
            r#"{"min_shards": 1, "max_shards": 64}"#,
            r#"{"max_keys_per_shard": 10}"#,
            r#"{"max_bytes_per_shard": 100000}"#,
            r#"{"max_load_per_shard": 10}"#,
            r#"{"merge_ratio": 0.5}"#,
            r#"{"cool_down_ms": 5}"#,
        ];
        for text in not_yet {
            assert_eq!(read(text).unwrap_err(), Code::NotImplemented, "{text}");
        }
    }
}
