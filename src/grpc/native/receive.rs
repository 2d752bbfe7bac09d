//! Receive, Ack, Extend.

use std::time::Duration;

use tonic::{Request, Response};

use super::{dead_letter, or_default};
use crate::broker::{
    self, Broker, BrokerError, ExtendEntry, ExtendFault, Hold, Language, ReceivedMessage,
    RequestFault,
};
use crate::grpc::outgoing::Held;
use crate::grpc::{deadline, peer};
use crate::proto::extend_entry::Hold as WireHold;
use crate::proto::extend_result::Outcome;
use crate::proto::receive_request::Filter;
use crate::proto::{
    self, AckRequest, AckResponse, ExtendRequest, ExtendResponse, ReceiveRequest, ReceiveResponse,
};

const DEFAULT_MESSAGES: u32 = 32;
const DEFAULT_BYTES: u32 = 4 << 20;
const DEFAULT_INVISIBLE_MS: u32 = 30_000;

pub(super) async fn receive(
    broker: &Broker,
    request: Request<ReceiveRequest>,
) -> Result<Response<ReceiveResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let filter = match &request.filter {
        None => broker.expression(Language::Tags, "")?,
        Some(Filter::Tags(tags)) => broker.expression(Language::Tags, tags)?,
        Some(Filter::Sql(sql)) => broker.expression(Language::Sql, sql)?,
    };
    let received = broker
        .receive_messages(broker::ReceiveRequest {
            client: None,
            holder: &peer().map(|peer| peer.to_string()).unwrap_or_default(),
            group: &request.group,
            topic: &request.topic,
            filter: &filter,
            max_messages: or_default(request.max_messages, DEFAULT_MESSAGES),
            max_bytes: or_default(request.max_bytes, DEFAULT_BYTES),
            invisible: invisible(request.invisible_ms),
            wait: Duration::from_millis(request.wait_ms.into()),
            attempt: &request.attempt,
            deadline,
        })
        .await?;
    let messages = received.messages.into_iter().map(message).collect();
    let mut response = Response::new(ReceiveResponse { messages });
    if let Some(permit) = received.permit {
        response.extensions_mut().insert(Held::new(permit));
    }
    Ok(response)
}

/// For how long a message is leased to who asks for so many milliseconds.
pub(super) fn invisible(ms: u32) -> Duration {
    Duration::from_millis(or_default(ms, DEFAULT_INVISIBLE_MS).into())
}

pub(super) fn message(message: ReceivedMessage) -> proto::ReceivedMessage {
    proto::ReceivedMessage {
        handle: message.handle,
        message_id: message.id.to_string(),
        queue: message.queue.get(),
        queue_offset: message.queue_offset.get(),
        store_time_ms: message.store_time.get(),
        delivery: message.delivery,
        dead_letter: dead_letter(&message.attributes),
        batch: message.batch,
    }
}

pub(super) async fn ack(
    broker: &Broker,
    request: Request<AckRequest>,
) -> Result<Response<AckResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let handles: Vec<&str> = request.handles.iter().map(String::as_str).collect();
    let finished = broker.ack(&request.group, &request.topic, &handles, deadline).await?;
    Ok(Response::new(AckResponse { finished }))
}

pub(super) async fn extend(
    broker: &Broker,
    request: Request<ExtendRequest>,
) -> Result<Response<ExtendResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let entries: Vec<_> = request.entries.iter().map(entry).collect::<Result<_, _>>()?;
    let extended = broker.extend(&request.group, &request.topic, &entries, deadline).await?;
    Ok(Response::new(ExtendResponse { results: extended.into_iter().map(result).collect() }))
}

/// What became of one lease.
pub(super) fn result(result: Result<String, ExtendFault>) -> proto::ExtendResult {
    let outcome = match result {
        Ok(handle) => Outcome::Handle(handle),
        Err(ExtendFault::BadReceipt) => Outcome::BadReceipt(true),
        Err(ExtendFault::TooLong) => Outcome::TooLong(true),
    };
    proto::ExtendResult { outcome: Some(outcome) }
}

pub(super) fn entry(entry: &proto::ExtendEntry) -> Result<ExtendEntry<'_>, BrokerError> {
    let ms = |ms: u32| Duration::from_millis(ms.into());
    let hold = match &entry.hold {
        Some(WireHold::ForMs(time)) => Hold::For(ms(*time)),
        Some(WireHold::Retry(_)) => Hold::Retry,
        Some(WireHold::RetryAfterMs(time)) => Hold::RetryAfter(ms(*time)),
        Some(WireHold::Undo(_)) => Hold::Undo,
        None => return Err(BrokerError::BadRequest { fault: RequestFault::NoHold }),
    };
    Ok(ExtendEntry { handle: &entry.handle, hold })
}
