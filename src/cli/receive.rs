//! `mainstem receive`: get messages for a consumer group.
//!
//! Messages come from any queue, in the order in which the broker gives them. What was printed is acknowledged after
//! it was handed to standard output, so who dies in between gets it again. With `--ack none` nothing is: the messages
//! are delivered again when their leases are over. With `--ack retry` they are given back at once, for the group's
//! pause.

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde::Serialize;
use serde::ser::Serializer;

use super::error::Failure;
use super::message::{HEADER, Shown};
use super::output::{Output, Progress, Row, say};
use super::{Connection, patiently, time};
use crate::client::{Client, Filter, Hold, Leased, Receive};

/// The longest time the broker lets a receive wait.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Messages asked for at once.
const PAGE: u32 = 256;

/// What to receive.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReceiveArgs {
    /// The topic
    topic: String,
    /// The consumer group
    #[arg(short, long)]
    group: String,
    /// Stop after so many messages
    #[arg(short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// What becomes of the messages: auto acknowledges them, none lets their leases run out, retry gives them back
    #[arg(long, value_name = "WAY", default_value = "auto")]
    ack: Ack,
    /// How long nobody else of the group gets them, like 30s
    #[arg(long, value_name = "DURATION", value_parser = time::duration, default_value = "30s")]
    lease: Duration,
    /// If there is nothing, wait so long for more, like 10s or 2m
    #[arg(long, value_name = "DURATION", value_parser = time::duration)]
    wait: Option<Duration>,
    /// Only messages with one of these tags, 'paid || shipped'; the others are finished for the group
    #[arg(long, value_name = "EXPR", conflicts_with = "sql")]
    tags: Option<String>,
    /// Only messages for which a condition is true; the others are finished for the group
    #[arg(long, value_name = "CONDITION")]
    sql: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  mainstem receive orders -g billing                   what there is, acknowledged as it is printed
  mainstem receive orders -g billing -n 1 --ack none   one message; it comes again after its lease
  mainstem receive orders -g billing --wait 1m         what comes within a minute
  mainstem receive orders -g billing --sql 'total > 9.99'";

/// What becomes of what was printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Ack {
    Auto,
    None,
    Retry,
}

/// A message with its lease, on its way to stdout.
struct ShownLease<'a>(&'a Leased);

#[derive(Serialize)]
struct Fields<'a> {
    #[serde(flatten)]
    message: Shown<'a>,
    delivery: u32,
    handle: &'a str,
}

impl Serialize for ShownLease<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Leased { message, handle, delivery } = self.0;
        Fields { message: Shown(message), delivery: *delivery, handle }.serialize(serializer)
    }
}

impl Row for ShownLease<'_> {
    fn cells(&self) -> Vec<String> {
        Shown(&self.0.message).cells()
    }
}

/// Runs the command.
pub(crate) async fn run(
    args: ReceiveArgs,
    connection: &Connection,
    output: &mut Output,
) -> anyhow::Result<()> {
    let client = connection.open().await?;
    let mut many = output.many(HEADER);
    let progress = Progress::beside_results("messages received");
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut waiting_since = Instant::now();
    while left > 0 {
        let wait = args.wait.unwrap_or_default().saturating_sub(waiting_since.elapsed());
        let received = receive(&client, &args, left, wait.min(LONGEST_WAIT)).await?;
        for leased in &received {
            many.push(&ShownLease(leased))?;
            progress.add(1);
        }
        left -= u64::try_from(received.len()).unwrap_or(u64::MAX).min(left);
        if !received.is_empty() {
            many.flush()?;
            settle(&client, &args, &received).await?;
            waiting_since = Instant::now();
        } else if wait.is_zero() {
            break;
        }
        // Given back or let go, they would come again.
        if args.ack == Ack::Retry && args.count.is_none() && received.is_empty() {
            break;
        }
    }
    drop(progress);
    let none = many.count() == 0;
    many.finish()?;
    if none {
        say(format_args!("nothing new for {} in {}", args.group, args.topic));
    }
    Ok(())
}

async fn receive(
    client: &Client,
    args: &ReceiveArgs,
    left: u64,
    wait: Duration,
) -> anyhow::Result<Vec<Leased>> {
    let filter = match (&args.tags, &args.sql) {
        (Some(tags), _) => Filter::Tags(tags),
        (None, Some(sql)) => Filter::Sql(sql),
        (None, None) => Filter::All,
    };
    let receive = Receive {
        group: &args.group,
        topic: &args.topic,
        filter,
        max_messages: u32::try_from(left).unwrap_or(PAGE).min(PAGE),
        invisible: args.lease,
        wait,
        attempt: "",
    };
    Ok(patiently(|| client.receive(&receive)).await?)
}

/// Acknowledges what was printed, or gives it back.
async fn settle(client: &Client, args: &ReceiveArgs, received: &[Leased]) -> anyhow::Result<()> {
    let handles: Vec<&str> = received.iter().map(|leased| leased.handle.as_str()).collect();
    let stale = match args.ack {
        Ack::None => 0,
        Ack::Auto => {
            let finished = patiently(|| client.ack(&args.group, &args.topic, &handles)).await?;
            finished.iter().filter(|finished| !**finished).count()
        }
        Ack::Retry => {
            let entries: Vec<_> = handles.iter().map(|handle| (*handle, Hold::Retry)).collect();
            let held = patiently(|| client.extend(&args.group, &args.topic, &entries)).await?;
            held.iter().filter(|held| held.is_err()).count()
        }
    };
    if stale > 0 {
        let what = format!("{stale} messages were given to somebody else before they were printed");
        let cure = "they come again there; --lease gives more time";
        return Err(Failure::new(super::error::Exit::Failed, what).cure(cure).into());
    }
    Ok(())
}
