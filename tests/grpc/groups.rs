//! Consumer groups: made, changed, listed, described, deleted; and the pulls in their names.

use mainstem::proto::position::{At, Edge};
use mainstem::proto::{
    CommitOffset, CommitOffsetsRequest, CreateGroupRequest, DeleteGroupRequest,
    DescribeGroupRequest, DescribeGroupResponse, Group, GroupConfig, ListGroupsRequest,
    ListGroupsResponse, OffsetRange, OtherFilters, Position, PullRequest, PullResponse,
    QueueProgress, RetryDelays, TopicConfig, UpdateGroupRequest,
};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use crate::offsets::without_time;
use crate::support::{Server, batch, detail, from, refusal, refused, soon, to};

const WAITERS: &str = "mainstem_waiters";

async fn create(server: &Server, name: &str, config: GroupConfig) -> Result<Group, Status> {
    let request = CreateGroupRequest { name: name.to_owned(), config: Some(config) };
    let answer = server.admin.clone().create_group(request).await?;
    Ok(answer.into_inner().group.unwrap())
}

async fn update(server: &Server, name: &str, config: GroupConfig) -> Result<Group, Status> {
    let request = UpdateGroupRequest { name: name.to_owned(), config: Some(config) };
    let answer = server.admin.clone().update_group(request).await?;
    Ok(answer.into_inner().group.unwrap())
}

async fn delete(server: &Server, name: &str) -> Result<(), Status> {
    let request = DeleteGroupRequest { name: name.to_owned() };
    server.admin.clone().delete_group(request).await.map(|_| ())
}

async fn list(server: &Server, after: &str, limit: u32) -> ListGroupsResponse {
    let request = ListGroupsRequest { after: after.to_owned(), limit };
    server.admin.clone().list_groups(request).await.unwrap().into_inner()
}

async fn describe(server: &Server, name: &str, after: u64, limit: u32) -> DescribeGroupResponse {
    let request = DescribeGroupRequest { name: name.to_owned(), after, limit };
    let mut answer = server.admin.clone().describe_group(request).await.unwrap().into_inner();
    for topic in &mut answer.topics {
        topic.queues = std::mem::take(&mut topic.queues).into_iter().map(without_time).collect();
    }
    answer
}

async fn commit(server: &Server, group: &str, offsets: &[(&str, u32, u64)]) -> Result<(), Status> {
    let offset = |&(topic, queue, offset): &(&str, u32, u64)| CommitOffset {
        topic: topic.to_owned(),
        queue,
        offset,
        condition: None,
        known_queues: None,
    };
    let offsets = offsets.iter().map(offset).collect();
    let request = CommitOffsetsRequest { group: group.to_owned(), offsets, by: String::new() };
    server.broker.clone().commit_offsets(request).await.map(|_| ())
}

fn names(page: &ListGroupsResponse) -> Vec<&str> {
    page.groups.iter().map(|group| group.name.as_str()).collect()
}

fn position(at: At) -> Option<Position> {
    Some(Position { at: Some(at) })
}

fn disabled() -> GroupConfig {
    GroupConfig { enabled: Some(false), ..GroupConfig::default() }
}

fn delays(ms: Vec<u64>) -> GroupConfig {
    GroupConfig { retry_delays: Some(RetryDelays { ms }), ..GroupConfig::default() }
}

/// A pull in the name of `group` that waits at the end of an empty queue.
async fn parked(server: &Server, group: &str) -> JoinHandle<Result<PullResponse, Status>> {
    let request = PullRequest { wait_ms: 30_000, group: group.to_owned(), ..from("t", 0, 0) };
    let mut client = server.broker.clone();
    let parked =
        tokio::spawn(async move { client.pull(request).await.map(tonic::Response::into_inner) });
    soon(server.until_metric(WAITERS, 1)).await;
    parked
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_made_without_settings_gets_the_defaults() {
    let server = Server::start().await;
    let request = CreateGroupRequest { name: "g".to_owned(), config: None };
    let made = server.admin.clone().create_group(request).await.unwrap().into_inner();
    let config = made.group.unwrap().config.unwrap();
    assert_eq!((config.enabled, config.ordered), (Some(true), Some(false)));
    assert_eq!(config.max_attempts, Some(17));
    assert_eq!(config.initial_position, position(At::Edge(Edge::Earliest.into())));
    let delays = config.retry_delays.unwrap().ms;
    assert_eq!((delays.len(), delays[0], delays[17]), (18, 1_000, 7_200_000));
    assert_eq!(server.metric("mainstem_groups").await, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn creation_is_idempotent_and_refuses_other_settings() {
    let server = Server::start().await;
    let config = GroupConfig {
        enabled: Some(false),
        ordered: Some(true),
        other_filters: OtherFilters::Roll.into(),
        retry_jitter: Some(30),
        max_attempts: Some(0),
        retry_delays: Some(RetryDelays { ms: vec![0, 43_200_000] }),
        initial_position: position(At::TimeMs(7)),
    };
    let made = create(&server, "g", config.clone()).await.unwrap();
    assert_eq!(made.config, Some(config.clone()));
    assert_eq!(create(&server, "g", config.clone()).await.unwrap(), made);
    let others = [
        GroupConfig { enabled: Some(true), ..config.clone() },
        GroupConfig { ordered: None, ..config.clone() },
        GroupConfig { max_attempts: Some(1), ..config.clone() },
        GroupConfig { retry_delays: None, ..config.clone() },
        GroupConfig { initial_position: position(At::Edge(1)), ..config.clone() },
    ];
    for other in others {
        let answer = create(&server, "g", other).await;
        assert_eq!(refusal(answer), refused(Code::AlreadyExists, "GROUP_EXISTS"));
    }
    assert_eq!(list(&server, "", 0).await.groups, [made]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_group_is_refused() {
    let server = Server::start().await;
    for name in ["", "a b", "%RETRY%g", "CID_RMQ_SYS_TRANS", "TOOLS_CONSUMER"] {
        let answer = create(&server, name, GroupConfig::default()).await;
        assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_NAME"), "{name}");
    }
    let status = create(&server, &"x".repeat(121), GroupConfig::default()).await.unwrap_err();
    assert_eq!((detail(&status).reason.as_str(), detail(&status).limit), ("BAD_NAME", Some(120)));
    create(&server, &"x".repeat(120), GroupConfig::default()).await.unwrap();

    let initial = |initial_position| GroupConfig { initial_position, ..GroupConfig::default() };
    for config in [
        delays(Vec::new()),
        initial(Some(Position { at: None })),
        initial(position(At::Offset(3))),
        initial(position(At::Edge(9))),
    ] {
        let answer = create(&server, "g", config).await;
        assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_REQUEST"));
    }
    for (config, limit) in [(delays(vec![1; 65]), 64), (delays(vec![1, 43_200_001]), 43_200_000)] {
        let status = create(&server, "g", config.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange);
        assert_eq!(detail(&status).limit, Some(limit));
        let answer = update(&server, &"x".repeat(120), config).await;
        assert_eq!(refusal(answer), refused(Code::OutOfRange, "TOO_LARGE"));
    }
    create(&server, "g", delays(vec![1; 64])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_changes_what_it_names_and_nothing_else() {
    let server = Server::start().await;
    let made = create(&server, "g", GroupConfig::default()).await.unwrap();
    let change = GroupConfig { max_attempts: Some(3), ..disabled() };
    let updated = update(&server, "g", change.clone()).await.unwrap();
    let config =
        GroupConfig { enabled: Some(false), max_attempts: Some(3), ..made.config.clone().unwrap() };
    assert_eq!(updated, Group { config: Some(config), ..made.clone() });
    assert_eq!(update(&server, "g", change).await.unwrap(), updated);
    assert_eq!(update(&server, "g", GroupConfig::default()).await.unwrap(), updated);
    let back = GroupConfig { enabled: Some(true), max_attempts: Some(17), ..Default::default() };
    assert_eq!(update(&server, "g", back).await.unwrap(), made);

    let answer = update(&server, "nobody", GroupConfig::default()).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "UNKNOWN_GROUP"));
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_listed_in_the_order_of_their_names_page_by_page() {
    let server = Server::start().await;
    for name in ["b", "a", "c", "B"] {
        create(&server, name, GroupConfig::default()).await.unwrap();
    }
    let first = list(&server, "", 3).await;
    assert_eq!((names(&first), first.more), (vec!["B", "a", "b"], true));
    let rest = list(&server, "b", 3).await;
    assert_eq!((names(&rest), rest.more), (vec!["c"], false));
    let request = ListGroupsRequest { after: String::new(), limit: 10_001 };
    let status = server.admin.clone().list_groups(request).await.unwrap_err();
    assert_eq!(detail(&status).limit, Some(10_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_not_there_is_named_with_the_way_to_make_it() {
    let server = Server::start().await;
    server.create("t", TopicConfig::default()).await;
    let status = commit(&server, "nobody", &[("t", 0, 0)]).await.unwrap_err();
    let told = "there is no consumer group nobody: `mainstem group create nobody` makes it";
    assert_eq!((status.code(), status.message()), (Code::NotFound, told));
    assert_eq!(detail(&status).reason, "UNKNOWN_GROUP");
    let answer = delete(&server, "nobody").await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "UNKNOWN_GROUP"));
    let answer = delete(&server, "no body").await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_NAME"));
    let request = DescribeGroupRequest { name: "nobody".to_owned(), ..Default::default() };
    let answer = server.admin.clone().describe_group(request).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "UNKNOWN_GROUP"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_made_again_is_another_one_and_knows_no_offsets() {
    let server = Server::start().await;
    server.send(to("t", Some(0), batch(&["x", "y"]))).await.unwrap();
    let first = create(&server, "g", GroupConfig::default()).await.unwrap();
    commit(&server, "g", &[("t", 0, 2)]).await.unwrap();
    assert_eq!(server.metric("mainstem_committed_offsets").await, Some(1));
    delete(&server, "g").await.unwrap();
    assert_eq!(server.metric("mainstem_committed_offsets").await, Some(0));
    let answer = commit(&server, "g", &[("t", 0, 2)]).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "UNKNOWN_GROUP"));
    let second = create(&server, "g", GroupConfig::default()).await.unwrap();
    assert!(first.id < second.id, "{first:?} {second:?}");
    assert_eq!(describe(&server, "g", 0, 0).await.topics, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_description_shows_where_the_group_is_in_all_of_its_topics() {
    let server = Server::start().await;
    let queues = |queues| TopicConfig { queues, ..TopicConfig::default() };
    let ids = [
        server.create("b", queues(2)).await.id,
        server.create("a", queues(3)).await.id,
        server.create("c", queues(1)).await.id,
    ];
    server.create("other", queues(1)).await;
    server.send(to("b", Some(1), batch(&["x", "y", "z"]))).await.unwrap();
    create(&server, "g", GroupConfig::default()).await.unwrap();
    commit(&server, "g", &[("a", 2, 0), ("b", 1, 1), ("c", 0, 0)]).await.unwrap();

    let all = describe(&server, "g", 0, 0).await;
    assert_eq!(all.group.as_ref().unwrap().name, "g");
    let topics: Vec<_> = all.topics.iter().map(|t| (t.topic.as_str(), t.id)).collect();
    assert_eq!((topics, all.more), (vec![("b", ids[0]), ("a", ids[1]), ("c", ids[2])], false));
    let row = |queue, max, committed, lag| QueueProgress {
        queue,
        range: Some(OffsetRange { min: 0, max }),
        committed,
        next: committed.unwrap_or(0),
        lag,
        ready: max - committed.unwrap_or(0),
        ..QueueProgress::default()
    };
    assert_eq!(all.topics[0].queues, [row(0, 0, None, 0), row(1, 3, Some(1), 2)]);
    assert_eq!(all.topics[1].queues.len(), 3);

    // A page ends with the topic that reaches the limit.
    let first = describe(&server, "g", 0, 3).await;
    assert_eq!((first.topics.len(), first.more), (2, true));
    assert_eq!(first.topics[..], all.topics[..2]);
    let rest = describe(&server, "g", ids[1], 3).await;
    assert_eq!((&rest.topics[..], rest.more), (&all.topics[2..], false));

    server.delete("b").await;
    let left = describe(&server, "g", 0, 0).await;
    assert_eq!(left.topics[..], all.topics[1..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_enabled_group_pulls_and_a_disabled_one_still_commits() {
    let server = Server::start().await;
    server.send(to("t", Some(0), batch(&["x"]))).await.unwrap();
    create(&server, "g", GroupConfig::default()).await.unwrap();
    let pull = |group: &str| PullRequest { group: group.to_owned(), ..from("t", 0, 0) };
    assert_eq!(server.pull(pull("g")).await.unwrap().records.len(), 1);
    let answer = server.pull(pull("nobody")).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "UNKNOWN_GROUP"));
    let answer = server.pull(pull("no body")).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_NAME"));

    update(&server, "g", disabled()).await.unwrap();
    let answer = server.pull(pull("g")).await;
    assert_eq!(refusal(answer), refused(Code::PermissionDenied, "GROUP_DISABLED"));
    assert_eq!(server.pull(pull("")).await.unwrap().records.len(), 1);
    commit(&server, "g", &[("t", 0, 1)]).await.unwrap();
    update(&server, "g", GroupConfig { enabled: Some(true), ..Default::default() }).await.unwrap();
    assert_eq!(server.pull(pull("g")).await.unwrap().records.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn disabling_a_group_answers_its_parked_pulls_and_no_others() {
    let server = Server::start().await;
    server.create("t", TopicConfig { queues: 1, ..TopicConfig::default() }).await;
    for name in ["g", "other"] {
        create(&server, name, GroupConfig::default()).await.unwrap();
    }
    let parked = parked(&server, "g").await;
    update(&server, "other", disabled()).await.unwrap();
    // A change that does not disable wakes nobody.
    update(&server, "g", delays(vec![5])).await.unwrap();
    assert!(!parked.is_finished());
    update(&server, "g", disabled()).await.unwrap();
    let answer = soon(parked).await.unwrap();
    assert_eq!(refusal(answer), refused(Code::PermissionDenied, "GROUP_DISABLED"));
    soon(server.until_metric(WAITERS, 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_group_ends_its_parked_pulls() {
    let server = Server::start().await;
    server.create("t", TopicConfig { queues: 1, ..TopicConfig::default() }).await;
    create(&server, "g", GroupConfig::default()).await.unwrap();
    let parked = parked(&server, "g").await;
    delete(&server, "g").await.unwrap();
    let answer = soon(parked).await.unwrap();
    assert_eq!(refusal(answer), refused(Code::NotFound, "UNKNOWN_GROUP"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_wakes_a_pull_in_the_name_of_a_group() {
    let server = Server::start().await;
    server.create("t", TopicConfig { queues: 1, ..TopicConfig::default() }).await;
    create(&server, "g", GroupConfig::default()).await.unwrap();
    let parked = parked(&server, "g").await;
    server.send(to("t", Some(0), batch(&["x"]))).await.unwrap();
    assert_eq!(soon(parked).await.unwrap().unwrap().records.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_their_offsets_and_the_counter_of_ids_outlive_a_restart() {
    let server = Server::start().await;
    server.send(to("t", Some(1), batch(&["x", "y"]))).await.unwrap();
    create(&server, "kept", GroupConfig::default()).await.unwrap();
    let kept = update(&server, "kept", disabled()).await.unwrap();
    let gone = create(&server, "gone", GroupConfig::default()).await.unwrap();
    for group in ["kept", "gone"] {
        commit(&server, group, &[("t", 1, 1)]).await.unwrap();
    }
    delete(&server, "gone").await.unwrap();
    let described = describe(&server, "kept", 0, 0).await;
    let (data, ended) = server.stop();
    ended.await.unwrap().unwrap();

    let server = Server::on(data, &[]).await;
    assert_eq!(list(&server, "", 0).await.groups, [kept]);
    assert_eq!(describe(&server, "kept", 0, 0).await, described);
    assert_eq!(described.topics[0].queues[1].committed, Some(1));
    assert_eq!(server.metric("mainstem_committed_offsets").await, Some(1));
    assert!(create(&server, "gone", GroupConfig::default()).await.unwrap().id > gone.id);
}
