//! Topics: made, changed, purged, listed, described, deleted.

use mainstem::format::batch::NewMeta;
use mainstem::proto::query_messages_request::Selector;
use mainstem::proto::{
    Access, CreateTopicRequest, DeleteTopicRequest, DescribeTopicRequest, FlushMode,
    ListTopicsRequest, ListTopicsResponse, OffsetRange, PurgeTopicRequest, QueryMessagesRequest,
    Topic, TopicConfig, TopicType, UpdateTopicRequest,
};
use tonic::{Code, Status};

use crate::support::{
    Server, batch, batch_with, bodies, detail, from, key_query, refusal, refused, soon, to,
};

/// On the wire: without a limit.
const ALL: u64 = u64::MAX;

/// What a topic is that is made without a wish, on a broker without one.
fn defaults() -> TopicConfig {
    TopicConfig {
        queues: 4,
        flush: FlushMode::Sync.into(),
        r#type: TopicType::Mixed.into(),
        access: Access::ReadWrite.into(),
        retention_ms: Some(72 * 3_600_000),
        retention_bytes: Some(ALL),
    }
}

async fn update(server: &Server, name: &str, config: TopicConfig) -> Result<TopicConfig, Status> {
    let request = UpdateTopicRequest { name: name.to_owned(), config: Some(config), force: false };
    let answer = server.admin.clone().update_topic(request).await?;
    Ok(answer.into_inner().topic.unwrap().config.unwrap())
}

async fn force(server: &Server, name: &str, config: TopicConfig) -> Result<TopicConfig, Status> {
    let request = UpdateTopicRequest { name: name.to_owned(), config: Some(config), force: true };
    let answer = server.admin.clone().update_topic(request).await?;
    Ok(answer.into_inner().topic.unwrap().config.unwrap())
}

async fn purge(
    server: &Server,
    name: &str,
    queue: Option<u32>,
    up_to: Option<u64>,
) -> Result<Option<u64>, Status> {
    let request = PurgeTopicRequest { name: name.to_owned(), queue, up_to };
    Ok(server.admin.clone().purge_topic(request).await?.into_inner().messages)
}

async fn create(server: &Server, name: &str, config: TopicConfig) -> Result<Topic, Status> {
    let request = CreateTopicRequest { name: name.to_owned(), config: Some(config) };
    let answer = server.admin.clone().create_topic(request).await?;
    Ok(answer.into_inner().topic.unwrap())
}

async fn list(server: &Server, after: &str, limit: u32) -> ListTopicsResponse {
    let request = ListTopicsRequest { after: after.to_owned(), limit };
    server.admin.clone().list_topics(request).await.unwrap().into_inner()
}

fn names(page: &ListTopicsResponse) -> Vec<&str> {
    page.topics.iter().map(|topic| topic.name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_without_a_configuration_gets_the_defaults() {
    let server = Server::with(&["store.flush=async"]).await;
    let request = CreateTopicRequest { name: "t".to_owned(), config: None };
    let made = server.admin.clone().create_topic(request).await.unwrap().into_inner();
    let config = TopicConfig { flush: FlushMode::Async.into(), ..defaults() };
    assert_eq!(made.topic.unwrap().config, Some(config));
}

#[tokio::test(flavor = "multi_thread")]
async fn creation_is_idempotent_and_refuses_another_configuration() {
    let server = Server::start().await;
    let config = TopicConfig {
        queues: 7,
        flush: FlushMode::Async.into(),
        r#type: TopicType::Fifo.into(),
        access: Access::ReadOnly.into(),
        retention_ms: Some(60_000),
        retention_bytes: Some(1 << 20),
    };
    let made = create(&server, "t", config).await.unwrap();
    assert_eq!(made.config, Some(config));
    assert_eq!(create(&server, "t", config).await.unwrap(), made);
    for other in [
        TopicConfig { queues: 8, ..config },
        TopicConfig { flush: FlushMode::Sync.into(), ..config },
        TopicConfig { r#type: TopicType::Normal.into(), ..config },
        TopicConfig { access: Access::ReadWrite.into(), ..config },
        TopicConfig { retention_ms: Some(60_001), ..config },
        TopicConfig { retention_ms: Some(ALL), ..config },
        // Unset is the default, and not whatever there is.
        TopicConfig { retention_bytes: None, ..config },
    ] {
        let answer = create(&server, "t", other).await;
        assert_eq!(refusal(answer), refused(Code::AlreadyExists, "TOPIC_EXISTS"));
    }
    assert_eq!(names(&list(&server, "", 0).await), ["t"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_never_given_twice() {
    let server = Server::start().await;
    let first = server.create("t", TopicConfig::default()).await;
    server.delete("t").await;
    let second = server.create("t", TopicConfig::default()).await;
    let third = server.create("u", TopicConfig::default()).await;
    assert!(first.id < second.id && second.id < third.id, "{first:?} {second:?} {third:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_has_1_to_65536_queues() {
    let server = Server::start().await;
    let with = |queues| TopicConfig { queues, ..TopicConfig::default() };
    create(&server, "most", with(65_536)).await.unwrap();
    server.send(to("most", Some(65_535), batch(&["x"]))).await.unwrap();
    let status = create(&server, "more", with(65_537)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    let why = detail(&status);
    assert_eq!((why.reason.as_str(), why.limit), ("TOO_LARGE", Some(65_536)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_topic_is_refused() {
    let server = Server::start().await;
    for name in ["", "a b", "%DLQ%g", "TBW102", "RMQ_SYS_x"] {
        let answer = create(&server, name, TopicConfig::default()).await;
        assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_NAME"), "{name}");
    }
    for config in [
        TopicConfig { flush: 9, ..TopicConfig::default() },
        TopicConfig { r#type: 9, ..TopicConfig::default() },
        TopicConfig { access: 9, ..TopicConfig::default() },
        TopicConfig { retention_ms: Some(0), ..TopicConfig::default() },
        TopicConfig { retention_ms: Some(999), ..TopicConfig::default() },
        TopicConfig { retention_ms: Some(3_155_760_000_001), ..TopicConfig::default() },
        TopicConfig { retention_ms: Some(ALL - 1), ..TopicConfig::default() },
        TopicConfig { retention_bytes: Some(0), ..TopicConfig::default() },
        TopicConfig { retention_bytes: Some((1 << 20) - 1), ..TopicConfig::default() },
        TopicConfig { retention_bytes: Some((1 << 60) + 1), ..TopicConfig::default() },
    ] {
        let answer = create(&server, "t", config).await;
        assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_REQUEST"), "{config:?}");
    }
    assert_eq!(names(&list(&server, "", 0).await), Vec::<&str>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_by_a_send_gets_the_retention_of_the_configuration() {
    let server = Server::with(&["broker.retention=5m", "broker.retention_bytes=1 GiB"]).await;
    server.send(to("t", None, batch(&["x"]))).await.unwrap();
    let config =
        TopicConfig { retention_ms: Some(300_000), retention_bytes: Some(1 << 30), ..defaults() };
    assert_eq!(list(&server, "", 0).await.topics[0].config, Some(config));
    let own = TopicConfig { retention_ms: Some(ALL), ..TopicConfig::default() };
    let made = server.create("u", own).await.config.unwrap();
    assert_eq!((made.retention_ms, made.retention_bytes), (Some(ALL), Some(1 << 30)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_changes_what_it_names_and_nothing_else() {
    let server = Server::start().await;
    let made = server.create("t", TopicConfig::default()).await;
    let mut known = defaults();
    assert_eq!(update(&server, "t", TopicConfig::default()).await.unwrap(), known);
    let unset = TopicConfig::default();
    known.queues = 6;
    let changed = update(&server, "t", TopicConfig { queues: 6, ..unset }).await;
    assert_eq!(changed.unwrap(), known);
    known.flush = FlushMode::Async.into();
    let changed = update(&server, "t", TopicConfig { flush: known.flush, ..unset }).await;
    assert_eq!(changed.unwrap(), known);
    known.r#type = TopicType::Normal.into();
    let changed = update(&server, "t", TopicConfig { r#type: known.r#type, ..unset }).await;
    assert_eq!(changed.unwrap(), known);
    known.access = Access::NoAccess.into();
    let changed = update(&server, "t", TopicConfig { access: known.access, ..unset }).await;
    assert_eq!(changed.unwrap(), known);
    known.retention_ms = Some(ALL);
    let changed = update(&server, "t", TopicConfig { retention_ms: Some(ALL), ..unset }).await;
    assert_eq!(changed.unwrap(), known);
    known.retention_bytes = Some(1 << 40);
    let changed =
        update(&server, "t", TopicConfig { retention_bytes: Some(1 << 40), ..unset }).await;
    assert_eq!(changed.unwrap(), known);
    // All at once, and back.
    assert_eq!(update(&server, "t", TopicConfig { queues: 7, ..defaults() }).await.unwrap(), {
        TopicConfig { queues: 7, ..defaults() }
    });
    let topic = list(&server, "", 0).await.topics.remove(0);
    assert_eq!((topic.id, topic.config.unwrap().queues), (made.id, 7));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_update_can_do_is_refused_and_changes_nothing() {
    let server = Server::start().await;
    server.create("t", TopicConfig::default()).await;
    let unset = TopicConfig::default();
    for (config, code, reason) in [
        (TopicConfig { queues: 3, ..unset }, Code::InvalidArgument, "BAD_REQUEST"),
        (TopicConfig { queues: 65_537, ..unset }, Code::OutOfRange, "TOO_LARGE"),
        (TopicConfig { flush: 9, ..unset }, Code::InvalidArgument, "BAD_REQUEST"),
        (TopicConfig { r#type: 9, ..unset }, Code::InvalidArgument, "BAD_REQUEST"),
        (TopicConfig { access: 9, ..unset }, Code::InvalidArgument, "BAD_REQUEST"),
        (TopicConfig { retention_ms: Some(0), ..unset }, Code::InvalidArgument, "BAD_REQUEST"),
        (TopicConfig { retention_bytes: Some(1), ..unset }, Code::InvalidArgument, "BAD_REQUEST"),
    ] {
        // Force is for the order of FIFO topics and for nothing else.
        assert_eq!(refusal(force(&server, "t", config).await), refused(code, reason), "{config:?}");
    }
    assert_eq!(list(&server, "", 0).await.topics[0].config, Some(defaults()));
    let answer = update(&server, "u", unset).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "UNKNOWN_TOPIC"));
    let answer = update(&server, "a b", unset).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_NAME"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_order_of_a_fifo_topic_wants_force() {
    let server = Server::start().await;
    let unset = TopicConfig::default();
    let fifo = TopicConfig { r#type: TopicType::Fifo.into(), queues: 2, ..unset };
    server.create("t", fifo).await;
    for config in [
        TopicConfig { queues: 3, ..unset },
        TopicConfig { r#type: TopicType::Mixed.into(), ..unset },
    ] {
        let answer = update(&server, "t", config).await;
        assert_eq!(refusal(answer), refused(Code::FailedPrecondition, "NEEDS_FORCE"));
    }
    // What leaves the order as it is does not.
    let access = TopicConfig { access: Access::ReadOnly.into(), queues: 2, ..unset };
    assert_eq!(update(&server, "t", access).await.unwrap().access(), Access::ReadOnly);
    let forced = force(&server, "t", TopicConfig { queues: 3, ..unset }).await.unwrap();
    assert_eq!(forced.queues, 3);
    let mixed = TopicConfig { r#type: TopicType::Mixed.into(), ..unset };
    assert_eq!(force(&server, "t", mixed).await.unwrap().r#type(), TopicType::Mixed);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_queues_are_there_at_once_and_after_a_restart() {
    let server = Server::start().await;
    server.create("t", TopicConfig { queues: 1, ..TopicConfig::default() }).await;
    let answer = server.send(to("t", Some(1), batch(&["x"]))).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_QUEUE"));
    update(&server, "t", TopicConfig { queues: 2, ..TopicConfig::default() }).await.unwrap();
    let sent = server.send(to("t", Some(1), batch(&["x"]))).await.unwrap();
    assert_eq!((sent.queue, sent.first_queue_offset), (1, 0));
    let (data, ended) = server.stop();
    ended.await.unwrap().unwrap();

    let server = Server::on(data, &[]).await;
    let sent = server.send(to("t", Some(1), batch(&["y"]))).await.unwrap();
    assert_eq!(sent.first_queue_offset, 1);
    assert_eq!(list(&server, "", 0).await.topics[0].config.unwrap().queues, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_type_is_asked_of_the_next_send() {
    let server = Server::start().await;
    server.create("t", TopicConfig::default()).await;
    let grouped =
        || batch_with(&["x"], &NewMeta { message_group: Some("g"), ..NewMeta::default() });
    server.send(to("t", None, grouped())).await.unwrap();
    let normal = TopicConfig { r#type: TopicType::Normal.into(), ..TopicConfig::default() };
    update(&server, "t", normal).await.unwrap();
    let answer = server.send(to("t", None, grouped())).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "TYPE_CONFLICT"));
    server.send(to("t", None, batch(&["x"]))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_access_does_not_allow_is_forbidden() {
    let server = Server::start().await;
    let with = |access: Access| TopicConfig { access: access.into(), ..TopicConfig::default() };
    let forbidden = || refused(Code::PermissionDenied, "FORBIDDEN");
    for access in [Access::ReadOnly, Access::NoAccess] {
        let name = access.as_str_name();
        server.create(name, with(access)).await;
        assert_eq!(refusal(server.send(to(name, None, batch(&["x"]))).await), forbidden());
    }
    assert_eq!(server.pull(from("READ_ONLY", 0, 0)).await.unwrap().next_offset, 0);
    assert_eq!(server.by_key("READ_ONLY", "k").await.messages.len(), 0);
    server.create("WRITE_ONLY", with(Access::WriteOnly)).await;
    server.send(to("WRITE_ONLY", Some(0), batch(&["x"]))).await.unwrap();
    for name in ["WRITE_ONLY", "NO_ACCESS"] {
        assert_eq!(refusal(server.pull(from(name, 0, 0)).await), forbidden());
        assert_eq!(refusal(server.query(key_query(name, "k")).await), forbidden());
    }
    update(&server, "WRITE_ONLY", with(Access::ReadWrite)).await.unwrap();
    assert_eq!(server.pull(from("WRITE_ONLY", 0, 0)).await.unwrap().records.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_that_makes_no_sense_is_refused() {
    let server = Server::start().await;
    server.create("t", TopicConfig { queues: 2, ..TopicConfig::default() }).await;
    server.send(to("t", Some(0), batch(&["x", "y"]))).await.unwrap();
    let status = purge(&server, "t", Some(0), Some(3)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    let why = detail(&status);
    let range = Some(OffsetRange { min: 0, max: 2 });
    assert_eq!((why.reason.as_str(), why.range), ("OFFSET_OUT_OF_RANGE", range));
    let answer = purge(&server, "t", Some(2), None).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_QUEUE"));
    let answer = purge(&server, "t", None, Some(1)).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_REQUEST"));
    let answer = purge(&server, "u", None, None).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "UNKNOWN_TOPIC"));
    // Nothing to do is fine.
    assert_eq!(purge(&server, "t", Some(1), None).await.unwrap(), Some(0));
    assert_eq!(purge(&server, "t", Some(0), Some(0)).await.unwrap(), Some(0));
    assert_eq!(server.pull(from("t", 0, 0)).await.unwrap().records.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_very_many_queues_is_purged_without_a_count() {
    let server = Server::start().await;
    server.create("t", TopicConfig { queues: 1_025, ..TopicConfig::default() }).await;
    assert_eq!(purge(&server, "t", None, None).await.unwrap(), None);
    assert_eq!(purge(&server, "t", Some(1_024), None).await.unwrap(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_listed_in_the_order_of_their_names_page_by_page() {
    let server = Server::start().await;
    for name in ["b", "a", "c", "B"] {
        server.create(name, TopicConfig::default()).await;
    }
    let first = list(&server, "", 3).await;
    assert_eq!((names(&first), first.more), (vec!["B", "a", "b"], true));
    let rest = list(&server, "b", 3).await;
    assert_eq!((names(&rest), rest.more), (vec!["c"], false));
    let request = ListTopicsRequest { after: String::new(), limit: 10_001 };
    let status = server.admin.clone().list_topics(request).await.unwrap_err();
    assert_eq!(detail(&status).limit, Some(10_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_description_shows_queues_and_what_they_hold() {
    let server = Server::start().await;
    server.create("t", TopicConfig { queues: 5, ..TopicConfig::default() }).await;
    server.send(to("t", Some(3), batch(&["x", "y"]))).await.unwrap();
    let request = DescribeTopicRequest { name: "t".to_owned(), first_queue: 2, limit: 2 };
    let described = server.admin.clone().describe_topic(request).await.unwrap().into_inner();
    assert_eq!(described.topic.unwrap().name, "t");
    let queues: Vec<_> = described.queues.iter().map(|q| (q.queue, q.range)).collect();
    let range = |max| Some(OffsetRange { min: 0, max });
    assert_eq!(queues, [(2, range(0)), (3, range(2))]);

    let request = DescribeTopicRequest { name: "u".to_owned(), ..Default::default() };
    let answer = server.admin.clone().describe_topic(request).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "UNKNOWN_TOPIC"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_topic_is_unknown() {
    let server = Server::start().await;
    server.create("t", TopicConfig::default()).await;
    server.delete("t").await;
    assert_eq!(names(&list(&server, "", 0).await), Vec::<&str>::new());
    let request = DeleteTopicRequest { name: "t".to_owned() };
    let answer = server.admin.clone().delete_topic(request).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "UNKNOWN_TOPIC"));
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_and_the_counter_of_ids_outlive_a_restart() {
    let server = Server::start().await;
    let config = TopicConfig {
        queues: 7,
        flush: FlushMode::Async.into(),
        r#type: TopicType::Fifo.into(),
        access: Access::WriteOnly.into(),
        retention_ms: Some(3_600_000),
        retention_bytes: Some(ALL),
    };
    let kept = server.create("kept", config).await;
    let gone = server.create("gone", config).await;
    server.delete("gone").await;
    let (data, ended) = server.stop();
    ended.await.unwrap().unwrap();

    let server = Server::on(data, &[]).await;
    assert_eq!(list(&server, "", 0).await.topics, [kept]);
    assert!(server.create("gone", config).await.id > gone.id);
}

/// What can be read of each queue.
async fn ranges(server: &Server, name: &str) -> Vec<(u64, u64)> {
    let request = DescribeTopicRequest { name: name.to_owned(), ..Default::default() };
    let described = server.admin.clone().describe_topic(request).await.unwrap().into_inner();
    described.queues.iter().map(|queue| queue.range.unwrap()).map(|r| (r.min, r.max)).collect()
}

async fn restarted(server: Server) -> Server {
    let (data, ended) = server.stop();
    ended.await.unwrap().unwrap();
    Server::on(data, &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_purged_is_counted_and_gone_for_pulls_and_queries_and_after_a_restart() {
    let server = Server::start().await;
    server.create("t", TopicConfig { queues: 2, ..TopicConfig::default() }).await;
    let keyed =
        |bodies: &[&str]| batch_with(bodies, &NewMeta { keys: vec!["k"], ..NewMeta::default() });
    let sent = server.send(to("t", Some(0), keyed(&["a", "b"]))).await.unwrap();
    server.send(to("t", Some(0), keyed(&["c"]))).await.unwrap();
    server.send(to("t", Some(1), keyed(&["d", "e"]))).await.unwrap();

    // Inside a batch.
    assert_eq!(purge(&server, "t", Some(0), Some(1)).await.unwrap(), Some(1));
    assert_eq!(ranges(&server, "t").await, [(1, 3), (0, 2)]);
    assert_eq!(bodies(&server.by_key("t", "k").await.messages), ["e", "d", "c", "b"]);
    let of_index = |index| QueryMessagesRequest {
        selector: Some(Selector::MessageId(format!(
            "{:x}-{:x}-{index:x}",
            sent.epoch, sent.physical_offset
        ))),
        ..QueryMessagesRequest::default()
    };
    let answer = server.query(of_index(0)).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "MESSAGE_NOT_FOUND"));
    assert_eq!(bodies(&server.query(of_index(1)).await.unwrap().messages), ["b"]);

    assert_eq!(purge(&server, "t", Some(0), Some(2)).await.unwrap(), Some(1));
    assert_eq!(purge(&server, "t", Some(0), Some(1)).await.unwrap(), Some(0));
    assert_eq!(ranges(&server, "t").await, [(2, 3), (0, 2)]);
    assert_eq!(bodies(&server.by_key("t", "k").await.messages), ["e", "d", "c"]);
    let status = server.pull(from("t", 0, 1)).await.unwrap_err();
    assert_eq!(detail(&status).range, Some(OffsetRange { min: 2, max: 3 }));
    let answer = server.query(of_index(1)).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "MESSAGE_NOT_FOUND"));

    assert_eq!(purge(&server, "t", None, None).await.unwrap(), Some(3));
    assert_eq!(purge(&server, "t", None, None).await.unwrap(), Some(0));
    assert_eq!(ranges(&server, "t").await, [(3, 3), (2, 2)]);
    server.send(to("t", Some(1), keyed(&["f"]))).await.unwrap();
    let server = restarted(server).await;
    assert_eq!(ranges(&server, "t").await, [(3, 3), (2, 3)]);
    assert_eq!(bodies(&server.by_key("t", "k").await.messages), ["f"]);
    assert_eq!(purge(&server, "t", Some(1), None).await.unwrap(), Some(1));
    assert_eq!(ranges(&server, "t").await, [(3, 3), (3, 3)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_time_is_over_is_gone_and_stays_gone_when_messages_are_kept_longer() {
    let server = Server::start().await;
    let ever = TopicConfig { queues: 1, retention_ms: Some(ALL), ..TopicConfig::default() };
    server.create("t", ever).await;
    server.send(to("t", None, batch(&["x"]))).await.unwrap();
    let second = TopicConfig { retention_ms: Some(1_000), ..TopicConfig::default() };
    update(&server, "t", second).await.unwrap();
    let gone = async {
        while ranges(&server, "t").await != [(1, 1)] {
            tokio::task::yield_now().await;
        }
    };
    soon(gone).await;
    let status = server.pull(from("t", 0, 0)).await.unwrap_err();
    assert_eq!(detail(&status).range, Some(OffsetRange { min: 1, max: 1 }));

    update(&server, "t", TopicConfig { queues: 0, ..ever }).await.unwrap();
    server.send(to("t", None, batch(&["y"]))).await.unwrap();
    assert_eq!(ranges(&server, "t").await, [(1, 2)]);
    let server = restarted(server).await;
    assert_eq!(ranges(&server, "t").await, [(1, 2)]);
    assert_eq!(server.pull(from("t", 0, 1)).await.unwrap().records.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shorter_retention_is_in_force_at_once() {
    let server = Server::start().await;
    server.create("t", TopicConfig { queues: 1, ..TopicConfig::default() }).await;
    let first = server.send(to("t", None, batch(&["x"]))).await.unwrap();
    // A second later by the clock that counts, and the second by which a message may go late.
    loop {
        let last = server.send(to("u", None, batch(&["x"]))).await.unwrap();
        if last.store_time_ms > first.store_time_ms + 2_001 {
            break;
        }
    }
    assert_eq!(ranges(&server, "t").await, [(0, 1)]);
    let second = TopicConfig { retention_ms: Some(1_000), ..TopicConfig::default() };
    update(&server, "t", second).await.unwrap();
    assert_eq!(ranges(&server, "t").await, [(1, 1)]);
}
