//! The command line: one file per noun, each asks the client and renders what it returns.
//!
//! | file | command |
//! | --- | --- |
//! | `serve.rs` | the broker itself |
//! | `health.rs` | whether a broker serves, for health checks |
//! | `topic.rs`, `send.rs`, `pull.rs`, `query.rs`, `status.rs`, `session.rs`, `client.rs` | a client of a broker |
//! | `store.rs`, `store/` | a store: verify, dump, rebuild; of a stopped broker but for one |
//! | `group.rs`, `offset.rs` | the same, for consumer groups |
//! | `bench.rs` | how fast a broker is, beside a server that does nothing |
//! | `demo/` | a broker, its producers and its readers, killed and checked |
//! | `output.rs`, `message.rs`, `time.rs` | what goes to stdout, and in which form |
//! | `error.rs` | what goes to stderr when it fails, and the exit codes |
//!
//! Data goes to stdout, everything else to stderr.

mod bench;
mod client;
mod demo;
mod error;
mod group;
mod health;
mod message;
mod offset;
mod output;
mod pull;
mod query;
mod receive;
mod send;
mod serve;
mod session;
mod status;
mod store;
mod time;
mod topic;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::parser::ValueSource;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use self::error::Failure;
use self::output::{Format, Output};
use crate::client::{Client, ClientError, Retry};

/// How long a refusal that passes by itself is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// After how long the person at the terminal is told about it.
const TELL_AFTER: Duration = Duration::from_secs(1);

/// Over the options that every command has.
const COMMON: &str = "Common options";

/// A message broker in one binary: one CommitLog, queues and a key index built from it, gRPC in front.
#[derive(Debug, Parser)]
#[command(
    name = "mainstem",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = error::HELP
)]
struct Cli {
    #[command(flatten)]
    connection: Connection,
    /// How results are written to standard output
    #[arg(
        short,
        long,
        global = true,
        default_value = "table",
        value_name = "table|json|jsonl",
        hide_possible_values = true,
        help_heading = COMMON
    )]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

/// The broker to talk to.
#[derive(Clone, Debug, Args)]
pub(crate) struct Connection {
    /// The broker to talk to; over TLS with https:// in front
    #[arg(
        long,
        global = true,
        env = "MAINSTEM_SERVER",
        hide_env_values = true,
        default_value = "127.0.0.1:8081",
        value_name = "HOST:PORT",
        help_heading = COMMON
    )]
    server: String,
    /// Talk TLS, and trust the certificates in this file alone
    #[arg(
        long,
        global = true,
        env = "MAINSTEM_CA",
        hide_env_values = true,
        value_name = "FILE",
        help_heading = COMMON
    )]
    ca: Option<PathBuf>,
    /// Whether the command line itself names it.
    #[arg(skip)]
    is_named: bool,
}

impl Connection {
    /// Connects.
    pub(crate) async fn open(&self) -> anyhow::Result<Client> {
        Ok(match self.authorities().await? {
            Some(authorities) => Client::connect_trusting(&self.server, &authorities).await?,
            None => Client::connect(&self.server).await?,
        })
    }

    /// The certificates to trust alone, in PEM, if that was asked for.
    async fn authorities(&self) -> anyhow::Result<Option<Vec<u8>>> {
        let Some(ca) = &self.ca else { return Ok(None) };
        let read = tokio::fs::read(ca).await.map_err(|error| {
            Failure::usage(format!("the certificates in {} cannot be read ({error})", ca.display()))
        });
        Ok(Some(read?))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a broker
    Serve(serve::ServeArgs),
    /// Make, change, list, show, purge and delete topics
    #[command(subcommand)]
    Topic(topic::TopicCommand),
    /// Send messages
    Send(send::SendArgs),
    /// Read messages in order
    Pull(pull::PullArgs),
    /// Receive messages for a consumer group, and acknowledge them
    Receive(receive::ReceiveArgs),
    /// Find messages by key or id
    Query(query::QueryArgs),
    /// Make, list, show, change and delete consumer groups
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// Show, commit and reset the offsets of a consumer group, and who did
    #[command(subcommand)]
    Offset(offset::OffsetCommand),
    /// Show what a broker says about itself
    Status,
    /// End with 0 if a broker serves, else with 1
    Health(health::HealthArgs),
    /// List, show and close producer sessions
    #[command(subcommand)]
    Session(session::SessionCommand),
    /// List and show the clients that are connected over the protocol of RocketMQ
    #[command(subcommand)]
    Client(client::ClientCommand),
    /// Verify a store, show what is in it, make again what is derived, repair it
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// See it work: start a broker, send, read, query, kill it, check that nothing is lost
    Demo(demo::DemoArgs),
    /// Measure how fast it is
    Bench(bench::BenchArgs),
}

/// Reads the command line and does what it says.
pub fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let mut cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    cli.connection.is_named = matches.value_source("server") == Some(ValueSource::CommandLine);
    match run(cli) {
        Ok(()) => error::Exit::Done.into(),
        Err(error) => error::report(&error).into(),
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let output = Output::stdout(cli.output);
    let command = match cli.command {
        Command::Serve(args) => return serve::run(args, output),
        command => command,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("client")
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(client_command(command, &cli.connection, output));
    // Reads of standard input may block for ever; nothing that matters is left to wait for.
    runtime.shutdown_background();
    result
}

async fn client_command(
    command: Command,
    connection: &Connection,
    mut output: Output,
) -> anyhow::Result<()> {
    let output = &mut output;
    match command {
        Command::Serve(_) => Ok(()),
        Command::Topic(command) => topic::run(command, connection, output).await,
        Command::Send(args) => send::run(args, connection, output).await,
        Command::Pull(args) => pull::run(args, connection, output).await,
        Command::Receive(args) => receive::run(args, connection, output).await,
        Command::Query(args) => query::run(args, connection, output).await,
        Command::Group(command) => group::run(command, connection, output).await,
        Command::Offset(command) => offset::run(command, connection, output).await,
        Command::Status => status::run(connection, output).await,
        Command::Health(args) => health::run(args, output).await,
        Command::Session(command) => session::run(command, connection, output).await,
        Command::Client(command) => client::run(command, connection, output).await,
        Command::Store(command) => store::run(command, connection, output).await,
        Command::Demo(args) => demo::run(args, output).await,
        Command::Bench(args) => bench::run(args, connection, output).await,
    }
}

/// Ctrl-C, or whoever wants this process to end.
async fn interrupted() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result?,
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Repeats a call while the broker refuses it for a reason that passes by itself, for at most 30 s.
///
/// Nothing can happen twice: only definite refusals are repeated.
async fn patiently<T, F>(mut call: impl FnMut() -> F) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, ClientError>>,
{
    let started = Instant::now();
    let mut told = false;
    loop {
        let error = match call().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        match error.retry() {
            Retry::After(pause)
                if error.refusal().is_some() && started.elapsed() + pause < PATIENCE =>
            {
                if !told && started.elapsed() > TELL_AFTER {
                    output::say(format_args!("waiting: {error}"));
                    told = true;
                }
                tokio::time::sleep(pause).await;
            }
            _ => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
