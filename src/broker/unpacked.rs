//! Bodies of records that were decompressed lately.
//!
//! A consumer that takes few messages at a time out of a large compressed record would have it decompressed for each
//! receive: so would one that gets them again one by one. They are kept in memory for whoever comes next, the record
//! that was used last for longest.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::message::{Epoch, PhysicalOffset};
use crate::sync::{Mutex, lock};

/// Bytes of all that is kept: two records of the largest size. They are counted here, beside those of answers.
const MAX_BYTES: usize = 32 << 20;

/// Records that are kept: a look at them is a walk.
const MAX_RECORDS: usize = 32;

/// Where a record lies in the log.
type Key = (Epoch, PhysicalOffset);

/// The bodies of some records.
#[derive(Debug, Default)]
pub(super) struct UnpackedBodies {
    /// The one that was used last is the last.
    recent: Mutex<VecDeque<(Key, Bytes)>>,
}

impl UnpackedBodies {
    /// The bodies of a record, if they are kept.
    pub(super) fn get(&self, record: Key) -> Option<Bytes> {
        let mut recent = lock(&self.recent);
        let at = recent.iter().position(|(key, _)| *key == record)?;
        let kept = recent.remove(at)?;
        let bodies = kept.1.clone();
        recent.push_back(kept);
        Some(bodies)
    }

    /// Bytes of all that is kept.
    pub(super) fn bytes(&self) -> u64 {
        let bytes: usize = lock(&self.recent).iter().map(|(_, bodies)| bodies.len()).sum();
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// Keeps the bodies of a record, in place of those that were used least lately.
    pub(super) fn put(&self, record: Key, bodies: Bytes) {
        if bodies.len() > MAX_BYTES {
            return;
        }
        let mut recent = lock(&self.recent);
        recent.retain(|(known, _)| *known != record);
        recent.push_back((record, bodies));
        let mut bytes: usize = recent.iter().map(|(_, bodies)| bodies.len()).sum();
        while bytes > MAX_BYTES || recent.len() > MAX_RECORDS {
            let Some((_, bodies)) = recent.pop_front() else { break };
            bytes -= bodies.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_least_lately_makes_room() {
        let kept = UnpackedBodies::default();
        let record = |at: u64| (Epoch::new(1), PhysicalOffset::new(at));
        let third = Bytes::from(vec![7; MAX_BYTES / 3]);
        for at in 0..3 {
            kept.put(record(at), third.clone());
        }
        assert_eq!(kept.get(record(0)).as_deref(), Some(&third[..]));
        kept.put(record(3), third.clone());
        let there = |at| kept.get(record(at)).is_some();
        assert_eq!([0, 1, 2, 3].map(there), [true, false, true, true]);
        assert_eq!(kept.bytes(), 3 * third.len() as u64);
        kept.put(record(4), Bytes::from(vec![0; MAX_BYTES + 1]));
        assert_eq!([0, 4].map(there), [true, false], "what is too large takes no place");
        for at in 10..10 + MAX_RECORDS as u64 {
            kept.put(record(at), Bytes::from_static(b"x"));
        }
        assert_eq!([0, 2, 10].map(there), [false, false, true]);
    }
}
