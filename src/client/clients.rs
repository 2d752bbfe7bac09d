//! Who is connected over the protocol of RocketMQ.

use std::time::Duration;

use super::{CALL_TIMEOUT, Client, ClientError, within};
use crate::proto;

/// What a connected client is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientKind {
    /// Sends.
    Producer,
    /// Receives and hands messages to a listener.
    PushConsumer,
    /// Receives when its program says so.
    SimpleConsumer,
    /// Reads queues by offsets.
    PullConsumer,
    /// As a push consumer, of lite topics.
    LitePushConsumer,
    /// As a simple consumer, of lite topics.
    LiteSimpleConsumer,
    /// One that this client does not know.
    Unrecognised,
}

/// The language of a subscription's expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterKind {
    /// Tags, joined by `||`; `*` is all.
    Tags,
    /// A condition in SQL92.
    Sql,
    /// One that this client does not know.
    Unrecognised,
}

/// What a connected consumer wants of a topic, as it said so itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The topic's name.
    pub topic: String,
    /// The language of the expression.
    pub kind: FilterKind,
    /// Which messages.
    pub expression: String,
}

/// A client that is connected over the protocol of RocketMQ, as the broker knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectedClient {
    /// As it calls itself.
    pub id: String,
    /// What it is for.
    pub kind: ClientKind,
    /// As it spells it.
    pub language: String,
    /// Of its library.
    pub version: String,
    /// The machine, as it calls it.
    pub hostname: String,
    /// Address and port that its last word about itself came from.
    pub address: String,
    /// Of a consumer.
    pub group: Option<String>,
    /// Of a producer: those that it has named.
    pub topics: Vec<String>,
    /// Of a consumer.
    pub subscriptions: Vec<Subscription>,
    /// Since it was first heard of.
    pub age: Duration,
    /// Since it was last heard of.
    pub idle: Duration,
    /// Over which the broker can tell it something.
    pub streams: u32,
}

impl Client {
    /// One page of connected clients in the order of their ids, and whether there are more after the last of them.
    ///
    /// # Errors
    /// As every call.
    pub async fn clients(&self, after: &str) -> Result<(Vec<ConnectedClient>, bool), ClientError> {
        let request = proto::ListClientsRequest { after: after.to_owned(), limit: 0 };
        let answer = self.admin.clone().list_clients(within(request, CALL_TIMEOUT)).await;
        let answer = self.answer(answer)?;
        Ok((answer.clients.into_iter().map(ConnectedClient::from).collect(), answer.more))
    }

    /// The connected client of an id.
    ///
    /// # Errors
    /// Refusal: `UnknownClient`.
    pub async fn describe_client(&self, id: &str) -> Result<ConnectedClient, ClientError> {
        let request = proto::DescribeClientRequest { id: id.to_owned() };
        let answer = self.admin.clone().describe_client(within(request, CALL_TIMEOUT)).await;
        let client = self.answer(answer)?.client;
        client
            .map(ConnectedClient::from)
            .ok_or_else(|| self.bad_answer(super::AnswerError::Missing { field: "client" }))
    }
}

impl From<proto::Client> for ConnectedClient {
    fn from(client: proto::Client) -> Self {
        Self {
            kind: kind(client.kind()),
            id: client.id,
            language: client.language,
            version: client.version,
            hostname: client.hostname,
            address: client.address,
            group: Some(client.group).filter(|group| !group.is_empty()),
            topics: client.topics,
            subscriptions: client.subscriptions.into_iter().map(Subscription::from).collect(),
            age: Duration::from_millis(client.age_ms),
            idle: Duration::from_millis(client.idle_ms),
            streams: client.streams,
        }
    }
}

impl From<proto::Subscription> for Subscription {
    fn from(subscription: proto::Subscription) -> Self {
        let kind = match subscription.kind() {
            proto::FilterKind::Tags => FilterKind::Tags,
            proto::FilterKind::Sql92 => FilterKind::Sql,
            proto::FilterKind::Unspecified => FilterKind::Unrecognised,
        };
        Self { topic: subscription.topic, kind, expression: subscription.expression }
    }
}

fn kind(kind: proto::ClientKind) -> ClientKind {
    match kind {
        proto::ClientKind::Unspecified => ClientKind::Unrecognised,
        proto::ClientKind::Producer => ClientKind::Producer,
        proto::ClientKind::PushConsumer => ClientKind::PushConsumer,
        proto::ClientKind::SimpleConsumer => ClientKind::SimpleConsumer,
        proto::ClientKind::PullConsumer => ClientKind::PullConsumer,
        proto::ClientKind::LitePushConsumer => ClientKind::LitePushConsumer,
        proto::ClientKind::LiteSimpleConsumer => ClientKind::LiteSimpleConsumer,
    }
}
