//! Single messages out of stored records: the record of a message, which of a record a consumer wants, and each of them
//! as a batch of its own.
//!
//! What a message is stands in its meta, which is never compressed: a record of which nothing is wanted is not
//! decompressed. One message that lies alone and uncompressed in its record is handed on as it lies there.
//!
//! What is decompressed is counted with the bytes of the answer as long as it lives, beside the messages that are cut
//! off; what is kept for the next one has a bound of its own: `unpacked.rs`.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::budget::{Permit, Room};
use super::error::BrokerError;
use super::query::{batch_of, room_to_unpack, unpacked};
use super::state::leases::{Due, FilterCost};
use super::state::topics::TopicEntry;
use super::{Broker, before};
use crate::filter::Expression;
use crate::format::batch::{BatchError, Decompressor, MetaView, TagFilter, group_hash, single};
use crate::message::{QueueId, QueueOffset};
use crate::store::{ReadOutcome, ReadRequest, StoredRecord};

/// What of a record is wanted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted<'f> {
    /// By their places in the record, rising.
    pub(super) indexes: Vec<u16>,
    /// Others want these.
    pub(super) kept: Vec<u16>,
    /// The first place that was not looked at.
    pub(super) next: u16,
    /// Hash of the message group of all of them, 0 without one.
    pub(super) group_hash: u32,
    /// Bytes of those that are wanted, each as a batch of one; at least as many as there will be.
    pub(super) bytes: u64,
    /// What it took to find out.
    pub(super) cost: FilterCost<'f>,
}

/// How much of a record is wanted at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    /// Messages.
    pub(super) messages: usize,
    /// Messages, together with those that others want.
    pub(super) open: usize,
    /// Bytes of messages but for the last one.
    pub(super) bytes: u64,
}

/// Bytes of a batch of one beside its message, at most.
const ALONE: u64 = 32;

/// Which messages of a record from a place on are wanted, and which others want.
///
/// # Errors
/// The record is damaged.
pub(super) fn wanted<'f>(
    record: &StoredRecord,
    from: u16,
    most: Most,
    (filter, others): (&'f Expression, &[Arc<Expression>]),
) -> Result<Wanted<'f>, BrokerError> {
    let mut wanted = Wanted { next: from, ..Wanted::default() };
    for (index, meta) in (0..record.message_count).zip(batch_of(record)?.metas()) {
        let meta = meta.map_err(|_| BrokerError::DamagedRecord { at: record.offset })?;
        if index == 0 {
            wanted.group_hash = meta.message_group().map_or(0, group_hash);
        }
        if index < from {
            continue;
        }
        let (count, kept) = (wanted.indexes.len(), wanted.kept.len());
        if count >= most.messages || count + kept >= most.open || wanted.bytes >= most.bytes {
            return Ok(wanted);
        }
        let verdict = filter.evaluate(&meta);
        wanted.cost.note(&verdict);
        if verdict.is_match {
            wanted.indexes.push(index);
            wanted.bytes = wanted.bytes.saturating_add(alone_len(&meta));
        } else if others.iter().any(|other| other.matches(&meta)) {
            wanted.kept.push(index);
        }
        wanted.next = index + 1;
    }
    // All were looked at, and whatever else the record says it has cannot be there.
    wanted.next = wanted.next.max(record.message_count);
    Ok(wanted)
}

/// Bytes of a message as a batch of one; at least as many as there will be.
fn alone_len(meta: &MetaView<'_>) -> u64 {
    u64::try_from(meta.raw().len()).unwrap_or(u64::MAX) + u64::from(meta.body_len()) + ALONE
}

/// What the sender said of a message of a record.
pub(super) fn meta(record: &StoredRecord, index: u16) -> Option<MetaView<'_>> {
    batch_of(record).ok()?.metas().nth(index.into())?.ok()
}

/// Messages of a record that is not compressed, or whose bodies are at hand, by their places, rising, each as a batch
/// of one.
///
/// # Errors
/// The record is damaged.
fn cut(
    record: &StoredRecord,
    indexes: &[u16],
    bodies: Option<&[u8]>,
) -> Result<Vec<Bytes>, BrokerError> {
    let at = record.offset;
    let batch = batch_of(record)?;
    if bodies.is_none() && record.message_count == 1 {
        return Ok(indexes.iter().map(|_| record.batch.clone()).collect());
    }
    let bodies = bodies.unwrap_or(batch.bodies());
    let mut found = Vec::with_capacity(indexes.len());
    let mut left = indexes.iter().peekable();
    for (index, message) in (0..record.message_count).zip(batch.messages_in(bodies)) {
        if left.peek().is_none() {
            break;
        }
        let (meta, body) = message.map_err(|_| BrokerError::DamagedRecord { at })?;
        if left.next_if(|wanted| **wanted == index).is_some() {
            found.push(single(meta.raw(), body));
        }
    }
    if found.len() < indexes.len() {
        return Err(BrokerError::DamagedRecord { at });
    }
    Ok(found)
}

/// The bodies of a record that is compressed. Takes up to some ten milliseconds.
///
/// # Errors
/// It cannot be decompressed.
fn unpack(record: &StoredRecord) -> Result<Bytes, BrokerError> {
    let mut room = Vec::new();
    let unpacked = Decompressor::new().decompress(&batch_of(record)?, &mut room);
    unpacked.map_err(|fault| BrokerError::NotDecompressed { at: record.offset, fault })?;
    Ok(room.into())
}

/// What is stored of a message.
#[derive(Debug)]
pub(super) enum Stored {
    /// Its record.
    Record(StoredRecord),
    /// Its record, of which it is known that the message cannot be decoded.
    Undecodable(StoredRecord),
    /// It was there, and cannot be read any more.
    Damaged,
    /// Nothing: it is gone.
    Gone,
}

/// What to read for the record of one message.
fn one_at(topic: &TopicEntry, queue: QueueId, offset: QueueOffset) -> ReadRequest {
    ReadRequest {
        topic: Arc::clone(topic.handle()),
        queue,
        from: offset,
        max_messages: 1,
        max_bytes: 1,
        filter: Arc::new(TagFilter::All),
    }
}

/// What a read for the message at an offset found.
fn stored(outcome: ReadOutcome, offset: QueueOffset) -> Result<Stored, BrokerError> {
    match outcome {
        ReadOutcome::Records { records, .. } => {
            Ok(records.into_iter().next().map_or(Stored::Gone, Stored::Record))
        }
        ReadOutcome::OutOfRange { range } if offset < range.min => Ok(Stored::Gone),
        ReadOutcome::Damaged { .. } => Ok(Stored::Damaged),
        ReadOutcome::Empty { next, .. } if next > offset => Ok(Stored::Gone),
        // It was delivered before, so it is there, or will be again.
        ReadOutcome::Empty { .. } | ReadOutcome::OutOfRange { .. } => Err(BrokerError::Rebuilding),
        ReadOutcome::Rebuilding => Err(BrokerError::Rebuilding),
    }
}

/// Whether messages can never be had: they become dead letters, as a group must come past them. What only needs a
/// broker with another codec built in can be had.
pub(super) fn is_lost(error: &BrokerError) -> bool {
    match error {
        BrokerError::NotDecompressed { fault, .. } => !matches!(fault, BatchError::NotBuilt { .. }),
        BrokerError::DamagedRecord { .. } => true,
        _ => false,
    }
}

/// The place of a message in a record, if it is in it.
pub(super) fn index_in(record: &StoredRecord, offset: QueueOffset) -> Option<u16> {
    let index = offset.get().checked_sub(record.first_queue_offset.get())?;
    u16::try_from(index).ok().filter(|index| *index < record.message_count)
}

pub(super) fn bytes_of(batch: &Bytes) -> u64 {
    u64::try_from(batch.len()).unwrap_or(u64::MAX)
}

impl Broker {
    /// Messages of a record, by their places, rising, each as a batch of one. A record that is compressed is
    /// decompressed on a thread of its own, unless that was done lately. `bytes` is what the answer has with these
    /// messages. `None`: there is no room for that, or for what would be decompressed; then `room` knows what it lacks.
    ///
    /// # Errors
    /// The record is damaged, or cannot be decompressed.
    pub(super) async fn cut_off(
        &self,
        record: &StoredRecord,
        indexes: &[u16],
        (room, bytes): (&mut Room<'_>, u64),
    ) -> Result<Option<Vec<Bytes>>, BrokerError> {
        let place = (record.epoch, record.offset);
        let needed = room_to_unpack(&batch_of(record)?);
        // What is kept is counted where it is kept, and does not go away before this is through with it.
        let kept = if needed > 0 { self.unpacked.get(place) } else { None };
        let needed = if kept.is_some() { 0 } else { u64::try_from(needed).unwrap_or(u64::MAX) };
        if !room.grow(bytes.saturating_add(needed)) {
            return Ok(None);
        }
        if needed == 0 {
            return cut(record, indexes, kept.as_deref()).map(Some);
        }
        self.counters.unpacked.add(1);
        // The room is with the thread until that is done, also if nobody waits for it.
        let (of_blocking, permit) = (record.clone(), room.permit.take());
        let work = spawn_blocking(move || (unpack(&of_blocking), permit));
        let bodies;
        (bodies, room.permit) = unpacked(work.await)?;
        let bodies = bodies?;
        let batches = cut(record, indexes, Some(&bodies))?;
        if indexes.len() < record.message_count.into() {
            self.unpacked.put(place, bodies);
        }
        Ok(Some(batches))
    }

    /// One message of a record, as soon as there is room for it and for what it takes to have it. For one who has
    /// nothing of that room.
    ///
    /// # Errors
    /// As [`Broker::cut_off`], and there was no room before `deadline`.
    pub(super) async fn cut_one_off(
        &self,
        record: &StoredRecord,
        index: u16,
        deadline: Instant,
    ) -> Result<(Option<Bytes>, Option<Permit>), BrokerError> {
        let bytes = meta(record, index).map_or(0, |meta| alone_len(&meta));
        let mut room = Room::new(&self.replies, None);
        loop {
            let batches = self.cut_off(record, &[index], (&mut room, bytes)).await?;
            if let Some(mut batches) = batches {
                return Ok((batches.pop(), room.permit.map(|all| all.shrunk_to(bytes))));
            }
            if !room.fill(before(deadline)).await {
                return Err(BrokerError::Overloaded { what: "bytes to answer with" });
            }
        }
    }

    /// The record of a message, if its time is not over.
    pub(super) async fn record_at(
        &self,
        topic: &TopicEntry,
        queue: QueueId,
        offset: QueueOffset,
    ) -> Result<Stored, BrokerError> {
        let read = one_at(topic, queue, offset);
        stored(self.store.read(read).await?, offset)
    }

    /// The record of an open message. One that was delivered is kept beyond its time; one that was only passed over is
    /// not.
    pub(super) async fn record_of(
        &self,
        topic: &TopicEntry,
        due: &Due,
    ) -> Result<Stored, BrokerError> {
        let (queue, offset) = (QueueId::new(due.place.0), QueueOffset::new(due.place.1));
        if !due.was_leased() {
            return self.record_at(topic, queue, offset).await;
        }
        stored(self.store.read_kept(one_at(topic, queue, offset)).await?, offset)
    }
}
