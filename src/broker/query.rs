//! Queries: messages by key, by producer's id, by message id, by place.
//!
//! A query sees what was acknowledged before it came: it waits until the store has caught up. If that does not happen
//! in its time, or a part of the index is missing, the answer says that it is not complete.
//!
//! Pages are bounded in messages and in bytes, so they are gathered in small steps: what one step reads at most is
//! [`STEP`] records.
//!
//! A message that is handed out alone is cut out of its batch, which is decompressed for that, as it is for receives
//! and dead letters (`cut.rs`). It takes no more room than the batch states, which is bounded and counted with the
//! bytes of the answer; a record is decompressed once for a page, and a page ends where it has cost
//! [`MAX_PAGE_UNPACKED`]. What cannot be decompressed is left out of a page, which says so, and refused if it is all
//! that was asked for.

use std::panic::resume_unwind;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::budget::Permit;
use super::error::{BrokerError, RequestFault};
use super::token::QueryIdentity;
use super::topics::within;
use super::{Broker, TopicEntry, before};
use crate::format::batch::{self, Batch, BatchError, Decompressor, MetaView, limits};
use crate::message::{Epoch, MessageId, PhysicalOffset, QueueId, QueueOffset, Timestamp};
use crate::store::{
    FindCursor, FindRequest, Found, FoundMessage, IncompleteReason, IndexKind, Order, ReadOutcome,
    ReadRequest, StoredRecord,
};

/// The most messages in a page.
const MAX_PAGE: u32 = 1_000;

/// A page with more than one message holds at most about so many bytes of them.
const MAX_PAGE_BYTES: usize = 4 << 20;

/// A page ends before it has decompressed more than so many bytes, if more than one record is in it.
const MAX_PAGE_UNPACKED: usize = 32 << 20;

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
    /// What the broker added to its record.
    pub attributes: Bytes,
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
    /// The first message that lies in a batch that cannot be decompressed.
    #[error("message {id} is left out: {fault}")]
    LeftOut {
        /// The message.
        id: MessageId,
        /// Why it cannot be cut out.
        fault: BatchError,
    },
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
        let topic = self.topic(topic, request.deadline).await?;
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
        let mut permit = self.reply_permit(MAX_PAGE_BYTES, request.deadline).await?;
        let waited = before(request.deadline);
        let caught_up = timeout_at(waited, self.store.caught_up(topic.handle())).await;

        let mut gathering = Gathering {
            topic: Arc::clone(&topic),
            messages: Vec::new(),
            incomplete: caught_up.is_err().then_some(Incomplete::Behind),
            bytes: 0,
            unpacking: Unpacking::default(),
            unpacked: 0,
            // Where a page is cut by its size before the store has said where its window ends: everything that the
            // store has shown lies below.
            window_end: after.map_or(self.store.watermarks().appended, |cursor| cursor.window_end),
            limit: request.limit as usize,
            last: None,
        };
        let mut after = after;
        let mut room = 0;
        loop {
            let found = self
                .store
                .find(FindRequest {
                    topic: Arc::clone(topic.handle()),
                    kind,
                    bytes: Bytes::copy_from_slice(needle.as_bytes()),
                    begin,
                    end,
                    order: request.order,
                    limit: gathering.room().min(STEP),
                    after,
                })
                .await?;
            let needed = room_for_all(&found.messages)?;
            if needed > room {
                let more = u64::try_from(needed - room).unwrap_or(u64::MAX);
                if let Some(more) = self.replies.try_take(more) {
                    permit = permit.and(more);
                    room = needed;
                } else if gathering.messages.is_empty() {
                    // Found again with a permit that is large enough: nobody waits for more with records, an answer or
                    // a small permit in his hands.
                    drop((found, permit));
                    permit = self.reply_permit(MAX_PAGE_BYTES + needed, request.deadline).await?;
                    room = needed;
                    continue;
                } else {
                    // The next page begins with it, for the same reason.
                    break;
                }
            }
            after = found.next;
            let is_full;
            (gathering, permit, is_full) = if needed > 0 {
                // Up to some ten milliseconds. The permit is held until it is done, also if nobody waits for it.
                let work = spawn_blocking(move || {
                    let is_full = gathering.take(found);
                    (gathering, permit, is_full)
                });
                unpacked(work.await)?
            } else {
                let is_full = gathering.take(found);
                (gathering, permit, is_full)
            };
            let is_full = is_full?;
            // A search without hits may take long; whoever has to go takes the token with him.
            if is_full || after.is_none() || Instant::now() >= waited {
                break;
            }
        }
        self.still_there(&topic, request.deadline).await?;
        let Gathering { messages, incomplete, last, .. } = gathering;
        Ok(Page {
            messages,
            next_page_token: last.map(|(cursor, epoch)| identity.token(cursor, epoch)),
            incomplete,
            permit: Some(permit.shrunk_to(MAX_PAGE_BYTES as u64)),
        })
    }

    async fn by_message_id(&self, id: MessageId, deadline: Instant) -> Result<Page, BrokerError> {
        self.wait_for_dispatch(id, before(deadline)).await;
        let record = self.store.by_id(id).await?.ok_or(BrokerError::MessageNotFound)?;
        let topic = self.state.topics.by_id(record.topic).ok_or(BrokerError::MessageNotFound)?;
        self.check_readable(&topic)?;
        let room = room_to_unpack(&batch_of(&record)?);
        let permit = self.reply_permit(record.batch.len() + room, deadline).await?;
        only_message(record, id.index, topic, permit).await
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
        let topic = self.topic(topic, deadline).await?;
        self.check_readable(&topic)?;
        let queues = topic.settings().queues;
        if queue.get() >= queues {
            return Err(BrokerError::BadQueue { topic: topic.name().into(), queue, queues });
        }
        let permit = self.reply_permit(MAX_PAGE_BYTES, deadline).await?;
        let _ = timeout_at(before(deadline), self.store.caught_up(topic.handle())).await;
        let read = ReadRequest {
            topic: Arc::clone(topic.handle()),
            queue,
            from: offset,
            max_messages: 1,
            max_bytes: 1,
            filter: Arc::new(batch::TagFilter::All),
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
        let record = records.into_iter().next().ok_or(BrokerError::MessageNotFound)?;
        let permit = match room_to_unpack(&batch_of(&record)?) {
            0 => permit,
            room => {
                drop(permit);
                self.reply_permit(record.batch.len() + room, deadline).await?
            }
        };
        let index = offset.get().checked_sub(record.first_queue_offset.get());
        let index = index.and_then(|index| u16::try_from(index).ok());
        let index = index.ok_or(BrokerError::MessageNotFound)?;
        only_message(record, index, topic, permit).await
    }

    async fn reply_permit(&self, len: usize, deadline: Instant) -> Result<Permit, BrokerError> {
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        let permit = self.replies.take(len, before(deadline)).await;
        permit.ok_or(BrokerError::Overloaded { what: "bytes to answer with" })
    }
}

/// A page that is being filled.
struct Gathering {
    topic: Arc<TopicEntry>,
    messages: Vec<QueriedMessage>,
    incomplete: Option<Incomplete>,
    /// Of the messages.
    bytes: usize,
    unpacking: Unpacking,
    /// Bytes that were decompressed, or in vain.
    unpacked: usize,
    window_end: PhysicalOffset,
    limit: usize,
    /// Where the next page goes on, if there may be one.
    last: Option<(FindCursor, Epoch)>,
}

impl Gathering {
    fn room(&self) -> usize {
        self.limit.saturating_sub(self.messages.len())
    }

    /// Adds what the store has found. True: the page is full.
    fn take(&mut self, found: Found) -> Result<bool, BrokerError> {
        if !found.complete {
            self.incomplete = Some(Incomplete::Store(found.reason));
        }
        if let Some(next) = found.next {
            self.window_end = next.window_end;
        }
        let mut left = found.messages.len();
        for of_one in found.messages.chunk_by(|a, b| a.record.offset == b.record.offset) {
            let Some(FoundMessage { record, .. }) = of_one.first() else { continue };
            let batch = batch_of(record)?;
            let is_unpacked = self.unpacking.at == Some(record.offset);
            let room = if is_unpacked { 0 } else { room_to_unpack(&batch) };
            if self.unpacked > 0 && self.unpacked + room > MAX_PAGE_UNPACKED {
                return Ok(true);
            }
            self.unpacked += room;
            let indexes: Vec<u16> = of_one.iter().map(|hit| hit.index).collect();
            let mut cut = match self.unpacking.cut(record, &batch, &indexes) {
                Ok(cut) => Ok(cut.into_iter()),
                Err(BrokerError::NotDecompressed { fault, .. }) => Err(fault),
                Err(error) => return Err(error),
            };
            for index in indexes {
                left -= 1;
                let offset = record.offset;
                let cursor = FindCursor { window_end: self.window_end, offset, index };
                self.last = Some((cursor, record.epoch));
                let message = match &mut cut {
                    // An index beyond the record would be a broken promise of the store; the message is left out.
                    Ok(cut) => cut.next().flatten(),
                    Err(fault) => {
                        let id = MessageId { epoch: record.epoch, offset, index };
                        if matches!(self.incomplete, None | Some(Incomplete::Behind)) {
                            self.incomplete = Some(Incomplete::LeftOut { id, fault: *fault });
                        }
                        None
                    }
                };
                let Some((meta, body)) = message else { continue };
                let message = alone(record, index, self.topic.name(), &meta, body);
                self.bytes += message.batch.len();
                self.messages.push(message);
                if self.bytes >= MAX_PAGE_BYTES || self.messages.len() >= self.limit {
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

/// The page of the one message of a record at `index`.
async fn only_message(
    record: StoredRecord,
    index: u16,
    topic: Arc<TopicEntry>,
    permit: Permit,
) -> Result<Page, BrokerError> {
    let is_compressed = batch_of(&record)?.codec() != 0;
    let cut = move || {
        let mut unpacking = Unpacking::default();
        let cut = unpacking.cut(&record, &batch_of(&record)?, &[index])?.pop().flatten();
        let (meta, body) = cut.ok_or(BrokerError::MessageNotFound)?;
        let message = alone(&record, index, topic.name(), &meta, body);
        let len = u64::try_from(message.batch.len()).unwrap_or(u64::MAX);
        Ok(Page {
            messages: vec![message],
            next_page_token: None,
            incomplete: None,
            permit: Some(permit.shrunk_to(len)),
        })
    };
    if is_compressed { unpacked(spawn_blocking(cut).await)? } else { cut() }
}

/// What a task has done that decompresses.
pub(super) fn unpacked<T>(done: Result<T, tokio::task::JoinError>) -> Result<T, BrokerError> {
    done.map_err(|error| match error.try_into_panic() {
        Ok(panic) => resume_unwind(panic),
        Err(_ended) => BrokerError::Draining,
    })
}

/// The batch of a record. It was checked when it was sent and its checksum when it was read, so what cannot be walked
/// is damage.
pub(super) fn batch_of(record: &StoredRecord) -> Result<Batch<'_>, BrokerError> {
    Batch::parse(&record.batch).map_err(|_| BrokerError::DamagedRecord { at: record.offset })
}

/// Bytes of room that it takes to cut messages out of a batch: none if they lie there as they are.
pub(super) fn room_to_unpack(batch: &Batch<'_>) -> usize {
    match batch.codec() {
        0 => 0,
        // One that states more than the limit is refused before there is room for it.
        _ => (batch.bodies_len() as usize).clamp(1, limits::UNCOMPRESSED_LEN),
    }
}

/// Bytes of room for the record that takes most: it is used for one after the other.
fn room_for_all(hits: &[FoundMessage]) -> Result<usize, BrokerError> {
    let records = hits.chunk_by(|a, b| a.record.offset == b.record.offset);
    records.filter_map(<[_]>::first).try_fold(0, |most, hit| {
        let batch = batch_of(&hit.record)?;
        Ok(room_to_unpack(&batch).max(most))
    })
}

/// Cuts messages out of records, one record after the other in the same room.
#[derive(Default)]
struct Unpacking {
    decompressor: Decompressor,
    room: Vec<u8>,
    /// The record whose bodies are in the room, or whose decompression failed.
    at: Option<PhysicalOffset>,
    fault: Option<BatchError>,
}

/// A message where it lies.
type Cut<'a> = (MetaView<'a>, &'a [u8]);

impl Unpacking {
    /// The messages at these places of a record, of which there are at most [`STEP`]; `None` where it has none. One
    /// walk serves all, and one decompression all steps of a page that meet the record.
    fn cut<'a>(
        &'a mut self,
        record: &StoredRecord,
        batch: &Batch<'a>,
        indexes: &[u16],
    ) -> Result<Vec<Option<Cut<'a>>>, BrokerError> {
        let at = record.offset;
        let bodies = if batch.codec() == 0 { batch.bodies() } else { self.bodies(at, batch)? };
        let last = indexes.iter().copied().max().unwrap_or_default();
        let mut found = vec![None; indexes.len()];
        for (index, message) in (0..=last).zip(batch.messages_in(bodies)) {
            let message = message.map_err(|_| BrokerError::DamagedRecord { at })?;
            for (_, place) in indexes.iter().zip(&mut found).filter(|(wanted, _)| **wanted == index)
            {
                *place = Some(message);
            }
        }
        Ok(found)
    }

    fn bodies(&mut self, at: PhysicalOffset, batch: &Batch<'_>) -> Result<&[u8], BrokerError> {
        if self.at.replace(at) != Some(at) {
            self.fault = self.decompressor.decompress(batch, &mut self.room).err();
        }
        match self.fault {
            None => Ok(&self.room),
            Some(fault) => Err(BrokerError::NotDecompressed { at, fault }),
        }
    }
}

/// A message of a record as a batch of its own, uncompressed.
fn alone(
    record: &StoredRecord,
    index: u16,
    topic: &str,
    meta: &MetaView<'_>,
    body: &[u8],
) -> QueriedMessage {
    QueriedMessage {
        id: MessageId { epoch: record.epoch, offset: record.offset, index },
        topic: topic.to_owned(),
        queue: record.queue,
        queue_offset: record.first_queue_offset.plus(index.into()),
        store_time: record.store_time,
        attributes: record.attributes.clone(),
        batch: batch::single(meta.raw(), body),
    }
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
