//! The calls of a connection, which run in its task.
//!
//! HTTP/2 hands out each call as a future. As tasks of their own they run on whatever thread is idle: what a call made
//! in the cache of one core is written to the socket by another, both wait for the lock of the connection's streams,
//! and each turn wakes a thread. In one task a connection is served by one core at a time, and which one that is may
//! change; connections have all cores between them.
//!
//! | who | is polled when | and wakes |
//! | --- | --- | --- |
//! | the connection | the socket, a timer or a call has something for it | calls that may go on |
//! | a call | it was received, or something that it waits for has come | the connection, when it leaves something |
//!
//! Who is woken by the other is polled in the same turn of the task, without a way through the scheduler: that would
//! wake a thread each time. A turn ends when nobody is woken any more, or after [`ROUNDS`].
//!
//! A call begins as soon as it was received, and ends with its connection, in the middle of its work if need be: as it
//! does when its client takes it back. One that panics ends alone.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use futures_util::task::AtomicWaker;
use hyper::rt::Executor;

use crate::sync::{Mutex, lock};

/// How often a connection and its calls are polled in one turn of their task: then others have theirs.
const ROUNDS: usize = 32;

/// A call, until it has ended.
struct Call(Option<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl Call {
    /// Runs what may panic. What is half changed then is behind locks that end the process when they are poisoned.
    fn guarded<T>(act: impl FnOnce() -> T) -> Option<T> {
        let done = catch_unwind(AssertUnwindSafe(act));
        if done.is_err() {
            tracing::error!("a call panicked outside of its handler; it is given up");
        }
        done.ok()
    }

    fn give_up(&mut self) {
        let call = self.0.take();
        Self::guarded(|| drop(call));
    }
}

impl Future for Call {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(call) = &mut self.0 else { return Poll::Ready(()) };
        if let Some(Poll::Pending) = Self::guarded(|| call.as_mut().poll(cx)) {
            return Poll::Pending;
        }
        self.give_up();
        Poll::Ready(())
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// Takes the calls of one connection from HTTP/2. Each call has one too, so those who wait here would keep themselves.
#[derive(Clone)]
pub(crate) struct NewCalls {
    waiting: Weak<Mutex<Vec<Call>>>,
    turn: Arc<Turn>,
}

impl<F> Executor<F> for NewCalls
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, call: F) {
        // Without a connection it is given up.
        if let Some(waiting) = self.waiting.upgrade() {
            lock(&waiting).push(Call(Some(Box::pin(call))));
            Wake::wake_by_ref(&self.turn);
        }
    }
}

/// The calls of one connection.
#[derive(Default)]
pub(crate) struct Calls {
    new: Arc<Mutex<Vec<Call>>>,
    running: FuturesUnordered<Call>,
    turn: Arc<Turn>,
}

impl Calls {
    /// Who takes new ones from HTTP/2.
    pub(crate) fn taken_by(&self) -> NewCalls {
        NewCalls { waiting: Arc::downgrade(&self.new), turn: Arc::clone(&self.turn) }
    }

    /// Runs the connection and its calls until the connection has ended. Dropped before, it may be called again.
    pub(crate) async fn run_with<C: Future>(&mut self, mut connection: Pin<&mut C>) -> C::Output {
        let waker = Waker::from(Arc::clone(&self.turn));
        poll_fn(|cx| {
            self.turn.task.register(cx.waker());
            let mut of_turn = Context::from_waker(&waker);
            for _ in 0..ROUNDS {
                self.turn.begin();
                if let Poll::Ready(ended) = connection.as_mut().poll(&mut of_turn) {
                    return Poll::Ready(ended);
                }
                self.running.extend(lock(&self.new).drain(..));
                while let Poll::Ready(Some(())) = self.running.poll_next_unpin(&mut of_turn) {}
                if self.turn.ends() {
                    return Poll::Pending;
                }
            }
            // It is still marked as woken, so nobody else asks for the next turn.
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }
}

/// Whether the task has to be woken by who wakes the connection or a call.
#[derive(Default)]
struct Turn {
    state: AtomicU8,
    task: AtomicWaker,
}

/// The task is not polled now.
const ASLEEP: u8 = 0;
/// It is, and nobody was woken since.
const AWAKE: u8 = 1;
/// Somebody was woken who is to be polled.
const WOKEN: u8 = 2;

impl Turn {
    /// Everybody is polled now.
    fn begin(&self) {
        self.state.swap(AWAKE, Ordering::AcqRel);
    }

    /// Nobody was woken since: whoever is from now on wakes the task.
    fn ends(&self) -> bool {
        let ends = self.state.compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire);
        ends.is_ok()
    }
}

impl Wake for Turn {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == ASLEEP {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::oneshot;

    use super::*;

    /// The task, woken so many times.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn task() -> (Arc<Woken>, Waker) {
        let woken = Arc::new(Woken::default());
        (Arc::clone(&woken), Waker::from(woken))
    }

    #[test]
    fn who_is_woken_by_a_call_is_polled_in_the_same_turn() {
        let (woken, waker) = task();
        let mut calls = Calls::default();
        let new = calls.taken_by();
        let answered = Arc::new(AtomicUsize::new(0));
        let mut polled = 0;
        let connection = poll_fn(|cx| {
            polled += 1;
            if polled == 1 {
                let (answered, connection) = (Arc::clone(&answered), cx.waker().clone());
                new.execute(async move {
                    answered.store(1, Ordering::Relaxed);
                    connection.wake();
                });
            }
            if answered.load(Ordering::Relaxed) == 1 { Poll::Ready(polled) } else { Poll::Pending }
        });
        let connection = pin!(connection);
        let run = pin!(calls.run_with(connection));
        assert_eq!(run.poll(&mut Context::from_waker(&waker)), Poll::Ready(2));
        assert_eq!(woken.0.load(Ordering::Relaxed), 0, "the scheduler was not asked");
    }

    #[test]
    fn who_is_woken_between_two_turns_wakes_the_task_and_is_polled() {
        let (woken, waker) = task();
        let mut cx = Context::from_waker(&waker);
        let mut calls = Calls::default();
        let (first, waits) = oneshot::channel();
        let (second, ends) = oneshot::channel();
        calls.taken_by().execute(async move {
            waits.await.unwrap();
            second.send(7).unwrap();
        });
        let connection = pin!(ends);
        let mut run = pin!(calls.run_with(connection));
        assert_eq!(run.as_mut().poll(&mut cx), Poll::Pending);
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        first.send(()).unwrap();
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert_eq!(run.as_mut().poll(&mut cx), Poll::Ready(Ok(7)));
        assert_eq!(woken.0.load(Ordering::Relaxed), 1, "the call woke the connection in its turn");
    }

    #[test]
    fn who_is_always_woken_gives_others_their_turns() {
        let (woken, waker) = task();
        let mut cx = Context::from_waker(&waker);
        let mut calls = Calls::default();
        let polled = AtomicUsize::new(0);
        let connection = poll_fn(|cx| {
            polled.fetch_add(1, Ordering::Relaxed);
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        let connection = pin!(connection);
        let mut run = pin!(calls.run_with(connection));
        for turn in 1..=2 {
            assert_eq!(run.as_mut().poll(&mut cx), Poll::Pending);
            assert_eq!(polled.load(Ordering::Relaxed), turn * ROUNDS);
            assert_eq!(woken.0.load(Ordering::Relaxed), turn, "it asks for its next turn, once");
        }
    }

    /// Those that were received with the end used to keep each other for ever.
    #[test]
    fn calls_are_given_up_with_their_connection_also_those_that_did_not_begin() {
        let (_, waker) = task();
        for ends_at_once in [false, true] {
            let mut calls = Calls::default();
            let new = calls.taken_by();
            let held = Arc::new(());
            let mut of_call = Some(Arc::clone(&held));
            let connection = poll_fn(|_| {
                if let Some(held) = of_call.take() {
                    // As HTTP/2 has it: each call could begin others.
                    let executor = new.clone();
                    new.execute(async move {
                        std::future::pending::<()>().await;
                        drop((held, executor));
                    });
                }
                if ends_at_once { Poll::Ready(()) } else { Poll::Pending }
            });
            {
                let connection = pin!(connection);
                let run = pin!(calls.run_with(connection));
                let polled = run.poll(&mut Context::from_waker(&waker));
                assert_eq!(polled.is_ready(), ends_at_once);
            }
            assert_eq!(Arc::strong_count(&held), 2);
            drop(calls);
            assert_eq!(Arc::strong_count(&held), 1, "ended at once: {ends_at_once}");
            new.execute(async {});
        }
    }

    struct PanicsWhenDropped;

    impl Drop for PanicsWhenDropped {
        fn drop(&mut self) {
            panic!("on purpose");
        }
    }

    #[test]
    fn a_call_that_panics_when_it_is_polled_or_dropped_ends_alone() {
        let (_, waker) = task();
        let mut calls = Calls::default();
        let new = calls.taken_by();
        let (done, ends) = oneshot::channel();
        new.execute(async { panic!("on purpose") });
        new.execute(async { drop(PanicsWhenDropped) });
        let panics = PanicsWhenDropped;
        new.execute(async move {
            std::future::pending::<()>().await;
            drop(panics);
        });
        new.execute(async move { done.send(7).unwrap() });
        {
            let connection = pin!(ends);
            let run = pin!(calls.run_with(connection));
            assert_eq!(run.poll(&mut Context::from_waker(&waker)), Poll::Ready(Ok(7)));
        }
        assert_eq!(calls.running.len(), 1, "that which waits");
        drop(calls);
    }
}
