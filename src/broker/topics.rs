//! Topics as a service: made, deleted, listed, described.
//!
//! An answer that reveals what the table holds waits until that is durable by the broker's default mode.

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use super::error::{BrokerError, RequestFault};
use super::state::topics::{Creation, Deletion, Origin, TopicEntry};
use super::{Broker, before, names};
use crate::message::{FlushMode, QueueId, TopicSettings};
use crate::store::{AppendError, QueueRange};

/// The most queues that a topic can have.
const MAX_QUEUES: u32 = 65_536;

/// The most topics or queues in one answer.
const MAX_PAGE: u32 = 10_000;

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

impl Broker {
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
        if settings.queues == 0 {
            return Err(BrokerError::BadRequest { fault: RequestFault::NoQueues });
        }
        within("queues of a topic", settings.queues, MAX_QUEUES)?;
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
        if let Deletion::Done(id) = deleted {
            self.state.offsets.forget_topic(id);
        }
        self.settled(applied, deadline).await?;
        match deleted {
            Deletion::Done(_) => Ok(()),
            Deletion::Unknown => Err(BrokerError::UnknownTopic),
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
        let applied = self.state.topics.applied();
        let topic = self.known(name);
        self.settled(applied, deadline).await?;
        let topic = topic?;
        // Ranges that lag a little are still true, so a deadline that ends the wait is no error.
        let _ = timeout_at(before(deadline), self.store.caught_up(topic.handle())).await;
        let end = topic.settings().queues.min(first_queue.saturating_add(limit));
        let queues = (first_queue..end)
            .map(QueueId::new)
            .map(|queue| QueueDescription {
                queue,
                range: self.store.queue_range(topic.handle(), queue),
            })
            .collect();
        Ok(TopicDescription { topic, queues })
    }
}

/// Refuses a number above its limit.
pub(super) fn within(what: &'static str, found: u32, limit: u32) -> Result<(), BrokerError> {
    if found > limit {
        return Err(BrokerError::TooLarge { what, found: found.into(), limit: limit.into() });
    }
    Ok(())
}
