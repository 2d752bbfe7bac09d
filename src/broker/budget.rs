//! Bytes that may be in work at once. Who takes some gives them back by dropping the [`Permit`].

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// Bytes of one unit of the semaphore behind a budget.
const UNIT: u64 = 1024;

/// A bounded number of bytes.
#[derive(Debug)]
pub(crate) struct Budget {
    units: Arc<Semaphore>,
    whole: u32,
}

/// Bytes taken from a budget until it is dropped.
#[derive(Debug)]
pub struct Permit(OwnedSemaphorePermit);

impl Permit {
    /// How many bytes more must be taken by one who has `held`, to have `bytes` in all. Who has parts that grow takes
    /// for their sum: each for itself, be it a single byte, would take a unit.
    pub(crate) fn missing(held: Option<&Self>, bytes: u64) -> u64 {
        let units = held.map_or(0, |held| u64::try_from(held.0.num_permits()).unwrap_or(u64::MAX));
        bytes.saturating_sub(units.saturating_mul(UNIT))
    }

    /// Puts `more` to what is held, of the same budget.
    pub(crate) fn add(held: &mut Option<Self>, more: Self) {
        *held = Some(match held.take() {
            Some(held) => held.and(more),
            None => more,
        });
    }

    /// Gives back all but `bytes`; a permit for less stays as it is.
    pub(crate) fn shrunk_to(mut self, bytes: u64) -> Self {
        let units = usize::try_from(bytes.div_ceil(UNIT)).unwrap_or(usize::MAX).max(1);
        let spare = self.0.num_permits().saturating_sub(units);
        if spare > 0 {
            drop(self.0.split(spare));
        }
        self
    }

    /// Both as one; they are of one budget.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.0.merge(other.0);
        self
    }
}

impl Budget {
    /// A budget of `bytes`, all of them free.
    pub(crate) fn new(bytes: u64) -> Self {
        let whole = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let most = u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX);
        let whole = whole.clamp(1, most);
        Self { units: Arc::new(Semaphore::new(whole as usize)), whole }
    }

    /// Takes `bytes` if they are free now. More than the whole budget counts as the whole.
    pub(crate) fn try_take(&self, bytes: u64) -> Option<Permit> {
        Arc::clone(&self.units).try_acquire_many_owned(self.units_for(bytes)).ok().map(Permit)
    }

    /// Takes `bytes` as soon as they are free, in the order of asking, unless that is after `deadline`.
    pub(crate) async fn take(&self, bytes: u64, deadline: Instant) -> Option<Permit> {
        let units = Arc::clone(&self.units).acquire_many_owned(self.units_for(bytes));
        timeout_at(deadline, units).await.ok()?.ok().map(Permit)
    }

    /// Bytes that are free now.
    pub(crate) fn free(&self) -> u64 {
        u64::try_from(self.units.available_permits()).unwrap_or(u64::MAX).saturating_mul(UNIT)
    }

    /// Bytes that are taken now.
    pub(crate) fn taken(&self) -> u64 {
        (u64::from(self.whole) * UNIT).saturating_sub(self.free())
    }

    /// Whether hardly any bytes are free: less than an eighth.
    pub(crate) fn is_short(&self) -> bool {
        self.units.available_permits() < (self.whole / 8).max(1) as usize
    }

    fn units_for(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, self.whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_gives_back_what_is_not_needed() {
        let budget = Budget::new(8192);
        let permit = budget.try_take(8192).unwrap().shrunk_to(1500);
        assert!(budget.try_take(7 << 10).is_none());
        assert_eq!((budget.taken(), budget.is_short()), (2 << 10, false));
        let rest = budget.try_take(6 << 10).unwrap();
        assert_eq!((budget.taken(), budget.is_short()), (8 << 10, true));
        let both = permit.and(rest).shrunk_to(u64::MAX);
        assert_eq!(Permit::missing(Some(&both), 8192), 0);
        assert_eq!(Permit::missing(Some(&both), 8193), 1);
        assert_eq!(Permit::missing(None, 1), 1);
        assert!(budget.try_take(1).is_none());
        drop(both);
        assert!(budget.try_take(8192).is_some());
    }

    #[test]
    fn bytes_come_back_when_the_permit_is_dropped() {
        let budget = Budget::new(2048);
        let first = budget.try_take(1025);
        assert!(first.is_some());
        assert!(budget.try_take(1).is_none());
        drop(first);
        assert!(budget.try_take(u64::MAX).is_some(), "the whole budget serves the largest request");
    }
}
