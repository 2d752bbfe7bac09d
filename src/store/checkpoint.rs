//! The checkpoint file: two slots, written in turn, so that a torn write leaves the other one.

use std::path::Path;
use std::sync::Arc;

use crate::file::FileError;
use crate::file::disk::{Access, Disk, DiskFile, read_file, write_all_at, write_file_atomically};
use crate::format::checkpoint::{Checkpoint, SLOT_LEN, newest};
use crate::format::names::CHECKPOINT;
use crate::message::{Epoch, PhysicalOffset};

/// The open checkpoint file. One writer: the flush worker.
pub(super) struct CheckpointFile {
    file: Arc<dyn DiskFile>,
    /// Of the newest slot.
    sequence: u64,
}

impl CheckpointFile {
    /// The newest checkpoint in `dir`, if there is a sound one.
    pub(super) fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Checkpoint>, FileError> {
        match read_file(disk, &dir.join(CHECKPOINT), 2 * SLOT_LEN as u64) {
            Ok(bytes) => Ok(newest(&bytes)),
            Err(FileError::NotFound { .. } | FileError::TooLong { .. }) => Ok(None),
            // Not passed over: what it vouches for would be taken for a torn tail where the log cannot be read either.
            Err(error) => Err(error),
        }
    }

    /// Opens the file for writing, made anew with empty slots if it is missing or of another size.
    pub(super) fn open(
        disk: &dyn Disk,
        dir: &Path,
        newest: Option<&Checkpoint>,
    ) -> Result<Self, FileError> {
        let path = dir.join(CHECKPOINT);
        let sound = match disk.open(&path, Access::ReadWrite) {
            Ok(file) => (file.len()? == 2 * SLOT_LEN as u64).then_some(file),
            Err(FileError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        let file = match sound {
            Some(file) => file,
            None => {
                write_file_atomically(disk, dir, CHECKPOINT, &[0; 2 * SLOT_LEN])?;
                disk.open(&path, Access::ReadWrite)?
            }
        };
        Ok(Self { file, sequence: newest.map_or(0, |checkpoint| checkpoint.sequence) })
    }

    /// Writes the older slot and syncs it. `flushed` must be durable already.
    pub(super) fn write(
        &mut self,
        flushed: PhysicalOffset,
        epoch: Epoch,
        sealed_end: PhysicalOffset,
        newest_image: Option<PhysicalOffset>,
        clean: bool,
    ) -> Result<(), FileError> {
        let checkpoint = Checkpoint {
            sequence: self.sequence + 1,
            flushed,
            epoch,
            sealed_end,
            newest_image,
            clean,
        };
        let position = checkpoint.position();
        write_all_at(&*self.file, &checkpoint.encode(), position)?;
        self.file.sync()?;
        // Only now: after an error the same slot is tried again, the other one stays whole.
        self.sequence = checkpoint.sequence;
        Ok(())
    }
}
