//! The settings of topics and groups as fields: what a transition that creates or updates one carries.

use super::put_u64;
use crate::format::DecodeError;
use crate::format::fields::{Field, put_field};
use crate::message::{
    Access, FlushMode, GroupSettings, InitialPosition, OtherFilters, Retention, Timestamp,
    TopicSettings, TopicType,
};

const READABLE: u8 = 1;
const WRITABLE: u8 = 2;

const ENABLED: u8 = 1;
const ORDERED: u8 = 2;
const REFUSES_FILTERS: u8 = 4;
const ROLLS_FILTERS: u8 = 8;

const EARLIEST: u8 = 1;
const LATEST: u8 = 2;
const TIME: u8 = 3;

/// Appends fields 3 to 8.
pub(super) fn put_topic(out: &mut Vec<u8>, settings: &TopicSettings) {
    put_field(out, 3, &settings.queues.to_le_bytes());
    put_field(out, 4, &[flush_code(settings.flush)]);
    put_field(out, 5, &[type_code(settings.topic_type)]);
    if settings.access != Access::default() {
        let (read, write) = (settings.access.read, settings.access.write);
        put_field(out, 6, &[u8::from(read) * READABLE + u8::from(write) * WRITABLE]);
    }
    if let Some(time) = settings.retention.time_ms {
        put_u64(out, 7, time);
    }
    if let Some(bytes) = settings.retention.bytes {
        put_u64(out, 8, bytes);
    }
}

/// The settings in fields 3 to 8.
pub(super) fn topic_of(fields: [Field<'_>; 6]) -> Result<TopicSettings, DecodeError> {
    let [queues, flush, topic_type, access, time, bytes] = fields;
    Ok(TopicSettings {
        queues: queues.u32()?,
        flush: flush.code(flush_of)?,
        topic_type: topic_type.code(type_of)?,
        access: access
            .optional()
            .map(|field| field.code(access_of))
            .transpose()?
            .unwrap_or_default(),
        retention: Retention {
            time_ms: time.optional().map(Field::u64).transpose()?,
            bytes: bytes.optional().map(Field::u64).transpose()?,
        },
    })
}

/// Appends fields 3 to 8.
pub(super) fn put_group(out: &mut Vec<u8>, settings: &GroupSettings) {
    let flags = u8::from(settings.enabled) * ENABLED
        + u8::from(settings.ordered) * ORDERED
        + filters_code(settings.other_filters);
    put_field(out, 3, &[flags]);
    put_field(out, 4, &settings.max_attempts.unwrap_or(0).to_le_bytes());
    let delays: Vec<u8> = settings.retry_delays_ms.iter().flat_map(|ms| ms.to_le_bytes()).collect();
    put_field(out, 5, &delays);
    match settings.initial_position {
        InitialPosition::Earliest => put_field(out, 6, &[EARLIEST]),
        InitialPosition::Latest => put_field(out, 6, &[LATEST]),
        InitialPosition::Time(time) => {
            put_field(out, 6, &[TIME]);
            put_u64(out, 7, time.get());
        }
    }
    if settings.retry_jitter > 0 {
        put_field(out, 8, &settings.retry_jitter.to_le_bytes());
    }
}

/// The settings in fields 3 to 8.
pub(super) fn group_of(fields: [Field<'_>; 6]) -> Result<GroupSettings, DecodeError> {
    let [flags, max_attempts, delays, position, time, jitter] = fields;
    let (flags, other_filters) = flags.code(|flags| {
        let filters = filters_of(flags & !(ENABLED | ORDERED));
        filters.map(|filters| (flags, filters))
    })?;
    let max_attempts = max_attempts.u32()?;
    Ok(GroupSettings {
        enabled: flags & ENABLED != 0,
        ordered: flags & ORDERED != 0,
        other_filters,
        max_attempts: (max_attempts > 0).then_some(max_attempts),
        retry_delays_ms: super::rows(delays, size_of::<u64>(), |row| super::u64_at(row, 0))?,
        retry_jitter: jitter.optional().map_or(Ok(0), Field::u32)?,
        initial_position: match position
            .code(|code| (EARLIEST..=TIME).contains(&code).then_some(code))?
        {
            EARLIEST => InitialPosition::Earliest,
            LATEST => InitialPosition::Latest,
            _ => InitialPosition::Time(Timestamp::new(time.u64()?)),
        },
    })
}

fn access_of(code: u8) -> Option<Access> {
    let access = Access { read: code & READABLE != 0, write: code & WRITABLE != 0 };
    (code & !(READABLE | WRITABLE) == 0).then_some(access)
}

fn filters_code(filters: OtherFilters) -> u8 {
    match filters {
        OtherFilters::Warn => 0,
        OtherFilters::Refuse => REFUSES_FILTERS,
        OtherFilters::Roll => ROLLS_FILTERS,
    }
}

fn filters_of(code: u8) -> Option<OtherFilters> {
    let all = [OtherFilters::Warn, OtherFilters::Refuse, OtherFilters::Roll];
    all.into_iter().find(|filters| filters_code(*filters) == code)
}

fn flush_code(flush: FlushMode) -> u8 {
    match flush {
        FlushMode::Sync => 1,
        FlushMode::Async => 2,
    }
}

fn flush_of(code: u8) -> Option<FlushMode> {
    [FlushMode::Sync, FlushMode::Async].into_iter().find(|flush| flush_code(*flush) == code)
}

fn type_code(topic_type: TopicType) -> u8 {
    match topic_type {
        TopicType::Normal => 1,
        TopicType::Fifo => 2,
        TopicType::Delay => 3,
        TopicType::Transaction => 4,
        TopicType::Mixed => 5,
    }
}

fn type_of(code: u8) -> Option<TopicType> {
    use TopicType::{Delay, Fifo, Mixed, Normal, Transaction};
    [Normal, Fifo, Delay, Transaction, Mixed].into_iter().find(|kind| type_code(*kind) == code)
}
