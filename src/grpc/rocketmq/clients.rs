//! Heartbeat, NotifyClientTermination: that a client lives, and that it goes.
//!
//! A client may outlive the broker that knew it, and say again who it is much later or never. So a heartbeat of an
//! unknown client makes it known, by what little it says, and so does a receive.

use tokio::time::Instant;
use tonic::Request;

use super::status::Refusal;
use super::{Caller, convert};
use crate::broker::{Broker, ClientKind, Introduction};
use crate::grpc::peer;
use crate::grpc::serve::Ends;
use crate::proto::rocketmq::{ClientType, Code, HeartbeatRequest, NotifyClientTerminationRequest};

pub(super) fn heartbeat(
    broker: &Broker,
    request: &Request<HeartbeatRequest>,
) -> Result<(), Refusal> {
    let caller = Caller::of_call(request.metadata())?;
    let request = request.get_ref();
    if let Some(known) = broker.client_lives(caller.id) {
        if known.kind != ClientKind::Producer && request.group.is_some() {
            convert::group(request.group.as_ref())?;
        }
        return Ok(());
    }
    let kind = match kind(request.client_type()) {
        Some(kind) if kind != ClientKind::PullConsumer => kind,
        _ => {
            let fault = "a heartbeat says what kind of client it is of";
            return Err(Refusal::new(Code::UnrecognizedClientType, fault));
        }
    };
    let group = match kind {
        ClientKind::Producer => None,
        _ => Some(convert::group(request.group.as_ref())?.to_owned()),
    };
    let introduction = by_a_call(caller, kind, group);
    // One too many is served all the same.
    let _is_known = broker.introduce_client(caller.id, introduction, peer(), None);
    Ok(())
}

/// Notes that a consumer receives, and makes it known if it is not; `false`: there are too many.
pub(super) fn receives(
    broker: &Broker,
    caller: Caller<'_>,
    group: &str,
    ends: Option<Ends>,
    is_push: bool,
) -> bool {
    if broker.client_lives(caller.id).is_some() {
        return true;
    }
    let kind = if is_push { ClientKind::PushConsumer } else { ClientKind::SimpleConsumer };
    let introduction = by_a_call(caller, kind, Some(group.to_owned()));
    broker.introduce_client(caller.id, introduction, ends.map(|ends| ends.peer), None)
}

/// Gives a group its place in a topic that one of its consumers will receive from. That it cannot be done now is no
/// reason to refuse the client: its first receive does it.
pub(super) async fn subscribes(broker: &Broker, group: &str, topic: &str, deadline: Instant) {
    if let Err(error) = broker.bind_group(group, topic, deadline).await {
        tracing::debug!(%error, group, topic, "a group has no place in a topic yet");
    }
}

/// What is known of a client that has not said who it is.
fn by_a_call(caller: Caller<'_>, kind: ClientKind, group: Option<String>) -> Introduction {
    Introduction {
        kind,
        language: caller.language.to_owned(),
        version: caller.version.to_owned(),
        hostname: String::new(),
        group,
        topics: Vec::new(),
        subscriptions: Vec::new(),
    }
}

pub(super) fn goodbye(
    broker: &Broker,
    request: &Request<NotifyClientTerminationRequest>,
) -> Result<(), Refusal> {
    let caller = Caller::of_call(request.metadata())?;
    if request.get_ref().group.as_ref().is_some_and(|group| !group.name.is_empty()) {
        convert::group(request.get_ref().group.as_ref())?;
    }
    // Whoever is not known has nothing that must end.
    let _was_known = broker.forget_client(caller.id);
    Ok(())
}

/// What a client is for; `None`: it does not say, or not in a way that is known.
pub(super) fn kind(client_type: ClientType) -> Option<ClientKind> {
    match client_type {
        ClientType::Unspecified => None,
        ClientType::Producer => Some(ClientKind::Producer),
        ClientType::PushConsumer => Some(ClientKind::PushConsumer),
        ClientType::SimpleConsumer => Some(ClientKind::SimpleConsumer),
        ClientType::PullConsumer => Some(ClientKind::PullConsumer),
        ClientType::LitePushConsumer => Some(ClientKind::LitePushConsumer),
        ClientType::LiteSimpleConsumer => Some(ClientKind::LiteSimpleConsumer),
    }
}
