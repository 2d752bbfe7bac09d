//! SIGKILL while producers run, and the count afterwards.
//!
//! | what the producer saw | what may be in the store |
//! | --- | --- |
//! | acknowledged | the message, once |
//! | not answered, or "may be stored" | the message once, or nothing |
//! | refused, or never sent | nothing |
//!
//! A producer sends one message after the other to its own queue. After a failure it waits for the new broker and
//! goes on with the next number, so that in each queue the numbers ascend.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::material::Stamp;
use super::report::{Measured, Report};
use super::{SENDERS, read_queue, start};
use crate::child::Server;
use crate::cli::output::Progress;
use crate::client::{Client, Stored};
use crate::format::batch::{BatchBuilder, NewMeta};
use crate::message::QueueId;

/// The topic of this step.
pub(super) const TOPIC: &str = "demo-kill";
/// How long the producers run before the kill and after the restart.
const BEFORE: Duration = Duration::from_millis(1_000);
const AFTER: Duration = Duration::from_millis(500);

/// What the producers are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scene {
    /// The first broker is up.
    Before,
    /// The second one is.
    After,
    /// It is over.
    End,
}

/// What one producer knows.
struct Ledger {
    producer: u32,
    acknowledged: BTreeSet<u64>,
    unanswered: BTreeSet<u64>,
    measured: Measured,
}

/// What the store has of one producer, compared with its ledger.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    acknowledged: u64,
    unanswered: u64,
    /// Of the unanswered ones.
    stored_unanswered: u64,
    missing: u64,
    twice: u64,
    never_sent: u64,
    out_of_order: u64,
}

/// Runs the step. `broker` is the killed one at the beginning and the new one at the end.
pub(super) async fn run(
    directory: &Path,
    keep: bool,
    broker: &mut Option<Server>,
    client: &Client,
    report: &mut Report,
) -> anyhow::Result<()> {
    let progress = Progress::start("killing the broker", None);
    let (scene, _) = watch::channel(Scene::Before);
    let mut producers = JoinSet::new();
    for producer in 0..SENDERS {
        producers.spawn(produce(producer, client.clone(), scene.subscribe()));
    }
    let mut measured = Measured::start();
    tokio::time::sleep(BEFORE).await;

    let mut first = broker.take().context("there is no broker to kill")?;
    let addresses = first.addresses().clone();
    let killed = Instant::now();
    first.kill();
    drop(first);
    *broker = Some(
        start(directory, Some(&addresses), keep)
            .await
            .context("the broker does not come back on its directory")?,
    );
    let restart = Measured::once(killed.elapsed());
    scene.send_replace(Scene::After);
    progress.add(1);

    tokio::time::sleep(AFTER).await;
    scene.send_replace(Scene::End);
    let mut ledgers = Vec::new();
    while let Some(ledger) = producers.join_next().await {
        let ledger = ledger.context("a producer ended badly")?;
        measured.add(&ledger.measured);
        ledgers.push(ledger);
    }
    report.step("kill", "8 producers, one message at a time, around the kill", measured.end());
    report.step("restart", "SIGKILL until the broker is ready again", restart);

    let mut sum = Verdict::default();
    let mut read = Measured::start();
    for ledger in &ledgers {
        let mut found = Vec::new();
        let mut foreign = 0;
        let own = read_queue(client, TOPIC, QueueId::new(ledger.producer), |message| {
            match Stamp::read(&message.body) {
                Some(stamp) if stamp.producer == ledger.producer => found.push(stamp.sequence),
                _ => foreign += 1,
            }
        })
        .await?;
        read.add(&own);
        sum.add(&judge(ledger, &found, foreign));
    }
    report.step("read", "what they sent", read.end());
    sum.tell(report);
    Ok(())
}

/// Sends one message after the other until the end of the play.
async fn produce(producer: u32, client: Client, mut scene: watch::Receiver<Scene>) -> Ledger {
    let mut ledger = Ledger {
        producer,
        acknowledged: BTreeSet::new(),
        unanswered: BTreeSet::new(),
        measured: Measured::start(),
    };
    for sequence in 0.. {
        let playing = *scene.borrow_and_update();
        if playing == Scene::End {
            break;
        }
        let stamp = Stamp { producer, sequence };
        let mut batch = BatchBuilder::new();
        let key = stamp.key();
        batch.push(&NewMeta { keys: vec![&key], ..NewMeta::default() }, &stamp.body());
        let sent = Instant::now();
        match client.send(TOPIC, Some(QueueId::new(producer)), batch.finish()).await {
            Ok(_) => {
                ledger.acknowledged.insert(sequence);
                ledger.measured.call(sent.elapsed(), 1);
                continue;
            }
            // It will not be there, and is not counted: found all the same, it was never sent.
            Err(error) if error.stored() == Stored::No => {}
            Err(_) => {
                ledger.unanswered.insert(sequence);
            }
        }
        if playing == Scene::Before {
            // The broker is gone; the next scene begins when there is a new one. If nobody changes the scene any
            // more, the play is over.
            if scene.wait_for(|scene| *scene != Scene::Before).await.is_err() {
                break;
            }
        } else {
            // The first call after the restart may still meet the old connection.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    ledger
}

/// Compares what is stored, in the order of its queue, with what the producer knows.
fn judge(ledger: &Ledger, found: &[u64], foreign: u64) -> Verdict {
    let mut seen = BTreeSet::new();
    let mut verdict = Verdict {
        acknowledged: ledger.acknowledged.len() as u64,
        unanswered: ledger.unanswered.len() as u64,
        never_sent: foreign,
        ..Verdict::default()
    };
    let mut last = None;
    for sequence in found {
        if !seen.insert(*sequence) {
            verdict.twice += 1;
            continue;
        }
        if last.is_some_and(|last| last > *sequence) {
            verdict.out_of_order += 1;
        }
        last = Some(*sequence);
        if ledger.unanswered.contains(sequence) {
            verdict.stored_unanswered += 1;
        } else if !ledger.acknowledged.contains(sequence) {
            verdict.never_sent += 1;
        }
    }
    verdict.missing = ledger.acknowledged.difference(&seen).count() as u64;
    verdict
}

impl Verdict {
    fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.unanswered += other.unanswered;
        self.stored_unanswered += other.stored_unanswered;
        self.missing += other.missing;
        self.twice += other.twice;
        self.never_sent += other.never_sent;
        self.out_of_order += other.out_of_order;
    }

    fn tell(&self, report: &mut Report) {
        report.check(
            "each acknowledged message is there exactly once",
            self.acknowledged > 0 && self.missing == 0 && self.twice == 0,
            format!(
                "{} acknowledged, {} missing, {} twice",
                self.acknowledged, self.missing, self.twice
            ),
        );
        report.check(
            "nothing is there that was not sent",
            self.never_sent == 0,
            format!(
                "{} not sent; of {} unanswered {} are there",
                self.never_sent, self.unanswered, self.stored_unanswered
            ),
        );
        report.check(
            "what a producer sent is in its order",
            self.out_of_order == 0,
            format!("{} out of order", self.out_of_order),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        Ledger {
            producer: 1,
            acknowledged: BTreeSet::from([0, 1, 2, 5]),
            unanswered: BTreeSet::from([3, 4]),
            measured: Measured::start(),
        }
    }

    #[test]
    fn an_unanswered_message_may_be_there_or_not() {
        let whole = Verdict { acknowledged: 4, unanswered: 2, ..Verdict::default() };
        assert_eq!(judge(&ledger(), &[0, 1, 2, 5], 0), whole);
        assert_eq!(
            judge(&ledger(), &[0, 1, 2, 3, 5], 0),
            Verdict { stored_unanswered: 1, ..whole }
        );
    }

    #[test]
    fn every_kind_of_lie_is_seen() {
        let whole = Verdict { acknowledged: 4, unanswered: 2, ..Verdict::default() };
        assert_eq!(judge(&ledger(), &[0, 2, 5], 0), Verdict { missing: 1, ..whole });
        let whole = Verdict { acknowledged: 4, unanswered: 2, ..Verdict::default() };
        assert_eq!(judge(&ledger(), &[0, 1, 2, 2, 5], 0), Verdict { twice: 1, ..whole });
        let whole = Verdict { acknowledged: 4, unanswered: 2, ..Verdict::default() };
        assert_eq!(judge(&ledger(), &[0, 1, 2, 5, 6], 1), Verdict { never_sent: 2, ..whole });
        let whole = Verdict { acknowledged: 4, unanswered: 2, ..Verdict::default() };
        assert_eq!(judge(&ledger(), &[0, 2, 1, 5], 0), Verdict { out_of_order: 1, ..whole });
    }
}
