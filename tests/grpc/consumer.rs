//! The client's consumer: what it hands out and settles over broken connections and restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mainstem::client::{
    Client, Consumer, ConsumerConfig, Filter, GroupSettings, Hold, HoldFault, Leased, Reason,
};
use mainstem::proto::TopicConfig;

use crate::proxy::Proxy;
use crate::support::{Server, batch, soon, to};

async fn server() -> (Server, Client) {
    let server = Server::start().await;
    server.create("t", TopicConfig { queues: 1, ..TopicConfig::default() }).await;
    let client = Client::connect(&server.at.grpc.to_string()).await.unwrap();
    let settings = GroupSettings { max_attempts: Some(None), ..GroupSettings::default() };
    client.create_group("g", &settings).await.unwrap();
    (server, client)
}

async fn send(server: &Server, numbers: std::ops::Range<u32>) {
    for n in numbers {
        server.send(to("t", Some(0), batch(&[&n.to_string()]))).await.unwrap();
    }
}

async fn next(consumer: &mut Consumer) -> Leased {
    soon(consumer.next()).await.unwrap()
}

fn number(leased: &Leased) -> u32 {
    std::str::from_utf8(&leased.message.body).unwrap().parse().unwrap()
}

/// Messages of the group that can be delivered, that somebody has, and that wait.
async fn split(client: &Client) -> (u64, u64, u64) {
    let rows = client.progress("g", "t").await.unwrap();
    (rows[0].ready, rows[0].leased, rows[0].waiting)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_comes_and_none_that_is_finished_comes_again_though_connections_break_anywhere()
 {
    let (server, direct) = server().await;
    let proxy = Proxy::start(server.at.grpc).await;
    let client = Client::connect(&proxy.address().to_string()).await.unwrap();
    let config = ConsumerConfig { prefetch_messages: 7, ..ConsumerConfig::default() };
    let mut consumer = client.consumer("g", "t", config);
    let (mut sent, mut finished, mut came) = (0, BTreeSet::new(), BTreeSet::new());
    while finished.len() < 100 || proxy.cuts() < 10 {
        send(&server, sent..sent + 2).await;
        sent += 2;
        if sent % 6 == 0 {
            // Somewhere in the next answers, also in the middle of one.
            proxy.cut_after(u64::from(sent) * 7 % 611);
        }
        let leased = next(&mut consumer).await;
        assert!(!finished.contains(&number(&leased)), "{leased:?}");
        came.insert(number(&leased));
        let settling = consumer.ack(&leased.handle).await.unwrap();
        if sent % 4 == 0 && soon(settling.done()).await.unwrap() {
            finished.insert(number(&leased));
        }
    }
    // Others were settled with or without a word.
    while split(&direct).await != (0, 0, 0) {
        if let Ok(leased) = tokio::time::timeout(Duration::from_millis(20), consumer.next()).await {
            let leased = leased.unwrap();
            assert!(!finished.contains(&number(&leased)), "{leased:?}");
            came.insert(number(&leased));
            consumer.ack(&leased.handle).await.unwrap();
        }
    }
    assert_eq!(came, (0..sent).collect());
    soon(consumer.close()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_goes_on_when_the_broker_comes_back_and_acknowledges_what_it_had() {
    let (server, _) = server().await;
    let proxy = Proxy::start(server.at.grpc).await;
    let client = Client::connect(&proxy.address().to_string()).await.unwrap();
    send(&server, 0..3).await;
    let invisible = Duration::from_secs(5);
    let config = ConsumerConfig { prefetch_messages: 1, invisible, ..ConsumerConfig::default() };
    let mut consumer = client.consumer("g", "t", config);
    let first = next(&mut consumer).await;
    let (data, ended) = server.stop();
    proxy.refuse();
    let settling = consumer.ack(&first.handle).await.unwrap();
    soon(ended).await.unwrap().unwrap();
    let server = Server::on(data, &[]).await;
    proxy.lead_to(server.at.grpc);
    assert!(soon(settling.done()).await.unwrap());
    send(&server, 3..4).await;
    let mut came = BTreeSet::new();
    // What came ahead before the stop comes again once its lease is over.
    while came.len() < 2 {
        came.insert(number(&next(&mut consumer).await));
    }
    assert!(!came.contains(&0), "{came:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_comes_ahead_than_is_wanted_and_what_nobody_took_is_given_back_as_it_was() {
    let (server, client) = server().await;
    send(&server, 0..100).await;
    let config = ConsumerConfig { prefetch_messages: 10, ..ConsumerConfig::default() };
    let mut consumer = client.consumer("g", "t", config);
    for taken in 1..=30 {
        assert_eq!(number(&next(&mut consumer).await), taken - 1);
        let (_, leased, _) = split(&client).await;
        assert!(leased >= u64::from(taken) && leased <= u64::from(taken) + 10, "{leased}");
    }
    soon(consumer.close()).await.unwrap();
    let mut other = client.consumer("g", "t", ConsumerConfig::default());
    let mut deliveries = BTreeMap::new();
    while deliveries.len() < 100 {
        let leased = next(&mut other).await;
        deliveries.insert(number(&leased), leased.delivery);
    }
    // Those that were taken and not settled count; the others do not.
    assert_eq!(deliveries, (0..100).map(|n| (n, 1 + u32::from(n < 30))).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_settle_messages_at_once_and_each_has_its_answer() {
    let (server, client) = server().await;
    for n in 0..5 {
        let bodies: Vec<_> = (n * 1_000..(n + 1) * 1_000).map(|n: u32| n.to_string()).collect();
        let bodies: Vec<_> = bodies.iter().map(String::as_str).collect();
        server.send(to("t", Some(0), batch(&bodies))).await.unwrap();
    }
    let config = ConsumerConfig { prefetch_messages: 5_000, ..ConsumerConfig::default() };
    let mut consumer = client.consumer("g", "t", config);
    let mut tasks = Vec::new();
    for _ in 0..5_000 {
        let (leased, settler) = (next(&mut consumer).await, consumer.settler());
        let handle =
            if number(&leased).is_multiple_of(10) { "forged".to_owned() } else { leased.handle };
        tasks.push(tokio::spawn(async move {
            let finished = settler.ack(&handle).await.unwrap().done().await.unwrap();
            assert_eq!(finished, handle != "forged");
        }));
    }
    for task in tasks {
        soon(task).await.unwrap();
    }
    assert_eq!(split(&client).await, (0, 500, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_settled_fails_alone() {
    let (server, client) = server().await;
    send(&server, 0..3).await;
    let mut consumer = client.consumer("g", "t", ConsumerConfig::default());
    let (first, second) = (next(&mut consumer).await, next(&mut consumer).await);
    let hours = Duration::from_secs(12 * 3_600 + 1);
    let long = consumer.extend(&first.handle, hours).await.unwrap();
    assert_eq!(soon(long.done()).await.unwrap(), Err(HoldFault::TooLong));
    let forged = consumer.release("forged").await.unwrap();
    assert_eq!(soon(forged.done()).await.unwrap(), Err(HoldFault::BadReceipt));
    let retry = consumer.settler().hold(&second.handle, Hold::RetryAfter(Duration::ZERO)).await;
    assert!(soon(retry.unwrap().done()).await.unwrap().is_ok());
    let longer = consumer.extend(&first.handle, Duration::from_secs(60)).await.unwrap();
    let longer = soon(longer.done()).await.unwrap().unwrap();
    let old = consumer.ack(&first.handle).await.unwrap();
    let new = consumer.ack(&longer).await.unwrap();
    assert_eq!((soon(old.done()).await.unwrap(), soon(new.done()).await.unwrap()), (false, true));
    let mut deliveries = BTreeMap::new();
    for _ in 0..2 {
        let leased = next(&mut consumer).await;
        deliveries.insert(number(&leased), leased.delivery);
    }
    assert_eq!(deliveries, BTreeMap::from([(1, 2), (2, 1)]));
}

/// Credits are left at the broker: what is given back must not come again over the same stream.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_took_is_given_back_also_if_more_was_wanted() {
    let (server, client) = server().await;
    let settings = GroupSettings { max_attempts: Some(Some(1)), ..GroupSettings::default() };
    client.create_group("once", &settings).await.unwrap();
    send(&server, 0..5).await;
    for _ in 0..20 {
        let consumer = client.consumer("once", "t", ConsumerConfig::default());
        soon(async { while client.progress("once", "t").await.unwrap()[0].leased < 5 {} }).await;
        soon(consumer.close()).await.unwrap();
        let row = client.progress("once", "t").await.unwrap().remove(0);
        assert_eq!((row.ready, row.leased, row.waiting), (5, 0, 0));
    }
    let mut other = client.consumer("once", "t", ConsumerConfig::default());
    for n in 0..5 {
        let leased = next(&mut other).await;
        assert_eq!((number(&leased), leased.delivery), (n, 1));
    }
}

/// The program takes them more slowly than their leases last.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_lay_ahead_for_long_is_given_back_and_does_not_count_as_delivered() {
    let (server, client) = server().await;
    send(&server, 0..2).await;
    let invisible = Duration::from_secs(2);
    let config = ConsumerConfig { invisible, ..ConsumerConfig::default() };
    let mut consumer = client.consumer("g", "t", config);
    let first = next(&mut consumer).await;
    assert!(soon(consumer.ack(&first.handle).await.unwrap().done()).await.unwrap());
    tokio::time::sleep(invisible * 3 / 2).await;
    let second = next(&mut consumer).await;
    assert_eq!((number(&second), second.delivery), (1, 1));
    assert!(soon(consumer.ack(&second.handle).await.unwrap().done()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lay_ahead_when_the_connection_broke_does_not_count_as_delivered() {
    let (server, direct) = server().await;
    let proxy = Proxy::start(server.at.grpc).await;
    let client = Client::connect(&proxy.address().to_string()).await.unwrap();
    // The leases of a broken stream end a second after it: a machine that is too slow for that has more tries.
    for round in 0..5 {
        send(&server, round * 5..round * 5 + 5).await;
        let mut consumer = client.consumer("g", "t", ConsumerConfig::default());
        let first = next(&mut consumer).await;
        soon(async { while split(&direct).await != (0, 5, 0) {} }).await;
        proxy.cut_after(0);
        // Its answer is cut off. The next stream brings it, behind what is given back.
        soon(consumer.ack(&first.handle).await.unwrap().done()).await.unwrap();
        let mut deliveries = Vec::new();
        for _ in 0..4 {
            let leased = next(&mut consumer).await;
            deliveries.push(leased.delivery);
            soon(consumer.ack(&leased.handle).await.unwrap().done()).await.unwrap();
        }
        soon(consumer.close()).await.unwrap();
        if deliveries == [1; 4] {
            return;
        }
    }
    panic!("they count each time");
}

/// The broker takes none for its own default.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_does_not_say_how_long_it_needs_has_the_usual_time() {
    let (server, client) = server().await;
    send(&server, 0..1).await;
    let config = ConsumerConfig { invisible: Duration::ZERO, ..ConsumerConfig::default() };
    let mut consumer = client.consumer("g", "t", config);
    let leased = next(&mut consumer).await;
    assert!(soon(consumer.ack(&leased.handle).await.unwrap().done()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_ends_with_what_is_refused_and_then_settles_nothing() {
    let (server, client) = server().await;
    let all = ConsumerConfig::default();
    let bad = ConsumerConfig { filter: Filter::Sql("a >"), ..all };
    for (group, topic, config, reason) in [
        ("nobody", "t", all, Reason::UnknownGroup),
        ("g", "nothing", all, Reason::UnknownTopic),
        ("g", "t", bad, Reason::BadRequest),
    ] {
        let mut consumer = client.consumer(group, topic, config);
        let error = soon(consumer.next()).await.unwrap_err();
        assert_eq!(error.reason(), Some(reason));
        let over = soon(consumer.next()).await.unwrap_err();
        assert_eq!(over.to_string(), format!("no answer from {}", server.at.grpc));
        assert!(soon(consumer.ack("x")).await.is_err());
        assert!(soon(consumer.close()).await.is_err());
    }
    send(&server, 0..1).await;
    let mut consumer = client.consumer("g", "t", all);
    let leased = next(&mut consumer).await;
    let settler = consumer.settler();
    drop(consumer);
    soon(async { while settler.ack(&leased.handle).await.is_ok() {} }).await;
    let mut other = client.consumer("g", "t", all);
    // By the settler, in its last moments, or not: then it comes again.
    if split(&client).await != (0, 0, 0) {
        assert_eq!(next(&mut other).await.delivery, 2);
    }
}
