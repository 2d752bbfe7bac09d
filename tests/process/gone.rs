//! What may be gone: only what somebody purged, or what is beyond the retention; and then for ever.
//!
//! | finding | what was seen |
//! | --- | --- |
//! | back | a queue begins before where it began already, or before where it was purged to |
//! | undead | a message below the begin that somebody knew before it was asked for |
//! | taken | a queue begins behind an acknowledged message that nobody purged and that was not beyond the retention |
//!
//! Who was told something knows it from the return of his call on: so observations of several people are one.

use std::collections::BTreeMap;
use std::time::Instant;

use mainstem::client::Purge;
use mainstem::message::QueueOffset;

use crate::history::{History, Known, Outcome, Place, Purged, Queue, Send, Told};

/// A record has at most so many bytes beside its batch.
const RECORD_OVERHEAD: u64 = 1 << 10;

impl History {
    pub(crate) fn check_gone(&self, begins: &BTreeMap<Queue, u64>, findings: &mut Vec<String>) {
        let mut told: BTreeMap<Queue, Vec<&Told>> = BTreeMap::new();
        for one in &self.told {
            told.entry((one.topic, one.queue)).or_default().push(one);
        }
        let floors: BTreeMap<Queue, Known> =
            told.keys().map(|queue| (*queue, self.floor_of(*queue, &told))).collect();
        for (queue, told) in &mut told {
            for told in told.iter() {
                let before = floors[queue].before(told.asked);
                if told.min < before {
                    findings.push(format!("back: {told:?} after {before}"));
                }
            }
            self.check_taken(*queue, told, findings);
        }
        let floor = |place: Place| floors.get(&(place.topic, place.queue));
        for seen in &self.seen {
            let before = floor(seen.read.place).map_or(0, |floor| floor.before(seen.asked));
            if seen.read.place.offset < before {
                findings.push(format!("undead: {seen:?} after {before}"));
            }
        }
        for read in &self.last {
            let begin = begins.get(&(read.place.topic, read.place.queue)).copied();
            if begin.is_some_and(|begin| read.place.offset < begin) {
                findings.push(format!("undead: {read:?} below {begin:?}"));
            }
        }
    }

    /// Where a queue began at least: what was told, and what acknowledged purges promised.
    fn floor_of(&self, (topic, queue): Queue, told: &BTreeMap<Queue, Vec<&Told>>) -> Known {
        let told = told[&(topic, queue)].iter().map(|told| (told.returned, told.min));
        let purges = self.purges.iter().filter(|purge| {
            purge.is_acknowledged && purge.topic == topic && concerns(&purge.what, queue)
        });
        let promised = purges.map(|purge| match purge.what {
            Purge::Queue { up_to: Some(up_to), .. } => (purge.returned, up_to.get()),
            // What was acknowledged before it was asked for.
            _ => (purge.returned, self.acknowledged_end((topic, queue), purge.invoked)),
        });
        Known::of(told.chain(promised))
    }

    /// The end of what was acknowledged in a queue before `at`.
    fn acknowledged_end(&self, (topic, of): Queue, at: Instant) -> u64 {
        let ends = self.sends.iter().filter_map(|send| match send.outcome {
            Outcome::Stored { queue, first, .. }
                if send.topic == topic && queue == of && send.returned < at =>
            {
                Some(first + u64::from(send.count))
            }
            _ => None,
        });
        ends.max().unwrap_or_default()
    }

    /// Holds every step of a queue's begin against what may be gone by then.
    fn check_taken(&self, (topic, queue): Queue, told: &mut [&Told], findings: &mut Vec<String>) {
        told.sort_by_key(|told| told.returned);
        let mut acknowledged: Vec<_> = self
            .sends
            .iter()
            .filter(|send| send.topic == topic)
            .filter_map(|send| match send.outcome {
                Outcome::Stored { queue: of, first, .. } if of == queue => Some((first, send)),
                _ => None,
            })
            .collect();
        acknowledged.sort_unstable_by_key(|(first, _)| *first);
        let mut begin = 0;
        for told in told {
            for (first, send) in &acknowledged {
                let end = first + u64::from(send.count);
                // Those that this step has passed over, at least in part.
                if end <= begin || *first >= told.min {
                    continue;
                }
                let newest = QueueOffset::new(end.min(told.min) - 1);
                if !self.is_expired(send, told) && !self.is_purged(send, newest, told) {
                    findings.push(format!("taken: {send:?} by {told:?}"));
                }
            }
            begin = told.min.max(begin);
        }
    }

    /// Whether a record may be beyond the retention of its topic.
    fn is_expired(&self, send: &Send, told: &Told) -> bool {
        let Some(retention) = self.retention.get(send.topic) else { return false };
        let Outcome::Stored { time, .. } = send.outcome else { return false };
        let is_old =
            retention.time_ms.is_some_and(|ms| time.get().saturating_add(ms) <= told.time.get());
        is_old || retention.bytes.is_some_and(|bytes| self.bytes_behind(send, told) >= bytes)
    }

    /// At most so many bytes of records of its topic lay behind a record.
    fn bytes_behind(&self, send: &Send, told: &Told) -> u64 {
        let behind = |other: &&Send| {
            other.topic == send.topic
                && other.returned > send.invoked
                && other.invoked < told.returned
                && other.first != send.first
                && other.outcome != Outcome::Refused
        };
        self.sends.iter().filter(behind).map(|other| other.bytes + RECORD_OVERHEAD).sum()
    }

    /// Whether a purge may have taken a message of a send.
    fn is_purged(&self, send: &Send, offset: QueueOffset, told: &Told) -> bool {
        self.purges.iter().any(|purge| {
            let Purged { topic, what, invoked, returned, .. } = purge;
            *topic == send.topic
                && concerns(what, told.queue)
                && *invoked < told.returned
                && match what {
                    Purge::Queue { up_to: Some(up_to), .. } => offset < *up_to,
                    _ => *returned > send.invoked,
                }
        })
    }
}

fn concerns(what: &Purge, queue: u32) -> bool {
    match what {
        Purge::Topic => true,
        Purge::Queue { queue: of, .. } => of.get() == queue,
    }
}
