//! Queries: messages by key, by producer's id, by message id, by place.
//!
//! A query sees what was acknowledged before it came: it waits until the store has caught up. If that does not happen
//! in its time, or a part of the index is missing, the answer says that it is not complete.
//!
//! Pages are bounded in messages and in bytes, so they are gathered in small steps: what one step reads at most is
//! [`STEP`] records.

use bytes::Bytes;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::budget::Permit;
use super::error::{BrokerError, RequestFault};
use super::token::QueryIdentity;
use super::topics::within;
use super::{Broker, before};
use crate::format::batch::{self, Batch, limits};
use crate::message::{Epoch, MessageId, QueueId, QueueOffset, Timestamp};
use crate::store::{
    FindCursor, FindRequest, Found, FoundMessage, IncompleteReason, IndexKind, Order, ReadOutcome,
    ReadRequest, StoredRecord,
};

/// The most messages in a page.
const MAX_PAGE: u32 = 1_000;

/// A page with more than one message holds at most about so many bytes of them.
const MAX_PAGE_BYTES: usize = 4 << 20;

/// Queries that run at once; others wait for their turn.
pub(super) const MAX_AT_ONCE: usize = 16;

/// Messages that are asked of the store at once.
const STEP: usize = 8;

/// How often a query by message id looks whether the dispatcher has passed the message.
const DISPATCH_LOOK: std::time::Duration = std::time::Duration::from_millis(1);

/// What is looked for.
#[derive(Clone, Copy, Debug)]
pub enum Selector<'a> {
    /// Messages with a key.
    Key {
        /// The topic's name.
        topic: &'a str,
        /// The whole key.
        key: &'a str,
    },
    /// Messages with an id that their producer gave them.
    ProducerId {
        /// The topic's name.
        topic: &'a str,
        /// The whole id.
        id: &'a str,
    },
    /// The one message of an id.
    MessageId(MessageId),
    /// The one message at a place.
    Place {
        /// The topic's name.
        topic: &'a str,
        /// The queue.
        queue: QueueId,
        /// In the queue.
        offset: QueueOffset,
    },
}

/// A query.
#[derive(Clone, Copy, Debug)]
pub struct QueryRequest<'a> {
    /// What is looked for.
    pub selector: Selector<'a>,
    /// The first store time wanted.
    pub begin: Option<Timestamp>,
    /// The last store time wanted.
    pub end: Option<Timestamp>,
    /// Which way pages go.
    pub order: Order,
    /// Messages in a page, at most 1 000.
    pub limit: u32,
    /// From the page before, else empty.
    pub page_token: &'a str,
    /// When the caller stops waiting.
    pub deadline: Instant,
}

/// A message that was found.
#[derive(Clone, Debug)]
pub struct QueriedMessage {
    /// Its id.
    pub id: MessageId,
    /// Its topic's name.
    pub topic: String,
    /// Its queue.
    pub queue: QueueId,
    /// Its place there.
    pub queue_offset: QueueOffset,
    /// On the store clock.
    pub store_time: Timestamp,
    /// The message alone, as a batch of one.
    pub batch: Bytes,
}

/// Messages that were found, in the order asked for.
#[derive(Debug)]
pub struct Page {
    /// The messages.
    pub messages: Vec<QueriedMessage>,
    /// Continues the query, if there may be more.
    pub next_page_token: Option<String>,
    /// Why something may be missing; `None`: nothing is.
    pub incomplete: Option<Incomplete>,
    /// Keeps the answer's bytes counted until it has left.
    pub permit: Option<Permit>,
}

/// Why a page may lack messages that match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Incomplete {
    /// The newest messages were not yet dispatched when the time was up.
    #[error("the newest messages are not yet indexed")]
    Behind,
    /// The store has a gap, and says why if it knows.
    #[error("{}", .0.map_or("a part of the store cannot be read".to_owned(), |reason| reason.to_string()))]
    Store(Option<IncompleteReason>),
}

impl Broker {
    /// Finds messages.
    ///
    /// # Errors
    /// Nothing was found out. A search that finds nothing is an empty page.
    pub async fn query(&self, request: QueryRequest<'_>) -> Result<Page, BrokerError> {
        within("limit", request.limit, MAX_PAGE)?;
        let turn = timeout_at(before(request.deadline), self.queries.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            return Err(BrokerError::Overloaded { what: "queries" });
        };
        let page = match request.selector {
            Selector::Key { topic, key } => {
                needle("key", key, limits::KEY_LEN)?;
                self.search(&request, topic, IndexKind::Key, key).await?
            }
            Selector::ProducerId { topic, id } => {
                needle("producer id", id, limits::ID_LEN)?;
                self.search(&request, topic, IndexKind::Id, id).await?
            }
            Selector::MessageId(id) => {
                check_not_paged(&request)?;
                self.by_message_id(id, request.deadline).await?
            }
            Selector::Place { topic, queue, offset } => {
                check_not_paged(&request)?;
                self.by_place(topic, queue, offset, request.deadline).await?
            }
        };
        self.counters.queries.add(1);
        Ok(page)
    }

    async fn search(
        &self,
        request: &QueryRequest<'_>,
        topic: &str,
        kind: IndexKind,
        needle: &str,
    ) -> Result<Page, BrokerError> {
        let begin = request.begin.unwrap_or(Timestamp::ZERO);
        let end = request.end.unwrap_or(Timestamp::new(u64::MAX));
        if begin > end {
            return Err(BrokerError::BadRequest { fault: RequestFault::TimeRange });
        }
        let topic = self.known(topic)?;
        self.check_readable(&topic)?;
        let identity = QueryIdentity {
            topic: topic.id(),
            kind,
            bytes: needle.as_bytes(),
            begin,
            end,
            order: request.order,
        };
        let after = match request.page_token {
            "" => None,
            token => Some(identity.cursor(token, self.store.epoch())?),
        };
        let permit = self.reply_permit(MAX_PAGE_BYTES, request.deadline).await?;
        let waited = before(request.deadline);
        let caught_up = timeout_at(waited, self.store.caught_up(topic.handle())).await;

        let mut gathering = Gathering {
            topic: topic.name(),
            page: Page {
                messages: Vec::new(),
                next_page_token: None,
                incomplete: caught_up.is_err().then_some(Incomplete::Behind),
                permit: Some(permit),
            },
            bytes: 0,
            // Where a page is cut by its size before the store has said where its window ends: everything that the
            // store has shown lies below.
            window_end: after.map_or(self.store.watermarks().appended, |cursor| cursor.window_end),
            limit: request.limit as usize,
            last: None,
        };
        let mut after = after;
        loop {
            let found = self
                .store
                .find(FindRequest {
                    topic: std::sync::Arc::clone(topic.handle()),
                    kind,
                    bytes: Bytes::copy_from_slice(needle.as_bytes()),
                    begin,
                    end,
                    order: request.order,
                    limit: gathering.room().min(STEP),
                    after,
                })
                .await?;
            after = found.next;
            let is_full = gathering.take(found)?;
            // A search without hits may take long; whoever has to go takes the token with him.
            if is_full || after.is_none() || Instant::now() >= waited {
                break;
            }
        }
        if topic.handle().is_dead() && !self.state.topics.has(&topic) {
            return Err(BrokerError::UnknownTopic);
        }
        let Gathering { mut page, last, .. } = gathering;
        page.next_page_token = last.map(|(cursor, epoch)| identity.token(cursor, epoch));
        Ok(page)
    }

    async fn by_message_id(&self, id: MessageId, deadline: Instant) -> Result<Page, BrokerError> {
        self.wait_for_dispatch(id, before(deadline)).await;
        let record = self.store.by_id(id).await?.ok_or(BrokerError::MessageNotFound)?;
        let topic = self.state.topics.by_id(record.topic).ok_or(BrokerError::MessageNotFound)?;
        self.check_readable(&topic)?;
        let permit = self.reply_permit(record.batch.len(), deadline).await?;
        let message = message_of(&record, id.index, topic.name())?;
        Ok(Page::of_one(message.ok_or(BrokerError::MessageNotFound)?, permit))
    }

    /// A message that was acknowledged may not be dispatched yet, and cannot be read before.
    async fn wait_for_dispatch(&self, id: MessageId, until: Instant) {
        loop {
            let at = self.store.watermarks();
            let now = Instant::now();
            let is_under_way = at.dispatched <= id.offset && id.offset < at.appended;
            if !is_under_way || now >= until {
                return;
            }
            sleep_until(until.min(now + DISPATCH_LOOK)).await;
        }
    }

    async fn by_place(
        &self,
        topic: &str,
        queue: QueueId,
        offset: QueueOffset,
        deadline: Instant,
    ) -> Result<Page, BrokerError> {
        let topic = self.known(topic)?;
        self.check_readable(&topic)?;
        let queues = topic.settings().queues;
        if queue.get() >= queues {
            return Err(BrokerError::BadQueue { queue, queues });
        }
        let permit = self.reply_permit(MAX_PAGE_BYTES, deadline).await?;
        let _ = timeout_at(before(deadline), self.store.caught_up(topic.handle())).await;
        let read = ReadRequest {
            topic: std::sync::Arc::clone(topic.handle()),
            queue,
            from: offset,
            max_messages: 1,
            max_bytes: 1,
            filter: std::sync::Arc::new(batch::TagFilter::All),
        };
        let records = match self.store.read(read).await? {
            ReadOutcome::Records { records, .. } => records,
            ReadOutcome::Empty { range, .. } | ReadOutcome::OutOfRange { range } => {
                let epoch = self.store.epoch();
                return Err(BrokerError::OffsetOutOfRange { offset, range, epoch });
            }
            ReadOutcome::Damaged { at, next, .. } => return Err(BrokerError::Damaged { at, next }),
            ReadOutcome::Rebuilding => return Err(BrokerError::Rebuilding),
        };
        let record = records.first().ok_or(BrokerError::MessageNotFound)?;
        let index = offset.get().checked_sub(record.first_queue_offset.get());
        let index = index.and_then(|index| u16::try_from(index).ok());
        let index = index.ok_or(BrokerError::MessageNotFound)?;
        let message = message_of(record, index, topic.name())?;
        Ok(Page::of_one(message.ok_or(BrokerError::MessageNotFound)?, permit))
    }

    async fn reply_permit(&self, len: usize, deadline: Instant) -> Result<Permit, BrokerError> {
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        let permit = self.replies.take(len, before(deadline)).await;
        permit.ok_or(BrokerError::Overloaded { what: "bytes to answer with" })
    }
}

impl Page {
    fn of_one(message: QueriedMessage, permit: Permit) -> Self {
        Self {
            messages: vec![message],
            next_page_token: None,
            incomplete: None,
            permit: Some(permit),
        }
    }
}

/// A page that is being filled.
struct Gathering<'a> {
    topic: &'a str,
    page: Page,
    bytes: usize,
    window_end: crate::message::PhysicalOffset,
    limit: usize,
    /// Where the next page goes on, if there may be one.
    last: Option<(FindCursor, Epoch)>,
}

impl Gathering<'_> {
    fn room(&self) -> usize {
        self.limit.saturating_sub(self.page.messages.len())
    }

    /// Adds what the store has found. True: the page is full.
    fn take(&mut self, found: Found) -> Result<bool, BrokerError> {
        if !found.complete {
            self.page.incomplete = Some(Incomplete::Store(found.reason));
        }
        if let Some(next) = found.next {
            self.window_end = next.window_end;
        }
        let mut left = found.messages.len();
        for of_one in found.messages.chunk_by(|a, b| a.record.offset == b.record.offset) {
            for (hit, message) in of_one.iter().zip(messages_of(of_one, self.topic)?) {
                left -= 1;
                // An index beyond the record would be a broken promise of the store; the message is left out.
                let Some(message) = message else { continue };
                self.bytes += message.batch.len();
                self.page.messages.push(message);
                let offset = hit.record.offset;
                let cursor = FindCursor { window_end: self.window_end, offset, index: hit.index };
                self.last = Some((cursor, hit.record.epoch));
                if self.bytes >= MAX_PAGE_BYTES || self.room() == 0 {
                    let has_more = left > 0 || found.next.is_some();
                    self.last = self.last.filter(|_| has_more);
                    return Ok(true);
                }
            }
        }
        // The store's own cursor also passes what it looked at in vain.
        self.last = found.next.map(|cursor| {
            let epoch = self.last.map_or(Epoch::ZERO, |(_, epoch)| epoch);
            (cursor, epoch)
        });
        Ok(false)
    }
}

/// One message of a record as a batch of its own; `None` if the record has no message of that index.
fn message_of(
    record: &StoredRecord,
    index: u16,
    topic: &str,
) -> Result<Option<QueriedMessage>, BrokerError> {
    let hit = FoundMessage { record: record.clone(), index };
    Ok(messages_of(std::slice::from_ref(&hit), topic)?.pop().flatten())
}

/// The messages of hits in one record, each as a batch of its own; `None` where the record has no message of that
/// index. One walk over the record serves all hits, of which there are at most [`STEP`].
fn messages_of(
    hits: &[FoundMessage],
    topic: &str,
) -> Result<Vec<Option<QueriedMessage>>, BrokerError> {
    let Some(FoundMessage { record, .. }) = hits.first() else { return Ok(Vec::new()) };
    // It was checked when it was sent and its checksum when it was read, so what cannot be walked is damage.
    let damaged = |_| BrokerError::DamagedRecord { at: record.offset };
    let batch = Batch::parse(&record.batch).map_err(damaged)?;
    let last = hits.iter().map(|hit| hit.index).max().unwrap_or_default();
    let mut found = vec![None; hits.len()];
    for (index, message) in (0..=last).zip(batch.messages()) {
        let (meta, body) = message.map_err(damaged)?;
        for (hit, place) in hits.iter().zip(&mut found).filter(|(hit, _)| hit.index == index) {
            *place = Some(QueriedMessage {
                id: MessageId { epoch: record.epoch, offset: record.offset, index },
                topic: topic.to_owned(),
                queue: record.queue,
                queue_offset: record.first_queue_offset.plus(hit.index.into()),
                store_time: record.store_time,
                batch: batch::single(meta.raw(), body),
            });
        }
    }
    Ok(found)
}

fn needle(what: &'static str, text: &str, limit: usize) -> Result<(), BrokerError> {
    if text.is_empty() {
        return Err(BrokerError::BadRequest { fault: RequestFault::EmptyNeedle });
    }
    if text.len() > limit {
        return Err(BrokerError::TooLarge {
            what,
            found: u64::try_from(text.len()).unwrap_or(u64::MAX),
            limit: u64::try_from(limit).unwrap_or(u64::MAX),
        });
    }
    Ok(())
}

fn check_not_paged(request: &QueryRequest<'_>) -> Result<(), BrokerError> {
    let has_range = request.begin.is_some() || request.end.is_some();
    if has_range || !request.page_token.is_empty() {
        return Err(BrokerError::BadRequest { fault: RequestFault::NotPaged });
    }
    Ok(())
}
