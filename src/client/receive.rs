//! Messages that are leased to a consumer group: received, acknowledged, kept on, given back.

use std::time::Duration;

use super::message::{Place, Unpacker};
use super::{AnswerError, CALL_TIMEOUT, Client, ClientError, Message, within};
use crate::format::batch::TagFilter;
use crate::message::{MessageId, QueueId, QueueOffset, Timestamp};
use crate::proto;
use crate::proto::extend_entry::Hold as WireHold;
use crate::proto::extend_result::Outcome;
use crate::proto::receive_request::Filter as WireFilter;

/// Which messages a group wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filter<'a> {
    /// All.
    #[default]
    All,
    /// Those with one of these tags, joined by `||`.
    Tags(&'a str),
    /// Those for which a condition in SQL92 is true.
    Sql(&'a str),
}

/// What is wanted of a topic for a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receive<'a> {
    /// The group.
    pub group: &'a str,
    /// The topic.
    pub topic: &'a str,
    /// Which messages; the others are finished for the group.
    pub filter: Filter<'a>,
    /// At most so many, 1 to 1 024.
    pub max_messages: u32,
    /// How long nobody else gets them, up to 12 hours.
    pub invisible: Duration,
    /// How long the broker waits for a message, up to 30 s.
    pub wait: Duration,
    /// Names this receive among tries of the same; empty: it is tried once.
    pub attempt: &'a str,
}

/// A message and its lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leased {
    /// The message.
    pub message: Message,
    /// What finishes it, or keeps it on.
    pub handle: String,
    /// Which delivery of it to the group this is, from 1.
    pub delivery: u32,
}

/// What is to become of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It lasts so long from now on.
    For(Duration),
    /// The message is delivered again after the group's pause.
    Retry,
    /// The message is delivered again after so long.
    RetryAfter(Duration),
    /// The message is delivered again at once, and this delivery does not count.
    Undo,
}

/// Why a lease did not become another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HoldFault {
    /// Its handle is worth nothing: the message is finished, or was given to somebody else.
    #[error("the receipt handle is not valid")]
    BadReceipt,
    /// It would last for longer than 12 hours after the delivery.
    #[error("a message is leased for 12 hours at most")]
    TooLong,
}

impl Client {
    /// Gets messages of a topic for a group; none if none came within `wait`.
    ///
    /// # Errors
    /// Refusals: `UnknownTopic`, `UnknownGroup`, `GroupDisabled`, `BadRequest`, `TooLarge`, `Overloaded`.
    pub async fn receive(&self, receive: &Receive<'_>) -> Result<Vec<Leased>, ClientError> {
        let filter = match receive.filter {
            Filter::All => None,
            Filter::Tags(tags) => Some(WireFilter::Tags(tags.to_owned())),
            Filter::Sql(sql) => Some(WireFilter::Sql(sql.to_owned())),
        };
        let request = proto::ReceiveRequest {
            group: receive.group.to_owned(),
            topic: receive.topic.to_owned(),
            filter,
            max_messages: receive.max_messages,
            max_bytes: 0,
            invisible_ms: ms(receive.invisible),
            wait_ms: ms(receive.wait),
            attempt: receive.attempt.to_owned(),
        };
        let request = within(request, CALL_TIMEOUT + receive.wait);
        let answer = self.broker.clone().receive(request).await;
        let messages = self.answer(answer)?.messages.into_iter();
        let leased = messages.map(|message| leased(receive.topic, message));
        leased.collect::<Result<_, _>>().map_err(|source| self.bad_answer(source))
    }

    /// Finishes messages for a group. Of each handle, in their order, whether its message is finished by it; the same
    /// handle again is fine.
    ///
    /// # Errors
    /// Refusals: `UnknownTopic`, `UnknownGroup`, `TooLarge`.
    pub async fn ack(
        &self,
        group: &str,
        topic: &str,
        handles: &[&str],
    ) -> Result<Vec<bool>, ClientError> {
        let request = proto::AckRequest {
            group: group.to_owned(),
            topic: topic.to_owned(),
            handles: handles.iter().map(|handle| (*handle).to_owned()).collect(),
        };
        let answer = self.broker.clone().ack(within(request, CALL_TIMEOUT)).await;
        let finished = self.answer(answer)?.finished;
        if finished.len() != handles.len() {
            return Err(self.bad_answer(AnswerError::Missing { field: "finished" }));
        }
        Ok(finished)
    }

    /// Keeps messages on, or gives them back. Of each handle, in their order, the new one: the old one is worth
    /// nothing any more.
    ///
    /// # Errors
    /// Refusals: `UnknownTopic`, `UnknownGroup`, `TooLarge`.
    pub async fn extend(
        &self,
        group: &str,
        topic: &str,
        entries: &[(&str, Hold)],
    ) -> Result<Vec<Result<String, HoldFault>>, ClientError> {
        let entry = |(handle, hold): &(&str, Hold)| entry((*handle).to_owned(), *hold);
        let request = proto::ExtendRequest {
            group: group.to_owned(),
            topic: topic.to_owned(),
            entries: entries.iter().map(entry).collect(),
        };
        let answer = self.broker.clone().extend(within(request, CALL_TIMEOUT)).await;
        let results = self.answer(answer)?.results;
        if results.len() != entries.len() {
            return Err(self.bad_answer(AnswerError::Missing { field: "results" }));
        }
        let results = results.into_iter().map(held);
        results.collect::<Result<_, _>>().map_err(|source| self.bad_answer(source))
    }
}

/// What is to become of a lease, for the wire.
pub(super) fn entry(handle: String, hold: Hold) -> proto::ExtendEntry {
    let hold = match hold {
        Hold::For(time) => WireHold::ForMs(ms(time)),
        Hold::Retry => WireHold::Retry(true),
        Hold::RetryAfter(time) => WireHold::RetryAfterMs(ms(time)),
        Hold::Undo => WireHold::Undo(true),
    };
    proto::ExtendEntry { handle, hold: Some(hold) }
}

/// What became of it, from the wire.
pub(super) fn held(result: proto::ExtendResult) -> Result<Result<String, HoldFault>, AnswerError> {
    match result.outcome {
        Some(Outcome::Handle(handle)) => Ok(Ok(handle)),
        Some(Outcome::BadReceipt(_)) => Ok(Err(HoldFault::BadReceipt)),
        Some(Outcome::TooLong(_)) => Ok(Err(HoldFault::TooLong)),
        None => Err(AnswerError::Missing { field: "outcome" }),
    }
}

pub(super) fn ms(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

pub(super) fn leased(topic: &str, received: proto::ReceivedMessage) -> Result<Leased, AnswerError> {
    let bad = |_| AnswerError::MessageId { found: received.message_id.clone() };
    let id: MessageId = received.message_id.parse().map_err(bad)?;
    let queue_offset = QueueOffset::new(received.queue_offset);
    let place = Place {
        topic,
        queue: QueueId::new(received.queue),
        epoch: id.epoch,
        physical_offset: id.offset,
        first_queue_offset: queue_offset,
        store_time: Timestamp::new(received.store_time_ms),
        dead_letter: received.dead_letter.as_ref(),
    };
    let mut unpacker = Unpacker::new(queue_offset, &TagFilter::All);
    unpacker.take(&place, &received.batch)?;
    let message = unpacker.messages.pop().ok_or(AnswerError::Missing { field: "batch" })?;
    // It was cut out of its record, whose index the id has.
    let message = Message { id, ..message };
    Ok(Leased { message, handle: received.handle, delivery: received.delivery })
}
