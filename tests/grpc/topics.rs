//! Topics: made, listed, described, deleted.

use mainstem::proto::{
    CreateTopicRequest, DeleteTopicRequest, DescribeTopicRequest, FlushMode, ListTopicsRequest,
    ListTopicsResponse, OffsetRange, Topic, TopicConfig, TopicType,
};
use tonic::{Code, Status};

use crate::support::{Server, batch, detail, refusal, refused, to};

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
    let config =
        TopicConfig { queues: 4, flush: FlushMode::Async.into(), r#type: TopicType::Mixed.into() };
    assert_eq!(made.topic.unwrap().config, Some(config));
}

#[tokio::test(flavor = "multi_thread")]
async fn creation_is_idempotent_and_refuses_another_configuration() {
    let server = Server::start().await;
    let config =
        TopicConfig { queues: 7, flush: FlushMode::Async.into(), r#type: TopicType::Fifo.into() };
    let made = create(&server, "t", config).await.unwrap();
    assert_eq!(made.config, Some(config));
    assert_eq!(create(&server, "t", config).await.unwrap(), made);
    for other in [
        TopicConfig { queues: 8, ..config },
        TopicConfig { flush: FlushMode::Sync.into(), ..config },
        TopicConfig { r#type: TopicType::Normal.into(), ..config },
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
    ] {
        let answer = create(&server, "t", config).await;
        assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_REQUEST"));
    }
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
    let config =
        TopicConfig { queues: 7, flush: FlushMode::Async.into(), r#type: TopicType::Fifo.into() };
    let kept = server.create("kept", config).await;
    let gone = server.create("gone", config).await;
    server.delete("gone").await;
    let (data, ended) = server.stop();
    ended.await.unwrap().unwrap();

    let server = Server::on(data, &[]).await;
    assert_eq!(list(&server, "", 0).await.topics, [kept]);
    assert!(server.create("gone", config).await.id > gone.id);
}
