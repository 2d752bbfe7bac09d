//! CreateGroup, UpdateGroup, DeleteGroup, ListGroups, DescribeGroup, RedriveDeadLetters, ListWaiting, SettleWaiting.

use std::num::NonZeroU32;

use tonic::{Request, Response};

use super::offsets::progress;
use super::or_default;
use crate::broker::{
    Broker, BrokerError, DeadReason, Group, GroupChange, GroupTopic, OnlySuch, RedriveRequest,
    Redriven, RequestFault, Run, SettleRequest, SettledMessage, WaitingAction, WaitingMessage,
    WaitingRequest,
};
use crate::grpc::deadline;
use crate::message::{
    GroupSettings, InitialPosition, MessageId, OtherFilters, QueueId, QueueOffset, Timestamp,
    TopicId,
};
use crate::proto::position::{At, Edge};
use crate::proto::{
    self, CreateGroupRequest, CreateGroupResponse, DeleteGroupRequest, DeleteGroupResponse,
    DescribeGroupRequest, DescribeGroupResponse, GroupConfig, ListGroupsRequest,
    ListGroupsResponse, RedriveDeadLettersRequest, RedriveDeadLettersResponse, RedrivenDeadLetter,
    RetryDelays, UpdateGroupRequest, UpdateGroupResponse,
};

const DEFAULT_PAGE: u32 = 1_000;

/// Dead letters that go back if it is not said how many.
const DEFAULT_REDRIVE: u32 = 100;

/// Messages that wait which are shown, or settled, if it is not said how many.
const DEFAULT_WAITING: u32 = 100;

/// As the field is called where a position is refused.
const INITIAL_POSITION: &str = "initial_position";
const OTHER_FILTERS: &str = "other_filters";

pub(super) async fn create(
    broker: &Broker,
    request: Request<CreateGroupRequest>,
) -> Result<Response<CreateGroupResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let settings = change(request.config)?.applied_to(&GroupSettings::default());
    let made = broker.create_group(&request.name, &settings, deadline).await?;
    Ok(Response::new(CreateGroupResponse { group: Some(group(&made)) }))
}

pub(super) async fn update(
    broker: &Broker,
    request: Request<UpdateGroupRequest>,
) -> Result<Response<UpdateGroupResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let change = change(request.config)?;
    let updated = broker.update_group(&request.name, &change, deadline).await?;
    Ok(Response::new(UpdateGroupResponse { group: Some(group(&updated)) }))
}

pub(super) async fn delete(
    broker: &Broker,
    request: Request<DeleteGroupRequest>,
) -> Result<Response<DeleteGroupResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    broker.delete_group(&request.get_ref().name, deadline).await?;
    Ok(Response::new(DeleteGroupResponse {}))
}

pub(super) async fn list(
    broker: &Broker,
    request: Request<ListGroupsRequest>,
) -> Result<Response<ListGroupsResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let limit = or_default(request.limit, DEFAULT_PAGE);
    let page = broker.list_groups(&request.after, limit, deadline).await?;
    let groups = page.groups.iter().map(group).collect();
    Ok(Response::new(ListGroupsResponse { groups, more: page.more }))
}

pub(super) async fn describe(
    broker: &Broker,
    request: Request<DescribeGroupRequest>,
) -> Result<Response<DescribeGroupResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let limit = or_default(request.limit, DEFAULT_PAGE);
    let after = TopicId::new(request.after);
    let described = broker.describe_group(&request.name, after, limit, deadline).await?;
    let topic = |topic: &GroupTopic| proto::GroupTopic {
        topic: topic.name.as_ref().to_owned(),
        id: topic.id.get(),
        queues: topic.queues.iter().map(progress).collect(),
        filters: topic.filters.filters.clone(),
        filter_mismatches: topic.filters.mismatches,
        filter_steps: topic.filters.steps,
        filter_faults: topic.filters.faults,
        last_filter_fault: topic.filters.last_fault.clone(),
    };
    Ok(Response::new(DescribeGroupResponse {
        group: Some(group(&described.group)),
        topics: described.topics.iter().map(topic).collect(),
        more: described.more,
    }))
}

pub(super) async fn redrive(
    broker: &Broker,
    request: Request<RedriveDeadLettersRequest>,
) -> Result<Response<RedriveDeadLettersResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let ids = ids(&request.ids)?;
    let redrive = RedriveRequest {
        group: &request.group,
        ids: &ids,
        only: OnlySuch {
            reason: dead_reason(request.reason)?,
            key: Some(request.key.as_str()).filter(|key| !key.is_empty()),
            since: request.since_ms.map(Timestamp::new),
            until: request.until_ms.map(Timestamp::new),
        },
        max: or_default(request.max, DEFAULT_REDRIVE),
        per_second: NonZeroU32::new(request.per_second),
        for_all: request.for_all_groups,
        run: if request.dry_run { Run::Dry } else { Run::Real },
        deadline,
    };
    let dead_letter = |one: Redriven| RedrivenDeadLetter {
        id: one.id.to_string(),
        topic: one.topic.into(),
        fault: one.fault.map(|fault| fault.to_string()).unwrap_or_default(),
    };
    let redriven = broker.redrive(&redrive).await?;
    let dead_letters = redriven.dead_letters.into_iter().map(dead_letter).collect();
    Ok(Response::new(RedriveDeadLettersResponse { dead_letters, more: redriven.more }))
}

fn dead_reason(code: i32) -> Result<Option<DeadReason>, BrokerError> {
    match proto::DeadReason::try_from(code) {
        Ok(proto::DeadReason::Unspecified) => Ok(None),
        Ok(proto::DeadReason::Attempts) => Ok(Some(DeadReason::Attempts)),
        Ok(proto::DeadReason::GivenUp) => Ok(Some(DeadReason::GivenUp)),
        Ok(proto::DeadReason::Undecodable) => Ok(Some(DeadReason::Undecodable)),
        Ok(proto::DeadReason::Operator) => Ok(Some(DeadReason::Operator)),
        Err(_) => {
            let fault = RequestFault::Enumeration { field: "reason" };
            Err(BrokerError::BadRequest { fault })
        }
    }
}

fn ids(ids: &[String]) -> Result<Vec<MessageId>, BrokerError> {
    let bad = |_| BrokerError::BadRequest { fault: RequestFault::MessageId };
    ids.iter().map(|id| id.parse().map_err(bad)).collect()
}

pub(super) async fn waiting(
    broker: &Broker,
    request: Request<proto::ListWaitingRequest>,
) -> Result<Response<proto::ListWaitingResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let after = request.after;
    let page = WaitingRequest {
        group: &request.group,
        topic: &request.topic,
        after: after.map(|at| (QueueId::new(at.queue), QueueOffset::new(at.queue_offset))),
        limit: or_default(request.limit, DEFAULT_WAITING),
        deadline,
    };
    let page = broker.list_waiting(&page).await?;
    let message = |message: WaitingMessage| proto::WaitingMessage {
        message_id: message.id.map(|id| id.to_string()).unwrap_or_default(),
        place: Some(place((message.queue, message.queue_offset))),
        deliveries: message.deliveries,
        due_in_ms: message.due_in_ms,
        first_delivered_ms: message.first_delivered.get(),
        last_delivered_ms: message.last_delivered.get(),
        last_client: message.last_client.as_ref().to_owned(),
    };
    Ok(Response::new(proto::ListWaitingResponse {
        due: page.due,
        waiting: page.waiting,
        oldest_ms: page.oldest_ms,
        next_due_in_ms: page.next_due_in_ms,
        messages: page.messages.into_iter().map(message).collect(),
        more: page.more,
    }))
}

pub(super) async fn settle_waiting(
    broker: &Broker,
    request: Request<proto::SettleWaitingRequest>,
) -> Result<Response<proto::SettleWaitingResponse>, BrokerError> {
    let deadline = deadline(request.metadata());
    let request = request.into_inner();
    let action = match proto::WaitingAction::try_from(request.action) {
        Ok(proto::WaitingAction::Retry) => WaitingAction::Retry,
        Ok(proto::WaitingAction::DeadLetter) => WaitingAction::DeadLetter,
        Ok(proto::WaitingAction::Unspecified) | Err(_) => {
            let fault = RequestFault::Enumeration { field: "action" };
            return Err(BrokerError::BadRequest { fault });
        }
    };
    let settle = SettleRequest {
        group: &request.group,
        topic: &request.topic,
        ids: &ids(&request.ids)?,
        max: or_default(request.max, DEFAULT_WAITING),
        action,
        deadline,
    };
    let message = |one: SettledMessage| proto::SettledMessage {
        message_id: one.id.map(|id| id.to_string()).unwrap_or_default(),
        place: one.place.map(place),
        fault: one.fault.map(|fault| fault.to_string()).unwrap_or_default(),
    };
    let settled = broker.settle_waiting(&settle).await?;
    let messages = settled.into_iter().map(message).collect();
    Ok(Response::new(proto::SettleWaitingResponse { messages }))
}

fn place((queue, offset): (QueueId, QueueOffset)) -> proto::MessagePlace {
    proto::MessagePlace { queue: queue.get(), queue_offset: offset.get() }
}

fn change(config: Option<GroupConfig>) -> Result<GroupChange, BrokerError> {
    let config = config.unwrap_or_default();
    let attempts = |count: u32| (count > 0).then_some(count);
    Ok(GroupChange {
        enabled: config.enabled,
        ordered: config.ordered,
        other_filters: other_filters(config.other_filters)?,
        max_attempts: config.max_attempts.map(attempts),
        retry_delays_ms: config.retry_delays.map(|delays| delays.ms),
        retry_jitter: config.retry_jitter,
        initial_position: config.initial_position.map(initial_position).transpose()?,
    })
}

fn initial_position(position: proto::Position) -> Result<InitialPosition, BrokerError> {
    let field = INITIAL_POSITION;
    let refuse = |fault| Err(BrokerError::BadRequest { fault });
    match position.at {
        Some(At::Edge(edge)) => match Edge::try_from(edge) {
            Ok(Edge::Earliest) => Ok(InitialPosition::Earliest),
            Ok(Edge::Latest) => Ok(InitialPosition::Latest),
            Err(_) => refuse(RequestFault::Enumeration { field }),
        },
        Some(At::TimeMs(time)) => Ok(InitialPosition::Time(Timestamp::new(time))),
        Some(At::Offset(_)) => refuse(RequestFault::OffsetPosition { field }),
        None => refuse(RequestFault::NoPosition { field }),
    }
}

fn other_filters(code: i32) -> Result<Option<OtherFilters>, BrokerError> {
    match proto::OtherFilters::try_from(code) {
        Ok(proto::OtherFilters::Unspecified) => Ok(None),
        Ok(proto::OtherFilters::Warn) => Ok(Some(OtherFilters::Warn)),
        Ok(proto::OtherFilters::Refuse) => Ok(Some(OtherFilters::Refuse)),
        Ok(proto::OtherFilters::Roll) => Ok(Some(OtherFilters::Roll)),
        Err(_) => {
            let fault = RequestFault::Enumeration { field: OTHER_FILTERS };
            Err(BrokerError::BadRequest { fault })
        }
    }
}

fn group(group: &Group) -> proto::Group {
    let settings = &group.settings;
    let filters = match settings.other_filters {
        OtherFilters::Warn => proto::OtherFilters::Warn,
        OtherFilters::Refuse => proto::OtherFilters::Refuse,
        OtherFilters::Roll => proto::OtherFilters::Roll,
    };
    let at = match settings.initial_position {
        InitialPosition::Earliest => At::Edge(Edge::Earliest.into()),
        InitialPosition::Latest => At::Edge(Edge::Latest.into()),
        InitialPosition::Time(time) => At::TimeMs(time.get()),
    };
    proto::Group {
        name: group.name.as_ref().to_owned(),
        id: group.id.get(),
        config: Some(GroupConfig {
            enabled: Some(settings.enabled),
            ordered: Some(settings.ordered),
            other_filters: filters.into(),
            max_attempts: Some(settings.max_attempts.unwrap_or(0)),
            retry_delays: Some(RetryDelays { ms: settings.retry_delays_ms.clone() }),
            retry_jitter: Some(settings.retry_jitter),
            initial_position: Some(proto::Position { at: Some(at) }),
        }),
    }
}
