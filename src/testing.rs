//! The door for tests into private rooms: the simulated disk, a clock moved by hand, and a store stepped by hand.
//!
//! Built with the feature `testing` only.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

pub use crate::clock::ManualClock;
pub use crate::file::sim::{
    CrashChoice, Fault, FaultRule, NameChoice, PendingCounts, SimDisk, Times, Torn, WriteChoice,
};
use crate::format::DecodeError;
use crate::format::state_record::{SessionBatch, Transition, transitions};
use crate::message::{PhysicalOffset, SessionMark, TopicId, TopicSettings};
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
            let cleaned = self.clean.step();
            if [dispatched, recorded, sealed, allocated, cleaned]
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

/// State above the store for tests of the store alone: topics by id, as its state records made them.
#[derive(Debug, Default)]
pub struct TopicsOnly {
    state: Mutex<TopicsState>,
}

#[derive(Debug, Default)]
struct TopicsState {
    live: BTreeMap<TopicId, (String, TopicSettings)>,
    /// Batches of producer sessions that replay met, in its order.
    stored: Vec<(SessionMark, SessionBatch)>,
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
            match transition? {
                Transition::TopicCreated { id, name, settings } => {
                    topics.register(id, &settings);
                    state.live.insert(id, (name, settings));
                }
                Transition::TopicDeleted { id } => {
                    topics.remove(id);
                    state.live.remove(&id);
                }
                Transition::TopicUpdated { id, settings } => {
                    if let (Some(topic), Some(known)) = (topics.get(id), state.live.get_mut(&id)) {
                        topic.configure(&settings, end);
                        known.1 = settings;
                    }
                }
                Transition::TopicExpired { id, below, before, queues, purged } => {
                    if let Some(topic) = topics.get(id) {
                        topic.purge(purged);
                        topic.expire(below, before, &queues);
                    }
                }
                _ => {}
            }
        }
        state.applied = end;
        Ok(())
    }

    /// The transitions that make the live topics.
    pub fn live(&self) -> Vec<Transition> {
        let created = |(id, (name, settings)): (&TopicId, &(String, TopicSettings))| {
            Transition::TopicCreated { id: *id, name: name.clone(), settings: *settings }
        };
        lock(&self.state).live.iter().map(created).collect()
    }

    /// The batches of producer sessions that replay met.
    pub fn stored_batches(&self) -> Vec<(SessionMark, SessionBatch)> {
        lock(&self.state).stored.clone()
    }

    /// What is gone of the live topics, for a snapshot.
    fn expired(topics: &Topics, id: TopicId) -> Option<Transition> {
        let topic = topics.get(id)?;
        let ((below, before, queues), purged) = (topic.expired(), topic.purged_below());
        Some(Transition::TopicExpired { id, below, before, queues, purged })
    }
}

impl Applier for TopicsOnly {
    fn restore(&self, topics: &Topics, state: &[u8]) -> Result<(), DecodeError> {
        let applied = match transitions(state).next().transpose()? {
            Some(Transition::AsOf { applied }) => applied,
            _ => PhysicalOffset::ZERO,
        };
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

    fn stored(&self, mark: SessionMark, batch: &SessionBatch) {
        lock(&self.state).stored.push((mark, *batch));
    }

    fn snapshot(&self, topics: &Topics) -> StateSnapshot {
        let state = lock(&self.state);
        let (mut bytes, applied) = (Vec::new(), state.applied);
        Transition::AsOf { applied }.encode_into(&mut bytes);
        for (id, (name, settings)) in &state.live {
            let (name, settings) = (name.clone(), *settings);
            Transition::TopicCreated { id: *id, name, settings }.encode_into(&mut bytes);
            if let Some(expired) = Self::expired(topics, *id) {
                expired.encode_into(&mut bytes);
            }
        }
        StateSnapshot { state: bytes, applied }
    }
}
