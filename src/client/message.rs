//! A message in a reader's hand, cut out of the batch it was stored in.
//!
//! Bodies are slices of the answer they came in: no copy. The walk is `format::batch`'s; this file gives it a place
//! (queue, offset, id) and drops what was not asked for.

use bytes::Bytes;

use super::error::AnswerError;
use crate::format::batch::{Batch, MetaView, TagFilter};
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
}

/// Takes a stored record apart: appends its messages from `wanted` on that `tags` lets through.
pub(super) fn unpack(
    place: &Place<'_>,
    batch: &Bytes,
    wanted: QueueOffset,
    tags: &TagFilter,
    out: &mut Vec<Message>,
) -> Result<(), AnswerError> {
    visit(place, batch, wanted, tags, &mut |found| {
        let MessageRef { id, queue, queue_offset, store_time, meta, body } = found;
        out.push(message(id, place.topic, queue, queue_offset, store_time, &meta, body));
    })
}

/// Shows the messages of a stored record from `wanted` on that `tags` lets through.
pub(super) fn visit(
    place: &Place<'_>,
    batch: &Bytes,
    wanted: QueueOffset,
    tags: &TagFilter,
    show: &mut dyn FnMut(MessageRef<'_>),
) -> Result<(), AnswerError> {
    let &Place { queue, store_time, .. } = place;
    let mut queue_offset = place.first_queue_offset;
    let mut index = 0;
    for_each(batch, |meta, body| {
        if queue_offset >= wanted && tags.matches(meta.tag()) {
            let id = MessageId { epoch: place.epoch, offset: place.physical_offset, index };
            show(MessageRef { id, queue, queue_offset, store_time, meta: *meta, body });
        }
        queue_offset = queue_offset.plus(1);
        index = index.saturating_add(1);
    })
}

/// The message of a query's answer: a batch of one.
pub(super) fn found(found: proto::FoundMessage) -> Result<Message, AnswerError> {
    let Ok(id) = found.message_id.parse() else {
        return Err(AnswerError::MessageId { found: found.message_id });
    };
    let mut one = None;
    for_each(&found.batch, |meta, body| {
        one = Some(message(
            id,
            &found.topic,
            QueueId::new(found.queue),
            QueueOffset::new(found.queue_offset),
            Timestamp::new(found.store_time_ms),
            meta,
            body,
        ));
    })?;
    one.ok_or(AnswerError::Missing { field: "batch" })
}

/// Walks the messages of a batch that this client can read.
fn for_each(batch: &Bytes, mut visit: impl FnMut(&MetaView<'_>, Bytes)) -> Result<(), AnswerError> {
    let parsed = Batch::parse(batch)?;
    if parsed.codec() != 0 {
        return Err(AnswerError::Codec { codec: parsed.codec() });
    }
    for item in parsed.messages() {
        let (meta, body) = item?;
        visit(&meta, batch.slice_ref(body));
    }
    Ok(())
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::batch::{BatchBuilder, NewMeta};

    fn place() -> Place<'static> {
        Place {
            topic: "orders",
            queue: QueueId::new(2),
            epoch: Epoch::new(3),
            physical_offset: PhysicalOffset::new(0x1000),
            first_queue_offset: QueueOffset::new(10),
            store_time: Timestamp::new(1_000),
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
        let mut out = Vec::new();
        unpack(&place(), &batch, QueueOffset::new(11), &tags, &mut out).expect("legal");
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
        let mut out = Vec::new();
        unpack(&place(), &batch.finish(), QueueOffset::ZERO, &TagFilter::All, &mut out)
            .expect("legal");
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
        };
        assert_eq!(out, vec![expected]);
    }

    #[test]
    fn a_codec_from_the_future_is_named() {
        let batch = proto::Batch {
            metas: vec![proto::Meta::default()],
            codec: 2,
            ..proto::Batch::default()
        };
        let batch = Bytes::from(prost::Message::encode_to_vec(&batch));
        let error = unpack(&place(), &batch, QueueOffset::ZERO, &TagFilter::All, &mut Vec::new())
            .expect_err("not understood");
        assert_eq!(
            error.to_string(),
            "a batch is compressed with codec 2, which this client does not know"
        );
    }
}
