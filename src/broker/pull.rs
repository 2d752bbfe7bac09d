//! Pulls: whole records of one queue from an offset on, with long polling.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::budget::Permit;
use super::error::{BrokerError, RequestFault};
use super::long_poll::Woken;
use super::offsets::check_queue;
use super::state::groups::GroupEntry;
use super::state::topics::TopicEntry;
use super::topics::within;
use super::{Broker, before};
use crate::format::batch::TagFilter;
use crate::message::{Epoch, QueueId, QueueOffset};
use crate::store::{
    Ahead, Diverged, QueueRange, ReadError, ReadOutcome, ReadRequest, StoredRecord,
};

/// The most messages in an answer, if there is more than one record.
pub(super) const MAX_MESSAGES: u32 = 10_000;

/// The most bytes of batches in an answer, if there is more than one record.
pub(super) const MAX_BYTES: u32 = 8 << 20;

/// What an answer may have however little room is left.
const LEAST_PART: u32 = 64 << 10;

/// Batches from so many bytes on go out as they lie in the log; smaller ones are copied: for them a piece of its own
/// costs more than that.
pub const SPLICED: usize = 8 << 10;

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
    /// Keeps the answer's memory counted until it has left; `None` if it is without records, or one of several parts
    /// that are counted together. Of a batch that goes out as it lies in the log's mapping only what surrounds it costs
    /// memory.
    pub permit: Option<Permit>,
}

/// What a reader reads of, and how.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) topic: Arc<TopicEntry>,
    /// In whose name.
    pub(super) group: Option<Arc<GroupEntry>>,
    pub(super) filter: Arc<TagFilter>,
    pub(super) max_messages: u32,
    pub(super) max_bytes: u32,
}

/// What there is from an offset on.
pub(super) enum Look {
    Found(Read),
    /// A file is made again.
    Rebuilding,
    OutOfRange(QueueRange),
    /// Nothing up to `next`.
    Nothing {
        next: QueueOffset,
        range: QueueRange,
    },
}

/// Records of a queue, and what was read of others along with them.
pub(super) struct Read {
    pub(super) records: Vec<StoredRecord>,
    pub(super) next: QueueOffset,
    pub(super) range: QueueRange,
    pub(super) along: Vec<Ahead>,
    /// For all of it.
    pub(super) permit: Permit,
}

/// Bytes of memory that a record takes beside its batch on its way out: where it is, and the fields around it.
const RECORD: u64 = 256;

/// Bytes of the log that a record takes at least.
const LEAST_RECORD: u32 = 128;

/// Bytes of memory that records take on their way out.
fn memory_of(records: &[StoredRecord]) -> u64 {
    records.iter().map(memory).sum()
}

fn memory(record: &StoredRecord) -> u64 {
    let len = record.batch.len();
    let batch = if record.is_in_place && len >= SPLICED { 0 } else { len };
    u64::try_from(batch).unwrap_or(u64::MAX).saturating_add(RECORD)
}

impl Broker {
    /// Reads whole records from an offset on; at the end of the queue it waits for one.
    ///
    /// # Errors
    /// Nothing was read. [`BrokerError::OffsetOutOfRange`], [`BrokerError::Truncated`] and [`BrokerError::Damaged`]
    /// say where to go on.
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
        let topic = self.topic(request.topic, request.deadline).await?;
        check_queue(&topic, request.queue)?;
        let reader = Reader {
            filter,
            topic,
            group: match request.group {
                Some(name) => Some(self.group(name, request.deadline).await?),
                None => None,
            },
            max_messages: request.max_messages,
            max_bytes: request.max_bytes,
        };
        let until = before(request.deadline);
        if let Some(epoch) = request.epoch {
            let place = (request.queue, request.offset);
            let rebuilt = until.min(Instant::now() + request.wait);
            self.check_not_truncated(&reader.topic, place, epoch, until, rebuilt).await?;
        }
        self.pull_or_park(&reader, &request).await
    }

    /// Refuses a reader who read messages of a queue that an unclean stop took since. Waits for the disk until
    /// `until`, for files that are made again until `rebuilt`.
    pub(super) async fn check_not_truncated(
        &self,
        topic: &TopicEntry,
        (queue, offset): (QueueId, QueueOffset),
        epoch: Epoch,
        until: Instant,
        rebuilt: Instant,
    ) -> Result<(), BrokerError> {
        let current = self.store.epoch();
        if epoch > current {
            let fault = RequestFault::EpochAhead { epoch, current };
            return Err(BrokerError::BadRequest { fault });
        }
        loop {
            let diverged = self.store.diverged(topic.handle(), queue, offset, epoch);
            let diverged = timeout_at(until, diverged)
                .await
                .map_err(|_| BrokerError::Overloaded { what: "reads off the disk" })?;
            match diverged {
                Ok(None) => return Ok(()),
                Ok(Some(Diverged { at, range })) => {
                    self.still_there(topic, until).await?;
                    return Err(BrokerError::Truncated { offset, at, range, epoch: current });
                }
                Err(ReadError::Rebuilding) => self.wait_for_rebuild(rebuilt).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn pull_or_park(
        &self,
        reader: &Reader,
        request: &PullRequest<'_>,
    ) -> Result<Pulled, BrokerError> {
        let until = before(request.deadline).min(Instant::now() + request.wait);
        let mut from = request.offset;
        let mut has_caught_up = false;
        loop {
            let place = (request.queue, from);
            let look = self.look(reader, place, before(request.deadline), None).await?;
            let at_end = match look {
                Look::Found(Read { records, next, range, permit, .. }) => {
                    return Ok(self.pulled(records, next, range, Some(permit)));
                }
                Look::Rebuilding => {
                    self.wait_for_rebuild(until).await?;
                    continue;
                }
                Look::OutOfRange(range) => Err(self.out_of_range(from, range)),
                Look::Nothing { next, range } => Ok((next, range)),
            };
            // What was acknowledged before this request came must be seen by it, dispatched or not.
            if !has_caught_up {
                has_caught_up = true;
                let caught_up = self.store.caught_up(reader.topic.handle());
                let _ = timeout_at(before(request.deadline), caught_up).await;
                continue;
            }
            let (next, range) = at_end?;
            // Not at the end: the store has looked at as much as one read may, and the caller goes on from there.
            if next < range.max {
                return Ok(self.pulled(Vec::new(), next, range, None));
            }
            let (topic, group) = (&reader.topic, reader.group.as_deref());
            match self.park(topic, group, request.queue, next, until).await? {
                Woken::Look => from = next,
                Woken::Over => return Ok(self.pulled(Vec::new(), next, range, None)),
            }
        }
    }

    /// Reads from an offset on, without waiting for anything but the disk and room for the answer; with `others` for
    /// little time, and then in them too, in their order, as far as that time and the room go.
    pub(super) async fn look(
        &self,
        reader: &Reader,
        (queue, from): (QueueId, QueueOffset),
        deadline: Instant,
        others: Option<&[(QueueId, QueueOffset)]>,
    ) -> Result<Look, BrokerError> {
        let topic = &reader.topic;
        let max_bytes = reader.max_bytes.min(self.part_bytes());
        // The one record that an answer has at least may be larger than what was asked for; then so must the permit
        // be.
        let most_records = reader.max_messages.min(max_bytes / LEAST_RECORD + 1);
        let mut answer_len = u64::from(max_bytes) + u64::from(most_records) * RECORD;
        loop {
            if let Some(group) = &reader.group {
                self.admits(group, deadline).await?;
            }
            let permit = self
                .replies
                .take(answer_len, deadline)
                .await
                .ok_or(BrokerError::Overloaded { what: "bytes to answer with" })?;
            let request = ReadRequest {
                topic: Arc::clone(topic.handle()),
                queue,
                from,
                max_messages: reader.max_messages as usize,
                max_bytes: max_bytes as usize,
                filter: Arc::clone(&reader.filter),
            };
            let (outcome, mut along) = match others {
                Some(others) => self.store.read_ahead(request, others).await?,
                None => (self.store.read(request).await?, Vec::new()),
            };
            self.still_there(topic, deadline).await?;
            // After the read, and again after each wait: a change meanwhile is in force.
            self.check_readable(topic)?;
            if let Some(group) = &reader.group {
                self.admits(group, deadline).await?;
            }
            return Ok(match outcome {
                ReadOutcome::Records { records, next, range } => {
                    let mut len = memory_of(&records);
                    if len > answer_len {
                        // Read again with a permit that is large enough: nobody holds records, or a small permit,
                        // while waiting for more.
                        answer_len = len;
                        continue;
                    }
                    let fits = along.iter().take_while(|read| {
                        let with_it = len.saturating_add(memory_of(&read.records));
                        let fits = with_it <= answer_len;
                        len = if fits { with_it } else { len };
                        fits
                    });
                    // What finds no room is read again.
                    along.truncate(fits.count());
                    Look::Found(Read { records, next, range, along, permit: permit.shrunk_to(len) })
                }
                ReadOutcome::Damaged { at, next, .. } => {
                    return Err(BrokerError::Damaged { at, next });
                }
                ReadOutcome::Rebuilding => Look::Rebuilding,
                ReadOutcome::OutOfRange { range } => Look::OutOfRange(range),
                ReadOutcome::Empty { next, range } => Look::Nothing { next, range },
            });
        }
    }

    /// What one answer may have: less, the less room is left, so that many who take their time leave some to the
    /// others.
    pub(super) fn part_bytes(&self) -> u32 {
        let part = self.replies.free() / 16;
        u32::try_from(part).unwrap_or(u32::MAX).max(LEAST_PART)
    }

    pub(super) fn out_of_range(&self, offset: QueueOffset, range: QueueRange) -> BrokerError {
        BrokerError::OffsetOutOfRange { offset, range, epoch: self.store.epoch() }
    }

    /// Counts what goes out.
    pub(super) fn pulled(
        &self,
        records: Vec<StoredRecord>,
        next: QueueOffset,
        range: QueueRange,
        permit: Option<Permit>,
    ) -> Pulled {
        self.counters.pulls.add(1);
        for record in &records {
            self.counters.pulled_messages.add(record.message_count.into());
            self.counters.pulled_bytes.add(u64::try_from(record.batch.len()).unwrap_or_default());
        }
        Pulled { records, next, range, epoch: self.store.epoch(), permit }
    }

    pub(super) async fn wait_for_rebuild(&self, until: Instant) -> Result<(), BrokerError> {
        let now = Instant::now();
        if now >= until || self.is_draining() {
            return Err(BrokerError::Rebuilding);
        }
        sleep_until(until.min(now + REBUILD_LOOK)).await;
        Ok(())
    }
}
