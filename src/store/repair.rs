//! What an operator decides about a stopped store: damaged bytes are given up, a topic that no state knows any more
//! gets a name again.
//!
//! In this order: lock, walk the log as a verification does, judge the whole order, unlock, open by the ordinary
//! recovery, append **one** state record, make it durable, make index files anew that lack what was given up, close. A
//! kill before the record is durable changes nothing, one behind it leaves a store that knows all of it; the same order
//! again makes what is left of the files.
//!
//! | ordered | in the record | means from then on |
//! | --- | --- | --- |
//! | lose bytes | `ranges lost` | they count as deleted: not reported, not missed by queries, passed over by pulls |
//! | adopt an id | `topic created`, `queues found` | its records have a topic; its queues go on behind what was found |
//!
//! Only bytes that hold no sound record are given up. `queues found` says where the queues stand, since no snapshot
//! kept that while nobody knew the topic, and an offset must never be given twice.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::append::NewRecord;
use super::offline::{OfflineError, SegmentFile, StoppedStore};
use super::ranges::Ranges;
use super::rebuild::{like_the_last, make_missing};
use super::verify::{FindingKind, Known, Verifier};
use super::{AppendError, Applier, CloseError, OpenError, Progress, Store, Workers};
use crate::clock::Clock;
use crate::file::FileError;
use crate::file::disk::Disk;
use crate::format::segment_header::PAGE_LEN;
use crate::format::snapshot::QueuePosition;
use crate::format::state_record::{FoundQueue, Transition};
use crate::log::walk::{SegmentWalk, Step};
use crate::message::{
    Epoch, FlushMode, PhysicalOffset, QueueKey, QueueOffset, TopicId, TopicSettings, TopicType,
};
use crate::sync::Arc;

/// So often room for the record is made: as often as for that of an epoch.
const ATTEMPTS: u32 = 8;

/// Damaged bytes to give up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lose {
    /// These, as far as they are damaged.
    pub ranges: Vec<Range<PhysicalOffset>>,
    /// All that the walk finds damaged; not what the disk refuses to give, which may be sound.
    pub all_damaged: bool,
}

/// A topic for records that have none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adoption {
    /// The incarnation that the records name.
    pub id: TopicId,
    /// The topic's name; names are checked by the room that knows their rules.
    pub name: String,
}

/// Whether it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairMode {
    /// It is only said what would be done.
    Plan,
    /// It is done.
    Do,
}

/// What an operator wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepairOrder {
    /// Which bytes are given up.
    pub lose: Lose,
    /// Which topics are made again.
    pub adopt: Vec<Adoption>,
    /// Whether it is done.
    pub mode: RepairMode,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairStep {
    /// The log is walked: bytes so far, and in all.
    Checking {
        /// Read so far.
        done: u64,
        /// To read.
        total: u64,
    },
    /// The log is replayed, as by a start.
    Replaying,
    /// Segments whose files are made anew, and how many are to be.
    Making {
        /// In place.
        done: u64,
        /// In all.
        total: u64,
    },
}

/// A topic that was made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// Its incarnation.
    pub id: TopicId,
    /// Its name.
    pub name: String,
    /// How many queues it has: up to the highest in the log.
    pub queues: u32,
    /// The offset that the next message gets, for each queue that has records.
    pub next: Vec<(QueueKey, QueueOffset)>,
}

/// What was done, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// Bytes that were given up now.
    pub lost: Vec<Range<PhysicalOffset>>,
    /// Topics that were made again.
    pub adopted: Vec<Adopted>,
    /// Bytes that are damaged and were not given up.
    pub damaged: Vec<Range<PhysicalOffset>>,
    /// Bytes that the disk does not give, and that were not given up.
    pub refused: Vec<Range<PhysicalOffset>>,
    /// Topics that records name, that no state knows and that nothing says were deleted. Once no damage is left, their
    /// segments may be deleted.
    pub unknown: Vec<TopicId>,
    /// Segments whose files were made anew.
    pub segments: u64,
    /// The epoch that the open began; `None`: nothing was changed.
    pub epoch: Option<Epoch>,
}

/// Why nothing was repaired. Nothing was changed, unless a variant says so.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The directory cannot be worked on.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// The log could not be walked.
    #[error("the log cannot be read")]
    Walk(#[source] FileError),
    /// The range is not one of the log.
    #[error(
        "bytes {}..{} are not in the log, which has bytes {}..{}",
        range.start, range.end, log.start, log.end
    )]
    Outside {
        /// What was named.
        range: Range<PhysicalOffset>,
        /// What there is.
        log: Range<PhysicalOffset>,
    },
    /// There is something to be kept in the range.
    #[error("bytes {}..{} hold a sound record, at {at}", range.start, range.end)]
    Sound {
        /// What was named.
        range: Range<PhysicalOffset>,
        /// The first sound record in it.
        at: PhysicalOffset,
    },
    /// Nothing is wrong there.
    #[error("nothing in bytes {}..{} is damaged", range.start, range.end)]
    NotDamaged {
        /// What was named.
        range: Range<PhysicalOffset>,
    },
    /// There is a topic of that name, or it was named twice.
    #[error("the name {name} is that of topic {id}")]
    NameTaken {
        /// What was named.
        name: String,
        /// Whose it is.
        id: TopicId,
    },
    /// There is a topic of that id, or it was named twice.
    #[error("topic {id} is there, it is {name}")]
    IdTaken {
        /// What was named.
        id: TopicId,
        /// Its name.
        name: String,
    },
    /// The topic is gone because somebody wanted that.
    #[error("topic {id} was deleted")]
    Deleted {
        /// What was named.
        id: TopicId,
    },
    /// Nobody would get anything.
    #[error("no record in the log is of topic {id}")]
    NoRecords {
        /// What was named.
        id: TopicId,
    },
    /// No topic can have that many.
    #[error("records of topic {id} name a queue {queue}, and a topic has at most {max} queues")]
    TooManyQueues {
        /// What was named.
        id: TopicId,
        /// The highest queue in the log.
        queue: u32,
        /// The most queues that a topic may have.
        max: u32,
    },
    /// The store does not open.
    #[error("the store does not open")]
    Open(#[from] OpenError),
    /// The record was not stored; after [`AppendError::Unknown`] it may be.
    #[error("the repair cannot be recorded")]
    Append(#[source] AppendError),
    /// The repair is recorded. Some index files still say that something is missing; the same order again makes them.
    #[error("the repair is done, but the files of {segments} segments could not be made")]
    Unmade {
        /// Of so many segments.
        segments: u64,
    },
    /// The record may be durable or not, or the store could not be closed in order.
    #[error("the store could not be closed in order")]
    Close(#[from] CloseError),
}

/// Carries out `order` on the stopped store at `dir`, or says what that would do. `applier` is the state above the
/// store, empty. Blocks: it reads the whole log. What it answers is durable.
///
/// # Errors
/// See [`RepairError`].
pub fn repair(
    disk: &Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    dir: &Path,
    applier: Arc<dyn Applier>,
    order: &RepairOrder,
    mut tell: impl FnMut(RepairStep),
) -> Result<Repaired, RepairError> {
    let store = StoppedStore::open(Arc::clone(disk), dir)?;
    let segment_size = store.segments.last().map(|segment| segment.len);
    let Some(found) = Found::walk(store, &mut tell) else {
        unreachable!("the verifier of a stopped store gives it back");
    };
    let mut repaired = found.judge(order)?;
    let is_nothing = repaired.lost.is_empty() && repaired.adopted.is_empty();
    if order.mode == RepairMode::Plan || is_nothing && found.known.lost.list().is_empty() {
        return Ok(repaired);
    }
    let transitions = found.transitions(&repaired);
    drop(found);

    tell(RepairStep::Replaying);
    let config = like_the_last(dir, segment_size);
    let (store, mut workers) =
        Store::open_stepped(Arc::clone(disk), clock, config, Arc::clone(&applier))?;
    if !is_nothing {
        store.record_repair(&mut workers, transitions, &*applier)?;
    }
    store.forget_lacking();
    let left =
        make_missing(&store, &mut workers, |done, total| tell(RepairStep::Making { done, total }));
    repaired.segments = store.status().rebuilt;
    repaired.epoch = Some(store.epoch());
    store.close_stepped(workers)?;
    if left > 0 { Err(RepairError::Unmade { segments: left }) } else { Ok(repaired) }
}

/// What a record of a repair says of a queue, as the queues take it.
pub(super) fn position_of(topic: TopicId, found: FoundQueue) -> QueuePosition {
    let FoundQueue { queue, next, first_segment, last_segment } = found;
    QueuePosition { key: QueueKey { topic, queue }, next, first_segment, last_segment }
}

/// What the walk found.
struct Found {
    store: StoppedStore,
    known: Known,
    positions: BTreeMap<QueueKey, QueuePosition>,
    damaged: Ranges,
    refused: Ranges,
}

impl Found {
    fn walk(store: StoppedStore, tell: &mut impl FnMut(RepairStep)) -> Option<Self> {
        let mut verifier = Verifier::of_log(store);
        let (damaged, refused) = (Ranges::default(), Ranges::default());
        let (mut missed, total) = (Vec::new(), verifier.log_len());
        loop {
            let verified = verifier.step();
            for finding in verified.findings {
                let Some(range) = finding.range else { continue };
                match finding.kind {
                    FindingKind::Damaged => damaged.add(&[range]),
                    FindingKind::Refused => refused.add(&[range]),
                    FindingKind::Lost => missed.extend(
                        finding.queue.zip(finding.offsets).map(|(key, offsets)| (key, offsets.end)),
                    ),
                    _ => {}
                }
            }
            tell(RepairStep::Checking { done: verifier.summary().log_bytes, total });
            if verified.is_over {
                break;
            }
        }
        let (store, known, walked) = verifier.into_stopped()?;
        // Segments before the first that is there: no record says that they are gone.
        let begin = store.extent().start;
        if begin > PhysicalOffset::ZERO {
            for gone in known.deleted.without(&(PhysicalOffset::ZERO..begin)) {
                damaged.add(&known.lost.without(&gone));
            }
        }
        let mut positions: BTreeMap<QueueKey, QueuePosition> = BTreeMap::new();
        for position in walked.into_iter().chain(known.queues.iter().copied()) {
            let known = positions.entry(position.key).or_insert(position);
            known.next = known.next.max(position.next);
            known.first_segment = known.first_segment.min(position.first_segment);
            known.last_segment = known.last_segment.max(position.last_segment);
        }
        // What a queue file knows of a damaged record: its offsets were given.
        for (key, end) in missed {
            if let Some(known) = positions.get_mut(&key) {
                known.next = known.next.max(end);
            }
        }
        Some(Self { store, known, positions, damaged, refused })
    }

    /// What the order comes to.
    fn judge(&self, order: &RepairOrder) -> Result<Repaired, RepairError> {
        let lost = Ranges::default();
        for range in &order.lose.ranges {
            lost.add(&self.given_up(range)?);
        }
        if order.lose.all_damaged {
            lost.add(&self.damaged.list());
        }
        let mut adopted: Vec<Adopted> = Vec::new();
        for adoption in &order.adopt {
            let found = self.adopt(adoption, &adopted)?;
            adopted.push(found);
        }
        let left = |ranges: &Ranges| {
            ranges.list().iter().flat_map(|range| lost.without(range)).collect::<Vec<_>>()
        };
        let mut unknown: Vec<_> = self.positions.keys().map(|key| key.topic).collect();
        unknown.dedup();
        unknown.retain(|id| {
            let is_known = self.known.topics.contains_key(id) || self.known.removed.contains(id);
            !is_known && adopted.iter().all(|adopted| adopted.id != *id)
        });
        Ok(Repaired {
            damaged: left(&self.damaged),
            refused: left(&self.refused),
            lost: lost.list().to_vec(),
            adopted,
            unknown,
            segments: 0,
            epoch: None,
        })
    }

    /// What of a range is damaged, if nothing in it is sound.
    fn given_up(
        &self,
        range: &Range<PhysicalOffset>,
    ) -> Result<Vec<Range<PhysicalOffset>>, RepairError> {
        let range = range.clone();
        let extent = self.store.extent();
        let known = [&self.damaged, &self.refused, &self.known.lost].map(Ranges::list);
        let starts = known.iter().filter_map(|ranges| ranges.first()).map(|range| range.start);
        let ends = known.iter().filter_map(|ranges| ranges.last()).map(|range| range.end);
        let log = starts.fold(extent.start, Ord::min)..ends.fold(extent.end, Ord::max);
        if range.start >= range.end || range.start < log.start || range.end > log.end {
            return Err(RepairError::Outside { range, log });
        }
        if let Some(at) = self.sound_record(&range).map_err(RepairError::Walk)? {
            return Err(RepairError::Sound { range, at });
        }
        let within = |ranges: &Ranges| -> Vec<Range<PhysicalOffset>> {
            let ranges = ranges.list();
            let part = ranges.iter().map(|r| r.start.max(range.start)..r.end.min(range.end));
            part.filter(|part| part.start < part.end).collect()
        };
        let mut found = within(&self.damaged);
        found.extend(within(&self.refused));
        // Given up before: done already.
        if found.is_empty() && within(&self.known.lost).is_empty() {
            return Err(RepairError::NotDamaged { range });
        }
        Ok(found)
    }

    /// The first sound record of which a byte lies in the range.
    fn sound_record(
        &self,
        range: &Range<PhysicalOffset>,
    ) -> Result<Option<PhysicalOffset>, FileError> {
        let crossed = |file: &&SegmentFile| file.base < range.end && range.start < file.end();
        for file in self.store.segments.iter().filter(crossed) {
            // What cannot be opened was told as refused, all of it.
            let Ok(segment) = file.segment(&*self.store.disk) else { continue };
            let from = file.base.plus(PAGE_LEN as u64);
            let mut walk = SegmentWalk::new(segment, self.store.identity.salt(file.base), from);
            while walk.at() < range.end {
                match walk.step()? {
                    Step::End => break,
                    Step::Gap { .. } | Step::Record { body: Err(_), .. } => {}
                    Step::Record { header, body: Ok(()) } => {
                        let (at, end) = (header.physical_offset, header.end());
                        // A record of an earlier life of its bytes is sound by itself, and damage all the same.
                        if range.start < end && !self.damaged.covers(&(at..end)) {
                            return Ok(Some(at));
                        }
                    }
                }
            }
        }
        Ok(None)
    }

    fn adopt(&self, adoption: &Adoption, before: &[Adopted]) -> Result<Adopted, RepairError> {
        let (id, name) = (adoption.id, &adoption.name);
        let known = self.known.topics.iter().map(|(id, name)| (*id, name));
        let mut taken = known.chain(before.iter().map(|before| (before.id, &before.name)));
        if let Some((other, known)) = taken.find(|(other, known)| *other == id || *known == name) {
            return Err(match other == id {
                true => RepairError::IdTaken { id, name: known.clone() },
                false => RepairError::NameTaken { name: name.clone(), id: other },
            });
        }
        if self.known.removed.contains(&id) {
            return Err(RepairError::Deleted { id });
        }
        let queues: Vec<_> = self.queues_of(id).collect();
        let Some(last) = queues.last() else {
            return Err(RepairError::NoRecords { id });
        };
        let queue = last.key.queue.get();
        let max = TopicSettings::MAX_QUEUES;
        if queue >= max {
            return Err(RepairError::TooManyQueues { id, queue, max });
        }
        let next = queues.iter().map(|position| (position.key, position.next)).collect();
        Ok(Adopted { id, name: name.clone(), queues: queue + 1, next })
    }

    fn queues_of(&self, id: TopicId) -> impl Iterator<Item = QueuePosition> {
        let of_it = self.positions.iter().filter(move |(key, _)| key.topic == id);
        of_it.map(|(_, position)| *position)
    }

    /// What the record says.
    fn transitions(&self, repaired: &Repaired) -> Vec<Transition> {
        let mut transitions = Vec::new();
        if !repaired.lost.is_empty() {
            transitions.push(Transition::RangesLost { ranges: repaired.lost.clone() });
        }
        for Adopted { id, name, queues, .. } in &repaired.adopted {
            let settings = TopicSettings::open(*queues, FlushMode::Sync, TopicType::Mixed);
            transitions.push(Transition::TopicCreated { id: *id, name: name.clone(), settings });
            let found = |position: QueuePosition| FoundQueue {
                queue: position.key.queue,
                next: position.next,
                first_segment: position.first_segment,
                last_segment: position.last_segment,
            };
            let queues = self.queues_of(*id).map(found).collect();
            transitions.push(Transition::QueuesFound { topic: *id, queues });
        }
        transitions
    }
}

impl Store {
    /// Appends the record of a repair, makes it durable and applies it, as replay would.
    fn record_repair(
        &self,
        workers: &mut Workers,
        transitions: Vec<Transition>,
        applier: &dyn Applier,
    ) -> Result<(), RepairError> {
        let shared = &self.shared;
        let mut payload = Vec::new();
        transitions.iter().for_each(|transition| transition.encode_into(&mut payload));
        let mut attempts = 0;
        let placed = loop {
            match shared.append_one(NewRecord::own(payload.clone())) {
                Ok(placed) => break placed,
                // No room in the last segment: make the next, and seal what is finished.
                Err(AppendError::NotReady) if attempts < ATTEMPTS => {
                    attempts += 1;
                    workers.allocate.step();
                    workers.flush.flush_all();
                    while workers.dispatch.step() == Progress::Worked {}
                    workers.seal.step();
                }
                Err(error) => return Err(RepairError::Append(error)),
            }
        };
        workers.flush.flush_all();
        if shared.is_poisoned() {
            return Err(RepairError::Append(AppendError::Unknown { at: placed.offset }));
        }
        let applied = applier.apply(&shared.topics, &payload, placed.end);
        applied.map_err(|source| OpenError::State { at: placed.end, source })?;
        for transition in transitions {
            match transition {
                Transition::RangesLost { ranges } => shared.lost.add(&ranges),
                Transition::QueuesFound { topic, queues } => {
                    for found in queues {
                        shared.queues.restore_position(position_of(topic, found));
                        shared.topics.restore_next(topic, found.queue, found.next);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Index files that were made while something was missing in their segment are made anew, if some of that was given
    /// up: with all of it, they lack nothing.
    fn forget_lacking(&self) {
        let shared = &self.shared;
        for segment in shared.log.segments().iter() {
            let (base, end) = (segment.base(), segment.end());
            let has_lost = shared.lost.without(&(base..end)) != [base..end];
            if has_lost && shared.indexes.is_lacking(base) {
                shared.indexes.mark_missing(base, end);
            }
        }
    }
}
