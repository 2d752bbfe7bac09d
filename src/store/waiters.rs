//! Who waits for which position, and who waits for the next entry of which queue. Both are woken in batches by
//! whoever moved the mark, outside the locks of these tables.

use std::collections::VecDeque;
use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use tokio::sync::oneshot;

use crate::message::{PhysicalOffset, QueueKey};
use crate::sync::{AtomicUsize, Mutex, Ordering, lock};

/// The mark will never get there: the store failed or was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store stopped before the position was reached")]
pub(crate) struct Stopped;

type Wake = oneshot::Sender<Result<(), Stopped>>;
/// Resolves when the position is reached. A sender that was dropped counts as stopped.
pub(crate) type Reached = oneshot::Receiver<Result<(), Stopped>>;

/// Waiters for one mark, ordered by position; released as one batch per move. As many as there are callers: their
/// number is bounded where calls are admitted.
#[derive(Debug, Default)]
pub(crate) struct PositionWaiters {
    /// Read without the lock by the mover of the mark: is anybody there?
    count: AtomicUsize,
    state: Mutex<PositionState>,
}

#[derive(Debug, Default)]
struct PositionState {
    waiting: VecDeque<(PhysicalOffset, Wake)>,
    stopped: bool,
}

impl PositionWaiters {
    /// Adds a waiter for `position`. The caller looks at the mark once more afterwards.
    pub(crate) fn register(&self, position: PhysicalOffset) -> Reached {
        let (wake, reached) = oneshot::channel();
        let mut state = lock(&self.state);
        if state.stopped {
            // The receiver must find an answer; a dropped sender is one too.
            drop(wake);
            return reached;
        }
        // Positions come nearly in order, so the place is at or near the end.
        let place = state.waiting.partition_point(|(other, _)| *other <= position);
        state.waiting.insert(place, (position, wake));
        self.count.store(state.waiting.len(), Ordering::SeqCst);
        reached
    }

    /// Whether anybody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// Wakes all who wait for a position up to `mark`.
    pub(crate) fn release(&self, mark: PhysicalOffset) {
        if self.is_empty() {
            return;
        }
        let released: Vec<Wake> = {
            let mut state = lock(&self.state);
            let count = state.waiting.partition_point(|(position, _)| *position <= mark);
            let released = state.waiting.drain(..count).map(|(_, wake)| wake).collect();
            self.count.store(state.waiting.len(), Ordering::SeqCst);
            released
        };
        for wake in released {
            // A waiter that gave up has dropped its end.
            let _gone = wake.send(Ok(()));
        }
    }

    /// Answers all, now and later, that the store stopped.
    pub(crate) fn stop(&self) {
        let waiting = {
            let mut state = lock(&self.state);
            state.stopped = true;
            self.count.store(0, Ordering::SeqCst);
            std::mem::take(&mut state.waiting)
        };
        for (_, wake) in waiting {
            let _gone = wake.send(Err(Stopped));
        }
    }
}

/// Why a wait for the next entry of a queue ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// There may be something to read.
    Readable,
    /// The topic was deleted.
    Gone,
    /// The store drains or has stopped: answer with what there is.
    Closed,
}

type QueueMap<V> = std::collections::HashMap<QueueKey, V, RandomState>;
const SHARDS: usize = 64;

/// Waiters for the next readable entry of a queue.
pub(crate) struct ArrivalWaiters {
    /// Lets the dispatcher skip the table while nobody waits.
    count: AtomicUsize,
    hasher: RandomState,
    shards: Box<[Mutex<QueueMap<Vec<Parked>>>]>,
}

struct Parked {
    wake: oneshot::Sender<Arrival>,
}

impl ArrivalWaiters {
    pub(crate) fn new() -> Self {
        Self {
            count: AtomicUsize::new(0),
            hasher: RandomState::default(),
            shards: (0..SHARDS).map(|_| Mutex::new(QueueMap::default())).collect(),
        }
    }

    /// How many are parked, those that gave up lately included.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Adds a waiter. The caller looks at the queue once more afterwards.
    pub(crate) fn register(&self, key: QueueKey) -> oneshot::Receiver<Arrival> {
        let (wake, arrived) = oneshot::channel();
        let mut shard = lock(self.shard(key));
        let parked = shard.entry(key).or_default();
        // Those that gave up leave when the next one comes, so that a queue without arrivals does not collect them.
        let before = parked.len();
        parked.retain(|other| !other.wake.is_closed());
        parked.push(Parked { wake });
        self.count.fetch_add(1, Ordering::SeqCst);
        self.count.fetch_sub(before + 1 - parked.len(), Ordering::SeqCst);
        arrived
    }

    /// Whether somebody waits for this queue. For the dispatcher, once per record while anybody is parked.
    pub(crate) fn has(&self, key: QueueKey) -> bool {
        lock(self.shard(key)).contains_key(&key)
    }

    /// Wakes all who wait for `key`.
    pub(crate) fn wake(&self, key: QueueKey) {
        let parked = lock(self.shard(key)).remove(&key);
        self.end(parked.into_iter().flatten(), Arrival::Readable);
    }

    /// Wakes all who wait for a queue that `chosen` names.
    pub(crate) fn end_where(&self, chosen: impl Fn(QueueKey) -> bool, why: Arrival) {
        for shard in &self.shards {
            let mut ended = Vec::new();
            lock(shard).retain(|key, parked| {
                let end = chosen(*key);
                if end {
                    ended.append(parked);
                }
                !end
            });
            self.end(ended.into_iter(), why);
        }
    }

    fn end(&self, parked: impl Iterator<Item = Parked>, arrival: Arrival) {
        for waiter in parked {
            self.count.fetch_sub(1, Ordering::SeqCst);
            let _gone = waiter.wake.send(arrival);
        }
    }

    fn shard(&self, key: QueueKey) -> &Mutex<QueueMap<Vec<Parked>>> {
        let hash = usize::try_from(self.hasher.hash_one(key) >> 32).unwrap_or_default();
        &self.shards[hash % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{QueueId, TopicId};

    #[test]
    fn positions_are_released_in_one_batch_up_to_the_mark() {
        let waiters = PositionWaiters::default();
        let mut late = waiters.register(PhysicalOffset::new(30));
        let mut early = waiters.register(PhysicalOffset::new(10));
        let mut exact = waiters.register(PhysicalOffset::new(20));
        waiters.release(PhysicalOffset::new(20));
        assert_eq!(early.try_recv(), Ok(Ok(())));
        assert_eq!(exact.try_recv(), Ok(Ok(())));
        assert_eq!(late.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        waiters.stop();
        assert_eq!(late.try_recv(), Ok(Err(Stopped)));
        assert!(waiters.register(PhysicalOffset::new(1)).try_recv().is_err());
    }

    #[test]
    fn waiters_that_gave_up_leave_when_the_next_one_comes() {
        let waiters = ArrivalWaiters::new();
        let key = QueueKey { topic: TopicId::new(1), queue: QueueId::new(0) };
        for _ in 0..100 {
            drop(waiters.register(key));
        }
        assert_eq!(waiters.len(), 1);
        let mut arrived = waiters.register(key);
        assert_eq!(waiters.len(), 1);
        waiters.wake(key);
        assert_eq!(arrived.try_recv(), Ok(Arrival::Readable));
        assert_eq!(waiters.len(), 0);
    }
}
