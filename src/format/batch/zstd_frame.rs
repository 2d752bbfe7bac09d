//! What the heads of a zstd frame say about what comes out of it, read without the library (RFC 8878, section 3.1.1).
//!
//! A block says whether its bytes stand there as they are, are one byte many times, or are compressed. The first two
//! say exactly what they come to, the last comes to [`BLOCK_LEN`] at most. So a frame of a few bytes that claims
//! megabytes, or one that is cut, is told by a walk over a few heads.

/// Uncompressed bytes of a block at most.
const BLOCK_LEN: u64 = 128 << 10;
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Whether the bytes may be one whole frame without a dictionary that decompresses to `len` bytes. `false` is certain.
pub(super) fn may_hold(bytes: &[u8], len: u64) -> bool {
    bounds(bytes).is_some_and(|(least, most)| (least..=most).contains(&len))
}

/// At least and at most so many bytes come out; `None`: it is not one whole frame.
fn bounds(bytes: &[u8]) -> Option<(u64, u64)> {
    let mut rest = Rest(bytes);
    if rest.take(4)? != MAGIC {
        return None;
    }
    let descriptor = rest.number(1)?;
    let [has_dictionary, is_reserved, has_checksum, is_single_segment] =
        [0b11, 1 << 3, 1 << 2, 1 << 5].map(|bits| descriptor & bits != 0);
    if has_dictionary || is_reserved {
        return None;
    }
    if !is_single_segment {
        // The window: decompressed in one piece, a frame needs no other room than what comes out.
        rest.take(1)?;
    }
    let stated = match (descriptor >> 6, is_single_segment) {
        (0, false) => None,
        (0, true) => Some(rest.number(1)?),
        (1, _) => Some(rest.number(2)? + 256),
        (2, _) => Some(rest.number(4)?),
        _ => Some(rest.number(8)?),
    };
    let (mut least, mut most) = (0, 0);
    loop {
        let head = rest.number(3)?;
        let len = head >> 3;
        if len > BLOCK_LEN {
            return None;
        }
        let (stored_len, bounds) = match head >> 1 & 0b11 {
            0 => (len, (len, len)),
            1 => (1, (len, len)),
            2 => (len, (0, BLOCK_LEN)),
            _ => return None,
        };
        rest.take(stored_len)?;
        (least, most) = (least + bounds.0, most + bounds.1);
        if head & 1 == 1 {
            break;
        }
    }
    if has_checksum {
        rest.take(4)?;
    }
    let is_whole = rest.0.is_empty() && stated.is_none_or(|len| (least..=most).contains(&len));
    is_whole.then(|| stated.map_or((least, most), |len| (len, len)))
}

/// What was not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, len: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(len).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    /// A little-endian number of at most 8 bytes.
    fn number(&mut self, len: u64) -> Option<u64> {
        Some(self.take(len)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}
