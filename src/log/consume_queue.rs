//! The entries of all queues: what finds the records of a queue in the log.
//!
//! | where                | what                                                                  | who                     |
//! | -------------------- | --------------------------------------------------------------------- | ----------------------- |
//! | positions            | per queue its first and last segment, and the next offset sealed      | dispatcher, readers     |
//! | parts                | the entries of one unsealed segment, in memory; the newest one grows  | dispatcher, readers     |
//! | sealed `.cq` files   | the entries of one finished segment, never changed                    | seal worker, readers    |
//!
//! Parts are the newest segments, without holes between them; all older segments are sealed or missing. A part is
//! frozen by the start of the next one. It is written to a file while readers keep using it; the file is listed before
//! the part leaves, and readers look at parts first, so an entry is always found in one of them. The next offset of a
//! queue is the end of its newest entries in memory; its position takes it over before the part leaves.
//!
//! One `put` at a time; everything else from any thread. `lookup`, `first`, `each_topic`, `each_queue_of`, `seal`,
//! `rebuilt`, `delete` and `adopt_sealed` do I/O, never under a lock. Locks: a shard of the positions, and a shard of a
//! part, held for at most 64 entries; never both.
//!
//! **Memory**, counted by `memory_bytes`: a queue costs 27 to 36 bytes as a position, 73 to 114 if it is the only one
//! of its topic (by the load of its table; each id below it among its sixteen costs 24 bytes, known or not), 56 to 112
//! more in each part that has entries of it, and its entries 32 bytes each in steps of four or a quarter.

mod first;
mod part;
mod positions;

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::Guard;

pub(crate) use self::first::First;
pub(crate) use self::part::QueuePart;
use self::part::find_in_order;
use self::positions::{Position, Positions};
use super::paged::{
    FileCheck, FileState, PageError, Pages, Reader, Scrubbed, SealedError, SealedFiles,
    SealedSegment,
};
use super::parts::{Listed, Parts};
use crate::file::FileError;
use crate::file::disk::Disk;
use crate::format::consume_queue::{
    DIRECTORY_ROW_LEN, DirectoryRow, ENTRY_LEN, Origin, PackedEntry, QueueEntry, Sections, TopicRow,
};
use crate::format::pages::{Header, Kind};
use crate::format::snapshot::QueuePosition;
use crate::message::{PhysicalOffset, QueueKey, QueueOffset, TopicId};

/// Memory of a queue's first entry in a segment, at most: its slot, and room for four entries.
pub(crate) const QUEUE_COST: u64 = 248;
/// Memory of each further entry of a queue in a segment, in the long run.
pub(crate) const ENTRY_COST: u64 = 40;

/// What a lookup found. `out` has entries only with `Found`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// At least one entry. The first covers `from`, or is the next one behind it: then what lies between is
    /// unreadable.
    Found,
    /// Nothing at or behind `from`. If `from < next`, the offsets between are unreadable.
    AtEnd {
        /// Of the queue.
        next: QueueOffset,
    },
    /// `from` lies before all that is kept.
    BelowFirst {
        /// Of the queue's first entry; the next offset if it has none.
        first: QueueOffset,
    },
    /// Not in memory: `lookup` knows.
    NeedsDisk,
    /// The file that would know has to be rebuilt first.
    Rebuilding {
        /// Of its segment.
        base: PhysicalOffset,
    },
}

/// The first run of a queue in memory that ends behind an offset, seen from that offset.
enum InMemory {
    /// Its entries were copied.
    Found,
    /// It begins behind the offset, and so may what is not in memory.
    Begins { index: usize, first: QueueOffset },
    /// There is an older run in memory, and nothing behind it.
    Ended,
    /// Memory has no entry of the queue.
    Nothing,
}

/// The entries of all queues of a store.
pub(crate) struct ConsumeQueues {
    positions: Positions,
    parts: Parts<QueuePart>,
    files: SealedFiles,
}

impl ConsumeQueues {
    /// No queues, no segments. `dir` is where the `.cq` files are; it must exist before a file is written.
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: PathBuf, store_id: [u8; 16]) -> Self {
        Self {
            positions: Positions::new(),
            parts: Parts::new(),
            files: SealedFiles::new(disk, dir, store_id, Kind::ConsumeQueue),
        }
    }

    /// The entries of the segment at `base` follow; the part before is frozen. Bases grow.
    pub(crate) fn start_part(&self, base: PhysicalOffset) {
        self.parts.start(base, QueuePart::new(base));
    }

    /// Adds the next entry of a queue to the newest part; the queue's next offset is behind it then. By the dispatcher
    /// only, in the order of the log.
    pub(crate) fn put(&self, key: QueueKey, entry: &QueueEntry) {
        self.parts.with_newest(|newest| {
            if newest.part.put_and_tell(key, entry) {
                self.has_entry(key, newest.base, QueueOffset::ZERO);
            }
        });
    }

    /// Tells of an entry in a sealed segment, met by a walk: only the queue's position follows from it.
    pub(crate) fn observe(&self, key: QueueKey, base: PhysicalOffset, entry: &QueueEntry) {
        self.has_entry(key, base, entry.queue_end());
    }

    /// The queue offset behind the last entry whose record ends at or below `limit`; 0 for a queue never heard of.
    pub(crate) fn readable_next(&self, key: QueueKey, limit: PhysicalOffset) -> QueueOffset {
        let Some(view) = self.view(key) else { return QueueOffset::ZERO };
        let mut readable = None;
        for listed in view.parts().iter().rev() {
            match listed.part.readable_next(key, limit) {
                None => {}
                Some((next, true)) => return next,
                // Nothing of this part: the part before may hold back even more.
                Some((first, false)) => readable = Some(first),
            }
        }
        // What the position alone counts is sealed or was there before the start, and thus below any limit.
        readable.unwrap_or_else(|| view.position.next())
    }

    /// How many queues have entries in the newest part, if that is the one at `base`.
    pub(crate) fn queues_in(&self, base: PhysicalOffset) -> u64 {
        let mut queues = 0;
        self.parts.with_newest(|newest| {
            if newest.base == base {
                queues = newest.part.queue_count();
            }
        });
        queues
    }

    /// Tells what a snapshot knows about a queue. Nothing moves back.
    pub(crate) fn restore_position(&self, position: QueuePosition) {
        self.positions.advance(&position);
    }

    /// The segment at `base` has entries of the queue, which goes on at `next` at least.
    fn has_entry(&self, key: QueueKey, base: PhysicalOffset, next: QueueOffset) {
        let known = QueuePosition { key, next, first_segment: base, last_segment: base };
        self.positions.advance(&known);
    }

    /// All queues as they stand now, in no order.
    pub(crate) fn positions(&self) -> Vec<QueuePosition> {
        let parts = self.parts.list();
        self.positions.all(|position| {
            let in_memory = newest_range(&parts, position.key).map(|(_, end)| end);
            position.next = position.next.max(in_memory.unwrap_or_default());
        })
    }

    /// Forgets the positions of the queues of deleted topics, which are sorted, in one pass over all there are. Their
    /// entries stay with their segments.
    pub(crate) fn remove_topics(&self, topics: &[TopicId]) {
        if !topics.is_empty() {
            self.positions.remove_topics(topics);
        }
    }

    /// Writes the file of the part at `base`, which ends at `end` and is not the newest. Readers use the file from
    /// then on, and the part's memory goes with its last reader, once all older parts are sealed too. Nothing to do if
    /// there is no such part. The caller has made the log durable up to `end`.
    ///
    /// # Errors
    /// The part stays in memory; call again.
    pub(crate) fn seal(&self, base: PhysicalOffset, end: PhysicalOffset) -> Result<(), FileError> {
        let Some(part) = self.parts.get(base) else { return Ok(()) };
        let rows = part.queues();
        self.write(&part, &rows, end)?;
        // Before the part leaves, so that no next offset is seen to move back. Queues of deleted topics stay away.
        for row in &rows {
            self.positions.sealed(row.key, row.next);
        }
        self.parts.retire(base);
        Ok(())
    }

    /// What the segment at `base` holds of each topic, if it is in memory.
    pub(crate) fn topics_in_memory(&self, base: PhysicalOffset) -> Option<Vec<TopicRow>> {
        let part = self.parts.get(base)?;
        Some(part.topics(&part.queues()))
    }

    /// Takes the `.cq` file of a finished segment, without reading more than its header page. `false`: there is none
    /// that is right and known to this build, rebuild it.
    pub(crate) fn adopt_sealed(
        &self,
        base: PhysicalOffset,
        end: PhysicalOffset,
    ) -> Result<bool, FileError> {
        self.files.adopt(base, end)
    }

    /// The finished segment has no usable file. Lookups that need it answer `Rebuilding` until it is `rebuilt`.
    pub(crate) fn mark_missing(&self, base: PhysicalOffset, end: PhysicalOffset) {
        self.files.mark_missing(base, end);
    }

    /// The file of the segment at `base` turned out wrong: see [`SealedFiles::found_wrong`].
    pub(crate) fn found_wrong(&self, base: PhysicalOffset) -> bool {
        self.files.found_wrong(base)
    }

    /// The segments whose files have to be rebuilt: those marked, and those that reads found damaged or gone.
    pub(crate) fn missing(&self) -> Vec<(PhysicalOffset, PhysicalOffset)> {
        let segments = self.files.segments();
        let missing = segments.iter().filter(|segment| segment.state == FileState::Missing);
        missing.map(|segment| (segment.base, segment.end)).collect()
    }

    /// Verifies pages of the segment's file: see [`SealedFiles::scrub`].
    pub(crate) fn scrub(
        &self,
        base: PhysicalOffset,
        from: u64,
        max: u64,
    ) -> Result<Scrubbed, SealedError> {
        self.files.scrub(base, from, max)
    }

    /// Writes the file of a finished segment from a part made by walking the segment again.
    ///
    /// # Errors
    /// The segment stays missing.
    pub(crate) fn rebuilt(
        &self,
        base: PhysicalOffset,
        end: PhysicalOffset,
        part: &QueuePart,
    ) -> Result<(), FileError> {
        debug_assert_eq!(part.base, base, "the part is the segment's");
        self.write(part, &part.queues(), end)
    }

    /// Copies entries of the queue from `from` on into `out`, which is cleared first: at most `max` (at least 1), all
    /// of one segment. Looks into memory only and never does I/O.
    pub(crate) fn lookup_hot(
        &self,
        key: QueueKey,
        from: QueueOffset,
        max: usize,
        out: &mut Vec<QueueEntry>,
    ) -> Lookup {
        out.clear();
        let Some(view) = self.view(key) else { return Lookup::AtEnd { next: QueueOffset::ZERO } };
        let next = view.next(key);
        if from >= next {
            return Lookup::AtEnd { next };
        }
        match in_memory(view.parts(), key, from, max, out) {
            InMemory::Found => Lookup::Found,
            InMemory::Ended => Lookup::AtEnd { next },
            InMemory::Begins { first, .. } if view.is_all_in_memory() => {
                Lookup::BelowFirst { first }
            }
            InMemory::Begins { .. } | InMemory::Nothing => Lookup::NeedsDisk,
        }
    }

    /// Like `lookup_hot`, and reads sealed files for what memory does not have, along the `trail`, which the caller
    /// keeps for the lookups that follow. May block on I/O.
    ///
    /// # Errors
    /// A file could not be read. If it is damaged or gone the segment is missing from now on: the next lookup that
    /// needs it answers `Rebuilding`.
    pub(crate) fn lookup(
        &self,
        key: QueueKey,
        from: QueueOffset,
        max: usize,
        out: &mut Vec<QueueEntry>,
        trail: &mut Trail,
    ) -> Result<Lookup, SealedError> {
        out.clear();
        let Some(view) = self.view(key) else {
            return Ok(Lookup::AtEnd { next: QueueOffset::ZERO });
        };
        let next = view.next(key);
        if from >= next {
            return Ok(Lookup::AtEnd { next });
        }
        let memory = in_memory(view.parts(), key, from, max, out);
        match memory {
            InMemory::Found => return Ok(Lookup::Found),
            InMemory::Ended => return Ok(Lookup::AtEnd { next }),
            InMemory::Begins { .. } | InMemory::Nothing => {}
        }
        // Behind the view: of a part that had gone the file is listed.
        let segments = self.files.segments();
        let place = self.find_segment(view.sealed(&segments), key, from, trail);
        // A segment that cannot be read is no place to begin the next search at.
        let place = place.inspect_err(|_| trail.last = None)?;
        if let Some((segment, row)) = place.found {
            if row.first > from && place.missing.is_none() && !place.has_older {
                return Ok(Lookup::BelowFirst { first: row.first });
            }
            if row.first <= from || place.missing.is_none() {
                let entries = |file: &mut Reader<'_>| read_entries(file, &row, from, max, out);
                self.files.read(&segment, &mut trail.pages, entries)?;
                trail.found(key, &segment, row.next);
                return Ok(Lookup::Found);
            }
        }
        if let Some(base) = place.missing {
            return Ok(Lookup::Rebuilding { base });
        }
        Ok(match memory {
            InMemory::Begins { index, first } if place.has_older => {
                if let Some(listed) = view.parts().get(index) {
                    listed.part.get(key, first, out, max.max(1));
                }
                Lookup::Found
            }
            InMemory::Begins { first, .. } => Lookup::BelowFirst { first },
            _ if place.has_older => Lookup::AtEnd { next },
            _ => Lookup::BelowFirst { first: next },
        })
    }

    /// What all of it takes of memory: positions and parts.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let parts = self.parts.list();
        let parts = parts.iter().map(|listed| listed.part.memory_bytes());
        self.positions.memory_bytes() + parts.sum::<u64>()
    }

    fn view(&self, key: QueueKey) -> Option<View> {
        loop {
            // First, so that of a part that is not in the list the position knows.
            let list = self.parts.list();
            let position = self.positions.get(key)?;
            // And so that it counts nothing of a part that came and went between the two.
            let is_newest = list.last().is_none_or(|newest| position.last_segment() <= newest.base);
            if is_newest || Arc::ptr_eq(&list, &self.parts.list()) {
                return Some(View { list, position });
            }
        }
    }

    fn write(
        &self,
        part: &QueuePart,
        rows: &[DirectoryRow],
        end: PhysicalOffset,
    ) -> Result<(), FileError> {
        let topics = part.topics(rows);
        let header = header_of(part, rows, &topics, self.files.store_id(), end);
        self.files.write(&header, |file| stream(part, rows, &topics, |bytes| file.push(bytes)))
    }

    /// Reads the `.cq` file of a segment whole, listed or not, and compares it with the entries in `part`, or verifies
    /// its pages alone. Changes nothing. With the result come the bytes read.
    pub(crate) fn check(
        &self,
        base: PhysicalOffset,
        end: PhysicalOffset,
        part: Option<&QueuePart>,
    ) -> Result<(FileCheck, u64), FileError> {
        self.files.check(base, end, |file| {
            let Some(part) = part else { return Ok(()) };
            let rows = part.queues();
            let topics = part.topics(&rows);
            file.header(&header_of(part, &rows, &topics, self.files.store_id(), end));
            stream(part, &rows, &topics, |bytes| file.push(bytes))
        })
    }

    /// Shows all entries in the `.cq` file of a segment, listed or not, queue by queue. `false`: there is no file that
    /// can be read whole; what was shown until then is right.
    pub(crate) fn each_in_file(
        &self,
        base: PhysicalOffset,
        end: PhysicalOffset,
        mut show: impl FnMut(QueueKey, &QueueEntry),
    ) -> Result<bool, FileError> {
        let shown = self.files.read_beside(base, end, |file| {
            let damaged = |_| PageError::Damaged { page: 0 };
            let sections = Sections::of(file.header()).map_err(damaged)?;
            let first_time = sections.first_time;
            for index in 0..sections.queues {
                let bytes = file.row::<DIRECTORY_ROW_LEN>(sections.directory_row_at(index))?;
                let row = DirectoryRow::decode(&bytes).map_err(damaged)?;
                let origin = Origin { base, first: row.first, first_time };
                for entry in 0..u64::from(row.entries) {
                    let at = sections.entry_at(row.start.saturating_add(entry));
                    let entry =
                        PackedEntry::decode(&file.row::<ENTRY_LEN>(at)?).map_err(damaged)?;
                    show(row.key, &entry.unpack(&origin));
                }
            }
            Ok(())
        })?;
        Ok(shown.is_some())
    }

    /// Finds the first of `segments` with entries of the queue behind `from`: a binary search, in which a segment that
    /// lacks the queue is stepped over. Missing ones are stepped over too, and named if they could hold what is asked.
    /// It begins where the trail leads.
    fn find_segment(
        &self,
        segments: &[SealedSegment],
        key: QueueKey,
        from: QueueOffset,
        trail: &mut Trail,
    ) -> Result<Place, SealedError> {
        let (mut low, mut high) = (0, segments.len());
        let mut likely = trail.leads_to(segments, key, from);
        let mut place = Place { found: None, missing: None, has_older: false };
        while low < high {
            let middle = likely.take().unwrap_or(low + (high - low) / 2);
            let mut probe = None;
            for (index, segment) in segments.iter().enumerate().take(high).skip(middle) {
                if segment.state == FileState::Missing {
                    continue;
                }
                if let Some(row) =
                    self.files.read(segment, &mut trail.pages, |file| find_row(file, key))?
                {
                    probe = Some((index, *segment, row));
                    break;
                }
            }
            match probe {
                Some((index, _, row)) if row.next <= from => {
                    low = index + 1;
                    place.has_older = true;
                }
                Some((_, segment, row)) => {
                    place.found = Some((segment, row));
                    if row.first <= from {
                        return Ok(place);
                    }
                    high = middle;
                }
                None => high = middle,
            }
        }
        // From `low` to the one found no segment is known to have the queue.
        let end = place.found.map(|(segment, _)| segment.base);
        let mut between =
            segments.iter().skip(low).take_while(|s| end.is_none_or(|end| s.base < end));
        let missing = between.find(|segment| segment.state == FileState::Missing);
        place.missing = missing.map(|segment| segment.base);
        Ok(place)
    }
}

/// The header of the file of `part`.
fn header_of(
    part: &QueuePart,
    rows: &[DirectoryRow],
    topics: &[TopicRow],
    store_id: [u8; 16],
    end: PhysicalOffset,
) -> Header {
    let sections = Sections {
        first_time: part.first_time(),
        queues: rows.len() as u64,
        topics: topics.len() as u64,
        entries: rows.iter().map(|row| u64::from(row.entries)).sum(),
    };
    sections.header(store_id, part.base, end)
}

/// The stream of the file of `part`, piece by piece.
fn stream<E>(
    part: &QueuePart,
    rows: &[DirectoryRow],
    topics: &[TopicRow],
    mut push: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut bytes = Vec::with_capacity(DIRECTORY_ROW_LEN);
    for row in rows {
        bytes.clear();
        row.encode_into(&mut bytes);
        push(&bytes)?;
    }
    for topic in topics {
        bytes.clear();
        topic.encode_into(&mut bytes);
        push(&bytes)?;
    }
    part.each_entry(rows, |_, entry| push(&entry.encode()))
}

/// Where a reader has been, for the lookups that follow: pages of files, and in which segments the entries of the last
/// queue were. Who reads one queue after the other, in the order in which they got their records, finds most here.
#[derive(Default)]
pub(crate) struct Trail {
    pages: Pages,
    last: Option<Found>,
}

/// What the lookups in one queue came to.
struct Found {
    key: QueueKey,
    /// The segment in which the first one found something.
    first: PhysicalOffset,
    /// The one in which the last did.
    last: PhysicalOffset,
    /// Behind the entries of the queue in the last one.
    next: QueueOffset,
}

impl Trail {
    fn found(&mut self, key: QueueKey, segment: &SealedSegment, next: QueueOffset) {
        match &mut self.last {
            Some(found) if found.key == key => (found.last, found.next) = (segment.base, next),
            last => *last = Some(Found { key, first: segment.base, last: segment.base, next }),
        }
    }

    /// Which of `segments` most likely has what is behind `from`: the one that comes next in a queue that is read on;
    /// in another queue the one in which the last queue began.
    fn leads_to(
        &self,
        segments: &[SealedSegment],
        key: QueueKey,
        from: QueueOffset,
    ) -> Option<usize> {
        let found = self.last.as_ref()?;
        let index = match found.key == key {
            true if from >= found.next => segments.partition_point(|one| one.base <= found.last),
            true => segments.partition_point(|one| one.base < found.last),
            false => segments.partition_point(|one| one.base < found.first),
        };
        (index < segments.len()).then_some(index)
    }
}

/// Where among sealed segments an offset of a queue is.
struct Place {
    /// The first segment known to have entries behind it.
    found: Option<(SealedSegment, DirectoryRow)>,
    /// A segment before that one which may have them, but cannot be read.
    missing: Option<PhysicalOffset>,
    /// Whether the queue is known to have entries before it.
    has_older: bool,
}

/// A queue as one moment saw it.
struct View {
    list: Guard<Arc<Vec<Listed<QueuePart>>>>,
    position: Position,
}

impl View {
    /// The parts in memory that may have entries of the queue: of one that nobody wrote to lately there are none, and
    /// nothing of it is looked up there.
    fn parts(&self) -> &[Listed<QueuePart>] {
        let (first, last) = (self.position.first_segment(), self.position.last_segment());
        let start = self.list.partition_point(|listed| listed.base < first);
        let end = self.list.partition_point(|listed| listed.base <= last);
        self.list.get(start..end).unwrap_or_default()
    }

    /// The offset behind all entries of the queue.
    fn next(&self, key: QueueKey) -> QueueOffset {
        let in_memory = newest_range(self.parts(), key).map_or(QueueOffset::ZERO, |(_, end)| end);
        self.position.next().max(in_memory)
    }

    /// Those of `segments` that are older than all parts and may have entries of the queue.
    fn sealed<'a>(&self, segments: &'a [SealedSegment]) -> &'a [SealedSegment] {
        let (first, last) = (self.position.first_segment(), self.position.last_segment());
        let start = segments.partition_point(|segment| segment.base < first);
        let end = segments.partition_point(|segment| {
            segment.base <= last
                && self.list.first().is_none_or(|oldest| segment.base < oldest.base)
        });
        segments.get(start..end).unwrap_or_default()
    }

    /// Whether no segment before the parts has entries of the queue.
    fn is_all_in_memory(&self) -> bool {
        let first = self.position.first_segment();
        self.list.first().is_some_and(|oldest| oldest.base <= first)
    }
}

/// The queue's offsets in the newest part that has some.
fn newest_range(parts: &[Listed<QueuePart>], key: QueueKey) -> Option<(QueueOffset, QueueOffset)> {
    parts.iter().rev().find_map(|listed| listed.part.range(key))
}

fn in_memory(
    parts: &[Listed<QueuePart>],
    key: QueueKey,
    from: QueueOffset,
    max: usize,
    out: &mut Vec<QueueEntry>,
) -> InMemory {
    let mut has_older = false;
    for (index, listed) in parts.iter().enumerate() {
        match listed.part.range(key) {
            None => {}
            Some((_, end)) if end <= from => has_older = true,
            Some((first, _)) if first > from && !has_older => {
                return InMemory::Begins { index, first };
            }
            Some(_) => {
                listed.part.get(key, from, out, max.max(1));
                return InMemory::Found;
            }
        }
    }
    if has_older { InMemory::Ended } else { InMemory::Nothing }
}

/// The queue's row in the directory of a file.
fn find_row(file: &mut Reader<'_>, key: QueueKey) -> Result<Option<DirectoryRow>, PageError> {
    let sections = Sections::of(file.header()).map_err(|_| PageError::Damaged { page: 0 })?;
    // Who asks for one queue after the other mostly asks in their order; and one that has entries in several segments
    // mostly has the same row in each of their files.
    let guess = file.noted().map(|at| at.saturating_add(1)).or_else(|| file.noted_last());
    let found = search(sections.queues, key, guess, |at| {
        let bytes = file.row::<DIRECTORY_ROW_LEN>(sections.directory_row_at(at))?;
        DirectoryRow::decode(&bytes).map_err(|_| PageError::Damaged { page: 0 })
    })?;
    Ok(found.map(|(at, row)| {
        file.note(at);
        row
    }))
}

/// Finds a queue among `count` rows in order: by halving, but within a topic the ids of the queues say how many rows
/// lie between two of them at most. Mostly all of them have entries, so there the row is tried first: a page that is
/// looked at costs a read, and halving a directory of a million queues looks at 13. The search begins with row `guess`,
/// if there is one, and gives the number of the row that it found with it.
fn search<E>(
    count: u64,
    key: QueueKey,
    guess: Option<u64>,
    mut row_at: impl FnMut(u64) -> Result<DirectoryRow, E>,
) -> Result<Option<(u64, DirectoryRow)>, E> {
    let (mut low, mut high) = (0, count);
    let mut guess = guess.filter(|guess| *guess < count);
    while low < high {
        let was_guessed = guess.is_some();
        let at = guess.take().unwrap_or(low + (high - low) / 2);
        let row = row_at(at)?;
        let is_before = match row.key.cmp(&key) {
            std::cmp::Ordering::Equal => return Ok(Some((at, row))),
            order => order == std::cmp::Ordering::Less,
        };
        if is_before {
            low = at + 1
        } else {
            high = at
        }
        if row.key.topic != key.topic {
            continue;
        }
        let apart = u64::from(row.key.queue.get().abs_diff(key.queue.get()));
        if is_before {
            high = high.min(at.saturating_add(apart).saturating_add(1));
        } else {
            low = low.max(at.saturating_sub(apart));
        }
        // Behind a guess that failed it is halved: few of many ids cost twice the halvings at most.
        guess = (!was_guessed && low < high).then(|| if is_before { high - 1 } else { low });
    }
    Ok(None)
}

/// Copies at most `max` of the queue's entries that end behind `from`.
fn read_entries(
    file: &mut Reader<'_>,
    row: &DirectoryRow,
    from: QueueOffset,
    max: usize,
    out: &mut Vec<QueueEntry>,
) -> Result<(), PageError> {
    let sections = Sections::of(file.header()).map_err(|_| PageError::Damaged { page: 0 })?;
    let origin =
        Origin { base: file.header().base, first: row.first, first_time: sections.first_time };
    let mut entry = |index: u64| {
        let bytes = file.row::<ENTRY_LEN>(sections.entry_at(row.start.saturating_add(index)))?;
        PackedEntry::decode(&bytes).map_err(|_| PageError::Damaged { page: 0 })
    };
    let count = u64::from(row.entries);
    let delta = from.get().saturating_sub(row.first.get());
    let start = find_in_order(count, delta, |index| entry(index).map(Some))?;
    for index in (start..count).take(max.max(1)) {
        out.push(entry(index)?.unpack(&origin));
    }
    // The row says that there is one; a file that contradicts itself was not written by us.
    if out.is_empty() { Err(PageError::Damaged { page: 0 }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
