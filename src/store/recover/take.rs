//! What the walk does with a sound record: queues, index and state are brought to it, an append set as a whole.

use super::Recovery;
use crate::format::DecodeError;
use crate::format::attributes;
use crate::format::consume_queue::QueueEntry;
use crate::format::epoch::EpochRecord;
use crate::format::record::{RecordHeader, RecordKind, unknown_required};
use crate::format::state_record::{SessionBatch, Transition, transitions};
use crate::log::{consume_queue, index};
use crate::message::{PhysicalOffset, QueueKey, SessionMark};
use crate::store::OpenError;
use crate::store::dispatch::derive;
use crate::store::repair::position_of;

impl Recovery<'_> {
    /// Takes a record with a sound header into account; `body` is `None` if the rest of it is damaged.
    pub(super) fn take(
        &mut self,
        header: &RecordHeader,
        body: Option<&[u8]>,
    ) -> Result<(), OpenError> {
        self.durable = self.durable.max(header.durable_claim());
        self.epoch_walked = self.epoch_walked.max(header.epoch);
        self.epoch = self.epoch.max(header.epoch);
        self.store_clock = self.store_clock.max(header.store_time);
        self.first_time = self.first_time.or(Some(header.store_time));
        self.report.replayed_records += 1;
        self.report.replayed_bytes += u64::from(header.total_len);
        let at = header.physical_offset;
        if let Some(body) = body
            && let Some(attributes) = body.get(..header.attributes_len as usize)
            && let Some(tag) = unknown_required(attributes, &[])
        {
            let source = DecodeError::UnknownRequired { tag };
            return Err(OpenError::NotUnderstood { at, source });
        }
        let mut hashes = std::mem::take(&mut self.hashes);
        let record = match derive(self.seed, header, body, &mut hashes) {
            Some(derived) => FoundRecord {
                end: header.end(),
                at,
                what: Found::Message {
                    key: derived.key,
                    entry: derived.entry,
                    hashes: derived.hashes,
                    session: body.and_then(|body| session_of(header, body)),
                },
            },
            None => {
                let payload = body.and_then(|body| body.get(header.attributes_len as usize..));
                FoundRecord {
                    end: header.end(),
                    at,
                    what: Found::Internal { kind: header.kind, payload },
                }
            }
        };
        let outcome = if header.set_count == 1 {
            self.release_set().and_then(|()| self.apply(&record))
        } else {
            if header.set_index == 0 {
                self.release_set()?;
            }
            self.set.push(record.hold(header));
            if header.set_index + 1 == header.set_count { self.release_set() } else { Ok(()) }
        };
        self.hashes = hashes;
        outcome
    }

    /// Applies the records of a set that is whole, or of which more cannot come.
    pub(super) fn release_set(&mut self) -> Result<(), OpenError> {
        for held in std::mem::take(&mut self.set) {
            self.apply(&held.record())?;
        }
        Ok(())
    }

    fn apply(&mut self, record: &FoundRecord<'_>) -> Result<(), OpenError> {
        let at = record.at;
        match &record.what {
            Found::Message { key, entry, hashes, session } => {
                if let Some((mark, batch)) = session {
                    self.applier.stored(*mark, batch);
                }
                self.newest_topic = self.newest_topic.max(key.topic);
                if at < self.unsealed_from {
                    let base = self.log.segment_at(at).map_or(at, |segment| segment.base());
                    self.queues.observe(*key, base, entry);
                } else {
                    self.queues.put(*key, entry);
                    for hash in *hashes {
                        self.indexes.put(*hash, at);
                    }
                    self.entry_bytes +=
                        consume_queue::ENTRY_COST + hashes.len() as u64 * index::ENTRY_COST;
                }
            }
            Found::Internal { payload: None, .. } => self.report.damage_may_hold_state = true,
            Found::Internal { kind: RecordKind::State, payload: Some(payload) } => {
                self.apply_own(payload);
                self.applier.apply(self.topics, payload, record.end).map_err(
                    |source| match source {
                        DecodeError::UnknownTransition { .. } => {
                            OpenError::NotUnderstood { at, source }
                        }
                        _ => OpenError::State { at: record.end, source },
                    },
                )?;
            }
            Found::Internal { kind: RecordKind::Epoch, payload: Some(payload) } => {
                let epoch = EpochRecord::decode(payload)
                    .map_err(|source| OpenError::NotUnderstood { at, source })?;
                self.store_clock = self.store_clock.max(epoch.store_clock);
            }
            Found::Internal { kind: RecordKind::Message | RecordKind::Filler, .. } => {}
        }
        Ok(())
    }
}

impl Recovery<'_> {
    /// The transitions that are the store's own. What cannot be understood is told by whoever applies the rest.
    fn apply_own(&mut self, payload: &[u8]) {
        for transition in transitions(payload).map_while(Result::ok) {
            match transition {
                Transition::SegmentsDeleted { ranges } => self.deleted.add(&ranges),
                Transition::RangesLost { ranges } => self.lost.add(&ranges),
                Transition::QueuesFound { topic, queues } => {
                    for queue in queues {
                        self.queues.restore_position(position_of(topic, queue));
                    }
                }
                _ => {}
            }
        }
    }
}

/// A record as the walk met it.
struct FoundRecord<'a> {
    at: PhysicalOffset,
    end: PhysicalOffset,
    what: Found<'a>,
}

enum Found<'a> {
    Message {
        key: QueueKey,
        entry: QueueEntry,
        hashes: &'a [u64],
        session: Option<(SessionMark, SessionBatch)>,
    },
    /// Of the broker or the store itself; `None`: its payload is damaged.
    Internal { kind: RecordKind, payload: Option<&'a [u8]> },
}

/// A record of an append set that is not whole yet.
pub(super) struct HeldRecord {
    pub(super) header: RecordHeader,
    what: Held,
}

enum Held {
    Message {
        key: QueueKey,
        entry: QueueEntry,
        hashes: Vec<u64>,
        session: Option<(SessionMark, SessionBatch)>,
    },
    Internal {
        payload: Option<Vec<u8>>,
    },
}

impl FoundRecord<'_> {
    fn hold(&self, header: &RecordHeader) -> HeldRecord {
        let what = match &self.what {
            Found::Message { key, entry, hashes, session } => Held::Message {
                key: *key,
                entry: *entry,
                hashes: hashes.to_vec(),
                session: *session,
            },
            Found::Internal { payload, .. } => {
                Held::Internal { payload: payload.map(<[u8]>::to_vec) }
            }
        };
        HeldRecord { header: *header, what }
    }
}

impl HeldRecord {
    fn record(&self) -> FoundRecord<'_> {
        let what = match &self.what {
            Held::Message { key, entry, hashes, session } => {
                Found::Message { key: *key, entry: *entry, hashes, session: *session }
            }
            Held::Internal { payload } => {
                Found::Internal { kind: self.header.kind, payload: payload.as_deref() }
            }
        };
        FoundRecord { at: self.header.physical_offset, end: self.header.end(), what }
    }
}

/// The producer session of a message record, and where the batch went, for those who remember it.
fn session_of(header: &RecordHeader, body: &[u8]) -> Option<(SessionMark, SessionBatch)> {
    let attributes = body.get(..header.attributes_len as usize)?;
    // Attributes of another build: the batch is a batch all the same.
    let mark = attributes::session(attributes).ok().flatten()?;
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
    Some((mark, batch))
}
