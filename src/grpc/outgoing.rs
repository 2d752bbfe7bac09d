//! What goes out: in pieces, each counted until HTTP/2 has written or dropped it.
//!
//! HTTP/2 takes a piece of any length as soon as its client has room for a byte, and asks for the next one: that it
//! took a piece does not say that it left. So what an answer counts for travels with its bytes.
//!
//! | of an answer | travels with |
//! | --- | --- |
//! | its bytes, at most [`PIECE`] at once | a piece of their own: no more than one waits beyond what the client has room for |
//! | its permit | its last piece |
//! | that something waits to leave | the last of each few pieces that come to [`PIECE`] |
//!
//! One allocation for each [`PIECE`] and for each answer; a piece that lies in the log's mapping stays there. A caller
//! who reads nothing for [`ANSWER_TIMEOUT`] loses the connection; while there is hardly any room, one who reads nothing
//! for [`PRESSED_TIMEOUT`], or leaves something unread for twice [`PRESSED_TURN`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use crate::broker::Permit;
use crate::sync::{Mutex, lock};

/// The most bytes of a piece: as long as a frame may be, so that what would lie in one does.
const PIECE: usize = 256 << 10;
/// How long a connection may hold answers of which nothing leaves.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The same while there is hardly any room for answers, or for what arrives: a stream of batches that waits for its
/// acknowledgements to leave keeps what it has received.
const PRESSED_TIMEOUT: Duration = Duration::from_secs(5);
/// And how long it may take then until all has left that waited when that time began.
const PRESSED_TURN: Duration = Duration::from_secs(10);

/// Keeps the bytes of an answer counted while it is on its way; put into the answer's extensions by a handler.
#[derive(Clone, Debug)]
pub(super) struct Held(#[expect(dead_code, reason = "held for its drop")] Arc<Permit>);

impl Held {
    /// Holds `permit`.
    pub(super) fn new(permit: Permit) -> Self {
        Self(Arc::new(permit))
    }
}

/// What an answer counts for, by whoever counted it.
#[derive(Debug)]
pub(super) enum Counted {
    /// A handler.
    Held(#[expect(dead_code, reason = "held for its drop")] Held),
    /// The call itself.
    Own(#[expect(dead_code, reason = "held for its drop")] Permit),
}

impl From<Held> for Counted {
    fn from(held: Held) -> Self {
        Self::Held(held)
    }
}

impl From<Permit> for Counted {
    fn from(permit: Permit) -> Self {
        Self::Own(permit)
    }
}

/// What of the answers of one connection has not left yet.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing(Arc<Mutex<Leaving>>);

/// Short lock, taken once for each mark and once when it is dropped.
///
/// Marks leave in no order, and who is let wait for how long has to be known without a list of them: those that are
/// there when a turn begins must all be gone before the next begins, with those that came meanwhile.
#[derive(Debug)]
struct Leaving {
    /// The number of the turn.
    turn: u64,
    /// When it began.
    began: Instant,
    /// Marks of this turn; none only if there are none at all.
    early: usize,
    /// Marks of the next.
    late: usize,
    /// When the last one was dropped or, with none before it, the first one made.
    moved: Instant,
}

/// Dropped once what it stands for has left, or never will.
#[derive(Debug)]
struct Mark {
    outgoing: Outgoing,
    turn: u64,
}

impl Drop for Mark {
    fn drop(&mut self) {
        let (mut leaving, now) = (lock(&self.outgoing.0), Instant::now());
        let of_turn =
            if self.turn == leaving.turn { &mut leaving.early } else { &mut leaving.late };
        *of_turn = of_turn.saturating_sub(1);
        leaving.moved = now;
        if leaving.early == 0 {
            leaving.turn += 1;
            leaving.began = now;
            leaving.early = std::mem::take(&mut leaving.late);
        }
    }
}

impl Outgoing {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let leaving = Leaving { turn: 0, began: now, early: 0, late: 0, moved: now };
        Self(Arc::new(Mutex::new(leaving)))
    }

    /// Something waits to leave, until the mark is dropped.
    fn mark(&self) -> Mark {
        let mut leaving = lock(&self.0);
        let turn = if leaving.early == 0 {
            let now = Instant::now();
            (leaving.began, leaving.moved) = (now, now);
            leaving.early = 1;
            leaving.turn
        } else {
            leaving.late += 1;
            leaving.turn + 1
        };
        Mark { outgoing: self.clone(), turn }
    }

    /// Since when nothing has left that waits for the caller, and since when some of it has not.
    fn waits_since(&self) -> Option<(Instant, Instant)> {
        let leaving = lock(&self.0);
        (leaving.early > 0).then_some((leaving.moved, leaving.began))
    }

    /// Ends when the caller has read nothing for too long; sooner, and also when he leaves some of it unread, while
    /// `is_pressed` says that others need his room.
    pub(crate) async fn stalled(&self, is_pressed: impl Fn() -> bool) {
        loop {
            let Some((moved, began)) = self.waits_since() else {
                sleep(ANSWER_TIMEOUT / 4).await;
                continue;
            };
            let now = Instant::now();
            let stalls = now.saturating_duration_since(moved);
            let lasts = now.saturating_duration_since(began);
            let is_slow = stalls >= PRESSED_TIMEOUT || lasts >= PRESSED_TURN;
            if stalls >= ANSWER_TIMEOUT || is_slow && is_pressed() {
                return;
            }
            sleep(PRESSED_TIMEOUT / 2).await;
        }
    }
}

/// Pieces of answers that nobody has taken yet.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    /// Taken from behind.
    waiting: Vec<Bytes>,
    /// Of the answer that they end with.
    counted: Option<Counted>,
}

impl Pieces {
    /// Adds the pieces of an answer where none are left, and what they count for.
    pub(super) fn add(
        &mut self,
        pieces: impl IntoIterator<Item = Bytes>,
        counted: Option<Counted>,
    ) {
        self.waiting.extend(pieces);
        self.waiting.reverse();
        self.counted = counted;
    }

    /// Whether all are taken.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// Hands pieces to a connection.
#[derive(Debug)]
pub(super) struct Handing {
    outgoing: Outgoing,
    /// For what was handed out without one: it travels with what follows.
    mark: Option<Mark>,
    /// Bytes that `mark` stands for.
    len: usize,
}

impl Handing {
    /// Hands to a connection.
    pub(super) fn to(outgoing: Outgoing) -> Self {
        Self { outgoing, mark: None, len: 0 }
    }

    /// The next piece. A connection sends the pieces of a stream in their order: once the last has left, all have.
    pub(super) fn next(&mut self, pieces: &mut Pieces) -> Option<Bytes> {
        let first = pieces.waiting.last_mut()?;
        let bytes =
            if first.len() > PIECE { first.split_to(PIECE) } else { pieces.waiting.pop()? };
        let mark = self.mark.take().unwrap_or_else(|| self.outgoing.mark());
        self.len += bytes.len();
        let is_last = pieces.waiting.is_empty();
        if !is_last && self.len < PIECE {
            self.mark = Some(mark);
            return Some(bytes);
        }
        self.len = 0;
        let counted = if is_last { pieces.counted.take() } else { None };
        Some(Bytes::from_owner(Leaves { bytes, _mark: mark, _counted: counted }))
    }
}

/// Bytes, and what lasts until they have left.
struct Leaves {
    bytes: Bytes,
    _mark: Mark,
    _counted: Option<Counted>,
}

impl AsRef<[u8]> for Leaves {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{Broker, BrokerConfig};
    use crate::clock::SystemClock;
    use crate::file::disk::RealDisk;
    use crate::store::StoreConfig;

    #[tokio::test]
    async fn an_answer_is_held_until_its_last_piece_is_gone_and_a_large_piece_is_cut() {
        let (broker, _dir) = broker();
        let (outgoing, held) = (Outgoing::new(), Held::new(broker.reply(1).await.unwrap()));
        let is_held = || broker.in_work().replies > 0;
        let (mut pieces, mut handing) = (Pieces::default(), Handing::to(outgoing.clone()));
        let all = Bytes::from((0..3 * PIECE).map(|n| (n / 1_000) as u8).collect::<Vec<_>>());
        let parts = [all.slice(..10), all.slice(10..20), all.slice(20..3 * PIECE)];
        pieces.add(parts, Some(held.into()));
        let mut left = Vec::new();
        while let Some(piece) = handing.next(&mut pieces) {
            left.push(piece);
        }
        assert!(pieces.is_empty());
        let lens: Vec<_> = left.iter().map(Bytes::len).collect();
        assert_eq!(lens, [10, 10, PIECE, PIECE, PIECE - 20]);
        assert_eq!(left.concat(), all);
        for (piece, waiting) in left.drain(..).zip([3, 3, 2, 1, 0]) {
            assert!(is_held());
            drop(piece);
            assert_eq!(count(&outgoing), waiting);
        }
        assert!(!is_held());
        broker.close().unwrap();
    }

    #[tokio::test]
    async fn what_is_never_handed_out_is_not_held() {
        let (broker, _dir) = broker();
        let (outgoing, held) = (Outgoing::new(), Held::new(broker.reply(1).await.unwrap()));
        let is_held = || broker.in_work().replies > 0;
        let (mut pieces, mut handing) = (Pieces::default(), Handing::to(outgoing.clone()));
        let parts = [Bytes::from_static(b"a"), Bytes::from_static(b"b")];
        pieces.add(parts, Some(held.into()));
        let first = handing.next(&mut pieces).unwrap();
        drop(first);
        assert!(outgoing.waits_since().is_some(), "what it stands for goes on with the next");
        drop((pieces, handing));
        assert_eq!((is_held(), outgoing.waits_since()), (false, None));
        broker.close().unwrap();
    }

    fn broker() -> (Arc<Broker>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let store =
            StoreConfig { segment_size: 4 << 20, ..StoreConfig::new(dir.path().join("data")) };
        let clock = Arc::new(SystemClock::new());
        (Broker::open(Arc::new(RealDisk), clock, store, BrokerConfig::default()).unwrap().0, dir)
    }

    fn count(outgoing: &Outgoing) -> usize {
        let leaving = lock(&outgoing.0);
        leaving.early + leaving.late
    }

    #[tokio::test(start_paused = true)]
    async fn where_room_is_short_one_answer_that_stays_ends_the_connection_though_others_leave() {
        for (stays, is_pressed, ends) in
            [(true, true, true), (true, false, false), (false, true, false)]
        {
            let outgoing = Outgoing::new();
            let kept = stays.then(|| outgoing.mark());
            let reads_on = async {
                let mut last = outgoing.mark();
                for _ in 0..600 {
                    sleep(Duration::from_secs(1)).await;
                    last = outgoing.mark();
                }
                drop(last);
            };
            let start = Instant::now();
            let has_ended = tokio::select! {
                () = reads_on => false,
                () = outgoing.stalled(|| is_pressed) => true,
            };
            assert_eq!(has_ended, ends, "{stays} {is_pressed}");
            assert!(!ends || start.elapsed() <= PRESSED_TURN + PRESSED_TIMEOUT);
            drop(kept);
            assert_eq!(count(&outgoing), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_stalls_when_it_holds_answers_of_which_none_leaves_sooner_where_room_is_short()
     {
        for (is_pressed, limit) in [(false, ANSWER_TIMEOUT), (true, PRESSED_TIMEOUT)] {
            let outgoing = Outgoing::new();
            let long = ANSWER_TIMEOUT * 10;
            let stalled = || tokio::time::timeout(long, outgoing.stalled(move || is_pressed));
            assert!(stalled().await.is_err(), "it holds none");
            let start = Instant::now();
            let first_mark = outgoing.mark();
            tokio::time::advance(limit / 2).await;
            let second_mark = outgoing.mark();
            assert!(stalled().await.is_ok());
            let first = start.elapsed();
            assert!((limit..=limit + ANSWER_TIMEOUT / 4).contains(&first), "{first:?}");
            let left = Instant::now();
            drop(first_mark);
            assert!(stalled().await.is_ok());
            let second = left.elapsed();
            assert!((limit..=limit + ANSWER_TIMEOUT / 4).contains(&second), "{second:?}");
            drop(second_mark);
            assert!(stalled().await.is_err(), "all have left");
        }
    }
}
