//! Why a batch is refused.

use super::codec::Codec;
use super::wire::Malformed;

/// Text with rules of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TextField {
    /// A key of a message.
    Key,
    /// The tag of a message.
    Tag,
    /// The key of a property.
    PropertyKey,
    /// The message group.
    MessageGroup,
}

impl TextField {
    const fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Tag => "tag",
            Self::PropertyKey => "property key",
            Self::MessageGroup => "message group",
        }
    }
}

/// Which rule a text breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TextFault {
    /// It has no characters.
    Empty,
    /// It has nothing but white space.
    Blank,
    /// It has a control character.
    ControlCharacter,
    /// It has a vertical bar, which separates tags in a filter.
    Bar,
}

impl TextFault {
    const fn name(self) -> &'static str {
        match self {
            Self::Empty => "is empty",
            Self::Blank => "is blank",
            Self::ControlCharacter => "has a control character",
            Self::Bar => "has a vertical bar",
        }
    }
}

/// The first rule that a batch breaks. It is refused as a whole, and nothing of it was stored.
///
/// `index` is the place of the offending message in the batch, from 0. What is counted is counted up to the refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Too many bytes as encoded.
    #[error("batch of {found} bytes exceeds the limit of {limit}")]
    BatchTooLarge {
        /// Bytes at most.
        limit: u64,
        /// Bytes.
        found: u64,
    },
    /// No message at all.
    #[error("batch has no messages")]
    Empty,
    /// Too many messages.
    #[error("batch has more messages than the limit of {limit}")]
    TooManyMessages {
        /// Messages at most.
        limit: u64,
        /// Messages, counted up to the first too many.
        found: u64,
    },
    /// The bodies sum up to too much.
    #[error("uncompressed bodies of {found} bytes exceed the limit of {limit}")]
    UncompressedTooLarge {
        /// The message that was too much.
        index: u16,
        /// Bytes at most.
        limit: u64,
        /// Bytes up to this message.
        found: u64,
    },
    /// One body is too large.
    #[error("message {index}: body of {found} bytes exceeds the limit of {limit}")]
    BodyTooLarge {
        /// Which message.
        index: u16,
        /// Bytes at most.
        limit: u64,
        /// Bytes.
        found: u64,
    },
    /// Too many keys.
    #[error("message {index}: more keys than the limit of {limit}")]
    TooManyKeys {
        /// Which message.
        index: u16,
        /// Keys at most.
        limit: u64,
        /// Keys, counted up to the first too many.
        found: u64,
    },
    /// A key is too long.
    #[error("message {index}: key of {found} bytes exceeds the limit of {limit}")]
    KeyTooLong {
        /// Which message.
        index: u16,
        /// Bytes at most.
        limit: u64,
        /// Bytes.
        found: u64,
    },
    /// Too many properties.
    #[error("message {index}: more properties than the limit of {limit}")]
    TooManyProperties {
        /// Which message.
        index: u16,
        /// Properties at most.
        limit: u64,
        /// Properties, counted up to the first too many.
        found: u64,
    },
    /// Properties, tag and keys are too large together.
    #[error(
        "message {index}: properties, tag and keys of {found} bytes exceed the limit of {limit}"
    )]
    PropertiesTooLarge {
        /// Which message.
        index: u16,
        /// Bytes at most.
        limit: u64,
        /// Bytes.
        found: u64,
    },
    /// The tag is too long.
    #[error("message {index}: tag of {found} bytes exceeds the limit of {limit}")]
    TagTooLong {
        /// Which message.
        index: u16,
        /// Bytes at most.
        limit: u64,
        /// Bytes.
        found: u64,
    },
    /// The producer's id is too long.
    #[error("message {index}: id of {found} bytes exceeds the limit of {limit}")]
    IdTooLong {
        /// Which message.
        index: u16,
        /// Bytes at most.
        limit: u64,
        /// Bytes.
        found: u64,
    },
    /// The message group is too long.
    #[error("message {index}: message group of {found} bytes exceeds the limit of {limit}")]
    MessageGroupTooLong {
        /// Which message.
        index: u16,
        /// Bytes at most.
        limit: u64,
        /// Bytes.
        found: u64,
    },
    /// Text that breaks a rule of its field.
    #[error("message {index}: {} {}", field.name(), fault.name())]
    Text {
        /// Which message.
        index: u16,
        /// Which of its fields.
        field: TextField,
        /// Which rule.
        fault: TextFault,
    },
    /// Not the same message group as the first message's.
    #[error("message {index}: message group is not that of message 0")]
    MixedMessageGroups {
        /// Which message.
        index: u16,
    },
    /// The lengths of the bodies do not sum up to what the batch says.
    #[error("bodies sum up to {found} bytes, the batch says {expected}")]
    BodiesSum {
        /// Bytes that the batch says.
        expected: u64,
        /// The sum of the messages' body lengths.
        found: u64,
    },
    /// There are not as many bytes of bodies as said.
    #[error("bodies have {found} bytes, {expected} are stated")]
    BodiesLength {
        /// Bytes that are stated.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// The compressed bodies are not what comes out of them.
    #[error(
        "bodies of {found} bytes as {codec} do not decompress to the {expected} that are stated"
    )]
    Decompression {
        /// How they are compressed.
        codec: Codec,
        /// Bytes that are stated.
        expected: u64,
        /// Bytes that are there, compressed.
        found: u64,
    },
    /// Compressed in a way that this build can pass on, but neither make nor undo.
    #[error("this build has no {codec}: it was made without the feature `{codec}`")]
    NotBuilt {
        /// How it is compressed.
        codec: Codec,
    },
    /// Compressed in a way that is not supported.
    #[error("codec {codec} is not supported")]
    Codec {
        /// The codec that the batch states.
        codec: u32,
    },
    /// The bodies are not what the producer sent.
    #[error("checksum of the bodies is {found:#010x}, expected {expected:#010x}")]
    Checksum {
        /// What the batch says.
        expected: u32,
        /// What the bodies sum up to.
        found: u32,
    },
    /// The batch is not well-formed protobuf, or not in the form that is asked for.
    #[error("batch is malformed: {problem}")]
    Malformed {
        /// What is wrong.
        problem: Malformed,
    },
    /// The meta of a message is not well-formed protobuf, or not in the form that is asked for.
    #[error("message {index} is malformed: {problem}")]
    MalformedMeta {
        /// Which message.
        index: u16,
        /// What is wrong.
        problem: Malformed,
    },
}

impl BatchError {
    /// The limit that was exceeded, if it was one.
    pub fn limit(&self) -> Option<u64> {
        match *self {
            Self::BatchTooLarge { limit, .. }
            | Self::TooManyMessages { limit, .. }
            | Self::UncompressedTooLarge { limit, .. }
            | Self::BodyTooLarge { limit, .. }
            | Self::TooManyKeys { limit, .. }
            | Self::KeyTooLong { limit, .. }
            | Self::TooManyProperties { limit, .. }
            | Self::PropertiesTooLarge { limit, .. }
            | Self::TagTooLong { limit, .. }
            | Self::IdTooLong { limit, .. }
            | Self::MessageGroupTooLong { limit, .. } => Some(limit),
            Self::Empty
            | Self::Text { .. }
            | Self::MixedMessageGroups { .. }
            | Self::BodiesSum { .. }
            | Self::BodiesLength { .. }
            | Self::Decompression { .. }
            | Self::NotBuilt { .. }
            | Self::Codec { .. }
            | Self::Checksum { .. }
            | Self::Malformed { .. }
            | Self::MalformedMeta { .. } => None,
        }
    }
}
