//! Whether sound records agree with each other: epochs, append sets, queue offsets.
//!
//! What lies in damaged bytes explains what is missing behind it, so every rule is suspended by the damage in between.

use std::collections::HashMap;
use std::ops::Range;

use foldhash::fast::RandomState;

use crate::format::record::RecordHeader;
use crate::format::snapshot::QueuePosition;
use crate::message::{Epoch, PhysicalOffset, QueueKey, QueueOffset};

/// What the records so far ask of the next one. Memory: one entry for each queue that has a record.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// The log is there from its first byte on, so that every queue begins with 0.
    begins_at_zero: bool,
    epoch: Epoch,
    /// Wrong places so far, and as of the last record.
    wrongs: u64,
    seen: u64,
    set: Option<OpenSet>,
    queues: HashMap<QueueKey, Next, RandomState>,
}

/// An append set of which records are still to come.
#[derive(Clone, Copy, Debug)]
struct OpenSet {
    begin: PhysicalOffset,
    next: u16,
    count: u16,
    wrongs: u64,
}

#[derive(Clone, Copy, Debug)]
struct Next {
    offset: QueueOffset,
    wrongs: u64,
    /// The segments of its first and of its last record.
    first_segment: PhysicalOffset,
    last_segment: PhysicalOffset,
}

/// A contradiction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Contradiction {
    /// The set that began at `begin` ends after `found` of `count` records.
    Set { begin: PhysicalOffset, found: u16, count: u16 },
    /// A record in the middle of a set whose begin is not there.
    SetBegin { index: u16, count: u16 },
    /// Offsets of the queue that no record has, without damage that could have held them.
    Hole(Range<QueueOffset>),
    /// Offsets that an earlier record of the queue has too.
    Twice(Range<QueueOffset>),
}

impl std::fmt::Display for Contradiction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Set { begin, found, count } => {
                write!(f, "the append set at {begin} ends after {found} of {count} records")
            }
            Self::SetBegin { index, count } => {
                write!(f, "record {index} of an append set of {count} without those before it")
            }
            Self::Hole(range) => {
                write!(f, "queue offsets {} up to {} are missing before it", range.start, range.end)
            }
            Self::Twice(range) => {
                write!(f, "queue offsets {} up to {} were given before", range.start, range.end)
            }
        }
    }
}

impl Order {
    pub(super) fn new(begins_at_zero: bool) -> Self {
        Self { begins_at_zero, ..Self::default() }
    }

    /// The highest epoch so far.
    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Something is wrong here: what follows may lack what was in it.
    pub(super) fn wrong(&mut self) {
        self.wrongs += 1;
    }

    /// Whether anything was wrong so far.
    pub(super) fn saw_wrongs(&self) -> bool {
        self.wrongs > 0
    }

    /// The offset behind the last record of a queue.
    pub(super) fn next(&self, key: QueueKey) -> Option<QueueOffset> {
        self.queues.get(&key).map(|next| next.offset)
    }

    /// Where each queue that has a record stands.
    pub(super) fn positions(&self) -> Vec<QueuePosition> {
        let position = |(key, next): (&QueueKey, &Next)| QueuePosition {
            key: *key,
            next: next.offset,
            first_segment: next.first_segment,
            last_segment: next.last_segment,
        };
        self.queues.iter().map(position).collect()
    }

    /// Takes a record with a sound header in the segment at `base`, of `key` if it is in a queue.
    pub(super) fn take(
        &mut self,
        header: &RecordHeader,
        key: Option<QueueKey>,
        base: PhysicalOffset,
        found: &mut Vec<Contradiction>,
    ) {
        self.epoch = self.epoch.max(header.epoch);
        self.take_set(header, found);
        self.seen = self.wrongs;
        let Some(key) = key else { return };
        let end = header.queue_offset.plus(header.message_count.into());
        let wrongs = self.wrongs;
        let first = (self.begins_at_zero && wrongs == 0).then_some(QueueOffset::ZERO);
        let before = self.queues.get(&key).copied();
        let expected = match before {
            Some(next) if next.wrongs < wrongs => None,
            Some(next) => Some(next.offset),
            None => first,
        };
        let offset = header.queue_offset;
        match before {
            Some(next) if offset < next.offset => {
                found.push(Contradiction::Twice(offset..end.min(next.offset)));
            }
            _ => {
                if let Some(expected) = expected.filter(|expected| *expected < offset) {
                    found.push(Contradiction::Hole(expected..offset));
                }
            }
        }
        let offset = before.map_or(end, |next| next.offset.max(end));
        let first_segment = before.map_or(base, |next| next.first_segment);
        self.queues.insert(key, Next { offset, wrongs, first_segment, last_segment: base });
    }

    fn take_set(&mut self, header: &RecordHeader, found: &mut Vec<Contradiction>) {
        let (index, count) = (header.set_index, header.set_count);
        let continues = self.set.is_some_and(|set| set.next == index && set.count == count);
        if !continues {
            self.end_set(found);
            // The records before it may lie in what is wrong.
            if index > 0 && self.wrongs == self.seen {
                found.push(Contradiction::SetBegin { index, count });
            }
        }
        let begin = match self.set {
            Some(set) if continues => set.begin,
            _ => header.physical_offset,
        };
        let is_open = index + 1 < count;
        let wrongs = self.wrongs;
        self.set = is_open.then_some(OpenSet { begin, next: index + 1, count, wrongs });
    }

    /// A segment ends, or the log: a set does not go on behind it.
    pub(super) fn end_set(&mut self, found: &mut Vec<Contradiction>) {
        if let Some(set) = self.set.take()
            && set.wrongs == self.wrongs
        {
            let OpenSet { begin, next, count, .. } = set;
            found.push(Contradiction::Set { begin, found: next, count });
        }
    }

    /// The begin of a set that is not whole yet; it is forgotten.
    pub(super) fn take_open_set(&mut self) -> Option<PhysicalOffset> {
        self.set.take().map(|set| set.begin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::{RecordFlags, RecordKind};
    use crate::message::{QueueId, Timestamp, TopicId};

    const KEY: QueueKey = QueueKey { topic: TopicId::new(1), queue: QueueId::new(0) };

    fn header(at: u64, offset: u64, set: (u16, u16)) -> RecordHeader {
        RecordHeader {
            kind: RecordKind::Message,
            flags: RecordFlags::NONE,
            total_len: 128,
            payload_crc: 0,
            attributes_len: 0,
            payload_len: 0,
            queue: KEY.queue,
            physical_offset: PhysicalOffset::new(at),
            queue_offset: QueueOffset::new(offset),
            store_time: Timestamp::ZERO,
            topic: KEY.topic,
            tag_bits: 0,
            epoch: Epoch::new(1),
            group_hash: 0,
            durable_lag: 0,
            message_count: 2,
            set_index: set.0,
            set_count: set.1,
        }
    }

    /// Runs records through, `None` is a wrong place; all that was told.
    fn told(order: &mut Order, records: &[Option<(u64, (u16, u16))>]) -> Vec<Contradiction> {
        let mut told = Vec::new();
        for (at, record) in (0..).step_by(128).zip(records) {
            match record {
                None => order.wrong(),
                Some((offset, set)) => {
                    let header = header(at, *offset, *set);
                    order.take(&header, Some(KEY), PhysicalOffset::ZERO, &mut told);
                }
            }
        }
        order.end_set(&mut told);
        told
    }

    fn offsets(start: u64, end: u64) -> Range<QueueOffset> {
        QueueOffset::new(start)..QueueOffset::new(end)
    }

    #[test]
    fn dense_offsets_and_whole_sets_are_in_order() {
        let records = [(0, (0, 1)), (2, (0, 2)), (4, (1, 2)), (6, (0, 1))].map(Some);
        assert_eq!(told(&mut Order::new(true), &records), []);
    }

    #[test]
    fn a_hole_is_told_unless_damage_lies_in_between() {
        let alone = (0, 1);
        let hole = [Some((0, alone)), Some((6, alone)), Some((8, alone))];
        assert_eq!(told(&mut Order::new(true), &hole), [Contradiction::Hole(offsets(2, 6))]);
        let explained = [Some((0, alone)), None, Some((6, alone)), Some((8, alone))];
        assert_eq!(told(&mut Order::new(true), &explained), []);
        let first = [Some((4, alone))];
        assert_eq!(told(&mut Order::new(true), &first), [Contradiction::Hole(offsets(0, 4))]);
        assert_eq!(told(&mut Order::new(false), &first), []);
    }

    #[test]
    fn an_offset_given_twice_is_told_whatever_lies_in_between() {
        let alone = (0, 1);
        let records = [Some((0, alone)), Some((2, alone)), None, Some((1, alone))];
        assert_eq!(told(&mut Order::new(true), &records), [Contradiction::Twice(offsets(1, 3))]);
    }

    #[test]
    fn a_set_that_is_not_whole_is_told_unless_damage_lies_in_it() {
        let begin = PhysicalOffset::ZERO;
        let cut = [Some((0, (0, 3))), Some((2, (1, 3))), Some((4, (0, 1)))];
        let set = Contradiction::Set { begin, found: 2, count: 3 };
        assert_eq!(told(&mut Order::new(true), &cut), [set]);
        let headless = [Some((0, (0, 1))), Some((2, (1, 2)))];
        let set = Contradiction::SetBegin { index: 1, count: 2 };
        assert_eq!(told(&mut Order::new(true), &headless), [set]);
        let explained = [Some((0, (0, 3))), None, Some((4, (2, 3))), Some((6, (0, 1)))];
        assert_eq!(told(&mut Order::new(true), &explained), []);
        let at_the_end = [Some((0, (0, 2)))];
        let set = Contradiction::Set { begin, found: 1, count: 2 };
        assert_eq!(told(&mut Order::new(true), &at_the_end), [set]);
    }
}
