//! Whether a wrong place is damage or a torn tail, and what is told of it.

use std::ops::Range;

use super::{Finding, FindingKind, Stage, Verifier, Wrong, names_of};
use crate::format::names::FileKind;
use crate::format::segment_header::PAGE_LEN;
use crate::message::{PhysicalOffset, QueueKey, QueueOffset};

impl Verifier {
    /// Tells of those that are known to have been durable; keeps the others until more is known.
    pub(super) fn settle(&mut self, wrongs: Vec<Wrong>) {
        self.undecided.extend(wrongs);
        // In the order of the log: what is behind the first that was not durable is decided with it.
        let (durable, tail) = (self.durable, self.tail);
        let is_decided = |wrong: &&Wrong| {
            // Behind the last record some of it may never have been written.
            wrong.range.start < durable && (wrong.range.end <= durable || tail > wrong.range.start)
        };
        let count = self.undecided.iter().take_while(is_decided).count();
        let decided: Vec<_> = self.undecided.drain(..count).collect();
        decided.into_iter().for_each(|wrong| self.tell_wrong(wrong));
    }

    fn tell_wrong(&mut self, wrong: Wrong) {
        let base = self
            .segments
            .iter()
            .rev()
            .find(|segment| segment.base <= wrong.range.start)
            .map_or(wrong.range.start, |segment| segment.base);
        let name = names_of(FileKind::Segment, base);
        let reason = wrong.reason.to_string();
        if wrong.is_refused {
            self.refused(name.clone(), wrong.range, "the disk does not give it".to_owned());
        } else if wrong.has_header {
            let lost = wrong.lost.first().map(|lost| (lost.key, lost.offsets.clone()));
            self.damaged(name, wrong.range, lost, reason);
            return;
        } else {
            self.damaged(name.clone(), wrong.range, None, reason);
        }
        for lost in wrong.lost {
            self.found.push(Finding {
                kind: FindingKind::Lost,
                file: name.clone(),
                range: Some(lost.range),
                queue: Some(lost.key),
                offsets: Some(lost.offsets),
                what: "it lies in damaged bytes, as the queue file knows".to_owned(),
            });
        }
        if wrong.more_lost > 0 {
            let what = format!("{} more records lie in damaged bytes", wrong.more_lost);
            self.tell(FindingKind::Remark, name, what);
        }
    }

    pub(super) fn damaged(
        &mut self,
        file: String,
        range: Range<PhysicalOffset>,
        lost: Option<(QueueKey, Range<QueueOffset>)>,
        what: String,
    ) {
        let (queue, offsets) = lost.unzip();
        let kind = FindingKind::Damaged;
        for range in self.missed(&file, range, &what) {
            self.damaged_bytes(Finding {
                kind,
                file: file.clone(),
                range: Some(range),
                queue,
                offsets: offsets.clone(),
                what: what.clone(),
            });
        }
    }

    /// What of a range was neither deleted nor given up; of what was given up a remark tells.
    fn missed(
        &mut self,
        file: &str,
        range: Range<PhysicalOffset>,
        what: &str,
    ) -> Vec<Range<PhysicalOffset>> {
        let mut missed = Vec::new();
        for range in self.known.deleted.without(&range) {
            let kept = self.known.lost.without(&range);
            let mut at = range.start;
            for behind in kept.iter().cloned().chain([range.end..range.end]) {
                if at < behind.start {
                    self.found.push(Finding {
                        kind: FindingKind::Remark,
                        file: file.to_owned(),
                        range: Some(at..behind.start),
                        queue: None,
                        offsets: None,
                        what: format!("lost: an operator gave it up ({what})"),
                    });
                }
                at = behind.end;
            }
            missed.extend(kept);
        }
        missed
    }

    fn damaged_bytes(&mut self, finding: Finding) {
        let Some(range) = finding.range.clone() else { return };
        if let Some((_, shared)) = &self.running {
            // What was deleted since the verification began is not damaged.
            if shared.deleted.covers(&range) {
                return;
            }
            shared.found_damage(range.clone());
        }
        self.found.push(finding);
    }

    pub(super) fn refused(&mut self, file: String, range: Range<PhysicalOffset>, what: String) {
        let (kind, queue, offsets) = (FindingKind::Refused, None, None);
        for range in self.missed(&file, range, &what) {
            let (file, what) = (file.clone(), what.clone());
            self.found.push(Finding {
                kind,
                file,
                range: Some(range),
                queue,
                offsets: offsets.clone(),
                what,
            });
        }
    }

    pub(super) fn end(&mut self) {
        self.settle(Vec::new());
        let durable = self.durable;
        // A set of which the end is not there goes as a whole.
        let mut torn = self.order.take_open_set().filter(|begin| *begin >= durable);
        // Up to here all is sound, or told.
        let mut covered = self.tail;
        for wrong in std::mem::take(&mut self.undecided) {
            let start = wrong.range.start;
            // Below what was durable it is a record that is gone, unless the segment has none.
            let has_none =
                self.segments.iter().any(|file| start == file.base.plus(PAGE_LEN as u64));
            if wrong.is_free && (start >= durable || has_none) {
                continue;
            }
            if start < durable {
                // What of it was never durable is no loss.
                let range = start..wrong.range.end.min(durable);
                covered = covered.max(range.end);
                self.tell_wrong(Wrong { range, ..wrong });
            } else {
                torn = Some(torn.map_or(start, |torn| torn.min(start)));
            }
        }
        let last = self.segments.last().map_or(PhysicalOffset::ZERO, |last| last.base);
        let name = names_of(FileKind::Segment, last);
        // Of a segment without a record yet, the header page alone may be durable.
        if covered < durable && durable.since(covered) > PAGE_LEN as u64 {
            let what = "the end of the log is gone, and was durable".to_owned();
            self.damaged(name.clone(), covered..durable, None, what);
        }
        if let Some(torn) = torn.filter(|_| self.running.is_none()) {
            let what = format!(
                "a torn tail from {torn} on: the next start cuts it; nothing durable is in it"
            );
            self.tell(FindingKind::Remark, name, what);
        }
        self.check_positions();
        self.stage = Stage::Over;
    }
}
