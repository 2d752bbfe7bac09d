//! What a start finds in the data directory: segments, identity, the newest state.

use std::path::PathBuf;

use super::{MAX_SNAPSHOT, StartReport};
use crate::file::FileError;
use crate::file::disk::{Access, Disk, read_exact_at, read_file, write_file_atomically};
use crate::file::segment::Segment;
use crate::format::DecodeError;
use crate::format::checkpoint::Checkpoint;
use crate::format::identity::{self, Identity};
use crate::format::names::{self, FileKind};
use crate::format::record::ALIGN;
use crate::format::segment_header::{PAGE_LEN, SegmentHeader};
use crate::format::snapshot::Snapshot;
use crate::log::commit_log::CommitLog;
use crate::message::PhysicalOffset;
use crate::store::{MAX_UNSEALED, OpenError, StoreConfig, image};
use crate::sync::Arc;

/// A segment file by its name.
pub(super) struct FoundSegment {
    path: PathBuf,
    base: PhysicalOffset,
    len: u64,
}

pub(super) fn found_segments(
    disk: &dyn Disk,
    config: &StoreConfig,
) -> Result<Vec<FoundSegment>, OpenError> {
    let dir = config.dir.join(FileKind::Segment.directory());
    let mut found = Vec::new();
    for entry in disk.list(&dir)? {
        let path = dir.join(&entry.name);
        match FileKind::Segment.parse(&entry.name) {
            // A file with a final name was whole when it got it; a shorter one was damaged since.
            // Records end at multiples of their alignment, and so do segments.
            Some(base) if entry.len > PAGE_LEN as u64 => {
                found.push(FoundSegment { path, base, len: entry.len - entry.len % ALIGN });
            }
            Some(_) => tracing::warn!(file = %path.display(), "segment without content is ignored"),
            None if names::parse_temporary(&entry.name).is_some() => disk.unlink(&path)?,
            None => tracing::warn!(file = %path.display(), "not a segment, ignored"),
        }
    }
    found.sort_by_key(|segment| segment.base);
    for pair in found.windows(2) {
        if let [before, after] = pair
            && before.base.plus(before.len) > after.base
        {
            return Err(OpenError::Overlap { path: after.path.clone() });
        }
    }
    Ok(found)
}

pub(super) fn load_identity(
    disk: &dyn Disk,
    config: &StoreConfig,
    log_is_empty: bool,
    report: &mut StartReport,
) -> Result<Identity, OpenError> {
    let dir = &config.dir;
    let read = |name: &str| -> Result<Option<Identity>, OpenError> {
        let path = dir.join(name);
        match read_file(disk, &path, identity::LEN as u64) {
            Ok(bytes) => match Identity::decode(&bytes) {
                Ok(identity) => Ok(Some(identity)),
                Err(DecodeError::UnsupportedVersion { found, supported, .. }) => {
                    Err(OpenError::Newer { path, found, supported })
                }
                Err(_) => Ok(None),
            },
            Err(
                FileError::NotFound { .. } | FileError::TooShort { .. } | FileError::TooLong { .. },
            ) => Ok(None),
            Err(error) => Err(error.into()),
        }
    };
    let write = |name: &str, identity: &Identity| {
        write_file_atomically(disk, dir, name, &identity.encode())
    };
    match (read(names::IDENTITY)?, read(names::IDENTITY_COPY)?) {
        (Some(identity), Some(_)) => Ok(identity),
        (Some(identity), None) => {
            report.remarks.push("the copy of the identity was missing or damaged: restored".into());
            write(names::IDENTITY_COPY, &identity)?;
            Ok(identity)
        }
        (None, Some(identity)) => {
            report.remarks.push("the identity was missing or damaged: restored".into());
            write(names::IDENTITY, &identity)?;
            Ok(identity)
        }
        (None, None) if log_is_empty => {
            let identity = new_identity(disk)?;
            write(names::IDENTITY, &identity)?;
            write(names::IDENTITY_COPY, &identity)?;
            report.created = true;
            report.remarks.clear();
            Ok(identity)
        }
        (None, None) => Err(OpenError::Identity { path: dir.join(names::IDENTITY) }),
    }
}

fn new_identity(disk: &dyn Disk) -> Result<Identity, FileError> {
    let mut identity =
        Identity { store_id: [0; 16], broker_id: 0, salt_secret: 0, handle_key: [0; 32] };
    let (mut broker_id, mut salt_secret) = ([0; 8], [0; 8]);
    disk.fill_random(&mut identity.store_id)?;
    disk.fill_random(&mut broker_id)?;
    disk.fill_random(&mut salt_secret)?;
    disk.fill_random(&mut identity.handle_key)?;
    identity.broker_id = u64::from_le_bytes(broker_id);
    identity.salt_secret = u64::from_le_bytes(salt_secret);
    Ok(identity)
}

pub(super) fn open_segments(
    disk: &dyn Disk,
    found: &[FoundSegment],
    identity: &Identity,
    report: &mut StartReport,
) -> Result<Vec<Arc<Segment>>, OpenError> {
    let mut segments = Vec::with_capacity(found.len());
    for file in found {
        let handle = disk.open(&file.path, Access::Read)?;
        let mut page = [0; PAGE_LEN];
        let header = match read_exact_at(&*handle, &mut page, 0) {
            Ok(()) => SegmentHeader::decode(&page),
            // An unreadable page is redundant as a damaged one is.
            Err(_) => Err(DecodeError::TooShort { needed: PAGE_LEN as u64, found: 0 }),
        };
        match header {
            Ok(header) if header.store_id != identity.store_id => {
                return Err(OpenError::Foreign { path: file.path.clone() });
            }
            Ok(header) if header.base == file.base && header.len == file.len => {}
            Err(DecodeError::UnsupportedVersion { found, supported, .. }) => {
                return Err(OpenError::Newer { path: file.path.clone(), found, supported });
            }
            // The page is redundant: name, size and identity say the same.
            Ok(_) | Err(_) => report.remarks.push(format!(
                "header page of {} is damaged; file name, size and identity stand in for it",
                file.path.display()
            )),
        }
        segments.push(Arc::new(Segment::open(disk, &file.path, file.base, file.len)?));
    }
    Ok(segments)
}

/// The newest sound snapshot that does not reach beyond the log. Names in `void` those above it that do.
pub(super) fn newest_snapshot(
    disk: &dyn Disk,
    config: &StoreConfig,
    log_end: PhysicalOffset,
    report: &mut StartReport,
    void: &mut Vec<String>,
) -> Result<Option<Snapshot>, OpenError> {
    let dir = config.dir.join(FileKind::Snapshot.directory());
    for entry in disk.list(&dir)?.iter().rev() {
        if FileKind::Snapshot.parse(&entry.name).is_none() {
            continue;
        }
        let decoded = match read_file(disk, &dir.join(&entry.name), MAX_SNAPSHOT) {
            Ok(bytes) => Snapshot::decode(&bytes),
            Err(_) => Err(DecodeError::TooShort { needed: 1, found: 0 }),
        };
        match decoded {
            Ok(snapshot) if snapshot.reach <= log_end => return Ok(Some(snapshot)),
            Ok(_) => {
                void.push(entry.name.clone());
                report
                    .remarks
                    .push(format!("snapshot {} reaches beyond the log: set aside", entry.name));
            }
            Err(error) => report.remarks.push(format!("snapshot {}: {error}: ignored", entry.name)),
        }
    }
    Ok(None)
}

/// Moves snapshots that reach beyond the log to `quarantine/`. The log grows, and one day they would be taken for its
/// own; until then they would stand for the newest.
pub(super) fn set_aside(
    disk: &dyn Disk,
    config: &StoreConfig,
    void: &[String],
    report: &mut StartReport,
) -> Result<(), OpenError> {
    let dir = config.dir.join(FileKind::Snapshot.directory());
    for name in void {
        let aside = config.dir.join(names::QUARANTINE_DIR);
        let kept = read_file(disk, &dir.join(name), MAX_SNAPSHOT)
            .and_then(|bytes| write_file_atomically(disk, &aside, name, &bytes));
        // Nothing of this log is in it: that keeps no store from starting.
        if let Err(error) = kept {
            report.remarks.push(format!("snapshot {name} was not kept: {error}"));
        }
        disk.unlink(&dir.join(name))?;
    }
    if !void.is_empty() {
        disk.sync_dir(&dir)?;
    }
    Ok(())
}

/// What the walk starts from: the newest snapshot, unless segments that it needs are gone; then the newest image. Also
/// where the newest image begins that is known, if it is not known to be unreadable.
pub(super) fn start_state(
    log: &CommitLog,
    snapshot: Option<Snapshot>,
    checkpoint: Option<&Checkpoint>,
    report: &mut StartReport,
) -> Result<(Option<Snapshot>, Option<PhysicalOffset>), OpenError> {
    let known = checkpoint.and_then(|checkpoint| checkpoint.newest_image);
    let from = snapshot.as_ref().map_or(PhysicalOffset::ZERO, |snapshot| snapshot.offset);
    let segments = log.segments();
    let mut expected = from;
    let is_whole = segments.iter().filter(|segment| segment.end() > from).all(|segment| {
        let follows = segment.base() <= expected;
        expected = segment.end();
        follows
    });
    // Without a snapshot an image also spares the walk over all that came before it, if that is much. Less may not be
    // sealed yet, and on a full disk only the walk finds what is in it.
    let is_much = known.is_some_and(|begin| {
        segments.iter().filter(|segment| segment.end() <= begin).count() > MAX_UNSEALED
    });
    if is_whole && (snapshot.is_some() || !is_much) {
        return Ok((snapshot, known));
    }
    match image::newest(log, checkpoint)? {
        Some(image) if image.offset >= from => {
            report.remarks.push(format!("state restored from the image at {}", image.offset));
            let begin = image.offset;
            Ok((Some(image), Some(begin)))
        }
        // What cannot be read makes nothing safe.
        older => Ok((snapshot, older.map(|image| image.offset))),
    }
}
