//! The simulated disk: what a power cut, a failing device or a full one leaves behind, without a device.
//!
//! It keeps files in memory. Every change shows at once, as in a page cache, and becomes durable by a sync alone:
//!
//! | change                                  | durable with                                             |
//! | --------------------------------------- | -------------------------------------------------------- |
//! | written bytes, reserved blocks (length) | `sync` of the file                                       |
//! | create, rename, unlink                  | `sync_dir`, which takes all earlier ones of the directory |
//! | a directory                             | at once, with its parent's names (`create_dir` syncs it) |
//! | the lock file's name                    | at once                                                  |
//!
//! A file's sync does not sync its name. [`SimDisk::crash_image`] is the disk after a power cut *now*, for one choice
//! of what landed; [`SimDisk::crash_at`] stops everything before a numbered operation, so that a test runs one script
//! up to each of its operations. [`SimDisk::fail`] makes calls fail. Everything is deterministic: the same calls and
//! choices give the same bytes.
//!
//! A mapping follows writes only above its published end. Where the simulated device brings back old bytes
//! (`drop_cache` after a failed sync, decay), a living mapping keeps what it published, as a page in use does.
//!
//! One lock guards all; it is held during each call, so calls of several threads are in some order.

mod calls;
mod crash;
mod node;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use crash::{CrashChoice, NameChoice, PendingCounts, Torn, WriteChoice};
use node::Node;
use rustix::io::Errno;

use super::{FileError, Operation};
use crate::sync::{Mutex, MutexGuard, lock};

/// A disk in memory. Clones are the same disk. Starts with the directory `/` and the working directory.
#[derive(Clone)]
pub struct SimDisk {
    shared: Arc<Mutex<State>>,
}

/// A failure to inject: from the `nth` matching call on, `times`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultRule {
    /// Of which calls.
    pub operation: Operation,
    /// Only where the path contains this.
    pub path_contains: Option<String>,
    /// The first matching call that fails, counted from 1 when the rule is set.
    pub nth: u64,
    /// How many calls fail.
    pub times: Times,
    /// How they fail.
    pub error: Fault,
}

/// How often a rule fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// One call.
    Once,
    /// So many calls in a row.
    Count(u64),
    /// Every call from then on.
    Always,
}

/// What goes wrong. A failed call changes nothing, except a failed sync: the pending writes of the file are thrown
/// away as the kernel does, marked clean and not durable, so that later syncs succeed, reads show the new bytes until
/// `drop_cache`, and then the old ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No space left on the device.
    Enospc,
    /// Input/output error.
    Eio,
    /// The file system went read-only.
    Erofs,
    /// Not an error: a write takes at most so many bytes (at least 1). For `Operation::Write` alone.
    ShortWrite(usize),
}

struct State {
    dirs: BTreeMap<PathBuf, Dir>,
    /// Numbers files, name operations and changes.
    next: u64,
    journal: Vec<(Operation, Arc<Path>)>,
    calls: HashMap<Operation, u64>,
    power: Power,
    rules: Vec<ActiveRule>,
    capacity: Option<u64>,
    locked: BTreeSet<PathBuf>,
    rewritten: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Power {
    On,
    /// Goes off at this operation, of which the first `inside` bytes still take effect if it is a write.
    OffAt {
        operation: u64,
        inside: usize,
    },
    Off,
}

struct ActiveRule {
    rule: FaultRule,
    seen: u64,
}

/// Names of one directory.
#[derive(Default)]
struct Dir {
    names: BTreeMap<String, Arc<Node>>,
    durable: BTreeMap<String, Arc<Node>>,
    pending: Vec<PendingName>,
}

struct PendingName {
    order: u64,
    change: NameChange,
}

enum NameChange {
    Create { name: String, node: Arc<Node> },
    Rename { from: String, to: String, node: Arc<Node> },
    Unlink { name: String },
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, Arc<Node>>) {
        match self {
            Self::Create { name, node } => {
                names.insert(name.clone(), Arc::clone(node));
            }
            Self::Rename { from, to, node } => {
                // If the name that was moved away did not land, it does not take another file with it.
                if names.get(from).is_some_and(|there| there.id == node.id) {
                    names.remove(from);
                }
                names.insert(to.clone(), Arc::clone(node));
            }
            Self::Unlink { name } => {
                names.remove(name);
            }
        }
    }
}

/// How a call goes on.
enum Verdict {
    Go,
    /// A write takes at most so many bytes.
    Short(usize),
    /// A write takes at most so many bytes, and then the power is off.
    Last(usize),
    /// The device fails the call.
    Fail(FileError),
    /// The call never happens.
    PowerOff(FileError),
}

impl Verdict {
    /// For calls that happen wholly or not at all.
    fn whole(self) -> Result<(), FileError> {
        match self {
            Self::Go | Self::Short(_) | Self::Last(_) => Ok(()),
            Self::Fail(error) | Self::PowerOff(error) => Err(error),
        }
    }
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        let dirs = ["/", ""].map(|path| (PathBuf::from(path), Dir::default()));
        Self::with(BTreeMap::from(dirs), 0, None)
    }

    fn with(dirs: BTreeMap<PathBuf, Dir>, next: u64, capacity: Option<u64>) -> Self {
        let state = State {
            dirs,
            next,
            journal: Vec::new(),
            calls: HashMap::new(),
            power: Power::On,
            rules: Vec::new(),
            capacity,
            locked: BTreeSet::new(),
            rewritten: 0,
        };
        Self { shared: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared)
    }

    // ---- power cuts

    /// A new disk: what a power cut now leaves if `choice` landed. It has nothing pending, no faults, no lock and no
    /// operations, and the same capacity. This disk goes on unchanged.
    pub fn crash_image(&self, choice: &CrashChoice) -> Self {
        let state = self.state();
        Self::with(crash::image(&state.dirs, choice), state.next, state.capacity)
    }

    /// How much `crash_image` can choose from.
    pub fn pending_counts(&self) -> PendingCounts {
        crash::counts(&self.state().dirs)
    }

    /// The power goes off when `operation` changing calls have been made since the disk exists: those take effect,
    /// the next one and all calls behind it fail without an effect. See [`SimDisk::operations`].
    pub fn crash_at(&self, operation: u64) {
        self.crash_inside(operation, 0);
    }

    /// As `crash_at`, but if the call at which the power goes off is a write, its first `bytes` bytes take effect.
    pub fn crash_inside(&self, operation: u64, bytes: usize) {
        self.state().power = Power::OffAt { operation, inside: bytes };
    }

    /// Whether the power went off.
    pub fn is_off(&self) -> bool {
        self.state().power == Power::Off
    }

    // ---- what was called

    /// Calls so far that change something: create_dir, create, allocate, write, sync, rename, unlink, sync_dir. Failed
    /// ones count.
    pub fn operations(&self) -> u64 {
        self.state().journal.len() as u64
    }

    /// Those calls, in order.
    pub fn journal(&self) -> Vec<(Operation, PathBuf)> {
        let state = self.state();
        state.journal.iter().map(|(operation, path)| (*operation, path.to_path_buf())).collect()
    }

    /// How often `operation` was called, failed calls included.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.state().calls.get(&operation).copied().unwrap_or(0)
    }

    /// Writes that went below the published end of a living mapping. Anything but 0 is a bug of the store.
    pub fn rewritten_under_readers(&self) -> u64 {
        self.state().rewritten
    }

    // ---- faults

    /// Adds a rule. Of several that match a call, the one added first is used, all count it.
    pub fn fail(&self, rule: FaultRule) {
        self.state().rules.push(ActiveRule { rule, seen: 0 });
    }

    /// Removes all rules.
    pub fn clear_faults(&self) {
        self.state().rules.clear();
    }

    /// Bytes that all named files together may have; `None` is without limit.
    pub fn set_capacity(&self, capacity: Option<u64>) {
        self.state().capacity = capacity;
    }

    // ---- decay: behind the store's back, durable at once; not counted as operations

    /// Flips bits of one byte, both in what is read and in what is durable. Pending writes still land over it.
    pub fn corrupt(&self, path: &Path, position: u64, xor: u8) -> Result<(), FileError> {
        let mut byte = [0];
        self.node_in(path, position, 1)?.lock().content.read(position, &mut byte);
        self.overwrite(path, position, &[byte[0] ^ xor])
    }

    /// Puts bytes into a file, both in what is read and in what is durable.
    pub fn overwrite(&self, path: &Path, position: u64, bytes: &[u8]) -> Result<(), FileError> {
        let node = self.node_in(path, position, bytes.len() as u64)?;
        node.lock().decay(|image| image.write(position, bytes));
        Ok(())
    }

    /// Cuts a file, or extends it with zeros. Not under a mapping.
    pub fn truncate(&self, path: &Path, len: u64) -> Result<(), FileError> {
        self.state().node(path)?.lock().decay(|image| image.cut(len));
        Ok(())
    }

    /// Removes a name. What was pending of its directory's names is durable then.
    pub fn remove(&self, path: &Path) -> Result<(), FileError> {
        let mut state = self.state();
        state.node(path)?;
        if let Some(parent) = path.parent() {
            state.sync_names(parent)?;
        }
        let (dir, name) = state.dir_of(path)?;
        dir.names.remove(&name);
        dir.durable.remove(&name);
        Ok(())
    }

    /// Drops the cached clean pages of all files.
    pub fn drop_caches(&self) {
        for dir in self.state().dirs.values() {
            dir.names.values().for_each(|node| node.lock().drop_cache());
        }
    }

    /// All files by their present names, sorted.
    pub fn paths(&self) -> Vec<PathBuf> {
        let state = self.state();
        let paths =
            state.dirs.iter().flat_map(|(path, dir)| dir.names.keys().map(|n| path.join(n)));
        paths.collect()
    }

    /// What of the file at `path` would survive if nothing pending landed but its name.
    pub fn durable_bytes(&self, path: &Path) -> Result<Vec<u8>, FileError> {
        Ok(self.state().node(path)?.lock().durable.to_vec())
    }

    /// The file at `path`, which reaches beyond the range.
    fn node_in(&self, path: &Path, position: u64, len: u64) -> Result<Arc<Node>, FileError> {
        let node = self.state().node(path)?;
        let end = position.saturating_add(len);
        if node.lock().content.len() < end {
            return Err(FileError::TooShort { path: path.to_path_buf(), end });
        }
        Ok(node)
    }
}

impl State {
    /// Counts a call, and says how it goes on.
    fn begin(&mut self, operation: Operation, path: &Path) -> Verdict {
        let failure = |errno| FileError::refused(operation, path, errno);
        *self.calls.entry(operation).or_default() += 1;
        let mut last = None;
        match self.power {
            Power::On => {}
            // An error that no device gives: the store must not draw conclusions from it.
            Power::Off => return Verdict::PowerOff(failure(Errno::NODEV)),
            Power::OffAt { operation: at, inside } => {
                if changes(operation) && self.journal.len() as u64 >= at {
                    self.power = Power::Off;
                    if operation != Operation::Write || inside == 0 {
                        self.journal.push((operation, path.into()));
                        return Verdict::PowerOff(failure(Errno::NODEV));
                    }
                    last = Some(inside);
                }
            }
        }
        if changes(operation) {
            self.journal.push((operation, path.into()));
        }
        if let Some(inside) = last {
            return Verdict::Last(inside);
        }
        let mut verdict = Verdict::Go;
        for active in &mut self.rules {
            let Some(fault) = active.meets(operation, path) else { continue };
            if !matches!(verdict, Verdict::Go) {
                continue;
            }
            verdict = match fault {
                Fault::Enospc => Verdict::Fail(failure(Errno::NOSPC)),
                Fault::Eio => Verdict::Fail(failure(Errno::IO)),
                Fault::Erofs => Verdict::Fail(failure(Errno::ROFS)),
                Fault::ShortWrite(max) => Verdict::Short(max.max(1)),
            };
        }
        verdict
    }

    fn order(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The directory of `path`, and the name in it.
    fn dir_of(&mut self, path: &Path) -> Result<(&mut Dir, String), FileError> {
        let not_found = || FileError::NotFound { path: path.to_path_buf() };
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(not_found)?;
        let parent = path.parent().ok_or_else(not_found)?;
        let dir = self.dirs.get_mut(parent).ok_or_else(not_found)?;
        Ok((dir, name.to_owned()))
    }

    fn node(&mut self, path: &Path) -> Result<Arc<Node>, FileError> {
        let (dir, name) = self.dir_of(path)?;
        let node = dir.names.get(&name);
        node.cloned().ok_or_else(|| FileError::NotFound { path: path.to_path_buf() })
    }

    /// Makes a name change, pending until `sync_dir`.
    fn change_name(&mut self, path: &Path, change: NameChange) -> Result<(), FileError> {
        let order = self.order();
        let (dir, _) = self.dir_of(path)?;
        change.apply(&mut dir.names);
        dir.pending.push(PendingName { order, change });
        Ok(())
    }

    fn sync_names(&mut self, path: &Path) -> Result<(), FileError> {
        let dir = self.dirs.get_mut(path);
        let dir = dir.ok_or_else(|| FileError::NotFound { path: path.to_path_buf() })?;
        for pending in dir.pending.drain(..) {
            pending.change.apply(&mut dir.durable);
        }
        Ok(())
    }

    /// Bytes that files may still grow by.
    fn free(&self) -> u64 {
        /// What a disk without a limit answers: more than anything asks for, without overflow in sums.
        const PLENTY: u64 = 1 << 50;
        let Some(capacity) = self.capacity else { return PLENTY };
        let nodes = self.dirs.values().flat_map(|dir| dir.names.values());
        let used: u64 = nodes.map(|node| node.lock().content.len()).sum();
        capacity.saturating_sub(used)
    }
}

/// Whether a call of this kind is numbered.
fn changes(operation: Operation) -> bool {
    use Operation as O;
    match operation {
        O::CreateDir
        | O::Create
        | O::Allocate
        | O::Write
        | O::Sync
        | O::Rename
        | O::Unlink
        | O::SyncDir => true,
        O::List
        | O::Open
        | O::Len
        | O::Read
        | O::ReadFresh
        | O::DropCache
        | O::Map
        | O::Random
        | O::FreeSpace
        | O::Lock => false,
    }
}

impl ActiveRule {
    /// Counts the call if it matches, and tells if the rule fires.
    fn meets(&mut self, operation: Operation, path: &Path) -> Option<Fault> {
        let rule = &self.rule;
        let path_matches = |part: &String| path.to_string_lossy().contains(part.as_str());
        if rule.operation != operation || !rule.path_contains.as_ref().is_none_or(path_matches) {
            return None;
        }
        self.seen += 1;
        let end = match rule.times {
            Times::Once => rule.nth.saturating_add(1),
            Times::Count(count) => rule.nth.saturating_add(count),
            Times::Always => u64::MAX,
        };
        (rule.nth..end).contains(&self.seen).then_some(rule.error)
    }
}
