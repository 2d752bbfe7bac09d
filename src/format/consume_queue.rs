//! The `.cq` file: the queue entries of one finished segment, grouped by queue.
//!
//! A paged file (see [`super::pages`]) whose stream is three tables without gaps. The header's numbers are: first store
//! time, count of queues, count of topics, count of entries.
//!
//! | section   | each | sorted by       | what                                                                  |
//! | --------- | ---: | --------------- | --------------------------------------------------------------------- |
//! | directory |   40 | topic, queue    | one row per queue that has entries in this segment                    |
//! | topics    |   32 | topic           | one row per topic that has entries in this segment                    |
//! | entries   |   32 | topic, queue, queue offset | one row per record                                         |
//!
//! | at | len | directory row                                                                                |
//! | -: | --: | -------------------------------------------------------------------------------------------- |
//! |  0 |   8 | topic id                                                                                     |
//! |  8 |   4 | queue id                                                                                     |
//! | 12 |   4 | count of its entries                                                                         |
//! | 16 |   8 | queue offset of its first entry                                                              |
//! | 24 |   8 | queue offset behind its last entry                                                           |
//! | 32 |   8 | index of its first entry among all entries                                                   |
//!
//! | at | len | topic row                                                                                    |
//! | -: | --: | -------------------------------------------------------------------------------------------- |
//! |  0 |   8 | topic id                                                                                     |
//! |  8 |   8 | count of messages                                                                            |
//! | 16 |   8 | bytes of its records                                                                         |
//! | 24 |   8 | newest store time, ms                                                                        |
//!
//! | at | len | entry                                                                                        |
//! | -: | --: | -------------------------------------------------------------------------------------------- |
//! |  0 |   4 | record start in its segment, in units of 8 bytes                                             |
//! |  4 |   4 | record length in bytes                                                                       |
//! |  8 |   4 | queue offset minus that of the segment's first entry of this queue                           |
//! | 12 |   2 | messages in the record, at least 1                                                           |
//! | 14 |   2 | flags: 1 tag bits are a mask, 2 has an untagged message, 4 has a message group, 8 damaged    |
//! | 16 |   4 | store time minus the first store time, ms                                                    |
//! | 20 |   4 | hash of the message group, 0 without one                                                     |
//! | 24 |   8 | tag bits                                                                                     |
//!
//! Little-endian. The idea is RocketMQ's ConsumeQueue unit of 20 bytes; the layout is ours. An entry has the same
//! 32 bytes in memory while its segment is not sealed.

use super::DecodeError;
use super::pages::{Fields, Header, Kind};
use crate::message::{PhysicalOffset, QueueId, QueueKey, QueueOffset, Timestamp, TopicId};

/// The version of the file that this build writes and reads.
pub const VERSION: u32 = 1;
/// Bytes of an entry.
pub const ENTRY_LEN: usize = 32;
/// Bytes of a directory row.
pub const DIRECTORY_ROW_LEN: usize = 40;
/// Bytes of a topic row.
pub const TOPIC_ROW_LEN: usize = 32;
/// Records start at multiples of this.
const ALIGN: u64 = 8;

/// What an entry says about its record beside the numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EntryFlags(u16);

impl EntryFlags {
    /// Nothing to say.
    pub const NONE: Self = Self(0);
    /// The tag bits are the OR of one bit per tag (a record of several messages), not a hash.
    pub const TAG_IS_MASK: Self = Self(1);
    /// At least one message has no tag.
    pub const HAS_UNTAGGED: Self = Self(2);
    /// The messages belong to a message group.
    pub const HAS_MESSAGE_GROUP: Self = Self(4);
    /// The record's payload was found damaged.
    pub const DAMAGED: Self = Self(8);

    /// As stored; every value is legal.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// As stored.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Whether all of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These and `other`.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Finds one record: what a queue knows about it, in absolute terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueEntry {
    /// Where the record starts.
    pub offset: PhysicalOffset,
    /// Bytes of the record.
    pub len: u32,
    /// Of the record's first message.
    pub queue_offset: QueueOffset,
    /// In the record, at least 1.
    pub messages: u16,
    /// What else there is to know before reading it.
    pub flags: EntryFlags,
    /// When it was stored.
    pub store_time: Timestamp,
    /// Hash of its message group, 0 without one.
    pub group_hash: u32,
    /// A tag's hash, or a mask of several.
    pub tag_bits: u64,
}

impl QueueEntry {
    /// The queue offset behind its last message.
    pub const fn queue_end(&self) -> QueueOffset {
        self.queue_offset.plus(self.messages as u64)
    }
}

/// What the short numbers of a queue's entries in one segment are counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The segment's first byte.
    pub base: PhysicalOffset,
    /// The queue offset of the queue's first entry in the segment.
    pub first: QueueOffset,
    /// The store time of the segment's first entry of any queue.
    pub first_time: Timestamp,
}

/// An entry as it is kept: 32 bytes, relative to an [`Origin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PackedEntry {
    position: u32,
    len: u32,
    offset_delta: u32,
    messages: u16,
    flags: u16,
    time_delta: u32,
    group_hash: u32,
    tag_bits: u64,
}

const _: () = assert!(size_of::<PackedEntry>() == ENTRY_LEN, "the entry costs what it says");

impl PackedEntry {
    /// Shortens `entry`. Its offsets must not lie before the origin's, and within a segment of at most 32 GiB.
    pub fn pack(entry: &QueueEntry, origin: &Origin) -> Self {
        debug_assert!(entry.offset >= origin.base, "an entry belongs to its segment");
        debug_assert!(entry.queue_offset >= origin.first, "entries of a queue come in order");
        let since_first = entry.store_time.get().saturating_sub(origin.first_time.get());
        Self {
            position: short(entry.offset.get().saturating_sub(origin.base.get()) / ALIGN),
            len: entry.len,
            offset_delta: short(entry.queue_offset.get().saturating_sub(origin.first.get())),
            messages: entry.messages,
            flags: entry.flags.bits(),
            // A segment rolls after 30 days, so this saturates only if the clock leapt by weeks.
            time_delta: u32::try_from(since_first).unwrap_or(u32::MAX),
            group_hash: entry.group_hash,
            tag_bits: entry.tag_bits,
        }
    }

    /// The entry in absolute terms.
    pub fn unpack(&self, origin: &Origin) -> QueueEntry {
        let time = origin.first_time.get().saturating_add(u64::from(self.time_delta));
        let queue_offset = origin.first.get().saturating_add(u64::from(self.offset_delta));
        let offset = origin.base.get().saturating_add(u64::from(self.position) * ALIGN);
        QueueEntry {
            offset: PhysicalOffset::new(offset),
            len: self.len,
            queue_offset: QueueOffset::new(queue_offset),
            messages: self.messages,
            flags: EntryFlags::from_bits(self.flags),
            store_time: Timestamp::new(time),
            group_hash: self.group_hash,
            tag_bits: self.tag_bits,
        }
    }

    /// Messages of the queue from the origin to this entry.
    pub const fn delta(&self) -> u64 {
        self.offset_delta as u64
    }

    /// Messages of the queue from the origin to behind this entry.
    pub const fn end_delta(&self) -> u64 {
        self.offset_delta as u64 + self.messages as u64
    }

    /// As in the file.
    pub fn encode(&self) -> [u8; ENTRY_LEN] {
        let [p0, p1, p2, p3] = self.position.to_le_bytes();
        let [l0, l1, l2, l3] = self.len.to_le_bytes();
        let [d0, d1, d2, d3] = self.offset_delta.to_le_bytes();
        let [m0, m1] = self.messages.to_le_bytes();
        let [f0, f1] = self.flags.to_le_bytes();
        let [t0, t1, t2, t3] = self.time_delta.to_le_bytes();
        let [g0, g1, g2, g3] = self.group_hash.to_le_bytes();
        let [b0, b1, b2, b3, b4, b5, b6, b7] = self.tag_bits.to_le_bytes();
        [
            p0, p1, p2, p3, l0, l1, l2, l3, d0, d1, d2, d3, m0, m1, f0, f1, //
            t0, t1, t2, t3, g0, g1, g2, g3, b0, b1, b2, b3, b4, b5, b6, b7,
        ]
    }

    /// # Errors
    /// Fewer than 32 bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(bytes);
        Ok(Self {
            position: fields.u32()?,
            len: fields.u32()?,
            offset_delta: fields.u32()?,
            messages: fields.u16()?,
            flags: fields.u16()?,
            time_delta: fields.u32()?,
            group_hash: fields.u32()?,
            tag_bits: fields.u64()?,
        })
    }
}

fn short(number: u64) -> u32 {
    debug_assert!(u32::try_from(number).is_ok(), "a distance within a segment fits 32 bits");
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Where the entries of one queue stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryRow {
    /// The queue.
    pub key: QueueKey,
    /// How many entries it has here, at least 1.
    pub entries: u32,
    /// Queue offset of the first.
    pub first: QueueOffset,
    /// Queue offset behind the last.
    pub next: QueueOffset,
    /// Index of the first among all entries of the file.
    pub start: u64,
}

impl DirectoryRow {
    /// Appends the row to `out`.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.key.topic.get().to_le_bytes());
        out.extend_from_slice(&self.key.queue.get().to_le_bytes());
        out.extend_from_slice(&self.entries.to_le_bytes());
        out.extend_from_slice(&self.first.get().to_le_bytes());
        out.extend_from_slice(&self.next.get().to_le_bytes());
        out.extend_from_slice(&self.start.to_le_bytes());
    }

    /// # Errors
    /// Fewer than 40 bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(bytes);
        let topic = TopicId::new(fields.u64()?);
        Ok(Self {
            key: QueueKey { topic, queue: QueueId::new(fields.u32()?) },
            entries: fields.u32()?,
            first: QueueOffset::new(fields.u64()?),
            next: QueueOffset::new(fields.u64()?),
            start: fields.u64()?,
        })
    }
}

/// What a segment holds of one topic; retention by bytes and time asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicRow {
    /// The topic's incarnation.
    pub topic: TopicId,
    /// Messages in the segment.
    pub messages: u64,
    /// Bytes of its records in the segment.
    pub bytes: u64,
    /// Of its last record in the segment.
    pub newest: Timestamp,
}

impl TopicRow {
    /// A topic without records.
    pub const fn empty(topic: TopicId) -> Self {
        Self { topic, messages: 0, bytes: 0, newest: Timestamp::ZERO }
    }

    /// Counts one more record of the topic.
    pub fn add(&mut self, entry: &QueueEntry) {
        self.messages += u64::from(entry.messages);
        self.bytes += u64::from(entry.len);
        self.newest = self.newest.max(entry.store_time);
    }

    /// Appends the row to `out`.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        for number in [self.topic.get(), self.messages, self.bytes, self.newest.get()] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }

    /// # Errors
    /// Fewer than 32 bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(bytes);
        Ok(Self {
            topic: TopicId::new(fields.u64()?),
            messages: fields.u64()?,
            bytes: fields.u64()?,
            newest: Timestamp::new(fields.u64()?),
        })
    }
}

/// How much stands in each section of the stream, and so where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sections {
    /// The store time that all entries are counted from.
    pub first_time: Timestamp,
    /// Rows of the directory.
    pub queues: u64,
    /// Rows of the topic table.
    pub topics: u64,
    /// Entries.
    pub entries: u64,
}

impl Sections {
    /// The header page of a file with these sections.
    pub fn header(&self, store_id: [u8; 16], base: PhysicalOffset, end: PhysicalOffset) -> Header {
        Header {
            kind: Kind::ConsumeQueue,
            store_id,
            base,
            end,
            stream_len: self.entry_at(self.entries),
            numbers: [self.first_time.get(), self.queues, self.topics, self.entries],
        }
    }

    /// What the header says.
    ///
    /// # Errors
    /// Another kind of file; counts and length of the stream that contradict each other.
    pub fn of(header: &Header) -> Result<Self, DecodeError> {
        if header.kind != Kind::ConsumeQueue {
            return Err(DecodeError::Magic { found: header.kind.magic() });
        }
        let [first_time, queues, topics, entries] = header.numbers;
        let sections = Self { first_time: Timestamp::new(first_time), queues, topics, entries };
        let expected = sections.entry_at(entries);
        if header.stream_len != expected {
            return Err(DecodeError::Length { what: "stream", expected, found: header.stream_len });
        }
        Ok(sections)
    }

    /// Where in the stream a directory row stands.
    pub const fn directory_row_at(&self, index: u64) -> u64 {
        index.saturating_mul(DIRECTORY_ROW_LEN as u64)
    }

    /// Where in the stream a topic row stands.
    pub const fn topic_row_at(&self, index: u64) -> u64 {
        let rows = index.saturating_mul(TOPIC_ROW_LEN as u64);
        self.directory_row_at(self.queues).saturating_add(rows)
    }

    /// Where in the stream an entry stands.
    pub const fn entry_at(&self, index: u64) -> u64 {
        let rows = index.saturating_mul(ENTRY_LEN as u64);
        self.topic_row_at(self.topics).saturating_add(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin = Origin {
        base: PhysicalOffset::new(0x4000_0000),
        first: QueueOffset::new(1_000_000),
        first_time: Timestamp::new(1_700_000_000_000),
    };

    fn entry() -> QueueEntry {
        QueueEntry {
            offset: PhysicalOffset::new(0x4000_0000 + 8 * 0x0102_0304),
            len: 0x0506_0708,
            queue_offset: QueueOffset::new(1_000_000 + 0x090a),
            messages: 0x0b0c,
            flags: EntryFlags::TAG_IS_MASK.with(EntryFlags::DAMAGED),
            store_time: Timestamp::new(1_700_000_000_000 + 0x0d0e),
            group_hash: 0x0f10_1112,
            tag_bits: 0x1314_1516_1718_191a,
        }
    }

    #[test]
    fn entry_has_these_bytes_and_comes_back() {
        let packed = PackedEntry::pack(&entry(), &ORIGIN);
        let golden = [
            4, 3, 2, 1, 8, 7, 6, 5, 0x0a, 9, 0, 0, 0x0c, 0x0b, 9, 0, //
            0x0e, 0x0d, 0, 0, 0x12, 0x11, 0x10, 0x0f, 0x1a, 0x19, 0x18, 0x17, 0x16, 0x15, 0x14,
            0x13,
        ];
        assert_eq!(packed.encode(), golden);
        assert_eq!(PackedEntry::decode(&golden), Ok(packed));
        assert_eq!(packed.unpack(&ORIGIN), entry());
        assert_eq!((packed.delta(), packed.end_delta()), (0x090a, 0x090a + 0x0b0c));
        for len in 0..ENTRY_LEN {
            let error = PackedEntry::decode(&golden[..len]).unwrap_err();
            assert!(
                matches!(error, DecodeError::TooShort { needed, found } if found == len as u64 && needed > len as u64),
                "{error:?}"
            );
        }
    }

    #[test]
    fn directory_row_has_these_bytes_and_comes_back() {
        let row = DirectoryRow {
            key: QueueKey { topic: TopicId::new(0x0102), queue: QueueId::new(3) },
            entries: 4,
            first: QueueOffset::new(5),
            next: QueueOffset::new(6),
            start: 7,
        };
        let mut bytes = Vec::new();
        row.encode_into(&mut bytes);
        let golden = [
            2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, //
            6, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(bytes, golden);
        assert_eq!(DirectoryRow::decode(&bytes), Ok(row));
        for len in 0..DIRECTORY_ROW_LEN {
            let error = DirectoryRow::decode(&golden[..len]).unwrap_err();
            assert!(
                matches!(error, DecodeError::TooShort { needed, found } if found == len as u64 && needed > len as u64),
                "{error:?}"
            );
        }
    }

    #[test]
    fn topic_row_has_these_bytes_and_comes_back() {
        let mut row = TopicRow::empty(TopicId::new(1));
        row.add(&QueueEntry { messages: 2, len: 256, store_time: Timestamp::new(9), ..entry() });
        row.add(&QueueEntry { messages: 1, len: 1, store_time: Timestamp::new(8), ..entry() });
        let mut bytes = Vec::new();
        row.encode_into(&mut bytes);
        let golden = [
            1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, //
            1, 1, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(bytes, golden);
        assert_eq!(TopicRow::decode(&bytes), Ok(row));
        for len in 0..TOPIC_ROW_LEN {
            let error = TopicRow::decode(&golden[..len]).unwrap_err();
            assert!(
                matches!(error, DecodeError::TooShort { needed, found } if found == len as u64 && needed > len as u64),
                "{error:?}"
            );
        }
    }

    #[test]
    fn sections_follow_each_other_and_must_agree_with_the_header() {
        let sections =
            Sections { first_time: Timestamp::new(11), queues: 3, topics: 2, entries: 5 };
        assert_eq!(sections.topic_row_at(0), 120);
        assert_eq!(sections.entry_at(0), 184);
        let end = PhysicalOffset::new(8);
        let header = sections.header([1; 16], PhysicalOffset::ZERO, end);
        assert_eq!(header.stream_len, 184 + 160);
        assert_eq!(Sections::of(&header), Ok(sections));
        let lying = Header { stream_len: 343, ..header };
        assert_eq!(
            Sections::of(&lying),
            Err(DecodeError::Length { what: "stream", expected: 344, found: 343 })
        );
        let endless = Header { numbers: [0, u64::MAX, u64::MAX, u64::MAX], ..header };
        assert_eq!(
            Sections::of(&endless),
            Err(DecodeError::Length { what: "stream", expected: u64::MAX, found: 344 })
        );
    }
}
