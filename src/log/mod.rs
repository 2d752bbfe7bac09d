//! The structures of the log. Passive: no thread, no channel, no clock; whoever calls decides when and where.
//!
//! | file            | what                                                                                   |
//! | --------------- | -------------------------------------------------------------------------------------- |
//! | `commit_log`    | segments behind one physical offset: find, read                                         |
//! | `window`        | what of it was read last, for who reads record by record                               |
//! | `walk`          | one segment as the disk has it, record by record                                       |
//! | `consume_queue` | the entries of all queues: memory parts and sealed `.cq` files                         |
//! | `index`         | key hash to physical offsets: memory parts and sealed `.idx` files                     |
//! | `parts`         | the memory parts of either                                                             |
//! | `paged`         | the sealed files of either: written aside, opened on first use, verified page by page  |
//!
//! `consume_queue` and `index` do not know each other, nor the CommitLog whose records they point at.

pub(crate) mod commit_log;
pub(crate) mod consume_queue;
pub(crate) mod index;
pub(crate) mod paged;
mod parts;
pub(crate) mod walk;
pub(crate) mod window;

/// Both structures are cut into this many shards, so that readers and the one writer rarely meet at a lock.
const SHARDS: usize = 64;

/// What the allocator keeps beside a block.
const BLOCK_OVERHEAD: u64 = 8;

/// A `u64` that does not ask for eight-byte alignment: in table slots the padding would cost more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packed64([u32; 2]);

impl Packed64 {
    const fn new(number: u64) -> Self {
        Self([number as u32, (number >> 32) as u32])
    }

    const fn get(self) -> u64 {
        let [low, high] = self.0;
        low as u64 | (high as u64) << 32
    }
}

/// Makes room for one more. A quarter at a time, not double: what is not used is memory that says nothing.
fn grow<T>(run: &mut Vec<T>) {
    if run.len() == run.capacity() {
        run.reserve_exact((run.len() / 4).max(4));
    }
}

/// Bytes of a hash table with room for `capacity` items of `item_len` bytes: a power of two of slots, of which seven
/// eighths are used, each with a byte of its own.
fn table_bytes(capacity: usize, item_len: usize) -> u64 {
    let slots = match capacity {
        0 => return 0,
        1..4 => 4,
        4..8 => 8,
        _ => (capacity * 8 / 7).next_power_of_two(),
    };
    (slots * (item_len + 1) + 16) as u64 + BLOCK_OVERHEAD
}
