//! CreateTopic, DeleteTopic, ListTopics, DescribeTopic.

use tonic::{Request, Response};

use super::{or_default, range};
use crate::broker::{Broker, BrokerError, RequestFault, TopicEntry, TopicSettings};
use crate::grpc::deadline;
use crate::message::{FlushMode, TopicType};
use crate::proto::{
    self, CreateTopicRequest, CreateTopicResponse, DeleteTopicRequest, DeleteTopicResponse,
    DescribeTopicRequest, DescribeTopicResponse, ListTopicsRequest, ListTopicsResponse,
    QueueDescription, Topic, TopicConfig,
};

const DEFAULT_QUEUES: u32 = 4;
const DEFAULT_PAGE: u32 = 1_000;

pub(super) async fn create(
    broker: &Broker,
    request: Request<CreateTopicRequest>,
) -> Result<Response<CreateTopicResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let settings = settings(&request.config.unwrap_or_default(), broker.flush_default())?;
    let made = broker.create_topic(&request.name, settings, deadline).await?;
    Ok(Response::new(CreateTopicResponse { topic: Some(topic(&made)) }))
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

fn settings(config: &TopicConfig, default: FlushMode) -> Result<TopicSettings, BrokerError> {
    let unknown = |field| BrokerError::BadRequest { fault: RequestFault::Enumeration { field } };
    let flush = match proto::FlushMode::try_from(config.flush) {
        Ok(proto::FlushMode::Unspecified) => default,
        Ok(proto::FlushMode::Sync) => FlushMode::Sync,
        Ok(proto::FlushMode::Async) => FlushMode::Async,
        Err(_) => return Err(unknown("flush")),
    };
    let topic_type = match proto::TopicType::try_from(config.r#type) {
        Ok(proto::TopicType::Unspecified | proto::TopicType::Mixed) => TopicType::Mixed,
        Ok(proto::TopicType::Normal) => TopicType::Normal,
        Ok(proto::TopicType::Fifo) => TopicType::Fifo,
        Ok(proto::TopicType::Delay) => TopicType::Delay,
        Ok(proto::TopicType::Transaction) => TopicType::Transaction,
        Err(_) => return Err(unknown("type")),
    };
    Ok(TopicSettings::open(or_default(config.queues, DEFAULT_QUEUES), flush, topic_type))
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
    Topic {
        name: entry.name().to_owned(),
        id: entry.id().get(),
        config: Some(TopicConfig {
            queues: settings.queues,
            flush: flush.into(),
            r#type: topic_type.into(),
        }),
    }
}
