//! Numbers that look random and follow from a seed, and the queues that they choose.

use super::config::Distribution;

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    /// The same numbers for the same seed.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one.
    pub(super) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to 1, exclusive.
    fn share(&mut self) -> f64 {
        // As many bits as a fraction has.
        (self.roll() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From 0 to `bound`, exclusive; a bound of 0 counts as 1.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product: unbiased enough for any bound below 2^32.
        let product = u128::from(self.roll()) * u128::from(bound.max(1));
        u64::try_from(product >> 64).unwrap_or_default()
    }

    /// Digits, as of dates and numbers: a codec makes them smaller.
    pub(super) fn text(&mut self, len: usize) -> Vec<u8> {
        let mut text = Vec::with_capacity(len + 20);
        while text.len() < len {
            text.extend_from_slice(self.roll().to_string().as_bytes());
        }
        text.truncate(len);
        text
    }

    /// Bytes that no codec makes smaller.
    pub(super) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.roll().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// Chooses among `count` things.
#[derive(Clone, Debug)]
pub(super) struct Spread {
    dice: Dice,
    count: u64,
    distribution: Distribution,
}

impl Spread {
    /// The same choices for the same seed.
    pub(super) fn new(distribution: Distribution, count: u64, seed: u64) -> Self {
        Self { dice: Dice::new(seed), count, distribution }
    }

    /// The next one, from 0 on.
    pub(super) fn next(&mut self) -> u64 {
        match self.distribution {
            _ if self.count <= 1 => 0,
            Distribution::Uniform => self.dice.below(self.count),
            Distribution::Zipf => self.zipf(),
        }
    }

    /// Rejection-inversion (Hörmann, Derflinger: "Rejection-inversion to generate variates from monotone discrete
    /// distributions", 1996) for the exponent 1: 1/x is inverted from its integral ln x, without a table of all things.
    fn zipf(&mut self) -> u64 {
        let count = self.count as f64;
        let (low, high) = (1.5_f64.ln() - 1.0, (count + 0.5).ln());
        // Below this distance from its number a point is taken without a look.
        let sure = 2.0 - (2.5_f64.ln() - 0.5).exp();
        loop {
            let area = high + self.dice.share() * (low - high);
            let x = area.exp();
            let k = x.round().clamp(1.0, count);
            if k - x <= sure || area >= (k + 0.5).ln() - 1.0 / k {
                return k as u64 - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(distribution: Distribution, count: u64, draws: usize) -> Vec<u64> {
        let mut spread = Spread::new(distribution, count, 42);
        (0..draws).map(|_| spread.next()).collect()
    }

    #[test]
    fn a_seed_always_chooses_the_same() {
        assert_eq!(
            drawn(Distribution::Zipf, 1_000, 10),
            drawn(Distribution::Zipf, 1_000, 20)[..10]
        );
        assert_eq!(drawn(Distribution::Zipf, 1_000, 8), ZIPF);
        assert_eq!(drawn(Distribution::Uniform, 1_000, 8), UNIFORM);
    }

    const ZIPF: [u64; 8] = [3, 300, 123, 75, 751, 0, 193, 1];
    const UNIFORM: [u64; 8] = [741, 159, 278, 344, 38, 868, 218, 800];

    #[test]
    fn zipf_chooses_each_as_often_as_its_rank_says() {
        let (count, draws) = (1_000_u64, 1_000_000);
        let mut seen = vec![0_u32; 1_000];
        for choice in drawn(Distribution::Zipf, count, draws) {
            seen[usize::try_from(choice).unwrap()] += 1;
        }
        let harmonic: f64 = (1..=count).map(|rank| 1.0 / rank as f64).sum();
        for rank in [1_u64, 2, 3, 10, 100] {
            let expected = draws as f64 / (rank as f64 * harmonic);
            let found = f64::from(seen[usize::try_from(rank - 1).unwrap()]);
            // Five standard deviations.
            let allowed = 5.0 * expected.sqrt();
            assert!((found - expected).abs() < allowed, "rank {rank}: {found}, not {expected}");
        }
        let last: u32 = seen[500..].iter().sum();
        let expected = draws as f64 * (501..=count).map(|r| 1.0 / r as f64).sum::<f64>() / harmonic;
        assert!((f64::from(last) - expected).abs() < 5.0 * expected.sqrt(), "{last}, {expected}");
    }

    #[test]
    fn uniform_chooses_all_of_them_and_no_other() {
        let mut seen = [0_u32; 7];
        for choice in drawn(Distribution::Uniform, 7, 70_000) {
            seen[usize::try_from(choice).unwrap()] += 1;
        }
        assert!(seen.iter().all(|count| (9_500..10_500).contains(count)), "{seen:?}");
        assert_eq!(drawn(Distribution::Zipf, 1, 3), [0, 0, 0]);
    }

    #[test]
    fn bytes_have_the_length_that_was_asked_for() {
        for len in [0, 1, 7, 8, 9, 100] {
            assert_eq!(Dice::new(1).bytes(len).len(), len);
            assert_eq!(Dice::new(1).text(len).len(), len);
        }
        assert_eq!(Dice::new(1).bytes(100)[..9], Dice::new(1).bytes(9));
    }
}
