//! Streams of pulls: several queues of one topic, in turn, for as long as the reader takes what there is.
//!
//! | of a queue | the stream |
//! | --- | --- |
//! | has something | hands out what is found in little time, one part, then it is the next queue's turn |
//! | has its turn soon, and has something | is read along, as far as the room of one answer goes, and goes out with it |
//! | is read to its end | parks it; whoever appends wakes the stream |
//! | cannot be read on | ends, with the queue and where to go on, in that queue's turn |
//!
//! A stream has no task and no clock of its own: it works while it is asked for what is next. Its places among those
//! who wait are its own from its begin to its end.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::Broker;
use super::budget::Permit;
use super::error::{BrokerError, RequestFault};
use super::offsets::check_queue;
use super::pull::{Look, MAX_BYTES, MAX_MESSAGES, Pulled, Read, Reader};
use super::topics::within;
use crate::format::batch::TagFilter;
use crate::message::{Epoch, QueueId, QueueOffset};
use crate::store::{Ahead, Arrival, Arrivals, QueueRange};

/// The most queues of a stream.
const MAX_QUEUES: u32 = 256;

/// How long a stream waits for room for an answer, and for what was acknowledged before it began.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a stream waits for a file that is made again before it ends.
const REBUILD_PATIENCE: Duration = Duration::from_secs(30);

/// Where to begin in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PullStart {
    /// The queue.
    pub queue: QueueId,
    /// The first message wanted.
    pub offset: QueueOffset,
}

/// What a stream is to bring.
#[derive(Clone, Copy, Debug)]
pub struct PullStreamRequest<'a> {
    /// The topic's name.
    pub topic: &'a str,
    /// Of which queues: 1 to 256, each once.
    pub queues: &'a [PullStart],
    /// At most so many bytes of batches in an answer, but at least one whole record; at most 8 MiB.
    pub max_bytes: u32,
    /// The tag expression.
    pub tags: &'a str,
    /// The newest epoch that the caller has heard of, if it tells: then it learns what of that it read is lost.
    pub epoch: Option<Epoch>,
    /// The consumer group that it is for, if it is for one: it must be there and enabled, as long as the stream lives.
    pub group: Option<&'a str>,
}

/// Why a stream ended.
#[derive(Debug)]
pub struct PullStreamError {
    /// Of which queue, if it is about one.
    pub queue: Option<QueueId>,
    /// What it was.
    pub error: BrokerError,
}

impl From<BrokerError> for PullStreamError {
    fn from(error: BrokerError) -> Self {
        Self { queue: None, error }
    }
}

/// Parts of several queues, in their turns.
pub struct PullStream {
    broker: Arc<Broker>,
    reader: Reader,
    places: Vec<Place>,
    /// Whose turn it is.
    turn: usize,
    has_caught_up: bool,
    /// Of the places that are parked.
    arrivals: Arrivals,
    /// Whose turns are next; kept for its memory.
    others: Vec<(QueueId, QueueOffset)>,
    /// Among those who wait.
    _waiting: OwnedSemaphorePermit,
}

/// A queue of a stream.
struct Place {
    queue: QueueId,
    next: QueueOffset,
    /// Read to its end: until there is more.
    is_parked: bool,
}

/// What goes out at once.
#[derive(Debug)]
pub struct Parts {
    /// At least one, each of another queue.
    pub parts: Vec<(QueueId, Pulled)>,
    /// For all of them; `None` if they are without records.
    pub permit: Option<Permit>,
}

impl Broker {
    /// Begins to read several queues. Nothing is read yet.
    ///
    /// # Errors
    /// As [`Broker::pull`], for any of the queues; and too many wait for messages already.
    pub async fn pull_stream(
        self: &Arc<Self>,
        request: PullStreamRequest<'_>,
    ) -> Result<PullStream, PullStreamError> {
        within("max_bytes", request.max_bytes, MAX_BYTES)?;
        let count = u32::try_from(request.queues.len()).unwrap_or(u32::MAX);
        within("queues of a stream", count, MAX_QUEUES)?;
        if count == 0 {
            return Err(BrokerError::BadRequest { fault: RequestFault::NoQueueNamed }.into());
        }
        let mut queues: Vec<_> = request.queues.iter().map(|start| start.queue).collect();
        queues.sort_unstable();
        let mut pairs = queues.iter().zip(queues.iter().skip(1));
        if let Some((&queue, _)) = pairs.find(|(one, other)| one == other) {
            return Err(
                BrokerError::BadRequest { fault: RequestFault::QueueTwice { queue } }.into()
            );
        }
        let until = Instant::now() + PATIENCE;
        let filter = Arc::new(TagFilter::parse(request.tags).map_err(BrokerError::from)?);
        let topic = self.topic(request.topic, until).await?;
        for &PullStart { queue, .. } in request.queues {
            check_queue(&topic, queue)
                .map_err(|error| PullStreamError { queue: Some(queue), error })?;
        }
        let reader = Reader {
            filter,
            topic,
            group: match request.group {
                Some(name) => Some(self.group(name, until).await?),
                None => None,
            },
            max_messages: MAX_MESSAGES,
            max_bytes: request.max_bytes,
        };
        if let Some(epoch) = request.epoch {
            for &PullStart { queue, offset } in request.queues {
                let place = (queue, offset);
                self.check_not_truncated(&reader.topic, place, epoch, until, until)
                    .await
                    .map_err(|error| PullStreamError { queue: Some(queue), error })?;
            }
        }
        let waiting = Arc::clone(&self.waiters).try_acquire_many_owned(count);
        let waiting = waiting.map_err(|_| BrokerError::Overloaded { what: "parked pulls" })?;
        let place =
            |start: &PullStart| Place { queue: start.queue, next: start.offset, is_parked: false };
        Ok(PullStream {
            arrivals: self.store.arrivals(reader.topic.handle()),
            broker: Arc::clone(self),
            reader,
            places: request.queues.iter().map(place).collect(),
            turn: 0,
            has_caught_up: false,
            others: Vec::new(),
            _waiting: waiting,
        })
    }
}

impl PullStream {
    /// What is next, of whatever queues have something; waits until one has. A part may be without records: then it
    /// says how far the filter has left out everything. Dropped while it waits, it loses nothing.
    ///
    /// # Errors
    /// The stream is at its end: a queue cannot be read on, the topic or the group is gone, or the broker stops.
    pub async fn next(&mut self) -> Result<Parts, PullStreamError> {
        let mut rebuilt = None;
        loop {
            if self.broker.is_draining() {
                return Err(BrokerError::Draining.into());
            }
            while let Some((at, why)) = self.arrivals.arrived() {
                self.unpark(at, why)?;
            }
            let Some((at, queue, from)) = self.next_turn() else {
                self.arrived().await?;
                continue;
            };
            let of_queue = |error| PullStreamError { queue: Some(queue), error };
            let until = Instant::now() + PATIENCE;
            let others = Some(&*self.others);
            let look = self.broker.look(&self.reader, (queue, from), until, others).await;
            match look.map_err(of_queue)? {
                Look::Found(read) => return Ok(self.found(at, queue, read)),
                Look::Rebuilding => {
                    self.turn = at + 1;
                    let until = *rebuilt.get_or_insert_with(|| Instant::now() + REBUILD_PATIENCE);
                    self.broker.wait_for_rebuild(until).await.map_err(of_queue)?;
                }
                // What was acknowledged before the stream began must be seen by it, dispatched or not.
                Look::OutOfRange(_) if !self.has_caught_up => {
                    self.turn = at;
                    self.catch_up().await;
                }
                Look::OutOfRange(range) => {
                    return Err(of_queue(self.broker.out_of_range(from, range)));
                }
                Look::Nothing { next, range } => {
                    self.read_up_to(at, next, range);
                    // As much as one look may pass over: the reader learns how far it is.
                    if next < range.max {
                        let pulled = self.broker.pulled(Vec::new(), next, range, None);
                        return Ok(Parts { parts: vec![(queue, pulled)], permit: None });
                    }
                }
            }
        }
    }

    /// Whose turn it is, and from where; those behind it are put into `others`. `None`: all are parked.
    fn next_turn(&mut self) -> Option<(usize, QueueId, QueueOffset)> {
        let count = self.places.len();
        let turns = (0..count).map(|n| (self.turn + n) % count);
        let mut active = turns.filter_map(|at| {
            let place = self.places.get(at)?;
            (!place.is_parked).then_some((at, place.queue, place.next))
        });
        let next = active.next();
        self.others.clear();
        self.others.extend(active.map(|(_, queue, from)| (queue, from)));
        next
    }

    /// The parts of what was read of the place `at` and of those behind it.
    fn found(&mut self, at: usize, queue: QueueId, read: Read) -> Parts {
        let Read { records, next, range, along, permit } = read;
        let mut parts = Vec::with_capacity(1 + along.len());
        self.read_up_to(at, next, range);
        parts.push((queue, self.broker.pulled(records, next, range, None)));
        for Ahead { queue, records, next, range } in along {
            // In the order of their turns; those in between are parked.
            let count = self.places.len();
            let mut behind = (self.turn..self.turn + count).map(|n| n % count);
            let is_it = |at: &usize| self.places.get(*at).is_some_and(|place| place.queue == queue);
            let Some(at) = behind.find(is_it) else { continue };
            self.read_up_to(at, next, range);
            parts.push((queue, self.broker.pulled(records, next, range, None)));
        }
        Parts { parts, permit: Some(permit) }
    }

    /// The place `at` was read up to `next`, and had its turn.
    fn read_up_to(&mut self, at: usize, next: QueueOffset, range: QueueRange) {
        self.turn = at + 1;
        let Some(place) = self.places.get_mut(at) else { return };
        place.next = next;
        if next >= range.max {
            place.is_parked = true;
            self.broker.counters.parked.add(1);
            self.arrivals.park(at, place.queue, next);
        }
    }

    async fn catch_up(&mut self) {
        self.has_caught_up = true;
        let caught_up = self.broker.store.caught_up(self.reader.topic.handle());
        let _ = timeout_at(Instant::now() + PATIENCE, caught_up).await;
    }

    /// Waits until a queue has its turn again; all are parked.
    async fn arrived(&mut self) -> Result<(), BrokerError> {
        let (broker, group) = (Arc::clone(&self.broker), self.reader.group.clone());
        tokio::select! {
            (at, why) = poll_fn(|cx| self.arrivals.poll_arrived(cx)) => self.unpark(at, why),
            () = broker.drained() => Err(BrokerError::Draining),
            () = broker.refuses(group.as_deref()) => match group {
                Some(group) => broker.admits(&group, Instant::now() + PATIENCE).await,
                None => Ok(()),
            },
        }
    }

    /// Gives a queue its turns again.
    fn unpark(&mut self, at: usize, why: Arrival) -> Result<(), BrokerError> {
        if let Some(place) = self.places.get_mut(at) {
            place.is_parked = false;
        }
        match why {
            // A deletion is told by who looks, once it is durable.
            Arrival::Readable | Arrival::Gone => Ok(()),
            Arrival::Closed => Err(BrokerError::Draining),
        }
    }
}
