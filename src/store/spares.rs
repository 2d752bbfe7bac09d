//! Files of deleted segments that become the next ones: their pages are in memory, and their blocks are written.
//!
//! New pages and new blocks are a third of what a send costs the kernel, and a broker that deletes as much as it
//! stores gives the same away at the same time.
//!
//! | step | durable when it is done | a power cut before that leaves |
//! | --- | --- | --- |
//! | the deletion is recorded, `.cq` and `.idx` are gone | as for every deletion, see `clean.rs` | the segment |
//! | nobody has the segment or a slice of it any more | – | the segment |
//! | rename to a temporary name, sync of the directory | the name | the segment, or a temporary that a start removes |
//! | header page and a page of zeros, sync | the header | a temporary |
//! | rename to the name of the next segment, sync of the directory | the segment, empty | a temporary, or the segment |
//!
//! So no file that has the name of a segment is ever written to as another, nor read as one. What the earlier segment
//! held stays behind the page of zeros; why none of it is ever taken for a record is told in `recover.rs`.
//!
//! A file that somebody still reads, that has a second name (a backup may share it), that has another size than the
//! next segment, or of which bytes were lost or could not be read once is unlinked, and so is all that is deleted
//! while space is short. Who lets go of an unlinked file last waits for the file system to free it, a fifth of a
//! second for 256 MiB: while the store runs that is the clean worker, which keeps what others still have until they do
//! not. Of a bad sector that nobody came across yet nothing is known: as in any file, an unclean start that comes to
//! it before the log has written over it is refused. A clean stop unlinks the spares, and a start what is left.

use super::Shared;
use crate::file::FileError;
use crate::file::segment::{Segment, Spare};
use crate::format::names::FileKind;
use crate::sync::{Arc, Mutex, lock};

/// So many are kept: what is deleted while the next segment is written, and one more.
pub(super) const MAX_SPARES: usize = 2;

/// The files that wait to become segments. Filled and emptied by the clean worker, used by the allocate worker.
#[derive(Default)]
pub(super) struct Spares {
    files: Mutex<Vec<Spare>>,
    /// Segments whose files are unlinked, and that somebody still reads.
    in_use: Mutex<Vec<Arc<Segment>>>,
}

impl Spares {
    /// How many more are wanted.
    pub(super) fn wanted(&self) -> usize {
        MAX_SPARES.saturating_sub(self.count())
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        lock(&self.files).len()
    }

    /// One of them, which is the caller's now.
    pub(super) fn take(&self) -> Option<Spare> {
        lock(&self.files).pop()
    }

    /// Keeps files whose temporary names are durable.
    pub(super) fn keep(&self, spares: Vec<Spare>) {
        lock(&self.files).extend(spares);
    }

    /// Keeps a segment whose file is about to be unlinked while others have it.
    fn keep_until_unused(&self, segment: Arc<Segment>) {
        lock(&self.in_use).push(segment);
    }

    /// Frees one of those that nobody has any more. `true`: there was one.
    fn free_unused(&self) -> bool {
        let mut in_use = lock(&self.in_use);
        let unused = in_use.iter().position(Segment::is_unused);
        let segment = unused.map(|at| in_use.swap_remove(at));
        drop(in_use);
        segment.is_some()
    }
}

impl Shared {
    /// Makes a spare of a deleted segment that is not listed any more. `None`: its file is not fit, and still there.
    pub(super) fn spare(&self, segment: Arc<Segment>, kept: usize) -> Option<Spare> {
        if !Segment::is_unused(&segment) {
            self.spares.keep_until_unused(segment);
            return None;
        }
        // Where bytes were lost the disk may give none.
        let range = segment.base()..segment.end();
        let is_whole = !self.lost.overlaps(&range) && !self.damage.overlaps(&range);
        let is_fit = segment.len() == self.config.segment_size
            && is_whole
            && kept < self.spares.wanted()
            && !self.space_is_wanted();
        if !is_fit {
            return None;
        }
        // Nobody finds it any more, so nobody has it since.
        let segment = Arc::into_inner(segment)?;
        let dir = self.config.dir.join(FileKind::Segment.directory());
        segment.into_spare(&*self.disk, &dir).unwrap_or_else(|error| {
            tracing::warn!(%error, "the file of a deleted segment is not used again");
            None
        })
    }

    /// Frees a deleted segment that was read until now. `true`: there was one, and there may be more.
    pub(super) fn free_unused_segment(&self) -> bool {
        let is_any_gone = self.spares.free_unused();
        if is_any_gone {
            self.space_came_back();
        }
        is_any_gone
    }

    /// Tells who waits for room on the disk.
    pub(super) fn space_came_back(&self) {
        self.allocate_signal.wake();
        self.space.notify_waiters();
    }

    pub(super) fn unlink_spare(&self, spare: &Spare) -> Result<(), FileError> {
        spare.unlink(&*self.disk, &self.config.dir.join(FileKind::Segment.directory()))
    }

    /// While space is short, files that are kept for later are unlinked. `true`: some were.
    pub(super) fn give_up_spares(&self) -> bool {
        self.space_is_wanted() && self.unlink_spares()
    }

    /// Unlinks the files that are kept for later; those that stay are tried again. `true`: some are gone.
    pub(super) fn unlink_spares(&self) -> bool {
        let (mut stay, mut is_any_gone) = (Vec::new(), false);
        while let Some(spare) = self.spares.take() {
            match self.unlink_spare(&spare) {
                Ok(()) | Err(FileError::NotFound { .. }) => is_any_gone = true,
                Err(error) => {
                    tracing::warn!(%error, "a file that is kept for the next segment stays");
                    stay.push(spare);
                }
            }
        }
        self.spares.keep(stay);
        if is_any_gone {
            // Where that fails, the next start removes what is there again.
            if let Err(error) =
                self.disk.sync_dir(&self.config.dir.join(FileKind::Segment.directory()))
            {
                tracing::warn!(%error, "files that were unlinked may be there again after a power cut");
            }
            self.allocate_signal.wake();
        }
        is_any_gone
    }
}
