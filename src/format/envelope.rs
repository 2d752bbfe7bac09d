//! The first 24 bytes that identity, segment header, checkpoint slot and snapshot have in common.
//!
//! | at | len | field    | meaning                                                    |
//! | -: | --: | -------- | ---------------------------------------------------------- |
//! |  0 |   4 | magic    | which structure this is                                    |
//! |  4 |   4 | version  | of the structure                                           |
//! |  8 |   8 | length   | of the structure in bytes, this envelope included          |
//! | 16 |   4 | checksum | CRC32C over all `length` bytes, these four taken as zero   |
//! | 20 |   4 | zero     |                                                            |
//!
//! The envelope keeps its shape in every version, so that a release tells a newer structure from a damaged one.

use super::{DecodeError, crc32c_with, put, u32_at, u64_at};

const MAGIC_AT: usize = 0;
const VERSION_AT: usize = MAGIC_AT + size_of::<u32>();
const LENGTH_AT: usize = VERSION_AT + size_of::<u32>();
const CHECKSUM_AT: usize = LENGTH_AT + size_of::<u64>();
const ZERO_AT: usize = CHECKSUM_AT + size_of::<u32>();

/// Where the structure's own fields begin.
pub(super) const LEN: usize = ZERO_AT + size_of::<u32>();
const _: () = assert!(LEN == 24, "the envelope is a contract with existing stores");

/// What an envelope says, and how an error names it.
pub(super) struct Envelope {
    /// The structure in an error's text.
    pub(super) what: &'static str,
    /// The structure in its bytes.
    pub(super) magic: u32,
    /// The one version that this build writes and reads.
    pub(super) version: u32,
}

impl Envelope {
    /// Fills in the envelope of a structure whose own fields are written.
    pub(super) fn seal(&self, bytes: &mut [u8]) {
        put(bytes, MAGIC_AT, self.magic.to_le_bytes());
        put(bytes, VERSION_AT, self.version.to_le_bytes());
        put(bytes, LENGTH_AT, (bytes.len() as u64).to_le_bytes());
        put(bytes, ZERO_AT, [0; 4]);
        put(bytes, CHECKSUM_AT, [0; 4]);
        put(bytes, CHECKSUM_AT, crc32c_with(u32::MAX, &[bytes]).to_le_bytes());
    }

    /// Succeeds if `bytes` are exactly one intact structure of this kind and version.
    pub(super) fn verify(&self, bytes: &[u8]) -> Result<(), DecodeError> {
        let magic = u32_at(bytes, MAGIC_AT)?;
        if magic != self.magic {
            return Err(DecodeError::Magic { found: magic });
        }
        let length = u64_at(bytes, LENGTH_AT)?;
        let found = bytes.len() as u64;
        if length > found {
            return Err(DecodeError::TooShort { needed: length, found });
        }
        if length < found {
            return Err(DecodeError::Length { what: self.what, expected: length, found });
        }
        self.verify_checksum(bytes)?;
        // Only behind the checksum: damage must not look like another release.
        let version = u32_at(bytes, VERSION_AT)?;
        if version != self.version {
            return Err(DecodeError::UnsupportedVersion {
                what: self.what,
                found: version,
                supported: self.version,
            });
        }
        if u32_at(bytes, ZERO_AT)? != 0 {
            return Err(DecodeError::Reserved { at: ZERO_AT });
        }
        Ok(())
    }

    fn verify_checksum(&self, bytes: &[u8]) -> Result<(), DecodeError> {
        let expected = u32_at(bytes, CHECKSUM_AT)?;
        let (before, rest) = bytes.split_at_checked(CHECKSUM_AT).unwrap_or_default();
        let (_, after) = rest.split_at_checked(size_of::<u32>()).unwrap_or_default();
        let found = crc32c_with(u32::MAX, &[before, &[0; 4], after]);
        if found == expected {
            Ok(())
        } else {
            Err(DecodeError::FileCrc { what: self.what, expected, found })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBJECT: Envelope = Envelope { what: "subject", magic: 7, version: 2 };

    #[test]
    fn newer_version_is_told_apart_from_damage() {
        let mut bytes = [9; 40];
        Envelope { version: 3, ..SUBJECT }.seal(&mut bytes);
        assert_eq!(
            SUBJECT.verify(&bytes),
            Err(DecodeError::UnsupportedVersion { what: "subject", found: 3, supported: 2 })
        );
        bytes[VERSION_AT] = 2;
        assert!(matches!(SUBJECT.verify(&bytes), Err(DecodeError::FileCrc { .. })));
    }

    #[test]
    fn other_structure_and_other_length_are_named() {
        let mut bytes = [9; 40];
        SUBJECT.seal(&mut bytes);
        assert_eq!(SUBJECT.verify(&bytes), Ok(()));
        let other = Envelope { magic: 8, ..SUBJECT };
        assert_eq!(other.verify(&bytes), Err(DecodeError::Magic { found: 7 }));
        assert_eq!(
            SUBJECT.verify(&bytes[..39]),
            Err(DecodeError::TooShort { needed: 40, found: 39 })
        );
        let longer = [bytes.as_slice(), &[0]].concat();
        assert_eq!(
            SUBJECT.verify(&longer),
            Err(DecodeError::Length { what: "subject", expected: 40, found: 41 })
        );
    }
}
