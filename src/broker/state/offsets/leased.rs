//! What consumers do to a (group, topic): get messages, finish them, keep them on.
//!
//! Each is decided under the unit's mutex, appended as one record, and applied; replay applies the same. What is open
//! and what is due is in `leases/`; that a position is the first open message, or the cursor, is kept here.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::{Hasher, Offsets, Unit};
use crate::broker::state::groups::GroupEntry;
use crate::broker::state::leases::{
    ANY_TAG, Claim, Due, FilterId, Given, Kind, Leases, Line, Lock, MAX_OPEN_IN_QUEUE, Open,
    OpenCount, Place, Repeated, Rule, Size, Standing, Taken, WaitingCount,
};
use crate::broker::state::topics::TopicEntry;
use crate::broker::state::{append, append_with};
use crate::format::state_record::{ChangedLease, GivenRun, OpenState, Run, Transition};
use crate::message::{
    Epoch, GroupId, LeaseId, PhysicalOffset, QueueId, QueueOffset, Timestamp, TopicId,
};
use crate::store::{AppendError, NewRecord, Store};
use crate::sync::{Mutex, Ordering, lock};

/// What the name of the topic of a group's dead letters begins with; the group's name comes behind.
pub(crate) const DEAD_LETTERS: &str = "%DLQ%";

/// A group and a topic that messages are given of, and by which rule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Consumer<'a> {
    pub(crate) store: &'a Store,
    pub(crate) group: &'a GroupEntry,
    pub(crate) topic: &'a Arc<TopicEntry>,
}

impl Consumer<'_> {
    pub(crate) fn key(&self) -> (GroupId, TopicId) {
        (self.group.id(), self.topic.id())
    }

    fn rule(&self) -> Rule {
        let settings = self.group.settings();
        let most = match self.is_of_dead_letters() {
            true => u32::MAX,
            false => settings.max_attempts.unwrap_or(u32::MAX),
        };
        Rule { ordered: settings.ordered, most }
    }

    /// Whether the topic is that of the group's own dead letters. What fails there stays, or it would come back for
    /// ever.
    pub(crate) fn is_of_dead_letters(&self) -> bool {
        self.topic.name().strip_prefix(DEAD_LETTERS) == Some(self.group.name())
    }

    fn is_gone(&self, unit: &Unit) -> bool {
        unit.forgotten || self.group.is_dead() || self.topic.handle().is_dead()
    }
}

/// Fresh messages of a queue that are to be given; what of it is not among them is finished by passing over it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fresh {
    pub(crate) queue: u32,
    /// The cursor that they were read from.
    pub(crate) from: u64,
    /// Where the next one is read from.
    pub(crate) to: u64,
    /// Offset and hash of the message group of each, rising.
    pub(crate) messages: Vec<(u64, u32)>,
    /// The same of those that stay open for other members of the group.
    pub(crate) kept: Vec<(u64, u32)>,
}

/// What is to be given, and for how long.
#[derive(Debug, Default)]
pub(crate) struct Giving<'a> {
    /// In the hand, to be delivered again.
    pub(crate) again: &'a [Due],
    /// In the hand, and not wanted or not there any more.
    pub(crate) finished: &'a [Due],
    /// Leased to the same try of a receive, and given to it once more.
    pub(crate) repeated: &'a [Due],
    pub(crate) fresh: &'a [Fresh],
    pub(crate) due: u64,
    /// Which try of a receive it is for.
    pub(crate) attempt: Option<u64>,
    /// The client with which the leases end, as a hash; 0 without one.
    pub(crate) client: u64,
    /// Who gets them, for people.
    pub(crate) holder: &'a str,
    /// His filter, and that of whom the others are kept for.
    pub(crate) filters: (FilterId, FilterId),
}

/// A message that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GivenMessage {
    pub(crate) place: Place,
    pub(crate) delivery: u32,
    /// Whether this is its first lease.
    pub(crate) is_first: bool,
}

/// What became of a giving.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Gave {
    /// These were given, all with this lease; fewer than were wanted if something came in between.
    Done { lease: LeaseId, messages: Vec<GivenMessage> },
    /// Nothing: the group or the topic is being deleted.
    Deleted,
    /// Nothing: there are too many open messages, or too many positions.
    Limit,
}

/// What became of fresh messages that were to be passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passing {
    /// The group goes on behind them.
    Done { end: PhysicalOffset },
    /// Nothing: the group goes on elsewhere by now, or it or the topic is being deleted.
    Moved,
    /// Nothing: there are too many open messages, or too many positions.
    Limit,
}

/// Who finishes a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FinishedBy {
    /// Whoever has it; the same from him again is fine.
    Holder,
    /// The broker: no lease of it is worth anything any more.
    Broker,
}

/// What became of claims.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    /// Of each claim, whether it was worth something; the new lease if it was changed.
    pub(crate) results: Vec<Option<LeaseId>>,
    /// It may be said once the log is durable up to here.
    pub(crate) end: PhysicalOffset,
    /// Something can be delivered now that could not before.
    pub(crate) has_due: bool,
}

/// What a claim is to become.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    pub(crate) claim: Claim,
    pub(crate) due: u64,
    pub(crate) state: OpenState,
    pub(crate) same_delivery: bool,
}

impl Unit {
    fn position_or_begin(&self, queue: u32) -> u64 {
        self.get(QueueId::new(queue)).unwrap_or_default().get()
    }

    fn standing(&self, claim: Claim, now: Epoch) -> Standing {
        let position = self.position_or_begin(claim.place.0);
        match &self.leases {
            Some(leases) => leases.standing(claim, position, now),
            // A power cut may have taken all that there was.
            None => Leases::default().standing(claim, position, now),
        }
    }

    fn is_full(&self, queue: u32) -> bool {
        self.leases.as_ref().is_some_and(|leases| leases.count_in(queue) >= MAX_OPEN_IN_QUEUE)
    }

    fn size_of_leases(&self) -> Size {
        self.leases.as_ref().map(|leases| leases.size()).unwrap_or_default()
    }

    /// The one place where leases change. Returns how many rows the unit got by it.
    pub(super) fn apply_leases(&mut self, transition: &Transition, end: PhysicalOffset) -> u64 {
        let mut leases = self.leases.take().unwrap_or_default();
        let position = |queue| self.position_or_begin(queue);
        let positions = match transition {
            Transition::LeasesGiven {
                epoch,
                at,
                due,
                attempt,
                client,
                holder,
                cursors,
                runs,
                ..
            } => {
                let lease = LeaseId { epoch: *epoch, number: end.get() };
                let (at, due, attempt, client) = (*at, due.get(), *attempt, *client);
                let given = Given { lease, at, due, attempt, client, holder, cursors, runs };
                leases.given(given, position)
            }
            Transition::MessagesFinished { epoch, runs, .. } => {
                leases.finished(runs, epoch.map(|epoch| LeaseId { epoch, number: end.get() }))
            }
            Transition::LeasesChanged { epoch, leases: changed, .. } => {
                leases.changed(LeaseId { epoch: *epoch, number: end.get() }, changed);
                Vec::new()
            }
            Transition::ClientsLost { due, clients, .. } => {
                leases.lost(clients, due.get());
                Vec::new()
            }
            _ => Vec::new(),
        };
        self.leases = Some(leases);
        // Bound already, unless the record that bound it is damaged.
        self.transition(1, &positions, end)
    }
}

impl Offsets {
    /// The most open messages there may be in all, those included that are remembered after their end.
    pub(crate) const MAX_OPEN: u64 = 8_000_000;

    /// Whether a group has a position in every queue of a topic; else the queues that it has none in, of those below
    /// `queues`.
    pub(crate) fn unbound(&self, consumer: Consumer<'_>) -> Option<Vec<QueueId>> {
        let queues = consumer.topic.handle().queues();
        let Some(unit) = self.units.get(&consumer.key()).map(|unit| Arc::clone(&unit)) else {
            return Some((0..queues).map(QueueId::new).collect());
        };
        let unit = lock(&unit);
        let unbound = (0..queues).map(QueueId::new).filter(|queue| unit.get(*queue).is_none());
        let unbound: Vec<_> = unbound.collect();
        (!unbound.is_empty()).then_some(unbound)
    }

    /// Where a group goes on with fresh messages of some queues, and how many it has open there.
    pub(crate) fn cursors(&self, consumer: Consumer<'_>, queues: &[u32]) -> Vec<(u64, usize)> {
        let Some(unit) = self.known(consumer.key()) else {
            return vec![(0, usize::MAX); queues.len()];
        };
        let unit = lock(&unit);
        let cursor = |queue: &u32| {
            let position = unit.position_or_begin(*queue);
            match &unit.leases {
                Some(leases) => (leases.cursor(*queue, position), leases.count_in(*queue)),
                None => (position, 0),
            }
        };
        queues.iter().map(cursor).collect()
    }

    /// Takes up to `room` messages that are due into the hand.
    pub(crate) fn take_due(
        &self,
        consumer: Consumer<'_>,
        of: (Kind, Line),
        now: u64,
        room: usize,
    ) -> Taken {
        let Some(unit) = self.known(consumer.key()) else { return Taken::default() };
        let mut unit = lock(&unit);
        match &mut unit.leases {
            Some(leases) => {
                leases.arrange(consumer.rule());
                let taken = leases.take_due(of, now, room);
                self.looked_at.add(taken.due.len() as u64);
                taken
            }
            None => Taken::default(),
        }
    }

    /// Puts back what was taken, whatever has become of it. Somebody is woken for what of it is due, by the timer, but
    /// not for what was left for others.
    pub(crate) fn put_back(&self, key: (GroupId, TopicId), taken: &Taken, now: u64) {
        let Some(unit) = self.known(key) else { return };
        let mut unit = lock(&unit);
        if let Some(leases) = &mut unit.leases {
            leases.put_back(taken, now);
            self.look_again(key, leases);
        }
    }

    /// What was given for a try of a receive and is still leased to it.
    pub(crate) fn of_attempt(&self, consumer: Consumer<'_>, attempt: u64, now: u64) -> Repeated {
        let Some(unit) = self.known(consumer.key()) else { return Repeated::default() };
        let unit = lock(&unit);
        unit.leases.as_ref().map(|leases| leases.of_attempt(attempt, now)).unwrap_or_default()
    }

    /// Gives messages: all of them with one record. What was finished, given or reset since it was looked at is left
    /// out. Blocks for one append at most.
    ///
    /// # Errors
    /// The append's: nothing is given. After `NotReady` await space and call again.
    pub(crate) fn give(
        &self,
        consumer: Consumer<'_>,
        giving: &Giving<'_>,
    ) -> Result<Gave, AppendError> {
        let key = consumer.key();
        let Some(unit) = self.known(key) else { return Ok(Gave::Deleted) };
        let mut unit = lock(&unit);
        if consumer.is_gone(&unit) {
            return Ok(Gave::Deleted);
        }
        self.looked_at.add(giving.fresh.iter().map(|fresh| fresh.messages.len() as u64).sum());
        let plan = plan_of(consumer, &mut unit, giving);
        let (epoch, at) = (consumer.store.epoch(), consumer.store.lease_time());
        let transitions = plan.transitions(key, (epoch, at), giving);
        if transitions.is_empty() {
            let lease = LeaseId::default();
            return Ok(Gave::Done { lease, messages: Vec::new() });
        }
        let (filters, added) = (giving.filters, plan.added);
        let appended = self.append_given(consumer, &mut unit, (&transitions, added), filters, None);
        let Some(end) = appended? else { return Ok(Gave::Limit) };
        let lease = LeaseId { epoch, number: end.get() };
        Ok(Gave::Done { lease, messages: plan.messages })
    }

    /// Finishes what was claimed: all of it with one record. Blocks for one append at most.
    ///
    /// # Errors
    /// The append's: nothing is finished. After `NotReady` await space and call again.
    pub(crate) fn finish(
        &self,
        consumer: Consumer<'_>,
        claims: &[Claim],
    ) -> Result<Settled, AppendError> {
        let Some(unit) = self.known(consumer.key()) else {
            return Ok(Settled::nothing(claims.len()));
        };
        let mut unit = lock(&unit);
        if consumer.is_gone(&unit) {
            return Ok(Settled::nothing(claims.len()));
        }
        let now = consumer.store.epoch();
        let (mut held, mut lost) = (BTreeSet::new(), BTreeMap::<u32, BTreeSet<u64>>::new());
        let mut standings = Vec::with_capacity(claims.len());
        for claim in claims {
            let standing = unit.standing(*claim, now);
            match standing {
                Standing::Held => {
                    held.insert(claim.place);
                }
                Standing::Lost => {
                    lost.entry(claim.place.0).or_default().insert(claim.place.1);
                }
                Standing::Finished | Standing::Stale => {}
            }
            standings.push(standing);
        }
        let (cursors, runs) = passed(&unit, &mut lost, consumer.rule().ordered);
        let (group, topic) = consumer.key();
        let mut added = runs.iter().map(|run| u64::from(run.run.count)).sum();
        let mut transitions = Vec::new();
        if !cursors.is_empty() {
            let (epoch, due, attempt, client) = (now, Timestamp::ZERO, None, 0);
            let at = consumer.store.lease_time();
            transitions.push(Transition::LeasesGiven {
                group,
                topic,
                epoch,
                at,
                due,
                attempt,
                client,
                holder: String::new(),
                cursors,
                runs,
            });
            if !self.has_room(&unit, &transitions, added) {
                // What is open can be finished nevertheless: that is what makes room.
                lost.clear();
                transitions.clear();
                added = 0;
            }
        }
        if !held.is_empty() {
            let (epoch, runs) = (None, runs_of(&held));
            transitions.push(Transition::MessagesFinished { group, topic, epoch, runs });
        }
        let is_worth = |(claim, standing): (&Claim, Standing)| match standing {
            Standing::Held | Standing::Finished => Some(claim.lease),
            Standing::Lost => lost
                .get(&claim.place.0)
                .filter(|offsets| offsets.contains(&claim.place.1))
                .map(|_| claim.lease),
            Standing::Stale => None,
        };
        let results = claims.iter().zip(standings).map(is_worth).collect();
        self.settle(consumer, &mut unit, &transitions, added, results)
    }

    /// Makes other leases of those that were claimed: all of it with one record. Blocks for one append at most.
    ///
    /// # Errors
    /// The append's: nothing is changed. After `NotReady` await space and call again.
    pub(crate) fn change(
        &self,
        consumer: Consumer<'_>,
        changes: &[Change],
    ) -> Result<Settled, AppendError> {
        let Some(unit) = self.known(consumer.key()) else {
            return Ok(Settled::nothing(changes.len()));
        };
        let mut unit = lock(&unit);
        if consumer.is_gone(&unit) {
            return Ok(Settled::nothing(changes.len()));
        }
        let (epoch, mut places) = (consumer.store.epoch(), BTreeSet::new());
        let (mut leases, mut results) = (Vec::new(), Vec::with_capacity(changes.len()));
        for change in changes {
            let place = change.claim.place;
            let is_held = unit.standing(change.claim, epoch) == Standing::Held;
            // Of two for one message the first makes the other stale.
            if !is_held || !places.insert(place) {
                results.push(None);
                continue;
            }
            leases.push(ChangedLease {
                queue: QueueId::new(place.0),
                offset: QueueOffset::new(place.1),
                state: change.state,
                same_delivery: change.same_delivery,
                due: Timestamp::new(change.due),
            });
            results.push(Some(change.claim.lease));
        }
        let (group, topic) = consumer.key();
        let transitions = match leases.is_empty() {
            true => Vec::new(),
            false => vec![Transition::LeasesChanged {
                group,
                topic,
                epoch,
                at: consumer.store.lease_time(),
                leases,
            }],
        };
        let mut settled = self.settle(consumer, &mut unit, &transitions, 0, results)?;
        let lease = LeaseId { epoch, number: settled.end.get() };
        settled.results.iter_mut().flatten().for_each(|result| *result = lease);
        Ok(settled)
    }

    /// Finishes a message whose lease is as it was taken into the hand, together with what becomes of it: all of it or
    /// nothing. `None`: its lease is another one. Blocks for one append at most.
    ///
    /// # Errors
    /// The append's: nothing is finished or stored. After `NotReady` await space and call again.
    pub(crate) fn bury(
        &self,
        consumer: Consumer<'_>,
        due: Due,
        by: FinishedBy,
        becomes: Vec<NewRecord>,
    ) -> Result<Option<PhysicalOffset>, AppendError> {
        let Some(unit) = self.known(consumer.key()) else { return Ok(None) };
        let mut unit = lock(&unit);
        let open = unit.leases.as_ref().and_then(|leases| leases.get(due.place));
        if consumer.is_gone(&unit) || open.is_none_or(|open| open.lease != due.open.lease) {
            return Ok(None);
        }
        let (group, topic) = consumer.key();
        let runs = runs_of(&BTreeSet::from([due.place]));
        let epoch = match by {
            FinishedBy::Holder => None,
            FinishedBy::Broker => Some(consumer.store.epoch()),
        };
        let transitions = [Transition::MessagesFinished { group, topic, epoch, runs }];
        let end = append_with(consumer.store, becomes, &transitions)?;
        self.apply_all(consumer.key(), &mut unit, &transitions, end);
        Ok(Some(end))
    }

    /// Passes over fresh messages of a queue that nobody is given, together with what becomes of them: all of it or
    /// nothing. What is kept of them is open, for members with `kept_for`. Blocks for one append at most.
    ///
    /// # Errors
    /// The append's: the group is where it was, and nothing is stored. After `NotReady` await space and call again.
    pub(crate) fn bury_fresh(
        &self,
        consumer: Consumer<'_>,
        (fresh, kept_for): (&Fresh, FilterId),
        becomes: Vec<NewRecord>,
    ) -> Result<Passing, AppendError> {
        let key = consumer.key();
        let Some(unit) = self.known(key) else { return Ok(Passing::Moved) };
        let mut unit = lock(&unit);
        if consumer.is_gone(&unit) {
            return Ok(Passing::Moved);
        }
        let fresh = std::slice::from_ref(fresh);
        let giving = Giving { fresh, filters: (0, kept_for), ..Giving::default() };
        let plan = plan_of(consumer, &mut unit, &giving);
        if plan.cursors.is_empty() {
            return Ok(Passing::Moved);
        }
        let (epoch, at) = (consumer.store.epoch(), consumer.store.lease_time());
        let transitions = plan.transitions(key, (epoch, at), &giving);
        let (transitions, filters) = ((transitions.as_slice(), plan.added), giving.filters);
        let appended =
            self.append_given(consumer, &mut unit, transitions, filters, Some(becomes))?;
        Ok(appended.map_or(Passing::Limit, |end| Passing::Done { end }))
    }

    /// Whether so many messages of a group may be open besides those that are.
    pub(crate) fn may_open(&self, consumer: Consumer<'_>, messages: u64) -> bool {
        let unit = self.known(consumer.key());
        unit.is_some_and(|unit| self.has_room(&lock(&unit), &[], messages))
    }

    /// Whether a message was finished by the lease of a claim. It may be said once the log is durable up to there.
    pub(crate) fn finished(&self, consumer: Consumer<'_>, claim: Claim) -> Option<PhysicalOffset> {
        let unit = self.known(consumer.key())?;
        let unit = lock(&unit);
        let is_finished = !consumer.is_gone(&unit)
            && unit.standing(claim, consumer.store.epoch()) == Standing::Finished;
        is_finished.then_some(unit.applied)
    }

    /// The open message that a claim holds.
    pub(crate) fn held(&self, consumer: Consumer<'_>, claim: Claim) -> Option<Due> {
        let unit = self.known(consumer.key())?;
        let unit = lock(&unit);
        if consumer.is_gone(&unit) || unit.standing(claim, consumer.store.epoch()) != Standing::Held
        {
            return None;
        }
        let open = *unit.leases.as_ref()?.get(claim.place)?;
        Some(Due { place: claim.place, open })
    }

    /// Up to `limit` messages that were delivered and nobody has, behind a place: `all`, or those that wait for their
    /// time. Locked for one queue after the other.
    pub(crate) fn waiting(
        &self,
        key: (GroupId, TopicId),
        after: Option<Place>,
        (all, now): (bool, u64),
        limit: usize,
    ) -> Vec<Due> {
        let mut found = Vec::new();
        let (first, behind) = after.map_or((0, 0), |(queue, offset)| (queue, offset + 1));
        self.each_open_queue(key, first, |leases, queue| {
            let from = if queue == first { behind } else { 0 };
            let waiting = leases.waiting(queue, from, now);
            let waiting = waiting.filter(|due| all || due.open.due > now);
            found.extend(waiting.take(limit - found.len()));
            found.len() < limit
        });
        found
    }

    /// How much was delivered and nobody has. Locked for one queue after the other.
    pub(crate) fn count_waiting(&self, key: (GroupId, TopicId), now: u64) -> WaitingCount {
        let mut count = WaitingCount::default();
        self.each_open_queue(key, 0, |leases, queue| {
            leases.waiting(queue, 0, now).for_each(|due| count.add(&due.open, now));
            true
        });
        count
    }

    /// Looks at the queues with open messages, from one on, until there is enough.
    fn each_open_queue(
        &self,
        key: (GroupId, TopicId),
        from: u32,
        mut goes_on: impl FnMut(&Leases, u32) -> bool,
    ) {
        let Some(unit) = self.known(key) else { return };
        let queues = lock(&unit).leases.as_ref().map(|leases| leases.open_queues(from));
        for queue in queues.unwrap_or_default() {
            if let Some(leases) = &lock(&unit).leases
                && !goes_on(leases, queue)
            {
                return;
            }
        }
    }

    /// A message, if it was delivered and nobody has it.
    pub(crate) fn waiting_at(
        &self,
        key: (GroupId, TopicId),
        place: Place,
        now: u64,
    ) -> Option<Due> {
        let unit = self.known(key)?;
        let unit = lock(&unit);
        let open = *unit.leases.as_ref()?.get(place)?;
        open.is_waiting(now).then_some(Due { place, open })
    }

    /// An open message.
    pub(crate) fn open_at(&self, key: (GroupId, TopicId), place: Place) -> Option<Due> {
        let unit = self.known(key)?;
        let unit = lock(&unit);
        let open = *unit.leases.as_ref()?.get(place)?;
        Some(Due { place, open })
    }

    /// Who got an open message last, if that is known.
    pub(crate) fn holder(&self, key: (GroupId, TopicId), open: &Open) -> Option<Arc<str>> {
        let unit = self.known(key)?;
        let unit = lock(&unit);
        unit.leases.as_ref()?.holder(open)
    }

    /// How the open messages of a queue stand with a group that is ordered or not, and where it goes on.
    pub(crate) fn open_in(
        &self,
        key: (GroupId, TopicId),
        queue: QueueId,
        (ordered, now): (bool, u64),
    ) -> (OpenCount, Option<QueueOffset>) {
        let Some(unit) = self.known(key) else { return (OpenCount::default(), None) };
        let unit = lock(&unit);
        match (&unit.leases, unit.get(queue)) {
            (Some(leases), Some(position)) => {
                let cursor = leases.cursor(queue.get(), position.get());
                let count = leases.count_by_state(queue.get(), (ordered, now));
                (count, Some(QueueOffset::new(cursor)))
            }
            (_, position) => (OpenCount::default(), position),
        }
    }

    /// Whether a group has open messages of a topic.
    pub(crate) fn has_open(&self, topic: TopicId) -> bool {
        let has_open = |unit: &Unit| unit.leases.as_ref().is_some_and(|leases| leases.count() > 0);
        self.open() > 0 && self.units_of(topic).iter().any(|unit| has_open(&lock(unit)))
    }

    /// Whether a message of a topic in these queues, rising, at these offsets was delivered to a group that has not
    /// finished it. Holds the mutex of a group for a look at the queues that it has open messages in, or at these if
    /// they are fewer: at 10 000 messages of each at most.
    pub(crate) fn is_open(&self, topic: TopicId, rows: &[(QueueId, Range<QueueOffset>)]) -> bool {
        let is_open = |unit: &Unit| {
            let leases = unit.leases.as_ref();
            leases.is_some_and(|leases| leases.has_delivered(rows))
        };
        self.units_of(topic).iter().any(|unit| is_open(&lock(unit)))
    }

    /// The units of a topic, one for each group that has a position in it.
    fn units_of(&self, topic: TopicId) -> Vec<Arc<Mutex<Unit>>> {
        let groups: Vec<_> = {
            let index = lock(&self.index);
            let of_topic = index.by_topic.range((topic, GroupId::ZERO)..);
            of_topic.take_while(|(of, _)| *of == topic).map(|(_, group)| *group).collect()
        };
        groups.into_iter().filter_map(|group| self.known((group, topic))).collect()
    }

    /// The (group, topic)s of which something may be leased to clients for as long as they live.
    pub(crate) fn with_clients(&self) -> Vec<(GroupId, TopicId)> {
        lock(&self.of_clients).iter().copied().collect()
    }

    /// The clients that messages of a topic are leased to for as long as they live, as hashes. Without any the
    /// (group, topic) is not asked for again until there are some.
    pub(crate) fn clients_of(&self, key: (GroupId, TopicId)) -> Vec<u64> {
        let Some(unit) = self.known(key) else {
            lock(&self.of_clients).remove(&key);
            return Vec::new();
        };
        let unit = lock(&unit);
        let clients: Vec<_> = unit.leases.iter().flat_map(|leases| leases.clients()).collect();
        if clients.is_empty() {
            lock(&self.of_clients).remove(&key);
        }
        clients
    }

    /// Ends what is leased to clients that are gone. Blocks for one append at most.
    ///
    /// # Errors
    /// The append's: nothing is ended.
    pub(crate) fn lose_clients(
        &self,
        consumer: Consumer<'_>,
        clients: &[u64],
    ) -> Result<(), AppendError> {
        let Some(unit) = self.known(consumer.key()) else { return Ok(()) };
        let mut unit = lock(&unit);
        if consumer.is_gone(&unit) {
            return Ok(());
        }
        let (group, topic) = consumer.key();
        let (due, clients) = (consumer.store.lease_time(), clients.to_vec());
        let transitions = [Transition::ClientsLost { group, topic, due, clients }];
        let end = append(consumer.store, &transitions)?;
        self.apply_all(consumer.key(), &mut unit, &transitions, end);
        Ok(())
    }

    /// How many messages are open or remembered in all.
    pub(crate) fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// How many queues have so many open messages for a group that it gets no fresh ones of them.
    pub(crate) fn full(&self) -> u64 {
        self.full.load(Ordering::Relaxed)
    }

    /// The (group, topic)s that the timer has to look at by now.
    pub(crate) fn fired(&self, now: u64) -> Vec<(GroupId, TopicId)> {
        let mut timers = lock(&self.timers);
        let mut fired = Vec::new();
        while let Some((due, group, topic)) = timers.first().copied()
            && due <= now
        {
            timers.pop_first();
            fired.push((group, topic));
        }
        drop(timers);
        for key in &fired {
            if let Some(unit) = self.known(*key)
                && let Some(leases) = &mut lock(&unit).leases
            {
                leases.timer = None;
            }
        }
        fired
    }

    /// When the timer has to look next.
    pub(crate) fn next_timer(&self) -> Option<u64> {
        lock(&self.timers).first().map(|(due, _, _)| *due)
    }

    /// After a look: whether messages can be delivered now, and the next look is set.
    pub(crate) fn looked(&self, consumer: Consumer<'_>, now: u64) -> bool {
        let Some(unit) = self.known(consumer.key()) else { return false };
        let mut unit = lock(&unit);
        let Some(leases) = &mut unit.leases else { return false };
        leases.arrange(consumer.rule());
        let (group, topic) = consumer.key();
        // Set by who put back what is due by now, and has been for a while: that is looked at.
        if let Some(old) = leases.timer.take() {
            lock(&self.timers).remove(&(old, group, topic));
        }
        if let Some(due) = leases.next_look(now) {
            self.set_timer((group, topic), leases, due);
        }
        leases.first_due(Kind::Again).is_some_and(|due| due <= now)
    }

    /// Whether messages can be delivered again by now that who has a filter finds at once.
    pub(crate) fn has_due_for(&self, consumer: Consumer<'_>, filter: FilterId, now: u64) -> bool {
        let Some(unit) = self.known(consumer.key()) else { return false };
        let mut unit = lock(&unit);
        let Some(leases) = &mut unit.leases else { return false };
        leases.arrange(consumer.rule());
        leases.has_due_for(filter, now)
    }

    /// Whether messages can be delivered again by now that nobody left.
    pub(crate) fn has_due(&self, consumer: Consumer<'_>, now: u64) -> bool {
        let Some(unit) = self.known(consumer.key()) else { return false };
        let mut unit = lock(&unit);
        let Some(leases) = &mut unit.leases else { return false };
        leases.arrange(consumer.rule());
        leases.first_due(Kind::Again).is_some_and(|due| due <= now)
    }

    /// As if so many messages were open in all; for tests.
    #[cfg(test)]
    pub(crate) fn pretend_open(&self, open: u64) {
        self.open.store(open, Ordering::Relaxed);
    }

    /// Whether every promise of a unit's leases holds; for tests.
    #[cfg(test)]
    pub(crate) fn check(&self, key: (GroupId, TopicId), position: impl Fn(u32) -> u64) {
        if let Some(unit) = self.known(key)
            && let Some(leases) = &lock(&unit).leases
        {
            leases.check(position);
        }
    }

    pub(super) fn known(&self, key: (GroupId, TopicId)) -> Option<Arc<Mutex<Unit>>> {
        self.units.get(&key).map(|unit| Arc::clone(&unit))
    }

    /// Whether there may be so many open messages more, and the positions that they need. One unit has no more of them
    /// than it leaves to all others: it alone cannot keep those from going on.
    fn has_room(&self, unit: &Unit, transitions: &[Transition], added: u64) -> bool {
        let queues: BTreeSet<_> = transitions.iter().flat_map(queues_of).collect();
        let rows = unit.missing(queues.into_iter());
        let free = Self::MAX_OPEN.saturating_sub(self.open.load(Ordering::Relaxed));
        (added == 0 || added + unit.size_of_leases().rows <= free)
            && (rows == 0 || self.rows.load(Ordering::Relaxed) + rows <= Self::MAX_ROWS)
    }

    /// Appends and applies; `None`: there are too many open messages or positions.
    fn append_leases(
        &self,
        consumer: Consumer<'_>,
        unit: &mut Unit,
        (transitions, added): (&[Transition], u64),
        becomes: Option<Vec<NewRecord>>,
    ) -> Result<Option<PhysicalOffset>, AppendError> {
        if !self.has_room(unit, transitions, added) {
            return Ok(None);
        }
        let end = match becomes {
            Some(records) => append_with(consumer.store, records, transitions)?,
            None => append(consumer.store, transitions)?,
        };
        self.apply_all(consumer.key(), unit, transitions, end);
        Ok(Some(end))
    }

    /// The same of what is given to a filter and kept for another one. No record says for which: that is nothing to who
    /// comes after a start.
    fn append_given(
        &self,
        consumer: Consumer<'_>,
        unit: &mut Unit,
        transitions: (&[Transition], u64),
        filters: (FilterId, FilterId),
        becomes: Option<Vec<NewRecord>>,
    ) -> Result<Option<PhysicalOffset>, AppendError> {
        unit.leases.get_or_insert_default().given_to = filters;
        let appended = self.append_leases(consumer, unit, transitions, becomes);
        unit.leases.get_or_insert_default().given_to = (0, 0);
        appended
    }

    /// Applies transitions of a record, just appended or found again, and counts what they come to.
    pub(super) fn apply_all(
        &self,
        key: (GroupId, TopicId),
        unit: &mut Unit,
        transitions: &[Transition],
        end: PhysicalOffset,
    ) {
        let before = unit.size_of_leases();
        let queues: BTreeSet<u32> =
            transitions.iter().flat_map(queues_of).map(QueueId::get).collect();
        let full: Vec<_> = queues.into_iter().filter(|queue| unit.is_full(*queue)).collect();
        for transition in transitions {
            self.read_clock(transition);
            let rows = unit.apply_leases(transition, end);
            self.rows.fetch_add(rows, Ordering::Relaxed);
        }
        self.recount(before, unit.size_of_leases());
        if let Some(leases) = &mut unit.leases {
            self.look_again(key, leases);
        }
        // Whoever found no room there put it aside.
        let opened = full.into_iter().filter(|queue| !unit.is_full(*queue));
        if let Some(ready) = opened.clone().next().and_then(|_| self.ready.get(key)) {
            opened.for_each(|queue| ready.arrived(queue, ANY_TAG));
        }
    }

    pub(super) fn recount(&self, before: Size, after: Size) {
        self.open.fetch_add(after.rows, Ordering::Relaxed);
        self.open.fetch_sub(before.rows, Ordering::Relaxed);
        self.full.fetch_add(after.full, Ordering::Relaxed);
        self.full.fetch_sub(before.full, Ordering::Relaxed);
    }

    /// Notes what the clock of leases read when a record was written.
    pub(crate) fn read_clock(&self, transition: &Transition) {
        if let Transition::LeasesGiven { at, .. }
        | Transition::LeasesChanged { at, .. }
        | Transition::ClientsLost { due: at, .. }
        | Transition::LeaseClock { at } = transition
        {
            self.lease_clock.fetch_max(at.get(), Ordering::Relaxed);
        }
    }

    /// What the clock of leases read last, as far as a record says so.
    pub(crate) fn lease_clock(&self) -> Timestamp {
        Timestamp::new(self.lease_clock.load(Ordering::Relaxed))
    }

    /// Sets the timer of a unit to what is due first, if that is before what it is set to, and notes whether somebody
    /// has to look whether clients live.
    pub(super) fn look_again(&self, key: (GroupId, TopicId), leases: &mut Leases) {
        if leases.clients().next().is_some() {
            // The first one: somebody has to look from now on.
            if lock(&self.of_clients).insert(key) {
                self.timer_set.notify_one();
            }
        }
        let due = match leases.has_order() {
            true => [Kind::Again, Kind::Exhausted].map(|kind| leases.first_due(kind)),
            // Nobody knows yet what is due: the timer asks.
            false => [(leases.count() > 0).then_some(0), None],
        };
        if let Some(due) = due.into_iter().flatten().min() {
            self.set_timer(key, leases, due);
        }
    }

    pub(super) fn set_timer(&self, key: (GroupId, TopicId), leases: &mut Leases, due: u64) {
        if leases.timer.is_some_and(|timer| timer <= due) {
            return;
        }
        let mut timers = lock(&self.timers);
        if let Some(old) = leases.timer.replace(due) {
            timers.remove(&(old, key.0, key.1));
        }
        let is_first = timers.first().is_none_or(|first| (due, key.0, key.1) < *first);
        timers.insert((due, key.0, key.1));
        drop(timers);
        if is_first {
            self.timer_set.notify_one();
        }
    }

    fn settle(
        &self,
        consumer: Consumer<'_>,
        unit: &mut Unit,
        transitions: &[Transition],
        added: u64,
        mut results: Vec<Option<LeaseId>>,
    ) -> Result<Settled, AppendError> {
        let mut end = unit.applied;
        if !transitions.is_empty() {
            match self.append_leases(consumer, unit, (transitions, added), None)? {
                Some(appended) => end = appended,
                None => results.iter_mut().for_each(|result| *result = None),
            }
        }
        let has_due = match &mut unit.leases {
            Some(leases) => {
                leases.arrange(consumer.rule());
                let now = consumer.store.lease_time().get();
                leases.first_due(Kind::Again).is_some_and(|due| due <= now)
            }
            None => false,
        };
        Ok(Settled { results, end, has_due })
    }
}

impl Settled {
    fn nothing(count: usize) -> Self {
        Self { results: vec![None; count], end: PhysicalOffset::ZERO, has_due: false }
    }
}

/// What of a giving is still true, of messages in the order of now.
fn plan_of(consumer: Consumer<'_>, unit: &mut Unit, giving: &Giving<'_>) -> Plan {
    let now = consumer.store.lease_time().get();
    let mut leases = unit.leases.take();
    if let Some(leases) = &mut leases {
        leases.arrange(consumer.rule());
    }
    let plan = match &leases {
        Some(leases) => Plan::of(unit, leases, giving, now),
        None => {
            let mut none = Leases::default();
            none.arrange(consumer.rule());
            Plan::of(unit, &none, giving, now)
        }
    };
    unit.leases = leases;
    plan
}

/// To an ordered group: the messages in the hand before which nothing of their message group is open, but what is in
/// the hand too. Who had a message last may have changed its lease meanwhile: then the others of its message group
/// wait.
fn in_turn(leases: &Leases, giving: &Giving<'_>, now: u64) -> Option<HashSet<Place, Hasher>> {
    let is_unchanged =
        |due: &&Due| leases.get(due.place).is_some_and(|open| open.lease == due.open.lease);
    let in_hand = || giving.again.iter().chain(giving.finished);
    let first = in_hand().next()?;
    leases.lock_if_ordered(first.place.0, first.open.group_hash)?;
    let unchanged: HashSet<Place, Hasher> =
        in_hand().filter(is_unchanged).map(|due| due.place).collect();
    let mut locks: HashSet<Lock, Hasher> = in_hand().map(Due::lock).collect();
    locks.retain(|lock| {
        let places = leases.sequence(*lock);
        let open = places.filter_map(|place| leases.get(place).map(|open| (place, open)));
        let mut delivered = open.take_while(|(_, open)| open.state != OpenState::Ahead);
        delivered.all(|(place, open)| open.due <= now || unchanged.contains(&place))
    });
    let of_lock = |lock| leases.sequence(lock).take_while(|place| unchanged.contains(place));
    Some(locks.into_iter().flat_map(of_lock).collect())
}

/// What a giving comes to.
#[derive(Debug, Default)]
struct Plan {
    cursors: Vec<(QueueId, QueueOffset)>,
    runs: Vec<GivenRun>,
    finished: BTreeSet<Place>,
    messages: Vec<GivenMessage>,
    /// Open messages more than before.
    added: u64,
}

impl Plan {
    /// What of a giving is still true.
    fn of(unit: &Unit, leases: &Leases, giving: &Giving<'_>, now: u64) -> Self {
        let mut plan = Self::default();
        let is_unchanged =
            |due: &&Due| leases.get(due.place).is_some_and(|open| open.lease == due.open.lease);
        // How many open messages of a message group this giving has in its hand.
        let mut own = HashMap::<Lock, usize, Hasher>::default();
        // Message groups of which something is kept for others: what comes behind it waits.
        let mut others = HashSet::<Lock, Hasher>::default();
        let in_turn = in_turn(leases, giving, now);
        let is_its_turn = |due: &&Due| in_turn.as_ref().is_none_or(|all| all.contains(&due.place));
        for due in giving.again.iter().filter(is_unchanged).filter(is_its_turn) {
            let (open, is_first) = (due.open, !due.was_leased());
            plan.deliver(due.place, open.next_delivery(), open.group_hash, is_first);
            *own.entry(due.lock()).or_default() += 1;
        }
        for due in giving.repeated.iter().filter(is_unchanged) {
            plan.deliver(due.place, due.open.deliveries.max(1), due.open.group_hash, false);
        }
        for due in giving.finished.iter().filter(is_unchanged) {
            plan.finished.insert(due.place);
            *own.entry(due.lock()).or_default() += 1;
        }
        for fresh in giving.fresh {
            let position = unit.position_or_begin(fresh.queue);
            let is_moved = leases.cursor(fresh.queue, position) != fresh.from;
            if is_moved || fresh.to <= fresh.from {
                continue;
            }
            plan.cursors.extend(moved(fresh.queue, fresh.from, fresh.to));
            let kept = fresh.kept.iter().map(|message| (message, true));
            let mut messages: Vec<_> =
                fresh.messages.iter().map(|message| (message, false)).chain(kept).collect();
            if !fresh.kept.is_empty() {
                messages.sort_unstable();
            }
            for ((offset, group_hash), is_kept) in messages {
                let place = (fresh.queue, *offset);
                plan.added += 1;
                let lock = leases.lock_if_ordered(fresh.queue, *group_hash);
                // All of the message group that is open goes to the same consumer, before this one.
                let is_free = lock.is_none_or(|of| {
                    let is_own = leases.open_of(of) <= own.get(&of).copied().unwrap_or_default();
                    is_own && !others.contains(&of)
                });
                if is_kept {
                    others.extend(lock);
                }
                match is_free && !is_kept {
                    true => plan.deliver(place, 1, *group_hash, true),
                    false => plan.add(place, 0, *group_hash),
                }
            }
        }
        plan
    }

    fn deliver(&mut self, place: Place, delivery: u32, group_hash: u32, is_first: bool) {
        self.messages.push(GivenMessage { place, delivery, is_first });
        self.add(place, delivery, group_hash);
    }

    /// A row, or one more of the last one.
    fn add(&mut self, (queue, offset): Place, delivery: u32, group_hash: u32) {
        if let Some(last) = self.runs.last_mut()
            && (last.run.queue.get(), last.delivery, last.group_hash)
                == (queue, delivery, group_hash)
            && last.run.first.get() + u64::from(last.run.count) == offset
        {
            last.run.count += 1;
            return;
        }
        let run = Run { queue: QueueId::new(queue), first: QueueOffset::new(offset), count: 1 };
        self.runs.push(GivenRun { run, delivery, group_hash });
    }

    fn transitions(
        &self,
        (group, topic): (GroupId, TopicId),
        (epoch, at): (Epoch, Timestamp),
        giving: &Giving<'_>,
    ) -> Vec<Transition> {
        let mut transitions = Vec::with_capacity(2);
        if !self.finished.is_empty() {
            let runs = runs_of(&self.finished);
            transitions.push(Transition::MessagesFinished { group, topic, epoch: None, runs });
        }
        if !self.cursors.is_empty() || !self.runs.is_empty() {
            transitions.push(Transition::LeasesGiven {
                group,
                topic,
                epoch,
                at,
                due: Timestamp::new(giving.due),
                attempt: giving.attempt.filter(|_| !self.messages.is_empty()),
                client: if self.messages.is_empty() { 0 } else { giving.client },
                holder: if self.messages.is_empty() { "" } else { giving.holder }.to_owned(),
                cursors: self.cursors.clone(),
                runs: self.runs.clone(),
            });
        }
        transitions
    }
}

/// Where a group goes on, behind where it was: that shows when a record between two is missing.
fn moved(queue: u32, from: u64, to: u64) -> [(QueueId, QueueOffset); 2] {
    [from, to].map(|offset| (QueueId::new(queue), QueueOffset::new(offset)))
}

/// Places as runs.
fn runs_of(places: &BTreeSet<Place>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (queue, offset) in places {
        match runs.last_mut() {
            Some(last)
                if last.queue.get() == *queue
                    && last.first.get() + u64::from(last.count) == *offset =>
            {
                last.count += 1;
            }
            _ => {
                let (queue, first) = (QueueId::new(*queue), QueueOffset::new(*offset));
                runs.push(Run { queue, first, count: 1 });
            }
        }
    }
    runs
}

/// The queues that a transition may give a position.
fn queues_of(transition: &Transition) -> Vec<QueueId> {
    match transition {
        Transition::LeasesGiven { cursors, runs, .. } => {
            let of_cursors = cursors.iter().map(|(queue, _)| *queue);
            of_cursors.chain(runs.iter().map(|row| row.run.queue)).collect()
        }
        Transition::MessagesFinished { runs, .. } => runs.iter().map(|run| run.queue).collect(),
        _ => Vec::new(),
    }
}

/// Messages that are finished though the log does not know that they were offered: a power cut took the record. The
/// group passes over them, and what lies in between is open. `lost` keeps those with which that is done: in a queue
/// with too much in between it is not, nor in an ordered group, which does not know the message groups in between.
fn passed(
    unit: &Unit,
    lost: &mut BTreeMap<u32, BTreeSet<u64>>,
    ordered: bool,
) -> (Vec<(QueueId, QueueOffset)>, Vec<GivenRun>) {
    let (mut cursors, mut plan) = (Vec::new(), Plan::default());
    lost.retain(|queue, offsets| {
        let position = unit.position_or_begin(*queue);
        let leases = unit.leases.as_ref();
        let cursor = leases.map_or(position, |leases| leases.cursor(*queue, position));
        let open = leases.map_or(0, |leases| leases.count_in(*queue)) as u64;
        let Some(last) = offsets.last().copied() else { return false };
        let between = (last + 1).saturating_sub(cursor) - offsets.len() as u64;
        let room = if ordered { 0 } else { (MAX_OPEN_IN_QUEUE as u64).saturating_sub(open) };
        if between > room {
            return false;
        }
        cursors.extend(moved(*queue, cursor, last + 1));
        for offset in (cursor..last).filter(|offset| !offsets.contains(offset)) {
            plan.add((*queue, offset), 0, 0);
        }
        true
    });
    (cursors, plan.runs)
}
