//! What producers and readers saw, and whether one store can have shown it to them.
//!
//! A message is named by its [`Stamp`]; its body and keys follow from the stamp, so that a reader knows a message that
//! was changed on its way from one that was sent.
//!
//! | finding | what was seen |
//! | --- | --- |
//! | lost | an acknowledged message is not at its place in the last read, and its queue does not begin behind it |
//! | phantom | a message that nobody sent, or changed |
//! | aborted | a message whose sends were all refused |
//! | diverged | one place with two contents, or a place that was there and is not, and its queue does not begin behind it |
//! | twice | an offset that two sends were acknowledged with |
//! | duplicate | a message more often than its sends with an unknown end explain |
//! | order | messages of a producer in another order, or a later send before an earlier one |
//! | hole | a queue whose offsets do not count up from its begin |
//! | end | the end of a queue went down |
//! | back, undead, taken | what is gone: see `gone.rs` |

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use mainstem::client::{Message, Purge, Stored};
use mainstem::message::{MessageId, Retention, Timestamp};

use crate::support::Dice;

/// Names one message: who sent it, as which of his.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp {
    pub(crate) producer: u8,
    pub(crate) sequence: u32,
}

impl Stamp {
    const LEN: usize = 5;
    /// Bytes of a body.
    const LEAST: u64 = 10;
    const MOST: u64 = 20 << 10;
    /// Producers from this one on send bodies of [`Self::HEAVY`] bytes, so that segments come and go.
    pub(crate) const FIRST_HEAVY: u8 = 128;
    const HEAVY: u64 = 384 << 10;

    fn dice(self) -> Dice {
        Dice::new(u64::from(self.producer) << 32 | u64::from(self.sequence))
    }

    /// The stamp and noise, 10 bytes to 20 KiB, or much.
    pub(crate) fn body(self) -> Vec<u8> {
        let mut dice = self.dice();
        // Half of them are small.
        let most = if dice.below(2) == 0 { 500 } else { Self::MOST - Self::LEAST + 1 };
        let len = match self.producer {
            Self::FIRST_HEAVY.. => Self::HEAVY,
            _ => Self::LEAST + dice.below(most),
        };
        let len = usize::try_from(len).unwrap();
        let mut body = Vec::with_capacity(len + 8);
        body.push(self.producer);
        body.extend(self.sequence.to_le_bytes());
        while body.len() < len {
            body.extend(dice.roll().to_le_bytes());
        }
        body.truncate(len);
        body
    }

    /// None, one that neighbours share, or that and one of its own.
    pub(crate) fn keys(self) -> Vec<String> {
        let Self { producer, sequence } = self;
        let mut keys = Vec::new();
        if sequence % 3 != 0 {
            keys.push(format!("p{producer}-{}", sequence / 10));
        }
        if sequence % 7 == 1 {
            keys.push(format!("only-{producer}-{sequence}"));
        }
        keys
    }

    /// The stamp of a message that is as it was made.
    pub(crate) fn of(message: &Message) -> Option<Self> {
        let (producer, rest) = message.body.get(..Self::LEN)?.split_first()?;
        let sequence = u32::from_le_bytes(rest.try_into().ok()?);
        let stamp = Self { producer: *producer, sequence };
        (message.body == stamp.body() && message.keys == stamp.keys()).then_some(stamp)
    }
}

/// Where a message stands: topic, queue, queue offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) topic: &'static str,
    pub(crate) queue: u32,
    pub(crate) offset: u64,
}

/// How a send ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Acknowledged, the first message at this queue and offset, stored at this time.
    Stored { queue: u32, first: u64, time: Timestamp },
    /// Definitely not stored.
    Refused,
    /// It may be there or not.
    Unknown,
}

impl From<Stored> for Outcome {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::No => Self::Refused,
            Stored::Unknown => Self::Unknown,
        }
    }
}

/// One send: messages of one producer, counting up.
#[derive(Clone, Debug)]
pub(crate) struct Send {
    pub(crate) topic: &'static str,
    pub(crate) first: Stamp,
    pub(crate) count: u32,
    /// Of the batch.
    pub(crate) bytes: u64,
    pub(crate) invoked: Instant,
    pub(crate) returned: Instant,
    pub(crate) outcome: Outcome,
}

impl Send {
    pub(crate) fn stamps(&self) -> impl Iterator<Item = Stamp> {
        let Stamp { producer, sequence } = self.first;
        (sequence..sequence + self.count).map(move |sequence| Stamp { producer, sequence })
    }
}

/// One message in a reader's hand; no stamp: nobody made it so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) place: Place,
    pub(crate) stamp: Option<Stamp>,
    pub(crate) id: MessageId,
}

impl Read {
    pub(crate) fn of(topic: &'static str, message: &Message) -> Self {
        let place = Place { topic, queue: message.queue.get(), offset: message.queue_offset.get() };
        Self { place, stamp: Stamp::of(message), id: message.id }
    }
}

/// A message that a reader got while others sent and purged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) read: Read,
    pub(crate) asked: Instant,
}

/// What somebody was told of a queue: its first offset and the next to be readable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    pub(crate) topic: &'static str,
    pub(crate) queue: u32,
    pub(crate) min: u64,
    pub(crate) max: u64,
    pub(crate) asked: Instant,
    pub(crate) returned: Instant,
    /// Behind the return.
    pub(crate) time: Timestamp,
}

/// A purge, acknowledged or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Purged {
    pub(crate) topic: &'static str,
    pub(crate) what: Purge,
    pub(crate) invoked: Instant,
    pub(crate) returned: Instant,
    /// Else it may be done or not.
    pub(crate) is_acknowledged: bool,
}

/// Everything that was seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// What topics lose by themselves; the others nothing.
    pub(crate) retention: BTreeMap<&'static str, Retention>,
    pub(crate) sends: Vec<Send>,
    pub(crate) purges: Vec<Purged>,
    /// All that readers ever got.
    pub(crate) seen: Vec<Seen>,
    /// All ranges that anybody was told.
    pub(crate) told: Vec<Told>,
    /// Every queue from its beginning to its end, when all was over.
    pub(crate) last: Vec<Read>,
}

/// A queue of a topic.
pub(crate) type Queue = (&'static str, u32);

/// How often a message was sent, by outcome.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    stored: u32,
    unknown: u32,
}

impl History {
    /// What no honest store can have shown, each with the word of the table.
    pub(crate) fn findings(&self) -> Vec<String> {
        let mut findings = Vec::new();
        let last: BTreeMap<Place, &Read> =
            self.last.iter().map(|read| (read.place, read)).collect();
        let begins = self.begins();
        self.check_sends(&last, &begins, &mut findings);
        self.check_reads(&last, &begins, &mut findings);
        check_queues(&last, &begins, &mut findings);
        self.check_real_time(&mut findings);
        self.check_ends(&last, &mut findings);
        self.check_gone(&begins, &mut findings);
        findings
    }

    /// Where each queue begins, by the highest that anybody was told.
    pub(crate) fn begins(&self) -> BTreeMap<Queue, u64> {
        let mut begins = BTreeMap::new();
        for told in &self.told {
            let begin = begins.entry((told.topic, told.queue)).or_default();
            *begin = told.min.max(*begin);
        }
        begins
    }

    fn check_sends(
        &self,
        last: &BTreeMap<Place, &Read>,
        begins: &BTreeMap<Queue, u64>,
        findings: &mut Vec<String>,
    ) {
        let mut given: BTreeMap<Place, Stamp> = BTreeMap::new();
        for send in &self.sends {
            let Outcome::Stored { queue, first, .. } = send.outcome else { continue };
            for (offset, stamp) in (first..).zip(send.stamps()) {
                let place = Place { topic: send.topic, queue, offset };
                if let Some(other) = given.insert(place, stamp) {
                    findings.push(format!("twice: {place:?} for {other:?} and {stamp:?}"));
                }
                match last.get(&place) {
                    None if is_gone(place, begins) => {}
                    None => findings.push(format!("lost: {stamp:?} of {place:?}")),
                    Some(read) if read.stamp != Some(stamp) => findings.push(format!(
                        "diverged: {stamp:?} was acknowledged at {place:?}, there is {:?}",
                        read.stamp
                    )),
                    Some(_) => {}
                }
            }
        }
        for Seen { read, .. } in &self.seen {
            let stamp = given.get(&read.place).filter(|_| is_gone(read.place, begins));
            if stamp.is_some_and(|stamp| read.stamp != Some(*stamp)) {
                findings.push(format!("diverged: {read:?} where {stamp:?} was acknowledged"));
            }
        }
    }

    fn check_reads(
        &self,
        last: &BTreeMap<Place, &Read>,
        begins: &BTreeMap<Queue, u64>,
        findings: &mut Vec<String>,
    ) {
        let mut sent: BTreeMap<(&str, Stamp), Sent> = BTreeMap::new();
        for send in &self.sends {
            for stamp in send.stamps() {
                let sent = sent.entry((send.topic, stamp)).or_default();
                match send.outcome {
                    Outcome::Stored { .. } => sent.stored += 1,
                    Outcome::Unknown => sent.unknown += 1,
                    Outcome::Refused => {}
                }
            }
        }
        // What each place holds, and what it held before it was gone.
        let mut known = last.clone();
        for read in self.seen.iter().map(|seen| &seen.read).chain(&self.last) {
            let sends = read.stamp.map(|stamp| sent.get(&(read.place.topic, stamp)));
            match sends {
                None | Some(None) => findings.push(format!("phantom: {read:?}")),
                Some(Some(Sent { stored: 0, unknown: 0 })) => {
                    findings.push(format!("aborted: {read:?}"));
                }
                Some(Some(_)) => {}
            }
            let now = match is_gone(read.place, begins) {
                true => Some(*known.entry(read.place).or_insert(read)),
                false => last.get(&read.place).copied(),
            };
            if now != Some(read) {
                findings.push(format!("diverged: {read:?} became {now:?}"));
            }
        }
        let mut found: BTreeMap<(&str, Stamp), u32> = BTreeMap::new();
        for read in known.values() {
            if let Some(stamp) = read.stamp {
                *found.entry((read.place.topic, stamp)).or_default() += 1;
            }
        }
        for (name, count) in found {
            // What was never sent, or refused, was found above.
            let allowed = sent.get(&name).map_or(0, |sent| sent.stored + sent.unknown);
            if allowed > 0 && count > allowed {
                findings.push(format!("duplicate: {name:?} is there {count} times"));
            }
        }
    }

    /// A send that returned before another one began lies before it.
    fn check_real_time(&self, findings: &mut Vec<String>) {
        let mut queues: BTreeMap<(&str, u32), Vec<(u64, &Send)>> = BTreeMap::new();
        for send in &self.sends {
            if let Outcome::Stored { queue, first, .. } = send.outcome {
                queues.entry((send.topic, queue)).or_default().push((first, send));
            }
        }
        for ((topic, queue), mut sends) in queues {
            sends.sort_by_key(|(first, _)| *first);
            // From the end: whoever began after the earliest return of those behind him stands wrong.
            let mut earliest: Option<Instant> = None;
            for (first, send) in sends.into_iter().rev() {
                if earliest.is_some_and(|earliest| earliest < send.invoked) {
                    findings.push(format!(
                        "order: the send at {topic} {queue} {first} began after one behind it had ended"
                    ));
                }
                earliest =
                    Some(earliest.map_or(send.returned, |earliest| earliest.min(send.returned)));
            }
        }
    }

    fn check_ends(&self, last: &BTreeMap<Place, &Read>, findings: &mut Vec<String>) {
        let mut ends: BTreeMap<Queue, Vec<&Told>> = BTreeMap::new();
        for told in &self.told {
            ends.entry((told.topic, told.queue)).or_default().push(told);
        }
        for (queue, ends) in ends {
            let known = Known::of(ends.iter().map(|told| (told.returned, told.max)));
            for told in ends {
                let before = known.before(told.asked);
                if told.max < before {
                    findings.push(format!("end: {told:?} after {before}"));
                }
            }
            let of_queue = |place: &&Place| (place.topic, place.queue) == queue;
            let end = last.keys().rfind(of_queue).map(|place| place.offset + 1);
            if end.is_some_and(|end| end < known.at_last()) {
                findings.push(format!("end: {queue:?} ends at {end:?} after {}", known.at_last()));
            }
        }
    }
}

/// A number that may only rise, as far as those knew it who were told: by time of the telling, the highest so far.
pub(crate) struct Known(Vec<(Instant, u64)>);

impl Known {
    pub(crate) fn of(told: impl Iterator<Item = (Instant, u64)>) -> Self {
        let mut told: Vec<_> = told.collect();
        told.sort_unstable();
        let mut most = 0;
        for (_, number) in &mut told {
            most = most.max(*number);
            *number = most;
        }
        Self(told)
    }

    /// The highest that was told before somebody asked.
    pub(crate) fn before(&self, asked: Instant) -> u64 {
        let behind = self.0.partition_point(|(told, _)| *told < asked);
        behind.checked_sub(1).map_or(0, |at| self.0[at].1)
    }

    pub(crate) fn at_last(&self) -> u64 {
        self.0.last().map_or(0, |(_, most)| *most)
    }
}

/// Whether the queue begins behind a place.
fn is_gone(place: Place, begins: &BTreeMap<Queue, u64>) -> bool {
    begins.get(&(place.topic, place.queue)).is_some_and(|begin| place.offset < *begin)
}

/// Offsets count up from the begin, and each producer's messages come in his order, repetitions aside.
fn check_queues(
    last: &BTreeMap<Place, &Read>,
    begins: &BTreeMap<Queue, u64>,
    findings: &mut Vec<String>,
) {
    let mut next = begins.clone();
    let mut newest: BTreeMap<(&str, u32, u8), u32> = BTreeMap::new();
    let mut known: BTreeSet<(&str, u32, Stamp)> = BTreeSet::new();
    for (place, read) in last {
        let next = next.entry((place.topic, place.queue)).or_default();
        if place.offset != *next {
            findings.push(format!("hole: {place:?} follows {next}"));
        }
        *next = place.offset + 1;
        let Some(stamp) = read.stamp else { continue };
        if !known.insert((place.topic, place.queue, stamp)) {
            continue;
        }
        let Stamp { producer, sequence } = stamp;
        let newest = newest.entry((place.topic, place.queue, producer)).or_default();
        if sequence < *newest {
            findings.push(format!("order: {read:?} behind {newest}"));
        }
        *newest = sequence.max(*newest);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mainstem::message::{Epoch, PhysicalOffset, QueueId, QueueOffset};

    use super::*;

    fn stamp(sequence: u32) -> Stamp {
        Stamp { producer: 1, sequence }
    }

    fn place(offset: u64) -> Place {
        Place { topic: "t", queue: 0, offset }
    }

    fn read(offset: u64, sequence: u32) -> Read {
        let id = MessageId { epoch: Epoch::new(1), offset: PhysicalOffset::new(offset), index: 0 };
        Read { place: place(offset), stamp: Some(stamp(sequence)), id }
    }

    /// What a reader asked for and got `ms` after the start.
    fn seen(start: Instant, ms: u64, read: Read) -> Seen {
        Seen { read, asked: start + Duration::from_millis(ms) }
    }

    fn told(start: Instant, ms: u64, min: u64, max: u64) -> Told {
        let asked = start + Duration::from_millis(ms);
        let returned = asked + Duration::from_millis(1);
        let time = Timestamp::new(TIME + ms + 1);
        Told { topic: "t", queue: 0, min, max, asked, returned, time }
    }

    /// The store time of the start.
    const TIME: u64 = 1_000_000;

    /// Three acknowledged sends, an unknown one that is there, a refused one.
    fn honest() -> History {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let stored =
            |first| Outcome::Stored { queue: 0, first, time: Timestamp::new(TIME + first) };
        let outcomes = [stored(0), stored(1), Outcome::Unknown, Outcome::Refused, stored(3)];
        let sends = (0..).zip(outcomes).map(|(sequence, outcome)| Send {
            topic: "t",
            first: stamp(sequence),
            count: 1,
            bytes: 100,
            invoked: at(u64::from(sequence) * 10),
            returned: at(u64::from(sequence) * 10 + 5),
            outcome,
        });
        let last = vec![read(0, 0), read(1, 1), read(2, 2), read(3, 4)];
        History {
            sends: sends.collect(),
            seen: last[..2].iter().map(|read| seen(start, 30, *read)).collect(),
            told: vec![told(start, 0, 0, 0), told(start, 30, 0, 2), told(start, 60, 0, 4)],
            last,
            ..History::default()
        }
    }

    /// The same, and at 70 ms the first two messages are purged.
    fn purged() -> History {
        let mut history = honest();
        let start = history.told[0].asked;
        let at = |ms| start + Duration::from_millis(ms);
        let what = Purge::Queue { queue: QueueId::new(0), up_to: Some(QueueOffset::new(2)) };
        history.purges.push(Purged {
            topic: "t",
            what,
            invoked: at(70),
            returned: at(75),
            is_acknowledged: true,
        });
        history.told.push(told(start, 80, 2, 4));
        history.seen.push(seen(start, 80, read(2, 2)));
        history.last.drain(..2);
        history
    }

    /// The first words of the findings after `lie`.
    fn found(lie: impl FnOnce(&mut History)) -> Vec<String> {
        found_in(honest(), lie)
    }

    fn found_in(mut history: History, lie: impl FnOnce(&mut History)) -> Vec<String> {
        lie(&mut history);
        let first = |finding: String| finding.split(':').next().unwrap().to_owned();
        let mut words: Vec<_> = history.findings().into_iter().map(first).collect();
        words.dedup();
        words
    }

    #[test]
    fn an_honest_history_has_no_findings() {
        assert_eq!(honest().findings(), Vec::<String>::new());
    }

    #[test]
    fn every_kind_of_lie_is_found() {
        assert_eq!(found(|h| h.last.truncate(3)), ["lost", "end"]);
        assert_eq!(found(|h| h.seen[1].read.stamp = None), ["phantom", "diverged"]);
        assert_eq!(found(|h| h.last[2].stamp = Some(stamp(9))), ["phantom", "order"]);
        assert_eq!(found(|h| h.last[2].stamp = Some(stamp(3))), ["aborted"]);
        assert_eq!(found(|h| h.seen[1].read.stamp = Some(stamp(0))), ["diverged"]);
        assert_eq!(found(|h| h.seen[1].read.id.index = 1), ["diverged"]);
        assert_eq!(found(|h| h.seen.push(seen(h.told[0].asked, 40, read(4, 4)))), ["diverged"]);
        assert_eq!(found(|h| h.last.push(read(4, 4))), ["duplicate"]);
        assert_eq!(found(|h| h.last.push(read(5, 2))), ["duplicate", "hole"]);
        assert_eq!(found(|h| h.sends[2].first = stamp(7)), ["phantom"]);
        assert_eq!(found(|h| h.last[2].stamp = Some(stamp(0))), ["duplicate"]);
        let swap = |h: &mut History| {
            h.sends[0].first = stamp(7);
            h.last[0].stamp = Some(stamp(7));
            h.seen[0].read.stamp = Some(stamp(7));
        };
        assert_eq!(found(swap), ["order"]);
        assert_eq!(found(|h| h.told[2].max = 1), ["end"]);
        let again = |h: &mut History| {
            h.sends[1].outcome = h.sends[0].outcome;
            h.last.remove(1);
        };
        assert_eq!(found(again)[0], "twice");
        assert_eq!(found(|h| h.sends[0].invoked += Duration::from_millis(16)), ["order"]);
    }

    #[test]
    fn what_is_gone_is_gone_for_a_reason_and_for_ever() {
        let gone = |lie: &dyn Fn(&mut History)| found_in(purged(), lie);
        let none = Vec::<String>::new();
        assert_eq!(gone(&|_| {}), none);
        assert_eq!(gone(&|h| h.purges[0].is_acknowledged = false), none, "it may be done");
        // Nobody asked for it, or for less, or only afterwards.
        assert_eq!(gone(&|h| h.purges.clear()), ["taken"]);
        let up_to = |offset| Some(QueueOffset::new(offset));
        let queue = QueueId::new(0);
        let what = |up_to| Purge::Queue { queue, up_to };
        assert_eq!(gone(&|h| h.purges[0].what = what(up_to(1))), ["taken"]);
        assert_eq!(gone(&|h| h.purges[0].what = what(up_to(3))), ["back", "undead"]);
        assert_eq!(gone(&|h| h.purges[0].invoked += Duration::from_millis(20)), ["taken"]);
        let other = Purge::Queue { queue: QueueId::new(1), up_to: up_to(2) };
        assert_eq!(gone(&|h| h.purges[0].what = other), ["taken"]);
        assert_eq!(gone(&|h| h.last.truncate(1)), ["lost", "end"]);
        // All of it, as far as it was acknowledged before.
        for what in [what(None), Purge::Topic] {
            assert_eq!(gone(&|h| h.purges[0].what = what), ["back", "undead"]);
            let early = |h: &mut History| {
                h.purges[0].what = what;
                h.purges[0].invoked -= Duration::from_millis(54);
            };
            assert_eq!(gone(&early), none);
            let earlier = |h: &mut History| {
                early(h);
                h.purges[0].returned -= Duration::from_millis(66);
                h.purges[0].invoked -= Duration::from_millis(12);
            };
            assert_eq!(gone(&earlier), ["taken"], "the second was sent after it");
        }
        // It comes back.
        let start = |h: &History| h.told[0].asked;
        assert_eq!(gone(&|h| h.told.push(told(start(h), 90, 1, 4))), ["back"]);
        assert_eq!(gone(&|h| h.told.push(told(start(h), 76, 1, 4))), ["back"], "not yet at once");
        assert_eq!(gone(&|h| h.seen.push(seen(start(h), 82, read(1, 1)))), ["undead"]);
        assert_eq!(gone(&|h| h.seen.push(seen(start(h), 76, read(1, 1)))), ["undead"]);
        assert_eq!(gone(&|h| h.seen.push(seen(start(h), 74, read(1, 1)))), none);
        assert_eq!(gone(&|h| h.last.insert(0, read(1, 1)))[0], "hole");
        // An offset that is gone is given again, or was something else before.
        assert_eq!(gone(&|h| h.sends[1].outcome = h.sends[0].outcome)[0], "twice");
        assert_eq!(gone(&|h| h.seen[1].read.stamp = Some(stamp(0)))[0], "diverged");
    }

    #[test]
    fn a_message_may_go_only_when_its_time_is_over_or_as_much_as_is_kept_lies_behind_it() {
        let gone = |time_ms, bytes| {
            found_in(purged(), |h| {
                h.purges.clear();
                h.retention.insert("t", Retention { time_ms, bytes });
            })
        };
        // Told at 81 ms; the second was stored at 1 ms.
        assert_eq!(gone(Some(80), None), Vec::<String>::new());
        assert_eq!(gone(Some(81), None), ["taken"]);
        // Two more sends of 100 bytes and a record's head each.
        let most = 2 * (100 + 1024);
        assert_eq!(gone(None, Some(most)), Vec::<String>::new());
        assert_eq!(gone(None, Some(most + 1)), ["taken"]);
        assert_eq!(gone(Some(80), Some(1 << 40)), Vec::<String>::new());
    }

    #[test]
    fn a_send_that_is_repeated_after_an_unknown_end_may_be_there_twice() {
        let again = |h: &mut History| {
            h.sends[4].first = stamp(2);
            h.last[3] = read(3, 2);
        };
        assert_eq!(found(again), Vec::<String>::new());
    }

    #[test]
    fn a_message_is_known_only_as_it_was_made() {
        let stamp = Stamp { producer: 3, sequence: 71 };
        assert!((10..=20 << 10).contains(&stamp.body().len()));
        assert_eq!(stamp.body(), stamp.body());
        assert_eq!(stamp.keys(), ["p3-7", "only-3-71"]);
    }
}
