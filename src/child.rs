//! A process of this executable that serves, and the directory it lives in; for commands that bring their own broker.
//!
//! The process runs in its own process group, so that Ctrl-C reaches its owner alone, and says its addresses in one
//! JSON line on stdout when it is ready. A server that is not to be kept watches its standard input and ends when its
//! owner is gone, however that went. What it says on stderr is kept in a file.
//!
//! Owned by guards: whoever drops a [`Server`] kills the process and waits until it is gone, whoever drops a
//! [`Directory`] removes it. Blocking calls: the kill and the removal.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How long a server may take until it is ready.
const START: Duration = Duration::from_secs(20);
/// How long a server may take to stop by itself.
const STOP: Duration = Duration::from_secs(10);

/// Why there is no server, or no directory for it. Neither is there any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChildError {
    /// The program cannot start itself.
    #[error("cannot start a server")]
    Start(#[source] std::io::Error),
    /// Its stderr goes there.
    #[error("cannot write the server's log {}", .path.display())]
    Log {
        /// Of the log.
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// It took too long.
    #[error("the server is not ready after {START:?}")]
    Late,
    /// It went before it said its addresses.
    #[error("the server ended before it was ready")]
    Ended,
    /// What it said cannot be read.
    #[error("cannot read what the server says")]
    Said(#[source] std::io::Error),
    /// It said something else.
    #[error("the server says no addresses")]
    Addresses(#[source] serde_json::Error),
    /// The operating system has no random numbers for a name.
    #[error("no random numbers")]
    Random(#[source] getrandom::Error),
    /// The directory cannot be made.
    #[error("cannot make {}; set TMPDIR", .path.display())]
    Directory {
        /// Of the directory.
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Where a running server listens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Addresses {
    /// For clients.
    pub(crate) grpc: String,
    /// For health and metrics.
    pub(crate) http: String,
}

impl Addresses {
    /// Ports that the operating system chooses.
    pub(crate) fn free() -> Self {
        Self { grpc: "127.0.0.1:0".to_owned(), http: "127.0.0.1:0".to_owned() }
    }
}

/// Whether a server outlives its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// It ends with its owner.
    Owned,
    /// It stays when its owner leaves it.
    Kept,
}

/// A running server. Dropping it kills the process and waits until it is gone.
#[derive(Debug)]
pub(crate) struct Server {
    /// `None` once it is somebody else's.
    child: Option<Child>,
    addresses: Addresses,
}

impl Server {
    /// Starts `command` of the own executable and waits until it is ready. What it says goes to the end of `log`.
    ///
    /// The command prints its addresses when it is ready; an owned one is told to end with its standard input.
    ///
    /// # Errors
    /// All but `Random` and `Directory`; the process is gone.
    pub(crate) async fn start(
        command: &[&str],
        log: &Path,
        life: Life,
    ) -> Result<Self, ChildError> {
        let executable = std::env::current_exe().map_err(ChildError::Start)?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(log)
            .map_err(|source| ChildError::Log { path: log.to_owned(), source })?;
        let mut process = Command::new(executable);
        process.args(command);
        match life {
            Life::Kept => process.stdin(Stdio::null()),
            Life::Owned => process.arg("--until-stdin-closes").stdin(Stdio::piped()),
        };
        process.stdout(Stdio::piped()).stderr(log).process_group(0).env_remove("MAINSTEM_SERVER");
        let mut child = process.spawn().map_err(ChildError::Start)?;
        let stdout = child.stdout.take();
        // From here on the guard kills the process if anything goes wrong.
        let mut server = Self { child: Some(child), addresses: Addresses::free() };

        let stdout = stdout.ok_or(ChildError::Ended)?;
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).map(|_| line)
        });
        let line = tokio::time::timeout(START, line).await.map_err(|_| ChildError::Late)?;
        // The task is not cancelled, so it ends without a line only when this process ends.
        let line = line.map_err(|_| ChildError::Ended)?.map_err(ChildError::Said)?;
        if line.is_empty() {
            return Err(ChildError::Ended);
        }
        server.addresses = serde_json::from_str(&line).map_err(ChildError::Addresses)?;
        Ok(server)
    }

    /// Where it can be reached.
    pub(crate) fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))))
    }

    /// SIGKILL, and waits until the process is gone.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may be gone already; then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Lets it end in order; kills it if that takes too long.
    pub(crate) async fn stop(mut self) {
        let Some(child) = self.child.as_mut() else { return };
        drop(child.stdin.take());
        let asked = Instant::now();
        while asked.elapsed() < STOP {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Leaves it running when its owner ends.
    pub(crate) fn leave(mut self) {
        self.child = None;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last line in the log of a server, if it said anything.
pub(crate) fn last_words(log: &Path) -> Option<String> {
    let log = std::fs::read_to_string(log).ok()?;
    log.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

/// A temporary directory for one run: removed on every way out unless it is kept.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    kept: bool,
}

impl Directory {
    /// Makes one for `name` in the temporary directory, for this user alone.
    ///
    /// # Errors
    /// `Random` and `Directory`.
    pub(crate) fn create(name: &str) -> Result<Self, ChildError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let mut random = [0_u8; 4];
        getrandom::fill(&mut random).map_err(ChildError::Random)?;
        let name = format!("mainstem-{name}-{:08x}", u32::from_le_bytes(random));
        let path = std::env::temp_dir().join(name);
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Ok(Self { path, kept: false }),
            Err(source) => Err(ChildError::Directory { path, source }),
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves it there.
    pub(crate) fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !self.kept {
            // Nobody is left to be told: what cannot be removed stays in the temporary directory.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
