//! The vocabulary of the crate: places, identities and modes. No behaviour beyond arithmetic, parsing and printing.
//!
//! Three places, three words, never mixed: a **physical offset** is a byte in the CommitLog, a **queue offset** an
//! ordinal in a ConsumeQueue, a **file position** a byte in one file (a plain `u64`). The first two are newtypes, so
//! adding one to the other does not compile.

use std::fmt;
use std::str::FromStr;

/// Declares a `u64` or `u32` newtype with ordering, printing and `new`/`get`.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident: $raw:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($raw);

        impl $name {
            /// The first of its kind.
            pub const ZERO: Self = Self(0);

            /// Wraps a raw number; every value is legal.
            pub const fn new(raw: $raw) -> Self {
                Self(raw)
            }

            /// The raw number, for formats and the wire.
            pub const fn get(self) -> $raw {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A byte in the CommitLog, counted from the start of the store. Unique only together with its [`Epoch`].
    PhysicalOffset: u64
}
number! {
    /// The ordinal of a message in its queue: 0, 1, 2 … without holes.
    QueueOffset: u64
}
number! {
    /// A topic's incarnation. Never given twice, also not after a delete. 0 is the broker itself.
    TopicId: u64
}
number! {
    /// A queue of a topic, counted from 0.
    QueueId: u32
}
number! {
    /// Raised and made durable at every start, before the first append; non-decreasing along the log.
    Epoch: u64
}
number! {
    /// Milliseconds since 1970-01-01 UTC.
    Timestamp: u64
}

impl PhysicalOffset {
    /// The offset `len` bytes further on.
    #[must_use]
    pub const fn plus(self, len: u64) -> Self {
        Self(self.0 + len)
    }

    /// Bytes from `earlier` to here.
    ///
    /// # Panics
    /// If `earlier` is later: a broken invariant of the caller.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0 - earlier.0
    }
}

impl QueueOffset {
    /// The offset `count` messages further on.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}

/// One queue of one topic incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueKey {
    /// The topic's incarnation.
    pub topic: TopicId,
    /// The queue within it.
    pub queue: QueueId,
}

/// What an acknowledgement waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FlushMode {
    /// OK means: on stable media. Survives power loss.
    #[default]
    Sync,
    /// OK means: in the page cache. Survives the death of the process.
    Async,
}

/// What kinds of messages a topic takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TopicType {
    /// Unordered, delivered at once.
    Normal,
    /// Ordered by message group.
    Fifo,
    /// Delivered at a time.
    Delay,
    /// Two-phase.
    Transaction,
    /// All of the above, by content.
    #[default]
    Mixed,
}

/// Names one stored message for ever: `<epoch>-<physical offset>-<index>` in lower-case hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId {
    /// The epoch in which its record was written.
    pub epoch: Epoch,
    /// Where its record starts.
    pub offset: PhysicalOffset,
    /// Which message of the record's batch, from 0.
    pub index: u16,
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}-{:x}", self.epoch.get(), self.offset.get(), self.index)
    }
}

/// The text is not `<epoch>-<physical offset>-<index>` in lower-case hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message id is <epoch>-<physical offset>-<index> in lower-case hex")]
pub struct BadMessageId;

impl FromStr for MessageId {
    type Err = BadMessageId;

    fn from_str(text: &str) -> Result<Self, BadMessageId> {
        let hex = |part: Option<&str>| {
            let part = part.ok_or(BadMessageId)?;
            let plain = !part.is_empty()
                && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
                && (part.len() == 1 || !part.starts_with('0'));
            if !plain {
                return Err(BadMessageId);
            }
            u64::from_str_radix(part, 16).map_err(|_| BadMessageId)
        };
        let mut parts = text.split('-');
        let id = Self {
            epoch: Epoch(hex(parts.next())?),
            offset: PhysicalOffset(hex(parts.next())?),
            index: u16::try_from(hex(parts.next())?).map_err(|_| BadMessageId)?,
        };
        if parts.next().is_some() {
            return Err(BadMessageId);
        }
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_id_prints_and_parses_back() {
        let id = MessageId { epoch: Epoch(3), offset: PhysicalOffset(0x1f00), index: 10 };
        assert_eq!(id.to_string(), "3-1f00-a");
        assert_eq!("3-1f00-a".parse(), Ok(id));
    }

    #[test]
    fn message_id_has_one_spelling() {
        for text in [
            "",
            "3",
            "3-1f00",
            "3-1F00-a",
            "03-1f00-a",
            "3-1f00-a-0",
            "3-1f00-10000",
            "3--a",
            "+3-1-1",
        ] {
            assert_eq!(text.parse::<MessageId>(), Err(BadMessageId), "{text}");
        }
    }
}
