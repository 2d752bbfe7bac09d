//! The payload of a state record: a run of transitions, one per change of the broker's own state.
//!
//! | at | len    | field  | meaning                                                    |
//! | -: | -----: | ------ | ---------------------------------------------------------- |
//! |  0 |      2 | kind   | which change                                               |
//! |  2 |      2 | zero   |                                                            |
//! |  4 |      4 | length | of the fields in bytes                                     |
//! |  8 | length | fields | in the form of a record's attributes: tag, length, value   |
//!
//! | kind | transition    | fields                                                                         |
//! | ---: | ------------- | ------------------------------------------------------------------------------ |
//! |    1 | topic created | 1 id u64, 2 name UTF-8, 3 queues u32, 4 flush u8 (1 sync, 2 async), 5 type u8 (1 normal, 2 FIFO, 3 delay, 4 transaction, 5 mixed) |
//! |    2 | topic deleted | 1 id u64                                                                       |
//! |    3 | next topic id | 1 id u64                                                                       |
//!
//! A kind grows by new tags: an unknown one without the top bit is skipped, with it the start is refused. So it is for
//! an unknown kind: state that is not understood must not be lost. One run is also the broker's state in a snapshot.

use super::fields::{collect, put_field};
use super::{DecodeError, slice_at, u16_at, u32_at};
use crate::message::{FlushMode, TopicId, TopicType};

const TOPIC_CREATED: u16 = 1;
const TOPIC_DELETED: u16 = 2;
const NEXT_TOPIC_ID: u16 = 3;

const ID: u16 = 1;
const NAME: u16 = 2;
const QUEUES: u16 = 3;
const FLUSH: u16 = 4;
const TYPE: u16 = 5;

const KIND_AT: usize = 0;
const ZERO_AT: usize = KIND_AT + size_of::<u16>();
const LENGTH_AT: usize = ZERO_AT + size_of::<u16>();
const FIELDS_AT: usize = LENGTH_AT + size_of::<u32>();
const _: () = assert!(FIELDS_AT == 8, "a transition is a contract with existing stores");

/// One change of the broker's own state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transition {
    /// A topic came into being.
    TopicCreated {
        /// Its incarnation; never given before.
        id: TopicId,
        /// Its name; names are checked where topics are created.
        name: String,
        /// How many queues it has.
        queues: u32,
        /// What its acknowledgements wait for.
        flush: FlushMode,
        /// What messages it takes.
        topic_type: TopicType,
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
}

impl Transition {
    /// Appends the transition to a run.
    ///
    /// # Panics
    /// If a topic's name is longer than 65 535 bytes.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.kind().to_le_bytes());
        out.extend_from_slice(&[0; FIELDS_AT - ZERO_AT]);
        match self {
            Self::TopicCreated { id, name, queues, flush, topic_type } => {
                put_field(out, ID, &id.get().to_le_bytes());
                put_field(out, NAME, name.as_bytes());
                put_field(out, QUEUES, &queues.to_le_bytes());
                put_field(out, FLUSH, &[flush_code(*flush)]);
                put_field(out, TYPE, &[type_code(*topic_type)]);
            }
            Self::TopicDeleted { id } | Self::NextTopicId { next: id } => {
                put_field(out, ID, &id.get().to_le_bytes());
            }
        }
        // Five fields of at most 64 KiB each: the length fits.
        let len = (out.len() - start - FIELDS_AT) as u32;
        super::put(out, start + LENGTH_AT, len.to_le_bytes());
    }

    fn kind(&self) -> u16 {
        match self {
            Self::TopicCreated { .. } => TOPIC_CREATED,
            Self::TopicDeleted { .. } => TOPIC_DELETED,
            Self::NextTopicId { .. } => NEXT_TOPIC_ID,
        }
    }

    fn decode(kind: u16, fields: &[u8]) -> Result<Self, DecodeError> {
        match kind {
            TOPIC_CREATED => {
                let [id, name, queues, flush, topic_type] =
                    collect(fields, [ID, NAME, QUEUES, FLUSH, TYPE])?;
                Ok(Self::TopicCreated {
                    id: TopicId::new(id.u64()?),
                    name: name.text()?.to_owned(),
                    queues: queues.u32()?,
                    flush: flush.code(flush_of)?,
                    topic_type: topic_type.code(type_of)?,
                })
            }
            TOPIC_DELETED => {
                let [id] = collect(fields, [ID])?;
                Ok(Self::TopicDeleted { id: TopicId::new(id.u64()?) })
            }
            NEXT_TOPIC_ID => {
                let [next] = collect(fields, [ID])?;
                Ok(Self::NextTopicId { next: TopicId::new(next.u64()?) })
            }
            _ => Err(DecodeError::UnknownTransition { kind }),
        }
    }
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

fn flush_code(flush: FlushMode) -> u8 {
    match flush {
        FlushMode::Sync => 1,
        FlushMode::Async => 2,
    }
}

fn flush_of(code: u8) -> Option<FlushMode> {
    [FlushMode::Sync, FlushMode::Async].into_iter().find(|flush| flush_code(*flush) == code)
}

fn type_code(topic_type: TopicType) -> u8 {
    match topic_type {
        TopicType::Normal => 1,
        TopicType::Fifo => 2,
        TopicType::Delay => 3,
        TopicType::Transaction => 4,
        TopicType::Mixed => 5,
    }
}

fn type_of(code: u8) -> Option<TopicType> {
    use TopicType::{Delay, Fifo, Mixed, Normal, Transaction};
    [Normal, Fifo, Delay, Transaction, Mixed].into_iter().find(|kind| type_code(*kind) == code)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::testing::*;

    fn created(flush: FlushMode, topic_type: TopicType) -> Transition {
        let name = "orders".to_owned();
        Transition::TopicCreated { id: TopicId::new(7), name, queues: 4, flush, topic_type }
    }

    fn samples() -> Vec<Transition> {
        vec![
            created(FlushMode::Sync, TopicType::Mixed),
            Transition::TopicDeleted { id: TopicId::new(7) },
            Transition::NextTopicId { next: TopicId::new(8) },
        ]
    }

    fn run_of(list: &[Transition]) -> Vec<u8> {
        let mut out = Vec::new();
        for transition in list {
            transition.encode_into(&mut out);
        }
        out
    }

    fn read(run: &[u8]) -> Result<Vec<Transition>, DecodeError> {
        transitions(run).collect()
    }

    /// One transition of any kind and fields.
    fn raw(kind: u16, fields: &[(u16, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (tag, value) in fields {
            put_field(&mut out, *tag, value);
        }
        let len = u32::try_from(out.len()).unwrap().to_le_bytes();
        [&kind.to_le_bytes()[..], &[0, 0], &len, &out].concat()
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(
            hex(&run_of(&samples())),
            [
                "01000000280000000100080007000000",
                "00000000020006006f72646572730300",
                "04000400000004000100010500010005",
                "020000000c0000000100080007000000",
                "00000000030000000c00000001000800",
                "0800000000000000"
            ]
        );
    }

    #[test]
    fn transitions_survive_a_round_trip() {
        use TopicType::{Delay, Fifo, Mixed, Normal, Transaction};
        let mut list = samples();
        for topic_type in [Normal, Fifo, Delay, Transaction, Mixed] {
            list.push(created(FlushMode::Async, topic_type));
        }
        assert_eq!(read(&run_of(&list)), Ok(list));
        assert_eq!(read(b""), Ok(vec![]));
    }

    #[test]
    fn every_truncation_is_detected_or_ends_between_two_transitions() {
        let whole = run_of(&samples());
        let ends = [1, 2].map(|count| run_of(&samples()[..count]).len());
        for len in 1..whole.len() {
            assert_eq!(read(&whole[..len]).is_ok(), ends.contains(&len), "cut to {len} bytes");
        }
    }

    #[test]
    fn unknown_kind_is_refused_after_what_stands_before_it() {
        let run = [run_of(&samples()), raw(9, &[]), run_of(&samples())].concat();
        let read: Vec<_> = transitions(&run).skip(3).collect();
        assert_eq!(read, [Err(DecodeError::UnknownTransition { kind: 9 })]);
    }

    #[test]
    fn unknown_field_is_skipped_unless_it_must_be_understood() {
        let id = 7_u64.to_le_bytes();
        let deleted = Transition::TopicDeleted { id: TopicId::new(7) };
        assert_eq!(read(&raw(2, &[(0x7fff, b"x"), (ID, &id)])), Ok(vec![deleted]));
        assert_eq!(
            read(&raw(2, &[(ID, &id), (0x8001, b"x")])),
            Err(DecodeError::UnknownRequired { tag: 0x8001 })
        );
    }

    #[test]
    fn field_without_meaning_is_named() {
        let id = 7_u64.to_le_bytes();
        assert_eq!(read(&raw(2, &[])), Err(DecodeError::MissingField { tag: ID }));
        assert_eq!(read(&raw(2, &[(ID, b"x")])), Err(DecodeError::Field { tag: ID, len: 1 }));
        assert_eq!(
            read(&raw(3, &[(ID, &id), (ID, &id)])),
            Err(DecodeError::RepeatedField { tag: ID })
        );
        let with = |name: &[u8], flush: u8, topic_type: u8| {
            let queues = 4_u32.to_le_bytes();
            read(&raw(
                1,
                &[
                    (ID, &id),
                    (NAME, name),
                    (QUEUES, &queues),
                    (FLUSH, &[flush]),
                    (TYPE, &[topic_type]),
                ],
            ))
        };
        assert_eq!(with(b"orders", 2, 2), Ok(vec![created(FlushMode::Async, TopicType::Fifo)]));
        assert_eq!(with(b"\xff", 1, 1), Err(DecodeError::Field { tag: NAME, len: 1 }));
        assert_eq!(with(b"a", 0, 1), Err(DecodeError::Field { tag: FLUSH, len: 1 }));
        assert_eq!(with(b"a", 1, 6), Err(DecodeError::Field { tag: TYPE, len: 1 }));
    }

    #[test]
    fn reserved_bytes_must_be_zero() {
        let mut run = run_of(&samples());
        run[ZERO_AT] = 1;
        assert_eq!(read(&run), Err(DecodeError::Reserved { at: 2 }));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, kind in 0_u16..5) {
            let _ = read(&bytes);
            let _ = read(&raw(kind, &[(ID, &bytes), (NAME, &bytes)]));
            let _ = Transition::decode(kind, &bytes);
        }
    }
}
