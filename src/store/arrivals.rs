//! Who waits at the ends of queues of a topic.
//!
//! Each place that is parked is told of once, and is parked nowhere then. What is not told of is taken back with its
//! owner: nothing of those who gave up stays.

use std::task::{Context, Poll};

use super::Shared;
use super::topics::TopicHandle;
use super::waiters::{Arrival, Waiter};
use crate::message::{FlushMode, QueueId, QueueKey, QueueOffset};
use crate::sync::{Arc, Ordering, fence};

/// Places in queues of a topic at which one reader waits. Made by [`super::Store::arrivals`].
pub struct Arrivals {
    shared: Arc<Shared>,
    topic: Arc<TopicHandle>,
    waiter: Arc<Waiter>,
    /// By place: the queue at which it is parked.
    parked: Vec<Option<QueueId>>,
}

impl Arrivals {
    pub(super) fn new(shared: Arc<Shared>, topic: Arc<TopicHandle>) -> Self {
        Self { shared, topic, waiter: Arc::default(), parked: Vec::new() }
    }

    /// Parks the place number `place`, a small number that the caller chose and that is not parked, until the queue may
    /// have something at or behind `from`, or there is a reason to look again. That may be at once.
    pub fn park(&mut self, place: usize, queue: QueueId, from: QueueOffset) {
        let key = QueueKey { topic: self.topic.id(), queue };
        if self.parked.len() <= place {
            self.parked.resize(place + 1, None);
        }
        if let Some(parked) = self.parked.get_mut(place) {
            *parked = Some(queue);
        }
        let (shared, waiter) = (&self.shared, &self.waiter);
        shared.arrivals.register(key, waiter, place);
        // Parked first, then the look: who moves a mark does it the other way round.
        fence(Ordering::SeqCst);
        let arrival = if self.topic.is_dead() {
            Some(Arrival::Gone)
        } else if shared.is_poisoned() || shared.draining.load(Ordering::SeqCst) {
            Some(Arrival::Closed)
        } else {
            (shared.queue_max(&self.topic, queue) > from).then_some(Arrival::Readable)
        };
        if let Some(why) = arrival {
            shared.arrivals.wake_one(key, waiter, place, why);
            return;
        }
        // Of an async topic all that is dispatched is readable; who makes it one wakes the parked.
        if self.topic.flush() == FlushMode::Sync {
            shared.wake_when_flushed(key, from);
        }
        // Whoever appends from now on finds the place parked; a wake-up for each that is parked would be one too many.
        if shared.marks.dispatched.get() < shared.marks.appended.get() {
            shared.dispatch_signal.wake();
        }
    }

    /// A place that is parked no more, and why.
    pub fn arrived(&mut self) -> Option<(usize, Arrival)> {
        let (place, why) = self.waiter.next()?;
        self.left(place);
        Some((place, why))
    }

    /// As [`Arrivals::arrived`]; whoever polls is woken when there is one.
    pub fn poll_arrived(&mut self, cx: &mut Context<'_>) -> Poll<(usize, Arrival)> {
        self.waiter.poll_next(cx).map(|(place, why)| {
            self.left(place);
            (place, why)
        })
    }

    fn left(&mut self, place: usize) {
        if let Some(parked) = self.parked.get_mut(place) {
            *parked = None;
        }
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        for (place, queue) in self.parked.iter().enumerate() {
            let Some(queue) = *queue else { continue };
            let key = QueueKey { topic: self.topic.id(), queue };
            self.shared.arrivals.withdraw(key, &self.waiter, place);
        }
    }
}

impl std::fmt::Debug for Arrivals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arrivals").field("parked", &self.parked).finish_non_exhaustive()
    }
}
