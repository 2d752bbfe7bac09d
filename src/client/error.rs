//! What can go wrong between a client and a broker, and whether another try can help.
//!
//! | variant | state left behind | another try |
//! | --- | --- | --- |
//! | `BadAddress`, `NoCertificate` | nothing was sent | no |
//! | `Unreachable` | nothing was sent | when a broker is there |
//! | `Refused` | as [`Refusal::stored`] says | as [`Refusal::retry`] says |
//! | `NoAnswer` | unknown: a send may be stored | of reads; a send may then be there twice |
//! | `BadAnswer` | what was asked for may have happened | no |
//! | `Unsettled` | a batch of a producer session may be stored | by [`Session::settle`](super::Session::settle), safely |
//!
//! The broker's reasons come as a `mainstem.v1.Error` inside a `google.rpc.Status` in the details of the gRPC
//! status. A status without one was made by the transport, or by something that is not this broker.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use prost::Message as _;
use tonic::{Code, Status};

use crate::format::batch::{BatchError, TagFilterError};
use crate::message::{Epoch, QueueId, QueueOffset};
use crate::proto;

/// The type of the details that this client understands.
const DETAIL_TYPE: &str = "mainstem.v1.Error";

/// Why a call brought nothing. The table of the file says what state each variant leaves behind.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The text does not name a host and a port, or a scheme that fits.
    #[error("`{server}` is not an address of the form HOST:PORT or https://HOST:PORT")]
    BadAddress {
        /// What was given.
        server: String,
    },
    /// In what is to be trusted there is no certificate in PEM.
    #[error("there is no certificate in PEM to trust")]
    NoCertificate,
    /// No connection could be made.
    #[error("no broker at {server}")]
    Unreachable {
        /// The address that was tried.
        server: String,
        /// What the transport says.
        #[source]
        source: Box<tonic::transport::Error>,
    },
    /// The tags to read are no tag expression; the broker was not asked.
    #[error("the tags are not understood")]
    BadTags {
        /// What is wrong with them.
        #[source]
        source: TagFilterError,
    },
    /// The broker answered that it did not do it.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// The connection or the deadline ended before an answer came.
    #[error("no answer from {server}")]
    NoAnswer {
        /// The address that was asked.
        server: String,
        /// What the transport says.
        #[source]
        source: Box<Status>,
    },
    /// The broker's answer breaks the protocol.
    #[error("the answer of {server} is not understood")]
    BadAnswer {
        /// The address that was asked.
        server: String,
        /// What is wrong with it.
        #[source]
        source: AnswerError,
    },
    /// A batch of a producer session has no known outcome after all repetitions.
    #[error("batch {sequence} of the producer session may or may not be stored")]
    Unsettled {
        /// Its number.
        sequence: u64,
        /// How the last attempt ended.
        #[source]
        source: Box<ClientError>,
    },
}

/// How an answer breaks the protocol.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// A batch that does not parse.
    #[error("a batch cannot be read")]
    Batch(#[from] BatchError),
    /// A batch that does not decompress to what it says, or that this client cannot decompress: in a codec that it
    /// does not know or that is not built in. The broker passes batches on as their producers sent them, so it is the
    /// producer's doing. To read on, pull from behind the batch.
    #[error(
        "the batch at offset {first_offset} of the queue, of {count} messages, is not readable"
    )]
    Decompression {
        /// The place of its first message.
        first_offset: QueueOffset,
        /// How many messages it has.
        count: u16,
        /// What is wrong with it.
        #[source]
        source: BatchError,
    },
    /// A field that every answer must have.
    #[error("the field `{field}` is missing")]
    Missing {
        /// The field's name in the protocol.
        field: &'static str,
    },
    /// Something that no stream of answers has.
    #[error("{what}")]
    Stream {
        /// What it is.
        what: &'static str,
    },
    /// A message id that is not one.
    #[error("`{found}` is not a message id")]
    MessageId {
        /// What stood there.
        found: String,
    },
}

/// Whether what was asked for may have happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Nothing was stored and nothing will be.
    No,
    /// It may be stored; the same batch sent again may be there twice.
    Unknown,
}

/// Whether the same call can succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The call itself is wrong.
    Never,
    /// After so long, and nothing can be there twice.
    After(Duration),
    /// It may help, and a send may then be there twice.
    Unsafe,
}

/// The broker's reasons, as listed in `proto/mainstem/v1/mainstem.proto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the table at the top of the proto file describes them")]
pub enum Reason {
    BadName,
    BadBatch,
    Checksum,
    BadQueue,
    BadRequest,
    BadToken,
    Codec,
    TypeConflict,
    UnknownTopic,
    MessageNotFound,
    TopicExists,
    TooLarge,
    OffsetOutOfRange,
    Truncated,
    Overloaded,
    TopicLimit,
    NoSpace,
    Damaged,
    NotDecompressed,
    FlushTimeout,
    Poisoned,
    Draining,
    Rebuilding,
    ReadRefused,
    Storage,
    UnknownSession,
    Fenced,
    SequenceGap,
    SequenceTooOld,
    SequenceReused,
    SessionLimit,
    UnknownGroup,
    UnknownClient,
    GroupExists,
    GroupLimit,
    GroupDisabled,
    OffsetNotFound,
    Conflict,
    OffsetLimit,
    OpenMessages,
    OpenLimit,
    /// Other members of the group use another filter for the topic, and the group wants them all to use one.
    FilterMismatch,
    BadReceipt,
    Bug,
    Forbidden,
    NeedsForce,
    /// One that this client does not know, or none.
    Unrecognised,
}

impl Reason {
    fn from_wire(reason: &str) -> Self {
        match reason {
            "BAD_NAME" => Self::BadName,
            "BAD_BATCH" => Self::BadBatch,
            "CHECKSUM" => Self::Checksum,
            "BAD_QUEUE" => Self::BadQueue,
            "BAD_REQUEST" => Self::BadRequest,
            "BAD_TOKEN" => Self::BadToken,
            "CODEC" => Self::Codec,
            "TYPE_CONFLICT" => Self::TypeConflict,
            "UNKNOWN_TOPIC" => Self::UnknownTopic,
            "MESSAGE_NOT_FOUND" => Self::MessageNotFound,
            "TOPIC_EXISTS" => Self::TopicExists,
            "TOO_LARGE" => Self::TooLarge,
            "OFFSET_OUT_OF_RANGE" => Self::OffsetOutOfRange,
            "TRUNCATED" => Self::Truncated,
            "OVERLOADED" => Self::Overloaded,
            "TOPIC_LIMIT" => Self::TopicLimit,
            "NO_SPACE" => Self::NoSpace,
            "DAMAGED" => Self::Damaged,
            "NOT_DECOMPRESSED" => Self::NotDecompressed,
            "FLUSH_TIMEOUT" => Self::FlushTimeout,
            "POISONED" => Self::Poisoned,
            "DRAINING" => Self::Draining,
            "REBUILDING" => Self::Rebuilding,
            "READ_REFUSED" => Self::ReadRefused,
            "STORAGE" => Self::Storage,
            "UNKNOWN_SESSION" => Self::UnknownSession,
            "FENCED" => Self::Fenced,
            "SEQUENCE_GAP" => Self::SequenceGap,
            "SEQUENCE_TOO_OLD" => Self::SequenceTooOld,
            "SEQUENCE_REUSED" => Self::SequenceReused,
            "SESSION_LIMIT" => Self::SessionLimit,
            "UNKNOWN_GROUP" => Self::UnknownGroup,
            "UNKNOWN_CLIENT" => Self::UnknownClient,
            "GROUP_EXISTS" => Self::GroupExists,
            "GROUP_LIMIT" => Self::GroupLimit,
            "GROUP_DISABLED" => Self::GroupDisabled,
            "OFFSET_NOT_FOUND" => Self::OffsetNotFound,
            "CONFLICT" => Self::Conflict,
            "OFFSET_LIMIT" => Self::OffsetLimit,
            "OPEN_MESSAGES" => Self::OpenMessages,
            "OPEN_LIMIT" => Self::OpenLimit,
            "FILTER_MISMATCH" => Self::FilterMismatch,
            "BAD_RECEIPT" => Self::BadReceipt,
            "BUG" => Self::Bug,
            "FORBIDDEN" => Self::Forbidden,
            "NEEDS_FORCE" => Self::NeedsForce,
            _ => Self::Unrecognised,
        }
    }
}

/// The valid range of a queue: offsets from `min` to `max` can be pulled; `max` is the next to be readable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OffsetRange {
    /// The first offset that is still there.
    pub min: QueueOffset,
    /// The next one to be readable; exclusive.
    pub max: QueueOffset,
}

impl OffsetRange {
    /// Messages that can be pulled.
    pub fn messages(&self) -> u64 {
        self.max.get().saturating_sub(self.min.get())
    }
}

impl From<proto::OffsetRange> for OffsetRange {
    fn from(range: proto::OffsetRange) -> Self {
        Self { min: QueueOffset::new(range.min), max: QueueOffset::new(range.max) }
    }
}

/// The broker's "no", with everything it said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The gRPC code.
    pub code: Code,
    /// The broker's reason.
    pub reason: Reason,
    /// The broker's sentence for people.
    pub message: String,
    /// Whether a send may be stored all the same.
    pub stored: Stored,
    /// The limit that was exceeded, if one was.
    pub limit: Option<u64>,
    /// The valid range, if an offset was outside.
    pub range: Option<OffsetRange>,
    /// The next readable offset, behind damage; with `Truncated`, the first whose message is gone.
    pub next_offset: Option<QueueOffset>,
    /// When to try again, if that may help.
    pub retry_after: Option<Duration>,
    /// The sequence with which a producer session goes on, after a gap.
    pub expected_sequence: Option<u64>,
    /// The broker's epoch, if an offset was outside, and with `Truncated`.
    pub epoch: Option<Epoch>,
    /// What is committed, where that was not expected; `None`: nothing.
    pub current: Option<QueueOffset>,
    /// The number of the batch that ended a stream.
    pub sequence: Option<u64>,
    /// The queue that ended a stream of pulls.
    pub queue: Option<QueueId>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() {
            write!(f, "refused with {:?}", self.code)
        } else {
            f.write_str(&self.message)
        }
    }
}

impl Refusal {
    /// How long to wait where the broker names no time.
    pub(super) const RETRY_AFTER: Duration = Duration::from_millis(100);

    /// One that stored nothing, and says no more than its reason.
    pub(super) fn new(code: Code, reason: Reason, message: String) -> Self {
        Self {
            code,
            reason,
            message,
            stored: Stored::No,
            limit: None,
            range: None,
            next_offset: None,
            retry_after: None,
            expected_sequence: None,
            epoch: None,
            current: None,
            sequence: None,
            queue: None,
        }
    }

    /// Whether the same call can succeed later.
    pub fn retry(&self) -> Retry {
        if self.stored == Stored::Unknown {
            return Retry::Unsafe;
        }
        let passes = matches!(
            self.reason,
            Reason::Overloaded | Reason::NoSpace | Reason::Draining | Reason::Rebuilding
        );
        if passes || self.retry_after.is_some() {
            Retry::After(self.retry_after.unwrap_or(Self::RETRY_AFTER))
        } else {
            Retry::Never
        }
    }
}

impl ClientError {
    /// Sorts a status into what the broker said and what the transport said.
    pub(super) fn from_status(server: &str, status: Status) -> Self {
        if let Some(detail) = detail(status.details()) {
            return Self::Refused(Box::new(Refusal {
                code: status.code(),
                reason: Reason::from_wire(&detail.reason),
                message: status.message().to_owned(),
                stored: match detail.stored() {
                    proto::error::Stored::No => Stored::No,
                    proto::error::Stored::Unknown => Stored::Unknown,
                },
                limit: detail.limit,
                range: detail.range.map(OffsetRange::from),
                next_offset: detail.next_offset.map(QueueOffset::new),
                retry_after: detail.retry_after_ms.map(Duration::from_millis),
                expected_sequence: detail.expected_sequence,
                epoch: detail.epoch.map(Epoch::new),
                current: detail.current.map(QueueOffset::new),
                sequence: detail.sequence,
                queue: detail.queue.map(QueueId::new),
            }));
        }
        match status.code() {
            // What a server says before it has looked at a call, and no transport makes of a broken connection.
            Code::Unimplemented | Code::InvalidArgument | Code::NotFound | Code::OutOfRange => {
                let message = status.message().to_owned();
                Self::Refused(Box::new(Refusal::new(status.code(), Reason::Unrecognised, message)))
            }
            // The transport's own words, also when it never reached anybody: without an answer nothing is known.
            // HTTP/2 ends connections with codes that become RESOURCE_EXHAUSTED and PERMISSION_DENIED, in the middle
            // of calls.
            _ => Self::NoAnswer { server: server.to_owned(), source: Box::new(status) },
        }
    }

    /// What the broker said, if it said anything.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// The broker's reason, if it gave one.
    pub fn reason(&self) -> Option<Reason> {
        self.refusal().map(|refusal| refusal.reason)
    }

    /// Whether a send that ended so may be stored.
    pub fn stored(&self) -> Stored {
        match self {
            Self::BadAddress { .. }
            | Self::NoCertificate
            | Self::BadTags { .. }
            | Self::Unreachable { .. } => Stored::No,
            Self::Refused(refusal) => refusal.stored,
            Self::NoAnswer { source, .. } if never_connected(source) => Stored::No,
            Self::NoAnswer { .. } | Self::BadAnswer { .. } | Self::Unsettled { .. } => {
                Stored::Unknown
            }
        }
    }

    /// Whether the same call can succeed later.
    pub fn retry(&self) -> Retry {
        match self {
            Self::BadAddress { .. }
            | Self::NoCertificate
            | Self::BadTags { .. }
            | Self::BadAnswer { .. } => Retry::Never,
            // The same call would send the batch anew.
            Self::Unsettled { .. } => Retry::Never,
            Self::Unreachable { .. } => Retry::After(Refusal::RETRY_AFTER),
            Self::Refused(refusal) => refusal.retry(),
            Self::NoAnswer { .. } if self.stored() == Stored::No => {
                Retry::After(Refusal::RETRY_AFTER)
            }
            Self::NoAnswer { .. } => Retry::Unsafe,
        }
    }
}

/// Whether the call failed while a connection was being made, so that no byte of it left.
fn never_connected(status: &Status) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// `google.rpc.Status`: what gRPC puts into the details of an error.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<AnyMessage>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, prost::Message)]
struct AnyMessage {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// The broker's own part of the details, if there is one.
fn detail(details: &[u8]) -> Option<proto::Error> {
    if details.is_empty() {
        return None;
    }
    let status = RpcStatus::decode(details).ok()?;
    let any =
        status.details.iter().find(|any| any.type_url.rsplit('/').next() == Some(DETAIL_TYPE))?;
    proto::Error::decode(any.value.as_slice()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: Code, detail: &proto::Error) -> Status {
        let rpc = RpcStatus {
            code: code as i32,
            message: "said".to_owned(),
            details: vec![AnyMessage {
                type_url: format!("type.googleapis.com/{DETAIL_TYPE}"),
                value: detail.encode_to_vec(),
            }],
        };
        Status::with_details(code, "said", rpc.encode_to_vec().into())
    }

    #[test]
    fn every_field_of_the_details_arrives() {
        let wire = proto::Error {
            reason: "OFFSET_OUT_OF_RANGE".to_owned(),
            stored: proto::error::Stored::No.into(),
            limit: Some(7),
            range: Some(proto::OffsetRange { min: 3, max: 9 }),
            next_offset: Some(5),
            retry_after_ms: Some(250),
            expected_sequence: Some(11),
            epoch: Some(2),
            current: Some(8),
            sequence: Some(4),
            queue: Some(6),
        };
        let error = ClientError::from_status("here:1", status(Code::OutOfRange, &wire));
        let expected = Refusal {
            code: Code::OutOfRange,
            reason: Reason::OffsetOutOfRange,
            message: "said".to_owned(),
            stored: Stored::No,
            limit: Some(7),
            range: Some(OffsetRange { min: QueueOffset::new(3), max: QueueOffset::new(9) }),
            next_offset: Some(QueueOffset::new(5)),
            retry_after: Some(Duration::from_millis(250)),
            expected_sequence: Some(11),
            epoch: Some(Epoch::new(2)),
            current: Some(QueueOffset::new(8)),
            sequence: Some(4),
            queue: Some(QueueId::new(6)),
        };
        assert_eq!(error.refusal(), Some(&expected));
        assert_eq!(error.to_string(), "said");
    }

    #[test]
    fn a_send_that_is_stored_but_not_durable_is_never_safe_to_repeat() {
        let wire = proto::Error {
            reason: "FLUSH_TIMEOUT".to_owned(),
            stored: proto::error::Stored::Unknown.into(),
            retry_after_ms: Some(250),
            ..proto::Error::default()
        };
        let error = ClientError::from_status("here:1", status(Code::DeadlineExceeded, &wire));
        assert_eq!(error.stored(), Stored::Unknown);
        assert_eq!(error.retry(), Retry::Unsafe);
    }

    #[test]
    fn overload_says_when_to_come_again_and_a_bad_name_says_never() {
        let overloaded = proto::Error {
            reason: "OVERLOADED".to_owned(),
            retry_after_ms: Some(40),
            ..proto::Error::default()
        };
        let error =
            ClientError::from_status("here:1", status(Code::ResourceExhausted, &overloaded));
        assert_eq!(error.retry(), Retry::After(Duration::from_millis(40)));

        let bad_name = proto::Error { reason: "BAD_NAME".to_owned(), ..proto::Error::default() };
        let error = ClientError::from_status("here:1", status(Code::InvalidArgument, &bad_name));
        assert_eq!(error.retry(), Retry::Never);
    }

    #[test]
    fn a_broken_connection_leaves_a_send_unknown_and_a_refusal_of_the_transport_does_not() {
        let broken = ClientError::from_status("here:1", Status::unavailable("broken pipe"));
        assert_eq!(broken.stored(), Stored::Unknown);
        let too_large = ClientError::from_status("here:1", Status::out_of_range("too large"));
        assert_eq!(too_large.stored(), Stored::No);
        assert_eq!(too_large.reason(), Some(Reason::Unrecognised));
    }

    #[test]
    fn a_connection_that_http_2_ends_for_any_reason_leaves_a_send_unknown() {
        // ENHANCE_YOUR_CALM and INADEQUATE_SECURITY.
        for code in [Code::ResourceExhausted, Code::PermissionDenied] {
            let error = ClientError::from_status("here:1", Status::new(code, "h2 protocol error"));
            assert!(matches!(error, ClientError::NoAnswer { .. }), "{error:?}");
            assert_eq!((error.stored(), error.retry()), (Stored::Unknown, Retry::Unsafe));
        }
    }

    #[test]
    fn details_that_are_garbage_are_ignored() {
        for bytes in [&b"\xff\xff\xff"[..], b"", b"\x1a\x02\x0a\x00"] {
            assert_eq!(detail(bytes), None);
        }
    }
}
