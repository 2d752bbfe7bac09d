//! Reads that may wait for a disk run here: a few threads and a bounded queue, so that neither a page fault nor a slow
//! disk blocks a runtime thread.

use std::io;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, TrySendError, bounded};
use tokio::sync::oneshot;

use super::error::ReadError;
use crate::sync::{Mutex, lock};

/// Reads that may wait for a thread; more are refused.
const QUEUED: usize = 1_024;

type Job = Box<dyn FnOnce() + Send>;

/// The pool. Without threads (a store stepped by hand) a job runs on the caller.
pub(super) struct ReadPool {
    jobs: Mutex<Option<Sender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    inline: bool,
}

impl ReadPool {
    /// A pool of `threads`; 0: none, jobs run on the caller.
    pub(super) fn start(threads: usize) -> io::Result<Self> {
        let (jobs, queue) = bounded::<Job>(QUEUED);
        let mut started = Vec::with_capacity(threads);
        for index in 0..threads {
            let queue = queue.clone();
            let thread = std::thread::Builder::new().name(format!("mainstem-read-{index}")).spawn(
                move || {
                    for job in queue {
                        job();
                    }
                },
            )?;
            started.push(thread);
        }
        let inline = threads == 0;
        Ok(Self { jobs: Mutex::new(Some(jobs)), threads: Mutex::new(started), inline })
    }

    /// Runs `job` in the pool.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        if self.inline {
            return job();
        }
        let (answer, answered) = oneshot::channel();
        let sent = match &*lock(&self.jobs) {
            Some(jobs) => jobs.try_send(Box::new(move || {
                // The caller may have given up.
                let _gone = answer.send(job());
            })),
            None => return Err(ReadError::Closed),
        };
        match sent {
            Ok(()) => answered.await.unwrap_or(Err(ReadError::Closed)),
            Err(TrySendError::Full(_)) => Err(ReadError::Overloaded),
            Err(TrySendError::Disconnected(_)) => Err(ReadError::Closed),
        }
    }

    /// Finishes what is queued and ends the threads.
    pub(super) fn stop(&self) {
        *lock(&self.jobs) = None;
        for thread in lock(&self.threads).drain(..) {
            // A panic of a read was printed by its thread.
            let _panicked = thread.join();
        }
    }
}
