//! The `.idx` file: the key entries of one finished segment, a hash index that is never changed; and the hash of keys.
//!
//! A paged file (see [`super::pages`]) whose stream is two tables without gaps. The header's numbers are: count of
//! entries, bits of a bucket number, 1 if the segment was damaged when the file was made (entries may be lacking) or
//! else 0, 0.
//!
//! | section | each | sorted by      | what                                                                      |
//! | ------- | ---: | -------------- | ------------------------------------------------------------------------- |
//! | buckets |    4 | bucket         | index of the bucket's first entry; one more row than buckets, which closes the last |
//! | entries |   12 | hash, position | one row per record and distinct key                                       |
//!
//! | at | len | entry                                                                                        |
//! | -: | --: | -------------------------------------------------------------------------------------------- |
//! |  0 |   8 | hash of (kind, topic, key)                                                                   |
//! |  8 |   4 | record start in its segment, in units of 8 bytes                                             |
//!
//! Little-endian. A bucket is the top bits of the hash, so the buckets are runs of one sorted table, 8 to 16 entries
//! each if hashes are many. The entries of a key are one run in the order of the log, whatever their number: a page of
//! them is a binary search, and they cost the other keys of the bucket one step of that search per doubling.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::DecodeError;
use super::pages::{Fields, Header, Kind};
use crate::message::{PhysicalOffset, TopicId};

/// The version of the file that this build writes and reads.
pub const VERSION: u32 = 1;
/// Bytes of a bucket row.
pub const BUCKET_LEN: usize = 4;
/// Bytes of an entry.
pub const ENTRY_LEN: usize = 12;
/// Records start at multiples of this.
pub const ALIGN: u64 = 8;

/// A bucket has at least this many entries on average, unless there are fewer in all; at most twice as many.
const BUCKET_ENTRIES: u64 = 8;
/// 2^32 rows are more than a segment can hold.
const MAX_BUCKET_BITS: u32 = 31;

/// What an index entry was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IndexKind {
    /// One of a message's keys.
    Key = 1,
    /// The id that the producer gave the message.
    Id = 2,
}

/// The hash under which a key is indexed. Different keys may share one: a candidate is compared with its record.
///
/// `seed` belongs to the store, so that nobody can choose keys that collide. Part of the format: it must never change.
pub fn key_hash(seed: u64, kind: IndexKind, topic: TopicId, key: &[u8]) -> u64 {
    KeyHasher::new(seed, kind, topic).hash(key)
}

/// [`key_hash`] of many keys of one topic.
#[derive(Clone, Copy, Debug)]
pub struct KeyHasher {
    seed: u64,
}

impl KeyHasher {
    /// For keys of this kind in this topic.
    pub fn new(seed: u64, kind: IndexKind, topic: TopicId) -> Self {
        let mut scope = [0; 9];
        let (first, rest) = scope.split_at_mut(1);
        first.fill(kind as u8);
        rest.copy_from_slice(&topic.get().to_le_bytes());
        Self { seed: xxh3_64_with_seed(&scope, seed) }
    }

    /// The hash of one.
    pub fn hash(&self, key: &[u8]) -> u64 {
        xxh3_64_with_seed(key, self.seed)
    }
}

/// One row of the entry table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IndexEntry {
    /// Of kind, topic and key.
    pub hash: u64,
    /// Record start minus the segment's base, in units of 8 bytes.
    pub position: u32,
}

impl IndexEntry {
    /// As in the file.
    pub fn encode(&self) -> [u8; ENTRY_LEN] {
        let [h0, h1, h2, h3, h4, h5, h6, h7] = self.hash.to_le_bytes();
        let [p0, p1, p2, p3] = self.position.to_le_bytes();
        [h0, h1, h2, h3, h4, h5, h6, h7, p0, p1, p2, p3]
    }

    /// # Errors
    /// Fewer than 12 bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(bytes);
        Ok(Self { hash: fields.u64()?, position: fields.u32()? })
    }
}

/// How much stands in each section of the stream, and so where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sections {
    /// Entries.
    pub entries: u64,
    /// There are 2 to the power of this buckets.
    pub bucket_bits: u32,
    /// The segment was damaged when the file was made: entries may be lacking.
    pub is_lacking: bool,
}

impl Sections {
    /// The sections of a file with this many entries, of which none is lacking.
    pub fn with(entries: u64) -> Self {
        let bucket_bits = (entries / BUCKET_ENTRIES).checked_ilog2().unwrap_or(0);
        Self { entries, bucket_bits: bucket_bits.min(MAX_BUCKET_BITS), is_lacking: false }
    }

    /// The header page of a file with these sections.
    pub fn header(&self, store_id: [u8; 16], base: PhysicalOffset, end: PhysicalOffset) -> Header {
        Header {
            kind: Kind::Index,
            store_id,
            base,
            end,
            stream_len: self.entry_at(self.entries),
            numbers: [self.entries, u64::from(self.bucket_bits), u64::from(self.is_lacking), 0],
        }
    }

    /// What the header says.
    ///
    /// # Errors
    /// Another kind of file; counts and length of the stream that contradict each other.
    pub fn of(header: &Header) -> Result<Self, DecodeError> {
        if header.kind != Kind::Index {
            return Err(DecodeError::Magic { found: header.kind.magic() });
        }
        let [entries, bits, lacking, _] = header.numbers;
        let sections = Self { is_lacking: lacking != 0, ..Self::with(entries) };
        if bits != u64::from(sections.bucket_bits) {
            return Err(DecodeError::Length {
                what: "stream",
                expected: u64::from(sections.bucket_bits),
                found: bits,
            });
        }
        let expected = sections.entry_at(entries);
        if header.stream_len != expected {
            return Err(DecodeError::Length { what: "stream", expected, found: header.stream_len });
        }
        Ok(sections)
    }

    /// How many buckets there are.
    pub const fn buckets(&self) -> u64 {
        1 << self.bucket_bits
    }

    /// The bucket of a hash.
    pub fn bucket(&self, hash: u64) -> u64 {
        hash.checked_shr(u64::BITS - self.bucket_bits).unwrap_or(0)
    }

    /// Where in the stream a bucket row stands; there is one behind the last bucket.
    pub const fn bucket_at(&self, bucket: u64) -> u64 {
        bucket * BUCKET_LEN as u64
    }

    /// Where in the stream an entry stands.
    pub const fn entry_at(&self, index: u64) -> u64 {
        let rows = index.saturating_mul(ENTRY_LEN as u64);
        self.bucket_at(self.buckets() + 1).saturating_add(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_has_these_bytes_and_comes_back() {
        let entry = IndexEntry { hash: 0x0102_0304_0506_0708, position: 0x090a_0b0c };
        let golden = [8, 7, 6, 5, 4, 3, 2, 1, 0x0c, 0x0b, 0x0a, 9];
        assert_eq!(entry.encode(), golden);
        assert_eq!(IndexEntry::decode(&golden), Ok(entry));
        for len in 0..ENTRY_LEN {
            let error = IndexEntry::decode(&golden[..len]).unwrap_err();
            assert!(
                matches!(error, DecodeError::TooShort { needed, found } if found == len as u64 && needed > len as u64),
                "{error:?}"
            );
        }
    }

    #[test]
    fn key_hash_is_what_it_was() {
        let topic = TopicId::new(7);
        let hash = key_hash(42, IndexKind::Key, topic, b"order-1");
        assert_eq!(hash, GOLDEN_HASH);
        assert_ne!(hash, key_hash(43, IndexKind::Key, topic, b"order-1"));
        assert_ne!(hash, key_hash(42, IndexKind::Id, topic, b"order-1"));
        assert_ne!(hash, key_hash(42, IndexKind::Key, TopicId::new(8), b"order-1"));
        assert_ne!(hash, key_hash(42, IndexKind::Key, topic, b"order-2"));
    }

    const GOLDEN_HASH: u64 = 4_133_007_501_063_408_139;

    #[test]
    fn buckets_hold_eight_to_sixteen_entries_and_are_runs_of_the_sorted_hashes() {
        for (entries, bits) in [(0, 0), (1, 0), (15, 0), (16, 1), (31, 1), (32, 2), (1 << 20, 17)] {
            assert_eq!(Sections::with(entries).bucket_bits, bits, "{entries}");
        }
        let none = Sections::with(3);
        assert_eq!((none.bucket(u64::MAX), none.entry_at(0)), (0, 8));
        let some = Sections::with(32);
        assert_eq!((some.bucket(u64::MAX), some.bucket(0), some.bucket(1 << 62)), (3, 0, 1));
        assert_eq!((some.bucket_at(4), some.entry_at(0), some.entry_at(32)), (16, 20, 404));
    }

    #[test]
    fn sections_must_agree_with_the_header() {
        let sections = Sections::with(32);
        let header = sections.header([1; 16], PhysicalOffset::ZERO, PhysicalOffset::new(8));
        assert_eq!(Sections::of(&header), Ok(sections));
        let lacking = Sections { is_lacking: true, ..sections };
        let made = lacking.header([1; 16], PhysicalOffset::ZERO, PhysicalOffset::new(8));
        assert_eq!((Sections::of(&made), made.numbers), (Ok(lacking), [32, 2, 1, 0]));
        let lying = Header { stream_len: 405, ..header };
        assert_eq!(
            Sections::of(&lying),
            Err(DecodeError::Length { what: "stream", expected: 404, found: 405 })
        );
        let wide = Header { numbers: [32, 64, 0, 0], ..header };
        assert_eq!(
            Sections::of(&wide),
            Err(DecodeError::Length { what: "stream", expected: 2, found: 64 })
        );
        let endless = Header { numbers: [u64::MAX, 31, 0, 0], ..header };
        assert_eq!(
            Sections::of(&endless),
            Err(DecodeError::Length { what: "stream", expected: u64::MAX, found: 404 })
        );
    }
}
