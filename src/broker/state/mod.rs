//! The broker's state as a function of its state records.
//!
//! | unit | file | guards |
//! | --- | --- | --- |
//! | the topic table | [`topics`] | names, ids, configurations, what of a topic is gone, and the counter of ids |
//! | the session table; each session | [`sessions`] | names and the counter of ids; epoch, sequence, the last batches |
//! | the group table | [`groups`] | names, ids, settings of consumer groups, and the counter of ids |
//! | a (group, topic) | [`offsets`], `leases` | the committed offset of each queue; the changes of it that are remembered; what consumers have of it |
//!
//! A unit has one short mutex. A change happens under it in this order: decide, append the state record, apply. So the
//! order in the log is the order of decisions. Replay after a start runs the same transition function.
//!
//! A snapshot is taken unit by unit, each as of its own last record: replay goes over records that some units contain
//! already, and each unit passes over those.
//!
//! A step over several units locks them in the order of the table.

pub mod groups;
pub(crate) mod leases;
pub mod offsets;
pub mod sessions;
#[cfg(test)]
mod tests;
pub mod topics;

use std::ops::Range;

use crate::format::DecodeError;
use crate::format::state_record::{SessionBatch, Transition, transitions};
use crate::message::{
    PhysicalOffset, QueueId, QueueKey, QueueOffset, SessionMark, Timestamp, TopicId,
};
use crate::store::{AppendError, Applier, NewRecord, StateSnapshot, Store, Topics};

use groups::GroupTable;
use offsets::Offsets;
use sessions::SessionTable;
use topics::TopicTable;

/// All units.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) topics: TopicTable,
    pub(crate) sessions: SessionTable,
    pub(crate) groups: GroupTable,
    pub(crate) offsets: Offsets,
}

impl State {
    /// Nothing yet. Round robins start where `seed` says.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            topics: TopicTable::new(seed),
            groups: GroupTable::new(),
            offsets: Offsets::default(),
            sessions: SessionTable::default(),
        }
    }

    /// Applies a transition to the unit that it is of: one of a record that ends at `at`, in replay, or one of a
    /// snapshot that is as of `at`. What is about things that are gone changes nothing.
    fn replay(&self, topics: &Topics, transition: Transition, at: PhysicalOffset, from: Source) {
        match transition {
            Transition::GroupCreated { .. }
            | Transition::GroupUpdated { .. }
            | Transition::NextGroupId { .. } => match from {
                Source::Log => {
                    if let Some(replaced) = self.groups.replay(transition, at) {
                        self.offsets.forget_group(replaced);
                    }
                }
                Source::Snapshot => self.groups.restore(transition, at),
            },
            Transition::GroupDeleted { id } => {
                self.groups.replay(transition, at);
                self.offsets.forget_group(id);
            }
            Transition::OffsetsCommitted { group, topic, bound, offsets, note, revoked }
                if self.groups.has_id(group) && self.topics.by_id(topic).is_some() =>
            {
                let (key, note) = ((group, topic), note.as_ref());
                self.offsets.replay(key, bound, offsets, note, revoked, (at, from));
            }
            Transition::LeasesGiven { group, topic, .. }
            | Transition::MessagesFinished { group, topic, .. }
            | Transition::LeasesChanged { group, topic, .. }
            | Transition::LeasesKept { group, topic, .. }
            | Transition::ClientsLost { group, topic, .. }
                if self.groups.has_id(group) && self.topics.by_id(topic).is_some() =>
            {
                self.offsets.replay_leases((group, topic), transition, (at, from));
            }
            Transition::LeaseClock { .. } => self.offsets.read_clock(&transition),
            Transition::OffsetHistory { group, topic, position, note, moves }
                if self.groups.has_id(group) && self.topics.by_id(topic).is_some() =>
            {
                self.offsets.restore_history((group, topic), position, &note, &moves);
            }
            Transition::TopicDeleted { id } => {
                self.topics.replay(topics, transition, at);
                self.offsets.forget_topic(id);
            }
            Transition::TopicCreated { .. }
            | Transition::TopicUpdated { .. }
            | Transition::TopicExpired { .. }
            | Transition::NextTopicId { .. } => match from {
                Source::Log => {
                    if let Some(replaced) = self.topics.replay(topics, transition, at) {
                        self.offsets.forget_topic(replaced);
                    }
                }
                Source::Snapshot => self.topics.restore(topics, transition, at),
            },
            transition if sessions::concerns(&transition) => match from {
                Source::Log => self.sessions.replay(transition, at),
                Source::Snapshot => self.sessions.restore(transition, at),
            },
            // The store's own, or of a unit that is gone.
            _ => {}
        }
    }
}

/// Where a transition was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// In a record.
    Log,
    /// In a snapshot, where a unit is as of one position.
    Snapshot,
}

/// Appends one record of these transitions; returns its end.
fn append(store: &Store, transitions: &[Transition]) -> Result<PhysicalOffset, AppendError> {
    let mut payload = Vec::new();
    for transition in transitions {
        transition.encode_into(&mut payload);
    }
    // What users do to make room goes on when other state finds none.
    let makes_room = |transition: &Transition| {
        matches!(
            transition,
            Transition::TopicExpired { .. }
                | Transition::TopicDeleted { .. }
                | Transition::TopicUpdated { .. }
        )
    };
    let record = match transitions.iter().any(makes_room) {
        true => NewRecord::relief(payload),
        false => NewRecord::state(payload),
    };
    store.append_one(record).map(|placed| placed.end)
}

/// The same behind other records, all or nothing.
fn append_with(
    store: &Store,
    mut records: Vec<NewRecord>,
    transitions: &[Transition],
) -> Result<PhysicalOffset, AppendError> {
    let mut payload = Vec::new();
    for transition in transitions {
        transition.encode_into(&mut payload);
    }
    records.push(NewRecord::state(payload));
    let placed = store.append(records)?;
    Ok(placed.last().map_or(PhysicalOffset::ZERO, |last| last.end))
}

impl Applier for State {
    fn restore(&self, topics: &Topics, state: &[u8]) -> Result<(), DecodeError> {
        let mut applied = PhysicalOffset::ZERO;
        for transition in transitions(state) {
            match transition? {
                Transition::AsOf { applied: of } => applied = of,
                transition => self.replay(topics, transition, applied, Source::Snapshot),
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
            self.replay(topics, transition?, end, Source::Log);
        }
        Ok(())
    }

    fn stored(&self, mark: SessionMark, batch: &SessionBatch) {
        self.sessions.found(mark, batch);
    }

    fn readable(&self, queue: QueueKey, tags: u64) {
        self.offsets.ready.arrived(queue.topic, queue.queue.get(), tags);
    }

    fn lease_clock(&self) -> Timestamp {
        self.offsets.lease_clock()
    }

    fn has_open(&self, topic: TopicId) -> bool {
        self.offsets.has_open(topic)
    }

    fn is_open(&self, topic: TopicId, rows: &[(QueueId, Range<QueueOffset>)]) -> bool {
        self.offsets.is_open(topic, rows)
    }

    fn snapshot(&self, _topics: &Topics) -> StateSnapshot {
        let mut state = Vec::new();
        // In this order: what is of a topic or a group comes behind it.
        let topics = self.topics.snapshot_into(&mut state);
        let groups = self.groups.snapshot_into(&mut state);
        let offsets = self.offsets.snapshot_into(&mut state);
        let sessions = self.sessions.snapshot_into(&mut state);
        StateSnapshot { state, applied: topics.max(groups).max(offsets).max(sessions) }
    }
}
