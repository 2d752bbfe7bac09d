//! `mainstem pull`: read messages in order.
//!
//! Queues are read one after the other, each to the end it has when it is reached. A damaged range is one line on
//! stderr and stepped over.
//!
//! In the name of a consumer group a queue is read from where the group is. With `--commit` what was printed is
//! committed, page by page, after it was handed to standard output: who dies in between reads it again. Before the
//! first page the place where the group begins is committed for all queues that have none, so that what is sent
//! meanwhile to a group that begins at the end is not passed over. A commit names what it replaces: if another reader
//! or a reset moved the group meanwhile, the command ends and says so.

use std::time::{Duration, Instant};

use clap::Args;

use super::error::Failure;
use super::message::{HEADER, Shown};
use super::output::{Many, Output, Progress, say};
use super::{Connection, offset, patiently, time};
use crate::client::{
    AnswerError, Client, ClientError, Expected, NewCommit, OffsetRange, Position, Pull,
    QueueProgress, Reason,
};
use crate::format::batch::{BatchError, TagFilter};
use crate::message::{Epoch, QueueId, QueueOffset};

/// The longest time the broker lets a pull wait.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Messages asked for at once.
const PAGE: u32 = 1_000;
/// Offsets committed at once.
const COMMIT: usize = 10_000;

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
    /// Where to begin: earliest, latest, a time, or an offset of the queue named by --queue
    #[arg(long, value_name = "PLACE", default_value = "earliest", value_parser = offset::position)]
    from: Position,
    /// Stop after so many messages
    #[arg(short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Only messages with one of these tags: 'paid' or 'paid || shipped'
    #[arg(long, value_name = "EXPR", default_value = "*", hide_default_value = true)]
    tags: String,
    /// At the end of a queue wait so long for more, like 10s or 2m
    #[arg(long, value_name = "DURATION", value_parser = time::duration)]
    wait: Option<Duration>,
    /// Go on where this consumer group is; where it has committed nothing, at its initial position
    #[arg(short, long, conflicts_with = "from")]
    group: Option<String>,
    /// Commit for the group what was printed
    #[arg(long, requires = "group")]
    commit: bool,
}

const EXAMPLES: &str = "\
Examples:
  mainstem pull -t orders                            everything, queue by queue
  mainstem pull -t orders -n 10 -o jsonl             the first ten, a JSON object a line
  mainstem pull -t orders --queue 2 --from 4711      one queue from an offset on
  mainstem pull -t orders --from latest --wait 1m    what comes within a minute
  mainstem pull -t orders --tags 'paid || shipped'   by tag
  mainstem pull -t orders --from '2h ago'            what was stored since then
  mainstem pull -t orders -g billing --commit        what the group has not had yet";

/// A queue to read.
struct Queue {
    id: QueueId,
    range: OffsetRange,
    start: QueueOffset,
    /// What the group has committed.
    committed: Option<QueueOffset>,
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
    let mut queues = queues(&client, &args).await?;
    if let Some(wanted) = args.queue {
        let last = queues.len().saturating_sub(1);
        queues.retain(|queue| queue.id.get() == wanted);
        if queues.is_empty() {
            let what = format!("topic {} has no queue {wanted}", args.topic);
            return Err(Failure::usage(what).cure(format!("its queues are 0 to {last}")).into());
        }
    }
    if matches!(args.from, Position::Offset(_)) && queues.len() > 1 {
        let what = "an offset belongs to one queue";
        return Err(Failure::usage(what).cure("name the queue with --queue").into());
    }

    let mut many = output.many(HEADER);
    let mut reader = Reader {
        client: &client,
        args: &args,
        filter: &filter,
        left: args.count.unwrap_or(u64::MAX),
        epoch: None,
        progress: Progress::beside_results("messages read"),
    };
    for queue in queues {
        reader.read(queue, &mut many).await?;
        if reader.left == 0 {
            break;
        }
    }
    drop(reader);
    let none = many.count() == 0;
    many.finish()?;
    match &args.group {
        _ if !none => {}
        Some(group) => say(format_args!("nothing new for {group} in {}", args.topic)),
        None => say(format_args!("no messages in {}", args.topic)),
    }
    Ok(())
}

/// All queues of the topic, and where to begin in each.
async fn queues(client: &Client, args: &PullArgs) -> anyhow::Result<Vec<Queue>> {
    if let Some(group) = &args.group {
        let progress = match args.commit {
            true => begin(client, group, &args.topic).await?,
            false => patiently(|| client.progress(group, &args.topic)).await?,
        };
        return Ok(progress.iter().map(Queue::from).collect());
    }
    let topic = patiently(|| client.describe_topic(&args.topic)).await?;
    let stored_then = match args.from {
        Position::Time(_) => patiently(|| client.offsets_at(&args.topic, args.from)).await?,
        _ => Vec::new(),
    };
    let mut stored_then = stored_then.into_iter().map(|(_, offset)| offset);
    let queue = |(id, range): (QueueId, OffsetRange)| Queue {
        id,
        range,
        start: match args.from {
            Position::Earliest => range.min,
            Position::Latest => range.max,
            Position::Offset(offset) => offset,
            // A queue that came in between is read from its begin.
            Position::Time(_) => stored_then.next().unwrap_or(range.min),
        },
        committed: None,
    };
    Ok(topic.queues.into_iter().map(queue).collect())
}

impl From<&QueueProgress> for Queue {
    fn from(progress: &QueueProgress) -> Self {
        let QueueProgress { queue, range, committed, next, .. } = *progress;
        Self { id: queue, range, start: next, committed }
    }
}

/// Where a group is in all queues, committed: if it has nothing in some of them yet, their initial positions are.
async fn begin(client: &Client, group: &str, topic: &str) -> anyhow::Result<Vec<QueueProgress>> {
    loop {
        let mut progress = patiently(|| client.progress(group, topic)).await?;
        // What comes later the group has all of.
        let known_queues = u32::try_from(progress.len()).ok();
        let new = progress.iter().filter(|queue| queue.committed.is_none());
        let commits: Vec<_> = new
            .map(|queue| NewCommit {
                topic,
                queue: queue.queue,
                offset: queue.next,
                expected: Expected::Nothing,
                known_queues,
            })
            .collect();
        let mut is_begun = true;
        for commits in commits.chunks(COMMIT) {
            match patiently(|| client.commit(group, commits)).await {
                Ok(()) => {}
                // Another reader has begun; the group is where he began.
                Err(error) if error.reason() == Some(Reason::Conflict) => is_begun = false,
                Err(error) => return Err(error.into()),
            }
        }
        if is_begun {
            for queue in &mut progress {
                queue.committed = Some(queue.next);
            }
            return Ok(progress);
        }
    }
}

struct Reader<'a> {
    client: &'a Client,
    args: &'a PullArgs,
    filter: &'a TagFilter,
    /// Messages still wanted.
    left: u64,
    /// Of the newest answer.
    epoch: Option<Epoch>,
    progress: Progress,
}

impl Reader<'_> {
    /// Reads one queue to its end, or until enough is read.
    async fn read(&mut self, queue: Queue, many: &mut Many<'_>) -> anyhow::Result<()> {
        let Queue { id: queue, range, start: mut offset, mut committed } = queue;
        let mut end = range.max;
        // The broker may refuse a place that was named, and a group, also where there is nothing to read.
        let mut asked_for =
            matches!(self.args.from, Position::Offset(_)) || self.args.group.is_some();
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
                group: self.args.group.as_deref(),
                topic: &self.args.topic,
                queue,
                offset,
                max_messages: Some(u32::try_from(self.left).unwrap_or(PAGE).min(PAGE)),
                max_bytes: None,
                wait,
                tags: &self.args.tags,
                filter: self.filter,
                epoch: self.epoch,
            };
            match patiently(|| self.client.pull(&pull)).await {
                Ok(pulled) => {
                    asked_for = false;
                    self.epoch = Some(pulled.epoch);
                    let moved = pulled.next_offset > offset;
                    for message in &pulled.messages {
                        if self.left == 0 {
                            break;
                        }
                        many.push(&Shown(message))?;
                        self.left -= 1;
                        self.progress.add(1);
                        if self.left == 0 {
                            let next = message.queue_offset.plus(1);
                            return self.commit(queue, next, &mut committed, many).await;
                        }
                    }
                    let next = offset.max(pulled.next_offset);
                    self.commit(queue, next, &mut committed, many).await?;
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
                    if let Some(refusal) = error.refusal() {
                        self.epoch = refusal.epoch.or(self.epoch);
                    }
                    end = end.max(next);
                    offset = next;
                    self.commit(queue, next, &mut committed, many).await?;
                }
            }
        }
    }

    /// Commits that the group goes on at `next`, if it is to be committed and is not, after all that was printed has
    /// left.
    async fn commit(
        &self,
        queue: QueueId,
        next: QueueOffset,
        committed: &mut Option<QueueOffset>,
        many: &mut Many<'_>,
    ) -> anyhow::Result<()> {
        let Some(group) = self.args.group.as_deref().filter(|_| self.args.commit) else {
            return Ok(());
        };
        if *committed == Some(next) {
            return Ok(());
        }
        many.flush()?;
        let expected = committed.map_or(Expected::Nothing, Expected::Offset);
        let commit = [NewCommit {
            topic: &self.args.topic,
            queue,
            offset: next,
            expected,
            known_queues: None,
        }];
        patiently(|| self.client.commit(group, &commit)).await?;
        *committed = Some(next);
        Ok(())
    }

    /// Where to go on behind what cannot be read.
    fn behind(
        &self,
        error: &ClientError,
        queue: QueueId,
        offset: QueueOffset,
    ) -> Option<QueueOffset> {
        if let ClientError::BadAnswer { source, .. } = error
            && let AnswerError::Decompression { first_offset, count, source: fault } = source
            // What another build of this program can read is not passed over.
            && matches!(fault, BatchError::Decompression { .. })
        {
            let next = first_offset.plus(u64::from(*count));
            say(format_args!(
                "unreadable: queue {queue}, offsets {first_offset} to {} are skipped: {fault}",
                next.get() - 1
            ));
            return Some(next);
        }
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
            Reason::Truncated => {
                let next = refusal.next_offset.filter(|next| *next < offset)?;
                say(format_args!(
                    "lost: queue {queue}, offsets {next} to {} were read and did not survive an unclean stop of the \
                     broker; what is there now is read from {next} on",
                    offset.get() - 1
                ));
                Some(next)
            }
            Reason::OffsetOutOfRange if !matches!(self.args.from, Position::Offset(_)) => {
                let min = refusal.range.map(|range| range.min).filter(|min| *min > offset)?;
                if self.args.group.is_some() {
                    say(format_args!(
                        "gone: queue {queue}, offsets {offset} to {} are not kept any more",
                        min.get() - 1
                    ));
                }
                Some(min)
            }
            _ => None,
        }
    }
}
