//! Single messages out of stored records: the record of a message, which of a record a consumer wants, and each of them
//! as a batch of its own.
//!
//! What a message is stands in its meta, which is never compressed: a record of which nothing is wanted is not
//! decompressed. One message that lies alone and uncompressed in its record is handed on as it lies there.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::Broker;
use super::error::BrokerError;
use super::query::{batch_of, unpacked};
use super::state::leases::{Due, FilterCost};
use super::state::topics::TopicEntry;
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
    /// What it took to find out.
    pub(super) cost: FilterCost<'f>,
}

/// Which messages of a record from a place on are wanted, at most `room`; and which others want, at most `open` of both
/// together.
///
/// # Errors
/// The record is damaged.
pub(super) fn wanted<'f>(
    record: &StoredRecord,
    from: u16,
    (room, open): (usize, usize),
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
        if wanted.indexes.len() >= room || wanted.indexes.len() + wanted.kept.len() >= open {
            return Ok(wanted);
        }
        let verdict = filter.evaluate(&meta);
        wanted.cost.note(&verdict);
        if verdict.is_match {
            wanted.indexes.push(index);
        } else if others.iter().any(|other| other.matches(&meta)) {
            wanted.kept.push(index);
        }
        wanted.next = index + 1;
    }
    // All were looked at, and whatever else the record says it has cannot be there.
    wanted.next = wanted.next.max(record.message_count);
    Ok(wanted)
}

/// What the sender said of a message of a record.
pub(super) fn meta(record: &StoredRecord, index: u16) -> Option<MetaView<'_>> {
    batch_of(record).ok()?.metas().nth(index.into())?.ok()
}

/// Whether its messages can only be had by decompressing.
fn is_compressed(record: &StoredRecord) -> Result<bool, BrokerError> {
    Ok(batch_of(record)?.codec() != 0)
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
    /// decompressed on a thread of its own, unless that was done lately.
    ///
    /// # Errors
    /// The record is damaged, or cannot be decompressed.
    pub(super) async fn cut_off(
        &self,
        record: &StoredRecord,
        indexes: &[u16],
    ) -> Result<Vec<Bytes>, BrokerError> {
        if !is_compressed(record)? {
            return cut(record, indexes, None);
        }
        let place = (record.epoch, record.offset);
        if let Some(bodies) = self.unpacked.get(place) {
            return cut(record, indexes, Some(&bodies));
        }
        self.counters.unpacked.add(1);
        let of_blocking = record.clone();
        let bodies = unpacked(spawn_blocking(move || unpack(&of_blocking)).await)??;
        if indexes.len() < record.message_count.into() {
            self.unpacked.put(place, bodies.clone());
        }
        cut(record, indexes, Some(&bodies))
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
