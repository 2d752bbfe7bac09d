//! Rounds: the subject and the control in turns, A B B A, and what they come to.
//!
//! A round's ratio is the subject's by the control's. A round whose two controls differ by more than [`MAX_MOVE`] says
//! more about the machine than about the subject: it is void, and another one is tried, a bounded number of times. The
//! figure is the median of the valid rounds; if none is, of all, and the run says so.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::recorder::{Point, Recorded, histogram};

/// By how much the controls of a round may differ.
const MAX_MOVE: f64 = 0.10;
/// Rounds that may be tried for each that is wanted.
const TRIES: u32 = 2;

/// Who has a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// What is measured.
    Subject,
    /// What it is compared with.
    Control,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RatioOf {
    /// Messages a second, the subject's by the control's.
    Rate,
    /// At a fixed rate, where both have the same: the median latency, the control's by the subject's.
    MedianLatency,
}

/// A turn, and what the server used for it.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    /// What happened.
    pub(super) recorded: Recorded,
    /// Messages a second: as measured, or as found by a search.
    pub(super) rate: f64,
    /// Of the server's process, until it was at rest again; `None`: it is not ours.
    pub(super) cpu: Option<Duration>,
    /// Of the server's process at the end, in no file.
    pub(super) memory: Option<u64>,
}

/// A round as a run shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Round {
    /// Messages a second in the subject's turns.
    pub(crate) subject: Vec<f64>,
    /// In the control's turns; none without a control.
    pub(crate) control: Vec<f64>,
    /// `None` without a control.
    pub(crate) ratio: Option<f64>,
    /// The controls differ too much.
    pub(crate) void: bool,
}

/// All rounds, and the turns of those that count.
#[derive(Default)]
pub(super) struct Rounds {
    pub(super) shown: Vec<Round>,
    pub(super) subject: Vec<Turn>,
    pub(super) control: Vec<Turn>,
    /// No valid round: all count.
    pub(super) void: bool,
}

impl Rounds {
    /// Runs rounds until `wanted` are valid, or too many were tried. `turn` runs one turn.
    ///
    /// # Errors
    /// Of `turn`.
    pub(super) async fn run<E>(
        wanted: u32,
        with_control: bool,
        of: RatioOf,
        mut turn: impl AsyncFnMut(Side) -> Result<Turn, E>,
    ) -> Result<Self, E> {
        let mut rounds = Self::default();
        let (mut valid, mut void) = (Vec::new(), Vec::new());
        while valid.len() < wanted as usize && rounds.shown.len() < (wanted * TRIES) as usize {
            let mut subject = vec![turn(Side::Subject).await?];
            let mut control = Vec::new();
            if with_control {
                control.push(turn(Side::Control).await?);
                control.push(turn(Side::Control).await?);
            }
            subject.push(turn(Side::Subject).await?);
            let round = Round::of(&subject, &control, of);
            let kind = if round.void { &mut void } else { &mut valid };
            kind.push((subject, control));
            rounds.shown.push(round);
        }
        rounds.void = valid.is_empty();
        let counted = if rounds.void { void } else { valid };
        for (subject, control) in counted {
            rounds.subject.extend(subject);
            rounds.control.extend(control);
        }
        Ok(rounds)
    }

    /// The median ratio of the rounds that count.
    pub(super) fn ratio(&self) -> Option<f64> {
        let counted = self.shown.iter().filter(|round| round.void == self.void);
        median(counted.filter_map(|round| round.ratio).collect())
    }
}

impl Round {
    fn of(subject: &[Turn], control: &[Turn], of: RatioOf) -> Self {
        let rates = |turns: &[Turn]| turns.iter().map(|turn| turn.rate).collect::<Vec<_>>();
        let figure = |turns: &[Turn]| match of {
            RatioOf::Rate => mean(&rates(turns)),
            RatioOf::MedianLatency => merged(turns).value_at_quantile(0.5) as f64,
        };
        let (a, b) = (figure(subject), figure(control));
        let ratio = match of {
            RatioOf::Rate => a / b,
            RatioOf::MedianLatency => b / a,
        };
        let singles: Vec<f64> =
            control.iter().map(|turn| figure(std::slice::from_ref(turn))).collect();
        let low = singles.iter().copied().fold(f64::INFINITY, f64::min);
        let high = singles.iter().copied().fold(0.0, f64::max);
        Self {
            subject: rates(subject),
            control: rates(control),
            ratio: (!control.is_empty() && ratio.is_finite()).then_some(ratio),
            void: !control.is_empty() && high / low - 1.0 > MAX_MOVE,
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len().checked_sub(1)? / 2;
    let (low, high) = (values.get(middle)?, values.get(values.len() / 2)?);
    Some((low + high) / 2.0)
}

fn merged(turns: &[Turn]) -> Histogram<u64> {
    let mut all = histogram();
    for turn in turns {
        // The bounds are the same, so nothing is refused.
        let _ = all.add(&turn.recorded.latency);
    }
    all
}

/// Microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Percentiles {
    /// Half of the answers took at most so long.
    pub(crate) p50: u64,
    /// 90 %.
    pub(crate) p90: u64,
    /// 99 %.
    pub(crate) p99: u64,
    /// 99.9 %.
    pub(crate) p999: u64,
    /// 99.99 %.
    pub(crate) p9999: u64,
    /// The longest.
    pub(crate) max: u64,
}

/// What all turns of a side come to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// The median of its turns.
    pub(crate) messages_per_second: f64,
    /// Bytes of bodies at that rate.
    pub(crate) bytes_per_second: f64,
    /// Messages that were answered for.
    pub(crate) messages: u64,
    /// Answers: acknowledged batches, pulls, queries, or batches that came to their reader.
    pub(crate) acks: u64,
    /// CPU time of the server's process; `None`: it is not ours.
    pub(crate) cpu_ns_per_message: Option<f64>,
    /// The most that the server's process had after a turn, in no file.
    pub(crate) memory_bytes: Option<u64>,
    /// From when an answer was wanted until it came.
    pub(crate) latency_us: Percentiles,
    /// Percentile and microseconds.
    pub(crate) distribution: Vec<(f64, u64)>,
    /// Turn after turn.
    pub(crate) series: Vec<Point>,
}

/// What a distribution shows, as far as there are answers enough.
const SHOWN: [f64; 18] = [
    0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.9, 99.95,
    99.99, 99.999,
];

impl Summary {
    /// Of messages with bodies of `payload` bytes.
    pub(super) fn of(turns: &[Turn], payload: usize) -> Self {
        let latency = merged(turns);
        let at = |percentile: f64| latency.value_at_percentile(percentile);
        let sum = |of: fn(&Recorded) -> u64| turns.iter().map(|turn| of(&turn.recorded)).sum();
        let messages: u64 = sum(|recorded| recorded.messages);
        let rate = median(turns.iter().map(|turn| turn.rate).collect()).unwrap_or_default();
        let cpu: Option<Duration> = turns.iter().map(|turn| turn.cpu).sum();
        let enough = |percentile: f64| (100.0 - percentile) * latency.len() as f64 >= 100.0;
        let mut series = Vec::new();
        let mut before = 0.0;
        for turn in turns {
            let points = turn.recorded.points.iter();
            series.extend(points.map(|point| Point { at: point.at + before, ..*point }));
            before += turn.recorded.length.as_secs_f64();
        }
        Self {
            messages_per_second: rate,
            bytes_per_second: rate * payload as f64,
            messages,
            acks: sum(|recorded| recorded.answers),
            cpu_ns_per_message: cpu
                .filter(|_| messages > 0)
                .map(|cpu| cpu.as_secs_f64() * 1e9 / messages as f64),
            memory_bytes: turns.iter().filter_map(|turn| turn.memory).max(),
            latency_us: Percentiles {
                p50: at(50.0),
                p90: at(90.0),
                p99: at(99.0),
                p999: at(99.9),
                p9999: at(99.99),
                max: latency.max(),
            },
            distribution: SHOWN
                .into_iter()
                .filter(|percentile| enough(*percentile))
                .map(|percentile| (percentile, at(percentile)))
                .collect(),
            series,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn turn(rate: f64) -> Turn {
        let mut latency = histogram();
        latency.record_n((1e6 / rate) as u64, 100).unwrap();
        let point = Point { at: 0.0, messages_per_second: rate, p50_us: Some(1), p99_us: None };
        let recorded = Recorded {
            messages: rate as u64,
            answers: 100,
            length: Duration::from_secs(1),
            latency,
            points: vec![point],
        };
        let cpu = Some(Duration::from_millis(500));
        Turn { recorded, rate, cpu, memory: Some(rate as u64) }
    }

    /// Runs rounds with these rates, in the order of the turns.
    async fn run(wanted: u32, control: bool, of: RatioOf, rates: &[f64]) -> (Rounds, Vec<Side>) {
        let (mut rates, mut order) = (rates.iter(), Vec::new());
        let rounds = Rounds::run(wanted, control, of, async |side| {
            order.push(side);
            Ok::<_, Infallible>(turn(*rates.next().unwrap()))
        });
        let rounds = rounds.await.unwrap();
        assert_eq!(rates.next(), None, "all turns were taken");
        (rounds, order)
    }

    #[tokio::test]
    async fn a_round_is_subject_control_control_subject_and_its_ratio_is_of_the_means() {
        let (rounds, order) = run(1, true, RatioOf::Rate, &[50.0, 100.0, 108.0, 54.0]).await;
        assert_eq!(order, [Side::Subject, Side::Control, Side::Control, Side::Subject]);
        assert_eq!((rounds.ratio(), rounds.void), (Some(0.5), false));
        let (rounds, _) = run(1, false, RatioOf::Rate, &[50.0, 60.0]).await;
        assert_eq!((rounds.ratio(), rounds.shown[0].ratio, rounds.void), (None, None, false));
        // Half the latency is twice as good.
        let latencies = [1_000.0, 500.0, 500.0, 1_000.0];
        let (rounds, _) = run(1, true, RatioOf::MedianLatency, &latencies).await;
        assert_eq!(rounds.ratio(), Some(2.0));
    }

    #[tokio::test]
    async fn a_round_whose_controls_differ_is_void_and_tried_again() {
        let moved = [10.0, 100.0, 111.0, 10.0];
        let still = [50.0, 100.0, 100.0, 50.0];
        let (rounds, _) = run(1, true, RatioOf::Rate, &[moved, still].concat()).await;
        assert_eq!((rounds.ratio(), rounds.void, rounds.subject.len()), (Some(0.5), false, 2));
        assert_eq!(rounds.shown.iter().map(|round| round.void).collect::<Vec<_>>(), [true, false]);
        let (rounds, _) = run(1, true, RatioOf::Rate, &[moved, moved].concat()).await;
        assert!(rounds.void, "it says that none was valid");
        assert!((rounds.ratio().unwrap() - 10.0 / 105.5).abs() < 1e-9);
        assert_eq!(rounds.subject.len(), 4);
    }

    #[test]
    fn a_side_is_the_median_of_its_turns_and_the_sum_of_their_work() {
        let turns = [turn(1_000.0), turn(3_000.0), turn(2_000.0)];
        let summary = Summary::of(&turns, 10);
        assert_eq!((summary.messages_per_second, summary.bytes_per_second), (2_000.0, 20_000.0));
        assert_eq!((summary.messages, summary.acks), (6_000, 300));
        assert_eq!(summary.cpu_ns_per_message, Some(250_000.0));
        assert_eq!(summary.memory_bytes, Some(3_000));
        assert_eq!((summary.latency_us.p50, summary.latency_us.max), (500, 1_000));
        let at: Vec<f64> = summary.series.iter().map(|point| point.at).collect();
        assert_eq!(at, [0.0, 1.0, 2.0]);
        assert_eq!(summary.distribution.last().unwrap().0, 99.5, "300 answers say no more");
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_two_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0]), Some(2.0));
        assert_eq!(median(vec![3.0, 1.0, 10.0]), Some(3.0));
        assert_eq!(median(vec![]), None);
    }
}
