//! The dispatcher alone against append alone, of the same records: it has to keep up.
//!
//! Every record holds messages of 1 KiB with a key each, all keys different. In each slice they are made, appended
//! (the control's time) and dispatched (the subject's), on one thread.
#![expect(clippy::expect_used, clippy::panic, reason = "a bench that cannot go on ends")]

mod measure;

use std::cell::{Cell, RefCell};

use mainstem::message::FlushMode;
use mainstem::store::Progress;
use measure::rig::{Drive, Prepared, Rig, append_patiently, config};
use measure::{Bench, Case, Slice};

fn main() {
    let mut bench = Bench::start("dispatch");
    for (times, messages, reach) in [("", 1, Some(1.0)), ("×100", 100, None)] {
        let name = format!("dispatch/1KiB{times}/1key");
        if bench.wants(&name) {
            measure_records(&mut bench, name, messages, reach);
        }
    }
    bench.finish();
}

fn measure_records(bench: &mut Bench, name: String, messages: usize, reach: Option<f64>) {
    let dir = bench.fresh_dir(&name);
    let segment = bench.pick(256 << 20, 16 << 20);
    let rig = Rig::open(config(&dir.join("store"), segment), Drive::Stepped, FlushMode::Async);
    let (rig, keys) = (RefCell::new(rig), Cell::new(0));
    let slice_len = bench.pick(4 << 20, 1 << 20);
    let records = slice_len / (messages << 10);
    let both = || {
        let mut rig = rig.borrow_mut();
        let next_key = || keys.replace(keys.get() + messages as u64);
        let batches: Vec<Prepared> =
            (0..records).map(|_| Prepared::new(messages, 1 << 10, Some(next_key()))).collect();
        let bytes = batches.iter().map(Prepared::record_len).sum();
        rig.rest();
        let work = (records * messages) as f64;
        let appended = Slice::of(work, bytes, || {
            for (queue, batch) in (0..4).cycle().zip(&batches) {
                append_patiently(&rig.store, rig.record(queue, batch));
            }
        });
        let dispatch = &mut rig.workers.as_mut().expect("the store is stepped").dispatch;
        let dispatched = Slice::of(work, bytes, || while dispatch.step() == Progress::Worked {});
        (dispatched, appended)
    };
    // One run gives a slice to either side: what the other side did not take yet waits here.
    let (dispatched, appended) = (Cell::new(None), Cell::new(None));
    let control = "append alone of the same records";
    let case = Case { name, control, unit: "message", reach };
    bench.compare(
        &case,
        &mut || {
            dispatched.take().unwrap_or_else(|| {
                let (mine, other) = both();
                appended.set(Some(other));
                mine
            })
        },
        &mut || {
            appended.take().unwrap_or_else(|| {
                let (other, mine) = both();
                dispatched.set(Some(other));
                mine
            })
        },
    );
    drop(rig);
    std::fs::remove_dir_all(dir).expect("the data can be removed");
}
