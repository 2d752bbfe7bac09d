//! State images: the snapshot's bytes in the log itself, so that what retention deletes is never missed.
//!
//! | record | transition | when |
//! | --- | --- | --- |
//! | begin | image begun | first; the image contains all before it |
//! | parts | image part, up to [`PARTS`] a record | once the dispatcher has passed the begin |
//! | end | image ended, in the record of the last parts | |
//!
//! While it is written, the last segment there is keeps what is left of it free. One that finds no room in it waits for
//! another, and nothing more of it is written.
//!
//! An image counts once its end is flushed. Recovery takes one only if its end is proved durable by the checkpoint or
//! by the claim of a later record: behind a torn tail there may be the bytes of a whole image that are not part of the
//! log.

use super::append::{NewRecord, Placed};
use super::{AppendError, Shared};
use crate::file::FileError;
use crate::format::checkpoint::Checkpoint;
use crate::format::record::{HEADER_LEN, RecordKind};
use crate::format::segment_header::PAGE_LEN;
use crate::format::snapshot::Snapshot;
use crate::format::state_record::{IMAGE_PART_LEN, Transition, transitions};
use crate::log::commit_log::CommitLog;
use crate::log::walk::{SegmentWalk, Step};
use crate::message::{Epoch, PhysicalOffset};
use crate::sync::{Arc, Ordering};

/// Parts in one record, so that a small segment takes some and a large image is not many records.
const PARTS: usize = 16;
/// What a part takes beside its bytes, at most: what says which it is, and padding.
const PART_OVERHEAD: usize = 64;
/// No image is larger; nor is a snapshot.
const MAX_IMAGE: u64 = super::recover::MAX_SNAPSHOT;

/// An image on its way into the log.
pub(super) struct ImageWriter {
    begin: PhysicalOffset,
    /// Of the begin record: the dispatcher has to pass it first.
    begin_end: PhysicalOffset,
    /// What is written, once it could be taken.
    bytes: Option<Vec<u8>>,
    written: u32,
    /// Parts in a record: fewer in small segments.
    parts_a_record: usize,
    /// The end of the last record, when all are written.
    end: Option<PhysicalOffset>,
}

/// How far an image has come.
pub(super) enum Wrote {
    /// There is more to do.
    Some,
    /// It waits for the dispatcher, or for the flush.
    Waits,
    /// It is whole and durable.
    Whole { begin: PhysicalOffset, len: u64 },
}

impl ImageWriter {
    /// Appends the begin.
    pub(super) fn begin(shared: &Shared) -> Result<Self, AppendError> {
        let placed = append(shared, &[Transition::ImageBegun], len_of_parts(0, 1))?;
        let room = shared.config.max_append_set() as usize / 2 / (IMAGE_PART_LEN + PART_OVERHEAD);
        Ok(Self {
            begin: placed.offset,
            begin_end: placed.end,
            bytes: None,
            written: 0,
            parts_a_record: room.clamp(1, PARTS),
            end: None,
        })
    }

    /// Goes on: takes the state, appends one record, or sees whether all is durable.
    pub(super) fn step(&mut self, shared: &Shared) -> Result<Wrote, AppendError> {
        if let Some(end) = self.end {
            let len = self.bytes.as_ref().map_or(0, Vec::len) as u64;
            let is_durable = shared.marks.flushed.get() >= end;
            return Ok(if is_durable {
                Wrote::Whole { begin: self.begin, len }
            } else {
                Wrote::Waits
            });
        }
        let Some(bytes) = &self.bytes else {
            if shared.marks.dispatched.get() < self.begin_end {
                return Ok(Wrote::Waits);
            }
            let snapshot = Snapshot { offset: self.begin, ..shared.take_snapshot() };
            let bytes = snapshot.encode();
            check_len(bytes.len() as u64)?;
            self.bytes = Some(bytes);
            return Ok(Wrote::Some);
        };
        let part_len = part_len(shared);
        let parts: Vec<_> = bytes
            .chunks(part_len)
            .zip(0_u32..)
            .skip(self.written as usize)
            .take(self.parts_a_record)
            .map(|(part, number)| Transition::ImagePart {
                begin: self.begin,
                number,
                bytes: part.to_vec(),
            })
            .collect();
        let count = u32::try_from(bytes.len().div_ceil(part_len)).unwrap_or(u32::MAX);
        let written = self.written + u32::try_from(parts.len()).unwrap_or(u32::MAX);
        let mut transitions = parts;
        if written >= count {
            let (begin, len) = (self.begin, bytes.len() as u64);
            transitions.push(Transition::ImageEnded { begin, parts: count, len });
        }
        let left = bytes.len().saturating_sub(self.written as usize * part_len);
        let parts = count.saturating_sub(self.written);
        let placed = append(shared, &transitions, len_of_parts(left, parts))?;
        self.written = written;
        if written >= count {
            shared.room_for_image.store(0, Ordering::Relaxed);
            self.end = Some(placed.end);
        }
        Ok(Wrote::Some)
    }
}

/// Appends a record of an image, if there is room for all of the `left` bytes that the image still takes.
fn append(shared: &Shared, transitions: &[Transition], left: u64) -> Result<Placed, AppendError> {
    if !shared.keep_for_image(left) {
        return Err(AppendError::NotReady);
    }
    shared.append_one(NewRecord::image(run(transitions)))
}

/// Bytes of the log that the parts of an image take, and its end, at most.
fn len_of_parts(len: usize, parts: u32) -> u64 {
    let around = (HEADER_LEN + PART_OVERHEAD) as u64;
    len as u64 + (u64::from(parts) + 1) * around
}

/// Refuses what no start would read: nothing may be deleted on the strength of it.
pub(super) fn check_len(len: u64) -> Result<(), AppendError> {
    match len > MAX_IMAGE {
        true => Err(AppendError::TooLarge { len, max: MAX_IMAGE }),
        false => Ok(()),
    }
}

/// Bytes of a part: in segments of a few KiB less than usual.
fn part_len(shared: &Shared) -> usize {
    let room = usize::try_from(shared.config.max_append_set() / 2).unwrap_or(usize::MAX);
    room.min(IMAGE_PART_LEN)
}

fn run(transitions: &[Transition]) -> Vec<u8> {
    let mut payload = Vec::new();
    for transition in transitions {
        transition.encode_into(&mut payload);
    }
    payload
}

/// The newest image in the log that is whole and was durable.
///
/// # Errors
/// The disk does not give the log.
pub(super) fn newest(
    log: &CommitLog,
    checkpoint: Option<&Checkpoint>,
) -> Result<Option<Snapshot>, FileError> {
    if let Some(begin) = checkpoint.and_then(|checkpoint| checkpoint.newest_image)
        && let Some(image) = read(log, begin)?
    {
        return Ok(Some(image));
    }
    // Without that hint: from the end of the log backwards, so that the claims behind an image are known before it.
    let mut durable = checkpoint.map_or(PhysicalOffset::ZERO, |checkpoint| checkpoint.flushed);
    let mut epoch = Epoch::ZERO;
    for segment in log.segments().iter().rev() {
        let mut ends: Vec<(PhysicalOffset, PhysicalOffset)> = Vec::new();
        let first = segment.base().plus(PAGE_LEN as u64);
        let mut walk = SegmentWalk::new(Arc::clone(segment), log.salt(segment), first);
        loop {
            match walk.step()? {
                Step::End => break,
                Step::Gap { end, .. } if end >= segment.end() => break,
                Step::Gap { .. } => {}
                Step::Record { header, body } => {
                    // A lower epoch behind a higher one is left from an earlier life of its bytes.
                    epoch = epoch.max(header.epoch);
                    durable = durable.max(header.durable_claim());
                    if header.kind == RecordKind::State && body.is_ok() {
                        let payload = walk.body(&header).get(header.attributes_len as usize..);
                        ends.extend(
                            transitions(payload.unwrap_or_default())
                                .map_while(Result::ok)
                                .filter_map(|transition| match transition {
                                    Transition::ImageEnded { begin, .. } => {
                                        Some((begin, header.end()))
                                    }
                                    _ => None,
                                }),
                        );
                    }
                }
            }
        }
        for (begin, end) in ends.into_iter().rev() {
            if end <= durable
                && let Some(image) = read(log, begin)?
            {
                return Ok(Some(image));
            }
        }
    }
    Ok(None)
}

/// The image that begins at `begin`, if all of it can be read.
fn read(log: &CommitLog, begin: PhysicalOffset) -> Result<Option<Snapshot>, FileError> {
    let mut bytes: Vec<u8> = Vec::new();
    let mut next = 0;
    for segment in log.segments().iter().filter(|segment| segment.end() > begin) {
        let first = segment.base().plus(PAGE_LEN as u64).max(begin);
        let mut walk = SegmentWalk::new(Arc::clone(segment), log.salt(segment), first);
        loop {
            let (header, body) = match walk.step()? {
                Step::End => break,
                Step::Gap { end, .. } if end >= segment.end() => break,
                Step::Gap { .. } => continue,
                Step::Record { header, body } => (header, body),
            };
            if header.kind != RecordKind::State || body.is_err() {
                continue;
            }
            let payload = walk.body(&header).get(header.attributes_len as usize..);
            for transition in transitions(payload.unwrap_or_default()).map_while(Result::ok) {
                match transition {
                    Transition::ImagePart { begin: of, number, bytes: part } if of == begin => {
                        if number != next || bytes.len() as u64 + part.len() as u64 > MAX_IMAGE {
                            return Ok(None);
                        }
                        bytes.extend_from_slice(&part);
                        next += 1;
                    }
                    Transition::ImageEnded { begin: of, parts, len } if of == begin => {
                        let is_whole = parts == next && len == bytes.len() as u64;
                        let image = is_whole.then(|| Snapshot::decode(&bytes).ok()).flatten();
                        return Ok(image.filter(|image| image.offset == begin));
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(None)
}
