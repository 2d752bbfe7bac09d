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
//!
//! **Lines.** The members of a group may have different filters. What can be delivered stands in one line for each
//! filter: that of who got it last, or of whom it was left for. Who looks finds what is in his own line without a look
//! at anything else, however much of it there is, and besides:
//!
//! | in another line | he finds it |
//! | --- | --- |
//! | nobody left it since it became what it is | once: he takes it, or leaves it for those who want it |
//! | somebody left it | in turn: each look goes on where the last one with his filter stopped, and again from the begin |
//!
//! What is left is due, and nobody is told of it by time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound::{Excluded, Unbounded};

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
    pub(super) filter: FilterId,
}

/// A filter of members: a hash of its text, 0 for none that is known.
pub(crate) type FilterId = u32;

/// Filters with lines of their own; what is for yet another one is for nobody who is known.
const MAX_LINES: usize = 8;

/// Of which lines somebody takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Whichever has what is due first.
    Any,
    /// That of his filter.
    Own(FilterId),
    /// All others, of what nobody left.
    New(FilterId),
    /// All others, of what somebody left: from where he stopped.
    Left(FilterId),
}

impl Line {
    /// Whether that is one of what is for a filter, left by somebody or not.
    fn has(self, filter: FilterId, is_left: bool) -> bool {
        match self {
            Self::Any => true,
            Self::Own(own) => own == filter,
            Self::New(own) => own != filter && !is_left,
            Self::Left(own) => own != filter && is_left,
        }
    }
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

/// What can be delivered, for one filter.
#[derive(Debug)]
struct Waiting<T> {
    filter: FilterId,
    is_left: bool,
    /// By the time at which it is due.
    due: BTreeSet<(u64, T)>,
}

/// What is due by time, of each kind.
#[derive(Debug)]
struct Times<T> {
    /// None is empty.
    again: Vec<Waiting<T>>,
    exhausted: BTreeSet<(u64, T)>,
    /// What was taken last of what was left, by whom; those who did so last come last.
    stopped: Vec<(FilterId, (u64, T))>,
}

impl<T: Ord + Copy> Times<T> {
    fn new() -> Self {
        Self { again: Vec::new(), exhausted: BTreeSet::new(), stopped: Vec::new() }
    }

    /// Puts something where it belongs; it is there once.
    fn insert(&mut self, (kind, filter): (Kind, FilterId), is_left: bool, key: (u64, T)) {
        if kind == Kind::Exhausted {
            self.exhausted.insert(key);
            return;
        }
        self.take_out(|of| of.filter == filter && of.is_left != is_left, key);
        let known = self.again.iter_mut().find(|of| (of.filter, of.is_left) == (filter, is_left));
        match known {
            Some(of) => {
                of.due.insert(key);
            }
            None => self.again.push(Waiting { filter, is_left, due: BTreeSet::from([key]) }),
        }
    }

    fn remove(&mut self, (kind, filter): (Kind, FilterId), key: (u64, T)) {
        match kind {
            Kind::Exhausted => {
                self.exhausted.remove(&key);
            }
            Kind::Again => self.take_out(|of| of.filter == filter, key),
        }
    }

    fn take_out(&mut self, is_in: impl Fn(&Waiting<T>) -> bool, key: (u64, T)) {
        self.again.retain_mut(|of| {
            if is_in(of) {
                of.due.remove(&key);
            }
            !of.due.is_empty()
        });
    }

    /// When the first is due, of those in some lines.
    fn first_of(&self, line: Line) -> Option<u64> {
        let of = self.again.iter().filter(|of| line.has(of.filter, of.is_left));
        of.filter_map(|of| of.due.first().map(|(due, _)| *due)).min()
    }

    /// When the first is due of which somebody is to be told by time.
    fn first(&self, kind: Kind) -> Option<u64> {
        match kind {
            Kind::Again => {
                let new = self.again.iter().filter(|of| !of.is_left);
                new.filter_map(|of| of.due.first().map(|(due, _)| *due)).min()
            }
            Kind::Exhausted => self.exhausted.first().map(|(due, _)| *due),
        }
    }

    /// The same of those that are due from some time on.
    fn first_from(&self, from: (u64, T)) -> Option<u64> {
        let new = self.again.iter().filter(|of| !of.is_left);
        new.filter_map(|of| of.due.range(from..).next().map(|(due, _)| *due)).min()
    }

    /// Takes what comes first of a kind and is due by now.
    fn take(&mut self, (kind, line): (Kind, Line), now: u64) -> Option<(u64, T)> {
        match kind {
            Kind::Again => self.take_of(line, now),
            Kind::Exhausted if self.first(kind)? > now => None,
            Kind::Exhausted => self.exhausted.pop_first(),
        }
    }

    fn take_of(&mut self, line: Line, now: u64) -> Option<(u64, T)> {
        let stopped = match line {
            Line::Left(own) => self.stopped.iter().position(|(of, _)| *of == own),
            Line::Any | Line::Own(_) | Line::New(_) => None,
        };
        let stopped = stopped.map(|at| self.stopped.remove(at).1);
        let next = |behind: Option<(u64, T)>| {
            let of = self.again.iter().filter(|of| line.has(of.filter, of.is_left));
            let next = of.filter_map(|of| match behind {
                Some(behind) => of.due.range((Excluded(behind), Unbounded)).next().copied(),
                None => of.due.first().copied(),
            });
            next.min().filter(|(due, _)| *due <= now)
        };
        let key = stopped.and_then(|stopped| next(Some(stopped))).or_else(|| next(None))?;
        self.take_out(|of| line.has(of.filter, of.is_left), key);
        if let Line::Left(own) = line {
            if self.stopped.len() >= MAX_LINES {
                self.stopped.remove(0);
            }
            self.stopped.push((own, key));
        }
        Some(key)
    }

    /// Whether there is a line for a filter, or may be one more.
    fn has_line(&self, filter: FilterId) -> bool {
        let mut filters = self.again.iter().map(|of| of.filter);
        filter == 0
            || filters.clone().any(|of| of == filter)
            || filters.by_ref().collect::<BTreeSet<_>>().len() < MAX_LINES
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
    delivered: BTreeMap<Place, (u64, Kind, FilterId)>,
    /// Passed over.
    ahead: BTreeMap<Place, FilterId>,
    in_hand: bool,
    /// Somebody left it since it became what it is.
    is_left: bool,
}

impl Held {
    /// When what comes next of them can be done, which of the two that is, and for which filter.
    fn next(&self) -> (u64, (Kind, FilterId)) {
        let due = self.delivered.values().map(|(due, ..)| *due).max().unwrap_or(0);
        let next = match self.delivered.values().next() {
            Some((_, kind, filter)) => (*kind, *filter),
            None => (Kind::Again, self.ahead.values().next().copied().unwrap_or_default()),
        };
        (due, next)
    }

    /// Which of them comes first.
    fn first(&self) -> Option<Place> {
        self.delivered.keys().chain(self.ahead.keys()).next().copied()
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

    /// When the first of a kind is due, of those that nobody has in his hand or left.
    pub(super) fn first_due(&self, kind: Kind) -> Option<u64> {
        if self.rule.ordered { self.strict.first(kind) } else { self.free.first(kind) }
    }

    /// When the first that can be delivered is due, of those in some lines.
    pub(super) fn first_of(&self, line: Line) -> Option<u64> {
        if self.rule.ordered { self.strict.first_of(line) } else { self.free.first_of(line) }
    }

    /// When the first that can be delivered is due behind `now`.
    pub(super) fn first_due_after(&self, now: u64) -> Option<u64> {
        let now = now.saturating_add(1);
        match self.rule.ordered {
            true => self.strict.first_from((now, 0)),
            false => self.free.first_from((now, (0, 0))),
        }
    }

    /// Whether what is for a filter can stand in a line of its own.
    pub(super) fn has_line(&self, filter: FilterId) -> bool {
        if self.rule.ordered { self.strict.has_line(filter) } else { self.free.has_line(filter) }
    }

    pub(super) fn insert(&mut self, place: Place, seen: Seen) {
        let kind = self.kind(seen);
        if !self.rule.ordered {
            self.free.insert((kind, seen.filter), false, (seen.due, place));
            return;
        }
        self.change(lock_of(place.0, seen.group_hash), |held| {
            held.is_left = false;
            match seen.state {
                OpenState::Ahead => {
                    held.ahead.insert(place, seen.filter);
                }
                OpenState::Leased | OpenState::Waiting => {
                    held.delivered.insert(place, (seen.due, kind, seen.filter));
                }
            }
        });
    }

    pub(super) fn remove(&mut self, place: Place, seen: Seen) {
        if !self.rule.ordered {
            let kind = self.kind(seen);
            self.free.remove((kind, seen.filter), (seen.due, place));
            return;
        }
        self.change(lock_of(place.0, seen.group_hash), |held| {
            held.is_left = false;
            held.delivered.remove(&place);
            held.ahead.remove(&place);
        });
    }

    /// Takes the message, or the message group, that comes first into the hand: its messages in their order. The lock
    /// is that of an ordered group. `None`: nothing of that kind is due by now.
    pub(super) fn take(
        &mut self,
        (kind, line): (Kind, Line),
        now: u64,
    ) -> Option<(Option<Lock>, Vec<Place>)> {
        if !self.rule.ordered {
            let (_, place) = self.free.take((kind, line), now)?;
            return Some((None, vec![place]));
        }
        let (_, lock) = self.strict.take((kind, line), now)?;
        let held = self.locks.get_mut(&lock)?;
        (held.in_hand, held.is_left) = (true, false);
        let delivered = held.delivered.iter().take_while(|(_, (_, of, _))| *of == kind);
        let mut places: Vec<_> = delivered.map(|(place, _)| *place).collect();
        if kind == Kind::Again && places.len() == held.delivered.len() {
            places.extend(held.ahead.keys());
        }
        Some((Some(lock), places))
    }

    /// Somebody leaves a message that he has in his hand, and which is as he took it. Returns whether it stands for
    /// itself: in an ordered group it does as the first of its message group.
    pub(super) fn leave(&mut self, place: Place, seen: Seen, now: u64) -> bool {
        if !self.rule.ordered {
            self.free.insert((self.kind(seen), seen.filter), seen.due <= now, (seen.due, place));
            return true;
        }
        let Some(held) = self.locks.get_mut(&lock_of(place.0, seen.group_hash)) else {
            return false;
        };
        let (due, (kind, _)) = held.next();
        let is_first = held.in_hand && held.first() == Some(place) && due <= now;
        if !is_first || kind != Kind::Again {
            return false;
        }
        held.is_left = true;
        if let Some((_, _, filter)) = held.delivered.get_mut(&place) {
            *filter = seen.filter;
        } else if let Some(filter) = held.ahead.get_mut(&place) {
            *filter = seen.filter;
        }
        true
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
        held.flat_map(|held| held.delivered.keys().chain(held.ahead.keys()).copied())
    }

    /// How many messages of a message group are open.
    pub(super) fn open_of(&self, lock: Lock) -> usize {
        self.locks.get(&lock).map_or(0, |held| held.delivered.len() + held.ahead.len())
    }

    /// Changes what is open of a message group, and when it is due by that.
    fn change(&mut self, lock: Lock, change: impl FnOnce(&mut Held)) {
        let held = self.locks.entry(lock).or_default();
        let (due, of) = held.next();
        if !held.in_hand {
            self.strict.remove(of, (due, lock));
        }
        change(held);
        if held.in_hand {
            return;
        }
        if held.is_empty() {
            self.locks.remove(&lock);
        } else {
            let (due, of) = held.next();
            self.strict.insert(of, held.is_left, (due, lock));
        }
    }
}
