//! When the next thing is to be done, and a wait that ends in time.
//!
//! In an open loop the times are set beforehand. What comes late because the server stalls is still measured from when
//! it was to come, so a stall is seen by all who would have met it ("coordinated omission").

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

/// Moments for what was due and never came to it: what is asked for a billion times a second is not counted one by one.
const MOMENTS: u64 = 1_000;

/// When the things of one task are due.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    /// As soon as there is room.
    Closed,
    /// One after the other at fixed times.
    Open {
        /// Of the first.
        first: Instant,
        /// Seconds between two.
        step: f64,
    },
}

impl Pace {
    /// Of task `task` of `tasks`, which together do `rate` things a second; their times interlock.
    pub(super) fn of(rate: Option<f64>, start: Instant, task: u32, tasks: u32) -> Self {
        match rate {
            None => Self::Closed,
            Some(rate) => {
                let shift = Duration::from_secs_f64(f64::from(task) / rate);
                Self::Open { first: start + shift, step: f64::from(tasks) / rate }
            }
        }
    }

    /// When thing `n` is to be done; `None`: as soon as there is room.
    pub(super) fn due(self, n: u64) -> Option<Instant> {
        match self {
            Self::Closed => None,
            // From the first each time, so that rounding does not add up.
            Self::Open { first, step } => Some(first + Duration::from_secs_f64(n as f64 * step)),
        }
    }

    /// What is due from thing `from` on and before `end`: moments, and how many things each stands for. Each stands for
    /// one, unless there are more than [`MOMENTS`].
    pub(super) fn due_before(
        self,
        from: u64,
        end: Instant,
    ) -> impl Iterator<Item = (Instant, u64)> {
        let to = self.first_behind(end);
        let group = to.saturating_sub(from).div_ceil(MOMENTS).max(1);
        let mut next = from;
        std::iter::from_fn(move || {
            let count = group.min(to.saturating_sub(next));
            let middle = self.due(next + count / 2).filter(|_| count > 0)?;
            next += count;
            Some((middle, count))
        })
    }

    /// The first thing that is due at `end` or later.
    fn first_behind(self, end: Instant) -> u64 {
        let Self::Open { first, step } = self else { return 0 };
        let length = end.saturating_duration_since(first).as_secs_f64();
        let mut n = (length / step).ceil() as u64;
        // The quotient is rounded; what counts are the moments themselves.
        while n > 0 && self.due(n - 1).is_some_and(|due| due >= end) {
            n -= 1;
        }
        while self.due(n).is_some_and(|due| due < end) {
            n += 1;
        }
        n
    }
}

/// Waits until a moment.
pub(super) trait Wait: Send {
    /// Returns at `at`, or soon after.
    fn until(&mut self, at: Instant) -> impl Future<Output = ()> + Send;
}

/// A wait of its own timer: the runtime's counts in milliseconds, which is longer than most answers take.
pub(super) struct Timer {
    /// `None`: the operating system gave none, and the runtime's has to do.
    fd: Option<AsyncFd<OwnedFd>>,
}

impl Timer {
    /// To be made inside a runtime.
    pub(super) fn new() -> Self {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags).ok();
        #[expect(
            deprecated,
            reason = "right for an OwnedFd, which keeps its descriptor; what replaces it is unsafe"
        )]
        let register = |fd| AsyncFd::with_interest(fd, Interest::READABLE).ok();
        Self { fd: fd.and_then(register) }
    }
}

impl Wait for Timer {
    async fn until(&mut self, at: Instant) {
        let left = at.saturating_duration_since(Instant::now());
        let Some(fd) = &self.fd else { return sleep_until(at).await };
        if left.is_zero() {
            return;
        }
        let nothing = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let spec = Itimerspec { it_interval: nothing, it_value: value };
        if timerfd_settime(fd.get_ref(), TimerfdTimerFlags::empty(), &spec).is_err() {
            return sleep_until(at).await;
        }
        while let Ok(mut ready) = fd.readable().await {
            match rustix::io::read(fd.get_ref(), &mut [0; 8]) {
                // Ready from an earlier wait that was given up.
                Err(Errno::AGAIN) => ready.clear_ready(),
                _ => return ready.clear_ready(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_times_of_tasks_interlock_and_do_not_drift() {
        let start = Instant::now();
        let ms = |pace: Pace, n| (pace.due(n).unwrap() - start).as_micros();
        let (first, second) =
            (Pace::of(Some(3_000.0), start, 0, 2), Pace::of(Some(3_000.0), start, 1, 2));
        assert_eq!([ms(first, 0), ms(second, 0), ms(first, 1), ms(second, 1)], [0, 333, 666, 1000]);
        assert_eq!(ms(first, 3_000_000), 2_000_000_000);
        assert_eq!(Pace::of(None, start, 0, 1).due(7), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_due_before_an_end_is_one_by_one_or_if_there_is_much_of_it_in_groups() {
        let start = Instant::now();
        let end = start + Duration::from_secs(1);
        let few = Pace::of(Some(200.0), start, 0, 1);
        let due: Vec<_> =
            few.due_before(197, end).map(|(at, n)| ((at - start).as_millis(), n)).collect();
        assert_eq!(due, [(985, 1), (990, 1), (995, 1)]);
        assert_eq!(few.due_before(200, end).next(), None);
        assert_eq!(few.due_before(0, start).next(), None);
        assert_eq!(Pace::of(None, start, 0, 1).due_before(0, end).next(), None);

        let hour = start + Duration::from_secs(3_600);
        let many: Vec<_> = Pace::of(Some(1e9), start, 0, 1).due_before(1_000, hour).collect();
        assert_eq!(many.len(), 1_000);
        let sum: u64 = many.iter().map(|(_, count)| count).sum();
        assert_eq!(sum, 3_600_000_000_000 - 1_000);
        let first = many[0].0 - start;
        assert!((1_799..1_801).contains(&first.as_millis()), "the middle of 3.6 s: {first:?}");
    }

    #[tokio::test]
    async fn a_wait_does_not_end_early_also_after_one_that_was_given_up() {
        let mut timer = Timer::new();
        assert!(timer.fd.is_some());
        tokio::select! {
            biased;
            () = timer.until(Instant::now() + Duration::from_millis(1)) => {}
            () = std::future::ready(()) => {}
        }
        std::thread::sleep(Duration::from_millis(3));
        for wait in [0, 1, 300, 2_000] {
            let at = Instant::now() + Duration::from_micros(wait);
            timer.until(at).await;
            assert!(Instant::now() >= at, "{wait} µs");
        }
    }
}
