//! Why a request of this protocol is refused, and under which code its clients know that.
//!
//! A refusal travels in the `Status` of an answer whose call ends well. A gRPC error is what clients take for a broken
//! network: they try again at once, and leave the server alone for a while.

use std::borrow::Cow;
use std::error::Error as _;
use std::fmt::Write as _;

use tonic::body::Body;
use tonic::codegen::http::Response;

use crate::broker::{BatchError, Broker, BrokerError, Reason, TextField};
use crate::grpc::outgoing::Outgoing;
use crate::grpc::raw;
use crate::proto::rocketmq::{Code, Status};
use crate::wire::framed;

/// A refusal.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: Code,
    reason: Reason,
    message: Cow<'static, str>,
}

impl Refusal {
    /// Of a request that breaks a rule of the protocol.
    pub(super) fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, reason: Reason::BadRequest, message: message.into() }
    }

    /// Of a request for something that is not there yet.
    pub(super) fn later(what: &'static str) -> Self {
        Self::new(Code::NotImplemented, what)
    }

    /// What makes no difference to try again: the topic or the group of a lease is gone, and clients try again for ever
    /// after any other code.
    pub(super) fn of_lease(error: BrokerError) -> Self {
        let is_gone = matches!(
            error,
            BrokerError::NoTopic { .. }
                | BrokerError::UnknownTopic
                | BrokerError::UnknownGroup { .. }
        );
        let refusal = Self::from(error);
        let code = if is_gone { Code::InvalidReceiptHandle } else { refusal.code };
        Self { code, ..refusal }
    }

    /// Counts it, and words it for the wire.
    pub(super) fn tell(self, broker: &Broker) -> Status {
        broker.counters().refused(self.reason);
        tracing::debug!(code = self.code.as_str_name(), message = %self.message, "refused");
        Status { code: self.code.into(), message: self.message.into_owned() }
    }

    /// The same, where the stream of the call ends with it.
    pub(super) fn end_stream(self, broker: &Broker) -> tonic::Status {
        let is_clients = (40_000..50_000).contains(&i32::from(self.code));
        let code = if is_clients { tonic::Code::InvalidArgument } else { tonic::Code::Internal };
        let status = self.tell(broker);
        tonic::Status::new(code, format!("{}: {}", status.code, status.message))
    }
}

impl From<BrokerError> for Refusal {
    fn from(error: BrokerError) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let _ = write!(message, ": {cause}");
            source = cause.source();
        }
        Self { code: code(&error), reason: error.reason(), message: message.into() }
    }
}

/// What says that all went well.
pub(super) fn ok() -> Status {
    Status { code: Code::Ok.into(), message: "OK".to_owned() }
}

/// The same, with what there is to say all the same.
pub(super) fn ok_but(notices: &[String]) -> Status {
    let ok = ok();
    match notices {
        [] => ok,
        [_, ..] => Status { message: format!("{}; {}", ok.message, notices.join("; ")), ..ok },
    }
}

/// The code of a refusal by the broker. What may help to try again later is `TOO_MANY_REQUESTS`, after which clients
/// pause; after every other code they try again at once.
fn code(error: &BrokerError) -> Code {
    match error {
        BrokerError::BadName(_) => Code::IllegalTopic,
        BrokerError::NoTopic { .. } | BrokerError::UnknownTopic => Code::TopicNotFound,
        BrokerError::BadBatch(fault) => of_batch(fault),
        BrokerError::TypeConflict { .. } => Code::MessagePropertyConflictWithType,
        BrokerError::TopicExists
        | BrokerError::BadQueue { .. }
        | BrokerError::BadRequest { .. }
        | BrokerError::BadToken
        | BrokerError::Session(_)
        | BrokerError::GroupExists => Code::BadRequest,
        BrokerError::NeedsForce
        | BrokerError::OffsetConflict { .. }
        | BrokerError::OpenMessages { .. } => Code::PreconditionFailed,
        BrokerError::BadFilter(_)
        | BrokerError::BadExpression(_)
        | BrokerError::FilterMismatch { .. } => Code::IllegalFilterExpression,
        BrokerError::BadReceipt => Code::InvalidReceiptHandle,
        BrokerError::TooLarge { .. } => Code::PayloadTooLarge,
        BrokerError::MessageNotFound => Code::MessageNotFound,
        BrokerError::UnknownClient => Code::NotFound,
        BrokerError::OffsetOutOfRange { .. }
        | BrokerError::CommitOutOfRange { .. }
        | BrokerError::Truncated { .. } => Code::IllegalOffset,
        BrokerError::OffsetNotFound { .. } => Code::OffsetNotFound,
        BrokerError::Forbidden { .. } | BrokerError::GroupDisabled { .. } => Code::Forbidden,
        BrokerError::BadGroupName(_) => Code::IllegalConsumerGroup,
        BrokerError::UnknownGroup { .. } => Code::ConsumerGroupNotFound,
        BrokerError::Overloaded { .. }
        | BrokerError::Slow
        | BrokerError::NoSpace
        | BrokerError::Full(_)
        | BrokerError::Draining
        | BrokerError::Rebuilding
        | BrokerError::TopicLimit { .. }
        | BrokerError::GroupLimit { .. }
        | BrokerError::OffsetLimit { .. }
        | BrokerError::OpenLimit { .. } => Code::TooManyRequests,
        BrokerError::FlushTimeout => Code::MasterPersistenceTimeout,
        BrokerError::Damaged { .. }
        | BrokerError::DamagedRecord { .. }
        | BrokerError::NotDecompressed { .. }
        | BrokerError::Unknown(_)
        | BrokerError::Poisoned
        | BrokerError::Write(_)
        | BrokerError::Read(_) => Code::InternalServerError,
    }
}

/// The code of a message that breaks a limit of the store.
fn of_batch(fault: &BatchError) -> Code {
    match fault {
        BatchError::BatchTooLarge { .. } | BatchError::UncompressedTooLarge { .. } => {
            Code::PayloadTooLarge
        }
        BatchError::BodyTooLarge { .. } => Code::MessageBodyTooLarge,
        BatchError::TooManyKeys { .. } | BatchError::KeyTooLong { .. } => Code::IllegalMessageKey,
        BatchError::TooManyProperties { .. } | BatchError::PropertiesTooLarge { .. } => {
            Code::MessagePropertiesTooLarge
        }
        BatchError::TagTooLong { .. } => Code::IllegalMessageTag,
        BatchError::IdTooLong { .. } => Code::IllegalMessageId,
        BatchError::MessageGroupTooLong { .. } | BatchError::MixedMessageGroups { .. } => {
            Code::IllegalMessageGroup
        }
        BatchError::Text { field, .. } => match field {
            TextField::Key => Code::IllegalMessageKey,
            TextField::Tag => Code::IllegalMessageTag,
            TextField::PropertyKey => Code::IllegalMessagePropertyKey,
            TextField::MessageGroup => Code::IllegalMessageGroup,
        },
        BatchError::Empty
        | BatchError::TooManyMessages { .. }
        | BatchError::BodiesSum { .. }
        | BatchError::BodiesLength { .. }
        | BatchError::Decompression { .. }
        | BatchError::NotBuilt { .. }
        | BatchError::Codec { .. }
        | BatchError::Checksum { .. }
        | BatchError::Malformed { .. }
        | BatchError::MalformedMeta { .. } => Code::MessageCorrupted,
    }
}

/// Any answer of the service that holds nothing but a status: it is field 1 of all of them.
#[derive(Clone, PartialEq, prost::Message)]
struct Refused {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
}

/// What says how all of these went.
pub(super) fn common<'a>(mut statuses: impl Iterator<Item = &'a Status>) -> Status {
    match statuses.next() {
        Some(first) if statuses.all(|status| status.code == first.code) => first.clone(),
        _ => Status {
            code: Code::MultipleResults.into(),
            message: Code::MultipleResults.as_str_name().to_owned(),
        },
    }
}

/// What says that there is no message now, which is nobody's fault.
pub(super) fn nothing() -> Status {
    let code = Code::MessageNotFound;
    Status { code: code.into(), message: code.as_str_name().to_owned() }
}

/// What says why the request of a stream did not arrive as one; counted already.
pub(super) fn of_transport(error: &tonic::Status) -> Status {
    let code = match error.code() {
        tonic::Code::ResourceExhausted | tonic::Code::Unavailable => Code::TooManyRequests,
        tonic::Code::OutOfRange => Code::PayloadTooLarge,
        _ => Code::BadRequest,
    };
    Status { code: code.into(), message: error.message().to_owned() }
}

/// Gives the refusals of the transport the form that all others have: of a request that came too slowly, cannot be
/// decoded, or finds too much in work. What has no such method, and what is larger than any request, stays an error.
pub(in crate::grpc) fn completed(answer: Response<Body>, outgoing: &Outgoing) -> Response<Body> {
    let Some(status) = tonic::Status::from_header_map(answer.headers()) else { return answer };
    let code = match status.code() {
        tonic::Code::Internal | tonic::Code::InvalidArgument => Code::BadRequest,
        tonic::Code::ResourceExhausted | tonic::Code::Unavailable => Code::TooManyRequests,
        _ => return answer,
    };
    with_status(code, status.message().to_owned(), outgoing)
}

/// What is said of a call that panicked.
const DEFECT: &str = "the call failed in a way that is a defect";

/// The status of a call that panicked, where its answer is made.
pub(super) fn defect() -> Status {
    Status { code: Code::InternalServerError.into(), message: DEFECT.to_owned() }
}

/// The same, where the stream of the call ends with it.
pub(super) fn defect_ends_stream() -> tonic::Status {
    let Status { code, message } = defect();
    tonic::Status::internal(format!("{code}: {message}"))
}

/// The answer of a call whose handler panicked.
pub(in crate::grpc) fn of_panic(outgoing: &Outgoing) -> Response<Body> {
    with_status(Code::InternalServerError, DEFECT.to_owned(), outgoing)
}

fn with_status(code: Code, message: String, outgoing: &Outgoing) -> Response<Body> {
    let status = Some(Status { code: code.into(), message });
    let frame = framed(&Refused { status });
    raw::answer(outgoing.clone(), |out| async move {
        out.put([frame], None).await;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overload_is_what_clients_pause_after_and_a_flush_that_takes_too_long_has_a_code_of_its_own()
    {
        for (error, expected) in [
            (BrokerError::Overloaded { what: "bytes to store" }, Code::TooManyRequests),
            (BrokerError::Draining, Code::TooManyRequests),
            (BrokerError::NoSpace, Code::TooManyRequests),
            (BrokerError::FlushTimeout, Code::MasterPersistenceTimeout),
            (BrokerError::NoTopic { name: "t".into() }, Code::TopicNotFound),
            (BrokerError::Poisoned, Code::InternalServerError),
        ] {
            let text = error.to_string();
            let refusal = Refusal::from(error);
            assert_eq!((refusal.code, refusal.message.as_ref()), (expected, text.as_str()));
        }
    }
}
