//! The numbers at `/metrics`, read from the broker's own counters when somebody asks.

use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text::encode};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::Told;

/// Topics that keep segments, those with most: a line for each.
const HOLDERS: usize = 20;

/// Of the text.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All numbers as OpenMetrics text.
///
/// # Errors
/// None that can happen: writing into a text does not fail.
pub(super) fn text(told: &Told) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("mainstem");
    registry.register_collector(Box::new(Numbers(told.clone())));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Numbers(Told);

impl Collector for Numbers {
    /// One line per number; long because there are many.
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Told { broker, connected, certified, has_failed, is_open_to_others } = &self.0;
        let in_work = broker.in_work();
        let (status, counters) = (broker.status(), broker.counters());
        let at = status.watermarks;
        let (groups, committed_offsets, offsets_memory) = broker.group_counts();

        let mut position = to.encode_descriptor(
            "position",
            "How far the log has come",
            Some(&Unit::Bytes),
            ConstGauge::new(0_u64).metric_type(),
        )?;
        for (mark, value) in [
            ("min", at.min),
            ("appended", at.appended),
            ("dispatched", at.dispatched),
            ("flushed", at.flushed),
        ] {
            let label = [("mark", mark)];
            ConstGauge::new(value.get()).encode(position.encode_family(&label)?)?;
        }
        let behind =
            |mark: crate::message::PhysicalOffset| at.appended.get().saturating_sub(mark.get());
        let damaged = status.store.damaged.iter();
        let damaged: u64 = damaged.map(|r| r.end.get().saturating_sub(r.start.get())).sum();
        let bytes = Some(&Unit::Bytes);
        for (name, help, unit, value) in [
            ("dispatch_lag", "Appended and not yet dispatched", bytes, behind(at.dispatched)),
            ("flush_lag", "Appended and not yet flushed", bytes, behind(at.flushed)),
            ("disk_free", "Free on the file system of the data", bytes, status.store.disk_free),
            ("damaged", "Of the log, that cannot be read", bytes, damaged),
            ("segments", "Segments of the log", None, count(status.store.segments)),
            ("unsealed_segments", "Segments in memory", None, count(status.store.unsealed)),
            ("entries", "Memory of queue and index entries", bytes, status.store.entry_memory),
            (
                "disk_reserve",
                "Free bytes below which sends are refused",
                bytes,
                status.disk_reserve,
            ),
            ("disk_short", "1 while less is free", None, status.store.disk_is_short.into()),
            (
                "pinned_segments",
                "Segments that work keeps from deletion",
                None,
                count(status.store.pinned_segments),
            ),
            (
                "unfinished_segments",
                "Segments that stay beyond retention for messages that are delivered and not finished",
                None,
                status.store.unfinished.segments,
            ),
            ("unfinished", "In these segments", bytes, status.store.unfinished.bytes),
            (
                "spare_segments",
                "Files of deleted segments, kept to become the next",
                None,
                count(status.store.spare_segments),
            ),
            ("epoch", "Starts of the store", None, status.epoch.get()),
            ("topics", "Topics", None, status.topics),
            ("queues", "Queues of all topics", None, status.queues),
            ("sessions", "Producer sessions", None, count(broker.sessions())),
            ("groups", "Consumer groups", None, groups),
            ("committed_offsets", "Committed queue offsets", None, committed_offsets),
            ("offsets", "Memory of committed offsets, about", bytes, offsets_memory),
            (
                "full_queues",
                "Queues of which a group gets nothing new until some of its open messages are finished",
                None,
                broker.full_queues(),
            ),
            ("offset_changes", "Changes of offsets remembered", None, broker.offset_changes()),
            ("waiters", "Parked pulls", None, count(broker.waiting())),
            ("send_streams", "Open streams of batches", None, count(broker.send_streams())),
            (
                "consume_streams",
                "Open streams of messages to consumers",
                None,
                count(broker.consume_streams()),
            ),
            ("clients", "Known clients of RocketMQ", None, count(broker.clients())),
            ("connections", "Connections over gRPC", None, count(connected.count())),
            ("windows", "What they may have under way to here", bytes, connected.windows()),
            (
                "certificate_expiry",
                "When the certificate of the gRPC port expires, since 1970",
                Some(&Unit::Seconds),
                certified.expires(),
            ),
            (
                "clock_behind",
                "How far wall time is behind the store clock, which stands still meanwhile",
                Some(&Unit::Seconds),
                status.store.clock_behind.as_secs(),
            ),
            (
                "certificate_stale",
                "1 while its files hold a pair that is refused",
                None,
                certified.is_stale().into(),
            ),
            ("arriving", "Of requests that are arriving", bytes, in_work.arriving),
            ("awaiting_room", "Of requests that wait to arrive", bytes, in_work.awaiting_room),
            ("storing", "Of batches that have arrived", bytes, in_work.sends),
            (
                "replying",
                "Of answers on their way, and of what is decompressed for them",
                bytes,
                in_work.replies,
            ),
            ("kept_unpacked", "Decompressed lately and kept", bytes, in_work.unpacked),
            ("stream_names", "Of topics' names on streams", bytes, in_work.names),
            ("draining", "1 while the server stops", None, broker.is_draining().into()),
            ("failed", "1 after a failed sync", None, has_failed.load(Ordering::Relaxed).into()),
            (
                "no_authentication",
                "1 if others than this machine can reach an address",
                None,
                (*is_open_to_others).into(),
            ),
        ] {
            let gauge = ConstGauge::new(value);
            let encoder = to.encode_descriptor(name, help, unit, gauge.metric_type())?;
            gauge.encode(encoder)?;
        }

        for (name, help, unit, value) in [
            ("sends", "Acknowledged sends", None, counters.sends.get()),
            ("sent_messages", "Messages in them", None, counters.sent_messages.get()),
            ("sent", "Bytes of them", bytes, counters.sent_bytes.get()),
            ("pulls", "Answered pulls", None, counters.pulls.get()),
            ("pulled_messages", "Messages in them", None, counters.pulled_messages.get()),
            ("pulled", "Bytes of them", bytes, counters.pulled_bytes.get()),
            ("parked", "Pulls that had to wait", None, counters.parked.get()),
            ("queries", "Answered queries", None, counters.queries.get()),
            ("commits", "Commits and resets of offsets", None, counters.commits.get()),
            ("rewinds", "Queues that these moved back", None, counters.rewinds.get()),
            ("receives", "Receives that got messages", None, counters.receives.get()),
            ("received_messages", "Messages in them", None, counters.received_messages.get()),
            ("looked_at", "Messages that receives looked at", None, broker.looked_at()),
            ("acks", "Messages finished by consumers", None, counters.acks.get()),
            ("filtered", "Messages that filters passed over", None, counters.filtered.get()),
            (
                "filter_mismatches",
                "Receives with another filter than others of the group use",
                None,
                counters.filter_mismatches.get(),
            ),
            ("conditions", "Filters in SQL that were parsed", None, counters.conditions.get()),
            (
                "filter_faults",
                "Comparisons of filters with a number that met text, at each look at a message",
                None,
                counters.filter_faults.get(),
            ),
            ("gone", "Messages finished as they are gone", None, counters.gone.get()),
            (
                "dead_letters",
                "Messages that became dead letters",
                None,
                counters.dead_letters.get(),
            ),
            ("redriven", "Dead letters sent back", None, counters.redriven.get()),
            ("unpacked", "Records decompressed for single messages", None, counters.unpacked.get()),
            ("syncs", "Syncs of the log", None, status.store.syncs),
            ("damaged_reads", "Reads that met damage", None, status.store.damaged_reads),
            ("rebuilt", "Queue and index files made again", None, status.store.rebuilt),
            ("deleted_segments", "Segments deleted", None, status.store.deleted_segments),
            ("deleted", "Bytes of them", bytes, status.store.deleted_bytes),
            (
                "unfinished_segments_deleted",
                "Segments deleted with such messages in them, for want of space or as they were too many",
                None,
                status.store.unfinished_deleted,
            ),
            ("images", "State images taken", None, status.store.images),
            ("image", "Bytes of them", bytes, status.store.image_bytes),
            ("duplicates", "Batches that were stored before", None, counters.duplicates.get()),
            ("idle_sessions", "Sessions closed as idle", None, counters.idle_sessions.get()),
            ("damage_found", "Damaged ranges met", None, status.store.damage_found),
            ("scrubbed", "Read to look for damage", bytes, status.store.scrubbed_bytes),
            ("scrub_passes", "Complete passes of the scrub", None, status.store.scrub_passes),
        ] {
            let counter = ConstCounter::new(value);
            let encoder = to.encode_descriptor(name, help, unit, counter.metric_type())?;
            counter.encode(encoder)?;
        }

        let kind = ConstGauge::new(0_u64).metric_type();
        let help = "Sealed segments that stay for a topic";
        let mut held = to.encode_descriptor("segments_held", help, None, kind)?;
        for (topic, by) in status.held.iter().take(HOLDERS) {
            let unknown = format!("#{}", by.topic);
            let name = if topic.is_empty() { &unknown } else { topic };
            let label = [("topic", name.as_str())];
            ConstGauge::new(by.segments).encode(held.encode_family(&label)?)?;
        }

        let kind = ConstCounter::new(0_u64).metric_type();
        let help = "Connections over gRPC closed before they were served";
        let mut closed = to.encode_descriptor("connections_closed", help, None, kind)?;
        for (why, value) in connected.closed() {
            let label = [("reason", why.as_str())];
            ConstCounter::new(value).encode(closed.encode_family(&label)?)?;
        }

        let kind = ConstCounter::new(0_u64).metric_type();
        let mut refusals = to.encode_descriptor("refusals", "Refused requests", None, kind)?;
        for (reason, value) in counters.refusals() {
            let label = [("reason", reason.as_str())];
            ConstCounter::new(value).encode(refusals.encode_family(&label)?)?;
        }
        Ok(())
    }
}

fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::broker::{Broker, BrokerConfig};
    use crate::clock::{Clock, ManualClock};
    use crate::file::disk::RealDisk;
    use crate::message::Timestamp;
    use crate::store::StoreConfig;

    #[tokio::test]
    async fn a_clock_that_was_turned_back_is_told_in_seconds_until_it_has_caught_up() {
        let dir = tempfile::tempdir().unwrap();
        let store =
            StoreConfig { segment_size: 4 << 20, ..StoreConfig::new(dir.path().join("data")) };
        let clock = Arc::new(ManualClock::new(Timestamp::new(1_000_000)));
        let config = BrokerConfig::default();
        let opened = Broker::open(Arc::new(RealDisk), clock.clone(), store, config);
        let told = Told {
            broker: opened.unwrap().0,
            connected: Arc::default(),
            certified: Arc::default(),
            has_failed: Arc::default(),
            is_open_to_others: false,
        };
        let behind = || {
            let text = text(&told).unwrap();
            let name = "mainstem_clock_behind_seconds ";
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.parse::<u64>().unwrap()
        };
        assert_eq!(behind(), 0);
        clock.set_wall(Timestamp::new(clock.now().get() - 90_000));
        assert_eq!(behind(), 90);
        clock.advance(Duration::from_secs(89));
        assert_eq!(behind(), 1);
        clock.advance(Duration::from_secs(2));
        assert_eq!(behind(), 0);
        told.broker.close().unwrap();
    }
}
