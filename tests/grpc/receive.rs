//! Receive, Ack and Extend, through the native client.

use std::time::Duration;

use mainstem::client::{
    Client, DeadReason, Filter, GroupSettings, Hold, HoldFault, Leased, NewCommit, Order, Pull,
    Query, Reason, Receive, Redrive, RedrivePage, Redriven, Run, Selector, SettledMessage,
    WaitingAction,
};
use mainstem::format::batch::TagFilter;
use mainstem::message::{QueueId, QueueOffset, Timestamp};
use mainstem::proto::rocketmq as v2;
use mainstem::proto::rocketmq::messaging_service_client::MessagingServiceClient;
use mainstem::proto::{
    ExtendEntry, ExtendRequest, RedriveDeadLettersRequest, SettleWaitingRequest, TopicConfig,
};
use tonic::Code;

use crate::support::{Server, batch, refusal, refused, soon, to};

const RECEIVE: Receive<'_> = Receive {
    group: "g",
    topic: "t",
    filter: Filter::All,
    max_messages: 10,
    invisible: Duration::from_secs(60),
    wait: Duration::ZERO,
    attempt: "",
};

/// A server with a topic of two queues, three messages in them, and a group.
async fn server() -> (Server, Client) {
    let server = Server::start().await;
    server.create("t", TopicConfig { queues: 2, ..TopicConfig::default() }).await;
    server.send(to("t", Some(0), batch(&["a", "b"]))).await.unwrap();
    server.send(to("t", Some(1), batch(&["c"]))).await.unwrap();
    let client = Client::connect(&server.at.grpc.to_string()).await.unwrap();
    client.create_group("g", &GroupSettings::default()).await.unwrap();
    (server, client)
}

/// One receive may get a part: what is listed when it looks.
async fn all_three(client: &Client) -> Vec<Leased> {
    let mut leased = Vec::new();
    while leased.len() < 3 {
        leased.extend(client.receive(&RECEIVE).await.unwrap());
    }
    leased
}

fn bodies(leased: &[Leased]) -> Vec<(String, u32)> {
    let body = |one: &Leased| String::from_utf8(one.message.body.to_vec()).unwrap();
    let mut bodies: Vec<_> = leased.iter().map(|one| (body(one), one.delivery)).collect();
    bodies.sort();
    bodies
}

fn wanted(bodies: &[(&str, u32)]) -> Vec<(String, u32)> {
    bodies.iter().map(|(body, delivery)| ((*body).to_owned(), *delivery)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_received_kept_on_given_back_and_acknowledged() {
    let (_server, client) = server().await;
    let leased = all_three(&client).await;
    assert_eq!(bodies(&leased), wanted(&[("a", 1), ("b", 1), ("c", 1)]));
    assert_eq!(client.receive(&RECEIVE).await.unwrap(), []);
    let handle =
        |body: &[u8]| leased.iter().find(|one| one.message.body == body).unwrap().handle.as_str();
    assert!(handle(b"a").len() <= 256);
    let progress = client.progress("g", "t").await.unwrap();
    let split: Vec<_> = progress.iter().map(|row| (row.ready, row.leased, row.waiting)).collect();
    assert_eq!(split, [(0, 2, 0), (0, 1, 0)]);

    let holds = [
        (handle(b"a"), Hold::For(Duration::from_secs(30))),
        (handle(b"b"), Hold::RetryAfter(Duration::from_secs(600))),
        (handle(b"c"), Hold::RetryAfter(Duration::ZERO)),
        ("nonsense", Hold::Retry),
        (handle(b"a"), Hold::For(Duration::from_secs(30))),
    ];
    let held = client.extend("g", "t", &holds).await.unwrap();
    assert_eq!(held[3], Err(HoldFault::BadReceipt));
    assert_eq!(held[4], Err(HoldFault::BadReceipt), "the first took its place");
    let again = client.receive(&RECEIVE).await.unwrap();
    assert_eq!(bodies(&again), wanted(&[("c", 2)]));
    let progress = client.progress("g", "t").await.unwrap();
    let split: Vec<_> = progress.iter().map(|row| (row.ready, row.leased, row.waiting)).collect();
    assert_eq!(split, [(0, 1, 1), (0, 1, 0)]);

    let (a, b) = (held[0].as_ref().unwrap(), held[1].as_ref().unwrap());
    let finished = client.ack("g", "t", &[handle(b"a"), a, b, &again[0].handle]).await.unwrap();
    assert_eq!(finished, [false, true, true, true]);
    let progress = client.progress("g", "t").await.unwrap();
    let lags: Vec<_> = progress.iter().map(|row| (row.committed.unwrap().get(), row.lag)).collect();
    assert_eq!(lags, [(2, 0), (1, 0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_gets_the_message_that_comes() {
    let (server, client) = server().await;
    let leased = all_three(&client).await;
    assert_eq!(leased.len(), 3);
    let waiting = Receive { wait: Duration::from_secs(20), ..RECEIVE };
    let (received, ()) = tokio::join!(client.receive(&waiting), async {
        server.send(to("t", Some(1), batch(&["d"]))).await.unwrap();
    });
    assert_eq!(bodies(&received.unwrap()), wanted(&[("d", 1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_sent_back_by_its_id() {
    let (server, client) = server().await;
    let settings = GroupSettings { max_attempts: Some(Some(1)), ..GroupSettings::default() };
    client.update_group("g", &settings).await.unwrap();
    let leased = all_three(&client).await;
    let given_up = leased.iter().find(|one| one.message.body.as_ref() == b"c").unwrap();
    client.extend("g", "t", &[(given_up.handle.as_str(), Hold::Retry)]).await.unwrap();
    let dead = Receive { group: "readers", topic: "%DLQ%g", ..RECEIVE };
    client.create_group("readers", &GroupSettings::default()).await.unwrap();
    let dead = soon(async {
        loop {
            match client.receive(&dead).await {
                Ok(mut dead) if !dead.is_empty() => break dead.remove(0),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await;
    let letter = dead.message.dead_letter.clone().unwrap();
    assert_eq!((letter.reason.as_str(), letter.topic.as_str()), ("attempts", "t"));
    assert_eq!(letter.message_id, Some(given_up.message.id));
    assert_eq!(letter.store_time, Some(given_up.message.store_time));
    assert_eq!((letter.queue, letter.queue_offset), (QueueId::new(1), QueueOffset::ZERO));
    assert_eq!((letter.deliveries, letter.messages, letter.redriven), (1, 1, 0));
    assert!(letter.first_delivered.is_some() && letter.first_delivered == letter.last_delivered);
    assert!(letter.last_client.starts_with("127.0.0.1:"), "{}", letter.last_client);
    // Whoever reads it in another way sees the same.
    let pull = Pull {
        topic: "%DLQ%g",
        queue: QueueId::ZERO,
        offset: QueueOffset::ZERO,
        max_messages: None,
        max_bytes: None,
        wait: Duration::ZERO,
        tags: "*",
        filter: &TagFilter::All,
        group: None,
        epoch: None,
    };
    let pulled = client.pull(&pull).await.unwrap().messages.remove(0);
    assert_eq!(pulled.dead_letter.as_ref(), Some(&letter));
    let by_id = Query {
        selector: Selector::MessageId(dead.message.id),
        begin: None,
        end: None,
        order: Order::NewestFirst,
        limit: 1,
        page: String::new(),
    };
    let found = client.query(&by_id).await.unwrap().messages.remove(0);
    assert_eq!(found.dead_letter, Some(letter));
    let redrive = async |redrive: Redrive<'_>| client.redrive("g", &redrive).await.unwrap();
    let planned = redrive(Redrive { run: Run::Dry, ..Redrive::default() }).await.dead_letters;
    let back = Redriven { id: dead.message.id, topic: "t".to_owned(), fault: None };
    assert_eq!(planned, std::slice::from_ref(&back));
    let later = Timestamp::new(dead.message.store_time.get() + 1);
    for others in [
        Redrive { reason: Some(DeadReason::Operator), ..Redrive::default() },
        Redrive { key: Some("another"), ..Redrive::default() },
        Redrive { since: Some(later), ..Redrive::default() },
    ] {
        let page = redrive(others).await;
        assert_eq!((page.dead_letters, page.more), (vec![], false), "{others:?}");
    }
    let chosen = [dead.message.id];
    assert_eq!(
        redrive(Redrive {
            ids: &chosen,
            reason: Some(DeadReason::Attempts),
            until: Some(later),
            per_second: Some(1_000),
            ..Redrive::default()
        })
        .await,
        RedrivePage { dead_letters: vec![back], more: false }
    );
    assert_eq!(redrive(Redrive::default()).await.dead_letters, []);
    let again = client.receive(&Receive { wait: Duration::from_secs(20), ..RECEIVE }).await;
    let again = again.unwrap();
    assert_eq!(bodies(&again), wanted(&[("c", 1)]));
    let history = again[0].message.dead_letter.as_ref().unwrap();
    assert_eq!((history.redriven, history.is_back), (1, true));
    let request = RedriveDeadLettersRequest {
        group: "g".to_owned(),
        ids: vec!["nonsense".to_owned()],
        ..RedriveDeadLettersRequest::default()
    };
    let answer = server.admin.clone().redrive_dead_letters(request).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_REQUEST"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_shown_and_settled_by_its_id() {
    let (server, client) = server().await;
    let leased = all_three(&client).await;
    let c = leased.iter().find(|one| one.message.body.as_ref() == b"c").unwrap();
    let later = Hold::RetryAfter(Duration::from_secs(3_600));
    client.extend("g", "t", &[(c.handle.as_str(), later)]).await.unwrap();
    let page = client.waiting("g", "t", None, 9).await.unwrap();
    assert_eq!((page.due, page.waiting, page.more), (0, 1, false));
    assert_eq!((page.messages[0].id, page.messages[0].deliveries), (Some(c.message.id), 1));
    assert!(page.messages[0].last_client.starts_with("127.0.0.1:"));
    let ids = [c.message.id, "9-0-0".parse().unwrap()];
    let settled = client.settle_waiting("g", "t", &ids, 1, WaitingAction::Retry).await.unwrap();
    assert_eq!((settled[1].id, settled[1].place), (Some(ids[1]), None));
    assert_eq!(settled[1].fault.as_deref(), Some("it does not wait"));
    let place = Some((QueueId::new(1), QueueOffset::ZERO));
    let done = SettledMessage { id: Some(ids[0]), place, fault: None };
    assert_eq!(settled[0], done);
    let again =
        client.receive(&Receive { wait: Duration::from_secs(20), ..RECEIVE }).await.unwrap();
    assert_eq!(bodies(&again), wanted(&[("c", 2)]));
    let request = SettleWaitingRequest { group: "g".to_owned(), ..Default::default() };
    let answer = server.admin.clone().settle_waiting(request).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_REQUEST"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_received_is_refused_with_its_reason() {
    let (server, client) = server().await;
    let reason =
        async |receive: Receive<'_>| client.receive(&receive).await.unwrap_err().reason().unwrap();
    assert_eq!(reason(Receive { group: "nobody", ..RECEIVE }).await, Reason::UnknownGroup);
    assert_eq!(reason(Receive { topic: "nothing", ..RECEIVE }).await, Reason::UnknownTopic);
    assert_eq!(reason(Receive { max_messages: 1_025, ..RECEIVE }).await, Reason::TooLarge);
    let long = Duration::from_secs(12 * 3_600 + 1);
    assert_eq!(reason(Receive { invisible: long, ..RECEIVE }).await, Reason::TooLarge);
    let sql = Filter::Sql("a >");
    assert_eq!(reason(Receive { filter: sql, ..RECEIVE }).await, Reason::BadRequest);

    let leased = all_three(&client).await;
    let entries = vec![ExtendEntry { handle: leased[0].handle.clone(), hold: None }];
    let request = ExtendRequest { group: "g".to_owned(), topic: "t".to_owned(), entries };
    let answer = server.broker.clone().extend(request).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_REQUEST"));
    let commit = NewCommit {
        topic: "t",
        queue: QueueId::new(0),
        offset: QueueOffset::new(1),
        expected: mainstem::client::Expected::Any,
        known_queues: None,
    };
    let refused = client.commit("g", &[commit]).await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::OpenMessages));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_is_parsed_once_however_often_and_by_whichever_protocol_it_is_asked_with() {
    let (server, client) = server().await;
    let text = "a = 'x' AND b > 3";
    for _ in 0..5 {
        let filter = Filter::Sql(text);
        assert_eq!(client.receive(&Receive { filter, ..RECEIVE }).await.unwrap().len(), 0);
    }
    let resource = |name: &str| v2::Resource { name: name.to_owned(), ..v2::Resource::default() };
    let topic = Some(resource("t"));
    let queue = v2::MessageQueue { topic, ..v2::MessageQueue::default() };
    let filter =
        v2::FilterExpression { r#type: v2::FilterType::Sql.into(), expression: text.to_owned() };
    let mut request = tonic::Request::new(v2::ReceiveMessageRequest {
        group: Some(resource("g")),
        message_queue: Some(queue),
        filter_expression: Some(filter),
        batch_size: 1,
        invisible_duration: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        ..v2::ReceiveMessageRequest::default()
    });
    request.metadata_mut().insert("x-mq-client-id", "a".parse().unwrap());
    request.set_timeout(Duration::from_millis(300));
    let address = format!("http://{}", server.at.grpc);
    let mut calls = MessagingServiceClient::connect(address).await.unwrap();
    let mut frames = calls.receive_message(request).await.unwrap().into_inner();
    while frames.message().await.unwrap().is_some() {}
    assert_eq!(server.metric("mainstem_conditions_total").await, Some(1));
}
