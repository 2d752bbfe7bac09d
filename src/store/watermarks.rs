//! The positions that say how far each part of the store has come.
//!
//! | mark | all below it is | moved by |
//! | --- | --- | --- |
//! | `appended` | in the page cache | the holder of the append lock |
//! | `dispatched` | in ConsumeQueues and Index | the holder of the dispatcher's lock |
//! | `flushed` | on stable media | the flush worker |
//! | `sealed` | in `.cq` and `.idx` files | the seal worker |
//!
//! Each is monotone. `sealed <= flushed <= appended` and `sealed <= dispatched <= appended`; between `dispatched` and
//! `flushed` there is no order. A writer stores with Release after the bytes below the mark are final, a reader loads
//! with Acquire before it looks at them. Each mark has a cache line of its own.

use crate::message::PhysicalOffset;
use crate::sync::{AtomicU64, Ordering};

/// One monotone position.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Mark(AtomicU64);

impl Mark {
    pub(crate) fn new(at: PhysicalOffset) -> Self {
        Self(AtomicU64::new(at.get()))
    }

    /// Where it stands. Acquire: pairs with `advance`.
    pub(crate) fn get(&self) -> PhysicalOffset {
        PhysicalOffset::new(self.0.load(Ordering::Acquire))
    }

    /// Moves it. One writer at a time (each mark's mover holds a lock or is one thread), so a plain store is enough.
    pub(crate) fn advance(&self, to: PhysicalOffset) {
        debug_assert!(to.get() >= self.0.load(Ordering::Relaxed), "a mark never moves back");
        self.0.store(to.get(), Ordering::Release);
    }
}

/// The marks of one store.
#[derive(Debug)]
pub(crate) struct Marks {
    pub(crate) appended: Mark,
    pub(crate) dispatched: Mark,
    pub(crate) flushed: Mark,
    pub(crate) sealed: Mark,
}

/// How far the store has come, as of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// The first byte that the store still has.
    pub min: PhysicalOffset,
    /// All below it is in the page cache.
    pub appended: PhysicalOffset,
    /// All below it can be found by queue and key.
    pub dispatched: PhysicalOffset,
    /// All below it is on stable media.
    pub flushed: PhysicalOffset,
}

impl Marks {
    /// Marks of a store whose log ends at `tail`, all of it flushed and dispatched.
    pub(crate) fn starting_at(tail: PhysicalOffset, sealed: PhysicalOffset) -> Self {
        Self {
            appended: Mark::new(tail),
            dispatched: Mark::new(tail),
            flushed: Mark::new(tail),
            sealed: Mark::new(sealed),
        }
    }

    /// A consistent view: what follows `appended` is read before it, so that no mark is seen ahead of `appended`.
    pub(crate) fn view(&self, min: PhysicalOffset) -> Watermarks {
        let (dispatched, flushed) = (self.dispatched.get(), self.flushed.get());
        Watermarks { min, appended: self.appended.get(), dispatched, flushed }
    }
}
