//! How bodies are compressed: as one piece, all bodies of a batch together.

use std::fmt;

use lz4_flex::block::{self, CompressTable};

use super::{Batch, BatchError, limits, zstd_frame};

/// How the bodies of a batch are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Not at all.
    #[default]
    None,
    /// One LZ4 block, without a length before it.
    Lz4,
    /// One zstd frame, without a dictionary.
    Zstd,
}

impl Codec {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::None, Self::Lz4, Self::Zstd];

    /// The number that a batch carries.
    pub const fn number(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }

    /// The codec of a number; `None`: there is none yet.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| codec.number() == number)
    }

    /// Its name in options and texts: `none`, `lz4` or `zstd`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// Refuses bodies that cannot come to `stated` bytes, as far as that can be told without decompressing them.
    pub(super) fn check_len(self, bodies: &[u8], stated: u32) -> Result<(), BatchError> {
        let (expected, found) = (u64::from(stated), bodies.len() as u64);
        let possible = match self {
            Self::None if found == expected => true,
            Self::None => return Err(BatchError::BodiesLength { expected, found }),
            // A block has one byte at least, and none of its bytes stands for more than 255.
            Self::Lz4 => found > 0 && expected <= 255 * found,
            Self::Zstd => zstd_frame::may_hold(bodies, expected),
        };
        if possible { Ok(()) } else { Err(self.lie(expected, found)) }
    }

    fn lie(self, expected: u64, found: u64) -> BatchError {
        BatchError::Decompression { codec: self, expected, found }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Decompresses bodies, one batch after the other. What zstd needs for it is made once, when first needed.
#[derive(Default)]
pub struct Decompressor {
    #[cfg(feature = "zstd")]
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Decompressor {
    /// Without anything that a codec needs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Fills `room` with the uncompressed bodies of a batch: exactly as many bytes as the batch says, for
    /// [`Batch::messages_in`]. Room that is there is used again; there is never more of it than the batch says, nor
    /// more than [`limits::UNCOMPRESSED_LEN`]. Bodies without a codec are copied.
    ///
    /// # Errors
    /// The batch says more than the limit, the codec is unknown or not built in, or something else comes out of the
    /// bodies than the batch says. `room` holds nothing of use then.
    pub fn decompress(&mut self, batch: &Batch<'_>, room: &mut Vec<u8>) -> Result<(), BatchError> {
        let (limit, found) = (limits::UNCOMPRESSED_LEN as u64, u64::from(batch.bodies_len()));
        if found > limit {
            let index = batch.message_count() - 1;
            return Err(BatchError::UncompressedTooLarge { index, limit, found });
        }
        let number = batch.codec();
        let codec = Codec::from_number(number).ok_or(BatchError::Codec { codec: number })?;
        let bodies = batch.bodies();
        // Again: what comes over the wire was checked by somebody else.
        codec.check_len(bodies, batch.bodies_len())?;
        let len = batch.bodies_len() as usize;
        if room.capacity() < len {
            // Not grown: that might take twice as much, and keep the old room meanwhile.
            *room = Vec::new();
            *room = vec![0; len];
        }
        room.resize(len, 0);
        let written = match codec {
            Codec::None => {
                room.copy_from_slice(bodies);
                Some(len)
            }
            Codec::Lz4 => block::decompress_into(bodies, room).ok(),
            Codec::Zstd => self.zstd(bodies, room)?,
        };
        if written == Some(len) { Ok(()) } else { Err(codec.lie(found, bodies.len() as u64)) }
    }

    /// Bytes that came out, `None` if the frame is damaged or more would come out than there is room for.
    #[cfg(feature = "zstd")]
    fn zstd(&mut self, bodies: &[u8], room: &mut [u8]) -> Result<Option<usize>, BatchError> {
        Ok(self.zstd.get_or_insert_default().decompress_to_buffer(bodies, room).ok())
    }

    #[cfg(not(feature = "zstd"))]
    fn zstd(&mut self, _: &[u8], _: &mut [u8]) -> Result<Option<usize>, BatchError> {
        Err(BatchError::NotBuilt { codec: Codec::Zstd })
    }
}

/// Compresses bodies, one batch after the other, for
/// [`BatchBuilder::finish_compressed`](super::BatchBuilder::finish_compressed). Keeps its tables and its room from one
/// batch to the next.
pub struct Compressor {
    method: Method,
    room: Vec<u8>,
}

enum Method {
    None,
    Lz4(CompressTable),
    #[cfg(feature = "zstd")]
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Compressor {
    /// For batches of this codec.
    ///
    /// # Errors
    /// [`BatchError::NotBuilt`]: the codec is not built in.
    pub fn new(codec: Codec) -> Result<Self, BatchError> {
        let method = match codec {
            Codec::None => Method::None,
            Codec::Lz4 => Method::Lz4(CompressTable::default()),
            #[cfg(feature = "zstd")]
            Codec::Zstd => Method::Zstd(zstd::bulk::Compressor::default()),
            #[cfg(not(feature = "zstd"))]
            Codec::Zstd => return Err(BatchError::NotBuilt { codec }),
        };
        Ok(Self { method, room: Vec::new() })
    }

    /// The codec that batches get if it makes them smaller.
    pub fn codec(&self) -> Codec {
        match self.method {
            Method::None => Codec::None,
            Method::Lz4(_) => Codec::Lz4,
            #[cfg(feature = "zstd")]
            Method::Zstd(_) => Codec::Zstd,
        }
    }

    /// The bodies compressed, if they have fewer than `most` bytes then.
    pub(super) fn compress(&mut self, bodies: &[u8], most: usize) -> Option<&[u8]> {
        let len = match &mut self.method {
            Method::None => None,
            Method::Lz4(table) => {
                self.room.resize(block::get_maximum_output_size(bodies.len()), 0);
                block::compress_into_with_table(bodies, &mut self.room, table).ok()
            }
            // What does not fit is not smaller.
            #[cfg(feature = "zstd")]
            Method::Zstd(zstd) => {
                self.room.resize(most, 0);
                zstd.compress_to_buffer(bodies, self.room.as_mut_slice()).ok()
            }
        };
        self.room.get(..len.filter(|len| *len < most)?)
    }
}

#[cfg(test)]
mod tests;
