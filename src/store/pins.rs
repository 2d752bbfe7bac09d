//! Who keeps a segment from being deleted for a while: a counter for each.
//!
//! A segment is closed before it goes: from then on it cannot be pinned any more, so that work on it never outlives it.

use std::collections::HashMap;

use crate::message::PhysicalOffset;
use crate::sync::{Arc, Mutex, lock};

/// The pins of all segments; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Pins(Arc<Mutex<HashMap<PhysicalOffset, Count>>>);

#[derive(Debug)]
enum Count {
    Pinned(u64),
    Closed,
}

/// Keeps the segment until it is dropped.
#[derive(Debug)]
pub(super) struct Pin {
    pins: Pins,
    base: PhysicalOffset,
}

impl Pins {
    /// Keeps the segment at `base`; `None` if it is going already.
    pub(super) fn pin(&self, base: PhysicalOffset) -> Option<Pin> {
        match lock(&self.0).entry(base).or_insert(Count::Pinned(0)) {
            Count::Pinned(count) => *count += 1,
            Count::Closed => return None,
        }
        Some(Pin { pins: self.clone(), base })
    }

    /// Whether somebody keeps it.
    pub(super) fn is_pinned(&self, base: PhysicalOffset) -> bool {
        matches!(lock(&self.0).get(&base), Some(Count::Pinned(_)))
    }

    /// From now on nobody can keep it. `false`: somebody does.
    pub(super) fn close(&self, base: PhysicalOffset) -> bool {
        let mut pins = lock(&self.0);
        if matches!(pins.get(&base), Some(Count::Pinned(_))) {
            return false;
        }
        pins.insert(base, Count::Closed);
        true
    }

    /// The segment is gone: it cannot be found any more, and need not be remembered.
    pub(super) fn forget(&self, base: PhysicalOffset) {
        lock(&self.0).remove(&base);
    }

    /// How many segments are kept.
    pub(super) fn count(&self) -> usize {
        lock(&self.0).values().filter(|count| matches!(count, Count::Pinned(_))).count()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = lock(&self.pins.0);
        if let Some(Count::Pinned(count)) = pins.get_mut(&self.base) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.base);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_segment_cannot_be_closed_and_a_closed_one_cannot_be_pinned() {
        let (pins, base) = (Pins::default(), PhysicalOffset::new(4096));
        let (one, two) = (pins.pin(base), pins.pin(base));
        drop(one);
        assert!(pins.is_pinned(base) && !pins.close(base));
        assert_eq!(pins.count(), 1);
        drop(two);
        assert!(!pins.is_pinned(base) && pins.close(base));
        assert!(pins.pin(base).is_none());
        assert_eq!(pins.count(), 0);
        pins.forget(base);
        assert!(lock(&pins.0).is_empty());
    }
}
