//! The messages of a group as they must be: a reference without queues of what is due, cursors or records.
//!
//! | a message is | until |
//! | --- | --- |
//! | new | somebody gets it |
//! | leased, waiting | its time is over and it is given again, or it is finished |
//! | finished | for good |
//! | a dead letter | for good; what goes back is another message |
//!
//! One that was passed over in an ordered group is still new here.

use std::collections::{BTreeMap, BTreeSet};

use mainstem::format::attributes::DeadReason;

pub(crate) const MOST: u32 = 3;
pub(crate) const DELAYS: [u64; 2] = [2_000, 10_000];

/// By queue and offset.
pub(crate) type Place = (u32, u64);

/// A lease; a later one has a higher number.
pub(crate) type Serial = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    pub(crate) serial: Serial,
    pub(crate) due: u64,
    pub(crate) deliveries: u32,
    /// The next delivery has the number of the last.
    pub(crate) same: bool,
    /// Somebody has it; else it was given back.
    pub(crate) is_leased: bool,
}

impl Open {
    pub(crate) fn next(&self) -> u32 {
        self.deliveries + u32::from(!self.same)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    New,
    Open(Open),
    /// By this lease; `None`: by the broker, whatever receipt there is.
    Over(Option<Serial>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// Told from all others, also from one that a power cut took from the same place.
    pub(crate) body: String,
    pub(crate) message_group: Option<&'static str>,
    pub(crate) fate: Fate,
    /// It had more than one lease.
    pub(crate) renewed: bool,
    /// It was a dead letter, for so many deliveries, and went back so often.
    pub(crate) history: Option<(DeadReason, u32, u32)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Letter {
    pub(crate) body: String,
    pub(crate) message_group: Option<&'static str>,
    pub(crate) from: u32,
    pub(crate) reason: DeadReason,
    pub(crate) deliveries: u32,
    pub(crate) redriven: u32,
    pub(crate) is_back: bool,
}

/// What a receipt says.
#[derive(Clone, Debug)]
pub(crate) struct Receipt {
    pub(crate) handle: String,
    pub(crate) place: Place,
    pub(crate) body: String,
    pub(crate) serial: Serial,
    /// Of which start of the broker.
    pub(crate) start: u64,
    pub(crate) is_first: bool,
    pub(crate) delivery: u32,
}

/// What it is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Worth {
    Held,
    Finished,
    /// The message is new, as far as the log knows, and a power cut took the lease. Whether it is still good depends on
    /// whether the message was passed over since, and in an ordered group on what is before it.
    Lost,
    Nothing,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pool {
    pub(crate) ordered: bool,
    /// Something new was finished, or kept on, by a lease that a power cut had taken: what lies before it was passed
    /// over, and may come behind it.
    pub(crate) has_passed: bool,
    pub(crate) messages: BTreeMap<Place, Message>,
    pub(crate) letters: Vec<Letter>,
}

impl Pool {
    pub(crate) fn end(&self, queue: u32) -> u64 {
        self.messages.range((queue, 0)..(queue + 1, 0)).next_back().map_or(0, |(at, _)| at.1 + 1)
    }

    /// The first message of a queue that is not finished; its end without one.
    pub(crate) fn position(&self, queue: u32) -> u64 {
        let mut of_queue = self.messages.range((queue, 0)..(queue + 1, 0));
        let first = of_queue.find(|(_, message)| !matches!(message.fate, Fate::Over(_)));
        first.map_or(self.end(queue), |(at, _)| at.1)
    }

    pub(crate) fn open(&self) -> impl Iterator<Item = (Place, &Message, Open)> {
        self.messages.iter().filter_map(|(place, message)| match message.fate {
            Fate::Open(open) => Some((*place, message, open)),
            Fate::New | Fate::Over(_) => None,
        })
    }

    pub(crate) fn get_mut(&mut self, place: Place) -> &mut Message {
        self.messages.get_mut(&place).unwrap()
    }

    pub(crate) fn send(
        &mut self,
        queue: u32,
        body: String,
        message_group: Option<&'static str>,
        history: Option<(DeadReason, u32, u32)>,
    ) {
        let place = (queue, self.end(queue));
        let message = Message { body, message_group, fate: Fate::New, renewed: false, history };
        self.messages.insert(place, message);
    }

    /// What is delivered one after the other: a message group, or what of a queue is of none.
    fn lock(&self, place: Place) -> (u32, Option<&'static str>) {
        match self.messages[&place].message_group {
            None => (place.0, None),
            group => (0, group),
        }
    }

    fn of_lock(&self, lock: (u32, Option<&'static str>)) -> Vec<(Place, Fate)> {
        let all = self.messages.iter().filter(|(place, _)| self.lock(**place) == lock);
        all.map(|(place, message)| (*place, message.fate)).collect()
    }

    /// Of one queue or message group what must not be given now, by itself.
    fn is_held(fate: Fate, now: u64) -> bool {
        matches!(fate, Fate::Open(open) if open.due > now)
    }

    /// Everything that must be found by who asks for all of it, in a group that is not ordered.
    pub(crate) fn deliverable(&self, now: u64) -> BTreeSet<Place> {
        let is_due = |fate| match fate {
            Fate::New => true,
            Fate::Open(open) => open.due <= now && open.next() <= MOST,
            Fate::Over(_) => false,
        };
        self.messages.iter().filter(|(_, of)| is_due(of.fate)).map(|(place, _)| *place).collect()
    }

    /// An answer with these messages and deliveries, in this order.
    pub(crate) fn give(&mut self, given: &[(Place, u32)], serial: Serial, now: u64, due: u64) {
        let before = self.clone();
        let mut earlier = BTreeSet::new();
        for (place, delivery) in given {
            let message = &before.messages[place];
            let (expected, renewed) = match message.fate {
                Fate::New => (1, false),
                Fate::Open(open) => {
                    assert!(
                        open.due <= now,
                        "{place:?} is with somebody else or pauses: {message:?}"
                    );
                    (open.next(), true)
                }
                Fate::Over(_) => panic!("{place:?} is finished, and was delivered: {message:?}"),
            };
            assert_eq!(*delivery, expected, "{place:?} {message:?}");
            assert!(*delivery <= MOST, "{place:?} was delivered too often: {message:?}");
            if before.ordered {
                for (other, fate) in before.of_lock(before.lock(*place)) {
                    let is_over = matches!(fate, Fate::Over(_));
                    let is_before = other.0 == place.0 && other.1 < place.1;
                    let comes = is_over || earlier.contains(&other);
                    let may_come_later = before.has_passed && fate == Fate::New;
                    let is_turn = !is_before || comes || may_come_later;
                    assert!(is_turn, "{other:?} comes before {place:?}: {before:?}");
                    assert!(!Self::is_held(fate, now), "{place:?} waits for {other:?}: {before:?}");
                }
            }
            assert!(earlier.insert(*place), "{place:?} twice in one answer");
            let deliveries = *delivery;
            let open = Open { serial, due, deliveries, same: false, is_leased: true };
            let message = self.get_mut(*place);
            message.renewed |= renewed;
            message.fate = Fate::Open(open);
        }
    }

    pub(crate) fn worth(&self, receipt: &Receipt, start: u64) -> Worth {
        let Some(message) = self.messages.get(&receipt.place) else { return Worth::Nothing };
        if message.body != receipt.body {
            return Worth::Nothing;
        }
        let is_old = receipt.start < start;
        let is_of = |serial| receipt.serial == serial || is_old && receipt.serial > serial;
        match message.fate {
            Fate::New if is_old => Worth::Lost,
            Fate::New => Worth::Nothing,
            Fate::Open(open) if is_of(open.serial) => Worth::Held,
            Fate::Over(Some(serial)) => match message.renewed {
                true if is_of(serial) => Worth::Finished,
                false if receipt.is_first => Worth::Finished,
                _ => Worth::Nothing,
            },
            Fate::Open(_) | Fate::Over(None) => Worth::Nothing,
        }
    }

    /// Somebody made another lease of his.
    pub(crate) fn keep(&mut self, place: Place, open: Open) {
        self.has_passed |= self.messages[&place].fate == Fate::New;
        let message = self.get_mut(place);
        (message.fate, message.renewed) = (Fate::Open(open), true);
    }

    /// Finished by whoever has it.
    pub(crate) fn finish(&mut self, place: Place) {
        self.has_passed |= self.messages[&place].fate == Fate::New;
        let message = self.get_mut(place);
        message.fate = match message.fate {
            Fate::Open(open) => Fate::Over(Some(open.serial)),
            Fate::New => Fate::Over(Some(0)),
            fate @ Fate::Over(_) => fate,
        };
    }

    pub(crate) fn bury(&mut self, place: Place, reason: DeadReason) {
        let message = self.get_mut(place);
        let (serial, deliveries) = match message.fate {
            Fate::Open(open) => (open.serial, open.deliveries),
            // Nobody got it, as far as the log knows.
            Fate::New => (0, 0),
            Fate::Over(_) => panic!("{place:?}: {message:?}"),
        };
        message.fate = match reason {
            DeadReason::GivenUp => Fate::Over(Some(serial)),
            _ => Fate::Over(None),
        };
        let letter = Letter {
            body: message.body.clone(),
            message_group: message.message_group,
            from: place.0,
            reason,
            deliveries,
            redriven: message.history.map_or(0, |(_, _, redriven)| redriven),
            is_back: false,
        };
        self.letters.push(letter);
    }

    /// Of what was delivered as often as it may be: what must be a dead letter now, and can be without another.
    pub(crate) fn exhausted(&self, now: u64) -> Vec<Place> {
        let is_over = |open: &Open| open.due <= now && open.next() > MOST;
        let mut places = Vec::new();
        for (place, _, open) in self.open() {
            let first_of_lock = || {
                let open = self.of_lock(self.lock(place)).into_iter();
                let mut open = open.filter(|(_, fate)| matches!(fate, Fate::Open(_))).peekable();
                let is_first = open.peek().is_some_and(|(first, _)| *first == place);
                is_first && open.all(|(_, fate)| !Self::is_held(fate, now))
            };
            if is_over(&open) && (!self.ordered || first_of_lock()) {
                places.push(place);
            }
        }
        places
    }

    /// Whether it was delivered and nobody has it.
    pub(crate) fn is_waiting(&self, place: Place, now: u64) -> bool {
        let message = self.messages.get(&place);
        matches!(message.map(|of| of.fate), Some(Fate::Open(open)) if !open.is_leased || open.due <= now)
    }

    /// What can be delivered, or is to be buried; what somebody has; what pauses.
    pub(crate) fn split(&self, queue: u32, now: u64) -> (u64, u64, u64) {
        let mut split = (0, 0, 0);
        for (_, message) in self.messages.range((queue, 0)..(queue + 1, 0)) {
            match message.fate {
                Fate::Over(_) => {}
                Fate::New => split.0 += 1,
                Fate::Open(open) if open.due <= now => split.0 += 1,
                Fate::Open(open) if open.is_leased => split.1 += 1,
                Fate::Open(_) => split.2 += 1,
            }
        }
        split
    }
}
