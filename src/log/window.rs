//! What of the log was read last, for who reads records one after the other: neighbours come with one read.
//!
//! The queues of a topic get their records in turn, and are read in turn: then the next record that is asked for mostly
//! lies behind the last one, and a call for each costs more than its bytes.

use crate::file::FileError;
use crate::file::segment::Segment;
use crate::message::PhysicalOffset;

/// Read at once by who turns out to read on; doubled until [`MOST`].
const LEAST: usize = 16 << 10;
/// Read at once, at most.
const MOST: usize = 64 << 10;
/// The longest range that is read by way of a window: what is longer is worth a call.
pub(crate) const LONGEST: usize = 16 << 10;
/// Bytes between two ranges that still are neighbours.
const NEAR: u64 = 4 << 10;

/// Bytes of the log as they were when they were read. For the time of a few reads: it does not see what becomes of them
/// meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Window {
    /// It is of what was written lately.
    is_fresh: bool,
    at: PhysicalOffset,
    bytes: Vec<u8>,
    /// What was asked for last: its begin, and what is behind it.
    last: Option<(PhysicalOffset, PhysicalOffset)>,
    /// The disk has refused something before it: there nothing is read along.
    refused: PhysicalOffset,
    /// How often it was left to the caller to read.
    alone: u32,
}

impl Window {
    /// For what was written lately and is in memory still: see [`Segment::read_fresh`].
    pub(crate) fn of_fresh() -> Self {
        Self { is_fresh: true, ..Self::default() }
    }

    /// The `len` bytes at `at` of `segment`, which has them; those behind them are read along if it looks as if they
    /// will be asked for. `None`: the caller does better with a read of his own, for they are too many for a window, or
    /// stand alone; then they are in it only if it is of fresh bytes.
    ///
    /// # Errors
    /// The disk does not give them.
    pub(crate) fn get(
        &mut self,
        segment: &Segment,
        at: PhysicalOffset,
        len: usize,
    ) -> Result<Option<&[u8]>, FileError> {
        let last = self.last.replace((at, at.plus(len as u64)));
        if len > LONGEST {
            self.alone = self.alone.saturating_add(1);
            return Ok(None);
        }
        let is_next = last.is_some_and(|(start, end)| at > start && at <= end.plus(NEAR));
        if !self.holds(at, len) {
            if !is_next && !self.is_fresh {
                self.alone = self.alone.saturating_add(1);
                return Ok(None);
            }
            let along = if is_next { self.along(segment, at, len) } else { 0 };
            if along <= len || !self.read_along(segment, at, along) {
                self.fill(segment, at, len)?;
            }
        }
        let from = usize::try_from(at.since(self.at)).unwrap_or(usize::MAX);
        Ok(self.bytes.get(from..).and_then(|bytes| bytes.get(..len)))
    }

    /// How many ranges were left to the caller to read, since it last forgot.
    pub(crate) fn alone(&self) -> u32 {
        self.alone
    }

    /// Forgets what was read, and keeps the room for it.
    pub(crate) fn forget(&mut self) {
        self.bytes.clear();
        (self.last, self.refused, self.alone) = (None, PhysicalOffset::ZERO, 0);
    }

    /// How much to read from `at` on. What this process is writing may be undone yet, and other bytes may come there:
    /// only what is published is read along.
    fn along(&self, segment: &Segment, at: PhysicalOffset, len: usize) -> usize {
        let published = segment.published();
        let end = if published > segment.base() { published } else { segment.end() };
        let left = end.get().saturating_sub(at.get());
        let most = (self.bytes.len().max(len) * 2).clamp(LEAST, MOST);
        if at < self.refused { 0 } else { usize::try_from(left).unwrap_or(usize::MAX).min(most) }
    }

    /// What lies behind may be what the disk refuses: then what is asked for is read by itself, up to there.
    fn read_along(&mut self, segment: &Segment, at: PhysicalOffset, len: usize) -> bool {
        let read = self.fill(segment, at, len);
        if let Err(error) = &read {
            tracing::debug!(%error, "what lies behind a record was not read along");
            self.refused = at.plus(len as u64);
        }
        read.is_ok()
    }

    fn holds(&self, at: PhysicalOffset, len: usize) -> bool {
        at >= self.at && at.plus(len as u64) <= self.at.plus(self.bytes.len() as u64)
    }

    fn fill(&mut self, segment: &Segment, at: PhysicalOffset, len: usize) -> Result<(), FileError> {
        self.at = at;
        self.bytes.resize(len, 0);
        let read = match self.is_fresh {
            true => segment.read_fresh(at, &mut self.bytes),
            false => segment.read_exact(at, &mut self.bytes),
        };
        if read.is_err() {
            self.bytes.clear();
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::path::Path;

    use super::*;
    use crate::file::Operation;
    use crate::file::disk::Disk as _;
    use crate::file::segment::Prefill;
    use crate::file::sim::{Fault, FaultRule, SimDisk, Times};
    use crate::format::segment_header::SegmentHeader;

    const LEN: u64 = 256 << 10;

    /// A segment in which each 1 000 bytes have a number of their own.
    fn segment(disk: &SimDisk) -> Segment {
        let dir = Path::new("/log");
        disk.create_dir(dir).unwrap();
        let header =
            SegmentHeader { store_id: [7; 16], base: PhysicalOffset::ZERO, len: LEN, salt: 1 };
        let segment = Segment::create(disk, dir, &header, Prefill::Blocks).unwrap();
        let bytes: Vec<_> = (4_096..LEN).map(|at| (at / 1_000) as u8).collect();
        let at = PhysicalOffset::new(4_096);
        segment.write_all(&mut [IoSlice::new(&bytes)], at).unwrap();
        segment
    }

    /// Whether the bytes are those of the segment. What the window leaves to its caller is read by itself.
    fn reads(window: &mut Window, segment: &Segment, at: u64, len: usize) -> bool {
        let start = PhysicalOffset::new(at);
        let mut alone = vec![0; len];
        let bytes = match window.get(segment, start, len).unwrap() {
            Some(bytes) => bytes,
            None => {
                segment.read_exact(start, &mut alone).unwrap();
                &alone
            }
        };
        bytes.len() == len && bytes.iter().zip(at..).all(|(byte, at)| *byte == (at / 1_000) as u8)
    }

    #[test]
    fn neighbours_come_with_few_reads_and_all_others_with_one_each() {
        let disk = SimDisk::new();
        let segment = segment(&disk);
        let calls = || disk.calls(Operation::Read);
        let (mut window, before) = (Window::default(), calls());
        for n in 0..200 {
            assert!(reads(&mut window, &segment, 5_000 + n * 1_200, 1_100), "{n}");
        }
        // 240 KB: one alone, then 16, 32, and 64 KiB at a time, up to the segment's end.
        assert_eq!(calls() - before, 6);
        assert_eq!(window.alone(), 1);
        let (mut window, before) = (Window::default(), calls());
        for n in (0..50).rev() {
            assert!(reads(&mut window, &segment, 5_000 + n * 1_200, 1_100), "{n}");
        }
        assert_eq!(calls() - before, 50, "nobody knows where the next one before begins");
        let (mut window, before) = (Window::default(), calls());
        for n in 0..20 {
            assert!(reads(&mut window, &segment, 5_000 + n * 12_000, 1_100), "{n}");
        }
        assert_eq!(calls() - before, 20, "too far apart");
        assert_eq!(window.alone(), 20);
        window.forget();
        assert_eq!(window.alone(), 0);
        let (mut window, before) = (Window::default(), calls());
        for n in 0..200 {
            assert!(reads(&mut window, &segment, 5_000 + n * 1_200, 2_048), "{n}");
        }
        assert_eq!(calls() - before, 7, "those that overlap are neighbours");
    }

    #[test]
    fn what_is_fresh_is_read_by_way_of_the_window_also_where_it_stands_alone() {
        let disk = SimDisk::new();
        let segment = segment(&disk);
        let calls = || [Operation::Read, Operation::ReadFresh].map(|of| disk.calls(of));
        let mut window = Window::of_fresh();
        let [before, _] = calls();
        for (apart, reads_of_it) in [(12_000, 20), (1_200, 3)] {
            let [_, fresh] = calls();
            for n in 0..20 {
                let at = PhysicalOffset::new(5_000 + n * apart);
                assert_eq!(window.get(&segment, at, 1_100).unwrap().map(<[u8]>::len), Some(1_100));
            }
            assert_eq!(calls(), [before, fresh + reads_of_it], "{apart}");
        }
    }

    #[test]
    fn what_is_long_is_left_to_the_caller_and_what_ends_the_segment_is_read() {
        let disk = SimDisk::new();
        let segment = segment(&disk);
        let mut window = Window::default();
        assert!(reads(&mut window, &segment, 5_000, LONGEST));
        let at = PhysicalOffset::new(30_000);
        let alone = window.alone();
        assert!(window.get(&segment, at, LONGEST + 1).unwrap().is_none());
        assert_eq!(window.alone(), alone + 1);
        assert!(reads(&mut window, &segment, LEN - 2_000, 1_000));
        assert!(reads(&mut window, &segment, LEN - 1_000, 1_000));
    }

    #[test]
    fn a_read_that_the_disk_refuses_for_what_lies_behind_is_tried_alone() {
        let disk = SimDisk::new();
        let segment = segment(&disk);
        let mut window = Window::default();
        assert!(reads(&mut window, &segment, 5_000, 1_000));
        let refuse = |times| {
            let (operation, error) = (Operation::Read, Fault::Eio);
            disk.fail(FaultRule { operation, path_contains: None, nth: 1, times, error });
        };
        refuse(Times::Once);
        let before = disk.calls(Operation::Read);
        for n in 6..20 {
            assert!(reads(&mut window, &segment, n * 1_000, 1_000));
        }
        assert_eq!(disk.calls(Operation::Read) - before, 15, "it is not asked again and again");
        refuse(Times::Once);
        assert!(window.get(&segment, PhysicalOffset::new(20_000), 1_000).is_err());
        assert!(reads(&mut window, &segment, 20_000, 1_000), "and once more it is there");
        let before = disk.calls(Operation::Read);
        assert!((23..30).all(|n| reads(&mut window, &segment, n * 1_000, 1_000)));
        assert_eq!(disk.calls(Operation::Read) - before, 1, "behind it neighbours come along");
    }

    #[test]
    fn what_is_not_published_yet_is_not_read_along() {
        let disk = SimDisk::new();
        let segment = segment(&disk);
        segment.publish(PhysicalOffset::new(8_000));
        let mut window = Window::default();
        assert!((5..7).all(|n| reads(&mut window, &segment, n * 1_000, 1_000)));
        // Whoever wrote it took it back, and other bytes came.
        let other = &mut [IoSlice::new(&[99; 1_000])];
        segment.write_all(other, PhysicalOffset::new(8_000)).unwrap();
        segment.publish(PhysicalOffset::new(9_000));
        assert!(reads(&mut window, &segment, 7_000, 1_000));
        let bytes = window.get(&segment, PhysicalOffset::new(8_000), 1_000).unwrap();
        assert_eq!(bytes, Some(&[99; 1_000][..]));
    }
}
