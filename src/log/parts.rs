//! The memory parts of one structure: one per unsealed segment, the newest grows, the others are frozen.
//!
//! The list is without holes: all older segments have files, or are missing. A part leaves the list after its file is
//! listed, so a reader who looks at the parts first and at the files behind them finds every segment. A reader that
//! holds an older list still uses the parts in it.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use crate::message::PhysicalOffset;
use crate::sync::{Mutex, lock};

/// A part in the list.
pub(super) struct Listed<P> {
    /// Of its segment.
    pub(super) base: PhysicalOffset,
    pub(super) part: Arc<P>,
    /// Whether its file is in place.
    is_sealed: bool,
}

impl<P> Clone for Listed<P> {
    fn clone(&self) -> Self {
        Self { base: self.base, part: self.part.clone(), is_sealed: self.is_sealed }
    }
}

pub(super) struct Parts<P> {
    /// Oldest first.
    list: ArcSwap<Vec<Listed<P>>>,
    /// Held by whoever changes the list.
    changes: Mutex<()>,
}

impl<P> Parts<P> {
    pub(super) fn new() -> Self {
        Self { list: ArcSwap::default(), changes: Mutex::new(()) }
    }

    /// Oldest first, as they stand now.
    pub(super) fn list(&self) -> Guard<Arc<Vec<Listed<P>>>> {
        self.list.load()
    }

    /// Runs `use_it` on the part that grows, if there is one.
    #[inline]
    pub(super) fn with_newest(&self, use_it: impl FnOnce(&Listed<P>)) {
        let list = self.list.load();
        debug_assert!(!list.is_empty(), "a part is started before its entries are put");
        list.last().map(use_it);
    }

    /// The part of the segment at `base`.
    pub(super) fn get(&self, base: PhysicalOffset) -> Option<Arc<P>> {
        let list = self.list.load();
        list.iter().find(|listed| listed.base == base).map(|listed| listed.part.clone())
    }

    /// Freezes the newest part by putting another behind it.
    pub(super) fn start(&self, base: PhysicalOffset, part: P) {
        self.change(|list| {
            debug_assert!(list.last().is_none_or(|last| last.base < base), "parts follow");
            list.push(Listed { base, part: Arc::new(part), is_sealed: false });
        });
    }

    /// The part's file is in place. The part goes when all older parts are gone too.
    pub(super) fn retire(&self, base: PhysicalOffset) {
        self.change(|list| {
            for listed in list.iter_mut() {
                listed.is_sealed |= listed.base == base;
            }
            let sealed = list.iter().take_while(|listed| listed.is_sealed).count();
            list.drain(..sealed);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Listed<P>>)) {
        let changes = lock(&self.changes);
        let mut list = Vec::clone(&self.list.load());
        change(&mut list);
        self.list.store(Arc::new(list));
        drop(changes);
    }
}
