//! One node at work: what is started, in which order, and how it ends.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use batched_comm::{Identity, IdentityError};
use metrics_exporter_prometheus::PrometheusHandle;
use raft_fleet::{Fleet, FleetBuilder, FleetError};
use raft_kv::{KeyedTypes, Kv};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::blob::Blob;
use super::codec::Codecs;
use super::http::{Shared, router};
use super::serving::{HTTP_ATTRIBUTE, Serving};
use super::settings::NodeArgs;
use crate::agents::Agents;
use crate::config::{AgentsConfig, ConfigError};
use crate::registry::Registry;

/// Why a node did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    /// The HTTP address cannot be listened on.
    #[error("HTTP cannot listen on {address}: {source}; choose another --http, or stop what listens there")]
    Http {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A setting is wrong.
    #[error(transparent)]
    Setting(#[from] ConfigError),
    /// Settings do not go together.
    #[error("{0}")]
    Settings(&'static str),
    /// The certificate cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The fleet refused.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// The node was a part of its cluster and is none any more.
    #[error("this node stops: {0}")]
    Failed(String),
}

/// What a node is made of besides its settings.
pub(crate) struct Parts {
    pub(crate) registry: Arc<Registry>,
    pub(crate) codecs: Codecs,
    pub(crate) metrics: Option<PrometheusHandle>,
}

/// A node that runs. [`Running::stop`] ends it well; dropping it ends it at once.
pub(crate) struct Running {
    fleet: Fleet,
    kv: Kv,
    serving: watch::Sender<Option<Serving>>,
    http: JoinHandle<()>,
    stop_http: watch::Sender<bool>,
    starting: JoinHandle<Result<(), FleetError>>,
}

impl Running {
    /// Starts a node; it joins its cluster and serves when it can, in the background.
    pub(crate) async fn start(args: &NodeArgs, parts: Parts) -> Result<Self, NodeError> {
        let config = args.agents()?;
        let identity = identity(args)?;
        // First, so that a port in use is found before anything is stored.
        let listener = TcpListener::bind(args.http).await;
        let listener = listener.map_err(|source| NodeError::Http { address: args.http, source })?;
        let bound = |source| NodeError::Http { address: args.http, source };
        let http_address = listener.local_addr().map_err(bound)?;
        let builder = fleet_builder(args).identity(identity).attribute(HTTP_ATTRIBUTE, &http_address.to_string());
        let types = KeyedTypes::new().with::<Blob>();
        let (builder, types) = Agents::register(builder, types, parts.registry.clone())?;
        let fleet = builder.start().await?;
        tracing::info!(node = %fleet.name(), address = %fleet.address(), http = %http_address, "the node runs");
        let kv = Kv::start(fleet.clone(), types);
        let (serving, watch_serving) = watch::channel(None);
        let (stop_http, stopping) = watch::channel(false);
        let shared = Shared::new(fleet.clone(), parts.codecs, watch_serving, parts.metrics);
        let http = serve_http(listener, shared, stopping);
        let starting = tokio::spawn(serve(fleet.clone(), kv.clone(), parts.registry, config, serving.clone()));
        Ok(Self { fleet, kv, serving, http, stop_http, starting })
    }

    /// Waits until the node can go on no longer.
    pub(crate) async fn failed(&mut self) -> NodeError {
        let failure = self.fleet.failed();
        tokio::select! {
            failure = failure => NodeError::Failed(failure.to_string()),
            refused = refused(&mut self.starting) => refused,
        }
    }

    /// Ends it: nothing new is taken, what is open is finished, leadership is handed over.
    pub(crate) async fn stop(self) {
        tracing::info!("the node stops");
        // First of all, and awaited: else it might say that the node serves after that was taken back.
        self.starting.abort();
        if !self.starting.is_finished() {
            let _ = self.starting.await;
        }
        let serving = self.serving.send_replace(None);
        // Nobody may listen any more: then there is nothing to stop.
        let _ = self.stop_http.send(true);
        if tokio::time::timeout(OPEN_REQUESTS_PATIENCE, self.http).await.is_err() {
            tracing::warn!("some HTTP requests were still open after {OPEN_REQUESTS_PATIENCE:?}");
        }
        if let Some(serving) = serving {
            serving.agents.shutdown().await;
        }
        self.kv.shutdown().await;
        self.fleet.shutdown().await;
        tracing::info!("the node has stopped");
    }
}

/// How long open requests may take when the node stops: the longest of the usual ones, and time to hand over.
const OPEN_REQUESTS_PATIENCE: Duration = Duration::from_secs(5);

/// Waits until the start ends in an error; one that ends well never answers.
async fn refused(starting: &mut JoinHandle<Result<(), FleetError>>) -> NodeError {
    if !starting.is_finished() {
        match starting.await {
            Ok(Err(error)) => return error.into(),
            Err(error) if error.is_panic() => return NodeError::Failed(format!("the start panicked: {error}")),
            _ => {}
        }
    }
    std::future::pending().await
}

async fn serve(
    fleet: Fleet,
    kv: Kv,
    registry: Arc<Registry>,
    config: AgentsConfig,
    serving: watch::Sender<Option<Serving>>,
) -> Result<(), FleetError> {
    fleet.ready().await?;
    kv.ready().await;
    let agents = Agents::start(kv.clone(), registry, config).await;
    let parts = Serving { kv, agents };
    while let Err(reason) = parts.reaches_leaders().await {
        tracing::debug!(reason, "not ready yet");
        tokio::time::sleep(READY_RETRY).await;
    }
    serving.send_replace(Some(parts));
    tracing::info!("the node serves");
    Ok(())
}

const READY_RETRY: Duration = Duration::from_millis(100);

fn serve_http(listener: TcpListener, shared: Shared, mut stopping: watch::Receiver<bool>) -> JoinHandle<()> {
    let stopped = async move {
        // An error means that the node is gone, which is an end, too.
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router(shared)).with_graceful_shutdown(stopped).await {
            tracing::error!(%error, "HTTP ended");
        }
    })
}

fn fleet_builder(args: &NodeArgs) -> FleetBuilder {
    let mut builder = Fleet::builder(&args.name).zone(&args.zone).listen(args.listen);
    if let Some(advertise) = args.advertise {
        builder = builder.advertise(advertise);
    }
    builder = args.others.give_to(builder);
    match &args.data_dir {
        Some(directory) => builder.data_dir(directory),
        None => builder.in_memory(),
    }
}

fn identity(args: &NodeArgs) -> Result<Identity, NodeError> {
    let existing = |directory: &Path| Identity::load(directory, &args.name);
    match (&args.tls_dir, &args.dev_tls) {
        (Some(directory), _) => Ok(existing(directory)?),
        (None, Some(directory)) => Ok(Identity::dev(directory, &args.name)?),
        // Nobody else has to know the authority of a cluster of one.
        (None, None) if args.is_alone() => Ok(Identity::in_memory_ca()?.issue(&args.name)?),
        (None, None) => Err(NodeError::Settings(
            "nodes of one cluster need certificates of one authority: give --tls-dir, or --dev-tls on one machine",
        )),
    }
}
