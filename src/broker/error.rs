//! Why the broker refused, and under which name clients know the reason.
//!
//! Every refusal but [`BrokerError::FlushTimeout`], [`BrokerError::Unknown`] and [`BrokerError::Poisoned`] means that
//! nothing was stored and nothing will be. Expected outcomes (nothing to read yet) are not errors.

use crate::filter::FilterError;
use crate::format::batch::{BatchError, TagFilterError};
use crate::message::{Epoch, PhysicalOffset, QueueId, QueueOffset};
use crate::store::{AppendError, QueueRange, ReadError, SpaceError};

use super::names::{GroupNameFault, NameFault};
use super::state::sessions::SessionFault;
use super::topics::{RETENTION_BYTES, RETENTION_MS};

/// Why a request to the broker was refused. Nothing was stored, except perhaps where [`BrokerError::stored`] says
/// [`Stored::Unknown`].
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The name cannot be a topic's.
    #[error(transparent)]
    BadName(#[from] NameFault),
    /// There is no topic of this name.
    #[error("there is no topic {name}")]
    NoTopic {
        /// The name that was asked for.
        name: Box<str>,
    },
    /// The topic was deleted while the request was under way.
    #[error("the topic is deleted")]
    UnknownTopic,
    /// A topic of this name has another configuration.
    #[error("the topic exists with another configuration")]
    TopicExists,
    /// So many topics, topics made by sends, or queues in all, and no more.
    #[error(
        "no more than {limit} topics or queues can be made this way: delete topics that are not used"
    )]
    TopicLimit {
        /// How many there may be.
        limit: u64,
    },
    /// Message groups of a FIFO topic would lose their order.
    #[error("this breaks the order of the message groups of a FIFO topic, and was not forced")]
    NeedsForce,
    /// The topic's access does not let clients do that.
    #[error("the topic's access does not let clients {what}")]
    Forbidden {
        /// What they wanted to do.
        what: &'static str,
    },
    /// The batch breaks a rule of its format.
    #[error(transparent)]
    BadBatch(#[from] BatchError),
    /// The topic has fewer queues.
    #[error("queue {queue} does not exist, topic {topic} has {queues}")]
    BadQueue {
        /// The topic's name.
        topic: Box<str>,
        /// The one that was named.
        queue: QueueId,
        /// How many the topic has, counted from 0.
        queues: u32,
    },
    /// The topic does not take such messages.
    #[error("{fault}")]
    TypeConflict {
        /// What does not fit.
        fault: TypeFault,
    },
    /// The request contradicts itself or lacks something.
    #[error("{fault}")]
    BadRequest {
        /// What is wrong with it.
        fault: RequestFault,
    },
    /// The tag expression cannot be read.
    #[error(transparent)]
    BadFilter(#[from] TagFilterError),
    /// The filter expression cannot be read.
    #[error(transparent)]
    BadExpression(#[from] FilterError),
    /// A number or a length in the request is above its limit.
    #[error("{what} of {found} exceeds the limit of {limit}")]
    TooLarge {
        /// Which one.
        what: &'static str,
        /// What was asked for.
        found: u64,
        /// The most there may be.
        limit: u64,
    },
    /// The page token was not given out for this query.
    #[error("the page token does not belong to this query")]
    BadToken,
    /// The id names no message that can be read.
    #[error("there is no such message")]
    MessageNotFound,
    /// The queue offset cannot be read: outside what the queue holds.
    #[error("queue offset {offset} is outside of what can be read, {} up to {}", range.min, range.max)]
    OffsetOutOfRange {
        /// The one that was asked for.
        offset: QueueOffset,
        /// What the queue holds.
        range: QueueRange,
        /// The current epoch: an offset from an earlier one may lie in a tail that was cut.
        epoch: Epoch,
    },
    /// What the caller read up to its offset is not all there any more: an unclean stop took the newest messages of an
    /// async topic.
    #[error(
        "an unclean stop took what was read up to queue offset {offset}: from {at} on there are other messages"
    )]
    Truncated {
        /// Where the caller is.
        offset: QueueOffset,
        /// The first offset whose message is gone.
        at: QueueOffset,
        /// What the queue holds.
        range: QueueRange,
        /// The current epoch.
        epoch: Epoch,
    },
    /// Too much is in work already.
    #[error("too many {what} at once")]
    Overloaded {
        /// Of what.
        what: &'static str,
    },
    /// The time of the call was over before the disk had given what its queues hold.
    #[error("the queues could not be looked at in time")]
    Slow,
    /// The log has no room for the record.
    #[error("the log has no room")]
    NoSpace,
    /// The log had no room, and none could be made.
    #[error("no room can be made in the log")]
    Full(#[source] SpaceError),
    /// The record at the queue offset cannot be read any more.
    #[error("the record at queue offset {at} is damaged")]
    Damaged {
        /// Where reading stopped.
        at: QueueOffset,
        /// The next one that can be read.
        next: QueueOffset,
    },
    /// The record at the position cannot be read any more.
    #[error("the record at physical offset {at} is damaged")]
    DamagedRecord {
        /// Where it begins.
        at: PhysicalOffset,
    },
    /// The only message asked for lies in a batch that does not decompress to what it says, or not in this build.
    #[error(
        "the message of the record at physical offset {at} cannot be handed out alone: {fault}"
    )]
    NotDecompressed {
        /// Where the record begins.
        at: PhysicalOffset,
        /// Why its batch cannot be decompressed.
        fault: BatchError,
    },
    /// Stored, but not durable before the time was up.
    #[error("stored, but not durable in time")]
    FlushTimeout,
    /// The write failed in a way that leaves open whether the record is there.
    #[error("the record may or may not be stored")]
    Unknown(#[source] AppendError),
    /// A sync failed; the process is about to end.
    #[error("the store cannot be trusted after a failed sync")]
    Poisoned,
    /// The broker is being stopped.
    #[error("the broker is shutting down")]
    Draining,
    /// What is needed for the answer is still being rebuilt.
    #[error("a file that is needed is being rebuilt")]
    Rebuilding,
    /// The disk refused to write.
    #[error("the record could not be written")]
    Write(#[source] AppendError),
    /// The disk refused to read.
    #[error("the record could not be read")]
    Read(#[source] ReadError),
    /// The producer session, or the batch's place in it.
    #[error(transparent)]
    Session(#[from] SessionFault),
    /// The name cannot be a consumer group's.
    #[error(transparent)]
    BadGroupName(#[from] GroupNameFault),
    /// There is no such consumer group, or no more.
    #[error("there is no consumer group {name}: `mainstem group create {name}` makes it")]
    UnknownGroup {
        /// The name that was asked for.
        name: Box<str>,
    },
    /// A consumer group of this name has other settings.
    #[error("the consumer group exists with other settings")]
    GroupExists,
    /// So many consumer groups, and no more.
    #[error(
        "there are {limit} consumer groups already, and no more can be made: delete groups that are not used"
    )]
    GroupLimit {
        /// How many there may be.
        limit: u64,
    },
    /// There is no such client, or no more.
    #[error("there is no such client, or it has not been heard of for too long")]
    UnknownClient,
    /// The consumer group gets no messages.
    #[error(
        "the consumer group {name} is disabled: `mainstem group update {name} --enable` ends that"
    )]
    GroupDisabled {
        /// Its name.
        name: Box<str>,
    },
    /// The group has committed no offset of the queue.
    #[error("the consumer group has committed no offset of queue {queue}")]
    OffsetNotFound {
        /// The queue.
        queue: QueueId,
    },
    /// An offset to commit lies outside of what its queue holds.
    #[error(
        "offset {offset} of queue {queue} of topic {topic} is outside of what is there, {} up to {}",
        range.min, range.max
    )]
    CommitOutOfRange {
        /// The topic's name.
        topic: Box<str>,
        /// The queue.
        queue: QueueId,
        /// The offset.
        offset: QueueOffset,
        /// What the queue holds.
        range: QueueRange,
        /// The current epoch: an offset from an earlier one may lie in a tail that was cut.
        epoch: Epoch,
    },
    /// The committed offset is not the one that was expected.
    #[error(
        "the committed offset of queue {queue} of topic {topic} is {}, which was not expected",
        or_none(*current)
    )]
    OffsetConflict {
        /// The topic's name.
        topic: Box<str>,
        /// The queue.
        queue: QueueId,
        /// What is committed.
        current: Option<QueueOffset>,
    },
    /// Consumers have messages of the queue, or it waits to deliver some again: its position moves as they are
    /// finished.
    #[error(
        "consumers of the group have messages of queue {queue} of topic {topic}: a reset ends that, a commit does not"
    )]
    OpenMessages {
        /// The topic's name.
        topic: Box<str>,
        /// The queue.
        queue: QueueId,
    },
    /// So many messages that are not finished, and no more; or the group has more of them than it leaves to others.
    #[error(
        "too many messages are delivered and not finished: {limit} can be in all, and no group gets the last ones alone"
    )]
    OpenLimit {
        /// How many there may be in all.
        limit: u64,
    },
    /// Other members of the group use another filter for the topic.
    #[error(
        "other members of the group get messages by the filter {expected}, and the group wants them all to use one"
    )]
    FilterMismatch {
        /// That filter.
        expected: Box<str>,
    },
    /// The receipt is none of this broker's, or not of this group and topic, or its lease is worth nothing any more.
    #[error("the receipt handle is not valid")]
    BadReceipt,
    /// So many committed offsets, and no more.
    #[error(
        "there are {limit} committed offsets already, and no more can be kept: delete groups that are not used"
    )]
    OffsetLimit {
        /// How many there may be.
        limit: u64,
    },
}

fn or_none(offset: Option<QueueOffset>) -> String {
    offset.map_or_else(|| "none".to_owned(), |offset| offset.to_string())
}

/// How a message and its topic's type disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TypeFault {
    /// A NORMAL topic got a message group.
    #[error("a NORMAL topic takes no message group")]
    GroupOnNormal,
    /// A FIFO topic got none.
    #[error("a FIFO topic needs a message group")]
    NoGroupOnFifo,
    /// A DELAY topic got a message without a time.
    #[error("a DELAY topic takes scheduled messages only")]
    PlainOnDelay,
    /// A TRANSACTION topic got a plain message.
    #[error("a TRANSACTION topic takes transactional messages only")]
    PlainOnTransaction,
}

/// How a request contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestFault {
    /// The epoch has not begun: it is of another store, or this one was replaced by an older copy.
    #[error(
        "epoch {epoch} has not begun here, the newest is {current}: this is another store or an older copy of it; \
         pull without an epoch"
    )]
    EpochAhead {
        /// The one in the request.
        epoch: Epoch,
        /// The broker's.
        current: Epoch,
    },
    /// The message group chooses the queue.
    #[error("a message group chooses the queue, so no queue may be named")]
    QueueAndGroup,
    /// The stream ended within a message.
    #[error("the stream breaks off within a request")]
    BrokenOff,
    /// gRPC's own compression, which streams do not take: batches have a codec of their own.
    #[error("a request is compressed by gRPC; the codec of its batch does that here")]
    Compressed,
    /// What a stream brings cannot be read.
    #[error("the request cannot be decoded")]
    Undecodable,
    /// A stream's number of a topic that it has opened before, or one that is too large.
    #[error("number {number} of a topic is in use on this stream, or not below {limit}")]
    TopicNumber {
        /// Which one.
        number: u32,
        /// Where numbers end.
        limit: u32,
    },
    /// A stream's number of a topic that it has not opened.
    #[error("no topic was opened under number {number} on this stream")]
    NotOpened {
        /// Which one.
        number: u32,
    },
    /// A stream of pulls of nothing.
    #[error("a stream of pulls names at least one queue")]
    NoQueueNamed,
    /// A session in a request that is not the stream's first.
    #[error("a producer session is named in the first request of a stream alone")]
    LateSession,
    /// A stream of messages that does not say of which.
    #[error("the first request of a stream of messages opens it")]
    NotOpen,
    /// A stream of messages that says twice of which.
    #[error("a stream of messages is opened by its first request alone")]
    OpenTwice,
    /// The request came too slowly.
    #[error("the request did not arrive whole within {limit:?}")]
    Unfinished {
        /// How long it may take.
        limit: std::time::Duration,
    },
    /// No selector in a query.
    #[error("a query needs exactly one selector")]
    NoSelector,
    /// A key or id to look for is empty.
    #[error("an empty key or id finds nothing")]
    EmptyNeedle,
    /// The text is no message id.
    #[error("a message id is <epoch>-<physical offset>-<index> in lower-case hex")]
    MessageId,
    /// The range of times ends before it begins.
    #[error("begin_ms is after end_ms")]
    TimeRange,
    /// Only queries by key and by producer's id have a range of times and pages.
    #[error("only queries by key and by producer id take begin_ms, end_ms and page_token")]
    NotPaged,
    /// A topic has at least one queue.
    #[error("a topic has at least 1 queue")]
    NoQueues,
    /// Queues cannot be taken away.
    #[error("the topic has {queues} queues and cannot have fewer; make another topic with fewer")]
    FewerQueues {
        /// How many it has.
        queues: u32,
    },
    /// Messages cannot be kept so short or so long.
    #[error(
        "a topic keeps messages for {} ms to {} ms (1 second to 100 years), or for ever, not for {ms} ms",
        RETENTION_MS.start(), RETENTION_MS.end()
    )]
    RetentionTime {
        /// What was asked for.
        ms: u64,
    },
    /// A topic cannot be kept so small or so large.
    #[error(
        "a topic keeps {} to {} bytes (1 MiB to 1 EiB), or as many as there are, not {bytes}",
        RETENTION_BYTES.start(), RETENTION_BYTES.end()
    )]
    RetentionBytes {
        /// What was asked for.
        bytes: u64,
    },
    /// An offset without the queue that it is of.
    #[error("an offset is of one queue, so the queue must be named too")]
    OffsetWithoutQueue,
    /// An enumeration's number is not known here.
    #[error("{field} has a number that is not known")]
    Enumeration {
        /// Which field.
        field: &'static str,
    },
    /// The holder of a producer session is its id and its epoch.
    #[error("name both the id and the epoch of a producer session, or none of them")]
    HalfAHolder,
    /// A commit of nothing.
    #[error("a commit has at least one offset")]
    NoOffsets,
    /// A commit says two things about one queue.
    #[error("queue {queue} is named twice for one topic")]
    QueueTwice {
        /// Which queue.
        queue: QueueId,
    },
    /// The name of a caller is told to people.
    #[error("the name of a caller has no control characters; {found:?} is one")]
    CallerCharacter {
        /// The first such character.
        found: char,
    },
    /// No position where one is needed.
    #[error("{field} needs a position: an edge, a time or an offset")]
    NoPosition {
        /// Which field.
        field: &'static str,
    },
    /// An offset where only an edge or a time makes sense.
    #[error("{field} takes earliest, latest or a time; an offset belongs to one queue")]
    OffsetPosition {
        /// Which field.
        field: &'static str,
    },
    /// An entry of an extension that says nothing.
    #[error("an entry says what is to become of its lease")]
    NoHold,
    /// A receive of nothing.
    #[error("a receive asks for at least 1 message")]
    NoMessages,
    /// Retry delays that are none.
    #[error("a consumer group has at least one retry delay")]
    NoRetryDelays,
}

/// What a refusal leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Nothing, now and later.
    No,
    /// Perhaps what was asked for.
    Unknown,
}

/// Declares [`Reason`] and its list in one place.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// The name under which clients and metrics know a refusal.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// Every reason, in the order of declaration.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As on the wire.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

reasons! {
    /// The name cannot be a topic's.
    BadName = "BAD_NAME",
    /// The batch breaks a rule of its format.
    BadBatch = "BAD_BATCH",
    /// The bodies are not those that were sent.
    Checksum = "CHECKSUM",
    /// The queue does not exist.
    BadQueue = "BAD_QUEUE",
    /// The request contradicts itself.
    BadRequest = "BAD_REQUEST",
    /// The page token belongs to another query.
    BadToken = "BAD_TOKEN",
    /// The compression is not taken.
    Codec = "CODEC",
    /// The topic does not take such messages.
    TypeConflict = "TYPE_CONFLICT",
    /// There is no such topic.
    UnknownTopic = "UNKNOWN_TOPIC",
    /// There is no such message.
    MessageNotFound = "MESSAGE_NOT_FOUND",
    /// The topic has another configuration.
    TopicExists = "TOPIC_EXISTS",
    /// Above a limit.
    TooLarge = "TOO_LARGE",
    /// Outside what the queue holds.
    OffsetOutOfRange = "OFFSET_OUT_OF_RANGE",
    /// What was read is lost from an offset on.
    Truncated = "TRUNCATED",
    /// Too much is in work.
    Overloaded = "OVERLOADED",
    /// Too many topics.
    TopicLimit = "TOPIC_LIMIT",
    /// The log has no room.
    NoSpace = "NO_SPACE",
    /// The record cannot be read any more.
    Damaged = "DAMAGED",
    /// The message lies in a batch that cannot be decompressed.
    NotDecompressed = "NOT_DECOMPRESSED",
    /// Stored, not durable in time.
    FlushTimeout = "FLUSH_TIMEOUT",
    /// A sync failed.
    Poisoned = "POISONED",
    /// The broker stops.
    Draining = "DRAINING",
    /// A derived file is being rebuilt.
    Rebuilding = "REBUILDING",
    /// The disk refused to write.
    Storage = "STORAGE",
    /// The disk refused to read.
    ReadRefused = "READ_REFUSED",
    /// There is no such producer session.
    UnknownSession = "UNKNOWN_SESSION",
    /// The producer session has another owner.
    Fenced = "FENCED",
    /// The batch before this one is not stored.
    SequenceGap = "SEQUENCE_GAP",
    /// Stored once, place forgotten.
    SequenceTooOld = "SEQUENCE_TOO_OLD",
    /// Another batch has the sequence.
    SequenceReused = "SEQUENCE_REUSED",
    /// Too many producer sessions.
    SessionLimit = "SESSION_LIMIT",
    /// The topic's access does not allow it.
    Forbidden = "FORBIDDEN",
    /// It breaks an order that is promised.
    NeedsForce = "NEEDS_FORCE",
    /// There is no such consumer group.
    UnknownGroup = "UNKNOWN_GROUP",
    /// There is no such client.
    UnknownClient = "UNKNOWN_CLIENT",
    /// The consumer group has other settings.
    GroupExists = "GROUP_EXISTS",
    /// Too many consumer groups.
    GroupLimit = "GROUP_LIMIT",
    /// The consumer group gets no messages.
    GroupDisabled = "GROUP_DISABLED",
    /// The group has committed no offset of the queue.
    OffsetNotFound = "OFFSET_NOT_FOUND",
    /// The committed offset is another one.
    Conflict = "CONFLICT",
    /// Too many committed offsets.
    OffsetLimit = "OFFSET_LIMIT",
    /// Messages of the queue are leased.
    OpenMessages = "OPEN_MESSAGES",
    /// Too many messages are delivered and not finished.
    OpenLimit = "OPEN_LIMIT",
    /// Other members of the group use another filter.
    FilterMismatch = "FILTER_MISMATCH",
    /// The receipt handle is worth nothing.
    BadReceipt = "BAD_RECEIPT",
}

impl BrokerError {
    /// Its name for clients and metrics.
    pub fn reason(&self) -> Reason {
        match self {
            Self::BadName(_) => Reason::BadName,
            Self::NoTopic { .. } | Self::UnknownTopic => Reason::UnknownTopic,
            Self::TopicExists => Reason::TopicExists,
            Self::TopicLimit { .. } => Reason::TopicLimit,
            Self::BadBatch(fault) => batch_reason(fault),
            Self::BadQueue { .. } => Reason::BadQueue,
            Self::TypeConflict { .. } => Reason::TypeConflict,
            Self::BadRequest { .. } | Self::BadFilter(TagFilterError::NoTag) => Reason::BadRequest,
            Self::BadFilter(
                TagFilterError::TooLong { .. } | TagFilterError::TooManyTags { .. },
            ) => Reason::TooLarge,
            Self::BadExpression(FilterError::Tags(
                TagFilterError::TooLong { .. } | TagFilterError::TooManyTags { .. },
            ))
            | Self::TooLarge { .. } => Reason::TooLarge,
            Self::BadExpression(_) => Reason::BadRequest,
            Self::BadToken => Reason::BadToken,
            Self::MessageNotFound => Reason::MessageNotFound,
            Self::OffsetOutOfRange { .. } => Reason::OffsetOutOfRange,
            Self::Truncated { .. } => Reason::Truncated,
            Self::Overloaded { .. } | Self::Slow => Reason::Overloaded,
            Self::NoSpace | Self::Full(_) => Reason::NoSpace,
            Self::Damaged { .. } | Self::DamagedRecord { .. } => Reason::Damaged,
            Self::NotDecompressed { .. } => Reason::NotDecompressed,
            Self::FlushTimeout => Reason::FlushTimeout,
            Self::Unknown(_) | Self::Poisoned => Reason::Poisoned,
            Self::Draining => Reason::Draining,
            Self::Rebuilding => Reason::Rebuilding,
            Self::Write(_) => Reason::Storage,
            Self::Read(_) => Reason::ReadRefused,
            Self::Session(fault) => session_reason(fault),
            Self::Forbidden { .. } => Reason::Forbidden,
            Self::NeedsForce => Reason::NeedsForce,
            Self::BadGroupName(_) => Reason::BadName,
            Self::UnknownGroup { .. } => Reason::UnknownGroup,
            Self::UnknownClient => Reason::UnknownClient,
            Self::GroupExists => Reason::GroupExists,
            Self::GroupLimit { .. } => Reason::GroupLimit,
            Self::GroupDisabled { .. } => Reason::GroupDisabled,
            Self::OffsetNotFound { .. } => Reason::OffsetNotFound,
            Self::CommitOutOfRange { .. } => Reason::OffsetOutOfRange,
            Self::OffsetConflict { .. } => Reason::Conflict,
            Self::OffsetLimit { .. } => Reason::OffsetLimit,
            Self::OpenMessages { .. } => Reason::OpenMessages,
            Self::OpenLimit { .. } => Reason::OpenLimit,
            Self::FilterMismatch { .. } => Reason::FilterMismatch,
            Self::BadReceipt => Reason::BadReceipt,
        }
    }

    /// What the refusal leaves behind.
    pub fn stored(&self) -> Stored {
        match self {
            Self::FlushTimeout | Self::Unknown(_) | Self::Poisoned => Stored::Unknown,
            _ => Stored::No,
        }
    }

    /// The limit that was exceeded, if one was.
    pub fn limit(&self) -> Option<u64> {
        match self {
            Self::TooLarge { limit, .. }
            | Self::TopicLimit { limit }
            | Self::GroupLimit { limit }
            | Self::OffsetLimit { limit }
            | Self::OpenLimit { limit } => Some(*limit),
            Self::BadGroupName(GroupNameFault::TooLong { limit, .. }) => u64::try_from(*limit).ok(),
            Self::BadBatch(fault) => fault.limit(),
            Self::BadName(NameFault::TooLong { limit, .. })
            | Self::BadFilter(
                TagFilterError::TooLong { limit, .. } | TagFilterError::TooManyTags { limit, .. },
            )
            | Self::Session(
                SessionFault::NameTooLong { limit, .. } | SessionFault::Limit { limit },
            ) => u64::try_from(*limit).ok(),
            _ => None,
        }
    }
}

fn session_reason(fault: &SessionFault) -> Reason {
    match fault {
        SessionFault::NameEmpty
        | SessionFault::NameTooLong { .. }
        | SessionFault::NameCharacter { .. } => Reason::BadName,
        SessionFault::Limit { .. } => Reason::SessionLimit,
        SessionFault::Unknown => Reason::UnknownSession,
        SessionFault::Fenced { .. } => Reason::Fenced,
        SessionFault::Ahead { .. } | SessionFault::NoSequence => Reason::BadRequest,
        SessionFault::Gap { .. } => Reason::SequenceGap,
        SessionFault::TooOld { .. } => Reason::SequenceTooOld,
        SessionFault::Reused { .. } => Reason::SequenceReused,
    }
}

fn batch_reason(fault: &BatchError) -> Reason {
    match fault {
        BatchError::Codec { .. } => Reason::Codec,
        BatchError::Checksum { .. } => Reason::Checksum,
        other if other.limit().is_some() => Reason::TooLarge,
        _ => Reason::BadBatch,
    }
}

impl From<AppendError> for BrokerError {
    /// What an append that will not be tried again means for the caller.
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::TooLarge { len, max } => {
                Self::TooLarge { what: "append set", found: len, limit: max }
            }
            AppendError::NoSuchQueue { .. } => Self::UnknownTopic,
            AppendError::NotReady => Self::NoSpace,
            AppendError::Deleted => Self::UnknownTopic,
            AppendError::Write { .. } => Self::Write(error),
            AppendError::Unknown { .. } => Self::Unknown(error),
            AppendError::Poisoned => Self::Poisoned,
            AppendError::Closed => Self::Draining,
        }
    }
}

impl From<SpaceError> for BrokerError {
    fn from(error: SpaceError) -> Self {
        match error {
            SpaceError::Full | SpaceError::Refused => Self::Full(error),
            SpaceError::Closed => Self::Draining,
            SpaceError::Poisoned => Self::Poisoned,
        }
    }
}

impl From<ReadError> for BrokerError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Damaged { at, .. } => Self::DamagedRecord { at },
            ReadError::File(_) => Self::Read(error),
            ReadError::Rebuilding => Self::Rebuilding,
            ReadError::Overloaded => Self::Overloaded { what: "reads off the disk" },
            ReadError::Closed => Self::Draining,
        }
    }
}
