//! Times and durations as people write and read them.
//!
//! | text | means |
//! | --- | --- |
//! | `2026-07-01T12:00:00Z`, with any offset | that moment |
//! | `10m`, `2h ago`, `1d 6h` | so long before now |
//! | `500ms`, `10s`, `2m` | a duration |
//!
//! Times are written in RFC 3339 with milliseconds in UTC.

use std::time::Duration;

use jiff::{Span, SpanRelativeTo};

use crate::message::Timestamp;

/// Why a text is no time or duration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadTime {
    #[error("give a time like 2026-07-01T12:00:00Z, or one before now like 10m or 2h ago")]
    Moment,
    #[error("give a duration like 500ms, 10s or 2m")]
    Duration,
    #[error("times before 1970 are not stored")]
    Before1970,
}

/// Writes a time as every output shows it.
pub(crate) fn render(time: Timestamp) -> String {
    let shown = i64::try_from(time.get())
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok().map(|time| format!("{time:.3}")));
    // Beyond the year 9999: a producer's clock that lies is shown as it is.
    shown.unwrap_or_else(|| format!("{} ms", time.get()))
}

/// Writes so many milliseconds as people say it: in the largest unit, rounded down.
pub(crate) fn rough(ms: u64) -> String {
    match ms / 1_000 {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3_600 => format!("{}m", seconds / 60),
        seconds @ 3_600..172_800 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// Writes so many milliseconds in the largest units that they fill, as they can be read back.
pub(crate) fn render_length(ms: u64) -> String {
    const UNITS: [(&str, u64); 5] =
        [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
    let mut left = ms;
    let mut parts = Vec::new();
    for (unit, len) in UNITS {
        let count = left / len;
        left %= len;
        if count > 0 {
            parts.push(format!("{count}{unit}"));
        }
    }
    if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
}

/// Now, by the wall clock of this machine.
pub(crate) fn now() -> Timestamp {
    Timestamp::new(u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0))
}

/// Reads a moment, either absolute or before `now`.
pub(crate) fn moment(text: &str, now: Timestamp) -> Result<Timestamp, BadTime> {
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        let ms = u64::try_from(time.as_millisecond()).map_err(|_| BadTime::Before1970)?;
        return Ok(Timestamp::new(ms));
    }
    let back = length(text).ok_or(BadTime::Moment)?;
    // `10m` and `10m ago` are the same moment; nobody asks for the future.
    let back = u64::try_from(back.unsigned_abs().as_millis()).unwrap_or(u64::MAX);
    now.get().checked_sub(back).map(Timestamp::new).ok_or(BadTime::Before1970)
}

/// Reads a moment before the present one.
pub(crate) fn moment_from_now(text: &str) -> Result<Timestamp, BadTime> {
    moment(text, now())
}

/// Reads a duration.
pub(crate) fn duration(text: &str) -> Result<Duration, BadTime> {
    length(text).and_then(|length| Duration::try_from(length).ok()).ok_or(BadTime::Duration)
}

fn length(text: &str) -> Option<jiff::SignedDuration> {
    let span: Span = text.trim().parse().ok()?;
    span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Timestamp = Timestamp::new(1_782_907_200_000);

    #[test]
    fn a_time_is_written_with_milliseconds_in_utc() {
        assert_eq!(render(Timestamp::new(1_782_907_200_007)), "2026-07-01T12:00:00.007Z");
        assert_eq!(render(Timestamp::ZERO), "1970-01-01T00:00:00.000Z");
        assert_eq!(render(Timestamp::new(u64::MAX)), "18446744073709551615 ms");
    }

    #[test]
    fn a_moment_is_absolute_or_before_now() {
        assert_eq!(moment("2026-07-01T14:00:00+02:00", Timestamp::ZERO), Ok(NOON));
        for text in ["10m", "10m ago", "600s", "10 minutes ago", "PT10M"] {
            let expected = Timestamp::new(NOON.get() - 600_000);
            assert_eq!(moment(text, NOON), Ok(expected), "{text}");
        }
        assert_eq!(moment("1d 2h", NOON), Ok(Timestamp::new(NOON.get() - 26 * 3_600_000)));
    }

    #[test]
    fn what_is_no_moment_says_how_to_write_one() {
        for text in ["", "yesterday", "10", "1 month", "2026-07-01T12:00:00"] {
            assert_eq!(moment(text, NOON), Err(BadTime::Moment), "{text}");
        }
        assert_eq!(moment("1969-12-31T23:59:59Z", NOON), Err(BadTime::Before1970));
    }

    #[test]
    fn a_length_is_written_as_it_is_read() {
        for (ms, text) in [
            (0, "0s"),
            (259_200_000, "3d"),
            (90_061_001, "1d 1h 1m 1s 1ms"),
            (3_155_760_000_000, "36525d"),
        ] {
            assert_eq!(render_length(ms), text);
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn a_rough_time_is_told_in_its_largest_unit() {
        let told = [0, 59, 60, 3_599, 3_600, 172_799, 172_800, 700_000];
        let told = told.map(|seconds| rough(seconds * 1_000 + 999));
        assert_eq!(told, ["0s", "59s", "1m", "59m", "1h", "47h", "2d", "8d"]);
    }

    #[test]
    fn a_duration_has_a_unit_and_no_sign() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        for text in ["10", "-5s", "5s ago", "soon"] {
            assert_eq!(duration(text), Err(BadTime::Duration), "{text}");
        }
    }
}
