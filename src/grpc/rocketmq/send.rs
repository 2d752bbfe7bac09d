//! SendMessage.
//!
//! A request is refused as a whole, without entries, or has an entry for each message in their order. Kinds of messages
//! that are not there yet are refused in their entry, where their topic would take them; the others of the request are
//! stored.

use tonic::Request;

use super::status::{self, Refusal};
use super::{Caller, convert};
use crate::broker::{Broker, BrokerError, NewMessage, Receipt, SendMessages};
use crate::grpc::{deadline, peer};
use crate::message::TopicType;
use crate::proto::rocketmq::{
    Code, Message, MessageType, SendMessageRequest, SendMessageResponse, SendResultEntry, Status,
    SystemProperties,
};

pub(super) async fn send(
    broker: &Broker,
    request: Request<SendMessageRequest>,
) -> Result<SendMessageResponse, Refusal> {
    Caller::check(request.metadata().as_ref())?;
    let deadline = deadline(request.metadata());
    let mut messages = request.into_inner().messages;
    let peer = host_of_peer(&messages);
    let (topic, checked) = convert::messages(&messages, broker.now().get(), &peer)?;

    let later: Vec<_> = checked.iter().map(|checked| later(checked.message_type)).collect();
    if later.iter().any(Option::is_some) {
        let entry = broker.open_topic(topic, deadline).await?;
        for message in &checked {
            check_later(message.message_type, entry.settings().topic_type)?;
        }
    }
    let all = checked.into_iter().zip(&later);
    let storable = all.filter(|(_, later)| later.is_none()).map(|(one, _)| one.message).collect();
    let receipts = store(broker, topic, storable, deadline).await?;

    let mut receipts = receipts.into_iter();
    let entries = messages.iter_mut().zip(later).map(|(message, later)| match later {
        Some(what) => entry(Refusal::later(what).tell(broker)),
        None => match receipts.next() {
            Some(Ok(receipt)) => stored(message, &receipt),
            Some(Err(refusal)) => entry(refusal.tell(broker)),
            None => entry(Status::default()),
        },
    });
    Ok(answer(entries.collect()))
}

/// What becomes of each of the messages.
///
/// # Errors
/// None of them is stored.
async fn store(
    broker: &Broker,
    topic: &str,
    messages: Vec<NewMessage<'_>>,
    deadline: tokio::time::Instant,
) -> Result<Vec<Result<Receipt, Refusal>>, Refusal> {
    if messages.is_empty() {
        return Ok(Vec::new());
    }
    let request = SendMessages { topic, messages: &messages, deadline };
    match broker.send_messages(&request).await {
        Ok(receipts) => Ok(receipts.into_iter().map(Ok).collect()),
        // In the log, and nobody knows whether for good: so it is with each of them.
        Err(BrokerError::FlushTimeout) => {
            let unsure = messages.iter().map(|_| Err(BrokerError::FlushTimeout.into()));
            Ok(unsure.collect())
        }
        Err(error) => Err(error.into()),
    }
}

/// Where the call came from, for messages that do not say where they were made.
fn host_of_peer(messages: &[Message]) -> String {
    let says = |system: &SystemProperties| !system.born_host.is_empty();
    if messages.iter().all(|message| message.system_properties.as_ref().is_some_and(says)) {
        return String::new();
    }
    peer().map(|peer| peer.ip().to_string()).unwrap_or_default()
}

/// Why a message of this type cannot be stored yet, if it cannot.
fn later(message_type: MessageType) -> Option<&'static str> {
    match message_type {
        MessageType::Normal | MessageType::Fifo | MessageType::Unspecified => None,
        MessageType::Delay => Some("messages with a delivery time are not there yet"),
        MessageType::Transaction => Some("transactional messages are not there yet"),
        MessageType::Priority => Some("messages with a priority are not there yet"),
        MessageType::Lite => Some("lite topics are not there yet"),
    }
}

/// Refuses a message of a kind that is not there yet where its topic would not take it either.
fn check_later(message_type: MessageType, topic_type: TopicType) -> Result<(), Refusal> {
    let is_taken = match message_type {
        MessageType::Normal | MessageType::Fifo | MessageType::Unspecified => true,
        MessageType::Delay => matches!(topic_type, TopicType::Delay | TopicType::Mixed),
        MessageType::Transaction => matches!(topic_type, TopicType::Transaction | TopicType::Mixed),
        MessageType::Priority | MessageType::Lite => topic_type == TopicType::Mixed,
    };
    if is_taken {
        return Ok(());
    }
    let fault = format!("the topic does not take a {} message", message_type.as_str_name());
    Err(Refusal::new(Code::MessagePropertyConflictWithType, fault))
}

/// The entry of a message that was stored. Its id goes back as it came.
fn stored(message: &mut Message, receipt: &Receipt) -> SendResultEntry {
    let id = message.system_properties.as_mut().map(|system| &mut system.message_id);
    SendResultEntry {
        status: Some(status::ok()),
        message_id: id.map(std::mem::take).unwrap_or_default(),
        offset: i64::try_from(receipt.first_queue_offset.get()).unwrap_or(i64::MAX),
        ..SendResultEntry::default()
    }
}

/// The entry of a message that was not, or perhaps not.
fn entry(status: Status) -> SendResultEntry {
    SendResultEntry { status: Some(status), ..SendResultEntry::default() }
}

/// The answer of these entries: their common status, if they have one.
fn answer(entries: Vec<SendResultEntry>) -> SendMessageResponse {
    let status = status::common(entries.iter().filter_map(|entry| entry.status.as_ref()));
    SendMessageResponse { status: Some(status), entries }
}
