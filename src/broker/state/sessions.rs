//! Producer sessions: what makes a batch that is sent again stored once.
//!
//! A producer takes a **name** and gets a session: an id, an **epoch** that rises with every opening of the name, and
//! the **sequence** of its next batch. Sequences count from 1 over all openings: a new owner goes on where the log
//! ends, and a batch that the old one had stored is a duplicate for the new one too.
//!
//! | sequence of a batch | answer |
//! | --- | --- |
//! | the last plus 1 | stored; its record names session, epoch and sequence |
//! | one of the last 64 | where it was first stored; nothing is stored again |
//! | older | refused: it was stored once, its place is forgotten |
//! | beyond | refused with the expected one: the batch before is not there |
//!
//! | unit | guards | mutex |
//! | --- | --- | --- |
//! | the table | names, the counter of ids | its own |
//! | a session | epoch, sequence, window | its own |
//!
//! Lock order: the table, then sessions, then the store's append lock. Only who holds the table locks several sessions.
//! What a session is follows from the log: its openings and closings are state records, its batches are the records of
//! their messages. So a batch and the memory of it are one write, and a power cut takes both or none.
//!
//! **Bounds.** 16 384 sessions. A window has 56 bytes a batch, 3 584 when it is full; with name, maps and lock a
//! session comes to 3.9 KB at most and to 0.3 KB before its first batch (both measured), so all of them to 64 MB. A
//! session that was neither opened nor stored anything for 7 days is idle, and idle ones are closed when others are
//! opened: each opening looks at 256, at all of them if there is no room, and closes 64 at most, in its own record.
//!
//! **After a power cut** in async mode the end of the log may be gone, and with it the last batches of a session and
//! what is known of them. The producer's next batch is then refused with the expected sequence, one that the producer
//! has an OK for. It opens the name again, and from that sequence on sends anew what it still has.

mod fault;
#[cfg(test)]
mod tests;
mod unit;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use dashmap::DashMap;

use self::unit::Unit;
use super::append;
use crate::format::state_record::{SessionBatch, Transition};
use crate::message::{FlushMode, PhysicalOffset, QueueId, SessionId, SessionMark, Timestamp};
use crate::store::{AppendError, NewRecord, Placed, Store, TopicHandle};
use crate::sync::{Mutex, MutexGuard, lock};

pub use self::fault::SessionFault;
pub(crate) use self::fault::check_name;
pub(crate) use self::unit::Verdict;

type Hasher = foldhash::fast::RandomState;

/// The most sessions there may be.
pub(crate) const MAX_SESSIONS: usize = 16_384;

/// Sessions that an opening looks at for idle ones while there is room.
const LOOKED_AT: usize = 256;

/// Idle sessions that one opening closes.
const CLOSED_AT_ONCE: usize = 64;

/// A session as it is at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionState {
    /// Its name.
    pub name: Arc<str>,
    /// Never given twice, also not after it was closed.
    pub id: SessionId,
    /// Which of its openings may send.
    pub epoch: u64,
    /// Of its last stored batch; 0 without one.
    pub last_sequence: u64,
    /// When it was last opened or stored a batch, on the store clock.
    pub used: Timestamp,
}

/// Up to where the log has to be durable before anybody may hear something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    /// By the broker's default mode: the end of the last record behind what is told.
    pub(crate) applied: PhysicalOffset,
    /// In any case: the end of the last batch that went to a sync topic.
    pub(crate) sync_end: PhysicalOffset,
}

impl Reach {
    fn and(self, other: Self) -> Self {
        Self {
            applied: self.applied.max(other.applied),
            sync_end: self.sync_end.max(other.sync_end),
        }
    }
}

/// What became of an opening.
#[derive(Debug)]
pub(crate) enum Opening {
    /// The caller owns the session once the log is durable up to `end`.
    Done {
        /// The session behind the opening.
        session: SessionState,
        /// Of the opening's record.
        end: PhysicalOffset,
        /// Names of idle sessions that were closed for it.
        closed: Vec<Arc<str>>,
    },
    /// There are too many.
    Full,
}

/// What became of a closing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    /// It is forgotten.
    Done,
    /// It is not the caller's to close.
    Refused(SessionFault),
}

/// What became of a batch that was to be appended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Appended {
    /// It is stored here.
    Now(Placed),
    /// It was not appended.
    Not(Verdict),
}

/// A batch on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing<'a> {
    /// Whose it is.
    pub(crate) mark: &'a SessionMark,
    /// Where it goes.
    pub(crate) topic: &'a TopicHandle,
    /// Its queue.
    pub(crate) queue: QueueId,
    /// Messages in it.
    pub(crate) messages: u16,
}

/// All sessions.
#[derive(Debug, Default)]
pub(crate) struct SessionTable {
    /// Read by sends. Written under the table's mutex.
    by_id: DashMap<SessionId, Arc<Session>, Hasher>,
    table: Mutex<Table>,
}

/// Guarded by the table's mutex.
#[derive(Debug, Default)]
struct Table {
    names: BTreeMap<Arc<str>, Arc<Session>>,
    /// The highest id that was given, or found in the log.
    last_id: SessionId,
    /// The end of the last record that opened or closed a session.
    applied: PhysicalOffset,
    /// What the snapshot contained that the start began with.
    restored: PhysicalOffset,
    /// Where the search for idle sessions goes on: behind this name.
    looked: Option<Arc<str>>,
}

/// A session, from its first opening until it is closed and whoever still holds it lets go.
#[derive(Debug)]
struct Session {
    id: SessionId,
    name: Arc<str>,
    unit: Mutex<Unit>,
}

/// Whether a transition is about sessions.
pub(super) fn concerns(transition: &Transition) -> bool {
    matches!(
        transition,
        Transition::SessionOpened { .. }
            | Transition::SessionKept { .. }
            | Transition::SessionClosed { .. }
            | Transition::NextSessionId { .. }
    )
}

impl SessionTable {
    /// How many sessions there are.
    pub(crate) fn count(&self) -> usize {
        self.by_id.len()
    }

    /// Gives a name to the caller, from whoever had it: a new session, or the next epoch of the old one, whose sends
    /// are refused from now on. Closes some idle sessions, never that of `name`. Blocks for one append at most, and for
    /// the appends of sessions that it looks at.
    ///
    /// # Errors
    /// The append's: nothing has changed. After `NotReady` await space and call again.
    pub(crate) fn open(&self, store: &Store, name: &str) -> Result<Opening, AppendError> {
        let now = store.now();
        let mut table = lock(&self.table);
        let known = table.names.get(name).map(Arc::clone);
        let is_full = known.is_none() && table.names.len() >= MAX_SESSIONS;
        let looked_at = table.next_to_look_at(name, if is_full { MAX_SESSIONS } else { LOOKED_AT });
        let mut closing = idle_among(&looked_at, now);
        if is_full && closing.is_empty() {
            return Ok(Opening::Full);
        }
        // Held from here until the opening is applied: no batch of the old epoch lies behind it in the log.
        let mut unit = known.as_ref().map(|session| lock(&session.unit));
        let (id, epoch) = match (&known, &unit) {
            (Some(session), Some(unit)) => (session.id, unit.epoch.saturating_add(1)),
            _ => (SessionId::new(table.last_id.get().saturating_add(1)), 1),
        };
        let opened = Transition::SessionOpened { id, name: name.to_owned(), epoch, at: now };
        let closed =
            closing.iter().map(|(session, _)| Transition::SessionClosed { id: session.id });
        let mut transitions: Vec<Transition> = closed.collect();
        transitions.push(opened.clone());
        let end = append(store, &transitions)?;

        for (session, unit) in &mut closing {
            let closed = Transition::SessionClosed { id: session.id };
            self.transition(&mut table, Some(&mut *unit), closed, end);
        }
        self.transition(&mut table, unit.as_deref_mut(), opened, end);
        if let Some(last) = looked_at.last() {
            table.looked = Some(Arc::clone(&last.name));
        }
        Ok(Opening::Done {
            session: SessionState {
                name: name.into(),
                id,
                epoch,
                last_sequence: unit.map_or(0, |unit| unit.last),
                used: now,
            },
            end,
            closed: closing.iter().map(|(session, _)| Arc::clone(&session.name)).collect(),
        })
    }

    /// Forgets a session: its sends are refused from now on, and its name begins anew. With `holder` only if that is
    /// still its id and epoch. Blocks for one append at most. The answer may be given once the log is durable up to the
    /// returned position.
    ///
    /// # Errors
    /// The append's: the session lives on. After `NotReady` await space and call again.
    pub(crate) fn close(
        &self,
        store: &Store,
        name: &str,
        holder: Option<(SessionId, u64)>,
    ) -> Result<(Closing, PhysicalOffset), AppendError> {
        let mut table = lock(&self.table);
        let Some(session) = table.names.get(name).map(Arc::clone) else {
            return Ok((Closing::Refused(SessionFault::Unknown), table.applied));
        };
        let mut unit = lock(&session.unit);
        if let Some((id, epoch)) = holder {
            let fault =
                if id == session.id { unit.owned_by(epoch) } else { Some(SessionFault::Unknown) };
            if let Some(fault) = fault {
                return Ok((Closing::Refused(fault), table.applied));
            }
        }
        let closed = Transition::SessionClosed { id: session.id };
        let end = append(store, std::slice::from_ref(&closed))?;
        self.transition(&mut table, Some(&mut unit), closed, end);
        Ok((Closing::Done, end))
    }

    /// Why a batch of so many messages would not be stored now; `None` for the next of its session. Sends ask before
    /// they do anything for a topic; only the answer of [`SessionTable::append`] counts.
    pub(crate) fn verdict(&self, mark: &SessionMark, messages: u16) -> Option<Verdict> {
        match self.session(mark.session) {
            Some(session) => lock(&session.unit).verdict(mark, messages),
            None => Some(UNKNOWN),
        }
    }

    /// Appends a batch if it is the next of its session. Blocks for one append at most.
    ///
    /// # Errors
    /// The append's: the session is as it was, and the sequence is still the expected one; only after `Unknown` nobody
    /// knows, and the store stores nothing more. After `NotReady` await space and call again.
    pub(crate) fn append(
        &self,
        store: &Store,
        batch: Outgoing<'_>,
        record: NewRecord,
    ) -> Result<Appended, AppendError> {
        let Some(session) = self.session(batch.mark.session) else {
            return Ok(Appended::Not(UNKNOWN));
        };
        let mut unit = lock(&session.unit);
        if let Some(verdict) = unit.verdict(batch.mark, batch.messages) {
            return Ok(Appended::Not(verdict));
        }
        let placed = store.append_one(record)?;
        if batch.topic.flush() == FlushMode::Sync {
            unit.sync_end = placed.end;
        }
        let stored = SessionBatch {
            topic: batch.topic.id(),
            queue: batch.queue,
            messages: batch.messages.into(),
            queue_offset: placed.queue_offset,
            offset: placed.offset,
            end: placed.end,
            epoch: placed.epoch,
            store_time: placed.store_time,
        };
        unit.stored(batch.mark.sequence, &stored);
        Ok(Appended::Now(placed))
    }

    /// The session of a name, and up to where the log must be durable before anybody may hear of it.
    pub(crate) fn get(&self, name: &str) -> (Option<SessionState>, Reach) {
        let table = lock(&self.table);
        let reach = Reach { applied: table.applied, sync_end: PhysicalOffset::ZERO };
        match table.names.get(name) {
            Some(session) => {
                let (state, of_session) = session.state();
                (Some(state), reach.and(of_session))
            }
            None => (None, reach),
        }
    }

    /// Up to `limit` sessions with names after `after`, in byte order, whether there are more, and up to where the log
    /// must be durable before anybody may hear of them.
    pub(crate) fn list(&self, after: &str, limit: usize) -> (Vec<SessionState>, bool, Reach) {
        let table = lock(&self.table);
        let mut reach = Reach { applied: table.applied, sync_end: PhysicalOffset::ZERO };
        let mut names = table.names.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        let states = names.by_ref().take(limit).map(|(_, session)| {
            let (state, of_session) = session.state();
            reach = reach.and(of_session);
            state
        });
        (states.collect(), names.next().is_some(), reach)
    }

    fn session(&self, id: SessionId) -> Option<Arc<Session>> {
        self.by_id.get(&id).map(|session| Arc::clone(&session))
    }

    /// The one place where sessions come, change owner and go: right after the append of the record in normal running,
    /// and in replay. `unit` is that of the transition's session, if there is such a session; `end` is that of the
    /// record.
    fn transition(
        &self,
        table: &mut Table,
        unit: Option<&mut Unit>,
        transition: Transition,
        end: PhysicalOffset,
    ) {
        match transition {
            Transition::SessionOpened { id, name, epoch, at } => {
                table.given(id, end);
                match unit {
                    Some(unit) => unit.opened(epoch, at, end),
                    None => {
                        let mut unit = Unit::new();
                        unit.opened(epoch, at, end);
                        self.insert(table, id, name, unit);
                    }
                }
            }
            Transition::SessionKept { id, name, epoch, at, last_sequence, batches } => {
                table.last_id = table.last_id.max(id);
                let unit = Unit {
                    epoch,
                    used: at,
                    last: last_sequence,
                    window: batches.into(),
                    applied: end,
                    restored: end,
                    ..Unit::new()
                };
                self.insert(table, id, name, unit);
            }
            Transition::SessionClosed { id } => {
                table.given(id, end);
                if let (Some(unit), Some((_, session))) = (unit, self.by_id.remove(&id)) {
                    unit.is_open = false;
                    table.names.remove(&session.name);
                }
            }
            Transition::NextSessionId { next } => {
                table.last_id = table.last_id.max(SessionId::new(next.get().saturating_sub(1)));
                table.applied = table.applied.max(end);
                table.restored = table.restored.max(end);
            }
            // Of other units.
            _ => {}
        }
    }

    fn insert(&self, table: &mut Table, id: SessionId, name: String, unit: Unit) {
        let name: Arc<str> = name.into();
        let session = Arc::new(Session { id, name: Arc::clone(&name), unit: Mutex::new(unit) });
        self.by_id.insert(id, Arc::clone(&session));
        // Behind damage a closing may be missing: the name is that of the newer session.
        if let Some(older) = table.names.insert(name, session)
            && older.id != id
        {
            self.by_id.remove(&older.id);
        }
    }

    /// Applies a transition of a record that ends at `end`, in replay. What a snapshot contained already changes
    /// nothing: the table is as of one position, each session as of its own.
    pub(super) fn replay(&self, transition: Transition, end: PhysicalOffset) {
        let mut table = lock(&self.table);
        let id = match &transition {
            Transition::SessionOpened { id, .. } | Transition::SessionClosed { id } => *id,
            // In snapshots only.
            _ => return,
        };
        table.given(id, end);
        match self.session(id) {
            Some(session) => {
                let mut unit = lock(&session.unit);
                if end > unit.restored {
                    self.transition(&mut table, Some(&mut unit), transition, end);
                }
            }
            // Opened before the table was written down, and not in it: closed before that, too.
            None if end <= table.restored => {}
            None => self.transition(&mut table, None, transition, end),
        }
    }

    /// A batch that replay found in the log.
    pub(super) fn found(&self, mark: SessionMark, batch: &SessionBatch) {
        let Some(session) = self.session(mark.session) else {
            // Closed, or its opening is damaged: then no other producer may get its id.
            let mut table = lock(&self.table);
            table.last_id = table.last_id.max(mark.session);
            return;
        };
        let mut unit = lock(&session.unit);
        if batch.end > unit.restored && mark.epoch >= unit.epoch {
            // Higher only if the opening is damaged: who is fenced stays fenced.
            unit.epoch = mark.epoch;
            unit.stored(mark.sequence, batch);
        }
    }

    /// Applies a transition of a snapshot that is as of `applied`.
    pub(super) fn restore(&self, transition: Transition, applied: PhysicalOffset) {
        self.transition(&mut lock(&self.table), None, transition, applied);
    }

    /// Appends the transitions that make these sessions out of none: sessions by rising id, each as of its own last
    /// record, then the counter as of the table's. Returns the highest of those positions.
    pub(super) fn snapshot_into(&self, out: &mut Vec<u8>) -> PhysicalOffset {
        let (mut sessions, applied, last_id) = {
            let table = lock(&self.table);
            let sessions: Vec<_> = table.names.values().map(Arc::clone).collect();
            (sessions, table.applied, table.last_id)
        };
        sessions.sort_unstable_by_key(|session| session.id);
        let mut highest = applied;
        for session in sessions {
            let unit = lock(&session.unit);
            // Closed since: replay meets the closing behind the table's position.
            if !unit.is_open {
                continue;
            }
            highest = highest.max(unit.applied);
            Transition::AsOf { applied: unit.applied }.encode_into(out);
            Transition::SessionKept {
                id: session.id,
                name: session.name.as_ref().to_owned(),
                epoch: unit.epoch,
                at: unit.used,
                last_sequence: unit.last,
                batches: unit.window.iter().copied().collect(),
            }
            .encode_into(out);
        }
        Transition::AsOf { applied }.encode_into(out);
        let next = SessionId::new(last_id.get().saturating_add(1));
        Transition::NextSessionId { next }.encode_into(out);
        highest
    }
}

/// The verdict where there is no session.
const UNKNOWN: Verdict =
    Verdict::Refused { fault: SessionFault::Unknown, until: PhysicalOffset::ZERO };

/// The first idle ones, locked, so that nothing is stored for them any more.
fn idle_among(
    sessions: &[Arc<Session>],
    now: Timestamp,
) -> Vec<(&Arc<Session>, MutexGuard<'_, Unit>)> {
    let locked = sessions.iter().map(|session| (session, lock(&session.unit)));
    locked.filter(|(_, unit)| unit.is_idle(now)).take(CLOSED_AT_ONCE).collect()
}

impl Table {
    /// An id that a record names was given before it; the record is one of the table's.
    fn given(&mut self, id: SessionId, end: PhysicalOffset) {
        self.last_id = self.last_id.max(id);
        self.applied = self.applied.max(end);
    }

    /// Up to `count` sessions behind those that were looked at before, all around the names, without that of `except`.
    fn next_to_look_at(&self, except: &str, count: usize) -> Vec<Arc<Session>> {
        let after = self.looked.as_deref().unwrap_or_default();
        let behind = self.names.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        let before = self.names.range::<str, _>((Bound::Unbounded, Bound::Included(after)));
        let around = behind.chain(before).filter(|(name, _)| ***name != *except);
        around.take(count).map(|(_, session)| Arc::clone(session)).collect()
    }
}

impl Session {
    fn state(&self) -> (SessionState, Reach) {
        let unit = lock(&self.unit);
        let state = SessionState {
            name: Arc::clone(&self.name),
            id: self.id,
            epoch: unit.epoch,
            last_sequence: unit.last,
            used: unit.used,
        };
        (state, Reach { applied: unit.applied, sync_end: unit.sync_end })
    }
}
