//! The one table of limits. What exceeds one is refused with the limit's name; nothing is cut or split.

/// Bytes of one message's uncompressed body.
pub const BODY_LEN: usize = 4 << 20;
/// Bytes of an encoded batch.
pub const BATCH_LEN: usize = 8 << 20;
/// Messages in a batch.
pub const MESSAGES: u16 = 10_000;
/// Bytes of a batch's uncompressed bodies.
pub const UNCOMPRESSED_LEN: usize = 16 << 20;
/// Properties of a message.
pub const PROPERTIES: usize = 128;
/// Bytes of a message's property keys and values, tag and keys together.
pub const PROPERTIES_LEN: usize = 16 << 10;
/// Keys of a message.
pub const KEYS: usize = 32;
/// Bytes of a key.
pub const KEY_LEN: usize = 1 << 10;
/// Bytes of the producer's own message id.
pub const ID_LEN: usize = 256;
/// Bytes of a message group.
pub const MESSAGE_GROUP_LEN: usize = 63;
/// Bytes of a tag.
pub const TAG_LEN: usize = 127;

/// Bytes of a tag filter's expression.
pub const TAG_FILTER_LEN: usize = 32 << 10;
/// Different tags in a tag filter.
pub const TAG_FILTER_TAGS: usize = 1024;

/// Bytes of an append set in segments of `segment_size` bytes; it also bounds every record but a filler.
pub const fn append_set_len(segment_size: u64) -> u64 {
    const MOST: u64 = 64 << 20;
    if segment_size / 4 < MOST { segment_size / 4 } else { MOST }
}
