//! What producers and readers saw, and whether one store can have shown it to them.
//!
//! A message is named by its [`Stamp`]; its body and keys follow from the stamp, so that a reader knows a message that
//! was changed on its way from one that was sent.
//!
//! | finding | what was seen |
//! | --- | --- |
//! | lost | an acknowledged message is not at its place in the last read |
//! | phantom | a message that nobody sent, or changed |
//! | aborted | a message whose sends were all refused |
//! | diverged | one place with two contents, or a place that was there and is not |
//! | duplicate | a message more often than its sends with an unknown end explain |
//! | order | messages of a producer in another order, or a later send before an earlier one |
//! | hole | a queue whose offsets do not count up from 0 |
//! | end | the end of a queue went down |

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use mainstem::client::{Message, Stored};
use mainstem::message::MessageId;

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

    fn dice(self) -> Dice {
        Dice::new(u64::from(self.producer) << 32 | u64::from(self.sequence))
    }

    /// The stamp and noise, 10 bytes to 20 KiB.
    pub(crate) fn body(self) -> Vec<u8> {
        let mut dice = self.dice();
        // Half of them are small.
        let most = if dice.below(2) == 0 { 500 } else { Self::MOST - Self::LEAST + 1 };
        let len = usize::try_from(Self::LEAST + dice.below(most)).unwrap();
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
    /// Acknowledged, the first message at this queue and offset.
    Stored { queue: u32, first: u64 },
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

/// Everything that was seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) sends: Vec<Send>,
    /// All that readers ever got.
    pub(crate) seen: Vec<Read>,
    /// Ends of queues that readers were told, each queue's in the order of time.
    pub(crate) ends: Vec<Place>,
    /// Every queue from its beginning to its end, when all was over.
    pub(crate) last: Vec<Read>,
}

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
        self.check_sends(&last, &mut findings);
        self.check_reads(&last, &mut findings);
        check_queues(&last, &mut findings);
        self.check_real_time(&mut findings);
        self.check_ends(&last, &mut findings);
        findings
    }

    fn check_sends(&self, last: &BTreeMap<Place, &Read>, findings: &mut Vec<String>) {
        for send in &self.sends {
            let Outcome::Stored { queue, first } = send.outcome else { continue };
            for (offset, stamp) in (first..).zip(send.stamps()) {
                let place = Place { topic: send.topic, queue, offset };
                match last.get(&place) {
                    None => findings.push(format!("lost: {stamp:?} of {place:?}")),
                    Some(read) if read.stamp != Some(stamp) => findings.push(format!(
                        "diverged: {stamp:?} was acknowledged at {place:?}, there is {:?}",
                        read.stamp
                    )),
                    Some(_) => {}
                }
            }
        }
    }

    fn check_reads(&self, last: &BTreeMap<Place, &Read>, findings: &mut Vec<String>) {
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
        let mut found: BTreeMap<(&str, Stamp), u32> = BTreeMap::new();
        for read in self.seen.iter().chain(&self.last) {
            let known = read.stamp.map(|stamp| sent.get(&(read.place.topic, stamp)));
            match known {
                None | Some(None) => findings.push(format!("phantom: {read:?}")),
                Some(Some(Sent { stored: 0, unknown: 0 })) => {
                    findings.push(format!("aborted: {read:?}"));
                }
                Some(Some(_)) => {}
            }
            let now = last.get(&read.place);
            if now.is_none_or(|now| *now != read) {
                findings.push(format!("diverged: {read:?} became {now:?}"));
            }
        }
        for read in last.values() {
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
            if let Outcome::Stored { queue, first } = send.outcome {
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
        let mut ends: BTreeMap<(&str, u32), u64> = BTreeMap::new();
        let final_ends = last.keys().map(|place| Place { offset: place.offset + 1, ..*place });
        let mut final_end = BTreeMap::new();
        for end in final_ends {
            final_end.insert((end.topic, end.queue), end);
        }
        for end in self.ends.iter().chain(final_end.values()) {
            let before = ends.entry((end.topic, end.queue)).or_default();
            if end.offset < *before {
                findings.push(format!("end: {end:?} after {before}"));
            }
            *before = end.offset;
        }
    }
}

/// Offsets count up from 0, and each producer's messages come in his order, repetitions aside.
fn check_queues(last: &BTreeMap<Place, &Read>, findings: &mut Vec<String>) {
    let mut next: BTreeMap<(&str, u32), u64> = BTreeMap::new();
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

    use mainstem::message::{Epoch, PhysicalOffset};

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

    /// Three acknowledged sends, an unknown one that is there, a refused one.
    fn honest() -> History {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let stored = |first| Outcome::Stored { queue: 0, first };
        let outcomes = [stored(0), stored(1), Outcome::Unknown, Outcome::Refused, stored(3)];
        let sends = (0..).zip(outcomes).map(|(sequence, outcome)| Send {
            topic: "t",
            first: stamp(sequence),
            count: 1,
            invoked: at(u64::from(sequence) * 10),
            returned: at(u64::from(sequence) * 10 + 5),
            outcome,
        });
        let last = vec![read(0, 0), read(1, 1), read(2, 2), read(3, 4)];
        History {
            sends: sends.collect(),
            seen: last[..2].to_vec(),
            ends: vec![place(0), place(2), place(4)],
            last,
        }
    }

    /// The first words of the findings after `lie`.
    fn found(lie: impl FnOnce(&mut History)) -> Vec<String> {
        let mut history = honest();
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
        assert_eq!(found(|h| h.seen[1].stamp = None), ["phantom", "diverged"]);
        assert_eq!(found(|h| h.last[2].stamp = Some(stamp(9))), ["phantom", "order"]);
        assert_eq!(found(|h| h.last[2].stamp = Some(stamp(3))), ["aborted"]);
        assert_eq!(found(|h| h.seen[1].stamp = Some(stamp(0))), ["diverged"]);
        assert_eq!(found(|h| h.seen[1].id.index = 1), ["diverged"]);
        assert_eq!(found(|h| h.seen.push(read(4, 4))), ["diverged"]);
        assert_eq!(found(|h| h.last.push(read(4, 4))), ["duplicate"]);
        assert_eq!(found(|h| h.last.push(read(5, 2))), ["duplicate", "hole"]);
        assert_eq!(found(|h| h.sends[2].first = stamp(7)), ["phantom"]);
        assert_eq!(found(|h| h.last[2].stamp = Some(stamp(0))), ["duplicate"]);
        let swap = |h: &mut History| {
            h.sends[0].first = stamp(7);
            h.last[0].stamp = Some(stamp(7));
            h.seen[0].stamp = Some(stamp(7));
        };
        assert_eq!(found(swap), ["order"]);
        assert_eq!(found(|h| h.ends[2] = place(1)), ["end"]);
        assert_eq!(found(|h| h.sends[0].invoked += Duration::from_millis(16)), ["order"]);
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
