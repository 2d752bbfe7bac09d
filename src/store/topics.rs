//! What the store knows of a topic: how many queues, what its acknowledgements wait for, whether it is dead, and the
//! next offset of each queue. Names, types and rules are the broker's.

use std::fmt;

use dashmap::DashMap;

use crate::message::{FlushMode, PhysicalOffset, QueueId, QueueOffset, TopicId};
use crate::sync::{Arc, AtomicBool, AtomicU8, AtomicU64, Ordering};

/// A topic incarnation as the store sees it; shared by all who send to it or read from it.
pub struct TopicHandle {
    id: TopicId,
    /// `FlushMode` as a number. Relaxed: a sender that races with a change may see either mode.
    flush: AtomicU8,
    /// What was visible when the mode last went from async to sync stays visible.
    floor: AtomicU64,
    /// Set before the delete is appended, read under the append lock: nothing is stored behind the delete.
    dead: AtomicBool,
    /// The next queue offset of each queue. Changed only under the append lock, hence Relaxed.
    next: Box<[AtomicU64]>,
}

impl fmt::Debug for TopicHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TopicHandle").field("id", &self.id).field("queues", &self.queues()).finish()
    }
}

impl TopicHandle {
    fn new(id: TopicId, queues: u32, flush: FlushMode) -> Self {
        Self {
            id,
            flush: AtomicU8::new(encode(flush)),
            floor: AtomicU64::new(0),
            dead: AtomicBool::new(false),
            next: (0..queues).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// The incarnation.
    pub fn id(&self) -> TopicId {
        self.id
    }

    /// How many queues it has; their ids are below.
    pub fn queues(&self) -> u32 {
        u32::try_from(self.next.len()).unwrap_or(u32::MAX)
    }

    /// What its acknowledgements and its readers wait for.
    pub fn flush(&self) -> FlushMode {
        if self.flush.load(Ordering::Relaxed) == encode(FlushMode::Async) {
            FlushMode::Async
        } else {
            FlushMode::Sync
        }
    }

    /// Changes what acknowledgements wait for, from now on. `appended` is the store's mark of this moment: what was
    /// visible up to it stays so.
    pub fn set_flush(&self, flush: FlushMode, appended: PhysicalOffset) {
        if self.flush() == FlushMode::Async {
            self.floor.fetch_max(appended.get(), Ordering::Release);
        }
        self.flush.store(encode(flush), Ordering::Release);
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
        self.next.get(usize::try_from(queue.get()).ok()?)
    }
}

/// The topics that can be written and read, by incarnation.
#[derive(Debug, Default)]
pub struct Topics {
    handles: DashMap<TopicId, Arc<TopicHandle>, foldhash::fast::RandomState>,
}

impl Topics {
    /// Makes a topic known. One that is known already keeps its handle.
    pub fn register(&self, id: TopicId, queues: u32, flush: FlushMode) -> Arc<TopicHandle> {
        let new = || Arc::new(TopicHandle::new(id, queues, flush));
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

    #[test]
    fn a_change_from_async_to_sync_hides_nothing_that_was_visible() {
        let (appended, flushed) = (PhysicalOffset::new(900), PhysicalOffset::new(500));
        let topic = TopicHandle::new(TopicId::new(1), 1, FlushMode::Async);
        assert_eq!(topic.visible_end(appended, flushed).get(), 900);
        topic.set_flush(FlushMode::Sync, appended);
        assert_eq!(topic.visible_end(PhysicalOffset::new(2_000), flushed).get(), 900);
        assert_eq!(
            topic.visible_end(PhysicalOffset::new(2_000), PhysicalOffset::new(1_500)).get(),
            1_500
        );
    }
}
