//! A broker under a service manager: what it says over the socket that the manager gave it, and when.

use std::path::PathBuf;

use rustix::process::Signal;
use tokio::net::UnixDatagram;
use tokio::process::Command;

use crate::support::{BINARY, Home, Process, one, page, soon};

/// The manager's end of the socket.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(home: &Home) -> Self {
        let path = home.path().join("notify");
        Self { socket: UnixDatagram::bind(&path).unwrap(), path }
    }

    /// A broker that is told of this manager.
    fn spawn(&self, home: &Home, environment: &[(&str, &str)]) -> Process {
        let mut command = Command::new(BINARY);
        command.env("NOTIFY_SOCKET", &self.path).envs(environment.iter().copied());
        Process::spawn_by(command, home, &[])
    }

    /// The next word, a line each.
    async fn word(&self) -> Vec<String> {
        let mut bytes = [0; 4096];
        let len = soon("a word", self.socket.recv(&mut bytes)).await.unwrap();
        let text = std::str::from_utf8(&bytes[..len]).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// A word that has come already.
    fn said_already(&self) -> Option<String> {
        let mut bytes = [0; 4096];
        let len = self.socket.try_recv(&mut bytes).ok()?;
        Some(std::str::from_utf8(&bytes[..len]).unwrap().to_owned())
    }

    /// The next word that is none of the watchdog's.
    async fn word_beside_pings(&self) -> Vec<String> {
        loop {
            let word = self.word().await;
            if word != ["WATCHDOG=1"] {
                return word;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_hears_of_recovery_readiness_and_the_stop_in_this_order() {
    let home = Home::new();
    let manager = Manager::new(&home);
    let mut process = manager.spawn(&home, &[]);
    let opening = ["EXTEND_TIMEOUT_USEC=60000000", "STATUS=opening the store, for 0 s"];
    assert_eq!(manager.word().await, opening);
    // A slow machine asks for time again.
    let mut word = manager.word().await;
    while word[0] == opening[0] {
        word = manager.word().await;
    }
    process.ready().await;
    let serving = format!("STATUS=serving gRPC on {}, HTTP on {}", process.grpc, process.http);
    assert_eq!(word, ["READY=1", &serving]);

    process.signal(Signal::TERM);
    assert_eq!(manager.word().await, ["STOPPING=1", "STATUS=draining"], "no watchdog, no pings");
    assert_eq!(process.ended().await.code(), Some(0), "{}", process.said());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_told_that_it_is_ready_is_served() {
    let home = Home::new();
    let manager = Manager::new(&home);
    let process = manager.spawn(&home, &[]);
    let serving = loop {
        let word = manager.word().await;
        if word[0] == "READY=1" {
            break word[1].clone();
        }
    };
    // The addresses are in the word, and nothing else was waited for.
    let addresses = serving.strip_prefix("STATUS=serving gRPC on ").unwrap();
    let (grpc, http) = addresses.split_once(", HTTP on ").unwrap();
    let client = soon("connecting", mainstem::client::Client::connect(grpc)).await.unwrap();
    client.send("orders", None, one(b"hello")).await.unwrap();
    assert_eq!(page(http, "/readyz").await.unwrap(), (200, "ready\n".to_owned()));
    process.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watchdog_is_told_of_life_from_ready_to_the_stop() {
    let home = Home::new();
    let manager = Manager::new(&home);
    let mut process = manager.spawn(&home, &[("WATCHDOG_USEC", "100000")]);
    let mut word = manager.word().await;
    while word[0] != "READY=1" {
        assert!(word[0].starts_with("EXTEND_TIMEOUT_USEC="), "{word:?}");
        word = manager.word().await;
    }
    for _ in 0..5 {
        assert_eq!(manager.word().await, ["WATCHDOG=1"]);
    }
    process.signal(Signal::TERM);
    assert_eq!(manager.word_beside_pings().await, ["STOPPING=1", "STATUS=draining"]);
    assert_eq!(process.ended().await.code(), Some(0), "{}", process.said());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watchdog_of_another_process_is_not_ours() {
    let home = Home::new();
    let manager = Manager::new(&home);
    let environment = [("WATCHDOG_USEC", "100000"), ("WATCHDOG_PID", "1")];
    let mut process = manager.spawn(&home, &environment);
    process.ready().await;
    process.signal(Signal::TERM);
    assert_eq!(process.ended().await.code(), Some(0), "{}", process.said());
    let mut said = vec![manager.word().await.join("\n")];
    while let Some(word) = manager.said_already() {
        said.push(word);
    }
    assert!(said.iter().any(|word| word.starts_with("READY=1")), "{said:?}");
    assert!(!said.iter().any(|word| word == "WATCHDOG=1"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_is_not_there_is_warned_of_and_the_broker_serves() {
    let home = Home::new();
    let mut command = Command::new(BINARY);
    command.env("NOTIFY_SOCKET", home.path().join("nobody"));
    let mut process = Process::spawn_by(command, &home, &[]);
    process.ready().await;
    let warning = "WARN the service manager of NOTIFY_SOCKET cannot be reached";
    assert!(process.said().contains(warning), "{}", process.said());
    process.stop().await;
}
