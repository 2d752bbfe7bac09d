//! The records of a part of the log, one by one, as a stopped store has them.
//!
//! A place in the middle of a record is followed by the next sound header. What holds no record is shown as a gap; the
//! unused end of a segment and the filler before it are not shown. Memory: one record, or one piece of the walk.

use std::ops::Range;

use super::offline::StoppedStore;
use crate::file::FileError;
use crate::format::DecodeError;
use crate::format::batch::Batch;
use crate::format::epoch::EpochRecord;
use crate::format::record::{ALIGN, HEADER_LEN, RecordHeader, RecordKind};
use crate::format::segment_header::PAGE_LEN;
use crate::format::state_record::transitions;
use crate::log::walk::{SegmentWalk, Step};
use crate::message::PhysicalOffset;

/// What stands at a place of the log.
#[derive(Clone, Debug)]
pub enum Dumped {
    /// A record with a sound header.
    Record {
        /// As it stands there.
        header: RecordHeader,
        /// What the record holds, or why it cannot be told.
        content: Result<Content, DecodeError>,
    },
    /// Bytes that hold no sound header.
    Gap {
        /// Which bytes.
        range: Range<PhysicalOffset>,
        /// What is wrong at their begin.
        reason: String,
    },
}

/// What a record holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Messages, in the order of the batch, and the number of the codec that compresses their bodies.
    Messages {
        /// 0: none.
        codec: u32,
        /// Without their bodies.
        messages: Vec<DumpedMessage>,
    },
    /// Changes of the broker's state, in words, one after the other. One that is not understood is the last.
    State(Vec<String>),
    /// The begin of an epoch, in words.
    Epoch(String),
}

/// A message without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpedMessage {
    /// That its producer gave.
    pub id: Option<String>,
    /// By which it is found.
    pub keys: Vec<String>,
    /// By which it is filtered.
    pub tag: Option<String>,
    /// With which it shares a queue.
    pub message_group: Option<String>,
    /// Of the body, uncompressed.
    pub body_len: u32,
}

/// A walk over the records of a stopped store, which stays locked meanwhile.
pub struct Dump {
    store: StoppedStore,
    range: Range<PhysicalOffset>,
    next_segment: usize,
    walk: Option<SegmentWalk>,
    /// The walk may stand in the middle of a record.
    is_searching: bool,
}

impl Dump {
    /// The records that begin in `range`.
    pub fn of(store: StoppedStore, range: Range<PhysicalOffset>) -> Self {
        Self { store, range, next_segment: 0, walk: None, is_searching: false }
    }

    /// Enters the next segment of the range. `false`: there is none.
    fn enter(&mut self) -> Result<bool, FileError> {
        while let Some(file) = self.store.segments.get(self.next_segment) {
            self.next_segment += 1;
            if file.end() <= self.range.start {
                continue;
            }
            if file.base >= self.range.end {
                return Ok(false);
            }
            let first = file.base.plus(PAGE_LEN as u64);
            let asked = PhysicalOffset::new(self.range.start.get().next_multiple_of(ALIGN));
            self.is_searching = asked > first;
            let segment = file.segment(&*self.store.disk)?;
            let salt = self.store.identity.salt(file.base);
            let from = asked.clamp(first, file.end());
            self.walk = Some(SegmentWalk::new(segment, salt, from));
            return Ok(true);
        }
        Ok(false)
    }

    /// Whether the next segment begins with a record, so that the log went on there. One that is ready has none yet;
    /// of one that cannot be read nothing is known.
    fn is_followed(&self) -> bool {
        let Some(file) = self.store.segments.get(self.next_segment) else { return false };
        let first = file.base.plus(PAGE_LEN as u64);
        let mut header = [0; HEADER_LEN];
        let read = file
            .segment(&*self.store.disk)
            .and_then(|segment| segment.read_exact(first, &mut header));
        let salt = self.store.identity.salt(file.base);
        read.is_ok() && RecordHeader::decode(&header, first, salt).is_ok()
    }

    fn advance(&mut self) -> Result<Option<Dumped>, FileError> {
        loop {
            let Some(walk) = &mut self.walk else {
                if self.enter()? {
                    continue;
                }
                return Ok(None);
            };
            let at = walk.at();
            if at >= self.range.end {
                return Ok(None);
            }
            let is_searching = std::mem::take(&mut self.is_searching);
            match walk.step()? {
                Step::End => self.walk = None,
                Step::Record { header, body } => {
                    let content = match body {
                        Ok(()) => content(&header, walk.body(&header)),
                        Err(reason) => Err(reason),
                    };
                    return Ok(Some(Dumped::Record { header, content }));
                }
                Step::Gap { end, reason, is_marked } => {
                    let refusal = walk.take_refusal().filter(|_| walk.is_unread(&(at..end)));
                    let is_last = self.store.segments.iter().any(|segment| segment.end() == end);
                    if is_last {
                        self.walk = None;
                    }
                    let is_free = is_marked && is_last && !self.is_followed();
                    if is_searching || is_free {
                        continue;
                    }
                    let reason =
                        refusal.map_or_else(|| reason.to_string(), |error| error.to_string());
                    return Ok(Some(Dumped::Gap { range: at..end, reason }));
                }
            }
        }
    }
}

impl Iterator for Dump {
    type Item = Result<Dumped, FileError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

fn content(header: &RecordHeader, body: &[u8]) -> Result<Content, DecodeError> {
    let payload = body.get(header.attributes_len as usize..).unwrap_or_default();
    Ok(match header.kind {
        RecordKind::Message => messages(payload),
        RecordKind::State => Content::State(
            transitions(payload)
                .map(|transition| match transition {
                    Ok(transition) => format!("{transition:?}"),
                    Err(reason) => reason.to_string(),
                })
                .collect(),
        ),
        RecordKind::Epoch => Content::Epoch(epoch(&EpochRecord::decode(payload)?)),
        RecordKind::Filler => Content::State(Vec::new()),
    })
}

/// The messages of a batch, as far as it can be walked.
fn messages(batch: &[u8]) -> Content {
    let Ok(batch) = Batch::parse(batch) else {
        return Content::Messages { codec: 0, messages: Vec::new() };
    };
    let metas = batch.metas().map_while(Result::ok);
    let messages = metas
        .map(|meta| DumpedMessage {
            id: meta.id().map(str::to_owned),
            keys: meta.keys().map(str::to_owned).collect(),
            tag: meta.tag().map(str::to_owned),
            message_group: meta.message_group().map(str::to_owned),
            body_len: meta.body_len(),
        })
        .collect();
    Content::Messages { codec: batch.codec(), messages }
}

fn epoch(record: &EpochRecord) -> String {
    let mut words = format!("epoch {} begins, format {}", record.epoch, record.format_version);
    if let Some(cut) = record.cut {
        words.push_str(&format!(", cut {} bytes at {}", cut.len, cut.at));
    }
    if let Some(lost) = &record.lost {
        let (messages, queues) = (lost.messages, lost.queue_count);
        words.push_str(&format!(", lost {messages} messages of {queues} queues with it"));
    }
    if record.damaged_count > 0 {
        words.push_str(&format!(", met {} damaged ranges", record.damaged_count));
    }
    words
}
