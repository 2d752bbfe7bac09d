//! SIGKILL while consumers of a group receive and acknowledge: every message comes to somebody, and none that was
//! acknowledged comes again, also in topics with async flush. Of an ordered group no message comes before one that was
//! sent before it to the same message group and is not acknowledged. Consumers ask for each batch, or have a stream.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstem::client::{
    Client, ConsumerConfig, Filter, GroupSettings, Leased, Receive, Settling, TopicSettings,
};
use mainstem::format::batch::{BatchBuilder, NewMeta};
use mainstem::message::{FlushMode, TopicType};

use crate::support::{Dice, Home, Process, soon, until};

const QUEUES: u32 = 3;
const MESSAGES: u32 = 6_000;
/// Messages of one batch.
const BATCH: u32 = 20;
const MESSAGE_GROUPS: u32 = 7;
const CONSUMERS: u64 = 3;
const ROUNDS: u64 = 6;
/// Acknowledged or not, a lease is over after so long.
const LEASE: Duration = Duration::from_millis(700);

/// What a consumer saw of a message, by its number.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// It came: asked for at one moment, here at the other.
    Came { message: u32, delivery: u32, asked: Instant, here: Instant },
    /// Its ack was answered: it is finished.
    Finished { message: u32, at: Instant },
    /// Its ack got no answer: it may be finished.
    Unknown { message: u32 },
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_does_not_come_again_after_a_kill_and_nothing_else_is_lost() {
    let topics = [("sync", FlushMode::Sync, false), ("async", FlushMode::Async, false)];
    for (topic, flush, fifo) in topics {
        play(topic, flush, fifo).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordered_group_keeps_its_order_over_kills() {
    play("ordered", FlushMode::Async, true).await;
}

async fn play(topic: &'static str, flush: FlushMode, fifo: bool) {
    let home = Home::new();
    let process = Process::start(&home, &[]).await;
    let client = process.client().await;
    let settings = TopicSettings {
        queues: Some(QUEUES),
        flush: Some(flush),
        topic_type: Some(if fifo { TopicType::Fifo } else { TopicType::Normal }),
        ..TopicSettings::default()
    };
    client.create_topic(topic, settings).await.unwrap();
    let settings = GroupSettings {
        ordered: Some(fifo),
        max_attempts: Some(None),
        retry_delays_ms: Some(vec![1]),
        ..GroupSettings::default()
    };
    client.create_group("g", &settings).await.unwrap();
    let count = if fifo { 1 } else { BATCH };
    for first in (0..MESSAGES).step_by(count as usize) {
        client.send(topic, None, numbered(first..first + count, fifo)).await.unwrap();
    }
    process.stop().await;

    let mut dice = Dice::new(std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos().into());
    let mut events = Vec::new();
    for _ in 0..ROUNDS {
        let process = Process::start(&home, &[]).await;
        let mut consumers = Vec::new();
        for n in 0..CONSUMERS {
            let (client, dice) = (process.client().await, Dice::new(dice.roll()));
            // What was in one answer is not known of a stream, which the order is judged by.
            consumers.push(match n.is_multiple_of(2) && !fifo {
                true => tokio::spawn(consume_stream(client, topic, dice)),
                false => tokio::spawn(consume(client, topic, dice, true)),
            });
        }
        // Not a synchronisation: this is the random moment of the kill.
        tokio::time::sleep(Duration::from_millis(200 + dice.below(600))).await;
        process.kill().await;
        for consumer in consumers {
            events.extend(soon("a consumer's end", consumer).await.unwrap());
        }
    }

    // The last one is not killed: all that is left comes.
    let process = Process::start(&home, &[]).await;
    let client = process.client().await;
    events.extend(soon("the rest", consume(client.clone(), topic, dice.clone(), false)).await);
    let lag = until("an end of the lag", async || {
        let rows = client.progress("g", topic).await.unwrap();
        let lag: u64 = rows.iter().map(|row| row.lag + row.ready + row.leased + row.waiting).sum();
        (lag == 0).then_some(lag)
    });
    assert_eq!(lag.await, 0);
    process.stop().await;
    judge(&events, fifo);
}

/// Messages whose bodies are their numbers.
fn numbered(messages: Range<u32>, fifo: bool) -> Bytes {
    let mut batch = BatchBuilder::new();
    for message in messages {
        let message_group = format!("group {}", message % MESSAGE_GROUPS);
        let message_group = fifo.then_some(message_group.as_str());
        let meta = NewMeta { message_group, ..NewMeta::default() };
        batch.push(&meta, message.to_string().as_bytes());
    }
    batch.finish()
}

/// Messages that come ahead on a stream.
const AHEAD: usize = 8;

/// Takes messages off a stream and acknowledges them until the broker is gone. Of what it gets it leaves some, whose
/// leases run out.
async fn consume_stream(client: Client, topic: &str, mut dice: Dice) -> Vec<Event> {
    let mut events = Vec::new();
    let config = ConsumerConfig {
        invisible: LEASE,
        prefetch_messages: u32::try_from(AHEAD).unwrap(),
        patience: Duration::ZERO,
        ..ConsumerConfig::default()
    };
    // A message is leased at the earliest when the one so many before it is asked for.
    let mut asked = VecDeque::from(vec![Instant::now(); AHEAD]);
    let mut consumer = client.consumer("g", topic, config);
    let mut settling: Vec<(u32, Settling<bool>)> = Vec::new();
    loop {
        asked.push_back(Instant::now());
        let next: Result<Leased, _> = consumer.next().await;
        if let Ok(leased) = &next {
            let message = std::str::from_utf8(&leased.message.body).unwrap().parse().unwrap();
            let (asked, here) = (asked.pop_front().unwrap(), Instant::now());
            events.push(Event::Came { message, delivery: leased.delivery, asked, here });
            if dice.below(4) > 0
                && let Ok(answer) = consumer.ack(&leased.handle).await
            {
                settling.push((message, answer));
            }
            if settling.len() < AHEAD {
                continue;
            }
        }
        for (message, answer) in settling.drain(..) {
            match answer.done().await {
                Ok(true) => events.push(Event::Finished { message, at: Instant::now() }),
                Ok(false) => {}
                Err(_) => events.push(Event::Unknown { message }),
            }
        }
        if next.is_err() {
            return events;
        }
    }
}

/// Receives and acknowledges until the broker is gone, or with `leaves` unset until nothing comes any more. Of what it
/// gets it leaves some, whose leases run out.
async fn consume(client: Client, topic: &str, mut dice: Dice, leaves: bool) -> Vec<Event> {
    let mut events = Vec::new();
    let mut empty = 0;
    while leaves || empty < 3 {
        let receive = Receive {
            group: "g",
            topic,
            filter: Filter::All,
            max_messages: 1 + u32::try_from(dice.below(20)).unwrap(),
            invisible: LEASE,
            wait: LEASE,
            attempt: "",
        };
        let asked = Instant::now();
        let Ok(leased) = client.receive(&receive).await else { break };
        let here = Instant::now();
        empty = if leased.is_empty() { empty + 1 } else { 0 };
        let mut handles = Vec::new();
        for one in &leased {
            let message = std::str::from_utf8(&one.message.body).unwrap().parse().unwrap();
            events.push(Event::Came { message, delivery: one.delivery, asked, here });
            // In an ordered group those behind one that is left would be finished before it.
            if leaves && dice.below(4) == 0 {
                break;
            }
            handles.push((message, one.handle.as_str()));
        }
        let receipts: Vec<_> = handles.iter().map(|(_, handle)| *handle).collect();
        if receipts.is_empty() {
            continue;
        }
        if leaves {
            // What is to be done with them takes its time.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        match client.ack("g", topic, &receipts).await {
            Ok(finished) => {
                let at = Instant::now();
                let of = handles.iter().zip(finished).filter(|(_, finished)| *finished);
                events
                    .extend(of.map(|((message, _), _)| Event::Finished { message: *message, at }));
            }
            Err(_) => {
                events.extend(
                    handles.iter().map(|(message, _)| Event::Unknown { message: *message }),
                );
                break;
            }
        }
    }
    events
}

fn judge(events: &[Event], fifo: bool) {
    let (mut came, mut finished) = (BTreeMap::<u32, Vec<_>>::new(), BTreeMap::new());
    let mut unknown = BTreeSet::new();
    for event in events {
        match *event {
            Event::Came { message, delivery, asked, here } => {
                came.entry(message).or_default().push((here, delivery, asked));
            }
            Event::Finished { message, at } => {
                finished
                    .entry(message)
                    .and_modify(|first: &mut Instant| *first = at.min(*first))
                    .or_insert(at);
            }
            Event::Unknown { message } => {
                unknown.insert(message);
            }
        }
    }
    let again = came.values().filter(|deliveries| deliveries.len() > 1).count();
    assert_eq!(came.len(), MESSAGES as usize, "each comes to somebody");
    assert!(again > 0, "no lease ran out");
    for (message, deliveries) in &came {
        let is_done = finished.contains_key(message) || unknown.contains(message);
        assert!(is_done, "{message} is not finished, and the group has no lag");
        let mut numbers: Vec<_> = deliveries.iter().map(|(_, delivery, _)| *delivery).collect();
        numbers.sort_unstable();
        let count = numbers.len();
        numbers.dedup();
        assert_eq!(numbers.len(), count, "two deliveries of {message} have one number");
        for (_, delivery, asked) in deliveries {
            let was_finished = finished.get(message).is_some_and(|at| at < asked);
            assert!(!was_finished, "{message} came again, as delivery {delivery}, after its ack");
        }
    }
    if !fifo {
        return;
    }
    for (message, deliveries) in &came {
        let Some(before) = message.checked_sub(MESSAGE_GROUPS) else { continue };
        for (here, delivery, _) in deliveries {
            // With the one before it in the same answer, or behind its end: then that one never comes again.
            let others = &came[&before];
            let is_with_it = others.iter().any(|(other, ..)| other == here);
            let comes_later = others.iter().any(|(.., asked)| asked > here);
            assert!(
                is_with_it || !comes_later,
                "delivery {delivery} of {message} overtook {before}"
            );
        }
    }
}
