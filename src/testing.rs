//! The door for tests into private rooms: the simulated disk, a clock moved by hand, and a store stepped by hand.
//!
//! Built with the feature `testing` only.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

pub use crate::clock::ManualClock;
pub use crate::file::sim::{
    CrashChoice, Fault, FaultRule, NameChoice, PendingCounts, SimDisk, Times, Torn, WriteChoice,
};
use crate::format::DecodeError;
use crate::format::state_record::{Transition, transitions};
use crate::message::PhysicalOffset;
use crate::store::{Applier, Progress, Signal, StateSnapshot, Topics, Workers};
use crate::sync::{Mutex, lock};

/// The answer of a future that has one already: of a stepped store, whose reads run on the caller.
pub fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Some(answer),
        Poll::Pending => None,
    }
}

impl Workers {
    /// Steps all workers until none has anything to do: dispatched, flushed, sealed, allocated. Not the scrub, which is
    /// never done and changes nothing but what is known.
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            let dispatched = self.dispatch.step();
            self.flush.flush_all();
            let recorded = self.flush.step();
            let sealed = self.seal.step();
            let allocated = self.allocate.step();
            if [dispatched, recorded, sealed, allocated]
                .iter()
                .all(|step| *step != Progress::Worked)
            {
                return;
            }
        }
        panic!("the workers never come to rest");
    }
}

/// How a storage thread sleeps and is woken, by itself.
#[derive(Debug, Default)]
pub struct Alarm(Signal);

impl Alarm {
    /// Wakes the sleeper, or makes its next sleep return at once.
    pub fn wake(&self) {
        self.0.wake();
    }

    /// Sleeps until woken, a day at most.
    pub fn sleep(&self) {
        self.0.sleep(std::time::Duration::from_secs(24 * 3600));
    }
}

/// State above the store for tests of the store alone: topics by id, as its state records created and deleted them.
#[derive(Debug, Default)]
pub struct TopicsOnly {
    state: Mutex<TopicsState>,
}

#[derive(Debug, Default)]
struct TopicsState {
    live: Vec<Transition>,
    applied: PhysicalOffset,
}

impl TopicsOnly {
    /// Applies what was appended by hand, as a broker does under its mutex.
    ///
    /// # Errors
    /// The transitions cannot be decoded.
    pub fn applied(
        &self,
        topics: &Topics,
        payload: &[u8],
        end: PhysicalOffset,
    ) -> Result<(), DecodeError> {
        let mut state = lock(&self.state);
        if end <= state.applied {
            return Ok(());
        }
        for transition in transitions(payload) {
            let transition = transition?;
            match &transition {
                Transition::TopicCreated { id, queues, flush, .. } => {
                    topics.register(*id, *queues, *flush);
                    state.live.push(transition);
                }
                Transition::TopicDeleted { id: deleted } => {
                    topics.remove(*deleted);
                    state.live.retain(
                        |live| !matches!(live, Transition::TopicCreated { id, .. } if id == deleted),
                    );
                }
                Transition::NextTopicId { .. } => {}
            }
        }
        state.applied = end;
        Ok(())
    }

    /// The transitions that make the live topics.
    pub fn live(&self) -> Vec<Transition> {
        lock(&self.state).live.clone()
    }
}

impl Applier for TopicsOnly {
    fn restore(
        &self,
        topics: &Topics,
        state: &[u8],
        applied: PhysicalOffset,
    ) -> Result<(), DecodeError> {
        self.applied(topics, state, applied)
    }

    fn apply(
        &self,
        topics: &Topics,
        payload: &[u8],
        end: PhysicalOffset,
    ) -> Result<(), DecodeError> {
        self.applied(topics, payload, end)
    }

    fn snapshot(&self) -> StateSnapshot {
        let state = lock(&self.state);
        let mut bytes = Vec::new();
        for transition in &state.live {
            transition.encode_into(&mut bytes);
        }
        StateSnapshot { state: bytes, applied: state.applied }
    }
}
