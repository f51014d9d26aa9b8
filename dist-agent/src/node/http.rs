//! The HTTP of a node: which path is answered by which handler, and what holds for all of them.

mod agents;
mod cluster;
mod keyspaces;
mod kv;
mod quotas;
mod recovery;
mod request;
mod error;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Router, middleware};
use metrics_exporter_prometheus::PrometheusHandle;
use raft_fleet::Fleet;
use tokio::sync::watch;

use self::error::{ApiError, Code};
use super::codec::Codecs;
use super::dashboard;
use super::serving::Serving;

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct Shared {
    inner: Arc<Inner>,
}

struct Inner {
    /// It runs from the first; what it knows before it is registered is nothing.
    fleet: Fleet,
    codecs: Codecs,
    /// `None` until the node serves, and again when it stops.
    serving: watch::Receiver<Option<Serving>>,
    metrics: Option<PrometheusHandle>,
}

impl Shared {
    pub(crate) fn new(
        fleet: Fleet,
        codecs: Codecs,
        serving: watch::Receiver<Option<Serving>>,
        metrics: Option<PrometheusHandle>,
    ) -> Self {
        Self { inner: Arc::new(Inner { fleet, codecs, serving, metrics }) }
    }

    /// The node's parts, once they serve. Handlers take them first: a request that was open when the node began to
    /// stop is finished.
    fn serving(&self) -> Result<Serving, ApiError> {
        self.inner.serving.borrow().clone().ok_or_else(|| {
            let message =
                "this node does not serve: it is joining its cluster, or stopping; retry, or ask another node";
            ApiError::new(Code::NotReady, message)
        })
    }

    fn fleet(&self) -> &Fleet {
        &self.inner.fleet
    }

    fn codecs(&self) -> &Codecs {
        &self.inner.codecs
    }
}

/// All paths.
pub(crate) fn router(shared: Shared) -> Router {
    let v1 = Router::new()
        .merge(agents::routes())
        .merge(quotas::routes())
        .merge(kv::routes())
        .merge(keyspaces::routes())
        .merge(cluster::routes())
        .route("/openapi.json", get(openapi))
        .route("/events", get(|| async { ApiError::not_yet("GET /v1/events") }))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(shared.clone(), only_when_ready))
        .merge(recovery::routes());
    Router::new()
        .nest("/v1", v1)
        .route("/", get(page))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_page))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn(count))
        .with_state(shared)
}

/// Before the node serves, it knows nothing: not even that something is missing.
async fn only_when_ready(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    match shared.serving() {
        Ok(_) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

async fn count(request: Request, next: Next) -> Response {
    // Of the pattern and not of the path, so that the number of series is bounded.
    let matched = request.extensions().get::<MatchedPath>();
    let path = matched.map_or_else(|| "unknown".to_owned(), |path| path.as_str().to_owned());
    let method = method_name(request.method());
    let started = Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_u16().to_string();
    metrics::counter!("dist_agent_http_requests_total", "method" => method, "path" => path.clone(), "status" => status)
        .increment(1);
    metrics::histogram!("dist_agent_http_request_seconds", "method" => method, "path" => path)
        .record(started.elapsed().as_secs_f64());
    response
}

/// Any token may stand as a method in a request; the known ones are few.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

async fn readyz(State(shared): State<Shared>) -> Response {
    let serving = match shared.serving() {
        Ok(serving) => serving,
        Err(error) => return error.into_response(),
    };
    match serving.reaches_leaders().await {
        Ok(()) => "ready\n".into_response(),
        Err(reason) => ApiError::new(Code::NotReady, reason).into_response(),
    }
}

async fn metrics_page(State(shared): State<Shared>) -> Response {
    match &shared.inner.metrics {
        Some(metrics) => {
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render()).into_response()
        }
        None => ApiError::new(Code::NotFound, "this program records no metrics").into_response(),
    }
}

async fn page(State(shared): State<Shared>) -> Response {
    match shared.serving() {
        Ok(serving) => Html(dashboard::render(&serving.overview().await)).into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, Html(dashboard::starting())).into_response(),
    }
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("http/openapi.json")).into_response()
}

async fn not_found(uri: Uri) -> ApiError {
    let path = uri.path();
    if path.starts_with("/v1/") && (path.contains("//") || path.ends_with('/')) {
        return ApiError::invalid(format!("a part of the path {path:?} is empty; names and keys have at least 1 byte"));
    }
    ApiError::new(Code::NotFound, format!("there is nothing at {path:?}; see /v1/openapi.json"))
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::new(Code::MethodNotAllowed, format!("{method} is not for {:?}; see /v1/openapi.json", uri.path()))
}
