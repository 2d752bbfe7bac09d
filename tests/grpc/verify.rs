//! A verification of the store while it serves: what it tells, one at a time, and how it ends.

use mainstem::proto::verify_store_response::Event;
use mainstem::proto::{PullRequest, VerifyStoreRequest, VerifyStoreResponse, VerifySummary};
use tonic::{Code, Status, Streaming};

use crate::support::{Server, batch, from, refusal, refused, soon, to};

async fn verify(server: &Server, rate: u64) -> Result<Streaming<VerifyStoreResponse>, Status> {
    let request = VerifyStoreRequest { bytes_per_second: rate };
    server.admin.clone().verify_store(request).await.map(tonic::Response::into_inner)
}

/// The last event, and how many findings came before it.
async fn ended(mut events: Streaming<VerifyStoreResponse>) -> (usize, VerifySummary) {
    let mut findings = 0;
    while let Some(event) = soon(events.message()).await.unwrap() {
        match event.event.unwrap() {
            Event::Progress(progress) => assert!(progress.done <= progress.total, "{progress:?}"),
            Event::Finding(_) => findings += 1,
            Event::Summary(summary) => {
                assert_eq!(soon(events.message()).await.unwrap(), None, "nothing follows");
                return (findings, summary);
            }
        }
    }
    panic!("it ended without a summary");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_store_is_read_up_to_what_is_flushed() {
    let server = Server::start().await;
    for body in ["one", "two", "three"] {
        server.send(to("orders", Some(0), batch(&[body, "more"]))).await.unwrap();
    }
    let (findings, summary) = ended(verify(&server, 0).await.unwrap()).await;
    let appended = server.metric("mainstem_position_bytes{mark=\"flushed\"}").await.unwrap();
    assert_eq!(findings, 0);
    // The begin of the epoch, the topic, and the batches.
    let counted = (summary.segments, summary.records, summary.messages, summary.log_bytes);
    assert_eq!(counted, (1, 5, 6, appended));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_rots_under_the_server_is_told_and_known_from_then_on() {
    let server = Server::start().await;
    server.send(to("orders", Some(0), batch(&["one"]))).await.unwrap();
    let lost = server.send(to("orders", Some(0), batch(&["two"]))).await.unwrap();
    server.send(to("orders", Some(0), batch(&["three"]))).await.unwrap();
    // Dispatched is what can be pulled. Before that the dispatcher meets the rot, and ends the store.
    let third = PullRequest { wait_ms: 10_000, ..from("orders", 0, 2) };
    assert_eq!(server.pull(third).await.unwrap().records.len(), 1);
    let log = server.data.path().join("data/commitlog/00000000000000000000.log");
    let file = std::fs::File::options().write(true).open(log).unwrap();
    let at = lost.physical_offset + 132;
    std::os::unix::fs::FileExt::write_all_at(&file, b"\xff", at).unwrap();

    let mut events = verify(&server, 0).await.unwrap();
    let mut found = Vec::new();
    while let Some(event) = soon(events.message()).await.unwrap() {
        if let Some(Event::Finding(finding)) = event.event {
            found.push(finding);
        }
    }
    let [finding] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((finding.kind.as_str(), finding.queue), ("damaged", Some(0)));
    assert_eq!(finding.range.unwrap().begin, lost.physical_offset);
    assert_eq!(finding.offsets.unwrap().min, 1);
    let (_, ready) = server.http("/readyz").await;
    let range = finding.range.unwrap();
    let line = format!("damaged: bytes {} to {} of the log", range.begin, range.end);
    assert!(ready.contains(&line), "{ready}");
    assert_eq!(server.metric("mainstem_damage_found_total").await, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_verification_is_refused_until_the_caller_of_the_first_has_gone() {
    let server = Server::start().await;
    server.send(to("orders", Some(0), batch(&["one"]))).await.unwrap();
    // A byte a second never ends.
    let mut first = verify(&server, 1).await.unwrap();
    assert!(soon(first.message()).await.unwrap().is_some());
    let second = refusal(verify(&server, 0).await);
    assert_eq!(second, refused(Code::ResourceExhausted, "OVERLOADED"));
    drop(first);
    let third = soon(async {
        loop {
            match verify(&server, 0).await {
                Ok(events) => return events,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    });
    assert_eq!(ended(third.await).await.0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_ends_a_verification_and_says_why() {
    let server = Server::start().await;
    let mut events = verify(&server, 1).await.unwrap();
    assert!(soon(events.message()).await.unwrap().is_some());
    let (_data, ended) = server.stop();
    let last = soon(async {
        loop {
            match events.message().await {
                Ok(Some(_)) => {}
                other => return other,
            }
        }
    });
    assert_eq!(refusal(last.await), refused(Code::Unavailable, "DRAINING"));
    soon(ended).await.unwrap().unwrap();
}
