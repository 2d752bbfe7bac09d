//! From the wire to what the broker means, and what must be true of it: names, and everything about a message that is
//! to be stored.
//!
//! A send is refused by the first rule that it breaks, in this order, message by message from the third row on:
//!
//! | rule | code |
//! | --- | --- |
//! | there is a message | `MESSAGE_CORRUPTED` |
//! | the topic's name, which is not one of dead letters; all messages name the same topic | `ILLEGAL_TOPIC`; `MESSAGE_CORRUPTED` |
//! | the body is not empty; 4 MiB at most; has its digest | `MESSAGE_BODY_EMPTY`; `MESSAGE_BODY_TOO_LARGE`; `MESSAGE_CORRUPTED` |
//! | properties: 128 at most; no reserved key, no control character | `MESSAGE_PROPERTIES_TOO_LARGE`; `ILLEGAL_MESSAGE_PROPERTY_KEY` |
//! | tag, keys: not blank, no control character; no `\|` in the tag | `ILLEGAL_MESSAGE_TAG`, `ILLEGAL_MESSAGE_KEY` |
//! | properties, tag and keys: 16 KiB at most | `MESSAGE_PROPERTIES_TOO_LARGE` |
//! | an id | `ILLEGAL_MESSAGE_ID` |
//! | check-back of a transaction within an hour | `BAD_REQUEST` |
//! | delivery within 40 days | `ILLEGAL_DELIVERY_TIME` |
//! | message group: not blank, no control character, 63 bytes at most | `ILLEGAL_MESSAGE_GROUP` |
//! | lite topic: 64 letters, digits, `_` and `-` at most | `ILLEGAL_LITE_TOPIC` |
//!
//! The limits of the store, of one key or of an id, come behind them.

use std::sync::{Arc, LazyLock};

use prost_types::{Duration, Timestamp};

use super::digest;
use super::status::Refusal;
use crate::broker::{
    Broker, NewMessage, NewMeta, check_addressed_topic_name, check_group_name, limits,
};
use crate::filter::{Expression, FilterError, Language};
use crate::proto::rocketmq::{
    Code, Encoding, FilterExpression, FilterType, Message, MessageType, Resource, SystemProperties,
};

/// Bytes of a namespace at most: it is said again with every queue of an answer.
const MAX_NAMESPACE: usize = 255;

/// The latest that a message can be delivered, in milliseconds from now: 40 days.
const MAX_DELAY_MS: i64 = 40 * 24 * 60 * 60 * 1_000;

/// The latest that the producer of a half message can be asked what became of it, in seconds.
const MAX_RECOVERY_SECONDS: i64 = 3_600;

/// What the names of topics of dead letters begin with.
const DEAD_LETTERS: &str = "%DLQ%";

/// Bytes of a lite topic's name at most.
const MAX_LITE_TOPIC: usize = 64;

/// Keys of properties that Apache RocketMQ keeps for itself. Sorted.
const RESERVED_KEYS: &[&str] = &[
    "1ST_POP_TIME",
    "ARRIVE_TIME",
    "BORN_TIMESTAMP",
    "BUYER_ID",
    "CLUSTER",
    "CONSUME_START_TIME",
    "CORRECTION_FLAG",
    "CORRELATION_ID",
    "DELAY",
    "DLQ_ORIGIN_MESSAGE_ID",
    "DLQ_ORIGIN_TOPIC",
    "DUP_INFO",
    "EXTEND_UNIQ_INFO",
    "INNER_MULTI_QUEUE_OFFSET",
    "INSTANCE_ID",
    "KEYS",
    "MAX_OFFSET",
    "MAX_RECONSUME_TIMES",
    "MIN_OFFSET",
    "MQ2_FLAG",
    "MSG_REGION",
    "MSG_TYPE",
    "ORIGIN_MESSAGE_ID",
    "PGROUP",
    "POP_CK",
    "POP_CK_OFFSET",
    "PUSH_REPLY_TIME",
    "REAL_QID",
    "REAL_TOPIC",
    "RECONSUME_TIME",
    "REPLY_TO_CLIENT",
    "RETRY_TOPIC",
    "TAGS",
    "TIMER_DELAY_LEVEL",
    "TIMER_DELAY_MS",
    "TIMER_DELAY_SEC",
    "TIMER_DELIVER_MS",
    "TIMER_DEL_UNIQKEY",
    "TIMER_DEQUEUE_MS",
    "TIMER_ENQUEUE_MS",
    "TIMER_OUT_MS",
    "TIMER_ROLL_TIMES",
    "TRACE_ON",
    "TRANSFER_FLAG",
    "TRAN_MSG",
    "TRAN_PREPARED_QUEUE_OFFSET",
    "TTL",
    "UNIQ_KEY",
    "WAIT",
    "_SYS_MSG_PRIORITY_",
    "__BORNHOST",
    "__CRC32#",
];

/// What a message without them has.
static NO_PROPERTIES: LazyLock<SystemProperties> = LazyLock::new(SystemProperties::default);

/// A message that breaks no rule.
#[derive(Debug)]
pub(super) struct Checked<'a> {
    /// What it is by its properties: what it says that it is counts for a transaction alone.
    pub(super) message_type: MessageType,
    /// What is to be stored of it.
    pub(super) message: NewMessage<'a>,
}

/// The name of a topic that a client may send to, or ask for.
pub(super) fn topic(resource: Option<&Resource>) -> Result<&str, Refusal> {
    let name = resource.map_or("", |resource| resource.name.as_str());
    check_addressed_topic_name(name)
        .map_err(|fault| Refusal::new(Code::IllegalTopic, fault.to_string()))?;
    check_namespace(resource, Code::IllegalTopic)?;
    Ok(name)
}

/// The name of a consumer group.
pub(super) fn group(resource: Option<&Resource>) -> Result<&str, Refusal> {
    let name = resource.map_or("", |resource| resource.name.as_str());
    check_group_name(name)
        .map_err(|fault| Refusal::new(Code::IllegalConsumerGroup, fault.to_string()))?;
    check_namespace(resource, Code::IllegalConsumerGroup)?;
    Ok(name)
}

fn check_namespace(resource: Option<&Resource>, code: Code) -> Result<(), Refusal> {
    match resource.map_or(0, |resource| resource.resource_namespace.len()) {
        0..=MAX_NAMESPACE => Ok(()),
        _ => Err(Refusal::new(code, "the namespace is longer than 255 bytes")),
    }
}

/// An expression that says which messages a consumer wants; without one all. Tags, unless it says otherwise.
pub(super) fn filter(filter: Option<&FilterExpression>) -> Result<(Language, &str), Refusal> {
    let (language, text) = in_words(filter);
    Expression::parse(language, text).map_err(|fault| of_filter(&fault))?;
    Ok((language, text))
}

/// The same, to match messages with.
pub(super) fn expression(
    broker: &Broker,
    filter: Option<&FilterExpression>,
) -> Result<Arc<Expression>, Refusal> {
    let (language, text) = in_words(filter);
    broker.expression(language, text).map_err(|fault| of_filter(&fault))
}

fn of_filter(fault: &FilterError) -> Refusal {
    Refusal::new(Code::IllegalFilterExpression, fault.to_string())
}

fn in_words(filter: Option<&FilterExpression>) -> (Language, &str) {
    let Some(filter) = filter else { return (Language::Tags, "*") };
    let language = match filter.r#type() {
        FilterType::Unspecified | FilterType::Tag => Language::Tags,
        FilterType::Sql => Language::Sql,
    };
    (language, &filter.expression)
}

/// The topic that all messages of a send name, and what is to be stored of each. `peer` made those that do not say who
/// did. `now_ms` is in milliseconds since 1970.
pub(super) fn messages<'a>(
    messages: &'a [Message],
    now_ms: u64,
    peer: &'a str,
) -> Result<(&'a str, Vec<Checked<'a>>), Refusal> {
    let Some(first) = messages.first() else {
        return Err(Refusal::new(Code::MessageCorrupted, "a send has at least one message"));
    };
    let topic = topic(first.topic.as_ref())?;
    if topic.starts_with(DEAD_LETTERS) {
        let fault = "nobody sends to a topic of dead letters but the broker";
        return Err(Refusal::new(Code::IllegalTopic, fault));
    }
    if messages.iter().any(|message| message.topic != first.topic) {
        let fault = "all messages of a send are for the same topic";
        return Err(Refusal::new(Code::MessageCorrupted, fault));
    }
    let checked = messages.iter().map(|message| check(message, now_ms, peer));
    Ok((topic, checked.collect::<Result<_, _>>()?))
}

fn check<'a>(message: &'a Message, now_ms: u64, peer: &'a str) -> Result<Checked<'a>, Refusal> {
    let system = message.system_properties.as_ref().unwrap_or(&NO_PROPERTIES);
    check_body(message, system)?;
    check_properties(message)?;
    let tag = system.tag.as_deref().filter(|tag| !tag.is_empty());
    check_tag(tag)?;
    check_keys(&system.keys)?;
    check_properties_len(message, system)?;
    if is_blank(&system.message_id) {
        return Err(Refusal::new(Code::IllegalMessageId, "a message has an id"));
    }
    let message_type = message_type(system);
    check_times(system, message_type, now_ms)?;
    let message_group = system.message_group.as_deref().filter(|group| !group.is_empty());
    check_message_group(message_group)?;
    check_lite_topic(system.lite_topic.as_deref())?;
    let born_host = Some(system.born_host.as_str()).filter(|host| !host.is_empty());
    let meta = NewMeta {
        keys: system.keys.iter().map(String::as_str).filter(|key| !key.is_empty()).collect(),
        tag,
        properties: message.user_properties.iter().map(|(key, value)| (&**key, &**value)).collect(),
        message_group,
        id: Some(&system.message_id),
        born_ms: system.born_timestamp.as_ref().map_or(0, milliseconds),
        encoding: u32::from(system.body_encoding() == Encoding::Gzip),
        trace_context: system.trace_context.as_deref(),
        born_host: Some(born_host.unwrap_or(peer)),
    };
    let message = NewMessage { meta, body: &message.body };
    Ok(Checked { message_type, message })
}

fn check_body(message: &Message, system: &SystemProperties) -> Result<(), Refusal> {
    match message.body.len() {
        0 => return Err(Refusal::new(Code::MessageBodyEmpty, "the body of a message is empty")),
        1..=limits::BODY_LEN => {}
        len => {
            let fault = format!("a body of {len} bytes exceeds the limit of {}", limits::BODY_LEN);
            return Err(Refusal::new(Code::MessageBodyTooLarge, fault));
        }
    }
    match &system.body_digest {
        Some(told) if !digest::matches(told, &message.body) => {
            Err(Refusal::new(Code::MessageCorrupted, "a body is not the one of its digest"))
        }
        _ => Ok(()),
    }
}

fn check_properties(message: &Message) -> Result<(), Refusal> {
    let count = message.user_properties.len();
    if count > limits::PROPERTIES {
        let fault = format!("{count} properties exceed the limit of {}", limits::PROPERTIES);
        return Err(Refusal::new(Code::MessagePropertiesTooLarge, fault));
    }
    for (key, value) in &message.user_properties {
        let illegal = |fault| Err(Refusal::new(Code::IllegalMessagePropertyKey, fault));
        if RESERVED_KEYS.binary_search(&key.as_str()).is_ok() {
            return illegal("a property's key is one that the system keeps for itself");
        }
        if has_control_characters(key) || has_control_characters(value) {
            return illegal("a property has a control character");
        }
    }
    Ok(())
}

fn check_tag(tag: Option<&str>) -> Result<(), Refusal> {
    let Some(tag) = tag else { return Ok(()) };
    if is_blank(tag) || tag.contains('|') || has_control_characters(tag) {
        let fault = "a tag is blank, or has a vertical bar or a control character";
        return Err(Refusal::new(Code::IllegalMessageTag, fault));
    }
    Ok(())
}

fn check_keys(keys: &[String]) -> Result<(), Refusal> {
    let is_illegal =
        |key: &&String| !key.is_empty() && (is_blank(key) || has_control_characters(key));
    match keys.iter().find(is_illegal) {
        Some(_) => {
            let fault = "a key is blank, or has a control character";
            Err(Refusal::new(Code::IllegalMessageKey, fault))
        }
        None => Ok(()),
    }
}

fn check_properties_len(message: &Message, system: &SystemProperties) -> Result<(), Refusal> {
    let user = message.user_properties.iter().map(|(key, value)| key.len() + value.len());
    let keys = system.keys.iter().map(String::len);
    let tag = system.tag.as_ref().map_or(0, String::len);
    let len = user.chain(keys).sum::<usize>() + tag;
    if len > limits::PROPERTIES_LEN {
        let fault = format!(
            "properties, tag and keys of {len} bytes exceed the limit of {}",
            limits::PROPERTIES_LEN
        );
        return Err(Refusal::new(Code::MessagePropertiesTooLarge, fault));
    }
    Ok(())
}

fn check_times(
    system: &SystemProperties,
    message_type: MessageType,
    now_ms: u64,
) -> Result<(), Refusal> {
    let recovery = system.orphaned_transaction_recovery_duration.as_ref();
    let is_too_long = |after: &Duration| (after.seconds, after.nanos) > (MAX_RECOVERY_SECONDS, 0);
    if message_type == MessageType::Transaction && recovery.is_some_and(is_too_long) {
        let fault = "a transaction is checked within an hour";
        return Err(Refusal::new(Code::BadRequest, fault));
    }
    let latest = i64::try_from(now_ms).unwrap_or(i64::MAX).saturating_add(MAX_DELAY_MS);
    let is_too_late = |at: &Timestamp| at.seconds.saturating_mul(1_000) > latest;
    if system.delivery_timestamp.as_ref().is_some_and(is_too_late) {
        let fault = "a message is delivered within 40 days";
        return Err(Refusal::new(Code::IllegalDeliveryTime, fault));
    }
    Ok(())
}

fn check_message_group(group: Option<&str>) -> Result<(), Refusal> {
    let Some(group) = group else { return Ok(()) };
    let is_too_long = group.len() > limits::MESSAGE_GROUP_LEN;
    if is_too_long || is_blank(group) || has_control_characters(group) {
        let fault = "a message group is blank, has a control character or more than 63 bytes";
        return Err(Refusal::new(Code::IllegalMessageGroup, fault));
    }
    Ok(())
}

fn check_lite_topic(name: Option<&str>) -> Result<(), Refusal> {
    let Some(name) = name else { return Ok(()) };
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if name.is_empty() || name.len() > MAX_LITE_TOPIC || !name.bytes().all(is_legal) {
        let fault = "a lite topic's name is made of 1 to 64 letters, digits, '_' and '-'";
        return Err(Refusal::new(Code::IllegalLiteTopic, fault));
    }
    Ok(())
}

/// The first of these that a message has makes it what it is.
fn message_type(system: &SystemProperties) -> MessageType {
    let has_group = system.message_group.as_ref().is_some_and(|group| !group.is_empty());
    if system.message_type() == MessageType::Transaction {
        MessageType::Transaction
    } else if system.delivery_timestamp.is_some() {
        MessageType::Delay
    } else if has_group {
        MessageType::Fifo
    } else if system.priority.is_some_and(|priority| priority >= 0) {
        MessageType::Priority
    } else if system.lite_topic.is_some() {
        MessageType::Lite
    } else {
        MessageType::Normal
    }
}

/// A time before 1970 is none.
fn milliseconds(at: &Timestamp) -> u64 {
    let seconds = u64::try_from(at.seconds).unwrap_or_default();
    let nanos = u64::try_from(at.nanos).unwrap_or_default();
    seconds.saturating_mul(1_000).saturating_add(nanos / 1_000_000)
}

fn is_blank(text: &str) -> bool {
    text.chars().all(char::is_whitespace)
}

fn has_control_characters(text: &str) -> bool {
    text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_keys_stand_in_the_order_in_which_they_are_looked_up() {
        assert!(RESERVED_KEYS.is_sorted());
        assert_eq!(RESERVED_KEYS.len(), 52);
    }
}
