//! What is known to be durable: two slots of 4 KiB, written in turn, so that one of them is always whole.
//!
//! | at  | len  | field        | meaning                                                        |
//! | --: | ---: | ------------ | -------------------------------------------------------------- |
//! |   0 |   24 | envelope     | magic, version, length, CRC32C                                 |
//! |  24 |    8 | sequence     | rises by one with every checkpoint; its parity picks the slot  |
//! |  32 |    8 | flushed      | the log was durable up to here                                 |
//! |  40 |    8 | epoch        | in which it was written                                        |
//! |  48 |    8 | sealed end   | end of the last sealed segment                                 |
//! |  56 |    8 | newest image | begin of the newest complete state image; 0 without one        |
//! |  64 |    4 | flags        | 1 has an image, 2 written by a clean stop                      |
//! |  68 | 4028 | zero         |                                                                |
//!
//! It is derived: without it, recovery does with what the log proves by itself.

use super::envelope::{self, Envelope};
use super::record::looks_zero;
use super::{DecodeError, put, slice_at, u32_at, u64_at};
use crate::message::{Epoch, PhysicalOffset};

/// Bytes of a slot; the file has two.
pub const SLOT_LEN: usize = 4096;

const ENVELOPE: Envelope =
    Envelope { what: "checkpoint", magic: u32::from_le_bytes(*b"MScp"), version: 1 };

const SEQUENCE_AT: usize = envelope::LEN;
const FLUSHED_AT: usize = SEQUENCE_AT + size_of::<u64>();
const EPOCH_AT: usize = FLUSHED_AT + size_of::<u64>();
const SEALED_END_AT: usize = EPOCH_AT + size_of::<u64>();
const NEWEST_IMAGE_AT: usize = SEALED_END_AT + size_of::<u64>();
const FLAGS_AT: usize = NEWEST_IMAGE_AT + size_of::<u64>();
const ZERO_AT: usize = FLAGS_AT + size_of::<u32>();
const _: () = assert!(ZERO_AT == 68, "the slot is a contract between releases of one version");

const HAS_IMAGE: u32 = 1;
const CLEAN: u32 = 2;

/// What was known to be durable at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// One more than that of the checkpoint before.
    pub sequence: u64,
    /// The log was durable up to here.
    pub flushed: PhysicalOffset,
    /// In which it was written.
    pub epoch: Epoch,
    /// Where the last sealed segment ends; all before it is sealed too.
    pub sealed_end: PhysicalOffset,
    /// Where the newest complete state image begins.
    pub newest_image: Option<PhysicalOffset>,
    /// Written by a clean stop, with nothing appended behind `flushed`.
    pub clean: bool,
}

impl Checkpoint {
    /// The slot.
    pub fn encode(&self) -> [u8; SLOT_LEN] {
        let image = self.newest_image.map_or(0, |_| HAS_IMAGE);
        let clean = if self.clean { CLEAN } else { 0 };
        let mut slot = [0; SLOT_LEN];
        put(&mut slot, SEQUENCE_AT, self.sequence.to_le_bytes());
        put(&mut slot, FLUSHED_AT, self.flushed.get().to_le_bytes());
        put(&mut slot, EPOCH_AT, self.epoch.get().to_le_bytes());
        put(&mut slot, SEALED_END_AT, self.sealed_end.get().to_le_bytes());
        let newest_image = self.newest_image.unwrap_or_default();
        put(&mut slot, NEWEST_IMAGE_AT, newest_image.get().to_le_bytes());
        put(&mut slot, FLAGS_AT, (image | clean).to_le_bytes());
        ENVELOPE.seal(&mut slot);
        slot
    }

    /// Where its slot stands in the file: never where its predecessor's does.
    pub fn position(&self) -> u64 {
        self.sequence % 2 * SLOT_LEN as u64
    }

    /// The checkpoint in one slot.
    ///
    /// # Errors
    /// The slot was never written, is damaged, or is of another version.
    pub fn decode(slot: &[u8]) -> Result<Self, DecodeError> {
        let slot = slice_at(slot, 0, SLOT_LEN)?;
        ENVELOPE.verify(slot)?;
        let flags = u32_at(slot, FLAGS_AT)?;
        if flags & !(HAS_IMAGE | CLEAN) != 0 {
            return Err(DecodeError::Flags { found: flags });
        }
        if !looks_zero(slice_at(slot, ZERO_AT, SLOT_LEN - ZERO_AT)?) {
            return Err(DecodeError::Reserved { at: ZERO_AT });
        }
        let newest_image = PhysicalOffset::new(u64_at(slot, NEWEST_IMAGE_AT)?);
        Ok(Self {
            sequence: u64_at(slot, SEQUENCE_AT)?,
            flushed: PhysicalOffset::new(u64_at(slot, FLUSHED_AT)?),
            epoch: Epoch::new(u64_at(slot, EPOCH_AT)?),
            sealed_end: PhysicalOffset::new(u64_at(slot, SEALED_END_AT)?),
            newest_image: (flags & HAS_IMAGE != 0).then_some(newest_image),
            clean: flags & CLEAN != 0,
        })
    }
}

/// The valid checkpoint with the highest sequence in the bytes of the file.
///
/// A slot of another version counts as absent, like a damaged one: the log proves enough without it.
pub fn newest(bytes: &[u8]) -> Option<Checkpoint> {
    bytes
        .chunks(SLOT_LEN)
        .take(2)
        .filter_map(|slot| Checkpoint::decode(slot).ok())
        .max_by_key(|checkpoint| checkpoint.sequence)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::testing::*;

    fn sample(sequence: u64) -> Checkpoint {
        Checkpoint {
            sequence,
            flushed: PhysicalOffset::new(0x1_2345_6780),
            epoch: Epoch::new(5),
            sealed_end: PhysicalOffset::new(0x1_0000_0000),
            newest_image: Some(PhysicalOffset::new(0x8000_1000)),
            clean: true,
        }
    }

    #[test]
    fn golden_bytes() {
        let slot = sample(3).encode();
        assert_eq!(
            hex(&slot[..80]),
            [
                "4d536370010000000010000000000000",
                "aa48c376000000000300000000000000",
                "80674523010000000500000000000000",
                "00000000010000000010008000000000",
                "03000000000000000000000000000000"
            ]
        );
        assert!(looks_zero(&slot[80..]));
    }

    #[test]
    fn checkpoint_survives_a_round_trip() {
        for clean in [false, true] {
            for newest_image in [None, Some(PhysicalOffset::ZERO), Some(PhysicalOffset::new(8))] {
                let checkpoint = Checkpoint { clean, newest_image, ..sample(1) };
                assert_eq!(Checkpoint::decode(&checkpoint.encode()), Ok(checkpoint));
            }
        }
    }

    #[test]
    fn every_flip_and_every_truncation_is_detected() {
        let slot = sample(3).encode();
        assert_every_flip_is_detected(&slot, |slot| Checkpoint::decode(slot).is_ok());
        assert_every_truncation_is_detected(&slot, |slot| Checkpoint::decode(slot).is_ok());
    }

    #[test]
    fn newest_is_the_valid_one_with_the_highest_sequence() {
        let [old, new] = [sample(6), sample(7)];
        assert_eq!([old.position(), new.position()], [0, 4096]);
        let mut file = [old.encode(), new.encode()].concat();
        assert_eq!(newest(&file), Some(new));
        file[SLOT_LEN + FLUSHED_AT] ^= 1;
        assert_eq!(newest(&file), Some(old));
        assert_eq!(newest(&file[..SLOT_LEN]), Some(old));
        file[FLUSHED_AT] ^= 1;
        assert_eq!(newest(&file), None);
        assert_eq!(newest(&[]), None);
    }

    #[test]
    fn other_version_counts_as_absent_but_is_named() {
        let old = sample(6);
        let mut newer = sample(7).encode();
        Envelope { version: 2, ..ENVELOPE }.seal(&mut newer);
        assert_eq!(
            Checkpoint::decode(&newer),
            Err(DecodeError::UnsupportedVersion { what: "checkpoint", found: 2, supported: 1 })
        );
        assert_eq!(newest(&[old.encode(), newer].concat()), Some(old));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
            let _ = Checkpoint::decode(&bytes);
            let _ = newest(&bytes);
        }
    }
}
