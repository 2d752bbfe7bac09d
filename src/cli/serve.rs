//! `mainstem serve`: run a broker.
//!
//! Flags win over `--set`, which wins over the file. The process runs until SIGTERM or SIGINT, then drains, flushes
//! and writes a checkpoint. When the disk fails a sync it says so and ends with 74.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use tokio::sync::oneshot;

use super::chain;
use super::error::{Exit, Failure};
use super::output::Output;
use crate::child::Addresses;
use crate::config::Config;
use crate::file::FileError;
use crate::server::{self, CertificateError, Listening, ServerError};
use crate::store::{CloseError, OpenError};
use crate::telemetry;

/// How a broker runs.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ServeArgs {
    /// The data directory; made if its parent exists [default: ./data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where gRPC listens [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Where /healthz, /readyz and /metrics listen [default: 127.0.0.1:8082]
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// A configuration file in TOML; deploy/mainstem.toml shows every key
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set a key of the configuration, like store.flush=async; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Write the addresses to standard output in one JSON line when ready
    #[arg(long, hide = true)]
    print_addresses: bool,
    /// Stop in order when standard input ends
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

const EXAMPLES: &str = "\
Examples:
  mainstem serve --data ./data
  mainstem serve --config mainstem.toml --set store.flush=async
  mainstem serve --data ./data --listen 0.0.0.0:8081

SIGTERM and Ctrl-C stop it in order. RUST_LOG sets what it logs to standard error.
There is no authentication: anyone who reaches the address can send, read and delete.";

/// Runs the command.
pub(crate) fn run(args: ServeArgs, output: Output) -> anyhow::Result<()> {
    telemetry::init(None).map_err(usage)?;
    let mut config = Config::load(args.config.as_deref(), &args.set).map_err(usage)?;
    if let Some(data) = args.data {
        config.server.data = data;
    }
    if let Some(listen) = args.listen {
        config.server.listen = listen;
    }
    if let Some(http) = args.http {
        config.server.http = http;
    }
    let has_certificate = config.tls.certificate.is_some();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("serve")
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(async {
        let shutdown = shutdown(args.until_stdin_closes).context("cannot listen for signals")?;
        let (started, listening) = oneshot::channel();
        let serving = server::run(config, shutdown, Some(started));
        let telling = tell(args.print_addresses.then_some(output), listening);
        let (outcome, ()) = tokio::join!(serving, telling);
        outcome.map_err(|error| explain(error, has_certificate))
    });
    // A read of standard input may never end; nothing that matters is left to wait for.
    runtime.shutdown_background();
    outcome
}

fn usage(error: impl std::error::Error + Send + Sync + 'static) -> anyhow::Error {
    // A message about a file shows the line and ends with a line break.
    Failure::usage(format!("{:#}", anyhow::Error::new(error)).trim_end()).into()
}

/// `has_certificate`: the configuration names one.
fn explain(error: ServerError, has_certificate: bool) -> anyhow::Error {
    let failure = match &error {
        ServerError::Poisoned
        | ServerError::Open(OpenError::Sync(_))
        | ServerError::Close(CloseError::Poisoned { .. }) => {
            Failure::new(Exit::SyncFailed, chain(&error))
                .cure("check the disk, then start the broker again: it recovers")
        }
        ServerError::Listen { key, address, source } => {
            let option = if *key == "server.http" { "--http" } else { "--listen" };
            Failure::new(Exit::Failed, format!("cannot listen on {address} ({source})"))
                .cure(format!("is a broker running there? Name another address with {option}"))
        }
        ServerError::Open(OpenError::File(FileError::Full { .. })) => {
            Failure::new(Exit::Failed, chain(&error)).cure("free some space, then start it again")
        }
        ServerError::Open(OpenError::File(_)) => Failure::new(Exit::Failed, chain(&error))
            .cure("serve needs a directory that it can read and write; name another with --data"),
        ServerError::Certificate(CertificateError::Read(_) | CertificateError::Pair { .. }) => {
            let (exit, cure) = match has_certificate {
                true => (
                    Exit::Usage,
                    "look at tls.certificate and tls.key; without them the broker makes a pair for itself",
                ),
                false => (
                    Exit::Failed,
                    "remove tls/ in the data directory; the next start makes a new pair, \
                     which clients have to be given",
                ),
            };
            Failure::new(exit, chain(&error)).cure(cure)
        }
        _ => return error.into(),
    };
    failure.into()
}

/// Writes the addresses when they are known, for whoever asked for the line.
async fn tell(output: Option<Output>, listening: oneshot::Receiver<Listening>) {
    if let (Ok(listening), Some(mut output)) = (listening.await, output) {
        let addresses =
            Addresses { grpc: listening.grpc.to_string(), http: listening.http.to_string() };
        // A reader who has gone does not need the line; the broker runs on.
        let _ = output.line(&addresses);
    }
}

/// Resolves at the first signal to stop or, if asked to, when standard input ends.
fn shutdown(until_stdin_closes: bool) -> std::io::Result<impl Future<Output = ()>> {
    let signal = server::stop_signal()?;
    Ok(async move {
        let stdin = async {
            if until_stdin_closes {
                let mut nothing = tokio::io::sink();
                let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut nothing).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = signal => {}
            () = stdin => {}
        }
    })
}
