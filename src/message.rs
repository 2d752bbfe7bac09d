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
    /// A consumer group's incarnation. Never given twice, also not after a delete.
    GroupId: u64
}
number! {
    /// A producer's name, for as long as the broker remembers it. Never given twice.
    SessionId: u64
}
number! {
    /// Raised and made durable at every start, before the first append; non-decreasing along the log.
    Epoch: u64
}
number! {
    /// Milliseconds since 1970-01-01 UTC.
    Timestamp: u64
}

/// One delivery of a message to a group, or its renewal. No two of a message have the same, also if a power cut took
/// the newest of them; a later one is higher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId {
    /// In which it was given.
    pub epoch: Epoch,
    /// The end of the record that gave it.
    pub number: u64,
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

/// What clients may do with a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    /// Pull, receive, query.
    pub read: bool,
    /// Send.
    pub write: bool,
}

impl Default for Access {
    /// Everything.
    fn default() -> Self {
        Self { read: true, write: true }
    }
}

/// How long messages are kept. What is beyond either limit is gone; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Retention {
    /// Milliseconds from the store time on.
    pub time_ms: Option<u64>,
    /// At least the newest so many bytes of records stay; whole segments go.
    pub bytes: Option<u64>,
}

/// A limit of a retention as somebody asks for it: where nobody does, another word decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Keep {
    /// So many milliseconds, or so many bytes.
    UpTo(u64),
    /// Without a limit.
    All,
}

impl Keep {
    /// As a part of [`Retention`].
    pub const fn limit(self) -> Option<u64> {
        match self {
            Self::UpTo(limit) => Some(limit),
            Self::All => None,
        }
    }
}

/// Whether a change is made that breaks the order of messages which are there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Force {
    /// It is refused.
    #[default]
    No,
    /// It is made.
    Yes,
}

/// What a topic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicSettings {
    /// 1 to 65 536. Never fewer than before.
    pub queues: u32,
    /// What acknowledgements wait for.
    pub flush: FlushMode,
    /// What messages it takes.
    pub topic_type: TopicType,
    /// What clients may do with it.
    pub access: Access,
    /// How long its messages are kept.
    pub retention: Retention,
}

impl TopicSettings {
    /// The most queues that a topic can have.
    pub const MAX_QUEUES: u32 = 65_536;

    /// Everybody may read and write, and messages are kept for ever.
    pub const fn open(queues: u32, flush: FlushMode, topic_type: TopicType) -> Self {
        Self {
            queues,
            flush,
            topic_type,
            access: Access { read: true, write: true },
            retention: Retention { time_ms: None, bytes: None },
        }
    }
}

/// Where a consumer group begins on a topic that is new to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum InitialPosition {
    /// At the first message there is.
    #[default]
    Earliest,
    /// Behind the last message of that moment.
    Latest,
    /// At the first message that was stored then or later.
    Time(Timestamp),
}

/// What becomes of a member that comes with another filter than its group uses for a topic: what one filter leaves out
/// is finished for the whole group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OtherFilters {
    /// It is served, counted and told of in the log.
    #[default]
    Warn,
    /// It is refused as long as the filter of before is in use.
    Refuse,
    /// It is the next version. For ten minutes what one of the two wants is kept for its members; then the new one is
    /// the group's, and whoever still comes with the old one is refused.
    ///
    /// The old one is served again once nobody asked with the new one for three minutes. A third one is refused while
    /// two are in use. Of one queue 10 000 messages are kept at most: then the new one gets what the old one makes
    /// room for, until that has not asked for a minute.
    Roll,
}

/// What a consumer group is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSettings {
    /// Whether its consumers get messages.
    pub enabled: bool,
    /// Whether messages of one message group are delivered one after the other.
    pub ordered: bool,
    /// What becomes of a member that comes with another filter.
    pub other_filters: OtherFilters,
    /// Deliveries of one message, the first included. `None`: without a limit.
    pub max_attempts: Option<u32>,
    /// The pause before the second delivery, the third and so on, in milliseconds; the last one goes on.
    pub retry_delays_ms: Vec<u64>,
    /// By how much of itself a pause may be longer, in percent: those of messages that failed together end apart.
    pub retry_jitter: u32,
    /// Where it begins on a topic that is new to it.
    pub initial_position: InitialPosition,
}

impl Default for GroupSettings {
    /// Apache RocketMQ's: 17 deliveries, pauses from a second to two hours.
    fn default() -> Self {
        const SECOND: u64 = 1_000;
        const MINUTE: u64 = 60 * SECOND;
        let seconds = [1, 5, 10, 30].map(|n| n * SECOND);
        let minutes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 30, 60, 120].map(|n| n * MINUTE);
        Self {
            enabled: true,
            ordered: false,
            other_filters: OtherFilters::Warn,
            max_attempts: Some(17),
            retry_delays_ms: [&seconds[..], &minutes].concat(),
            retry_jitter: 0,
            initial_position: InitialPosition::Earliest,
        }
    }
}

/// Which batch of which producer a record is: what makes a retry store it once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionMark {
    /// The producer's session.
    pub session: SessionId,
    /// Which of its openings.
    pub epoch: u64,
    /// Counted from 1 over all of the session's batches.
    pub sequence: u64,
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
