//! The HTTP front: whether the process lives, whether it serves, and its numbers.
//!
//! | path | 200 | else |
//! | --- | --- | --- |
//! | `/healthz` | the process answers | |
//! | `/readyz` | sends, pulls and queries work; damaged ranges are named | 503 with the reason |
//! | `/metrics` | the numbers, as OpenMetrics text | |
//!
//! `probe.rs` is the other end of `/readyz`, for health checks.
//!
//! One task accepts, one serves each connection; at most [`MAX_CONNECTIONS`] at once. A connection serves one request,
//! whose headers must arrive within [`HEADER_TIMEOUT`], and is closed after [`CONNECTION_TIMEOUT`]: callers who send or
//! read slowly cannot keep others from the port.

mod metrics;
pub(crate) mod probe;

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::broker::{Broker, Certified, Connected};

/// Connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 128;
/// How long a request's headers may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection lives at most.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(20);
/// A pause after a failed accept, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the pages tell of.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// The broker.
    pub(crate) broker: Arc<Broker>,
    /// Who is connected over gRPC.
    pub(crate) connected: Arc<Connected>,
    /// The certificate of the gRPC port.
    pub(crate) certified: Arc<Certified>,
    /// A sync failed; the process is about to end. Relaxed: nothing is ordered by it.
    pub(crate) has_failed: Arc<AtomicBool>,
    /// Whether others than this machine reach an address, gRPC or HTTP: they need no password.
    pub(crate) is_open_to_others: bool,
}

/// Serves until `stop` turns true or its sender is gone.
pub(crate) async fn serve(listener: TcpListener, told: Told, mut stop: watch::Receiver<bool>) {
    let router = router(told);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            Some(_ended) = tasks.join_next() => continue,
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((stream, place)) = accepted else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        tasks.spawn(async move {
            let _place = place;
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            match timeout(CONNECTION_TIMEOUT, served).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "HTTP connection ended"),
                Err(_) => tracing::debug!("HTTP connection took too long, closed"),
            }
        });
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            tracing::warn!(%error, "an HTTP connection could not be accepted");
            None
        }
    }
}

fn router(told: Told) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(numbers))
        .with_state(told)
}

async fn ready(State(told): State<Told>) -> (StatusCode, String) {
    if told.has_failed.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "failed: a sync failed\n".to_owned());
    }
    if told.broker.is_draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned());
    }
    let mut text = "ready\n".to_owned();
    for range in &told.broker.status().store.damaged {
        let _ = writeln!(text, "damaged: bytes {} to {} of the log", range.start, range.end);
    }
    (StatusCode::OK, text)
}

async fn numbers(State(told): State<Told>) -> impl IntoResponse {
    match metrics::text(&told) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(std::fmt::Error) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
