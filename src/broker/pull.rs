//! Pulls: whole records of one queue from an offset on, with long polling.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::budget::Permit;
use super::error::{BrokerError, RequestFault};
use super::long_poll::Woken;
use super::state::groups::GroupEntry;
use super::state::topics::TopicEntry;
use super::topics::within;
use super::{Broker, before};
use crate::format::batch::TagFilter;
use crate::message::{Epoch, QueueId, QueueOffset};
use crate::store::{Diverged, QueueRange, ReadError, ReadOutcome, ReadRequest, StoredRecord};

/// The most messages in an answer, if there is more than one record.
const MAX_MESSAGES: u32 = 10_000;

/// The most bytes of batches in an answer, if there is more than one record.
const MAX_BYTES: u32 = 8 << 20;

/// The longest wait at the end of a queue.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// How often a pull looks again while a file that it needs is being rebuilt: nobody announces the end of that.
const REBUILD_LOOK: Duration = Duration::from_millis(20);

/// What is wanted of a queue.
#[derive(Clone, Copy, Debug)]
pub struct PullRequest<'a> {
    /// The topic's name.
    pub topic: &'a str,
    /// The queue.
    pub queue: QueueId,
    /// The first message wanted.
    pub offset: QueueOffset,
    /// At most so many messages, but at least one whole record.
    pub max_messages: u32,
    /// At most so many bytes of batches, but at least one whole record.
    pub max_bytes: u32,
    /// How long to wait at the end of the queue.
    pub wait: Duration,
    /// The tag expression.
    pub tags: &'a str,
    /// The newest epoch that the caller has heard of, if it tells: then it learns what of that it read is lost.
    pub epoch: Option<Epoch>,
    /// The consumer group that it is for, if it is for one: it must be there and enabled.
    pub group: Option<&'a str>,
    /// When the caller stops waiting.
    pub deadline: Instant,
}

/// What was found.
#[derive(Debug)]
pub struct Pulled {
    /// Whole records in queue order.
    pub records: Vec<StoredRecord>,
    /// Where to go on.
    pub next: QueueOffset,
    /// What the queue holds.
    pub range: QueueRange,
    /// The current epoch.
    pub epoch: Epoch,
    /// Keeps the answer's bytes counted until it has left; `None` without records.
    pub permit: Option<Permit>,
}

impl Broker {
    /// Reads whole records from an offset on; at the end of the queue it waits for one.
    ///
    /// # Errors
    /// Nothing was read. [`BrokerError::OffsetOutOfRange`], [`BrokerError::Truncated`] and [`BrokerError::Damaged`] say
    /// where to go on.
    pub async fn pull(&self, request: PullRequest<'_>) -> Result<Pulled, BrokerError> {
        within("max_messages", request.max_messages, MAX_MESSAGES)?;
        within("max_bytes", request.max_bytes, MAX_BYTES)?;
        if request.wait > MAX_WAIT {
            return Err(BrokerError::TooLarge {
                what: "wait_ms",
                found: u64::try_from(request.wait.as_millis()).unwrap_or(u64::MAX),
                limit: u64::try_from(MAX_WAIT.as_millis()).unwrap_or(u64::MAX),
            });
        }
        let filter = Arc::new(TagFilter::parse(request.tags)?);
        let topic = self.known(request.topic)?;
        let queues = topic.settings().queues;
        if request.queue.get() >= queues {
            return Err(BrokerError::BadQueue { queue: request.queue, queues });
        }

        let group = match request.group {
            Some(name) => Some(self.group(name, request.deadline).await?),
            None => None,
        };

        if let Some(epoch) = request.epoch {
            self.check_not_truncated(&topic, &request, epoch).await?;
        }
        let pulled = self.pull_or_park(&topic, &request, filter, group.as_deref()).await?;
        self.counters.pulls.add(1);
        for record in &pulled.records {
            self.counters.pulled_messages.add(record.message_count.into());
            self.counters.pulled_bytes.add(u64::try_from(record.batch.len()).unwrap_or_default());
        }
        Ok(pulled)
    }

    /// Refuses a pull whose caller read messages that an unclean stop took since.
    async fn check_not_truncated(
        &self,
        topic: &TopicEntry,
        request: &PullRequest<'_>,
        epoch: Epoch,
    ) -> Result<(), BrokerError> {
        let current = self.store.epoch();
        if epoch > current {
            let fault = RequestFault::EpochAhead { epoch, current };
            return Err(BrokerError::BadRequest { fault });
        }
        let until = before(request.deadline);
        loop {
            let (queue, offset) = (request.queue, request.offset);
            let diverged = self.store.diverged(topic.handle(), queue, offset, epoch);
            let diverged = timeout_at(until, diverged)
                .await
                .map_err(|_| BrokerError::Overloaded { what: "reads off the disk" })?;
            match diverged {
                Ok(None) => return Ok(()),
                Ok(Some(Diverged { at, range })) => {
                    self.still_there(topic)?;
                    return Err(BrokerError::Truncated { offset, at, range, epoch: current });
                }
                Err(ReadError::Rebuilding) => {
                    self.wait_for_rebuild(until.min(Instant::now() + request.wait)).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn pull_or_park(
        &self,
        topic: &TopicEntry,
        request: &PullRequest<'_>,
        filter: Arc<TagFilter>,
        group: Option<&GroupEntry>,
    ) -> Result<Pulled, BrokerError> {
        let until = before(request.deadline).min(Instant::now() + request.wait);
        let mut from = request.offset;
        let mut has_caught_up = false;
        // The one record that an answer has at least may be larger than what was asked for; then so must the permit be.
        let mut answer_len = u64::from(request.max_bytes);
        loop {
            group.map_or(Ok(()), |group| self.admits(group))?;
            let permit = self
                .replies
                .take(answer_len, before(request.deadline))
                .await
                .ok_or(BrokerError::Overloaded { what: "bytes to answer with" })?;
            let outcome = self
                .store
                .read(ReadRequest {
                    topic: Arc::clone(topic.handle()),
                    queue: request.queue,
                    from,
                    max_messages: request.max_messages as usize,
                    max_bytes: request.max_bytes as usize,
                    filter: Arc::clone(&filter),
                })
                .await?;
            if topic.handle().is_dead() && !self.state.topics.has(topic) {
                return Err(BrokerError::UnknownTopic);
            }
            // After the read, and again after each wait: a change meanwhile is in force.
            self.check_readable(topic)?;
            let at_end = match outcome {
                ReadOutcome::Records { records, next, range } => {
                    let len = records.iter().map(|record| record.batch.len()).sum::<usize>();
                    let len = u64::try_from(len).unwrap_or(u64::MAX);
                    if len <= answer_len {
                        return Ok(self.pulled(records, next, range, Some(permit.shrunk_to(len))));
                    }
                    // Read again with a permit that is large enough: nobody holds records, or a small permit, while
                    // waiting for more.
                    answer_len = len;
                    continue;
                }
                ReadOutcome::Damaged { at, next, .. } => {
                    return Err(BrokerError::Damaged { at, next });
                }
                ReadOutcome::Rebuilding => {
                    drop(permit);
                    self.wait_for_rebuild(until).await?;
                    continue;
                }
                ReadOutcome::OutOfRange { range } => {
                    let (offset, epoch) = (from, self.store.epoch());
                    Err(BrokerError::OffsetOutOfRange { offset, range, epoch })
                }
                ReadOutcome::Empty { next, range } => Ok((next, range)),
            };
            drop(permit);
            // What was acknowledged before this request came must be seen by it, dispatched or not.
            if !has_caught_up {
                has_caught_up = true;
                let caught_up = self.store.caught_up(topic.handle());
                let _ = timeout_at(before(request.deadline), caught_up).await;
                continue;
            }
            let (next, range) = at_end?;
            // Not at the end: the store has looked at as much as one read may, and the caller goes on from there.
            if next < range.max {
                return Ok(self.pulled(Vec::new(), next, range, None));
            }
            match self.park(topic, group, request.queue, next, until).await? {
                Woken::Look => from = next,
                Woken::Over => return Ok(self.pulled(Vec::new(), next, range, None)),
            }
        }
    }

    fn pulled(
        &self,
        records: Vec<StoredRecord>,
        next: QueueOffset,
        range: QueueRange,
        permit: Option<Permit>,
    ) -> Pulled {
        Pulled { records, next, range, epoch: self.store.epoch(), permit }
    }

    async fn wait_for_rebuild(&self, until: Instant) -> Result<(), BrokerError> {
        let now = Instant::now();
        if now >= until || self.is_draining() {
            return Err(BrokerError::Rebuilding);
        }
        sleep_until(until.min(now + REBUILD_LOOK)).await;
        Ok(())
    }
}
