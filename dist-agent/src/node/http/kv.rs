//! Bytes by key.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use raft_kv::{Keyspace, KvError, Precondition, fingerprint};

use super::Shared;
use super::error::{ApiError, Code};
use super::request::{ApiPath, Options};
use crate::agent_state::AGENTS_KEYSPACE;
use crate::id::{MAX_KEY_BYTES, check_name};
use crate::node::blob::{Blob, BlobCommand, from_etag, to_etag};

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/kv/{keyspace}/{key}", get(read).put(put).delete(delete))
}

async fn put(
    State(shared): State<Shared>,
    ApiPath((keyspace, key)): ApiPath<(String, String)>,
    options: Options,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let keyspace = open(&shared, &keyspace, &key)?;
    let precondition = precondition(&headers)?;
    let body = options.body(body).await?;
    write(keyspace, &key, precondition, &options, BlobCommand::Put(body.to_vec())).await
}

async fn delete(
    State(shared): State<Shared>,
    ApiPath((keyspace, key)): ApiPath<(String, String)>,
    options: Options,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let keyspace = open(&shared, &keyspace, &key)?;
    let precondition = precondition(&headers)?;
    write(keyspace, &key, precondition, &options, BlobCommand::Delete).await
}

async fn write(
    keyspace: Keyspace<Blob>,
    key: &str,
    precondition: Precondition,
    options: &Options,
    command: BlobCommand,
) -> Result<Response, ApiError> {
    let fingerprint = fingerprint(&asked(&command, precondition));
    let mut request = keyspace.command(key, command).require(precondition).timeout(options.timeout());
    if let Some(key) = &options.idempotency {
        request = request.idempotency(key.client(), key.serial(), fingerprint);
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    if let Some(version) = request.versioned().await?.version {
        response.headers_mut().insert(header::ETAG, etag(version)?);
    }
    Ok(response)
}

async fn read(
    State(shared): State<Shared>,
    ApiPath((keyspace, key)): ApiPath<(String, String)>,
    options: Options,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let keyspace = open(&shared, &keyspace, &key)?;
    let (bytes, version) = keyspace.query(&key, ()).timeout(options.timeout()).versioned().await?;
    let etag = etag(version)?;
    let listed = |name| tags(&headers, name).map(|mut tags| tags.any(|tag| tag == "*" || tag == etag));
    if listed(header::IF_MATCH) == Some(false) {
        return Err(ApiError::new(Code::PreconditionFailed, "the key's value has another ETag"));
    }
    let mut response = match listed(header::IF_NONE_MATCH) {
        Some(true) => StatusCode::NOT_MODIFIED.into_response(),
        _ => ([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response(),
    };
    response.headers_mut().insert(header::ETAG, etag);
    Ok(response)
}

fn open(shared: &Shared, keyspace: &str, key: &str) -> Result<Keyspace<Blob>, ApiError> {
    check_name("keyspace", keyspace)?;
    if keyspace == AGENTS_KEYSPACE {
        let message = "the keyspace of agents is not for bytes: use /v1/agents";
        return Err(ApiError::invalid(message));
    }
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        let message = format!("a key of {} bytes was given, 1 to {MAX_KEY_BYTES} are allowed", key.len());
        return Err(ApiError::invalid(message));
    }
    Ok(shared.serving()?.kv.keyspace(keyspace))
}

fn precondition(headers: &HeaderMap) -> Result<Precondition, ApiError> {
    let one = |name: HeaderName| -> Result<Option<&str>, ApiError> {
        let Some(mut tags) = tags(headers, name.clone()) else { return Ok(None) };
        match (tags.next(), tags.next()) {
            (Some(tag), None) => Ok(Some(tag)),
            _ => Err(ApiError::invalid(format!("{name} takes exactly one ETag, or *"))),
        }
    };
    match (one(header::IF_MATCH)?, one(header::IF_NONE_MATCH)?) {
        (None, None) => Ok(Precondition::None),
        (Some("*"), None) => Ok(Precondition::Present),
        (None, Some("*")) => Ok(Precondition::Absent),
        (Some(tag), None) => from_etag(tag).map(Precondition::VersionIs).ok_or_else(|| {
            ApiError::new(Code::PreconditionFailed, format!("no value has the ETag {tag}: take it as a GET answers it"))
        }),
        (None, Some(_)) => Err(ApiError::invalid("If-None-Match of a write takes * alone")),
        (Some(_), Some(_)) => Err(ApiError::invalid("If-Match and If-None-Match exclude each other")),
    }
}

/// The tags of a header; `None` without the header. No tag of ours has a comma, and one that is not text is none.
fn tags(headers: &HeaderMap, name: HeaderName) -> Option<impl Iterator<Item = &str>> {
    let values = headers.get_all(name);
    values.iter().next()?;
    Some(values.iter().flat_map(|value| value.to_str().unwrap_or("").split(',').map(str::trim)))
}

/// What tells a request from another one under the same idempotency key.
fn asked(command: &BlobCommand, precondition: Precondition) -> Vec<u8> {
    let mut asked = format!("{precondition:?}\n").into_bytes();
    match command {
        BlobCommand::Put(bytes) => {
            asked.extend_from_slice(b"put\n");
            asked.extend_from_slice(bytes);
        }
        BlobCommand::Delete => asked.extend_from_slice(b"delete\n"),
    }
    asked
}

fn etag(version: u64) -> Result<HeaderValue, ApiError> {
    HeaderValue::from_str(&to_etag(version)).map_err(|error| ApiError::new(Code::Internal, error.to_string()))
}

impl From<KvError> for ApiError {
    fn from(error: KvError) -> Self {
        let message = error.to_string();
        let code = match error {
            KvError::NotHappened(reason) => return crate::error::AgentError::from(reason).into(),
            KvError::Moving { .. } | KvError::NotServing { .. } => Code::NoLeader,
            KvError::Unknown(_) => Code::UnknownOutcome,
            KvError::Failed(_) => Code::AgentFailed,
            KvError::KeyNotFound { .. } => Code::KeyNotFound,
            KvError::KeyspaceNotFound { .. } => Code::KeyspaceNotFound,
            KvError::AlreadyExists { .. } => Code::AlreadyExists,
            KvError::NotYet { .. } => Code::NotImplemented,
            KvError::PreconditionFailed { .. } => Code::PreconditionFailed,
            KvError::SerialTooOld { .. } => Code::SerialTooOld,
            KvError::AlreadyDone { .. } => Code::AlreadyDone,
            KvError::IdempotencyConflict { .. } => Code::IdempotencyConflict,
            KvError::TooManyClients | KvError::TooManyKeyspaces => Code::Overloaded,
            KvError::WrongType { .. }
            | KvError::UnknownType { .. }
            | KvError::Policy(_)
            | KvError::InvalidName { .. }
            | KvError::InvalidKey { .. }
            | KvError::InvalidClient { .. } => Code::InvalidRequest,
        };
        Self::new(code, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(pairs: &[(HeaderName, &str)]) -> Result<Precondition, Code> {
        let headers = pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
        precondition(&headers.collect()).map_err(|error| error.code)
    }

    #[test]
    fn conditions_are_read_or_refused() {
        let (if_match, if_none) = (header::IF_MATCH, header::IF_NONE_MATCH);
        assert_eq!(condition(&[]), Ok(Precondition::None));
        assert_eq!(condition(&[(if_match.clone(), "*")]), Ok(Precondition::Present));
        assert_eq!(condition(&[(if_none.clone(), "*")]), Ok(Precondition::Absent));
        assert_eq!(condition(&[(if_match.clone(), &to_etag(7))]), Ok(Precondition::VersionIs(7)));
        assert_eq!(condition(&[(if_match.clone(), "\"other\"")]), Err(Code::PreconditionFailed));
        assert_eq!(condition(&[(if_match.clone(), "\"1\", \"2\"")]), Err(Code::InvalidRequest));
        assert_eq!(condition(&[(if_none.clone(), "\"1\"")]), Err(Code::InvalidRequest));
        assert_eq!(condition(&[(if_match, "*"), (if_none, "*")]), Err(Code::InvalidRequest));
    }

    #[test]
    fn different_requests_are_told_apart() {
        let asked = |command| asked(&command, Precondition::None);
        let all = [
            asked(BlobCommand::Put(b"a".to_vec())),
            asked(BlobCommand::Put(b"b".to_vec())),
            asked(BlobCommand::Put(Vec::new())),
            asked(BlobCommand::Delete),
        ];
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
    }
}
