//! Topics as a service: made, changed, purged, deleted, listed, described.
//!
//! An answer that reveals what the table holds waits until that is durable by the broker's default mode. A change and
//! a purge are on stable media before their OK, whatever the modes are.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::error::{BrokerError, RequestFault};
use super::offsets::check_queue;
use super::state::topics::{Creation, Deletion, Origin, Purged, TopicChanges, TopicEntry, Update};
use super::{Broker, before, names};
use crate::message::{FlushMode, Force, QueueId, QueueOffset, TopicSettings, TopicType};
use crate::store::{AppendError, QueueRange, ReadError};

/// The most queues that a topic can have.
const MAX_QUEUES: u32 = TopicSettings::MAX_QUEUES;

/// Queues of a topic that is made without a number of them.
const DEFAULT_QUEUES: u32 = 4;

/// Milliseconds that a topic can keep its messages: a second, which is about as exact as clocks and the cleaning are,
/// and short enough for a test to wait for; 100 years, which no clock of this program reaches.
pub const RETENTION_MS: RangeInclusive<u64> = 1_000..=36_525 * 24 * 60 * 60 * 1_000;

/// Bytes of records that a topic can keep: a MiB, of which a test with its small segments fills many; an EiB.
pub const RETENTION_BYTES: RangeInclusive<u64> = 1 << 20..=1 << 60;

/// A purge counts what it takes from so many queues; the messages of a topic with more are not counted.
const MAX_COUNTED_QUEUES: u32 = 1_024;

/// A purge looks so long at its queues, before and after; if that is not enough, it does not count.
const COUNT_TIMEOUT: Duration = Duration::from_secs(2);

/// The most topics or queues in one answer.
pub(super) const MAX_PAGE: u32 = 10_000;

/// Topics in byte order of their names.
#[derive(Debug)]
pub struct TopicPage {
    /// At most as many as were asked for.
    pub topics: Vec<Arc<TopicEntry>>,
    /// Whether there are more behind the last.
    pub more: bool,
}

/// A queue and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueDescription {
    /// Which one.
    pub queue: QueueId,
    /// What can be pulled from it.
    pub range: QueueRange,
}

/// A topic and some of its queues.
#[derive(Debug)]
pub struct TopicDescription {
    /// The topic.
    pub topic: Arc<TopicEntry>,
    /// In order, without holes.
    pub queues: Vec<QueueDescription>,
}

/// What of a topic an operator wants to be rid of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purge {
    /// Everything that is stored by now.
    Topic,
    /// Of one queue.
    Queue {
        /// Which one.
        queue: QueueId,
        /// The messages below this offset; `None`: all that can be read by now.
        up_to: Option<QueueOffset>,
    },
}

impl Broker {
    /// What a topic is that is made without any wish.
    pub fn topic_defaults(&self) -> TopicSettings {
        TopicSettings {
            retention: self.config.retention,
            ..TopicSettings::open(DEFAULT_QUEUES, self.default_flush, TopicType::Mixed)
        }
    }

    /// What acknowledgements wait for unless the topic says otherwise.
    pub fn flush_default(&self) -> FlushMode {
        self.default_flush
    }

    /// Makes a topic. The same name with the same settings is fine.
    ///
    /// # Errors
    /// Nothing was made, unless [`BrokerError::stored`] says otherwise.
    pub async fn create_topic(
        &self,
        name: &str,
        settings: TopicSettings,
        deadline: Instant,
    ) -> Result<Arc<TopicEntry>, BrokerError> {
        names::check_new(name)?;
        check_settings(&settings)?;
        if self.is_draining() {
            return Err(BrokerError::Draining);
        }
        let (made, applied) = loop {
            match self.state.topics.create(&self.store, name, settings, Origin::Asked) {
                Ok(done) => break done,
                Err(AppendError::NotReady) => self.space(deadline).await?,
                Err(error) => return Err(error.into()),
            }
        };
        self.settled(applied, deadline).await?;
        match made {
            Creation::Ready(topic) => Ok(topic),
            Creation::Conflict(_) => Err(BrokerError::TopicExists),
            Creation::Limit(limit) => Err(BrokerError::TopicLimit { limit }),
        }
    }

    /// Changes a topic, in force at once. What is so already is fine, and so is no change at all.
    ///
    /// More queues begin at offset 0. From async to sync, acknowledgements wait from now on, and what was visible
    /// stays so. A shorter retention makes messages unreadable at once; under a longer one stays gone what was gone.
    ///
    /// # Errors
    /// The topic is as it was, unless [`BrokerError::stored`] says otherwise. Fewer queues are refused; what would
    /// break the order of message groups of a FIFO topic (more queues, another type) is refused without `force`.
    pub async fn update_topic(
        &self,
        name: &str,
        changes: &TopicChanges,
        force: Force,
        deadline: Instant,
    ) -> Result<Arc<TopicEntry>, BrokerError> {
        // The changes alone: what stays was allowed when it was made.
        let legal = TopicSettings::open(1, FlushMode::Sync, TopicType::Mixed);
        check_settings(&changes.on(legal))?;
        self.topic(name, deadline).await?;
        if self.is_draining() {
            return Err(BrokerError::Draining);
        }
        let (updated, applied) = loop {
            match self.state.topics.update(&self.store, name, changes, force) {
                Ok(done) => break done,
                Err(AppendError::NotReady) => self.space(deadline).await?,
                Err(error) => return Err(error.into()),
            }
        };
        self.store.clean_soon();
        if let Update::Done(topic) = &updated {
            self.store.wake_readers(topic.handle());
            self.state.offsets.ready.wake_topic(topic.id());
        }
        self.durable(applied, deadline).await?;
        match updated {
            Update::Done(topic) => {
                self.clients.topic_changed(name);
                Ok(topic)
            }
            Update::Unknown => Err(BrokerError::NoTopic { name: name.into() }),
            Update::Fewer(queues) => {
                let fault = RequestFault::FewerQueues { queues };
                Err(BrokerError::BadRequest { fault })
            }
            Update::BreaksOrder => Err(BrokerError::NeedsForce),
            Update::Limit(limit) => Err(BrokerError::TopicLimit { limit }),
        }
    }

    /// Makes messages of a topic unreadable, at once for pulls and queries, for good. Returns how many; `None` if
    /// there are too many queues to count, or their files cannot be read in time.
    ///
    /// # Errors
    /// Everything is there, unless [`BrokerError::stored`] says otherwise. An offset beyond the end of the queue is
    /// out of range; one below its begin is fine, as there is nothing to do.
    pub async fn purge_topic(
        &self,
        name: &str,
        what: Purge,
        deadline: Instant,
    ) -> Result<Option<u64>, BrokerError> {
        let topic = self.topic(name, deadline).await?;
        if self.is_draining() {
            return Err(BrokerError::Draining);
        }
        // What was acknowledged before this request is purged by it. Not in time: then what can be read by now.
        let _ = timeout_at(before(deadline), self.store.caught_up(topic.handle())).await;
        let (purged, queues) = match what {
            Purge::Topic => (Purged::Topic, 0..topic.handle().queues()),
            Purge::Queue { queue, up_to } => {
                check_queue(&topic, queue)?;
                let range = self.store.queue_bounds(topic.handle(), queue).await?;
                let offset = up_to.unwrap_or(range.max);
                if offset > range.max {
                    let epoch = self.store.epoch();
                    return Err(BrokerError::OffsetOutOfRange { offset, range, epoch });
                }
                if offset <= range.min {
                    self.durable(self.state.topics.applied(), deadline).await?;
                    return Ok(Some(0));
                }
                (Purged::Queue(queue, offset), queue.get()..queue.get() + 1)
            }
        };
        let first = self.minimums(&topic, queues.clone()).await;
        let applied = loop {
            match self.state.topics.purge(&self.store, topic.id(), purged) {
                Ok(Some(applied)) => break applied,
                Ok(None) => return Err(BrokerError::NoTopic { name: name.into() }),
                Err(AppendError::NotReady) => self.space(deadline).await?,
                Err(error) => return Err(error.into()),
            }
        };
        self.store.clean_soon();
        self.durable(applied, deadline).await?;
        let (Some(first), Some(left)) = (first, self.minimums(&topic, queues).await) else {
            return Ok(None);
        };
        Ok(Some(first.iter().zip(left).map(|(first, left)| left.saturating_sub(*first)).sum()))
    }

    /// Deletes a topic: at once for sends, pulls and queries; parked pulls end.
    ///
    /// # Errors
    /// The topic lives on, unless [`BrokerError::stored`] says otherwise.
    pub async fn delete_topic(&self, name: &str, deadline: Instant) -> Result<(), BrokerError> {
        names::check_known(name)?;
        if self.is_draining() {
            return Err(BrokerError::Draining);
        }
        let (deleted, applied) = loop {
            match self.state.topics.delete(&self.store, name) {
                Ok(done) => break done,
                Err(AppendError::NotReady) => self.space(deadline).await?,
                Err(error) => return Err(error.into()),
            }
        };
        self.store.clean_soon();
        if let Deletion::Done(id) = deleted {
            self.state.offsets.forget_topic(id);
        }
        self.settled(applied, deadline).await?;
        match deleted {
            Deletion::Done(_) => Ok(()),
            Deletion::Unknown => Err(BrokerError::NoTopic { name: name.into() }),
        }
    }

    /// Up to `limit` topics with names after `after`, in byte order; `limit` is at most 10 000.
    ///
    /// # Errors
    /// `limit` is too large, or the table is not durable in time.
    pub async fn list_topics(
        &self,
        after: &str,
        limit: u32,
        deadline: Instant,
    ) -> Result<TopicPage, BrokerError> {
        within("topics in an answer", limit, MAX_PAGE)?;
        let (topics, more, applied) = self.state.topics.list(after, limit as usize);
        self.settled(applied, deadline).await?;
        Ok(TopicPage { topics, more })
    }

    /// A topic and up to `limit` of its queues from `first_queue` on; `limit` is at most 10 000. The ranges hold
    /// everything that was acknowledged before.
    ///
    /// # Errors
    /// There is no such topic, or `limit` is too large.
    pub async fn describe_topic(
        &self,
        name: &str,
        first_queue: u32,
        limit: u32,
        deadline: Instant,
    ) -> Result<TopicDescription, BrokerError> {
        within("queues in an answer", limit, MAX_PAGE)?;
        let topic = self.topic(name, deadline).await?;
        // Looked at behind the table: what the topic is was told by a record before it.
        self.settled(self.state.topics.applied(), deadline).await?;
        // Ranges that lag a little are still true, so a deadline that ends the wait is no error.
        let _ = timeout_at(before(deadline), self.store.caught_up(topic.handle())).await;
        let end = topic.settings().queues.min(first_queue.saturating_add(limit));
        let first = first_queue.min(end);
        let bounds = self.store.bounds(topic.handle(), first..end).await?;
        let queues = (first..)
            .map(QueueId::new)
            .zip(bounds)
            .map(|(queue, range)| QueueDescription { queue, range })
            .collect();
        Ok(TopicDescription { topic, queues })
    }

    /// The first readable offset of each of these queues; `None`: not in time, or not at all.
    async fn minimums(&self, topic: &TopicEntry, queues: std::ops::Range<u32>) -> Option<Vec<u64>> {
        if queues.len() > MAX_COUNTED_QUEUES as usize {
            return None;
        }
        let looked = timeout(COUNT_TIMEOUT, async {
            let bounds = self.store.bounds(topic.handle(), queues).await?;
            Ok::<_, ReadError>(bounds.iter().map(|range| range.min.get()).collect())
        });
        looked.await.ok()?.ok()
    }
}

/// Refuses what no topic can be.
fn check_settings(settings: &TopicSettings) -> Result<(), BrokerError> {
    let refused = |fault| Err(BrokerError::BadRequest { fault });
    if settings.queues == 0 {
        return refused(RequestFault::NoQueues);
    }
    within("queues of a topic", settings.queues, MAX_QUEUES)?;
    match (settings.retention.time_ms, settings.retention.bytes) {
        (Some(ms), _) if !RETENTION_MS.contains(&ms) => refused(RequestFault::RetentionTime { ms }),
        (_, Some(bytes)) if !RETENTION_BYTES.contains(&bytes) => {
            refused(RequestFault::RetentionBytes { bytes })
        }
        _ => Ok(()),
    }
}

/// Refuses a number above its limit.
pub(super) fn within(what: &'static str, found: u32, limit: u32) -> Result<(), BrokerError> {
    if found > limit {
        return Err(BrokerError::TooLarge { what, found: found.into(), limit: limit.into() });
    }
    Ok(())
}
