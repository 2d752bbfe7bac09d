//! The highest rate that holds, by halving.

use std::time::Duration;

use super::recorder::Recorded;

/// Tries after the first.
const STEPS: u32 = 7;
/// A rate holds if so much of what could be answered for before the end was.
const ANSWERED: f64 = 0.99;

/// Whether 99 % of the answers of a turn at `rate` messages a second came within `p99`, and none were left behind. What
/// was due less than `p99` before the end may be answered for after it.
pub(super) fn holds(recorded: &Recorded, rate: f64, p99: Duration) -> bool {
    let took = Duration::from_micros(recorded.latency.value_at_quantile(0.99));
    let due = rate * recorded.length.saturating_sub(p99).as_secs_f64();
    took <= p99 && recorded.messages as f64 >= due * ANSWERED
}

/// Looks between nothing and `ceiling` for the highest rate for which `holds` says so, and returns it with what `holds`
/// returned for it; `None`: not even the lowest that was tried holds.
///
/// # Errors
/// Of `holds`.
pub(super) async fn highest<T, E>(
    ceiling: f64,
    mut holds: impl AsyncFnMut(f64) -> Result<Option<T>, E>,
) -> Result<Option<(f64, T)>, E> {
    if let Some(found) = holds(ceiling).await? {
        return Ok(Some((ceiling, found)));
    }
    let (mut low, mut high, mut best) = (0.0, ceiling, None);
    for _ in 0..STEPS {
        let rate = (low + high) / 2.0;
        match holds(rate).await? {
            Some(found) => {
                best = Some((rate, found));
                low = rate;
            }
            None => high = rate,
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::super::recorder::histogram;
    use super::*;

    /// A server that takes `capacity` a second and then has a queue that grows: the p99 of an M/M/1 in seconds.
    async fn found(capacity: f64, ceiling: f64, p99: f64) -> (Option<f64>, u32) {
        let mut tries = 0;
        let found = highest(ceiling, async |rate| {
            tries += 1;
            let took = if rate < capacity { 100_f64.ln() / (capacity - rate) } else { f64::MAX };
            Ok::<_, Infallible>((took <= p99).then_some(took))
        });
        let rate = found.await.unwrap().map(|(rate, took)| {
            assert!(took <= p99);
            rate
        });
        (rate, tries)
    }

    #[tokio::test]
    async fn the_highest_rate_that_keeps_its_promise_is_found_to_one_part_in_a_hundred() {
        for (capacity, ceiling) in [(1_000_000.0, 1_100_000.0), (400_000.0, 1_000_000.0)] {
            let (rate, tries) = found(capacity, ceiling, 0.01).await;
            let exact = capacity - 100_f64.ln() / 0.01;
            let rate = rate.unwrap();
            assert!(rate <= exact && rate > exact - ceiling / 100.0, "{rate}, not {exact}");
            assert_eq!(tries, 1 + STEPS);
        }
    }

    /// A turn of a second at 1 000 messages a second, each answered for after `took`, but for `left`.
    fn turn(took: Duration, left: u64) -> Recorded {
        let mut latency = histogram();
        latency.record_n(took.as_micros() as u64, 1_000).unwrap();
        let messages = 1_000 - took.as_millis() as u64 - left;
        let length = Duration::from_secs(1);
        Recorded { messages, answers: messages, length, latency, points: Vec::new() }
    }

    #[test]
    fn a_rate_holds_that_is_answered_for_in_time_though_its_last_answers_come_after_the_end() {
        let (took, ms) = (Duration::from_millis(50), Duration::from_millis);
        assert!(holds(&turn(took, 0), 1_000.0, ms(51)));
        assert!(!holds(&turn(took, 0), 1_000.0, ms(49)), "too slow");
        assert!(holds(&turn(took, 8), 1_000.0, ms(51)));
        assert!(!holds(&turn(took, 15), 1_000.0, ms(51)), "some are left behind");
    }

    #[tokio::test]
    async fn a_ceiling_that_holds_is_the_answer_and_nothing_is_where_nothing_holds() {
        assert_eq!(found(1e6, 5e5, 0.01).await, (Some(5e5), 1));
        assert_eq!(found(0.0, 5e5, 0.01).await, (None, 1 + STEPS));
    }
}
