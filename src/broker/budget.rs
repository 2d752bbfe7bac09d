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

/// Bytes for what grows while it is made. Nobody waits for more with some in his hands: it grows by what is free, or
/// says what it lacks, and who made it begins again with that.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    budget: &'a Budget,
    /// What it has; away while somebody else works in it.
    pub(crate) permit: Option<Permit>,
    lacks: Option<u64>,
}

impl<'a> Room<'a> {
    /// With what was taken from this budget before.
    pub(crate) fn new(budget: &'a Budget, permit: Option<Permit>) -> Self {
        Self { budget, permit, lacks: None }
    }

    /// Makes it `bytes` in all if what is missing is free now. More than the whole budget counts as the whole.
    pub(crate) fn grow(&mut self, bytes: u64) -> bool {
        let most = u64::from(self.budget.whole).saturating_mul(UNIT);
        let missing = Permit::missing(self.permit.as_ref(), bytes.min(most));
        if missing == 0 {
            return true;
        }
        let Some(more) = self.budget.try_take(missing) else {
            self.lacks = Some(self.lacks.map_or(bytes, |least| least.min(bytes)));
            return false;
        };
        Permit::add(&mut self.permit, more);
        true
    }

    /// The least of what it was to have in all, and could not.
    pub(crate) fn lacks(&self) -> Option<u64> {
        self.lacks
    }

    /// Gives back what it has and takes what it lacked as soon as that is free. `false`: not before `deadline`.
    pub(crate) async fn fill(&mut self, deadline: Instant) -> bool {
        self.permit = None;
        let Some(bytes) = self.lacks.take() else { return true };
        self.permit = self.budget.take(bytes, deadline).await;
        self.permit.is_some()
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

    #[tokio::test]
    async fn what_grows_says_what_it_lacks_and_waits_for_it_with_nothing_in_its_hands() {
        let soon = || Instant::now() + std::time::Duration::from_secs(20);
        let budget = Budget::new(8192);
        let mut room = Room::new(&budget, budget.try_take(2048));
        assert!(room.grow(2048) && room.grow(3000));
        assert_eq!((budget.taken(), room.lacks()), (3 << 10, None));
        let others = budget.try_take(4096);
        assert!(!room.grow(6000) && !room.grow(5000) && !room.grow(1 << 20) && room.grow(4096));
        assert_eq!((budget.taken(), room.lacks()), (8 << 10, Some(5000)));
        let at_once = room.fill(Instant::now()).await;
        assert_eq!((at_once, budget.taken()), (false, 4 << 10));
        assert!(!room.grow(1 << 20));
        let (filled, ()) = tokio::join!(room.fill(soon()), async { drop(others) });
        assert!(filled && room.grow(1 << 20), "the whole budget serves the largest");
        assert_eq!(budget.taken(), 8 << 10);
        drop(room);
        assert_eq!(budget.taken(), 0);
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
