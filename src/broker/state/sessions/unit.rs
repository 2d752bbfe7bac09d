//! One session: its owner, its last batches, and what a batch is to it. Only openings and batches change it, by the two
//! functions at the end.

use std::collections::VecDeque;

use super::fault::SessionFault;
use crate::format::state_record::{SESSION_WINDOW, SessionBatch};
use crate::message::{PhysicalOffset, SessionMark, Timestamp};

/// After so long without an opening or a stored batch a session may be closed.
pub(crate) const IDLE_MS: u64 = 7 * 24 * 60 * 60 * 1_000;

/// Why a batch is not to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It was stored before, here.
    Stored(SessionBatch),
    /// It is not the session's next. What that tells of the session may be heard once the log is durable up to `until`.
    Refused {
        /// Why.
        fault: SessionFault,
        /// The end of the session's last batch for a sync topic.
        until: PhysicalOffset,
    },
}

/// Guarded by the session's mutex.
#[derive(Debug)]
pub(super) struct Unit {
    /// Whether it is in the table, once no opening or closing is half done.
    pub(super) is_open: bool,
    pub(super) epoch: u64,
    pub(super) used: Timestamp,
    /// Of the last batch; 0 without one.
    pub(super) last: u64,
    /// The last batches, up to that of `last`.
    pub(super) window: VecDeque<SessionBatch>,
    /// The end of the last record that changed the session.
    pub(super) applied: PhysicalOffset,
    /// What the snapshot contained that the start began with.
    pub(super) restored: PhysicalOffset,
    /// The end of the last batch for a sync topic; what a start has found is durable.
    pub(super) sync_end: PhysicalOffset,
}

impl Unit {
    pub(super) fn new() -> Self {
        Self {
            is_open: true,
            epoch: 0,
            used: Timestamp::ZERO,
            last: 0,
            window: VecDeque::new(),
            applied: PhysicalOffset::ZERO,
            restored: PhysicalOffset::ZERO,
            sync_end: PhysicalOffset::ZERO,
        }
    }

    pub(super) fn is_idle(&self, now: Timestamp) -> bool {
        now.get().saturating_sub(self.used.get()) >= IDLE_MS
    }

    /// Why a holder of this epoch may do nothing with the session.
    pub(super) fn owned_by(&self, epoch: u64) -> Option<SessionFault> {
        let current = self.epoch;
        if !self.is_open {
            Some(SessionFault::Unknown)
        } else if epoch < current {
            Some(SessionFault::Fenced { current })
        } else if epoch > current {
            Some(SessionFault::Ahead { current })
        } else {
            None
        }
    }

    pub(super) fn verdict(&self, mark: &SessionMark, messages: u16) -> Option<Verdict> {
        let refused = |fault| Some(Verdict::Refused { fault, until: self.sync_end });
        if let Some(fault) = self.owned_by(mark.epoch) {
            return refused(fault);
        }
        let (found, expected) = (mark.sequence, self.last.saturating_add(1));
        if found == 0 {
            return refused(SessionFault::NoSequence);
        }
        if found > expected {
            return refused(SessionFault::Gap { expected, found });
        }
        let back = usize::try_from(expected - found).unwrap_or(usize::MAX);
        if back == 0 {
            return None;
        }
        let stored = self.window.len().checked_sub(back).and_then(|index| self.window.get(index));
        let Some(batch) = stored else {
            let remembered = u64::try_from(self.window.len()).unwrap_or(u64::MAX);
            let oldest = expected.saturating_sub(remembered);
            return refused(SessionFault::TooOld { oldest, found });
        };
        if batch.messages != u32::from(messages) {
            let (stored, sent) = (batch.messages, messages.into());
            return refused(SessionFault::Reused { sequence: found, stored, found: sent });
        }
        Some(Verdict::Stored(*batch))
    }

    /// An opening: in normal running and in replay.
    pub(super) fn opened(&mut self, epoch: u64, at: Timestamp, end: PhysicalOffset) {
        self.epoch = epoch;
        self.used = at;
        self.applied = end;
    }

    /// A batch: in normal running and in replay.
    pub(super) fn stored(&mut self, sequence: u64, batch: &SessionBatch) {
        if sequence <= self.last {
            return;
        }
        if sequence - self.last > 1 {
            // Batches between are damaged. They were stored once, and their places are not known.
            self.window.clear();
        }
        if self.window.len() == SESSION_WINDOW {
            self.window.pop_front();
        }
        self.window.push_back(*batch);
        self.last = sequence;
        self.used = batch.store_time;
        self.applied = batch.end;
    }
}
