//! Makes batches: for the client, for the RocketMQ service, and one of a single stored message.

use bytes::Bytes;

use super::super::crc32c;
use super::codec::{Codec, Compressor};
use super::schema::{
    BATCH_BODIES, BATCH_BODIES_CRC, BATCH_BODIES_LEN, BATCH_CODEC, BATCH_METAS, META_BODY_LEN,
    META_BORN_HOST, META_BORN_MS, META_ENCODING, META_ID, META_KEYS, META_MESSAGE_GROUP,
    META_PROPERTIES, META_TAG, META_TRACE_CONTEXT, PROPERTY_KEY, PROPERTY_VALUE,
};
use super::wire::{put_bytes, put_fixed32, put_len, put_number, varint_len};

/// Everything about a new message but its body. What is `None`, empty or 0 is not written.
#[derive(Clone, Debug, Default)]
pub struct NewMeta<'a> {
    /// Queries by key find the message by each of them.
    pub keys: Vec<&'a str>,
    /// The tag.
    pub tag: Option<&'a str>,
    /// Keys and values that the producer set.
    pub properties: Vec<(&'a str, &'a str)>,
    /// The message group.
    pub message_group: Option<&'a str>,
    /// The producer's own id.
    pub id: Option<&'a str>,
    /// When the message was made, ms since 1970 UTC; 0: not said.
    pub born_ms: u64,
    /// How the application encoded the body: 0 as it is, 1 gzip.
    pub encoding: u32,
    /// The W3C trace context.
    pub trace_context: Option<&'a str>,
    /// The host that made the message.
    pub born_host: Option<&'a str>,
}

/// Gathers messages into a batch.
///
/// The result is the canonical encoding. Limits and text are not looked at here: [`check`](super::check) does.
#[derive(Clone, Debug, Default)]
pub struct BatchBuilder {
    metas: Vec<u8>,
    bodies: Vec<u8>,
    message_count: usize,
    /// The meta that is being written, kept for its room.
    scratch: Vec<u8>,
}

impl BatchBuilder {
    /// A batch without messages.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a message behind the others.
    pub fn push(&mut self, meta: &NewMeta<'_>, body: &[u8]) {
        self.scratch.clear();
        put_meta(&mut self.scratch, meta, body.len());
        put_bytes(&mut self.metas, BATCH_METAS, &self.scratch);
        self.bodies.extend_from_slice(body);
        self.message_count += 1;
    }

    /// Bytes of the batch if it were finished now, uncompressed; 5 too many in the rare case that the bodies' checksum
    /// is 0. Compressed it is never longer.
    pub fn len(&self) -> usize {
        self.metas.len() + bodies_field_len(self.bodies.len())
    }

    /// Whether it has no message yet. Such a batch is refused everywhere.
    pub fn is_empty(&self) -> bool {
        self.message_count == 0
    }

    /// Messages so far.
    pub fn message_count(&self) -> usize {
        self.message_count
    }

    /// The encoded batch.
    pub fn finish(self) -> Bytes {
        let mut out = self.metas;
        put_bodies(&mut out, &self.bodies);
        out.into()
    }

    /// The encoded batch, with its bodies compressed if that makes it smaller.
    pub fn finish_compressed(self, compressor: &mut Compressor) -> Bytes {
        let codec = compressor.codec();
        let most = self.bodies.len().saturating_sub(CODEC_FIELD_LEN);
        let Some(compressed) = compressor.compress(&self.bodies, most) else {
            return self.finish();
        };
        let mut out = self.metas;
        put_bodies_as(&mut out, codec, self.bodies.len(), compressed);
        out.into()
    }
}

/// A batch of one new message.
pub fn one(meta: &NewMeta<'_>, body: &[u8]) -> Bytes {
    let mut raw = Vec::with_capacity(META_ROOM);
    put_meta(&mut raw, meta, body.len());
    single(&raw, body)
}

/// Most metas are no longer.
const META_ROOM: usize = 256;

/// A batch of the one message with this encoded meta and this uncompressed body, of which the meta says the length.
pub fn single(raw_meta: &[u8], body: &[u8]) -> Bytes {
    let meta_len = 1 + varint_len(raw_meta.len() as u64) + raw_meta.len();
    let mut out = Vec::with_capacity(meta_len + bodies_field_len(body.len()));
    put_bytes(&mut out, BATCH_METAS, raw_meta);
    put_bodies(&mut out, body);
    out.into()
}

fn put_meta(out: &mut Vec<u8>, meta: &NewMeta<'_>, body_len: usize) {
    for key in &meta.keys {
        put_bytes(out, META_KEYS, key.as_bytes());
    }
    put_text(out, META_TAG, meta.tag);
    for (key, value) in &meta.properties {
        put_property(out, key, value);
    }
    put_text(out, META_MESSAGE_GROUP, meta.message_group);
    put_text(out, META_ID, meta.id);
    put_number(out, META_BORN_MS, meta.born_ms);
    put_number(out, META_BODY_LEN, body_len as u64);
    put_number(out, META_ENCODING, meta.encoding.into());
    put_text(out, META_TRACE_CONTEXT, meta.trace_context);
    put_text(out, META_BORN_HOST, meta.born_host);
}

fn put_property(out: &mut Vec<u8>, key: &str, value: &str) {
    let text_len = |text: &str| match text.len() {
        0 => 0,
        len => 1 + varint_len(len as u64) + len,
    };
    put_len(out, META_PROPERTIES, text_len(key) + text_len(value));
    put_text(out, PROPERTY_KEY, Some(key));
    put_text(out, PROPERTY_VALUE, Some(value));
}

/// proto3 does not write an empty single field.
fn put_text(out: &mut Vec<u8>, field: u32, text: Option<&str>) {
    if let Some(text) = text.filter(|text| !text.is_empty()) {
        put_bytes(out, field, text.as_bytes());
    }
}

/// Bytes of field 2 of a compressed batch.
const CODEC_FIELD_LEN: usize = 2;

fn put_bodies(out: &mut Vec<u8>, bodies: &[u8]) {
    put_bodies_as(out, Codec::None, bodies.len(), bodies);
}

/// Appends fields 2 to 5: `bodies` as they are to stand there, and the length that they have uncompressed.
fn put_bodies_as(out: &mut Vec<u8>, codec: Codec, bodies_len: usize, bodies: &[u8]) {
    out.reserve(CODEC_FIELD_LEN + bodies_field_len(bodies_len.max(bodies.len())));
    put_number(out, BATCH_CODEC, codec.number().into());
    put_number(out, BATCH_BODIES_LEN, bodies_len as u64);
    put_fixed32(out, BATCH_BODIES_CRC, crc32c(bodies));
    if !bodies.is_empty() {
        put_bytes(out, BATCH_BODIES, bodies);
    }
}

/// Bytes of fields 3 to 5.
fn bodies_field_len(len: usize) -> usize {
    match len {
        0 => 0,
        _ => 1 + varint_len(len as u64) + 5 + 1 + varint_len(len as u64) + len,
    }
}
