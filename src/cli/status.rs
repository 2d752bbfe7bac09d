//! `mainstem status`: what the broker says about itself.

use bytesize::ByteSize;
use serde::Serialize;

use super::output::{Output, fields};
use super::{Connection, patiently, time};
use crate::client::Status;

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
    scrubbed_at: Option<String>,
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
            scrubbed_at: status.scrubbed_at.map(time::render),
        }
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
            ("disk free", ByteSize::b(self.disk_free).display().iec().to_string()),
        ];
        if let Some(at) = &self.scrubbed_at {
            pairs.push(("scrubbed", format!("all finished segments, last at {at}")));
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
