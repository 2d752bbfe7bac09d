//! The programs, how they come here, and what they say.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::OnceCell;

use crate::broker::{Broker, soon};

/// A language with an official client.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Language {
    Python,
    Java,
    Rust,
}

/// Whether a program talks TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Security {
    Plain,
    Tls,
}

/// What a program of a language is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role<'a> {
    /// Sends, `once` or `steadily`.
    Producer(&'a str),
    /// Receives when it is told to.
    Simple(Wants<'a>),
    /// Hands messages to a listener.
    Push(Wants<'a>),
}

/// Whose messages a consumer wants, and which.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wants<'a> {
    pub(crate) group: &'a str,
    pub(crate) topic: &'a str,
    /// `tag` or `sql`, and an expression.
    pub(crate) filter: [&'a str; 2],
}

impl<'a> Wants<'a> {
    pub(crate) fn all(group: &'a str, topic: &'a str) -> Self {
        Self { group, topic, filter: ["tag", "*"] }
    }
}

/// Where the files of the programs are.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance")
}

impl Language {
    /// As people write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Python => "Python",
            Self::Java => "Java",
            Self::Rust => "Rust",
        }
    }

    /// As its client calls it.
    pub(crate) fn as_told(self) -> &'static str {
        match self {
            Self::Python => "PYTHON",
            Self::Java => "JAVA",
            Self::Rust => "RUST",
        }
    }

    /// Where its client and its program are kept.
    fn home(self) -> PathBuf {
        Path::new(env!("CARGO_TARGET_TMPDIR")).join("conformance").join(self.name())
    }

    /// Downloads and builds what there is to, once. `Err`: why there is no such program.
    async fn prepare(self) -> &'static Result<(), String> {
        static PYTHON: OnceCell<Result<(), String>> = OnceCell::const_new();
        static JAVA: OnceCell<Result<(), String>> = OnceCell::const_new();
        static RUST: OnceCell<Result<(), String>> = OnceCell::const_new();
        match self {
            Self::Python => PYTHON.get_or_init(|| self.install("python/requirements.txt")).await,
            Self::Java => JAVA.get_or_init(|| self.install("java/pom.xml")).await,
            Self::Rust => RUST.get_or_init(|| self.build()).await,
        }
    }

    /// Installs what a file pins, unless that is what is there, and compiles what there is to.
    async fn install(self, pinned: &str) -> Result<(), String> {
        let home = self.home();
        let file = sources().join(pinned);
        let wanted = std::fs::read(&file).unwrap();
        let mark = home.join("installed");
        if std::fs::read(&mark).ok() != Some(wanted.clone()) {
            let _ = std::fs::remove_dir_all(&home);
            std::fs::create_dir_all(&home).unwrap();
            match self {
                Self::Python => {
                    let venv = home.join("venv");
                    run(Command::new("python3").args(["-m", "venv"]).arg(&venv)).await?;
                    let mut pip = Command::new(venv.join("bin/pip"));
                    run(pip.args(["install", "--quiet", "--requirement"]).arg(&file)).await?;
                }
                _ => {
                    let mut mvn = Command::new("mvn");
                    mvn.args(["-q", "-B", "-f"]).arg(&file).arg("dependency:copy-dependencies");
                    mvn.arg(format!("-DoutputDirectory={}", home.join("lib").display()));
                    run(mvn.arg("-DincludeScope=runtime")).await?;
                }
            }
            std::fs::write(&mark, wanted).unwrap();
        }
        if let Self::Java = self {
            let mut javac = Command::new("javac");
            javac.args(["-encoding", "UTF-8", "-cp"]).arg(home.join("lib/*"));
            let files = ["java/Producing.java", "java/Consuming.java"];
            let files = files.map(|file| sources().join(file));
            run(javac.arg("-d").arg(home.join("classes")).args(files)).await?;
        }
        Ok(())
    }

    async fn build(self) -> Result<(), String> {
        let mut cargo = Command::new("cargo");
        cargo.args(["build", "--quiet", "--locked", "--manifest-path"]);
        cargo.arg(sources().join("rust/Cargo.toml")).arg("--target-dir").arg(self.home());
        // A package of its own, which knows nothing of how this one is built.
        run(cargo.env_remove("RUSTFLAGS")).await
    }

    fn command(self, role: Role<'_>) -> Command {
        let home = self.home();
        let is_producer = matches!(role, Role::Producer(_));
        match self {
            Self::Python => {
                let mut python = Command::new(home.join("venv/bin/python"));
                let program = if is_producer { "producer.py" } else { "consumer.py" };
                python.arg(sources().join("python").join(program));
                python
            }
            Self::Java => {
                let mut java = Command::new("java");
                // The client writes a log of its own below the user's home.
                java.arg(format!("-Duser.home={}", home.display())).arg("-Dfile.encoding=UTF-8");
                let path = format!("{0}/classes:{0}/lib/*", home.display());
                java.args(["-cp", &path, if is_producer { "Producing" } else { "Consuming" }]);
                java
            }
            Self::Rust => {
                let program = if is_producer { "producing" } else { "consuming" };
                Command::new(home.join("debug").join(program))
            }
        }
    }
}

/// Runs a command to its end; what it said on stderr where it failed.
async fn run(command: &mut Command) -> Result<(), String> {
    let shown = format!("{:?}", command.as_std());
    match command.stdin(Stdio::null()).output().await {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{shown}: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => Err(format!("{shown}: {error}")),
    }
}

/// A program that runs. Dropping it kills it.
pub(crate) struct Program {
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    /// What it says on stderr.
    log: PathBuf,
}

impl Program {
    /// Starts a program, and waits until its client has started. `None`: it cannot be had here.
    pub(crate) async fn start(
        language: Language,
        broker: &Broker,
        security: Security,
        role: Role<'_>,
    ) -> Option<Self> {
        if let Err(why) = language.prepare().await {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}");
            let _ = writeln!(std::io::stderr(), "SKIP: no client for {}: {why}", language.name());
            return None;
        }
        let (_, port) = broker.grpc.rsplit_once(':').unwrap();
        let (host, security) = match security {
            Security::Plain => ("127.0.0.1", "plain"),
            // As the certificate has it.
            Security::Tls => ("localhost", "tls"),
        };
        let mut command = language.command(role);
        command.args([&format!("{host}:{port}"), security]);
        match role {
            Role::Producer(what) => command.arg(what),
            Role::Simple(of) | Role::Push(of) => {
                let kind = if let Role::Simple(_) = role { "simple" } else { "push" };
                command.args([kind, of.group, of.topic]).args(of.filter)
            }
        };
        command
            // Which certificates those trust that verify them.
            .env("SSL_CERT_FILE", &broker.certificate)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(broker.log_of("client"))
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let log = broker.path_of("client");
        let mut program = Self { child, stdin, stdout, log };
        program.until("started").await;
        Some(program)
    }

    /// The next line.
    async fn line(&mut self) -> Value {
        let line = soon("a line", self.stdout.next_line()).await.unwrap();
        let said = || std::fs::read_to_string(&self.log).unwrap_or_default();
        let line = line.unwrap_or_else(|| panic!("the program has ended:\n{}", said()));
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// What it says up to a line of this kind.
    pub(crate) async fn until(&mut self, kind: &str) -> Vec<Value> {
        let mut lines = Vec::new();
        loop {
            let line = self.line().await;
            if line["kind"] == kind {
                return lines;
            }
            lines.push(line);
        }
    }

    /// So many messages that it is told are stored: their ids.
    pub(crate) async fn acknowledged(&mut self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        while ids.len() < count {
            ids.extend(acknowledged(&self.line().await));
        }
        ids
    }

    /// Tells it something.
    pub(crate) async fn tell(&mut self, what: &str) {
        self.stdin.write_all(format!("{what}\n").as_bytes()).await.unwrap();
    }

    /// What one receive gets, for so many seconds; nothing if it fails.
    pub(crate) async fn receive(&mut self, seconds: u32) -> Vec<Value> {
        self.tell(&format!("receive 32 {seconds}")).await;
        let mut lines = self.until("received").await;
        lines.retain(|line| line["kind"] == "message");
        lines
    }

    /// So many messages, with as many receives as that takes.
    pub(crate) async fn get(&mut self, count: usize) -> Vec<Value> {
        let mut messages = Vec::new();
        while messages.len() < count {
            messages.extend(self.receive(30).await);
        }
        assert_eq!(messages.len(), count);
        messages
    }

    /// Whether it could be done: `ack` or `change` of a message that it received.
    pub(crate) async fn can(&mut self, what: &str) -> bool {
        self.tell(what).await;
        let line = self.line().await;
        line["ok"].as_bool().unwrap()
    }

    pub(crate) async fn finish(&mut self, messages: &[Value]) {
        for message in messages {
            let id = message["id"].as_str().unwrap();
            assert!(self.can(&format!("ack {id}")).await, "{message}");
        }
    }

    /// The next message that its listener gets.
    pub(crate) async fn heard(&mut self) -> Value {
        loop {
            let line = self.line().await;
            if line["kind"] == "message" {
                return line;
            }
        }
    }

    /// Lets it end, which it does well, and gives the rest of what it says.
    pub(crate) async fn end(mut self) -> Vec<Value> {
        self.tell("end").await;
        let rest = self.until("ended").await;
        assert_eq!(soon("ending", self.child.wait()).await.unwrap().code(), Some(0));
        rest
    }
}

/// The id of a message, where a line says that it is stored.
pub(crate) fn acknowledged(line: &Value) -> Option<String> {
    Some(line["id"].as_str()?.to_owned())
}
