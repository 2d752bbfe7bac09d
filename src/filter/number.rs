//! Numbers that compare exactly, integers with decimals too.

use std::cmp::Ordering;

/// A literal or what a property holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Number {
    /// An integer of at most 38 digits or so.
    Integer(i128),
    /// All else: finite.
    Decimal(f64),
}

impl Number {
    /// The number that `text` is: digits, with a sign, a fraction and an exponent or without. `None`: it is none, or
    /// too large.
    pub(super) fn read(text: &str) -> Option<Self> {
        // Of letters an exponent has only e: nothing that is called infinite or no number gets through.
        let is_digits = |c: u8| matches!(c, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
        if !text.bytes().all(is_digits) {
            return None;
        }
        if let Ok(integer) = text.parse() {
            return Some(Self::Integer(integer));
        }
        let decimal = text.parse::<f64>().ok().filter(|number| number.is_finite());
        decimal.map(Self::Decimal)
    }

    /// Below zero what was above it. `None`: there is no such integer.
    pub(super) fn negate(self) -> Option<Self> {
        match self {
            Self::Integer(integer) => integer.checked_neg().map(Self::Integer),
            Self::Decimal(decimal) => Some(Self::Decimal(-decimal)),
        }
    }

    /// How it compares.
    pub(super) fn compare(self, other: Self) -> Ordering {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => a.cmp(&b),
            // Finite numbers have an order.
            (Self::Decimal(a), Self::Decimal(b)) => a.partial_cmp(&b).unwrap_or(Ordering::Equal),
            (Self::Integer(a), Self::Decimal(b)) => compare_mixed(a, b),
            (Self::Decimal(a), Self::Integer(b)) => compare_mixed(b, a).reverse(),
        }
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.compare(*other).is_eq()
    }
}

/// Without a loss: an integer of more than 53 bits need not be a decimal.
fn compare_mixed(integer: i128, decimal: f64) -> Ordering {
    // Beyond the range of integers the cast gives its nearest end, of which the decimal is not a part.
    const END: f64 = 170_141_183_460_469_231_731_687_303_715_884_105_728.0;
    if decimal >= END {
        return Ordering::Less;
    }
    if decimal < -END {
        return Ordering::Greater;
    }
    let whole = decimal.trunc();
    let by_fraction = 0.0_f64.partial_cmp(&(decimal - whole)).unwrap_or(Ordering::Equal);
    integer.cmp(&(whole as i128)).then(by_fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(a: &str, b: &str) -> Option<Ordering> {
        Some(Number::read(a)?.compare(Number::read(b)?))
    }

    #[test]
    fn integers_are_exact_far_beyond_64_bits() {
        assert_eq!(order("9223372036854775807", "9223372036854775808"), Some(Ordering::Less));
        assert_eq!(order("-9223372036854775809", "-9223372036854775808"), Some(Ordering::Less));
        assert_eq!(order("+007", "7"), Some(Ordering::Equal));
        let digits = "9".repeat(38);
        assert_eq!(order(&digits, &format!("{digits}0")), Some(Ordering::Less));
    }

    #[test]
    fn integers_and_decimals_compare_without_a_loss() {
        assert_eq!(order("3", "3.0"), Some(Ordering::Equal));
        assert_eq!(order("3", "3.5"), Some(Ordering::Less));
        assert_eq!(order("-3", "-3.5"), Some(Ordering::Greater));
        assert_eq!(order("3e2", "300"), Some(Ordering::Equal));
        // 2^53 and one more: as 64 bits of floating point both are the same.
        assert_eq!(order("9007199254740993", "9007199254740992.0"), Some(Ordering::Greater));
        assert_eq!(order("9007199254740991", "9007199254740992.0"), Some(Ordering::Less));
        assert_eq!(order("1", "1e300"), Some(Ordering::Less));
        assert_eq!(order("-1", "-1e300"), Some(Ordering::Greater));
        assert_eq!(order("-1e300", "-1"), Some(Ordering::Less));
        assert_eq!(order(&i128::MAX.to_string(), "1.7014118346046923e38"), Some(Ordering::Less));
        let least = "-170141183460469231731687303715884105728";
        assert_eq!(order(least, &format!("{least}.0")), Some(Ordering::Equal));
        assert_eq!(order("-0.0", "0"), Some(Ordering::Equal));
    }

    #[test]
    fn what_is_not_a_decimal_number_is_none() {
        for text in ["", " 3", "3 ", "+", ".", "e5", "1e", "0x10", "3L", "3f", "1_0", "٣", "3-"] {
            assert_eq!(Number::read(text), None, "{text:?}");
        }
        for text in ["inf", "infinity", "NaN", "-inf", "1e400", "-1e400"] {
            assert_eq!(Number::read(text), None, "{text:?}");
        }
        for (text, number) in [(".5", 0.5), ("5.", 5.0), ("-5.E+1", -50.0), ("1e-400", 0.0)] {
            assert_eq!(Number::read(text), Some(Number::Decimal(number)), "{text:?}");
        }
        assert_eq!(Number::read(&"1".repeat(16_384)), None, "a long text is no danger");
    }
}
