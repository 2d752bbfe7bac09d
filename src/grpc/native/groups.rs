//! CreateGroup, UpdateGroup, DeleteGroup, ListGroups, DescribeGroup, RedriveDeadLetters.

use tonic::{Request, Response};

use super::offsets::progress;
use super::or_default;
use crate::broker::{
    Broker, BrokerError, Group, GroupChange, GroupTopic, RedriveRequest, Redriven, RequestFault,
    Run,
};
use crate::grpc::deadline;
use crate::message::{GroupSettings, InitialPosition, MessageId, Timestamp, TopicId};
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

/// As the field is called where a position is refused.
const INITIAL_POSITION: &str = "initial_position";

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
    let bad = |_| BrokerError::BadRequest { fault: RequestFault::MessageId };
    let ids = request.ids.iter().map(|id| id.parse::<MessageId>().map_err(bad));
    let ids = ids.collect::<Result<Vec<_>, _>>()?;
    let redrive = RedriveRequest {
        group: &request.group,
        ids: &ids,
        max: or_default(request.max, DEFAULT_REDRIVE),
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
    let dead_letters = redriven.into_iter().map(dead_letter).collect();
    Ok(Response::new(RedriveDeadLettersResponse { dead_letters }))
}

fn change(config: Option<GroupConfig>) -> Result<GroupChange, BrokerError> {
    let config = config.unwrap_or_default();
    let attempts = |count: u32| (count > 0).then_some(count);
    Ok(GroupChange {
        enabled: config.enabled,
        ordered: config.ordered,
        one_filter: config.one_filter,
        max_attempts: config.max_attempts.map(attempts),
        retry_delays_ms: config.retry_delays.map(|delays| delays.ms),
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

fn group(group: &Group) -> proto::Group {
    let settings = &group.settings;
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
            one_filter: Some(settings.one_filter),
            max_attempts: Some(settings.max_attempts.unwrap_or(0)),
            retry_delays: Some(RetryDelays { ms: settings.retry_delays_ms.clone() }),
            initial_position: Some(proto::Position { at: Some(at) }),
        }),
    }
}
