//! What the store knows of a topic: how many queues, what its acknowledgements wait for, what of it is gone, whether
//! it is dead, and the next offset of each queue. Names, types and rules are the broker's.

use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;

use arc_swap::ArcSwapOption;
use dashmap::DashMap;

use super::min::STEP_MS;
use crate::message::{
    FlushMode, PhysicalOffset, QueueId, QueueOffset, Retention, Timestamp, TopicId, TopicSettings,
};
use crate::sync::{Arc, AtomicBool, AtomicU8, AtomicU32, AtomicU64, Mutex, Ordering, fence, lock};

/// A limit that is none.
const UNLIMITED: u64 = u64::MAX;

type Purged = HashMap<QueueId, QueueOffset, foldhash::fast::RandomState>;

/// A topic incarnation as the store sees it; shared by all who send to it or read from it.
pub struct TopicHandle {
    id: TopicId,
    /// `FlushMode` as a number. Acquire, so that who sees a change to sync sees the floor that goes with it; a sender
    /// that races with a change may see either mode.
    flush: AtomicU8,
    /// What was visible when the mode last went from async to sync stays visible.
    floor: AtomicU64,
    /// Set before the delete is appended, read under the append lock: nothing is stored behind the delete.
    dead: AtomicBool,
    /// Somebody is told when its queues can be read.
    watched: AtomicBool,
    /// How many queues there are. Release after the cells are there.
    queues: AtomicU32,
    next: Cells,
    /// Relaxed, these two and the marks below: who reads beside a change gets the old answer or the new one.
    retention_ms: AtomicU64,
    retention_bytes: AtomicU64,
    /// Records that start below are gone, stored before are gone. Only ever raised.
    below: AtomicU64,
    before: AtomicU64,
    /// Of that, records that start below were purged.
    purged_below: AtomicU64,
    /// As `below`, by the retention in bytes: worked out from the files of sealed segments.
    below_by_bytes: AtomicU64,
    /// How far of that a record says.
    recorded_by_bytes: AtomicU64,
    /// Messages of a queue below its offset are gone.
    purged: ArcSwapOption<Purged>,
    /// Odd while messages are about to be kept longer: who looks what is gone waits for `changing`, and looks again if
    /// it moved meanwhile. SeqCst, as the clock's stamps are.
    version: AtomicU64,
    changing: Mutex<()>,
}

/// The next queue offset of each queue. Changed only under the append lock, hence Relaxed. Cells are added behind, and
/// never move: an append beside it is not disturbed.
struct Cells {
    cells: Box<[AtomicU64]>,
    more: OnceLock<Box<Cells>>,
}

impl Cells {
    fn new(count: usize) -> Self {
        Self { cells: (0..count).map(|_| AtomicU64::new(0)).collect(), more: OnceLock::new() }
    }

    fn get(&self, mut index: usize) -> Option<&AtomicU64> {
        let mut run = self;
        loop {
            match run.cells.get(index) {
                Some(cell) => return Some(cell),
                None => index -= run.cells.len(),
            }
            run = run.more.get()?;
        }
    }

    /// Makes room for `count` in all, and for a quarter more, so that many small steps do not make a long chain.
    fn grow_to(&self, count: usize) {
        let (mut run, mut known) = (self, self.cells.len());
        while let Some(more) = run.more.get() {
            run = more;
            known += run.cells.len();
        }
        if count > known {
            // One at a time: settings change under the mutex of the topic table.
            run.more.get_or_init(|| Box::new(Self::new((count - known).max(known / 4))));
        }
    }
}

/// What of a topic's queue is gone, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cuts {
    /// Records that start below.
    pub(crate) below: PhysicalOffset,
    /// Records that were stored before.
    pub(crate) before: Timestamp,
    /// Messages below this offset of the queue.
    pub(crate) purged: QueueOffset,
}

impl Cuts {
    /// Whether a record is gone that starts at `offset`, was stored at `time`, and whose messages end at `queue_end`.
    /// Along a queue this turns from true to false once.
    pub(crate) fn is_gone(
        &self,
        offset: PhysicalOffset,
        time: Timestamp,
        queue_end: QueueOffset,
    ) -> bool {
        offset < self.below || time < self.before || queue_end <= self.purged
    }
}

impl fmt::Debug for TopicHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TopicHandle").field("id", &self.id).field("queues", &self.queues()).finish()
    }
}

impl TopicHandle {
    fn new(id: TopicId, settings: &TopicSettings) -> Self {
        Self {
            id,
            flush: AtomicU8::new(encode(settings.flush)),
            floor: AtomicU64::new(0),
            dead: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            version: AtomicU64::new(0),
            changing: Mutex::new(()),
            queues: AtomicU32::new(settings.queues),
            next: Cells::new(settings.queues as usize),
            retention_ms: AtomicU64::new(settings.retention.time_ms.unwrap_or(UNLIMITED)),
            retention_bytes: AtomicU64::new(settings.retention.bytes.unwrap_or(UNLIMITED)),
            below: AtomicU64::new(0),
            before: AtomicU64::new(0),
            purged_below: AtomicU64::new(0),
            below_by_bytes: AtomicU64::new(0),
            recorded_by_bytes: AtomicU64::new(0),
            purged: ArcSwapOption::empty(),
        }
    }

    /// The incarnation.
    pub fn id(&self) -> TopicId {
        self.id
    }

    /// How many queues it has; their ids are below.
    pub fn queues(&self) -> u32 {
        self.queues.load(Ordering::Acquire)
    }

    /// What its acknowledgements and its readers wait for.
    pub fn flush(&self) -> FlushMode {
        if self.flush.load(Ordering::Acquire) == encode(FlushMode::Async) {
            FlushMode::Async
        } else {
            FlushMode::Sync
        }
    }

    /// Takes over other settings: more queues, which begin at offset 0, another flush mode from now on, another
    /// retention. `appended` is the store's mark of this moment: what was visible up to it stays so. One at a time.
    pub fn configure(&self, settings: &TopicSettings, appended: PhysicalOffset) {
        if self.flush() == FlushMode::Async {
            self.floor.fetch_max(appended.get(), Ordering::Release);
        }
        self.flush.store(encode(settings.flush), Ordering::Release);
        self.next.grow_to(settings.queues as usize);
        self.queues.fetch_max(settings.queues, Ordering::Release);
        let Retention { time_ms, bytes } = settings.retention;
        self.retention_ms.store(time_ms.unwrap_or(UNLIMITED), Ordering::Relaxed);
        self.retention_bytes.store(bytes.unwrap_or(UNLIMITED), Ordering::Relaxed);
    }

    /// From now on these messages are gone: those of records that start below `below` or were stored before `before`,
    /// and those of single queues below an offset. Nothing moves back. With queues one at a time.
    pub fn expire(
        &self,
        below: PhysicalOffset,
        before: Timestamp,
        queues: &[(QueueId, QueueOffset)],
    ) {
        self.below.fetch_max(below.get(), Ordering::Relaxed);
        self.before.fetch_max(before.get(), Ordering::Relaxed);
        if !queues.is_empty() {
            let mut purged = self.purged.load().as_deref().cloned().unwrap_or_default();
            for (queue, offset) in queues {
                let known = purged.entry(*queue).or_default();
                *known = (*known).max(*offset);
            }
            self.purged.store(Some(Arc::new(purged)));
        }
    }

    /// Records that start below `below` were purged: they are not kept for who had them before either. Never moves
    /// back; comes before the [`TopicHandle::expire`] that makes them gone.
    pub fn purge(&self, below: PhysicalOffset) {
        self.purged_below.fetch_max(below.get(), Ordering::Relaxed);
    }

    /// What [`TopicHandle::purge`] was told so far.
    pub fn purged_below(&self) -> PhysicalOffset {
        PhysicalOffset::new(self.purged_below.load(Ordering::Relaxed))
    }

    /// What [`TopicHandle::expire`] was told so far: place, time, and queues in order.
    pub fn expired(&self) -> (PhysicalOffset, Timestamp, Vec<(QueueId, QueueOffset)>) {
        let mut queues: Vec<_> = match &*self.purged.load() {
            Some(purged) => purged.iter().map(|(queue, offset)| (*queue, *offset)).collect(),
            None => Vec::new(),
        };
        queues.sort_unstable();
        let below = PhysicalOffset::new(self.below.load(Ordering::Relaxed));
        (below, Timestamp::new(self.before.load(Ordering::Relaxed)), queues)
    }

    /// What is gone of a queue at the store time `now`.
    pub(crate) fn cuts(&self, queue: QueueId, now: Timestamp) -> Cuts {
        let Cuts { below, before, .. } = self.topic_cuts(now);
        Cuts { below, before, purged: self.purged(queue) }
    }

    /// Keeps messages longer from now on. What is gone at this moment, which `now` reads from the store's clock, stays
    /// gone: whoever looks sees the old limit or the new one, and nothing that another one saw go. Returns what is
    /// gone. One at a time.
    pub(crate) fn keep_longer(
        &self,
        now: impl FnOnce() -> Timestamp,
        settings: &TopicSettings,
    ) -> Cuts {
        let _changing = lock(&self.changing);
        self.version.fetch_add(1, Ordering::SeqCst);
        // Not before: who looks by a later reading of the clock waits for the new limit.
        let cuts = self.cuts_now(now());
        self.expire(cuts.below, cuts.before, &[]);
        self.configure(settings, PhysicalOffset::ZERO);
        self.version.fetch_add(1, Ordering::SeqCst);
        cuts
    }

    /// What is gone of all queues at the store time `now`, by age in steps of [`STEP_MS`].
    pub(crate) fn topic_cuts(&self, now: Timestamp) -> Cuts {
        loop {
            let version = self.version.load(Ordering::SeqCst);
            if version % 2 == 1 {
                drop(lock(&self.changing));
                continue;
            }
            let cuts = self.cuts_now(now);
            fence(Ordering::SeqCst);
            if self.version.load(Ordering::SeqCst) == version {
                return cuts;
            }
        }
    }

    fn cuts_now(&self, now: Timestamp) -> Cuts {
        let now = now.get() - now.get() % STEP_MS;
        let below = self.below.load(Ordering::Relaxed);
        let below = below.max(self.below_by_bytes.load(Ordering::Relaxed));
        // Without a limit nothing is older than it.
        let oldest = now.saturating_sub(self.retention_ms.load(Ordering::Relaxed));
        Cuts {
            below: PhysicalOffset::new(below),
            before: Timestamp::new(oldest.max(self.before.load(Ordering::Relaxed))),
            purged: QueueOffset::ZERO,
        }
    }

    /// Whether single queues of it were purged.
    pub(crate) fn has_purged(&self) -> bool {
        self.purged.load().is_some()
    }

    /// Below this offset a queue was purged.
    pub(crate) fn purged(&self, queue: QueueId) -> QueueOffset {
        match &*self.purged.load() {
            Some(purged) => purged.get(&queue).copied().unwrap_or_default(),
            None => QueueOffset::ZERO,
        }
    }

    /// The retention in time, if it has one.
    pub(crate) fn retention_ms(&self) -> Option<u64> {
        let ms = self.retention_ms.load(Ordering::Relaxed);
        (ms != UNLIMITED).then_some(ms)
    }

    /// The retention in bytes, if it has one.
    pub(crate) fn retention_bytes(&self) -> Option<u64> {
        let bytes = self.retention_bytes.load(Ordering::Relaxed);
        (bytes != UNLIMITED).then_some(bytes)
    }

    /// By its retention in bytes, records that start below are gone. Never moves back.
    pub(crate) fn expire_by_bytes(&self, below: PhysicalOffset) {
        self.below_by_bytes.fetch_max(below.get(), Ordering::Relaxed);
    }

    /// Before segments are deleted: the place below which a record has to make gone for good what is gone by the
    /// retention in bytes, if it could not be counted again and no record says so. Where single queues are purged, a
    /// segment may be deleted behind a place from which on so many bytes were counted.
    pub(crate) fn keep_expired_by_bytes(&self) -> Option<PhysicalOffset> {
        let below = self.below_by_bytes.load(Ordering::Relaxed);
        if !self.has_purged() || below <= self.recorded_by_bytes.load(Ordering::Relaxed) {
            return None;
        }
        let below = PhysicalOffset::new(below);
        // First: a snapshot that is taken meanwhile passes over the record if it has seen a later one.
        self.expire(below, Timestamp::ZERO, &[]);
        Some(below)
    }

    /// The record of what [`TopicHandle::keep_expired_by_bytes`] gave is appended: it needs no other.
    pub(crate) fn expired_by_bytes_is_recorded(&self, below: PhysicalOffset) {
        self.recorded_by_bytes.fetch_max(below.get(), Ordering::Relaxed);
    }

    /// Somebody is told from now on when its queues can be read.
    pub(crate) fn watch(&self) {
        self.watched.store(true, Ordering::SeqCst);
    }

    /// Nobody is any more, until the next [`TopicHandle::watch`].
    pub(crate) fn unwatch(&self) {
        self.watched.store(false, Ordering::SeqCst);
    }

    /// Whether somebody is.
    pub(crate) fn is_watched(&self) -> bool {
        self.watched.load(Ordering::SeqCst)
    }

    /// Marks it dead: appends to it are refused from now on, reads find nothing.
    pub fn kill(&self) {
        self.dead.store(true, Ordering::Release);
    }

    /// Takes the mark back, after the append of the delete failed.
    pub fn unkill(&self) {
        self.dead.store(false, Ordering::Release);
    }

    /// Whether it was deleted.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// All below this may be acknowledged and read, given the marks.
    pub(crate) fn visible_end(
        &self,
        appended: PhysicalOffset,
        flushed: PhysicalOffset,
    ) -> PhysicalOffset {
        match self.flush() {
            FlushMode::Async => appended,
            FlushMode::Sync => flushed.max(PhysicalOffset::new(self.floor.load(Ordering::Acquire))),
        }
    }

    /// The next offset of a queue, or `None` if there is no such queue. Under the append lock only.
    pub(crate) fn next_offset(&self, queue: QueueId) -> Option<&AtomicU64> {
        if queue.get() < self.queues() { self.next.get(queue.get() as usize) } else { None }
    }
}

/// The topics that can be written and read, by incarnation.
#[derive(Debug, Default)]
pub struct Topics {
    handles: DashMap<TopicId, Arc<TopicHandle>, foldhash::fast::RandomState>,
}

impl Topics {
    /// Makes a topic known. One that is known already keeps its handle.
    pub fn register(&self, id: TopicId, settings: &TopicSettings) -> Arc<TopicHandle> {
        let new = || Arc::new(TopicHandle::new(id, settings));
        Arc::clone(&self.handles.entry(id).or_insert_with(new))
    }

    /// The handle of a topic that is known and not removed.
    pub fn get(&self, id: TopicId) -> Option<Arc<TopicHandle>> {
        self.handles.get(&id).map(|handle| Arc::clone(&handle))
    }

    /// Forgets a deleted topic and marks its handle dead.
    pub fn remove(&self, id: TopicId) {
        if let Some((_, handle)) = self.handles.remove(&id) {
            handle.kill();
        }
    }

    /// All handles, in no order.
    pub(crate) fn all(&self) -> Vec<Arc<TopicHandle>> {
        self.handles.iter().map(|entry| Arc::clone(entry.value())).collect()
    }

    /// Sets the next offset of a queue found by recovery. A queue that its topic does not have is ignored.
    pub(crate) fn restore_next(&self, id: TopicId, queue: QueueId, next: QueueOffset) {
        if let Some(handle) = self.get(id)
            && let Some(cell) = handle.next_offset(queue)
        {
            cell.store(next.get(), Ordering::Relaxed);
        }
    }
}

fn encode(flush: FlushMode) -> u8 {
    match flush {
        FlushMode::Sync => 0,
        FlushMode::Async => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::TopicType;

    fn settings(queues: u32) -> TopicSettings {
        TopicSettings::open(queues, FlushMode::Async, TopicType::Mixed)
    }

    #[test]
    fn queues_are_added_behind_and_keep_their_offsets() {
        let topic = TopicHandle::new(TopicId::new(1), &settings(2));
        let set = |queue: u32| {
            let cell = topic.next_offset(QueueId::new(queue)).unwrap();
            cell.store(u64::from(queue) + 10, Ordering::Relaxed);
        };
        set(1);
        for queues in 3..200 {
            topic.configure(&settings(queues), PhysicalOffset::ZERO);
            assert!(topic.next_offset(QueueId::new(queues)).is_none());
            set(queues - 1);
        }
        // Fewer are not taken away.
        topic.configure(&settings(1), PhysicalOffset::ZERO);
        assert_eq!(topic.queues(), 199);
        let offset =
            |queue| topic.next_offset(QueueId::new(queue)).unwrap().load(Ordering::Relaxed);
        assert_eq!((0..199).map(offset).collect::<Vec<_>>(), {
            let mut wanted = vec![0];
            wanted.extend((1..199).map(|queue| queue + 10));
            wanted
        });
        let mut runs = 0;
        let mut run = Some(&topic.next);
        while let Some(cells) = run {
            (runs, run) = (runs + 1, cells.more.get().map(|more| &**more));
        }
        assert!(runs < 30, "{runs} runs of cells");
    }

    #[test]
    fn what_is_gone_grows_with_time_and_never_comes_back() {
        let time = |ms| Timestamp::new(ms);
        let at = PhysicalOffset::new;
        let retention = Retention { time_ms: Some(100), bytes: None };
        let topic = TopicHandle::new(TopicId::new(1), &TopicSettings { retention, ..settings(2) });
        let queue = QueueId::new(1);
        let is_gone = |now, offset, stored, end| {
            topic.cuts(queue, time(now)).is_gone(at(offset), time(stored), QueueOffset::new(end))
        };
        assert!(!is_gone(1_999, 0, 900, 1) && is_gone(2_000, 0, 900, 1));
        assert!(!is_gone(50, 0, 0, 1), "before there is as much time as it keeps");
        topic.expire(at(64), Timestamp::ZERO, &[(queue, QueueOffset::new(7))]);
        topic.expire(at(32), Timestamp::ZERO, &[(queue, QueueOffset::new(6))]);
        assert!(is_gone(1_000, 63, 950, 9) && !is_gone(1_000, 64, 950, 9));
        assert!(is_gone(1_000, 64, 950, 7), "wholly purged");
        let other = topic.cuts(QueueId::new(0), time(1_000));
        assert!(!other.is_gone(at(64), time(950), QueueOffset::new(1)));
        topic.expire_by_bytes(at(128));
        assert!(is_gone(1_000, 127, 950, 9));
        assert_eq!(topic.expired(), (at(64), Timestamp::ZERO, vec![(queue, QueueOffset::new(7))]));
        topic.configure(&settings(2), PhysicalOffset::ZERO);
        assert!(!is_gone(9_000, 128, 0, 9), "kept for ever from now on");
    }

    #[test]
    fn a_change_from_async_to_sync_hides_nothing_that_was_visible() {
        let (appended, flushed) = (PhysicalOffset::new(900), PhysicalOffset::new(500));
        let topic = TopicHandle::new(TopicId::new(1), &settings(1));
        assert_eq!(topic.visible_end(appended, flushed).get(), 900);
        topic.configure(&TopicSettings { flush: FlushMode::Sync, ..settings(1) }, appended);
        assert_eq!(topic.visible_end(PhysicalOffset::new(2_000), flushed).get(), 900);
        assert_eq!(
            topic.visible_end(PhysicalOffset::new(2_000), PhysicalOffset::new(1_500)).get(),
            1_500
        );
    }
}
