//! VerifyStore.

use std::pin::Pin;
use std::sync::Arc;

use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use super::status;
use crate::broker::{Broker, BrokerError, Finding, VerifyEvent};
use crate::proto::verify_store_response::Event;
use crate::proto::{
    DamagedRange, OffsetRange, VerifyFinding, VerifyProgress, VerifyStoreRequest,
    VerifyStoreResponse, VerifySummary,
};

/// The events of a verification, as they come.
pub(super) type Events =
    Pin<Box<dyn Stream<Item = Result<VerifyStoreResponse, Status>> + Send + 'static>>;

pub(super) fn verify(
    broker: &Arc<Broker>,
    request: &Request<VerifyStoreRequest>,
) -> Result<Response<Events>, BrokerError> {
    let events = broker.verify(request.get_ref().bytes_per_second)?;
    let counted = Arc::clone(broker);
    let events = ReceiverStream::new(events).map(move |event| match event {
        Ok(event) => Ok(VerifyStoreResponse { event: Some(wire(event)) }),
        Err(error) => {
            counted.counters().refused(error.reason());
            Err(status::of(&error))
        }
    });
    Ok(Response::new(Box::pin(events)))
}

fn wire(event: VerifyEvent) -> Event {
    match event {
        VerifyEvent::Progress { done, total } => Event::Progress(VerifyProgress { done, total }),
        VerifyEvent::Found(finding) => Event::Finding(found(finding)),
        VerifyEvent::Done(summary) => Event::Summary(VerifySummary {
            segments: summary.segments,
            records: summary.records,
            messages: summary.messages,
            log_bytes: summary.log_bytes,
            derived_files: summary.derived_files,
            damaged: summary.damaged,
            damaged_bytes: summary.damaged_bytes,
            refused: summary.refused,
            disordered: summary.disordered,
            derived: summary.derived,
            redundant: summary.redundant,
        }),
    }
}

fn found(finding: Finding) -> VerifyFinding {
    VerifyFinding {
        kind: finding.kind.as_str().to_owned(),
        file: finding.file,
        range: finding
            .range
            .map(|range| DamagedRange { begin: range.start.get(), end: range.end.get() }),
        topic_id: finding.queue.map(|queue| queue.topic.get()),
        queue: finding.queue.map(|queue| queue.queue.get()),
        offsets: finding
            .offsets
            .map(|range| OffsetRange { min: range.start.get(), max: range.end.get() }),
        what: finding.what,
    }
}
