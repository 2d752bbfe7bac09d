//! A server as a process of its own, which tells its CPU time when it is asked.

use std::io::{BufRead as _, BufReader, Read as _, Write as _, stdin, stdout};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use mainstem::config::Config;
use mainstem::server;
use tokio::net::TcpListener;

use crate::measure::process_cpu;
use crate::no_op::no_op;

/// Of a server's process.
pub(crate) const SERVER: &str = "--server";
pub(crate) const NO_OP: &str = "no-op";

pub(crate) struct Server {
    child: Child,
    lines: BufReader<ChildStdout>,
    pub(crate) address: String,
    /// Where a broker tells its counters.
    http: String,
}

impl Server {
    pub(crate) fn start(workers: usize, what: &str) -> Self {
        let program = std::env::current_exe().expect("this program has a path");
        let mut command = Command::new(program);
        command.args([SERVER, &workers.to_string(), what]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("a server starts");
        let lines = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut server = Self { child, lines, address: String::new(), http: String::new() };
        server.address = server.hear();
        server.http = server.hear();
        server
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("the server says something");
        line.trim_end().to_owned()
    }

    pub(crate) fn cpu(&mut self) -> Duration {
        let input = self.child.stdin.as_mut().expect("it is piped");
        input.write_all(b"\n").expect("the server listens");
        Duration::from_nanos(self.hear().parse().expect("it is a number"))
    }

    /// A counter of a broker's.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let mut stream = TcpStream::connect(&self.http).expect("the broker listens");
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("it is read");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it is answered");
        let line = format!("mainstem_{name}_total ");
        let value = answer.lines().find_map(|found| found.strip_prefix(&line));
        value.expect("it is told").trim().parse().expect("it is a number")
    }

    /// Bytes of memory that are its own.
    pub(crate) fn memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB")).expect("Linux says so");
        kib.trim().parse::<u64>().expect("it is a number") << 10
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // The bench is over for it, however it ends.
        let _ended = self.child.wait();
    }
}

/// A server's process: says where it listens, for calls and for its counters, then its CPU time for each line, until there are no more lines.
pub(crate) fn serve(workers: usize, what: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .expect("a runtime starts");
    let broker = match what {
        NO_OP => {
            let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"));
            let listener = listener.expect("a port is free");
            say(&listener.local_addr().expect("it has one").to_string());
            say("");
            runtime.spawn(no_op(listener));
            None
        }
        dir => {
            let sets = [
                format!("server.data={dir}/data"),
                "server.listen=127.0.0.1:0".to_owned(),
                "server.http=127.0.0.1:0".to_owned(),
            ];
            let config = Config::load(None, &sets).expect("the configuration is sound");
            let spawned = runtime.block_on(server::spawn(config)).expect("a broker starts");
            let listening = spawned.listening();
            say(&listening.grpc.to_string());
            say(&listening.http.to_string());
            Some(spawned)
        }
    };
    for line in stdin().lock().lines() {
        line.expect("a line is text");
        say(&process_cpu().as_nanos().to_string());
    }
    if let Some(broker) = broker {
        runtime.block_on(broker.stop()).expect("the broker stops");
    }
}

fn say(line: &str) {
    writeln!(stdout(), "{line}").expect("the bench listens");
}
