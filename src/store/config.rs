//! What a store is told at open.

use std::path::PathBuf;
use std::time::Duration;

use crate::format::batch::limits;
use crate::message::FlushMode;

/// How a store behaves. Format facts are not options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// The data directory. Made with mode 0700 if it is missing and its parent exists.
    pub dir: PathBuf,
    /// Bytes of a CommitLog segment, its header page included: a multiple of 4 KiB, 16 KiB to 1 GiB. Segments that
    /// exist keep their size.
    pub segment_size: u64,
    /// A segment rolls also when its entries in memory (queues and index) reach so many bytes.
    pub unsealed_memory: u64,
    /// The broker-wide default: of topics that name no mode, and of state that belongs to no topic. With `Sync`,
    /// segments are filled with zeros ahead of use, which makes each later sync cheaper, but where syncs are large.
    pub flush: FlushMode,
    /// While nobody waits for durability, bytes are synced at least so often.
    pub flush_interval: Duration,
    /// While nobody waits for durability, so many unflushed bytes are synced at once.
    pub flush_bytes: u64,
    /// Above so many unflushed bytes, appends wait.
    pub max_unflushed: u64,
    /// What this process appended within the last so many bytes is read in place, the rest from the disk.
    pub hot_bytes: u64,
    /// Below so many free bytes on the file system, sends are refused, and no segment is made ahead; state records go
    /// on in the last segment, in parts of it that are kept for them. 0: never.
    pub disk_reserve: u64,
    /// Bytes of segments that stay beyond the retention of what is in them, because a message in them was delivered
    /// and is not finished. Above it, and while space is short, the oldest of them go nevertheless. 0: none stays for
    /// that.
    pub keep_unfinished: u64,
    /// Threads that read from the disk.
    pub read_threads: usize,
    /// Bytes that the scrub reads a second to look for damage; 0: it does not.
    pub scrub_rate: u64,
}

impl StoreConfig {
    /// Smallest segment: a header page and room for three pages of records.
    pub const MIN_SEGMENT_SIZE: u64 = 16 << 10;
    /// Largest segment: positions inside one are stored in units of 8 bytes in 32 bits, lengths in 32 bits.
    pub const MAX_SEGMENT_SIZE: u64 = 1 << 30;

    /// The defaults, for a data directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            segment_size: 256 << 20,
            unsealed_memory: 64 << 20,
            flush: FlushMode::Sync,
            flush_interval: Duration::from_millis(100),
            flush_bytes: 64 << 20,
            max_unflushed: 256 << 20,
            hot_bytes: 256 << 20,
            disk_reserve: 512 << 20,
            keep_unfinished: 4 << 30,
            read_threads: 2,
            scrub_rate: 16 << 20,
        }
    }

    /// The longest append set, which also bounds one record: a quarter of the segment, at most 64 MiB.
    pub fn max_append_set(&self) -> u64 {
        limits::append_set_len(self.segment_size)
    }
}
