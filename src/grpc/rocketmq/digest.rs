//! Digests of bodies: whether one is that of its sender, and the one that consumers compare.
//!
//! | type | checksum |
//! | --- | --- |
//! | CRC32 | of zlib: hex with or without zeros in front, or decimal, as the languages write it |
//! | MD5, SHA1 | hex |
//!
//! Case of hex does not matter. A body without a digest is taken as it is, and so is one whose digest is of no type.

use crc_fast::{CrcAlgorithm, checksum};
use md5::{Digest as _, Md5};
use sha1::Sha1;

use crate::proto::rocketmq::{Digest, DigestType};

/// The digest of a body that clients compare: the one that all of them write in the same way.
pub(super) fn of(body: &[u8]) -> Digest {
    let digits = Md5::digest(body);
    let digits = digits.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let checksum = digits.filter_map(|digit| char::from_digit(digit.into(), 16));
    let checksum = checksum.map(|digit| digit.to_ascii_uppercase()).collect();
    Digest { r#type: DigestType::Md5.into(), checksum }
}

/// Whether `body` has the digest.
pub(super) fn matches(digest: &Digest, body: &[u8]) -> bool {
    let told = digest.checksum.as_str();
    match digest.r#type() {
        DigestType::Unspecified => true,
        DigestType::Crc32 => {
            let crc = checksum(CrcAlgorithm::Crc32IsoHdlc, body);
            u64::from_str_radix(told, 16) == Ok(crc) || told.parse() == Ok(crc)
        }
        DigestType::Md5 => is_hex_of(told, &Md5::digest(body)),
        DigestType::Sha1 => is_hex_of(told, &Sha1::digest(body)),
    }
}

fn is_hex_of(told: &str, bytes: &[u8]) -> bool {
    let digit = |digit: u8| char::from(digit).to_digit(16);
    told.len() == bytes.len() * 2
        && told.as_bytes().chunks_exact(2).zip(bytes).all(|(told, byte)| match told {
            [high, low] => {
                digit(*high) == Some(u32::from(byte >> 4))
                    && digit(*low) == Some(u32::from(byte & 15))
            }
            _ => false,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_taken(kind: DigestType, checksum: &str) -> bool {
        let digest = Digest { r#type: kind.into(), checksum: checksum.to_owned() };
        matches(&digest, b"body 26")
    }

    #[test]
    fn a_crc32_is_compared_as_a_number_however_it_is_written() {
        let crc = checksum(CrcAlgorithm::Crc32IsoHdlc, b"body 26");
        for told in [format!("{crc:08X}"), format!("{crc:x}"), format!("{crc}")] {
            assert!(is_taken(DigestType::Crc32, &told), "{told}");
        }
        for told in ["", "x", "00000000", "-1"] {
            assert!(!is_taken(DigestType::Crc32, told), "{told}");
        }
        // The check value of this CRC.
        assert_eq!(checksum(CrcAlgorithm::Crc32IsoHdlc, b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn md5_and_sha1_are_hex_in_any_case() {
        let known = |kind: DigestType, told: &str| {
            matches(&Digest { r#type: kind.into(), checksum: told.to_owned() }, b"abc")
        };
        // RFC 1321, A.5; FIPS 180-1, appendix A.
        assert!(known(DigestType::Md5, "900150983CD24FB0D6963F7D28E17F72"));
        assert!(known(DigestType::Md5, "900150983cd24fb0d6963f7d28e17f72"));
        assert!(known(DigestType::Sha1, "A9993E364706816ABA3E25717850C26C9CD0D89D"));
        assert!(!known(DigestType::Md5, "900150983CD24FB0D6963F7D28E17F73"));
        assert!(!known(DigestType::Md5, "900150983CD24FB0D6963F7D28E17F7"));
        assert!(!known(DigestType::Sha1, "900150983CD24FB0D6963F7D28E17F72"));
        assert!(!known(DigestType::Sha1, ""));
        assert!(known(DigestType::Unspecified, "anything"));
        assert_eq!(of(b"abc").checksum, "900150983CD24FB0D6963F7D28E17F72");
    }
}
