//! Status.

use std::fmt::Write as _;

use tonic::Response;

use super::wide;
use crate::broker::{Broker, HeldBy};
use crate::message::{FlushMode, PhysicalOffset, Timestamp};
use crate::proto::{self, DamagedRange, ScrubStatus, StatusResponse, Watermarks};

pub(super) fn status(broker: &Broker) -> Response<StatusResponse> {
    let status = broker.status();
    let damaged = status.store.damaged.iter();
    let damaged =
        damaged.map(|range| DamagedRange { begin: range.start.get(), end: range.end.get() });
    Response::new(StatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        store_id: hex(&status.store.store_id),
        epoch: status.epoch.get(),
        watermarks: Some(Watermarks {
            appended: status.watermarks.appended.get(),
            dispatched: status.watermarks.dispatched.get(),
            flushed: status.watermarks.flushed.get(),
            min: status.watermarks.min.get(),
        }),
        topics: status.topics,
        queues: status.queues,
        segments: wide(status.store.segments),
        unsealed_segments: wide(status.store.unsealed),
        disk_free: status.store.disk_free,
        start_report: broker.start_report().iter().map(ToString::to_string).collect(),
        damaged: damaged.collect(),
        flush_default: match status.flush_default {
            FlushMode::Sync => "sync".to_owned(),
            FlushMode::Async => "async".to_owned(),
        },
        disk_reserve: status.disk_reserve,
        disk_is_short: status.store.disk_is_short,
        deleted_segments: status.store.deleted_segments,
        deleted_bytes: status.store.deleted_bytes,
        newest_image: status.store.newest_image.map(PhysicalOffset::get),
        images: status.store.images,
        image_bytes: status.store.image_bytes,
        held: status.held.iter().map(held).collect(),
        pinned_segments: wide(status.store.pinned_segments),
        scrub: Some(ScrubStatus {
            last_pass_ms: status.store.scrubbed_at.map(Timestamp::get),
            bytes: status.store.scrubbed_bytes,
        }),
        clock_behind_ms: u64::try_from(status.store.clock_behind.as_millis()).unwrap_or(u64::MAX),
    })
}

fn held((name, by): &(String, HeldBy)) -> proto::HeldBy {
    proto::HeldBy {
        topic: name.clone(),
        topic_id: by.topic.get(),
        segments: by.segments,
        bytes: by.bytes,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
