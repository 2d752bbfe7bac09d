//! Pull.

use std::time::Duration;

use tonic::{Request, Response};

use super::{or_default, range};
use crate::broker::StoredRecord;
use crate::broker::{self, Broker, BrokerError};
use crate::grpc::deadline;
use crate::grpc::serve::Held;
use crate::message::{Epoch, QueueId, QueueOffset};
use crate::proto::{PullRequest, PullResponse, Record};

const DEFAULT_MESSAGES: u32 = 1_000;
const DEFAULT_BYTES: u32 = 4 << 20;

pub(super) async fn pull(
    broker: &Broker,
    request: Request<PullRequest>,
) -> Result<Response<PullResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let pulled = broker
        .pull(broker::PullRequest {
            topic: &request.topic,
            queue: QueueId::new(request.queue),
            offset: QueueOffset::new(request.offset),
            max_messages: or_default(request.max_messages, DEFAULT_MESSAGES),
            max_bytes: or_default(request.max_bytes, DEFAULT_BYTES),
            wait: Duration::from_millis(request.wait_ms.into()),
            tags: &request.tags,
            group: Some(request.group.as_str()).filter(|group| !group.is_empty()),
            epoch: Some(Epoch::new(request.epoch)).filter(|epoch| *epoch != Epoch::ZERO),
            deadline,
        })
        .await?;
    let mut response = Response::new(PullResponse {
        records: pulled.records.into_iter().map(record).collect(),
        next_offset: pulled.next.get(),
        range: Some(range(pulled.range)),
        epoch: pulled.epoch.get(),
    });
    if let Some(permit) = pulled.permit {
        response.extensions_mut().insert(Held::new(permit));
    }
    Ok(response)
}

fn record(record: StoredRecord) -> Record {
    Record {
        epoch: record.epoch.get(),
        physical_offset: record.offset.get(),
        first_queue_offset: record.first_queue_offset.get(),
        count: record.message_count.into(),
        store_time_ms: record.store_time.get(),
        batch: record.batch,
    }
}
