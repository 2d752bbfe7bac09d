//! `mainstem.v1`: check, ask the broker, convert. The proto file is the contract; limits and defaults that it names as
//! "0: so many" are filled in here, everything else is the broker's.
//!
//! | file | calls |
//! | --- | --- |
//! | `send.rs` | Send |
//! | `send_stream.rs` | SendStream |
//! | `pull.rs` | Pull, PullStream |
//! | `query.rs` | QueryMessages |
//! | `receive.rs` | Receive, Ack, Extend |
//! | `consume.rs` | Consume |
//! | `topics.rs` | CreateTopic, UpdateTopic, PurgeTopic, DeleteTopic, ListTopics, DescribeTopic |
//! | `groups.rs` | CreateGroup, UpdateGroup, DeleteGroup, ListGroups, DescribeGroup |
//! | `offsets.rs` | CommitOffsets, CommittedOffsets, QueryOffsets, ResetOffsets, ListOffsetHistory |
//! | `overview.rs` | Status |
//! | `clients.rs` | ListClients, DescribeClient |
//! | `sessions.rs` | OpenSession, CloseSession, ListSessions, DescribeSession |
//! | `store.rs` | VerifyStore |
//! | [`status`] | none: what a refusal looks like on the wire |

mod clients;
mod consume;
mod groups;
mod offsets;
mod overview;
mod pull;
mod query;
mod receive;
mod send;
mod send_stream;
mod sessions;
pub(super) mod status;
mod store;
mod topics;

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Body as HttpBody;
use tonic::body::Body;
use tonic::codegen::{StdError, http};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::deadline_of;
use super::outgoing::Outgoing;
use super::raw::{self, Messages};
use super::serve::Ends;

use crate::broker::QueueRange;
use crate::broker::{self, Broker, BrokerError, DeadReason};
use crate::message::Timestamp;
use crate::proto;
use crate::proto::admin_server::{Admin, AdminServer};
use crate::proto::broker_server::{Broker as BrokerService, BrokerServer};
use crate::proto::{
    CloseSessionRequest, CloseSessionResponse, DescribeSessionRequest, DescribeSessionResponse,
    ListSessionsRequest, ListSessionsResponse, OpenSessionRequest, OpenSessionResponse,
};
use crate::proto::{
    CreateTopicRequest, CreateTopicResponse, DeleteTopicRequest, DeleteTopicResponse,
    DescribeTopicRequest, DescribeTopicResponse, ListTopicsRequest, ListTopicsResponse,
    OffsetRange, PullRequest, PullResponse, PurgeTopicRequest, PurgeTopicResponse,
    QueryMessagesRequest, QueryMessagesResponse, SendRequest, SendResponse, StatusRequest,
    StatusResponse, UpdateTopicRequest, UpdateTopicResponse, VerifyStoreRequest,
};

/// The largest request: the largest batch and room for what surrounds it.
const MAX_REQUEST: usize = 9 << 20;
/// The largest with receipts, for which it has room twice over: each is at most 256 bytes.
const MAX_RECEIPTS: usize = 1 << 20;
/// The largest that asks for records: a filter, and the begin in each queue.
const MAX_WANTED: usize = 64 << 10;

/// Both services.
#[derive(Clone, Debug)]
struct Native {
    broker: Arc<Broker>,
}

/// The routes of both services.
pub(super) fn routes(broker: Arc<Broker>) -> Routes {
    let native = Arc::new(Native { broker });
    let messages =
        BrokerServer::from_arc(Arc::clone(&native)).max_decoding_message_size(MAX_REQUEST);
    let admin = AdminServer::from_arc(native).max_decoding_message_size(MAX_REQUEST);
    Routes::new(messages).add_service(admin)
}

/// A call that does without the codec that the other calls have: one that carries many bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum RawCall {
    /// SendStream.
    SendStream,
    /// Pull.
    Pull,
    /// PullStream.
    PullStream,
    /// Consume.
    Consume,
}

impl RawCall {
    /// The call of a path, if it is one of these.
    pub(super) fn of(path: &str) -> Option<Self> {
        match path {
            "/mainstem.v1.Broker/SendStream" => Some(Self::SendStream),
            "/mainstem.v1.Broker/Pull" => Some(Self::Pull),
            "/mainstem.v1.Broker/PullStream" => Some(Self::PullStream),
            "/mainstem.v1.Broker/Consume" => Some(Self::Consume),
            _ => None,
        }
    }

    /// The answer, whose body does the work.
    pub(super) fn answer<B>(
        self,
        broker: &Arc<Broker>,
        outgoing: &Outgoing,
        ends: Option<Ends>,
        request: http::Request<B>,
    ) -> http::Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<StdError>,
    {
        let (broker, outgoing) = (Arc::clone(broker), outgoing.clone());
        let until = deadline_of(request.headers());
        let messages = |max| Messages::new(request.into_body(), Arc::clone(&broker), max);
        match self {
            Self::SendStream => {
                let messages = messages(MAX_REQUEST);
                raw::answer(outgoing, |out| send_stream::run(broker, messages, out))
            }
            Self::Pull => {
                let request = messages(MAX_WANTED).only();
                raw::answer(outgoing, |out| async move {
                    pull::pull(broker, request.await?, until, out).await
                })
            }
            Self::Consume => {
                let messages = messages(MAX_RECEIPTS);
                raw::answer(outgoing, |out| consume::run(broker, ends, messages, out))
            }
            Self::PullStream => {
                let request = messages(MAX_WANTED).only();
                raw::answer(outgoing, |out| async move {
                    pull::pull_stream(broker, request.await?, out).await
                })
            }
        }
    }
}

const RAW: &str = "the call has a way of its own";

impl Native {
    /// Counts a refusal and words it for the wire.
    fn refuse(&self, error: BrokerError) -> Status {
        raw::refusal(&self.broker, &error)
    }
}

#[tonic::async_trait]
impl BrokerService for Native {
    async fn send(&self, request: Request<SendRequest>) -> Result<Response<SendResponse>, Status> {
        send::send(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    type SendStreamStream = tokio_stream::Empty<Result<proto::SendStreamResponse, Status>>;

    /// Never called: [`RawCall`] answers before.
    async fn send_stream(
        &self,
        _request: Request<tonic::Streaming<proto::SendStreamRequest>>,
    ) -> Result<Response<Self::SendStreamStream>, Status> {
        Err(Status::unimplemented(RAW))
    }

    /// Never called: [`RawCall`] answers before.
    async fn pull(&self, _request: Request<PullRequest>) -> Result<Response<PullResponse>, Status> {
        Err(Status::unimplemented(RAW))
    }

    type PullStreamStream = tokio_stream::Empty<Result<proto::PullStreamResponse, Status>>;

    /// Never called: [`RawCall`] answers before.
    async fn pull_stream(
        &self,
        _request: Request<proto::PullStreamRequest>,
    ) -> Result<Response<Self::PullStreamStream>, Status> {
        Err(Status::unimplemented(RAW))
    }

    async fn query_messages(
        &self,
        request: Request<QueryMessagesRequest>,
    ) -> Result<Response<QueryMessagesResponse>, Status> {
        query::query(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn open_session(
        &self,
        request: Request<OpenSessionRequest>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        sessions::open(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn close_session(
        &self,
        request: Request<CloseSessionRequest>,
    ) -> Result<Response<CloseSessionResponse>, Status> {
        sessions::close(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    type ConsumeStream = tokio_stream::Empty<Result<proto::ConsumeResponse, Status>>;

    /// Never called: [`RawCall`] answers before.
    async fn consume(
        &self,
        _request: Request<tonic::Streaming<proto::ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        Err(Status::unimplemented(RAW))
    }

    async fn receive(
        &self,
        request: Request<proto::ReceiveRequest>,
    ) -> Result<Response<proto::ReceiveResponse>, Status> {
        receive::receive(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn ack(
        &self,
        request: Request<proto::AckRequest>,
    ) -> Result<Response<proto::AckResponse>, Status> {
        receive::ack(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn extend(
        &self,
        request: Request<proto::ExtendRequest>,
    ) -> Result<Response<proto::ExtendResponse>, Status> {
        receive::extend(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn commit_offsets(
        &self,
        request: Request<proto::CommitOffsetsRequest>,
    ) -> Result<Response<proto::CommitOffsetsResponse>, Status> {
        offsets::commit(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn committed_offsets(
        &self,
        request: Request<proto::CommittedOffsetsRequest>,
    ) -> Result<Response<proto::CommittedOffsetsResponse>, Status> {
        offsets::committed(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn query_offsets(
        &self,
        request: Request<proto::QueryOffsetsRequest>,
    ) -> Result<Response<proto::QueryOffsetsResponse>, Status> {
        offsets::query(&self.broker, request).await.map_err(|error| self.refuse(error))
    }
}

#[tonic::async_trait]
impl Admin for Native {
    async fn create_topic(
        &self,
        request: Request<CreateTopicRequest>,
    ) -> Result<Response<CreateTopicResponse>, Status> {
        topics::create(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn delete_topic(
        &self,
        request: Request<DeleteTopicRequest>,
    ) -> Result<Response<DeleteTopicResponse>, Status> {
        topics::delete(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn list_topics(
        &self,
        request: Request<ListTopicsRequest>,
    ) -> Result<Response<ListTopicsResponse>, Status> {
        topics::list(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn describe_topic(
        &self,
        request: Request<DescribeTopicRequest>,
    ) -> Result<Response<DescribeTopicResponse>, Status> {
        topics::describe(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        Ok(overview::status(&self.broker))
    }

    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        sessions::list(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn describe_session(
        &self,
        request: Request<DescribeSessionRequest>,
    ) -> Result<Response<DescribeSessionResponse>, Status> {
        sessions::describe(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn list_clients(
        &self,
        request: Request<proto::ListClientsRequest>,
    ) -> Result<Response<proto::ListClientsResponse>, Status> {
        clients::list(&self.broker, &request).map_err(|error| self.refuse(error))
    }

    async fn describe_client(
        &self,
        request: Request<proto::DescribeClientRequest>,
    ) -> Result<Response<proto::DescribeClientResponse>, Status> {
        clients::describe(&self.broker, &request).map_err(|error| self.refuse(error))
    }

    type VerifyStoreStream = store::Events;

    async fn verify_store(
        &self,
        request: Request<VerifyStoreRequest>,
    ) -> Result<Response<store::Events>, Status> {
        store::verify(&self.broker, &request).map_err(|error| self.refuse(error))
    }

    async fn update_topic(
        &self,
        request: Request<UpdateTopicRequest>,
    ) -> Result<Response<UpdateTopicResponse>, Status> {
        topics::update(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn purge_topic(
        &self,
        request: Request<PurgeTopicRequest>,
    ) -> Result<Response<PurgeTopicResponse>, Status> {
        topics::purge(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn create_group(
        &self,
        request: Request<proto::CreateGroupRequest>,
    ) -> Result<Response<proto::CreateGroupResponse>, Status> {
        groups::create(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn update_group(
        &self,
        request: Request<proto::UpdateGroupRequest>,
    ) -> Result<Response<proto::UpdateGroupResponse>, Status> {
        groups::update(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn delete_group(
        &self,
        request: Request<proto::DeleteGroupRequest>,
    ) -> Result<Response<proto::DeleteGroupResponse>, Status> {
        groups::delete(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn list_groups(
        &self,
        request: Request<proto::ListGroupsRequest>,
    ) -> Result<Response<proto::ListGroupsResponse>, Status> {
        groups::list(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn describe_group(
        &self,
        request: Request<proto::DescribeGroupRequest>,
    ) -> Result<Response<proto::DescribeGroupResponse>, Status> {
        groups::describe(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn redrive_dead_letters(
        &self,
        request: Request<proto::RedriveDeadLettersRequest>,
    ) -> Result<Response<proto::RedriveDeadLettersResponse>, Status> {
        groups::redrive(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn list_waiting(
        &self,
        request: Request<proto::ListWaitingRequest>,
    ) -> Result<Response<proto::ListWaitingResponse>, Status> {
        groups::waiting(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn settle_waiting(
        &self,
        request: Request<proto::SettleWaitingRequest>,
    ) -> Result<Response<proto::SettleWaitingResponse>, Status> {
        groups::settle_waiting(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn reset_offsets(
        &self,
        request: Request<proto::ResetOffsetsRequest>,
    ) -> Result<Response<proto::ResetOffsetsResponse>, Status> {
        offsets::reset(&self.broker, request).await.map_err(|error| self.refuse(error))
    }

    async fn list_offset_history(
        &self,
        request: Request<proto::ListOffsetHistoryRequest>,
    ) -> Result<Response<proto::ListOffsetHistoryResponse>, Status> {
        offsets::history(&self.broker, request).await.map_err(|error| self.refuse(error))
    }
}

fn range(range: QueueRange) -> OffsetRange {
    OffsetRange { min: range.min.get(), max: range.max.get() }
}

/// A number of which 0 stands for the default.
fn or_default(number: u32, default: u32) -> u32 {
    if number == 0 { default } else { number }
}

/// A count for the wire.
fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// What there is to know of a dead letter, by the attributes of its record.
fn dead_letter(attributes: &[u8]) -> Option<proto::DeadLetter> {
    if attributes.is_empty() {
        return None;
    }
    let letter = broker::dead_letter(attributes)?;
    let reason = match letter.reason {
        DeadReason::Attempts => proto::DeadReason::Attempts,
        DeadReason::GivenUp => proto::DeadReason::GivenUp,
        DeadReason::Undecodable => proto::DeadReason::Undecodable,
        DeadReason::Operator => proto::DeadReason::Operator,
    };
    let is_known = letter.store_time > Timestamp::ZERO;
    Some(proto::DeadLetter {
        reason: reason.into(),
        topic: letter.topic_name.to_owned(),
        queue: letter.queue.get(),
        queue_offset: letter.queue_offset.get(),
        message_id: if is_known { letter.id.to_string() } else { String::new() },
        store_time_ms: letter.store_time.get(),
        deliveries: letter.deliveries,
        first_delivered_ms: letter.first_delivered.get(),
        last_delivered_ms: letter.last_delivered.get(),
        last_client: letter.last_client.to_owned(),
        messages: letter.messages,
        redriven: letter.redriven,
        is_back: letter.is_back,
        told_tries: letter.told_tries,
    })
}
