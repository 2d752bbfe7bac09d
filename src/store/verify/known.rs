//! What records behind a place say of what lies before it: what was deleted, what an operator gave up, which topics
//! there are. Known before the first record is judged.
//!
//! It begins with the newest sound snapshot, or without one with the newest image of a log that does not begin at 0,
//! and goes on with the state records behind: a second walk over the unsealed end of the log, or over all of it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Stage, Verifier};
use crate::file::FileError;
use crate::format::record::RecordKind;
use crate::format::segment_header::PAGE_LEN;
use crate::format::snapshot::{QueuePosition, Snapshot};
use crate::format::state_record::{Transition, transitions};
use crate::log::commit_log::CommitLog;
use crate::log::walk::{SegmentWalk, Step};
use crate::message::{Epoch, PhysicalOffset, TopicId};
use crate::store::checkpoint::CheckpointFile;
use crate::store::image;
use crate::store::ranges::Ranges;
use crate::sync::Arc;

/// What state says of the log.
#[derive(Debug, Default)]
pub(in crate::store) struct Known {
    pub(in crate::store) deleted: Ranges,
    pub(in crate::store) lost: Ranges,
    /// By id, with their names.
    pub(in crate::store) topics: BTreeMap<TopicId, String>,
    /// Topics that a record deletes.
    pub(in crate::store) removed: BTreeSet<TopicId>,
    /// Where queues stood when the snapshot was taken.
    pub(in crate::store) queues: Vec<QueuePosition>,
    /// Records from here on are still to be taken.
    from: PhysicalOffset,
    epoch: Epoch,
}

impl Known {
    pub(super) fn restore(&mut self, snapshot: &Snapshot) {
        self.deleted.add(&snapshot.deleted);
        self.lost.add(&snapshot.lost);
        self.take(&snapshot.state);
        self.queues.clone_from(&snapshot.queues);
        self.from = snapshot.offset;
    }

    fn take(&mut self, payload: &[u8]) {
        for transition in transitions(payload).map_while(Result::ok) {
            match transition {
                Transition::TopicCreated { id, name, .. } => {
                    self.topics.insert(id, name);
                }
                Transition::TopicDeleted { id } => {
                    self.topics.remove(&id);
                    self.removed.insert(id);
                }
                Transition::SegmentsDeleted { ranges } => self.deleted.add(&ranges),
                Transition::RangesLost { ranges } => self.lost.add(&ranges),
                _ => {}
            }
        }
    }

    /// Of a record before those that are taken only a deletion says more than what came later.
    pub(super) fn take_removed(&mut self, payload: &[u8]) {
        for transition in transitions(payload).map_while(Result::ok) {
            if let Transition::TopicDeleted { id } = transition {
                self.removed.insert(id);
            }
        }
    }
}

impl Verifier {
    /// Takes the state records of the segment of this index. Blocks for the disk.
    pub(super) fn learn(&mut self, index: usize) -> u64 {
        let Some(file) = self.segments.get(index).cloned() else {
            self.stage = Stage::Segment(0);
            return 0;
        };
        self.stage = Stage::Known(index + 1);
        if index == 0 && self.known.from == PhysicalOffset::ZERO {
            match self.image() {
                Ok(Some(image)) => self.known.restore(&image),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "no state image can be looked for"),
            }
        }
        if file.end() <= self.known.from {
            return 0;
        }
        // What cannot be opened or read is told when its records are walked.
        let Ok(segment) = file.segment(&*self.disk) else { return 0 };
        let from = self.known.from.max(file.base.plus(PAGE_LEN as u64));
        let mut walk = SegmentWalk::new(segment, self.identity.salt(file.base), from);
        loop {
            match walk.step() {
                Ok(Step::End) | Err(_) => break,
                Ok(Step::Gap { end, .. }) if end >= file.end() => break,
                Ok(Step::Gap { .. }) => {}
                Ok(Step::Record { header, body }) => {
                    let is_stale = header.epoch < self.known.epoch;
                    self.known.epoch = self.known.epoch.max(header.epoch);
                    if header.kind == RecordKind::State && body.is_ok() && !is_stale {
                        let payload = walk.body(&header).get(header.attributes_len as usize..);
                        self.known.take(payload.unwrap_or_default());
                    }
                }
            }
        }
        walk.at().min(file.end()).since(from)
    }

    /// The newest image, if segments before the log that is there may have held state.
    fn image(&self) -> Result<Option<Snapshot>, FileError> {
        let mut expected = PhysicalOffset::ZERO;
        let is_whole = self.segments.iter().all(|file| {
            let follows = file.base == expected;
            expected = file.end();
            follows
        });
        if is_whole {
            return Ok(None);
        }
        let segments: Result<Vec<_>, _> =
            self.segments.iter().map(|file| file.segment(&*self.disk)).collect();
        let checkpoint = CheckpointFile::read(&*self.disk, &self.dir).ok().flatten();
        image::newest(&CommitLog::new(segments?, Arc::clone(&self.identity)), checkpoint.as_ref())
    }
}
