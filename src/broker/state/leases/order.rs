//! What can be delivered again, and when: made from the open messages, and of no record of its own.
//!
//! | group | what is due | when |
//! | --- | --- | --- |
//! | not ordered | each open message by itself | when its lease or its pause is over |
//! | ordered | a message group: those of its messages that were delivered, then those that were passed over | when all that were delivered are due |
//!
//! A message group is known by a hash. Two with one hash wait for each other, and nothing else comes of it. The
//! messages without a message group are one group for each queue.
//!
//! What somebody takes out to deliver it is in his hand until he puts it back: nobody else finds it meanwhile. Memory
//! is of open messages alone, so millions of message groups cost nothing while nothing of them is open.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::format::state_record::OpenState;

type Hasher = foldhash::fast::RandomState;

/// A message of the topic: its queue, then its offset there.
pub(crate) type Place = (u32, u64);

/// Who waits for whom: a message group of an ordered group.
pub(crate) type Lock = u64;

/// The lock of a message of an ordered group.
pub(super) fn lock_of(queue: u32, group_hash: u32) -> Lock {
    match group_hash {
        0 => 1 << u32::BITS | u64::from(queue),
        hash => u64::from(hash),
    }
}

/// What an open message is to the order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) state: OpenState,
    pub(super) due: u64,
    pub(super) group_hash: u32,
    pub(super) next_delivery: u32,
}

/// By what a group's messages are put in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// One message of a message group after the other.
    pub(crate) ordered: bool,
    /// Deliveries of one message, at most.
    pub(crate) most: u32,
}

/// Which of the two things can be done with what is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It can be delivered.
    Again,
    /// It was delivered as often as it may be.
    Exhausted,
}

/// What is due by time, of each kind.
#[derive(Debug)]
struct Times<T> {
    again: BTreeSet<(u64, T)>,
    exhausted: BTreeSet<(u64, T)>,
}

impl<T: Ord + Copy> Times<T> {
    fn new() -> Self {
        Self { again: BTreeSet::new(), exhausted: BTreeSet::new() }
    }

    fn of(&mut self, kind: Kind) -> &mut BTreeSet<(u64, T)> {
        match kind {
            Kind::Again => &mut self.again,
            Kind::Exhausted => &mut self.exhausted,
        }
    }

    fn first(&self, kind: Kind) -> Option<u64> {
        let of = match kind {
            Kind::Again => &self.again,
            Kind::Exhausted => &self.exhausted,
        };
        of.first().map(|(due, _)| *due)
    }
}

/// The order of a group's open messages.
#[derive(Debug)]
pub(super) struct Order {
    rule: Rule,
    /// Every message by itself, if the group is not ordered.
    free: Times<Place>,
    /// Its message groups, if it is.
    strict: Times<Lock>,
    locks: HashMap<Lock, Held, Hasher>,
}

/// The open messages of a message group.
#[derive(Debug, Default)]
struct Held {
    /// Delivered before: when each is due, and whether that was its last time.
    delivered: BTreeMap<Place, (u64, Kind)>,
    /// Passed over.
    ahead: BTreeSet<Place>,
    in_hand: bool,
}

impl Held {
    /// When what comes next of them can be done, and which of the two that is.
    fn next(&self) -> (u64, Kind) {
        let due = self.delivered.values().map(|(due, _)| *due).max().unwrap_or(0);
        (due, self.delivered.values().next().map_or(Kind::Again, |(_, kind)| *kind))
    }

    fn is_empty(&self) -> bool {
        self.delivered.is_empty() && self.ahead.is_empty()
    }
}

impl Order {
    pub(super) fn new(rule: Rule) -> Self {
        Self { rule, free: Times::new(), strict: Times::new(), locks: HashMap::default() }
    }

    pub(super) fn rule(&self) -> Rule {
        self.rule
    }

    fn kind(&self, seen: Seen) -> Kind {
        if seen.next_delivery > self.rule.most { Kind::Exhausted } else { Kind::Again }
    }

    /// When the first of a kind is due, of those that nobody has in his hand.
    pub(super) fn first_due(&self, kind: Kind) -> Option<u64> {
        if self.rule.ordered { self.strict.first(kind) } else { self.free.first(kind) }
    }

    /// When the first that can be delivered is due behind `now`.
    pub(super) fn first_due_after(&self, now: u64) -> Option<u64> {
        let now = now.saturating_add(1);
        if self.rule.ordered {
            self.strict.again.range((now, 0)..).next().map(|(due, _)| *due)
        } else {
            self.free.again.range((now, (0, 0))..).next().map(|(due, _)| *due)
        }
    }

    pub(super) fn insert(&mut self, place: Place, seen: Seen) {
        let kind = self.kind(seen);
        if !self.rule.ordered {
            self.free.of(kind).insert((seen.due, place));
            return;
        }
        self.change(lock_of(place.0, seen.group_hash), |held| match seen.state {
            OpenState::Ahead => {
                held.ahead.insert(place);
            }
            OpenState::Leased | OpenState::Waiting => {
                held.delivered.insert(place, (seen.due, kind));
            }
        });
    }

    pub(super) fn remove(&mut self, place: Place, seen: Seen) {
        if !self.rule.ordered {
            let kind = self.kind(seen);
            self.free.of(kind).remove(&(seen.due, place));
            return;
        }
        self.change(lock_of(place.0, seen.group_hash), |held| {
            held.delivered.remove(&place);
            held.ahead.remove(&place);
        });
    }

    /// Takes the message, or the message group, that is due first into the hand: its messages in their order. The lock
    /// is that of an ordered group. `None`: nothing of that kind is due by now.
    pub(super) fn take(&mut self, kind: Kind, now: u64) -> Option<(Option<Lock>, Vec<Place>)> {
        if self.first_due(kind)? > now {
            return None;
        }
        if !self.rule.ordered {
            return self.free.of(kind).pop_first().map(|(_, place)| (None, vec![place]));
        }
        let (_, lock) = self.strict.of(kind).pop_first()?;
        let held = self.locks.get_mut(&lock)?;
        held.in_hand = true;
        let delivered = held.delivered.iter().take_while(|(_, (_, of))| *of == kind);
        let mut places: Vec<_> = delivered.map(|(place, _)| *place).collect();
        if kind == Kind::Again && places.len() == held.delivered.len() {
            places.extend(&held.ahead);
        }
        Some((Some(lock), places))
    }

    /// Puts a message group back, whatever has become of its messages.
    pub(super) fn put_back(&mut self, lock: Lock) {
        if self.rule.ordered && self.locks.contains_key(&lock) {
            self.change(lock, |held| held.in_hand = false);
        }
    }

    /// The open messages of a message group in the order in which they come: those that were delivered first.
    pub(super) fn sequence(&self, lock: Lock) -> impl Iterator<Item = Place> {
        let held = self.locks.get(&lock).into_iter();
        held.flat_map(|held| held.delivered.keys().chain(&held.ahead).copied())
    }

    /// How many messages of a message group are open.
    pub(super) fn open_of(&self, lock: Lock) -> usize {
        self.locks.get(&lock).map_or(0, |held| held.delivered.len() + held.ahead.len())
    }

    /// Changes what is open of a message group, and when it is due by that.
    fn change(&mut self, lock: Lock, change: impl FnOnce(&mut Held)) {
        let held = self.locks.entry(lock).or_default();
        let (due, kind) = held.next();
        self.strict.of(kind).remove(&(due, lock));
        change(held);
        if held.in_hand {
            return;
        }
        if held.is_empty() {
            self.locks.remove(&lock);
        } else {
            let (due, kind) = held.next();
            self.strict.of(kind).insert((due, lock));
        }
    }
}
