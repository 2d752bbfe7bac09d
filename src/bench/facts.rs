//! What the kernel says: of the machine, and of a process.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

/// Of the ticks in `/proc/PID/stat`. Linux shows the same to all programs, whatever its own clock does (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);
/// How long a server may need to finish what a turn left behind.
const SETTLE: Duration = Duration::from_secs(5);
/// A server is at rest when it used at most [`AT_REST`] in such a time.
const LOOK: Duration = Duration::from_millis(100);
const AT_REST: Duration = Duration::from_millis(10);

/// Where a run took place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Cores that the run may use.
    pub(crate) cores: usize,
    /// What they are.
    pub(crate) processor: String,
    /// The kernel's release.
    pub(crate) kernel: String,
    /// Of the data directory: device and file system.
    pub(crate) file_system: String,
}

impl Machine {
    /// This one, with data in `dir`.
    pub(super) fn here(dir: &Path) -> Self {
        let processor = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| {
                Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned())
            })
            .unwrap_or_default();
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            processor,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            file_system: mount_of(&read("/proc/self/mounts"), dir),
        }
    }
}

/// Device and file system of the mount with the longest path above `dir`.
fn mount_of(mounts: &str, dir: &Path) -> String {
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (device, point, system) = (fields.next()?, fields.next()?, fields.next()?);
        dir.starts_with(point).then_some((point.len(), device, system))
    });
    mounts
        .max_by_key(|(len, ..)| *len)
        .map_or_else(String::new, |(_, device, system)| format!("{device}, {system}"))
}

/// CPU time of a process so far; `None`: it is gone.
pub(super) fn cpu_of(pid: u32) -> Option<Duration> {
    cpu_in(&read(&format!("/proc/{pid}/stat")))
}

/// The fields `utime` and `stime` of `/proc/PID/stat` (proc_pid_stat(5)).
fn cpu_in(stat: &str) -> Option<Duration> {
    // A name may hold anything, also spaces and brackets; the rest may not.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    TICK.checked_mul(user.checked_add(system)?)
}

/// Bytes of a process that are in no file; `None`: it is gone.
pub(super) fn memory_of(pid: u32) -> Option<u64> {
    let status = read(&format!("/proc/{pid}/status"));
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

/// Waits until a process has done what was left to do, so that it does not disturb who comes next.
pub(super) async fn settle(pid: u32) {
    let asked = Instant::now();
    while asked.elapsed() < SETTLE {
        let before = cpu_of(pid);
        sleep(LOOK).await;
        match (before, cpu_of(pid)) {
            (Some(before), Some(after)) if after.saturating_sub(before) > AT_REST => {}
            _ => return,
        }
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_behind_any_name() {
        let stat = "7 (a ) b (c) S 1 7 7 0 -1 4194304 9 0 0 0 150 25 0 0 20 0 5 0 99 1 2";
        assert_eq!(cpu_in(stat), Some(Duration::from_millis(1_750)));
        assert_eq!(cpu_in("7 (gone"), None);
    }

    #[test]
    fn this_process_has_used_memory_and_another_one_is_gone() {
        assert!(memory_of(std::process::id()).unwrap() > 100 << 10);
        assert!(cpu_of(std::process::id()).is_some());
        assert_eq!((cpu_of(u32::MAX), memory_of(u32::MAX)), (None, None));
    }

    #[test]
    fn the_file_system_is_that_of_the_nearest_mount() {
        let mounts = "/dev/vda / ext4 rw 0 0\nnone /tmp tmpfs rw 0 0\n";
        assert_eq!(mount_of(mounts, Path::new("/tmp/x")), "none, tmpfs");
        assert_eq!(mount_of(mounts, Path::new("/var")), "/dev/vda, ext4");
    }
}
