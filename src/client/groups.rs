//! Consumer groups.

use super::offsets::{self, QueueProgress, Run};
use super::{AnswerError, CALL_TIMEOUT, Client, ClientError, within};
use crate::message::{
    self, GroupId, InitialPosition, MessageId, OtherFilters, QueueId, QueueOffset, Timestamp,
    TopicId,
};
use crate::proto;
use crate::proto::position::{At, Edge};

/// What a group is made with, or what of it is to become another. `None`: the broker's default, or as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupSettings {
    /// Whether its consumers get messages. By default they do.
    pub enabled: Option<bool>,
    /// Whether messages of one message group are delivered one after the other. By default they are not.
    pub ordered: Option<bool>,
    /// What becomes of a member that comes with another filter. By default it is served.
    pub other_filters: Option<OtherFilters>,
    /// Deliveries of one message, the first included; `Some(None)` is without a limit. By default 17.
    pub max_attempts: Option<Option<u32>>,
    /// The pauses between them in milliseconds, 1 to 64 of them, of 12 hours at most. By default 1 s to 2 h.
    pub retry_delays_ms: Option<Vec<u64>>,
    /// By how much of itself a pause may be longer, in percent, at most 100. By default 0.
    pub retry_jitter: Option<u32>,
    /// Where it begins on a topic that is new to it. By default at the first message that is there.
    pub initial_position: Option<InitialPosition>,
}

/// A consumer group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its incarnation: another one after a delete.
    pub id: GroupId,
    /// What it is.
    pub settings: message::GroupSettings,
}

/// A message that was delivered, is not finished, and nobody has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingMessage {
    /// Its id; `None`: its record cannot be read.
    pub id: Option<MessageId>,
    /// Its queue.
    pub queue: QueueId,
    /// Its place there.
    pub queue_offset: QueueOffset,
    /// How often it was delivered.
    pub deliveries: u32,
    /// In how many ms it can be delivered again; 0: now.
    pub due_in_ms: u64,
    /// When it was delivered first.
    pub first_delivered: Option<Timestamp>,
    /// When it was delivered last.
    pub last_delivered: Option<Timestamp>,
    /// Who got it last: a client's id, or where it was; empty if that is not known.
    pub last_client: String,
}

/// What waits of a topic for another delivery to a group, and some of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingPage {
    /// So many can be delivered now.
    pub due: u64,
    /// So many wait for their time.
    pub waiting: u64,
    /// How long ago the first delivery was of the one that has been at it for longest.
    pub oldest_ms: Option<u64>,
    /// In how many ms the next of those that wait for their time can be delivered.
    pub next_due_in_ms: Option<u64>,
    /// By queue and offset.
    pub messages: Vec<WaitingMessage>,
    /// There are more behind the last one.
    pub more: bool,
}

/// What is to become of messages that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitingAction {
    /// They can be delivered now.
    Retry,
    /// They become dead letters.
    DeadLetter,
}

/// What became of a message that waited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettledMessage {
    /// Its id; `None`: its record cannot be read.
    pub id: Option<MessageId>,
    /// Where it lies; `None`: it is not there.
    pub place: Option<(QueueId, QueueOffset)>,
    /// Why it is as it was; `None`: it is done.
    pub fault: Option<String>,
}

fn place_of(place: proto::MessagePlace) -> (QueueId, QueueOffset) {
    (QueueId::new(place.queue), QueueOffset::new(place.queue_offset))
}

/// Who gets dead letters that go back to their topics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Audience {
    /// The group whose dead letters they are.
    #[default]
    OneGroup,
    /// Every group that receives from the topic.
    All,
}

/// Why a message is a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadReason {
    /// It was delivered as often as its group allows.
    Attempts,
    /// Its consumer gave it up.
    GivenUp,
    /// It cannot be read, or not be decompressed.
    Undecodable,
    /// An operator said so.
    Operator,
}

/// Which dead letters of a group are to go back, and how.
#[derive(Clone, Copy, Debug)]
pub struct Redrive<'a> {
    /// These alone, at most 1 024; none: whichever come first.
    pub ids: &'a [MessageId],
    /// Those alone that died for this reason.
    pub reason: Option<DeadReason>,
    /// Those alone with this key.
    pub key: Option<&'a str>,
    /// Those alone that became dead letters then or later, on the store clock.
    pub since: Option<Timestamp>,
    /// Those alone that became dead letters then or earlier.
    pub until: Option<Timestamp>,
    /// At most so many with one call, 1 to 1 024.
    pub max: u32,
    /// At most so many in a second: a call takes some seconds and then says that there is more.
    pub per_second: Option<u32>,
    /// Who gets them.
    pub audience: Audience,
    /// A dry run tells the same and changes nothing.
    pub run: Run,
}

impl Default for Redrive<'_> {
    /// The first hundred, for the group alone.
    fn default() -> Self {
        Self {
            ids: &[],
            reason: None,
            key: None,
            since: None,
            until: None,
            max: 100,
            per_second: None,
            audience: Audience::OneGroup,
            run: Run::Real,
        }
    }
}

/// What a redrive came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedrivePage {
    /// Of each dead letter that was chosen what became of it.
    pub dead_letters: Vec<Redriven>,
    /// There may be more: the same call goes on. Those that stay are told again; if none went, none will.
    pub more: bool,
}

/// A dead letter that was to go back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redriven {
    /// Its id as a dead letter.
    pub id: MessageId,
    /// The topic that it comes from; empty if it does not say.
    pub topic: String,
    /// Why it stays where it is; `None`: it is back in its topic.
    pub fault: Option<String>,
}

/// A topic in which a group has committed offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupTopic {
    /// Its name.
    pub topic: String,
    /// Its incarnation.
    pub id: TopicId,
    /// Its queues in order.
    pub queues: Vec<QueueProgress>,
    /// The filters that members use now, the oldest first. More than one: they differ.
    pub filters: Vec<String>,
    /// Receives with another filter than that of the group, served or refused, since its members began to ask.
    pub filter_mismatches: u64,
    /// Conditions that were looked at for messages since then.
    pub filter_steps: u64,
    /// Messages since then with a property that a condition compares with a number, and that is none.
    pub filter_faults: u64,
    /// The beginning of the name of the last such property.
    pub last_filter_fault: Option<String>,
}

/// A group and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescription {
    /// The group.
    pub group: Group,
    /// By rising id.
    pub topics: Vec<GroupTopic>,
}

impl Client {
    /// Creates a consumer group; it is there already with the same settings: OK too.
    ///
    /// # Errors
    /// Refusals: `GroupExists` with other settings, `BadName`, `BadRequest`, `TooLarge`, `GroupLimit`.
    pub async fn create_group(
        &self,
        name: &str,
        settings: &GroupSettings,
    ) -> Result<Group, ClientError> {
        let request = proto::CreateGroupRequest { name: name.to_owned(), config: config(settings) };
        let answer = self.admin.clone().create_group(within(request, CALL_TIMEOUT)).await;
        self.group(self.answer(answer)?.group)
    }

    /// Changes what a consumer group is, at once. Disabling it ends pulls that wait in its name.
    ///
    /// # Errors
    /// Refusals: `UnknownGroup`, `BadRequest`, `TooLarge`.
    pub async fn update_group(
        &self,
        name: &str,
        settings: &GroupSettings,
    ) -> Result<Group, ClientError> {
        let request = proto::UpdateGroupRequest { name: name.to_owned(), config: config(settings) };
        let answer = self.admin.clone().update_group(within(request, CALL_TIMEOUT)).await;
        self.group(self.answer(answer)?.group)
    }

    /// Deletes a consumer group with its offsets, at once.
    ///
    /// # Errors
    /// Refusal: `UnknownGroup`.
    pub async fn delete_group(&self, name: &str) -> Result<(), ClientError> {
        let request = proto::DeleteGroupRequest { name: name.to_owned() };
        let answer = self.admin.clone().delete_group(within(request, CALL_TIMEOUT)).await;
        self.answer(answer).map(|_| ())
    }

    /// Sends dead letters of a group back to the topics that they come from. Each is in one of the two topics, whatever
    /// happens; the same call again is fine.
    ///
    /// # Errors
    /// Refusals: `UnknownGroup`, `TooLarge`. What went before is back in its topic.
    pub async fn redrive(
        &self,
        group: &str,
        redrive: &Redrive<'_>,
    ) -> Result<RedrivePage, ClientError> {
        let reason = redrive.reason.map(|reason| match reason {
            DeadReason::Attempts => proto::DeadReason::Attempts,
            DeadReason::GivenUp => proto::DeadReason::GivenUp,
            DeadReason::Undecodable => proto::DeadReason::Undecodable,
            DeadReason::Operator => proto::DeadReason::Operator,
        });
        let request = proto::RedriveDeadLettersRequest {
            group: group.to_owned(),
            ids: redrive.ids.iter().map(MessageId::to_string).collect(),
            max: redrive.max,
            dry_run: redrive.run == Run::Dry,
            for_all_groups: redrive.audience == Audience::All,
            reason: reason.unwrap_or_default().into(),
            key: redrive.key.unwrap_or_default().to_owned(),
            since_ms: redrive.since.map(Timestamp::get),
            until_ms: redrive.until.map(Timestamp::get),
            per_second: redrive.per_second.unwrap_or(0),
        };
        let answer = self.admin.clone().redrive_dead_letters(within(request, CALL_TIMEOUT)).await;
        let answer = self.answer(answer)?;
        let (dead_letters, more) = (answer.dead_letters.into_iter(), answer.more);
        let bad = |_| self.bad_answer(AnswerError::Missing { field: "id" });
        let redriven = |one: proto::RedrivenDeadLetter| {
            let fault = (!one.fault.is_empty()).then_some(one.fault);
            Ok(Redriven { id: one.id.parse().map_err(bad)?, topic: one.topic, fault })
        };
        Ok(RedrivePage {
            dead_letters: dead_letters.map(redriven).collect::<Result<_, _>>()?,
            more,
        })
    }

    /// What was delivered of a topic to a group, is not finished, and nobody has: one page of at most `limit`, 1 to
    /// 1 024, behind a place.
    ///
    /// # Errors
    /// Refusals: `UnknownGroup`, `UnknownTopic`, `TooLarge`.
    pub async fn waiting(
        &self,
        group: &str,
        topic: &str,
        after: Option<(QueueId, QueueOffset)>,
        limit: u32,
    ) -> Result<WaitingPage, ClientError> {
        let place = |(queue, offset): (QueueId, QueueOffset)| proto::MessagePlace {
            queue: queue.get(),
            queue_offset: offset.get(),
        };
        let request = proto::ListWaitingRequest {
            group: group.to_owned(),
            topic: topic.to_owned(),
            after: after.map(place),
            limit,
        };
        let answer = self.admin.clone().list_waiting(within(request, CALL_TIMEOUT)).await;
        let answer = self.answer(answer)?;
        let message = |one: proto::WaitingMessage| {
            let (queue, queue_offset) = one.place.map(place_of).unwrap_or_default();
            let time = |ms: u64| (ms > 0).then(|| Timestamp::new(ms));
            WaitingMessage {
                id: one.message_id.parse().ok(),
                queue,
                queue_offset,
                deliveries: one.deliveries,
                due_in_ms: one.due_in_ms,
                first_delivered: time(one.first_delivered_ms),
                last_delivered: time(one.last_delivered_ms),
                last_client: one.last_client,
            }
        };
        Ok(WaitingPage {
            due: answer.due,
            waiting: answer.waiting,
            oldest_ms: answer.oldest_ms,
            next_due_in_ms: answer.next_due_in_ms,
            messages: answer.messages.into_iter().map(message).collect(),
            more: answer.more,
        })
    }

    /// Makes something else of messages that wait: of these ids, at most 1 024, or without any of at most `max`, 1 to
    /// 1 024, whichever come first. Says of each, once and in that order, what became of it; the same call again is
    /// fine.
    ///
    /// # Errors
    /// Refusals: `UnknownGroup`, `UnknownTopic`, `TooLarge`. What was done before stays so.
    pub async fn settle_waiting(
        &self,
        group: &str,
        topic: &str,
        ids: &[MessageId],
        max: u32,
        action: WaitingAction,
    ) -> Result<Vec<SettledMessage>, ClientError> {
        let action = match action {
            WaitingAction::Retry => proto::WaitingAction::Retry,
            WaitingAction::DeadLetter => proto::WaitingAction::DeadLetter,
        };
        let request = proto::SettleWaitingRequest {
            group: group.to_owned(),
            topic: topic.to_owned(),
            ids: ids.iter().map(MessageId::to_string).collect(),
            max,
            action: action.into(),
        };
        let answer = self.admin.clone().settle_waiting(within(request, CALL_TIMEOUT)).await;
        let settled = |one: proto::SettledMessage| SettledMessage {
            id: one.message_id.parse().ok(),
            place: one.place.map(place_of),
            fault: (!one.fault.is_empty()).then_some(one.fault),
        };
        Ok(self.answer(answer)?.messages.into_iter().map(settled).collect())
    }

    /// One page of consumer groups in the order of their names, and whether there are more after the last of them.
    ///
    /// # Errors
    /// As every call.
    pub async fn groups(&self, after: &str) -> Result<(Vec<Group>, bool), ClientError> {
        let request = proto::ListGroupsRequest { after: after.to_owned(), limit: 0 };
        let answer = self.admin.clone().list_groups(within(request, CALL_TIMEOUT)).await;
        let answer = self.answer(answer)?;
        let groups = answer.groups.into_iter().map(|group| self.group(Some(group)));
        Ok((groups.collect::<Result<_, _>>()?, answer.more))
    }

    /// A consumer group and where it is in all topics of which it has committed offsets.
    ///
    /// # Errors
    /// Refusal: `UnknownGroup`.
    pub async fn describe_group(&self, name: &str) -> Result<GroupDescription, ClientError> {
        let mut topics: Vec<GroupTopic> = Vec::new();
        loop {
            let request = proto::DescribeGroupRequest {
                name: name.to_owned(),
                after: topics.last().map_or(0, |last| last.id.get()),
                limit: 0,
            };
            let answer = self.admin.clone().describe_group(within(request, CALL_TIMEOUT)).await;
            let answer = self.answer(answer)?;
            let is_last = !answer.more || answer.topics.is_empty();
            topics.extend(answer.topics.into_iter().map(|topic| GroupTopic {
                topic: topic.topic,
                id: TopicId::new(topic.id),
                queues: topic.queues.into_iter().map(offsets::progress).collect(),
                filters: topic.filters,
                filter_mismatches: topic.filter_mismatches,
                filter_steps: topic.filter_steps,
                filter_faults: topic.filter_faults,
                last_filter_fault: Some(topic.last_filter_fault).filter(|name| !name.is_empty()),
            }));
            if is_last {
                return Ok(GroupDescription { group: self.group(answer.group)?, topics });
            }
        }
    }

    fn group(&self, group: Option<proto::Group>) -> Result<Group, ClientError> {
        let missing = |field| self.bad_answer(AnswerError::Missing { field });
        let group = group.ok_or_else(|| missing("group"))?;
        let config = group.config.ok_or_else(|| missing("config"))?;
        let position = config.initial_position.and_then(|position| position.at);
        let attempts = config.max_attempts.ok_or_else(|| missing("max_attempts"))?;
        Ok(Group {
            name: group.name,
            id: GroupId::new(group.id),
            settings: message::GroupSettings {
                enabled: config.enabled.ok_or_else(|| missing("enabled"))?,
                ordered: config.ordered.ok_or_else(|| missing("ordered"))?,
                other_filters: match proto::OtherFilters::try_from(config.other_filters) {
                    Ok(proto::OtherFilters::Refuse) => OtherFilters::Refuse,
                    Ok(proto::OtherFilters::Roll) => OtherFilters::Roll,
                    Ok(_) | Err(_) => OtherFilters::Warn,
                },
                max_attempts: (attempts > 0).then_some(attempts),
                retry_delays_ms: config.retry_delays.unwrap_or_default().ms,
                retry_jitter: config.retry_jitter.unwrap_or(0),
                initial_position: match position {
                    Some(At::Edge(edge)) if edge == i32::from(Edge::Latest) => {
                        InitialPosition::Latest
                    }
                    Some(At::Edge(_)) => InitialPosition::Earliest,
                    Some(At::TimeMs(time)) => InitialPosition::Time(Timestamp::new(time)),
                    Some(At::Offset(_)) | None => return Err(missing("initial_position")),
                },
            },
        })
    }
}

fn config(settings: &GroupSettings) -> Option<proto::GroupConfig> {
    let position = |position| match position {
        InitialPosition::Earliest => At::Edge(Edge::Earliest.into()),
        InitialPosition::Latest => At::Edge(Edge::Latest.into()),
        InitialPosition::Time(time) => At::TimeMs(time.get()),
    };
    Some(proto::GroupConfig {
        enabled: settings.enabled,
        ordered: settings.ordered,
        other_filters: match settings.other_filters {
            None => proto::OtherFilters::Unspecified,
            Some(OtherFilters::Warn) => proto::OtherFilters::Warn,
            Some(OtherFilters::Refuse) => proto::OtherFilters::Refuse,
            Some(OtherFilters::Roll) => proto::OtherFilters::Roll,
        }
        .into(),
        max_attempts: settings.max_attempts.map(|most| most.unwrap_or(0)),
        retry_delays: settings.retry_delays_ms.clone().map(|ms| proto::RetryDelays { ms }),
        retry_jitter: settings.retry_jitter,
        initial_position: settings
            .initial_position
            .map(|at| proto::Position { at: Some(position(at)) }),
    })
}
