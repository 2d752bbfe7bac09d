//! `mainstem bench`: how fast a broker is, beside a server that does nothing.
//!
//! The work is `bench`'s; here are its flags, its progress and its table.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytesize::ByteSize;
use clap::{Args, Subcommand};

use super::error::Failure;
use super::output::{Output, Progress, say, table};
use super::{Connection, interrupted, time};
use crate::bench::{
    self, BenchError, Compression, Config, Distribution, Flush, News, NoOp, Rate, RatioOf, Run,
    Summary, What,
};

/// How to measure; without a command: `send`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    command: Option<BenchCommand>,
    #[command(flatten)]
    send: SendArgs,
}

const EXAMPLES: &str = "\
Without --server on the command line it starts a broker of its own in the temporary directory
(TMPDIR) and takes it away again. The control is a server of the same API that does nothing; both
have turns in the same run (broker, control, control, broker), and the ratio is the median of the
rounds. A round whose two controls differ by more than 10 % is void and tried again. With --server
the control, the machine and the file system that are shown are those of the load: the ratio then
compares what is there with what is here.

Examples:
  mainstem bench
  mainstem bench send --payload 128 --batch 750 --duration 5s
  mainstem bench send --rate 200000 --report run.html
  mainstem bench send --find-rate --p99 10ms
  mainstem bench pull -o json > before.json
  mainstem bench pull --compare before.json --report run.html
  mainstem bench e2e --rate 50000 --batch 10";

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Batches in, over streams
    Send(SendArgs),
    /// Read what is stored, from the begin to the end again and again
    Pull(PullArgs),
    /// Find messages by their keys
    Query(QueryArgs),
    /// From the moment a message is to be sent until a reader has it
    E2e(E2eArgs),
    /// Serve the same API and do nothing
    #[command(hide = true)]
    NoOpServer(NoOpArgs),
}

/// What every load has.
#[derive(Debug, Args)]
struct LoadArgs {
    /// Bytes of a message
    #[arg(long, value_name = "SIZE", default_value = "1KiB")]
    payload: ByteSize,
    /// How many topics
    #[arg(long, value_name = "N", default_value_t = 1)]
    topics: u32,
    /// Queues of each topic
    #[arg(long, value_name = "N", default_value_t = 1)]
    queues: u32,
    /// What an OK waits for
    #[arg(long, value_name = "sync|async", default_value = "async", value_parser = flush)]
    flush: Flush,
    /// How long each turn is
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = time::duration)]
    duration: Duration,
    /// How long both servers are warmed up before the first round
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = time::duration)]
    warm_up: Duration,
    /// Valid rounds, of two turns of the broker and two of the control; 9 for a figure to quote [default: 5; 1 with
    /// --find-rate]
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Measure the broker alone
    #[arg(long)]
    no_control: bool,
    /// Write a page with plots to this file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Show the run of this file (from -o json) beside it, in the page and on standard error
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
}

/// At which rate.
#[derive(Debug, Args)]
struct RateArgs {
    /// Messages a second, whatever the answers do; latency counts from when each was to be sent [default: the highest;
    /// 10000 for e2e]
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Look for the highest rate at which 99 % of the answers come within --p99
    #[arg(long, conflicts_with = "rate")]
    find_rate: bool,
    /// The time that answers have for --find-rate
    #[arg(
        long,
        value_name = "TIME",
        default_value = "10ms",
        requires = "find_rate",
        value_parser = time::duration
    )]
    p99: Duration,
}

impl RateArgs {
    fn rate(&self) -> Rate {
        match self.rate {
            Some(rate) => Rate::Fixed(rate),
            None if self.find_rate => Rate::Find { p99: self.p99 },
            None => Rate::Highest,
        }
    }
}

#[derive(Debug, Args)]
struct SendArgs {
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    rate: RateArgs,
    /// Messages of a batch
    #[arg(long, value_name = "N", default_value_t = 100)]
    batch: u32,
    /// Batches of a connection without an acknowledgement
    #[arg(long, value_name = "N", default_value_t = 32)]
    in_flight: u32,
    /// Connections
    #[arg(long, value_name = "N", default_value_t = 1)]
    producers: u32,
    /// Keys of each message
    #[arg(long, value_name = "N", default_value_t = 0)]
    keys: u32,
    /// How batches are compressed; with a codec the bodies are text, else random bytes. zstd is in builds with that
    /// feature
    #[arg(long, value_name = "none|lz4|zstd", default_value = "none", value_parser = compression)]
    compression: Compression,
    /// Which queue is next
    #[arg(long, value_name = "uniform|zipf", default_value = "uniform", value_parser = distribution)]
    distribution: Distribution,
}

#[derive(Debug, Args)]
struct PullArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// Messages of a batch
    #[arg(long, value_name = "N", default_value_t = 100)]
    batch: u32,
    /// Readers, each with its connection and its share of the queues
    #[arg(long, value_name = "N", default_value_t = 1)]
    producers: u32,
    /// Bytes that are stored first, about; each queue gets one batch at least, two on average with zipf
    #[arg(long, value_name = "SIZE", default_value = "128MiB")]
    fill: ByteSize,
    /// How batches are compressed; with a codec the bodies are text, else random bytes. zstd is in builds with that
    /// feature
    #[arg(long, value_name = "none|lz4|zstd", default_value = "none", value_parser = compression)]
    compression: Compression,
    /// Which queues the bytes are in, beyond the first batch of each
    #[arg(long, value_name = "uniform|zipf", default_value = "uniform", value_parser = distribution)]
    distribution: Distribution,
}

#[derive(Debug, Args)]
struct QueryArgs {
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    rate: RateArgs,
    /// Messages of a batch
    #[arg(long, value_name = "N", default_value_t = 100)]
    batch: u32,
    /// Queries of a connection without an answer
    #[arg(long, value_name = "N", default_value_t = 16)]
    in_flight: u32,
    /// Connections
    #[arg(long, value_name = "N", default_value_t = 1)]
    producers: u32,
    /// Keys of each message
    #[arg(long, value_name = "N", default_value_t = 1)]
    keys: u32,
    /// Bytes that are stored first, about; each queue gets one batch at least
    #[arg(long, value_name = "SIZE", default_value = "128MiB")]
    fill: ByteSize,
}

#[derive(Debug, Args)]
struct E2eArgs {
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    rate: RateArgs,
    /// Messages of a batch
    #[arg(long, value_name = "N", default_value_t = 10)]
    batch: u32,
    /// Batches of a connection without an acknowledgement
    #[arg(long, value_name = "N", default_value_t = 32)]
    in_flight: u32,
    /// Connections, each with a sender; as many for the readers
    #[arg(long, value_name = "N", default_value_t = 1)]
    producers: u32,
    /// Which queue is next
    #[arg(long, value_name = "uniform|zipf", default_value = "uniform", value_parser = distribution)]
    distribution: Distribution,
}

/// The control.
#[derive(Debug, Args)]
struct NoOpArgs {
    #[arg(long)]
    payload: usize,
    #[arg(long)]
    batch: u32,
    #[arg(long)]
    queues: u32,
    #[arg(long, value_parser = compression)]
    compression: Compression,
    #[arg(long)]
    filled: u64,
    #[arg(long)]
    relay: bool,
    #[arg(long)]
    until_stdin_closes: bool,
}

fn flush(text: &str) -> Result<Flush, &'static str> {
    match text {
        "sync" => Ok(Flush::Sync),
        "async" => Ok(Flush::Async),
        _ => Err("give sync or async"),
    }
}

fn compression(text: &str) -> Result<Compression, &'static str> {
    match text {
        "none" => Ok(Compression::None),
        "lz4" => Ok(Compression::Lz4),
        "zstd" => Ok(Compression::Zstd),
        _ => Err("give none, lz4 or zstd"),
    }
}

fn distribution(text: &str) -> Result<Distribution, &'static str> {
    match text {
        "uniform" => Ok(Distribution::Uniform),
        "zipf" => Ok(Distribution::Zipf),
        _ => Err("give uniform or zipf"),
    }
}

impl LoadArgs {
    /// A run of `what` with these flags; the others as in [`SendArgs`].
    fn config(&self, what: What, batch: u32, producers: u32, rate: Rate) -> Config {
        let default_rounds = if matches!(rate, Rate::Find { .. }) { 1 } else { 5 };
        Config {
            what,
            server: None,
            authorities: None,
            payload: usize::try_from(self.payload.as_u64()).unwrap_or(usize::MAX),
            batch,
            in_flight: 32,
            topics: self.topics,
            queues: self.queues,
            distribution: Distribution::Uniform,
            producers,
            keys: 0,
            flush: self.flush,
            compression: Compression::None,
            rate,
            fill: 1,
            duration: self.duration,
            warm_up: self.warm_up,
            rounds: self.rounds.unwrap_or(default_rounds),
            control: !self.no_control,
        }
    }
}

impl SendArgs {
    fn config(&self) -> Config {
        let rate = self.rate.rate();
        let config = self.load.config(What::Send, self.batch, self.producers, rate);
        let (in_flight, keys) = (self.in_flight, self.keys);
        let (compression, distribution) = (self.compression, self.distribution);
        Config { in_flight, keys, compression, distribution, ..config }
    }
}

impl PullArgs {
    fn config(&self) -> Config {
        let config = self.load.config(What::Pull, self.batch, self.producers, Rate::Highest);
        let (compression, distribution) = (self.compression, self.distribution);
        Config { in_flight: 1, fill: self.fill.as_u64(), compression, distribution, ..config }
    }
}

impl QueryArgs {
    fn config(&self) -> Config {
        let rate = self.rate.rate();
        let config = self.load.config(What::Query, self.batch, self.producers, rate);
        let (in_flight, keys) = (self.in_flight, self.keys);
        Config { in_flight, keys, fill: self.fill.as_u64(), ..config }
    }
}

impl E2eArgs {
    fn config(&self) -> Config {
        let rate = match self.rate.rate() {
            Rate::Highest => Rate::Fixed(10_000.0),
            rate => rate,
        };
        let config = self.load.config(What::E2e, self.batch, self.producers, rate);
        Config { in_flight: self.in_flight, distribution: self.distribution, ..config }
    }
}

/// Runs the command.
pub(crate) async fn run(
    args: BenchArgs,
    connection: &Connection,
    output: &mut Output,
) -> anyhow::Result<()> {
    let (config, load) = match &args.command {
        None => (args.send.config(), &args.send.load),
        Some(BenchCommand::Send(args)) => (args.config(), &args.load),
        Some(BenchCommand::Pull(args)) => (args.config(), &args.load),
        Some(BenchCommand::Query(args)) => (args.config(), &args.load),
        Some(BenchCommand::E2e(args)) => (args.config(), &args.load),
        Some(BenchCommand::NoOpServer(args)) => return no_op(args, output).await,
    };
    // A broker of its own is spoken to as it was started: without TLS.
    let (server, authorities) = match connection.is_named {
        true => (Some(connection.server.clone()), connection.authorities().await?),
        false => (None, None),
    };
    let authorities = authorities.map(Into::into);
    measure(Config { server, authorities, ..config }, load, output).await
}

async fn measure(config: Config, load: &LoadArgs, output: &mut Output) -> anyhow::Result<()> {
    config.check().map_err(|error| Failure::usage(error.to_string()))?;
    // Before the work: a file that cannot be read should not cost a run.
    let earlier = load.compare.as_deref().map(earlier).transpose()?;
    let report = load.report.as_deref().map(Report::begin).transpose()?;
    let progress = Progress::start("", None);
    let watcher = Arc::new(move |news: News<'_>| match news {
        News::Phase(phase) => progress.says(phase),
        News::Messages(messages) => progress.add(messages),
    });
    let stop = async || {
        // Without signals nobody can interrupt it.
        if interrupted().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let run = bench::run(config, watcher, stop).await.map_err(explain)?;
    output.one(&run, || text(&run))?;
    if let Some(report) = report {
        report.finish(&bench::html(&run, earlier.as_ref()))?;
    }
    if let Some(earlier) = &earlier {
        if let Some(change) = run.change_from(earlier) {
            say(format_args!("messages/s {change:+.1} % from the earlier run"));
        }
        let differs = run.differs_from(earlier);
        if !differs.is_empty() {
            let differs = differs.join(", ");
            say(format_args!("the earlier run was another one; it differs in: {differs}"));
        }
    }
    Ok(())
}

/// A page that is to be written once there is something to show.
struct Report<'a> {
    path: &'a Path,
    /// There was no file, and there is no page yet: none is left behind.
    is_empty: bool,
}

impl<'a> Report<'a> {
    /// Sees that it can be written. What is there stays until there is a page.
    fn begin(path: &'a Path) -> anyhow::Result<Self> {
        let is_empty = !path.exists();
        let opened = File::options().append(true).create(true).open(path);
        opened.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path, is_empty })
    }

    fn finish(mut self, page: &str) -> anyhow::Result<()> {
        let written = std::fs::write(self.path, page);
        written.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.is_empty = false;
        Ok(())
    }
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        if self.is_empty {
            let _ = std::fs::remove_file(self.path);
        }
    }
}

fn explain(error: BenchError) -> anyhow::Error {
    match error {
        BenchError::Config(error) => Failure::usage(error.to_string()).into(),
        error => error.into(),
    }
}

fn earlier(path: &Path) -> anyhow::Result<Run> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let run = serde_json::from_str(&text);
    run.with_context(|| format!("{} is no run that `bench -o json` wrote", path.display()))
}

/// A run for people.
fn text(run: &Run) -> String {
    let config = &run.config;
    let none = || "-".to_owned();
    let side = |name: &str, summary: &Summary| {
        let us = &summary.latency_us;
        let mut cells = vec![
            name.to_owned(),
            format!("{:.0}", summary.messages_per_second),
            format!("{:.1}", summary.bytes_per_second / 1e6),
            summary.cpu_ns_per_message.map_or_else(none, |ns| format!("{ns:.0}")),
            summary.acks.to_string(),
        ];
        let percentiles = [us.p50, us.p90, us.p99, us.p999, us.p9999, us.max];
        cells.extend(percentiles.map(|us| format!("{:.2}", us as f64 / 1e3)));
        cells
    };
    let mut rows = vec![side("broker", &run.subject)];
    rows.extend(run.control.as_ref().map(|control| side("control", control)));
    let header = [
        "",
        "MESSAGES/S",
        "MB/S",
        "CPU NS",
        "ACKS",
        "P50 MS",
        "P90",
        "P99",
        "P99.9",
        "P99.99",
        "MAX",
    ];
    let mut text = table(&header, rows);
    if let Some(ratio) = run.ratio {
        let of = match run.ratio_of {
            RatioOf::Rate => "messages/s, broker by control",
            RatioOf::MedianLatency => "p50, control by broker",
        };
        let void = run.rounds.iter().filter(|round| round.void).count();
        let valid = run.rounds.len() - void;
        text.push_str(&format!("\n\nratio {ratio:.3} ({of}; rounds: {valid} valid, {void} void)"));
    }
    if run.void {
        text.push_str(
            "\nVOID: the controls of every round differ by more than 10 %; the machine has other \
             things to do",
        );
    }
    let machine = &run.machine;
    // Of another broker's machine nothing is known.
    let load = if config.server.is_some() { "load and control on " } else { "" };
    text.push_str(&format!(
        "\n{:?}, {} x {} B, {:?}; {load}{} cores, Linux {}, {}",
        config.what,
        config.batch,
        config.payload,
        config.flush,
        machine.cores,
        machine.kernel,
        machine.file_system
    ));
    text
}

/// Serves as the control until whoever started it is gone.
async fn no_op(args: &NoOpArgs, output: &mut Output) -> anyhow::Result<()> {
    let no_op = NoOp {
        payload: args.payload,
        batch: args.batch,
        compression: args.compression,
        queues: args.queues,
        filled: args.filled,
        relay: args.relay,
    };
    let stop = async {
        if args.until_stdin_closes {
            let mut nothing = tokio::io::sink();
            let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut nothing).await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    let started = |addresses| {
        // A reader who has gone does not need the line.
        let _ = output.line(&addresses);
    };
    bench::serve_no_op(no_op, started, stop).await.context("cannot listen")
}
