//! Errors as HTTP tells them: the one place where what happened becomes a status code.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::error::{AgentError, IdempotencyKeyError};
use crate::id::IdError;

/// When to try again where nothing better is known.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// An error as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) code: Code,
    pub(crate) message: String,
    /// With the codes of status 429, and where it is known.
    pub(crate) retry_after: Option<Duration>,
}

/// The codes of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    InvalidRequest,
    NotFound,
    QuotaNotFound,
    AgentNotFound,
    UnknownModule,
    KeyNotFound,
    KeyspaceNotFound,
    NodeNotFound,
    MethodNotAllowed,
    AlreadyExists,
    IdempotencyConflict,
    SerialTooOld,
    AlreadyDone,
    NotRemovable,
    /// A node is not in the state from which it can be brought into another.
    WrongState,
    PreconditionFailed,
    TooLarge,
    QuotaLimitReached,
    Overloaded,
    AgentFailed,
    Internal,
    NotImplemented,
    NoLeader,
    NotReady,
    UnknownOutcome,
}

impl Code {
    pub(crate) fn status_and_text(self) -> (StatusCode, &'static str) {
        match self {
            Self::InvalidRequest => (StatusCode::BAD_REQUEST, "invalid_request"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Self::QuotaNotFound => (StatusCode::NOT_FOUND, "quota_not_found"),
            Self::AgentNotFound => (StatusCode::NOT_FOUND, "agent_not_found"),
            Self::UnknownModule => (StatusCode::NOT_FOUND, "unknown_module"),
            Self::KeyNotFound => (StatusCode::NOT_FOUND, "key_not_found"),
            Self::KeyspaceNotFound => (StatusCode::NOT_FOUND, "keyspace_not_found"),
            Self::NodeNotFound => (StatusCode::NOT_FOUND, "node_not_found"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::AlreadyExists => (StatusCode::CONFLICT, "already_exists"),
            Self::IdempotencyConflict => (StatusCode::CONFLICT, "idempotency_conflict"),
            Self::SerialTooOld => (StatusCode::CONFLICT, "serial_too_old"),
            Self::AlreadyDone => (StatusCode::CONFLICT, "already_done"),
            Self::NotRemovable => (StatusCode::CONFLICT, "not_removable"),
            Self::WrongState => (StatusCode::CONFLICT, "wrong_state"),
            Self::PreconditionFailed => (StatusCode::PRECONDITION_FAILED, "precondition_failed"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            Self::QuotaLimitReached => (StatusCode::TOO_MANY_REQUESTS, "quota_limit_reached"),
            Self::Overloaded => (StatusCode::TOO_MANY_REQUESTS, "overloaded"),
            Self::AgentFailed => (StatusCode::INTERNAL_SERVER_ERROR, "agent_failed"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
            Self::NotImplemented => (StatusCode::NOT_IMPLEMENTED, "not_implemented"),
            Self::NoLeader => (StatusCode::SERVICE_UNAVAILABLE, "no_leader"),
            Self::NotReady => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
            Self::UnknownOutcome => (StatusCode::GATEWAY_TIMEOUT, "unknown_outcome"),
        }
    }
}

impl ApiError {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        let retry_after = (code.status_and_text().0 == StatusCode::TOO_MANY_REQUESTS).then_some(RETRY_AFTER);
        Self { code, message: message.into(), retry_after }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, message)
    }

    /// For what the interface names and this version does not do yet.
    pub(crate) fn not_yet(what: &str) -> Self {
        Self::new(Code::NotImplemented, format!("{what} is not implemented yet in this version"))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, text) = self.code.status_and_text();
        let mut body = json!({"error": text, "message": self.message});
        if let Some(retry_after) = self.retry_after {
            body["retry_after_ms"] = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX).into();
        }
        let mut response = (status, axum::Json(body)).into_response();
        if let Some(retry_after) = self.retry_after {
            // Whole seconds, never less than what the body says.
            let seconds = retry_after.as_millis().div_ceil(1_000).max(1).to_string();
            if let Ok(seconds) = HeaderValue::from_str(&seconds) {
                response.headers_mut().insert(header::RETRY_AFTER, seconds);
            }
        }
        response
    }
}

impl From<AgentError> for ApiError {
    fn from(error: AgentError) -> Self {
        let message = error.to_string();
        let code = match error {
            AgentError::Id(_) | AgentError::Malformed { .. } => Code::InvalidRequest,
            AgentError::UnknownModule { .. } => Code::UnknownModule,
            AgentError::QuotaNotFound { .. } => Code::QuotaNotFound,
            AgentError::QuotaLimitReached { .. } => Code::QuotaLimitReached,
            AgentError::AgentNotFound { .. } => Code::AgentNotFound,
            AgentError::AgentFailed { .. } => Code::AgentFailed,
            AgentError::TooLarge { .. } => Code::TooLarge,
            AgentError::IdempotencyConflict { .. } => Code::IdempotencyConflict,
            AgentError::SerialTooOld { .. } => Code::SerialTooOld,
            AgentError::AlreadyDone { .. } => Code::AlreadyDone,
            AgentError::NotHappened { .. } => Code::NoLeader,
            AgentError::Unknown { .. } => Code::UnknownOutcome,
            AgentError::Overloaded { retry_after, .. } => {
                return Self { code: Code::Overloaded, message, retry_after: Some(retry_after) };
            }
        };
        Self::new(code, message)
    }
}

impl From<IdError> for ApiError {
    fn from(error: IdError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<IdempotencyKeyError> for ApiError {
    fn from(error: IdempotencyKeyError) -> Self {
        Self::invalid(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_decides_the_status() {
        let reason = String::new;
        let rows = [
            (AgentError::NotHappened { reason: reason() }, 503, "no_leader"),
            (AgentError::Unknown { reason: reason() }, 504, "unknown_outcome"),
            (AgentError::QuotaNotFound { quota: reason() }, 404, "quota_not_found"),
            (AgentError::QuotaLimitReached { quota: reason(), limit: 1, used: 1 }, 429, "quota_limit_reached"),
            (AgentError::AgentFailed { reason: reason() }, 500, "agent_failed"),
            (AgentError::TooLarge { reason: reason() }, 413, "too_large"),
        ];
        for (error, status, text) in rows {
            let (found_status, found_text) = ApiError::from(error).code.status_and_text();
            assert_eq!((found_status.as_u16(), found_text), (status, text));
        }
    }

    #[test]
    fn every_429_says_when_to_try_again() {
        let reason = String::new();
        let error = AgentError::Overloaded { reason, retry_after: Duration::from_millis(1_200) };
        let response = ApiError::from(error).into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
        let limit = ApiError::new(Code::QuotaLimitReached, "").into_response();
        assert_eq!(limit.headers()[header::RETRY_AFTER], "1");
    }
}
