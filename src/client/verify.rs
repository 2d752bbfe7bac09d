//! A verification of the broker's store, event by event.

use std::ops::Range;

use super::{AnswerError, Client, ClientError};
use crate::message::{PhysicalOffset, QueueId, QueueKey, QueueOffset, TopicId};
use crate::proto;
use crate::proto::verify_store_response::Event;

/// Something that a verification found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong, in one word; the protocol lists them.
    pub kind: String,
    /// The file, from the broker's data directory on.
    pub file: String,
    /// Which bytes of the log, if it is about some.
    pub range: Option<Range<PhysicalOffset>>,
    /// Whose messages, where known.
    pub queue: Option<QueueKey>,
    /// Which of them, where known.
    pub offsets: Option<Range<QueueOffset>>,
    /// The reason, for people.
    pub what: String,
}

/// What a verification read and found, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifySummary {
    /// Segments read.
    pub segments: u64,
    /// Sound records.
    pub records: u64,
    /// Messages in them.
    pub messages: u64,
    /// Bytes of the log that were read.
    pub log_bytes: u64,
    /// Queue and index files that are sound.
    pub derived_files: u64,
    /// Places of the log that are damaged.
    pub damaged: u64,
    /// Bytes of them.
    pub damaged_bytes: u64,
    /// Places that the disk does not give.
    pub refused: u64,
    /// Contradictions between sound records.
    pub disordered: u64,
    /// Derived files that are wrong.
    pub derived: u64,
    /// Redundant pages and copies that are damaged.
    pub redundant: u64,
}

/// What a verification tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VerifyEvent {
    /// How far it is.
    Progress {
        /// Bytes of the log read.
        done: u64,
        /// Bytes of the log to be read.
        total: u64,
    },
    /// Something was found.
    Found(Finding),
    /// All is read: the last event.
    Done(VerifySummary),
}

/// A verification under way. Dropping it ends it.
#[derive(Debug)]
pub struct Verification {
    client: Client,
    events: tonic::Streaming<proto::VerifyStoreResponse>,
}

impl Client {
    /// Begins a verification of all that the broker's store has flushed, at a rate if `bytes_per_second` is not 0.
    ///
    /// # Errors
    /// Refusals: `Overloaded` while another one runs, `Draining`.
    pub async fn verify_store(&self, bytes_per_second: u64) -> Result<Verification, ClientError> {
        // No deadline: a large store takes hours.
        let request = proto::VerifyStoreRequest { bytes_per_second };
        let answer = self.admin.clone().verify_store(request).await;
        Ok(Verification { client: self.clone(), events: self.answer(answer)? })
    }
}

impl Verification {
    /// What it tells next; `None` behind the summary.
    ///
    /// # Errors
    /// Refusal: `Draining`, when the broker stops.
    pub async fn next(&mut self) -> Result<Option<VerifyEvent>, ClientError> {
        let client = &self.client;
        let answer = self.events.message().await;
        let Some(answer) =
            answer.map_err(|status| ClientError::from_status(client.server(), status))?
        else {
            return Ok(None);
        };
        let missing = || client.bad_answer(AnswerError::Missing { field: "event" });
        Ok(Some(match answer.event.ok_or_else(missing)? {
            Event::Progress(progress) => {
                VerifyEvent::Progress { done: progress.done, total: progress.total }
            }
            Event::Finding(finding) => VerifyEvent::Found(found(finding)),
            Event::Summary(summary) => VerifyEvent::Done(VerifySummary {
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
            }),
        }))
    }
}

fn found(finding: proto::VerifyFinding) -> Finding {
    let queue = finding
        .topic_id
        .zip(finding.queue)
        .map(|(topic, queue)| QueueKey { topic: TopicId::new(topic), queue: QueueId::new(queue) });
    Finding {
        kind: finding.kind,
        file: finding.file,
        range: finding
            .range
            .map(|range| PhysicalOffset::new(range.begin)..PhysicalOffset::new(range.end)),
        queue,
        offsets: finding
            .offsets
            .map(|range| QueueOffset::new(range.min)..QueueOffset::new(range.max)),
        what: finding.what,
    }
}
