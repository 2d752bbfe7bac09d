//! The records of a segment, and what they ask of each other.

use std::ops::Range;

use super::order::{Contradiction, Order};
use super::{Finding, FindingKind, Lost, PIECE, Stage, Verifier, Walked, Walking, Wrong, names_of};
use crate::format::DecodeError;
use crate::format::consume_queue::EntryFlags;
use crate::format::epoch::EpochRecord;
use crate::format::names::FileKind;
use crate::format::record::{RecordHeader, RecordKind};
use crate::format::segment_header::PAGE_LEN;
use crate::format::state_record::transitions;
use crate::log::commit_log::Via;
use crate::log::consume_queue::QueuePart;
use crate::log::index::IndexPart;
use crate::log::walk::{SegmentWalk, Step};
use crate::message::{PhysicalOffset, QueueKey};
use crate::store::dispatch::{derive, queue_key};
use crate::store::offline::SegmentFile;
use crate::sync::Arc;

impl Verifier {
    pub(super) fn enter(&mut self, index: usize) -> u64 {
        let Some(file) = self.segments.get(index).cloned() else {
            self.stage = Stage::End;
            return 0;
        };
        self.stage = Stage::Segment(index + 1);
        let first = file.base.plus(PAGE_LEN as u64);
        if self.stop_in(&file) < first && self.running.is_some() {
            return 0;
        }
        let before = index.checked_sub(1).and_then(|index| self.segments.get(index));
        // The log begins at 0.
        let end = before.map_or(PhysicalOffset::ZERO, SegmentFile::end);
        if end != file.base {
            // That a queue begins behind what was deleted is in order; that it goes on there, is not.
            if before.is_some() || !self.known.deleted.covers(&(end..file.base)) {
                self.order.wrong();
            }
            let name = names_of(FileKind::Segment, file.base);
            if end < file.base {
                let what = "the segments before it are gone";
                self.damaged(name, end..file.base, None, what.to_owned());
            } else {
                self.tell(FindingKind::Disordered, name, "it overlaps the segment before it");
            }
        }
        let segment = match file.segment(&*self.disk) {
            Ok(segment) => segment,
            Err(error) => {
                let name = names_of(FileKind::Segment, file.base);
                self.order.wrong();
                self.refused(name, file.base..file.end(), error.to_string());
                return 0;
            }
        };
        self.summary.segments += 1;
        self.check_header(&file);
        let last = PhysicalOffset::new(file.end().get().saturating_sub(1));
        let is_cached = self.running.as_ref().is_some_and(|(_, s)| s.via(last) == Via::Mapping);
        if !is_cached && let Err(error) = segment.drop_cache() {
            tracing::debug!(%error, "cached pages stay");
        }
        let salt = self.identity.salt(file.base);
        // Only a segment that is read to its end has files.
        let is_whole = self.with_files && self.stop_in(&file) == file.end();
        self.stage = Stage::Log(Box::new(Walking {
            index,
            walk: SegmentWalk::new(Arc::clone(&segment), salt, first),
            parts: is_whole.then(|| (QueuePart::new(file.base), IndexPart::new(file.base))),
            segment,
            wrongs: Vec::new(),
            is_cached,
        }));
        self.summary.log_bytes += PAGE_LEN as u64;
        PAGE_LEN as u64
    }

    pub(super) fn walk(&mut self, mut walking: Box<Walking>) -> u64 {
        let Some(stop) = self.segments.get(walking.index).map(|file| self.stop_in(file)) else {
            return 0;
        };
        let start = walking.walk.at();
        let mut is_over = false;
        while !is_over && walking.walk.at().since(start) < PIECE {
            is_over = walking.walk.at() >= stop || self.walk_step(&mut walking);
        }
        let end = walking.walk.at().min(stop);
        let bytes = end.get().saturating_sub(start.get());
        // What a filler covers was not looked at, and needs not be.
        let passed = if is_over { stop.get().saturating_sub(start.get()) } else { bytes };
        self.summary.log_bytes += passed;
        if !walking.is_cached
            && let Err(error) = walking.segment.drop_cache_of(start.min(end)..end)
        {
            tracing::debug!(%error, "cached pages stay");
        }
        if !is_over {
            self.stage = Stage::Log(walking);
            return bytes;
        }
        let Walking { index, parts, wrongs, segment, .. } = *walking;
        // An append set does not go on in the next segment.
        if stop == segment.end() && self.tail == stop {
            self.contradictions(segment.base(), segment.base()..stop, None, Order::end_set);
        }
        self.stage = Stage::Queues(Box::new(Walked { index, parts, wrongs }));
        bytes
    }

    /// Takes one record or gap. `true`: it was the last of the segment.
    fn walk_step(&mut self, walking: &mut Walking) -> bool {
        let (at, base) = (walking.walk.at(), walking.segment.base());
        let step = match walking.walk.step() {
            Ok(step) => step,
            Err(error) => {
                let range = at..walking.segment.end();
                self.order.wrong();
                self.refused(names_of(FileKind::Segment, base), range, error.to_string());
                return true;
            }
        };
        let refusal = walking.walk.take_refusal();
        if let Some(error) = &refusal {
            tracing::warn!(%error, "the disk does not give a part of the log");
        }
        match step {
            Step::End => {
                self.tail = walking.segment.end();
                return true;
            }
            Step::Record { header, .. } if header.epoch < self.order.epoch() => {
                let reason =
                    DecodeError::StaleEpoch { found: header.epoch, newest: self.order.epoch() };
                self.wrong(walking, at..header.end(), reason, false, None);
            }
            Step::Record { header, body: Err(reason) } => {
                self.tail = header.end();
                self.durable = self.durable.max(header.durable_claim());
                let range = at..header.end();
                self.take_order(base, &header);
                self.wrong(walking, range, reason, false, Some(&header));
            }
            Step::Record { header, body: Ok(()) } => {
                self.tail = header.end();
                self.durable = self.durable.max(header.durable_claim());
                self.take_order(base, &header);
                self.take(walking, &header);
            }
            Step::Gap { end, reason, is_marked } => {
                let is_free = is_marked && end >= walking.segment.end();
                self.wrong(walking, at..end, reason, is_free, None);
                return end >= walking.segment.end();
            }
        }
        false
    }

    /// Takes a sound record.
    fn take(&mut self, walking: &mut Walking, header: &RecordHeader) {
        self.summary.records += 1;
        let base = walking.segment.base();
        let body = walking.walk.body(header);
        let payload = body.get(header.attributes_len as usize..).unwrap_or_default();
        let not_understood = match header.kind {
            RecordKind::State => {
                self.known.take_removed(payload);
                transitions(payload).find_map(Result::err)
            }
            RecordKind::Epoch => EpochRecord::decode(payload).err(),
            RecordKind::Message | RecordKind::Filler => None,
        };
        let mut what = not_understood.map(|reason| reason.to_string());
        let mut hashes = std::mem::take(&mut self.hashes);
        if header.kind == RecordKind::Message {
            self.summary.messages += u64::from(header.message_count);
        }
        let seed = self.identity.index_seed();
        if let Some(derived) = derive(seed, header, Some(body), &mut hashes) {
            if derived.entry.flags.contains(EntryFlags::DAMAGED) {
                what = Some("its batch cannot be walked".to_owned());
            }
            if let Some((queues, index)) = &walking.parts {
                for hash in derived.hashes {
                    index.put(*hash, header.physical_offset);
                }
                queues.put(derived.key, &derived.entry);
            }
        }
        self.hashes = hashes;
        if let Some(what) = what {
            self.found.push(Finding {
                kind: FindingKind::Disordered,
                file: names_of(FileKind::Segment, base),
                range: Some(header.physical_offset..header.end()),
                queue: queue_key(header),
                offsets: None,
                what,
            });
        }
    }

    fn take_order(&mut self, base: PhysicalOffset, header: &RecordHeader) {
        let key = queue_key(header);
        let record = header.physical_offset..header.end();
        self.contradictions(base, record, key, |order, found| {
            order.take(header, key, base, found);
        });
    }

    /// Runs `take` on the order, and tells of what it finds in the record at `record`, or before its end.
    fn contradictions(
        &mut self,
        base: PhysicalOffset,
        record: Range<PhysicalOffset>,
        queue: Option<QueueKey>,
        take: impl FnOnce(&mut Order, &mut Vec<Contradiction>),
    ) {
        let mut found = Vec::new();
        take(&mut self.order, &mut found);
        for contradiction in found {
            let what = contradiction.to_string();
            let (begin, queue, offsets) = match contradiction {
                Contradiction::Set { begin, .. } => (begin, None, None),
                Contradiction::SetBegin { .. } => (record.start, queue, None),
                Contradiction::Hole(offsets) | Contradiction::Twice(offsets) => {
                    (record.start, queue, Some(offsets))
                }
            };
            let (kind, file) = (FindingKind::Disordered, names_of(FileKind::Segment, base));
            let range = Some(begin..record.end.max(begin));
            self.found.push(Finding { kind, file, range, queue, offsets, what });
        }
    }

    fn wrong(
        &mut self,
        walking: &mut Walking,
        range: Range<PhysicalOffset>,
        reason: DecodeError,
        is_free: bool,
        header: Option<&RecordHeader>,
    ) {
        if header.is_none() {
            self.order.wrong();
        }
        let lost = header.and_then(|header| {
            let offsets =
                header.queue_offset..header.queue_offset.plus(header.message_count.into());
            queue_key(header).map(|key| Lost { range: range.clone(), key, offsets })
        });
        walking.wrongs.push(Wrong {
            is_refused: walking.walk.is_unread(&range),
            range,
            reason,
            is_free,
            lost: lost.into_iter().collect(),
            more_lost: 0,
            has_header: header.is_some(),
        });
    }
}
