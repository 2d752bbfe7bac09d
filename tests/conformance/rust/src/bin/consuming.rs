//! A consumer as a user of the official client for Rust writes one; see ../../../main.rs for what it has to do and say.
//! The client has no push consumer and cannot change invisible times.
//!
//! Usage: consuming ADDRESS plain|tls simple GROUP TOPIC tag|sql EXPRESSION

use std::collections::HashMap;
use std::time::Duration;

use rocketmq::SimpleConsumer;
use rocketmq::conf::{ClientOption, SimpleConsumerOption};
use rocketmq::model::common::{FilterExpression, FilterType};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader, stdin};

const POLL: Duration = Duration::from_secs(6);

#[tokio::main]
async fn main() {
    let args: Vec<_> = std::env::args().collect();
    let mut option = SimpleConsumerOption::default();
    option.set_consumer_group(args[4].as_str());
    option.set_topics(vec![args[5].as_str()]);
    let mut client = ClientOption::default();
    client.set_access_url(args[1].as_str());
    client.set_enable_tls(args[2] == "tls");
    client.set_long_polling_timeout(POLL);
    let kind = if args[6] == "sql" { FilterType::Sql } else { FilterType::Tag };
    let wanted = FilterExpression::new(kind, args[7].as_str());
    let mut consumer = SimpleConsumer::new(option, client).unwrap();
    consumer.start().await.unwrap();
    println!("{}", json!({ "kind": "started" }));

    let mut held = HashMap::new();
    let mut lines = BufReader::new(stdin()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        let words: Vec<_> = line.split(' ').collect();
        match words[0] {
            "receive" => {
                let time = Duration::from_secs(words[2].parse().unwrap());
                let most = words[1].parse().unwrap();
                let messages = match consumer.receive_with(&args[5], &wanted, most, time).await {
                    Ok(messages) => messages,
                    Err(error) => {
                        println!("{}", json!({ "kind": "failed", "why": error.to_string() }));
                        Vec::new()
                    }
                };
                let count = messages.len();
                for message in messages {
                    let shown = json!({
                        "kind": "message",
                        "id": message.message_id(),
                        "topic": message.topic(),
                        "body": String::from_utf8_lossy(message.body()),
                        "tag": message.tag(),
                        "keys": message.keys(),
                        "properties": message.properties(),
                        "group": message.message_group(),
                        "attempt": message.delivery_attempt(),
                    });
                    println!("{shown}");
                    held.insert(message.message_id().to_owned(), message);
                }
                println!("{}", json!({ "kind": "received", "count": count }));
            }
            "ack" => {
                let ok = consumer.ack(&held[words[1]]).await.is_ok();
                println!("{}", json!({ "kind": "acked", "ok": ok }));
            }
            _ => break,
        }
    }
    // Whatever comes of its goodbye, the program ends.
    let said = consumer.shutdown().await.is_ok();
    println!("{}", json!({ "kind": "ended", "goodbye": said }));
}
