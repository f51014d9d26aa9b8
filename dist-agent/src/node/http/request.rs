//! What the handlers read of a request: path, query, body, deadline, idempotency key; all with the errors of
//! the interface.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;

use super::error::{ApiError, Code};
use crate::config::DEFAULT_TIMEOUT;
use crate::error::IdempotencyKey;

/// The largest body of a request.
pub(crate) const MAX_BODY_BYTES: usize = 1 << 20;

/// So much of a body that is too large is read and thrown away, so that its sender comes to read the answer.
const MAX_DRAINED_BYTES: usize = 8 << 20;

/// The longest time that a request may ask for.
const MAX_TIMEOUT: Duration = Duration::from_secs(3_600);

/// The largest page of a list.
pub(crate) const MAX_PAGE: u32 = 1_000;

const TIMEOUT_HEADER: HeaderName = HeaderName::from_static("x-timeout-ms");
const IDEMPOTENCY_HEADER: HeaderName = HeaderName::from_static("idempotency-key");
const RATE_HEADER: HeaderName = HeaderName::from_static("x-rate-limit");

/// axum's `Path`, with the errors of the interface.
pub(crate) struct ApiPath<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for ApiPath<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::invalid(format!(
                "the path is not understood: {}; keys are percent-encoded UTF-8",
                rejection.body_text()
            ))),
        }
    }
}

/// axum's `Query`, with the errors of the interface.
pub(crate) struct ApiQuery<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for ApiQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::invalid(rejection.body_text())),
        }
    }
}

/// What the headers say of how to run a request.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// When the caller gives up.
    deadline: Instant,
    pub(crate) idempotency: Option<IdempotencyKey>,
    /// Whether a rate limit was asked for.
    rate_limit: bool,
}

impl<S: Send + Sync> FromRequestParts<S> for Options {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Self::read(&parts.headers, Instant::now())
    }
}

impl Options {
    fn read(headers: &HeaderMap, now: Instant) -> Result<Self, ApiError> {
        let timeout = match text(headers, &TIMEOUT_HEADER)? {
            None => DEFAULT_TIMEOUT,
            Some(given) => read_timeout(given)?,
        };
        let idempotency = text(headers, &IDEMPOTENCY_HEADER)?.map(str::parse::<IdempotencyKey>).transpose()?;
        Ok(Self { deadline: now + timeout, idempotency, rate_limit: headers.contains_key(RATE_HEADER) })
    }

    /// How long the caller still waits.
    pub(crate) fn timeout(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Where a rate would be checked.
    pub(crate) fn check_rate(&self) -> Result<(), ApiError> {
        if self.rate_limit { Err(ApiError::not_yet("X-Rate-Limit")) } else { Ok(()) }
    }

    /// Reads a body within its limit and the request's deadline.
    pub(crate) async fn body(&self, body: Body) -> Result<Bytes, ApiError> {
        match tokio::time::timeout(self.timeout(), read_body(body)).await {
            Ok(result) => result,
            Err(_) => Err(ApiError::invalid("the body did not arrive before the request's deadline; nothing was done")),
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ApiError::invalid(format!("the header {name} was given more than once")));
    }
    let text = value.to_str().map_err(|_| ApiError::invalid(format!("the header {name} is not ASCII text")))?;
    Ok(Some(text.trim()))
}

fn read_timeout(given: &str) -> Result<Duration, ApiError> {
    let millis = given.parse::<u64>().ok().filter(|millis| *millis > 0).map(Duration::from_millis);
    millis.filter(|timeout| *timeout <= MAX_TIMEOUT).ok_or_else(|| {
        let most = MAX_TIMEOUT.as_millis();
        ApiError::invalid(format!("X-Timeout-Ms {given:?} is not a whole number of milliseconds from 1 to {most}"))
    })
}

async fn read_body(body: Body) -> Result<Bytes, ApiError> {
    let mut stream = body.into_data_stream();
    let mut gathered = BytesMut::new();
    let mut total = 0_usize;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| ApiError::invalid(format!("the body could not be read: {error}")))?;
        total = total.saturating_add(chunk.len());
        if total <= MAX_BODY_BYTES {
            gathered.extend_from_slice(&chunk);
        } else if total > MAX_DRAINED_BYTES {
            break;
        }
    }
    if total > MAX_BODY_BYTES {
        return Err(ApiError::new(Code::TooLarge, format!("the body is over the limit of {MAX_BODY_BYTES} bytes")));
    }
    Ok(gathered.freeze())
}

/// Reads a JSON body.
pub(crate) fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::invalid(format!("the body is not what is expected: {error}")))
}

/// A page of a list.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Page {
    cursor: Option<String>,
    limit: Option<u32>,
}

impl Page {
    pub(crate) fn new(cursor: Option<String>, limit: Option<u32>) -> Self {
        Self { cursor, limit }
    }

    /// How many at most.
    pub(crate) fn limit(&self) -> Result<u32, ApiError> {
        match self.limit {
            None => Ok(MAX_PAGE),
            Some(limit) if (1..=MAX_PAGE).contains(&limit) => Ok(limit),
            Some(limit) => Err(ApiError::invalid(format!("limit={limit} is not from 1 to {MAX_PAGE}"))),
        }
    }

    /// After which name.
    pub(crate) fn after(&self) -> Result<Option<String>, ApiError> {
        let Some(cursor) = &self.cursor else { return Ok(None) };
        let is_hex = cursor.len() % 2 == 0 && cursor.bytes().all(|byte| byte.is_ascii_hexdigit());
        let bytes = is_hex.then(|| {
            let pairs = cursor.as_bytes().chunks(2);
            pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect::<Option<Vec<u8>>>()
        });
        let name = bytes.flatten().and_then(|bytes| String::from_utf8(bytes).ok());
        name.map(Some).ok_or_else(|| ApiError::invalid("the cursor is not one that a list has answered"))
    }
}

/// The cursor of the page after `last`: text that needs no encoding in a URL.
pub(crate) fn cursor(last: &str) -> String {
    use std::fmt::Write as _;
    last.bytes().fold(String::with_capacity(last.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn headers_are_read_or_refused() {
        let now = Instant::now();
        let read = |pairs: &[(&'static str, &'static str)]| Options::read(&headers(pairs), now);
        assert_eq!(read(&[]).unwrap().deadline, now + DEFAULT_TIMEOUT);
        assert_eq!(read(&[("x-timeout-ms", "250")]).unwrap().deadline, now + Duration::from_millis(250));
        assert_eq!(read(&[("idempotency-key", "c:7")]).unwrap().idempotency.unwrap().serial(), 7);
        for wrong in ["0", "-1", "1.5", "", "x", "3600001", "99999999999999999999"] {
            assert!(read(&[("x-timeout-ms", wrong)]).is_err(), "{wrong:?}");
        }
        for wrong in ["", "c", "c:", "c:x", ":1"] {
            assert!(read(&[("idempotency-key", wrong)]).is_err(), "{wrong:?}");
        }
        let rate = read(&[("x-rate-limit", "10,3")]).unwrap().check_rate().unwrap_err();
        assert_eq!(rate.code, Code::NotImplemented);
        let mut twice = headers(&[("idempotency-key", "c:7")]);
        twice.append(IDEMPOTENCY_HEADER, "c:8".parse().unwrap());
        assert!(Options::read(&twice, now).is_err());
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_and_one_at_it_is_read() {
        assert_eq!(read_body(Body::from(vec![7; MAX_BODY_BYTES])).await.unwrap().len(), MAX_BODY_BYTES);
        let error = read_body(Body::from(vec![7; MAX_BODY_BYTES + 1])).await.unwrap_err();
        assert_eq!(error.code, Code::TooLarge);
    }

    #[test]
    fn cursors_read_back_and_others_are_refused() {
        for name in ["a", "a/b/é \u{0}"] {
            assert_eq!(Page::new(Some(cursor(name)), None).after().unwrap().as_deref(), Some(name));
        }
        assert_eq!(Page::default().after().unwrap(), None);
        for wrong in ["f", "zz", "ff", "+1"] {
            assert!(Page::new(Some(wrong.into()), None).after().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn pages_have_a_limit() {
        assert_eq!(Page::default().limit().unwrap(), MAX_PAGE);
        assert_eq!(Page::new(None, Some(1)).limit().unwrap(), 1);
        assert!(Page::new(None, Some(0)).limit().is_err());
        assert!(Page::new(None, Some(MAX_PAGE + 1)).limit().is_err());
    }
}
