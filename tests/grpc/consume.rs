//! Consume: messages as far as there are credits, receipts back, and how a stream ends.

use std::collections::BTreeSet;
use std::time::Duration;

use mainstem::client::{Client, GroupSettings};
use mainstem::format::batch::NewMeta;
use mainstem::proto::broker_client::BrokerClient;
use mainstem::proto::consume_request::{Open, open::Filter};
use mainstem::proto::consume_response::Settled;
use mainstem::proto::extend_entry::Hold;
use mainstem::proto::extend_result::Outcome;
use mainstem::proto::{
    self, ConsumeRequest, ConsumeResponse, ExtendEntry, ReceivedMessage, TopicConfig,
};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::support::{Server, batch, batch_with, detail, soon, to};

const STREAMS: &str = "mainstem_consume_streams";
/// Of bytes, as many as may be.
const BYTES: u32 = 64 << 20;

/// A stream, both ways.
struct Stream {
    send: mpsc::Sender<ConsumeRequest>,
    answers: Streaming<ConsumeResponse>,
    messages: Vec<ReceivedMessage>,
    settled: Vec<Settled>,
}

impl Stream {
    async fn open(server: &Server, first: ConsumeRequest) -> Self {
        Self::over(server.broker.clone(), first).await
    }

    async fn over(mut broker: BrokerClient<Channel>, first: ConsumeRequest) -> Self {
        let (send, requests) = mpsc::channel(1_000);
        send.send(first).await.unwrap();
        let answers = broker.consume(ReceiverStream::new(requests)).await;
        let answers = answers.unwrap().into_inner();
        Self { send, answers, messages: Vec::new(), settled: Vec::new() }
    }

    async fn send(&self, request: ConsumeRequest) {
        self.send.send(request).await.unwrap();
    }

    fn take(&mut self, answer: ConsumeResponse) {
        assert!(answer.messages.is_empty() != answer.settled.is_empty(), "one of the two");
        self.messages.extend(answer.messages);
        self.settled.extend(answer.settled);
    }

    async fn answer(&mut self) {
        let answer = soon(self.answers.message()).await.unwrap().expect("the stream ended");
        self.take(answer);
    }

    /// Reads until so many messages have come.
    async fn messages(&mut self, count: usize) -> &[ReceivedMessage] {
        while self.messages.len() < count {
            self.answer().await;
        }
        &self.messages
    }

    /// Reads until so many requests are answered.
    async fn settled(&mut self, count: usize) -> &[Settled] {
        while self.settled.len() < count {
            self.answer().await;
        }
        &self.settled
    }

    /// Reads to the end.
    async fn end(&mut self) -> Result<(), Status> {
        loop {
            match soon(self.answers.message()).await {
                Ok(Some(answer)) => self.take(answer),
                Ok(None) => return Ok(()),
                Err(status) => return Err(status),
            }
        }
    }

    /// Reads to the end, which is a refusal: its code, its reason, and the number of the request that it is about.
    async fn refusal(&mut self) -> (Code, String, Option<u64>) {
        let status = self.end().await.unwrap_err();
        let detail = detail(&status);
        assert_eq!(detail.stored(), proto::error::Stored::No);
        (status.code(), detail.reason, detail.sequence)
    }
}

fn open(messages: u32, bytes: u32) -> ConsumeRequest {
    let open = Open { group: "g".to_owned(), topic: "t".to_owned(), ..Open::default() };
    ConsumeRequest { open: Some(open), messages, bytes, ..ConsumeRequest::default() }
}

fn acks(number: u64, handles: &[&str]) -> ConsumeRequest {
    let acks = handles.iter().map(|handle| (*handle).to_owned()).collect();
    ConsumeRequest { number, acks, ..ConsumeRequest::default() }
}

fn body(message: &ReceivedMessage) -> String {
    let batch = proto::Batch::decode(message.batch.clone()).unwrap();
    String::from_utf8(batch.bodies.to_vec()).unwrap()
}

fn bodies(messages: &[ReceivedMessage]) -> Vec<(String, u32)> {
    let mut bodies: Vec<_> = messages.iter().map(|one| (body(one), one.delivery)).collect();
    bodies.sort();
    bodies
}

/// A server with a topic of a queue, so many messages in it, and a group.
async fn server(count: u32) -> (Server, Client) {
    let server = Server::start().await;
    server.create("t", TopicConfig { queues: 1, ..TopicConfig::default() }).await;
    for n in 0..count {
        server.send(to("t", Some(0), batch(&[&format!("{n:03}")]))).await.unwrap();
    }
    let client = Client::connect(&server.at.grpc.to_string()).await.unwrap();
    client.create_group("g", &GroupSettings::default()).await.unwrap();
    (server, client)
}

/// Messages of the group that can be delivered, that somebody has, and that wait.
async fn split(client: &Client) -> (u64, u64, u64) {
    let rows = client.progress("g", "t").await.unwrap();
    (rows[0].ready, rows[0].leased, rows[0].waiting)
}

/// Waits until they are so.
async fn until_split(client: &Client, wanted: (u64, u64, u64)) {
    soon(async {
        while split(client).await != wanted {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_come_as_far_as_there_are_credits_and_receipts_are_answered_by_number() {
    let (server, client) = server(10).await;
    let mut stream = Stream::open(&server, open(3, BYTES)).await;
    let first = stream.messages(3).await.to_vec();
    assert_eq!(bodies(&first), [("000".to_owned(), 1), ("001".into(), 1), ("002".into(), 1)]);
    // An answer behind them: nothing more has come, and nobody else has anything.
    let handle = |at: usize| first[at].handle.as_str();
    stream.send(acks(7, &[handle(1), "forged", handle(1)])).await;
    let settled = stream.settled(1).await[0].clone();
    assert_eq!((settled.number, &settled.finished[..]), (7, &[true, false, true][..]));
    assert_eq!((stream.messages.len(), split(&client).await), (3, (7, 2, 0)));

    // Credits, an ack and extensions in one.
    let entry = |at: usize, hold| ExtendEntry { handle: handle(at).to_owned(), hold: Some(hold) };
    let mut extensions = vec![
        entry(2, Hold::ForMs(60_000)),
        entry(1, Hold::ForMs(60_000)),
        entry(2, Hold::Undo(true)),
    ];
    let request = ConsumeRequest { messages: 2, bytes: 5, extensions, ..acks(8, &[handle(0)]) };
    stream.send(request).await;
    let settled = stream.settled(2).await[1].clone();
    assert_eq!((settled.number, &settled.finished[..]), (8, &[true][..]));
    let outcomes: Vec<_> = settled.results.iter().map(|one| one.outcome.clone().unwrap()).collect();
    let Outcome::Handle(longer) = &outcomes[0] else { panic!("{outcomes:?}") };
    assert_eq!(outcomes[1..], [Outcome::BadReceipt(true), Outcome::BadReceipt(true)]);
    assert_eq!(bodies(&stream.messages(5).await[3..]), [("003".to_owned(), 1), ("004".into(), 1)]);

    // What was released comes again, and as the same delivery.
    extensions = vec![ExtendEntry { handle: longer.clone(), hold: Some(Hold::Undo(true)) }];
    let request = ConsumeRequest { number: 9, extensions, messages: 1, ..Default::default() };
    stream.send(request).await;
    stream.messages(6).await;
    let again = body(&stream.messages[5]);
    assert!(["002", "005"].contains(&again.as_str()), "{again}");
    assert_eq!(stream.messages[5].delivery, 1);

    // Whoever takes no more is told of all that he settled.
    let all: Vec<_> = stream.messages.iter().map(|one| one.handle.clone()).collect();
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    let request = ConsumeRequest { messages: 9, bytes: 9, ..acks(10, &all) };
    stream.send(request).await;
    let Stream { send, answers, messages, settled } = stream;
    drop(send);
    let (unused, _) = mpsc::channel(1);
    let mut stream = Stream { send: unused, answers, messages, settled };
    stream.end().await.unwrap();
    let numbers: Vec<_> = stream.settled.iter().map(|settled| settled.number).collect();
    assert_eq!(numbers, [7, 8, 9, 10]);
    soon(server.until_metric(STREAMS, 0)).await;
    let left = 10 - stream.settled[3].finished.iter().filter(|finished| **finished).count() as u64;
    // What came behind the last receipts and was not settled can be had again soon.
    until_split(&client, (left, 0, 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn never_more_is_leased_than_there_are_credits_for() {
    let (server, client) = server(200).await;
    let mut stream = Stream::open(&server, open(0, BYTES)).await;
    let (mut given, mut number) = (0, 0);
    for more in [1, 2, 50, 1, 0, 7, 139] {
        number += 1;
        given += more;
        stream.send(ConsumeRequest { messages: more as u32, ..acks(number, &["none"]) }).await;
        stream.messages(given).await;
        stream.settled(number as usize).await;
        let had = given as u64;
        assert_eq!((stream.messages.len(), split(&client).await), (given, (200 - had, had, 0)));
    }
    // Of bytes the last message may go beyond, and what is beyond is taken from the next.
    drop(stream);
    until_split(&client, (200, 0, 0)).await;
    let len = {
        let mut stream = Stream::open(&server, open(9, 1)).await;
        let len = stream.messages(1).await[0].batch.len();
        for (number, bytes) in [(1, len as u32 - 1), (2, 1)] {
            stream.send(ConsumeRequest { bytes, ..acks(number, &["none"]) }).await;
            stream.messages(number as usize).await;
            assert_eq!(stream.settled(number as usize).await.len(), number as usize);
        }
        assert_eq!(stream.messages.len(), 2);
        len
    };
    assert!(len > 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stream_must_not_bring_ends_it_with_its_number() {
    let (server, client) = server(1).await;
    let bad = (Code::InvalidArgument, "BAD_REQUEST".to_owned());
    let large = (Code::OutOfRange, "TOO_LARGE".to_owned());
    let unknown = |what: &str| (Code::NotFound, format!("UNKNOWN_{what}"));
    let opened = |change: &dyn Fn(&mut Open)| {
        let mut request = open(1, 1);
        change(request.open.as_mut().unwrap());
        request
    };
    let firsts = [
        (ConsumeRequest::default(), bad.clone()),
        (opened(&|open| open.group = "nobody".to_owned()), unknown("GROUP")),
        (opened(&|open| open.topic = "nothing".to_owned()), unknown("TOPIC")),
        (opened(&|open| open.filter = Some(Filter::Sql("a >".to_owned()))), bad.clone()),
        (opened(&|open| open.invisible_ms = 12 * 3_600_000 + 1), large.clone()),
    ];
    for (first, (code, reason)) in firsts {
        let mut stream = Stream::open(&server, first).await;
        assert_eq!(stream.refusal().await, (code, reason, None));
    }
    let of = |number, change: &dyn Fn(&mut ConsumeRequest)| {
        let mut request = acks(number, &[]);
        change(&mut request);
        request
    };
    let without_hold = ExtendEntry { handle: "x".to_owned(), hold: None };
    let for_days = ExtendEntry { hold: Some(Hold::ForMs(u32::MAX)), ..without_hold.clone() };
    let later = [
        (of(3, &|request| request.open = open(1, 1).open), bad.clone()),
        (of(4, &|request| request.messages = 10_001), large.clone()),
        (of(5, &|request| request.bytes = BYTES + 1), large.clone()),
        (of(6, &|request| request.acks = vec![String::new(); 1_025]), large.clone()),
        (of(7, &|request| request.extensions = vec![for_days.clone(); 1_025]), large.clone()),
        (of(8, &|request| request.extensions = vec![without_hold.clone()]), bad),
        (of(9, &|request| request.extensions = vec![for_days.clone()]), large.clone()),
    ];
    for (request, (code, reason)) in later {
        let number = request.number;
        let mut stream = Stream::open(&server, open(0, 0)).await;
        stream.send(acks(2, &["none"])).await;
        stream.send(request).await;
        // The stream may have ended by now.
        let _ = stream.send.send(acks(99, &["none"])).await;
        assert_eq!(stream.refusal().await, (code, reason, Some(number)));
        let numbers: Vec<_> = stream.settled.iter().map(|settled| settled.number).collect();
        assert_eq!(numbers, [2], "what came before it is answered, nothing behind it");
    }
    let mut stream = Stream::open(&server, open(0, 0)).await;
    stream.send(acks(1, &["x".repeat(1 << 20).as_str()])).await;
    assert_eq!(stream.refusal().await, (large.0, large.1, None));
    soon(server.until_metric(STREAMS, 0)).await;
    assert_eq!(split(&client).await, (1, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_a_first_request_ends_with_its_requests_and_gives_its_place_back() {
    let (server, _client) = server(0).await;
    let (send, requests) = mpsc::channel::<ConsumeRequest>(1);
    let answers = server.broker.clone().consume(ReceiverStream::new(requests)).await;
    let mut answers = answers.unwrap().into_inner();
    soon(server.until_metric(STREAMS, 1)).await;
    drop(send);
    assert_eq!(soon(answers.message()).await.unwrap(), None);
    soon(server.until_metric(STREAMS, 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_waits_gets_what_comes_and_is_one_of_those_who_wait() {
    let (server, _client) = server(0).await;
    let mut stream = Stream::open(&server, open(2, BYTES)).await;
    soon(server.until_metric("mainstem_waiters", 1)).await;
    for n in 0..2 {
        server.send(to("t", Some(0), batch(&[&n.to_string()]))).await.unwrap();
        assert_eq!(body(&stream.messages(n + 1).await[n]), n.to_string());
    }
    soon(server.until_metric("mainstem_waiters", 0)).await;
    drop(stream);
    soon(server.until_metric(STREAMS, 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_streams_one_gets_soon_what_the_other_had_when_it_broke() {
    let (server, client) = server(4).await;
    let mut broken = Stream::open(&server, open(3, BYTES)).await;
    let had = broken.messages(3).await.to_vec();
    let mut other = Stream::open(&server, open(10, BYTES)).await;
    assert_eq!(bodies(other.messages(1).await), [("003".to_owned(), 1)]);
    // What is kept on does not end with the stream.
    let extensions =
        vec![ExtendEntry { handle: had[0].handle.clone(), hold: Some(Hold::ForMs(60_000)) }];
    broken.send(ConsumeRequest { number: 1, extensions, ..Default::default() }).await;
    let kept = broken.settled(1).await[0].results[0].outcome.clone();
    let Some(Outcome::Handle(kept)) = kept else { panic!("{kept:?}") };
    drop(broken);
    assert_eq!(bodies(&other.messages(3).await[1..]), [("001".to_owned(), 2), ("002".into(), 2)]);
    assert_eq!(split(&client).await, (0, 4, 0));
    other.send(acks(1, &[&had[1].handle, &kept])).await;
    assert_eq!(other.settled(1).await[0].finished, [false, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordered_group_has_its_order_on_streams_also_when_one_breaks() {
    let (server, client) = server(0).await;
    let ordered = GroupSettings { ordered: Some(true), ..GroupSettings::default() };
    client.update_group("g", &ordered).await.unwrap();
    for (message_group, bodies) in [("a", ["a1", "a2"]), ("b", ["b1", "b2"]), ("a", ["a3", "a4"])] {
        let meta = NewMeta { message_group: Some(message_group), ..NewMeta::default() };
        server.send(to("t", None, batch_with(&bodies, &meta))).await.unwrap();
    }
    let names = |messages: &[ReceivedMessage]| messages.iter().map(body).collect::<Vec<_>>();
    let mut first = Stream::open(&server, open(1, BYTES)).await;
    assert_eq!(names(first.messages(1).await), ["a1"]);
    // While somebody has one of a message group nobody gets those behind it.
    let mut second = Stream::open(&server, open(9, BYTES)).await;
    assert_eq!(names(second.messages(2).await), ["b1", "b2"]);
    second.send(acks(1, &["none"])).await;
    second.settled(1).await;
    assert_eq!(second.messages.len(), 2);
    drop(first);
    second.messages(6).await;
    assert_eq!(names(&second.messages[2..]), ["a1", "a2", "a3", "a4"]);
    let deliveries: Vec<_> = second.messages[2..].iter().map(|one| one.delivery).collect();
    assert_eq!(deliveries, [2, 1, 1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_does_not_read_holds_nobody_up_and_has_no_more_than_is_on_its_way() {
    let (server, client) = server(0).await;
    let body = "x".repeat(200 << 10);
    for _ in 0..50 {
        server.send(to("t", Some(0), batch(&[&body]))).await.unwrap();
    }
    // Over a connection of its own, whose windows it fills.
    let stuck = BrokerClient::connect(format!("http://{}", server.at.grpc)).await.unwrap();
    let stuck = Stream::over(stuck, open(50, BYTES)).await;
    soon(async { while split(&client).await.1 == 0 {} }).await;
    let mut other = Stream::open(&server, open(50, BYTES)).await;
    while split(&client).await.0 > 0 {
        other.answer().await;
    }
    // The answer comes behind all that was leased to it.
    other.send(acks(1, &["none"])).await;
    other.settled(1).await;
    let had = 50 - other.messages.len();
    drop(stuck);
    let messages = other.messages(50).await;
    let offsets: BTreeSet<_> = messages.iter().map(|message| message.queue_offset).collect();
    assert_eq!(offsets.len(), 50, "each comes to the other, and once");
    // As much as the windows take, and one answer that waits behind that: nobody got it.
    let again = messages.iter().filter(|message| message.delivery == 2).count();
    assert!((1..=18).contains(&again) && (1..=6).contains(&(had - again)), "{again} of {had}");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_group_or_topic_end_so_do_streams_with_and_without_credits() {
    for credits in [0, 5] {
        let (server, client) = server(1).await;
        let mut streams = Vec::new();
        for _ in 0..2 {
            streams.push(Stream::open(&server, open(credits, BYTES)).await);
        }
        soon(server.until_metric(STREAMS, 2)).await;
        client.delete_group("g").await.unwrap();
        for stream in &mut streams {
            let ended = stream.refusal().await;
            assert_eq!(ended, (Code::NotFound, "UNKNOWN_GROUP".to_owned(), None));
        }
        client.create_group("g", &GroupSettings::default()).await.unwrap();
        let mut stream = Stream::open(&server, open(credits, BYTES)).await;
        soon(server.until_metric(STREAMS, 1)).await;
        let disabled = GroupSettings { enabled: Some(false), ..GroupSettings::default() };
        client.update_group("g", &disabled).await.unwrap();
        let ended = stream.refusal().await;
        assert_eq!(ended, (Code::PermissionDenied, "GROUP_DISABLED".to_owned(), None));
        let enabled = GroupSettings { enabled: Some(true), ..GroupSettings::default() };
        client.update_group("g", &enabled).await.unwrap();
        let mut stream = Stream::open(&server, open(credits, BYTES)).await;
        soon(server.until_metric(STREAMS, 1)).await;
        server.delete("t").await;
        assert_eq!(stream.refusal().await, (Code::NotFound, "UNKNOWN_TOPIC".to_owned(), None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_streams_and_after_the_start_what_they_had_can_be_acknowledged() {
    let (server, _client) = server(3).await;
    let mut stream = Stream::open(&server, open(5, BYTES)).await;
    let handle = stream.messages(3).await[0].handle.clone();
    let (data, ended) = server.stop();
    let refusal = stream.refusal().await;
    assert_eq!(refusal, (Code::Unavailable, "DRAINING".to_owned(), None));
    drop(stream);
    soon(ended).await.unwrap().unwrap();
    let server = Server::on(data, &[]).await;
    let mut stream = Stream::open(&server, open(0, BYTES)).await;
    stream.send(acks(1, &[&handle])).await;
    assert_eq!(stream.settled(1).await[0].finished, [true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_waits_for_its_client_leaves_what_comes_to_others() {
    let (server, _client) = server(0).await;
    let endpoint = Channel::from_shared(format!("http://{}", server.at.grpc)).unwrap();
    let small = endpoint.initial_stream_window_size(65_535).connect().await.unwrap();
    let stuck = Stream::over(BrokerClient::new(small), open(9, BYTES)).await;
    soon(server.until_metric("mainstem_waiters", 1)).await;
    // Answers that it does not read, until its requests are not taken any more.
    let none = vec!["none"; 1_024];
    soon(async {
        for number in 1.. {
            let next = stuck.send(acks(number, &none));
            if tokio::time::timeout(Duration::from_millis(500), next).await.is_err() {
                break;
            }
        }
    })
    .await;
    soon(server.until_metric("mainstem_waiters", 0)).await;
    let mut other = Stream::open(&server, open(9, BYTES)).await;
    soon(server.until_metric("mainstem_waiters", 1)).await;
    server.send(to("t", Some(0), batch(&["a"]))).await.unwrap();
    assert_eq!(bodies(other.messages(1).await), [("a".to_owned(), 1)]);
    drop(stuck);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_wait_for_ends_no_stream_and_takes_no_lease_from_it() {
    let server = Server::with(&["broker.max_waiters=1"]).await;
    server.create("t", TopicConfig { queues: 1, ..TopicConfig::default() }).await;
    server.send(to("t", Some(0), batch(&["a"]))).await.unwrap();
    let client = Client::connect(&server.at.grpc.to_string()).await.unwrap();
    client.create_group("g", &GroupSettings::default()).await.unwrap();
    let mut has_one = Stream::open(&server, open(1, BYTES)).await;
    let handle = has_one.messages(1).await[0].handle.clone();
    let mut waits = Stream::open(&server, open(1, BYTES)).await;
    soon(server.until_metric("mainstem_waiters", 1)).await;
    // There is no place any more to wait in.
    has_one.send(ConsumeRequest { messages: 1, ..acks(1, &["none"]) }).await;
    assert_eq!(has_one.settled(1).await[0].finished, [false]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    has_one.send(acks(2, &[&handle])).await;
    assert_eq!(has_one.settled(2).await[1].finished, [true]);
    assert_eq!(split(&client).await, (0, 0, 0));
    for body in ["b", "c"] {
        server.send(to("t", Some(0), batch(&[body]))).await.unwrap();
    }
    let both = (waits.messages(1).await.len(), has_one.messages(2).await.len());
    assert_eq!(both, (1, 2));
}
