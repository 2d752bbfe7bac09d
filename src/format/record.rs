//! The CommitLog record: a header of 128 bytes, attributes, payload, zero padding to the next 8 bytes; nothing else.
//!
//! |  at | len | field             | meaning                                                                  |
//! | --: | --: | ----------------- | ------------------------------------------------------------------------ |
//! |   0 |   4 | magic             | `MSTR`                                                                   |
//! |   4 |   1 | version           | 1                                                                        |
//! |   5 |   1 | kind              | [`RecordKind`]                                                           |
//! |   6 |   2 | flags             | [`RecordFlags`]                                                          |
//! |   8 |   4 | total length      | of the record in bytes, padding included                                 |
//! |  12 |   4 | header checksum   | CRC32C of these 128 bytes, itself taken as zero; initial state: the segment's salt |
//! |  16 |   4 | payload checksum  | CRC32C of attributes and payload                                         |
//! |  20 |   4 | attributes length | in bytes                                                                 |
//! |  24 |   4 | payload length    | in bytes                                                                 |
//! |  28 |   4 | queue             | id                                                                       |
//! |  32 |   8 | physical offset   | its own                                                                  |
//! |  40 |   8 | queue offset      | of its first message; means nothing under the flag that says so          |
//! |  48 |   8 | store time        | ms, on the store clock                                                   |
//! |  56 |   8 | topic             | id; 0 is the broker itself                                               |
//! |  64 |   8 | tag bits          | one message: the tag's hash; several: the OR of their mask bits          |
//! |  72 |   8 | epoch             | in which it was written                                                  |
//! |  80 |   4 | group hash        | of the message group, 0 without one                                      |
//! |  84 |   4 | durable lag       | own physical offset − flushed, when it was written                       |
//! |  88 |   2 | message count     | at least 1 in a message record                                           |
//! |  90 |   2 | set index         | its place in its append set, from 0                                      |
//! |  92 |   2 | set count         | records in its append set, at least 1                                    |
//! |  94 |  34 | zero              |                                                                          |
//!
//! Attributes are what the broker adds to a record: tag u16, length u16, value, one after the other. A tag with the
//! top bit set must be understood or the start is refused; others are kept and skipped. What a repeated tag means is
//! the tag's own business.
//!
//! A **filler** ends a segment: a header whose total length covers what is left; the bytes behind the header are not
//! looked at. Where not even a header fits there are zeros.
//!
//! The salt makes a header of another segment or store, or one forged inside a payload, fail at any other place; the
//! physical offset does the same within a segment, and for what an earlier segment left in the same file: two salts of
//! 32 bits may be equal, two offsets never are. The writer computes the payload checksum before it takes the append
//! lock and the header's under it.

use super::{DecodeError, crc32c_with, put, slice_at, u16_at, u32_at, u64_at};
use crate::message::{Epoch, PhysicalOffset, QueueId, QueueOffset, Timestamp, TopicId};

pub(crate) const MAGIC: u32 = u32::from_le_bytes(*b"MSTR");
const VERSION: u8 = 1;

const MAGIC_AT: usize = 0;
const VERSION_AT: usize = MAGIC_AT + size_of::<u32>();
const KIND_AT: usize = VERSION_AT + size_of::<u8>();
const FLAGS_AT: usize = KIND_AT + size_of::<u8>();
const TOTAL_LEN_AT: usize = FLAGS_AT + size_of::<u16>();
const HEADER_CRC_AT: usize = TOTAL_LEN_AT + size_of::<u32>();
const PAYLOAD_CRC_AT: usize = HEADER_CRC_AT + size_of::<u32>();
const ATTRIBUTES_LEN_AT: usize = PAYLOAD_CRC_AT + size_of::<u32>();
const PAYLOAD_LEN_AT: usize = ATTRIBUTES_LEN_AT + size_of::<u32>();
const QUEUE_AT: usize = PAYLOAD_LEN_AT + size_of::<u32>();
const PHYSICAL_OFFSET_AT: usize = QUEUE_AT + size_of::<u32>();
const QUEUE_OFFSET_AT: usize = PHYSICAL_OFFSET_AT + size_of::<u64>();
const STORE_TIME_AT: usize = QUEUE_OFFSET_AT + size_of::<u64>();
const TOPIC_AT: usize = STORE_TIME_AT + size_of::<u64>();
const TAG_BITS_AT: usize = TOPIC_AT + size_of::<u64>();
const EPOCH_AT: usize = TAG_BITS_AT + size_of::<u64>();
const GROUP_HASH_AT: usize = EPOCH_AT + size_of::<u64>();
const DURABLE_LAG_AT: usize = GROUP_HASH_AT + size_of::<u32>();
const MESSAGE_COUNT_AT: usize = DURABLE_LAG_AT + size_of::<u32>();
const SET_INDEX_AT: usize = MESSAGE_COUNT_AT + size_of::<u16>();
const SET_COUNT_AT: usize = SET_INDEX_AT + size_of::<u16>();
const ZERO_AT: usize = SET_COUNT_AT + size_of::<u16>();

/// Bytes of a record's header.
pub const HEADER_LEN: usize = ZERO_AT + size_of::<u16>() + size_of::<[u8; 32]>();
const _: () = assert!(HEADER_LEN == 128, "the header is a contract with existing stores");

/// Records begin at multiples of this.
pub const ALIGN: u64 = 8;
const _: () = assert!((HEADER_LEN as u64).is_multiple_of(ALIGN), "a lone header is a whole record");

/// The bit of an attribute's tag that forbids to start without knowing the tag.
pub const MUST_UNDERSTAND: u16 = 0x8000;

const TAG_LEN: usize = size_of::<u16>();
const ATTRIBUTE_HEAD_LEN: usize = TAG_LEN + size_of::<u16>();

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// Messages of one queue, or of one topic without a place in a queue yet.
    Message = 1,
    /// Transitions of the broker's own state.
    State = 2,
    /// The start of an epoch.
    Epoch = 3,
    /// Nothing: covers the rest of a segment.
    Filler = 4,
}

impl TryFrom<u8> for RecordKind {
    type Error = DecodeError;

    fn try_from(found: u8) -> Result<Self, DecodeError> {
        match found {
            1 => Ok(Self::Message),
            2 => Ok(Self::State),
            3 => Ok(Self::Epoch),
            4 => Ok(Self::Filler),
            _ => Err(DecodeError::Kind { found }),
        }
    }
}

/// Yes-or-no facts about a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RecordFlags(u16);

impl RecordFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// The record is in no queue; its queue offset means nothing.
    pub const NO_QUEUE_OFFSET: Self = Self(1);
    /// At least one of its messages has no tag.
    pub const HAS_UNTAGGED: Self = Self(2);
    /// Its messages belong to a message group.
    pub const HAS_MESSAGE_GROUP: Self = Self(4);

    const ALL: u16 = Self::NO_QUEUE_OFFSET.0 | Self::HAS_UNTAGGED.0 | Self::HAS_MESSAGE_GROUP.0;

    /// Whether all of `flags` are set.
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// These flags and `flags`.
    #[must_use]
    pub const fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }

    fn from_bits(bits: u16) -> Result<Self, DecodeError> {
        if bits & !Self::ALL == 0 {
            Ok(Self(bits))
        } else {
            Err(DecodeError::Flags { found: bits.into() })
        }
    }
}

/// The header of a record, without what only guards it. Fields as in the table of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What the record is.
    pub kind: RecordKind,
    /// Facts about it.
    pub flags: RecordFlags,
    /// Bytes of the record, padding included.
    pub total_len: u32,
    /// CRC32C of attributes and payload.
    pub payload_crc: u32,
    /// Bytes of the attributes.
    pub attributes_len: u32,
    /// Bytes of the payload.
    pub payload_len: u32,
    /// The queue of its messages.
    pub queue: QueueId,
    /// Where the record begins.
    pub physical_offset: PhysicalOffset,
    /// Queue offset of its first message.
    pub queue_offset: QueueOffset,
    /// When it was stored, on the store clock.
    pub store_time: Timestamp,
    /// The topic of its messages; 0 is the broker itself.
    pub topic: TopicId,
    /// What a tag filter is tried on before the messages are read.
    pub tag_bits: u64,
    /// In which it was written.
    pub epoch: Epoch,
    /// Hash of the message group, 0 without one.
    pub group_hash: u32,
    /// Own physical offset − flushed, when it was written.
    pub durable_lag: u32,
    /// Messages in it.
    pub message_count: u16,
    /// Its place in its append set.
    pub set_index: u16,
    /// Records in its append set.
    pub set_count: u16,
}

impl RecordHeader {
    /// The header's bytes, for a segment of this salt.
    pub fn encode(&self, salt: u32) -> [u8; HEADER_LEN] {
        debug_assert_eq!(self.check_sizes(), Ok(()), "only sound headers are written");
        let mut bytes = [0; HEADER_LEN];
        put(&mut bytes, MAGIC_AT, MAGIC.to_le_bytes());
        put(&mut bytes, VERSION_AT, [VERSION]);
        put(&mut bytes, KIND_AT, [self.kind as u8]);
        put(&mut bytes, FLAGS_AT, self.flags.0.to_le_bytes());
        put(&mut bytes, TOTAL_LEN_AT, self.total_len.to_le_bytes());
        put(&mut bytes, PAYLOAD_CRC_AT, self.payload_crc.to_le_bytes());
        put(&mut bytes, ATTRIBUTES_LEN_AT, self.attributes_len.to_le_bytes());
        put(&mut bytes, PAYLOAD_LEN_AT, self.payload_len.to_le_bytes());
        put(&mut bytes, QUEUE_AT, self.queue.get().to_le_bytes());
        put(&mut bytes, PHYSICAL_OFFSET_AT, self.physical_offset.get().to_le_bytes());
        put(&mut bytes, QUEUE_OFFSET_AT, self.queue_offset.get().to_le_bytes());
        put(&mut bytes, STORE_TIME_AT, self.store_time.get().to_le_bytes());
        put(&mut bytes, TOPIC_AT, self.topic.get().to_le_bytes());
        put(&mut bytes, TAG_BITS_AT, self.tag_bits.to_le_bytes());
        put(&mut bytes, EPOCH_AT, self.epoch.get().to_le_bytes());
        put(&mut bytes, GROUP_HASH_AT, self.group_hash.to_le_bytes());
        put(&mut bytes, DURABLE_LAG_AT, self.durable_lag.to_le_bytes());
        put(&mut bytes, MESSAGE_COUNT_AT, self.message_count.to_le_bytes());
        put(&mut bytes, SET_INDEX_AT, self.set_index.to_le_bytes());
        put(&mut bytes, SET_COUNT_AT, self.set_count.to_le_bytes());
        let crc = crc32c_with(salt, &[&bytes]);
        put(&mut bytes, HEADER_CRC_AT, crc.to_le_bytes());
        bytes
    }

    /// The header at the start of `bytes`, which were read at `at` in a segment of this salt.
    ///
    /// What follows the header is not looked at: see [`verify_body`].
    ///
    /// # Errors
    /// There is no sound header of this place, segment and version.
    pub fn decode(bytes: &[u8], at: PhysicalOffset, salt: u32) -> Result<Self, DecodeError> {
        let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else {
            let found = bytes.len() as u64;
            return Err(DecodeError::TooShort { needed: HEADER_LEN as u64, found });
        };
        let magic = u32_at(bytes, MAGIC_AT)?;
        if magic != MAGIC {
            return Err(DecodeError::Magic { found: magic });
        }
        verify_header_crc(bytes, salt)?;
        // Only behind the checksum: damage must not look like another release.
        let [version] = super::array_at(bytes, VERSION_AT)?;
        if version != VERSION {
            return Err(DecodeError::UnsupportedVersion {
                what: "record",
                found: version.into(),
                supported: VERSION.into(),
            });
        }
        let physical_offset = PhysicalOffset::new(u64_at(bytes, PHYSICAL_OFFSET_AT)?);
        if physical_offset != at {
            return Err(DecodeError::Offset { expected: at, found: physical_offset });
        }
        if !looks_zero(slice_at(bytes, ZERO_AT, HEADER_LEN - ZERO_AT)?) {
            return Err(DecodeError::Reserved { at: ZERO_AT });
        }
        let [kind] = super::array_at(bytes, KIND_AT)?;
        let header = Self {
            kind: RecordKind::try_from(kind)?,
            flags: RecordFlags::from_bits(u16_at(bytes, FLAGS_AT)?)?,
            total_len: u32_at(bytes, TOTAL_LEN_AT)?,
            payload_crc: u32_at(bytes, PAYLOAD_CRC_AT)?,
            attributes_len: u32_at(bytes, ATTRIBUTES_LEN_AT)?,
            payload_len: u32_at(bytes, PAYLOAD_LEN_AT)?,
            queue: QueueId::new(u32_at(bytes, QUEUE_AT)?),
            physical_offset,
            queue_offset: QueueOffset::new(u64_at(bytes, QUEUE_OFFSET_AT)?),
            store_time: Timestamp::new(u64_at(bytes, STORE_TIME_AT)?),
            topic: TopicId::new(u64_at(bytes, TOPIC_AT)?),
            tag_bits: u64_at(bytes, TAG_BITS_AT)?,
            epoch: Epoch::new(u64_at(bytes, EPOCH_AT)?),
            group_hash: u32_at(bytes, GROUP_HASH_AT)?,
            durable_lag: u32_at(bytes, DURABLE_LAG_AT)?,
            message_count: u16_at(bytes, MESSAGE_COUNT_AT)?,
            set_index: u16_at(bytes, SET_INDEX_AT)?,
            set_count: u16_at(bytes, SET_COUNT_AT)?,
        };
        header.check_sizes()?;
        Ok(header)
    }

    /// What lengths and counts owe each other, when writing and when reading.
    fn check_sizes(&self) -> Result<(), DecodeError> {
        let found = u64::from(self.total_len);
        let expected = if self.kind == RecordKind::Filler {
            let inside = u64::from(self.attributes_len) + u64::from(self.payload_len);
            if inside != 0 {
                let what = "length inside a filler";
                return Err(DecodeError::Length { what, expected: 0, found: inside });
            }
            found.max(HEADER_LEN as u64).next_multiple_of(ALIGN)
        } else {
            record_len(self.attributes_len as usize, self.payload_len as usize)
        };
        if found != expected {
            return Err(DecodeError::Length { what: "record length", expected, found });
        }
        if self.set_index >= self.set_count {
            return Err(DecodeError::AppendSet { index: self.set_index, count: self.set_count });
        }
        if self.kind == RecordKind::Message && self.message_count == 0 {
            return Err(DecodeError::Length { what: "message count", expected: 1, found: 0 });
        }
        Ok(())
    }

    /// Where the record ends and the next one may begin.
    pub fn end(&self) -> PhysicalOffset {
        PhysicalOffset::new(self.physical_offset.get().saturating_add(self.total_len.into()))
    }

    /// What had been durable when this record was written: a proof, if the record is sound.
    pub fn durable_claim(&self) -> PhysicalOffset {
        PhysicalOffset::new(self.physical_offset.get().saturating_sub(self.durable_lag.into()))
    }

    /// Whether `tag_bits` is a mask over several messages instead of one tag's hash.
    pub fn tag_is_mask(&self) -> bool {
        self.message_count > 1
    }
}

fn verify_header_crc(bytes: &[u8; HEADER_LEN], salt: u32) -> Result<(), DecodeError> {
    let expected = u32_at(bytes, HEADER_CRC_AT)?;
    // One run over a copy is faster than three over the parts.
    let mut zeroed = *bytes;
    put(&mut zeroed, HEADER_CRC_AT, [0; 4]);
    let found = crc32c_with(salt, &[&zeroed]);
    if found == expected { Ok(()) } else { Err(DecodeError::HeaderCrc { expected, found }) }
}

/// Bytes of a record with so many bytes of attributes and payload: header and padding included.
pub const fn record_len(attributes_len: usize, payload_len: usize) -> u64 {
    (HEADER_LEN as u64 + attributes_len as u64 + payload_len as u64).next_multiple_of(ALIGN)
}

/// The checksum that guards a record's body.
pub fn payload_crc(attributes: &[u8], payload: &[u8]) -> u32 {
    crc32c_with(u32::MAX, &[attributes, payload])
}

/// The attributes and the payload in `body`, the bytes behind the header; what follows them is not looked at.
///
/// # Errors
/// `body` is too short, its checksum is wrong, or the attributes are cut short.
pub fn verify_body<'a>(
    header: &RecordHeader,
    body: &'a [u8],
) -> Result<(&'a [u8], &'a [u8]), DecodeError> {
    let attributes_len = header.attributes_len as usize;
    let attributes = slice_at(body, 0, attributes_len)?;
    let payload = slice_at(body, attributes_len, header.payload_len as usize)?;
    let found = payload_crc(attributes, payload);
    if found != header.payload_crc {
        return Err(DecodeError::PayloadCrc { expected: header.payload_crc, found });
    }
    for attribute in self::attributes(attributes) {
        attribute?;
    }
    Ok((attributes, payload))
}

/// What the broker adds to a record, or a field of a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// What it is.
    pub tag: u16,
    /// Its value; what it means depends on the tag.
    pub value: &'a [u8],
}

/// The attributes in `bytes`, which are a whole list.
///
/// A list that is cut short ends with one error.
pub fn attributes(
    bytes: &[u8],
) -> impl Iterator<Item = Result<Attribute<'_>, DecodeError>> + Clone + use<'_> {
    Attributes { bytes, at: 0 }
}

#[derive(Clone)]
struct Attributes<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Attributes<'a> {
    fn attribute_at(&self, at: usize) -> Result<Attribute<'a>, DecodeError> {
        let tag = u16_at(self.bytes, at)?;
        let len = u16_at(self.bytes, at + TAG_LEN)?;
        let value = slice_at(self.bytes, at + ATTRIBUTE_HEAD_LEN, len.into())?;
        Ok(Attribute { tag, value })
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at;
        if at >= self.bytes.len() {
            return None;
        }
        let Ok(attribute) = self.attribute_at(at) else {
            self.at = self.bytes.len();
            return Some(Err(DecodeError::Attribute { at }));
        };
        self.at = at + ATTRIBUTE_HEAD_LEN + attribute.value.len();
        Some(Ok(attribute))
    }
}

/// The first tag in `bytes` that must be understood and is not among `known`: a reason to refuse the start.
pub fn unknown_required(bytes: &[u8], known: &[u16]) -> Option<u16> {
    attributes(bytes)
        .map_while(Result::ok)
        .map(|attribute| attribute.tag)
        .find(|tag| tag & MUST_UNDERSTAND != 0 && !known.contains(tag))
}

/// An attribute's value is longer than its length field can say. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("value of {len} bytes for attribute {tag:#06x} exceeds the limit of {}", u16::MAX)]
pub struct AttributeTooLong {
    /// Whose value.
    pub tag: u16,
    /// Its bytes.
    pub len: usize,
}

/// Appends one attribute to a list.
///
/// # Errors
/// The value is longer than 65 535 bytes; nothing was written.
pub fn put_attribute(out: &mut Vec<u8>, tag: u16, value: &[u8]) -> Result<(), AttributeTooLong> {
    let Ok(len) = u16::try_from(value.len()) else {
        return Err(AttributeTooLong { tag, len: value.len() });
    };
    out.extend_from_slice(&tag.to_le_bytes());
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(value);
    Ok(())
}

/// Whether all of `bytes` are zero: space that was never written.
pub fn looks_zero(bytes: &[u8]) -> bool {
    // The blocks let the compiler compare many bytes at once and still end early.
    bytes.chunks(512).all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests;
