//! Which queues may have fresh messages for a group, and who waits for some. No state: made again after a start.
//!
//! A queue is idle, listed or in somebody's hand. It is listed when something of it becomes readable; who looks for
//! messages takes the one that is listed for longest, and nobody else gets it until he puts it back. So work is found
//! without a look at other queues, and no two look at one queue. An idle queue costs nothing.
//!
//! | it was | something arrives | who has it puts it back |
//! | --- | --- | --- |
//! | idle | it is listed | |
//! | listed | | |
//! | in a hand | it is noted | listed, if there is more or something was noted; else idle |
//! | held up | | |
//!
//! A queue is held up by something in front of its messages that cannot be got past now. Nothing that arrives changes
//! that: it is listed again after a second, by whoever looks then, or rests until then.
//!
//! Who finds nothing parks. Whenever something is listed that was not, the one who waits longest is woken, and who
//! puts back a queue that has more wakes the next: as many as there is work for, one after the other. Who is woken and
//! goes away without a look wakes the next in his place.
//!
//! Who waits for some tags is not woken by messages whose mask bits say that they have none of them: they stay listed
//! until somebody looks for another reason, and are passed over then. For that those who wait stand in one line for
//! each filter, and each knows when he came: whom a message wakes is found by a look at the heads of the lines.
//!
//! Who leaves what is for another filter wakes the one who waits longest with that one, once it is back. If nobody
//! waits, whoever has that filter is at work, and looks whether there is something for him before he waits.
//!
//! Who left something rests: one of a group looks again each second whether it is still for others, the others wait to
//! be woken.
//!
//! A group that does not ask for a while is forgotten here, and looked at anew when it asks again: neither memory nor
//! what an arrival costs depends on how many groups there ever were. Which filters its members used is known for ten
//! minutes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use dashmap::DashMap;
use tokio::sync::oneshot;

use crate::message::{GroupId, TopicId};
use crate::sync::{AtomicBool, AtomicU32, Mutex, Ordering, lock};

use super::FilterId;
use super::filtered::{FilterCost, FilterWork};
use super::subscriptions::Subscriptions;

type Hasher = foldhash::fast::RandomState;
type Key = (GroupId, TopicId);

/// Waiters of one group for one topic.
const MAX_WAITERS: usize = 16_384;

/// Lines of those who wait; whoever has yet another filter stands in the last one, and is woken by everything.
const MAX_LINES: usize = 8;

/// One of so many.
const RATION: u64 = 5;

/// Mask bits of tags that are not known.
pub(crate) const ANY_TAG: u64 = u64::MAX;

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) filter: FilterId,
    /// The mask bits of the tags that he wants; `None`: no tag says that he does not want a message.
    pub(crate) tags: Option<u64>,
}

impl Wish {
    fn may_want(self, tags: u64) -> bool {
        self.tags.is_none_or(|wanted| wanted & tags != 0)
    }
}

/// Where a queue is, if it is not idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// With the tags for which somebody was woken: he takes it.
    Listed { told: u64 },
    /// With the tags of what arrived meanwhile.
    InHand { noted: Option<u64> },
    /// Nobody gets past what is in front.
    HeldUp,
}

/// What a group has to look at of a topic.
#[derive(Debug)]
pub(crate) struct Ready {
    state: Mutex<State>,
    /// Queues that are known to have a position, and were looked at once: those below. Relaxed: it only grows, and
    /// looking twice does no harm.
    begun: AtomicU32,
    /// Counts looks. Relaxed: it decides whether fresh messages or others come first.
    turns: AtomicU32,
    /// Which filters are used by those who ask.
    pub(crate) subscriptions: Arc<Mutex<Subscriptions>>,
    /// What these filters did.
    filters: Mutex<FilterWork>,
    /// How many messages receives had room for in the first while after a start, and how many were offered of those
    /// whose leases are from before it.
    ration: Mutex<(u64, u64)>,
    /// Somebody asked since the last look for those that nobody needs. Relaxed: it delays the forgetting.
    asked: AtomicBool,
    /// Somebody looks again each second. Acquire and release: who ends it wakes the next one afterwards.
    rests: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    listed: VecDeque<u32>,
    /// Each until when, on the clock of leases.
    held_up: VecDeque<(u32, u64)>,
    places: HashMap<u32, Place, Hasher>,
    lines: Vec<Line>,
    /// Places before and behind those that were given out in any line.
    came: (i64, i64),
    ended: bool,
}

/// Those who wait with one filter, by when they came.
#[derive(Debug)]
struct Line {
    wish: Wish,
    waiters: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    came: i64,
    filter: FilterId,
    wake: oneshot::Sender<()>,
}

impl State {
    fn list(&mut self, queue: u32, tags: u64) {
        let told = self.wake(tags);
        self.places.insert(queue, Place::Listed { told });
        self.listed.push_back(queue);
    }

    /// Wakes who waits longest of those who may want messages with such tags. Returns for which tags somebody looks
    /// now: for none, for his, or for whatever there is.
    fn wake(&mut self, tags: u64) -> u64 {
        loop {
            let lines = self.lines.iter_mut().filter(|line| line.wish.may_want(tags));
            let heads = lines.filter_map(|line| Some((line.waiters.front()?.came, line)));
            let Some((_, line)) = heads.min_by_key(|(came, _)| *came) else { return 0 };
            let Some(waiter) = line.waiters.pop_front() else { return 0 };
            if waiter.wake.send(()).is_ok() {
                return line.wish.tags.unwrap_or(ANY_TAG);
            }
        }
    }

    /// Wakes who waits longest of those with a filter. `false`: nobody does.
    fn wake_for(&mut self, filter: FilterId) -> bool {
        let is_theirs = |line: &&mut Line| [0, filter].contains(&line.wish.filter);
        for line in self.lines.iter_mut().filter(is_theirs) {
            // All of a line have one filter, but in the last one.
            while let Some(at) = line.waiters.iter().position(|of| of.filter == filter) {
                let waiter = line.waiters.remove(at);
                if waiter.is_some_and(|waiter| waiter.wake.send(()).is_ok()) {
                    return true;
                }
            }
        }
        false
    }

    fn waiting(&self) -> usize {
        self.lines.iter().map(|line| line.waiters.len()).sum()
    }

    fn forget_those_that_went(&mut self) {
        for line in &mut self.lines {
            line.waiters.retain(|waiter| !waiter.wake.is_closed());
        }
        self.lines.retain(|line| !line.waiters.is_empty());
    }

    /// The line for a wish.
    fn line(&mut self, wish: Wish) -> Option<&mut Line> {
        let known = |lines: &[Line]| lines.iter().position(|line| line.wish == wish);
        let mut at = known(&self.lines);
        if at.is_none() && self.lines.len() >= MAX_LINES {
            self.lines.retain(|line| !line.waiters.is_empty());
        }
        if at.is_none() && self.lines.len() < MAX_LINES {
            self.lines.push(Line { wish, waiters: VecDeque::new() });
        }
        at = at.or_else(|| known(&self.lines));
        match at {
            Some(at) => self.lines.get_mut(at),
            None => {
                let last = self.lines.last_mut()?;
                // With several filters in it nothing is known of what they want.
                last.wish = Wish { filter: 0, tags: None };
                Some(last)
            }
        }
    }
}

/// Somebody who waits, until he goes away.
#[derive(Debug)]
pub(crate) struct Parked {
    ready: Arc<Ready>,
    filter: FilterId,
    woken: Option<oneshot::Receiver<()>>,
}

impl Parked {
    /// Resolves when he is to look again.
    pub(crate) async fn woken(&mut self) {
        if let Some(woken) = &mut self.woken {
            // If whoever could wake him is gone he looks, and finds out.
            let _ = woken.await;
        }
        self.woken = None;
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        let Some(woken) = &mut self.woken else { return };
        woken.close();
        if woken.try_recv().is_ok() {
            self.ready.wake_instead(self.filter);
        }
    }
}

/// The one of a group who looks again each second. If he goes away the next one is woken to do so.
#[derive(Debug)]
pub(crate) struct Resting {
    ready: Arc<Ready>,
    looks_himself: bool,
}

impl Resting {
    /// His rest is over, and he looks.
    pub(crate) fn looks_himself(mut self) {
        self.looks_himself = true;
    }
}

impl Drop for Resting {
    fn drop(&mut self) {
        self.ready.rests.store(false, Ordering::Release);
        if !self.looks_himself {
            self.ready.wake();
        }
    }
}

impl Ready {
    fn new(subscriptions: Arc<Mutex<Subscriptions>>) -> Self {
        Self {
            state: Mutex::default(),
            begun: AtomicU32::new(0),
            turns: AtomicU32::new(0),
            subscriptions,
            filters: Mutex::default(),
            ration: Mutex::default(),
            asked: AtomicBool::new(true),
            rests: AtomicBool::new(false),
        }
    }

    /// The filter of a look did this.
    pub(crate) fn filtered(&self, cost: &FilterCost<'_>) {
        if *cost != FilterCost::default() {
            lock(&self.filters).add(cost);
        }
    }

    /// What filters did, all looks together.
    pub(crate) fn filter_work(&self) -> FilterWork {
        lock(&self.filters).clone()
    }

    /// Somebody asks for messages.
    pub(crate) fn asked(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    /// So many queues were begun with.
    pub(crate) fn begun(&self) -> u32 {
        self.begun.load(Ordering::Relaxed)
    }

    /// The queues below `queues` have a position, and were looked at.
    pub(crate) fn begin(&self, queues: u32) {
        self.begun.fetch_max(queues, Ordering::Relaxed);
    }

    /// Which look this is.
    pub(crate) fn turn(&self) -> u32 {
        self.turns.fetch_add(1, Ordering::Relaxed)
    }

    /// A receive has room for so many messages.
    pub(crate) fn has_room_for(&self, messages: u32) {
        lock(&self.ration).0 += u64::from(messages);
    }

    /// Whether one more may be offered of those whose leases are from before the start: [`RATION`] of the room that
    /// receives had since then.
    pub(crate) fn may_offer_old(&self) -> bool {
        let mut ration = lock(&self.ration);
        let may = (ration.1 + 1) * RATION <= ration.0;
        ration.1 += u64::from(may);
        may
    }

    /// Something of a queue can be read, with these tags.
    pub(crate) fn arrived(&self, queue: u32, tags: u64) {
        let mut state = lock(&self.state);
        match state.places.get_mut(&queue) {
            None => state.list(queue, tags),
            // Whoever was woken for it looks at this one too.
            Some(Place::Listed { told: ANY_TAG }) => {}
            Some(Place::Listed { told }) if tags != 0 && tags & !*told == 0 => {}
            Some(Place::Listed { told }) => {
                let told = *told | state.wake(tags);
                state.places.insert(queue, Place::Listed { told });
            }
            Some(Place::InHand { noted }) => *noted = Some(noted.unwrap_or(0) | tags),
            Some(Place::HeldUp) => {}
        }
    }

    /// The group goes on elsewhere in a queue: what held it up may lie behind.
    pub(crate) fn moved(&self, queue: u32) {
        let mut state = lock(&self.state);
        if state.places.get(&queue) == Some(&Place::HeldUp) {
            state.held_up.retain(|(held, _)| *held != queue);
            state.list(queue, ANY_TAG);
            return;
        }
        drop(state);
        self.arrived(queue, ANY_TAG);
    }

    /// Takes the queue into the hand that is listed for longest, or was held up until `now`.
    pub(crate) fn take(&self, now: u64) -> Option<u32> {
        let mut state = lock(&self.state);
        let held =
            state.held_up.front().filter(|(_, until)| *until <= now).map(|(queue, _)| *queue);
        let queue = match held {
            Some(queue) => {
                state.held_up.pop_front();
                queue
            }
            None => state.listed.pop_front()?,
        };
        state.places.insert(queue, Place::InHand { noted: None });
        Some(queue)
    }

    /// Puts a queue back; it is listed again if it has more.
    pub(crate) fn put_back(&self, queue: u32, has_more: bool) {
        let mut state = lock(&self.state);
        let noted = match state.places.remove(&queue) {
            Some(Place::InHand { noted }) => noted,
            Some(Place::Listed { .. } | Place::HeldUp) | None => None,
        };
        if has_more {
            state.list(queue, ANY_TAG);
        } else if let Some(tags) = noted {
            state.list(queue, tags);
        }
    }

    /// Puts a queue back that is held up: nobody takes it before `until`, unless they are listed again.
    pub(crate) fn hold_up(&self, queue: u32, until: u64) {
        let mut state = lock(&self.state);
        state.places.insert(queue, Place::HeldUp);
        state.held_up.push_back((queue, until));
    }

    /// Whether queues are held up.
    pub(crate) fn has_held_up(&self) -> bool {
        !lock(&self.state).held_up.is_empty()
    }

    /// Lists what is held up, for who looks now.
    pub(crate) fn try_held_up(&self) {
        let mut state = lock(&self.state);
        while let Some((queue, _)) = state.held_up.pop_front() {
            state.places.insert(queue, Place::Listed { told: ANY_TAG });
            state.listed.push_back(queue);
        }
    }

    /// Whether a queue is listed.
    pub(crate) fn has_listed(&self) -> bool {
        !lock(&self.state).listed.is_empty()
    }

    /// Wakes who waits longest.
    pub(crate) fn wake(&self) {
        lock(&self.state).wake(ANY_TAG);
    }

    /// Wakes who waits longest, unless somebody looks again each second.
    pub(crate) fn wake_unless_one_rests(&self) {
        if !self.rests.load(Ordering::Acquire) {
            self.wake();
        }
    }

    /// Wakes who waits longest with a filter, for something that is for him.
    pub(crate) fn wake_for(&self, filter: FilterId) {
        lock(&self.state).wake_for(filter);
    }

    /// Wakes somebody in the place of who was woken and had that filter.
    pub(crate) fn wake_instead(&self, filter: FilterId) {
        let mut state = lock(&self.state);
        if !state.wake_for(filter) {
            state.wake(ANY_TAG);
        }
    }

    /// For who waits and left something: to look again each second, if nobody of the group does so.
    pub(crate) fn rest(self: &Arc<Self>) -> Option<Resting> {
        let rests = self.rests.swap(true, Ordering::Acquire);
        (!rests).then(|| Resting { ready: Arc::clone(self), looks_himself: false })
    }

    /// Wakes all: they are to look at what has become of the group or the topic.
    pub(crate) fn wake_all(&self) {
        let lines = std::mem::take(&mut lock(&self.state).lines);
        lines.into_iter().flat_map(|line| line.waiters).for_each(|waiter| {
            // Gone already.
            let _ = waiter.wake.send(());
        });
    }

    /// How many wait, those that went away lately included.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.state).waiting()
    }

    /// Waits from now on: behind all others, or before them if he was woken for nothing. The caller looks once more
    /// afterwards. `None`: too many wait.
    pub(crate) fn park(self: &Arc<Self>, in_front: bool, wish: Wish) -> Option<Parked> {
        let (wake, woken) = oneshot::channel();
        let mut state = lock(&self.state);
        if state.waiting() >= MAX_WAITERS {
            state.forget_those_that_went();
            if state.waiting() >= MAX_WAITERS {
                return None;
            }
        }
        let (first, last) = &mut state.came;
        let came = match in_front {
            true => {
                *first -= 1;
                *first
            }
            false => {
                *last += 1;
                *last
            }
        };
        // Who waits for what has ended is woken at once, by the drop of his sender.
        if !state.ended
            && let Some(line) = state.line(wish)
        {
            let waiter = Waiter { came, filter: wish.filter, wake };
            match in_front {
                true => line.waiters.push_front(waiter),
                false => line.waiters.push_back(waiter),
            }
        }
        drop(state);
        Some(Parked { ready: Arc::clone(self), filter: wish.filter, woken: Some(woken) })
    }

    fn end(&self) {
        lock(&self.state).ended = true;
        self.wake_all();
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct ReadyTable {
    all: DashMap<Key, Arc<Ready>, Hasher>,
    /// One without groups is there until the next [`ReadyTable::let_idle_go`].
    of_topic: DashMap<TopicId, Vec<(GroupId, Arc<Ready>)>, Hasher>,
    /// Known for longer than who asks: which filter is the older one must not turn round in a pause.
    subscriptions: DashMap<Key, Arc<Mutex<Subscriptions>>, Hasher>,
}

/// Who has a `Ready` that nobody uses: the two maps.
const UNUSED: usize = 2;

impl ReadyTable {
    /// That of a group and a topic, if somebody has asked for messages since the start.
    pub(crate) fn get(&self, key: Key) -> Option<Arc<Ready>> {
        self.all.get(&key).map(|ready| Arc::clone(&ready))
    }

    /// The same, made if it is not there.
    pub(crate) fn make(&self, key: Key) -> Arc<Ready> {
        if let Some(ready) = self.get(key) {
            return ready;
        }
        let new = || Arc::new(Mutex::new(Subscriptions::new()));
        let subscriptions = Arc::clone(&self.subscriptions.entry(key).or_insert_with(new));
        // Under the topic's lock both, so that whoever is in the one is in the other.
        let mut of_topic = self.of_topic.entry(key.1).or_default();
        let new = || Arc::new(Ready::new(subscriptions));
        let ready = Arc::clone(&self.all.entry(key).or_insert_with(new));
        if !of_topic.iter().any(|(group, _)| *group == key.0) {
            of_topic.push((key.0, Arc::clone(&ready)));
        }
        ready
    }

    /// Something of a queue can be read, with these tags: for every group that gets messages of it.
    pub(crate) fn arrived(&self, topic: TopicId, queue: u32, tags: u64) {
        if let Some(of_topic) = self.of_topic.get(&topic) {
            of_topic.iter().for_each(|(_, ready)| ready.arrived(queue, tags));
        }
    }

    /// All who wait for messages of a topic look again.
    pub(crate) fn wake_topic(&self, topic: TopicId) {
        if let Some(of_topic) = self.of_topic.get(&topic) {
            of_topic.iter().for_each(|(_, ready)| ready.wake_all());
        }
    }

    /// Forgets what nobody asked for since the last call and nobody waits in. `unwatch` is told of each topic of which
    /// nothing is left, before anybody makes one of it again.
    pub(crate) fn let_idle_go(&self, unwatch: impl Fn(TopicId)) {
        let topics: Vec<_> = self.of_topic.iter().map(|of_topic| *of_topic.key()).collect();
        for topic in topics {
            self.of_topic.remove_if_mut(&topic, |_, of_topic| {
                of_topic.retain(|(group, ready)| {
                    let was_asked = ready.asked.swap(false, Ordering::Relaxed);
                    // Under its lock in the map: nobody gets it meanwhile.
                    let is_unused =
                        |_: &Key, ready: &Arc<Ready>| Arc::strong_count(ready) <= UNUSED;
                    was_asked || self.all.remove_if(&(*group, topic), is_unused).is_none()
                });
                if of_topic.is_empty() {
                    unwatch(topic);
                }
                of_topic.is_empty()
            });
        }
        // With a `Ready` there is another one who has it.
        self.subscriptions
            .retain(|_, known| Arc::strong_count(known) > 1 || !lock(known).is_over());
    }

    /// The group or the topic is gone.
    pub(crate) fn forget(&self, key: Key) {
        if let Some(mut of_topic) = self.of_topic.get_mut(&key.1) {
            of_topic.retain(|(group, _)| *group != key.0);
        }
        if let Some((_, ready)) = self.all.remove(&key) {
            ready.end();
        }
        self.subscriptions.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::now;

    const ALL: Wish = Wish { filter: 0, tags: None };

    fn ready() -> Arc<Ready> {
        Arc::new(Ready::new(Arc::new(Mutex::new(Subscriptions::new()))))
    }

    #[test]
    fn what_is_held_up_is_nobodys_until_its_time_is_over_or_somebody_tries() {
        let ready = ready();
        ready.arrived(3, ANY_TAG);
        assert_eq!(ready.take(10), Some(3));
        ready.hold_up(3, 20);
        ready.arrived(3, ANY_TAG);
        assert_eq!((ready.take(19), ready.has_listed(), ready.has_held_up()), (None, false, true));
        assert_eq!((ready.take(20), ready.has_held_up()), (Some(3), false));
        ready.hold_up(3, 30);
        ready.arrived(4, ANY_TAG);
        ready.try_held_up();
        assert!(ready.has_listed() && !ready.has_held_up());
        assert_eq!([ready.take(20), ready.take(20), ready.take(40)], [Some(4), Some(3), None]);
        ready.put_back(3, false);
        ready.arrived(3, ANY_TAG);
        assert_eq!(ready.take(20), Some(3), "it is a queue like others again");
        ready.hold_up(3, 30);
        [3, 5].iter().for_each(|queue| ready.moved(*queue));
        assert!(!ready.has_held_up());
        assert_eq!([ready.take(40), ready.take(40), ready.take(40)], [Some(3), Some(5), None]);
    }

    #[test]
    fn a_queue_is_in_one_hand_at_a_time_and_comes_back_if_something_arrived_meanwhile() {
        let ready = ready();
        [7, 3, 7].into_iter().for_each(|queue| ready.arrived(queue, ANY_TAG));
        assert_eq!([ready.take(0), ready.take(0), ready.take(0)], [Some(7), Some(3), None]);
        ready.arrived(7, ANY_TAG);
        assert!(!ready.has_listed());
        ready.put_back(7, false);
        ready.put_back(3, false);
        assert_eq!([ready.take(0), ready.take(0)], [Some(7), None]);
        ready.put_back(7, true);
        assert_eq!(ready.take(0), Some(7));
    }

    #[test]
    fn one_arrival_wakes_one_and_who_goes_away_wakes_the_next() {
        let ready = ready();
        let mut parked: Vec<_> = (0..3).map(|_| ready.park(false, ALL).unwrap()).collect();
        ready.arrived(1, ANY_TAG);
        ready.arrived(1, ANY_TAG);
        assert_eq!(ready.waiting(), 2);
        assert_eq!(now(parked[1].woken()), None);
        // The first was woken and has not looked.
        drop(parked.remove(0));
        assert_eq!(ready.waiting(), 1);
        assert_eq!(now(parked[0].woken()), Some(()));
        // He found nothing, and waits before the others again.
        let mut first = ready.park(true, ALL).unwrap();
        ready.arrived(2, ANY_TAG);
        assert_eq!(now(first.woken()), Some(()));
        assert_eq!(now(parked[1].woken()), None);
        // Gone before anybody woke him.
        drop(parked);
        ready.put_back(ready.take(0).unwrap(), true);
        assert_eq!(ready.waiting(), 0);
    }

    #[test]
    fn no_more_wait_than_may_and_those_that_went_do_not_count() {
        let ready = ready();
        let parked: Vec<_> = (0..MAX_WAITERS).map(|_| ready.park(false, ALL).unwrap()).collect();
        assert!(ready.park(false, ALL).is_none());
        drop(parked);
        assert!(ready.park(false, ALL).is_some());
        assert_eq!(ready.waiting(), 1);
    }

    fn wish(tags: u64) -> Wish {
        Wish { filter: u32::try_from(tags).unwrap(), tags: Some(tags) }
    }

    #[test]
    fn a_message_wakes_the_one_who_waits_longest_of_those_who_may_want_it() {
        let ready = ready();
        let wishes = [wish(1), wish(2), ALL, wish(2), wish(3)];
        let mut parked: Vec<_> =
            wishes.iter().map(|wish| ready.park(false, *wish).unwrap()).collect();
        let mut woken = || -> Vec<bool> {
            parked.iter_mut().map(|parked| now(parked.woken()).is_some()).collect()
        };
        ready.arrived(7, 4);
        assert_eq!(woken(), [false, false, true, false, false], "nobody names the tag");
        ready.arrived(7, 2);
        assert_eq!(woken(), [false, false, true, false, false], "he looks at whatever there is");
        assert_eq!(ready.take(0), Some(7));
        ready.arrived(7, 2);
        ready.put_back(7, false);
        assert_eq!(woken(), [false, true, true, false, false], "it was noted with its tag");
        ready.arrived(7, 2);
        assert_eq!(woken(), [false, true, true, false, false], "somebody was woken for that tag");
        ready.arrived(7, 1);
        assert_eq!(woken(), [true, true, true, false, false]);
        assert_eq!(ready.take(0), Some(7));
        ready.put_back(7, false);
        ready.arrived(8, 0);
        ready.arrived(8, 4);
        assert_eq!(woken(), [true, true, true, false, false], "it stays listed");
        assert!(ready.has_listed());
        ready.wake();
        assert_eq!(woken(), [true, true, true, true, false]);
        ready.wake_for(2);
        assert_eq!(ready.waiting(), 1, "nobody waits with that filter");
        ready.wake_for(3);
        assert_eq!(ready.waiting(), 0);
    }

    #[test]
    fn what_was_left_wakes_one_with_its_filter_and_who_goes_away_one_in_his_place() {
        let ready = ready();
        let wishes = [wish(1), wish(2), wish(2), wish(3)];
        let mut parked: Vec<_> =
            wishes.iter().map(|wish| Some(ready.park(false, *wish).unwrap())).collect();
        ready.wake_for(2);
        let waits = |at: usize, parked: &mut Vec<Option<Parked>>| {
            let parked: &mut Option<Parked> = &mut parked[at];
            parked.as_mut().is_some_and(|parked| now(parked.woken()).is_none())
        };
        assert!([0, 2, 3].map(|at| waits(at, &mut parked)).iter().all(|waits| *waits));
        parked[1] = None;
        assert_eq!(ready.waiting(), 2, "the next one with that filter");
        // Without one anybody: he leaves what is not for him.
        parked[2] = None;
        assert_eq!(ready.waiting(), 1);
        assert!(!waits(0, &mut parked) && waits(3, &mut parked));
        // Also where those with several filters wait in one line.
        let more: Vec<_> = (4..20).map(|bit| ready.park(false, wish(1 << bit)).unwrap()).collect();
        ready.wake_for(1 << 18);
        assert_eq!(ready.waiting(), more.len());
        let mut more = more.into_iter();
        assert_eq!(now(more.nth(14).unwrap().woken()), Some(()));
    }

    #[test]
    fn whoever_has_one_filter_too_many_is_woken_by_everything() {
        let ready = ready();
        let many = 1..MAX_LINES as u64 + 4;
        let mut parked: Vec<_> =
            many.map(|bit| ready.park(false, wish(1 << bit)).unwrap()).collect();
        ready.arrived(7, 1);
        assert_eq!(now(parked[MAX_LINES - 1].woken()), Some(()), "the first of the mixed line");
        assert_eq!(ready.waiting(), parked.len() - 1);
        ready.arrived(8, 1 << 1);
        assert_eq!(now(parked[0].woken()), Some(()));
        ready.wake_all();
        assert_eq!(ready.waiting(), 0);
    }

    #[test]
    fn one_rests_and_who_does_not_come_back_from_it_wakes_the_next() {
        let ready = ready();
        let resting = ready.rest().unwrap();
        assert!(ready.rest().is_none());
        let mut parked = ready.park(false, ALL).unwrap();
        resting.looks_himself();
        assert_eq!(now(parked.woken()), None);
        drop(ready.rest().unwrap());
        assert_eq!(now(parked.woken()), Some(()));
    }

    #[test]
    fn who_waits_for_what_is_gone_looks_at_once() {
        let table = ReadyTable::default();
        let key = (GroupId::new(1), TopicId::new(2));
        let ready = table.make(key);
        assert!(Arc::ptr_eq(&ready, &table.make(key)));
        let mut parked = ready.park(false, ALL).unwrap();
        table.arrived(TopicId::new(3), 0, ANY_TAG);
        assert_eq!(now(parked.woken()), None);
        table.forget(key);
        assert_eq!(now(parked.woken()), Some(()));
        assert_eq!(now(ready.park(false, ALL).unwrap().woken()), Some(()));
        assert!(table.get(key).is_none());
        table.arrived(key.1, 0, ANY_TAG);
        assert!(!ready.has_listed());
    }

    #[test]
    fn who_does_not_ask_for_a_while_is_forgotten_and_a_topic_of_nobody_is_not_watched() {
        let (table, unwatched) = (ReadyTable::default(), Mutex::new(Vec::new()));
        let let_idle_go = || {
            table.let_idle_go(|topic| lock(&unwatched).push(topic));
            std::mem::take(&mut *lock(&unwatched))
        };
        let topic = TopicId::new(2);
        let [idle, asks, waits] = [1, 2, 3].map(|group| (GroupId::new(group), topic));
        let keys = [idle, asks, waits];
        let parked = table.make(waits).park(false, ALL).unwrap();
        keys.iter().for_each(|key| drop(table.make(*key)));
        let there = || keys.map(|key| table.get(key).is_some());
        assert_eq!(let_idle_go(), []);
        assert_eq!(there(), [true; 3], "they were made since the last time");
        table.get(asks).unwrap().asked();
        assert_eq!(let_idle_go(), []);
        assert_eq!(there(), [false, true, true]);
        table.arrived(topic, 7, ANY_TAG);
        assert!(table.get(asks).unwrap().has_listed());
        assert!(!table.make(idle).has_listed(), "another one, to be looked at anew");
        table.forget(idle);
        drop(parked);
        assert_eq!(let_idle_go(), [topic]);
        assert_eq!(there(), [false; 3]);
        assert_eq!(let_idle_go(), []);
        // Deleted, not idle.
        drop(table.make(idle));
        table.forget(idle);
        assert_eq!(let_idle_go(), [topic]);
    }
}
