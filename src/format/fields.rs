//! Fields in the form of a record's attributes (tag u16, length u16, value): how the payloads of the broker's own
//! records grow without a new version.
//!
//! Every field stands at most once. An unknown tag is skipped, unless its top bit says that it must be understood.

use super::DecodeError;
use super::record::{MUST_UNDERSTAND, attributes, put_attribute};

/// A known field, there or not.
#[derive(Clone, Copy)]
pub(super) struct Field<'a> {
    tag: u16,
    value: Option<&'a [u8]>,
}

/// The fields of the tags in `known`, in the order of `known`.
pub(super) fn collect<const N: usize>(
    bytes: &[u8],
    known: [u16; N],
) -> Result<[Field<'_>; N], DecodeError> {
    let mut fields = known.map(|tag| Field { tag, value: None });
    for attribute in attributes(bytes) {
        let attribute = attribute?;
        let tag = attribute.tag;
        match fields.iter_mut().find(|field| field.tag == tag) {
            Some(Field { value: Some(_), .. }) => return Err(DecodeError::RepeatedField { tag }),
            Some(field) => field.value = Some(attribute.value),
            None if tag & MUST_UNDERSTAND != 0 => return Err(DecodeError::UnknownRequired { tag }),
            None => {}
        }
    }
    Ok(fields)
}

/// Appends one field.
///
/// # Panics
/// If the value is longer than 65 535 bytes: what is written here was bounded where it was decided.
pub(super) fn put_field(out: &mut Vec<u8>, tag: u16, value: &[u8]) {
    let put = put_attribute(out, tag, value);
    assert!(put.is_ok(), "a field of the broker's own records fits its length");
}

impl<'a> Field<'a> {
    /// The value, which must be there.
    pub(super) fn bytes(self) -> Result<&'a [u8], DecodeError> {
        self.value.ok_or(DecodeError::MissingField { tag: self.tag })
    }

    /// The field if it is there.
    pub(super) fn optional(self) -> Option<Self> {
        self.value.map(|_| self)
    }

    /// The value, which must be there and have `N` bytes.
    pub(super) fn array<const N: usize>(self) -> Result<[u8; N], DecodeError> {
        self.bytes()?.try_into().map_err(|_| self.meaningless())
    }

    /// The number, which must be there.
    pub(super) fn u64(self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    /// The number, which must be there.
    pub(super) fn u32(self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    /// The text, which must be there.
    pub(super) fn text(self) -> Result<&'a str, DecodeError> {
        str::from_utf8(self.bytes()?).map_err(|_| self.meaningless())
    }

    /// What the one byte, which must be there, stands for.
    pub(super) fn code<T>(self, meaning: impl FnOnce(u8) -> Option<T>) -> Result<T, DecodeError> {
        let [code] = self.array()?;
        meaning(code).ok_or_else(|| self.meaningless())
    }

    /// The error for a value that means nothing.
    pub(super) fn meaningless(self) -> DecodeError {
        DecodeError::Field { tag: self.tag, len: self.value.unwrap_or_default().len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_skipped_unless_they_must_be_understood() {
        let mut bytes = Vec::new();
        put_field(&mut bytes, 2, &[7]);
        put_field(&mut bytes, 9, b"later");
        let [one, two] = collect(&bytes, [1, 2]).unwrap();
        assert_eq!(two.code(Some), Ok(7));
        assert_eq!(two.u32(), Err(DecodeError::Field { tag: 2, len: 1 }));
        assert_eq!(two.code(|_| None::<()>), Err(DecodeError::Field { tag: 2, len: 1 }));
        assert_eq!(one.u64(), Err(DecodeError::MissingField { tag: 1 }));
        assert!(one.optional().is_none());
        put_field(&mut bytes, 0x8009, b"");
        let refused = collect(&bytes, [1, 2]).err();
        assert_eq!(refused, Some(DecodeError::UnknownRequired { tag: 0x8009 }));
    }

    #[test]
    fn repeated_field_is_refused() {
        let mut bytes = Vec::new();
        put_field(&mut bytes, 1, b"");
        put_field(&mut bytes, 1, b"");
        assert_eq!(collect(&bytes, [1]).err(), Some(DecodeError::RepeatedField { tag: 1 }));
        assert!(collect(&bytes, []).is_ok());
    }
}
