//! What was accepted and not taken by the task yet: open batches, one for each place, and closed ones in their order.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{FlushError, Outcome, ProducerError};
use crate::format::batch::{BatchBuilder, NewMeta};
use crate::message::QueueId;

/// When a batch is closed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) bytes: usize,
    pub(super) messages: usize,
    pub(super) linger: Duration,
}

/// Where in its topic a message goes. Messages of one place keep their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// Wherever the broker says.
    Any,
    Queue(u32),
    /// The queue of the message group.
    Group(&'a str),
}

/// A batch.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) topic: Arc<str>,
    pub(super) queue: Option<QueueId>,
    group: Option<Box<str>>,
    pub(super) messages: BatchBuilder,
    pub(super) outcome: Arc<Outcome>,
    /// What its messages took of the producer's memory.
    pub(super) permits: usize,
    /// When it was opened; from when it is closed on, when that was.
    pub(super) since: Instant,
}

/// Open batches of a topic, by their place.
#[derive(Debug, Default)]
struct Places {
    any: Option<u64>,
    queues: HashMap<u32, u64>,
    groups: HashMap<Box<str>, u64>,
}

#[derive(Debug)]
pub(super) struct Accepted {
    limits: Limits,
    /// By their numbers, so the oldest first. Each has a message: the producer's memory bounds them.
    open: BTreeMap<u64, Batch>,
    /// Topics that have open batches.
    topics: HashMap<Arc<str>, Places>,
    closed: VecDeque<Batch>,
    /// Batches that were ever opened.
    opened_count: u64,
    /// Batches that were ever closed.
    closed_count: u64,
    /// Senders that wait for memory.
    waiting: usize,
    /// Nothing more is accepted.
    end: Option<ProducerError>,
    /// Messages that failed since the last flush.
    failures: Option<FlushError>,
}

/// What a message takes of the memory, and at most of a batch.
pub(super) fn cost(topic: &str, meta: &NewMeta<'_>, body: &[u8]) -> usize {
    /// Of the encoding of a field, at most.
    const FIELD: usize = 12;
    let text = |text: Option<&str>| text.map_or(0, |text| FIELD + text.len());
    let keys: usize = meta.keys.iter().map(|key| FIELD + key.len()).sum();
    let properties: usize =
        meta.properties.iter().map(|(key, value)| 3 * FIELD + key.len() + value.len()).sum();
    let texts = text(meta.tag)
        + text(meta.message_group)
        + text(meta.id)
        + text(meta.trace_context)
        + text(meta.born_host);
    // The name of the topic stands for what a batch takes beside its messages: it may have but one.
    let fixed = 4 * FIELD + topic.len();
    body.len() + keys + properties + texts + fixed
}

impl Accepted {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            open: BTreeMap::new(),
            topics: HashMap::new(),
            closed: VecDeque::new(),
            opened_count: 0,
            closed_count: 0,
            waiting: 0,
            end: None,
            failures: None,
        }
    }

    /// Puts a message into its batch: whose outcome, its index, and whether the task has to hear of it.
    pub(super) fn add(
        &mut self,
        topic: &str,
        place: Place<'_>,
        meta: &NewMeta<'_>,
        body: &[u8],
        permits: u32,
        now: Instant,
    ) -> Result<(Arc<Outcome>, u16, bool), ProducerError> {
        if let Some(end) = &self.end {
            return Err(end.clone());
        }
        let closed_before = self.closed_count;
        let limits = self.limits;
        let size = cost(topic, meta, body);
        let mut found = self.topics.get(topic).and_then(|places| places.get(place));
        if let Some(number) = found
            && let Some(batch) = self.open.get(&number)
            && batch.messages.len() + size > limits.bytes
        {
            self.close_one(number, now);
            found = None;
        }
        let was_quiet = self.open.is_empty();
        let number = match found {
            Some(number) => number,
            None => self.number_for(topic, place),
        };
        let topics = &self.topics;
        let batch = self.open.entry(number).or_insert_with(|| {
            let topic =
                topics.get_key_value(topic).map_or_else(|| topic.into(), |(t, _)| t.clone());
            Batch::new(topic, place, now)
        });
        let index = u16::try_from(batch.messages.message_count()).unwrap_or(u16::MAX);
        batch.messages.push(meta, body);
        batch.permits += permits as usize;
        let outcome = Arc::clone(&batch.outcome);
        let is_full = batch.messages.message_count() >= limits.messages
            || batch.messages.len() >= limits.bytes;
        if is_full {
            self.close_one(number, now);
        }
        let is_news = was_quiet || self.closed_count > closed_before;
        Ok((outcome, index, is_news))
    }

    /// The number of a batch that is opened for a place.
    fn number_for(&mut self, topic: &str, place: Place<'_>) -> u64 {
        let number = self.opened_count;
        self.opened_count += 1;
        match self.topics.get_mut(topic) {
            Some(places) => places.set(place, number),
            None => {
                let mut places = Places::default();
                places.set(place, number);
                self.topics.insert(topic.into(), places);
            }
        }
        number
    }

    fn close_one(&mut self, number: u64, now: Instant) {
        let Some(mut batch) = self.open.remove(&number) else { return };
        if let Some(places) = self.topics.get_mut(&batch.topic) {
            places.clear(batch.place());
            if places.is_empty() {
                self.topics.remove(&batch.topic);
            }
        }
        batch.since = now;
        self.closed.push_back(batch);
        self.closed_count += 1;
    }

    /// The next batch to be sent, if there is one at this time.
    pub(super) fn take(&mut self, now: Instant) -> Option<Batch> {
        // Also while others are closed: a place that is seldom sent to would else wait for as long as they come. Only
        // one each time: those behind it gather more until it is their turn.
        // Nor does one linger whose memory is waited for, once there is nothing else to send.
        let is_short = self.waiting > 0 && self.closed.is_empty();
        if let Some((number, batch)) = self.open.first_key_value()
            && (is_short || self.end.is_some() || batch.since + self.limits.linger <= now)
        {
            self.close_one(*number, now);
        }
        self.closed.pop_front()
    }

    /// When the oldest open batch has lingered.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let (_, oldest) = self.open.first_key_value()?;
        Some(oldest.since + self.limits.linger)
    }

    /// Closes all open batches, in the order in which they were opened. When so many batches have an outcome, all that
    /// was accepted until now has one.
    pub(super) fn close_all(&mut self, now: Instant) -> u64 {
        while let Some((number, _)) = self.open.first_key_value() {
            self.close_one(*number, now);
        }
        self.closed_count
    }

    /// One more waits for memory.
    pub(super) fn begin_waiting(&mut self) {
        self.waiting += 1;
    }

    /// One of those has it, or waits no more.
    pub(super) fn end_waiting(&mut self) {
        self.waiting = self.waiting.saturating_sub(1);
    }

    /// Accepts nothing more; the first reason counts.
    pub(super) fn end(&mut self, why: ProducerError) {
        self.end.get_or_insert(why);
    }

    /// Why nothing more is accepted.
    pub(super) fn why_ended(&self) -> ProducerError {
        self.end.clone().unwrap_or(ProducerError::Closed)
    }

    /// Whether the task has nothing more to expect.
    pub(super) fn is_done(&self) -> bool {
        self.end.is_some() && self.open.is_empty() && self.closed.is_empty()
    }

    /// Counts messages that failed, for the next flush.
    pub(super) fn failed(&mut self, messages: usize, error: &ProducerError) {
        let failures =
            self.failures.get_or_insert_with(|| FlushError { messages: 0, first: error.clone() });
        failures.messages += messages as u64;
    }

    pub(super) fn take_failures(&mut self) -> Option<FlushError> {
        self.failures.take()
    }
}

impl Batch {
    fn new(topic: Arc<str>, place: Place<'_>, now: Instant) -> Self {
        let (queue, group) = match place {
            Place::Any => (None, None),
            Place::Queue(queue) => (Some(QueueId::new(queue)), None),
            Place::Group(group) => (None, Some(group.into())),
        };
        let (messages, outcome) = (BatchBuilder::new(), Arc::default());
        Self { topic, queue, group, messages, outcome, permits: 0, since: now }
    }

    fn place(&self) -> Place<'_> {
        match (self.queue, &self.group) {
            (Some(queue), _) => Place::Queue(queue.get()),
            (None, Some(group)) => Place::Group(group),
            (None, None) => Place::Any,
        }
    }
}

impl Places {
    fn get(&self, place: Place<'_>) -> Option<u64> {
        match place {
            Place::Any => self.any,
            Place::Queue(queue) => self.queues.get(&queue).copied(),
            Place::Group(group) => self.groups.get(group).copied(),
        }
    }

    fn set(&mut self, place: Place<'_>, number: u64) {
        match place {
            Place::Any => self.any = Some(number),
            Place::Queue(queue) => {
                self.queues.insert(queue, number);
            }
            Place::Group(group) => {
                self.groups.insert(group.into(), number);
            }
        }
    }

    fn clear(&mut self, place: Place<'_>) {
        match place {
            Place::Any => self.any = None,
            Place::Queue(queue) => {
                self.queues.remove(&queue);
            }
            Place::Group(group) => {
                self.groups.remove(group);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.any.is_none() && self.queues.is_empty() && self.groups.is_empty()
    }
}
