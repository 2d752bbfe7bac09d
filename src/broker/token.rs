//! The page token of a query: opaque text that is good for the query that it was given out for, and no other.
//!
//! | at | len | field | meaning |
//! | -: | --: | --- | --- |
//! |  0 | 8 | seal | xxh3_64 of the query and of what follows |
//! |  8 | 8 | window end | the log's limit when the first page was made: what came later is in no page |
//! | 16 | 8 | epoch | of the record at the cursor |
//! | 24 | 8 | offset | physical, of the last record in the page |
//! | 32 | 2 | index | of the last message in it |
//!
//! Little-endian, as text in lower-case hex. The seal keeps honest callers from mixing tokens up; it is no secret, and
//! a forged cursor can only name another place of the same search.

use xxhash_rust::xxh3::Xxh3;

use super::error::BrokerError;
use crate::message::{Epoch, PhysicalOffset, Timestamp, TopicId};
use crate::store::{FindCursor, IndexKind, Order};

const SEAL_LEN: usize = 8;
const LEN: usize = SEAL_LEN + 8 + 8 + 8 + 2;

/// What makes two queries the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueryIdentity<'a> {
    pub(super) topic: TopicId,
    pub(super) kind: IndexKind,
    pub(super) bytes: &'a [u8],
    pub(super) begin: Timestamp,
    pub(super) end: Timestamp,
    pub(super) order: Order,
}

impl QueryIdentity<'_> {
    /// The token that continues after `cursor`.
    pub(super) fn token(&self, cursor: FindCursor, epoch: Epoch) -> String {
        let mut bytes = Vec::with_capacity(LEN);
        bytes.extend_from_slice(&[0; SEAL_LEN]);
        bytes.extend_from_slice(&cursor.window_end.get().to_le_bytes());
        bytes.extend_from_slice(&epoch.get().to_le_bytes());
        bytes.extend_from_slice(&cursor.offset.get().to_le_bytes());
        bytes.extend_from_slice(&cursor.index.to_le_bytes());
        let (seal, rest) = bytes.split_at_mut(SEAL_LEN);
        seal.copy_from_slice(&self.seal(rest).to_le_bytes());
        let digits = b"0123456789abcdef";
        let nibbles = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
        nibbles.filter_map(|n| digits.get(usize::from(n))).map(|d| char::from(*d)).collect()
    }

    /// Where the page before ended.
    ///
    /// # Errors
    /// The token was not given out for this query, or by a store that came later than `newest`.
    pub(super) fn cursor(&self, token: &str, newest: Epoch) -> Result<FindCursor, BrokerError> {
        let bytes = from_hex(token).ok_or(BrokerError::BadToken)?;
        let (seal, rest) = bytes.split_at(SEAL_LEN);
        if seal != self.seal(rest).to_le_bytes() {
            return Err(BrokerError::BadToken);
        }
        let number = |at: usize| {
            let field = rest.get(at..at + 8).and_then(|field| field.try_into().ok());
            field.map(u64::from_le_bytes).ok_or(BrokerError::BadToken)
        };
        let index = rest.get(24..26).and_then(|field| field.try_into().ok());
        if number(8)? > newest.get() {
            return Err(BrokerError::BadToken);
        }
        Ok(FindCursor {
            window_end: PhysicalOffset::new(number(0)?),
            offset: PhysicalOffset::new(number(16)?),
            index: index.map(u16::from_le_bytes).ok_or(BrokerError::BadToken)?,
        })
    }

    fn seal(&self, rest: &[u8]) -> u64 {
        let kind: u8 = match self.kind {
            IndexKind::Key => 1,
            IndexKind::Id => 2,
        };
        let order: u8 = match self.order {
            Order::NewestFirst => 0,
            Order::OldestFirst => 1,
        };
        let mut hash = Xxh3::new();
        hash.update(&self.topic.get().to_le_bytes());
        hash.update(&[kind, order]);
        hash.update(&self.begin.get().to_le_bytes());
        hash.update(&self.end.get().to_le_bytes());
        hash.update(rest);
        // Last, so that its length needs no saying.
        hash.update(self.bytes);
        hash.digest()
    }
}

fn from_hex(text: &str) -> Option<[u8; LEN]> {
    let mut bytes = [0; LEN];
    if text.len() != LEN * 2 {
        return None;
    }
    let digit = |c: &u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(high)? << 4 | digit(low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(bytes: &[u8]) -> QueryIdentity<'_> {
        QueryIdentity {
            topic: TopicId::new(3),
            kind: IndexKind::Key,
            bytes,
            begin: Timestamp::ZERO,
            end: Timestamp::new(u64::MAX),
            order: Order::NewestFirst,
        }
    }

    const CURSOR: FindCursor = FindCursor {
        window_end: PhysicalOffset::new(0x1_0000),
        offset: PhysicalOffset::new(0x8000),
        index: 7,
    };

    #[test]
    fn a_token_leads_back_to_its_cursor() {
        let token = query(b"k").token(CURSOR, Epoch::new(2));
        assert_eq!(token.len(), LEN * 2);
        assert_eq!(query(b"k").cursor(&token, Epoch::new(2)).unwrap(), CURSOR);
    }

    #[test]
    fn a_token_is_good_for_its_own_query_only() {
        let token = query(b"k").token(CURSOR, Epoch::new(2));
        let other_end = QueryIdentity { end: Timestamp::new(9), ..query(b"k") };
        let other_kind = QueryIdentity { kind: IndexKind::Id, ..query(b"k") };
        let other_order = QueryIdentity { order: Order::OldestFirst, ..query(b"k") };
        let other_topic = QueryIdentity { topic: TopicId::new(4), ..query(b"k") };
        for other in [query(b"q"), other_end, other_kind, other_order, other_topic] {
            let found = other.cursor(&token, Epoch::new(2));
            assert!(matches!(found, Err(BrokerError::BadToken)), "{other:?}");
        }
    }

    #[test]
    fn no_text_but_a_token_is_taken() {
        let token = query(b"k").token(CURSOR, Epoch::new(2));
        let flipped = |at: usize| {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            String::from_utf8(bytes).unwrap()
        };
        let mut texts: Vec<_> = (0..token.len()).map(flipped).collect();
        texts.extend([String::new(), "0".to_owned(), token.to_uppercase(), "ü".repeat(LEN)]);
        texts.extend((1..token.len()).map(|len| token[..len].to_owned()));
        for text in texts.iter().filter(|text| **text != token) {
            let found = query(b"k").cursor(text, Epoch::new(2));
            assert!(matches!(found, Err(BrokerError::BadToken)), "{text}");
        }
    }
}
