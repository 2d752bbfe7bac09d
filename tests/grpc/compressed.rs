//! Compressed batches: passed on as they are, taken apart where one message is handed out.

use std::time::Duration;

use bytes::Bytes;
use mainstem::client::{
    self, AnswerError, Client, ClientError, Filter, GroupSettings, Message, ProducerConfig, Pull,
    PullerConfig, Receive, TopicSettings,
};
use mainstem::format::batch::{Batch, BatchBuilder, Codec, Compressor, NewMeta, TagFilter};
use mainstem::message::{QueueId, QueueOffset};
use mainstem::proto::query_messages_request::{ByOffset, ByProducerId, Order, Selector};
use mainstem::proto::{self, PurgeTopicRequest, QueryMessagesRequest};
use tonic::Code;

use crate::support::{
    Server, batch, bodies, from, honest, key_query, refusal, refused, soon, to, wire,
};

fn built() -> Vec<Codec> {
    let compresses = |codec: &Codec| Compressor::new(*codec).is_ok();
    [Codec::Lz4, Codec::Zstd].into_iter().filter(compresses).collect()
}

fn body(n: usize) -> String {
    format!("body {n} ").repeat(40)
}

/// `count` messages: key `k` and key `k<n>`, id `p<n>`, tag `even` or `odd`.
fn builder(count: usize) -> BatchBuilder {
    let mut builder = BatchBuilder::new();
    for n in 0..count {
        let (key, id) = (format!("k{n}"), format!("p{n}"));
        let meta = NewMeta {
            keys: vec!["k", &key],
            id: Some(&id),
            tag: Some(if n % 2 == 0 { "even" } else { "odd" }),
            ..NewMeta::default()
        };
        builder.push(&meta, body(n).as_bytes());
    }
    builder
}

fn compressed(codec: Codec, builder: BatchBuilder) -> Bytes {
    let batch = builder.finish_compressed(&mut Compressor::new(codec).unwrap());
    assert_eq!(Batch::parse(&batch).unwrap().codec(), codec.number());
    batch
}

/// A batch of one message of key `k` that says that its 3 bytes of bodies come to `len`.
pub(crate) fn claim(codec: u32, len: u32, bodies: &[u8]) -> Bytes {
    let mut batch = honest(bodies);
    batch.codec = codec;
    batch.bodies_len = len;
    batch.metas[0].body_len = len;
    batch.metas[0].keys = vec!["k".to_owned()];
    wire(&batch)
}

/// What its own producer calls 700 bytes of LZ4, and is one byte.
fn lie() -> Bytes {
    claim(1, 700, &[0x10, b'x', 0])
}

/// 4 MiB in a frame of 32 runs of a byte.
fn runs() -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0x38];
    for n in 0..32 {
        let head: u32 = 131_072 << 3 | 1 << 1 | u32::from(n == 31);
        frame.extend_from_slice(&head.to_le_bytes()[..3]);
        frame.push(b'x');
    }
    frame
}

fn select(selector: Selector) -> QueryMessagesRequest {
    QueryMessagesRequest { selector: Some(selector), ..QueryMessagesRequest::default() }
}

fn place(offset: u64) -> QueryMessagesRequest {
    select(Selector::Offset(ByOffset { topic: "t".to_owned(), queue: 0, offset }))
}

async fn client_of(server: &Server) -> Client {
    Client::connect(&server.at.grpc.to_string()).await.unwrap()
}

async fn client_pull(
    client: &Client,
    offset: u64,
    tags: &str,
) -> Result<(Vec<Message>, u64), ClientError> {
    let filter = TagFilter::parse(tags).unwrap();
    let pull = Pull {
        topic: "t",
        queue: QueueId::ZERO,
        offset: QueueOffset::new(offset),
        max_messages: None,
        max_bytes: None,
        wait: Duration::ZERO,
        tags,
        filter: &filter,
        group: None,
        epoch: None,
    };
    let pulled = client.pull(&pull).await?;
    Ok((pulled.messages, pulled.next_offset.get()))
}

/// Sends, and waits until a query has seen it: then a pull gives all of it.
async fn send(server: &Server, batch: Bytes) -> proto::SendResponse {
    let receipt = server.send(to("t", Some(0), batch)).await.unwrap();
    let _ = server.query(place(receipt.first_queue_offset)).await;
    receipt
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_batch_is_pulled_byte_for_byte_and_read_by_the_client() {
    for codec in built() {
        let server = Server::start().await;
        let sent = compressed(codec, builder(10));
        assert!(sent.len() < builder(10).len() / 2);
        assert_eq!(send(&server, sent.clone()).await.count, 10);
        let pulled = server.pull(from("t", 0, 0)).await.unwrap();
        assert_eq!(pulled.records.len(), 1);
        assert_eq!(pulled.records[0].batch, sent, "{codec}");
        let client = client_of(&server).await;
        let (messages, next) = client_pull(&client, 3, "*").await.unwrap();
        let seen: Vec<_> =
            messages.iter().map(|m| (m.queue_offset.get(), m.body.clone())).collect();
        let expected: Vec<_> = (3..10).map(|n| (n as u64, Bytes::from(body(n)))).collect();
        assert_eq!((seen, next), (expected, 10), "{codec}");
        let (messages, _) = client_pull(&client, 0, "odd").await.unwrap();
        let seen: Vec<_> = messages.iter().map(|m| m.body.clone()).collect();
        assert_eq!(seen, [1, 3, 5, 7, 9].map(|n| Bytes::from(body(n))), "{codec}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_a_compressed_batch_is_found_alone_and_uncompressed() {
    for codec in built() {
        let server = Server::start().await;
        let plain = send(&server, builder(10).finish()).await;
        let receipt = send(&server, compressed(codec, builder(10))).await;
        assert_eq!(receipt.first_queue_offset, 10);
        let id = |of: &proto::SendResponse| format!("{:x}-{:x}-7", of.epoch, of.physical_offset);
        let by_producer = ByProducerId { topic: "t".to_owned(), id: "p7".to_owned() };
        for (request, index) in [
            (key_query("t", "k7"), 0),
            (select(Selector::ProducerId(by_producer)), 0),
            (select(Selector::MessageId(id(&receipt))), 0),
            (place(17), 0),
        ] {
            let found = server.query(request).await.unwrap();
            assert!(found.complete);
            let message = &found.messages[index];
            assert_eq!((message.queue_offset, message.message_id.clone()), (17, id(&receipt)));
            // The same as of a batch that was never compressed.
            let like = server.query(select(Selector::MessageId(id(&plain)))).await.unwrap();
            assert_eq!(message.batch, like.messages[0].batch, "{codec}");
            assert_eq!(bodies(std::slice::from_ref(message)), [body(7)]);
        }
        // Pages of all, in both orders, over several steps of the same record.
        for order in [Order::NewestFirst, Order::OldestFirst] {
            let request =
                QueryMessagesRequest { order: order.into(), limit: 32, ..key_query("t", "k") };
            let found = server.query(request).await.unwrap();
            let mut seen = bodies(&found.messages);
            if order == Order::NewestFirst {
                seen.reverse();
            }
            let expected: Vec<_> = (0..10).chain(0..10).map(body).collect();
            assert_eq!(seen, expected, "{codec}, {order:?}");
            assert_eq!((found.complete, found.next_page_token.as_str()), (true, ""));
        }
        let client = client_of(&server).await;
        let selector = client::Selector::Offset {
            topic: "t",
            queue: QueueId::ZERO,
            offset: QueueOffset::new(17),
        };
        let query = client::Query {
            selector,
            begin: None,
            end: None,
            order: client::Order::NewestFirst,
            limit: 1,
            page: String::new(),
        };
        assert_eq!(client.query(&query).await.unwrap().messages[0].body, body(7));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_may_end_within_a_compressed_batch() {
    for codec in built() {
        let server = Server::start().await;
        send(&server, compressed(codec, builder(6))).await;
        let request = PurgeTopicRequest { name: "t".to_owned(), queue: Some(0), up_to: Some(4) };
        server.admin.clone().purge_topic(request).await.unwrap();
        let found = server.query(key_query("t", "k")).await.unwrap();
        assert_eq!((bodies(&found.messages), found.complete), (vec![body(5), body(4)], true));
        assert_eq!(bodies(&server.query(place(4)).await.unwrap().messages), [body(4)]);
        let gone = server.query(place(3)).await;
        assert_eq!(refusal(gone), refused(Code::OutOfRange, "OFFSET_OUT_OF_RANGE"));
        let (messages, _) = client_pull(&client_of(&server).await, 4, "*").await.unwrap();
        assert_eq!(messages.iter().map(|m| m.body.clone()).collect::<Vec<_>>(), [body(4), body(5)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_decompresses_to_something_else_is_named_and_costs_nobody_else() {
    let server = Server::start().await;
    send(&server, compressed(Codec::Lz4, builder(2))).await;
    let receipt = send(&server, lie()).await;
    send(&server, compressed(Codec::Lz4, builder(2))).await;
    let id = format!("{:x}-{:x}-0", receipt.epoch, receipt.physical_offset);
    let why = "bodies of 3 bytes as lz4 do not decompress to the 700 that are stated";

    let found = server.query(key_query("t", "k")).await.unwrap();
    assert_eq!(bodies(&found.messages), [body(1), body(0), body(1), body(0)]);
    assert!(!found.complete);
    let left_out = format!("message {id} is left out: {why}");
    assert_eq!(found.incomplete_reason, left_out);

    let client = client_of(&server).await;
    let mut found = client.query_all(client::Query {
        selector: client::Selector::Key { topic: "t", key: "k" },
        begin: None,
        end: None,
        order: client::Order::OldestFirst,
        limit: 1,
        page: String::new(),
    });
    let mut seen = Vec::new();
    while let Some(message) = found.next().await {
        seen.push((message.unwrap().queue_offset.get(), found.incomplete().is_some()));
    }
    // What was left out is known from its page on.
    assert_eq!(seen, [(0, false), (1, false), (3, true), (4, true)]);
    assert_eq!(found.incomplete(), Some(&*left_out));

    for request in [select(Selector::MessageId(id)), place(2)] {
        let status = server.query(request).await.unwrap_err();
        assert!(status.message().ends_with(why), "{}", status.message());
        let refused = refused(Code::FailedPrecondition, "NOT_DECOMPRESSED");
        assert_eq!(refusal::<()>(Err(status)), refused);
    }

    let (messages, next) = client_pull(&client, 0, "*").await.unwrap();
    assert_eq!((messages.len(), next), (2, 2), "what is before it is handed out");
    match client_pull(&client, next, "*").await {
        Err(ClientError::BadAnswer {
            source: AnswerError::Decompression { first_offset, count, source },
            ..
        }) => {
            assert_eq!((first_offset.get(), count, source.to_string().as_str()), (2, 1, why));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(client_pull(&client, 3, "*").await.unwrap().0.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_producer_compresses_its_readers_decompress_and_the_broker_only_for_one_message() {
    const COUNT: usize = 100;
    for codec in built() {
        let server = Server::start().await;
        let client = client_of(&server).await;
        let one_queue = TopicSettings { queues: Some(1), ..TopicSettings::default() };
        client.create_topic("t", one_queue).await.unwrap();
        let config = ProducerConfig {
            compression: codec,
            batch_messages: 10,
            linger: Duration::from_secs(60),
            ..ProducerConfig::default()
        };
        let producer = client.producer(config).await.unwrap();
        for n in 0..COUNT {
            producer.send("t", &NewMeta::default(), body(n).as_bytes()).await.unwrap();
        }
        producer.close().await.unwrap();

        let expected: Vec<_> = (0..COUNT).map(|n| Bytes::from(body(n))).collect();
        let begin = [(QueueId::ZERO, QueueOffset::ZERO)];
        let mut puller = client.puller("t", &begin, PullerConfig::default()).await.unwrap();
        let mut seen = Vec::new();
        while seen.len() < COUNT {
            let part = soon(puller.next()).await.unwrap();
            for (_, batch) in part.batches() {
                assert_eq!(Batch::parse(batch).unwrap().codec(), codec.number());
            }
            part.for_each(|message| seen.push(Bytes::copy_from_slice(&message.body))).unwrap();
        }
        assert_eq!(seen, expected, "{codec}");
        let (messages, next) = client_pull(&client, 0, "*").await.unwrap();
        let seen: Vec<_> = messages.into_iter().map(|message| message.body).collect();
        assert_eq!((seen, next), (expected, COUNT as u64), "{codec}");
        assert_eq!(server.metric("mainstem_unpacked_total").await, Some(0));

        client.create_group("g", &GroupSettings::default()).await.unwrap();
        let receive = Receive {
            group: "g",
            topic: "t",
            filter: Filter::All,
            max_messages: 10,
            invisible: Duration::from_secs(60),
            wait: Duration::from_secs(20),
            attempt: "",
        };
        let leased = client.receive(&receive).await.unwrap();
        assert_eq!(leased[0].message.body, body(0));
        assert_eq!(server.metric("mainstem_unpacked_total").await, Some(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_without_zstd_passes_it_on_and_says_what_is_missing() {
    let server = Server::start().await;
    let sent = claim(2, 4 << 20, &runs());
    send(&server, sent.clone()).await;
    assert_eq!(server.pull(from("t", 0, 0)).await.unwrap().records[0].batch, sent);
    let answer = server.query(place(0)).await;
    let found = server.query(key_query("t", "k")).await.unwrap();
    if built().contains(&Codec::Zstd) {
        assert_eq!(answer.unwrap().messages, found.messages);
        assert_eq!(bodies(&found.messages)[0].len(), 4 << 20);
    } else {
        assert!(!found.complete);
        let why = "this build has no zstd: it was made without the feature `zstd`";
        assert!(found.incomplete_reason.ends_with(why), "{}", found.incomplete_reason);
        assert_eq!(refusal(answer), refused(Code::FailedPrecondition, "NOT_DECOMPRESSED"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_ends_before_it_has_cost_too_much() {
    let server = Server::start().await;
    // Each of these costs up to 4 MiB, and has nothing to show for it.
    let bomb = claim(1, 4 << 20, &vec![0; 17 << 10]);
    for _ in 0..20 {
        send(&server, bomb.clone()).await;
    }
    send(&server, compressed(Codec::Lz4, builder(1))).await;
    let mut request =
        QueryMessagesRequest { order: Order::OldestFirst.into(), ..key_query("t", "k") };
    let mut pages = Vec::new();
    let found = loop {
        let page = server.query(request.clone()).await.unwrap();
        pages.push((page.messages.len(), page.complete));
        if page.next_page_token.is_empty() {
            break page;
        }
        request.page_token = page.next_page_token;
    };
    assert_eq!(pages, [(0, false), (0, false), (1, false)]);
    assert_eq!(bodies(&found.messages), [body(0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arithmetic_refuses_is_not_stored() {
    let server = Server::start().await;
    let bad = || refused(Code::InvalidArgument, "BAD_BATCH");
    for (batch, refusal_of_it) in [
        (claim(3, 3, b"xyz"), refused(Code::InvalidArgument, "CODEC")),
        (claim(1, 766, b"xyz"), bad()),
        (claim(1, 1, b""), bad()),
        (claim(2, 3, b"xyz"), bad()),
        (claim(2, (4 << 20) - 1, &runs()), bad()),
    ] {
        assert_eq!(refusal(server.send(to("t", Some(0), batch)).await), refusal_of_it);
    }
    let mut large = honest(&[0; 70 << 10]);
    large.codec = 1;
    large.metas = vec![proto::Meta { body_len: 4 << 20, ..proto::Meta::default() }; 5];
    large.bodies_len = 20 << 20;
    let answer = server.send(to("t", Some(0), wire(&large))).await;
    assert_eq!(refusal(answer), refused(Code::OutOfRange, "TOO_LARGE"));
    let receipt = send(&server, batch(&["x"])).await;
    assert_eq!(receipt.first_queue_offset, 0, "none of them was stored");
}
