//! Walks over an encoded batch and its messages, in place.

use std::iter;

use super::BatchError;
use super::schema::{
    BATCH_BODIES, BATCH_BODIES_CRC, BATCH_BODIES_LEN, BATCH_CODEC, BATCH_METAS, META_BODY_LEN,
    META_BORN_HOST, META_BORN_MS, META_ENCODING, META_ID, META_KEYS, META_MESSAGE_GROUP,
    META_PROPERTIES, META_TAG, META_TRACE_CONTEXT, PROPERTY_KEY, PROPERTY_VALUE,
};
use super::wire::{Fields, Malformed};

/// A batch that came back from the log or over the wire.
///
/// Its own fields were walked; the messages are walked when asked for. Limits and the checksum of the bodies are not
/// verified: [`check`](super::check) did that before the batch was stored.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    outer: Outer<'a>,
}

impl<'a> Batch<'a> {
    /// The batch in `bytes`, which have to be all of it.
    ///
    /// # Errors
    /// It is malformed, empty, or has more messages than a record can count.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BatchError> {
        // A record counts to 65 535. Today's limit is no reason to refuse what was stored under another.
        let outer = Outer::walk(bytes, u16::MAX, |_, _, _| Ok(()))?;
        Ok(Self { outer })
    }

    /// Messages, at least 1.
    pub fn message_count(&self) -> u16 {
        self.outer.message_count
    }

    /// How the bodies are compressed: 0 not at all, 1 LZ4 block, 2 zstd frame.
    pub fn codec(&self) -> u32 {
        self.outer.codec
    }

    /// Bytes of the uncompressed bodies, as the batch says.
    pub fn bodies_len(&self) -> u32 {
        self.outer.bodies_len
    }

    /// CRC32C of [`bodies`](Self::bodies), as the batch says.
    pub fn bodies_crc(&self) -> u32 {
        self.outer.bodies_crc
    }

    /// All bodies one after the other, as they were sent.
    pub fn bodies(&self) -> &'a [u8] {
        self.outer.bodies
    }

    /// Everything about the messages but their bodies, in order. The first malformed one ends the walk.
    pub fn metas(&self) -> impl Iterator<Item = Result<MetaView<'a>, BatchError>> + use<'a> {
        let mut fields = Fields::of(self.outer.metas);
        let mut index = 0;
        iter::from_fn(move || {
            let meta = next_meta(&mut fields, index).transpose()?;
            if meta.is_err() {
                fields = Fields::of(&[]);
            }
            // Counted as u16 when the batch was parsed; the last one's successor is never used.
            index = index.wrapping_add(1);
            Some(meta)
        })
    }

    /// The metas without those that say the same as the one before: many that were sent together have nothing of their
    /// own. The first malformed one ends the walk.
    pub fn distinct_metas(
        &self,
    ) -> impl Iterator<Item = Result<MetaView<'a>, BatchError>> + use<'a> {
        distinct(self.outer.metas)
    }

    /// As [`distinct_metas`](Self::distinct_metas), of a batch of `len` bytes of which only the first ones are there,
    /// in `begin`. The batch was [checked](super::check) before. `None`: not all of its metas are in there.
    pub fn distinct_metas_in(
        begin: &'a [u8],
        len: usize,
    ) -> Option<impl Iterator<Item = Result<MetaView<'a>, BatchError>> + use<'a>> {
        let mut fields = Fields::of(begin);
        loop {
            let before = fields.rest();
            // Nothing else stands before the metas.
            match fields.next_number() {
                Ok(Some(BATCH_METAS)) => fields.next().ok()?,
                Ok(None) if begin.len() < len => return None,
                Ok(_) => return Some(distinct(begin.get(..begin.len() - before.len())?)),
                Err(_) => return None,
            };
            fields.skip_again(before, u16::MAX);
        }
    }

    /// The messages in order, each with its body. The first malformed one, or a body that is not there, ends the walk.
    ///
    /// Only without a codec: a compressed batch gives one [`BatchError::Codec`]. Its bodies are decompressed with a
    /// [`Decompressor`](super::Decompressor) and walked with [`messages_in`](Self::messages_in).
    pub fn messages(
        &self,
    ) -> impl Iterator<Item = Result<(MetaView<'a>, &'a [u8]), BatchError>> + use<'a> {
        let codec = self.outer.codec;
        let refused = (codec != 0).then_some(Err(BatchError::Codec { codec }));
        let messages = refused.is_none().then(|| self.messages_in(self.outer.bodies));
        refused.into_iter().chain(messages.into_iter().flatten())
    }

    /// As [`messages`](Self::messages), for bodies that were decompressed.
    pub fn messages_in<'b>(
        &self,
        bodies: &'b [u8],
    ) -> impl Iterator<Item = Result<(MetaView<'a>, &'b [u8]), BatchError>> + use<'a, 'b> {
        let mut metas = self.metas();
        let mut bodies = Bodies { all: bodies, at: 0 };
        let mut ended = false;
        iter::from_fn(move || {
            if ended {
                return None;
            }
            let message = match metas.next() {
                Some(Ok(meta)) => bodies.take(meta.body_len()).map(|body| (meta, body)),
                Some(Err(error)) => Err(error),
                None => {
                    ended = true;
                    return bodies.finish().err().map(Err);
                }
            };
            ended = message.is_err();
            Some(message)
        })
    }
}

/// Encoded metas, without those that are as the one before. The first malformed one ends the walk.
fn distinct<'a>(
    metas: &'a [u8],
) -> impl Iterator<Item = Result<MetaView<'a>, BatchError>> + use<'a> {
    let mut fields = Fields::of(metas);
    let mut index = 0_u16;
    iter::from_fn(move || {
        let before = fields.rest();
        let meta = next_meta(&mut fields, index).transpose()?;
        if meta.is_err() {
            fields = Fields::of(&[]);
            return Some(meta);
        }
        // As many as were counted when the batch was checked.
        index = index.wrapping_add(1).wrapping_add(fields.skip_again(before, u16::MAX));
        Some(meta)
    })
}

fn next_meta<'a>(fields: &mut Fields<'a>, index: u16) -> Result<Option<MetaView<'a>>, BatchError> {
    let malformed = |problem| BatchError::Malformed { problem };
    let Some(field) = fields.next().map_err(malformed)? else { return Ok(None) };
    let raw = field.bytes().map_err(malformed)?;
    MetaView::walk(index, raw, |_| Ok(())).map(Some)
}

/// Hands out the bodies one after the other.
struct Bodies<'a> {
    all: &'a [u8],
    at: usize,
}

impl<'a> Bodies<'a> {
    fn take(&mut self, len: u32) -> Result<&'a [u8], BatchError> {
        let len = len as usize;
        let body = self.all.get(self.at..).and_then(|rest| rest.get(..len));
        self.at = self.at.saturating_add(len);
        body.ok_or_else(|| self.lie())
    }

    fn finish(&self) -> Result<(), BatchError> {
        if self.at == self.all.len() { Ok(()) } else { Err(self.lie()) }
    }

    fn lie(&self) -> BatchError {
        BatchError::BodiesSum { expected: self.all.len() as u64, found: self.at as u64 }
    }
}

/// A batch's own fields.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outer<'a> {
    /// The encoded metas, keys and lengths included.
    metas: &'a [u8],
    pub(super) message_count: u16,
    pub(super) codec: u32,
    pub(super) bodies_len: u32,
    pub(super) bodies_crc: u32,
    pub(super) bodies: &'a [u8],
}

impl<'a> Outer<'a> {
    /// Walks a batch's own fields and gives every encoded meta to `each`: with the index of its message, and how many
    /// messages from that one on have the same, which are not given again.
    pub(super) fn walk(
        batch: &'a [u8],
        max_messages: u16,
        mut each: impl FnMut(u16, &'a [u8], u16) -> Result<(), BatchError>,
    ) -> Result<Self, BatchError> {
        let malformed = |problem| BatchError::Malformed { problem };
        let mut outer = Self {
            metas: &[],
            message_count: 0,
            codec: 0,
            bodies_len: 0,
            bodies_crc: 0,
            bodies: &[],
        };
        let mut metas_len = 0;
        let mut last = 0;
        let mut fields = Fields::of(batch);
        loop {
            let before = fields.rest();
            let Some(field) = fields.next().map_err(malformed)? else { break };
            let number = field.number;
            in_order(last, number).map_err(malformed)?;
            last = number;
            match number {
                BATCH_METAS => {
                    let raw = field.bytes().map_err(malformed)?;
                    if outer.message_count == max_messages {
                        let limit = u64::from(max_messages);
                        return Err(BatchError::TooManyMessages { limit, found: limit + 1 });
                    }
                    let room = max_messages - outer.message_count - 1;
                    let count = 1 + fields.skip_again(before, room);
                    each(outer.message_count, raw, count)?;
                    outer.message_count += count;
                    metas_len = batch.len() - fields.rest().len();
                }
                BATCH_CODEC => outer.codec = field.u32().map_err(malformed)?,
                BATCH_BODIES_LEN => outer.bodies_len = field.u32().map_err(malformed)?,
                BATCH_BODIES_CRC => outer.bodies_crc = field.fixed32().map_err(malformed)?,
                BATCH_BODIES => outer.bodies = field.bytes().map_err(malformed)?,
                field => return Err(malformed(Malformed::Unknown { field })),
            }
        }
        if outer.message_count == 0 {
            return Err(BatchError::Empty);
        }
        outer.metas = batch.get(..metas_len).unwrap_or_default();
        Ok(outer)
    }
}

/// Only the metas may be repeated, and nothing stands behind a higher number.
fn in_order(last: u32, field: u32) -> Result<(), Malformed> {
    if field > last || (field == last && field == BATCH_METAS) {
        Ok(())
    } else if field == last {
        Err(Malformed::Repeated { field })
    } else {
        Err(Malformed::OutOfOrder { field })
    }
}

/// A repeated field of a meta, as the walk meets it.
pub(super) enum Repeated<'a> {
    /// A key.
    Key(&'a str),
    /// A property: key and value.
    Property(&'a str, &'a str),
}

/// Everything about one message but its body. Well-formed: it was walked.
#[derive(Clone, Copy, Debug)]
pub struct MetaView<'a> {
    raw: &'a [u8],
    tag: &'a str,
    message_group: &'a str,
    id: &'a str,
    trace_context: &'a str,
    born_host: &'a str,
    born_ms: u64,
    body_len: u32,
    encoding: u32,
}

impl<'a> MetaView<'a> {
    /// Walks the meta of the message at `index` and gives its repeated fields to `each`.
    #[inline(always)]
    pub(super) fn walk(
        index: u16,
        raw: &'a [u8],
        mut each: impl FnMut(Repeated<'a>) -> Result<(), BatchError>,
    ) -> Result<Self, BatchError> {
        let malformed = |problem| BatchError::MalformedMeta { index, problem };
        let mut meta = Self {
            raw,
            tag: "",
            message_group: "",
            id: "",
            trace_context: "",
            born_host: "",
            born_ms: 0,
            body_len: 0,
            encoding: 0,
        };
        let mut seen = Seen(0);
        let mut fields = Fields::of(raw);
        while let Some(field) = fields.next().map_err(malformed)? {
            match field.number {
                META_KEYS => {
                    each(Repeated::Key(field.text().map_err(malformed)?))?;
                    continue;
                }
                META_PROPERTIES => {
                    let property = field.bytes().and_then(property).map_err(malformed)?;
                    each(Repeated::Property(property.0, property.1))?;
                    continue;
                }
                META_TAG => meta.tag = field.text().map_err(malformed)?,
                META_MESSAGE_GROUP => meta.message_group = field.text().map_err(malformed)?,
                META_ID => meta.id = field.text().map_err(malformed)?,
                META_BORN_MS => meta.born_ms = field.u64().map_err(malformed)?,
                META_BODY_LEN => meta.body_len = field.u32().map_err(malformed)?,
                META_ENCODING => meta.encoding = field.u32().map_err(malformed)?,
                META_TRACE_CONTEXT => meta.trace_context = field.text().map_err(malformed)?,
                META_BORN_HOST => meta.born_host = field.text().map_err(malformed)?,
                // Of a later release: kept as it is.
                _ => continue,
            }
            seen.once(field.number).map_err(malformed)?;
        }
        Ok(meta)
    }

    /// The encoded meta, for [`single`](super::single).
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let mut fields = Fields::of(self.raw);
        iter::from_fn(move || {
            // The walk has shown that there is no error to meet.
            while let Ok(Some(field)) = fields.next() {
                if field.number == META_KEYS {
                    return field.text().ok();
                }
            }
            None
        })
    }

    /// The properties, in order.
    pub fn properties(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let mut fields = Fields::of(self.raw);
        iter::from_fn(move || {
            while let Ok(Some(field)) = fields.next() {
                if field.number == META_PROPERTIES {
                    return field.bytes().and_then(property).ok();
                }
            }
            None
        })
    }

    /// The tag.
    pub fn tag(&self) -> Option<&'a str> {
        some(self.tag)
    }

    /// The message group.
    pub fn message_group(&self) -> Option<&'a str> {
        some(self.message_group)
    }

    /// The producer's own id.
    pub fn id(&self) -> Option<&'a str> {
        some(self.id)
    }

    /// When the message was made, ms since 1970 UTC; 0 if the producer did not say.
    pub fn born_ms(&self) -> u64 {
        self.born_ms
    }

    /// Bytes of the uncompressed body.
    pub fn body_len(&self) -> u32 {
        self.body_len
    }

    /// How the application encoded the body: 0 as it is, 1 gzip.
    pub fn encoding(&self) -> u32 {
        self.encoding
    }

    /// The W3C trace context.
    pub fn trace_context(&self) -> Option<&'a str> {
        some(self.trace_context)
    }

    /// The host that made the message.
    pub fn born_host(&self) -> Option<&'a str> {
        some(self.born_host)
    }
}

/// proto3 does not tell empty from absent.
fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// Key and value of an encoded property.
fn property(raw: &[u8]) -> Result<(&str, &str), Malformed> {
    let (mut key, mut value) = ("", "");
    let mut seen = Seen(0);
    let mut fields = Fields::of(raw);
    while let Some(field) = fields.next()? {
        match field.number {
            PROPERTY_KEY => key = field.text()?,
            PROPERTY_VALUE => value = field.text()?,
            _ => continue,
        }
        seen.once(field.number)?;
    }
    Ok((key, value))
}

/// The single fields that were met, one bit each.
struct Seen(u32);

impl Seen {
    /// `field` is the number of a known field, at most 31.
    #[inline(always)]
    fn once(&mut self, field: u32) -> Result<(), Malformed> {
        let bit = 1 << field;
        if self.0 & bit != 0 {
            return Err(Malformed::Repeated { field });
        }
        self.0 |= bit;
        Ok(())
    }
}
