//! SIGKILL at random times under load, again and again on one directory, and the history of it all.
//!
//! Two producers send to a topic with sync flush, two to one with async flush: the death of a process takes nothing
//! from either. Readers follow each queue through the restarts and go back now and then. `KILL_ROUNDS` says how many
//! rounds, `KILL_SEED` repeats the rolls of a run; where the kill meets the broker differs all the same.
//!
//! Once more with topics of which messages go: by age, by size, by purges under load. Then nothing may go early, nothing
//! may come back, and the segments must be gone too.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mainstem::client::{Client, Order, Purge, Query, Selector, Status};
use mainstem::message::{FlushMode, PhysicalOffset, Retention};
use tokio::time::{Instant, sleep_until};

use crate::history::{History, Place, Read};
use crate::load::{
    Load, QUEUES, Subject, TOPICS, acknowledged, assert_honest, create_topics, look_at_ranges,
    read_last,
};
use crate::support::{Dice, Home, Lives, Process, rolls, until};

const ROUNDS: u64 = 8;
/// A broker is killed after 100 ms and something below this.
const LIFE_MS: u64 = 1_400;
/// Keys looked for when all is over.
const KEYS: usize = 300;

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_a_broker_loses_nothing_and_changes_nothing() {
    let (rounds, seed) = rolls(ROUNDS);
    println!("KILL_SEED={seed} KILL_ROUNDS={rounds}");
    let home = Home::new();
    let mut history = History::default();
    let kills = play(&home, &TOPICS, rounds, seed, &mut history, |_| true).await;

    // The last one is not killed: it has to tell all.
    let process = Process::start(&home, &[]).await;
    let client = process.client().await;
    read_last(&client, &TOPICS, &mut history).await;
    let [sync, asynchronous] = TOPICS.map(|topic| acknowledged(&history, topic.name));
    println!(
        "{kills} kills, {} sends ({sync} and {asynchronous} acknowledged), {} messages read on the \
         way, {} at the end",
        history.sends.len(),
        history.seen.len(),
        history.last.len()
    );
    assert_honest(&history);
    assert!(sync.min(asynchronous) > 50, "too little was sent to say anything");
    check_keys(&client, &TOPICS, &history, &mut Dice::new(seed)).await;
    process.stop().await;
}

/// Of each flush mode one that loses by age, one that loses by size, and one that is purged.
const PASSING: [Subject; 6] = {
    let aged = Retention { time_ms: Some(2_000), bytes: None };
    // Little: where a machine is slow, little is sent between two kills.
    let sized = Retention { time_ms: None, bytes: Some(4 << 20) };
    let (sync, asynchronous) = (FlushMode::Sync, FlushMode::Async);
    [
        Subject { retention: aged, ..Subject::keeping("sync-aged", sync) },
        Subject { retention: sized, is_heavy: true, ..Subject::keeping("sync-sized", sync) },
        Subject { is_purged: true, ..Subject::keeping("sync-purged", sync) },
        Subject { retention: aged, ..Subject::keeping("async-aged", asynchronous) },
        Subject {
            retention: sized,
            is_heavy: true,
            ..Subject::keeping("async-sized", asynchronous)
        },
        Subject { is_purged: true, ..Subject::keeping("async-purged", asynchronous) },
    ]
};

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_a_broker_takes_only_what_is_over_or_purged_and_for_ever() {
    let (rounds, seed) = rolls(ROUNDS);
    println!("KILL_SEED={seed} KILL_ROUNDS={rounds}");
    let home = Home::new();
    let mut history = History::default();
    let has_lost = |status: &Status| status.min > PhysicalOffset::ZERO;
    let kills = play(&home, &PASSING, rounds, seed, &mut history, has_lost).await;

    let process = Process::start(&home, &[]).await;
    let client = process.client().await;
    read_last(&client, &PASSING, &mut history).await;
    let status = client.status().await.unwrap();
    println!(
        "{kills} kills, {} sends, {} purges, {} of {} bytes of the log are there",
        history.sends.len(),
        history.purges.len(),
        status.appended.since(status.min),
        status.appended,
    );
    let begins = history.begins();
    for subject in PASSING {
        let name = subject.name;
        let began: Vec<_> = (0..QUEUES).map(|queue| begins[&(name, queue)]).collect();
        println!("{name}: {} sends, queues begin at {began:?}", acknowledged(&history, name));
        assert!(began.iter().any(|begin| *begin > 0), "nothing of {name} went");
    }
    assert_honest(&history);
    check_keys(&client, &PASSING, &history, &mut Dice::new(seed)).await;
    assert!(status.min.get() > 0, "no segment went while it was killed again and again");

    // Nothing is alive any more: all goes that is finished.
    for subject in PASSING {
        client.purge_topic(subject.name, Purge::Topic).await.unwrap();
    }
    until("finished segments to go", async || {
        let status = client.status().await.unwrap();
        let files = std::fs::read_dir(home.data().join("commitlog")).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        // What has no name of a segment any more is kept to become the next one.
        let names = names.filter(|name| name.ends_with(".log"));
        let below = names.filter(|name| *name < format!("{:020}", status.min.get())).count();
        (status.segments == 1 && below == 0).then_some(())
    })
    .await;
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_lost_its_tail_while_the_broker_was_dead_is_found_out() {
    // The checker against a real store: what a lying disk would do.
    let home = Home::new();
    let mut history = History::default();
    play(&home, &TOPICS, 1, 7, &mut history, |_| true).await;
    let segments = std::fs::read_dir(home.data().join("commitlog")).unwrap();
    let segments = segments.map(|file| file.unwrap().path());
    let oldest = segments.filter(|path| path.extension() == Some("log".as_ref())).min().unwrap();
    let file = std::fs::File::options().read(true).write(true).open(oldest).unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(64 << 10).unwrap();
    file.set_len(len).unwrap();

    let process = Process::start(&home, &[]).await;
    let client = process.client().await;
    read_last(&client, &TOPICS, &mut history).await;
    assert!(history.findings().iter().any(|finding| finding.starts_with("lost")));
    process.stop().await;
}

/// Producers and readers through `rounds` rounds in which the broker served before it was killed, and on until one has
/// done enough, up to four times as many; returns the kills.
async fn play(
    home: &Home,
    subjects: &[Subject],
    rounds: u64,
    seed: u64,
    history: &mut History,
    has_done_enough: impl Fn(&Status) -> bool,
) -> u64 {
    let mut dice = Dice::new(seed);
    let load = Load::start(&mut dice, subjects);
    let (mut kills, mut round, mut epoch) = (0, 0, 0);
    let mut lives = Lives::new();
    let mut is_enough = false;
    while round < rounds || !is_enough && round < 4 * rounds {
        assert!(kills < rounds * 20 + 5, "the broker hardly ever serves");
        let life = 100 + dice.below(LIFE_MS);
        let (process, end) = lives.start(home, round, life).await;
        if let Some(end) = end {
            let client = process.client().await;
            let status = look(&client, subjects, round, epoch).await;
            (epoch, is_enough) = (status.epoch.get(), has_done_enough(&status));
            // At once: what is gone is gone from the first moment on.
            look_at_ranges(&client, subjects, history).await;
            load.up(round, client);
            round += 1;
            // Not a synchronisation: this is the random moment of the kill.
            sleep_until(end.max(Instant::now() + Duration::from_millis(dice.below(300)))).await;
        }
        process.kill().await;
        load.down();
        kills += 1;
    }
    load.end(history).await;
    kills
}

/// What a broker says after its start; makes the topics at the first one.
async fn look(client: &Client, subjects: &[Subject], round: u64, epoch: u64) -> Status {
    let status = client.status().await.unwrap();
    assert!(status.epoch.get() > epoch, "epoch {} after {epoch}", status.epoch);
    assert_eq!(status.damaged, []);
    if round == 0 {
        assert!(status.start_report[0].starts_with("new store"), "{:?}", status.start_report);
        create_topics(client, subjects).await;
    } else {
        let report = &status.start_report[0];
        assert!(report.starts_with("opened after an unclean stop"), "{report}");
        for subject in subjects {
            let found = client.describe_topic(subject.name).await.unwrap().topic;
            assert_eq!((found.queues, found.flush), (QUEUES, subject.flush));
            assert_eq!(found.retention, subject.retention);
        }
    }
    status
}

/// Each key finds the stored messages that carry it, no others, and says that these are all.
async fn check_keys(client: &Client, subjects: &[Subject], history: &History, dice: &mut Dice) {
    let mut carriers: BTreeMap<(&'static str, String), BTreeSet<Place>> = BTreeMap::new();
    for read in &history.last {
        for key in read.stamp.unwrap().keys() {
            carriers.entry((read.place.topic, key)).or_default().insert(read.place);
        }
    }
    let mut keys: Vec<_> = carriers.into_iter().collect();
    while keys.len() > KEYS {
        keys.swap_remove(usize::try_from(dice.below(keys.len() as u64)).unwrap());
    }
    for subject in subjects {
        keys.push(((subject.name, "nobody".to_owned()), BTreeSet::new()));
    }
    let places: BTreeMap<Place, &Read> =
        history.last.iter().map(|read| (read.place, read)).collect();
    for ((topic, key), expected) in keys {
        let found = find(client, topic, &key).await;
        let found_places: BTreeSet<Place> = found.iter().map(|read| read.place).collect();
        assert_eq!(found_places, expected, "key {key} of {topic}");
        assert_eq!(found.len(), expected.len(), "key {key} of {topic} finds a message twice");
        for read in &found {
            assert_eq!(&read, &places[&read.place], "key {key} of {topic}");
        }
    }
}

/// All pages of a key, asked again until nothing may be missing.
async fn find(client: &Client, topic: &'static str, key: &str) -> Vec<Read> {
    until("a complete answer", async || {
        let mut reads = Vec::new();
        let mut page = String::new();
        loop {
            let query = Query {
                selector: Selector::Key { topic, key },
                begin: None,
                end: None,
                order: Order::OldestFirst,
                limit: 4,
                page,
            };
            let found = client.query(&query).await.unwrap();
            if found.incomplete.is_some() {
                return None;
            }
            reads.extend(found.messages.iter().map(|message| Read::of(topic, message)));
            match found.next_page {
                Some(next) => page = next,
                None => return Some(reads),
            }
        }
    })
    .await
}
