//! Send.

use tonic::{Request, Response};

use crate::broker::{self, Broker, BrokerError, Receipt};
use crate::grpc::deadline;
use crate::message::{QueueId, SessionId, SessionMark};
use crate::proto::{SendRequest, SendResponse};

pub(super) async fn send(
    broker: &Broker,
    request: Request<SendRequest>,
) -> Result<Response<SendResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let receipt = broker
        .send(broker::SendRequest {
            topic: &request.topic,
            queue: request.queue.map(QueueId::new),
            batch: request.batch,
            session: request.session.map(|mark| SessionMark {
                session: SessionId::new(mark.id),
                epoch: mark.epoch,
                sequence: mark.sequence,
            }),
            deadline,
        })
        .await?;
    Ok(Response::new(wire(receipt)))
}

/// A receipt for the wire.
pub(super) fn wire(receipt: Receipt) -> SendResponse {
    SendResponse {
        queue: receipt.queue.get(),
        first_queue_offset: receipt.first_queue_offset.get(),
        physical_offset: receipt.offset.get(),
        epoch: receipt.epoch.get(),
        store_time_ms: receipt.store_time.get(),
        count: receipt.message_count.into(),
        duplicate: receipt.is_duplicate,
    }
}
