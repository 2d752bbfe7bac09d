//! The demo's broker: `serve` of the same executable as a child process.
//!
//! It runs in its own process group, so that Ctrl-C reaches the demo alone, and says its addresses in one JSON line
//! on stdout when it is ready. A broker that is not to be kept watches its standard input and ends when the demo is
//! gone, however that went. What it says on stderr is kept in a file beside the data.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::cli::serve::Addresses;

/// How long a broker may take until it is ready.
const START: Duration = Duration::from_secs(20);
/// How long a broker may take to stop by itself.
const STOP: Duration = Duration::from_secs(10);

/// A running broker. Dropping it kills the process and waits until it is gone.
pub(super) struct Broker {
    /// `None` once it is somebody else's.
    child: Option<Child>,
    addresses: Addresses,
}

impl Broker {
    /// Starts a broker on the data in `directory` and waits until it is ready.
    ///
    /// Without `addresses` it takes free ports. A kept broker outlives the demo.
    pub(super) async fn start(
        directory: &Path,
        addresses: Option<&Addresses>,
        kept: bool,
    ) -> anyhow::Result<Self> {
        let free = Addresses { grpc: "127.0.0.1:0".to_owned(), http: "127.0.0.1:0".to_owned() };
        let wanted = addresses.unwrap_or(&free);
        let executable = std::env::current_exe().context("cannot find the own executable")?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(log_path(directory))
            .context("cannot write the broker's log")?;
        let mut command = Command::new(executable);
        command.arg("serve").arg("--data").arg(directory.join("data"));
        // It says what it needs, and gives it back.
        command.args(["--set", "store.disk_reserve=0"]);
        command.args(["--listen", &wanted.grpc, "--http", &wanted.http, "--print-addresses"]);
        if kept {
            command.stdin(Stdio::null());
        } else {
            command.arg("--until-stdin-closes").stdin(Stdio::piped());
        }
        command.stdout(Stdio::piped()).stderr(log).process_group(0).env_remove("MAINSTEM_SERVER");
        let mut child = command.spawn().context("cannot start a broker")?;
        let stdout = child.stdout.take();
        // From here on the guard kills the process if anything goes wrong.
        let mut broker = Self { child: Some(child), addresses: free };

        let stdout = stdout.context("the broker has no standard output")?;
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).map(|_| line)
        });
        let line = tokio::time::timeout(START, line)
            .await
            .context("the broker is not ready after 20 s")?
            .context("cannot wait for the broker")?
            .context("cannot read what the broker says")?;
        if line.is_empty() {
            bail!("the broker ended before it was ready");
        }
        broker.addresses = serde_json::from_str(&line).context("the broker says no addresses")?;
        Ok(broker)
    }

    /// Where it can be reached.
    pub(super) fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Its process id.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// SIGKILL, and waits until the process is gone.
    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may be gone already; then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Lets it end in order; kills it if that takes too long.
    pub(super) async fn stop(mut self) {
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

    /// Leaves it running when the demo ends.
    pub(super) fn leave(mut self) {
        self.child = None;
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last line that the broker said on stderr, if it said anything.
pub(super) fn last_words(directory: &Path) -> Option<String> {
    let log = std::fs::read_to_string(log_path(directory)).ok()?;
    log.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

fn log_path(directory: &Path) -> PathBuf {
    directory.join("broker.log")
}
