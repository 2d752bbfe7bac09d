//! Pulls, long polls and their limits.

use std::time::{Duration, Instant};

use mainstem::format::batch::NewMeta;
use mainstem::proto::{self, OffsetRange, PullRequest, TopicConfig};
use tonic::{Code, Request};

use crate::support::{Server, batch, batch_with, detail, from, refusal, refused, soon, to};

const WAITERS: &str = "mainstem_waiters";

async fn with_records(count: usize) -> Server {
    let server = Server::start().await;
    for n in 0..count {
        server.send(to("t", Some(0), batch(&[&format!("body {n}"), "second"]))).await.unwrap();
    }
    if let Some(last) = count.checked_sub(1) {
        // Once the last can be read, one pull may give all.
        server.pull(from("t", 0, 2 * last as u64)).await.unwrap();
    }
    server
}

fn firsts(pulled: &proto::PullResponse) -> Vec<u64> {
    pulled.records.iter().map(|record| record.first_queue_offset).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_come_in_order_up_to_the_limits_but_at_least_one() {
    let server = with_records(5).await;
    let all = server.pull(from("t", 0, 0)).await.unwrap();
    assert_eq!(firsts(&all), [0, 2, 4, 6, 8]);
    assert_eq!((all.next_offset, all.range), (10, Some(OffsetRange { min: 0, max: 10 })));

    let some = PullRequest { max_messages: 4, ..from("t", 0, 2) };
    let some = server.pull(some).await.unwrap();
    assert_eq!((firsts(&some), some.next_offset), (vec![2, 4], 6));

    let one = PullRequest { max_messages: 1, ..from("t", 0, 2) };
    assert_eq!(firsts(&server.pull(one).await.unwrap()), [2]);
    let one = PullRequest { max_bytes: 1, ..from("t", 0, 2) };
    assert_eq!(firsts(&server.pull(one).await.unwrap()), [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_inside_a_batch_gets_the_whole_record() {
    let server = with_records(2).await;
    let pulled = server.pull(from("t", 0, 3)).await.unwrap();
    assert_eq!((firsts(&pulled), pulled.next_offset), (vec![2], 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_queue_without_a_wait_is_an_empty_answer() {
    let server = with_records(1).await;
    let pulled = soon(server.pull(from("t", 0, 2))).await.unwrap();
    assert_eq!((pulled.records.len(), pulled.next_offset), (0, 2));
    assert_eq!(pulled.range, Some(OffsetRange { min: 0, max: 2 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_beyond_the_end_is_out_of_range_and_the_range_is_told() {
    let server = with_records(1).await;
    for offset in [3, u64::MAX] {
        let status = server.pull(from("t", 0, offset)).await.unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange);
        let why = detail(&status);
        assert_eq!(why.reason, "OFFSET_OUT_OF_RANGE");
        assert_eq!(why.range, Some(OffsetRange { min: 0, max: 2 }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_wakes_a_parked_pull() {
    let server = with_records(1).await;
    let mut client = server.broker.clone();
    let parked = tokio::spawn(async move {
        client.pull(PullRequest { wait_ms: 30_000, ..from("t", 0, 2) }).await
    });
    soon(server.until_metric(WAITERS, 1)).await;
    let sent = batch(&["late"]);
    server.send(to("t", Some(0), sent.clone())).await.unwrap();
    let pulled = soon(parked).await.unwrap().unwrap().into_inner();
    assert_eq!((pulled.records[0].batch.clone(), pulled.next_offset), (sent, 3));
    assert_eq!(server.metric(WAITERS).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_in_another_queue_wakes_nobody() {
    let server = with_records(1).await;
    let pulled = PullRequest { wait_ms: 300, ..from("t", 0, 2) };
    let (pulled, _) =
        tokio::join!(server.pull(pulled), server.send(to("t", Some(1), batch(&["other"]))));
    let pulled = pulled.unwrap();
    assert_eq!((pulled.records.len(), pulled.next_offset), (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_with_its_own_time() {
    let server = with_records(1).await;
    let began = Instant::now();
    let pulled = soon(server.pull(PullRequest { wait_ms: 200, ..from("t", 0, 2) })).await.unwrap();
    assert_eq!(pulled.records.len(), 0);
    assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_before_the_callers_deadline() {
    let server = with_records(1).await;
    let mut request = Request::new(PullRequest { wait_ms: 30_000, ..from("t", 0, 2) });
    request.set_timeout(Duration::from_secs(2));
    let pulled = soon(server.broker.clone().pull(request)).await.unwrap().into_inner();
    assert_eq!((pulled.records.len(), pulled.next_offset), (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_topic_ends_its_parked_pulls() {
    let server = with_records(1).await;
    let mut client = server.broker.clone();
    let parked = tokio::spawn(async move {
        client.pull(PullRequest { wait_ms: 30_000, ..from("t", 0, 2) }).await
    });
    soon(server.until_metric(WAITERS, 1)).await;
    server.delete("t").await;
    let answer = soon(parked).await.unwrap();
    assert_eq!(refusal(answer), refused(Code::NotFound, "UNKNOWN_TOPIC"));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_waiters_than_allowed_are_refused() {
    let server = Server::with(&["broker.max_waiters=1"]).await;
    server.send(to("t", Some(0), batch(&["x"]))).await.unwrap();
    let mut client = server.broker.clone();
    let parked = tokio::spawn(async move {
        client.pull(PullRequest { wait_ms: 30_000, ..from("t", 0, 1) }).await
    });
    soon(server.until_metric(WAITERS, 1)).await;
    let status = server.pull(PullRequest { wait_ms: 1_000, ..from("t", 0, 1) }).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let why = detail(&status);
    assert_eq!((why.reason.as_str(), why.retry_after_ms.is_some()), ("OVERLOADED", true));
    parked.abort();
    soon(server.until_metric(WAITERS, 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_cannot_match_a_tag_are_left_out_and_passed() {
    let server = Server::start().await;
    let tagged = |tag| batch_with(&["x"], &NewMeta { tag, ..NewMeta::default() });
    for tag in [Some("red"), None, Some("blue"), Some("red")] {
        server.send(to("t", Some(0), tagged(tag))).await.unwrap();
    }
    // The last one can be read once all before it can.
    server.pull(from("t", 0, 3)).await.unwrap();
    let pull = |tags: &str, offset| PullRequest { tags: tags.to_owned(), ..from("t", 0, offset) };
    assert_eq!(firsts(&server.pull(pull("red", 0)).await.unwrap()), [0, 3]);
    assert_eq!(firsts(&server.pull(pull(" blue || red ", 0)).await.unwrap()), [0, 2, 3]);
    assert_eq!(firsts(&server.pull(pull("*", 0)).await.unwrap()), [0, 1, 2, 3]);
    let none = server.pull(pull("green", 0)).await.unwrap();
    assert_eq!((none.records.len(), none.next_offset), (0, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_above_the_limits_are_refused_with_the_limit() {
    let server = with_records(1).await;
    let base = || from("t", 0, 0);
    for (request, limit) in [
        (PullRequest { max_messages: 10_001, ..base() }, 10_000),
        (PullRequest { max_bytes: (8 << 20) + 1, ..base() }, 8 << 20),
        (PullRequest { wait_ms: 30_001, ..base() }, 30_000),
        (PullRequest { tags: "x".repeat((32 << 10) + 1), ..base() }, 32 << 10),
    ] {
        let status = server.pull(request).await.unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange);
        let why = detail(&status);
        assert_eq!((why.reason.as_str(), why.limit), ("TOO_LARGE", Some(limit)));
    }
    let answer = server.pull(PullRequest { tags: "||".to_owned(), ..base() }).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_REQUEST"));
    let answer = server.pull(from("t", 4, 0)).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_QUEUE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_never_makes_a_topic() {
    let server = Server::start().await;
    let answer = server.pull(from("t", 0, 0)).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "UNKNOWN_TOPIC"));
    let answer = server.pull(from("a b", 0, 0)).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_NAME"));
    let list = proto::ListTopicsRequest::default();
    let topics = server.admin.clone().list_topics(list).await.unwrap().into_inner().topics;
    assert_eq!(topics, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_anew_under_an_old_name_is_empty() {
    let server = with_records(2).await;
    server.delete("t").await;
    server.create("t", TopicConfig::default()).await;
    let pulled = server.pull(from("t", 0, 0)).await.unwrap();
    assert_eq!((pulled.records.len(), pulled.range), (0, Some(OffsetRange { min: 0, max: 0 })));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_record_fits_an_answer() {
    let server = Server::start().await;
    let body = "x".repeat((4 << 20) - 64);
    let sent = batch(&[&body, &body]);
    server.send(to("t", Some(0), sent.clone())).await.unwrap();
    let pulled = server.pull(PullRequest { max_bytes: 1, ..from("t", 0, 0) }).await.unwrap();
    assert_eq!(pulled.records[0].batch, sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_is_data_loss_with_the_next_offset_and_the_rest_is_served() {
    let server = Server::start().await;
    let needle = "a body that is found in the file";
    server.send(to("t", Some(0), batch(&["before"]))).await.unwrap();
    server.send(to("t", Some(0), batch(&[needle]))).await.unwrap();
    server.send(to("t", Some(0), batch(&["after"]))).await.unwrap();
    let (data, ended) = server.stop();
    soon(ended).await.unwrap().unwrap();
    for file in std::fs::read_dir(data.path().join("data/commitlog")).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(needle.len()).position(|found| found == needle.as_bytes());
        if let Some(at) = at {
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
    }
    let server = Server::on(data, &[]).await;
    let pulled = server.pull(PullRequest { max_messages: 1, ..from("t", 0, 0) }).await.unwrap();
    assert_eq!((firsts(&pulled), pulled.next_offset), (vec![0], 1));
    let status = server.pull(from("t", 0, 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::DataLoss);
    let why = detail(&status);
    assert_eq!((why.reason.as_str(), why.next_offset), ("DAMAGED", Some(2)));
    assert_eq!(firsts(&server.pull(from("t", 0, 2)).await.unwrap()), [2]);
    let (status, body) = server.http("/readyz").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(body.contains("damaged: bytes "), "{body}");
}
