//! What a verification tells.

use std::ops::Range;

use crate::message::{PhysicalOffset, QueueKey, QueueOffset};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FindingKind {
    /// Bytes of the log that were durable and hold no sound record.
    Damaged,
    /// Messages that lie in damaged bytes, as far as a queue file still knows them. Told beside the damage.
    Lost,
    /// The disk does not give the bytes: they may be sound.
    Refused,
    /// Sound records that contradict each other, or say what this build does not understand.
    Disordered,
    /// A file that can be made again from the log does not verify, says something else than the log, or is missing.
    Derived,
    /// A redundant page or copy does not verify; what stands in for it does.
    Redundant,
    /// Nothing is wrong, but somebody may want to know.
    Remark,
}

impl FindingKind {
    /// The word for it, in every output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Damaged => "damaged",
            Self::Lost => "lost",
            Self::Refused => "refused",
            Self::Disordered => "disordered",
            Self::Derived => "derived",
            Self::Redundant => "redundant",
            Self::Remark => "remark",
        }
    }
}

/// One thing that a verification found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub kind: FindingKind,
    /// The file, from the data directory on.
    pub file: String,
    /// Which bytes of the log, if it is about some.
    pub range: Option<Range<PhysicalOffset>>,
    /// Whose messages, where known.
    pub queue: Option<QueueKey>,
    /// Which of them, where known.
    pub offsets: Option<Range<QueueOffset>>,
    /// The reason, for people.
    pub what: String,
}

/// What a verification read and found, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifySummary {
    /// Segments read.
    pub segments: u64,
    /// Sound records.
    pub records: u64,
    /// Messages in them.
    pub messages: u64,
    /// Bytes of the log that were read.
    pub log_bytes: u64,
    /// Queue and index files that were read whole.
    pub derived_files: u64,
    /// Places of the log that are damaged.
    pub damaged: u64,
    /// Bytes of them.
    pub damaged_bytes: u64,
    /// Places that the disk does not give.
    pub refused: u64,
    /// Contradictions between sound records.
    pub disordered: u64,
    /// Derived files that are wrong.
    pub derived: u64,
    /// Redundant pages and copies that are damaged.
    pub redundant: u64,
}

impl VerifySummary {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.damaged + self.refused + self.disordered + self.derived + self.redundant == 0
    }

    /// Counts a finding.
    pub(super) fn count(&mut self, finding: &Finding) {
        let counter = match finding.kind {
            FindingKind::Damaged => {
                let range = finding.range.as_ref();
                self.damaged_bytes += range.map_or(0, |range| range.end.since(range.start));
                &mut self.damaged
            }
            FindingKind::Refused => &mut self.refused,
            FindingKind::Disordered => &mut self.disordered,
            FindingKind::Derived => &mut self.derived,
            FindingKind::Redundant => &mut self.redundant,
            FindingKind::Lost | FindingKind::Remark => return,
        };
        *counter += 1;
    }
}
