//! A producer as a user of the official client for Rust writes one; see ../../main.rs for what it has to do and say.
//!
//! Usage: producing ADDRESS plain|tls once|steadily

use std::sync::Arc;
use std::time::Duration;

use rocketmq::Producer;
use rocketmq::conf::{ClientOption, ProducerOption};
use rocketmq::model::message::{Message, MessageBuilder};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader, stdin};
use tokio::task::JoinSet;
use tokio::time::timeout;

const MESSAGES: usize = 100;
const GROUPS: [&str; 3] = ["red", "green", "blue"];
const OF_A_GROUP: usize = 20;

fn plain(kind: &str, n: usize) -> impl Message + use<> {
    let message = MessageBuilder::builder()
        .set_topic("plain")
        .set_body(format!("{kind}-{n}").into_bytes())
        .set_tag(if n % 2 == 0 { "even" } else { "odd" })
        .set_keys(vec![format!("{kind}-key-{n}")])
        .set_properties(
            [("n".to_owned(), n.to_string()), ("language".to_owned(), "Rust ✓".to_owned())].into(),
        );
    message.build().unwrap()
}

fn ordered(topic: &str, group: &str, n: usize) -> impl Message + use<> {
    let body = format!("{group}-{n}").into_bytes();
    MessageBuilder::fifo_message_builder(topic, body, group).build().unwrap()
}

async fn once(producer: &Arc<Producer>) {
    for n in 0..MESSAGES {
        let receipt = producer.send(plain("sync", n)).await.unwrap();
        println!("{}", json!({ "kind": "sync", "n": n, "id": receipt.message_id() }));
    }
    let mut sends = JoinSet::new();
    for n in 0..MESSAGES {
        let producer = Arc::clone(producer);
        sends.spawn(async move { (n, producer.send(plain("async", n)).await.unwrap()) });
    }
    while let Some(sent) = sends.join_next().await {
        let (n, receipt) = sent.unwrap();
        println!("{}", json!({ "kind": "async", "n": n, "id": receipt.message_id() }));
    }
    for n in 0..OF_A_GROUP {
        for group in GROUPS {
            let receipt = producer.send(ordered("ordered", group, n)).await.unwrap();
            println!("{}", json!({ "kind": group, "n": n, "id": receipt.message_id() }));
        }
    }
    let refused = producer.send(ordered("plain", "red", 0)).await.is_err();
    println!("{}", json!({ "kind": "conflict", "refused": refused }));
}

#[tokio::main]
async fn main() {
    let args: Vec<_> = std::env::args().collect();
    let mut option = ProducerOption::default();
    option.set_topics(vec!["plain", "ordered"]);
    let mut client = ClientOption::default();
    client.set_access_url(args[1].as_str());
    client.set_enable_tls(args[2] == "tls");
    let mut producer = Producer::new(option, client).unwrap();
    producer.start().await.unwrap();
    let producer = Arc::new(producer);
    println!("{}", json!({ "kind": "started" }));

    let mut input = BufReader::new(stdin());
    let mut line = String::new();
    if args[3] == "once" {
        once(&producer).await;
        println!("{}", json!({ "kind": "done" }));
        input.read_line(&mut line).await.unwrap();
    } else {
        let mut n = 0;
        while timeout(Duration::from_millis(10), input.read_line(&mut line)).await.is_err() {
            match producer.send(plain("steady", n)).await {
                Ok(receipt) => {
                    println!("{}", json!({ "kind": "steady", "n": n, "id": receipt.message_id() }));
                }
                Err(error) => {
                    println!("{}", json!({ "kind": "failed", "n": n, "why": error.to_string() }));
                }
            }
            n += 1;
        }
    }
    let producer = Arc::into_inner(producer).expect("nobody else has it any more");
    // Whatever comes of its goodbye, the program ends.
    let said = producer.shutdown().await.is_ok();
    println!("{}", json!({ "kind": "ended", "goodbye": said }));
}
