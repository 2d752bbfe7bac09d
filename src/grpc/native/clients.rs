//! ListClients, DescribeClient.

use tonic::{Request, Response};

use super::or_default;
use crate::broker::{Broker, BrokerError, Client, ClientKind, FilterKind, Subscription};
use crate::proto::{
    self, DescribeClientRequest, DescribeClientResponse, ListClientsRequest, ListClientsResponse,
};

const DEFAULT_PAGE: u32 = 1_000;

pub(super) fn list(
    broker: &Broker,
    request: &Request<ListClientsRequest>,
) -> Result<Response<ListClientsResponse>, BrokerError> {
    let request = request.get_ref();
    let page = broker.list_clients(&request.after, or_default(request.limit, DEFAULT_PAGE))?;
    let clients = page.clients.iter().map(client).collect();
    Ok(Response::new(ListClientsResponse { clients, more: page.more }))
}

pub(super) fn describe(
    broker: &Broker,
    request: &Request<DescribeClientRequest>,
) -> Result<Response<DescribeClientResponse>, BrokerError> {
    let described = broker.describe_client(&request.get_ref().id)?;
    Ok(Response::new(DescribeClientResponse { client: Some(client(&described)) }))
}

fn client(client: &Client) -> proto::Client {
    let told = client.introduction.as_ref();
    let milliseconds = |time: std::time::Duration| u64::try_from(time.as_millis());
    proto::Client {
        id: client.id.as_ref().to_owned(),
        kind: kind(told.kind).into(),
        language: told.language.clone(),
        version: told.version.clone(),
        hostname: told.hostname.clone(),
        address: client.address.map(|address| address.to_string()).unwrap_or_default(),
        group: told.group.clone().unwrap_or_default(),
        topics: told.topics.clone(),
        subscriptions: told.subscriptions.iter().map(subscription).collect(),
        age_ms: milliseconds(client.age).unwrap_or(u64::MAX),
        idle_ms: milliseconds(client.idle).unwrap_or(u64::MAX),
        streams: u32::try_from(client.streams).unwrap_or(u32::MAX),
    }
}

fn kind(kind: ClientKind) -> proto::ClientKind {
    match kind {
        ClientKind::Producer => proto::ClientKind::Producer,
        ClientKind::PushConsumer => proto::ClientKind::PushConsumer,
        ClientKind::SimpleConsumer => proto::ClientKind::SimpleConsumer,
        ClientKind::PullConsumer => proto::ClientKind::PullConsumer,
        ClientKind::LitePushConsumer => proto::ClientKind::LitePushConsumer,
        ClientKind::LiteSimpleConsumer => proto::ClientKind::LiteSimpleConsumer,
    }
}

fn subscription(subscription: &Subscription) -> proto::Subscription {
    let kind = match subscription.kind {
        FilterKind::Tags => proto::FilterKind::Tags,
        FilterKind::Sql => proto::FilterKind::Sql92,
    };
    let (topic, expression) = (subscription.topic.clone(), subscription.expression.clone());
    proto::Subscription { topic, kind: kind.into(), expression }
}
