//! The paged file: how a sealed `.cq` or `.idx` file is checked piece by piece.
//!
//! A file is a header page and then a logical stream, cut into pages of 4 KiB. Every page ends in a checksum of its
//! own, so that a reader verifies what it reads and no more, and damage costs one file, found by the page.
//!
//! | at   | len  | every page                                                                                |
//! | ---: | ---: | ----------------------------------------------------------------------------------------- |
//! |    0 | 4092 | content; the last page is filled up with zeros                                            |
//! | 4092 |    4 | CRC32C of the content, initial state from page number and salt                            |
//!
//! Page 0 is the header, checked with salt 0. The stream starts at page 1; its byte `n` is byte `n % 4092` of page
//! `1 + n / 4092`. Things in the stream may lie across pages. The salt of the other pages comes from kind, store and
//! base, so that a page of another file, or a page at another place, is not taken for the right one.
//!
//! | at | len | header page                                                                                  |
//! | -: | --: | -------------------------------------------------------------------------------------------- |
//! |  0 |   4 | magic, by kind                                                                               |
//! |  4 |   4 | format version, by kind; nothing behind it is looked at in a version that is not known       |
//! |  8 |  16 | store id                                                                                     |
//! | 24 |   8 | base: physical offset of the segment's first byte                                            |
//! | 32 |   8 | end: physical offset behind the segment's last byte                                          |
//! | 40 |   8 | length of the stream in bytes                                                                |
//! | 48 |  32 | four numbers whose meaning the kind gives                                                    |
//!
//! Little-endian. The rest of the header page is zero.

use super::{DecodeError, crc32c_with};
use crate::message::PhysicalOffset;

/// Bytes of a page in the file.
pub const PAGE_LEN: usize = 4096;
/// Bytes of the logical stream in a page; the checksum follows.
pub const CONTENT_LEN: usize = PAGE_LEN - size_of::<u32>();

const MAGIC_LEN: usize = size_of::<u32>();
const HEADER_LEN: usize = 80;
/// Spreads page numbers over the initial state (2^32 divided by the golden ratio, odd).
const PAGE_FACTOR: u32 = 0x9E37_79B1;

/// What a paged file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Entries of queues, `.cq`.
    ConsumeQueue,
    /// Entries by key, `.idx`.
    Index,
}

impl Kind {
    /// The first four bytes of the file, read as a little-endian number.
    pub const fn magic(self) -> u32 {
        match self {
            Self::ConsumeQueue => u32::from_le_bytes(*b"MScq"),
            Self::Index => u32::from_le_bytes(*b"MSix"),
        }
    }

    /// The version this build writes, and the only one it reads.
    pub const fn version(self) -> u32 {
        match self {
            Self::ConsumeQueue => super::consume_queue::VERSION,
            Self::Index => super::index::VERSION,
        }
    }

    const fn what(self) -> &'static str {
        match self {
            Self::ConsumeQueue => "consume queue file",
            Self::Index => "index file",
        }
    }
}

/// The header page of a paged file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the stream holds.
    pub kind: Kind,
    /// The store the segment belongs to.
    pub store_id: [u8; 16],
    /// Where the segment starts.
    pub base: PhysicalOffset,
    /// Where the segment ends, exclusive.
    pub end: PhysicalOffset,
    /// Bytes of the logical stream.
    pub stream_len: u64,
    /// What the kind says about its stream.
    pub numbers: [u64; 4],
}

impl Header {
    /// The whole page, checksum included.
    pub fn encode(&self) -> [u8; PAGE_LEN] {
        let mut content = Vec::with_capacity(CONTENT_LEN);
        content.extend_from_slice(&self.kind.magic().to_le_bytes());
        content.extend_from_slice(&self.kind.version().to_le_bytes());
        content.extend_from_slice(&self.store_id);
        content.extend_from_slice(&self.base.get().to_le_bytes());
        content.extend_from_slice(&self.end.get().to_le_bytes());
        content.extend_from_slice(&self.stream_len.to_le_bytes());
        for number in self.numbers {
            content.extend_from_slice(&number.to_le_bytes());
        }
        debug_assert_eq!(
            content.len(),
            HEADER_LEN,
            "the header is a contract with existing stores"
        );
        content.resize(CONTENT_LEN, 0);
        let checksum = crc32c_with(initial(0, 0), &[&content]);
        content.extend_from_slice(&checksum.to_le_bytes());
        let mut page = [0; PAGE_LEN];
        page.copy_from_slice(&content);
        page
    }

    /// Reads a header page.
    ///
    /// # Errors
    /// Too short, another magic, a checksum that does not hold, a version this build does not know (only if the
    /// checksum holds), lengths that cannot be.
    pub fn decode(kind: Kind, page: &[u8]) -> Result<Self, DecodeError> {
        let magic = Fields::new(page).u32()?;
        if magic != kind.magic() {
            return Err(DecodeError::Magic { found: magic });
        }
        let content = verify(page, 0, 0)?;
        let mut fields = Fields::new(content.get(MAGIC_LEN..).unwrap_or_default());
        let version = fields.u32()?;
        if version != kind.version() {
            return Err(DecodeError::UnsupportedVersion {
                what: kind.what(),
                found: version,
                supported: kind.version(),
            });
        }
        let header = Self {
            kind,
            store_id: fields.array()?,
            base: PhysicalOffset::new(fields.u64()?),
            end: PhysicalOffset::new(fields.u64()?),
            stream_len: fields.u64()?,
            numbers: [fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?],
        };
        if header.end < header.base {
            return Err(DecodeError::Length {
                what: "stream",
                expected: header.base.get(),
                found: header.end.get(),
            });
        }
        Ok(header)
    }

    /// What the checksums of all pages but the header start from.
    pub fn salt(&self) -> u32 {
        crc32c_with(self.kind.magic(), &[&self.store_id, &self.base.get().to_le_bytes()])
    }

    /// Bytes of the whole file: the header page and the pages of the stream.
    pub fn file_len(&self) -> u64 {
        let pages = self.stream_len.div_ceil(CONTENT_LEN as u64).saturating_add(1);
        pages.saturating_mul(PAGE_LEN as u64)
    }
}

/// The initial state of the checksum of page `number`.
const fn initial(number: u64, salt: u32) -> u32 {
    // The low half is enough: a file of 2^32 pages is 16 TiB.
    salt ^ (number as u32).wrapping_mul(PAGE_FACTOR)
}

/// In which page of the file byte `at` of the stream lies, and where in its content.
pub const fn place(at: u64) -> (u64, usize) {
    (1 + at / CONTENT_LEN as u64, (at % CONTENT_LEN as u64) as usize)
}

/// The content of a page whose checksum holds.
///
/// # Errors
/// `TooShort`, or `PageCrc`: the page is damaged, or is not page `number` of the file with this salt.
pub fn verify(page: &[u8], number: u64, salt: u32) -> Result<&[u8], DecodeError> {
    let too_short = DecodeError::TooShort { needed: PAGE_LEN as u64, found: page.len() as u64 };
    let (content, rest) = page.split_at_checked(CONTENT_LEN).ok_or(too_short)?;
    let stored = rest.first_chunk().ok_or(too_short)?;
    if crc32c_with(initial(number, salt), &[content]) != u32::from_le_bytes(*stored) {
        return Err(DecodeError::PageCrc { page: number });
    }
    Ok(content)
}

/// Cuts a stream into pages.
#[derive(Debug)]
pub struct PageWriter {
    salt: u32,
    number: u64,
    content: Vec<u8>,
}

impl PageWriter {
    /// A writer of the pages behind the header page.
    pub fn new(salt: u32) -> Self {
        Self { salt, number: 1, content: Vec::with_capacity(CONTENT_LEN) }
    }

    /// Takes the next bytes of the stream; pages that are full go to `out`.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while self.content.len() + bytes.len() >= CONTENT_LEN {
            let (now, later) =
                bytes.split_at_checked(CONTENT_LEN - self.content.len()).unwrap_or((bytes, &[]));
            self.content.extend_from_slice(now);
            self.put_page(out);
            bytes = later;
        }
        self.content.extend_from_slice(bytes);
    }

    /// Ends the stream: the last page is filled up with zeros.
    pub fn finish(mut self, out: &mut Vec<u8>) {
        if !self.content.is_empty() {
            self.content.resize(CONTENT_LEN, 0);
            self.put_page(out);
        }
    }

    fn put_page(&mut self, out: &mut Vec<u8>) {
        let checksum = crc32c_with(initial(self.number, self.salt), &[&self.content]);
        out.extend_from_slice(&self.content);
        out.extend_from_slice(&checksum.to_le_bytes());
        self.content.clear();
        self.number += 1;
    }
}

/// Takes little-endian fields off a slice, one after the other.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
    len: usize,
}

impl<'a> Fields<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, len: bytes.len() }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let Some((head, rest)) = self.rest.split_first_chunk() else {
            return Err(DecodeError::TooShort {
                needed: (self.len - self.rest.len() + N) as u64,
                found: self.len as u64,
            });
        };
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            kind: Kind::ConsumeQueue,
            store_id: *b"0123456789abcdef",
            base: PhysicalOffset::new(0x1000_0000),
            end: PhysicalOffset::new(0x2000_0000),
            stream_len: 5000,
            numbers: [1, 2, 3, 0x0405_0607_0809_0a0b],
        }
    }

    fn stream(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 31 % 251) as u8).collect()
    }

    #[test]
    fn header_page_has_these_bytes() {
        let page = header().encode();
        let mut golden = Vec::new();
        golden.extend_from_slice(b"MScq\x01\0\0\x000123456789abcdef");
        golden.extend_from_slice(&[0, 0, 0, 0x10, 0, 0, 0, 0]);
        golden.extend_from_slice(&[0, 0, 0, 0x20, 0, 0, 0, 0]);
        golden.extend_from_slice(&[0x88, 0x13, 0, 0, 0, 0, 0, 0]);
        golden.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend_from_slice(&[0x0b, 0x0a, 0x09, 0x08, 0x07, 0x06, 0x05, 0x04]);
        assert_eq!(golden.len(), HEADER_LEN);
        assert_eq!(page[..HEADER_LEN], golden);
        assert!(page[HEADER_LEN..CONTENT_LEN].iter().all(|b| *b == 0));
        assert_eq!(u32::from_le_bytes(*page.last_chunk().unwrap()), 1_077_645_893);
        assert_eq!(Header::decode(Kind::ConsumeQueue, &page), Ok(header()));
        assert_eq!(header().file_len(), 3 * 4096);
    }

    #[test]
    fn header_refuses_every_truncation_and_every_flipped_bit() {
        let page = header().encode();
        for len in 0..PAGE_LEN {
            let needed = if len < MAGIC_LEN { MAGIC_LEN } else { PAGE_LEN };
            assert_eq!(
                Header::decode(Kind::ConsumeQueue, &page[..len]),
                Err(DecodeError::TooShort { needed: needed as u64, found: len as u64 })
            );
        }
        for bit in 0..PAGE_LEN * 8 {
            let mut bad = page;
            bad[bit / 8] ^= 1 << (bit % 8);
            let error = Header::decode(Kind::ConsumeQueue, &bad).unwrap_err();
            if bit < MAGIC_LEN * 8 {
                let found = Kind::ConsumeQueue.magic() ^ (1 << bit);
                assert_eq!(error, DecodeError::Magic { found });
            } else {
                assert_eq!(error, DecodeError::PageCrc { page: 0 }, "bit {bit}");
            }
        }
    }

    #[test]
    fn header_of_another_kind_or_version_says_so() {
        let mut page = header().encode();
        let found = Kind::ConsumeQueue.magic();
        assert_eq!(Header::decode(Kind::Index, &page), Err(DecodeError::Magic { found }));
        page[4] = 9;
        let checksum = crc32c_with(initial(0, 0), &[&page[..CONTENT_LEN]]);
        page[CONTENT_LEN..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(
            Header::decode(Kind::ConsumeQueue, &page),
            Err(DecodeError::UnsupportedVersion {
                what: "consume queue file",
                found: 9,
                supported: 1
            })
        );
    }

    #[test]
    fn stream_comes_back_whatever_the_pieces() {
        for len in [0, 1, 4091, 4092, 4093, 8184, 20_000] {
            for piece in [1, 7, 4092, 9000] {
                let bytes = stream(len);
                let mut file = Vec::new();
                let mut writer = PageWriter::new(7);
                bytes.chunks(piece).for_each(|part| writer.push(part, &mut file));
                writer.finish(&mut file);
                assert_eq!(file.len(), len.div_ceil(CONTENT_LEN) * PAGE_LEN);
                let mut back = Vec::new();
                for (index, page) in file.chunks(PAGE_LEN).enumerate() {
                    back.extend_from_slice(verify(page, index as u64 + 1, 7).unwrap());
                }
                assert_eq!(back[..len], bytes);
                assert!(back[len..].iter().all(|b| *b == 0));
            }
        }
        assert_eq!(place(0), (1, 0));
        assert_eq!(place(4091), (1, 4091));
        assert_eq!(place(4092), (2, 0));
    }

    #[test]
    fn page_refuses_every_truncation_and_flipped_bit_and_another_place() {
        let mut file = Vec::new();
        let mut writer = PageWriter::new(header().salt());
        writer.push(&stream(4092), &mut file);
        writer.finish(&mut file);
        let salt = header().salt();
        assert_eq!(verify(&file, 1, salt), Ok(&stream(4092)[..]));
        for len in 0..PAGE_LEN {
            assert_eq!(
                verify(&file[..len], 1, salt),
                Err(DecodeError::TooShort { needed: PAGE_LEN as u64, found: len as u64 })
            );
        }
        for bit in 0..PAGE_LEN * 8 {
            let mut bad = file.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(verify(&bad, 1, salt), Err(DecodeError::PageCrc { page: 1 }), "bit {bit}");
        }
        assert_eq!(verify(&file, 2, salt), Err(DecodeError::PageCrc { page: 2 }));
        let other = Header { base: PhysicalOffset::new(8), ..header() };
        assert_eq!(verify(&file, 1, other.salt()), Err(DecodeError::PageCrc { page: 1 }));
    }
}
