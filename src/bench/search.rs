//! The highest rate that holds, by halving.

/// Tries after the first.
const STEPS: u32 = 7;

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

    #[tokio::test]
    async fn a_ceiling_that_holds_is_the_answer_and_nothing_is_where_nothing_holds() {
        assert_eq!(found(1e6, 5e5, 0.01).await, (Some(5e5), 1));
        assert_eq!(found(0.0, 5e5, 0.01).await, (None, 1 + STEPS));
    }
}
