//! The first entry of a queue from which on a rule holds: what retention, and offsets by time, ask for.
//!
//! A rule is monotone along a queue: once it holds it holds for all later entries. Places, store times and queue
//! offsets all grow along a queue, so a binary search over segments and then within one of them is exact.

use super::super::paged::{FileState, PageError, Pages, Reader, SealedError, SealedSegment};
use super::super::parts::Listed;
use super::{ConsumeQueues, QueuePart, find_row};
use crate::file::FileError;
use crate::format::consume_queue::{
    DIRECTORY_ROW_LEN, DirectoryRow, ENTRY_LEN, Origin, PackedEntry, QueueEntry, Sections,
    TOPIC_ROW_LEN, TopicRow,
};
use crate::message::{PhysicalOffset, QueueKey, QueueOffset, TopicId};

/// Rows of a table read at a time.
const ROWS: u64 = 64;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// The first entry for which the rule holds.
    Entry {
        /// The entry.
        entry: QueueEntry,
        /// Whether the queue has no older entry any more.
        is_oldest: bool,
    },
    /// It holds for none.
    None {
        /// Of the queue.
        next: QueueOffset,
    },
    /// Not in memory: ask again where the disk may be read.
    NeedsDisk,
    /// The file that would know has to be rebuilt first.
    Rebuilding {
        /// Of its segment.
        base: PhysicalOffset,
    },
}

/// The run of a queue in one segment, seen from the rule.
enum Side {
    /// It holds for none of its entries.
    Before,
    /// It begins to hold within.
    Within(QueueEntry),
    /// It holds for all of them.
    From(QueueEntry),
}

impl ConsumeQueues {
    /// The first entry of the queue for which `holds`, from memory only.
    pub(crate) fn first_hot(
        &self,
        key: QueueKey,
        holds: &mut dyn FnMut(&QueueEntry) -> bool,
    ) -> First {
        let Some(view) = self.view(key) else { return First::None { next: QueueOffset::ZERO } };
        // First: what comes meanwhile is behind it.
        let next = view.next(key);
        match in_memory(view.parts(), key, holds) {
            (Some((entry, true)), _) => First::Entry { entry, is_oldest: false },
            (Some((entry, false)), _) if view.is_all_in_memory() => {
                First::Entry { entry, is_oldest: true }
            }
            (None, true) => First::None { next },
            (None, false) if view.is_all_in_memory() => First::None { next },
            _ => First::NeedsDisk,
        }
    }

    /// Like `first_hot`, and reads sealed files for what memory does not have. May block on I/O.
    ///
    /// # Errors
    /// A file could not be read. If it is damaged or gone the segment is missing from now on: the next look that needs
    /// it answers `Rebuilding`.
    pub(crate) fn first(
        &self,
        key: QueueKey,
        holds: &mut dyn FnMut(&QueueEntry) -> bool,
    ) -> Result<First, SealedError> {
        let Some(view) = self.view(key) else {
            return Ok(First::None { next: QueueOffset::ZERO });
        };
        let next = view.next(key);
        let memory = match in_memory(view.parts(), key, holds) {
            (Some((entry, true)), _) => return Ok(First::Entry { entry, is_oldest: false }),
            (None, true) => return Ok(First::None { next }),
            (found, _) => found.map(|(entry, _)| entry),
        };
        // Behind the view: of a part that had gone the file is listed.
        let segments = self.files.segments();
        let segments = view.sealed(&segments);
        let place = self.first_sealed(segments, key, holds)?;
        if let Some(base) = place.missing {
            return Ok(First::Rebuilding { base });
        }
        let is_oldest = !place.has_older;
        Ok(match place.found.or(memory) {
            Some(entry) => First::Entry { entry, is_oldest },
            None => First::None { next },
        })
    }

    /// A binary search, in which a segment that lacks the queue is stepped over. Missing ones are stepped over too, and
    /// named if they could hold what is asked for.
    fn first_sealed(
        &self,
        segments: &[SealedSegment],
        key: QueueKey,
        holds: &mut dyn FnMut(&QueueEntry) -> bool,
    ) -> Result<Place, SealedError> {
        let (mut low, mut high) = (0, segments.len());
        let mut place = Place { found: None, missing: None, has_older: false };
        let mut found_in = None;
        let pages = &mut Pages::default();
        while low < high {
            let middle = low + (high - low) / 2;
            let mut probe = None;
            for (index, segment) in segments.iter().enumerate().take(high).skip(middle) {
                if segment.state == FileState::Missing {
                    continue;
                }
                let side = self.files.read(segment, pages, |file| side_of(file, key, holds))?;
                if let Some(side) = side {
                    probe = Some((index, *segment, side));
                    break;
                }
            }
            match probe {
                Some((index, _, Side::Before)) => {
                    low = index + 1;
                    place.has_older = true;
                }
                Some((_, _, Side::Within(entry))) => {
                    return Ok(Place { found: Some(entry), missing: None, has_older: true });
                }
                Some((_, segment, Side::From(entry))) => {
                    (place.found, found_in) = (Some(entry), Some(segment.base));
                    high = middle;
                }
                None => high = middle,
            }
        }
        let mut between =
            segments.iter().skip(low).take_while(|s| found_in.is_none_or(|end| s.base < end));
        let missing = between.find(|segment| segment.state == FileState::Missing);
        place.missing = missing.map(|segment| segment.base);
        Ok(place)
    }

    /// What the sealed segment at `base` holds of each topic, a few rows at a time, until `show` says false. `false`:
    /// its file is missing or damaged, and has to be rebuilt first.
    ///
    /// # Errors
    /// The file could not be read.
    pub(crate) fn each_topic(
        &self,
        base: PhysicalOffset,
        mut show: impl FnMut(&TopicRow) -> bool,
    ) -> Result<bool, FileError> {
        self.read_sealed(base, |file| {
            let sections = sections_of(file)?;
            let mut at = 0;
            while at < sections.topics {
                let count = (sections.topics - at).min(ROWS);
                let mut rows = vec![0; count as usize * TOPIC_ROW_LEN];
                file.read(sections.topic_row_at(at), &mut rows)?;
                for row in rows.chunks_exact(TOPIC_ROW_LEN) {
                    let row = TopicRow::decode(row).map_err(|_| PageError::Damaged { page: 0 })?;
                    if !show(&row) {
                        return Ok(());
                    }
                }
                at += count;
            }
            Ok(())
        })
    }

    /// The rows of a topic's queues in the sealed segment at `base`, as `each_topic` shows topics.
    ///
    /// # Errors
    /// The file could not be read.
    pub(crate) fn each_queue_of(
        &self,
        base: PhysicalOffset,
        topic: TopicId,
        mut show: impl FnMut(&DirectoryRow) -> bool,
    ) -> Result<bool, FileError> {
        self.read_sealed(base, |file| {
            let sections = sections_of(file)?;
            let row = |file: &mut Reader<'_>, index: u64| {
                let bytes = file.row::<DIRECTORY_ROW_LEN>(sections.directory_row_at(index))?;
                DirectoryRow::decode(&bytes).map_err(|_| PageError::Damaged { page: 0 })
            };
            let (mut low, mut high) = (0, sections.queues);
            while low < high {
                let middle = low + (high - low) / 2;
                if row(file, middle)?.key.topic < topic { low = middle + 1 } else { high = middle }
            }
            for index in low..sections.queues {
                let row = row(file, index)?;
                if row.key.topic != topic || !show(&row) {
                    break;
                }
            }
            Ok(())
        })
    }

    /// The segment at `base` is deleted: its file goes, and nothing asks for it any more.
    ///
    /// # Errors
    /// The file may still be there; nothing asks for it all the same.
    pub(crate) fn delete(&self, base: PhysicalOffset) -> Result<(), FileError> {
        self.files.delete(base)
    }

    fn read_sealed(
        &self,
        base: PhysicalOffset,
        read: impl FnOnce(&mut Reader<'_>) -> Result<(), PageError>,
    ) -> Result<bool, FileError> {
        let segments = self.files.segments();
        let index = segments.partition_point(|segment| segment.base < base);
        let segment = segments.get(index).filter(|segment| segment.base == base);
        let Some(segment) = segment.filter(|segment| segment.state != FileState::Missing) else {
            return Ok(false);
        };
        match self.files.read(segment, &mut Pages::default(), read) {
            Ok(()) => Ok(true),
            Err(SealedError::Damaged { .. }) => Ok(false),
            Err(SealedError::File(error)) => Err(error),
        }
    }
}

/// Where among sealed segments a rule begins to hold.
struct Place {
    found: Option<QueueEntry>,
    /// A segment before that one which may have entries for which it holds, but cannot be read.
    missing: Option<PhysicalOffset>,
    /// Whether the queue is known to have entries for which it does not hold.
    has_older: bool,
}

/// The first entry in memory for which the rule holds, and whether it does not hold for one before it; then whether
/// memory has any entry for which it does not hold.
fn in_memory(
    parts: &[Listed<QueuePart>],
    key: QueueKey,
    holds: &mut dyn FnMut(&QueueEntry) -> bool,
) -> (Option<(QueueEntry, bool)>, bool) {
    let mut has_older = false;
    for listed in parts.iter() {
        match listed.part.first(key, holds) {
            None => {}
            Some(None) => has_older = true,
            Some(Some((entry, is_first))) => {
                return (Some((entry, has_older || !is_first)), has_older || !is_first);
            }
        }
    }
    (None, has_older)
}

fn sections_of(file: &Reader<'_>) -> Result<Sections, PageError> {
    Sections::of(file.header()).map_err(|_| PageError::Damaged { page: 0 })
}

/// How the rule stands to the queue's run in a file; `None` if it has none.
fn side_of(
    file: &mut Reader<'_>,
    key: QueueKey,
    holds: &mut dyn FnMut(&QueueEntry) -> bool,
) -> Result<Option<Side>, PageError> {
    let Some(row) = find_row(file, key)? else { return Ok(None) };
    let sections = sections_of(file)?;
    let origin =
        Origin { base: file.header().base, first: row.first, first_time: sections.first_time };
    let mut entry = |index: u64| {
        let bytes = file.row::<ENTRY_LEN>(sections.entry_at(row.start.saturating_add(index)))?;
        let packed = PackedEntry::decode(&bytes).map_err(|_| PageError::Damaged { page: 0 })?;
        Ok(packed.unpack(&origin))
    };
    let count = u64::from(row.entries);
    let Some(last) = count.checked_sub(1) else { return Err(PageError::Damaged { page: 0 }) };
    if !holds(&entry(last)?) {
        return Ok(Some(Side::Before));
    }
    let (mut low, mut high) = (0, last);
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(&entry(middle)?) { high = middle } else { low = middle + 1 }
    }
    let found = entry(low)?;
    Ok(Some(if low == 0 { Side::From(found) } else { Side::Within(found) }))
}
