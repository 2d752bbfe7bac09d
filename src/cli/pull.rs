//! `mainstem pull`: read messages in order.
//!
//! Queues are read one after the other, each to the end it has when it is reached. A damaged range is one line on
//! stderr and stepped over.

use std::time::{Duration, Instant};

use clap::Args;

use super::error::Failure;
use super::message::{HEADER, Shown};
use super::output::{Many, Output, Progress, say};
use super::{Connection, patiently, time};
use crate::client::{Client, ClientError, OffsetRange, Pull, Reason};
use crate::format::batch::TagFilter;
use crate::message::{QueueId, QueueOffset};

/// The longest time the broker lets a pull wait.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Messages asked for at once.
const PAGE: u32 = 1_000;

/// What to read.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PullArgs {
    /// The topic
    #[arg(short, long)]
    topic: String,
    /// Only this queue [default: all, one after the other]
    #[arg(long, value_name = "N")]
    queue: Option<u32>,
    /// Where to begin: earliest, latest, or an offset of the queue named by --queue
    #[arg(long, value_name = "PLACE", default_value = "earliest", value_parser = place)]
    from: Place,
    /// Stop after so many messages
    #[arg(short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Only messages with one of these tags: 'paid' or 'paid || shipped'
    #[arg(long, value_name = "EXPR", default_value = "*", hide_default_value = true)]
    tags: String,
    /// At the end of a queue wait so long for more, like 10s or 2m
    #[arg(long, value_name = "DURATION", value_parser = time::duration)]
    wait: Option<Duration>,
}

const EXAMPLES: &str = "\
Examples:
  mainstem pull -t orders                            everything, queue by queue
  mainstem pull -t orders -n 10 -o jsonl             the first ten, a JSON object a line
  mainstem pull -t orders --queue 2 --from 4711      one queue from an offset on
  mainstem pull -t orders --from latest --wait 1m    what comes within a minute
  mainstem pull -t orders --tags 'paid || shipped'   by tag";

#[derive(Clone, Copy, Debug)]
enum Place {
    Earliest,
    Latest,
    Offset(u64),
}

fn place(text: &str) -> Result<Place, &'static str> {
    match text {
        "earliest" => Ok(Place::Earliest),
        "latest" => Ok(Place::Latest),
        number => number
            .parse()
            .map(Place::Offset)
            .map_err(|_| "give earliest, latest or the offset of a message"),
    }
}

/// Runs the command.
pub(crate) async fn run(
    args: PullArgs,
    connection: &Connection,
    output: &mut Output,
) -> anyhow::Result<()> {
    let filter = TagFilter::parse(&args.tags)
        .map_err(|error| Failure::usage(format!("--tags {}: {error}", args.tags)))?;
    let client = connection.open().await?;
    let topic = patiently(|| client.describe_topic(&args.topic)).await?;
    let queues: Vec<(QueueId, OffsetRange)> = match args.queue {
        None => topic.queues,
        Some(wanted) => {
            topic.queues.into_iter().filter(|(queue, _)| queue.get() == wanted).collect()
        }
    };
    if let (Some(wanted), true) = (args.queue, queues.is_empty()) {
        let last = topic.topic.queues.saturating_sub(1);
        let what = format!("topic {} has no queue {wanted}", args.topic);
        return Err(Failure::usage(what).cure(format!("its queues are 0 to {last}")).into());
    }
    if matches!(args.from, Place::Offset(_)) && queues.len() > 1 {
        let what = "an offset belongs to one queue";
        return Err(Failure::usage(what).cure("name the queue with --queue").into());
    }

    let mut many = output.many(HEADER);
    let mut reader = Reader {
        client: &client,
        args: &args,
        filter: &filter,
        left: args.count.unwrap_or(u64::MAX),
        progress: Progress::beside_results("messages read"),
    };
    for (queue, range) in queues {
        reader.read(queue, range, &mut many).await?;
        if reader.left == 0 {
            break;
        }
    }
    drop(reader);
    let none = many.count() == 0;
    many.finish()?;
    if none {
        say(format_args!("no messages in {}", args.topic));
    }
    Ok(())
}

struct Reader<'a> {
    client: &'a Client,
    args: &'a PullArgs,
    filter: &'a TagFilter,
    /// Messages still wanted.
    left: u64,
    progress: Progress,
}

impl Reader<'_> {
    /// Reads one queue to its end, or until enough is read.
    async fn read(
        &mut self,
        queue: QueueId,
        range: OffsetRange,
        many: &mut Many<'_>,
    ) -> anyhow::Result<()> {
        let mut offset = match self.args.from {
            Place::Earliest => range.min,
            Place::Latest => range.max,
            Place::Offset(offset) => QueueOffset::new(offset),
        };
        let mut end = range.max;
        let mut asked_for = matches!(self.args.from, Place::Offset(_));
        let mut waiting_since = Instant::now();
        loop {
            let at_end = offset >= end && !asked_for;
            let wait = match (at_end, self.args.wait) {
                (false, _) => Duration::ZERO,
                (true, None) => return Ok(()),
                (true, Some(wait)) => {
                    let left = wait.saturating_sub(waiting_since.elapsed());
                    if left.is_zero() {
                        return Ok(());
                    }
                    left.min(LONGEST_WAIT)
                }
            };
            let pull = Pull {
                group: None,
                topic: &self.args.topic,
                queue,
                offset,
                max_messages: Some(u32::try_from(self.left).unwrap_or(PAGE).min(PAGE)),
                max_bytes: None,
                wait,
                tags: &self.args.tags,
                filter: self.filter,
            };
            match patiently(|| self.client.pull(&pull)).await {
                Ok(pulled) => {
                    asked_for = false;
                    let moved = pulled.next_offset > offset;
                    for message in &pulled.messages {
                        if self.left == 0 {
                            break;
                        }
                        many.push(&Shown(message))?;
                        self.left -= 1;
                        self.progress.add(1);
                    }
                    if self.left == 0 {
                        return Ok(());
                    }
                    offset = offset.max(pulled.next_offset);
                    end = pulled.range.max;
                    if moved {
                        waiting_since = Instant::now();
                    } else if offset < end && pulled.messages.is_empty() {
                        // Below the end and nothing to read: an answer that would be asked for without end.
                        let what = format!("the broker stays at offset {offset} of queue {queue}");
                        return Err(Failure::new(super::error::Exit::Failed, what).into());
                    }
                    if self.args.wait.is_some() {
                        many.flush()?;
                    }
                }
                Err(error) => {
                    let Some(next) = self.behind(&error, queue, offset) else {
                        return Err(error.into());
                    };
                    asked_for = false;
                    end = end.max(next);
                    offset = next;
                }
            }
        }
    }

    /// Where to go on behind what cannot be read.
    fn behind(
        &self,
        error: &ClientError,
        queue: QueueId,
        offset: QueueOffset,
    ) -> Option<QueueOffset> {
        let refusal = error.refusal()?;
        match refusal.reason {
            Reason::Damaged => {
                let next = refusal.next_offset.filter(|next| *next > offset)?;
                say(format_args!(
                    "damaged: queue {queue}, offsets {offset} to {} cannot be read and are skipped",
                    next.get() - 1
                ));
                Some(next)
            }
            Reason::OffsetOutOfRange if !matches!(self.args.from, Place::Offset(_)) => {
                refusal.range.map(|range| range.min).filter(|min| *min > offset)
            }
            _ => None,
        }
    }
}
