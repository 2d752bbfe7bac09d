//! A server from its start to its end: wire, serve, drain in order.
//!
//! | step of a stop | what clients see |
//! | --- | --- |
//! | readiness and health turn false | balancers look elsewhere |
//! | new sends are refused, parked pulls answered | UNAVAILABLE with DRAINING; an empty answer |
//! | connections finish what they have begun, at most `server.drain_timeout` | GOAWAY |
//! | the store is flushed and closed with a clean mark | nothing is left to see |
//!
//! The service manager that started the process, if there is one, hears of the start, of life and of the stop: see
//! `supervisor.rs`.
//!
//! After a failed sync the store cannot be trusted: nothing is drained and nothing marked clean, [`run`] returns
//! [`ServerError::Poisoned`], and the process has to end.

mod certificate;
mod supervisor;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::timeout;

use self::certificate::Certificate;
pub use self::certificate::CertificateError;
use self::supervisor::Supervisor;
use crate::broker::{Broker, Certified, Connected};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::file::disk::RealDisk;
use crate::grpc::listen::{self, Connections};
use crate::grpc::opening::Security;
pub use crate::grpc::tls::PairError;
use crate::grpc::{self, Health, ServiceError};
use crate::http;
use crate::store::{CloseError, OpenError, ReportLine};

/// Signals within so short a time are one wish to stop.
const SAME_STOP: Duration = Duration::from_millis(500);

/// How long answers may take to leave after a failed sync.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Where a server listens, with the ports that it got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// gRPC.
    pub grpc: SocketAddr,
    /// HTTP.
    pub http: SocketAddr,
}

/// Why a server did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The store could not be opened. Nothing was served.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// An address could not be listened on. Nothing was served; the store was closed.
    #[error("{key} = {address} cannot be listened on")]
    Listen {
        /// Of the configuration.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// There is no certificate for TLS. Nothing was served; the store was closed.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The services could not be put together. Nothing was served.
    #[error(transparent)]
    Services(#[from] ServiceError),
    /// The store could not be closed: the next start has more to do, and nothing acknowledged is lost.
    #[error("the store could not be closed")]
    Close(#[from] CloseError),
    /// A sync failed. What waited was answered with "unknown"; the process has to end with code 74.
    #[error("a sync of the log failed; what was not acknowledged may or may not be stored")]
    Poisoned,
    /// A task of the server panicked.
    #[error("a task of the server ended in a panic")]
    Task(#[from] JoinError),
}

/// Runs a server until `shutdown` resolves, then drains it. `started` gets the addresses once everything is served; it
/// is dropped if the start fails. The service manager of the environment (`NOTIFY_SOCKET`) is told as well.
///
/// # Errors
/// See [`ServerError`]; after [`ServerError::Poisoned`] the process must end without further writes.
pub async fn run(
    config: Config,
    shutdown: impl Future<Output = ()>,
    started: Option<oneshot::Sender<Listening>>,
) -> Result<(), ServerError> {
    let supervisor = Supervisor::from_environment();
    let broker = supervisor.wait_for_recovery(open(&config)).await?;
    let running = match Running::start(&config, Arc::clone(&broker)).await {
        Ok(running) => running,
        Err(error) => {
            close(broker).await?;
            return Err(error);
        }
    };
    let Listening { grpc, http } = running.listening;
    let security = if config.tls.plain { "TLS and plain" } else { "TLS alone" };
    tracing::info!(%grpc, security, %http, data = %config.server.data.display(), "serving");
    if let Some(started) = started {
        // Nobody is obliged to listen.
        let _ = started.send(running.listening);
    }
    supervisor.tell(&format!("READY=1\nSTATUS=serving gRPC on {grpc}, HTTP on {http}"));
    // Until the end of the function, so over the drain too.
    let _pings = supervisor.watch(&broker);

    tokio::select! {
        () = shutdown => {}
        () = broker.failed() => {
            supervisor.tell("STOPPING=1\nSTATUS=a sync of the log failed");
            return Err(running.fail().await);
        }
    }
    supervisor.tell("STOPPING=1\nSTATUS=draining");
    tracing::info!("draining");
    tokio::select! {
        ended = running.drain(&broker) => ended?,
        () = broker.failed() => {
            tracing::error!("a sync of the log failed while the server was stopping");
            return Err(ServerError::Poisoned);
        }
    }
    close(broker).await?;
    tracing::info!("stopped");
    Ok(())
}

/// A server that runs in a task beside its caller, as for tests of programs that use one. Dropped, it drains and
/// stops; nobody waits for it then.
#[derive(Debug)]
pub struct Spawned {
    listening: Listening,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), ServerError>>,
}

/// Runs a server in a task of its own, and returns once it serves. With port 0 in the configuration it takes free
/// ports.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use mainstem::{client::Client, config::Config, server};
///
/// let sets = ["server.data=/tmp/broker", "server.listen=127.0.0.1:0", "server.http=127.0.0.1:0"];
/// let server = server::spawn(Config::load(None, &sets.map(str::to_owned))?).await?;
/// let client = Client::connect(&server.listening().grpc.to_string()).await?;
/// println!("{}", client.status().await?.version);
/// server.stop().await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Those of a start, see [`ServerError`].
pub async fn spawn(config: Config) -> Result<Spawned, ServerError> {
    let (stop, stopped) = oneshot::channel();
    let (started, listening) = oneshot::channel();
    let shutdown = async {
        // Dropped or told: both end it.
        let _ = stopped.await;
    };
    let ended = tokio::spawn(run(config, shutdown, Some(started)));
    match listening.await {
        Ok(listening) => Ok(Spawned { listening, stop, ended }),
        // Nothing was served, and it has said why.
        Err(_) => Err(ended.await?.err().unwrap_or(ServerError::Poisoned)),
    }
}

impl Spawned {
    /// Where it listens.
    pub fn listening(&self) -> Listening {
        self.listening
    }

    /// Asks it to stop; the handle is for its end.
    pub fn stopping(self) -> JoinHandle<Result<(), ServerError>> {
        // It may have ended by itself.
        let _ = self.stop.send(());
        self.ended
    }

    /// Stops it, and waits for its end.
    ///
    /// # Errors
    /// Those of an end, see [`ServerError`].
    pub async fn stop(self) -> Result<(), ServerError> {
        self.stopping().await?
    }
}

/// Resolves at the first SIGTERM or SIGINT. A second one ends the process at once, without the clean mark, unless it
/// comes within half a second: one Ctrl-C or `timeout` often signals the process and its whole group.
///
/// # Errors
/// The handlers cannot be installed.
pub fn stop_signal() -> io::Result<impl Future<Output = ()> + Send> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let first = Instant::now();
        tokio::spawn(async move {
            while first.elapsed() < SAME_STOP {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            }
            tracing::warn!("stopped by a second signal; the next start recovers");
            std::process::exit(1);
        });
    })
}

async fn open(config: &Config) -> Result<Arc<Broker>, ServerError> {
    let (store, broker) = (config.store(), config.broker());
    let opened = tokio::task::spawn_blocking(move || {
        Broker::open(Arc::new(RealDisk), Arc::new(SystemClock::new()), store, broker)
    });
    let (broker, _) = opened.await??;
    for line in broker.start_report() {
        match line {
            ReportLine::Done(_) => tracing::info!("{line}"),
            ReportLine::Damage(_) => tracing::warn!("{line}"),
        }
    }
    Ok(broker)
}

async fn close(broker: Arc<Broker>) -> Result<(), ServerError> {
    let closed = tokio::task::spawn_blocking(move || broker.close());
    Ok(closed.await??)
}

/// The two ports and their tasks.
struct Running {
    listening: Listening,
    health: Health,
    has_failed: Arc<AtomicBool>,
    stop_grpc: watch::Sender<bool>,
    stop_http: watch::Sender<bool>,
    grpc: JoinHandle<()>,
    http: JoinHandle<()>,
    /// Looks after leases.
    tender: JoinHandle<()>,
    /// Ends with this.
    _certificate: JoinSet<()>,
}

impl Running {
    async fn start(config: &Config, broker: Arc<Broker>) -> Result<Self, ServerError> {
        let certified = Arc::new(Certified::default());
        let certificate = Certificate::open(config, Arc::clone(&certified)).await?;
        let (grpc_listener, grpc) = bind("server.listen", config.server.listen).await?;
        let (http_listener, http) = bind("server.http", config.server.http).await?;
        let is_open_to_others = warn_of_others(grpc, http);
        let (services, health) =
            grpc::services(Arc::clone(&broker), config.server.advertise.as_deref()).await?;
        let tended = Arc::clone(&broker);
        let connected = Arc::new(Connected::default());
        let connections = Arc::new(Connections::told_to(Arc::clone(&connected)));
        let has_failed = Arc::new(AtomicBool::new(false));
        let told = http::Told {
            broker,
            connected,
            certified,
            has_failed: Arc::clone(&has_failed),
            is_open_to_others,
        };
        let security = Security { tls: certificate.served(), plain: config.tls.plain };
        let terms = listen::Terms {
            security,
            max_connections: config.server.max_connections as usize,
            drain_timeout: config.server.drain_timeout,
        };
        let (stop_grpc, grpc_stopped) = watch::channel(false);
        let (stop_http, http_stopped) = watch::channel(false);
        let serve = listen::serve(grpc_listener, services, connections, terms, grpc_stopped);
        Ok(Self {
            listening: Listening { grpc, http },
            health,
            has_failed,
            stop_grpc,
            stop_http,
            grpc: tokio::spawn(serve),
            http: tokio::spawn(http::serve(http_listener, told, http_stopped)),
            tender: tokio::spawn(async move { tended.tend_leases().await }),
            _certificate: certificate.follow(),
        })
    }

    /// Stops in order. HTTP goes last, so that it can tell of the drain.
    async fn drain(self, broker: &Broker) -> Result<(), JoinError> {
        broker.drain();
        self.health.stop().await;
        self.tender.await?;
        self.stop_grpc.send_replace(true);
        self.grpc.await?;
        self.stop_http.send_replace(true);
        self.http.await
    }

    /// Says why on every channel there is, and lets those who waited hear it.
    async fn fail(self) -> ServerError {
        self.has_failed.store(true, Ordering::Relaxed);
        self.health.stop().await;
        self.stop_grpc.send_replace(true);
        let mut grpc = self.grpc;
        if timeout(LAST_WORDS, &mut grpc).await.is_err() {
            grpc.abort();
        }
        self.http.abort();
        self.tender.abort();
        let error = ServerError::Poisoned;
        tracing::error!("{error}");
        error
    }
}

/// Says which addresses others than this machine can reach, and returns whether there are any.
fn warn_of_others(grpc: SocketAddr, http: SocketAddr) -> bool {
    let (grpc_is_open, http_is_open) = (!grpc.ip().is_loopback(), !http.ip().is_loopback());
    if grpc_is_open {
        tracing::warn!(%grpc, "no authentication: whoever reaches this address can do everything");
    }
    if http_is_open {
        tracing::warn!(%http, "no authentication: whoever reaches this address can use all that it serves");
    }
    grpc_is_open || http_is_open
}

async fn bind(
    key: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), ServerError> {
    let refused = |source| ServerError::Listen { key, address, source };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    Ok((listener, bound))
}
