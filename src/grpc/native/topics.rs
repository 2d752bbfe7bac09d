//! CreateTopic, UpdateTopic, PurgeTopic, DeleteTopic, ListTopics, DescribeTopic.

use tonic::{Request, Response};

use super::{or_default, range};
use crate::broker::{Broker, BrokerError, Purge, RequestFault, TopicChanges, TopicEntry};
use crate::grpc::deadline;
use crate::message::{Access, FlushMode, Force, Keep, QueueId, QueueOffset, TopicType};
use crate::proto::{
    self, CreateTopicRequest, CreateTopicResponse, DeleteTopicRequest, DeleteTopicResponse,
    DescribeTopicRequest, DescribeTopicResponse, ListTopicsRequest, ListTopicsResponse,
    PurgeTopicRequest, PurgeTopicResponse, QueueDescription, Topic, TopicConfig,
    UpdateTopicRequest, UpdateTopicResponse,
};

/// On the wire: no limit of the retention.
const KEEP_ALL: u64 = u64::MAX;

const DEFAULT_PAGE: u32 = 1_000;

pub(super) async fn create(
    broker: &Broker,
    request: Request<CreateTopicRequest>,
) -> Result<Response<CreateTopicResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let changes = changes(&request.config.unwrap_or_default())?;
    let settings = changes.on(broker.topic_defaults());
    let made = broker.create_topic(&request.name, settings, deadline).await?;
    Ok(Response::new(CreateTopicResponse { topic: Some(topic(&made)) }))
}

pub(super) async fn update(
    broker: &Broker,
    request: Request<UpdateTopicRequest>,
) -> Result<Response<UpdateTopicResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let changes = changes(&request.config.unwrap_or_default())?;
    let force = if request.force { Force::Yes } else { Force::No };
    let updated = broker.update_topic(&request.name, &changes, force, deadline).await?;
    Ok(Response::new(UpdateTopicResponse { topic: Some(topic(&updated)) }))
}

pub(super) async fn purge(
    broker: &Broker,
    request: Request<PurgeTopicRequest>,
) -> Result<Response<PurgeTopicResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let what = match (request.queue, request.up_to) {
        (None, None) => Purge::Topic,
        (Some(queue), up_to) => {
            Purge::Queue { queue: QueueId::new(queue), up_to: up_to.map(QueueOffset::new) }
        }
        (None, Some(_)) => {
            let fault = RequestFault::OffsetWithoutQueue;
            return Err(BrokerError::BadRequest { fault });
        }
    };
    let messages = broker.purge_topic(&request.name, what, deadline).await?;
    Ok(Response::new(PurgeTopicResponse { messages }))
}

pub(super) async fn delete(
    broker: &Broker,
    request: Request<DeleteTopicRequest>,
) -> Result<Response<DeleteTopicResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    broker.delete_topic(&request.get_ref().name, deadline).await?;
    Ok(Response::new(DeleteTopicResponse {}))
}

pub(super) async fn list(
    broker: &Broker,
    request: Request<ListTopicsRequest>,
) -> Result<Response<ListTopicsResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let limit = or_default(request.limit, DEFAULT_PAGE);
    let page = broker.list_topics(&request.after, limit, deadline).await?;
    let topics = page.topics.iter().map(|entry| topic(entry)).collect();
    Ok(Response::new(ListTopicsResponse { topics, more: page.more }))
}

pub(super) async fn describe(
    broker: &Broker,
    request: Request<DescribeTopicRequest>,
) -> Result<Response<DescribeTopicResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let limit = or_default(request.limit, DEFAULT_PAGE);
    let described =
        broker.describe_topic(&request.name, request.first_queue, limit, deadline).await?;
    let queue = |q: &crate::broker::QueueDescription| QueueDescription {
        queue: q.queue.get(),
        range: Some(range(q.range)),
    };
    Ok(Response::new(DescribeTopicResponse {
        topic: Some(topic(&described.topic)),
        queues: described.queues.iter().map(queue).collect(),
    }))
}

/// What of a configuration is set.
fn changes(config: &TopicConfig) -> Result<TopicChanges, BrokerError> {
    let unknown = |field| BrokerError::BadRequest { fault: RequestFault::Enumeration { field } };
    let flush = match proto::FlushMode::try_from(config.flush) {
        Ok(proto::FlushMode::Unspecified) => None,
        Ok(proto::FlushMode::Sync) => Some(FlushMode::Sync),
        Ok(proto::FlushMode::Async) => Some(FlushMode::Async),
        Err(_) => return Err(unknown("flush")),
    };
    let topic_type = match proto::TopicType::try_from(config.r#type) {
        Ok(proto::TopicType::Unspecified) => None,
        Ok(proto::TopicType::Normal) => Some(TopicType::Normal),
        Ok(proto::TopicType::Fifo) => Some(TopicType::Fifo),
        Ok(proto::TopicType::Delay) => Some(TopicType::Delay),
        Ok(proto::TopicType::Transaction) => Some(TopicType::Transaction),
        Ok(proto::TopicType::Mixed) => Some(TopicType::Mixed),
        Err(_) => return Err(unknown("type")),
    };
    let access = match proto::Access::try_from(config.access) {
        Ok(proto::Access::Unspecified) => None,
        Ok(proto::Access::ReadWrite) => Some(Access { read: true, write: true }),
        Ok(proto::Access::ReadOnly) => Some(Access { read: true, write: false }),
        Ok(proto::Access::WriteOnly) => Some(Access { read: false, write: true }),
        Ok(proto::Access::NoAccess) => Some(Access { read: false, write: false }),
        Err(_) => return Err(unknown("access")),
    };
    let keep = |limit| if limit == KEEP_ALL { Keep::All } else { Keep::UpTo(limit) };
    Ok(TopicChanges {
        queues: Some(config.queues).filter(|queues| *queues > 0),
        flush,
        topic_type,
        access,
        retention_time: config.retention_ms.map(keep),
        retention_bytes: config.retention_bytes.map(keep),
    })
}

fn topic(entry: &TopicEntry) -> Topic {
    let settings = entry.settings();
    let flush = match settings.flush {
        FlushMode::Sync => proto::FlushMode::Sync,
        FlushMode::Async => proto::FlushMode::Async,
    };
    let topic_type = match settings.topic_type {
        TopicType::Normal => proto::TopicType::Normal,
        TopicType::Fifo => proto::TopicType::Fifo,
        TopicType::Delay => proto::TopicType::Delay,
        TopicType::Transaction => proto::TopicType::Transaction,
        TopicType::Mixed => proto::TopicType::Mixed,
    };
    let access = match settings.access {
        Access { read: true, write: true } => proto::Access::ReadWrite,
        Access { read: true, write: false } => proto::Access::ReadOnly,
        Access { read: false, write: true } => proto::Access::WriteOnly,
        Access { read: false, write: false } => proto::Access::NoAccess,
    };
    Topic {
        name: entry.name().to_owned(),
        id: entry.id().get(),
        config: Some(TopicConfig {
            queues: settings.queues,
            flush: flush.into(),
            r#type: topic_type.into(),
            access: access.into(),
            retention_ms: Some(settings.retention.time_ms.unwrap_or(KEEP_ALL)),
            retention_bytes: Some(settings.retention.bytes.unwrap_or(KEEP_ALL)),
        }),
    }
}
