//! Times between the wire and what the broker means.

use std::time::Duration;

use super::status::Refusal;
use crate::broker::MAX_INVISIBLE;
use crate::proto::rocketmq::Code;

/// A moment, in milliseconds since 1970, for the wire.
pub(super) fn stamp(ms: u64) -> prost_types::Timestamp {
    let seconds = i64::try_from(ms / 1_000).unwrap_or(i64::MAX);
    // Below a thousand million.
    let nanos = (ms % 1_000) as i32 * 1_000_000;
    prost_types::Timestamp { seconds, nanos }
}

/// A time for the wire.
pub(super) fn wire(time: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    // Below a thousand million.
    prost_types::Duration { seconds, nanos: time.subsec_nanos() as i32 }
}

/// A time off the wire; `None`: it is less than nothing.
pub(super) fn of(time: &prost_types::Duration) -> Option<Duration> {
    let seconds = u64::try_from(time.seconds).ok()?;
    let nanos = u32::try_from(time.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(seconds, nanos))
}

/// How long a lease lasts: from `least` to 12 hours; none is no time.
pub(super) fn lease(
    asked: Option<&prost_types::Duration>,
    least: Duration,
) -> Result<Duration, Refusal> {
    let asked = asked.map_or(Some(Duration::ZERO), of);
    asked.filter(|time| (least..=MAX_INVISIBLE).contains(time)).ok_or_else(|| {
        let fault = format!("a message is invisible for {} s to 12 h", least.as_secs());
        Refusal::new(Code::IllegalInvisibleTime, fault)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lasts_12_hours_at_most_and_never_less_than_nothing() {
        let code = |seconds, nanos, least| {
            let asked = prost_types::Duration { seconds, nanos };
            lease(Some(&asked), Duration::from_secs(least)).map_err(|refusal| refusal.code)
        };
        assert_eq!(code(10, 0, 10), Ok(Duration::from_secs(10)));
        assert_eq!(code(43_200, 0, 10), Ok(MAX_INVISIBLE));
        assert_eq!(code(0, 1, 0), Ok(Duration::from_nanos(1)));
        for (seconds, nanos, least) in [
            (9, 999_999_999, 10),
            (43_200, 1, 0),
            (i64::MAX, 0, 0),
            (-1, 0, 0),
            (0, -1, 0),
            (1, -1, 0),
            (1, 1_000_000_000, 0),
            (i64::MIN, i32::MIN, 0),
        ] {
            let refused = code(seconds, nanos, least);
            assert_eq!(refused, Err(Code::IllegalInvisibleTime), "{seconds} s {nanos} ns");
        }
        assert_eq!(lease(None, Duration::ZERO).unwrap(), Duration::ZERO);
        assert!(lease(None, Duration::from_secs(10)).is_err());
    }
}
