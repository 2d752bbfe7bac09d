//! `mainstem offset`: show, commit and reset the offsets of a consumer group, and who did.

use clap::{Args, Subcommand};
use serde::Serialize;

use super::error::{Exit, Failure};
use super::output::{Output, Row, say, table};
use super::{Connection, patiently, time};
use crate::client::{
    ChangeKind, ClientError, Expected, NewCommit, OffsetChange, Position, QueueProgress, Reason,
    Reset, Run,
};
use crate::message::{QueueId, QueueOffset};

/// The longest name of a person, in bytes.
const MAX_NAME: usize = 128;

/// Show, commit and reset the offsets of a consumer group, and who did
#[derive(Debug, Subcommand)]
pub(crate) enum OffsetCommand {
    /// Show how far a group is in the queues of a topic
    ///
    /// LAG counts from the committed offset to the end; where nothing is committed, from the first message.
    Show(Of),
    /// Commit the next offset to consume
    #[command(after_help = COMMIT_EXAMPLES)]
    Commit(CommitArgs),
    /// Move a group to another place in a topic, all queues at once
    #[command(after_help = RESET_EXAMPLES)]
    Reset(ResetArgs),
    /// Show what moved a group in a topic, newest first
    ///
    /// Resets, commits that went back, and every `offset commit`. Of each queue the last 100, none older than 7 days.
    /// OLD is how far the readers had come; their own commits are not listed. BY is what the caller said, ADDRESS is
    /// where the request came from.
    #[command(after_help = HISTORY_EXAMPLES)]
    History(HistoryArgs),
}

const HISTORY_EXAMPLES: &str = "\
Examples:
  mainstem offset history -g billing -t orders
  mainstem offset history -g billing -t orders --queue 0 -o jsonl";

const COMMIT_EXAMPLES: &str = "\
Examples:
  mainstem offset commit -g billing -t orders --queue 0 --offset 4711
  mainstem offset commit -g billing -t orders --queue 0 --offset 4711 --expected 4700";

const RESET_EXAMPLES: &str = "\
Examples:
  mainstem offset reset -g billing -t orders --to earliest
  mainstem offset reset -g billing -t orders --to '2h ago' --dry-run
  mainstem offset reset -g billing -t orders --to 4711 --queue 0";

/// A group in a topic.
#[derive(Debug, Args)]
pub(crate) struct Of {
    /// The consumer group
    #[arg(short, long)]
    group: String,
    /// The topic
    #[arg(short, long)]
    topic: String,
}

/// What to commit.
#[derive(Debug, Args)]
pub(crate) struct CommitArgs {
    #[command(flatten)]
    of: Of,
    /// The queue
    #[arg(long, value_name = "N")]
    queue: u32,
    /// The next offset to consume
    #[arg(long, value_name = "N")]
    offset: u64,
    /// Only if this offset is committed now
    #[arg(long, value_name = "N")]
    expected: Option<u64>,
    #[command(flatten)]
    by: ByArgs,
}

/// What to reset, and to what.
#[derive(Debug, Args)]
pub(crate) struct ResetArgs {
    #[command(flatten)]
    of: Of,
    /// Where to: earliest, latest, an offset, or a time like 2026-07-01T12:00:00Z, 10m or 2h ago
    #[arg(long, value_name = "PLACE", value_parser = position)]
    to: Position,
    /// Only this queue [default: all]
    #[arg(long, value_name = "N")]
    queue: Option<u32>,
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    by: ByArgs,
}

/// Whose moves to show.
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    #[command(flatten)]
    of: Of,
    /// Only this queue [default: all]
    #[arg(long, value_name = "N")]
    queue: Option<u32>,
}

/// Who does it.
#[derive(Debug, Args)]
struct ByArgs {
    /// Who does it, for `offset history` [default: USER@HOST]
    #[arg(long, value_name = "TEXT")]
    by: Option<String>,
}

impl ByArgs {
    /// What was given, or the user and the machine as they call themselves. The broker checks the one; the other is
    /// made to fit, since nobody typed it.
    fn name(&self) -> String {
        if let Some(by) = &self.by {
            return by.clone();
        }
        let user = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let said = |text: &str| if text.is_empty() { "unknown" } else { text }.to_owned();
        let user = said(user.unwrap_or_default().trim());
        let name = format!("{user}@{}", said(host.trim()));
        let mut len = 0;
        let fits = name.chars().filter(|c| !c.is_control()).take_while(|c| {
            len += c.len_utf8();
            len <= MAX_NAME
        });
        fits.collect()
    }
}

/// Reads a place in a queue.
pub(crate) fn position(text: &str) -> Result<Position, &'static str> {
    match text {
        "earliest" => return Ok(Position::Earliest),
        "latest" => return Ok(Position::Latest),
        _ => {}
    }
    if let Ok(offset) = text.parse() {
        return Ok(Position::Offset(QueueOffset::new(offset)));
    }
    let time = time::moment_from_now(text).map(Position::Time);
    time.map_err(|_| "give earliest, latest, an offset, or a time like 2026-07-01T12:00:00Z or 10m")
}

/// Runs the command.
pub(crate) async fn run(
    command: OffsetCommand,
    connection: &Connection,
    output: &mut Output,
) -> anyhow::Result<()> {
    let client = connection.open().await?;
    match command {
        OffsetCommand::Show(Of { group, topic }) => {
            let queues = patiently(|| client.progress(&group, &topic)).await?;
            let mut many = output.many(PROGRESS);
            for queue in &queues {
                many.push(&Shown::new(&topic, queue))?;
            }
            many.finish()?;
        }
        OffsetCommand::Commit(CommitArgs { of, queue, offset, expected, by }) => {
            let commit = NewCommit {
                topic: &of.topic,
                queue: QueueId::new(queue),
                offset: QueueOffset::new(offset),
                expected: expected
                    .map_or(Expected::Any, |offset| Expected::Offset(QueueOffset::new(offset))),
                known_queues: None,
            };
            let commit = [commit];
            let by = by.name();
            patiently(|| client.commit_by(&of.group, &commit, &by)).await.map_err(told)?;
            let (group, topic) = (&of.group, &of.topic);
            let shown = ShownCommit { group, topic, queue, committed: offset };
            output.one(&shown, || format!("committed {offset} in queue {queue} of {topic}"))?;
        }
        OffsetCommand::Reset(ResetArgs { of, to, queue, dry_run, by }) => {
            let queue = queue.map(QueueId::new);
            let run = if dry_run { Run::Dry } else { Run::Real };
            let (group, topic) = (&of.group, &of.topic);
            let by = by.name();
            let reset = patiently(|| client.reset(group, topic, queue, to, run, &by));
            let reset = reset.await.map_err(told)?;
            let shown = ShownReset::new(group, topic, dry_run, &reset);
            output.one(&shown, || shown.table())?;
        }
        OffsetCommand::History(HistoryArgs { of: Of { group, topic }, queue }) => {
            let queue = queue.map(QueueId::new);
            let mut many = output.many(HISTORY);
            let mut last: Option<OffsetChange> = None;
            loop {
                let page =
                    patiently(|| client.offset_history(&group, &topic, queue, last.as_ref()));
                let (changes, more) = page.await?;
                for change in &changes {
                    many.push(&ShownChange::new(&topic, change))?;
                }
                last = changes.into_iter().last();
                if !more || last.is_none() {
                    break;
                }
            }
            let none = many.count() == 0;
            many.finish()?;
            if none {
                let none = "within the last 7 days";
                say(format_args!("nothing but its readers moved {group} in {topic} {none}"));
            }
        }
    }
    Ok(())
}

/// What an offset outside of a queue means here.
fn told(error: ClientError) -> anyhow::Error {
    let Some(refusal) = error.refusal() else { return error.into() };
    match (refusal.reason, refusal.range) {
        (Reason::OffsetOutOfRange, Some(range)) => {
            let cure = format!("give one from {} to {}", range.min, range.max);
            Failure::new(Exit::Failed, refusal.to_string()).cure(cure).into()
        }
        _ => error.into(),
    }
}

/// The columns of [`progress_cells`].
pub(super) const PROGRESS: &[&str] = &["QUEUE", "MIN", "MAX", "COMMITTED", "LAG"];

/// How far a group is in a queue, as a row.
pub(super) fn progress_cells(progress: &QueueProgress) -> Vec<String> {
    vec![
        progress.queue.to_string(),
        progress.range.min.to_string(),
        progress.range.max.to_string(),
        or_none(progress.committed),
        progress.lag.to_string(),
    ]
}

fn or_none(offset: Option<QueueOffset>) -> String {
    offset.map_or_else(|| "none".to_owned(), |offset| offset.to_string())
}

#[derive(Serialize)]
struct Shown<'a> {
    topic: &'a str,
    queue: u32,
    min: u64,
    max: u64,
    committed: Option<u64>,
    next: u64,
    lag: u64,
    #[serde(skip)]
    cells: Vec<String>,
}

impl<'a> Shown<'a> {
    fn new(topic: &'a str, progress: &QueueProgress) -> Self {
        Self {
            topic,
            queue: progress.queue.get(),
            min: progress.range.min.get(),
            max: progress.range.max.get(),
            committed: progress.committed.map(QueueOffset::get),
            next: progress.next.get(),
            lag: progress.lag,
            cells: progress_cells(progress),
        }
    }
}

impl Row for Shown<'_> {
    fn cells(&self) -> Vec<String> {
        self.cells.clone()
    }
}

/// The columns of a change.
const HISTORY: &[&str] = &["TIME", "QUEUE", "KIND", "OLD", "NEW", "BY", "ADDRESS"];

#[derive(Serialize)]
struct ShownChange<'a> {
    topic: &'a str,
    queue: u32,
    time: String,
    kind: &'static str,
    old: Option<u64>,
    new: u64,
    by: Option<&'a str>,
    address: Option<&'a str>,
    position: u64,
}

impl<'a> ShownChange<'a> {
    fn new(topic: &'a str, change: &'a OffsetChange) -> Self {
        Self {
            topic,
            queue: change.queue.get(),
            time: time::render(change.time),
            kind: match change.kind {
                ChangeKind::Commit => "commit",
                ChangeKind::Rewind => "rewind",
                ChangeKind::Reset => "reset",
            },
            old: change.old.map(QueueOffset::get),
            new: change.new.get(),
            by: change.by.as_deref(),
            address: change.address.as_deref(),
            position: change.position.get(),
        }
    }
}

impl Row for ShownChange<'_> {
    fn cells(&self) -> Vec<String> {
        vec![
            self.time.clone(),
            self.queue.to_string(),
            self.kind.to_owned(),
            or_none(self.old.map(QueueOffset::new)),
            self.new.to_string(),
            self.by.unwrap_or_default().to_owned(),
            self.address.unwrap_or_default().to_owned(),
        ]
    }
}

#[derive(Serialize)]
struct ShownCommit<'a> {
    group: &'a str,
    topic: &'a str,
    queue: u32,
    committed: u64,
}

#[derive(Serialize)]
struct ShownReset<'a> {
    group: &'a str,
    topic: &'a str,
    dry_run: bool,
    again: u64,
    skipped: u64,
    queue: Vec<ShownResetQueue>,
}

#[derive(Serialize)]
struct ShownResetQueue {
    queue: u32,
    min: u64,
    max: u64,
    old: Option<u64>,
    new: u64,
}

impl<'a> ShownReset<'a> {
    fn new(group: &'a str, topic: &'a str, dry_run: bool, reset: &Reset) -> Self {
        let queues = reset.queues.iter().map(|row| ShownResetQueue {
            queue: row.queue.get(),
            min: row.range.min.get(),
            max: row.range.max.get(),
            old: row.old.map(QueueOffset::get),
            new: row.new.get(),
        });
        let Reset { again, skipped, .. } = *reset;
        Self { group, topic, dry_run, again, skipped, queue: queues.collect() }
    }

    fn table(&self) -> String {
        let rows = self.queue.iter().map(|row| {
            vec![
                row.queue.to_string(),
                row.min.to_string(),
                row.max.to_string(),
                or_none(row.old.map(QueueOffset::new)),
                row.new.to_string(),
            ]
        });
        let rows = table(&["QUEUE", "MIN", "MAX", "OLD", "NEW"], rows.collect());
        let Self { again, skipped, .. } = self;
        let moved = format!("messages to come again: {again}, to be skipped: {skipped}");
        let dry = if self.dry_run { " (a dry run: nothing is changed)" } else { "" };
        format!("{rows}\n\n{moved}{dry}")
    }
}
