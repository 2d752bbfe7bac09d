//! `mainstem status`: what the broker says about itself.

use bytesize::ByteSize;
use serde::Serialize;

use super::output::{Output, fields};
use super::{Connection, patiently, time};
use crate::client::Status;
use crate::message::PhysicalOffset;

/// Topics that keep segments, in the table; JSON has all of them.
const HOLDERS: usize = 5;

/// So far a clock may be behind without a word.
const CLOCK_ALARM_MS: u64 = 1_000;

/// Runs the command.
pub(crate) async fn run(connection: &Connection, output: &mut Output) -> anyhow::Result<()> {
    let client = connection.open().await?;
    let status = patiently(|| client.status()).await?;
    let shown = Shown::new(client.server(), &status);
    output.one(&shown, || shown.table())?;
    Ok(())
}

#[derive(Serialize)]
struct Shown<'a> {
    server: &'a str,
    version: &'a str,
    store_id: &'a str,
    epoch: u64,
    flush_default: &'a str,
    topics: u64,
    queues: u64,
    watermarks: Watermarks,
    segments: u64,
    unsealed_segments: u64,
    disk_free: u64,
    start_report: &'a [String],
    damaged: Vec<Damaged>,
    disk_reserve: u64,
    disk_is_short: bool,
    deleted_segments: u64,
    deleted_bytes: u64,
    newest_image: Option<u64>,
    images: u64,
    image_bytes: u64,
    pinned_segments: u64,
    held: Vec<Held<'a>>,
    scrubbed_at: Option<String>,
    clock_behind_ms: u64,
}

#[derive(Serialize)]
struct Held<'a> {
    topic: &'a str,
    topic_id: u64,
    segments: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Watermarks {
    min: u64,
    appended: u64,
    dispatched: u64,
    flushed: u64,
}

#[derive(Serialize)]
struct Damaged {
    begin: u64,
    end: u64,
}

impl<'a> Shown<'a> {
    fn new(server: &'a str, status: &'a Status) -> Self {
        Self {
            server,
            version: &status.version,
            store_id: &status.store_id,
            epoch: status.epoch.get(),
            flush_default: &status.flush_default,
            topics: status.topics,
            queues: status.queues,
            watermarks: Watermarks {
                min: status.min.get(),
                appended: status.appended.get(),
                dispatched: status.dispatched.get(),
                flushed: status.flushed.get(),
            },
            segments: status.segments,
            unsealed_segments: status.unsealed_segments,
            disk_free: status.disk_free,
            start_report: &status.start_report,
            damaged: status
                .damaged
                .iter()
                .map(|range| Damaged { begin: range.start.get(), end: range.end.get() })
                .collect(),
            disk_reserve: status.disk_reserve,
            disk_is_short: status.disk_is_short,
            deleted_segments: status.deleted_segments,
            deleted_bytes: status.deleted_bytes,
            newest_image: status.newest_image.map(PhysicalOffset::get),
            images: status.images,
            image_bytes: status.image_bytes,
            pinned_segments: status.pinned_segments,
            held: status
                .held
                .iter()
                .map(|by| Held {
                    topic: &by.topic,
                    topic_id: by.id.get(),
                    segments: by.segments,
                    bytes: by.bytes,
                })
                .collect(),
            scrubbed_at: status.scrubbed_at.map(time::render),
            clock_behind_ms: u64::try_from(status.clock_behind.as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn disk(&self) -> String {
        let free = ByteSize::b(self.disk_free).display().iec();
        if !self.disk_is_short {
            return free.to_string();
        }
        let reserve = ByteSize::b(self.disk_reserve).display().iec();
        format!("{free}: below store.disk_reserve ({reserve}), sends are refused")
    }

    fn table(&self) -> String {
        let marks = &self.watermarks;
        let behind = |mark: u64| {
            let lag = marks.appended.saturating_sub(mark);
            if lag == 0 { mark.to_string() } else { format!("{mark} ({lag} behind)") }
        };
        let mut pairs = vec![
            ("server", self.server.to_owned()),
            ("version", self.version.to_owned()),
            ("store", self.store_id.to_owned()),
            ("epoch", self.epoch.to_string()),
            ("flush", format!("{} unless a topic says otherwise", self.flush_default)),
            ("topics", format!("{} with {} queues", self.topics, self.queues)),
            ("log begins", marks.min.to_string()),
            ("appended", marks.appended.to_string()),
            ("dispatched", behind(marks.dispatched)),
            ("flushed", behind(marks.flushed)),
            (
                "segments",
                format!("{}, {} of them not sealed", self.segments, self.unsealed_segments),
            ),
            ("disk free", self.disk()),
        ];
        if self.deleted_segments > 0 {
            let bytes = ByteSize::b(self.deleted_bytes).display().iec().to_string();
            pairs.push(("deleted", format!("{} segments, {bytes}", self.deleted_segments)));
        }
        if let Some(at) = self.newest_image {
            pairs.push(("state image", format!("at {at}; {} since the start", self.images)));
        }
        if self.pinned_segments > 0 {
            pairs.push(("pinned", format!("{} segments", self.pinned_segments)));
        }
        for held in self.held.iter().take(HOLDERS) {
            let bytes = ByteSize::b(held.bytes).display().iec().to_string();
            let name = if held.topic.is_empty() { "an unknown topic" } else { held.topic };
            pairs.push(("kept by", format!("{name}: {} segments, {bytes}", held.segments)));
        }
        if let Some(at) = &self.scrubbed_at {
            pairs.push(("scrubbed", format!("all finished segments, last at {at}")));
        }
        if self.clock_behind_ms > CLOCK_ALARM_MS {
            let behind = time::render_length(self.clock_behind_ms);
            pairs.push((
                "clock",
                format!("{behind} behind the last message: store times stand still"),
            ));
        }
        for line in self.start_report {
            pairs.push(("at start", line.clone()));
        }
        for range in &self.damaged {
            pairs.push(("damaged", format!("bytes {} to {}", range.begin, range.end)));
        }
        fields(pairs)
    }
}
