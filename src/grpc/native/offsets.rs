//! CommitOffsets, CommittedOffsets, QueryOffsets, ResetOffsets, ListOffsetHistory.

use tonic::{Request, Response};

use super::{or_default, range};
use crate::broker::{
    self, Broker, BrokerError, Caller, ChangeKind, Expected, HistoryRequest, Position,
    RequestFault, ResetQueue, ResetRequest, Run,
};
use crate::grpc::{deadline, peer};
use crate::message::{PhysicalOffset, QueueId, QueueOffset, Timestamp};
use crate::proto::commit_offset::Condition;
use crate::proto::offset_change::Kind;
use crate::proto::position::{At, Edge};
use crate::proto::{
    self, CommitOffsetsRequest, CommitOffsetsResponse, CommittedOffsetsRequest,
    CommittedOffsetsResponse, ListOffsetHistoryRequest, ListOffsetHistoryResponse,
    QueryOffsetsRequest, QueryOffsetsResponse, ResetOffsetsRequest, ResetOffsetsResponse,
};

const DEFAULT_PAGE: u32 = 1_000;

pub(super) async fn commit(
    broker: &Broker,
    request: Request<CommitOffsetsRequest>,
) -> Result<Response<CommitOffsetsResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let offsets: Vec<_> = request.offsets.iter().map(offset_of).collect();
    let caller = Caller { address: peer(), name: &request.by };
    broker.commit_offsets(&request.group, &offsets, caller, deadline).await?;
    Ok(Response::new(CommitOffsetsResponse {}))
}

pub(super) async fn committed(
    broker: &Broker,
    request: Request<CommittedOffsetsRequest>,
) -> Result<Response<CommittedOffsetsResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let (group, topic) = (&request.group, &request.topic);
    let queues = match request.queue {
        Some(queue) => {
            let queue = QueueId::new(queue);
            vec![broker.committed_offset(group, topic, queue, deadline).await?]
        }
        None => {
            let limit = or_default(request.limit, DEFAULT_PAGE);
            broker.progress(group, topic, request.first_queue, limit, deadline).await?
        }
    };
    let queues = queues.iter().map(progress).collect();
    Ok(Response::new(CommittedOffsetsResponse { queues }))
}

pub(super) async fn query(
    broker: &Broker,
    request: Request<QueryOffsetsRequest>,
) -> Result<Response<QueryOffsetsResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let at = position(request.at, "at")?;
    let limit = or_default(request.limit, DEFAULT_PAGE);
    let first = QueueId::new(request.first_queue);
    let queues = broker.offsets_at(&request.topic, first, limit, at, deadline).await?;
    let queue = |row: &broker::QueuePosition| proto::QueueOffset {
        queue: row.queue.get(),
        range: Some(range(row.range)),
        offset: row.offset.get(),
    };
    Ok(Response::new(QueryOffsetsResponse { queues: queues.iter().map(queue).collect() }))
}

pub(super) async fn reset(
    broker: &Broker,
    request: Request<ResetOffsetsRequest>,
) -> Result<Response<ResetOffsetsResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let reset = ResetRequest {
        group: &request.group,
        topic: &request.topic,
        queue: request.queue.map(QueueId::new),
        to: position(request.to, "to")?,
        caller: Caller { address: peer(), name: &request.by },
        run: if request.dry_run { Run::Dry } else { Run::Real },
    };
    let queues = broker.reset_offsets(reset, deadline).await?;
    let queue = |row: &ResetQueue| proto::ResetQueue {
        queue: row.queue.get(),
        range: Some(range(row.range)),
        old: row.old.map(QueueOffset::get),
        from: row.from.get(),
        new: row.new.get(),
    };
    Ok(Response::new(ResetOffsetsResponse {
        again: queues.iter().map(ResetQueue::again).sum(),
        skipped: queues.iter().map(ResetQueue::skipped).sum(),
        queues: queues.iter().map(queue).collect(),
    }))
}

pub(super) async fn history(
    broker: &Broker,
    request: Request<ListOffsetHistoryRequest>,
) -> Result<Response<ListOffsetHistoryResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let after = |place: proto::OffsetChangePlace| {
        (PhysicalOffset::new(place.position), QueueId::new(place.queue))
    };
    let asked = HistoryRequest {
        group: &request.group,
        topic: &request.topic,
        queue: request.queue.map(QueueId::new),
        after: request.after.map(after),
        limit: or_default(request.limit, DEFAULT_PAGE),
    };
    let page = broker.offset_history(asked, deadline).await?;
    let changes = page.changes.into_iter().map(change).collect();
    Ok(Response::new(ListOffsetHistoryResponse { changes, more: page.more }))
}

fn change(change: broker::OffsetChange) -> proto::OffsetChange {
    let kind = match change.kind {
        ChangeKind::Commit => Kind::Commit,
        ChangeKind::Rewind => Kind::Rewind,
        ChangeKind::Reset => Kind::Reset,
    };
    proto::OffsetChange {
        queue: change.queue.get(),
        time_ms: change.at.get(),
        kind: kind.into(),
        old: change.old.map(QueueOffset::get),
        new: change.new.get(),
        address: change.address.map(|address| address.to_string()).unwrap_or_default(),
        by: change.by.map(String::from).unwrap_or_default(),
        position: change.position.get(),
    }
}

/// How far a group is in a queue, for the wire.
pub(super) fn progress(progress: &broker::QueueProgress) -> proto::QueueProgress {
    proto::QueueProgress {
        queue: progress.queue.get(),
        range: Some(range(progress.range)),
        committed: progress.committed.map(QueueOffset::get),
        next: progress.next.get(),
        lag: progress.lag(),
        ready: progress.ready,
        leased: progress.leased,
        waiting: progress.waiting,
        lag_ms: progress.lag_ms,
    }
}

fn offset_of(offset: &proto::CommitOffset) -> broker::CommitOffset<'_> {
    broker::CommitOffset {
        topic: &offset.topic,
        queue: QueueId::new(offset.queue),
        offset: QueueOffset::new(offset.offset),
        known_queues: offset.known_queues,
        expected: match offset.condition {
            Some(Condition::Expected(offset)) => Expected::Offset(QueueOffset::new(offset)),
            Some(Condition::ExpectNone(true)) => Expected::Nothing,
            Some(Condition::ExpectNone(false)) | None => Expected::Any,
        },
    }
}

fn position(
    position: Option<proto::Position>,
    field: &'static str,
) -> Result<Position, BrokerError> {
    let refuse = |fault| Err(BrokerError::BadRequest { fault });
    match position.and_then(|position| position.at) {
        Some(At::Edge(edge)) => match Edge::try_from(edge) {
            Ok(Edge::Earliest) => Ok(Position::Earliest),
            Ok(Edge::Latest) => Ok(Position::Latest),
            Err(_) => refuse(RequestFault::Enumeration { field }),
        },
        Some(At::TimeMs(time)) => Ok(Position::Time(Timestamp::new(time))),
        Some(At::Offset(offset)) => Ok(Position::Offset(QueueOffset::new(offset))),
        None => refuse(RequestFault::NoPosition { field }),
    }
}
