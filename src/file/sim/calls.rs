//! The calls of the disk door, on the simulated disk.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::node::{Change, Data, Image, Node};
use super::{NameChange, SimDisk, Verdict};
use crate::file::disk::{Access, DirEntry, DirLock, Disk, DiskFile, MAX_BUFFERS};
use crate::file::mapping::Mapping;
use crate::file::{FileError, Operation};

impl Disk for SimDisk {
    fn create_dir(&self, path: &Path) -> Result<(), FileError> {
        let mut state = self.state();
        state.begin(Operation::CreateDir, path).whole()?;
        if let Some(parent) = path.parent() {
            state.sync_names(parent)?;
        }
        state.dirs.entry(path.to_path_buf()).or_default();
        Ok(())
    }

    fn list(&self, path: &Path) -> Result<Vec<DirEntry>, FileError> {
        let mut state = self.state();
        state.begin(Operation::List, path).whole()?;
        let dir = state.dirs.get(path);
        let dir = dir.ok_or_else(|| FileError::NotFound { path: path.to_path_buf() })?;
        let entries = dir.names.iter();
        Ok(entries
            .map(|(name, node)| DirEntry { name: name.clone(), len: node.lock().content.len() })
            .collect())
    }

    fn create(&self, path: &Path) -> Result<Arc<dyn DiskFile>, FileError> {
        let mut state = self.state();
        state.begin(Operation::Create, path).whole()?;
        let order = state.order();
        let (dir, name) = state.dir_of(path)?;
        let node = if let Some(node) = dir.names.get(&name).cloned() {
            node.lock().change(order, Change::Empty);
            node
        } else {
            let node = Node::new(order, Image::default());
            state.change_name(path, NameChange::Create { name, node: Arc::clone(&node) })?;
            node
        };
        Ok(self.file(path, node, Access::ReadWrite))
    }

    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn DiskFile>, FileError> {
        let mut state = self.state();
        state.begin(Operation::Open, path).whole()?;
        let node = state.node(path)?;
        Ok(self.file(path, node, access))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError> {
        let mut state = self.state();
        state.begin(Operation::Rename, from).whole()?;
        if from.parent() != to.parent() {
            return Err(FileError::refused(Operation::Rename, from, Errno::XDEV));
        }
        let node = state.node(from)?;
        let (_, from_name) = state.dir_of(from)?;
        let (_, to_name) = state.dir_of(to)?;
        state.change_name(to, NameChange::Rename { from: from_name, to: to_name, node })
    }

    fn unlink(&self, path: &Path) -> Result<(), FileError> {
        let mut state = self.state();
        state.begin(Operation::Unlink, path).whole()?;
        state.node(path)?;
        let (_, name) = state.dir_of(path)?;
        state.change_name(path, NameChange::Unlink { name })
    }

    fn sync_dir(&self, path: &Path) -> Result<(), FileError> {
        let mut state = self.state();
        state.begin(Operation::SyncDir, path).whole()?;
        state.sync_names(path)
    }

    /// The same bytes on every simulated disk, so that a test can be repeated.
    fn fill_random(&self, bytes: &mut [u8]) -> Result<(), FileError> {
        let mut seed = 0x9E37_79B9_7F4A_7C15_u64 ^ bytes.len() as u64;
        for byte in bytes {
            seed = seed.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            *byte = (seed >> 56) as u8;
        }
        Ok(())
    }

    fn free_space(&self, path: &Path) -> Result<u64, FileError> {
        let mut state = self.state();
        state.begin(Operation::FreeSpace, path).whole()?;
        Ok(state.free())
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn DirLock>, FileError> {
        let mut state = self.state();
        state.begin(Operation::Lock, path).whole()?;
        let order = state.order();
        let (dir, name) = state.dir_of(path)?;
        if !dir.names.contains_key(&name) {
            let node = Node::new(order, Image::default());
            dir.names.insert(name.clone(), Arc::clone(&node));
            dir.durable.insert(name, node);
        }
        if !state.locked.insert(path.to_path_buf()) {
            return Err(FileError::Locked { path: path.to_path_buf() });
        }
        Ok(Box::new(SimLock { disk: self.clone(), path: path.to_path_buf() }))
    }
}

impl SimDisk {
    fn file(&self, path: &Path, node: Arc<Node>, access: Access) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { disk: self.clone(), path: path.into(), node, access })
    }
}

struct SimLock {
    disk: SimDisk,
    path: PathBuf,
}

impl DirLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.state().locked.remove(&self.path);
    }
}

struct SimFile {
    disk: SimDisk,
    path: Arc<Path>,
    node: Arc<Node>,
    access: Access,
}

impl SimFile {
    fn refused(&self, operation: Operation, errno: Errno) -> FileError {
        FileError::refused(operation, &self.path, errno)
    }

    fn check_writable(&self, operation: Operation) -> Result<(), FileError> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::Read => Err(self.refused(operation, Errno::BADF)),
        }
    }
}

impl DiskFile for SimFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> Result<u64, FileError> {
        let mut state = self.disk.state();
        state.begin(Operation::Len, &self.path).whole()?;
        Ok(self.node.lock().content.len())
    }

    /// The simulated disk has no call that gives a file a second name.
    fn links(&self) -> Result<u64, FileError> {
        let mut state = self.disk.state();
        state.begin(Operation::Len, &self.path).whole()?;
        Ok(1)
    }

    fn allocate(&self, len: u64) -> Result<(), FileError> {
        self.check_writable(Operation::Allocate)?;
        let mut state = self.disk.state();
        state.begin(Operation::Allocate, &self.path).whole()?;
        let growth = len.saturating_sub(self.node.lock().content.len());
        if growth == 0 {
            return Ok(());
        }
        if growth > state.free() {
            return Err(self.refused(Operation::Allocate, Errno::NOSPC));
        }
        let order = state.order();
        self.node.lock().change(order, Change::Extend { len });
        Ok(())
    }

    fn write_at(&self, buffers: &[IoSlice<'_>], position: u64) -> Result<usize, FileError> {
        self.check_writable(Operation::Write)?;
        let buffers = &buffers[..buffers.len().min(MAX_BUFFERS)];
        let mut state = self.disk.state();
        let (max, power_off) = match state.begin(Operation::Write, &self.path) {
            Verdict::Go => (usize::MAX, None),
            Verdict::Short(max) => (max, None),
            Verdict::Last(max) => (max, Some(self.refused(Operation::Write, Errno::NODEV))),
            Verdict::Fail(error) | Verdict::PowerOff(error) => return Err(error),
        };
        let wanted = buffers.iter().map(|buffer| buffer.len()).sum::<usize>().min(max);
        let len = self.node.lock().content.len();
        let growth = position.saturating_add(wanted as u64).saturating_sub(len);
        // As much as fits, as the kernel does.
        let missing = if growth == 0 { 0 } else { growth.saturating_sub(state.free()) };
        let count = (wanted as u64).saturating_sub(missing) as usize;
        if count == 0 && wanted > 0 {
            return Err(self.refused(Operation::Write, Errno::NOSPC));
        }
        if count > 0 {
            let change = Change::Write { at: position, data: Data::gather(buffers, count) };
            let order = state.order();
            let held_back = self.node.lock().change(order, change);
            state.rewritten += u64::from(held_back);
        }
        power_off.map_or(Ok(count), Err)
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> Result<usize, FileError> {
        let mut state = self.disk.state();
        state.begin(Operation::Read, &self.path).whole()?;
        Ok(self.node.lock().content.read(position, buffer))
    }

    /// Memory needs no power of the disk.
    fn read_fresh_at(&self, buffer: &mut [u8], position: u64) -> Result<usize, FileError> {
        let mut state = self.disk.state();
        match state.begin(Operation::ReadFresh, &self.path) {
            Verdict::PowerOff(_) => {}
            verdict => verdict.whole()?,
        }
        Ok(self.node.lock().content.read(position, buffer))
    }

    fn sync(&self) -> Result<(), FileError> {
        let mut state = self.disk.state();
        match state.begin(Operation::Sync, &self.path) {
            Verdict::Fail(error) => {
                self.node.lock().fail_sync();
                Err(error)
            }
            verdict => {
                verdict.whole()?;
                self.node.lock().sync();
                Ok(())
            }
        }
    }

    /// Of the whole file, whatever the range: more than was asked for is what the kernel may do as well.
    fn drop_cache(&self, _range: Range<u64>) -> Result<(), FileError> {
        let mut state = self.disk.state();
        state.begin(Operation::DropCache, &self.path).whole()?;
        self.node.lock().drop_cache();
        Ok(())
    }

    fn map(&self, len: u64) -> Result<Mapping, FileError> {
        let mut state = self.disk.state();
        state.begin(Operation::Map, &self.path).whole()?;
        let mut contents = self.node.lock();
        if contents.content.len() < len {
            return Err(FileError::TooShort { path: self.path.to_path_buf(), end: len });
        }
        if usize::try_from(len).is_err() {
            let cause = io::ErrorKind::InvalidInput.into();
            return Err(FileError::Io {
                operation: Operation::Map,
                path: self.path.to_path_buf(),
                cause,
            });
        }
        Ok(Mapping::of_twin(contents.twin(len)))
    }
}
