//! gRPC messages in the frames of an HTTP/2 body, without a codec in between.
//!
//! | of a message | bytes |
//! | --- | --- |
//! | flag | 1: 0, or 1 if the transport compresses it, which nobody here does |
//! | length | 4, big-endian |
//! | message | as long as that |
//!
//! Frames cut messages wherever they like. What was received stays in the frames that it came in: a field of bytes
//! that lies in one frame is a slice of it, one that lies in several is copied, once. Who sends puts large fields into
//! frames of their own, so that the other end finds them whole.
//!
//! Source: the gRPC over HTTP/2 protocol ("Length-Prefixed-Message").

use std::collections::VecDeque;

use bytes::{Buf, BufMut as _, Bytes, BytesMut};
use prost::Message;

/// A flag and the length, before each message.
pub(crate) const PREFIX: usize = 5;

/// Why what was received is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    /// The other end lets the transport compress.
    #[error("a message is compressed by the transport")]
    Compressed,
    /// It says that it is longer than it may be.
    #[error("a message of {len} bytes exceeds the limit of {max}")]
    TooLong {
        /// What it says.
        len: usize,
        /// What it may be.
        max: usize,
    },
    /// It is not of the type that is expected here.
    #[error("a message cannot be decoded")]
    Malformed,
}

/// One message with its prefix, as one piece.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    let mut out = BytesMut::with_capacity(PREFIX + message.encoded_len());
    put_framed(&mut out, message);
    out.freeze()
}

/// Adds one message with its prefix.
pub(crate) fn put_framed(out: &mut BytesMut, message: &impl Message) {
    put_prefix(out, message.encoded_len());
    // The buffer grows as needed, so it is never too short.
    let _ = message.encode(out);
}

/// What stands before a message of `len` bytes.
pub(crate) fn put_prefix(out: &mut BytesMut, len: usize) {
    out.put_u8(0);
    out.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
}

/// Frames below this are put together when they follow each other.
const SMALL: usize = 1 << 10;
/// Frames below this go into buffers of their own where the rest of their message is waited for: they are parts of what
/// the transport read at once, up to a frame of the largest size, which is four times as long.
const LARGE: usize = 64 << 10;
/// Places for frames that are kept when none is left.
const KEPT: usize = 64;

/// A frame, or small ones put together.
#[derive(Debug)]
struct Received {
    /// What is left of it.
    bytes: Bytes,
    /// How long it was: until nothing is left, all of it is in memory.
    whole: usize,
    /// Whether it lies in a buffer of its own.
    is_own: bool,
}

/// Whether what was received may lie in a buffer of many times its length.
pub(crate) fn is_part(received: &Bytes) -> bool {
    received.len() < LARGE
}

/// What was received and not taken yet, in the frames that it came in.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    frames: VecDeque<Received>,
    /// So many of them, from the first on, are large or lie in buffers of their own.
    settled: usize,
    /// Bytes left in all of them.
    len: usize,
    /// Bytes of frames of which the last message was the end.
    spent: usize,
    /// Bytes of these, and of all frames of which something is left.
    held: usize,
}

impl Frames {
    /// Adds a frame behind the others; the last message is done with. Of two neighbours at most one is [`SMALL`], so a
    /// frame costs little beside its bytes.
    pub(crate) fn push(&mut self, frame: Bytes) {
        self.done();
        let len = frame.len();
        if len == 0 {
            return;
        }
        self.len += len;
        self.held += len;
        match self.frames.back_mut() {
            Some(last) if last.bytes.len() < SMALL && len < SMALL => {
                let left = std::mem::take(&mut last.bytes);
                let is_small = last.is_own && last.whole <= 2 * SMALL;
                let joined = if is_small { left.try_into_mut() } else { Err(left) };
                // A frame may be a part of something much larger, which would stay for what is left of it.
                let mut both = joined.unwrap_or_else(|left| {
                    let mut both = BytesMut::with_capacity(2 * SMALL);
                    both.extend_from_slice(&left);
                    both
                });
                // What was taken of it is done with, and its room is used again.
                self.held -= last.whole - both.len();
                both.extend_from_slice(&frame);
                let bytes = both.freeze();
                *last = Received { whole: bytes.len(), bytes, is_own: true };
            }
            _ => {
                let received = Received { bytes: frame, whole: len, is_own: false };
                self.frames.push_back(received);
            }
        }
    }

    /// Bytes of memory that are in use: those of each frame until it was the end of a message that is done with.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// The last message is done with, and nothing of it is in use.
    pub(crate) fn done(&mut self) {
        self.held -= std::mem::take(&mut self.spent);
        if self.frames.is_empty() {
            self.frames.shrink_to(KEPT);
        }
    }

    /// What is left goes into buffers of its own, but for large frames: the rest of the message may be long in coming,
    /// and whoever sends many small parts between large ones of other calls must not have these kept for them. For
    /// frames of which the end of a message is waited for; whole messages are taken from where they lie.
    pub(crate) fn settle(&mut self) {
        for received in self.frames.iter_mut().skip(self.settled) {
            if !received.is_own && is_part(&received.bytes) {
                let own = Bytes::copy_from_slice(&received.bytes);
                self.held -= received.whole - own.len();
                *received = Received { whole: own.len(), bytes: own, is_own: true };
            }
        }
        self.settled = self.frames.len();
    }

    /// Whether nothing is left of what was received.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How much of the message that has begun is still to come, once its length is there; `None` also without one.
    pub(crate) fn missing(&self, max: usize) -> Option<usize> {
        let len = self.message_len(max).ok().flatten()?;
        (PREFIX + len).checked_sub(self.len)
    }

    /// The next message, if all of it is there; the one before is done with.
    ///
    /// # Errors
    /// What comes next is no message of this type, or longer than `max`. Nothing behind it can be found any more.
    pub(crate) fn message<M: Message + Default>(
        &mut self,
        max: usize,
    ) -> Result<Option<M>, WireError> {
        self.done();
        let Some(len) = self.message_len(max)? else { return Ok(None) };
        if self.len < PREFIX + len {
            return Ok(None);
        }
        self.advance(PREFIX);
        let message = M::decode(Buf::take(self, len)).map_err(|_| WireError::Malformed)?;
        Ok(Some(message))
    }

    /// The length of the message that begins here, if its prefix is there.
    fn message_len(&self, max: usize) -> Result<Option<usize>, WireError> {
        if self.len < PREFIX {
            return Ok(None);
        }
        let mut prefix = [0; PREFIX];
        let bytes = self.frames.iter().flat_map(|frame| frame.bytes.iter());
        for (to, from) in prefix.iter_mut().zip(bytes) {
            *to = *from;
        }
        let mut prefix = &prefix[..];
        if prefix.get_u8() != 0 {
            return Err(WireError::Compressed);
        }
        let len = usize::try_from(prefix.get_u32()).unwrap_or(usize::MAX);
        if len > max { Err(WireError::TooLong { len, max }) } else { Ok(Some(len)) }
    }

    /// The first frame is done with once nothing is left of it.
    fn pass_empty(&mut self) {
        while self.frames.front().is_some_and(|frame| frame.bytes.is_empty()) {
            self.spent += self.frames.pop_front().map_or(0, |frame| frame.whole);
            self.settled = self.settled.saturating_sub(1);
        }
    }
}

impl Buf for Frames {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.frames.front().map_or(&[], |frame| &frame.bytes)
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.len, "there is so much");
        self.len -= count;
        let mut count = count;
        while count > 0
            && let Some(Received { bytes, .. }) = self.frames.front_mut()
        {
            let here = count.min(bytes.len());
            bytes.advance(here);
            count -= here;
            self.pass_empty();
        }
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        assert!(len <= self.len, "there is so much");
        if let Some(Received { bytes, .. }) = self.frames.front_mut()
            && bytes.len() >= len
        {
            let bytes = bytes.split_to(len);
            self.len -= len;
            self.pass_empty();
            return bytes;
        }
        let mut bytes = BytesMut::with_capacity(len);
        while bytes.len() < len
            && let Some(Received { bytes: frame, .. }) = self.frames.front_mut()
        {
            let here = frame.split_to(frame.len().min(len - bytes.len()));
            bytes.extend_from_slice(&here);
            self.len -= here.len();
            self.pass_empty();
        }
        bytes.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 1 << 16;

    #[derive(Clone, PartialEq, prost::Message)]
    struct Request {
        #[prost(string, tag = "1")]
        topic: String,
        #[prost(bytes = "bytes", tag = "5")]
        batch: Bytes,
    }

    fn request(batch: &[u8]) -> Request {
        Request { topic: "orders".to_owned(), batch: Bytes::copy_from_slice(batch) }
    }

    fn take(frames: &mut Frames) -> Result<Option<Request>, WireError> {
        frames.message(MAX)
    }

    #[test]
    fn messages_come_out_whole_wherever_frames_cut_them() {
        let sent = [request(b"one"), Request::default(), request(&[7; 300]), request(b"")];
        let bytes: Vec<u8> = sent.iter().flat_map(|message| framed(message).to_vec()).collect();
        for first in 0..=bytes.len() {
            for second in [first, (first + 1).min(bytes.len()), (first + 9).min(bytes.len())] {
                let mut frames = Frames::default();
                let mut received = Vec::new();
                for part in [&bytes[..first], &bytes[first..second], &bytes[second..]] {
                    frames.push(Bytes::copy_from_slice(part));
                    while let Some(message) = take(&mut frames).unwrap() {
                        received.push(message);
                    }
                }
                assert_eq!(received, sent, "cut at {first} and {second}");
                assert!(frames.is_empty());
            }
        }
    }

    #[test]
    fn a_field_that_lies_in_one_frame_is_a_slice_of_it_and_one_in_two_is_copied() {
        let bytes = framed(&request(&[9; SMALL]));
        let at = bytes.len() - SMALL;
        let mut frames = Frames::default();
        let batch = bytes.slice(at..);
        frames.push(bytes.slice(..at));
        frames.push(batch.clone());
        assert_eq!(take(&mut frames).unwrap().unwrap().batch.as_ptr(), batch.as_ptr());

        frames.push(bytes.slice(..at + 1));
        frames.push(bytes.slice(at + 1..));
        let copied = take(&mut frames).unwrap().unwrap().batch;
        assert_eq!(copied, batch);
        assert!(!bytes.as_ptr_range().contains(&copied.as_ptr()));
    }

    /// Each used to be an entry of its own, of many times its bytes.
    #[test]
    fn tiny_frames_are_put_together_and_their_places_are_given_back() {
        let sent = request(&[5; 50_000]);
        let bytes = framed(&sent);
        let mut frames = Frames::default();
        for len in [1, 7, 500, SMALL - 1] {
            for part in bytes.chunks(len) {
                frames.push(Bytes::copy_from_slice(part));
            }
            assert!(frames.frames.len() <= bytes.len() / SMALL + 1, "{}", frames.frames.len());
            assert_eq!(frames.held(), bytes.len());
            assert_eq!(take(&mut frames).unwrap().as_ref(), Some(&sent));
            frames.done();
        }
        // The worst: a small one behind each that is not.
        for part in bytes.chunks(SMALL + 1) {
            let (large, small) = part.split_at(part.len().min(SMALL));
            frames.push(Bytes::copy_from_slice(large));
            frames.push(Bytes::copy_from_slice(small));
        }
        assert!(frames.frames.capacity() > KEPT);
        assert_eq!(take(&mut frames).unwrap(), Some(sent));
        frames.done();
        assert!(frames.frames.capacity() <= KEPT, "{}", frames.frames.capacity());
    }

    /// What was taken of them stayed counted, though its room was used again: a client that sent on like this took all
    /// that may arrive.
    #[test]
    fn of_small_frames_that_lie_across_messages_only_what_is_left_is_held() {
        let sent = request(&[5; 1_000]);
        let bytes = framed(&sent);
        let half = bytes.len() / 2;
        let mut frames = Frames::default();
        frames.push(bytes.slice(..half));
        let across = Bytes::from([&bytes[half..], &bytes[..half]].concat());
        for _ in 0..10_000 {
            // As the transport gives them: a part of a large buffer.
            frames.push(across.clone());
            assert_eq!(take(&mut frames).unwrap().as_ref(), Some(&sent));
            assert!(frames.held() <= 2 * bytes.len(), "{}", frames.held());
            let last = frames.frames.back().unwrap();
            assert!(frames.frames.len() == 1 && last.bytes.len() == half);
        }
        frames.push(bytes.slice(half..));
        assert_eq!(take(&mut frames).unwrap(), Some(sent));
        frames.done();
        assert_eq!((frames.held(), frames.is_empty()), (0, true));
    }

    /// A small frame kept all that was read together with it.
    #[test]
    fn of_a_message_that_is_waited_for_only_large_frames_stay_where_they_were_received() {
        let sent = request(&vec![7; 3 * LARGE]);
        let bytes = framed(&sent);
        let cuts = [0, 30, 30 + LARGE, 30 + LARGE + 2 * SMALL, 30 + LARGE + 3 * SMALL];
        let mut frames = Frames::default();
        let mut parts = Vec::new();
        for cut in cuts.windows(2) {
            parts.push(Bytes::copy_from_slice(&bytes[cut[0]..cut[1]]));
        }
        for part in &parts {
            frames.push(part.clone());
            frames.settle();
            frames.settle();
        }
        let is_kept: Vec<_> = parts.iter().map(|part| !part.is_unique()).collect();
        assert_eq!(is_kept, [false, true, false, false]);
        assert_eq!((frames.held(), frames.settled), (cuts[4], 4));
        frames.push(bytes.slice(cuts[4]..));
        assert_eq!(frames.message(bytes.len()), Ok(Some(sent)));
        frames.done();
        assert_eq!((frames.held(), frames.settled), (0, 0));

        // What was taken of a frame goes with it.
        let two = framed(&request(b"one"));
        let two = Bytes::from([&two[..], &two[..4]].concat());
        frames.push(two.clone());
        assert!(take(&mut frames).unwrap().is_some());
        assert!(take(&mut frames).unwrap().is_none());
        frames.settle();
        assert!(frames.held() == 4 && two.is_unique());
    }

    #[test]
    fn a_frame_is_held_until_the_message_that_it_ends_with_is_done_with() {
        // A small one is put together with what is left of the other, and that is held.
        for (batch_len, together) in [(2 * SMALL, 2), (7, 1)] {
            let bytes = framed(&request(&vec![7; batch_len]));
            let len = bytes.len();
            let mut frames = Frames::default();
            frames.push(Bytes::from([&bytes[..], &bytes[..4]].concat()));
            assert!(take(&mut frames).unwrap().is_some());
            assert!(take(&mut frames).unwrap().is_none());
            assert_eq!(frames.held(), len + 4, "the begin of the second message lies in it");
            frames.push(bytes.slice(4..));
            assert!(take(&mut frames).unwrap().is_some());
            assert_eq!(frames.held(), together * len);
            frames.done();
            assert_eq!((frames.held(), frames.is_empty()), (0, true));
        }
    }

    #[test]
    fn what_is_no_message_is_refused_by_its_reason() {
        let too_long = WireError::TooLong { len: MAX + 1, max: MAX };
        for (bytes, refused) in [
            (&b"\x01\0\0\0\x01x"[..], WireError::Compressed),
            (b"\0\0\x01\0\x01", too_long),
            (b"\0\0\0\0\x02\xff\xff", WireError::Malformed),
            (b"\0\0\0\0\x03\x2a\x05x", WireError::Malformed),
        ] {
            let mut frames = Frames::default();
            frames.push(framed(&request(b"whole")));
            frames.push(Bytes::copy_from_slice(bytes));
            assert_eq!(take(&mut frames).unwrap(), Some(request(b"whole")));
            assert_eq!(take(&mut frames).unwrap_err(), refused);
        }
    }
}
