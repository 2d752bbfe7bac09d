//! What happened in one turn: how many messages, how long each answer took, and both over time.

use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::sync::{Mutex, lock};

/// The longest time that is told apart, in microseconds: ten minutes.
const LONGEST: u64 = 600_000_000;
/// Turns up to this length have points every 100 ms, longer ones every second.
const FINE: Duration = Duration::from_secs(60);

/// Microseconds, with three digits.
pub(super) fn histogram() -> Histogram<u64> {
    // Legal bounds: the fallback makes the same with bounds that grow.
    Histogram::new_with_bounds(1, LONGEST, 3).unwrap_or_else(|_| coarse())
}

fn coarse() -> Histogram<u64> {
    match Histogram::new(3) {
        Ok(histogram) => histogram,
        // Three digits are always legal.
        Err(_) => unreachable!("three digits"),
    }
}

/// A moment of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Point {
    /// Seconds since the begin of the first turn, without the turns of the other side.
    pub(crate) at: f64,
    /// Messages that were answered for in it.
    pub(crate) messages_per_second: f64,
    /// Half of the answers took at most so long; `None` without an answer.
    pub(crate) p50_us: Option<u64>,
    /// 99 % of them.
    pub(crate) p99_us: Option<u64>,
}

/// Takes down what happens in a turn; shared by all of its tasks.
pub(super) struct Recorder {
    started: Instant,
    end: Instant,
    interval: Duration,
    /// Told of every answer.
    told: Arc<dyn Fn(u64) + Send + Sync>,
    /// Short lock: some nanoseconds for each answer.
    seen: Mutex<Seen>,
}

struct Seen {
    messages: u64,
    answers: u64,
    latency: Histogram<u64>,
    /// Of the interval under way.
    now: Histogram<u64>,
    now_messages: u64,
    points: Vec<Point>,
}

/// A turn that is over.
#[derive(Clone, Debug)]
pub(super) struct Recorded {
    /// Answered for before the end.
    pub(super) messages: u64,
    /// Answers before the end.
    pub(super) answers: u64,
    /// From begin to end.
    pub(super) length: Duration,
    /// Of all answers, and of what was due and never sent: at least so long.
    pub(super) latency: Histogram<u64>,
    /// The turn in pieces.
    pub(super) points: Vec<Point>,
}

impl Recorder {
    /// Begins now.
    pub(super) fn start(length: Duration, told: Arc<dyn Fn(u64) + Send + Sync>) -> Self {
        let started = Instant::now();
        let tenth = Duration::from_millis(100);
        Self {
            started,
            end: started + length,
            interval: if length <= FINE { tenth } else { Duration::from_secs(1) },
            told,
            seen: Mutex::new(Seen {
                messages: 0,
                answers: 0,
                latency: histogram(),
                now: histogram(),
                now_messages: 0,
                points: Vec::new(),
            }),
        }
    }

    /// When it began.
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// When nothing more is sent.
    pub(super) fn end(&self) -> Instant {
        self.end
    }

    /// An answer for `messages` that were to be sent at `intended` came now.
    pub(super) fn answered(&self, intended: Instant, messages: u64) {
        let now = Instant::now();
        let took = micros(now.saturating_duration_since(intended));
        let mut seen = lock(&self.seen);
        seen.latency.saturating_record(took);
        if now <= self.end {
            self.close_until(&mut seen, now);
            seen.now.saturating_record(took);
            seen.now_messages += messages;
            seen.messages += messages;
            seen.answers += 1;
        }
        drop(seen);
        (self.told)(messages);
    }

    /// So many were to be sent at `intended` and were not, until now.
    pub(super) fn overdue(&self, intended: Instant, count: u64) {
        let took = micros(intended.elapsed());
        lock(&self.seen).latency.saturating_record_n(took, count);
    }

    /// Ends it. The tasks have ended before.
    pub(super) fn finish(&self) -> Recorded {
        let mut seen = lock(&self.seen);
        self.close_until(&mut seen, self.end);
        Recorded {
            messages: seen.messages,
            answers: seen.answers,
            length: self.end - self.started,
            latency: std::mem::replace(&mut seen.latency, histogram()),
            points: std::mem::take(&mut seen.points),
        }
    }

    /// Makes points of the intervals that end at or before `now`.
    fn close_until(&self, seen: &mut Seen, now: Instant) {
        loop {
            let closed = u32::try_from(seen.points.len()).unwrap_or(u32::MAX);
            let begin = self.interval * closed;
            if self.started + begin + self.interval > now {
                return;
            }
            let quantile = |q| (!seen.now.is_empty()).then(|| seen.now.value_at_quantile(q));
            let point = Point {
                at: begin.as_secs_f64(),
                messages_per_second: seen.now_messages as f64 / self.interval.as_secs_f64(),
                p50_us: quantile(0.5),
                p99_us: quantile(0.99),
            };
            seen.points.push(point);
            seen.now.reset();
            seen.now_messages = 0;
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn answers_are_counted_in_their_interval_and_after_the_end_for_their_latency_alone() {
        let recorder = Recorder::start(Duration::from_millis(300), Arc::new(|_| {}));
        let begin = Instant::now();
        advance(Duration::from_millis(50)).await;
        recorder.answered(begin, 10);
        advance(Duration::from_millis(200)).await;
        recorder.answered(begin + Duration::from_millis(240), 20);
        advance(Duration::from_millis(100)).await;
        recorder.answered(begin, 30);
        recorder.overdue(begin + Duration::from_millis(100), 5);
        let recorded = recorder.finish();
        assert_eq!((recorded.messages, recorded.answers, recorded.latency.len()), (30, 2, 8));
        let points: Vec<_> = recorded
            .points
            .iter()
            .map(|point| (point.messages_per_second as u64, point.p50_us.map(|us| us / 1_000)))
            .collect();
        assert_eq!(points, [(100, Some(50)), (0, None), (200, Some(10))]);
        assert_eq!(recorded.latency.max() / 1_000, 350);
    }
}
