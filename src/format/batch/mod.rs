//! The payload of a message record: a `Batch` in protobuf, byte for byte as the producer sent it.
//!
//! ```text
//! Batch    { repeated Meta metas = 1; uint32 codec = 2; uint32 bodies_len = 3; fixed32 bodies_crc = 4; bytes bodies =
//! 5; } Meta     { repeated string keys = 1; string tag = 2; repeated Property properties = 3; string message_group =
//! 4;
//!            string id = 5; uint64 born_ms = 6; uint32 body_len = 7; uint32 encoding = 8; string trace_context = 9;
//!            string born_host = 10; }
//! Property { string key = 1; string value = 2; }
//! ```
//!
//! - **Batch**: fields in this order, 2 to 5 at most once, nothing unknown. At least one Meta.
//! - **Meta, Property**: single fields at most once, in any order; unknown fields are kept and skipped. A single field
//!   that is there but empty counts as absent.
//! - Numbers are varints of at most 10 bytes, needlessly long ones included; a `uint32` above 2³² − 1 is refused, never
//!   cut. A known field of another wire type, a group, and text that is not UTF-8 are refused.
//! - `bodies` are all bodies one after the other, as a whole in the form that `codec` says; `bodies_len` is their
//!   uncompressed sum and the sum of `body_len`, `bodies_crc` the CRC32C of `bodies` as they stand here.
//! - Codec 0 is none; 1 is one LZ4 block, without a length before it; 2 is one zstd frame, without a dictionary. A
//!   batch in any other codec is refused. A compressed batch needs not be smaller than it would be uncompressed.
//! - All messages have the same message group, or none has one.
//!
//! Tag bits: the hash of a tag is xxh3_64. A record of one message carries the hash, or 0 without a tag; a record of
//! several the OR of one mask bit per tag, picked by the hash's top six bits. [`TagFilter`] tells from that which
//! records cannot match.
//!
//! [`check`] guards the door: it runs on every batch on its way in, on the sender's own thread, in one pass without
//! allocation. [`Batch`] walks what came back from the log or over the wire; it trusts nothing, but verifies no limit
//! and no checksum of the bodies.
//!
//! Compressed bodies are not decompressed at the door. What arithmetic can tell is: one byte of LZ4 stands for 255 at
//! most, and the heads of a zstd frame's blocks bound what comes out of it. So a batch that was let in may still hold
//! something else than it says; whoever decompresses it, with a [`Decompressor`], makes room for what it says, never
//! for more than [`limits::UNCOMPRESSED_LEN`], and finds out.

mod build;
mod codec;
mod error;
pub mod limits;
mod schema;
mod tag_filter;
mod view;
mod wire;
mod zstd_frame;

use xxhash_rust::xxh3::xxh3_64;

pub use self::build::{BatchBuilder, NewMeta, one, single};
pub use self::codec::{Codec, Compressor, Decompressor};
pub use self::error::{BatchError, TextFault, TextField};
pub use self::tag_filter::{TagFilter, TagFilterError, Tags};
pub use self::view::{Batch, MetaView};
use self::view::{Outer, Repeated};
pub use self::wire::Malformed;
use super::{crc32c, crc32c_behind};

/// What a record header, the queues and the Index need to know about a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchInfo {
    /// Messages, at least 1.
    pub message_count: u16,
    /// One message: the hash of its tag, 0 without one. Several: the OR of their tags' mask bits.
    pub tag_bits: u64,
    /// At least one message has no tag.
    pub has_untagged: bool,
    /// The messages belong to a message group.
    pub has_message_group: bool,
    /// Hash of the message group, 0 without one.
    pub group_hash: u32,
    /// Keys and ids, those that stand there twice counted twice: at most so many Index entries.
    pub index_entries: u32,
    /// How the bodies are compressed.
    pub codec: Codec,
    /// Bytes of the uncompressed bodies.
    pub bodies_len: u32,
    /// CRC32C of all bytes of the batch.
    pub checksum: u32,
}

/// Checks a batch on its way in: structure, text, limits, lengths that lie, the checksum of the bodies. Compressed
/// bodies are not decompressed.
///
/// # Errors
/// The first rule that the batch breaks. Nothing was stored.
pub fn check(batch: &[u8]) -> Result<BatchInfo, BatchError> {
    if batch.len() > limits::BATCH_LEN {
        let found = batch.len() as u64;
        return Err(BatchError::BatchTooLarge { limit: limits::BATCH_LEN as u64, found });
    }
    let mut totals = Totals::default();
    let outer =
        Outer::walk(batch, limits::MESSAGES, |index, raw, count| totals.add(index, raw, count))?;
    let codec = Codec::from_number(outer.codec).ok_or(BatchError::Codec { codec: outer.codec })?;
    let stated = u64::from(outer.bodies_len);
    if totals.bodies_len != stated {
        return Err(BatchError::BodiesSum { expected: stated, found: totals.bodies_len });
    }
    codec.check_len(outer.bodies, outer.bodies_len)?;
    let found = crc32c(outer.bodies);
    if found != outer.bodies_crc {
        return Err(BatchError::Checksum { expected: outer.bodies_crc, found });
    }
    // The bodies are the last field, and nearly all of the batch: they are summed up once.
    let before = batch.get(..batch.len() - outer.bodies.len()).unwrap_or_default();
    Ok(BatchInfo {
        message_count: outer.message_count,
        tag_bits: if outer.message_count == 1 { totals.last_tag_hash } else { totals.tag_mask },
        has_untagged: totals.has_untagged,
        has_message_group: totals.message_group.is_some(),
        group_hash: totals.message_group.map_or(0, group_hash),
        index_entries: totals.index_entries,
        codec,
        bodies_len: outer.bodies_len,
        checksum: crc32c_behind(crc32c(before), outer.bodies, found),
    })
}

/// The hash of a tag.
pub fn tag_hash(tag: &str) -> u64 {
    xxh3_64(tag.as_bytes())
}

/// The bit that a tag of this hash sets in the mask of a record of several messages.
pub const fn tag_mask_bit(hash: u64) -> u64 {
    1 << (hash >> 58)
}

/// The hash of a message group. A collision may delay a message, it never reorders or loses one.
pub fn group_hash(group: &str) -> u32 {
    // The low half, by the format.
    xxh3_64(group.as_bytes()) as u32
}

/// What the messages of a batch come to, one after the other.
#[derive(Default)]
struct Totals<'a> {
    bodies_len: u64,
    message_group: Option<&'a str>,
    last_tag_hash: u64,
    tag_mask: u64,
    has_untagged: bool,
    index_entries: u32,
}

impl<'a> Totals<'a> {
    /// Checks the message at `index` and counts it in, as often as it stands there.
    fn add(&mut self, index: u16, raw: &'a [u8], count: u16) -> Result<(), BatchError> {
        let mut repeated = RepeatedTotals::default();
        let meta = MetaView::walk(index, raw, |field| repeated.add(index, field))?;
        self.add_body(index, meta.body_len())?;
        self.add_tag(index, meta.tag())?;
        self.add_message_group(index, meta.message_group())?;
        let tag_len = meta.tag().map_or(0, str::len);
        at_most(limits::PROPERTIES_LEN, repeated.len + tag_len, |limit, found| {
            BatchError::PropertiesTooLarge { index, limit, found }
        })?;
        let id = meta.id();
        at_most(limits::ID_LEN, id.map_or(0, str::len), |limit, found| BatchError::IdTooLong {
            index,
            limit,
            found,
        })?;
        // At most 33 entries for each of at most 10 000 messages.
        self.index_entries += (repeated.keys as u32 + u32::from(id.is_some())) * u32::from(count);
        for again in 1..count {
            self.add_body(index + again, meta.body_len())?;
        }
        Ok(())
    }

    fn add_body(&mut self, index: u16, len: u32) -> Result<(), BatchError> {
        at_most(limits::BODY_LEN, len as usize, |limit, found| BatchError::BodyTooLarge {
            index,
            limit,
            found,
        })?;
        self.bodies_len += u64::from(len);
        at_most(limits::UNCOMPRESSED_LEN, self.bodies_len as usize, |limit, found| {
            BatchError::UncompressedTooLarge { index, limit, found }
        })
    }

    fn add_tag(&mut self, index: u16, tag: Option<&str>) -> Result<(), BatchError> {
        let Some(tag) = tag else {
            self.has_untagged = true;
            self.last_tag_hash = 0;
            return Ok(());
        };
        at_most(limits::TAG_LEN, tag.len(), |limit, found| BatchError::TagTooLong {
            index,
            limit,
            found,
        })?;
        check_text(index, TextField::Tag, tag)?;
        if tag.contains('|') {
            return Err(BatchError::Text { index, field: TextField::Tag, fault: TextFault::Bar });
        }
        let hash = tag_hash(tag);
        self.last_tag_hash = hash;
        self.tag_mask |= tag_mask_bit(hash);
        Ok(())
    }

    fn add_message_group(&mut self, index: u16, group: Option<&'a str>) -> Result<(), BatchError> {
        if index > 0 {
            // The first message's was checked, and this one has to be the same.
            return if group == self.message_group {
                Ok(())
            } else {
                Err(BatchError::MixedMessageGroups { index })
            };
        }
        self.message_group = group;
        let Some(group) = group else { return Ok(()) };
        at_most(limits::MESSAGE_GROUP_LEN, group.len(), |limit, found| {
            BatchError::MessageGroupTooLong { index, limit, found }
        })?;
        check_text(index, TextField::MessageGroup, group)
    }
}

/// What the repeated fields of one message come to.
#[derive(Default)]
struct RepeatedTotals {
    keys: usize,
    properties: usize,
    /// Bytes of keys, property keys and values.
    len: usize,
}

impl RepeatedTotals {
    fn add(&mut self, index: u16, field: Repeated<'_>) -> Result<(), BatchError> {
        match field {
            Repeated::Key(key) => {
                self.keys += 1;
                self.len += key.len();
                at_most(limits::KEYS, self.keys, |limit, found| BatchError::TooManyKeys {
                    index,
                    limit,
                    found,
                })?;
                at_most(limits::KEY_LEN, key.len(), |limit, found| BatchError::KeyTooLong {
                    index,
                    limit,
                    found,
                })?;
                check_some_text(index, TextField::Key, key)
            }
            Repeated::Property(key, value) => {
                self.properties += 1;
                self.len += key.len() + value.len();
                at_most(limits::PROPERTIES, self.properties, |limit, found| {
                    BatchError::TooManyProperties { index, limit, found }
                })?;
                check_some_text(index, TextField::PropertyKey, key)
            }
        }
    }
}

fn at_most(
    limit: usize,
    found: usize,
    error: impl FnOnce(u64, u64) -> BatchError,
) -> Result<(), BatchError> {
    if found <= limit { Ok(()) } else { Err(error(limit as u64, found as u64)) }
}

/// Text that must say something: not empty, no control characters.
fn check_some_text(index: u16, field: TextField, text: &str) -> Result<(), BatchError> {
    if text.is_empty() {
        return Err(BatchError::Text { index, field, fault: TextFault::Empty });
    }
    if has_control_characters(text) {
        return Err(BatchError::Text { index, field, fault: TextFault::ControlCharacter });
    }
    Ok(())
}

/// Text that must also show something: not only white space.
fn check_text(index: u16, field: TextField, text: &str) -> Result<(), BatchError> {
    check_some_text(index, field, text)?;
    if text.chars().all(char::is_whitespace) {
        return Err(BatchError::Text { index, field, fault: TextFault::Blank });
    }
    Ok(())
}

fn has_control_characters(text: &str) -> bool {
    // Nearly all text passes the first test, which the compiler turns into a few wide comparisons: outside ASCII,
    // control characters are U+0080 to U+009F, which begin with 0xc2.
    let suspicious = |byte: u8| byte < b' ' || byte == 0x7f || byte == 0xc2;
    text.bytes().fold(false, |any, byte| any | suspicious(byte))
        && text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests;
