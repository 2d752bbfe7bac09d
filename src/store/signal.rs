//! How a storage thread sleeps and is woken: one flag, one condition variable.

use std::time::Duration;

use crate::sync::{AtomicBool, Condvar, Mutex, Ordering, lock};

/// Wakes one sleeping worker. A wake that comes before the sleep is not lost.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    /// Set by `wake`, taken by `sleep`. SeqCst: a waker stores the work before it swaps, the sleeper swaps before it
    /// looks for work.
    woken: AtomicBool,
    sleeping: Mutex<bool>,
    condition: Condvar,
}

impl Signal {
    /// Wakes the worker, or makes its next sleep return at once. Costs one atomic when it is awake already.
    pub(crate) fn wake(&self) {
        if !self.woken.swap(true, Ordering::SeqCst) && *lock(&self.sleeping) {
            self.condition.notify_one();
        }
    }

    /// Whether the next sleep returns at once; takes that back.
    #[cfg(test)]
    pub(crate) fn take(&self) -> bool {
        self.woken.swap(false, Ordering::SeqCst)
    }

    /// Sleeps until woken, at most `limit`.
    pub(crate) fn sleep(&self, limit: Duration) {
        let mut sleeping = lock(&self.sleeping);
        if !self.woken.swap(false, Ordering::SeqCst) {
            *sleeping = true;
            // Poisoned only if a waker panicked inside `lock`'s two lines; the flag is still right.
            sleeping = match self.condition.wait_timeout(sleeping, limit) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
            // A swap, not a store: it takes over what a waker did before it found the flag set.
            self.woken.swap(false, Ordering::SeqCst);
        }
        *sleeping = false;
    }
}

/// What a step of a worker did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something; there may be more.
    Worked,
    /// Nothing, and nothing is due before this time has passed unless somebody wakes the worker.
    Idle(Duration),
}
