//! Sorted byte ranges of the log, apart from each other: what was deleted, what an operator gave up.
//!
//! Read without a lock, swapped as a whole by the one who adds. Deleted ranges grow together from the begin of the log,
//! so there are few: one, and one for each hole before a segment that must stay.

use std::ops::Range;

use arc_swap::ArcSwap;

use crate::message::PhysicalOffset;
use crate::sync::Arc;

/// A set of byte ranges.
#[derive(Debug, Default)]
pub(super) struct Ranges(ArcSwap<Vec<Range<PhysicalOffset>>>);

impl Ranges {
    /// All of them, as they stand now.
    pub(super) fn list(&self) -> Arc<Vec<Range<PhysicalOffset>>> {
        self.0.load_full()
    }

    /// Whether `at` lies in one.
    pub(super) fn contains(&self, at: PhysicalOffset) -> bool {
        let ranges = self.0.load();
        let after = ranges.partition_point(|range| range.start <= at);
        after.checked_sub(1).and_then(|index| ranges.get(index)).is_some_and(|range| at < range.end)
    }

    /// Whether one of them covers all of `range`.
    pub(super) fn covers(&self, range: &Range<PhysicalOffset>) -> bool {
        self.0.load().iter().any(|known| known.start <= range.start && range.end <= known.end)
    }

    /// Whether one of them has a byte of `range`.
    pub(super) fn overlaps(&self, range: &Range<PhysicalOffset>) -> bool {
        self.0.load().iter().any(|known| known.start < range.end && range.start < known.end)
    }

    /// Adds ranges; those that touch become one.
    pub(super) fn add(&self, ranges: &[Range<PhysicalOffset>]) {
        let mut all = Vec::clone(&self.0.load());
        all.extend(ranges.iter().filter(|range| range.start < range.end).cloned());
        all.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<PhysicalOffset>> = Vec::with_capacity(all.len());
        for range in all {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        self.0.store(Arc::new(merged));
    }

    /// What of `range` is in none of them.
    pub(super) fn without(&self, range: &Range<PhysicalOffset>) -> Vec<Range<PhysicalOffset>> {
        let mut left = Vec::new();
        let mut at = range.start;
        for known in self.0.load().iter() {
            if known.end <= at || known.start >= range.end {
                continue;
            }
            if at < known.start {
                left.push(at..known.start);
            }
            at = known.end;
        }
        if at < range.end {
            left.push(at..range.end);
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> Range<PhysicalOffset> {
        PhysicalOffset::new(start)..PhysicalOffset::new(end)
    }

    #[test]
    fn ranges_that_touch_become_one_and_the_rest_is_what_is_left() {
        let ranges = Ranges::default();
        ranges.add(&[range(30, 40), range(0, 10), range(10, 20)]);
        assert_eq!(*ranges.list(), [range(0, 20), range(30, 40)]);
        ranges.add(&[range(18, 25), range(50, 50)]);
        assert_eq!(*ranges.list(), [range(0, 25), range(30, 40)]);
        let at = |at| ranges.contains(PhysicalOffset::new(at));
        assert_eq!(
            [0, 24, 25, 29, 30, 39, 40].map(at),
            [true, true, false, false, true, true, false]
        );
        assert_eq!(ranges.without(&range(20, 60)), [range(25, 30), range(40, 60)]);
        assert_eq!(ranges.without(&range(31, 39)), []);
        assert!(ranges.covers(&range(1, 25)) && !ranges.covers(&range(20, 31)));
        let overlaps = |start, end| ranges.overlaps(&range(start, end));
        assert!(overlaps(24, 30) && overlaps(29, 31) && overlaps(20, 60) && !overlaps(25, 30));
    }
}
