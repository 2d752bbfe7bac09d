//! What it costs to look for the next record behind bytes that hold none.

use std::sync::Arc;

use mainstem::file::Operation;
use mainstem::format::batch::{BatchBuilder, NewMeta};
use mainstem::message::FlushMode;
use mainstem::store::StoreConfig;
use mainstem::testing::SimDisk;

use crate::decay::place;
use crate::rig::{Rig, tiny};

/// A megabyte was read for each of them.
#[test]
fn a_torn_record_full_of_record_magic_is_passed_over_in_few_reads() {
    let config = StoreConfig { segment_size: 4 << 20, ..tiny() };
    // In one of them it lies where a record may begin.
    for shift in 0..4 {
        let disk = SimDisk::new();
        let open =
            |disk: &SimDisk| Rig::try_open(Arc::new(disk.clone()), &config, 1_000_000).unwrap();
        let mut rig = open(&disk);
        rig.create(1, 1, FlushMode::Sync);
        let mut body = vec![b' '; shift];
        (0..2_000).for_each(|_| body.extend_from_slice(b"MSTR"));
        let mut batch = BatchBuilder::new();
        batch.push(&NewMeta::default(), &body);
        let placed = rig.send(1, 0, &batch.finish()).unwrap();
        rig.workers.settle();
        rig.kill();
        let (file, at) = place(&disk, placed.offset);
        disk.corrupt(&file, at + 40, 1).unwrap();
        let before = disk.calls(Operation::Read);
        let rig = open(&disk);
        let reads = disk.calls(Operation::Read) - before;
        assert!(reads < 100, "{reads} reads, {shift} bytes before the first");
        let report = rig.store.start_report();
        assert!(report.cut.is_some() || report.damaged == [placed.offset..placed.end], "{report}");
    }
}
