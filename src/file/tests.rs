//! The same behaviours on both disks, and what only the simulated one can show.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::*;
use super::segment::{Prefill, Segment};
use super::sim::*;
use super::{FileError, Operation};
use crate::format::names::FileKind;
use crate::format::segment_header::{PAGE_LEN, SegmentHeader};
use crate::message::PhysicalOffset;

/// Runs `check` on a real disk and on a simulated one, in a directory that exists.
fn on_both(check: impl Fn(&dyn Disk, &Path)) {
    let dir = tempfile::tempdir().unwrap();
    check(&RealDisk, dir.path());
    let (disk, dir) = sim();
    check(&disk, &dir);
}

fn sim() -> (SimDisk, PathBuf) {
    let disk = SimDisk::new();
    let dir = PathBuf::from("/data");
    disk.create_dir(&dir).unwrap();
    (disk, dir)
}

/// A file with a durable name and these durable contents.
fn durable_file(disk: &SimDisk, path: &Path, bytes: &[u8]) -> Arc<dyn DiskFile> {
    let file = disk.create(path).unwrap();
    write_all_at(&*file, bytes, 0).unwrap();
    file.sync().unwrap();
    disk.sync_dir(path.parent().unwrap()).unwrap();
    file
}

fn read(disk: &dyn Disk, path: &Path) -> Vec<u8> {
    read_file(disk, path, 1 << 20).unwrap()
}

fn rule(operation: Operation, error: Fault) -> FaultRule {
    FaultRule { operation, path_contains: None, nth: 1, times: Times::Once, error }
}

fn crash(names: NameChoice, writes: WriteChoice) -> CrashChoice {
    CrashChoice { names, writes, torn: None }
}

fn header(base: u64, len: u64) -> SegmentHeader {
    SegmentHeader { store_id: [7; 16], base: PhysicalOffset::new(base), len, salt: 9 }
}

// ---- both disks

#[test]
fn written_bytes_are_read_back_and_gaps_are_zeros() {
    on_both(|disk, dir| {
        let path = dir.join("file");
        let file = disk.create(&path).unwrap();
        assert_eq!(file.path(), path);
        assert_eq!(file.write_at(&[], 0).unwrap(), 0);
        let written = file.write_at(&[IoSlice::new(b"ab"), IoSlice::new(b"cd")], 2).unwrap();
        assert_eq!((written, file.len().unwrap()), (4, 6));
        let mut buffer = [9; 8];
        assert_eq!(file.read_at(&mut buffer, 0).unwrap(), 6);
        assert_eq!(&buffer[..6], b"\0\0abcd");
        assert_eq!(file.read_at(&mut buffer, 6).unwrap(), 0);
        let error = read_exact_at(&*file, &mut buffer, 0).unwrap_err();
        assert!(matches!(error, FileError::TooShort { end: 8, .. }), "{error:?}");
        file.sync().unwrap();
        file.drop_cache(0..u64::MAX).unwrap();
        assert_eq!(read(disk, &path), b"\0\0abcd");
    });
}

#[test]
fn bytes_are_read_into_room_that_nobody_filled_and_no_more_than_were_asked_for() {
    on_both(|disk, dir| {
        let file = disk.create(&dir.join("file")).unwrap();
        file.write_at(&[IoSlice::new(b"abcdef")], 0).unwrap();
        let mut bytes = Vec::with_capacity(4);
        bytes.push(b'!');
        let room = bytes.capacity() - 1;
        assert_eq!(file.read_into_room_at(&mut bytes, 1).unwrap(), room.min(5));
        assert_eq!(bytes[..4], *b"!bcd");
        while bytes.len() < bytes.capacity() {
            bytes.push(0);
        }
        assert_eq!(file.read_into_room_at(&mut bytes, 1).unwrap(), 0);
        assert_eq!(file.read_into_room_at(&mut Vec::with_capacity(9), 6).unwrap(), 0);
        assert_eq!(read_vec_at(&*file, 3, 2).unwrap(), b"cde");
        assert_eq!(read_vec_at(&*file, 0, 9).unwrap(), b"");
        let error = read_vec_at(&*file, 3, 4).unwrap_err();
        assert!(matches!(error, FileError::TooShort { end: 7, .. }), "{error:?}");
    });
}

#[test]
fn create_empties_what_stands_there() {
    on_both(|disk, dir| {
        let path = dir.join("file");
        write_all_at(&*disk.create(&path).unwrap(), b"old contents", 0).unwrap();
        write_all_at(&*disk.create(&path).unwrap(), b"new", 0).unwrap();
        assert_eq!(read(disk, &path), b"new");
    });
}

#[test]
fn allocate_makes_zeros_and_never_shortens() {
    on_both(|disk, dir| {
        let file = disk.create(&dir.join("file")).unwrap();
        write_all_at(&*file, b"abc", 0).unwrap();
        file.allocate(10_000).unwrap();
        file.allocate(5).unwrap();
        file.allocate(0).unwrap();
        assert_eq!(file.len().unwrap(), 10_000);
        let mut bytes = vec![1; 10_000];
        read_exact_at(&*file, &mut bytes, 0).unwrap();
        assert_eq!(&bytes[..3], b"abc");
        assert!(bytes[3..].iter().all(|byte| *byte == 0));
    });
}

#[test]
fn mapping_follows_writes() {
    on_both(|disk, dir| {
        let file = disk.create(&dir.join("file")).unwrap();
        file.allocate(8192).unwrap();
        write_all_at(&*file, b"early", 0).unwrap();
        let mapping = file.map(8192).unwrap();
        assert_eq!((mapping.len(), mapping.published()), (8192, 0));
        write_all_at(&*file, b"late", 5000).unwrap();
        mapping.publish(5004);
        assert_eq!(mapping.slice(0, 5), Some(&b"early"[..]));
        assert_eq!(mapping.slice(5000, 4), Some(&b"late"[..]));
        write_all_at(&*file, &[5; 100], 5004).unwrap();
        write_all_at(&*file, &[0; 50], 5004).unwrap();
        mapping.publish(8192);
        assert_eq!(mapping.slice(5053, 2), Some(&[0, 5][..]));
    });
}

#[test]
fn a_file_that_is_too_short_is_not_mapped() {
    on_both(|disk, dir| {
        let file = disk.create(&dir.join("file")).unwrap();
        let error = file.map(1).unwrap_err();
        assert!(matches!(error, FileError::TooShort { end: 1, .. }), "{error:?}");
    });
}

#[test]
fn open_files_and_mappings_stay_readable_after_unlink() {
    on_both(|disk, dir| {
        let path = dir.join("file");
        let file = disk.create(&path).unwrap();
        write_all_at(&*file, b"kept", 0).unwrap();
        let mapping = file.map(4).unwrap();
        mapping.publish(4);
        disk.unlink(&path).unwrap();
        disk.sync_dir(dir).unwrap();
        let mut buffer = [0; 4];
        read_exact_at(&*file, &mut buffer, 0).unwrap();
        assert_eq!(&buffer, b"kept");
        drop(file);
        assert_eq!(mapping.slice(0, 4), Some(&b"kept"[..]));
        let error = disk.open(&path, Access::Read).err().unwrap();
        assert!(matches!(error, FileError::NotFound { .. }), "{error:?}");
    });
}

#[test]
fn names_are_listed_sorted_without_directories() {
    on_both(|disk, dir| {
        disk.create_dir(&dir.join("sub")).unwrap();
        disk.create_dir(&dir.join("sub")).unwrap();
        write_all_at(&*disk.create(&dir.join("b")).unwrap(), b"xyz", 0).unwrap();
        disk.create(&dir.join("a.tmp")).unwrap();
        disk.create(&dir.join("gone")).unwrap();
        disk.rename(&dir.join("a.tmp"), &dir.join("a")).unwrap();
        disk.unlink(&dir.join("gone")).unwrap();
        let expected = [("a", 0), ("b", 3)];
        let expected = expected.map(|(name, len)| DirEntry { name: name.into(), len });
        assert_eq!(disk.list(dir).unwrap(), expected);
        assert_eq!(disk.list(&dir.join("sub")).unwrap(), []);
        for missing in [
            disk.list(&dir.join("none")).err(),
            disk.create(&dir.join("none/file")).err(),
            disk.create_dir(&dir.join("none/sub")).err(),
            disk.unlink(&dir.join("gone")).err(),
            disk.rename(&dir.join("gone"), &dir.join("a")).err(),
            disk.sync_dir(&dir.join("none")).err(),
        ] {
            assert!(matches!(missing, Some(FileError::NotFound { .. })), "{missing:?}");
        }
        assert!(disk.free_space(dir).unwrap() > 0);
    });
}

#[test]
fn a_file_open_for_reading_refuses_writes() {
    on_both(|disk, dir| {
        let path = dir.join("file");
        disk.create(&path).unwrap();
        let file = disk.open(&path, Access::Read).unwrap();
        let error = write_all_at(&*file, b"x", 0).unwrap_err();
        assert!(matches!(error, FileError::Io { operation: Operation::Write, .. }), "{error:?}");
    });
}

#[test]
fn second_lock_is_refused_until_the_first_is_dropped() {
    on_both(|disk, dir| {
        let path = dir.join("lock");
        let held = disk.lock(&path).unwrap();
        let error = disk.lock(&path).err().unwrap();
        assert!(matches!(error, FileError::Locked { .. }), "{error:?}");
        drop(held);
        disk.lock(&path).unwrap();
        assert_eq!(disk.list(dir).unwrap().len(), 1);
    });
}

#[test]
fn atomic_files_replace_and_long_ones_are_not_read() {
    on_both(|disk, dir| {
        write_file_atomically(disk, dir, "facts", b"first").unwrap();
        write_file_atomically(disk, dir, "facts", b"second").unwrap();
        let path = dir.join("facts");
        assert_eq!(read_file(disk, &path, 6).unwrap(), b"second");
        let error = read_file(disk, &path, 5).unwrap_err();
        assert!(matches!(error, FileError::TooLong { len: 6, max: 5, .. }), "{error:?}");
        assert_eq!(disk.list(dir).unwrap().len(), 1);
    });
}

#[test]
fn segment_writes_publishes_and_reads() {
    on_both(|disk, dir| {
        for prefill in [Prefill::Zeros, Prefill::Blocks] {
            let header = header(1 << 20, 16 << 10);
            let segment = Segment::create(disk, dir, &header, prefill).unwrap();
            let start = header.base.plus(PAGE_LEN as u64);
            assert_eq!(segment.end(), header.base.plus(16 << 10));
            assert_eq!(segment.published(), header.base);

            // More buffers than one call takes, some of them empty.
            let bytes: Vec<u8> = (0..3000).map(|number| (number % 251) as u8).collect();
            let mut buffers: Vec<_> = bytes.chunks(1).map(IoSlice::new).collect();
            buffers.insert(0, IoSlice::new(&[]));
            buffers.push(IoSlice::new(&[]));
            segment.write_all(&mut buffers, start).unwrap();
            assert_eq!(segment.slice(start, 1), None);
            segment.publish(start.plus(3000));
            assert_eq!(segment.slice(start, 3000), Some(&bytes[..]));
            assert_eq!(segment.slice(PhysicalOffset::ZERO, 1), None);
            assert_eq!(segment.bytes(start.plus(1), 3000), None);
            segment.sync().unwrap();
            segment.drop_cache().unwrap();
            let mut buffer = [0; 100];
            segment.read_exact(start.plus(50), &mut buffer).unwrap();
            assert_eq!(&buffer, &bytes[50..150]);

            let owned = segment.bytes(start, 3000).unwrap();
            drop(segment);
            let path = dir.join(FileKind::Segment.name(header.base));
            assert_eq!(read(disk, &path)[..PAGE_LEN], header.encode());
            let again = Segment::open(disk, &path, header.base, header.len).unwrap();
            again.publish(start.plus(3000));
            assert_eq!(again.slice(start, 3000), Some(&bytes[..]));
            disk.unlink(&path).unwrap();
            assert_eq!(owned, bytes, "bytes live without the segment and its name");
        }
        assert_eq!(disk.list(dir).unwrap(), []);
    });
}

/// A segment at 1 MiB whose records are all `b'o'`, durable.
fn old_segment(disk: &dyn Disk, dir: &Path) -> Segment {
    let header = header(1 << 20, 16 << 10);
    let segment = Segment::create(disk, dir, &header, Prefill::Blocks).unwrap();
    let old = vec![b'o'; (12 << 10) + 1];
    segment.write_all(&mut [IoSlice::new(&old[1..])], header.base.plus(4096)).unwrap();
    segment.sync().unwrap();
    segment.publish(segment.end());
    segment
}

#[test]
fn a_deleted_segment_becomes_another_and_its_records_stand_behind_a_page_of_zeros() {
    on_both(|disk, dir| {
        let spare = old_segment(disk, dir).into_spare(disk, dir).unwrap().unwrap();
        let name = format!("{:020}.log.tmp", 1 << 20);
        let expected = DirEntry { name: name.clone(), len: 16 << 10 };
        assert_eq!(disk.list(dir).unwrap(), [expected]);
        disk.sync_dir(dir).unwrap();
        let header = header(5 << 20, 16 << 10);
        let segment = Segment::reuse(disk, dir, spare, &header).unwrap().unwrap();
        let name = FileKind::Segment.name(header.base);
        let expected = DirEntry { name: name.clone(), len: 16 << 10 };
        assert_eq!(disk.list(dir).unwrap(), [expected]);
        assert_eq!(segment.published(), header.base);
        let bytes = read(disk, &dir.join(name));
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
        assert_eq!(bytes[4096..8192], [0; 4096]);
        assert_eq!(bytes[8192..], [b'o'; 8192]);
        disk.unlink(&dir.join(FileKind::Segment.name(header.base))).unwrap();
    });
}

#[test]
fn a_segment_of_which_bytes_are_read_gives_its_file_to_no_other() {
    on_both(|disk, dir| {
        let segment = old_segment(disk, dir);
        let slice = segment.bytes(PhysicalOffset::new((1 << 20) + 9_000), 4).unwrap();
        assert!(segment.into_spare(disk, dir).unwrap().is_none());
        assert_eq!(&slice[..], b"oooo");
        let name = FileKind::Segment.name(PhysicalOffset::new(1 << 20));
        assert_eq!(disk.list(dir).unwrap(), [DirEntry { name, len: 16 << 10 }]);
    });
}

#[test]
fn segment_zero_fills_beyond_one_turn() {
    on_both(|disk, dir| {
        let len = (5 << 19) + 4096;
        let segment = Segment::create(disk, dir, &header(0, len), Prefill::Zeros).unwrap();
        let mut last = [1; 1];
        segment.read_exact(PhysicalOffset::new(len - 1), &mut last).unwrap();
        assert_eq!((segment.len(), last), (len, [0]));
    });
}

#[test]
#[should_panic(expected = "published bytes never change")]
fn segment_never_writes_below_its_published_end() {
    let (disk, dir) = sim();
    let segment = Segment::create(&disk, &dir, &header(0, 16 << 10), Prefill::Blocks).unwrap();
    segment.publish(PhysicalOffset::new(5000));
    segment.write_all(&mut [IoSlice::new(b"x")], PhysicalOffset::new(4999)).unwrap();
}

// ---- the real disk

#[test]
fn real_files_are_private_and_their_file_system_is_known() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    RealDisk.create_dir(&dir.path().join("sub")).unwrap();
    RealDisk.create(&dir.path().join("file")).unwrap();
    for (name, mode) in [("sub", 0o700), ("file", 0o600)] {
        let facts = std::fs::metadata(dir.path().join(name)).unwrap();
        assert_eq!(facts.permissions().mode() & 0o777, mode);
    }
    file_system(dir.path()).unwrap();
    assert_eq!(file_system(Path::new("/proc")).unwrap(), FileSystem::Other { magic: 0x9fa0 });
}

/// A backup by hard links would be overwritten.
#[test]
fn a_segment_with_a_second_name_gives_its_file_to_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let segment = old_segment(&RealDisk, dir.path());
    let path = dir.path().join(FileKind::Segment.name(segment.base()));
    std::fs::hard_link(&path, dir.path().join("backup")).unwrap();
    assert!(segment.into_spare(&RealDisk, dir.path()).unwrap().is_none());
    assert!(path.exists());
}

#[test]
fn a_file_that_gets_a_second_name_while_it_waits_becomes_no_other_segment() {
    let dir = tempfile::tempdir().unwrap();
    let spare = old_segment(&RealDisk, dir.path()).into_spare(&RealDisk, dir.path()).unwrap();
    let aside = dir.path().join(format!("{:020}.log.tmp", 1 << 20));
    std::fs::hard_link(&aside, dir.path().join("backup")).unwrap();
    let before = std::fs::read(&aside).unwrap();
    let header = header(5 << 20, 16 << 10);
    let reused = Segment::reuse(&RealDisk, dir.path(), spare.unwrap(), &header).unwrap();
    assert!(reused.is_none() && !aside.exists());
    assert_eq!(std::fs::read(dir.path().join("backup")).unwrap(), before);
}

/// A start would come to what the disk does not give, and go no further.
#[test]
fn a_segment_of_which_a_read_failed_gives_its_file_to_no_other() {
    let (disk, dir) = sim();
    let segment = old_segment(&disk, &dir);
    disk.fail(FaultRule {
        operation: Operation::Read,
        path_contains: None,
        nth: 1,
        times: Times::Once,
        error: Fault::Eio,
    });
    let at = segment.base().plus(8_192);
    segment.read_exact(at, &mut [0; 64]).unwrap_err();
    segment.read_exact(at, &mut [0; 64]).unwrap();
    assert!(segment.into_spare(&disk, &dir).unwrap().is_none());
}

#[test]
fn real_full_device_is_full() {
    let file = RealDisk.open(Path::new("/dev/full"), Access::ReadWrite).unwrap();
    let error = write_all_at(&*file, b"x", 0).unwrap_err();
    assert!(matches!(error, FileError::Full { operation: Operation::Write, .. }), "{error:?}");
}

// ---- the simulated disk

#[test]
fn names_are_durable_after_the_directory_sync_only() {
    let (disk, dir) = sim();
    let file = disk.create(&dir.join("a.tmp")).unwrap();
    write_all_at(&*file, b"contents", 0).unwrap();
    file.sync().unwrap();
    disk.rename(&dir.join("a.tmp"), &dir.join("a")).unwrap();
    assert_eq!(disk.pending_counts(), PendingCounts { versions: 0, names: 2 });
    let after = |names| disk.crash_image(&crash(names, WriteChoice::None)).paths();
    assert_eq!(after(NameChoice::None), [] as [PathBuf; 0]);
    assert_eq!(after(NameChoice::Prefix(1)), [dir.join("a.tmp")]);
    assert_eq!(after(NameChoice::Prefix(2)), [dir.join("a")]);
    assert_eq!(after(NameChoice::All), [dir.join("a")]);
    disk.sync_dir(&dir).unwrap();
    let image = disk.crash_image(&CrashChoice::NOTHING);
    assert_eq!(read(&image, &dir.join("a")), b"contents");

    disk.unlink(&dir.join("a")).unwrap();
    assert_eq!(after(NameChoice::None), [dir.join("a")]);
    assert_eq!(after(NameChoice::All), [] as [PathBuf; 0]);
}

#[test]
fn a_rename_that_landed_without_the_sync_shows_an_empty_or_partly_zero_file() {
    let (disk, dir) = sim();
    let file = disk.create(&dir.join("a.tmp")).unwrap();
    file.allocate(6000).unwrap();
    write_all_at(&*file, &[1; 6000], 0).unwrap();
    disk.rename(&dir.join("a.tmp"), &dir.join("a")).unwrap();
    assert_eq!(disk.pending_counts(), PendingCounts { versions: 3, names: 2 });
    let after = |writes| {
        let image = disk.crash_image(&crash(NameChoice::All, writes));
        read(&image, &dir.join("a"))
    };
    assert_eq!(after(WriteChoice::None), [0; 0]);
    assert_eq!(after(WriteChoice::Prefix(1)), [0; 6000]);
    assert_eq!(after(WriteChoice::Mask(0b101))[4095..4097], [0, 1]);
    assert_eq!(after(WriteChoice::AllButLast)[4095..4097], [1, 0]);
    assert_eq!(after(WriteChoice::AllButFirst), [1; 6000]);
    assert_eq!(after(WriteChoice::All), [1; 6000]);
}

#[test]
fn only_synced_bytes_survive_and_images_are_disks_of_their_own() {
    let (disk, dir) = sim();
    let path = dir.join("file");
    let file = durable_file(&disk, &path, b"old old old");
    write_all_at(&*file, b"new", 4).unwrap();
    let before = disk.crash_image(&CrashChoice::NOTHING);
    assert_eq!(disk.durable_bytes(&path).unwrap(), b"old old old");
    file.sync().unwrap();
    let after = disk.crash_image(&CrashChoice::NOTHING);
    write_all_at(&*after.open(&path, Access::ReadWrite).unwrap(), b"x", 0).unwrap();
    assert_eq!(read(&before, &path), b"old old old");
    assert_eq!(read(&disk, &path), b"old new old");
    assert_eq!(read(&after, &path), b"xld new old");
    assert_eq!(read(&after.crash_image(&CrashChoice::NOTHING), &path), b"old new old");
    assert_eq!((before.operations(), after.operations()), (0, 1));
}

#[test]
fn torn_page_version_keeps_its_first_bytes() {
    let (disk, dir) = sim();
    let path = dir.join("file");
    let file = durable_file(&disk, &path, &[1; 12288]);
    // Three page versions: the end of page 0, page 1, the start of page 2.
    write_all_at(&*file, &[2; 6144], 3072).unwrap();
    assert_eq!(disk.pending_counts().versions, 3);
    let choice = CrashChoice {
        names: NameChoice::None,
        writes: WriteChoice::Prefix(1),
        torn: Some(Torn { version: 1, keep: 512 }),
    };
    let bytes = read(&disk.crash_image(&choice), &path);
    let expected = [vec![1; 3072], vec![2; 1024 + 512], vec![1; 7680]].concat();
    assert!(bytes == expected);
    let choice = CrashChoice {
        writes: WriteChoice::All,
        torn: Some(Torn { version: 2, keep: 0 }),
        ..choice
    };
    let bytes = read(&disk.crash_image(&choice), &path);
    assert!(bytes == [vec![1; 3072], vec![2; 5120], vec![1; 4096]].concat());
}

#[test]
fn mixed_pages_show_old_or_new_per_block() {
    let (disk, dir) = sim();
    let path = dir.join("file");
    let file = durable_file(&disk, &path, &[0xF0; 16384]);
    for byte in 1..4 {
        write_all_at(&*file, &[byte; 16384], 0).unwrap();
    }
    for grain in [4096, 512, 1] {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..20 {
            let choice = crash(NameChoice::None, WriteChoice::Mixed { seed, grain });
            let bytes = read(&disk.crash_image(&choice), &path);
            assert!(bytes == read(&disk.crash_image(&choice), &path), "a seed decides all");
            for block in bytes.chunks(grain) {
                assert!(block.iter().all(|byte| *byte == block[0]));
                seen.insert(block[0]);
            }
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [1, 2, 3, 0xF0]);
    }
}

#[test]
fn every_random_choice_leaves_old_or_new_bytes() {
    let (disk, dir) = sim();
    let path = dir.join("file");
    let file = durable_file(&disk, &path, &[1; 10_000]);
    write_all_at(&*file, &[2; 9_000], 500).unwrap();
    write_all_at(&*file, &[0; 300], 4000).unwrap();
    disk.rename(&path, &dir.join("other")).unwrap();
    for seed in 0..500 {
        let choice = CrashChoice::random(seed, disk.pending_counts());
        let image = disk.crash_image(&choice);
        let [path] = image.paths().try_into().unwrap();
        let bytes = read(&image, &path);
        assert_eq!(bytes.len(), 10_000, "{choice:?}");
        assert!(bytes.iter().all(|byte| *byte <= 2), "{choice:?}");
        assert!(bytes[..500].iter().chain(&bytes[9_500..]).all(|byte| *byte == 1), "{choice:?}");
    }
}

#[test]
fn power_goes_off_before_the_numbered_operation() {
    let script = |disk: &SimDisk, dir: &Path| -> Result<(), FileError> {
        write_file_atomically(disk, dir, "facts", &[3; 5000])?;
        write_file_atomically(disk, dir, "facts", &[4; 5000])
    };
    let (whole, dir) = sim();
    script(&whole, &dir).unwrap();
    use Operation as O;
    let made: Vec<_> = whole.journal()[1..6].iter().map(|(operation, _)| *operation).collect();
    assert_eq!(made, [O::Create, O::Write, O::Sync, O::Rename, O::SyncDir]);
    for stop in 1..whole.operations() {
        let (disk, dir) = sim();
        disk.crash_at(stop);
        script(&disk, &dir).unwrap_err();
        assert!(disk.is_off());
        assert!(disk.journal().starts_with(&whole.journal()[..stop as usize]));
        for seed in 0..50 {
            let choice = CrashChoice::random(seed, disk.pending_counts());
            let image = disk.crash_image(&choice);
            let facts = match read_file(&image, &dir.join("facts"), 5000) {
                Ok(facts) => facts,
                Err(FileError::NotFound { .. }) if stop < 6 => continue,
                Err(error) => panic!("{error:?} at {stop} with {choice:?}"),
            };
            assert!(facts == [3; 5000] || facts == [4; 5000] && stop > 8, "{stop} {choice:?}");
        }
    }
}

#[test]
fn power_goes_off_inside_a_write() {
    let (disk, dir) = sim();
    let path = dir.join("file");
    let file = durable_file(&disk, &path, &[1; 100]);
    disk.crash_inside(disk.operations(), 10);
    write_all_at(&*file, &[2; 100], 0).unwrap_err();
    file.sync().unwrap_err();
    disk.list(&dir).unwrap_err();
    let bytes = read(&disk.crash_image(&CrashChoice::EVERYTHING), &path);
    assert_eq!(bytes, [[2; 10].to_vec(), [1; 90].to_vec()].concat());
}

#[test]
fn failed_sync_loses_the_pages_and_later_syncs_succeed() {
    let (disk, dir) = sim();
    let path = dir.join("file");
    let file = durable_file(&disk, &path, b"old old");
    let mapping = file.map(7).unwrap();
    write_all_at(&*file, b"new", 0).unwrap();
    disk.fail(rule(Operation::Sync, Fault::Eio));
    let error = file.sync().unwrap_err();
    assert!(matches!(error, FileError::Io { operation: Operation::Sync, .. }), "{error:?}");
    file.sync().unwrap();
    assert_eq!(read(&disk, &path), b"new old");
    assert_eq!(read(&disk.crash_image(&CrashChoice::EVERYTHING), &path), b"old old");
    mapping.publish(1);
    write_all_at(&*file, b"!", 6).unwrap();
    file.drop_cache(0..u64::MAX).unwrap();
    assert_eq!(read(&disk, &path), b"old ol!");
    mapping.publish(7);
    assert_eq!(mapping.slice(0, 7), Some(&b"nld ol!"[..]), "what was published stays");
    file.sync().unwrap();
    assert_eq!(read(&disk.crash_image(&CrashChoice::NOTHING), &path), b"old ol!");
}

#[test]
fn short_writes_are_continued() {
    let (disk, dir) = sim();
    let segment = Segment::create(&disk, &dir, &header(0, 16 << 10), Prefill::Zeros).unwrap();
    disk.fail(FaultRule { times: Times::Always, ..rule(Operation::Write, Fault::ShortWrite(3)) });
    let before = disk.calls(Operation::Write);
    let at = PhysicalOffset::new(4096);
    segment.write_all(&mut [IoSlice::new(b"abcd"), IoSlice::new(b"efgh")], at).unwrap();
    segment.publish(at.plus(8));
    assert_eq!(segment.slice(at, 8), Some(&b"abcdefgh"[..]));
    assert_eq!(disk.calls(Operation::Write) - before, 3);
}

#[test]
fn rules_count_matching_calls_only() {
    let (disk, dir) = sim();
    disk.fail(FaultRule {
        operation: Operation::Write,
        path_contains: Some("one".into()),
        nth: 2,
        times: Times::Count(2),
        error: Fault::Erofs,
    });
    let one = disk.create(&dir.join("one")).unwrap();
    let two = disk.create(&dir.join("two")).unwrap();
    let mut outcomes = Vec::new();
    for _ in 0..4 {
        two.write_at(&[IoSlice::new(b"x")], 0).unwrap();
        outcomes.push(one.write_at(&[IoSlice::new(b"x")], 0).is_ok());
    }
    assert_eq!(outcomes, [true, false, false, true]);
    disk.fail(FaultRule { times: Times::Always, ..rule(Operation::SyncDir, Fault::Eio) });
    disk.sync_dir(&dir).unwrap_err();
    assert_eq!(disk.pending_counts().names, 2, "a failed directory sync makes nothing durable");
    disk.clear_faults();
    disk.sync_dir(&dir).unwrap();
}

#[test]
fn capacity_limits_reservations_and_writes() {
    let (disk, dir) = sim();
    disk.set_capacity(Some(10_000));
    let file = disk.create(&dir.join("file")).unwrap();
    let error = file.allocate(10_001).unwrap_err();
    assert!(matches!(error, FileError::Full { operation: Operation::Allocate, .. }), "{error:?}");
    file.allocate(9_000).unwrap();
    assert_eq!(disk.free_space(&dir).unwrap(), 1_000);
    write_all_at(&*file, &[1; 9_000], 0).unwrap();
    assert_eq!(file.write_at(&[IoSlice::new(&[1; 2_000])], 9_000).unwrap(), 1_000);
    let error = file.write_at(&[IoSlice::new(b"x")], 10_000).unwrap_err();
    assert!(matches!(error, FileError::Full { operation: Operation::Write, .. }), "{error:?}");
    let error = Segment::create(&disk, &dir, &header(0, 8192), Prefill::Blocks).unwrap_err();
    assert!(matches!(error, FileError::Full { .. }), "{error:?}");
    assert_eq!(disk.paths(), [dir.join("file")], "what was begun is taken away");
    disk.unlink(&dir.join("file")).unwrap();
    assert_eq!(disk.free_space(&dir).unwrap(), 10_000);
    Segment::create(&disk, &dir, &header(0, 8192), Prefill::Blocks).unwrap();
}

#[test]
fn decay_changes_what_is_read_and_what_is_durable() {
    let (disk, dir) = sim();
    let path = dir.join("file");
    durable_file(&disk, &path, b"abc");
    disk.corrupt(&path, 1, 0x20).unwrap();
    assert_eq!(read(&disk, &path), b"aBc");
    assert_eq!(read(&disk.crash_image(&CrashChoice::NOTHING), &path), b"aBc");
    disk.truncate(&path, 2).unwrap();
    assert_eq!(read(&disk.crash_image(&CrashChoice::NOTHING), &path), b"aB");
    let error = disk.corrupt(&path, 2, 1).unwrap_err();
    assert!(matches!(error, FileError::TooShort { end: 3, .. }), "{error:?}");
    disk.remove(&path).unwrap();
    assert_eq!(disk.crash_image(&CrashChoice::NOTHING).paths(), [] as [PathBuf; 0]);
}

#[test]
fn crash_image_is_unlocked_while_the_disk_is_locked() {
    let (disk, dir) = sim();
    let held = disk.lock(&dir.join("lock")).unwrap();
    let image = disk.crash_image(&CrashChoice::EVERYTHING);
    image.lock(&dir.join("lock")).unwrap();
    let error = disk.lock(&dir.join("lock")).err().unwrap();
    assert!(matches!(error, FileError::Locked { .. }), "{error:?}");
    drop(held);
}

#[test]
fn rewriting_published_bytes_is_noticed_and_held_back() {
    let (disk, dir) = sim();
    let file = durable_file(&disk, &dir.join("file"), b"abcd");
    let mapping = file.map(4).unwrap();
    mapping.publish(2);
    write_all_at(&*file, b"xyz", 1).unwrap();
    mapping.publish(4);
    assert_eq!(mapping.slice(0, 4), Some(&b"abyz"[..]));
    assert_eq!(disk.rewritten_under_readers(), 1);
}

/// What a renamed file held comes back where a write to it did not land: it is the same file.
#[test]
fn pages_of_a_reused_segment_that_do_not_land_are_those_of_the_segment_before() {
    let (disk, dir) = sim();
    disk.sync_dir(&dir).unwrap();
    let spare = old_segment(&disk, &dir).into_spare(&disk, &dir).unwrap().unwrap();
    disk.sync_dir(&dir).unwrap();
    let header = header(5 << 20, 16 << 10);
    let segment = Segment::reuse(&disk, &dir, spare, &header).unwrap().unwrap();
    let new = [b'n'; 8_000];
    segment.write_all(&mut [IoSlice::new(&new)], header.base.plus(8_000)).unwrap();
    let path = dir.join(FileKind::Segment.name(header.base));
    let shown = |writes| {
        let bytes = read(&disk.crash_image(&crash(NameChoice::None, writes)), &path);
        [7_999, 8_000, 8_191, 8_192, 12_288, 15_999, 16_000].map(|at: usize| bytes[at])
    };
    assert_eq!(shown(WriteChoice::None), *b"\0\0\0oooo");
    assert_eq!(shown(WriteChoice::All), *b"\0nnnnno");
    assert_eq!(shown(WriteChoice::Prefix(1)), *b"\0nnoooo");
    assert_eq!(shown(WriteChoice::AllButFirst), *b"\0\0\0nnno");
    assert_eq!(disk.rewritten_under_readers(), 0);
}

/// Whatever lands: a name of a segment belongs to a whole one, the old or the new, and never to one in between.
#[test]
fn a_power_cut_at_each_step_of_a_file_from_one_segment_to_another_leaves_one_or_a_temporary() {
    let run = |disk: &SimDisk, dir: &Path| -> Result<(), FileError> {
        let segment = old_segment(disk, dir);
        let begun = disk.operations();
        let spare = segment.into_spare(disk, dir)?.unwrap();
        disk.sync_dir(dir)?;
        let segment = Segment::reuse(disk, dir, spare, &header(5 << 20, 16 << 10))?.unwrap();
        segment.write_all(&mut [IoSlice::new(b"n")], PhysicalOffset::new((5 << 20) + 4096))?;
        assert!(disk.operations() > begun + 6);
        Ok(())
    };
    let (disk, dir) = sim();
    old_segment(&disk, &dir);
    let begun = disk.operations();
    let (whole, dir) = sim();
    run(&whole, &dir).unwrap();
    let (mut old, mut new, mut temporary) = (0, 0, 0);
    for operation in begun..=whole.operations() {
        let (disk, dir) = sim();
        disk.crash_inside(operation, 5_000);
        let outcome = run(&disk, &dir);
        assert_eq!(outcome.is_ok(), operation == whole.operations());
        for seed in 0..200 {
            let choice = CrashChoice::random(seed, disk.pending_counts());
            let image = disk.crash_image(&choice);
            let entries = image.list(&dir).unwrap();
            assert_eq!(entries.len(), 1, "{choice:?}: {entries:?}");
            let bytes = read(&image, &dir.join(&entries[0].name));
            match FileKind::Segment.parse(&entries[0].name) {
                None => temporary += 1,
                Some(base) => {
                    let is_old = base == PhysicalOffset::new(1 << 20);
                    let expected = header(base.get(), 16 << 10);
                    assert_eq!(SegmentHeader::decode(&bytes), Ok(expected), "{choice:?}");
                    let first = if is_old { *b"oo" } else { [bytes[4096], 0] };
                    assert_eq!(bytes[4096..4098], first, "{choice:?}");
                    assert_eq!(bytes[8192..], [b'o'; 8192], "{choice:?}");
                    *(if is_old { &mut old } else { &mut new }) += 1;
                }
            }
        }
    }
    assert!(old > 50 && new > 50 && temporary > 50, "{old} {new} {temporary}");
}
