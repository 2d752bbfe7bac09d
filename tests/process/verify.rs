//! A store is verified while its broker runs, refused to everybody else, told on when a byte of it rots, and silent about
//! it once that is given up.

use std::process::Stdio;

use tokio::process::Command;

use crate::support::{BINARY, Home, Process, assert_no_panic, one, soon};

/// `mainstem store verify` with `args`.
async fn verify(args: &[&str]) -> (Option<i32>, Vec<serde_json::Value>, String) {
    run(&[&["store", "verify"], args].concat()).await
}

/// `mainstem` with `args`: its exit code, the objects that it wrote, and what it said.
async fn run(args: &[&str]) -> (Option<i32>, Vec<serde_json::Value>, String) {
    let mut command = Command::new(BINARY);
    command.args(["-o", "jsonl"]).args(args);
    command.env_remove("MAINSTEM_SERVER").stdin(Stdio::null()).kill_on_drop(true);
    let output = soon("a verification", command.output()).await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_no_panic(&said);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output.status.code(), lines, said)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_verified_by_its_broker_and_without_it() {
    let home = Home::new();
    let data = home.data();
    let data = data.to_str().unwrap();
    let process = Process::start(&home, &[]).await;
    let client = process.client().await;
    let mut receipts = Vec::new();
    for body in [&b"first"[..], b"second", b"third"] {
        receipts.push(client.send("orders", None, one(body)).await.unwrap());
    }

    let (code, lines, said) = verify(&["--server", &process.grpc]).await;
    assert_eq!((code, said.as_str()), (Some(0), ""));
    let [summary] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!(summary["summary"]["messages"], 3);
    assert_eq!(summary["summary"]["sound"], true);

    let (code, lines, said) = verify(&["--data", data]).await;
    let expected = format!(
        "error: data directory {data} is in use by another process; stop that broker first: \
         or leave out --data: then the broker verifies its own store\n"
    );
    assert_eq!((code, lines, said), (Some(1), vec![], expected));
    process.stop().await;

    let (code, lines, said) = verify(&["--data", data]).await;
    assert_eq!((code, said.as_str()), (Some(0), ""));
    assert_eq!(lines[0]["summary"]["messages"], 3);

    let log = home.data().join("commitlog/00000000000000000000.log");
    let mut bytes = std::fs::read(&log).unwrap();
    let at = receipts[1].first_id.offset.get();
    bytes[usize::try_from(at).unwrap() + 135] ^= 4;
    std::fs::write(&log, bytes).unwrap();
    let (code, lines, said) = verify(&["--data", data]).await;
    assert_eq!(code, Some(1));
    assert!(said.starts_with("error: the store is not sound"), "{said}");
    let [finding, summary] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!((&finding["kind"], &finding["begin"]), (&"damaged".into(), &at.into()));
    assert_eq!(finding["queue"], receipts[1].queue.get());
    assert_eq!(summary["summary"]["damaged"], 1);

    // The broker starts all the same, warns, and says the same of itself.
    let process = Process::start(&home, &[]).await;
    let log = process.said();
    let warning = log.lines().find(|line| line.contains("DAMAGED")).unwrap();
    assert!(warning.contains("WARN"), "{warning}");
    let (code, lines, _) = verify(&["--server", &process.grpc]).await;
    assert_eq!((code, &lines[0]["begin"]), (Some(1), &at.into()));
    process.stop().await;

    // Given up, it is not missed any more.
    let (code, lines, said) = run(&["store", "repair", "--data", data, "--lose", "all"]).await;
    assert_eq!((code, said.as_str()), (Some(0), ""));
    assert_eq!(lines[0]["lost"][0]["begin"], at);
    let process = Process::start(&home, &[]).await;
    let log = process.said();
    let (_, last) = log.rsplit_once("opened after").unwrap();
    assert!(last.contains("serving") && !last.contains("DAMAGED"), "{last}");
    let (code, lines, said) = run(&["pull", "-t", "orders", "--server", &process.grpc]).await;
    assert_eq!((code, said.as_str()), (Some(0), ""));
    let mut bodies: Vec<_> = lines.iter().map(|line| line["body"].as_str().unwrap()).collect();
    bodies.sort_unstable();
    assert_eq!(bodies, ["first", "third"]);
    let (code, lines, _) = verify(&["--server", &process.grpc]).await;
    assert_eq!((code, &lines[0]["kind"]), (Some(0), &"remark".into()));
    process.stop().await;
}
