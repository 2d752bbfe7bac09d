//! What a refusal looks like on the wire: a gRPC status with a `mainstem.v1.Error` in its details.
//!
//! The details are a `google.rpc.Status`, which is what `grpc-status-details-bin` holds by convention: code, message,
//! and one `google.protobuf.Any` with the type URL `type.googleapis.com/mainstem.v1.Error`.

use std::error::Error as _;
use std::fmt::Write as _;

use bytes::Bytes;
use prost::Message as _;
use tonic::body::Body;
use tonic::codegen::http::Response;
use tonic::{Code, Status};

use super::range;
use crate::broker::{BrokerError, Reason, SessionFault, Stored};
use crate::message::{QueueId, QueueOffset};
use crate::proto;

const TYPE_URL: &str = "type.googleapis.com/mainstem.v1.Error";

/// When to come back after a refusal for want of room or of a free hand.
const RETRY_AFTER_MS: u64 = 100;

/// google/rpc/status.proto.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// google/protobuf/any.proto.
#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// The code of a reason, and whether coming back later may help.
fn code(reason: Reason) -> (Code, Option<u64>) {
    match reason {
        Reason::BadName
        | Reason::BadBatch
        | Reason::Checksum
        | Reason::BadQueue
        | Reason::BadRequest
        | Reason::BadToken
        | Reason::Codec
        | Reason::TypeConflict => (Code::InvalidArgument, None),
        Reason::UnknownTopic | Reason::MessageNotFound => (Code::NotFound, None),
        Reason::TopicExists => (Code::AlreadyExists, None),
        Reason::TooLarge | Reason::OffsetOutOfRange | Reason::Truncated => (Code::OutOfRange, None),
        Reason::Overloaded | Reason::NoSpace => (Code::ResourceExhausted, Some(RETRY_AFTER_MS)),
        Reason::TopicLimit => (Code::ResourceExhausted, None),
        Reason::Damaged => (Code::DataLoss, None),
        Reason::FlushTimeout => (Code::DeadlineExceeded, None),
        Reason::Draining | Reason::Rebuilding | Reason::ReadRefused => {
            (Code::Unavailable, Some(RETRY_AFTER_MS))
        }
        Reason::Poisoned => (Code::Unavailable, None),
        Reason::Storage => (Code::Internal, None),
        Reason::UnknownSession => (Code::NotFound, None),
        Reason::Fenced => (Code::FailedPrecondition, None),
        // gRPC's own words for it: a sequencer check failed.
        Reason::SequenceGap => (Code::Aborted, Some(RETRY_AFTER_MS)),
        Reason::SequenceTooOld => (Code::AlreadyExists, None),
        Reason::SequenceReused => (Code::InvalidArgument, None),
        Reason::SessionLimit => (Code::ResourceExhausted, None),
        Reason::Forbidden => (Code::PermissionDenied, None),
        Reason::NotDecompressed => (Code::FailedPrecondition, None),
        Reason::NeedsForce => (Code::FailedPrecondition, None),
        Reason::UnknownGroup | Reason::OffsetNotFound | Reason::UnknownClient => {
            (Code::NotFound, None)
        }
        Reason::GroupExists => (Code::AlreadyExists, None),
        Reason::GroupDisabled => (Code::PermissionDenied, None),
        Reason::Conflict => (Code::Aborted, None),
        Reason::GroupLimit | Reason::OffsetLimit => (Code::ResourceExhausted, None),
        Reason::FilterMismatch | Reason::OpenMessages => (Code::FailedPrecondition, None),
        Reason::OpenLimit => (Code::ResourceExhausted, Some(RETRY_AFTER_MS)),
        Reason::BadReceipt => (Code::InvalidArgument, None),
    }
}

/// The status of a refusal.
pub(in crate::grpc) fn of(error: &BrokerError) -> Status {
    of_part(error, Part::default())
}

/// The part of a stream that a refusal is about.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Part {
    /// The number of a batch.
    pub(super) sequence: Option<u64>,
    /// A queue.
    pub(super) queue: Option<QueueId>,
}

/// The status that ends a stream because of a part of it.
pub(super) fn of_part(error: &BrokerError, part: Part) -> Status {
    let reason = error.reason();
    let (code, retry_after_ms) = code(reason);
    let (offset_range, next_offset) = match error {
        BrokerError::OffsetOutOfRange { range: valid, .. }
        | BrokerError::CommitOutOfRange { range: valid, .. } => (Some(range(*valid)), None),
        BrokerError::Truncated { at, range: valid, .. } => (Some(range(*valid)), Some(at.get())),
        BrokerError::Damaged { next, .. } => (None, Some(next.get())),
        _ => (None, None),
    };
    let (epoch, current) = match error {
        BrokerError::OffsetOutOfRange { epoch, .. }
        | BrokerError::CommitOutOfRange { epoch, .. }
        | BrokerError::Truncated { epoch, .. } => (Some(epoch.get()), None),
        BrokerError::OffsetConflict { current, .. } => (None, current.map(QueueOffset::get)),
        _ => (None, None),
    };
    let stored = match error.stored() {
        Stored::No => proto::error::Stored::No,
        Stored::Unknown => proto::error::Stored::Unknown,
    };
    let detail = proto::Error {
        reason: reason.as_str().to_owned(),
        stored: stored.into(),
        limit: error.limit(),
        range: offset_range,
        next_offset,
        retry_after_ms,
        expected_sequence: match error {
            BrokerError::Session(SessionFault::Gap { expected, .. }) => Some(*expected),
            _ => None,
        },
        epoch,
        current,
        sequence: part.sequence,
        queue: part.queue.map(QueueId::get),
    };
    with_detail(code, with_sources(error), &detail)
}

/// The status of a call whose handler panicked: what it had done by then is not known.
pub(in crate::grpc) fn of_panic() -> Status {
    let detail = proto::Error {
        reason: "BUG".to_owned(),
        stored: proto::error::Stored::Unknown.into(),
        ..proto::Error::default()
    };
    with_detail(Code::Internal, "the call failed in a way that is a defect".to_owned(), &detail)
}

/// Gives the refusals of the transport, which come without details, what every refusal has: a request that cannot be
/// decoded (INTERNAL there), one of too many fields, and one that is too large.
pub(in crate::grpc) fn completed(answer: Response<Body>) -> Response<Body> {
    let Some(status) = Status::from_header_map(answer.headers()) else { return answer };
    if !status.details().is_empty() {
        return answer;
    }
    let (code, reason, limit) = match status.code() {
        Code::Internal | Code::InvalidArgument => (Code::InvalidArgument, Reason::BadRequest, None),
        Code::OutOfRange => (Code::OutOfRange, Reason::TooLarge, Some(super::MAX_REQUEST as u64)),
        _ => return answer,
    };
    let detail = proto::Error {
        reason: reason.as_str().to_owned(),
        stored: proto::error::Stored::No.into(),
        limit,
        ..proto::Error::default()
    };
    with_detail(code, status.message().to_owned(), &detail).into_http()
}

fn with_detail(code: Code, message: String, detail: &proto::Error) -> Status {
    let value = Bytes::from(detail.encode_to_vec());
    let any = Any { type_url: TYPE_URL.to_owned(), value };
    let rpc = RpcStatus { code: code.into(), message: message.clone(), details: vec![any] };
    Status::with_details(code, message, Bytes::from(rpc.encode_to_vec()))
}

/// The text of an error and of all that it says it comes from.
fn with_sources(error: &BrokerError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::QueueRange;
    use crate::file::FileError;
    use crate::message::Epoch;
    use crate::store::ReadError;

    fn detail(status: &Status) -> proto::Error {
        let rpc = RpcStatus::decode(status.details()).unwrap();
        assert_eq!(rpc.code, i32::from(status.code()));
        assert_eq!(rpc.message, status.message());
        assert_eq!(rpc.details[0].type_url, TYPE_URL);
        proto::Error::decode(rpc.details[0].value.clone()).unwrap()
    }

    #[test]
    fn damage_is_data_loss_and_names_the_next_offset() {
        let error = BrokerError::Damaged { at: QueueOffset::new(3), next: QueueOffset::new(7) };
        let status = of(&error);
        assert_eq!(status.code(), Code::DataLoss);
        let detail = detail(&status);
        assert_eq!((detail.reason.as_str(), detail.next_offset), ("DAMAGED", Some(7)));
        assert_eq!(detail.stored(), proto::error::Stored::No);
    }

    #[test]
    fn an_offset_out_of_range_comes_with_the_range() {
        let range = QueueRange { min: QueueOffset::new(2), max: QueueOffset::new(9) };
        let status = of(&BrokerError::OffsetOutOfRange {
            offset: QueueOffset::new(10),
            range,
            epoch: Epoch::new(3),
        });
        assert_eq!(status.code(), Code::OutOfRange);
        let detail = detail(&status);
        assert_eq!(detail.range, Some(proto::OffsetRange { min: 2, max: 9 }));
        assert_eq!(detail.epoch, Some(3));
    }

    #[test]
    fn a_truncated_queue_says_where_to_go_on_and_in_which_epoch() {
        let range = QueueRange { min: QueueOffset::new(2), max: QueueOffset::new(9) };
        let (offset, at) = (QueueOffset::new(12), QueueOffset::new(8));
        let status = of(&BrokerError::Truncated { offset, at, range, epoch: Epoch::new(3) });
        assert_eq!(status.code(), Code::OutOfRange);
        let detail = detail(&status);
        assert_eq!((detail.reason.as_str(), detail.next_offset), ("TRUNCATED", Some(8)));
        assert_eq!(detail.range, Some(proto::OffsetRange { min: 2, max: 9 }));
        assert_eq!((detail.epoch, detail.stored()), (Some(3), proto::error::Stored::No));
    }

    #[test]
    fn what_may_be_stored_says_so() {
        for (error, code, reason) in [
            (BrokerError::FlushTimeout, Code::DeadlineExceeded, "FLUSH_TIMEOUT"),
            (BrokerError::Poisoned, Code::Unavailable, "POISONED"),
        ] {
            let status = of(&error);
            let detail = detail(&status);
            assert_eq!((status.code(), detail.reason.as_str()), (code, reason));
            assert_eq!(detail.stored(), proto::error::Stored::Unknown);
        }
    }

    #[test]
    fn a_read_that_the_disk_refuses_can_be_tried_again_and_names_no_offset_to_go_on_at() {
        let path = "/data/commitlog/0.log".into();
        let refused = ReadError::from(FileError::TooShort { path, end: 9 });
        let status = of(&BrokerError::from(refused));
        assert_eq!(status.code(), Code::Unavailable);
        let detail = detail(&status);
        let what = (detail.reason.as_str(), detail.next_offset, detail.retry_after_ms);
        assert_eq!(what, ("READ_REFUSED", None, Some(RETRY_AFTER_MS)));
        assert_eq!(detail.stored(), proto::error::Stored::No);
    }

    #[test]
    fn overload_comes_with_a_hint_when_to_retry() {
        let status = of(&BrokerError::Overloaded { what: "bytes to store" });
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(detail(&status).retry_after_ms, Some(RETRY_AFTER_MS));
        assert_eq!(status.message(), "too many bytes to store at once");
    }
}
