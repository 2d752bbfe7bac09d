//! Read-only mappings of files: the only `unsafe` of the crate.
//!
//! A [`Mapping`] is either a real one (memmap2, shared, read-only) or a heap twin: memory that stands for the mapped
//! pages of a file of the simulated disk, into which that disk copies every write (features `testing` and tests only).
//!
//! A mapping has a published end, 0 at first, which only moves forward. Bytes are handed out below it alone, and
//! whoever writes to the file (`Segment`) never writes below it; so every slice is final (M2). The real mapping relies
//! on that promise of its owner; the twin enforces it, it holds back what a write would change below the published end.
//!
//! `publish` is called by the one appender, everything else from any thread. A mapping does not write, does not know
//! offsets in the log, and does not protect from SIGBUS: a file that is mapped has real blocks (M1) and is never
//! truncated (M4), what is left is a device that cannot read a page.
#![expect(unsafe_code, reason = "slices over mapped bytes; invariants M1-M5 of the room")]

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
#[cfg(any(test, feature = "testing"))]
use std::{cell::UnsafeCell, sync::Arc};

use memmap2::{MmapOptions, MmapRaw};

use crate::sync::{AtomicU64, Ordering};
#[cfg(any(test, feature = "testing"))]
use crate::sync::{Mutex, lock};

/// The first `len` bytes of a file, readable in place up to the published end. Dropping it unmaps.
pub struct Mapping {
    bytes: Bytes,
    len: u64,
    /// Release by the appender after its write, Acquire by readers before they form a slice (M2).
    published: AtomicU64,
}

enum Bytes {
    File(MmapRaw),
    #[cfg(any(test, feature = "testing"))]
    Twin(Arc<Twin>),
}

impl Mapping {
    /// Maps the first `len` bytes of `file`, which has at least as many.
    pub(super) fn of_file(file: &OwnedFd, len: u64) -> io::Result<Self> {
        let map_len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        let raw = MmapOptions::new().len(map_len).map_raw_read_only(file)?;
        Ok(Self { bytes: Bytes::File(raw), len, published: AtomicU64::new(0) })
    }

    /// A mapping over memory that the simulated disk keeps equal to its file.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn of_twin(twin: Arc<Twin>) -> Self {
        let len = twin.bytes.len() as u64;
        Self { bytes: Bytes::Twin(twin), len, published: AtomicU64::new(0) }
    }

    /// Bytes mapped.
    #[expect(clippy::len_without_is_empty, reason = "an empty file is never mapped")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Makes the bytes below `end` readable, for all threads. They were written before and never change again. An
    /// `end` below the published one changes nothing.
    ///
    /// # Panics
    /// If `end` is beyond the mapping: a broken invariant of the owner.
    pub fn publish(&self, end: u64) {
        assert!(end <= self.len, "the published end lies within the mapping");
        match &self.bytes {
            Bytes::File(_) => {}
            #[cfg(any(test, feature = "testing"))]
            Bytes::Twin(twin) => twin.freeze(end),
        }
        self.published.fetch_max(end, Ordering::Release);
    }

    /// The published end: a file position.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    /// `len` bytes from file position `at`, in place. `None` unless all of them are published.
    pub fn slice(&self, at: u64, len: usize) -> Option<&[u8]> {
        let end = at.checked_add(u64::try_from(len).ok()?)?;
        if end > self.published() {
            return None;
        }
        let at = usize::try_from(at).ok()?;
        // SAFETY: `at <= published <= len`, so the result stays within the one allocation that `base` points to.
        let start = unsafe { self.base().add(at) };
        // SAFETY: M2, `at + len <= published`, so these bytes are written and final (M1, M5: no other way to change
        // them); M4, the file is not truncated under the mapping; M3, the slice borrows `self`, which owns the bytes.
        Some(unsafe { std::slice::from_raw_parts(start, len) })
    }

    fn base(&self) -> *const u8 {
        match &self.bytes {
            Bytes::File(raw) => raw.as_ptr(),
            #[cfg(any(test, feature = "testing"))]
            Bytes::Twin(twin) => twin.bytes.as_ptr().cast::<u8>(),
        }
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("len", &self.len)
            .field("published", &self.published())
            .finish_non_exhaustive()
    }
}

/// The mapped pages of a simulated file. Written by the simulated disk alone.
#[cfg(any(test, feature = "testing"))]
pub(super) struct Twin {
    /// Below `frozen`: shared with readers, never changed. At and above it: only touched under the lock of `frozen`.
    bytes: Box<[UnsafeCell<u8>]>,
    /// The published end of the mapping over this twin.
    frozen: Mutex<u64>,
}

#[cfg(any(test, feature = "testing"))]
// SAFETY: M2, bytes below `frozen` are only read, bytes at and above it are only touched under its lock.
unsafe impl Sync for Twin {}

#[cfg(any(test, feature = "testing"))]
impl Twin {
    /// Memory with these bytes.
    pub(super) fn new(bytes: Vec<u8>) -> Arc<Self> {
        let raw = Box::into_raw(bytes.into_boxed_slice()) as *mut [UnsafeCell<u8>];
        // SAFETY: `raw` comes from `Box::into_raw`, and `UnsafeCell<u8>` has the layout of `u8`.
        let bytes = unsafe { Box::from_raw(raw) };
        Arc::new(Self { bytes, frozen: Mutex::new(0) })
    }

    /// Copies in what the file got at `at`, as far as it lies inside and is not published. Answers whether published
    /// bytes were held back.
    pub(super) fn write(&self, at: u64, mut bytes: &[u8]) -> bool {
        // Held to the end: `freeze` and with it `publish` wait for the copy.
        let frozen = lock(&self.frozen);
        let held_back = frozen.saturating_sub(at).min(bytes.len() as u64);
        bytes = bytes.get(held_back as usize..).unwrap_or_default();
        let start = at + held_back;
        let room = (self.bytes.len() as u64).saturating_sub(start);
        bytes = bytes.get(..room.min(bytes.len() as u64) as usize).unwrap_or_default();
        if !bytes.is_empty() {
            let target = self.bytes[start as usize..].as_ptr().cast::<u8>().cast_mut();
            // SAFETY: `target` has room for `bytes`; M2, `start >= frozen`, so no slice covers them, and the lock
            // that this function holds keeps other writers and `freeze` away; source and target cannot overlap, as
            // nobody outside has a slice of unpublished bytes.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
        }
        held_back > 0
    }

    fn freeze(&self, end: u64) {
        let mut frozen = lock(&self.frozen);
        *frozen = end.max(*frozen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_exist_only_below_the_published_end() {
        let mapping = Mapping::of_twin(Twin::new(b"abcdef".to_vec()));
        assert_eq!(mapping.slice(0, 1), None);
        mapping.publish(4);
        mapping.publish(2);
        assert_eq!(mapping.published(), 4);
        assert_eq!(mapping.slice(1, 3), Some(&b"bcd"[..]));
        assert_eq!(mapping.slice(1, 4), None);
        assert_eq!(mapping.slice(4, 0), Some(&b""[..]));
        assert_eq!(mapping.slice(u64::MAX, 1), None);
        assert_eq!(mapping.slice(1, usize::MAX), None);
    }

    #[test]
    fn twin_takes_writes_above_the_published_end_only() {
        let twin = Twin::new(vec![0; 6]);
        let mapping = Mapping::of_twin(Arc::clone(&twin));
        assert!(!twin.write(0, b"abc"));
        mapping.publish(2);
        assert!(twin.write(0, b"xyz1234"), "two bytes are held back, the last one lies outside");
        assert!(!twin.write(9, b"far"));
        mapping.publish(6);
        assert_eq!(mapping.slice(0, 6), Some(&b"abz123"[..]));
    }

    #[test]
    #[should_panic(expected = "within the mapping")]
    fn publishing_beyond_the_mapping_is_a_broken_invariant() {
        Mapping::of_twin(Twin::new(vec![0; 6])).publish(7);
    }
}
