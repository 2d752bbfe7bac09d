//! Readers, one connection for each producer there would be: each reads its share of the queues to their ends, over
//! streams, and begins again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::{Load, Share, join};
use crate::bench::recorder::{Recorded, Recorder};
use crate::bench::{Address, BenchError};
use crate::client::{Client, Part, PullStreamOptions};
use crate::format::batch::TagFilter;
use crate::message::QueueOffset;

/// A turn.
pub(super) async fn turn(
    load: &Load,
    server: &Address,
    length: Duration,
) -> Result<Recorded, BenchError> {
    let mut readers = Vec::new();
    for _ in 0..load.config.producers {
        readers.push(server.connect().await?);
    }
    let shares: Arc<[Share]> = load.shares().into();
    let recorder = load.recorder(length);
    let mut tasks = JoinSet::new();
    for (client, number) in readers.into_iter().zip(0..) {
        let step = load.config.producers;
        tasks.spawn(read(client, Arc::clone(&shares), number, step, Arc::clone(&recorder)));
    }
    join(tasks).await?;
    Ok(recorder.finish())
}

/// Messages of a part.
pub(super) fn messages(part: &Part) -> u64 {
    let first = part.batches().next().map_or(part.next_offset, |(first, _)| first);
    part.next_offset.get().saturating_sub(first.get())
}

async fn read(
    client: Client,
    shares: Arc<[Share]>,
    number: u32,
    step: u32,
    recorder: Arc<Recorder>,
) -> Result<(), BenchError> {
    let size = |n: u32| usize::try_from(n).unwrap_or_default();
    loop {
        // More readers than shares: some have several.
        let own = shares.iter().skip(size(number) % shares.len().max(1)).step_by(size(step));
        for share in own {
            if Instant::now() >= recorder.end() {
                return Ok(());
            }
            read_once(&client, share, &recorder).await?;
        }
    }
}

/// Reads a share from its begin to its end, or to the end of the turn.
async fn read_once(client: &Client, share: &Share, recorder: &Recorder) -> Result<(), BenchError> {
    let queues: Vec<_> = share.queues.iter().map(|queue| (*queue, QueueOffset::ZERO)).collect();
    let mut asked = Instant::now();
    let mut stream = client
        .pull_stream(&PullStreamOptions {
            topic: &share.topic,
            queues: &queues,
            max_bytes: None,
            tags: "*",
            filter: &TagFilter::All,
            group: None,
            epoch: None,
        })
        .await?;
    let mut done = HashSet::new();
    while done.len() < queues.len() {
        let Some(part) = before(recorder.end(), stream.next()).await else { return Ok(()) };
        let part = part?;
        recorder.answered(asked, messages(&part));
        asked = Instant::now();
        if part.next_offset >= part.range.max {
            done.insert(part.queue);
        }
    }
    Ok(())
}

/// What comes before `end`; `None` from then on, also if something is there.
async fn before<T>(end: Instant, what: impl Future<Output = T>) -> Option<T> {
    // A timeout looks at its clock only while there is nothing, and a fast server always has something.
    if Instant::now() >= end {
        return None;
    }
    timeout_at(end, what).await.ok()
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_turn_ends_also_while_there_is_always_more() {
        let end = Instant::now() + Duration::from_secs(1);
        assert_eq!(before(end, ready(1)).await, Some(1));
        assert_eq!(before(end, pending::<i32>()).await, None);
        assert_eq!(Instant::now(), end);
        assert_eq!(before(end, ready(1)).await, None);
    }
}
