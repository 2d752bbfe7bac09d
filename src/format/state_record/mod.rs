//! The payload of a state record: a run of transitions, one per change of the broker's own state.
//!
//! | at | len    | field  | meaning                                                    |
//! | -: | -----: | ------ | ---------------------------------------------------------- |
//! |  0 |      2 | kind   | which change                                               |
//! |  2 |      2 | zero   |                                                            |
//! |  4 |      4 | length | of the fields in bytes                                     |
//! |  8 | length | fields | in the form of a record's attributes: tag, length, value   |
//!
//! | kind | transition        | fields, each u64 unless it says otherwise; those in brackets may be absent          |
//! | ---: | ----------------- | ----------------------------------------------------------------------------------- |
//! |    1 | topic created     | 1 id, 2 name UTF-8, settings of a topic                                             |
//! |    2 | topic deleted     | 1 id                                                                                |
//! |    3 | next topic id     | 1 id                                                                                |
//! |    4 | topic updated     | 1 id, settings of a topic, all of them                                              |
//! |    5 | topic expired     | 1 id, [2 place], [3 time], [4 rows of queue u32 and offset u64], [5 place, if it was purged up to there]: all before is gone |
//! |    6 | group created     | 1 id, 2 name UTF-8, settings of a group                                             |
//! |    7 | group updated     | 1 id, settings of a group, all of them                                              |
//! |    8 | group deleted     | 1 id                                                                                |
//! |    9 | next group id     | 1 id                                                                                |
//! |   10 | offsets committed | 1 group, 2 topic, 3 queues u32, 4 rows of queue u32 and offset u64, [a note], [9 epoch: leases up to this record are over] |
//! |   11 | session opened    | 1 id, 2 name UTF-8, 3 epoch, 4 time                                                 |
//! |   12 | session kept      | 1 id, 2 name UTF-8, 3 epoch, 4 time, 5 last sequence, 6 rows of 56 bytes            |
//! |   13 | session closed    | 1 id                                                                                |
//! |   14 | next session id   | 1 id                                                                                |
//! |   15 | as of             | 1 position                                                                          |
//! |   16 | segments deleted  | 1 ranges: begin u64, end u64                                                        |
//! |   17 | ranges lost       | 1 ranges: begin u64, end u64                                                        |
//! |   18 | image begun       | none                                                                                |
//! |   19 | image part        | 1 offset of its begin, 2 number u32, 3 bytes                                        |
//! |   20 | image ended       | 1 offset of its begin, 2 parts u32, 3 length                                        |
//! |   21 | queues found      | 1 topic, 2 rows of queue u32, next offset u64, first and last segment u64           |
//! |   22 | offset history    | 1 group, 2 topic, 3 position, [4 rows of queue u32, old and new offset u64], a note, [9 rows of queue u32 and new offset u64: nothing was committed before] |
//! |   23 | leases given      | 1 group, 2 topic, 3 epoch, 4 due, [5 rows of queue u32 and cursor u64], [6 rows of 24 bytes], [7 attempt], [8 client], 9 at, [10 who got them UTF-8] |
//! |   24 | messages finished | 1 group, 2 topic, [3 rows of 16 bytes], [4 epoch: in spite of their leases]         |
//! |   25 | leases changed    | 1 group, 2 topic, 3 epoch, [4 rows of 24 bytes], 5 at                               |
//! |   26 | leases kept       | 1 group, 2 topic, [3 rows of queue u32 and cursor u64], [4 rows of 80 bytes: open], [5 rows of 32 bytes: ended by their last lease], [6 rows of 32 bytes: queues that were reset], [7 rows of 56 bytes: given for a try of a receive], [8 who got open ones: length u8 and UTF-8 each] |
//! |   27 | clients lost      | 1 group, 2 topic, 3 due, [4 clients u64]                                            |
//! |   28 | clock of leases   | 1 at                                                                                |
//!
//! | a note on a change of offsets | field                                                                       |
//! | ----------------------------- | --------------------------------------------------------------------------- |
//! |                               | 5 time, 6 cause u8 (1 commit, 2 reset), [7 address and port UTF-8], [8 by whom UTF-8] |
//!
//! | settings of a topic | field                                                                                 |
//! | ------------------- | ------------------------------------------------------------------------------------- |
//! |                     | 3 queues u32, 4 flush u8 (1 sync, 2 async), 5 type u8 (1 normal, 2 FIFO, 3 delay, 4 transaction, 5 mixed), [6 access u8: 1 readable + 2 writable; absent: both], [7 retention in ms; absent: for ever], [8 retention in bytes; absent: without a limit] |
//!
//! | settings of a group | field                                                                                 |
//! | ------------------- | ------------------------------------------------------------------------------------- |
//! |                     | 3 flags u8: 1 enabled + 2 ordered + 4 refuses other filters or 8 rolls them, 4 most attempts u32 (0: without a limit), 5 retry delays in ms, u64 each, 6 initial position u8 (1 earliest, 2 latest, 3 time), [7 initial time in ms], [8 jitter of the delays in percent u32; absent: 0] |
//!
//! | at | len | row of a session, from the oldest to that of its last sequence |
//! | -: | --: | -------------------------------------------------------------- |
//! |  0 |   8 | topic                                                          |
//! |  8 |   4 | queue                                                          |
//! | 12 |   4 | messages                                                       |
//! | 16 |   8 | queue offset of the first                                      |
//! | 24 |   8 | physical offset                                                |
//! | 32 |   8 | end of the record                                              |
//! | 40 |   8 | epoch in which it was written                                  |
//! | 48 |   8 | store time                                                     |
//!
//! A kind grows by new tags: an unknown one without the top bit is skipped, with it the start is refused. So it is for
//! an unknown kind: state that is not understood must not be lost.
//!
//! One run is also the broker's state in a snapshot: the transitions that make it out of nothing. There, *as of* says
//! of which position the transitions behind it are, up to the next one; replay passes over what a unit contains
//! already. 16 to 21 are the store's own and mean nothing to the rooms above it.
//!
//! A commit of offsets that is to be remembered has a note; which of its rows are, and what was there before, follows
//! from the state. *Offset history* says it outright, since a snapshot has no state before; it is in snapshots alone.

mod leases;
mod notes;
mod settings;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use super::fields::{Field, collect, put_field};
use super::{DecodeError, slice_at, u16_at, u32_at, u64_at};
use crate::message::{
    Epoch, GroupId, GroupSettings, PhysicalOffset, QueueId, QueueOffset, SessionId, Timestamp,
    TopicId, TopicSettings,
};

pub use leases::{ChangedLease, GivenRun, LastLease, OpenMessage, OpenState, Run, Tried};
pub use notes::{OffsetCause, OffsetMove, OffsetNote};

const TOPIC_CREATED: u16 = 1;
const TOPIC_DELETED: u16 = 2;
const NEXT_TOPIC_ID: u16 = 3;
const TOPIC_UPDATED: u16 = 4;
const TOPIC_EXPIRED: u16 = 5;
const GROUP_CREATED: u16 = 6;
const GROUP_UPDATED: u16 = 7;
const GROUP_DELETED: u16 = 8;
const NEXT_GROUP_ID: u16 = 9;
const OFFSETS_COMMITTED: u16 = 10;
const SESSION_OPENED: u16 = 11;
const SESSION_KEPT: u16 = 12;
const SESSION_CLOSED: u16 = 13;
const NEXT_SESSION_ID: u16 = 14;
const AS_OF: u16 = 15;
const SEGMENTS_DELETED: u16 = 16;
const RANGES_LOST: u16 = 17;
const IMAGE_BEGUN: u16 = 18;
const IMAGE_PART: u16 = 19;
const IMAGE_ENDED: u16 = 20;
const QUEUES_FOUND: u16 = 21;
const OFFSET_HISTORY: u16 = 22;
const LEASES_GIVEN: u16 = 23;
const MESSAGES_FINISHED: u16 = 24;
const LEASES_CHANGED: u16 = 25;
const LEASES_KEPT: u16 = 26;
const CLIENTS_LOST: u16 = 27;
const LEASE_CLOCK: u16 = 28;

const KIND_AT: usize = 0;
const ZERO_AT: usize = KIND_AT + size_of::<u16>();
const LENGTH_AT: usize = ZERO_AT + size_of::<u16>();
const FIELDS_AT: usize = LENGTH_AT + size_of::<u32>();
const _: () = assert!(FIELDS_AT == 8, "a transition is a contract with existing stores");

const OFFSET_ROW_LEN: usize = size_of::<u32>() + size_of::<u64>();
const RANGE_LEN: usize = 2 * size_of::<u64>();
const SESSION_ROW_LEN: usize = 56;
const POSITION_ROW_LEN: usize = size_of::<u32>() + 3 * size_of::<u64>();

/// Rows of one field; what has more becomes several transitions, which together mean the same.
const MAX_ROWS: usize = 4_000;
const _: () = assert!(MAX_ROWS * RANGE_LEN < 1 << 16, "a field fits its length");
/// The same of the rows of *queues found*.
const MAX_POSITION_ROWS: usize = 2_000;
const _: () = assert!(MAX_POSITION_ROWS * POSITION_ROW_LEN < 1 << 16, "a field fits its length");

/// So many of its last batches a producer session remembers; no more may be in flight.
pub const SESSION_WINDOW: usize = 64;
const _: () = assert!(SESSION_WINDOW * SESSION_ROW_LEN < 1 << 16, "a field fits its length");

/// Bytes of one part of an image.
pub const IMAGE_PART_LEN: usize = 60_000;

/// A batch of a producer session, as it was first stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionBatch {
    /// Where it went.
    pub topic: TopicId,
    /// Its queue.
    pub queue: QueueId,
    /// Messages in it.
    pub messages: u32,
    /// Of the first of them.
    pub queue_offset: QueueOffset,
    /// Where its record starts.
    pub offset: PhysicalOffset,
    /// Behind its record.
    pub end: PhysicalOffset,
    /// In which it was written.
    pub epoch: Epoch,
    /// When.
    pub store_time: Timestamp,
}

/// Where a queue of a topic stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundQueue {
    /// Which.
    pub queue: QueueId,
    /// The offset that its next message gets.
    pub next: QueueOffset,
    /// The base of the first segment that has an entry of it.
    pub first_segment: PhysicalOffset,
    /// The base of the last segment that has an entry of it.
    pub last_segment: PhysicalOffset,
}

/// One change of the broker's own state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transition {
    /// A topic came into being.
    TopicCreated {
        /// Its incarnation; never given before.
        id: TopicId,
        /// Its name; names are checked where topics are created.
        name: String,
        /// What it was made with.
        settings: TopicSettings,
    },
    /// A topic is gone, with all of its messages.
    TopicDeleted {
        /// Its incarnation.
        id: TopicId,
    },
    /// The id of the next topic: kept in snapshots and images, so that a deleted topic's id is not given again.
    NextTopicId {
        /// At least one more than every id ever given.
        next: TopicId,
    },
    /// A topic has other settings from here on.
    TopicUpdated {
        /// Its incarnation.
        id: TopicId,
        /// All of them, changed or not.
        settings: TopicSettings,
    },
    /// Messages of a topic are gone. Nothing of it moves back.
    TopicExpired {
        /// Its incarnation.
        id: TopicId,
        /// Those whose records start below this.
        below: PhysicalOffset,
        /// Those stored before this.
        before: Timestamp,
        /// Those of a queue below an offset.
        queues: Vec<(QueueId, QueueOffset)>,
        /// Those whose records start below this were purged: nobody gets them any more, also not who had them before.
        purged: PhysicalOffset,
    },
    /// A consumer group came into being.
    GroupCreated {
        /// Its incarnation; never given before.
        id: GroupId,
        /// Its name; names are checked where groups are created.
        name: String,
        /// What it was made with.
        settings: GroupSettings,
    },
    /// A consumer group has other settings from here on.
    GroupUpdated {
        /// Its incarnation.
        id: GroupId,
        /// All of them, changed or not.
        settings: GroupSettings,
    },
    /// A consumer group is gone, with its offsets.
    GroupDeleted {
        /// Its incarnation.
        id: GroupId,
    },
    /// As `NextTopicId`, for groups.
    NextGroupId {
        /// At least one more than every id ever given.
        next: GroupId,
    },
    /// A group goes on at these offsets of a topic.
    OffsetsCommitted {
        /// Whose.
        group: GroupId,
        /// Of which topic.
        topic: TopicId,
        /// Queues that the topic had when the group first committed to it: those that came later it starts at 0.
        bound: u32,
        /// The next offset to consume, by queue.
        offsets: Vec<(QueueId, QueueOffset)>,
        /// There if the change may be one that is remembered.
        note: Option<Arc<OffsetNote>>,
        /// There if the group has, or had, leases of the topic: none of these queues that was given up to here is in
        /// force any more. The epoch in which that was.
        revoked: Option<Epoch>,
    },
    /// A producer took a name, from whoever had it.
    SessionOpened {
        /// The name's session.
        id: SessionId,
        /// Its name.
        name: String,
        /// Which of its openings; lower ones are fenced.
        epoch: u64,
        /// When, on the store clock.
        at: Timestamp,
    },
    /// A producer session with all that it remembers; in snapshots.
    SessionKept {
        /// The name's session.
        id: SessionId,
        /// Its name.
        name: String,
        /// Which of its openings; lower ones are fenced.
        epoch: u64,
        /// When it was last used, on the store clock.
        at: Timestamp,
        /// Of its last batch; 0 without one.
        last_sequence: u64,
        /// Its last batches, at most [`SESSION_WINDOW`], up to that of `last_sequence`.
        batches: Vec<SessionBatch>,
    },
    /// A producer session is forgotten.
    SessionClosed {
        /// Which.
        id: SessionId,
    },
    /// As `NextTopicId`, for producer sessions.
    NextSessionId {
        /// At least one more than every id ever given.
        next: SessionId,
    },
    /// In snapshots: the transitions behind this one are the state as of this position.
    AsOf {
        /// The end of the last record that changed the units behind.
        applied: PhysicalOffset,
    },
    /// Segments that hold nothing any more are about to be removed: holes there are not damage.
    SegmentsDeleted {
        /// Half-open, sorted.
        ranges: Vec<Range<PhysicalOffset>>,
    },
    /// An operator gave up damaged bytes: they count as deleted from here on.
    RangesLost {
        /// Half-open, sorted.
        ranges: Vec<Range<PhysicalOffset>>,
    },
    /// A state image begins: what it is made of contains all before this record.
    ImageBegun,
    /// A piece of an image.
    ImagePart {
        /// The record of its `ImageBegun`.
        begin: PhysicalOffset,
        /// Counted from 0.
        number: u32,
        /// A piece of a [`Snapshot`](super::snapshot::Snapshot)'s bytes.
        bytes: Vec<u8>,
    },
    /// An image is whole.
    ImageEnded {
        /// The record of its `ImageBegun`.
        begin: PhysicalOffset,
        /// How many there are.
        parts: u32,
        /// Bytes of all parts.
        len: u64,
    },
    /// Where the queues of a topic stand, as a walk over the whole log found it: no snapshot kept that while nobody
    /// knew the topic.
    QueuesFound {
        /// The topic's incarnation.
        topic: TopicId,
        /// One for each queue that has records.
        queues: Vec<FoundQueue>,
    },
    /// In snapshots: what is remembered of one change of a group's offsets of a topic.
    OffsetHistory {
        /// Whose.
        group: GroupId,
        /// Of which topic.
        topic: TopicId,
        /// The end of the change's record.
        position: PhysicalOffset,
        /// When, why and by whom.
        note: Arc<OffsetNote>,
        /// From where to where, by rising queue.
        moves: Vec<OffsetMove>,
    },
    /// A group got messages of a topic. The number of each lease is the end of this record.
    LeasesGiven {
        /// Which group.
        group: GroupId,
        /// Of which topic.
        topic: TopicId,
        /// In which it was written.
        epoch: Epoch,
        /// When, on the clock of leases.
        at: Timestamp,
        /// Until when they are leased.
        due: Timestamp,
        /// Which try of a receive they were given for, as a hash.
        attempt: Option<u64>,
        /// With which client they end, as a hash; 0 without one.
        client: u64,
        /// Who got them, for people; empty if that is not known.
        holder: String,
        /// Where the group goes on with fresh messages, of the queues where that is elsewhere now. What lies before
        /// and is not open is finished. Each is behind another row of its queue, which says where the group was.
        cursors: Vec<(QueueId, QueueOffset)>,
        /// Which messages.
        runs: Vec<GivenRun>,
    },
    /// A group is through with messages of a topic.
    MessagesFinished {
        /// Which group.
        group: GroupId,
        /// Of which topic.
        topic: TopicId,
        /// There if nobody finished them who had them: their leases are worth nothing any more. The epoch of now.
        epoch: Option<Epoch>,
        /// Which messages.
        runs: Vec<Run>,
    },
    /// Leases last longer or end. Each becomes another, whose number is the end of this record.
    LeasesChanged {
        /// Of which group.
        group: GroupId,
        /// Of which topic.
        topic: TopicId,
        /// In which it was written.
        epoch: Epoch,
        /// When, on the clock of leases.
        at: Timestamp,
        /// Which, and how they stand.
        leases: Vec<ChangedLease>,
    },
    /// In snapshots: what is open of a topic for a group.
    LeasesKept {
        /// Which group.
        group: GroupId,
        /// Of which topic.
        topic: TopicId,
        /// Where it goes on with fresh messages, of the queues that have open ones.
        cursors: Vec<(QueueId, QueueOffset)>,
        /// Its open messages.
        open: Vec<OpenMessage>,
        /// Messages that had several leases, oldest end first: the one that ended each.
        ended: Vec<LastLease>,
        /// By queue that was reset: none of its leases up to this one is in force.
        revoked: Vec<LastLease>,
        /// Which messages were given for a try of a receive, oldest first.
        tried: Vec<Tried>,
        /// Names of those who got open messages last.
        holders: Vec<String>,
    },
    /// Clients are gone: what was leased to them for as long as they live is over.
    ClientsLost {
        /// Which group's.
        group: GroupId,
        /// Of which topic.
        topic: TopicId,
        /// When that was.
        due: Timestamp,
        /// Which, as hashes.
        clients: Vec<u64>,
    },
    /// In snapshots: what the clock of leases read last, as far as a record says so. It goes on from there.
    LeaseClock {
        /// When, on that clock.
        at: Timestamp,
    },
}

impl Transition {
    /// Appends the transition to a run; one of very many rows as several.
    ///
    /// # Panics
    /// If a name or a part of an image is longer than 65 535 bytes.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        match self {
            Self::TopicExpired { id, below, before, queues, purged } if queues.len() > MAX_ROWS => {
                for rows in queues.chunks(MAX_ROWS) {
                    let (id, below, before, purged) = (*id, *below, *before, *purged);
                    let queues = rows.to_vec();
                    Self::TopicExpired { id, below, before, queues, purged }.put(out);
                }
            }
            Self::OffsetsCommitted { group, topic, bound, offsets, note, revoked }
                if offsets.len() > MAX_ROWS =>
            {
                for rows in offsets.chunks(MAX_ROWS) {
                    let (group, topic, bound) = (*group, *topic, *bound);
                    let (offsets, note, revoked) = (rows.to_vec(), note.clone(), *revoked);
                    Self::OffsetsCommitted { group, topic, bound, offsets, note, revoked }.put(out);
                }
            }
            Self::LeasesGiven { cursors, runs, .. }
                if cursors.len().max(runs.len()) > leases::MAX_ROWS =>
            {
                for (cursors, runs) in chunks(cursors, runs) {
                    self.given_part(cursors, runs).put(out);
                }
            }
            Self::MessagesFinished { group, topic, epoch, runs }
                if runs.len() > leases::MAX_ROWS =>
            {
                for runs in runs.chunks(leases::MAX_ROWS) {
                    let (group, topic, epoch, runs) = (*group, *topic, *epoch, runs.to_vec());
                    Self::MessagesFinished { group, topic, epoch, runs }.put(out);
                }
            }
            Self::LeasesChanged { group, topic, epoch, at, leases }
                if leases.len() > leases::MAX_ROWS =>
            {
                for leases in leases.chunks(leases::MAX_ROWS) {
                    let (group, topic, epoch, at) = (*group, *topic, *epoch, *at);
                    let leases = leases.to_vec();
                    Self::LeasesChanged { group, topic, epoch, at, leases }.put(out);
                }
            }
            Self::ClientsLost { group, topic, due, clients } if clients.len() > MAX_ROWS => {
                for clients in clients.chunks(MAX_ROWS) {
                    let (group, topic, due, clients) = (*group, *topic, *due, clients.to_vec());
                    Self::ClientsLost { group, topic, due, clients }.put(out);
                }
            }
            Self::OffsetHistory { group, topic, position, note, moves }
                if moves.len() > notes::MAX_MOVES =>
            {
                for rows in moves.chunks(notes::MAX_MOVES) {
                    let (group, topic, position) = (*group, *topic, *position);
                    let (note, moves) = (Arc::clone(note), rows.to_vec());
                    Self::OffsetHistory { group, topic, position, note, moves }.put(out);
                }
            }
            Self::SegmentsDeleted { ranges } if ranges.len() > MAX_ROWS => {
                for rows in ranges.chunks(MAX_ROWS) {
                    Self::SegmentsDeleted { ranges: rows.to_vec() }.put(out);
                }
            }
            Self::RangesLost { ranges } if ranges.len() > MAX_ROWS => {
                for rows in ranges.chunks(MAX_ROWS) {
                    Self::RangesLost { ranges: rows.to_vec() }.put(out);
                }
            }
            Self::QueuesFound { topic, queues } if queues.len() > MAX_POSITION_ROWS => {
                for rows in queues.chunks(MAX_POSITION_ROWS) {
                    Self::QueuesFound { topic: *topic, queues: rows.to_vec() }.put(out);
                }
            }
            one => one.put(out),
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.kind().to_le_bytes());
        out.extend_from_slice(&[0; FIELDS_AT - ZERO_AT]);
        self.put_fields(out);
        // A handful of fields of at most 64 KiB each: the length fits.
        let len = (out.len() - start - FIELDS_AT) as u32;
        super::put(out, start + LENGTH_AT, len.to_le_bytes());
    }

    /// One flat match, as long as there are kinds.
    fn put_fields(&self, out: &mut Vec<u8>) {
        match self {
            Self::TopicCreated { id, name, settings } => {
                put_u64(out, 1, id.get());
                put_field(out, 2, name.as_bytes());
                settings::put_topic(out, settings);
            }
            Self::TopicUpdated { id, settings } => {
                put_u64(out, 1, id.get());
                settings::put_topic(out, settings);
            }
            Self::TopicDeleted { id } | Self::NextTopicId { next: id } => {
                put_u64(out, 1, id.get());
            }
            Self::TopicExpired { id, below, before, queues, purged } => {
                put_u64(out, 1, id.get());
                if *below > PhysicalOffset::ZERO {
                    put_u64(out, 2, below.get());
                }
                if *before > Timestamp::ZERO {
                    put_u64(out, 3, before.get());
                }
                if !queues.is_empty() {
                    put_field(out, 4, &offset_rows(queues));
                }
                if *purged > PhysicalOffset::ZERO {
                    put_u64(out, 5, purged.get());
                }
            }
            Self::GroupCreated { id, name, settings } => {
                put_u64(out, 1, id.get());
                put_field(out, 2, name.as_bytes());
                settings::put_group(out, settings);
            }
            Self::GroupUpdated { id, settings } => {
                put_u64(out, 1, id.get());
                settings::put_group(out, settings);
            }
            Self::GroupDeleted { id } | Self::NextGroupId { next: id } => {
                put_u64(out, 1, id.get());
            }
            Self::OffsetsCommitted { group, topic, bound, offsets, note, revoked } => {
                put_u64(out, 1, group.get());
                put_u64(out, 2, topic.get());
                put_field(out, 3, &bound.to_le_bytes());
                put_field(out, 4, &offset_rows(offsets));
                if let Some(note) = note {
                    notes::put_note(out, note);
                }
                if let Some(epoch) = revoked {
                    put_u64(out, 9, epoch.get());
                }
            }
            Self::SessionOpened { id, name, epoch, at } => {
                put_u64(out, 1, id.get());
                put_field(out, 2, name.as_bytes());
                put_u64(out, 3, *epoch);
                put_u64(out, 4, at.get());
            }
            Self::SessionKept { id, name, epoch, at, last_sequence, batches } => {
                put_u64(out, 1, id.get());
                put_field(out, 2, name.as_bytes());
                put_u64(out, 3, *epoch);
                put_u64(out, 4, at.get());
                put_u64(out, 5, *last_sequence);
                put_field(out, 6, &session_rows(batches));
            }
            Self::SessionClosed { id } | Self::NextSessionId { next: id } => {
                put_u64(out, 1, id.get());
            }
            Self::AsOf { applied } => put_u64(out, 1, applied.get()),
            Self::SegmentsDeleted { ranges } | Self::RangesLost { ranges } => {
                put_field(out, 1, &range_rows(ranges));
            }
            Self::ImageBegun => {}
            Self::ImagePart { begin, number, bytes } => {
                put_u64(out, 1, begin.get());
                put_field(out, 2, &number.to_le_bytes());
                put_field(out, 3, bytes);
            }
            Self::ImageEnded { begin, parts, len } => {
                put_u64(out, 1, begin.get());
                put_field(out, 2, &parts.to_le_bytes());
                put_u64(out, 3, *len);
            }
            Self::QueuesFound { topic, queues } => {
                put_u64(out, 1, topic.get());
                put_field(out, 2, &position_rows(queues));
            }
            Self::OffsetHistory { group, topic, position, note, moves } => {
                put_u64(out, 1, group.get());
                put_u64(out, 2, topic.get());
                put_u64(out, 3, position.get());
                notes::put_moves(out, moves);
                notes::put_note(out, note);
            }
            Self::LeasesGiven {
                group,
                topic,
                epoch,
                at,
                due,
                attempt,
                client,
                holder,
                cursors,
                runs,
            } => {
                put_u64(out, 1, group.get());
                put_u64(out, 2, topic.get());
                put_u64(out, 3, epoch.get());
                put_u64(out, 4, due.get());
                put_rows(out, 5, &offset_rows(cursors));
                put_rows(out, 6, &leases::given_rows(runs));
                if let Some(attempt) = attempt {
                    put_u64(out, 7, *attempt);
                }
                if *client != 0 {
                    put_u64(out, 8, *client);
                }
                put_u64(out, 9, at.get());
                put_rows(out, 10, holder.as_bytes());
            }
            Self::MessagesFinished { group, topic, epoch, runs } => {
                put_u64(out, 1, group.get());
                put_u64(out, 2, topic.get());
                put_rows(out, 3, &leases::finished_rows(runs));
                if let Some(epoch) = epoch {
                    put_u64(out, 4, epoch.get());
                }
            }
            Self::LeasesChanged { group, topic, epoch, at, leases } => {
                put_u64(out, 1, group.get());
                put_u64(out, 2, topic.get());
                put_u64(out, 3, epoch.get());
                put_rows(out, 4, &leases::changed_rows(leases));
                put_u64(out, 5, at.get());
            }
            Self::LeasesKept { group, topic, cursors, open, ended, revoked, tried, holders } => {
                put_u64(out, 1, group.get());
                put_u64(out, 2, topic.get());
                put_rows(out, 3, &offset_rows(cursors));
                put_rows(out, 4, &leases::open_rows(open));
                put_rows(out, 5, &leases::last_rows(ended));
                put_rows(out, 6, &leases::last_rows(revoked));
                put_rows(out, 7, &leases::tried_rows(tried));
                put_rows(out, 8, &leases::names(holders));
            }
            Self::ClientsLost { group, topic, due, clients } => {
                put_u64(out, 1, group.get());
                put_u64(out, 2, topic.get());
                put_u64(out, 3, due.get());
                put_rows(out, 4, &hash_rows(clients));
            }
            Self::LeaseClock { at } => put_u64(out, 1, at.get()),
        }
    }

    /// A part of leases given, which with all others means the same.
    fn given_part(&self, cursors: &[(QueueId, QueueOffset)], runs: &[GivenRun]) -> Self {
        let mut part = self.clone();
        if let Self::LeasesGiven { cursors: of_part, runs: given, .. } = &mut part {
            (*of_part, *given) = (cursors.to_vec(), runs.to_vec());
        }
        part
    }

    fn kind(&self) -> u16 {
        match self {
            Self::TopicCreated { .. } => TOPIC_CREATED,
            Self::TopicDeleted { .. } => TOPIC_DELETED,
            Self::NextTopicId { .. } => NEXT_TOPIC_ID,
            Self::TopicUpdated { .. } => TOPIC_UPDATED,
            Self::TopicExpired { .. } => TOPIC_EXPIRED,
            Self::GroupCreated { .. } => GROUP_CREATED,
            Self::GroupUpdated { .. } => GROUP_UPDATED,
            Self::GroupDeleted { .. } => GROUP_DELETED,
            Self::NextGroupId { .. } => NEXT_GROUP_ID,
            Self::OffsetsCommitted { .. } => OFFSETS_COMMITTED,
            Self::SessionOpened { .. } => SESSION_OPENED,
            Self::SessionKept { .. } => SESSION_KEPT,
            Self::SessionClosed { .. } => SESSION_CLOSED,
            Self::NextSessionId { .. } => NEXT_SESSION_ID,
            Self::AsOf { .. } => AS_OF,
            Self::SegmentsDeleted { .. } => SEGMENTS_DELETED,
            Self::RangesLost { .. } => RANGES_LOST,
            Self::ImageBegun => IMAGE_BEGUN,
            Self::ImagePart { .. } => IMAGE_PART,
            Self::ImageEnded { .. } => IMAGE_ENDED,
            Self::QueuesFound { .. } => QUEUES_FOUND,
            Self::OffsetHistory { .. } => OFFSET_HISTORY,
            Self::LeasesGiven { .. } => LEASES_GIVEN,
            Self::MessagesFinished { .. } => MESSAGES_FINISHED,
            Self::LeasesChanged { .. } => LEASES_CHANGED,
            Self::LeasesKept { .. } => LEASES_KEPT,
            Self::ClientsLost { .. } => CLIENTS_LOST,
            Self::LeaseClock { .. } => LEASE_CLOCK,
        }
    }

    /// One flat match, as long as there are kinds.
    fn decode(kind: u16, fields: &[u8]) -> Result<Self, DecodeError> {
        let only_id = || collect(fields, [1]).and_then(|[id]| id.u64());
        Ok(match kind {
            TOPIC_CREATED => {
                let [id, name, rest @ ..] = collect(fields, [1, 2, 3, 4, 5, 6, 7, 8])?;
                Self::TopicCreated {
                    id: TopicId::new(id.u64()?),
                    name: name.text()?.to_owned(),
                    settings: settings::topic_of(rest)?,
                }
            }
            TOPIC_UPDATED => {
                let [id, rest @ ..] = collect(fields, [1, 3, 4, 5, 6, 7, 8])?;
                Self::TopicUpdated {
                    id: TopicId::new(id.u64()?),
                    settings: settings::topic_of(rest)?,
                }
            }
            TOPIC_DELETED => Self::TopicDeleted { id: TopicId::new(only_id()?) },
            NEXT_TOPIC_ID => Self::NextTopicId { next: TopicId::new(only_id()?) },
            TOPIC_EXPIRED => {
                let [id, below, before, queues, purged] = collect(fields, [1, 2, 3, 4, 5])?;
                let number = |field: Field<'_>| field.optional().map_or(Ok(0), Field::u64);
                Self::TopicExpired {
                    id: TopicId::new(id.u64()?),
                    below: PhysicalOffset::new(number(below)?),
                    before: Timestamp::new(number(before)?),
                    queues: queues.optional().map_or(Ok(Vec::new()), offsets_of)?,
                    purged: PhysicalOffset::new(number(purged)?),
                }
            }
            GROUP_CREATED => {
                let [id, name, rest @ ..] = collect(fields, [1, 2, 3, 4, 5, 6, 7, 8])?;
                Self::GroupCreated {
                    id: GroupId::new(id.u64()?),
                    name: name.text()?.to_owned(),
                    settings: settings::group_of(rest)?,
                }
            }
            GROUP_UPDATED => {
                let [id, rest @ ..] = collect(fields, [1, 3, 4, 5, 6, 7, 8])?;
                Self::GroupUpdated {
                    id: GroupId::new(id.u64()?),
                    settings: settings::group_of(rest)?,
                }
            }
            GROUP_DELETED => Self::GroupDeleted { id: GroupId::new(only_id()?) },
            NEXT_GROUP_ID => Self::NextGroupId { next: GroupId::new(only_id()?) },
            OFFSETS_COMMITTED => {
                let [group, topic, bound, offsets, revoked, note @ ..] =
                    collect(fields, [1, 2, 3, 4, 9, 5, 6, 7, 8])?;
                Self::OffsetsCommitted {
                    group: GroupId::new(group.u64()?),
                    topic: TopicId::new(topic.u64()?),
                    bound: bound.u32()?,
                    offsets: offsets_of(offsets)?,
                    note: notes::is_there(&note).then(|| notes::note_of(note)).transpose()?,
                    revoked: revoked.optional().map(Field::u64).transpose()?.map(Epoch::new),
                }
            }
            SESSION_OPENED => {
                let [id, name, epoch, at] = collect(fields, [1, 2, 3, 4])?;
                Self::SessionOpened {
                    id: SessionId::new(id.u64()?),
                    name: name.text()?.to_owned(),
                    epoch: epoch.u64()?,
                    at: Timestamp::new(at.u64()?),
                }
            }
            SESSION_KEPT => {
                let [id, name, epoch, at, last, batches] = collect(fields, [1, 2, 3, 4, 5, 6])?;
                Self::SessionKept {
                    id: SessionId::new(id.u64()?),
                    name: name.text()?.to_owned(),
                    epoch: epoch.u64()?,
                    at: Timestamp::new(at.u64()?),
                    last_sequence: last.u64()?,
                    batches: batches_of(batches)?,
                }
            }
            SESSION_CLOSED => Self::SessionClosed { id: SessionId::new(only_id()?) },
            NEXT_SESSION_ID => Self::NextSessionId { next: SessionId::new(only_id()?) },
            AS_OF => Self::AsOf { applied: PhysicalOffset::new(only_id()?) },
            SEGMENTS_DELETED | RANGES_LOST => {
                let [ranges] = collect(fields, [1])?;
                let ranges = ranges_of(ranges)?;
                if kind == SEGMENTS_DELETED {
                    Self::SegmentsDeleted { ranges }
                } else {
                    Self::RangesLost { ranges }
                }
            }
            IMAGE_BEGUN => collect(fields, []).map(|[]| Self::ImageBegun)?,
            IMAGE_PART => {
                let [begin, number, bytes] = collect(fields, [1, 2, 3])?;
                Self::ImagePart {
                    begin: PhysicalOffset::new(begin.u64()?),
                    number: number.u32()?,
                    bytes: bytes.bytes()?.to_vec(),
                }
            }
            IMAGE_ENDED => {
                let [begin, parts, len] = collect(fields, [1, 2, 3])?;
                Self::ImageEnded {
                    begin: PhysicalOffset::new(begin.u64()?),
                    parts: parts.u32()?,
                    len: len.u64()?,
                }
            }
            QUEUES_FOUND => {
                let [topic, queues] = collect(fields, [1, 2])?;
                let topic = TopicId::new(topic.u64()?);
                Self::QueuesFound { topic, queues: positions_of(queues)? }
            }
            OFFSET_HISTORY => {
                let [group, topic, position, moved, new, note @ ..] =
                    collect(fields, [1, 2, 3, 4, 9, 5, 6, 7, 8])?;
                Self::OffsetHistory {
                    group: GroupId::new(group.u64()?),
                    topic: TopicId::new(topic.u64()?),
                    position: PhysicalOffset::new(position.u64()?),
                    note: notes::note_of(note)?,
                    moves: notes::moves_of(moved, new)?,
                }
            }
            LEASES_GIVEN => {
                let [group, topic, epoch, due, cursors, runs, attempt, client, at, holder] =
                    collect(fields, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])?;
                Self::LeasesGiven {
                    group: GroupId::new(group.u64()?),
                    topic: TopicId::new(topic.u64()?),
                    epoch: Epoch::new(epoch.u64()?),
                    at: Timestamp::new(at.u64()?),
                    due: Timestamp::new(due.u64()?),
                    attempt: attempt.optional().map(Field::u64).transpose()?,
                    client: client.optional().map_or(Ok(0), Field::u64)?,
                    holder: holder.optional().map_or(Ok(""), Field::text)?.to_owned(),
                    cursors: cursors.optional().map_or(Ok(Vec::new()), offsets_of)?,
                    runs: runs.optional().map_or(Ok(Vec::new()), leases::given_of)?,
                }
            }
            MESSAGES_FINISHED => {
                let [group, topic, runs, epoch] = collect(fields, [1, 2, 3, 4])?;
                Self::MessagesFinished {
                    group: GroupId::new(group.u64()?),
                    topic: TopicId::new(topic.u64()?),
                    epoch: epoch.optional().map(Field::u64).transpose()?.map(Epoch::new),
                    runs: runs.optional().map_or(Ok(Vec::new()), leases::finished_of)?,
                }
            }
            LEASES_CHANGED => {
                let [group, topic, epoch, changed, at] = collect(fields, [1, 2, 3, 4, 5])?;
                Self::LeasesChanged {
                    group: GroupId::new(group.u64()?),
                    topic: TopicId::new(topic.u64()?),
                    epoch: Epoch::new(epoch.u64()?),
                    at: Timestamp::new(at.u64()?),
                    leases: changed.optional().map_or(Ok(Vec::new()), leases::changed_of)?,
                }
            }
            LEASES_KEPT => {
                let [group, topic, cursors, open, ended, revoked, tried, holders] =
                    collect(fields, [1, 2, 3, 4, 5, 6, 7, 8])?;
                let last =
                    |field: Field<'_>| field.optional().map_or(Ok(Vec::new()), leases::last_of);
                Self::LeasesKept {
                    group: GroupId::new(group.u64()?),
                    topic: TopicId::new(topic.u64()?),
                    cursors: cursors.optional().map_or(Ok(Vec::new()), offsets_of)?,
                    open: open.optional().map_or(Ok(Vec::new()), leases::open_of)?,
                    ended: last(ended)?,
                    revoked: last(revoked)?,
                    tried: tried.optional().map_or(Ok(Vec::new()), leases::tried_of)?,
                    holders: holders.optional().map_or(Ok(Vec::new()), leases::names_of)?,
                }
            }
            CLIENTS_LOST => {
                let [group, topic, due, clients] = collect(fields, [1, 2, 3, 4])?;
                Self::ClientsLost {
                    group: GroupId::new(group.u64()?),
                    topic: TopicId::new(topic.u64()?),
                    due: Timestamp::new(due.u64()?),
                    clients: clients.optional().map_or(Ok(Vec::new()), hashes_of)?,
                }
            }
            LEASE_CLOCK => Self::LeaseClock { at: Timestamp::new(only_id()?) },
            _ => return Err(DecodeError::UnknownTransition { kind }),
        })
    }
}

fn put_u64(out: &mut Vec<u8>, tag: u16, number: u64) {
    put_field(out, tag, &number.to_le_bytes());
}

/// A field that is absent if it has no rows.
fn put_rows(out: &mut Vec<u8>, tag: u16, rows: &[u8]) {
    if !rows.is_empty() {
        put_field(out, tag, rows);
    }
}

/// Cursors and runs in parts that fit their fields. No run stands in a part before a cursor, which says where the
/// group was before it got the run.
fn chunks<'a>(
    cursors: &'a [(QueueId, QueueOffset)],
    runs: &'a [GivenRun],
) -> impl Iterator<Item = (&'a [(QueueId, QueueOffset)], &'a [GivenRun])> {
    let parts = |rows: usize| rows.div_ceil(leases::MAX_ROWS);
    let without_runs = parts(cursors.len()).saturating_sub(1);
    let count = without_runs + parts(runs.len()).max(1);
    (0..count).map(move |part| {
        let runs = part.checked_sub(without_runs).map(|part| chunk(runs, part));
        (chunk(cursors, part), runs.unwrap_or_default())
    })
}

fn chunk<T>(rows: &[T], part: usize) -> &[T] {
    rows.chunks(leases::MAX_ROWS).nth(part).unwrap_or_default()
}

fn hash_rows(hashes: &[u64]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect()
}

fn hashes_of(field: Field<'_>) -> Result<Vec<u64>, DecodeError> {
    rows(field, size_of::<u64>(), |row| u64_at(row, 0))
}

fn offset_rows(rows: &[(QueueId, QueueOffset)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(rows.len() * OFFSET_ROW_LEN);
    for (queue, offset) in rows {
        bytes.extend_from_slice(&queue.get().to_le_bytes());
        bytes.extend_from_slice(&offset.get().to_le_bytes());
    }
    bytes
}

fn offsets_of(field: Field<'_>) -> Result<Vec<(QueueId, QueueOffset)>, DecodeError> {
    rows(field, OFFSET_ROW_LEN, |row| {
        let queue = QueueId::new(u32_at(row, 0)?);
        Ok((queue, QueueOffset::new(u64_at(row, size_of::<u32>())?)))
    })
}

fn position_rows(queues: &[FoundQueue]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(queues.len() * POSITION_ROW_LEN);
    for position in queues {
        bytes.extend_from_slice(&position.queue.get().to_le_bytes());
        let (first, last) = (position.first_segment.get(), position.last_segment.get());
        for number in [position.next.get(), first, last] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
    }
    bytes
}

fn positions_of(field: Field<'_>) -> Result<Vec<FoundQueue>, DecodeError> {
    rows(field, POSITION_ROW_LEN, |row| {
        Ok(FoundQueue {
            queue: QueueId::new(u32_at(row, 0)?),
            next: QueueOffset::new(u64_at(row, 4)?),
            first_segment: PhysicalOffset::new(u64_at(row, 12)?),
            last_segment: PhysicalOffset::new(u64_at(row, 20)?),
        })
    })
}

fn range_rows(ranges: &[Range<PhysicalOffset>]) -> Vec<u8> {
    let ends = ranges.iter().flat_map(|range| [range.start, range.end]);
    ends.flat_map(|end| end.get().to_le_bytes()).collect()
}

fn ranges_of(field: Field<'_>) -> Result<Vec<Range<PhysicalOffset>>, DecodeError> {
    rows(field, RANGE_LEN, |row| {
        let (start, end) = (u64_at(row, 0)?, u64_at(row, size_of::<u64>())?);
        if start >= end {
            return Err(field.meaningless());
        }
        Ok(PhysicalOffset::new(start)..PhysicalOffset::new(end))
    })
}

fn session_rows(batches: &[SessionBatch]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(batches.len() * SESSION_ROW_LEN);
    for batch in batches {
        bytes.extend_from_slice(&batch.topic.get().to_le_bytes());
        bytes.extend_from_slice(&batch.queue.get().to_le_bytes());
        bytes.extend_from_slice(&batch.messages.to_le_bytes());
        for number in [
            batch.queue_offset.get(),
            batch.offset.get(),
            batch.end.get(),
            batch.epoch.get(),
            batch.store_time.get(),
        ] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
    }
    bytes
}

fn batches_of(field: Field<'_>) -> Result<Vec<SessionBatch>, DecodeError> {
    let batches = rows(field, SESSION_ROW_LEN, |row| {
        Ok(SessionBatch {
            topic: TopicId::new(u64_at(row, 0)?),
            queue: QueueId::new(u32_at(row, 8)?),
            messages: u32_at(row, 12)?,
            queue_offset: QueueOffset::new(u64_at(row, 16)?),
            offset: PhysicalOffset::new(u64_at(row, 24)?),
            end: PhysicalOffset::new(u64_at(row, 32)?),
            epoch: Epoch::new(u64_at(row, 40)?),
            store_time: Timestamp::new(u64_at(row, 48)?),
        })
    })?;
    if batches.len() > SESSION_WINDOW { Err(field.meaningless()) } else { Ok(batches) }
}

/// The rows of a field that holds nothing else.
fn rows<T>(
    field: Field<'_>,
    len: usize,
    row: impl Fn(&[u8]) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let rows = field.bytes()?.chunks_exact(len);
    if !rows.remainder().is_empty() {
        return Err(field.meaningless());
    }
    rows.map(row).collect()
}

/// The transitions of a run, in order. The first that is damaged or not understood ends it with its error.
pub fn transitions(
    payload: &[u8],
) -> impl Iterator<Item = Result<Transition, DecodeError>> + use<'_> {
    Transitions { rest: payload }
}

struct Transitions<'a> {
    rest: &'a [u8],
}

impl Transitions<'_> {
    fn take(&mut self) -> Result<Transition, DecodeError> {
        let kind = u16_at(self.rest, KIND_AT)?;
        if u16_at(self.rest, ZERO_AT)? != 0 {
            return Err(DecodeError::Reserved { at: ZERO_AT });
        }
        let len = u32_at(self.rest, LENGTH_AT)? as usize;
        let fields = slice_at(self.rest, FIELDS_AT, len)?;
        let transition = Transition::decode(kind, fields)?;
        self.rest = self.rest.get(FIELDS_AT + len..).unwrap_or_default();
        Ok(transition)
    }
}

impl Iterator for Transitions<'_> {
    type Item = Result<Transition, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let transition = self.take();
        if transition.is_err() {
            self.rest = &[];
        }
        Some(transition)
    }
}
