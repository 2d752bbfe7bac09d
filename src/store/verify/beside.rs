//! What stands beside the records: identity, checkpoint, snapshots, header pages.

use super::{Finding, FindingKind, MAX_SNAPSHOT, Stage, Verifier, names_of};
use crate::file::FileError;
use crate::file::disk::{Access, read_exact_at, read_file};
use crate::format::checkpoint::{Checkpoint, SLOT_LEN};
use crate::format::names::{self, FileKind};
use crate::format::record::looks_zero;
use crate::format::segment_header::{PAGE_LEN, SegmentHeader};
use crate::format::snapshot::Snapshot;
use crate::format::state_record::transitions;
use crate::store::offline::{SegmentFile, identity_in};

impl Verifier {
    pub(super) fn facts(&mut self) -> u64 {
        let read = self.check_identity() + self.check_checkpoint() + self.check_snapshots();
        self.stage = match &self.running {
            Some((_, shared)) => {
                self.known.deleted.add(&shared.deleted.list());
                self.known.lost.add(&shared.lost.list());
                Stage::Segment(0)
            }
            None => Stage::Known(0),
        };
        read
    }

    fn check_identity(&mut self) -> u64 {
        let mut bytes = 0;
        for name in [names::IDENTITY, names::IDENTITY_COPY] {
            let stand_in = "its copy stands in for it";
            match identity_in(&*self.disk, &self.dir, name) {
                Ok(Ok(identity)) if identity == *self.identity => {
                    bytes += crate::format::identity::LEN as u64;
                }
                Ok(Ok(_)) => {
                    let what = "the two copies of the identity differ";
                    self.tell(FindingKind::Disordered, name.to_owned(), what);
                }
                Ok(Err(reason)) => {
                    let what = format!("{reason}; {stand_in}");
                    self.tell(FindingKind::Redundant, name.to_owned(), what);
                }
                Err(error) => {
                    let what = format!("{error}; {stand_in}");
                    self.tell(FindingKind::Redundant, name.to_owned(), what);
                }
            }
        }
        bytes
    }

    fn check_checkpoint(&mut self) -> u64 {
        let name = names::CHECKPOINT;
        // The flush worker writes it while the store runs.
        if self.running.is_some() {
            return 0;
        }
        let bytes = match read_file(&*self.disk, &self.dir.join(name), 2 * SLOT_LEN as u64) {
            Ok(bytes) => bytes,
            Err(FileError::NotFound { .. }) => {
                // As after a cut in the first start of the store, or when it was removed.
                let what = "missing: less is known of how far the log was durable";
                self.tell(FindingKind::Remark, name.to_owned(), what);
                return 0;
            }
            Err(error) => {
                self.tell(FindingKind::Derived, name.to_owned(), error.to_string());
                return 0;
            }
        };
        let mut bad = Vec::new();
        for (number, slot) in bytes.chunks(SLOT_LEN).enumerate() {
            match Checkpoint::decode(slot) {
                Ok(checkpoint) => {
                    self.durable = self.durable.max(checkpoint.flushed);
                    self.sealed = self.sealed.max(checkpoint.sealed_end);
                }
                // Never written.
                Err(_) if looks_zero(slot) => {}
                Err(reason) => bad.push(format!("slot {number}: {reason}")),
            }
        }
        // A power cut may tear the slot that is being written, never both.
        let kind = if bad.len() > 1 { FindingKind::Derived } else { FindingKind::Remark };
        bad.into_iter().for_each(|what| self.tell(kind, name.to_owned(), what));
        bytes.len() as u64
    }

    fn check_snapshots(&mut self) -> u64 {
        let directory = FileKind::Snapshot.directory();
        let mut read = 0;
        let entries = self.disk.list(&self.dir.join(directory)).unwrap_or_default();
        for entry in entries.iter().rev() {
            if FileKind::Snapshot.parse(&entry.name).is_none() {
                continue;
            }
            let file = format!("{directory}/{}", entry.name);
            let decoded = match read_file(&*self.disk, &self.dir.join(&file), MAX_SNAPSHOT) {
                Ok(bytes) => {
                    read += bytes.len() as u64;
                    Snapshot::decode(&bytes).map_err(|reason| reason.to_string())
                }
                // A running store replaces its snapshots.
                Err(FileError::NotFound { .. }) => continue,
                Err(error) => Err(error.to_string()),
            };
            let snapshot = match decoded {
                Ok(snapshot) => snapshot,
                Err(reason) => {
                    self.tell(FindingKind::Derived, file, reason);
                    continue;
                }
            };
            if let Some(reason) = transitions(&snapshot.state).find_map(Result::err) {
                self.tell(FindingKind::Derived, file.clone(), format!("its state: {reason}"));
            }
            if self.running.is_none() {
                self.durable = self.durable.max(snapshot.reach);
                self.sealed = self.sealed.max(snapshot.offset);
            }
            if self.positions.is_none() {
                self.known.restore(&snapshot);
                self.positions = Some((file, snapshot.reach, snapshot.queues));
            }
        }
        read
    }

    pub(super) fn check_header(&mut self, file: &SegmentFile) {
        // A segment that was deleted since the verification began is as it was, and has no name any more.
        if self.running.as_ref().is_some_and(|(_, s)| s.log.segment_at(file.base).is_none()) {
            return;
        }
        let name = names_of(FileKind::Segment, file.base);
        let mut page = [0; PAGE_LEN];
        let read = self
            .disk
            .open(&file.path, Access::Read)
            .and_then(|handle| read_exact_at(&*handle, &mut page, 0));
        let stand_in = "file name, size and identity stand in for the header page";
        let (kind, what) = match read.map(|()| SegmentHeader::decode(&page)) {
            Ok(Ok(header)) if header.store_id != self.identity.store_id => {
                (FindingKind::Disordered, "it belongs to another store".to_owned())
            }
            Ok(Ok(header)) if header.base == file.base && header.len == file.len => return,
            Ok(Ok(header)) => {
                let what = format!(
                    "made for {} bytes from {} on, it has {} from {} on",
                    header.len, header.base, file.len, file.base
                );
                (FindingKind::Redundant, what)
            }
            Ok(Err(reason)) => (FindingKind::Redundant, format!("{reason}; {stand_in}")),
            Err(error) => (FindingKind::Redundant, format!("{error}; {stand_in}")),
        };
        self.tell(kind, name, what);
    }

    /// Whether the newest snapshot and the log agree on where the queues end.
    pub(super) fn check_positions(&mut self) {
        let Some((file, reach, positions)) = self.positions.take() else { return };
        if self.order.saw_wrongs() || self.tail < reach || self.running.is_some() {
            return;
        }
        for position in positions {
            let Some(next) = self.order.next(position.key) else { continue };
            if position.next > next {
                self.found.push(Finding {
                    kind: FindingKind::Derived,
                    file: file.clone(),
                    range: None,
                    queue: Some(position.key),
                    offsets: Some(next..position.next),
                    what: format!(
                        "it says that the queue goes on at {}, the log at {next}",
                        position.next
                    ),
                });
            }
        }
    }
}
