//! OpenSession, CloseSession, ListSessions, DescribeSession.

use tonic::{Request, Response};

use super::or_default;
use crate::broker::{Broker, BrokerError, RequestFault, SessionDescription};
use crate::grpc::deadline;
use crate::message::SessionId;
use crate::proto::{
    CloseSessionRequest, CloseSessionResponse, DescribeSessionRequest, DescribeSessionResponse,
    ListSessionsRequest, ListSessionsResponse, OpenSessionRequest, OpenSessionResponse,
    ProducerSession,
};

const DEFAULT_PAGE: u32 = 1_000;

pub(super) async fn open(
    broker: &Broker,
    request: Request<OpenSessionRequest>,
) -> Result<Response<OpenSessionResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let session = broker.open_session(&request.get_ref().name, deadline).await?;
    Ok(Response::new(OpenSessionResponse {
        id: session.id.get(),
        epoch: session.epoch,
        next_sequence: session.last_sequence.saturating_add(1),
    }))
}

pub(super) async fn close(
    broker: &Broker,
    request: Request<CloseSessionRequest>,
) -> Result<Response<CloseSessionResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let holder = match (request.id, request.epoch) {
        (Some(id), Some(epoch)) => Some((SessionId::new(id), epoch)),
        (None, None) => None,
        _ => return Err(BrokerError::BadRequest { fault: RequestFault::HalfAHolder }),
    };
    broker.close_session(&request.name, holder, deadline).await?;
    Ok(Response::new(CloseSessionResponse {}))
}

pub(super) async fn list(
    broker: &Broker,
    request: Request<ListSessionsRequest>,
) -> Result<Response<ListSessionsResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let limit = or_default(request.limit, DEFAULT_PAGE);
    let page = broker.list_sessions(&request.after, limit, deadline).await?;
    let sessions = page.sessions.iter().map(session).collect();
    Ok(Response::new(ListSessionsResponse { sessions, more: page.more }))
}

pub(super) async fn describe(
    broker: &Broker,
    request: Request<DescribeSessionRequest>,
) -> Result<Response<DescribeSessionResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let described = broker.describe_session(&request.get_ref().name, deadline).await?;
    Ok(Response::new(DescribeSessionResponse { session: Some(session(&described)) }))
}

fn session(described: &SessionDescription) -> ProducerSession {
    let session = &described.session;
    ProducerSession {
        name: session.name.as_ref().to_owned(),
        id: session.id.get(),
        epoch: session.epoch,
        last_sequence: session.last_sequence,
        idle_ms: u64::try_from(described.idle.as_millis()).unwrap_or(u64::MAX),
    }
}
