//! Gives back the space of what is gone, and keeps the state images that make that safe.
//!
//! | step | waits for | then |
//! | --- | --- | --- |
//! | look | a second; for messages a minute, a word, or a seal while space is short or a spare is wanted | what is free, what is dead |
//! | image | the dispatcher, room, then the flush | the state stands in the log behind its begin |
//! | record | the flush | `segments deleted` is durable: a hole there is not damage |
//! | sweep | – | `.cq`, `.idx`, then the segment, whose file may be kept for another (`spares.rs`); directories synced |
//!
//! A sealed segment is **dead** when each topic in it is deleted, or has nothing in it that is not gone. A dead
//! segment goes only if it ends before the begin of the newest durable image, and nothing pins it. So replay never
//! needs a deleted segment, with or without snapshots. While an image waits for room, what the one before it lets go
//! still goes: that makes the room. A segment with damage in it stays until an operator gives the damage up; so does
//! one whose files were made when the disk did not give all of it: what they do not name may be alive. While there is
//! such damage, a topic that is not known counts as one whose creation was lost, not as deleted.
//!
//! **Unfinished messages.** Of a dead segment the state above is asked whether a message in it was delivered to
//! somebody and is not finished: leased, or waiting to be delivered again. Then it stays, and [`Store::read_kept`]
//! still reads that message; nothing else of the segment can be read. It is asked by queue and offsets, for each queue
//! that the segment has of a topic with such messages, and by nothing but a look that found the segment dead. What
//! stays so is bounded by `keep_unfinished`: beyond it the oldest go nevertheless. While space is wanted and nothing
//! else can go, not even with another image, the oldest goes, one a second. A message that is delivered in the very
//! second in which its time is over, while the look is under way, may be missed.
//!
//! [`Store::read_kept`]: super::Store::read_kept
//!
//! On a full disk an image is taken in the last segment as soon as no other can be made, while there is room for it:
//! all that can be deleted then lies before it, whatever dies later (see `Class` in `append.rs`).
//!
//! The power may go after any of these writes: before the record is durable nothing was removed; after it the next
//! start sweeps on.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use super::append::NewRecord;
use super::image::{ImageWriter, Wrote};
use super::signal::Progress;
use super::topics::Cuts;
use super::{AppendError, HeldBy, Shared, Unfinished};
use crate::file::FileError;
use crate::file::segment::{Segment, Spare};
use crate::format::consume_queue::TopicRow;
use crate::format::names::FileKind;
use crate::format::state_record::Transition;
use crate::message::{PhysicalOffset, Timestamp, TopicId};
use crate::sync::{Arc, Ordering, lock};

/// How often free space is asked for.
const LOOK_AT_DISK: Duration = Duration::from_secs(1);
/// How often messages are looked at when nobody says that some are gone.
const LOOK_AT_MESSAGES: Duration = Duration::from_secs(60);
/// A look that is not due otherwise waits so many times as long as the last one took: 2 % of a core.
const LOOK_WORTH: u32 = 50;
/// How long to wait for what somebody else does next: the dispatcher, the flush, room in the log.
const AWAIT: Duration = Duration::from_millis(20);
const IDLE: Duration = Duration::from_secs(3600);
/// After so many finished segments an image is taken, if so many times its own size was written.
const IMAGE_SEGMENTS: usize = 8;
/// Sooner, if it frees so much. So images are 2 % of what is written.
const IMAGE_WORTH: u64 = 50;
/// Topics that are looked at for the one that keeps a segment for longest.
const ENOUGH: usize = 64;
/// Stands for no image.
pub(super) const NO_IMAGE: u64 = u64::MAX;
/// Queues of a segment that are asked for at once.
const ROWS: usize = 1_024;
/// Ranges in one record of deletion.
const RANGES: usize = 256;

/// Why a sealed segment stays: the topic that keeps it for longest.
#[derive(Clone, Copy, Debug)]
struct Keeper {
    topic: TopicId,
    newest: Timestamp,
}

/// The state of the clean worker.
pub struct CleanWorker {
    shared: Arc<Shared>,
    image: Option<ImageWriter>,
    /// The end of a record of deletion that was not durable when it was last looked at: nothing is swept before.
    recorded: Option<PhysicalOffset>,
    /// Why the sealed segments stay, as far as it was looked at. A segment whose keeper still keeps it is not read.
    keepers: HashMap<PhysicalOffset, Keeper>,
    looked_at_disk: Option<Duration>,
    looked_at_messages: Option<Duration>,
    /// How long that took.
    look_took: Duration,
    /// How far the log was sealed then.
    looked_to: PhysicalOffset,
    /// Up to where the retention in bytes was worked out.
    counted: PhysicalOffset,
    /// Segments stay for messages that are not finished; and when one of those went last nevertheless.
    has_unfinished: bool,
    gave_way: Option<Duration>,
    /// The last try to take an image came to nothing.
    image_failed: bool,
    /// Bytes of the last image, and what had been written when it was whole.
    image_len: u64,
    written: u64,
}

impl CleanWorker {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            image: None,
            recorded: None,
            keepers: HashMap::new(),
            looked_at_disk: None,
            looked_at_messages: None,
            look_took: Duration::ZERO,
            looked_to: PhysicalOffset::ZERO,
            counted: PhysicalOffset::ZERO,
            has_unfinished: false,
            gave_way: None,
            image_failed: false,
            image_len: 0,
            written: 0,
        }
    }

    /// Takes the next of the steps.
    pub fn step(&mut self) -> Progress {
        let shared = Arc::clone(&self.shared);
        if shared.is_poisoned() || shared.is_closed() {
            return Progress::Idle(IDLE);
        }
        if shared.free_unused_segment() {
            // As behind a sweep.
            self.looked_at_disk = None;
            return Progress::Worked;
        }
        self.look_at_disk(&shared);
        if let Some(image) = &mut self.image {
            return match image.step(&shared) {
                Ok(Wrote::Some) => Progress::Worked,
                Ok(Wrote::Waits) => wait(&shared),
                Ok(Wrote::Whole { begin, len }) => {
                    self.image = None;
                    self.image_failed = false;
                    self.image_len = len;
                    self.written = lock(&shared.tail).written();
                    shared.image_is_durable(begin, len);
                    tracing::info!(at = begin.get(), bytes = len, "state image taken");
                    // What waited for it can go now.
                    self.looked_at_messages = None;
                    Progress::Worked
                }
                // It waits for room, and what lies before the image before it may make some.
                Err(AppendError::NotReady) => match self.try_clean(&shared) {
                    Progress::Idle(_) if !shared.space_is_wanted() => wait(&shared),
                    progress => progress,
                },
                Err(error @ AppendError::TooLarge { .. }) => {
                    if let Some(last) = shared.log.segments().last() {
                        shared.no_image_fits(last);
                    }
                    tracing::error!(%error, "the state is too large for an image: segments that wait for one stay");
                    self.image = None;
                    self.image_failed = true;
                    Progress::Idle(LOOK_AT_MESSAGES)
                }
                Err(error) => {
                    tracing::warn!(%error, "the state image was given up; it is taken again");
                    shared.room_for_image.store(0, Ordering::Relaxed);
                    self.image = None;
                    self.image_failed = true;
                    Progress::Idle(LOOK_AT_DISK)
                }
            };
        }
        self.try_clean(&shared)
    }

    fn try_clean(&mut self, shared: &Shared) -> Progress {
        self.clean(shared).unwrap_or_else(|error| {
            tracing::warn!(%error, "deleting segments failed; it is tried again");
            Progress::Idle(LOOK_AT_DISK)
        })
    }

    fn look_at_disk(&mut self, shared: &Shared) {
        let now = shared.clock.elapsed();
        if self.looked_at_disk.is_some_and(|last| now.saturating_sub(last) < LOOK_AT_DISK) {
            return;
        }
        self.looked_at_disk = Some(now);
        // A disk that does not say is not short of space.
        let free_space = || shared.disk.free_space(&shared.config.dir).unwrap_or(u64::MAX);
        let mut free = free_space();
        if free < shared.config.disk_reserve && shared.unlink_spares() {
            free = free_space();
        }
        let is_short = free < shared.config.disk_reserve;
        if shared.disk_is_short.swap(is_short, Ordering::Relaxed) != is_short {
            if is_short {
                tracing::warn!(free, "below store.disk_reserve: sends are refused");
                self.looked_at_messages = None;
            } else {
                tracing::info!(free, "there is space again: sends are taken");
            }
            shared.space.notify_waiters();
        }
    }

    fn clean(&mut self, shared: &Shared) -> Result<Progress, FileError> {
        if let Some(end) = self.recorded {
            if shared.marks.flushed.get() < end {
                return Ok(wait(shared));
            }
            self.recorded = None;
        }
        if shared.give_up_spares() || shared.sweep()? {
            // Nothing that is not finished gives way before it is known what space that made.
            self.looked_at_disk = None;
            return Ok(Progress::Worked);
        }
        let now = shared.clock.elapsed();
        let told = shared.clean_asked.swap(false, Ordering::Relaxed);
        let sealed = shared.marks.sealed.get();
        // Who waits for space does not wait a minute for a segment that was not sealed at the last look. Nor does the
        // next segment, which the dead one may become.
        let is_wanted = |since: Duration| {
            let is_cheap = since >= self.look_took.saturating_mul(LOOK_WORTH);
            shared.space_is_wanted() || shared.spares.wanted() > 0 && is_cheap
        };
        let is_due = |last: Duration| {
            let since = now.saturating_sub(last);
            let gives_way = self.has_unfinished && shared.space_is_wanted();
            since >= LOOK_AT_MESSAGES
                || sealed != self.looked_to && is_wanted(since)
                || gives_way && since >= LOOK_AT_DISK.max(self.look_took.saturating_mul(LOOK_WORTH))
        };
        if !told && self.looked_at_messages.is_some_and(|last| !is_due(last)) {
            return Ok(match self.image_is_due(shared, 0) {
                true => self.begin_image(shared),
                false => Progress::Idle(LOOK_AT_DISK),
            });
        }
        self.count_bytes(shared, told);
        let dead = self.dead(shared);
        let (dead, given_up) = self.without_unfinished(shared, dead, now);
        (self.looked_at_messages, self.looked_to) = (Some(now), sealed);
        self.look_took = shared.clock.elapsed().saturating_sub(now);
        let safe = shared.newest_image().unwrap_or_default();
        let (free, waiting): (Vec<_>, Vec<_>) =
            dead.into_iter().partition(|segment| segment.end() <= safe);
        if !free.is_empty() {
            let going = free.get(..RANGES).unwrap_or(&free);
            let ranges = going.iter().map(|segment| segment.base()..segment.end());
            let progress = self.record(shared, ranges.collect());
            let lost = going.iter().filter(|segment| given_up.contains(&segment.base())).count();
            if lost > 0 && self.recorded.is_some() {
                self.gave_way = Some(now);
                shared.metrics.unfinished_deleted.add(lost as u64);
                tracing::warn!(
                    segments = lost,
                    keep_unfinished = shared.config.keep_unfinished,
                    space_is_wanted = shared.space_is_wanted(),
                    "segments are deleted with messages in them that were delivered and are not finished"
                );
            }
            return Ok(progress);
        }
        let waiting: u64 = waiting.iter().map(|segment| segment.len()).sum();
        if self.image_is_due(shared, waiting) {
            return Ok(self.begin_image(shared));
        }
        Ok(Progress::Idle(LOOK_AT_DISK))
    }

    fn begin_image(&mut self, shared: &Shared) -> Progress {
        match ImageWriter::begin(shared) {
            Ok(image) => {
                self.image = Some(image);
                Progress::Worked
            }
            Err(AppendError::NotReady) => {
                self.looked_at_messages = None;
                self.image_failed = true;
                wait(shared)
            }
            Err(error) => {
                self.image_failed = true;
                tracing::warn!(%error, "a state image cannot be begun");
                Progress::Idle(LOOK_AT_DISK)
            }
        }
    }

    /// Appends the record of a deletion.
    fn record(&mut self, shared: &Shared, ranges: Vec<Range<PhysicalOffset>>) -> Progress {
        let mut payload = Vec::new();
        Transition::SegmentsDeleted { ranges: ranges.clone() }.encode_into(&mut payload);
        let mut expired = Vec::new();
        for topic in shared.topics.all() {
            if let Some(below) = topic.keep_expired_by_bytes() {
                let (id, before, queues) = (topic.id(), Timestamp::ZERO, Vec::new());
                let purged = PhysicalOffset::ZERO;
                Transition::TopicExpired { id, below, before, queues, purged }
                    .encode_into(&mut payload);
                expired.push((topic, below));
            }
        }
        // There may be more than go into one record.
        self.looked_at_messages = None;
        let _recording = lock(&shared.recording_deletions);
        match shared.append_one(NewRecord::own(payload)) {
            Ok(placed) => {
                shared.deleted.add(&ranges);
                for (topic, below) in expired {
                    topic.expired_by_bytes_is_recorded(below);
                }
                self.recorded = Some(placed.end);
                Progress::Worked
            }
            Err(AppendError::NotReady) => wait(shared),
            Err(error) => {
                tracing::warn!(%error, "the deletion of segments cannot be recorded");
                Progress::Idle(LOOK_AT_DISK)
            }
        }
    }

    /// Whether an image is due: for replay without snapshots, so that `waiting` bytes of dead segments can go, or
    /// while there is room for it.
    fn image_is_due(&self, shared: &Shared, waiting: u64) -> bool {
        if self.image.is_some() {
            return false;
        }
        let begin = shared.newest_image().unwrap_or_default();
        let sealed = shared.marks.sealed.get();
        let segments = shared.log.segments();
        let since = segments.iter().filter(|s| s.base() > begin && s.end() <= sealed).count();
        let worth = self.image_len.saturating_mul(IMAGE_WORTH);
        let written = lock(&shared.tail).written().saturating_sub(self.written);
        let is_due = since >= IMAGE_SEGMENTS && written >= worth;
        let is_worth = waiting > worth;
        is_due || waiting > 0 && (is_worth || shared.space_is_wanted()) || shared.lacks_image()
    }

    /// Of dead segments those that go: not those that stay for unfinished messages. Of those that go, the ones that
    /// have such messages nevertheless.
    fn without_unfinished(
        &mut self,
        shared: &Shared,
        dead: Vec<Arc<Segment>>,
        now: Duration,
    ) -> (Vec<Arc<Segment>>, Vec<PhysicalOffset>) {
        let (mut going, mut unfinished) = (Vec::new(), VecDeque::new());
        for segment in dead {
            match shared.has_unfinished(&segment) {
                Ok(Some(true)) => unfinished.push_back(segment),
                Ok(Some(false)) => going.push(segment),
                Ok(None) => {}
                Err(error) => shared.look_again(&error),
            }
        }
        let mut kept: u64 = unfinished.iter().map(|segment| segment.len()).sum();
        // What lies behind the newest image goes with the next one, unless there is no room for that.
        let safe = shared.newest_image().unwrap_or_default();
        let has_no_image = self.image.is_some() || self.image_failed;
        let is_stuck =
            going.iter().all(|segment| segment.end() > safe) && (going.is_empty() || has_no_image);
        let is_time = self.gave_way.is_none_or(|last| now.saturating_sub(last) >= LOOK_AT_DISK);
        let mut gives_way = is_stuck && is_time && shared.space_is_wanted();
        let mut given_up = Vec::new();
        while kept > shared.config.keep_unfinished || gives_way {
            let Some(oldest) = unfinished.pop_front() else { break };
            gives_way = false;
            kept -= oldest.len();
            given_up.push(oldest.base());
            going.push(oldest);
        }
        going.sort_unstable_by_key(|segment| segment.base());
        self.has_unfinished = !unfinished.is_empty();
        *lock(&shared.unfinished) = Unfinished { segments: unfinished.len() as u64, bytes: kept };
        (going, given_up)
    }

    /// The sealed segments in which nothing is alive, and that nothing pins. Notes why the others stay.
    fn dead(&mut self, shared: &Shared) -> Vec<Arc<Segment>> {
        let now = shared.store_time();
        let sealed = shared.marks.sealed.get();
        let segments = shared.log.segments();
        let unknown = shared.unknown_topics();
        let mut dead = Vec::new();
        let mut keepers = HashMap::new();
        for segment in segments.iter().take_while(|segment| segment.end() <= sealed) {
            let known = self.keepers.get(&segment.base()).copied();
            let keeper = match known.filter(|keeper| shared.keeps(*keeper, segment, now)) {
                Some(keeper) => Some(keeper),
                None => match shared.keeper(segment, now, unknown) {
                    Ok(Kept::By(keeper)) => Some(keeper),
                    Ok(Kept::Unknown) => continue,
                    Ok(Kept::No) => None,
                    Err(error) => {
                        shared.look_again(&error);
                        continue;
                    }
                },
            };
            match keeper {
                Some(keeper) => {
                    keepers.insert(segment.base(), keeper);
                }
                None if shared.pins.is_pinned(segment.base()) => {}
                None => dead.push(Arc::clone(segment)),
            }
        }
        let mut held: HashMap<TopicId, HeldBy> = HashMap::new();
        for segment in segments.iter() {
            if let Some(keeper) = keepers.get(&segment.base()) {
                let topic = keeper.topic;
                let by = held.entry(topic).or_insert(HeldBy { topic, segments: 0, bytes: 0 });
                by.segments += 1;
                by.bytes += segment.len();
            }
        }
        let mut held: Vec<_> = held.into_values().collect();
        held.sort_unstable_by_key(|by| (std::cmp::Reverse(by.segments), by.topic));
        shared.warn_of_holders(&held, segments.len());
        *lock(&shared.held) = held;
        self.keepers = keepers;
        dead
    }

    /// At a start, before anybody reads: works out again what was gone by the retention in bytes. What was sealed may
    /// not be known as that any more, so all finished segments are counted.
    pub(super) fn count_at_start(&mut self) {
        let shared = Arc::clone(&self.shared);
        let finished = shared.log.segments().last().map_or(PhysicalOffset::ZERO, |s| s.base());
        // What cannot be read yet is counted by a later look.
        self.count_bytes_below(&shared, finished);
    }

    fn count_bytes(&mut self, shared: &Shared, told: bool) {
        let sealed = shared.marks.sealed.get();
        // A file that has to be made again first is counted by a later look.
        if (sealed != self.counted || told) && self.count_bytes_below(shared, sealed) {
            self.counted = sealed;
        }
    }

    /// Works out which segments are beyond the retention in bytes of their topics: of the segments below `end`, the
    /// newest whole ones that hold at least so many bytes stay. `false`: a file is missing or cannot be read, and more
    /// may go.
    fn count_bytes_below(&self, shared: &Shared, end: PhysicalOffset) -> bool {
        let mut left: HashMap<TopicId, u64> = HashMap::new();
        for topic in shared.topics.all() {
            if let Some(bytes) = topic.retention_bytes() {
                left.insert(topic.id(), bytes);
            }
        }
        let mut is_whole = true;
        let segments = shared.log.segments();
        for segment in segments.iter().rev().filter(|segment| segment.end() <= end) {
            if left.is_empty() {
                break;
            }
            let mut count = |row: &TopicRow| {
                if let Some(bytes) = left.get_mut(&row.topic) {
                    *bytes = bytes.saturating_sub(row.bytes);
                    if *bytes == 0 {
                        left.remove(&row.topic);
                        if let Some(topic) = shared.topics.get(row.topic) {
                            topic.expire_by_bytes(segment.base());
                        }
                    }
                }
                true
            };
            match shared.queues.topics_in_memory(segment.base()) {
                Some(rows) => rows.iter().for_each(|row| {
                    count(row);
                }),
                None => {
                    is_whole &=
                        shared.queues.each_topic(segment.base(), count).unwrap_or_else(|error| {
                            shared.look_again(&error);
                            false
                        });
                }
            }
        }
        is_whole
    }
}

/// What a topic is that has messages and is not known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unknown {
    Deleted,
    /// The record that made it may be damaged.
    MayExist,
}

/// What keeps a segment.
enum Kept {
    By(Keeper),
    No,
    /// Its queue file has to be made again first.
    Unknown,
}

/// Asks those who are waited for to go on.
fn wait(shared: &Shared) -> Progress {
    shared.dispatch_signal.wake();
    shared.allocate_signal.wake();
    Progress::Idle(AWAIT)
}

impl Shared {
    /// A queue file cannot be read: its segment stays, and is not left for a minute. What made messages gone is not
    /// said again.
    fn look_again(&self, error: &FileError) {
        tracing::warn!(%error, "whether a segment can go is not known; it is looked at again");
        self.clean_asked.store(true, Ordering::Relaxed);
    }

    /// Whether sends are refused for want of space.
    pub(super) fn space_is_wanted(&self) -> bool {
        self.disk_is_short.load(Ordering::Relaxed) || lock(&self.no_space).is_some()
    }

    /// Whether `keeper` still keeps the segment.
    fn keeps(&self, keeper: Keeper, segment: &Segment, now: Timestamp) -> bool {
        let Some(topic) = self.topics.get(keeper.topic) else { return false };
        let cuts = topic.topic_cuts(now);
        let is_gone = segment.end() <= cuts.below || keeper.newest < cuts.before;
        !is_gone && !topic.has_purged()
    }

    /// What topics are that are not known. The start may have met damage that held state; an earlier one left behind
    /// index files that say that they lack something. What one would say that has to be made again, is not known yet.
    fn unknown_topics(&self) -> Unknown {
        match self.state_may_be_missing || !self.indexes.are_whole() {
            true => Unknown::MayExist,
            false => Unknown::Deleted,
        }
    }

    /// The topic that keeps a sealed segment for longest.
    fn keeper(
        &self,
        segment: &Segment,
        now: Timestamp,
        unknown: Unknown,
    ) -> Result<Kept, FileError> {
        let mut keeper: Option<(u64, Keeper)> = None;
        let (mut candidates, mut certain) = (Vec::new(), 0);
        let is_known = self.queues.each_topic(segment.base(), |row| {
            if let Some(until) = self.kept_until(row, segment, now, unknown) {
                candidates.push((until, Keeper { topic: row.topic, newest: row.newest }));
                let topic = self.topics.get(row.topic);
                certain += usize::from(!topic.is_some_and(|topic| topic.has_purged()));
            }
            // A segment may hold a million topics; the first that keep it are reason enough.
            certain < ENOUGH
        })?;
        if !is_known || !self.indexes.is_whole(segment.base()) || self.has_damage(segment) {
            return Ok(Kept::Unknown);
        }
        for (until, candidate) in candidates {
            if keeper.is_none_or(|(best, _)| until > best)
                && !self.is_purged(candidate.topic, segment)?
            {
                keeper = Some((until, candidate));
            }
        }
        Ok(keeper.map_or(Kept::No, |(_, keeper)| Kept::By(keeper)))
    }

    /// Until when a topic keeps the segment, by what its row says; `None` if it does not.
    fn kept_until(
        &self,
        row: &TopicRow,
        segment: &Segment,
        now: Timestamp,
        unknown: Unknown,
    ) -> Option<u64> {
        let Some(topic) = self.topics.get(row.topic) else {
            return (unknown == Unknown::MayExist).then_some(u64::MAX);
        };
        let Cuts { below, before, .. } = topic.topic_cuts(now);
        if segment.end() <= below || row.newest < before {
            return None;
        }
        Some(topic.retention_ms().map_or(u64::MAX, |ms| row.newest.get().saturating_add(ms)))
    }

    /// Whether each queue of a topic is purged beyond what the segment holds of it.
    fn is_purged(&self, topic: TopicId, segment: &Segment) -> Result<bool, FileError> {
        let Some(topic) = self.topics.get(topic).filter(|topic| topic.has_purged()) else {
            return Ok(false);
        };
        let mut is_purged = true;
        let is_known = self.queues.each_queue_of(segment.base(), topic.id(), |row| {
            is_purged = row.next <= topic.purged(row.key.queue);
            is_purged
        })?;
        Ok(is_known && is_purged)
    }

    /// Whether a segment has messages that were delivered and are not finished; `None`: its queue file has to be made
    /// again first. What was purged is nobody's any more.
    fn has_unfinished(&self, segment: &Segment) -> Result<Option<bool>, FileError> {
        let mut topics = Vec::new();
        let mut is_known = self.queues.each_topic(segment.base(), |row| {
            if self.applier.has_open(row.topic) {
                topics.extend(self.topics.get(row.topic));
            }
            true
        })?;
        let mut is_open = false;
        for topic in topics.iter().filter(|topic| segment.end() > topic.purged_below()) {
            let mut rows = Vec::new();
            is_known &= self.queues.each_queue_of(segment.base(), topic.id(), |row| {
                let first = row.first.max(topic.purged(row.key.queue));
                if first < row.next {
                    rows.push((row.key.queue, first..row.next));
                }
                if rows.len() >= ROWS {
                    is_open = self.applier.is_open(topic.id(), &rows);
                    rows.clear();
                }
                !is_open
            })?;
            if is_open || self.applier.is_open(topic.id(), &rows) {
                return Ok(Some(true));
            }
        }
        Ok(is_known.then_some(false))
    }

    /// Whether there is no segment behind the last, and no image in it that could stand for all before it.
    pub(super) fn lacks_image(&self) -> bool {
        self.is_full() && self.log.segments().last().is_some_and(|last| !self.reserve_is_open(last))
    }

    fn has_damage(&self, segment: &Segment) -> bool {
        self.damage.overlaps(&(segment.base()..segment.end()))
    }

    /// Where the newest image begins that is whole and durable.
    pub(super) fn newest_image(&self) -> Option<PhysicalOffset> {
        let begin = self.newest_image.load(Ordering::Acquire);
        (begin != NO_IMAGE).then(|| PhysicalOffset::new(begin))
    }

    fn image_is_durable(&self, begin: PhysicalOffset, len: u64) {
        self.newest_image.store(begin.get(), Ordering::Release);
        self.metrics.images.increment();
        self.metrics.image_bytes.add(len);
        // The checkpoint names it.
        self.flush_signal.wake();
        // State may have waited for it.
        self.space.notify_waiters();
    }

    /// There is damage before `end`: if it may lie in the newest image, nothing is deleted before there is another.
    pub(super) fn may_lack_image(&self, end: PhysicalOffset) {
        let Some(begin) = self.newest_image() else { return };
        // One that was taken meanwhile is not meant.
        let (known, none) = (begin.get(), NO_IMAGE);
        let order = (Ordering::AcqRel, Ordering::Relaxed);
        if end > begin && self.newest_image.compare_exchange(known, none, order.0, order.1).is_ok()
        {
            tracing::warn!(
                at = known,
                "the newest state image may be damaged; another is taken first"
            );
            // The checkpoint names it no more.
            self.flush_signal.wake();
        }
    }

    /// Removes what is left of deleted segments. `true`: there was some.
    fn sweep(&self) -> Result<bool, FileError> {
        let is_gone = |segment: &&Arc<Segment>| {
            let base = segment.base();
            self.deleted.covers(&(base..segment.end())) && self.pins.close(base)
        };
        let gone: Vec<_> = self.log.segments().iter().filter(is_gone).cloned().collect();
        if gone.is_empty() {
            return Ok(false);
        }
        let (count, mut spares) = (gone.len(), Vec::new());
        if let Err(error) = self.remove(gone, &mut spares) {
            for spare in spares {
                if let Err(error) = self.unlink_spare(&spare) {
                    tracing::warn!(%error, "a deleted segment's file stays until the next start");
                }
            }
            return Err(error);
        }
        // Not before: what is written to a file that may still have its old name would pass for that segment.
        let kept = spares.len();
        self.spares.keep(spares);
        tracing::info!(
            segments = count,
            kept,
            log_begins = self.log.min().get(),
            "segments deleted"
        );
        self.space_came_back();
        Ok(true)
    }

    /// Removes segments, and lets the directories forget them. Their files are unlinked, or are in `spares`.
    fn remove(&self, gone: Vec<Arc<Segment>>, spares: &mut Vec<Spare>) -> Result<(), FileError> {
        let dir = self.config.dir.join(FileKind::Segment.directory());
        for segment in gone {
            let (base, len) = (segment.base(), segment.len());
            self.queues.delete(base)?;
            self.indexes.delete(base)?;
            self.log.remove(base);
            self.pins.forget(base);
            lock(&self.given_up).retain(|known| *known != base);
            match self.spare(segment, spares.len()) {
                Some(spare) => spares.push(spare),
                None => match self.disk.unlink(&dir.join(FileKind::Segment.name(base))) {
                    Ok(()) | Err(FileError::NotFound { .. }) => {}
                    Err(error) => {
                        // It is deleted all the same: the next start removes the file.
                        tracing::warn!(%error, "a deleted segment's file stays until the next start");
                    }
                },
            }
            self.metrics.deleted_segments.increment();
            self.metrics.deleted_bytes.add(len);
        }
        for kind in [FileKind::ConsumeQueue, FileKind::Index, FileKind::Segment] {
            self.disk.sync_dir(&self.config.dir.join(kind.directory()))?;
        }
        Ok(())
    }

    /// Says which topic keeps most of the log, once it keeps much and others could go.
    fn warn_of_holders(&self, held: &[HeldBy], segments: usize) {
        let Some(most) = held.first() else { return };
        let share = usize::try_from(most.segments).unwrap_or(usize::MAX);
        let mut warned = lock(&self.warned_of);
        if held.len() > 1 && share >= 16 && share * 2 > segments && *warned != Some(most.topic) {
            *warned = Some(most.topic);
            tracing::warn!(
                topic = most.topic.get(),
                segments = most.segments,
                bytes = most.bytes,
                "one topic keeps most of the log: segments that others could give back stay for it"
            );
        }
    }
}
