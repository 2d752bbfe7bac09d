//! `mainstem store verify`: of a stopped store here, of a running one by its broker.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::Args;
use serde::Serialize;

use super::explain;
use crate::cli::error::{Exit, Failure};
use crate::cli::output::{Format, Output, OutputError, Progress, Row, fields, say, table};
use crate::cli::{Connection, patiently};
use crate::client::{self, VerifyEvent};
use crate::offline::{self, Verifier};

/// Findings that one JSON document lists; `jsonl` lists all.
const MAX_LISTED: usize = 100_000;

/// What to verify.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The data directory of a broker that is stopped [default: ask the broker at --server]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Read at most so many bytes a second, like 50MiB [default: as fast as it goes; 64 MiB of a running broker]
    #[arg(long, value_name = "SIZE")]
    rate: Option<ByteSize>,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  mainstem store verify                      the store of a running broker
  mainstem store verify --data ./data        a stopped one, as fast as it goes
  mainstem store verify --rate 10MiB -o jsonl

Kinds: damaged (bytes of the log that hold no sound record), lost (messages in them), refused (the
disk does not give the bytes), disordered (sound records contradict each other), derived (a file
that is made again from the log), redundant (a page or copy for which another stands in), remark.";

/// What a running broker reads a second unless told otherwise: it has clients too.
const ONLINE_RATE: u64 = 64 << 20;

/// Runs the command.
pub(super) async fn run(
    args: VerifyArgs,
    connection: &Connection,
    output: &mut Output,
) -> anyhow::Result<()> {
    let mut report = Report::new(output);
    let summary = match &args.data {
        Some(data) => {
            let instead = "or leave out --data: then the broker verifies its own store";
            let store = offline::open(data).map_err(|error| explain(&error, Some(instead)))?;
            of_stopped(
                Verifier::of_stopped(store),
                args.rate.map_or(0, |rate| rate.0),
                &mut report,
            )?
        }
        None => {
            let rate = args.rate.map_or(ONLINE_RATE, |rate| rate.0);
            of_running(connection, rate, &mut report).await?
        }
    };
    report.finish(&summary)?;
    if summary.sound {
        return Ok(());
    }
    let cure = match args.data {
        Some(_) => {
            "damaged records stay lost, all else is served; `mainstem store rebuild` makes derived \
             files again, `mainstem store repair` gives up what is damaged"
        }
        None => "damaged records stay lost, all else is served; derived files are made again now",
    };
    Err(Failure::new(Exit::Failed, "the store is not sound").cure(cure).into())
}

/// Steps a verification to its end. Blocks.
fn of_stopped(
    mut verifier: Verifier,
    rate: u64,
    report: &mut Report<'_>,
) -> anyhow::Result<Summary> {
    let progress = Progress::start("verifying, bytes of the log", Some(verifier.log_len()));
    let mut shown = 0;
    loop {
        let verified = verifier.step();
        for finding in verified.findings {
            report.push(Finding::from(finding))?;
        }
        let done = verifier.summary().log_bytes;
        progress.add(done.saturating_sub(shown));
        shown = done;
        if verified.is_over {
            return Ok(Summary::from(verifier.summary()));
        }
        if rate > 0 {
            let pause = verified.bytes as f64 / rate as f64;
            std::thread::sleep(std::time::Duration::from_secs_f64(pause));
        }
    }
}

async fn of_running(
    connection: &Connection,
    rate: u64,
    report: &mut Report<'_>,
) -> anyhow::Result<Summary> {
    let client = connection.open().await?;
    let mut verification = patiently(|| client.verify_store(rate)).await?;
    let mut progress: Option<(Progress, u64)> = None;
    while let Some(event) = verification.next().await? {
        match event {
            VerifyEvent::Progress { done, total } => {
                let (bar, shown) = progress.get_or_insert_with(|| {
                    (Progress::start("verifying, bytes of the log", Some(total)), 0)
                });
                bar.add(done.saturating_sub(*shown));
                *shown = done;
            }
            VerifyEvent::Found(finding) => report.push(Finding::from(finding))?,
            VerifyEvent::Done(summary) => return Ok(Summary::from(summary)),
        }
    }
    Err(Failure::new(Exit::Failed, "the broker ended the verification before its end").into())
}

#[derive(Serialize)]
struct Finding {
    kind: String,
    file: String,
    begin: Option<u64>,
    end: Option<u64>,
    topic_id: Option<u64>,
    queue: Option<u32>,
    first_offset: Option<u64>,
    next_offset: Option<u64>,
    what: String,
}

const HEADER: &[&str] = &["KIND", "FILE", "BYTES", "TOPIC", "QUEUE", "OFFSETS", "WHAT"];

impl Row for Finding {
    fn cells(&self) -> Vec<String> {
        let range = |range: Option<(u64, u64)>| {
            range.map_or_else(String::new, |(begin, end)| format!("{begin}..{end}"))
        };
        let number = |number: Option<u64>| number.map_or_else(String::new, |n| n.to_string());
        vec![
            self.kind.clone(),
            self.file.clone(),
            range(self.begin.zip(self.end)),
            number(self.topic_id),
            number(self.queue.map(u64::from)),
            range(self.first_offset.zip(self.next_offset)),
            self.what.clone(),
        ]
    }
}

impl From<offline::Finding> for Finding {
    fn from(finding: offline::Finding) -> Self {
        let offline::Finding { kind, file, range, queue, offsets, what } = finding;
        client::Finding { kind: kind.as_str().to_owned(), file, range, queue, offsets, what }.into()
    }
}

impl From<client::Finding> for Finding {
    fn from(finding: client::Finding) -> Self {
        Self {
            kind: finding.kind,
            file: finding.file,
            begin: finding.range.as_ref().map(|range| range.start.get()),
            end: finding.range.as_ref().map(|range| range.end.get()),
            topic_id: finding.queue.map(|queue| queue.topic.get()),
            queue: finding.queue.map(|queue| queue.queue.get()),
            first_offset: finding.offsets.as_ref().map(|offsets| offsets.start.get()),
            next_offset: finding.offsets.as_ref().map(|offsets| offsets.end.get()),
            what: finding.what,
        }
    }
}

#[derive(Serialize)]
struct Summary {
    sound: bool,
    segments: u64,
    records: u64,
    messages: u64,
    log_bytes: u64,
    derived_files: u64,
    damaged: u64,
    damaged_bytes: u64,
    refused: u64,
    disordered: u64,
    derived: u64,
    redundant: u64,
}

impl From<&offline::VerifySummary> for Summary {
    fn from(summary: &offline::VerifySummary) -> Self {
        let offline::VerifySummary {
            segments,
            records,
            messages,
            log_bytes,
            derived_files,
            damaged,
            damaged_bytes,
            refused,
            disordered,
            derived,
            redundant,
        } = *summary;
        client::VerifySummary {
            segments,
            records,
            messages,
            log_bytes,
            derived_files,
            damaged,
            damaged_bytes,
            refused,
            disordered,
            derived,
            redundant,
        }
        .into()
    }
}

impl From<client::VerifySummary> for Summary {
    fn from(summary: client::VerifySummary) -> Self {
        let wrong = summary.damaged
            + summary.refused
            + summary.disordered
            + summary.derived
            + summary.redundant;
        Self {
            sound: wrong == 0,
            segments: summary.segments,
            records: summary.records,
            messages: summary.messages,
            log_bytes: summary.log_bytes,
            derived_files: summary.derived_files,
            damaged: summary.damaged,
            damaged_bytes: summary.damaged_bytes,
            refused: summary.refused,
            disordered: summary.disordered,
            derived: summary.derived,
            redundant: summary.redundant,
        }
    }
}

impl Summary {
    fn table(&self) -> String {
        let mut pairs = vec![
            ("sound", if self.sound { "yes" } else { "no" }.to_owned()),
            ("segments", format!("{}, {} bytes of the log read", self.segments, self.log_bytes)),
            ("records", format!("{} with {} messages", self.records, self.messages)),
            ("queue and index files", format!("{} sound", self.derived_files)),
        ];
        let places =
            |count: u64| format!("{count} {}", if count == 1 { "place" } else { "places" });
        for (name, count) in [
            ("refused", self.refused),
            ("disordered", self.disordered),
            ("derived", self.derived),
            ("redundant", self.redundant),
        ] {
            if count > 0 {
                pairs.push((name, places(count)));
            }
        }
        if self.damaged > 0 {
            let text = format!("{}, {} bytes", places(self.damaged), self.damaged_bytes);
            pairs.push(("damaged", text));
        }
        fields(pairs)
    }
}

/// What is written of a verification. With `jsonl` findings are written as they come; a table and a JSON document at
/// the end, so that the summary belongs to them.
struct Report<'a> {
    output: &'a mut Output,
    listed: Vec<Finding>,
    not_listed: u64,
}

#[derive(Serialize)]
struct Document<'a> {
    findings: &'a [Finding],
    not_listed: u64,
    summary: &'a Summary,
}

#[derive(Serialize)]
struct SummaryLine<'a> {
    summary: &'a Summary,
}

impl<'a> Report<'a> {
    fn new(output: &'a mut Output) -> Self {
        Self { output, listed: Vec::new(), not_listed: 0 }
    }

    fn push(&mut self, finding: Finding) -> Result<(), OutputError> {
        if self.output.format() == Format::Jsonl {
            return self.output.line(&finding);
        }
        if self.listed.len() < MAX_LISTED {
            self.listed.push(finding);
        } else {
            self.not_listed += 1;
        }
        Ok(())
    }

    fn finish(self, summary: &Summary) -> Result<(), OutputError> {
        let Self { output, listed, not_listed } = self;
        match output.format() {
            Format::Jsonl => output.line(&SummaryLine { summary }),
            Format::Json => {
                output.one(&Document { findings: &listed, not_listed, summary }, String::new)
            }
            Format::Table => {
                let mut text = String::new();
                if !listed.is_empty() {
                    text = table(HEADER, listed.iter().map(Row::cells).collect());
                    text.push_str("\n\n");
                }
                text.push_str(&summary.table());
                output.one(summary, || text)?;
                if not_listed > 0 {
                    say(format_args!("{not_listed} more findings; -o jsonl lists all of them"));
                }
                Ok(())
            }
        }
    }
}
