//! Lanes that look for keys: each query takes the next turn, waits until it is due, and looks for one key among all
//! that were stored.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Load, join, key};
use crate::bench::pace::{Pace, Timer, Wait as _};
use crate::bench::recorder::{Recorded, Recorder};
use crate::bench::spread::Dice;
use crate::bench::{Address, BenchError};
use crate::client::{Client, Order, Query, Selector};
use crate::sync::{AtomicU64, Ordering};

/// A turn.
pub(super) async fn turn(
    load: &Load,
    server: &Address,
    rate: Option<f64>,
    length: Duration,
) -> Result<Recorded, BenchError> {
    let mut clients = Vec::new();
    for _ in 0..load.config.producers {
        clients.push(server.connect().await?);
    }
    let recorder = load.recorder(length);
    let mut tasks = JoinSet::new();
    let pace = Pace::of(rate, recorder.started(), 0, 1);
    // Relaxed: nothing else is read by it.
    let next = Arc::new(AtomicU64::new(0));
    for client in clients {
        for _ in 0..load.config.in_flight {
            let (next, recorder) = (Arc::clone(&next), Arc::clone(&recorder));
            tasks.spawn(look(load.clone(), client.clone(), pace, next, recorder));
        }
    }
    join(tasks).await?;
    // Each lane has ended with a turn that it took and did not come to; the turns behind those nobody took.
    for (due, count) in pace.due_before(next.load(Ordering::Relaxed), recorder.end()) {
        recorder.overdue(due, count);
    }
    Ok(recorder.finish())
}

async fn look(
    load: Load,
    client: Client,
    pace: Pace,
    next: Arc<AtomicU64>,
    recorder: Arc<Recorder>,
) -> Result<(), BenchError> {
    let mut timer = Timer::new();
    let messages = load.config.filled_batches() * u64::from(load.config.batch);
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        let due = pace.due(n);
        let now = Instant::now();
        if due.unwrap_or(now) >= recorder.end() {
            return Ok(());
        }
        let intended = due.unwrap_or(now);
        if now >= recorder.end() {
            // Due, and nobody came to it.
            recorder.overdue(intended, 1);
            return Ok(());
        }
        timer.until(intended).await;
        // Which message follows from the number, so that the subject and the control are asked for the same.
        let message = Dice::new(n).below(messages);
        let target = message / u64::from(load.config.batch) % load.config.targets();
        let (topic, _) = load.target(target);
        let query = Query {
            selector: Selector::Key { topic, key: &key(message, 0) },
            begin: None,
            end: None,
            order: Order::NewestFirst,
            limit: 1,
            page: String::new(),
        };
        if client.query(&query).await?.messages.is_empty() {
            return Err(BenchError::NotFound);
        }
        recorder.answered(intended, 1);
    }
}
