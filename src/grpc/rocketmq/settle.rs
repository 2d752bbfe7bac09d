//! AckMessage, ChangeInvisibleDuration, ForwardMessageToDeadLetterQueue: what consumers do with what they received.
//!
//! After anything but `OK` and `INVALID_RECEIPT_HANDLE` clients try the same again each second, for ever. So whatever
//! will never succeed has that code: also where the topic or the group is gone.
//!
//! | an ack | has |
//! | --- | --- |
//! | whatever it says | an entry for each of its own, in their order, also where all is refused: some clients look there alone |
//! | entries that come to the same | that as its status, else `MULTIPLE_RESULTS` |
//! | no entries | `INTERNAL_SERVER_ERROR` |

use std::time::Duration;

use tokio::time::Instant;
use tonic::Request;

use super::status::{self, Refusal};
use super::{Caller, convert, time};
use crate::broker::{Broker, BrokerError, ClientKind, ExtendEntry, ExtendFault, Hold, MAX_RECEIVE};
use crate::grpc::deadline;
use crate::proto::rocketmq::{
    AckMessageEntry, AckMessageRequest, AckMessageResponse, AckMessageResultEntry,
    ChangeInvisibleDurationRequest, Code, ForwardMessageToDeadLetterQueueRequest, Resource, Status,
};

/// The most entries of an ack.
const MAX_ENTRIES: usize = MAX_RECEIVE as usize;

pub(super) async fn ack(
    broker: &Broker,
    request: Request<AckMessageRequest>,
) -> AckMessageResponse {
    let caller = Caller::check(request.metadata().as_ref()).map(drop);
    let deadline = deadline(request.metadata());
    let AckMessageRequest { group, topic, entries } = request.into_inner();
    if caller.is_ok() && entries.len() > MAX_ENTRIES {
        // As many statuses as somebody may send entries would be a large answer.
        let fault = format!("{} receipts exceed the limit of {MAX_ENTRIES}", entries.len());
        let status = Some(Refusal::new(Code::BadRequest, fault).tell(broker));
        return AckMessageResponse { status, entries: Vec::new() };
    }
    let statuses = match caller {
        Ok(()) => finish(broker, group.as_ref(), topic.as_ref(), &entries, deadline).await,
        Err(refusal) => Err(refusal),
    };
    match statuses {
        Ok(statuses) => {
            let status = Some(status::common(statuses.iter()));
            let entries = entries.into_iter().zip(statuses).map(|(one, status)| of(one, status));
            AckMessageResponse { status, entries: entries.collect() }
        }
        Err(refusal) => {
            let status = refusal.tell(broker);
            let entries = entries.into_iter().map(|one| of(one, status.clone())).collect();
            AckMessageResponse { status: Some(status), entries }
        }
    }
}

/// What becomes of each entry.
async fn finish(
    broker: &Broker,
    group: Option<&Resource>,
    topic: Option<&Resource>,
    entries: &[AckMessageEntry],
    deadline: Instant,
) -> Result<Vec<Status>, Refusal> {
    let (topic, group) = (convert::topic(topic)?, convert::group(group)?);
    if entries.is_empty() {
        return Err(Refusal::new(Code::InternalServerError, "an ack has at least one entry"));
    }
    let handles: Vec<_> = entries.iter().map(|entry| entry.receipt_handle.as_str()).collect();
    let finished = broker.ack(group, topic, &handles, deadline).await;
    let finished = finished.map_err(Refusal::of_lease)?;
    let status = |is_finished| match is_finished {
        true => status::ok(),
        false => Refusal::from(BrokerError::BadReceipt).tell(broker),
    };
    Ok(finished.into_iter().map(status).collect())
}

fn of(entry: AckMessageEntry, status: Status) -> AckMessageResultEntry {
    let AckMessageEntry { message_id, receipt_handle, .. } = entry;
    AckMessageResultEntry { message_id, receipt_handle, status: Some(status) }
}

/// The new handle of a lease that is to last until another time.
pub(super) async fn change(
    broker: &Broker,
    request: &Request<ChangeInvisibleDurationRequest>,
) -> Result<String, Refusal> {
    let caller = Caller::of_call(request.metadata())?;
    let deadline = deadline(request.metadata());
    let request = request.get_ref();
    let topic = convert::topic(request.topic.as_ref())?;
    let group = convert::group(request.group.as_ref())?;
    let after = time::lease(request.invisible_duration.as_ref(), Duration::ZERO)?;
    let kind = broker.client_lives(caller.id).map(|client| client.kind);
    let hold = match kind {
        _ if request.suspend() => Hold::Suspend(after),
        // Their programs have no such call: the listener has failed.
        Some(ClientKind::PushConsumer | ClientKind::LitePushConsumer) => Hold::RetryAfter(after),
        _ => Hold::For(after),
    };
    let entry = ExtendEntry { handle: &request.receipt_handle, hold };
    let changed = broker.extend(group, topic, &[entry], deadline).await;
    match changed.map_err(Refusal::of_lease)?.pop() {
        Some(Ok(handle)) => Ok(handle),
        Some(Err(ExtendFault::TooLong)) => {
            let fault = ExtendFault::TooLong.to_string();
            Err(Refusal::new(Code::IllegalInvisibleTime, fault))
        }
        Some(Err(ExtendFault::BadReceipt)) | None => Err(BrokerError::BadReceipt.into()),
    }
}

/// The most tries that are kept of what a consumer says of them.
const MAX_TOLD: i32 = 1_000_000;

/// Makes a dead letter. What the request says of attempts is kept in it and counts for nothing.
pub(super) async fn forward(
    broker: &Broker,
    request: &Request<ForwardMessageToDeadLetterQueueRequest>,
) -> Result<(), Refusal> {
    Caller::check(request.metadata().as_ref())?;
    let deadline = deadline(request.metadata());
    let request = request.get_ref();
    let topic = convert::topic(request.topic.as_ref())?;
    let group = convert::group(request.group.as_ref())?;
    let told = u32::try_from(request.delivery_attempt.clamp(0, MAX_TOLD)).unwrap_or(0);
    let given_up = (request.receipt_handle.as_str(), told);
    let forwarded = broker.forward_to_dead_letters(group, topic, given_up, deadline).await;
    forwarded.map_err(Refusal::of_lease)
}
