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
//! does when its client takes it back.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use futures_util::task::AtomicWaker;
use hyper::rt::Executor;

use crate::sync::{Mutex, lock};

/// How often a task is polled in one turn: then others have theirs.
const ROUNDS: usize = 32;

type Call = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Takes the calls of one connection from HTTP/2.
#[derive(Clone, Default)]
pub(crate) struct NewCalls(Arc<Mutex<Vec<Call>>>);

impl<F> Executor<F> for NewCalls
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, call: F) {
        lock(&self.0).push(Box::pin(call));
    }
}

/// The calls of one connection.
#[derive(Default)]
pub(crate) struct Calls {
    new: NewCalls,
    running: FuturesUnordered<Call>,
    turn: Arc<Turn>,
}

impl Calls {
    /// Who takes new ones from HTTP/2.
    pub(crate) fn taken_by(&self) -> NewCalls {
        self.new.clone()
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
                self.running.extend(lock(&self.new.0).drain(..));
                while let Poll::Ready(Some(())) = self.running.poll_next_unpin(&mut of_turn) {}
                if self.turn.ends() {
                    return Poll::Pending;
                }
            }
            self.turn.put_off();
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

    /// The task has to be polled again whoever is woken.
    fn put_off(&self) {
        self.state.swap(WOKEN, Ordering::AcqRel);
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

    #[test]
    fn calls_are_given_up_with_their_connection() {
        let (_, waker) = task();
        let mut calls = Calls::default();
        let held = Arc::new(());
        let of_call = Arc::clone(&held);
        calls.taken_by().execute(async move {
            std::future::pending::<()>().await;
            drop(of_call);
        });
        {
            let connection = pin!(std::future::pending::<()>());
            let run = pin!(calls.run_with(connection));
            assert_eq!(run.poll(&mut Context::from_waker(&waker)), Poll::Pending);
        }
        assert_eq!(Arc::strong_count(&held), 2);
        drop(calls);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
