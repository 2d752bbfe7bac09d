//! Several messages in one call, and the power that goes off at any write of it: all of them are there, or none.

use std::time::Duration;

use mainstem::broker::{
    Broker, BrokerError, NewMessage, NewMeta, PullRequest, Receipt, SendMessages,
};
use mainstem::format::batch;
use mainstem::message::{FlushMode, QueueId, QueueOffset, TopicSettings, TopicType};
use mainstem::testing::{CrashChoice, SimDisk};

use crate::rig::{Request, Rig, late};
use crate::script::Setup;

const WALL: u64 = 1_700_000_000_000;
const QUEUES: u32 = 2;
/// Three pages of the disk together, and no multiple of one.
const LENS: [usize; 5] = [3_000, 10, 5_000, 4_096, 1];

/// The bodies of a call, of no other.
fn bodies(call: u8) -> Vec<Vec<u8>> {
    let body = |(n, len): (usize, &usize)| vec![call.wrapping_mul(16).wrapping_add(n as u8); *len];
    LENS.iter().enumerate().map(body).collect()
}

/// The answer of a request; `None`: the power went before there was one.
fn answer<T>(rig: &mut Rig, mut request: Request<T>) -> Option<T> {
    for round in 0.. {
        let answered = rig.look_at(&mut request).0;
        if answered.is_some() {
            return answered;
        }
        if !rig.helped(round) {
            return None;
        }
    }
    None
}

fn send(rig: &mut Rig, call: u8) -> Option<Result<Vec<Receipt>, BrokerError>> {
    let broker = rig.broker.clone();
    let request = async move {
        let bodies = bodies(call);
        let messages = bodies.iter().map(|body| NewMessage { meta: NewMeta::default(), body });
        let messages: Vec<_> = messages.collect();
        broker
            .send_messages(&SendMessages { topic: "t", messages: &messages, deadline: late() })
            .await
    };
    answer(rig, Box::pin(request))
}

/// A broker that has acknowledged one call, and the disk's operations by then.
fn begun(flush: FlushMode) -> (Rig, Vec<Receipt>, u64) {
    let disk = SimDisk::new();
    let setup = Setup { segment_size: 64 << 10, flush, auto_create: false };
    let mut rig = Rig::open(&disk, &setup, WALL).unwrap();
    let broker = rig.broker.clone();
    let made = async move {
        let settings = TopicSettings::open(QUEUES, flush, TopicType::Normal);
        broker.create_topic("t", settings, late()).await.map(drop)
    };
    answer(&mut rig, Box::pin(made)).unwrap().unwrap();
    let receipts = send(&mut rig, 1).unwrap().unwrap();
    rig.settle();
    (rig, receipts, disk.operations())
}

/// What a queue has: the batches, with their offsets in it.
fn read(rig: &mut Rig, queue: u32) -> Vec<(u64, Vec<u8>)> {
    let broker: std::sync::Arc<Broker> = rig.broker.clone();
    let pulled = async move {
        let request = PullRequest {
            epoch: None,
            topic: "t",
            queue: QueueId::new(queue),
            offset: QueueOffset::ZERO,
            max_messages: 1_000,
            max_bytes: 1 << 20,
            wait: Duration::ZERO,
            tags: "",
            group: None,
            deadline: late(),
        };
        broker.pull(request).await
    };
    let pulled = answer(rig, Box::pin(pulled)).unwrap().unwrap();
    let record = |record: &mainstem::broker::StoredRecord| {
        (record.first_queue_offset.get(), record.batch.to_vec())
    };
    pulled.records.iter().map(record).collect()
}

/// How many messages of a call are there. Each that is lies where its receipt says, if there is one.
fn found(queues: &[Vec<(u64, Vec<u8>)>], call: u8, receipts: Option<&[Receipt]>) -> usize {
    let mut count = 0;
    for (n, body) in bodies(call).iter().enumerate() {
        let batch = batch::one(&NewMeta::default(), body);
        let places = queues.iter().enumerate().flat_map(|(queue, records)| {
            let here = records.iter().filter(|(_, stored)| *stored == batch);
            here.map(move |(offset, _)| (queue as u32, *offset))
        });
        let places: Vec<_> = places.collect();
        assert!(places.len() <= 1, "message {n} of call {call} at {places:?}");
        if let (Some(place), Some(receipts)) = (places.first(), receipts) {
            let receipt = &receipts[n];
            assert_eq!(*place, (receipt.queue.get(), receipt.first_queue_offset.get()));
        }
        count += places.len();
    }
    count
}

#[test]
fn several_messages_of_a_call_are_there_whole_or_not_at_all_wherever_the_power_goes() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    for flush in [FlushMode::Sync, FlushMode::Async] {
        let setup = Setup { segment_size: 64 << 10, flush, auto_create: false };
        let (mut rig, _, begin) = begun(flush);
        send(&mut rig, 2).unwrap().unwrap();
        rig.settle();
        let end = rig.disk.operations();
        assert!(end > begin);
        // Acknowledged and kept; not acknowledged and kept; lost.
        let mut seen = [0; 3];
        for operation in begin..=end {
            for inside in [0, 1, 90, 3_100, 4_096, 9_000, 12_300] {
                let (mut rig, first, again) = begun(flush);
                assert_eq!(again, begin, "it always does the same");
                rig.disk.crash_inside(operation, inside);
                let second = match send(&mut rig, 2) {
                    Some(Ok(receipts)) => Some(receipts),
                    Some(Err(_)) | None => None,
                };
                if second.is_some() {
                    // Into what comes behind it.
                    rig.settle();
                }
                let disk = rig.kill();
                let seed = operation * 1_000 + inside as u64;
                let random = |n| CrashChoice::random(seed + n, disk.pending_counts());
                let choices = [CrashChoice::NOTHING, CrashChoice::EVERYTHING];
                for choice in choices.into_iter().chain((1..4).map(random)) {
                    let image = disk.crash_image(&choice);
                    let mut rig = Rig::open(&image, &setup, WALL).unwrap();
                    let queues: Vec<_> = (0..QUEUES).map(|queue| read(&mut rig, queue)).collect();
                    let at = format!("{flush:?} at {operation}, {inside}, {choice:?}");
                    assert_eq!(found(&queues, 1, Some(&first)), LENS.len(), "{at}");
                    let kept = found(&queues, 2, second.as_deref());
                    assert!(kept == 0 || kept == LENS.len(), "{kept} of a call; {at}");
                    let is_promised = second.is_some() && flush == FlushMode::Sync;
                    assert!(kept > 0 || !is_promised, "lost: {at}");
                    let others: usize = queues.iter().map(Vec::len).sum();
                    assert_eq!(others, LENS.len() + kept, "nothing else is there; {at}");
                    let index = if kept == 0 { 2 } else { usize::from(second.is_none()) };
                    seen[index] += 1;
                }
            }
        }
        // Of an async topic what is written whole is acknowledged.
        let [kept, unknown, lost] = seen;
        assert!(kept > 0 && lost > 0, "{flush:?}: {seen:?}");
        assert_eq!(unknown > 0, flush == FlushMode::Sync, "{seen:?}");
    }
}
