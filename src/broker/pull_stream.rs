//! Streams of pulls: several queues of one topic, in turn, for as long as the reader takes what there is.
//!
//! | of a queue | the stream |
//! | --- | --- |
//! | has something | hands it out, one answer, then it is the next queue's turn |
//! | has its turn soon, when one has to be read off the disk | reads it along, and hands it out in its turn |
//! | is read to its end | parks it; whoever appends wakes the stream |
//! | cannot be read on | ends, with the queue and where to go on |
//!
//! A stream has no task and no clock of its own: it works while it is asked for the next answer. Its places among those
//! who wait are its own from its begin to its end.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::Broker;
use super::error::{BrokerError, RequestFault};
use super::offsets::check_queue;
use super::pull::{Along, Look, MAX_BYTES, MAX_MESSAGES, Pulled, Reader};
use super::topics::within;
use crate::format::batch::TagFilter;
use crate::message::{Epoch, QueueId, QueueOffset};
use crate::store::{Ahead, Arrival};

/// The most queues of a stream.
const MAX_QUEUES: u32 = 256;

/// Queues that are read along with one that has to be read off the disk, at most.
const READ_ALONG: usize = 31;

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

/// Answers about several queues, one after the other.
pub struct PullStream {
    broker: Arc<Broker>,
    reader: Reader,
    places: Vec<Place>,
    /// Whose turn it is.
    turn: usize,
    has_caught_up: bool,
    /// What was read along with an answer and has not been handed out: of the places whose turns are next, from where
    /// they are.
    along: VecDeque<(usize, Along)>,
    /// Whose turns are next; kept for its memory.
    others: Vec<(QueueId, QueueOffset)>,
    /// Among those who wait.
    _waiting: OwnedSemaphorePermit,
}

/// A queue of a stream.
struct Place {
    queue: QueueId,
    next: QueueOffset,
    /// While it is read to its end: until there is more.
    arrival: Option<Pin<Box<dyn Future<Output = Arrival> + Send>>>,
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
            |start: &PullStart| Place { queue: start.queue, next: start.offset, arrival: None };
        Ok(PullStream {
            broker: Arc::clone(self),
            reader,
            places: request.queues.iter().map(place).collect(),
            turn: 0,
            has_caught_up: false,
            along: VecDeque::new(),
            others: Vec::new(),
            _waiting: waiting,
        })
    }
}

impl PullStream {
    /// What is next, of whatever queue has something; waits until one has. An answer may be without records: then it
    /// says how far the filter has left out everything. Dropped while it waits, it loses nothing.
    ///
    /// # Errors
    /// The stream is at its end: a queue cannot be read on, the topic or the group is gone, or the broker stops.
    pub async fn next(&mut self) -> Result<(QueueId, Pulled), PullStreamError> {
        let mut rebuilt = None;
        loop {
            if self.broker.is_draining() {
                return Err(BrokerError::Draining.into());
            }
            if let Some((at, along)) = self.along.pop_front() {
                if self.is_purged(&along.read) {
                    continue;
                }
                return self.hand_out(at, along).await;
            }
            self.unpark().await?;
            let Some((at, queue, from)) = self.next_turn() else {
                self.arrived().await?;
                continue;
            };
            let of_queue = |error| PullStreamError { queue: Some(queue), error };
            let until = Instant::now() + PATIENCE;
            let look = self.broker.look(&self.reader, (queue, from), until, &self.others).await;
            let (look, along) = look.map_err(of_queue)?;
            self.turn = at + 1;
            self.keep(along);
            let Some(place) = self.places.get_mut(at) else { continue };
            match look {
                Look::Found(pulled) => {
                    place.next = pulled.next;
                    return Ok((queue, pulled));
                }
                Look::Rebuilding => {
                    let until = *rebuilt.get_or_insert_with(|| Instant::now() + REBUILD_PATIENCE);
                    self.broker.wait_for_rebuild(until).await.map_err(of_queue)?;
                }
                // What was acknowledged before the stream began must be seen by it, dispatched or not.
                Look::OutOfRange(_) if !self.has_caught_up => {
                    self.turn = at;
                    self.catch_up().await;
                }
                Look::OutOfRange(range) => {
                    return Err(of_queue(self.broker.out_of_range(place.next, range)));
                }
                Look::Nothing { next, range } => {
                    place.next = next;
                    // As much as one look may pass over: the reader learns how far it is.
                    if next < range.max {
                        let pulled = self.broker.pulled(Vec::new(), next, range, None);
                        return Ok((queue, pulled));
                    }
                    let topic = self.reader.topic.handle();
                    let arrival = self.broker.store.arrival(topic, queue, next);
                    self.broker.counters.parked.add(1);
                    place.arrival = Some(Box::pin(arrival));
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
            place.arrival.is_none().then_some((at, place.queue, place.next))
        });
        let next = active.next();
        self.others.clear();
        self.others.extend(active.take(READ_ALONG).map(|(_, queue, from)| (queue, from)));
        next
    }

    /// Keeps what was read along until its turns come. It is in their order; some were left out.
    fn keep(&mut self, along: Vec<Along>) {
        let count = self.places.len();
        let mut turns = (0..count).map(|n| (self.turn + n) % count);
        for along in along {
            let is_of = |at: &usize| {
                self.places.get(*at).is_some_and(|place| place.queue == along.read.queue)
            };
            if let Some(at) = turns.find(is_of) {
                self.along.push_back((at, along));
            }
        }
    }

    /// Whether something of it was purged since it was read; then it is read again.
    fn is_purged(&self, read: &Ahead) -> bool {
        let purged = self.reader.topic.handle().purged(read.queue);
        read.records.first().is_some_and(|first| first.first_queue_offset < purged)
    }

    /// The answer about a place that was read along with another's.
    async fn hand_out(
        &mut self,
        at: usize,
        along: Along,
    ) -> Result<(QueueId, Pulled), PullStreamError> {
        let Along { read: Ahead { queue, records, next, range }, permit } = along;
        let until = Instant::now() + PATIENCE;
        let may = self.broker.may_go_out(&self.reader, until).await;
        may.map_err(|error| PullStreamError { queue: Some(queue), error })?;
        self.turn = at + 1;
        if let Some(place) = self.places.get_mut(at) {
            place.next = next;
        }
        Ok((queue, self.broker.pulled(records, next, range, Some(permit))))
    }

    async fn catch_up(&mut self) {
        self.has_caught_up = true;
        let caught_up = self.broker.store.caught_up(self.reader.topic.handle());
        let _ = timeout_at(Instant::now() + PATIENCE, caught_up).await;
    }

    /// Gives queues their turns again in which something has arrived by now.
    async fn unpark(&mut self) -> Result<(), BrokerError> {
        poll_fn(|cx| Poll::Ready(self.poll_arrivals(cx).unwrap_or(Ok(())))).await
    }

    /// Waits until a queue has its turn again; all are parked.
    async fn arrived(&mut self) -> Result<(), BrokerError> {
        let (broker, group) = (Arc::clone(&self.broker), self.reader.group.clone());
        let arrived = poll_fn(|cx| self.poll_arrivals(cx).map_or(Poll::Pending, Poll::Ready));
        tokio::select! {
            arrived = arrived => arrived,
            () = broker.drained() => Err(BrokerError::Draining),
            () = broker.refuses(group.as_deref()) => match group {
                Some(group) => broker.admits(&group, Instant::now() + PATIENCE).await,
                None => Ok(()),
            },
        }
    }

    /// Gives queues their turns again in which something has arrived. `None`: there is none such.
    fn poll_arrivals(&mut self, cx: &mut Context<'_>) -> Option<Result<(), BrokerError>> {
        let mut ended = None;
        for place in &mut self.places {
            let Some(arrival) = &mut place.arrival else { continue };
            let Poll::Ready(why) = arrival.as_mut().poll(cx) else { continue };
            place.arrival = None;
            let why = match why {
                // A deletion is told by who looks, once it is durable.
                Arrival::Readable | Arrival::Gone => Ok(()),
                Arrival::Closed => Err(BrokerError::Draining),
            };
            ended = Some(ended.unwrap_or(Ok(())).and(why));
        }
        ended
    }
}
