//! The broker's state as a function of its state records.
//!
//! | unit | file | guards |
//! | --- | --- | --- |
//! | the topic table | [`topics`] | names, ids, configurations, what of a topic is gone, and the counter of ids |
//! | the session table; each session | [`sessions`] | names and the counter of ids; epoch, sequence, the last batches |
//!
//! A unit has one short mutex. A change happens under it in this order: decide, append the state record, apply. So the
//! order in the log is the order of decisions. Replay after a start runs the same transition function.
//!
//! A snapshot is taken unit by unit, each as of its own last record: replay goes over records that some units contain
//! already, and each unit passes over those.
//!
//! A step over several units locks them in the order of the table.

pub mod sessions;
pub mod topics;

use crate::format::DecodeError;
use crate::format::state_record::{SessionBatch, Transition, transitions};
use crate::message::{PhysicalOffset, SessionMark};
use crate::store::{AppendError, Applier, NewRecord, StateSnapshot, Store, Topics};

use sessions::SessionTable;
use topics::TopicTable;

/// All units.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) topics: TopicTable,
    pub(crate) sessions: SessionTable,
}

impl State {
    /// Nothing yet. Round robins start where `seed` says.
    pub(crate) fn new(seed: u64) -> Self {
        Self { topics: TopicTable::new(seed), sessions: SessionTable::default() }
    }
}

/// Appends one record of these transitions; returns its end.
fn append(store: &Store, transitions: &[Transition]) -> Result<PhysicalOffset, AppendError> {
    let mut payload = Vec::new();
    for transition in transitions {
        transition.encode_into(&mut payload);
    }
    store.append_one(NewRecord::state(payload)).map(|placed| placed.end)
}

impl Applier for State {
    fn restore(&self, topics: &Topics, state: &[u8]) -> Result<(), DecodeError> {
        let mut applied = PhysicalOffset::ZERO;
        for transition in transitions(state) {
            match transition? {
                Transition::AsOf { applied: of } => applied = of,
                transition if sessions::concerns(&transition) => {
                    self.sessions.restore(transition, applied);
                }
                transition if topics::concerns(&transition) => {
                    self.topics.restore(topics, transition, applied);
                }
                // The store's own.
                _ => {}
            }
        }
        Ok(())
    }

    fn apply(
        &self,
        topics: &Topics,
        payload: &[u8],
        end: PhysicalOffset,
    ) -> Result<(), DecodeError> {
        for transition in transitions(payload) {
            match transition? {
                transition if sessions::concerns(&transition) => {
                    self.sessions.replay(transition, end);
                }
                transition if topics::concerns(&transition) => {
                    self.topics.replay(topics, transition, end);
                }
                // The store's own.
                _ => {}
            }
        }
        Ok(())
    }

    fn stored(&self, mark: SessionMark, batch: &SessionBatch) {
        self.sessions.found(mark, batch);
    }

    fn snapshot(&self, _topics: &Topics) -> StateSnapshot {
        let mut state = Vec::new();
        let applied = self.topics.snapshot_into(&mut state);
        let applied = applied.max(self.sessions.snapshot_into(&mut state));
        StateSnapshot { state, applied }
    }
}
