//! Queries by key, id and place; pages.

use mainstem::client::{self, Client, Query, Retry};
use mainstem::format::batch::{BatchBuilder, NewMeta};
use mainstem::proto::query_messages_request::{ByOffset, ByProducerId, Order, Selector};
use mainstem::proto::{OffsetRange, QueryMessagesRequest, TopicConfig};
use tonic::Code;

use crate::proxy::Proxy;
use crate::support::{
    Server, batch, batch_with, bodies, detail, key_query, refusal, refused, soon, to,
};

fn keyed<'a>(key: &'a str) -> NewMeta<'a> {
    NewMeta { keys: vec![key], ..NewMeta::default() }
}

fn select(selector: Selector) -> QueryMessagesRequest {
    QueryMessagesRequest { selector: Some(selector), ..QueryMessagesRequest::default() }
}

fn place(topic: &str, queue: u32, offset: u64) -> QueryMessagesRequest {
    select(Selector::Offset(ByOffset { topic: topic.to_owned(), queue, offset }))
}

/// Ten messages of key `k`, bodies `0` to `9`, among others.
async fn with_ten() -> Server {
    let server = Server::start().await;
    for n in 0..5 {
        let mut builder = BatchBuilder::new();
        builder.push(&keyed("k"), (2 * n).to_string().as_bytes());
        builder.push(&keyed("other"), b"no");
        builder.push(&keyed("k"), (2 * n + 1).to_string().as_bytes());
        server.send(to("t", None, builder.finish())).await.unwrap();
    }
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_found_by_each_of_its_keys_as_soon_as_it_is_acknowledged() {
    let server = Server::start().await;
    for n in 0..50 {
        let (key, body) = (format!("key {n}"), format!("body {n}"));
        let meta = NewMeta { keys: vec![&key, "shared"], ..NewMeta::default() };
        let receipt = server.send(to("t", None, batch_with(&[&body], &meta))).await.unwrap();
        let found = server.by_key("t", &key).await;
        assert_eq!(bodies(&found.messages), [body]);
        assert!(found.complete);
        let message = &found.messages[0];
        assert_eq!(message.topic, "t");
        assert_eq!(message.queue, receipt.queue);
        assert_eq!(message.queue_offset, receipt.first_queue_offset);
        assert_eq!(message.store_time_ms, receipt.store_time_ms);
    }
    let page = QueryMessagesRequest { limit: 1_000, ..key_query("t", "shared") };
    assert_eq!(server.query(page).await.unwrap().messages.len(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_follow_each_other_in_both_orders() {
    let server = with_ten().await;
    let newest: Vec<String> = (0..10).rev().map(|n: u8| n.to_string()).collect();
    let oldest: Vec<String> = (0..10).map(|n: u8| n.to_string()).collect();
    for (order, wanted) in [(Order::NewestFirst, newest), (Order::OldestFirst, oldest)] {
        let mut request =
            QueryMessagesRequest { order: order.into(), limit: 3, ..key_query("t", "k") };
        let mut found = Vec::new();
        let mut sizes = Vec::new();
        loop {
            let page = server.query(request.clone()).await.unwrap();
            assert!(page.complete);
            sizes.push(page.messages.len());
            found.extend(bodies(&page.messages));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        assert_eq!(found, wanted, "{order:?}");
        assert_eq!(sizes, [3, 3, 3, 1], "{order:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_as_a_stream_gives_each_message_once_though_a_page_fails() {
    let server = with_ten().await;
    let proxy = Proxy::start(server.at.grpc).await;
    let client = Client::connect(&proxy.address().to_string()).await.unwrap();
    let mut found = client.query_all(Query {
        selector: client::Selector::Key { topic: "t", key: "k" },
        begin: None,
        end: None,
        order: client::Order::OldestFirst,
        limit: 3,
        page: String::new(),
    });
    let (mut bodies, mut failures) = (Vec::new(), 0);
    while let Some(message) = soon(found.next()).await {
        match message {
            Ok(message) => bodies.push(String::from_utf8(message.body.to_vec()).unwrap()),
            Err(error) => {
                assert!(!matches!(error.retry(), Retry::Never), "{error:?}");
                failures += 1;
                if failures == 2 {
                    proxy.lead_to(server.at.grpc);
                }
            }
        }
        // What is left of a page needs nobody.
        if bodies.len() == 4 && failures == 0 {
            proxy.refuse();
        }
    }
    assert_eq!(failures, 2);
    let expected: Vec<_> = (0..10).map(|n| n.to_string()).collect();
    assert_eq!((bodies, found.incomplete()), (expected, None));
    assert!(found.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_between_two_pages_does_not_move_them() {
    for (order, last) in [(Order::NewestFirst, "0"), (Order::OldestFirst, "9")] {
        let server = with_ten().await;
        let first = QueryMessagesRequest { order: order.into(), limit: 9, ..key_query("t", "k") };
        let page = server.query(first.clone()).await.unwrap();
        server.send(to("t", None, batch_with(&["late"], &keyed("k")))).await.unwrap();
        let next = QueryMessagesRequest { page_token: page.next_page_token, ..first };
        let page = server.query(next).await.unwrap();
        assert_eq!(bodies(&page.messages), [last], "{order:?}");
        assert_eq!(page.next_page_token, "", "{order:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_token_is_good_for_its_own_query_only() {
    let server = with_ten().await;
    let first = QueryMessagesRequest { limit: 2, ..key_query("t", "k") };
    let token = server.query(first.clone()).await.unwrap().next_page_token;
    let with_token =
        |request| QueryMessagesRequest { page_token: token.clone(), limit: 2, ..request };
    server.query(with_token(key_query("t", "k"))).await.unwrap();
    let oldest = QueryMessagesRequest { order: Order::OldestFirst.into(), ..key_query("t", "k") };
    let ranged = QueryMessagesRequest { begin_ms: Some(1), ..key_query("t", "k") };
    for request in [key_query("t", "other"), oldest, ranged] {
        let answer = server.query(with_token(request)).await;
        assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_TOKEN"));
    }
    for text in ["x".to_owned(), token[1..].to_owned(), "0".repeat(token.len())] {
        let answer = server.query(QueryMessagesRequest { page_token: text, ..first.clone() }).await;
        assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_TOKEN"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_of_times_is_inclusive_at_both_ends() {
    let server = Server::start().await;
    let sent = server.send(to("t", None, batch_with(&["x"], &keyed("k")))).await.unwrap();
    let at = sent.store_time_ms;
    for (begin, end, found) in [
        (Some(at), Some(at), 1),
        (Some(at + 1), None, 0),
        (None, Some(at - 1), 0),
        (Some(0), Some(u64::MAX), 1),
        (Some(u64::MAX), Some(u64::MAX), 0),
    ] {
        let request = QueryMessagesRequest { begin_ms: begin, end_ms: end, ..key_query("t", "k") };
        let page = server.query(request).await.unwrap();
        assert_eq!((page.messages.len(), page.complete), (found, true), "{begin:?} to {end:?}");
    }
    let request =
        QueryMessagesRequest { begin_ms: Some(2), end_ms: Some(1), ..key_query("t", "k") };
    let answer = server.query(request).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_REQUEST"));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_messages_of_a_producers_id_are_found() {
    let server = Server::start().await;
    let meta = NewMeta { id: Some("p-1"), keys: vec!["p-2"], ..NewMeta::default() };
    for body in ["first", "again"] {
        server.send(to("t", None, batch_with(&[body], &meta))).await.unwrap();
    }
    let by = |id: &str| {
        select(Selector::ProducerId(ByProducerId { topic: "t".to_owned(), id: id.to_owned() }))
    };
    let found = server.query(by("p-1")).await.unwrap();
    assert_eq!(bodies(&found.messages), ["again", "first"]);
    assert_eq!(server.query(by("p-2")).await.unwrap().messages, [], "a key is no id");
    assert_eq!(server.by_key("t", "p-1").await.messages, [], "an id is no key");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_of_a_batch_is_found_by_its_message_id() {
    let server = Server::start().await;
    let receipt = server.send(to("t", Some(1), batch(&["a", "b", "c"]))).await.unwrap();
    let id = |index: u32| format!("{:x}-{:x}-{index:x}", receipt.epoch, receipt.physical_offset);
    let by = |text: &str| select(Selector::MessageId(text.to_owned()));
    let found = server.query(by(&id(1))).await.unwrap();
    assert_eq!(bodies(&found.messages), ["b"]);
    let message = &found.messages[0];
    assert_eq!((message.message_id.clone(), message.queue, message.queue_offset), (id(1), 1, 1));

    let next_epoch = format!("{:x}-{:x}-0", receipt.epoch + 1, receipt.physical_offset);
    let beside = format!("{:x}-{:x}-0", receipt.epoch, receipt.physical_offset + 8);
    for text in [id(3), next_epoch, beside, "0-0-0".to_owned(), format!("1-{:x}-0", u64::MAX)] {
        let answer = server.query(by(&text)).await;
        assert_eq!(refusal(answer), refused(Code::NotFound, "MESSAGE_NOT_FOUND"), "{text}");
    }
    for text in ["", "1", "1-2", "1-2-G", "1-2-3-4", "1-2-A"] {
        let answer = server.query(by(text)).await;
        assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_REQUEST"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_is_found_by_its_place() {
    let server = Server::start().await;
    server.send(to("t", Some(1), batch(&["a", "b"]))).await.unwrap();
    server.send(to("t", Some(1), batch(&["c"]))).await.unwrap();
    for (offset, body) in [(0, "a"), (1, "b"), (2, "c")] {
        let found = server.query(place("t", 1, offset)).await.unwrap();
        assert_eq!(bodies(&found.messages), [body]);
        assert_eq!(found.messages[0].queue_offset, offset);
    }
    for (queue, offset, max) in [(1, 3, 3), (1, u64::MAX, 3), (0, 0, 0)] {
        let status = server.query(place("t", queue, offset)).await.unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange);
        let why = detail(&status);
        assert_eq!(why.reason, "OFFSET_OUT_OF_RANGE");
        assert_eq!(why.range, Some(OffsetRange { min: 0, max }));
    }
    let answer = server.query(place("t", 4, 0)).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_QUEUE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_bounded_in_bytes_too() {
    let server = Server::start().await;
    let body = "x".repeat(3 << 20);
    for _ in 0..3 {
        server.send(to("t", None, batch_with(&[&body], &keyed("k")))).await.unwrap();
    }
    let mut request = key_query("t", "k");
    let mut sizes = Vec::new();
    loop {
        let page = server.query(request.clone()).await.unwrap();
        sizes.push(page.messages.len());
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(sizes, [2, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_that_make_no_sense_are_refused() {
    let server = with_ten().await;
    let bad = || refused(Code::InvalidArgument, "BAD_REQUEST");
    let answer = server.query(QueryMessagesRequest::default()).await;
    assert_eq!(refusal(answer), bad());
    assert_eq!(refusal(server.query(key_query("t", "")).await), bad());
    let order = QueryMessagesRequest { order: 7, ..key_query("t", "k") };
    assert_eq!(refusal(server.query(order).await), bad());
    let ranged = QueryMessagesRequest { begin_ms: Some(0), ..place("t", 0, 0) };
    assert_eq!(refusal(server.query(ranged).await), bad());
    let paged = QueryMessagesRequest { page_token: "x".to_owned(), ..place("t", 0, 0) };
    assert_eq!(refusal(server.query(paged).await), bad());
    let unknown = server.query(key_query("nobody", "k")).await;
    assert_eq!(refusal(unknown), refused(Code::NotFound, "UNKNOWN_TOPIC"));
    for (request, limit) in [
        (QueryMessagesRequest { limit: 1_001, ..key_query("t", "k") }, 1_000),
        (key_query("t", &"k".repeat(1_025)), 1_024),
    ] {
        let status = server.query(request).await.unwrap_err();
        let why = detail(&status);
        assert_eq!((why.reason.as_str(), why.limit), ("TOO_LARGE", Some(limit)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_anew_under_an_old_name_has_no_old_messages() {
    let server = with_ten().await;
    let id = server.by_key("t", "k").await.messages[0].message_id.clone();
    server.delete("t").await;
    let gone = server.query(key_query("t", "k")).await;
    assert_eq!(refusal(gone), refused(Code::NotFound, "UNKNOWN_TOPIC"));
    let gone = server.query(select(Selector::MessageId(id))).await;
    assert_eq!(refusal(gone), refused(Code::NotFound, "MESSAGE_NOT_FOUND"));
    server.create("t", TopicConfig::default()).await;
    let page = server.by_key("t", "k").await;
    assert_eq!((page.messages.len(), page.complete), (0, true));
}
