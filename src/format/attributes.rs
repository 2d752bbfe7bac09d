//! What the broker adds to a record of messages, beside what the producer sent.
//!
//! | tag | len | attribute        | meaning                                                                    |
//! | --: | --: | ---------------- | -------------------------------------------------------------------------- |
//! |   1 |  24 | producer session | session u64, epoch u64, sequence u64: a retry of the batch is not stored again |

use super::record::{attributes, put_attribute};
use super::{DecodeError, array_at, u64_at};
use crate::message::{SessionId, SessionMark};

const PRODUCER_SESSION: u16 = 1;

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
    fn another_length_is_named() {
        for len in [0, 23, 25] {
            let mut bytes = Vec::new();
            put_attribute(&mut bytes, PRODUCER_SESSION, &vec![1; len]).unwrap();
            assert!(session(&bytes).is_err(), "{len}");
        }
    }
}
