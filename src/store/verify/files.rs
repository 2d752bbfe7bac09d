//! The queue and index files of a segment, beside what the segment says.

use super::{Finding, FindingKind, Lost, MAX_LOST, Stage, Verifier, Walked, Wrong, names_of};
use crate::file::FileError;
use crate::format::names::FileKind;
use crate::log::paged::FileCheck;
use crate::message::PhysicalOffset;
use crate::store::offline::SegmentFile;

impl Verifier {
    pub(super) fn check_queues(&mut self, mut walked: Box<Walked>) -> u64 {
        self.stage = Stage::Segment(walked.index + 1);
        let Some(file) = self.segments.get(walked.index).cloned() else { return 0 };
        let (base, end) = (file.base, file.end());
        let sound = walked.wrongs.is_empty();
        let mut bytes = 0;
        if let Some((part, _)) = &walked.parts {
            let checked = self.queues.check(base, end, sound.then_some(part));
            let is_missing = self.is_made_again(FileKind::ConsumeQueue, base);
            bytes = self.judge(FileKind::ConsumeQueue, &file, checked, is_missing);
        }
        if !sound {
            self.name_lost(base, end, &mut walked.wrongs);
        }
        if walked.parts.is_some() {
            self.stage = Stage::Index(walked);
        } else {
            self.settle(walked.wrongs);
        }
        bytes
    }

    pub(super) fn check_index(&mut self, walked: Walked) -> u64 {
        self.stage = Stage::Segment(walked.index + 1);
        let Some(file) = self.segments.get(walked.index).cloned() else { return 0 };
        let sound = walked.wrongs.is_empty();
        let mut bytes = 0;
        if let Some((_, part)) = &walked.parts {
            let checked = self.indexes.check(file.base, file.end(), sound.then_some(part));
            let is_missing = self.is_made_again(FileKind::Index, file.base);
            bytes = self.judge(FileKind::Index, &file, checked, is_missing);
        }
        self.settle(walked.wrongs);
        bytes
    }

    /// Whether a running store knows that a file has to be made again.
    fn is_made_again(&self, kind: FileKind, base: PhysicalOffset) -> bool {
        let Some((_, shared)) = &self.running else { return false };
        let missing = match kind {
            FileKind::ConsumeQueue => shared.queues.missing(),
            _ => shared.indexes.missing(),
        };
        missing.iter().any(|(known, _)| *known == base)
    }

    fn judge(
        &mut self,
        kind: FileKind,
        segment: &SegmentFile,
        checked: Result<(FileCheck, u64), FileError>,
        is_made_again: bool,
    ) -> u64 {
        let (base, end) = (segment.base, segment.end());
        let name = names_of(kind, base);
        if is_made_again {
            self.tell(FindingKind::Remark, name, "it is being made again");
            return 0;
        }
        let (what, bytes) = match checked {
            Ok((FileCheck::Sound, bytes)) => {
                self.summary.derived_files += 1;
                return bytes;
            }
            Ok((FileCheck::Absent, _)) if end > self.sealed => return 0,
            // Of a deleted segment the files go first.
            Ok((FileCheck::Absent, _)) if self.known.deleted.covers(&(base..end)) => return 0,
            Ok((FileCheck::Absent, bytes)) => ("it is missing".to_owned(), bytes),
            Ok((FileCheck::Damaged { page: 0 }, bytes)) => {
                ("its header is damaged, or of another segment or version".to_owned(), bytes)
            }
            Ok((FileCheck::Damaged { page }, bytes)) => (format!("page {page} is damaged"), bytes),
            Ok((FileCheck::Differs { at }, bytes)) => (
                format!("it says something else than the log from byte {at} of its stream on"),
                bytes,
            ),
            Err(error) => (error.to_string(), 0),
        };
        if let Some((_, shared)) = &self.running {
            let is_listed = match kind {
                FileKind::ConsumeQueue => shared.queues.found_wrong(base),
                _ => shared.indexes.found_wrong(base),
            };
            // A segment that is deleted meanwhile is taken off the list before its files go.
            if !is_listed {
                return bytes;
            }
            shared.seal_signal.wake();
        }
        self.found.push(Finding {
            kind: FindingKind::Derived,
            file: name,
            range: Some(base..end),
            queue: None,
            offsets: None,
            what,
        });
        bytes
    }

    /// Asks the `.cq` file whose messages lie in the gaps of a segment.
    fn name_lost(&mut self, base: PhysicalOffset, end: PhysicalOffset, wrongs: &mut [Wrong]) {
        let gaps: Vec<_> = wrongs.iter_mut().filter(|w| !w.has_header && !w.is_free).collect();
        let mut gaps = gaps;
        if gaps.is_empty() {
            return;
        }
        let shown = self.queues.each_in_file(base, end, |key, entry| {
            let record = entry.offset..entry.offset.plus(u64::from(entry.len));
            let after = gaps.partition_point(|gap| gap.range.end <= record.start);
            let Some(gap) = gaps.get_mut(after).filter(|gap| gap.range.start < record.end) else {
                return;
            };
            if gap.lost.len() < MAX_LOST {
                let offsets = entry.queue_offset..entry.queue_end();
                gap.lost.push(Lost { range: record, key, offsets });
            } else {
                gap.more_lost += 1;
            }
        });
        if let Err(error) = shown {
            tracing::debug!(%error, "the queue file does not tell whose messages are lost");
        }
        for gap in gaps {
            gap.lost.sort_by_key(|lost| lost.range.start);
        }
    }
}
