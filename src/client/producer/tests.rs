//! When batches are closed, on a clock that the tests set.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::accepted::{Accepted, Batch, Limits, Place, cost};
use super::{
    FlushError, Outcome, ProducerConfig, ProducerError, check_config, check_message, longer,
};
use crate::client::{ClientError, Retry, Stored};
use crate::format::batch::{BatchError, NewMeta};

const LINGER: Duration = Duration::from_millis(5);

fn accepted(bytes: usize, messages: usize) -> Accepted {
    Accepted::new(Limits { bytes, messages, linger: LINGER })
}

/// Adds a message of some bytes; whether the task has to hear of it.
fn add(accepted: &mut Accepted, topic: &str, place: Place<'_>, len: usize, now: Instant) -> bool {
    let (meta, body) = (NewMeta::default(), vec![7; len]);
    let permits = u32::try_from(cost(topic, &meta, &body)).unwrap();
    let (_, _, is_news) = accepted.add(topic, place, &meta, &body, permits, now).unwrap();
    is_news
}

/// Topic, queue and number of messages of what can be taken.
fn taken(accepted: &mut Accepted, now: Instant) -> Vec<(String, Option<u32>, usize)> {
    std::iter::from_fn(|| accepted.take(now))
        .map(|Batch { topic, queue, messages, .. }| {
            (topic.to_string(), queue.map(|queue| queue.get()), messages.message_count())
        })
        .collect()
}

fn some(topic: &str, queue: Option<u32>, messages: usize) -> (String, Option<u32>, usize) {
    (topic.to_owned(), queue, messages)
}

#[test]
fn a_batch_lingers_from_its_first_message_on() {
    let now = Instant::now();
    let mut accepted = accepted(1 << 20, 100);
    assert!(add(&mut accepted, "t", Place::Any, 10, now), "the task has to set its timer");
    let later = now + LINGER - Duration::from_nanos(1);
    assert!(!add(&mut accepted, "t", Place::Any, 10, later));
    assert!(!add(&mut accepted, "t", Place::Queue(3), 10, later));
    assert_eq!(accepted.next_due(), Some(now + LINGER));
    assert_eq!(taken(&mut accepted, later), []);
    assert_eq!(taken(&mut accepted, now + LINGER), [some("t", None, 2)]);
    assert_eq!(accepted.next_due(), Some(later + LINGER));
    assert_eq!(taken(&mut accepted, later + LINGER), [some("t", Some(3), 1)]);
    assert_eq!(accepted.next_due(), None);
}

#[test]
fn a_batch_that_has_lingered_is_taken_in_its_turn_though_full_ones_keep_coming() {
    let now = Instant::now();
    let mut accepted = accepted(1 << 20, 2);
    let fill = |accepted: &mut Accepted| {
        add(accepted, "busy", Place::Any, 10, now);
        add(accepted, "busy", Place::Any, 10, now);
    };
    fill(&mut accepted);
    fill(&mut accepted);
    add(&mut accepted, "seldom", Place::Any, 10, now);
    add(&mut accepted, "seldom", Place::Queue(1), 10, now);
    let mut seen = Vec::new();
    for _ in 0..6 {
        // As many come as are taken.
        fill(&mut accepted);
        let batch = accepted.take(now + LINGER).unwrap();
        seen.push((batch.topic.to_string(), batch.queue.map(|queue| queue.get())));
    }
    let some = |topic: &str, queue| (topic.to_owned(), queue);
    let busy = some("busy", None);
    let (first, second) = (some("seldom", None), some("seldom", Some(1)));
    assert_eq!(seen, [busy.clone(), busy.clone(), busy.clone(), first, busy, second]);
}

#[test]
fn nothing_lingers_while_somebody_waits_for_memory_and_nothing_else_is_to_be_sent() {
    let now = Instant::now();
    let mut accepted = accepted(1 << 20, 2);
    for place in [Place::Queue(1), Place::Queue(2), Place::Queue(3), Place::Queue(2)] {
        add(&mut accepted, "t", place, 10, now);
    }
    accepted.begin_waiting();
    let first = accepted.take(now).map(|batch| batch.queue.map(|queue| queue.get()));
    assert_eq!(first, Some(Some(2)), "the full one");
    assert_eq!(taken(&mut accepted, now), [some("t", Some(1), 1), some("t", Some(3), 1)]);
    accepted.end_waiting();
    add(&mut accepted, "t", Place::Any, 10, now);
    assert_eq!(taken(&mut accepted, now), []);
}

#[test]
fn a_batch_with_as_many_messages_as_it_may_have_does_not_linger() {
    let now = Instant::now();
    let mut accepted = accepted(1 << 20, 3);
    let news: Vec<_> = (0..7).map(|_| add(&mut accepted, "t", Place::Any, 10, now)).collect();
    assert_eq!(news, [true, false, true, true, false, true, true]);
    assert_eq!(taken(&mut accepted, now), [some("t", None, 3), some("t", None, 3)]);
    assert_eq!(taken(&mut accepted, now + LINGER), [some("t", None, 1)]);
}

#[test]
fn a_batch_holds_no_more_bytes_than_it_may_unless_one_message_is_larger() {
    let now = Instant::now();
    let mut accepted = accepted(1_000, 100);
    for len in [400, 400, 400, 5_000, 10] {
        add(&mut accepted, "t", Place::Any, len, now);
    }
    let mut lens = Vec::new();
    while let Some(batch) = accepted.take(now + LINGER) {
        lens.push((batch.messages.message_count(), batch.messages.len() <= 1_000));
    }
    assert_eq!(lens, [(2, true), (1, true), (1, false), (1, true)]);
}

#[test]
fn places_have_batches_of_their_own_and_leave_nothing_behind() {
    let now = Instant::now();
    let mut accepted = accepted(1 << 20, 2);
    let places = [Place::Any, Place::Queue(0), Place::Group("g"), Place::Group("h")];
    for place in places.into_iter().chain([Place::Group("g"), Place::Queue(0)]) {
        add(&mut accepted, "t", place, 1, now);
    }
    add(&mut accepted, "u", Place::Queue(0), 1, now);
    assert_eq!(taken(&mut accepted, now), [some("t", None, 2), some("t", Some(0), 2)]);
    // A flush closes the others in the order in which they were opened.
    assert_eq!(accepted.close_all(now), 5);
    let rest = [some("t", None, 1), some("t", None, 1), some("u", Some(0), 1)];
    assert_eq!(taken(&mut accepted, now), rest);
    assert!(!accepted.is_done());
    accepted.end(ProducerError::Closed);
    assert!(accepted.is_done());
}

#[test]
fn a_closed_producer_takes_nothing_and_its_batches_do_not_linger() {
    let now = Instant::now();
    let mut accepted = accepted(1 << 20, 100);
    add(&mut accepted, "t", Place::Any, 1, now);
    accepted.end(ProducerError::Closed);
    let refused = accepted.add("t", Place::Any, &NewMeta::default(), b"", 1, now).unwrap_err();
    assert_eq!(refused.to_string(), "the producer is closed");
    assert!(!accepted.is_done());
    assert_eq!(taken(&mut accepted, now), [some("t", None, 1)]);
    assert!(accepted.is_done());
}

#[test]
fn failures_are_told_once_with_the_first_reason() {
    let mut accepted = accepted(1, 1);
    accepted.failed(3, &ProducerError::Closed);
    accepted.failed(4, &ProducerError::Unsettled { source: None });
    let Some(FlushError { messages, first }) = accepted.take_failures() else { panic!("none") };
    assert_eq!((messages, first.to_string().as_str()), (7, "the producer is closed"));
    assert!(accepted.take_failures().is_none());
}

#[test]
fn what_was_not_sent_for_want_of_an_answer_can_be_sent_again_safely() {
    let status = Box::new(tonic::Status::unavailable("broken pipe"));
    let error = ClientError::NoAnswer { server: "here:1".to_owned(), source: status };
    let error = ProducerError::NotStored(Arc::new(error));
    let after = Retry::After(Duration::from_millis(100));
    assert_eq!((error.stored(), error.retry()), (Stored::No, after));
    let error = ProducerError::Unsettled { source: None };
    assert_eq!((error.stored(), error.retry()), (Stored::Unknown, Retry::Unsafe));
}

#[test]
fn a_message_costs_at_least_what_it_adds_to_a_batch() {
    let long = "x".repeat(300);
    let meta = NewMeta {
        keys: vec!["k", &long],
        tag: Some("t"),
        properties: vec![("a", "b"), (&long, &long)],
        id: Some("id"),
        born_ms: u64::MAX,
        encoding: u32::MAX,
        trace_context: Some(&long),
        born_host: Some("h"),
        ..NewMeta::default()
    };
    for meta in [&meta, &NewMeta::default()] {
        for len in [0, 1, 127, 128, 100_000] {
            let body = vec![7; len];
            let mut batch = crate::format::batch::BatchBuilder::new();
            batch.push(meta, &body);
            let cost = cost("t", meta, &body);
            assert!(cost >= batch.len(), "{cost} for {}", batch.len());
        }
    }
}

#[test]
fn a_message_that_breaks_a_rule_is_refused_alone() {
    let key = NewMeta { keys: vec![""], ..NewMeta::default() };
    assert!(matches!(check_message(&key, b""), Err(BatchError::Text { .. })));
    let body = vec![0; (4 << 20) + 1];
    let too_large = BatchError::BodyTooLarge { index: 0, limit: 4 << 20, found: (4 << 20) + 1 };
    assert_eq!(check_message(&NewMeta::default(), &body), Err(too_large));
    assert_eq!(check_message(&NewMeta::default(), &body[1..]), Ok(()));
    let context = "c".repeat(5 << 20);
    let context = NewMeta { trace_context: Some(&context), ..NewMeta::default() };
    assert_eq!(check_message(&context, b""), Ok(()));
    let refused = check_message(&context, &body[1..]).unwrap_err();
    assert_eq!(refused.limit(), Some(8 << 20));
}

#[test]
fn options_have_ranges() {
    let bad = |change: fn(&mut ProducerConfig)| {
        let mut config = ProducerConfig::default();
        change(&mut config);
        check_config(&config).unwrap_err().to_string()
    };
    let day = Duration::from_secs(86_401);
    let seen = [
        bad(|c| c.batch_bytes = (8 << 20) + 1),
        bad(|c| c.batch_messages = 0),
        bad(|c| c.in_flight = 65),
        bad(|c| c.memory = 1_000),
        bad(|c| c.back_off = Duration::ZERO),
        bad(|c| c.patience = Duration::ZERO),
    ];
    let options = ["batch_bytes", "batch_messages", "in_flight", "memory", "back_off", "patience"];
    let said = options
        .map(|o| format!("the option `{o}` of a producer is out of its range or not built in"));
    assert_eq!(seen, said);
    assert!(check_config(&ProducerConfig { linger: day, ..ProducerConfig::default() }).is_err());
    assert!(check_config(&ProducerConfig { patience: day, ..ProducerConfig::default() }).is_err());
    assert_eq!(check_config(&ProducerConfig::default()).unwrap(), 32 << 20);
}

#[tokio::test]
async fn an_outcome_is_heard_by_all_who_wait() {
    let outcome = std::sync::Arc::new(Outcome::new());
    let accept = |index| super::Accept { batch: std::sync::Arc::clone(&outcome), index };
    let (first, second) = (accept(0), accept(1));
    let waiting = async { tokio::join!(first.stored(), second.stored()) };
    let settle = async { outcome.set(Err(ProducerError::Closed)).unwrap() };
    let ((first, second), ()) = tokio::join!(waiting, settle);
    let said = [first, second].map(|error| error.unwrap_err().to_string());
    assert_eq!(said, ["the producer is closed"; 2]);
}

#[test]
fn a_pause_doubles_up_to_two_seconds_and_one_that_is_longer_stays() {
    let ms = Duration::from_millis;
    let pauses = std::iter::successors(Some(ms(100)), |pause| Some(longer(*pause)));
    let pauses: Vec<_> = pauses.take(7).collect();
    assert_eq!(pauses, [100, 200, 400, 800, 1_600, 2_000, 2_000].map(ms));
    assert_eq!(longer(ms(5_000)), ms(5_000));
}
