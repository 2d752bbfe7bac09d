//! The byte ranges of the log that are known to be damaged: what the start met, and what was met since by reads, the
//! scrub and verifications.
//!
//! The ranges are sorted, disjoint and do not touch. Readers see a list that never changes; who adds swaps it for a
//! longer one. Known damage only grows while the process runs. The next start forgets what lies in sealed segments,
//! which it does not read: it is met again by the first who reads there.

use std::ops::Range;

use arc_swap::ArcSwap;

use super::Shared;
use crate::message::PhysicalOffset;
use crate::sync::{Arc, Mutex, lock};

/// Ranges that are kept apart. Beyond, the two that are closest to each other become one: what lies between them is
/// then called damaged where nothing better is known, and is served all the same.
const MAX_RANGES: usize = 4_096;

/// A list of ranges that can grow while it is read.
#[derive(Debug)]
pub(super) struct Damage {
    ranges: ArcSwap<Vec<Range<PhysicalOffset>>>,
    /// Held by whoever adds one.
    adding: Mutex<()>,
}

impl Damage {
    /// Knows what the start found, in any order.
    pub(super) fn new(found: &[Range<PhysicalOffset>]) -> Self {
        let mut ranges = Vec::new();
        for range in found {
            insert(&mut ranges, range.clone());
        }
        Self { ranges: ArcSwap::from_pointee(ranges), adding: Mutex::new(()) }
    }

    /// All of it, sorted.
    pub(super) fn ranges(&self) -> Arc<Vec<Range<PhysicalOffset>>> {
        self.ranges.load_full()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.ranges.load().is_empty()
    }

    /// Whether the byte at `at` is known to be damaged.
    pub(super) fn contains(&self, at: PhysicalOffset) -> bool {
        let ranges = self.ranges.load();
        let behind = ranges.partition_point(|range| range.end <= at);
        ranges.get(behind).is_some_and(|range| range.start <= at)
    }

    /// Whether some of `window` is known to be damaged.
    pub(super) fn overlaps(&self, window: &Range<PhysicalOffset>) -> bool {
        let ranges = self.ranges.load();
        let behind = ranges.partition_point(|range| range.end <= window.start);
        ranges.get(behind).is_some_and(|range| range.start < window.end)
    }

    /// Adds a range. `false`: all of it was known.
    fn add(&self, range: Range<PhysicalOffset>) -> bool {
        let adding = lock(&self.adding);
        let mut ranges = Vec::clone(&self.ranges.load());
        let is_new = insert(&mut ranges, range);
        if is_new {
            self.ranges.store(Arc::new(ranges));
        }
        drop(adding);
        is_new
    }
}

impl Shared {
    /// Damage was met in the log. Tells the log of the process once, and everybody who asks from now on. `true`: it was
    /// not known before.
    pub(super) fn found_damage(&self, range: Range<PhysicalOffset>) -> bool {
        // What is not there any more was deleted, not damaged.
        if self.log.segment_at(range.start).is_none() {
            return false;
        }
        // What an operator gave up is not damage any more.
        let mut is_new = false;
        for range in self.lost.without(&range) {
            if !self.damage.add(range.clone()) {
                continue;
            }
            is_new = true;
            self.may_lack_image(range.end);
            self.metrics.damage_found.increment();
            let (begin, end) = (range.start.get(), range.end.get());
            tracing::warn!(
                "DAMAGED: bytes {begin}..{end} of the log cannot be read; reads of them say so, all else is served"
            );
        }
        is_new
    }
}

/// Adds a range to a sorted list and keeps it sorted, disjoint and bounded. `false`: all of it was in the list.
fn insert(ranges: &mut Vec<Range<PhysicalOffset>>, mut range: Range<PhysicalOffset>) -> bool {
    if range.start >= range.end {
        return false;
    }
    // Those from `first` to `behind` touch it or overlap it.
    let first = ranges.partition_point(|known| known.end < range.start);
    let behind = ranges.partition_point(|known| known.start <= range.end);
    if let Some(touched) = ranges.get(first..behind)
        && let (Some(lowest), Some(highest)) = (touched.first(), touched.last())
    {
        if lowest.start <= range.start && range.end <= lowest.end {
            return false;
        }
        range = lowest.start.min(range.start)..highest.end.max(range.end);
    }
    ranges.splice(first..behind, [range]);
    if ranges.len() > MAX_RANGES {
        join_closest(ranges);
    }
    true
}

fn join_closest(ranges: &mut Vec<Range<PhysicalOffset>>) {
    let distance = |pair: &[Range<PhysicalOffset>]| match pair {
        [before, after] => after.start.since(before.end),
        _ => u64::MAX,
    };
    let closest = ranges.windows(2).enumerate().min_by_key(|(_, pair)| distance(pair));
    let Some(index) = closest.map(|(index, _)| index) else { return };
    let after = ranges.remove(index + 1);
    if let Some(before) = ranges.get_mut(index) {
        before.end = after.end;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, end: u64) -> Range<PhysicalOffset> {
        PhysicalOffset::new(start)..PhysicalOffset::new(end)
    }

    #[test]
    fn ranges_that_touch_are_one_and_what_is_known_is_not_new() {
        let damage = Damage::new(&[range(64, 96), range(8, 16), range(96, 104)]);
        assert_eq!(*damage.ranges(), [range(8, 16), range(64, 104)]);
        assert!(damage.add(range(24, 32)));
        assert!(!damage.add(range(72, 80)));
        assert!(!damage.add(range(40, 40)));
        assert!(damage.add(range(16, 24)));
        assert_eq!(*damage.ranges(), [range(8, 32), range(64, 104)]);
        assert!(damage.add(range(0, 200)));
        assert_eq!(*damage.ranges(), [range(0, 200)]);
    }

    #[test]
    fn beyond_the_bound_the_closest_ranges_become_one() {
        let mut ranges = Vec::new();
        for n in 0..MAX_RANGES as u64 {
            insert(&mut ranges, range(n * 1_000, n * 1_000 + 8));
        }
        assert!(insert(&mut ranges, range(5_016, 5_024)));
        assert_eq!(ranges.len(), MAX_RANGES);
        assert_eq!(ranges[5], range(5_000, 5_024));
    }

    proptest! {
        #[test]
        fn a_list_of_ranges_knows_what_a_set_of_bytes_knows(
            added in prop::collection::vec((0_u64..60, 0_u64..12), 0..12),
            asked in prop::collection::vec((0_u64..70, 0_u64..12), 0..20),
        ) {
            let damage = Damage::new(&[]);
            let mut bytes = std::collections::BTreeSet::new();
            for (start, len) in added {
                let new = (start..start + len).filter(|byte| bytes.insert(*byte)).count() > 0;
                prop_assert_eq!(damage.add(range(start, start + len)), new);
            }
            for pair in damage.ranges().windows(2) {
                prop_assert!(pair[0].end < pair[1].start);
            }
            prop_assert_eq!(damage.is_empty(), bytes.is_empty());
            for (start, len) in asked {
                let at = PhysicalOffset::new(start);
                prop_assert_eq!(damage.contains(at), bytes.contains(&start));
                let overlap = (start..start + len).any(|byte| bytes.contains(&byte));
                // An empty window lies nowhere; no caller asks for one.
                prop_assert!(len == 0 || damage.overlaps(&range(start, start + len)) == overlap);
            }
        }
    }
}
