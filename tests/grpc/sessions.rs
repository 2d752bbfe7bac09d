//! Producer sessions: every outcome of a batch that may have been sent before.

use bytes::Bytes;
use mainstem::client::{Client, ClientError, Reason};
use mainstem::message::QueueId;
use mainstem::proto::{
    self, CloseSessionRequest, DescribeSessionRequest, FlushMode, ListSessionsRequest,
    OpenSessionRequest, OpenSessionResponse, SendRequest, SendResponse, SessionMark, TopicConfig,
};
use tonic::{Code, Status};

use crate::proxy::Proxy;
use crate::support::{Server, batch, detail, refusal, refused, soon, to};

async fn open(server: &Server, name: &str) -> Result<OpenSessionResponse, Status> {
    let request = OpenSessionRequest { name: name.to_owned() };
    server.broker.clone().open_session(request).await.map(tonic::Response::into_inner)
}

async fn close(server: &Server, request: CloseSessionRequest) -> Result<(), Status> {
    server.broker.clone().close_session(request).await.map(|_| ())
}

async fn describe(server: &Server, name: &str) -> Result<proto::ProducerSession, Status> {
    let request = DescribeSessionRequest { name: name.to_owned() };
    let answer = server.admin.clone().describe_session(request).await?;
    Ok(answer.into_inner().session.unwrap())
}

fn in_session(
    session: &OpenSessionResponse,
    sequence: u64,
    topic: &str,
    batch: Bytes,
) -> SendRequest {
    let mark = SessionMark { id: session.id, epoch: session.epoch, sequence };
    SendRequest { session: Some(mark), ..to(topic, Some(0), batch) }
}

/// How many messages queue 0 of a topic holds.
async fn messages(server: &Server, topic: &str) -> u64 {
    let request = proto::DescribeTopicRequest { name: topic.to_owned(), ..Default::default() };
    let described = server.admin.clone().describe_topic(request).await.unwrap().into_inner();
    described.queues[0].range.unwrap().max
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_sent_again_is_stored_once_and_answered_with_its_first_place() {
    let server = Server::start().await;
    let session = open(&server, "p").await.unwrap();
    assert_eq!((session.epoch, session.next_sequence), (1, 1));
    let first = server.send(in_session(&session, 1, "t", batch(&["a", "b"]))).await.unwrap();
    assert_eq!((first.first_queue_offset, first.count, first.duplicate), (0, 2, false));
    let second = server.send(in_session(&session, 2, "t", batch(&["c"]))).await.unwrap();
    assert_eq!((second.first_queue_offset, second.duplicate), (2, false));

    let again = server.send(in_session(&session, 1, "t", batch(&["a", "b"]))).await.unwrap();
    assert_eq!(again, SendResponse { duplicate: true, ..first });
    // The number says which batch it is, wherever it is sent.
    let again = server.send(in_session(&session, 2, "u", batch(&["c"]))).await.unwrap();
    assert_eq!(again, SendResponse { duplicate: true, ..second });
    assert_eq!(messages(&server, "t").await, 3);
    let list = proto::ListTopicsRequest::default();
    let topics = server.admin.clone().list_topics(list).await.unwrap().into_inner().topics;
    assert_eq!(topics.len(), 1, "a duplicate makes no topic");
    assert_eq!(server.metric("mainstem_duplicates_total").await, Some(2));
    assert_eq!(server.metric("mainstem_sends_total").await, Some(2));
    assert_eq!(server.metric("mainstem_sessions").await, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_several_topics_counts_in_one_row() {
    let server = Server::start().await;
    let session = open(&server, "p").await.unwrap();
    for (sequence, topic) in (1..).zip(["t", "u", "t"]) {
        server.send(in_session(&session, sequence, topic, batch(&["x"]))).await.unwrap();
    }
    assert_eq!((messages(&server, "t").await, messages(&server, "u").await), (2, 1));
    assert_eq!(open(&server, "p").await.unwrap().next_sequence, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_opening_fences_the_one_before_and_goes_on_with_its_sequence() {
    let server = Server::start().await;
    let old = open(&server, "p").await.unwrap();
    let first = server.send(in_session(&old, 1, "t", batch(&["a"]))).await.unwrap();
    let new = open(&server, "p").await.unwrap();
    assert_eq!((new.id, new.epoch, new.next_sequence), (old.id, 2, 2));

    let answer = server.send(in_session(&old, 2, "t", batch(&["b"]))).await;
    assert_eq!(refusal(answer), refused(Code::FailedPrecondition, "FENCED"));
    let answer = server.send(in_session(&old, 1, "t", batch(&["a"]))).await;
    assert_eq!(refusal(answer), refused(Code::FailedPrecondition, "FENCED"));
    // The new owner may send again what the old one had stored.
    let again = server.send(in_session(&new, 1, "t", batch(&["a"]))).await.unwrap();
    assert_eq!(again, SendResponse { duplicate: true, ..first });
    server.send(in_session(&new, 2, "t", batch(&["c"]))).await.unwrap();
    assert_eq!(messages(&server, "t").await, 2);
    assert_eq!(server.metric("mainstem_refusals_total{reason=\"FENCED\"}").await, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_names_the_expected_sequence_and_when_to_come_again() {
    let server = Server::start().await;
    let session = open(&server, "p").await.unwrap();
    server.send(in_session(&session, 1, "t", batch(&["a"]))).await.unwrap();
    let status = server.send(in_session(&session, 3, "u", batch(&["c"]))).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    let why = detail(&status);
    assert_eq!((why.reason.as_str(), why.expected_sequence), ("SEQUENCE_GAP", Some(2)));
    assert!(why.retry_after_ms.is_some());
    assert_eq!(why.stored(), proto::error::Stored::No);
    server.send(in_session(&session, 2, "t", batch(&["b"]))).await.unwrap();
    server.send(in_session(&session, 3, "u", batch(&["c"]))).await.unwrap();
    assert_eq!(server.metric("mainstem_refusals_total{reason=\"SEQUENCE_GAP\"}").await, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_64_batches_are_remembered_and_older_ones_are_refused_by_name() {
    let server = Server::with(&["store.flush=async"]).await;
    let session = open(&server, "p").await.unwrap();
    let mut places = Vec::new();
    for sequence in 1..=65 {
        let sent = server.send(in_session(&session, sequence, "t", batch(&["x"]))).await.unwrap();
        places.push(sent);
    }
    let oldest = server.send(in_session(&session, 2, "t", batch(&["x"]))).await.unwrap();
    assert_eq!(oldest, SendResponse { duplicate: true, ..places[1] });
    let answer = server.send(in_session(&session, 1, "t", batch(&["x"]))).await;
    assert_eq!(refusal(answer), refused(Code::AlreadyExists, "SEQUENCE_TOO_OLD"));
    assert_eq!(messages(&server, "t").await, 65);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_batch_under_a_sequence_that_was_stored_is_refused() {
    let server = Server::start().await;
    let session = open(&server, "p").await.unwrap();
    server.send(in_session(&session, 1, "t", batch(&["a"]))).await.unwrap();
    let answer = server.send(in_session(&session, 1, "t", batch(&["a", "b"]))).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "SEQUENCE_REUSED"));
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_that_no_opening_gave_are_refused_and_leave_the_session_as_it_was() {
    let server = Server::start().await;
    let session = open(&server, "p").await.unwrap();
    let unknown = OpenSessionResponse { id: session.id + 1, ..session };
    let ahead = OpenSessionResponse { epoch: 2, ..session };
    for (session, sequence, code, reason) in [
        (&unknown, 1, Code::NotFound, "UNKNOWN_SESSION"),
        (&ahead, 1, Code::InvalidArgument, "BAD_REQUEST"),
        (&session, 0, Code::InvalidArgument, "BAD_REQUEST"),
    ] {
        let answer = server.send(in_session(session, sequence, "t", batch(&["a"]))).await;
        assert_eq!(refusal(answer), refused(code, reason));
    }
    // What refuses the batch itself takes no number.
    let answer = server.send(in_session(&session, 1, "no name", batch(&["a"]))).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_NAME"));
    let mut request = in_session(&session, 1, "t", batch(&["a"]));
    request.queue = Some(99);
    assert_eq!(refusal(server.send(request).await), refused(Code::InvalidArgument, "BAD_QUEUE"));
    let sent = server.send(in_session(&session, 1, "t", batch(&["a"]))).await.unwrap();
    assert!(!sent.duplicate);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_whose_topic_was_deleted_since_is_still_a_duplicate() {
    let server = Server::start().await;
    let session = open(&server, "p").await.unwrap();
    let first = server.send(in_session(&session, 1, "t", batch(&["a"]))).await.unwrap();
    server.delete("t").await;
    let again = server.send(in_session(&session, 1, "t", batch(&["a"]))).await.unwrap();
    assert_eq!(again, SendResponse { duplicate: true, ..first });
    let sent = server.send(in_session(&session, 2, "t", batch(&["b"]))).await.unwrap();
    assert_eq!((sent.first_queue_offset, sent.duplicate), (0, false), "in the next topic `t`");
}

#[tokio::test(flavor = "multi_thread")]
async fn sends_of_one_sequence_that_race_store_one_batch() {
    let server = Server::start().await;
    let session = open(&server, "p").await.unwrap();
    for sequence in 1..=20 {
        let sends = (0..8).map(|_| {
            let mut broker = server.broker.clone();
            let request = in_session(&session, sequence, "t", batch(&["x"]));
            tokio::spawn(async move { broker.send(request).await.unwrap().into_inner() })
        });
        let mut answers = Vec::new();
        for send in sends.collect::<Vec<_>>() {
            answers.push(send.await.unwrap());
        }
        assert_eq!(answers.iter().filter(|answer| !answer.duplicate).count(), 1);
        assert!(answers.iter().all(|answer| answer.first_queue_offset == sequence - 1));
    }
    assert_eq!(messages(&server, "t").await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_a_session_is_checked() {
    let server = Server::start().await;
    for name in ["", "a\nb", &"x".repeat(256)] {
        let answer = open(&server, name).await;
        assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_NAME"), "{name:?}");
    }
    assert_eq!(detail(&open(&server, &"x".repeat(256)).await.unwrap_err()).limit, Some(255));
    open(&server, &"ö".repeat(127)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_session_is_unknown_and_its_name_begins_anew() {
    let server = Server::start().await;
    let session = open(&server, "p").await.unwrap();
    server.send(in_session(&session, 1, "t", batch(&["a"]))).await.unwrap();
    let by = |id, epoch| CloseSessionRequest { name: "p".to_owned(), id, epoch };
    let answer = close(&server, by(Some(session.id), None)).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_REQUEST"));
    let answer = close(&server, by(Some(session.id), Some(0))).await;
    assert_eq!(refusal(answer), refused(Code::FailedPrecondition, "FENCED"));
    close(&server, by(Some(session.id), Some(1))).await.unwrap();
    let answer = close(&server, by(None, None)).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "UNKNOWN_SESSION"));
    let answer = server.send(in_session(&session, 1, "t", batch(&["a"]))).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "UNKNOWN_SESSION"));

    let anew = open(&server, "p").await.unwrap();
    assert!(anew.id > session.id);
    assert_eq!((anew.epoch, anew.next_sequence), (1, 1));
    close(&server, by(None, None)).await.unwrap();
    assert_eq!(server.metric("mainstem_sessions").await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_listed_page_by_page_and_described() {
    let server = Server::start().await;
    for name in ["b", "a", "c"] {
        open(&server, name).await.unwrap();
    }
    let session = open(&server, "b").await.unwrap();
    server.send(in_session(&session, 1, "t", batch(&["x"]))).await.unwrap();
    let list = async |after: &str, limit| {
        let request = ListSessionsRequest { after: after.to_owned(), limit };
        server.admin.clone().list_sessions(request).await.map(tonic::Response::into_inner)
    };
    let first = list("", 2).await.unwrap();
    let names: Vec<_> = first.sessions.iter().map(|session| session.name.as_str()).collect();
    assert_eq!((names, first.more), (vec!["a", "b"], true));
    let rest = list("b", 2).await.unwrap();
    assert_eq!((rest.sessions[0].name.as_str(), rest.more), ("c", false));
    assert_eq!(detail(&list("", 10_001).await.unwrap_err()).limit, Some(10_000));

    let shown = describe(&server, "b").await.unwrap();
    assert_eq!((shown.id, shown.epoch, shown.last_sequence), (session.id, 2, 1));
    assert!(shown.idle_ms < 60_000);
    let answer = describe(&server, "nobody").await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "UNKNOWN_SESSION"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_outlives_a_restart_with_all_that_it_remembers() {
    let server = Server::start().await;
    let config = TopicConfig { flush: FlushMode::Async.into(), ..TopicConfig::default() };
    server.create("t", config).await;
    let session = open(&server, "p").await.unwrap();
    let first = server.send(in_session(&session, 1, "t", batch(&["a"]))).await.unwrap();
    let (data, ended) = server.stop();
    ended.await.unwrap().unwrap();

    let server = Server::on(data, &[]).await;
    let again = server.send(in_session(&session, 1, "t", batch(&["a"]))).await.unwrap();
    assert_eq!(again, SendResponse { duplicate: true, ..first });
    server.send(in_session(&session, 2, "t", batch(&["b"]))).await.unwrap();
    let next = open(&server, "p").await.unwrap();
    assert_eq!((next.id, next.epoch, next.next_sequence), (session.id, 2, 3));
    assert_eq!(messages(&server, "t").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_counts_its_batches_and_is_told_when_it_is_fenced() {
    let server = Server::start().await;
    let client = Client::connect(&server.at.grpc.to_string()).await.unwrap();
    let mut first = client.open_session("p").await.unwrap();
    for n in 0..3 {
        assert_eq!(first.next_sequence(), n + 1);
        let receipt = first.send("t", None, batch(&["x"])).await.unwrap();
        assert!(!receipt.is_duplicate);
    }
    // What is refused takes no number.
    let error = first.send("no name", None, batch(&["x"])).await.unwrap_err();
    assert_eq!((error.reason(), first.next_sequence()), (Some(Reason::BadName), 4));
    first.send("t", None, batch(&["x"])).await.unwrap();

    let mut second = client.open_session("p").await.unwrap();
    assert_eq!((second.id(), second.epoch(), second.next_sequence()), (first.id(), 2, 5));
    let error = first.send("t", None, batch(&["x"])).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::Fenced));
    second.send("t", None, batch(&["x"])).await.unwrap();
    let error = first.close().await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::Fenced));

    let (sessions, more) = client.sessions("").await.unwrap();
    assert_eq!((sessions.len(), sessions[0].last_sequence, more), (1, 5, false));
    second.close().await.unwrap();
    let error = client.describe_session("p").await.unwrap_err();
    assert!(matches!(error, ClientError::Refused(_)), "{error:?}");
    assert_eq!(error.reason(), Some(Reason::UnknownSession));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_that_was_given_up_on_is_settled_before_the_next_one() {
    let server = Server::start().await;
    let client = Client::connect(&server.at.grpc.to_string()).await.unwrap();
    let mut session = client.open_session("p").await.unwrap();
    for n in 0..20_u64 {
        // Dropped before an answer can have come; the request may have left or not.
        let given_up = session.send("t", Some(mainstem::message::QueueId::ZERO), batch(&["x"]));
        tokio::select! {
            biased;
            _ = given_up => {}
            () = async { for _ in 0..n { tokio::task::yield_now().await } } => {}
        }
        session.settle().await.unwrap();
    }
    assert_eq!(messages(&server, "t").await, session.next_sequence() - 1);
    let shown = client.describe_session("p").await.unwrap();
    assert_eq!(shown.last_sequence, session.next_sequence() - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_whose_connection_http_2_ended_is_sent_again_under_its_number() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.at.grpc).await;
    let client = Client::connect(&proxy.address().to_string()).await.unwrap();
    let mut session = client.open_session("p").await.unwrap();
    let mut offsets = Vec::new();
    for body in ["a", "b", "c"] {
        if body == "b" {
            // It is stored, or not; the client hears RESOURCE_EXHAUSTED.
            proxy.calm_down();
        }
        let receipt = soon(session.send("t", Some(QueueId::ZERO), batch(&[body]))).await.unwrap();
        offsets.push(receipt.first_queue_offset.get());
    }
    assert_eq!((offsets, session.next_sequence(), proxy.cuts()), (vec![0, 1, 2], 4, 1));
    assert_eq!(messages(&server, "t").await, 3);
}
