//! What the broker adds to a record of messages, beside what the producer sent.
//!
//! | tag | len | attribute        | meaning                                                                    |
//! | --: | --: | ---------------- | -------------------------------------------------------------------------- |
//! |   1 |  24 | producer session | session u64, epoch u64, sequence u64: a retry of the batch is not stored again |
//! |   2 |  80 | dead letter      | where it comes from: topic u64, queue offset u64, epoch and physical offset of its record u64, its store time u64, queue u32, deliveries u32, index u16, reason u16 (1 deliveries, 2 given up, 3 undecodable, 4 operator), messages u32, first and last delivery u64 each on the clock of leases, times it went back u32, where it is u32 (0 among the dead letters, 1 back in its topic); epoch, physical offset, index and store time are 0 where the record could not be read |
//! |   3 |     | its topic's name | UTF-8                                                                      |
//! |   4 |     | its last client  | UTF-8                                                                      |
//! |   5 |   8 | one group        | group u64: it is for that one alone, and others pass over it               |
//! |   6 |   4 | told tries       | u32: how often the consumer that gave it up has tried it, as it says itself; absent: it said nothing |

use super::record::{attributes, put_attribute};
use super::{DecodeError, array_at, u16_at, u32_at, u64_at};
use crate::message::{
    Epoch, GroupId, MessageId, PhysicalOffset, QueueId, QueueOffset, SessionId, SessionMark,
    Timestamp, TopicId,
};

const PRODUCER_SESSION: u16 = 1;
const DEAD_LETTER: u16 = 2;
const ORIGIN_NAME: u16 = 3;
const LAST_CLIENT: u16 = 4;
const ONE_GROUP: u16 = 5;
const TOLD_TRIES: u16 = 6;

const DEAD_LETTER_LEN: usize = 80;

const IN_TOPIC: u32 = 1;

/// Why a message is a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadReason {
    /// It was delivered as often as its group allows.
    Attempts,
    /// Its consumer gave it up.
    GivenUp,
    /// It cannot be read, or not be decompressed: nobody could be given it.
    Undecodable,
    /// An operator said so.
    Operator,
}

impl DeadReason {
    const ALL: [Self; 4] = [Self::Attempts, Self::GivenUp, Self::Undecodable, Self::Operator];

    fn code(self) -> u16 {
        match self {
            Self::Attempts => 1,
            Self::GivenUp => 2,
            Self::Undecodable => 3,
            Self::Operator => 4,
        }
    }

    fn of(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }
}

/// What there is to know of a dead letter, or of a message that once was one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadLetter<'a> {
    /// Why it is one.
    pub reason: DeadReason,
    /// How often it was delivered.
    pub deliveries: u32,
    /// How many messages it stands for: more than 1 where a run of them cannot be read, of which it is the first.
    pub messages: u32,
    /// The incarnation of its topic.
    pub topic: TopicId,
    /// Its queue.
    pub queue: QueueId,
    /// Its place there.
    pub queue_offset: QueueOffset,
    /// Its id; all 0 if its record could not be read.
    pub id: MessageId,
    /// When it was stored; 0 if its record could not be read.
    pub store_time: Timestamp,
    /// The name of its topic.
    pub topic_name: &'a str,
    /// When it was delivered first, on the clock of leases; 0: never.
    pub first_delivered: Timestamp,
    /// When it was delivered last.
    pub last_delivered: Timestamp,
    /// Who got it last; empty if that is not known.
    pub last_client: &'a str,
    /// How often it went back to its topic until now.
    pub redriven: u32,
    /// It is back in its topic; else it lies among the dead letters.
    pub is_back: bool,
    /// How often the consumer that gave it up has tried it, as it says itself; 0: it said nothing.
    pub told_tries: u32,
}

/// The attributes of a dead letter.
pub fn of_dead_letter(letter: &DeadLetter<'_>) -> Vec<u8> {
    let mut value = Vec::with_capacity(DEAD_LETTER_LEN);
    for number in [
        letter.topic.get(),
        letter.queue_offset.get(),
        letter.id.epoch.get(),
        letter.id.offset.get(),
        letter.store_time.get(),
    ] {
        value.extend_from_slice(&number.to_le_bytes());
    }
    value.extend_from_slice(&letter.queue.get().to_le_bytes());
    value.extend_from_slice(&letter.deliveries.to_le_bytes());
    value.extend_from_slice(&letter.id.index.to_le_bytes());
    value.extend_from_slice(&letter.reason.code().to_le_bytes());
    value.extend_from_slice(&letter.messages.to_le_bytes());
    value.extend_from_slice(&letter.first_delivered.get().to_le_bytes());
    value.extend_from_slice(&letter.last_delivered.get().to_le_bytes());
    value.extend_from_slice(&letter.redriven.to_le_bytes());
    value.extend_from_slice(&(u32::from(letter.is_back) * IN_TOPIC).to_le_bytes());
    let mut out = Vec::with_capacity(DEAD_LETTER_LEN + letter.topic_name.len() + 8);
    let put = put_attribute(&mut out, DEAD_LETTER, &value)
        .and_then(|()| put_attribute(&mut out, ORIGIN_NAME, letter.topic_name.as_bytes()))
        .and_then(|()| match letter.last_client.is_empty() {
            true => Ok(()),
            false => put_attribute(&mut out, LAST_CLIENT, letter.last_client.as_bytes()),
        })
        .and_then(|()| match letter.told_tries {
            0 => Ok(()),
            told => put_attribute(&mut out, TOLD_TRIES, &told.to_le_bytes()),
        });
    debug_assert!(put.is_ok(), "the names of topics and clients are short");
    out
}

/// Where a dead letter comes from, if the attributes are those of one.
///
/// # Errors
/// An attribute has another length or no meaning, or the list is cut short.
pub fn dead_letter(bytes: &[u8]) -> Result<Option<DeadLetter<'_>>, DecodeError> {
    let (mut value, mut topic_name, mut last_client, mut told_tries) = (None, "", "", 0);
    for attribute in attributes(bytes) {
        let attribute = attribute?;
        let meaningless = DecodeError::Field { tag: attribute.tag, len: attribute.value.len() };
        match attribute.tag {
            DEAD_LETTER if attribute.value.len() == DEAD_LETTER_LEN => {
                value = Some(attribute.value);
            }
            DEAD_LETTER => return Err(meaningless),
            ORIGIN_NAME => {
                topic_name = str::from_utf8(attribute.value).map_err(|_| meaningless)?;
            }
            LAST_CLIENT => {
                last_client = str::from_utf8(attribute.value).map_err(|_| meaningless)?;
            }
            TOLD_TRIES => {
                let told = attribute.value.try_into().map_err(|_| meaningless)?;
                told_tries = u32::from_le_bytes(told);
            }
            _ => {}
        }
    }
    let Some(value) = value else { return Ok(None) };
    Ok(Some(DeadLetter {
        reason: DeadReason::of(u16_at(value, 50)?)
            .ok_or(DecodeError::Field { tag: DEAD_LETTER, len: value.len() })?,
        deliveries: u32_at(value, 44)?,
        messages: u32_at(value, 52)?,
        topic: TopicId::new(u64_at(value, 0)?),
        queue: QueueId::new(u32_at(value, 40)?),
        queue_offset: QueueOffset::new(u64_at(value, 8)?),
        id: MessageId {
            epoch: Epoch::new(u64_at(value, 16)?),
            offset: PhysicalOffset::new(u64_at(value, 24)?),
            index: u16_at(value, 48)?,
        },
        store_time: Timestamp::new(u64_at(value, 32)?),
        topic_name,
        first_delivered: Timestamp::new(u64_at(value, 56)?),
        last_delivered: Timestamp::new(u64_at(value, 64)?),
        last_client,
        redriven: u32_at(value, 72)?,
        is_back: match u32_at(value, 76)? {
            0 => false,
            IN_TOPIC => true,
            _ => return Err(DecodeError::Field { tag: DEAD_LETTER, len: value.len() }),
        },
        told_tries,
    }))
}

/// Appends the attribute of a message that is for one group alone.
pub fn put_one_group(out: &mut Vec<u8>, group: GroupId) {
    let put = put_attribute(out, ONE_GROUP, &group.get().to_le_bytes());
    debug_assert!(put.is_ok(), "8 bytes are a short value");
}

/// The group that a message is for alone, if its attributes name one.
///
/// # Errors
/// The attribute has another length, or the list is cut short.
pub fn one_group(bytes: &[u8]) -> Result<Option<GroupId>, DecodeError> {
    for attribute in attributes(bytes) {
        let attribute = attribute?;
        if attribute.tag == ONE_GROUP {
            let value: [u8; size_of::<u64>()] = array_at(attribute.value, 0)?;
            if attribute.value.len() != value.len() {
                let (tag, len) = (attribute.tag, attribute.value.len());
                return Err(DecodeError::Field { tag, len });
            }
            return Ok(Some(GroupId::new(u64_at(&value, 0)?)));
        }
    }
    Ok(None)
}

const SESSION_AT: usize = 0;
const EPOCH_AT: usize = SESSION_AT + size_of::<u64>();
const SEQUENCE_AT: usize = EPOCH_AT + size_of::<u64>();
const SESSION_LEN: usize = SEQUENCE_AT + size_of::<u64>();
const _: () = assert!(SESSION_LEN == 24, "the attribute is a contract with existing stores");

/// The attributes of a record that belongs to a producer session.
pub fn of_session(mark: &SessionMark) -> Vec<u8> {
    let mut value = [0; SESSION_LEN];
    super::put(&mut value, SESSION_AT, mark.session.get().to_le_bytes());
    super::put(&mut value, EPOCH_AT, mark.epoch.to_le_bytes());
    super::put(&mut value, SEQUENCE_AT, mark.sequence.to_le_bytes());
    let mut out = Vec::with_capacity(SESSION_LEN + 4);
    let put = put_attribute(&mut out, PRODUCER_SESSION, &value);
    debug_assert!(put.is_ok(), "24 bytes are a short value");
    out
}

/// The producer session of a record, if its attributes name one.
///
/// # Errors
/// The attribute has another length, or the list is cut short.
pub fn session(bytes: &[u8]) -> Result<Option<SessionMark>, DecodeError> {
    for attribute in attributes(bytes) {
        let attribute = attribute?;
        if attribute.tag != PRODUCER_SESSION {
            continue;
        }
        let value: [u8; SESSION_LEN] = array_at(attribute.value, 0)?;
        if attribute.value.len() != SESSION_LEN {
            let (tag, len) = (attribute.tag, attribute.value.len());
            return Err(DecodeError::Field { tag, len });
        }
        return Ok(Some(SessionMark {
            session: SessionId::new(u64_at(&value, SESSION_AT)?),
            epoch: u64_at(&value, EPOCH_AT)?,
            sequence: u64_at(&value, SEQUENCE_AT)?,
        }));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::testing::hex;

    const MARK: SessionMark = SessionMark { session: SessionId::new(7), epoch: 2, sequence: 259 };

    #[test]
    fn golden_bytes() {
        assert_eq!(
            hex(&of_session(&MARK)),
            ["01001800070000000000000002000000", "000000000301000000000000"]
        );
    }

    #[test]
    fn a_session_is_found_among_other_attributes() {
        let mut bytes = Vec::new();
        put_attribute(&mut bytes, 9, b"other").unwrap();
        assert_eq!(session(&bytes), Ok(None));
        bytes.extend(of_session(&MARK));
        assert_eq!(session(&bytes), Ok(Some(MARK)));
    }

    #[test]
    fn a_dead_letter_tells_where_it_comes_from() {
        let letter = DeadLetter {
            reason: DeadReason::GivenUp,
            deliveries: 3,
            messages: 9,
            topic: TopicId::new(7),
            queue: QueueId::new(2),
            queue_offset: QueueOffset::new(5),
            id: MessageId { epoch: Epoch::new(1), offset: PhysicalOffset::new(4096), index: 6 },
            store_time: Timestamp::new(77),
            topic_name: "orders",
            first_delivered: Timestamp::new(8),
            last_delivered: Timestamp::new(9),
            last_client: "me",
            redriven: 2,
            is_back: true,
            told_tries: 0,
        };
        let mut bytes = of_dead_letter(&letter);
        assert_eq!(
            hex(&bytes),
            [
                "02005000070000000000000005000000",
                "00000000010000000000000000100000",
                "000000004d0000000000000002000000",
                "03000000060002000900000008000000",
                "00000000090000000000000002000000",
                "01000000030006006f72646572730400",
                "02006d65"
            ]
        );
        assert_eq!(dead_letter(&bytes), Ok(Some(letter)));
        assert_eq!((dead_letter(&[]), session(&bytes)), (Ok(None), Ok(None)));
        let mut wrong = bytes.clone();
        wrong[4 + 50] = 5;
        assert_eq!(dead_letter(&wrong), Err(DecodeError::Field { tag: 2, len: 80 }));
        assert_eq!(one_group(&bytes), Ok(None));
        put_one_group(&mut bytes, GroupId::new(7));
        assert_eq!(
            (one_group(&bytes), dead_letter(&bytes)),
            (Ok(Some(GroupId::new(7))), Ok(Some(letter)))
        );
        assert!(one_group(&[5, 0, 1, 0, 9]).is_err());
        // What its consumer tells comes last, and is not there where it tells nothing, as in records of before.
        let told = DeadLetter { told_tries: 17, ..letter };
        let bytes = of_dead_letter(&told);
        assert_eq!(
            bytes.strip_prefix(&of_dead_letter(&letter)[..]),
            Some(&[6, 0, 4, 0, 17, 0, 0, 0][..])
        );
        assert_eq!(dead_letter(&bytes), Ok(Some(told)));
        for len in [0, 3, 5] {
            let mut wrong = of_dead_letter(&letter);
            put_attribute(&mut wrong, TOLD_TRIES, &vec![1; len]).unwrap();
            assert_eq!(dead_letter(&wrong), Err(DecodeError::Field { tag: 6, len }));
        }
    }

    #[test]
    fn another_length_is_named() {
        for len in [0, 23, 25] {
            let mut bytes = Vec::new();
            put_attribute(&mut bytes, PRODUCER_SESSION, &vec![1; len]).unwrap();
            assert!(session(&bytes).is_err(), "{len}");
        }
    }
}
