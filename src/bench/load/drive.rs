//! One stream of batches through one turn: what is due is sent if there is room, what is acknowledged is recorded.

use std::collections::VecDeque;
use std::pin::pin;

use tokio::time::{Instant, sleep_until, timeout};

use super::DRAIN;
use crate::bench::BenchError;
use crate::bench::pace::{Pace, Wait};
use crate::bench::recorder::Recorder;

/// Where batches go.
pub(super) trait Batches: Send {
    /// Sends batch `n`, which was to be sent at `intended`.
    fn send(
        &mut self,
        n: u64,
        intended: Instant,
    ) -> impl Future<Output = Result<(), BenchError>> + Send;

    /// How many were acknowledged. Waits for news; may be dropped.
    fn acked(&mut self) -> impl Future<Output = Result<u64, BenchError>> + Send;
}

/// What an acknowledgement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ack {
    /// What is measured.
    IsRecorded,
    /// Room for the next batch and no more: somebody else records.
    MakesRoom,
}

/// What a stream is driven with.
pub(super) struct Drive<'a> {
    pub(super) ack: Ack,
    pub(super) pace: Pace,
    /// Batches without an acknowledgement.
    pub(super) in_flight: usize,
    /// Messages of each batch.
    pub(super) messages: u64,
    pub(super) recorder: &'a Recorder,
}

impl Drive<'_> {
    /// Runs until the recorder's end and until all that was sent is acknowledged. What was due and could not be sent is
    /// recorded as overdue.
    ///
    /// # Errors
    /// Of the stream; `Silent` if acknowledgements do not come.
    pub(super) async fn run(
        &self,
        batches: &mut impl Batches,
        wait: &mut impl Wait,
    ) -> Result<(), BenchError> {
        let end = self.recorder.end();
        let mut under_way = VecDeque::with_capacity(self.in_flight);
        let (mut sent, mut acked) = (0, 0);
        let mut over = pin!(sleep_until(end));
        loop {
            let has_room = under_way.len() < self.in_flight;
            let due = self.pace.due(sent);
            let now = Instant::now();
            if now >= end {
                break;
            }
            if has_room && due.is_none_or(|due| due <= now) {
                let intended = due.unwrap_or(now);
                batches.send(sent, intended).await?;
                under_way.push_back(intended);
                sent += 1;
                continue;
            }
            tokio::select! {
                biased;
                news = batches.acked(), if !under_way.is_empty() => {
                    self.take(&mut under_way, &mut acked, news?);
                }
                // Without room the next thing that can happen is an acknowledgement.
                () = wait.until(due.unwrap_or(end).min(end)), if has_room => {}
                () = over.as_mut() => break,
            }
        }
        let drain = async {
            while !under_way.is_empty() {
                let news = batches.acked().await?;
                self.take(&mut under_way, &mut acked, news);
            }
            Ok::<_, BenchError>(())
        };
        timeout(DRAIN, drain).await.map_err(|_| BenchError::Silent)??;
        for (due, count) in self.pace.due_before(sent, end) {
            self.recorder.overdue(due, count);
        }
        Ok(())
    }

    fn take(&self, under_way: &mut VecDeque<Instant>, acked: &mut u64, news: u64) {
        while *acked < news
            && let Some(intended) = under_way.pop_front()
        {
            if self.ack == Ack::IsRecorded {
                self.recorder.answered(intended, self.messages);
            }
            *acked += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::sync::mpsc;
    use tokio::time::{Instant, sleep_until};

    use super::*;

    /// A server that answers each batch after `takes`, one after the other, and not at all within a stall.
    struct Model {
        takes: Duration,
        stall: std::ops::Range<Instant>,
        free_at: Instant,
        answers: (mpsc::UnboundedSender<Instant>, mpsc::UnboundedReceiver<Instant>),
        next: Option<Instant>,
        acked: u64,
        most: usize,
    }

    impl Model {
        fn new(takes: Duration, stall: std::ops::Range<Duration>) -> Self {
            let now = Instant::now();
            Self {
                takes,
                stall: now + stall.start..now + stall.end,
                free_at: now,
                answers: mpsc::unbounded_channel(),
                next: None,
                acked: 0,
                most: 0,
            }
        }
    }

    impl Batches for Model {
        async fn send(&mut self, n: u64, _: Instant) -> Result<(), BenchError> {
            self.most = self.most.max(usize::try_from(n + 1 - self.acked).unwrap());
            let mut done = self.free_at.max(Instant::now()) + self.takes;
            if self.stall.contains(&done) {
                done = self.stall.end;
            }
            self.free_at = done;
            self.answers.0.send(done).map_err(|_| BenchError::Lost)
        }

        async fn acked(&mut self) -> Result<u64, BenchError> {
            if self.next.is_none() {
                self.next = self.answers.1.recv().await;
            }
            sleep_until(self.next.ok_or(BenchError::Lost)?).await;
            self.next = None;
            self.acked += 1;
            Ok(self.acked)
        }
    }

    /// The runtime's clock, which a test moves.
    struct Runtime;

    impl Wait for Runtime {
        async fn until(&mut self, at: Instant) {
            sleep_until(at).await;
        }
    }

    async fn driven(
        rate: Option<f64>,
        in_flight: usize,
        model: &mut Model,
    ) -> crate::bench::recorder::Recorded {
        let recorder = Recorder::start(Duration::from_secs(1), Arc::new(|_| {}));
        let pace = Pace::of(rate, recorder.started(), 0, 1);
        let drive =
            Drive { ack: Ack::IsRecorded, pace, in_flight, messages: 10, recorder: &recorder };
        drive.run(model, &mut Runtime).await.unwrap();
        recorder.finish()
    }

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn a_server_that_stalls_is_late_for_all_that_was_due_meanwhile() {
        // 100 batches a second; nothing is answered from 200 ms to 700 ms.
        let mut model = Model::new(MS, 200 * MS..700 * MS);
        let recorded = driven(Some(100.0), 4, &mut model).await;
        assert_eq!((recorded.latency.len(), recorded.messages), (100, 1_000));
        // Half of them were due in the stall, 10 ms apart: each waited for the rest of it and for those before.
        let late = recorded.latency.count_between(10_000, u64::MAX);
        assert!((49..=56).contains(&late), "{late}");
        assert!((495_000..510_000).contains(&recorded.latency.max()), "{}", recorded.latency.max());
        let middle = recorded.latency.value_at_quantile(0.75);
        assert!((260_000..290_000).contains(&middle), "{middle}");
        assert_eq!(model.most, 4, "no more without an answer than allowed");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_due_and_never_sent_is_late_too() {
        // It is asked for twice as much as it can.
        let mut model = Model::new(10 * MS, Duration::ZERO..Duration::ZERO);
        let recorded = driven(Some(200.0), 1, &mut model).await;
        assert_eq!(recorded.latency.len(), 200, "all that were due are measured");
        assert!((950..=1_000).contains(&recorded.messages), "{}", recorded.messages);
        // What was sent was late by up to half a second at the end, and what was not was due for up to half a second.
        let (p50, max) = (recorded.latency.value_at_quantile(0.5), recorded.latency.max());
        assert!((245_000..265_000).contains(&p50) && (495_000..510_000).contains(&max));
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_beyond_all_measure_ends_as_any_other() {
        let mut model = Model::new(10 * MS, Duration::ZERO..Duration::ZERO);
        let recorded = driven(Some(1e9), 1, &mut model).await;
        assert_eq!(recorded.latency.len(), 1_000_000_000);
        assert!((950..=1_000).contains(&recorded.messages), "{}", recorded.messages);
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_loop_keeps_its_bound_full_and_measures_from_the_send() {
        let mut model = Model::new(10 * MS, Duration::ZERO..Duration::ZERO);
        let recorded = driven(None, 3, &mut model).await;
        assert_eq!((recorded.messages / 10, model.most), (100, 3));
        let p50 = recorded.latency.value_at_quantile(0.5);
        assert!((29_000..32_000).contains(&p50), "{p50}");
    }
}
