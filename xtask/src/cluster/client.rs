//! HTTP to the nodes: one request, or one that is sent again until it is answered.
//!
//! What a request that failed may have done is kept apart, as the interface has it: *not happened* (refused, or no
//! node took the connection) and *unknown* (sent, and then silence or 504). Only an `Idempotency-Key` makes it right
//! to send a command again after the latter.

use std::{
    io,
    sync::{PoisonError, RwLock},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use ureq::http;

use super::{random, signals};

/// How long a node may take for one request, its own retries included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// What a node may be late, on a busy machine, before its answer is given up.
const REQUEST_GRACE: Duration = Duration::from_secs(1);

/// How long a request is sent again and again before it counts as failed.
pub const RETRY_DEADLINE: Duration = Duration::from_secs(30);

/// Waiting time before a request is sent again, where the answer names none.
const RETRY_PAUSE: Duration = Duration::from_millis(25);

/// The longest that is waited before a request is sent again, whatever the answer names.
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(2);

/// Above the number of threads that talk to one node at once.
const MAX_IDLE_CONNECTIONS: usize = 2_048;

/// The nodes' HTTP, for any number of threads.
pub struct Client {
    agent: ureq::Agent,
    targets: RwLock<Vec<Target>>,
}

#[derive(Clone, Debug)]
struct Target {
    name: String,
    /// `http://ADDRESS`, without a slash at the end.
    base: String,
    /// Whether its process is meant to serve: others are not asked.
    serves: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Put,
    Post,
    Delete,
}

/// What to send.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub method: Method,
    pub path: String,
    pub body: &'a [u8],
    /// `CLIENT:SERIAL`, where sending it again must not run it again.
    pub idempotency_key: Option<String>,
}

/// What a node answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub body: Vec<u8>,
}

/// What became of a request in the end.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A 2xx, or word that it ran before.
    Done(Response),
    /// An answer that sending again would not change; it did not happen.
    Refused(Response),
    /// No node took it.
    NotHappened(String),
    /// It may have happened.
    Unknown(String),
}

/// What became of one attempt.
enum Attempt {
    Final(Outcome),
    /// Worth another one, after a pause.
    Again {
        may_have_happened: bool,
        why: String,
        pause: Duration,
    },
}

impl<'a> Request<'a> {
    pub fn get(path: impl Into<String>) -> Request<'a> {
        Request { method: Method::Get, path: path.into(), body: &[], idempotency_key: None }
    }

    pub fn put(path: impl Into<String>, body: &'a [u8]) -> Request<'a> {
        Request { method: Method::Put, path: path.into(), body, idempotency_key: None }
    }

    pub fn post(path: impl Into<String>, body: &'a [u8]) -> Request<'a> {
        Request { method: Method::Post, path: path.into(), body, idempotency_key: None }
    }

    pub fn delete(path: impl Into<String>) -> Request<'a> {
        Request { method: Method::Delete, path: path.into(), body: &[], idempotency_key: None }
    }

    pub fn once(mut self, idempotency_key: String) -> Request<'a> {
        self.idempotency_key = Some(idempotency_key);
        self
    }
}

impl Response {
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("the node answered no JSON: {:?}", self.text()))
    }

    /// The error's name in the body: `quota_not_found` and the like; empty where there is none.
    pub fn error(&self) -> String {
        let body = serde_json::from_slice::<Value>(&self.body).unwrap_or_default();
        body["error"].as_str().unwrap_or_default().to_owned()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }

    /// Status and message, for people.
    pub fn describe(&self) -> String {
        format!("{} {}", self.status, self.text()).trim().to_owned()
    }

    fn retry_after(&self) -> Option<Duration> {
        let body = serde_json::from_slice::<Value>(&self.body).ok()?;
        body["retry_after_ms"].as_u64().map(Duration::from_millis)
    }
}

impl Outcome {
    /// The answer of a request that was done; else an error that says what is known.
    pub fn done(self) -> Result<Response> {
        match self {
            Outcome::Done(response) => Ok(response),
            Outcome::Refused(response) => bail!("refused: {}", response.describe()),
            Outcome::NotHappened(why) => bail!("it did not happen: {why}"),
            Outcome::Unknown(why) => bail!("it may or may not have happened: {why}"),
        }
    }
}

impl Client {
    /// For the nodes of these names and addresses, none of which serves yet.
    pub fn new(nodes: impl IntoIterator<Item = (String, std::net::SocketAddr)>) -> Client {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_idle_connections(MAX_IDLE_CONNECTIONS)
            .max_idle_connections_per_host(MAX_IDLE_CONNECTIONS)
            .build();
        let target = |(name, address)| Target { name, base: format!("http://{address}"), serves: false };
        let targets = RwLock::new(nodes.into_iter().map(target).collect());
        Client { agent: config.into(), targets }
    }

    /// Says whether a node is to be asked.
    pub fn set_serves(&self, node: &str, serves: bool) {
        let mut targets = self.targets.write().unwrap_or_else(PoisonError::into_inner);
        for target in targets.iter_mut().filter(|target| target.name == node) {
            target.serves = serves;
        }
    }

    /// Whether this node, and no other, answers 200.
    pub fn is_ready(&self, node: &str) -> bool {
        let target = self.targets().into_iter().find(|target| target.name == node);
        let request = Request::get("/readyz");
        let answer = target.map(|target| self.exchange(&target.base, &request, REQUEST_GRACE));
        matches!(answer, Some(Ok(response)) if response.status == 200)
    }

    /// Sends to random nodes that serve until there is an answer, the deadline has passed, the user wants an end, or
    /// `give_up` says so.
    pub fn send(&self, request: &Request<'_>, give_up: impl Fn() -> bool) -> Outcome {
        let deadline = Instant::now() + RETRY_DEADLINE;
        let mut may_have_happened = false;
        loop {
            let (unknown, why, pause) = match self.attempt(request) {
                Attempt::Final(Outcome::Refused(response)) if may_have_happened => {
                    return Outcome::Unknown(response.describe());
                }
                Attempt::Final(outcome) => return outcome,
                Attempt::Again { may_have_happened, why, pause } => (may_have_happened, why, pause),
            };
            may_have_happened |= unknown;
            let repeatable = request.method == Method::Get || request.idempotency_key.is_some();
            let stop = give_up() || signals::interrupted() || Instant::now() + pause > deadline;
            if stop || (unknown && !repeatable) {
                return match may_have_happened {
                    true => Outcome::Unknown(why),
                    false => Outcome::NotHappened(why),
                };
            }
            thread::sleep(pause);
        }
    }

    /// A list that may have several pages: all elements of its one array.
    pub fn list(&self, path: &str, array: &str) -> Result<Vec<Value>> {
        let mut elements = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let page = match &cursor {
                None => path.to_owned(),
                Some(cursor) => format!("{path}?cursor={}", escaped(cursor)),
            };
            let response = self.send(&Request::get(page), || false).done();
            let mut body = response.with_context(|| format!("GET {path}"))?.json()?;
            match body[array].take() {
                Value::Array(more) => elements.extend(more),
                _ => bail!("GET {path} answered no array {array:?}: {body}"),
            }
            match body["next"].take() {
                Value::Null => return Ok(elements),
                Value::String(next) => cursor = Some(next),
                other => cursor = Some(other.to_string()),
            }
        }
    }

    fn targets(&self) -> Vec<Target> {
        self.targets.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn pick(&self) -> Option<String> {
        let targets = self.targets.read().unwrap_or_else(PoisonError::into_inner);
        let serving: Vec<&Target> = targets.iter().filter(|target| target.serves).collect();
        serving.get(random::below(serving.len())).map(|target| target.base.clone())
    }

    fn attempt(&self, request: &Request<'_>) -> Attempt {
        let Some(base) = self.pick() else {
            let why = "no node runs".to_owned();
            return Attempt::Again { may_have_happened: false, why, pause: RETRY_PAUSE };
        };
        match self.exchange(&base, request, REQUEST_TIMEOUT + REQUEST_GRACE) {
            Ok(response) => judge(response),
            Err(error) => {
                let may_have_happened = !never_connected(&error);
                let why = format!("{base}: {error}");
                Attempt::Again { may_have_happened, why, pause: RETRY_PAUSE }
            }
        }
    }

    fn exchange(&self, base: &str, request: &Request<'_>, timeout: Duration) -> Result<Response, ureq::Error> {
        let (method, has_body) = match request.method {
            Method::Get => (http::Method::GET, false),
            Method::Put => (http::Method::PUT, true),
            Method::Post => (http::Method::POST, true),
            Method::Delete => (http::Method::DELETE, false),
        };
        let mut builder = http::Request::builder()
            .method(method)
            .uri(format!("{base}{}", request.path))
            .header("X-Timeout-Ms", REQUEST_TIMEOUT.as_millis().to_string());
        if let Some(key) = &request.idempotency_key {
            builder = builder.header("Idempotency-Key", key);
        }
        let answer = if has_body {
            let message = builder.body(request.body)?;
            let configured = self.agent.configure_request(message);
            self.agent.run(configured.timeout_global(Some(timeout)).build())
        } else {
            let configured = self.agent.configure_request(builder.body(())?);
            self.agent.run(configured.timeout_global(Some(timeout)).build())
        };
        let mut answer = answer?;
        let body = answer.body_mut().read_to_vec()?;
        Ok(Response { status: answer.status().as_u16(), body })
    }
}

/// What an answer means for sending again.
fn judge(response: Response) -> Attempt {
    let pause = response.retry_after().unwrap_or(RETRY_PAUSE).min(MAX_RETRY_PAUSE);
    match response.status {
        200..300 => Attempt::Final(Outcome::Done(response)),
        // It ran, and its reply was too large to keep.
        409 if response.error() == "already_done" => Attempt::Final(Outcome::Done(response)),
        // The limit of a quota is no matter of time.
        429 if response.error() == "quota_limit_reached" => Attempt::Final(Outcome::Refused(response)),
        429 | 503 => Attempt::Again { may_have_happened: false, why: response.describe(), pause },
        504 => Attempt::Again { may_have_happened: true, why: response.describe(), pause },
        _ => Attempt::Final(Outcome::Refused(response)),
    }
}

fn never_connected(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::ConnectionFailed | ureq::Error::HostNotFound => true,
        ureq::Error::Io(error) => error.kind() == io::ErrorKind::ConnectionRefused,
        _ => false,
    }
}

/// A path segment or a query's value, percent-encoded.
pub fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_escaped() {
        let rows = [("k1", "k1"), ("a b/c", "a%20b%2Fc"), ("é%", "%C3%A9%25"), ("n-1_.~", "n-1_.~")];
        for (text, expected) in rows {
            assert_eq!(escaped(text), expected);
        }
    }

    #[test]
    fn an_answer_says_whether_to_send_again() {
        // (status, error, what it means)
        let rows = [
            (204, "", "done"),
            (409, "already_done", "done"),
            (409, "serial_too_old", "refused"),
            (404, "key_not_found", "refused"),
            (501, "not_implemented", "refused"),
            (429, "quota_limit_reached", "refused"),
            (429, "overloaded", "again, not happened"),
            (503, "no_leader", "again, not happened"),
            (504, "unknown_outcome", "again, may have happened"),
        ];
        for (status, error, expected) in rows {
            let body = format!("{{\"error\": \"{error}\"}}").into_bytes();
            let meaning = match judge(Response { status, body }) {
                Attempt::Final(Outcome::Done(_)) => "done",
                Attempt::Final(_) => "refused",
                Attempt::Again { may_have_happened: true, .. } => "again, may have happened",
                Attempt::Again { may_have_happened: false, .. } => "again, not happened",
            };
            assert_eq!(meaning, expected, "{status} {error}");
        }
    }

    #[test]
    fn the_answer_names_the_pause_up_to_a_bound() {
        let pause = |body: &str| match judge(Response { status: 429, body: body.into() }) {
            Attempt::Again { pause, .. } => Some(pause),
            Attempt::Final(_) => None,
        };
        assert_eq!(pause("{\"retry_after_ms\": 700}"), Some(Duration::from_millis(700)));
        assert_eq!(pause("{\"retry_after_ms\": 99999999}"), Some(MAX_RETRY_PAUSE));
        assert_eq!(pause("not JSON"), Some(RETRY_PAUSE));
    }
}
