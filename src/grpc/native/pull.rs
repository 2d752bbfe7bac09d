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
    self, Broker, Parts, Permit, PullStart, PullStreamError, PullStreamRequest as Wanted, Pulled,
    SPLICED, StoredRecord,
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
    let pieces = spliced(&[Answer::new(head, PULL_RECORDS, &pulled.records)]);
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
        let parts = stream.next().await.map_err(refused)?;
        let (pieces, permit) = answers(parts);
        out.put(pieces, permit).await;
    }
}

/// Parts of a stream in pieces, without what they were made of.
fn answers(Parts { parts, permit }: Parts) -> (Vec<Bytes>, Option<Permit>) {
    let answer = |(queue, pulled): &(QueueId, Pulled)| PullStreamResponse {
        queue: queue.get(),
        records: Vec::new(),
        next_offset: pulled.next.get(),
        range: Some(range(pulled.range)),
        epoch: pulled.epoch.get(),
    };
    let answers =
        parts.iter().map(|part| Answer::new(answer(part), STREAM_RECORDS, &part.1.records));
    (spliced(&answers.collect::<Vec<_>>()), permit)
}

/// A message with records as one of its fields.
struct Answer<'a, M> {
    head: M,
    field: u32,
    records: Vec<RecordHead<'a>>,
    len: usize,
}

impl<'a, M: prost::Message> Answer<'a, M> {
    /// `head`, and `records` as its field number `field`.
    fn new(head: M, field: u32, records: &'a [StoredRecord]) -> Self {
        let records: Vec<_> = records.iter().map(RecordHead::of).collect();
        let in_records = records.iter().map(|record| key_len(field) + with_length(record.len()));
        let len = head.encoded_len() + in_records.sum::<usize>();
        Self { head, field, records, len }
    }

    /// What of it is written and not spliced, at most.
    fn written(&self) -> usize {
        let copied = self.records.iter().filter(|record| record.batch.len() < SPLICED);
        let copied = copied.map(|record| record.batch.len()).sum::<usize>();
        PREFIX + self.head.encoded_len() + self.records.len() * MOST + copied
    }
}

/// Messages in pieces, one behind the other.
fn spliced<M: prost::Message>(answers: &[Answer<'_, M>]) -> Vec<Bytes> {
    let records = answers.iter().flat_map(|answer| &answer.records);
    let large = records.filter(|record| record.batch.len() >= SPLICED).count();
    let mut pieces = Vec::with_capacity(2 * large + 1);
    // All pieces that are written here are cut out of one buffer.
    let mut piece = BytesMut::with_capacity(answers.iter().map(Answer::written).sum());
    for Answer { head, field, records, len } in answers {
        put_prefix(&mut piece, *len);
        // A buffer grows as needed, so it is never too short.
        let _ = head.encode(&mut piece);
        for record in records {
            encode_key(*field, WireType::LengthDelimited, &mut piece);
            encode_varint(record.len() as u64, &mut piece);
            let _ = record.fields.encode(&mut piece);
            if !record.batch.is_empty() {
                encode_key(RECORD_BATCH, WireType::LengthDelimited, &mut piece);
                encode_varint(record.batch.len() as u64, &mut piece);
            }
            if record.batch.len() < SPLICED {
                piece.put_slice(record.batch);
            } else {
                pieces.push(piece.split().freeze());
                pieces.push(record.batch.clone());
            }
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
            // As one answer, and cut in two.
            for cut in [0, count / 2] {
                let parts = [&records[..cut], &records[cut..]];
                let answers = parts.map(|part| Answer::new(head.clone(), STREAM_RECORDS, part));
                let pieces = spliced(&answers);
                let mut bytes = Bytes::from(pieces.concat());
                for part in parts {
                    let records = part.iter().map(wire).collect();
                    let expected = PullStreamResponse { records, ..head.clone() };
                    let whole = bytes.split_to(PREFIX + expected.encoded_len());
                    assert_eq!(PullStreamResponse::decode(&whole[PREFIX..]), Ok(expected.clone()));
                    assert_eq!(whole[..PREFIX], crate::wire::framed(&expected)[..PREFIX]);
                }
                assert!(bytes.is_empty());
                for record in records.iter().filter(|record| record.batch.len() >= SPLICED) {
                    let batch = record.batch.as_ptr();
                    let aliased = pieces.iter().filter(|piece| piece.as_ptr() == batch);
                    assert_eq!(aliased.count(), 1, "a large batch is not copied");
                }
            }
        }
    }
}
