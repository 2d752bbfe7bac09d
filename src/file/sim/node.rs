//! The contents of one simulated file: what readers see, what the device holds, and what is pending in between.
//!
//! - **content** is the page cache: every change shows at once.
//! - **durable** is the device: it changes by a sync alone (or by decay, see `SimDisk::corrupt`).
//! - **pending** are the changes since the last sync, in order. Content is durable with all of pending applied, unless
//!   a failed sync threw changes away: then the content still shows them until the cache is dropped.
//!
//! Bytes behind the stored ones up to the length are zeros, so a reserved or zero-filled segment costs no memory.

use std::io::IoSlice;
use std::sync::{Arc, Weak};

use crate::file::disk::ZEROS;
use crate::file::mapping::Twin;
use crate::sync::{Mutex, MutexGuard, lock};

/// A page of the page cache: the unit that lands or not.
pub(super) const PAGE: u64 = 4096;

/// A file without its name: an inode.
pub(super) struct Node {
    pub(super) id: u64,
    contents: Mutex<Contents>,
}

impl Node {
    pub(super) fn new(id: u64, durable: Image) -> Arc<Self> {
        let contents = Contents { content: durable.clone(), durable, ..Contents::default() };
        Arc::new(Self { id, contents: Mutex::new(contents) })
    }

    /// Taken after the disk's lock or alone.
    pub(super) fn lock(&self) -> MutexGuard<'_, Contents> {
        lock(&self.contents)
    }
}

#[derive(Default)]
pub(super) struct Contents {
    pub(super) content: Image,
    pub(super) durable: Image,
    pub(super) pending: Vec<Pending>,
    /// A failed sync threw changes away that `content` still shows.
    lost: bool,
    /// One per living mapping.
    twins: Vec<Weak<Twin>>,
}

/// A change that is not durable.
pub(super) struct Pending {
    /// Its place among all changes of the disk.
    pub(super) order: u64,
    pub(super) change: Change,
}

#[derive(Clone)]
pub(super) enum Change {
    Write {
        at: u64,
        data: Data,
    },
    /// Reserved blocks: the length.
    Extend {
        len: u64,
    },
    /// Created anew over an old file.
    Empty,
}

/// What was written.
#[derive(Clone)]
pub(super) enum Data {
    Bytes(Arc<[u8]>),
    Zeros(u64),
}

impl Data {
    /// The first `len` bytes of `buffers`, or fewer.
    pub(super) fn gather(buffers: &[IoSlice<'_>], len: usize) -> Self {
        let zero = buffers.iter().all(|buffer| is_zero(buffer));
        let total: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        let len = len.min(total);
        if zero {
            return Self::Zeros(len as u64);
        }
        let mut bytes = Vec::with_capacity(len);
        for buffer in buffers {
            let rest = len - bytes.len();
            bytes.extend_from_slice(&buffer[..rest.min(buffer.len())]);
        }
        Self::Bytes(bytes.into())
    }

    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zeros(len) => *len,
        }
    }

    /// The bytes `from..to` of it as a source for `Image::write`.
    fn part(&self, from: u64, to: u64) -> Part<'_> {
        match self {
            Self::Bytes(bytes) => Part::Bytes(&bytes[from as usize..to as usize]),
            Self::Zeros(_) => Part::Zeros(to - from),
        }
    }
}

enum Part<'a> {
    Bytes(&'a [u8]),
    Zeros(u64),
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

/// Bytes and a length. Copies share until one changes.
#[derive(Clone, Default)]
pub(super) struct Image {
    bytes: Arc<Vec<u8>>,
    len: u64,
}

impl Image {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { at, data } => self.apply_part(*at, data, 0, data.len()),
            Change::Extend { len } => self.len = self.len.max(*len),
            Change::Empty => self.cut(0),
        }
    }

    /// Applies the bytes `from..to` of a write at `at`.
    pub(super) fn apply_part(&mut self, at: u64, data: &Data, from: u64, to: u64) {
        match data.part(from, to) {
            Part::Bytes(bytes) => self.write(at + from, bytes),
            Part::Zeros(len) => {
                let start = at + from;
                let stored = self.bytes.len() as u64;
                if start < stored && len > 0 {
                    let end = (start + len).min(stored);
                    Arc::make_mut(&mut self.bytes)[start as usize..end as usize].fill(0);
                }
                if len > 0 {
                    self.len = self.len.max(start + len);
                }
            }
        }
    }

    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let (start, end) = (at as usize, at as usize + bytes.len());
        let stored = Arc::make_mut(&mut self.bytes);
        if stored.len() < end {
            stored.resize(end, 0);
        }
        stored[start..end].copy_from_slice(bytes);
        self.len = self.len.max(end as u64);
    }

    /// Cuts or extends to `len`.
    pub(super) fn cut(&mut self, len: u64) {
        if (self.bytes.len() as u64) > len {
            Arc::make_mut(&mut self.bytes).truncate(len as usize);
        }
        self.len = len;
    }

    pub(super) fn read(&self, at: u64, buffer: &mut [u8]) -> usize {
        let count = self.len.saturating_sub(at).min(buffer.len() as u64) as usize;
        let buffer = &mut buffer[..count];
        let stored = self.bytes.get(at as usize..).unwrap_or_default();
        let have = stored.len().min(count);
        buffer[..have].copy_from_slice(&stored[..have]);
        buffer[have..].fill(0);
        count
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        self.prefix(self.len)
    }

    fn prefix(&self, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        let stored = self.bytes.len().min(bytes.len());
        bytes[..stored].copy_from_slice(&self.bytes[..stored]);
        bytes
    }
}

impl Contents {
    /// Makes a change that is pending until the next sync. Answers whether it would have changed published bytes of a
    /// living mapping.
    pub(super) fn change(&mut self, order: u64, change: Change) -> bool {
        self.content.apply(&change);
        let mut held_back = false;
        if let Change::Write { at, data } = &change {
            self.twins.retain(|twin| match twin.upgrade() {
                Some(twin) => {
                    held_back |= follow(&twin, *at, data);
                    true
                }
                None => false,
            });
        }
        self.pending.push(Pending { order, change });
        held_back
    }

    /// A sync that succeeds.
    pub(super) fn sync(&mut self) {
        let bytes: u64 = self
            .pending
            .iter()
            .map(|pending| match &pending.change {
                Change::Write { data: Data::Bytes(bytes), .. } => bytes.len() as u64,
                _ => 0,
            })
            .sum();
        if !self.lost && bytes * 2 >= self.content.bytes.len() as u64 {
            // Much is new: sharing is cheaper than copying the changes.
            self.durable = self.content.clone();
            self.pending.clear();
        } else {
            for pending in self.pending.drain(..) {
                self.durable.apply(&pending.change);
            }
        }
    }

    /// A sync that fails: written pages are marked clean without being durable. The length stays pending, metadata is
    /// not in those pages.
    pub(super) fn fail_sync(&mut self) {
        let before = self.pending.len();
        self.pending.retain(|pending| !matches!(pending.change, Change::Write { .. }));
        self.lost |= self.pending.len() != before;
    }

    /// Reads and unpublished mapped bytes come from the device again, where nothing is pending.
    pub(super) fn drop_cache(&mut self) {
        if !self.lost {
            return;
        }
        self.lost = false;
        let mut content = self.durable.clone();
        for pending in &self.pending {
            content.apply(&pending.change);
        }
        self.content = content;
        self.refresh_twins();
    }

    /// A twin for a new mapping of the first `len` bytes.
    pub(super) fn twin(&mut self, len: u64) -> Arc<Twin> {
        let twin = Twin::new(self.content.prefix(len));
        self.twins.push(Arc::downgrade(&twin));
        twin
    }

    /// Changes both what is seen and what is durable.
    pub(super) fn decay(&mut self, decay: impl Fn(&mut Image)) {
        decay(&mut self.content);
        decay(&mut self.durable);
        self.refresh_twins();
    }

    fn refresh_twins(&mut self) {
        let bytes = self.content.to_vec();
        self.twins.retain(|twin| match twin.upgrade() {
            Some(twin) => {
                // What a mapping has shown stays, as in a page that is in use.
                twin.write(0, &bytes);
                true
            }
            None => false,
        });
    }
}

fn follow(twin: &Twin, at: u64, data: &Data) -> bool {
    match data {
        Data::Bytes(bytes) => twin.write(at, bytes),
        Data::Zeros(len) => {
            let mut held_back = false;
            let mut done = 0;
            while done < *len {
                let turn = (*len - done).min(ZEROS.len() as u64);
                held_back |= twin.write(at + done, &ZEROS[..turn as usize]);
                done += turn;
            }
            held_back
        }
    }
}
