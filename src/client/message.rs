//! A message in a reader's hand, cut out of the batch it was stored in.
//!
//! Bodies are slices of the answer they came in, or of the room that their batch was decompressed into: no copy. The
//! walk is `format::batch`'s; this file gives it a place (queue, offset, id) and drops what was not asked for.

use bytes::Bytes;

use super::error::AnswerError;
use crate::format::batch::{Batch, BatchError, Decompressor, MetaView, TagFilter};
use crate::message::{Epoch, MessageId, PhysicalOffset, QueueId, QueueOffset, Timestamp};
use crate::proto;

/// One message as a reader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Names this message for ever.
    pub id: MessageId,
    /// The topic's name.
    pub topic: String,
    /// The queue it lies in.
    pub queue: QueueId,
    /// Its ordinal in that queue.
    pub queue_offset: QueueOffset,
    /// When the broker stored it, on the store clock.
    pub store_time: Timestamp,
    /// When the producer made it, if it said so.
    pub born_time: Option<Timestamp>,
    /// The producer's own id.
    pub producer_id: Option<String>,
    /// Queries by key find it by each of them.
    pub keys: Vec<String>,
    /// What readers filter by.
    pub tag: Option<String>,
    /// What the producer set beside.
    pub properties: Vec<(String, String)>,
    /// Messages of one group are in order.
    pub message_group: Option<String>,
    /// How the application encoded the body: 0 as it is, 1 gzip.
    pub encoding: u32,
    /// The W3C trace context.
    pub trace_context: Option<String>,
    /// The host that made it.
    pub born_host: Option<String>,
    /// The body as it was sent.
    pub body: Bytes,
    /// There if it is a dead letter, or was one and is back in its topic.
    pub dead_letter: Option<Box<DeadLetter>>,
}

/// What there is to know of a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Why it is one: `attempts`, `given_up`, `undecodable`, `operator`; a number if the broker is newer.
    pub reason: String,
    /// The topic that it comes from.
    pub topic: String,
    /// Its queue there.
    pub queue: QueueId,
    /// Its place there.
    pub queue_offset: QueueOffset,
    /// Its id there; `None`: its record cannot be read.
    pub message_id: Option<MessageId>,
    /// When it was stored there.
    pub store_time: Option<Timestamp>,
    /// How often it was delivered.
    pub deliveries: u32,
    /// When that was first; `None`: never.
    pub first_delivered: Option<Timestamp>,
    /// When that was last.
    pub last_delivered: Option<Timestamp>,
    /// Who got it last: a client's id, or where it was; empty if that is not known.
    pub last_client: String,
    /// How many messages it stands for: more than 1 if none of a run of them can be read.
    pub messages: u32,
    /// How often it went back to its topic.
    pub redriven: u32,
    /// It is back there; else it lies among the dead letters.
    pub is_back: bool,
    /// How often the consumer that gave it up has tried it, as it says itself; `None`: it said nothing.
    pub told_tries: Option<u32>,
}

impl DeadLetter {
    fn of(letter: &proto::DeadLetter) -> Self {
        let reason = match proto::DeadReason::try_from(letter.reason) {
            Ok(proto::DeadReason::Attempts) => "attempts".to_owned(),
            Ok(proto::DeadReason::GivenUp) => "given_up".to_owned(),
            Ok(proto::DeadReason::Undecodable) => "undecodable".to_owned(),
            Ok(proto::DeadReason::Operator) => "operator".to_owned(),
            Ok(proto::DeadReason::Unspecified) | Err(_) => letter.reason.to_string(),
        };
        let time = |ms: u64| (ms > 0).then(|| Timestamp::new(ms));
        Self {
            reason,
            topic: letter.topic.clone(),
            queue: QueueId::new(letter.queue),
            queue_offset: QueueOffset::new(letter.queue_offset),
            message_id: letter.message_id.parse().ok(),
            store_time: time(letter.store_time_ms),
            deliveries: letter.deliveries,
            first_delivered: time(letter.first_delivered_ms),
            last_delivered: time(letter.last_delivered_ms),
            last_client: letter.last_client.clone(),
            messages: letter.messages,
            redriven: letter.redriven,
            is_back: letter.is_back,
            told_tries: (letter.told_tries > 0).then_some(letter.told_tries),
        }
    }
}

/// The same as it lies in the batch that it was stored in: nothing of it is copied.
#[derive(Clone, Debug)]
pub struct MessageRef<'a> {
    /// Names this message for ever.
    pub id: MessageId,
    /// The queue it lies in.
    pub queue: QueueId,
    /// Its ordinal in that queue.
    pub queue_offset: QueueOffset,
    /// When the broker stored it, on the store clock.
    pub store_time: Timestamp,
    /// Everything that the producer set.
    pub meta: MetaView<'a>,
    /// The body as it was sent.
    pub body: Bytes,
}

/// Where a stored record lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) topic: &'a str,
    pub(super) queue: QueueId,
    pub(super) epoch: Epoch,
    pub(super) physical_offset: PhysicalOffset,
    pub(super) first_queue_offset: QueueOffset,
    pub(super) store_time: Timestamp,
    pub(super) dead_letter: Option<&'a proto::DeadLetter>,
}

/// Compressed batches of one answer come to at most so many bytes uncompressed, if there is more than one: what is
/// behind them is left for the next pull. The broker bounds an answer as it is sent, which with compression says
/// nothing of what comes out of it.
const MAX_UNPACKED: usize = 32 << 20;

/// Takes the records of an answer apart.
pub(super) struct Unpacker<'a> {
    /// The messages from `wanted` on that `tags` lets through.
    pub(super) messages: Vec<Message>,
    wanted: QueueOffset,
    tags: &'a TagFilter,
    decompressor: Decompressor,
    /// Bytes of decompressed bodies that there may be still; the first batch may have more.
    room: usize,
    has_unpacked: bool,
}

/// Whether a record was taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Yes,
    /// There is no room left for what it would come to.
    No,
}

impl<'a> Unpacker<'a> {
    pub(super) fn new(wanted: QueueOffset, tags: &'a TagFilter) -> Self {
        Self::within(MAX_UNPACKED, wanted, tags)
    }

    /// For whoever keeps nothing of a batch once he has seen it.
    pub(super) fn unbounded(wanted: QueueOffset, tags: &'a TagFilter) -> Self {
        Self::within(usize::MAX, wanted, tags)
    }

    fn within(room: usize, wanted: QueueOffset, tags: &'a TagFilter) -> Self {
        let (messages, decompressor) = (Vec::new(), Decompressor::new());
        Self { messages, wanted, tags, decompressor, room, has_unpacked: false }
    }

    /// Appends the messages of a record.
    pub(super) fn take(&mut self, place: &Place<'_>, batch: &Bytes) -> Result<Taken, AnswerError> {
        let mut messages = std::mem::take(&mut self.messages);
        let taken = self.visit(place, batch, &mut |found| {
            let MessageRef { id, queue, queue_offset, store_time, meta, body } = found;
            let found = message(id, place.topic, queue, queue_offset, store_time, &meta, body);
            let dead_letter = place.dead_letter.map(|letter| Box::new(DeadLetter::of(letter)));
            messages.push(Message { dead_letter, ..found });
        });
        self.messages = messages;
        taken
    }

    /// Shows the messages of a record. A compressed one of which none is wanted is not decompressed.
    pub(super) fn visit(
        &mut self,
        place: &Place<'_>,
        batch: &Bytes,
        show: &mut dyn FnMut(MessageRef<'_>),
    ) -> Result<Taken, AnswerError> {
        let parsed = Batch::parse(batch)?;
        let first = place.first_queue_offset;
        let is_wanted = |index: u16, meta: &MetaView<'_>| {
            first.plus(index.into()) >= self.wanted && self.tags.matches(meta.tag())
        };
        if parsed.codec() != 0 {
            let mut metas = (0..).zip(parsed.metas());
            if !metas.any(|(index, meta)| meta.is_ok_and(|meta| is_wanted(index, &meta))) {
                return Ok(Taken::Yes);
            }
            let len = parsed.bodies_len() as usize;
            if self.has_unpacked && len > self.room {
                return Ok(Taken::No);
            }
            self.has_unpacked = true;
            self.room = self.room.saturating_sub(len);
        }
        let bodies = bodies(&mut self.decompressor, &parsed, batch, first)?;
        for (index, item) in (0..).zip(parsed.messages_in(&bodies)) {
            let (meta, body) = item?;
            if is_wanted(index, &meta) {
                let id = MessageId { epoch: place.epoch, offset: place.physical_offset, index };
                let (queue_offset, body) = (first.plus(index.into()), bodies.slice_ref(body));
                let Place { queue, store_time, .. } = *place;
                show(MessageRef { id, queue, queue_offset, store_time, meta, body });
            }
        }
        Ok(Taken::Yes)
    }
}

/// The message of a query's answer: a batch of one.
pub(super) fn found(found: proto::FoundMessage) -> Result<Message, AnswerError> {
    let Ok(id) = found.message_id.parse() else {
        return Err(AnswerError::MessageId { found: found.message_id });
    };
    let offset = QueueOffset::new(found.queue_offset);
    let parsed = Batch::parse(&found.batch)?;
    let bodies = bodies(&mut Decompressor::new(), &parsed, &found.batch, offset)?;
    let only = parsed.messages_in(&bodies).next().ok_or(AnswerError::Missing { field: "batch" })?;
    let (meta, body) = only?;
    let (queue, time) = (QueueId::new(found.queue), Timestamp::new(found.store_time_ms));
    let only = message(id, &found.topic, queue, offset, time, &meta, bodies.slice_ref(body));
    let dead_letter = found.dead_letter.as_ref().map(|letter| Box::new(DeadLetter::of(letter)));
    Ok(Message { dead_letter, ..only })
}

/// The uncompressed bodies of a batch: a part of it, or decompressed.
fn bodies(
    decompressor: &mut Decompressor,
    parsed: &Batch<'_>,
    batch: &Bytes,
    first_offset: QueueOffset,
) -> Result<Bytes, AnswerError> {
    if parsed.codec() == 0 {
        return Ok(batch.slice_ref(parsed.bodies()));
    }
    let count = parsed.message_count();
    let unreadable =
        |source: BatchError| AnswerError::Decompression { first_offset, count, source };
    let mut room = Vec::new();
    decompressor.decompress(parsed, &mut room).map_err(unreadable)?;
    Ok(room.into())
}

fn message(
    id: MessageId,
    topic: &str,
    queue: QueueId,
    queue_offset: QueueOffset,
    store_time: Timestamp,
    meta: &MetaView<'_>,
    body: Bytes,
) -> Message {
    Message {
        id,
        topic: topic.to_owned(),
        queue,
        queue_offset,
        store_time,
        born_time: (meta.born_ms() > 0).then(|| Timestamp::new(meta.born_ms())),
        producer_id: meta.id().map(str::to_owned),
        keys: meta.keys().map(str::to_owned).collect(),
        tag: meta.tag().map(str::to_owned),
        properties: meta.properties().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        message_group: meta.message_group().map(str::to_owned),
        encoding: meta.encoding(),
        trace_context: meta.trace_context().map(str::to_owned),
        born_host: meta.born_host().map(str::to_owned),
        body,
        dead_letter: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::batch::{BatchBuilder, Codec, Compressor, NewMeta};

    fn place() -> Place<'static> {
        Place {
            topic: "orders",
            queue: QueueId::new(2),
            epoch: Epoch::new(3),
            physical_offset: PhysicalOffset::new(0x1000),
            first_queue_offset: QueueOffset::new(10),
            store_time: Timestamp::new(1_000),
            dead_letter: None,
        }
    }

    fn batch(tags: &[Option<&str>]) -> Bytes {
        let mut batch = BatchBuilder::new();
        for (index, tag) in tags.iter().enumerate() {
            let meta = NewMeta { tag: *tag, ..NewMeta::default() };
            batch.push(&meta, format!("body {index}").as_bytes());
        }
        batch.finish()
    }

    #[test]
    fn messages_below_the_wanted_offset_and_of_other_tags_are_dropped_but_counted() {
        let batch = batch(&[Some("a"), Some("a"), Some("b"), None, Some("a")]);
        let tags = TagFilter::parse("a").expect("legal");
        let out = taken(&batch, QueueOffset::new(11), &tags).expect("legal");
        let seen: Vec<_> =
            out.iter().map(|m| (m.queue_offset.get(), m.id.to_string(), m.body.clone())).collect();
        let expected = vec![
            (11, "3-1000-1".to_owned(), Bytes::from_static(b"body 1")),
            (14, "3-1000-4".to_owned(), Bytes::from_static(b"body 4")),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn everything_a_producer_set_comes_back() {
        let mut batch = BatchBuilder::new();
        batch.push(
            &NewMeta {
                keys: vec!["k1", "k2"],
                tag: Some("paid"),
                properties: vec![("colour", "blue")],
                message_group: Some("customer-7"),
                id: Some("mine"),
                born_ms: 5,
                encoding: 1,
                trace_context: Some("00-1-2-03"),
                born_host: Some("host"),
            },
            b"\xff\x00",
        );
        let out = taken(&batch.finish(), QueueOffset::ZERO, &TagFilter::All).expect("legal");
        let expected = Message {
            id: "3-1000-0".parse().expect("legal"),
            topic: "orders".to_owned(),
            queue: QueueId::new(2),
            queue_offset: QueueOffset::new(10),
            store_time: Timestamp::new(1_000),
            born_time: Some(Timestamp::new(5)),
            producer_id: Some("mine".to_owned()),
            keys: vec!["k1".to_owned(), "k2".to_owned()],
            tag: Some("paid".to_owned()),
            properties: vec![("colour".to_owned(), "blue".to_owned())],
            message_group: Some("customer-7".to_owned()),
            encoding: 1,
            trace_context: Some("00-1-2-03".to_owned()),
            born_host: Some("host".to_owned()),
            body: Bytes::from_static(b"\xff\x00"),
            dead_letter: None,
        };
        assert_eq!(out, vec![expected]);
    }

    /// The messages of a record.
    fn taken(
        batch: &Bytes,
        wanted: QueueOffset,
        tags: &TagFilter,
    ) -> Result<Vec<Message>, AnswerError> {
        let mut unpacker = Unpacker::new(wanted, tags);
        assert_eq!(unpacker.take(&place(), batch)?, Taken::Yes);
        Ok(unpacker.messages)
    }

    /// A batch of one message with tag `a` that claims to come to `len` bytes.
    fn claim(codec: u32, len: u32, bodies: Vec<u8>) -> Bytes {
        let batch = proto::Batch {
            metas: vec![proto::Meta { body_len: len, tag: "a".to_owned(), ..Default::default() }],
            codec,
            bodies_len: len,
            bodies: bodies.into(),
            ..proto::Batch::default()
        };
        Bytes::from(prost::Message::encode_to_vec(&batch))
    }

    fn told(error: &AnswerError) -> String {
        let source = std::error::Error::source(error).map(ToString::to_string);
        format!("{error}: {}", source.unwrap_or_default())
    }

    #[test]
    fn a_batch_that_is_not_readable_is_named_by_its_place() {
        let all = TagFilter::All;
        for (batch, why) in [
            (claim(3, 1, vec![1]), "codec 3 is not supported"),
            (
                claim(1, 9, vec![0x10, b'x']),
                "bodies of 2 bytes as lz4 do not decompress to the 9 that are stated",
            ),
            (
                claim(1, 17 << 20, vec![0; 1 << 20]),
                "uncompressed bodies of 17825792 bytes exceed the limit of 16777216",
            ),
        ] {
            let error = taken(&batch, QueueOffset::ZERO, &all).expect_err("not readable");
            let place = "the batch at offset 10 of the queue, of 1 messages, is not readable";
            assert_eq!(told(&error), format!("{place}: {why}"));
            // None of it is wanted: what it would come to does not matter.
            assert_eq!(taken(&batch, QueueOffset::new(11), &all).expect("passed over"), []);
            let other = TagFilter::parse("b").expect("legal");
            assert_eq!(taken(&batch, QueueOffset::ZERO, &other).expect("passed over"), []);
        }
    }

    #[test]
    fn messages_of_a_compressed_batch_are_those_of_the_batch() {
        let bodies = ["one ".repeat(50), "two ".repeat(50), String::new()];
        let build = || {
            let mut batch = BatchBuilder::new();
            for (body, tag) in bodies.iter().zip(["a", "b", "a"]) {
                batch.push(&NewMeta { tag: Some(tag), ..NewMeta::default() }, body.as_bytes());
            }
            batch
        };
        let mut lz4 = Compressor::new(Codec::Lz4).expect("always built in");
        let (plain, compressed) = (build().finish(), build().finish_compressed(&mut lz4));
        assert!(compressed.len() < plain.len() / 2);
        let tags = TagFilter::parse("a").expect("legal");
        for (wanted, filter, count) in
            [(0, &TagFilter::All, 3), (11, &TagFilter::All, 2), (0, &tags, 2)]
        {
            let wanted = QueueOffset::new(wanted);
            let found = taken(&compressed, wanted, filter).expect("legal");
            assert_eq!(found, taken(&plain, wanted, filter).expect("legal"));
            assert_eq!(found.len(), count);
        }
    }

    #[test]
    fn an_answer_of_bombs_is_taken_bit_by_bit() {
        let mut lz4 = Compressor::new(Codec::Lz4).expect("always built in");
        let mut bomb = BatchBuilder::new();
        bomb.push(&NewMeta::default(), &vec![0; 4 << 20]);
        let bomb = bomb.finish_compressed(&mut lz4);
        let mut unpacker = Unpacker::new(QueueOffset::ZERO, &TagFilter::All);
        let taken: Vec<_> =
            (0..10).map(|_| unpacker.take(&place(), &bomb).expect("legal")).collect();
        assert_eq!(taken.iter().filter(|taken| **taken == Taken::Yes).count(), 8);
        assert_eq!(taken[8..], [Taken::No, Taken::No]);
        assert_eq!(unpacker.messages.len(), 8);
    }
}
