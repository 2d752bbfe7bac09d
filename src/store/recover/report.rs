//! What a start found and did, for operators.

use std::ops::Range;
use std::path::PathBuf;

use crate::format::epoch::{Lost, LostQueue};
use crate::message::{Epoch, PhysicalOffset, Timestamp, TopicId};

/// Of the queues that lost messages, so many are named to people.
const NAMED_QUEUES: usize = 8;

/// What a start found and did. Printed at every start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartReport {
    /// Whether the store was made by this start.
    pub created: bool,
    /// Whether the last stop was a clean one.
    pub clean: bool,
    /// The epoch that began.
    pub epoch: Epoch,
    /// Segments found.
    pub segments: usize,
    /// Where the walk began.
    pub replayed_from: PhysicalOffset,
    /// Records that were walked and verified.
    pub replayed_records: u64,
    /// Their bytes.
    pub replayed_bytes: u64,
    /// The tail that was cut off: where, how many bytes, and why.
    pub cut: Option<TailCut>,
    /// The messages in that tail that could be read.
    pub lost: Option<Lost>,
    /// Byte ranges that were acknowledged and cannot be read.
    pub damaged: Vec<Range<PhysicalOffset>>,
    /// State records may be among the damaged ones: topics may be missing, and what groups have done.
    pub damage_may_hold_state: bool,
    /// Sealed segments whose queue or index file has to be made again, in the background.
    pub rebuilding: usize,
    /// Anything else that an operator should know, a line each.
    pub remarks: Vec<String>,
}

/// A torn tail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailCut {
    /// The new end of the log.
    pub at: PhysicalOffset,
    /// Bytes from there to the last one that was not zero.
    pub len: u64,
    /// What was wrong there.
    pub reason: String,
    /// Where the bytes were kept.
    pub kept_in: Option<PathBuf>,
}

impl std::fmt::Display for StartReport {
    /// One line per fact.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lines: Vec<String> = self.lines(|_| None).iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// A line of the report for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReportLine {
    /// What was done.
    Done(String),
    /// What is lost: to be looked at.
    Damage(String),
}

impl std::fmt::Display for ReportLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Done(text) | Self::Damage(text) => f.write_str(text),
        }
    }
}

impl StartReport {
    /// The report as lines for people. `name` is the name of a topic, if it is known.
    pub fn lines(&self, name: impl Fn(TopicId) -> Option<String>) -> Vec<ReportLine> {
        let mut lines = Vec::new();
        let done = ReportLine::Done;
        if self.created {
            lines.push(done(format!("new store, epoch {}", self.epoch)));
        } else {
            let stop = if self.clean { "a clean stop" } else { "an unclean stop" };
            lines.push(done(format!(
                "opened after {stop}, epoch {}: segments: {}, replayed {} records ({} bytes) from offset {}",
                self.epoch,
                self.segments,
                self.replayed_records,
                self.replayed_bytes,
                self.replayed_from
            )));
        }
        if let Some(cut) = &self.cut {
            let kept = cut.kept_in.as_ref().map(|path| format!(", kept in {}", path.display()));
            lines.push(done(format!(
                "cut a torn tail of {} bytes at offset {} ({}){}; nothing durable was in it",
                cut.len,
                cut.at,
                cut.reason,
                kept.unwrap_or_default()
            )));
        }
        if let Some(lost) = &self.lost {
            let place = |row: &LostQueue| {
                let topic = name(row.topic).unwrap_or_else(|| format!("#{}", row.topic));
                let (queue, times) = (row.queue, times(row.first, row.last));
                format!("{} in {topic}/{queue} ({times})", row.messages)
            };
            let named: Vec<_> = lost.queues.iter().take(NAMED_QUEUES).map(place).collect();
            let more = lost.queue_count.saturating_sub(named.len() as u64);
            let more =
                if more > 0 { format!(", and in {more} more queues") } else { String::new() };
            lines.push(ReportLine::Damage(format!(
                "LOST: {} messages that were written and not durable, behind the log's end: {}{more}; readers that \
                 had them are told TRUNCATED",
                lost.messages,
                named.join(", "),
            )));
        }
        for range in &self.damaged {
            lines.push(ReportLine::Damage(format!(
                "DAMAGED: bytes {}..{} of the log cannot be read; reads of them say so, all else is served",
                range.start, range.end
            )));
        }
        if self.damage_may_hold_state {
            let text = "the damage may have held state: a topic may be missing, and groups may get messages again \
                        that they have acknowledged";
            lines.push(ReportLine::Damage(text.to_owned()));
        }
        if self.rebuilding > 0 {
            lines.push(done(format!(
                "rebuilding the queue and index files of {} segments in the background",
                self.rebuilding
            )));
        }
        lines.extend(self.remarks.iter().cloned().map(done));
        lines
    }
}

fn times(first: Timestamp, last: Timestamp) -> String {
    format!("store time {first} to {last} ms")
}
