//! What goes from senders to readers in a control that relays: each batch to the one reader of its queue, by which it
//! is taken, and to nobody where nobody reads. So the control does as much for a batch whatever the number of queues.
//!
//! | bound | value | beyond it |
//! | --- | --- | --- |
//! | queues of all topics | [`MAX_TARGETS`], as many as a run may ask for | refused |
//! | bytes that wait for readers | [`MAX_WAITING`] | the batch is refused, which ends the run |
//!
//! Locks: the topics; then the queues of a topic; then what waits for a reader. All are short.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::config::MAX_TARGETS;
use crate::sync::{AtomicU64, Mutex, Ordering, lock};

/// Bytes that wait for all readers together.
const MAX_WAITING: u64 = 256 << 20;
/// What a batch that waits costs beside its own bytes, about.
const BATCH_COST: u64 = 64;
/// Bytes that a reader takes at once, but at least one batch.
const TOGETHER: usize = 1 << 20;

/// Why something is not relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RelayError {
    /// More topics than there is room for.
    #[error("a relay has room for {MAX_TARGETS} queues")]
    TooManyQueues,
    /// The topic ends before.
    #[error("queue {queue}, and the topic has {queues}")]
    NoQueue {
        /// The one that was asked for.
        queue: u32,
        /// As many as there are.
        queues: u32,
    },
    /// Nothing is kept for those who come later.
    #[error("the queue ends at {end}, and a reader of a relay begins there")]
    NotTheEnd {
        /// The queue's.
        end: u64,
    },
    /// Readers are slower than senders.
    #[error("{MAX_WAITING} bytes wait for readers who are too slow: choose a lower rate")]
    Behind,
}

/// A batch that waits for its reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Handed {
    pub(super) queue: u32,
    /// The offset of its first message.
    pub(super) first: u64,
    /// Its messages.
    pub(super) count: u32,
    pub(super) batch: Bytes,
}

impl Handed {
    fn cost(&self) -> u64 {
        self.batch.len() as u64 + BATCH_COST
    }
}

/// All topics. They are there once somebody names them.
pub(super) struct Relay {
    /// Of each topic.
    queues: u32,
    topics: Mutex<HashMap<String, Arc<Topic>>>,
    /// Bytes that wait for readers. Relaxed: nothing else is read by it.
    waiting: Arc<AtomicU64>,
}

/// A topic's queues.
pub(super) struct Topic {
    queues: Mutex<Box<[Queue]>>,
    /// Of all topics.
    waiting: Arc<AtomicU64>,
}

#[derive(Clone, Default)]
struct Queue {
    end: u64,
    /// Gone when its stream is.
    reader: Weak<Reader>,
}

/// Who reads some queues of a topic. What waits for it goes with it.
#[derive(Default)]
pub(super) struct Reader {
    ready: Mutex<Ready>,
    /// Of all topics.
    waiting: Arc<AtomicU64>,
}

#[derive(Default)]
struct Ready {
    batches: VecDeque<Handed>,
    /// Who looked when there was nothing.
    waker: Option<Waker>,
}

impl Relay {
    /// Topics of `queues` queues each.
    pub(super) fn new(queues: u32) -> Self {
        Self { queues, topics: Mutex::default(), waiting: Arc::default() }
    }

    /// The topic of this name.
    ///
    /// # Errors
    /// `TooManyQueues`.
    pub(super) fn topic(&self, name: &str) -> Result<Arc<Topic>, RelayError> {
        let mut topics = lock(&self.topics);
        if let Some(topic) = topics.get(name) {
            return Ok(Arc::clone(topic));
        }
        if (topics.len() as u64 + 1) * u64::from(self.queues) > MAX_TARGETS {
            return Err(RelayError::TooManyQueues);
        }
        let queues = (0..self.queues).map(|_| Queue::default()).collect();
        let waiting = Arc::clone(&self.waiting);
        let topic = Arc::new(Topic { queues: Mutex::new(queues), waiting });
        topics.insert(name.to_owned(), Arc::clone(&topic));
        Ok(topic)
    }
}

impl Topic {
    /// Hands a batch of `count` messages to the reader of `queue`, if there is one.
    ///
    /// # Errors
    /// `NoQueue`, `Behind`.
    pub(super) fn put(&self, queue: u32, batch: Bytes, count: u32) -> Result<(), RelayError> {
        let mut queues = lock(&self.queues);
        let place = of(&mut queues, queue)?;
        let handed = Handed { queue, first: place.end, count, batch };
        if let Some(reader) = place.reader.upgrade() {
            let cost = handed.cost();
            if self.waiting.fetch_add(cost, Ordering::Relaxed) + cost > MAX_WAITING {
                self.waiting.fetch_sub(cost, Ordering::Relaxed);
                return Err(RelayError::Behind);
            }
            // Under the lock of the queues, so that the batches of a queue stay in order.
            reader.give(handed);
        }
        place.end += u64::from(count);
        Ok(())
    }

    /// A reader of these queues from their ends on, instead of those who read them before.
    ///
    /// # Errors
    /// `NoQueue`, and `NotTheEnd` if an offset is another.
    pub(super) fn read(
        &self,
        starts: impl Iterator<Item = (u32, u64)>,
    ) -> Result<Arc<Reader>, RelayError> {
        let reader = Reader { ready: Mutex::default(), waiting: Arc::clone(&self.waiting) };
        let reader = Arc::new(reader);
        let mut queues = lock(&self.queues);
        for (queue, offset) in starts {
            let place = of(&mut queues, queue)?;
            if offset != place.end {
                return Err(RelayError::NotTheEnd { end: place.end });
            }
            place.reader = Arc::downgrade(&reader);
        }
        Ok(reader)
    }

    /// The ends of up to `limit` queues from `first` on.
    pub(super) fn ends(&self, first: u32, limit: u32) -> Vec<(u32, u64)> {
        let queues = lock(&self.queues);
        let ends = (0..).zip(queues.iter()).map(|(queue, place)| (queue, place.end));
        ends.skip(first as usize).take(limit as usize).collect()
    }
}

fn of(queues: &mut [Queue], queue: u32) -> Result<&mut Queue, RelayError> {
    let count = u32::try_from(queues.len()).unwrap_or(u32::MAX);
    let place = usize::try_from(queue).ok().and_then(|queue| queues.get_mut(queue));
    place.ok_or(RelayError::NoQueue { queue, queues: count })
}

impl Reader {
    fn give(&self, handed: Handed) {
        let mut ready = lock(&self.ready);
        ready.batches.push_back(handed);
        let waker = ready.waker.take();
        drop(ready);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes the oldest batch that waits, and those of the same queue right behind it.
    pub(super) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Vec<Handed>> {
        let mut ready = lock(&self.ready);
        let Some(oldest) = ready.batches.pop_front() else {
            ready.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let (queue, mut bytes, mut cost) = (oldest.queue, oldest.batch.len(), oldest.cost());
        let mut taken = vec![oldest];
        while bytes < TOGETHER
            && ready.batches.front().is_some_and(|next| next.queue == queue)
            && let Some(next) = ready.batches.pop_front()
        {
            bytes += next.batch.len();
            cost += next.cost();
            taken.push(next);
        }
        drop(ready);
        self.waiting.fetch_sub(cost, Ordering::Relaxed);
        Poll::Ready(taken)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let cost = lock(&self.ready).batches.iter().map(Handed::cost).sum();
        self.waiting.fetch_sub(cost, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The places of what a reader takes at once; `None`: it waits.
    fn taken(reader: &Reader, woken: &Arc<Woken>) -> Option<Vec<(u32, u64, u32)>> {
        match reader.poll_next(&mut Context::from_waker(&Waker::from(Arc::clone(woken)))) {
            Poll::Ready(taken) => {
                Some(taken.iter().map(|next| (next.queue, next.first, next.count)).collect())
            }
            Poll::Pending => None,
        }
    }

    fn put(topic: &Topic, queue: u32) -> Result<(), RelayError> {
        topic.put(queue, Bytes::from_static(b"batch"), 10)
    }

    #[test]
    fn a_batch_wakes_the_reader_of_its_queue_alone() {
        let relay = Relay::new(3);
        let topic = relay.topic("orders").unwrap();
        let first = topic.read([(0, 0), (1, 0)].into_iter()).unwrap();
        let second = topic.read([(2, 0)].into_iter()).unwrap();
        let (one, other) = (Arc::<Woken>::default(), Arc::<Woken>::default());
        assert_eq!((taken(&first, &one), taken(&second, &other)), (None, None));
        put(&relay.topic("orders").unwrap(), 1).unwrap();
        put(&relay.topic("bills").unwrap(), 2).unwrap();
        let woken = |woken: &Woken| woken.0.load(Ordering::Relaxed);
        assert_eq!((woken(&one), woken(&other)), (1, 0));
        assert_eq!(taken(&first, &one), Some(vec![(1, 0, 10)]));
        assert_eq!((taken(&first, &one), taken(&second, &other)), (None, None));
    }

    #[test]
    fn a_reader_takes_what_is_of_one_queue_together_and_in_order() {
        let relay = Relay::new(2);
        let topic = relay.topic("orders").unwrap();
        let reader = topic.read([(0, 0), (1, 0)].into_iter()).unwrap();
        for queue in [0, 0, 1, 0] {
            put(&topic, queue).unwrap();
        }
        let woken = Arc::default();
        assert_eq!(taken(&reader, &woken), Some(vec![(0, 0, 10), (0, 10, 10)]));
        assert_eq!(taken(&reader, &woken), Some(vec![(1, 0, 10)]));
        assert_eq!(taken(&reader, &woken), Some(vec![(0, 20, 10)]));
        assert_eq!(topic.ends(0, 9), [(0, 30), (1, 10)]);
        assert_eq!(topic.ends(1, 1), [(1, 10)]);
    }

    #[test]
    fn what_nobody_reads_moves_the_end_and_is_not_kept() {
        let relay = Relay::new(1);
        let topic = relay.topic("orders").unwrap();
        put(&topic, 0).unwrap();
        assert_eq!(relay.waiting.load(Ordering::Relaxed), 0);
        let early = topic.read([(0, 0)].into_iter()).err();
        assert_eq!(early, Some(RelayError::NotTheEnd { end: 10 }));
        let reader = topic.read([(0, 10)].into_iter()).unwrap();
        put(&topic, 0).unwrap();
        assert_eq!(relay.waiting.load(Ordering::Relaxed), 5 + BATCH_COST);
        drop(reader);
        assert_eq!(relay.waiting.load(Ordering::Relaxed), 0, "it goes with its reader");
        put(&topic, 0).unwrap();
        assert_eq!(relay.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_and_beyond_it_refused() {
        let relay = Relay::new(2);
        let topic = relay.topic("orders").unwrap();
        let reader = topic.read([(0, 0), (1, 0)].into_iter()).unwrap();
        let batch = Bytes::from(vec![0; 1 << 20]);
        // What each costs beside its bytes takes the room of the last.
        for n in 0..255 {
            topic.put(n % 2, batch.clone(), 1).unwrap();
        }
        assert_eq!(topic.put(0, batch.clone(), 1), Err(RelayError::Behind));
        assert_eq!(topic.ends(0, 1), [(0, 128)], "it was not put");
        assert_eq!(taken(&reader, &Arc::default()), Some(vec![(0, 0, 1)]));
        assert_eq!(topic.put(0, batch, 1), Ok(()));
    }

    #[test]
    fn what_there_is_no_room_for_is_refused() {
        let relay = Relay::new(1 << 16);
        for topic in 0..16 {
            let topic = relay.topic(&format!("topic {topic}")).unwrap();
            let beyond = RelayError::NoQueue { queue: 1 << 16, queues: 1 << 16 };
            assert_eq!(put(&topic, 1 << 16), Err(beyond));
        }
        assert_eq!(relay.topic("one more").err(), Some(RelayError::TooManyQueues));
    }
}
