//! The wire form of protobuf: as much of it as a batch needs, in place, without allocation.
//!
//! The readers are always inlined: every message of every batch passes them, and left to the compiler's choice the
//! check of a batch took half as long again.

/// What is wrong with the encoding. `field` is the number of the field in its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The bytes end inside a field.
    #[error("cut short")]
    CutShort,
    /// A varint of more than 10 bytes, or of more than 64 bits.
    #[error("a number is too long")]
    LongVarint,
    /// A field number that protobuf does not have.
    #[error("field number {field} does not exist")]
    FieldNumber {
        /// The number that stands there.
        field: u64,
    },
    /// Not the wire type that the field has, or a group, or none at all.
    #[error("field {field} has wire type {found}")]
    WireType {
        /// Of which field.
        field: u32,
        /// The wire type that stands there.
        found: u8,
    },
    /// A number that its field cannot hold.
    #[error("field {field} is {found}, which does not fit")]
    TooBig {
        /// Of which field.
        field: u32,
        /// The number that stands there.
        found: u64,
    },
    /// A field that may stand there once stands there twice.
    #[error("field {field} is repeated")]
    Repeated {
        /// Which field.
        field: u32,
    },
    /// A field behind one with a higher number, where the order is fixed.
    #[error("field {field} is out of order")]
    OutOfOrder {
        /// Which field.
        field: u32,
    },
    /// An unknown field where none may be.
    #[error("field {field} is unknown")]
    Unknown {
        /// Which field.
        field: u32,
    },
    /// Text that is not UTF-8.
    #[error("field {field} is not UTF-8")]
    NotUtf8 {
        /// Which field.
        field: u32,
    },
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LEN: u8 = 2;
const FIXED32: u8 = 5;

/// A field's value, by wire type.
#[derive(Clone, Copy)]
enum Value<'a> {
    Varint(u64),
    Fixed64,
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// One field of an encoded message.
#[derive(Clone, Copy)]
pub(super) struct Field<'a> {
    /// Its number.
    pub(super) number: u32,
    value: Value<'a>,
}

impl<'a> Field<'a> {
    /// The value of a field of bytes.
    #[inline(always)]
    pub(super) fn bytes(&self) -> Result<&'a [u8], Malformed> {
        match self.value {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(self.wrong_type()),
        }
    }

    /// The value of a `string`.
    #[inline(always)]
    pub(super) fn text(&self) -> Result<&'a str, Malformed> {
        str::from_utf8(self.bytes()?).map_err(|_| Malformed::NotUtf8 { field: self.number })
    }

    /// The value of a `uint64`.
    #[inline(always)]
    pub(super) fn u64(&self) -> Result<u64, Malformed> {
        match self.value {
            Value::Varint(number) => Ok(number),
            _ => Err(self.wrong_type()),
        }
    }

    /// The value of a `uint32`.
    #[inline(always)]
    pub(super) fn u32(&self) -> Result<u32, Malformed> {
        let found = self.u64()?;
        u32::try_from(found).map_err(|_| Malformed::TooBig { field: self.number, found })
    }

    /// The value of a `fixed32`.
    #[inline(always)]
    pub(super) fn fixed32(&self) -> Result<u32, Malformed> {
        match self.value {
            Value::Fixed32(number) => Ok(number),
            _ => Err(self.wrong_type()),
        }
    }

    #[cold]
    fn wrong_type(&self) -> Malformed {
        let found = match self.value {
            Value::Varint(_) => VARINT,
            Value::Fixed64 => FIXED64,
            Value::Bytes(_) => LEN,
            Value::Fixed32(_) => FIXED32,
        };
        Malformed::WireType { field: self.number, found }
    }
}

/// The fields of an encoded message, one after the other.
#[derive(Clone)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Of a whole message.
    pub(super) fn of(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// What has not been walked yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Passes over fields that are byte for byte like the one that was walked last, which stands at the begin of
    /// `before`, and says how many: at most `most`.
    pub(super) fn skip_again(&mut self, before: &'a [u8], most: u16) -> u16 {
        let len = before.len() - self.rest.len();
        let mut again = 0;
        // Each is compared with the one before it, several at a time while they last.
        for together in [16, 1] {
            while most - again >= together
                && let Some(next) = self.rest.get(..len * usize::from(together))
                && before.get(usize::from(again) * len..).is_some_and(|from| from.starts_with(next))
            {
                self.rest = self.rest.get(next.len()..).unwrap_or_default();
                again += together;
            }
        }
        again
    }

    /// The number of the next field, which stays the next one. `None` at the end.
    pub(super) fn next_number(&self) -> Result<Option<u32>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        number_of(self.clone().varint()?).map(Some)
    }

    /// The next field, `None` at the end. After an error there is no next.
    #[inline(always)]
    pub(super) fn next(&mut self) -> Result<Option<Field<'a>>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        // Three bits of wire type, then the number.
        let wire_type = (key & 7) as u8;
        let number = number_of(key)?;
        let value = match wire_type {
            VARINT => Value::Varint(self.varint()?),
            LEN => {
                let len = self.varint()?;
                Value::Bytes(self.take(usize::try_from(len).unwrap_or(usize::MAX))?)
            }
            FIXED32 => Value::Fixed32(u32::from_le_bytes(self.array()?)),
            FIXED64 => {
                self.array::<8>()?;
                Value::Fixed64
            }
            found => return Err(Malformed::WireType { field: number, found }),
        };
        Ok(Some(Field { number, value }))
    }

    #[inline(always)]
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Malformed::CutShort)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline(always)]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(Malformed::CutShort)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// Field keys and most lengths have one byte, nearly all others two.
    #[inline(always)]
    fn varint(&mut self) -> Result<u64, Malformed> {
        match *self.rest {
            [low, ref rest @ ..] if low < 0x80 => {
                self.rest = rest;
                Ok(low.into())
            }
            [low, high, ref rest @ ..] if high < 0x80 => {
                self.rest = rest;
                Ok(u64::from(low & 0x7f) | u64::from(high) << 7)
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, Malformed> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let [byte] = self.array()?;
            // The tenth byte has room for one bit only.
            if shift == 63 && byte > 1 {
                return Err(Malformed::LongVarint);
            }
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Malformed::LongVarint)
    }
}

/// The number of a field, of at most 29 bits: a key has at most 32.
#[inline(always)]
fn number_of(key: u64) -> Result<u32, Malformed> {
    let number = u32::try_from(key).ok().map(|key| key >> 3).filter(|number| *number != 0);
    number.ok_or(Malformed::FieldNumber { field: key >> 3 })
}

/// Bytes of `number` as a varint.
pub(super) const fn varint_len(number: u64) -> usize {
    // An empty number has one byte too; every further 7 bits cost one more.
    let bits = u64::BITS - (number | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

/// Appends a varint.
pub(super) fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends a number, unless it is 0, which proto3 does not write.
pub(super) fn put_number(out: &mut Vec<u8>, field: u32, number: u64) {
    if number != 0 {
        put_key(out, field, VARINT);
        put_varint(out, number);
    }
}

/// Appends a `fixed32`, unless it is 0, which proto3 does not write.
pub(super) fn put_fixed32(out: &mut Vec<u8>, field: u32, number: u32) {
    if number != 0 {
        put_key(out, field, FIXED32);
        out.extend_from_slice(&number.to_le_bytes());
    }
}

/// Appends bytes, also if there are none.
pub(super) fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    put_len(out, field, bytes.len());
    out.extend_from_slice(bytes);
}

/// Appends the head of a field of so many bytes, which the caller appends.
pub(super) fn put_len(out: &mut Vec<u8>, field: u32, len: usize) {
    put_key(out, field, LEN);
    put_varint(out, len as u64);
}

fn put_key(out: &mut Vec<u8>, field: u32, wire_type: u8) {
    put_varint(out, u64::from(field << 3 | u32::from(wire_type)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn varint_of(bytes: &[u8]) -> Result<u64, Malformed> {
        Fields::of(bytes).varint()
    }

    #[test]
    fn varints_may_be_longer_than_needed_up_to_ten_bytes() {
        assert_eq!(varint_of(&[0x05]), Ok(5));
        assert_eq!(varint_of(&[0x85, 0x00]), Ok(5));
        assert_eq!(varint_of(&[0x85, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00]), Ok(5));
        let max = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(varint_of(&max), Ok(u64::MAX));
        assert_eq!(varint_of(&[0x80; 11]), Err(Malformed::LongVarint));
        let beyond = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        assert_eq!(varint_of(&beyond), Err(Malformed::LongVarint));
        assert_eq!(varint_of(&[0x80, 0x80]), Err(Malformed::CutShort));
    }

    #[test]
    fn fields_that_protobuf_does_not_have_are_named() {
        let next = |bytes: &[u8]| Fields::of(bytes).next().err();
        assert_eq!(next(&[0x00, 0]), Some(Malformed::FieldNumber { field: 0 }));
        let beyond = &[0x80, 0x80, 0x80, 0x80, 0x10, 0];
        assert_eq!(next(beyond), Some(Malformed::FieldNumber { field: 1 << 29 }));
        for wire_type in [3, 4, 6, 7] {
            let found = wire_type;
            assert_eq!(next(&[1 << 3 | wire_type]), Some(Malformed::WireType { field: 1, found }));
        }
        for cut in [&[0x08][..], &[0x0a, 2, 0], &[0x0d, 0, 0, 0], &[0x09, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(next(cut), Some(Malformed::CutShort));
        }
        let endless = [0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(next(&endless), Some(Malformed::CutShort));
    }

    proptest! {
        #[test]
        fn varint_survives_a_round_trip(number: u64, shift in 0_u32..64) {
            let mut out = Vec::new();
            put_varint(&mut out, number >> shift);
            prop_assert_eq!(varint_len(number >> shift), out.len());
            prop_assert_eq!(varint_of(&out), Ok(number >> shift));
        }
    }
}
