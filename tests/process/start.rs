//! Starts that cannot be: one line that names cause and cure, a documented exit code, and nothing broken.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;

use crc_fast::{CrcAlgorithm, checksum};
use tokio::process::Command;

use crate::support::{BINARY, Home, Memory, Process, one, read_all, refused_start, soon};

const FAILED: Option<i32> = Some(1);
const USAGE: Option<i32> = Some(2);
const NEEDS: &str = "serve needs a directory that it can read and write; name another with --data";

/// Asserts how a start with `args` ends, and that its last words are `error` alone.
async fn refused(args: &[&str], code: Option<i32>, error: &str) {
    let (found, said) = refused_start(args).await;
    let last = said.lines().last().unwrap_or_default();
    assert_eq!((found, last), (code, format!("error: {error}").as_str()), "{args:?}: {said}");
    let errors = said.lines().filter(|line| !line.starts_with("20"));
    assert_eq!(errors.count(), 1, "one line: {said}");
}

async fn refused_on(data: &Path, error: &str) {
    refused(&["--data", data.to_str().unwrap()], FAILED, error).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_data_directory_is_made_for_its_owner_alone() {
    let home = Home::new();
    let process = Process::start(&home, &[]).await;
    assert_eq!(home.data().metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    for entry in std::fs::read_dir(home.data()).unwrap() {
        let entry = entry.unwrap();
        let others = entry.metadata().unwrap().permissions().mode() & 0o077;
        assert_eq!(others, 0, "{}", entry.path().display());
    }
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_cannot_be_is_named_with_a_cure() {
    let home = Home::new();
    let lost = home.path().join("no/data");
    let error = format!("parent directory of {} does not exist; make it first", lost.display());
    refused_on(&lost, &error).await;
    assert!(!home.path().join("no").exists());

    let file = home.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    let lock = file.join("lock");
    let open = "cannot open the store: cannot";
    let error = format!("{open} lock {}: Not a directory (os error 20): {NEEDS}", lock.display());
    refused_on(&file, &error).await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");

    let below = file.join("data");
    let error = format!(
        "{open} make the directory {}: Not a directory (os error 20): {NEEDS}",
        below.display()
    );
    refused_on(&below, &error).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_data_directory_is_named_with_a_cure() {
    let home = Home::new();
    let Some(memory) = Memory::mount(&home.path().join("memory"), 1) else { return };
    let data = home.path().join("memory/data");
    std::fs::create_dir(&data).unwrap();
    memory.make_read_only();
    let error = format!(
        "cannot open the store: cannot lock {}/lock: Read-only file system (os error 30): {NEEDS}",
        data.display()
    );
    refused_on(&data, &error).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_room_for_a_segment_is_named_with_a_cure() {
    let home = Home::new();
    let Some(_memory) = Memory::mount(&home.path().join("memory"), 8) else { return };
    let data = home.path().join("memory/data");
    let (code, said) = refused_start(&["--data", data.to_str().unwrap()]).await;
    let last = said.lines().last().unwrap();
    assert_eq!(code, FAILED, "{said}");
    assert!(last.starts_with("error: cannot open the store: cannot reserve blocks for"), "{said}");
    let cure = ": no space left on the device: free some space, then start it again";
    assert!(last.ends_with(cure), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_broker_on_a_directory_is_refused_and_the_first_goes_on() {
    let home = Home::new();
    let process = Process::start(&home, &[]).await;
    let client = process.client().await;
    client.send("orders", None, one(b"before")).await.unwrap();
    let error = format!(
        "data directory {} is in use by another process; stop that broker or choose another directory",
        home.data().display()
    );
    refused_on(&home.data(), &error).await;
    client.send("orders", None, one(b"after")).await.unwrap();
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_is_named_and_the_store_is_closed_clean() {
    let home = Home::new();
    let process = Process::start(&home, &[]).await;
    let other = Home::new();
    let data = other.data();
    for (option, address) in [("--listen", &process.grpc), ("--http", &process.http)] {
        let error = format!(
            "cannot listen on {address} (Address already in use (os error 98)): is a broker \
             running there? Name another address with {option}"
        );
        let args = ["--data", data.to_str().unwrap(), option, address];
        refused(&args, FAILED, &error).await;
    }
    process.stop().await;
    let process = Process::start(&other, &[]).await;
    let report = process.client().await.status().await.unwrap().start_report;
    assert!(report[0].starts_with("opened after a clean stop, epoch 3:"), "{report:?}");
    process.stop().await;
}

/// Writes `version` into the envelope of a structure, whose checksum stays right.
fn raise_version(bytes: &mut [u8], version: u32) {
    bytes[4..8].copy_from_slice(&version.to_le_bytes());
    bytes[16..20].fill(0);
    let sum = u32::try_from(checksum(CrcAlgorithm::Crc32Iscsi, bytes)).unwrap();
    bytes[16..20].copy_from_slice(&sum.to_le_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_format_is_refused_and_left_as_it_is() {
    let home = Home::new();
    let process = Process::start(&home, &[]).await;
    process.client().await.send("orders", None, one(b"hello")).await.unwrap();
    process.stop().await;
    let segment = home.data().join("commitlog/00000000000000000000.log");
    for (file, head) in [(home.data().join("identity"), 88), (segment, 4096)] {
        let old = std::fs::read(&file).unwrap();
        let mut newer = old.clone();
        raise_version(&mut newer[..head], 2);
        std::fs::write(&file, &newer).unwrap();
        let error = format!(
            "{} has format version 2, this build reads up to 1; use a newer mainstem",
            file.display()
        );
        refused_on(&home.data(), &error).await;
        assert!(std::fs::read(&file).unwrap() == newer, "{} was changed", file.display());
        std::fs::write(&file, &old).unwrap();
    }
    let process = Process::start(&home, &[]).await;
    let client = process.client().await;
    let mut found = Vec::new();
    for queue in 0..4 {
        found.extend(read_all(&client, "orders", queue).await.into_iter().map(|m| m.body));
    }
    assert_eq!(found, ["hello"]);
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_identity_is_gone_is_refused() {
    let home = Home::new();
    Process::start(&home, &[]).await.stop().await;
    let identity = home.data().join("identity");
    std::fs::remove_file(&identity).unwrap();
    std::fs::remove_file(home.data().join("identity.copy")).unwrap();
    let error =
        format!("both {} and its copy are unreadable; restore one of them", identity.display());
    refused_on(&home.data(), &error).await;
    assert!(!identity.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_setting_is_named_with_what_is_right() {
    let home = Home::new();
    let data = home.data();
    let keys = "`segment_size`, `unsealed_memory`, `flush`, `flush_interval`, `flush_bytes`, \
                `max_unflushed`, `hot_bytes`, `disk_reserve`, `keep_unfinished`, \
                `scrub_rate`";
    let unknown = format!(
        "--set store.segments=3 is wrong: unknown field `segments`, expected one of {keys}"
    );
    for (setting, error) in [
        ("store.segments=3", unknown.as_str()),
        (
            "storage.flush=sync",
            "--set storage.flush=sync is wrong: unknown field `storage`, expected one of \
             `server`, `tls`, `store`, `broker`",
        ),
        ("store.segment_size=1MiB", "store.segment_size = 1.0 MiB is outside 64.0 MiB to 1.0 GiB"),
        (
            "store.flush=often",
            "--set store.flush=often is wrong: unknown variant `often`, expected `sync` or `async`",
        ),
        (
            "store.flush_interval=fast",
            "--set store.flush_interval=fast is wrong: invalid value: string \"fast\", expected a \
             duration",
        ),
        ("server.listen=here", "--set server.listen=here is wrong: invalid socket address syntax"),
        ("nonsense", "--set nonsense: write it as table.key=value"),
    ] {
        refused(&["--data", data.to_str().unwrap(), "--set", setting], USAGE, error).await;
    }
    assert!(!data.exists(), "a start with a wrong setting touches nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_file_is_named_with_the_line() {
    let home = Home::new();
    let data = home.data();
    let file = home.path().join("mainstem.toml");
    let args = ["--data", data.to_str().unwrap(), "--config", file.to_str().unwrap()];
    let error = format!(
        "the configuration file {} cannot be read: No such file or directory (os error 2)",
        file.display()
    );
    refused(&args, USAGE, &error).await;

    std::fs::write(&file, "[store]\nflush = \"sync\"\nsegmnt_size = 3\n").unwrap();
    let (code, said) = refused_start(&args).await;
    let lines: Vec<_> = said.lines().collect();
    let first = format!(
        "error: the configuration file {} is wrong: TOML parse error at line 3, column 1",
        file.display()
    );
    assert_eq!((code, lines[0]), (USAGE, first.as_str()), "{said}");
    assert!(lines.contains(&"3 | segmnt_size = 3"), "{said}");
    assert!(lines.last().unwrap().starts_with("unknown field `segmnt_size`"), "{said}");
    assert!(!data.exists(), "a start with a wrong file touches nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_address_that_others_reach_is_warned_of() {
    let warned = "WARN no authentication: whoever reaches this address can";
    let (grpc, http) = ("do everything grpc=0.0.0.0:", "use all that it serves http=0.0.0.0:");
    for (setting, expected) in [
        ("server.drain_timeout=1s", [false, false]),
        ("server.listen=0.0.0.0:0", [true, false]),
        ("server.http=0.0.0.0:0", [false, true]),
    ] {
        let home = Home::new();
        let mut command = Command::new(BINARY);
        command.args(["serve", "--set", "server.listen=127.0.0.1:0"]);
        command.args(["--set", "server.http=127.0.0.1:0", "--set", setting]);
        command.args(["--set", "store.segment_size=64MiB", "--data"]).arg(home.data());
        // Its standard input has ended, so it serves and stops.
        command.arg("--until-stdin-closes").stdin(Stdio::null()).env_remove("RUST_LOG");
        let output = soon("a start and a stop", command.output()).await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{said}");
        let found = [grpc, http].map(|what| said.contains(&format!("{warned} {what}")));
        assert_eq!(found, expected, "{setting}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_none_is_named_with_its_cause_and_a_cure() {
    let home = Home::new();
    let data = home.data();
    let data = data.to_str().unwrap();
    let (certificate, key) = (home.path().join("c.pem"), home.path().join("k.pem"));
    let certificate_set = format!("tls.certificate={}", certificate.display());
    let key_set = format!("tls.key={}", key.display());

    let args = ["--data", data, "--set", &certificate_set];
    refused(&args, USAGE, "tls.certificate is set and tls.key is not: they go together").await;

    let args = ["--data", data, "--set", &certificate_set, "--set", &key_set];
    let cure =
        "look at tls.certificate and tls.key; without them the broker makes a pair for itself";
    let error = format!("no certificate for TLS: {} does not exist: {cure}", certificate.display());
    refused(&args, USAGE, &error).await;

    std::fs::write(&certificate, "nothing").unwrap();
    std::fs::write(&key, "nothing").unwrap();
    let error = format!(
        "no certificate for TLS in {} with {}: there is no certificate in PEM in its file: {cure}",
        certificate.display(),
        key.display()
    );
    refused(&args, USAGE, &error).await;

    // The store was closed clean each time, and the broker's own pair is made where none is named.
    let process = Process::start(&home, &[]).await;
    process.stop().await;
    let own = home.data().join("tls");
    std::fs::write(own.join("key.pem"), "nothing").unwrap();
    let (code, said) = refused_start(&["--data", data]).await;
    let last = said.lines().last().unwrap();
    assert_eq!(code, FAILED, "{said}");
    let cause = format!(
        "error: no certificate for TLS in {0}/certificate.pem with {0}/key.pem: the key is not a private key in PEM",
        own.display()
    );
    assert!(last.starts_with(&cause), "{said}");
    let cure = "remove tls/ in the data directory; the next start makes a new pair, which clients have to be given";
    assert!(last.ends_with(cure), "{said}");
    std::fs::remove_dir_all(&own).unwrap();
    let process = Process::start(&home, &[]).await;
    assert_eq!(said_certificates(&process), 2, "{}", process.said());
    process.stop().await;
}

/// How often the brokers of a home have said which certificate they serve, by its digest.
fn said_certificates(process: &Process) -> usize {
    let said = process.said();
    let digest = |line: &&str| {
        let digest = line.split_once("sha256=").unwrap().1;
        digest.chars().take_while(char::is_ascii_hexdigit).count() == 64
    };
    let lines = said.lines().filter(|line| line.contains(" INFO certificate file="));
    lines.filter(digest).count()
}
