//! What the filters of a group did: what they cost, and what they could not compare. No state: counted since the group
//! began to ask.
//!
//! Added up for one look without an allocation, then for all of them under a lock.

use crate::filter::Verdict;

/// Bytes that are kept of the name of a property.
const MAX_PROPERTY: usize = 128;

/// What the filter of one look did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FilterCost<'f> {
    /// Conditions looked at.
    pub(crate) steps: u64,
    /// Messages with a property that was to be a number and is none.
    pub(crate) faults: u64,
    /// The last such property.
    pub(crate) last_fault: Option<&'f str>,
}

impl<'f> FilterCost<'f> {
    /// Adds what it said of one more message.
    pub(crate) fn note(&mut self, verdict: &Verdict<'f>) {
        self.steps += u64::from(verdict.steps);
        self.faults += u64::from(verdict.no_number.is_some());
        self.last_fault = verdict.no_number.or(self.last_fault);
    }

    /// Adds what came later.
    pub(crate) fn add(&mut self, later: &Self) {
        self.steps += later.steps;
        self.faults += later.faults;
        self.last_fault = later.last_fault.or(self.last_fault);
    }
}

/// What the filters of all looks did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FilterWork {
    /// Conditions looked at.
    pub(crate) steps: u64,
    /// Messages with a property that was to be a number and is none.
    pub(crate) faults: u64,
    /// The beginning of the last such property's name; empty: none.
    pub(crate) last_fault: String,
}

impl FilterWork {
    /// Adds a look.
    pub(crate) fn add(&mut self, cost: &FilterCost<'_>) {
        self.steps = self.steps.saturating_add(cost.steps);
        self.faults = self.faults.saturating_add(cost.faults);
        // Names are of ASCII.
        if let Some(name) = cost.last_fault
            && let Some(name) = name.get(..name.len().min(MAX_PROPERTY))
            && name != self.last_fault
        {
            // In the room of the one before.
            self.last_fault.clear();
            self.last_fault.push_str(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_added_up_and_of_the_last_property_that_was_no_number_128_bytes_are_kept() {
        let mut look = FilterCost::default();
        look.note(&Verdict { is_match: true, steps: 3, no_number: None });
        look.note(&Verdict { is_match: false, steps: 2, no_number: Some("price") });
        look.note(&Verdict { is_match: false, steps: 1, no_number: None });
        assert_eq!(look, FilterCost { steps: 6, faults: 1, last_fault: Some("price") });
        let mut work = FilterWork::default();
        work.add(&look);
        work.add(&FilterCost { steps: 4, ..FilterCost::default() });
        assert_eq!((work.steps, work.faults, work.last_fault.as_str()), (10, 1, "price"));
        let long = "x".repeat(MAX_PROPERTY + 1);
        work.add(&FilterCost { steps: 0, faults: 2, last_fault: Some(&long) });
        assert_eq!((work.faults, work.last_fault.as_str()), (3, &long[..MAX_PROPERTY]));
    }
}
