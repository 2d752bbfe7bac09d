//! A consumer of a group and a topic, as tests speak of it.

use std::time::Duration;

use mainstem::proto::rocketmq::receive_message_response::Content;
use mainstem::proto::rocketmq::{
    AckMessageEntry, AckMessageRequest, ChangeInvisibleDurationRequest, Code, FilterExpression,
    FilterType, ForwardMessageToDeadLetterQueueRequest, Message, MessageQueue,
    ReceiveMessageRequest, ReceiveMessageResponse, SystemProperties,
};
use tonic::Streaming;

use crate::support::{CLIENT, Server, code, request_of, resource, soon};

pub(crate) struct Consumer<'a> {
    pub(crate) server: &'a Server,
    pub(crate) group: &'a str,
    pub(crate) topic: &'a str,
    /// The client's id.
    pub(crate) id: &'a str,
}

/// What a receive got.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: Code,
    /// What its status says.
    pub(crate) text: String,
    pub(crate) messages: Vec<Message>,
}

pub(crate) fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

pub(crate) fn tags(expression: &str) -> Option<FilterExpression> {
    let expression = expression.to_owned();
    Some(FilterExpression { r#type: FilterType::Tag.into(), expression })
}

pub(crate) fn sql(expression: &str) -> Option<FilterExpression> {
    let expression = expression.to_owned();
    Some(FilterExpression { r#type: FilterType::Sql.into(), expression })
}

pub(crate) fn system(message: &Message) -> &SystemProperties {
    message.system_properties.as_ref().expect("every message has them")
}

pub(crate) fn handle(message: &Message) -> &str {
    system(message).receipt_handle.as_deref().expect("every message has one")
}

pub(crate) fn attempt(message: &Message) -> i32 {
    system(message).delivery_attempt.expect("every message says which delivery it is")
}

pub(crate) fn body(message: &Message) -> &str {
    std::str::from_utf8(&message.body).unwrap()
}

pub(crate) fn bodies(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(body).collect()
}

/// All frames of a receive: a status, messages, the time of delivery, and the end.
pub(crate) async fn all_of(mut frames: Streaming<ReceiveMessageResponse>) -> Answer {
    let first = soon(frames.message()).await.unwrap().expect("there is a status");
    let Some(Content::Status(status)) = first.content else { panic!("{first:?}") };
    let mut answer =
        Answer { code: status.code(), text: status.message.clone(), messages: Vec::new() };
    loop {
        let frame = soon(frames.message()).await.unwrap().expect("the last frame is a time");
        match frame.content {
            Some(Content::Message(message)) => answer.messages.push(message),
            Some(Content::DeliveryTimestamp(at)) => {
                let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
                assert!(u64::try_from(at.seconds).unwrap().abs_diff(now) < 60, "{at:?}");
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(soon(frames.message()).await.unwrap(), None);
    assert_eq!(answer.code == Code::Ok, !answer.messages.is_empty(), "{answer:?}");
    answer
}

impl<'a> Consumer<'a> {
    pub(crate) fn new(server: &'a Server, group: &'a str, topic: &'a str) -> Self {
        Self { server, group, topic, id: CLIENT }
    }

    /// A correct request, for all that there is.
    pub(crate) fn asks(&self) -> ReceiveMessageRequest {
        ReceiveMessageRequest {
            group: Some(resource(self.group)),
            message_queue: Some(MessageQueue {
                topic: Some(resource(self.topic)),
                ..MessageQueue::default()
            }),
            filter_expression: tags("*"),
            batch_size: 32,
            invisible_duration: seconds(30),
            long_polling_timeout: seconds(5),
            ..ReceiveMessageRequest::default()
        }
    }

    /// The frames of a receive whose caller waits as long as a client does.
    pub(crate) async fn frames(
        &self,
        asked: ReceiveMessageRequest,
        patience: Duration,
    ) -> Streaming<ReceiveMessageResponse> {
        let mut request = request_of(self.id, asked);
        request.set_timeout(patience);
        soon(self.server.calls.clone().receive_message(request)).await.unwrap().into_inner()
    }

    pub(crate) async fn receive(&self, asked: ReceiveMessageRequest) -> Answer {
        all_of(self.frames(asked, Duration::from_secs(8)).await).await
    }

    /// So many messages, with as many receives as that takes.
    pub(crate) async fn get(&self, count: usize) -> Vec<Message> {
        self.get_by(count, self.asks()).await
    }

    /// The same, asked for in another way.
    pub(crate) async fn get_by(&self, count: usize, asked: ReceiveMessageRequest) -> Vec<Message> {
        let mut messages = Vec::new();
        while messages.len() < count {
            let answer = self.receive(asked.clone()).await;
            assert_eq!(answer.code, Code::Ok, "{} of {count}", messages.len());
            messages.extend(answer.messages);
        }
        assert_eq!(messages.len(), count);
        messages
    }

    /// What a receive gets whose caller is in a hurry.
    pub(crate) async fn look(&self, asked: ReceiveMessageRequest) -> Answer {
        all_of(self.frames(asked, Duration::from_millis(400)).await).await
    }

    /// That there is nothing.
    #[track_caller]
    pub(crate) fn gets_nothing(&self) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let answer = self.look(self.asks()).await;
            assert_eq!(answer.code, Code::MessageNotFound, "{caller}: {answer:?}");
        }
    }

    /// The code of an ack, and those of its entries.
    pub(crate) async fn ack(&self, handles: &[&str]) -> (Code, Vec<Code>) {
        let entry = |(at, handle): (usize, &&str)| AckMessageEntry {
            message_id: format!("id {at}"),
            receipt_handle: (*handle).to_owned(),
            lite_topic: None,
        };
        let asked = AckMessageRequest {
            group: Some(resource(self.group)),
            topic: Some(resource(self.topic)),
            entries: handles.iter().enumerate().map(entry).collect(),
        };
        let entries = asked.entries.clone();
        let request = request_of(self.id, asked);
        let answer = self.server.calls.clone().ack_message(request).await.unwrap().into_inner();
        assert_eq!(answer.entries.len(), entries.len(), "{answer:?}");
        for (told, asked) in answer.entries.iter().zip(&entries) {
            assert_eq!(told.message_id, asked.message_id);
            assert_eq!(told.receipt_handle, asked.receipt_handle);
        }
        let codes = answer.entries.iter().map(|entry| code(&entry.status)).collect();
        (code(&answer.status), codes)
    }

    /// Finishes messages.
    pub(crate) async fn finish(&self, messages: &[Message]) {
        let handles: Vec<_> = messages.iter().map(handle).collect();
        assert_eq!(self.ack(&handles).await.0, Code::Ok);
    }

    pub(crate) fn changes(&self, handle: &str, after: i64) -> ChangeInvisibleDurationRequest {
        ChangeInvisibleDurationRequest {
            group: Some(resource(self.group)),
            topic: Some(resource(self.topic)),
            receipt_handle: handle.to_owned(),
            invisible_duration: seconds(after),
            ..ChangeInvisibleDurationRequest::default()
        }
    }

    /// The code and the handle of a change.
    pub(crate) async fn change(&self, asked: ChangeInvisibleDurationRequest) -> (Code, String) {
        let request = request_of(self.id, asked);
        let answer = self.server.calls.clone().change_invisible_duration(request).await;
        let answer = answer.unwrap().into_inner();
        (code(&answer.status), answer.receipt_handle)
    }

    /// Lets a lease last for so many seconds from now on.
    pub(crate) async fn hold(&self, handle: &str, seconds: i64) -> (Code, String) {
        self.change(self.changes(handle, seconds)).await
    }

    pub(crate) async fn forward(&self, handle: &str) -> Code {
        self.forward_after(99, handle).await
    }

    /// Gives a message up after so many tries.
    pub(crate) async fn forward_after(&self, tries: i32, handle: &str) -> Code {
        let asked = ForwardMessageToDeadLetterQueueRequest {
            group: Some(resource(self.group)),
            topic: Some(resource(self.topic)),
            receipt_handle: handle.to_owned(),
            delivery_attempt: tries,
            max_delivery_attempts: 3,
            ..ForwardMessageToDeadLetterQueueRequest::default()
        };
        let request = request_of(self.id, asked);
        let mut calls = self.server.calls.clone();
        let answer = calls.forward_message_to_dead_letter_queue(request).await.unwrap();
        code(&answer.into_inner().status)
    }
}
