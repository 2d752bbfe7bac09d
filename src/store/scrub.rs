//! Reads what nobody reads, so that damage is found while something can still be done about it.
//!
//! A pass goes over every finished segment whose files are written: first its records, then the pages of its `.cq` and
//! `.idx` files, at most [`PIECE`] bytes a step and `scrub_rate` bytes a second. It reads the disk, not the page cache,
//! and leaves the cache to others: what it is about to read is dropped before, what it has read is dropped behind it.
//! What is read in place (`hot_bytes`) and what is not sealed is left out: the one is in memory, and the other is read
//! by every start.
//!
//! | found | then |
//! | --- | --- |
//! | a record that fails a checksum, bytes that hold no record | known damage (`damage.rs`) |
//! | a page that fails its checksum, a file that is gone | the file is missing: the seal worker makes it again |
//! | the disk refuses to read | told, and tried again in the next pass: it may be sound |
//! | the segment was deleted meanwhile | nothing: what is open stays readable |
//!
//! A pass begins with the start of the store, and [`PASS_EVERY`] after the one before began. It does not survive a
//! restart.

use std::time::Duration;

use super::Shared;
use super::signal::Progress;
use crate::file::segment::Segment;
use crate::format::segment_header::PAGE_LEN;
use crate::log::commit_log::Via;
use crate::log::paged::{Scrubbed, SealedError};
use crate::log::walk::{SegmentWalk, Step};
use crate::message::PhysicalOffset;
use crate::sync::{Arc, Ordering};

/// Bytes that a step reads; more if a record or a gap is longer.
const PIECE: u64 = 1 << 20;
/// From the begin of a pass to the begin of the next, if it does not take longer.
const PASS_EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// How often to look for a first finished segment.
const LOOK: Duration = Duration::from_secs(600);
/// How long to sleep when there is nothing to do until the process ends.
const IDLE: Duration = Duration::from_secs(3_600);

/// The state of the scrub.
pub struct ScrubWorker {
    shared: Arc<Shared>,
    /// Not before this, on the process clock.
    due: Duration,
    pass: Option<Pass>,
}

/// A pass under way.
struct Pass {
    /// On the process clock.
    began: Duration,
    /// Segments from this base on are still to be read.
    next: PhysicalOffset,
    /// In which segment it stands.
    place: Option<Place>,
    segments: u64,
}

/// What of a segment is read next.
enum Place {
    Log { segment: Arc<Segment>, walk: SegmentWalk },
    Queues { base: PhysicalOffset, page: u64 },
    Index { base: PhysicalOffset, page: u64 },
}

impl ScrubWorker {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, due: Duration::ZERO, pass: None }
    }

    /// Reads a piece, if that is due by the rate.
    pub fn step(&mut self) -> Progress {
        let rate = self.shared.config.scrub_rate;
        if rate == 0 || self.shared.is_poisoned() {
            return Progress::Idle(IDLE);
        }
        let now = self.shared.clock.elapsed();
        if now < self.due {
            return Progress::Idle(self.due - now);
        }
        let mut pass = self.pass.take().unwrap_or(Pass {
            began: now,
            next: PhysicalOffset::ZERO,
            place: None,
            segments: 0,
        });
        match self.shared.scrub_piece(&mut pass) {
            Some(bytes) => {
                self.pass = Some(pass);
                self.shared.metrics.scrubbed_bytes.add(bytes);
                self.due = now + time_for(bytes, rate);
                Progress::Worked
            }
            None if pass.segments == 0 => {
                self.due = now + LOOK;
                Progress::Idle(LOOK)
            }
            None => {
                self.shared.metrics.scrub_passes.increment();
                let wall = self.shared.clock.now().get();
                self.shared.metrics.scrubbed_at.store(wall, Ordering::Relaxed);
                self.due = now.max(pass.began + PASS_EVERY);
                Progress::Idle(self.due - now)
            }
        }
    }
}

/// How long `bytes` take at `rate` bytes a second.
fn time_for(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

impl Shared {
    /// Reads the next piece of the pass and says how many bytes it was; `None`: there is no more.
    fn scrub_piece(&self, pass: &mut Pass) -> Option<u64> {
        let place = match pass.place.take() {
            Some(place) => place,
            None => {
                let segment = self.scrubbable(pass.next)?;
                pass.next = segment.end();
                pass.segments += 1;
                // A hint: without it what is cached is not read from the disk.
                if let Err(error) = segment.drop_cache() {
                    tracing::debug!(%error, "cached pages stay");
                }
                let from = segment.base().plus(PAGE_LEN as u64);
                let walk = SegmentWalk::new(Arc::clone(&segment), self.log.salt(&segment), from);
                Place::Log { segment, walk }
            }
        };
        let (bytes, next) = match place {
            Place::Log { segment, walk } => self.scrub_log(segment, walk),
            Place::Queues { base, page } => {
                let scrubbed = self.queues.scrub(base, page, PIECE / PAGE_LEN as u64);
                let Scrubbed { bytes, next } = self.scrubbed(base, scrubbed);
                let next = next.map(|page| Place::Queues { base, page });
                (bytes, next.or(Some(Place::Index { base, page: 0 })))
            }
            Place::Index { base, page } => {
                let scrubbed = self.indexes.scrub(base, page, PIECE / PAGE_LEN as u64);
                let Scrubbed { bytes, next } = self.scrubbed(base, scrubbed);
                (bytes, next.map(|page| Place::Index { base, page }))
            }
        };
        pass.place = next;
        Some(bytes)
    }

    /// The first segment from `from` on that is sealed and not read in place.
    fn scrubbable(&self, from: PhysicalOffset) -> Option<Arc<Segment>> {
        let sealed = self.marks.sealed.get();
        let segments = self.log.segments();
        let segment = segments.iter().find(|segment| segment.base() >= from)?;
        let last = PhysicalOffset::new(segment.end().get().saturating_sub(1));
        (segment.end() <= sealed && self.via(last) == Via::Disk).then(|| Arc::clone(segment))
    }

    /// Walks a piece of a segment.
    fn scrub_log(&self, segment: Arc<Segment>, mut walk: SegmentWalk) -> (u64, Option<Place>) {
        let start = walk.at();
        let base = segment.base();
        let mut is_over = false;
        while !is_over && walk.at().since(start) < PIECE {
            let at = walk.at();
            let wrong = match walk.step() {
                Ok(Step::End) => {
                    is_over = true;
                    None
                }
                Ok(Step::Record { body: Ok(()), .. }) => None,
                Ok(Step::Record { header, body: Err(_) }) => Some(at..header.end()),
                // A finished segment ends with a filler, or without room for one.
                Ok(Step::Gap { end, .. }) => Some(at..end),
                Err(error) => {
                    tracing::warn!(%error, "the scrub passes over the rest of a segment");
                    is_over = true;
                    None
                }
            };
            if let Some(range) = wrong {
                if walk.is_unread(&range) {
                    let (begin, end) = (range.start.get(), range.end.get());
                    tracing::warn!(begin, end, "the disk does not give a part of the log");
                } else {
                    self.found_damage(range);
                }
            }
            is_over |= walk.at() >= segment.end();
        }
        let end = walk.at().min(segment.end());
        if let Err(error) = segment.drop_cache_of(start..end) {
            tracing::debug!(%error, "cached pages stay");
        }
        let next =
            if is_over { Place::Queues { base, page: 0 } } else { Place::Log { segment, walk } };
        (end.since(start), Some(next))
    }

    /// What a look at a derived file came to; one that is lost is made again.
    fn scrubbed(&self, base: PhysicalOffset, scrubbed: Result<Scrubbed, SealedError>) -> Scrubbed {
        scrubbed.unwrap_or_else(|error| {
            // What was deleted with its segment is not lost.
            if self.log.segment_at(base).is_some() {
                tracing::warn!(segment = base.get(), %error, "a derived file is lost and made again");
                self.seal_signal.wake();
            }
            Scrubbed { bytes: 0, next: None }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_their_time_at_a_rate() {
        assert_eq!(time_for(1 << 20, 16 << 20), Duration::from_micros(62_500));
        assert_eq!(time_for(0, 1), Duration::ZERO);
        assert_eq!(time_for(u64::MAX, 1), Duration::from_nanos(u64::MAX));
        assert_eq!(time_for(4_096, u64::MAX), Duration::ZERO);
    }
}
