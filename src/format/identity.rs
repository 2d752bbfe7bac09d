//! Who this store is, and its secrets: the files `identity` and `identity.copy`, equal and written once.
//!
//! | at | len | field       | meaning                                                          |
//! | -: | --: | ----------- | ---------------------------------------------------------------- |
//! |  0 |  24 | envelope    | magic, version, length, CRC32C                                   |
//! | 24 |  16 | store id    | random; every file of the store names it                         |
//! | 40 |   8 | broker id   | random; names this broker to clients                             |
//! | 48 |   8 | salt secret | seeds the salts of the segments, so that no message can forge a record header |
//! | 56 |  32 | handle key  | signs what clients hand back: receipt handles                    |
//!
//! These bytes cannot be rebuilt from the log. Where the random ones come from and where the files go is the store's
//! business.

use std::fmt;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::envelope::{self, Envelope};
use super::{DecodeError, array_at, put, u64_at};
use crate::message::PhysicalOffset;

const ENVELOPE: Envelope =
    Envelope { what: "identity", magic: u32::from_le_bytes(*b"MSid"), version: 1 };

const STORE_ID_AT: usize = envelope::LEN;
const BROKER_ID_AT: usize = STORE_ID_AT + size_of::<[u8; 16]>();
const SALT_SECRET_AT: usize = BROKER_ID_AT + size_of::<u64>();
const HANDLE_KEY_AT: usize = SALT_SECRET_AT + size_of::<u64>();

/// Bytes of an encoded identity.
pub const LEN: usize = HANDLE_KEY_AT + size_of::<[u8; 32]>();
const _: () = assert!(LEN == 88, "the identity is a contract with existing stores");

/// Who a store is. Printing it leaves its secrets out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Names the store; every file of it carries it.
    pub store_id: [u8; 16],
    /// Names the broker.
    pub broker_id: u64,
    /// Seeds the salts of the segments.
    pub salt_secret: u64,
    /// Signs what clients bring back.
    pub handle_key: [u8; 32],
}

impl Identity {
    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; LEN];
        put(&mut bytes, STORE_ID_AT, self.store_id);
        put(&mut bytes, BROKER_ID_AT, self.broker_id.to_le_bytes());
        put(&mut bytes, SALT_SECRET_AT, self.salt_secret.to_le_bytes());
        put(&mut bytes, HANDLE_KEY_AT, self.handle_key);
        ENVELOPE.seal(&mut bytes);
        bytes
    }

    /// The identity in the bytes of the file.
    ///
    /// # Errors
    /// `bytes` are not one intact identity of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        ENVELOPE.verify(bytes)?;
        let found = bytes.len() as u64;
        if bytes.len() != LEN {
            return Err(DecodeError::Length { what: "identity", expected: LEN as u64, found });
        }
        Ok(Self {
            store_id: array_at(bytes, STORE_ID_AT)?,
            broker_id: u64_at(bytes, BROKER_ID_AT)?,
            salt_secret: u64_at(bytes, SALT_SECRET_AT)?,
            handle_key: array_at(bytes, HANDLE_KEY_AT)?,
        })
    }

    /// The salt of the segment that begins at `base`: the initial state of its record headers' checksums.
    pub fn salt(&self, base: PhysicalOffset) -> u32 {
        // The low half is enough: it makes the headers of other places and stores fail, nothing is signed with it.
        xxh3_64_with_seed(&base.get().to_le_bytes(), self.salt_secret) as u32
    }

    /// The seed of the hashes in the Index.
    pub fn index_seed(&self) -> u64 {
        xxh3_64(&self.store_id)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let store_id: String = self.store_id.iter().map(|byte| format!("{byte:02x}")).collect();
        f.debug_struct("Identity")
            .field("store_id", &store_id)
            .field("broker_id", &self.broker_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::testing::*;

    fn sample() -> Identity {
        Identity {
            store_id: *b"0123456789abcdef",
            broker_id: 0x0102_0304_0506_0708,
            salt_secret: 0x1112_1314_1516_1718,
            handle_key: [0xee; 32],
        }
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(
            hex(&sample().encode()),
            [
                "4d536964010000005800000000000000",
                "bd39571b000000003031323334353637",
                "38396162636465660807060504030201",
                "1817161514131211eeeeeeeeeeeeeeee",
                "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee",
                "eeeeeeeeeeeeeeee"
            ]
        );
    }

    #[test]
    fn identity_survives_a_round_trip() {
        assert_eq!(Identity::decode(&sample().encode()), Ok(sample()));
    }

    #[test]
    fn every_flip_and_every_truncation_is_detected() {
        let bytes = sample().encode();
        assert_every_flip_is_detected(&bytes, |bytes| Identity::decode(bytes).is_ok());
        assert_every_truncation_is_detected(&bytes, |bytes| Identity::decode(bytes).is_ok());
    }

    #[test]
    fn salt_depends_on_base_and_secret_and_stays_the_same() {
        let identity = sample();
        assert_eq!(identity.salt(PhysicalOffset::ZERO), 0x4b88f8c1);
        assert_ne!(
            identity.salt(PhysicalOffset::ZERO),
            identity.salt(PhysicalOffset::new(1 << 28))
        );
        let other = Identity { salt_secret: 1, ..identity };
        assert_ne!(identity.salt(PhysicalOffset::ZERO), other.salt(PhysicalOffset::ZERO));
        assert_eq!(identity.index_seed(), 0x64439946d8fa212d);
    }

    #[test]
    fn secrets_are_not_printed() {
        assert_eq!(
            format!("{:?}", sample()),
            "Identity { store_id: \"30313233343536373839616263646566\", broker_id: 72623859790382856, .. }"
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Identity::decode(&bytes);
        }
    }
}
