//! Who waits for which position, and who waits for the next entry of which queue. Both are woken in batches by
//! whoever moved the mark, outside the locks of these tables.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::task::{Context, Poll, Waker};

use foldhash::fast::RandomState;
use tokio::sync::oneshot;

use crate::message::{PhysicalOffset, QueueKey};
use crate::sync::{Arc, AtomicUsize, Mutex, Ordering, lock};

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

/// A place of somebody who waits.
struct Parked {
    waiter: Arc<Waiter>,
    place: usize,
}

/// Somebody who waits, at as many queues as he likes. Each registration ends with one arrival, or by its withdrawal.
#[derive(Debug, Default)]
pub(crate) struct Waiter(Mutex<Woken>);

#[derive(Debug, Default)]
struct Woken {
    /// At most one for each place.
    arrived: VecDeque<(usize, Arrival)>,
    waker: Option<Waker>,
}

impl Waiter {
    /// The next arrival that he was not told of yet.
    pub(crate) fn next(&self) -> Option<(usize, Arrival)> {
        lock(&self.0).arrived.pop_front()
    }

    /// The same; whoever polls is woken by the next one.
    pub(crate) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<(usize, Arrival)> {
        let mut woken = lock(&self.0);
        match woken.arrived.pop_front() {
            Some(arrival) => Poll::Ready(arrival),
            None => {
                match &mut woken.waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }

    fn tell(&self, place: usize, arrival: Arrival) {
        let mut woken = lock(&self.0);
        woken.arrived.push_back((place, arrival));
        let waker = woken.waker.take();
        drop(woken);
        waker.into_iter().for_each(Waker::wake);
    }
}

impl ArrivalWaiters {
    pub(crate) fn new() -> Self {
        Self {
            count: AtomicUsize::new(0),
            hasher: RandomState::default(),
            shards: (0..SHARDS).map(|_| Mutex::new(QueueMap::default())).collect(),
        }
    }

    /// How many are parked.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Parks a place of `waiter`, which is parked nowhere. The caller looks at the queue once more afterwards.
    pub(crate) fn register(&self, key: QueueKey, waiter: &Arc<Waiter>, place: usize) {
        let parked = Parked { waiter: Arc::clone(waiter), place };
        let mut shard = lock(self.shard(key));
        shard.entry(key).or_default().push(parked);
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    /// Takes a place back. `false`: it was woken already, or is just about to be.
    pub(crate) fn withdraw(&self, key: QueueKey, waiter: &Arc<Waiter>, place: usize) -> bool {
        let mut shard = lock(self.shard(key));
        let Some(parked) = shard.get_mut(&key) else { return false };
        let is_it = |other: &Parked| other.place == place && Arc::ptr_eq(&other.waiter, waiter);
        let Some(index) = parked.iter().position(is_it) else { return false };
        parked.swap_remove(index);
        if parked.is_empty() {
            shard.remove(&key);
        }
        self.count.fetch_sub(1, Ordering::SeqCst);
        true
    }

    /// Wakes one place, unless it was woken already.
    pub(crate) fn wake_one(&self, key: QueueKey, waiter: &Arc<Waiter>, place: usize, why: Arrival) {
        if self.withdraw(key, waiter, place) {
            waiter.tell(place, why);
        }
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
        for Parked { waiter, place } in parked {
            self.count.fetch_sub(1, Ordering::SeqCst);
            waiter.tell(place, arrival);
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

    fn queue(n: u32) -> QueueKey {
        QueueKey { topic: TopicId::new(1), queue: QueueId::new(n) }
    }

    #[test]
    fn each_place_of_a_waiter_is_told_once_whoever_ends_its_wait() {
        let waiters = ArrivalWaiters::new();
        let [one, other] = [(); 2].map(|()| Arc::new(Waiter::default()));
        for place in 0..4 {
            waiters.register(queue(place), &one, place as usize);
        }
        waiters.register(queue(1), &other, 0);
        assert_eq!((waiters.len(), one.next()), (5, None));
        waiters.wake(queue(1));
        waiters.wake_one(queue(1), &one, 1, Arrival::Closed);
        waiters.wake_one(queue(2), &one, 2, Arrival::Gone);
        waiters.wake(queue(2));
        let told = |waiter: &Waiter| std::iter::from_fn(|| waiter.next()).collect::<Vec<_>>();
        assert_eq!(told(&one), [(1, Arrival::Readable), (2, Arrival::Gone)]);
        assert_eq!(told(&other), [(0, Arrival::Readable)]);
        waiters.end_where(|key| key == queue(3), Arrival::Closed);
        assert_eq!((told(&one), waiters.len()), (vec![(3, Arrival::Closed)], 1));
    }

    #[test]
    fn who_gives_up_leaves_nothing_behind() {
        let waiters = ArrivalWaiters::new();
        let [one, other] = [(); 2].map(|()| Arc::new(Waiter::default()));
        waiters.register(queue(0), &one, 0);
        waiters.register(queue(0), &other, 0);
        assert!(waiters.withdraw(queue(0), &one, 0));
        assert!(!waiters.withdraw(queue(0), &one, 0));
        assert!((waiters.len(), waiters.has(queue(0))) == (1, true), "the other still waits");
        assert!(waiters.withdraw(queue(0), &other, 0));
        assert_eq!((waiters.len(), waiters.has(queue(0))), (0, false));
        waiters.wake(queue(0));
        assert_eq!((one.next(), other.next()), (None, None));
    }

    #[test]
    fn who_polls_is_woken_by_the_next_arrival() {
        struct Count(AtomicUsize);
        impl std::task::Wake for Count {
            fn wake(self: std::sync::Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let count = std::sync::Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(std::sync::Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let (waiters, waiter) = (ArrivalWaiters::new(), Arc::new(Waiter::default()));
        waiters.register(queue(0), &waiter, 7);
        assert_eq!(waiter.poll_next(&mut cx), Poll::Pending);
        assert_eq!(waiter.poll_next(&mut cx), Poll::Pending);
        waiters.wake(queue(0));
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert_eq!(waiter.poll_next(&mut cx), Poll::Ready((7, Arrival::Readable)));
        assert_eq!(waiter.poll_next(&mut cx), Poll::Pending);
    }
}
