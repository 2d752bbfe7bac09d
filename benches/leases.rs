//! Messages leased and finished, in batches of 32 by one consumer on one thread: `Broker::receive_messages` and
//! `Broker::ack` as a request calls them. In it are the reading of the messages with their checksums, the decision under
//! the mutex of the (group, topic), the state records in the log, and the receipts: signed, and verified again.
//!
//! Beside the rate: processor time and allocations for each message, of the whole process. The messages lie in records
//! of their own, as those of RocketMQ's clients do, or in records of 100.
#![expect(clippy::expect_used, clippy::panic, reason = "a bench that cannot go on ends")]

mod measure;

use std::alloc::System;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstem::broker::{Broker, BrokerConfig, Expression, Language, ReceiveRequest, SendRequest};
use mainstem::clock::SystemClock;
use mainstem::file::disk::RealDisk;
use mainstem::message::{FlushMode, GroupSettings, TopicSettings, TopicType};
use measure::rig::{Prepared, config};
use measure::{Bench, process_cpu};
use serde_json::json;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const GROUP: &str = "bench";
const TOPIC: &str = "bench";
/// Messages of one receive, and of one ack.
const BATCH: u32 = 32;
const BODY: usize = 100;

fn main() {
    let mut bench = Bench::start("leases");
    for (ordered, kind) in [(false, "normal"), (true, "ordered")] {
        for in_record in [1, 100] {
            let name = format!("{kind}/{in_record}");
            if bench.wants(&name) {
                measure(&mut bench, &name, ordered, in_record);
            }
        }
    }
    bench.finish();
}

fn soon() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(60)
}

fn measure(bench: &mut Bench, name: &str, ordered: bool, in_record: usize) {
    let dir = bench.fresh_dir(name);
    let messages: usize = bench.pick(1_000_000, 50_000);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime starts");
    let mut store = config(&dir.join("broker"), bench.pick(256 << 20, 32 << 20));
    (store.flush, store.hot_bytes) = (FlushMode::Async, 1 << 30);
    let (disk, clock) = (Arc::new(RealDisk), Arc::new(SystemClock::new()));
    let opened = Broker::open(disk, clock, store, BrokerConfig::default());
    let (broker, _) = opened.expect("the broker opens");
    runtime.block_on(async {
        let topic = TopicSettings::open(8, FlushMode::Async, TopicType::Mixed);
        broker.create_topic(TOPIC, topic, soon()).await.expect("the topic is made");
        let group = GroupSettings { ordered, ..GroupSettings::default() };
        broker.create_group(GROUP, &group, soon()).await.expect("the group is made");
        let batch = Prepared::new(in_record, BODY, None);
        for _ in 0..messages / in_record {
            let batch = batch.bytes.clone();
            let send =
                SendRequest { topic: TOPIC, queue: None, batch, session: None, deadline: soon() };
            broker.send(send).await.expect("it is stored");
        }
    });
    let filter = Expression::parse(Language::Tags, "*").expect("all");
    let deadline = soon() + Duration::from_secs(3_600);
    let round = async || {
        let request = ReceiveRequest {
            client: None,
            holder: "",
            group: GROUP,
            topic: TOPIC,
            filter: &filter,
            max_messages: BATCH,
            max_bytes: 1 << 20,
            invisible: Duration::from_secs(60),
            wait: Duration::ZERO,
            attempt: "",
            deadline,
        };
        let received = broker.receive_messages(request).await.expect("messages come").messages;
        let handles: Vec<&str> = received.iter().map(|one| one.handle.as_str()).collect();
        let finished = broker.ack(GROUP, TOPIC, &handles, deadline).await.expect("it is acked");
        assert!(finished.iter().all(|finished| *finished), "each is finished");
        received.len()
    };
    runtime.block_on(async {
        for _ in 0..100 {
            round().await;
        }
    });
    let (region, cpu, start) = (Region::new(COUNTED), process_cpu(), Instant::now());
    let done = runtime.block_on(async {
        let mut done = 0;
        loop {
            match round().await {
                0 => break done,
                more => done += more,
            }
        }
    });
    let (wall, cpu) = (start.elapsed(), process_cpu().saturating_sub(cpu));
    let allocations = region.change().allocations as f64 / done as f64;
    let rate = done as f64 / wall.as_secs_f64();
    let cpu_ns = cpu.as_nanos() as f64 / done as f64;
    let text = format!(
        "{rate:.0} messages a second, {cpu_ns:.0} ns of processor time and {allocations:.2} \
         allocations for each of {done}"
    );
    let facts = json!({
        "messages": done,
        "messages_per_second": rate,
        "cpu_ns_per_message": cpu_ns,
        "allocations_per_message": allocations,
    });
    bench.note(name, &text, facts);
    broker.close().expect("the broker closes");
}
