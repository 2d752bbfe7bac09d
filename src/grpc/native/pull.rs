//! Pull and PullStream: records go out as they were stored.
//!
//! The fields around the batches are encoded into a piece of their own. A batch follows as the store gave it (a slice
//! of the mapping of the log while it is hot) if it is large, else it is copied into the piece before it.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tokio::time::Instant;
use tonic::Status;

use super::status::{self, Part};
use super::{dead_letter, or_default, range};
use crate::broker::{
    self, Broker, Permit, PullStart, PullStreamError, PullStreamRequest as Wanted, Pulled, SPLICED,
    StoredRecord,
};
use crate::grpc::raw::{Out, refusal};
use crate::message::{Epoch, QueueId, QueueOffset};
use crate::proto::pull_stream_request::Start;
use crate::proto::{PullRequest, PullResponse, PullStreamRequest, PullStreamResponse, Record};
use crate::wire::{PREFIX, put_prefix};

const DEFAULT_MESSAGES: u32 = 1_000;
const DEFAULT_BYTES: u32 = 4 << 20;
/// Of an answer of a stream.
const DEFAULT_PART: u32 = 1 << 20;

/// Fields of the answers, in the proto.
const PULL_RECORDS: u32 = 1;
const STREAM_RECORDS: u32 = 2;
const RECORD_BATCH: u32 = 6;

pub(super) async fn pull(
    broker: Arc<Broker>,
    request: PullRequest,
    deadline: Instant,
    out: Out,
) -> Result<(), Status> {
    let pulled = broker.pull(broker::PullRequest {
        topic: &request.topic,
        queue: QueueId::new(request.queue),
        offset: QueueOffset::new(request.offset),
        max_messages: or_default(request.max_messages, DEFAULT_MESSAGES),
        max_bytes: or_default(request.max_bytes, DEFAULT_BYTES),
        wait: Duration::from_millis(request.wait_ms.into()),
        tags: &request.tags,
        group: named(&request.group),
        epoch: epoch(request.epoch),
        deadline,
    });
    let pulled = pulled.await.map_err(|error| refusal(&broker, &error))?;
    let head = PullResponse {
        records: Vec::new(),
        next_offset: pulled.next.get(),
        range: Some(range(pulled.range)),
        epoch: pulled.epoch.get(),
    };
    let pieces = spliced(&head, PULL_RECORDS, &pulled.records);
    let permit = pulled.permit;
    // Not for as long as the client takes.
    drop(pulled.records);
    out.put(pieces, permit).await;
    Ok(())
}

/// Runs a stream to its end.
pub(super) async fn pull_stream(
    broker: Arc<Broker>,
    request: PullStreamRequest,
    out: Out,
) -> Result<(), Status> {
    let refused = |PullStreamError { queue, error }| {
        broker.counters().refused(error.reason());
        status::of_part(&error, Part { queue, sequence: None })
    };
    let start = |start: &Start| PullStart {
        queue: QueueId::new(start.queue),
        offset: QueueOffset::new(start.offset),
    };
    let queues: Vec<_> = request.queues.iter().map(start).collect();
    let stream = broker.pull_stream(Wanted {
        topic: &request.topic,
        queues: &queues,
        max_bytes: or_default(request.max_bytes, DEFAULT_PART),
        tags: &request.tags,
        group: named(&request.group),
        epoch: epoch(request.epoch),
    });
    let mut stream = stream.await.map_err(refused)?;
    loop {
        let (queue, pulled) = stream.next().await.map_err(refused)?;
        let (pieces, permit) = part(queue, pulled);
        out.put(pieces, permit).await;
    }
}

/// An answer in pieces, without what it was made of.
fn part(queue: QueueId, pulled: Pulled) -> (Vec<Bytes>, Option<Permit>) {
    let head = PullStreamResponse {
        queue: queue.get(),
        records: Vec::new(),
        next_offset: pulled.next.get(),
        range: Some(range(pulled.range)),
        epoch: pulled.epoch.get(),
    };
    (spliced(&head, STREAM_RECORDS, &pulled.records), pulled.permit)
}

/// The message `head`, with `records` as its field number `field`, in pieces.
fn spliced(head: &impl prost::Message, field: u32, records: &[StoredRecord]) -> Vec<Bytes> {
    let heads: Vec<_> = records.iter().map(RecordHead::of).collect();
    let in_records =
        heads.iter().map(|head| key_len(field) + with_length(head.len())).sum::<usize>();
    let len = head.encoded_len() + in_records;
    let copied = heads.iter().filter(|head| head.batch.len() < SPLICED);
    let copied = copied.map(|head| head.batch.len()).sum::<usize>();
    let mut pieces = Vec::with_capacity(2 * heads.len() + 1);
    // All pieces that are written here are cut out of one buffer.
    let mut piece =
        BytesMut::with_capacity(PREFIX + head.encoded_len() + heads.len() * MOST + copied);
    put_prefix(&mut piece, len);
    // A buffer grows as needed, so it is never too short.
    let _ = head.encode(&mut piece);
    for head in heads {
        encode_key(field, WireType::LengthDelimited, &mut piece);
        encode_varint(head.len() as u64, &mut piece);
        let _ = head.fields.encode(&mut piece);
        if !head.batch.is_empty() {
            encode_key(RECORD_BATCH, WireType::LengthDelimited, &mut piece);
            encode_varint(head.batch.len() as u64, &mut piece);
        }
        if head.batch.len() < SPLICED {
            piece.put_slice(head.batch);
        } else {
            pieces.push(piece.split().freeze());
            pieces.push(head.batch.clone());
        }
    }
    if !piece.is_empty() {
        pieces.push(piece.freeze());
    }
    pieces
}

/// The most bytes that stand before a batch: keys and varints of all fields of a record.
const MOST: usize = 64;

/// A record's fields, its batch beside them.
struct RecordHead<'a> {
    fields: Record,
    batch: &'a Bytes,
}

impl<'a> RecordHead<'a> {
    fn of(record: &'a StoredRecord) -> Self {
        let fields = Record {
            epoch: record.epoch.get(),
            physical_offset: record.offset.get(),
            first_queue_offset: record.first_queue_offset.get(),
            count: record.message_count.into(),
            store_time_ms: record.store_time.get(),
            batch: Bytes::new(),
            dead_letter: dead_letter(&record.attributes),
        };
        Self { fields, batch: &record.batch }
    }

    fn len(&self) -> usize {
        let batch = match self.batch.len() {
            0 => 0,
            len => key_len(RECORD_BATCH) + with_length(len),
        };
        self.fields.encoded_len() + batch
    }
}

fn with_length(len: usize) -> usize {
    encoded_len_varint(len as u64) + len
}

fn named(name: &str) -> Option<&str> {
    Some(name).filter(|name| !name.is_empty())
}

fn epoch(epoch: u64) -> Option<Epoch> {
    Some(Epoch::new(epoch)).filter(|epoch| *epoch != Epoch::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{PhysicalOffset, Timestamp, TopicId};

    fn record(n: u64, len: usize) -> StoredRecord {
        StoredRecord {
            epoch: Epoch::new(n),
            offset: PhysicalOffset::new(u64::MAX - n),
            first_queue_offset: QueueOffset::new(n * 1_000),
            message_count: 7,
            store_time: Timestamp::new(1 << 40),
            queue: QueueId::new(3),
            topic: TopicId::new(1),
            attributes: Bytes::new(),
            batch: Bytes::from(vec![n as u8; len]),
            is_in_place: true,
        }
    }

    fn wire(record: &StoredRecord) -> Record {
        Record { batch: record.batch.clone(), ..RecordHead::of(record).fields }
    }

    #[test]
    fn spliced_pieces_are_the_message_that_prost_would_have_made() {
        let lens = [0, 1, 127, 128, SPLICED - 1, SPLICED, 3 * SPLICED, 5, 200_000];
        for count in 0..=lens.len() {
            let records: Vec<_> =
                (0_u64..).zip(&lens[..count]).map(|(n, l)| record(n, *l)).collect();
            let range = Some(crate::proto::OffsetRange { min: 1, max: 1 << 50 });
            let head =
                PullStreamResponse { queue: 9, next_offset: 77, range, epoch: 2, records: vec![] };
            let pieces = spliced(&head, STREAM_RECORDS, &records);
            let bytes = pieces.concat();
            let whole = PullStreamResponse::decode(&bytes[PREFIX..]).unwrap();
            let expected =
                PullStreamResponse { records: records.iter().map(wire).collect(), ..head };
            assert_eq!(whole, expected);
            assert_eq!(bytes[..PREFIX], crate::wire::framed(&expected)[..PREFIX]);
            for record in records.iter().filter(|record| record.batch.len() >= SPLICED) {
                let aliased = pieces.iter().filter(|piece| piece.as_ptr() == record.batch.as_ptr());
                assert_eq!(aliased.count(), 1, "a large batch is not copied");
            }
        }
    }
}
