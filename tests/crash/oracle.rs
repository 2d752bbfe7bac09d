//! The log as its bytes say it is, read without the store, and what a store must show for it.

use std::collections::BTreeMap;
use std::fmt::Display;

use bytes::Bytes;
use mainstem::format::attributes;
use mainstem::format::batch::Batch;
use mainstem::format::identity::Identity;
use mainstem::format::record::{ALIGN, HEADER_LEN, RecordHeader, RecordKind, verify_body};
use mainstem::format::segment_header::{PAGE_LEN, SegmentHeader};
use mainstem::format::snapshot::Snapshot;
use mainstem::format::state_record::{SessionBatch, Transition, transitions};
use mainstem::message::{FlushMode, MessageId, PhysicalOffset, SessionMark};
use mainstem::store::{IndexKind, Order, TopicHandle};
use mainstem::testing::SimDisk;

use crate::rig::{Dice, Rig, files, path, tiny};

/// A record, as the bytes of the log have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Logged {
    pub(crate) header: RecordHeader,
    pub(crate) payload: Bytes,
    /// Of which producer session it is.
    pub(crate) session: Option<SessionMark>,
}

/// Walks the durable bytes of the log from its first to its last record. There is no damage, and behind the end stand
/// a header's length of zeros, to the end of their page, and no record of the segment any more, of whatever epoch.
/// Segments may be missing: whether they were deleted is what the store says at its start.
pub(crate) fn walk(disk: &SimDisk, case: &dyn Display) -> Vec<Logged> {
    let identity = Identity::decode(&disk.durable_bytes(&path("identity")).unwrap()).unwrap();
    let mut found: Vec<Logged> = Vec::new();
    let mut ended = None;
    for file in files(disk, "commitlog") {
        let bytes = disk.durable_bytes(&file).unwrap();
        let header = SegmentHeader::decode(&bytes).unwrap();
        let base = header.base;
        let mut at = PAGE_LEN;
        while bytes.len() - at >= HEADER_LEN {
            let here = base.plus(at as u64);
            let header = match RecordHeader::decode(&bytes[at..], here, identity.salt(base)) {
                Ok(header) => header,
                Err(error) => {
                    let mark = (at + HEADER_LEN).next_multiple_of(PAGE_LEN).min(bytes.len());
                    let written = bytes[at..mark].iter().position(|byte| *byte != 0);
                    assert_eq!(written, None, "{case}: {error} at {here}, and no zeros there");
                    for at in (at..=bytes.len() - HEADER_LEN).step_by(ALIGN as usize) {
                        let here = base.plus(at as u64);
                        let left = RecordHeader::decode(&bytes[at..], here, identity.salt(base));
                        assert!(left.is_err(), "{case}: {left:?} behind the end of the log");
                    }
                    ended = ended.or(Some(here));
                    break;
                }
            };
            assert_eq!(ended, None, "{case}: a record at {here} behind the end of the log");
            if header.kind == RecordKind::Filler {
                break;
            }
            let end = at + header.total_len as usize;
            let (attributes, payload) = verify_body(&header, &bytes[at + HEADER_LEN..end]).unwrap();
            if let Some(before) = found.last() {
                assert!(header.epoch >= before.header.epoch, "{case}: epochs never decrease");
                assert!(header.store_time >= before.header.store_time, "{case}: nor do times");
            }
            let session = attributes::session(attributes).unwrap();
            found.push(Logged { header, payload: Bytes::copy_from_slice(payload), session });
            at = end;
        }
    }
    found
}

/// Whether the record is the store's own: not what a client asked for.
pub(crate) fn is_own(record: &Logged) -> bool {
    let own = |transition| {
        matches!(
            transition,
            Transition::SegmentsDeleted { .. }
                | Transition::RangesLost { .. }
                | Transition::ImageBegun
                | Transition::ImagePart { .. }
                | Transition::ImageEnded { .. }
        )
    };
    match record.header.kind {
        RecordKind::Epoch => true,
        RecordKind::State => transitions(&record.payload).next().unwrap().is_ok_and(own),
        _ => false,
    }
}

/// The newest state image in the log that is whole.
fn newest_image(log: &[Logged]) -> Option<Snapshot> {
    let mut parts: BTreeMap<PhysicalOffset, Vec<u8>> = BTreeMap::new();
    let mut newest = None;
    for record in log.iter().filter(|record| record.header.kind == RecordKind::State) {
        for transition in transitions(&record.payload) {
            match transition.unwrap() {
                Transition::ImagePart { begin, bytes, .. } => {
                    parts.entry(begin).or_default().extend(bytes);
                }
                Transition::ImageEnded { begin, .. } => {
                    newest = Snapshot::decode(parts.get(&begin)?).ok().or(newest);
                }
                _ => {}
            }
        }
    }
    newest
}

/// Live topics by id: queues and mode. What was deleted of the log stands in an image.
pub(crate) fn live_topics(log: &[Logged]) -> BTreeMap<u64, (u32, FlushMode)> {
    let mut live = BTreeMap::new();
    let image = newest_image(log);
    let (state, applied) =
        image.map_or((Vec::new(), PhysicalOffset::ZERO), |image| (image.state, image.applied));
    let later = log.iter().filter(|record| record.header.kind == RecordKind::State);
    let later = later.filter(|record| record.header.end() > applied);
    for run in std::iter::once(&state[..]).chain(later.map(|record| &record.payload[..])) {
        for transition in transitions(run) {
            match transition.unwrap() {
                Transition::TopicCreated { id, settings, .. } => {
                    live.insert(id.get(), (settings.queues, settings.flush));
                }
                Transition::TopicUpdated { id, settings } => {
                    if let Some(known) = live.get_mut(&id.get()) {
                        *known = (settings.queues, settings.flush);
                    }
                }
                Transition::TopicDeleted { id } => {
                    live.remove(&id.get());
                }
                _ => {}
            }
        }
    }
    live
}

/// Whether messages of a topic are gone by retention or purge, as of now.
pub(crate) fn gone(rig: &Rig, topic: &TopicHandle) -> impl Fn(&RecordHeader) -> bool + use<> {
    let ((below, before), (_, _, purged)) = (rig.store.expired_now(topic), topic.expired());
    move |header| {
        let end = header.queue_offset.plus(header.message_count.into());
        header.physical_offset < below
            || header.store_time < before
            || purged.iter().any(|(queue, offset)| *queue == header.queue && end <= *offset)
    }
}

/// Checks that topics, queues, index and ids show what the log holds, all of which is dispatched and flushed. Keys and
/// ids are looked up by sample.
pub(crate) fn agrees(rig: &Rig, log: &[Logged], seed: u64, case: &dyn Display) {
    let mut dice = Dice(seed);
    let live = live_topics(log);
    let mut known: Vec<u64> = rig
        .applier
        .live()
        .iter()
        .map(|transition| match transition {
            Transition::TopicCreated { id, .. } => id.get(),
            other => panic!("{case}: {other:?}"),
        })
        .collect();
    known.sort_unstable();
    assert_eq!(known, live.keys().copied().collect::<Vec<_>>(), "{case}: topics");
    for (id, (queues, flush)) in live {
        let topic = rig.topic(id).unwrap();
        assert_eq!((topic.queues(), topic.flush()), (queues, flush), "{case}: topic {id}");
        let gone = gone(rig, &topic);
        let of_topic = || {
            log.iter().filter(|record| {
                record.header.topic.get() == id
                    && record.header.kind == RecordKind::Message
                    && !gone(&record.header)
            })
        };
        for queue in 0..queues {
            let expected: Vec<_> =
                of_topic().filter(|record| record.header.queue.get() == queue).collect();
            let mut next = expected.first().map_or(0, |record| record.header.queue_offset.get());
            for record in &expected {
                assert_eq!(record.header.queue_offset.get(), next, "{case}: dense offsets");
                next += u64::from(record.header.message_count);
            }
            let found = rig.read_all(&topic, queue);
            assert_eq!(found.len(), expected.len(), "{case}: records of queue {queue} of {id}");
            for (found, expected) in found.iter().zip(expected) {
                let header = &expected.header;
                assert_eq!(found.batch, expected.payload, "{case}: bytes");
                assert_eq!(
                    (found.offset, found.first_queue_offset, found.epoch, found.store_time),
                    (header.physical_offset, header.queue_offset, header.epoch, header.store_time),
                    "{case}"
                );
            }
        }
        let key = format!("k{}", dice.below(5));
        let mut expected: Vec<(PhysicalOffset, u16)> = Vec::new();
        let (mut some_id, mut ids) = (None, 0);
        let (_, _, purged) = topic.expired();
        let is_purged = |header: &RecordHeader, index: u16| {
            let offset = header.queue_offset.plus(index.into());
            purged.iter().any(|(queue, upto)| *queue == header.queue && offset < *upto)
        };
        for record in of_topic() {
            for (index, meta) in (0_u16..).zip(Batch::parse(&record.payload).unwrap().metas()) {
                let meta = meta.unwrap();
                if is_purged(&record.header, index) {
                    continue;
                }
                if meta.keys().any(|k| k == key) {
                    expected.push((record.header.physical_offset, index));
                }
                ids += 1;
                if dice.one_in(ids) {
                    let id = meta.id().unwrap().to_owned();
                    some_id = Some((id, record.header, index));
                }
            }
        }
        for order in [Order::OldestFirst, Order::NewestFirst] {
            let found = rig.find(&topic, IndexKind::Key, &key, order);
            assert!(found.complete, "{case}: {:?}", found.reason);
            let places: Vec<_> =
                found.messages.iter().map(|found| (found.record.offset, found.index)).collect();
            assert_eq!(places, expected, "{case}: key {key} of topic {id}, {order:?}");
            expected.reverse();
        }
        if let Some((text, header, index)) = some_id {
            let found = rig.find(&topic, IndexKind::Id, &text, Order::NewestFirst);
            let places: Vec<_> =
                found.messages.iter().map(|found| (found.record.offset, found.index)).collect();
            assert_eq!(places, [(header.physical_offset, index)], "{case}: id {text}");
            let id = MessageId { epoch: header.epoch, offset: header.physical_offset, index };
            assert_eq!(rig.by_id(id).unwrap().offset, id.offset, "{case}: {id}");
        }
    }
}

/// Checks that replay handed up the batches of producer sessions that lie behind its begin, those and no others, in the
/// order of the log, and that each session's sequences count from 1 without a hole.
pub(crate) fn sessions_agree(rig: &Rig, log: &[Logged], case: &dyn Display) {
    let from = rig.store.start_report().replayed_from;
    let mut next: BTreeMap<u64, u64> = BTreeMap::new();
    let mut expected = Vec::new();
    // Behind a deleted segment a session may go on anywhere.
    let (mut end, mut holes) = (0, 0);
    for Logged { header, session, .. } in log {
        holes += u64::from(header.physical_offset.get() > end + tiny().segment_size);
        end = header.end().get();
        let Some(mark) = session else { continue };
        let sequence = next.entry(mark.session.get()).or_insert(1);
        if holes == 0 {
            assert_eq!(mark.sequence, *sequence, "{case}: a batch of a session is missing");
        }
        assert!(mark.sequence >= *sequence, "{case}: batches of a session are in order");
        *sequence = mark.sequence + 1;
        if header.physical_offset >= from {
            let batch = SessionBatch {
                topic: header.topic,
                queue: header.queue,
                messages: header.message_count.into(),
                queue_offset: header.queue_offset,
                offset: header.physical_offset,
                end: header.end(),
                epoch: header.epoch,
                store_time: header.store_time,
            };
            expected.push((*mark, batch));
        }
    }
    let mut stored = rig.applier.stored_batches();
    // Replay went over segments that were deleted since.
    stored.retain(|(_, batch)| log.iter().any(|at| at.header.physical_offset == batch.offset));
    assert_eq!(stored, expected, "{case}: batches of sessions in replay");
}
