//! The end of the log, made ready for the next append: what was torn is counted, kept aside, then zeroed, synced and
//! forgotten. What never was a record of this segment stays: appends write over it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::ops::Range;
use std::path::PathBuf;

use super::{CLEAR_PIECE, QUARANTINE_BYTES, Recovery, TORN_LOOK, TailCut, WalkEnd};
use crate::file::FileError;
use crate::file::disk::{Disk, write_file_atomically};
use crate::file::segment::Segment;
use crate::format::epoch::{Lost, LostQueue, MAX_LOST_QUEUES};
use crate::format::names::{self, FileKind};
use crate::format::record::{HEADER_LEN, RecordKind};
use crate::format::segment_header::PAGE_LEN;
use crate::log::walk::{SegmentWalk, Step, mark_end};
use crate::message::{Epoch, PhysicalOffset, QueueKey};
use crate::store::OpenError;
use crate::sync::Arc;

impl Recovery<'_> {
    /// Makes the bytes behind the tail what an append expects: no sound header, and no later segments but an empty one.
    /// Keeps aside what was there.
    pub(super) fn settle_tail(
        &mut self,
        disk: &dyn Disk,
        end: WalkEnd,
    ) -> Result<(PhysicalOffset, Option<Arc<Segment>>), OpenError> {
        let segments = self.log.segments();
        let Some(active) = self.log.segment_at(end.tail) else {
            return Ok((end.tail, None));
        };
        // An end that was durable may be a segment's base: nothing is written into its header page.
        let tail = end.tail.max(active.base().plus(PAGE_LEN as u64));
        let is_behind = |segment: &Arc<Segment>| {
            segment.base() > active.base() && !self.empty.contains(&segment.base())
        };
        // Also where the log ends well: the one page that did not land may be that with the filler.
        let mut reach = tail;
        if !end.is_marked || segments.iter().any(is_behind) {
            (self.report.lost, reach) = self.lost_behind(&active, tail)?;
        }
        if !end.is_marked {
            // The next start looks for zeros up to there.
            let mark_end = mark_end(tail, active.end());
            let until = if reach > tail { reach } else { self.torn_to(&active, mark_end)? };
            let until = until.max(mark_end);
            let (len, kept_in) = self.clear(disk, &active, tail..until)?;
            if len > 0 {
                let reason = end.reason.map_or_else(String::new, |reason| reason.to_string());
                self.report.cut = Some(TailCut { at: tail, len, reason, kept_in });
            }
        }
        let mut ready = None;
        let dir = self.config.dir.join(FileKind::Segment.directory());
        for segment in segments.iter().filter(|s| s.base() > active.base()) {
            let is_empty = self.empty.contains(&segment.base());
            // On a disk that is short no other could be made, and without one it may be that nothing can be deleted.
            let reusable = is_empty
                && segment.base() == active.end()
                && segment.len() == self.config.segment_size;
            if reusable {
                ready = Some(Arc::clone(segment));
            } else {
                if !is_empty {
                    self.report.remarks.push(format!(
                        "removed segment {}: all in it came after the cut, nothing durable was in it",
                        segment.base()
                    ));
                }
                disk.unlink(&dir.join(FileKind::Segment.name(segment.base())))?;
            }
        }
        disk.sync_dir(&dir)?;
        self.log.truncate_after(active.base());
        Ok((tail, ready))
    }

    /// The messages behind `tail` whose headers can be read: they were written, perhaps acknowledged and read, and were
    /// not durable. And where the last record in the segment of the tail ends whose header can be read.
    fn lost_behind(
        &self,
        active: &Segment,
        tail: PhysicalOffset,
    ) -> Result<(Option<Lost>, PhysicalOffset), OpenError> {
        let mut reach = tail;
        let mut by_queue = BTreeMap::<QueueKey, LostQueue>::new();
        for segment in self.log.segments().iter().filter(|segment| segment.end() > tail) {
            if self.empty.contains(&segment.base()) {
                continue;
            }
            let from = segment.base().plus(PAGE_LEN as u64).max(tail);
            let mut walk = SegmentWalk::new(Arc::clone(segment), self.log.salt(segment), from);
            while walk.at() < segment.end() {
                let header = match walk.step()? {
                    Step::End if segment.end().since(walk.at()) < HEADER_LEN as u64 => break,
                    Step::End => {
                        // A filler: it would end the segment once the log comes to it.
                        let behind = walk.at().plus(HEADER_LEN as u64);
                        if segment.base() == active.base() {
                            reach = behind;
                        }
                        walk =
                            SegmentWalk::new(Arc::clone(segment), self.log.salt(segment), behind);
                        continue;
                    }
                    Step::Gap { .. } => continue,
                    Step::Record { header, .. } => header,
                };
                if segment.base() == active.base() {
                    reach = header.end();
                }
                // A lower epoch is left from an earlier life of these bytes.
                if header.kind == RecordKind::Message && header.epoch >= self.epoch_walked {
                    let (topic, queue, time) = (header.topic, header.queue, header.store_time);
                    let row = by_queue.entry(QueueKey { topic, queue }).or_insert(LostQueue {
                        topic,
                        queue,
                        messages: 0,
                        first: time,
                        last: time,
                    });
                    row.messages += u64::from(header.message_count);
                    row.last = row.last.max(time);
                }
            }
        }
        let mut queues: Vec<_> = by_queue.into_values().collect();
        queues.sort_by_key(|row| Reverse(row.messages));
        let first = queues.iter().map(|row| row.first).min();
        let last = queues.iter().map(|row| row.last).max();
        let (Some(first), Some(last)) = (first, last) else { return Ok((None, reach)) };
        let messages = queues.iter().map(|row| row.messages).sum();
        let queue_count = queues.len() as u64;
        queues.truncate(MAX_LOST_QUEUES);
        Ok((Some(Lost { messages, queue_count, first, last, queues }), reach))
    }

    /// How far something may have been written that does not verify: from `from`, a page's begin behind the tail, to
    /// the first page of zeros.
    fn torn_to(
        &self,
        segment: &Segment,
        from: PhysicalOffset,
    ) -> Result<PhysicalOffset, OpenError> {
        let len = segment.end().since(from).min(TORN_LOOK);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        segment.read_exact(from, &mut bytes)?;
        let mut pages = bytes.chunks(PAGE_LEN);
        let used = pages.position(|page| page.iter().all(|byte| *byte == 0));
        let used = used.map_or(len, |pages| (pages * PAGE_LEN) as u64);
        Ok(from.plus(used))
    }

    /// Copies what stands in `range`, at the end of `segment`, aside, then zeroes and syncs it. Returns how many bytes
    /// there were to the last one that was not zero, and where they are kept.
    fn clear(
        &mut self,
        disk: &dyn Disk,
        segment: &Segment,
        range: Range<PhysicalOffset>,
    ) -> Result<(u64, Option<PathBuf>), OpenError> {
        let tail = range.start;
        let mut kept = Vec::new();
        let mut dirty = Vec::new();
        let mut used = 0;
        let mut at = tail;
        let mut piece = vec![0; CLEAR_PIECE];
        while at < range.end {
            let len = range.end.since(at).min(CLEAR_PIECE as u64);
            let bytes = &mut piece[..usize::try_from(len).unwrap_or(CLEAR_PIECE)];
            segment.read_exact(at, bytes)?;
            if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
                used = at.plus(last as u64 + 1).since(tail);
                dirty.push((at, len));
            }
            if kept.len() < QUARANTINE_BYTES {
                kept.extend_from_slice(bytes);
            }
            at = at.plus(len);
        }
        if dirty.is_empty() {
            return Ok((0, None));
        }
        kept.truncate(usize::try_from(used).unwrap_or(usize::MAX).min(QUARANTINE_BYTES));
        let dir = self.config.dir.join(names::QUARANTINE_DIR);
        let name = names::torn(tail, Epoch::new(self.epoch.get() + 1));
        let kept_in = match write_file_atomically(disk, &dir, &name, &kept) {
            Ok(()) => Some(dir.join(name)),
            // Nothing durable is in it: a full disk must not keep the store from starting.
            Err(error @ FileError::Full { .. }) => {
                self.report.remarks.push(format!("the torn tail was not kept: {error}"));
                None
            }
            Err(error) => return Err(error.into()),
        };
        piece.fill(0);
        for (at, len) in dirty {
            let zeros = &piece[..usize::try_from(len).unwrap_or(CLEAR_PIECE)];
            segment.write_all(&mut [IoSlice::new(zeros)], at)?;
        }
        segment.sync().map_err(OpenError::Sync)?;
        Ok((used, kept_in))
    }
}
