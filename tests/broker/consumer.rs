//! What consumers and operators of one group ask a broker for, and what of it can be seen.
//!
//! Every request is carried out at once; `None`, or the broker's own error behind it, is what is left of it when the
//! power goes.

use std::sync::Arc;
use std::time::Duration;

use mainstem::broker::{
    Broker, BrokerError, Expression, ExtendEntry, ExtendFault, Hold, Language, OnlySuch,
    PullRequest, QueueProgress, ReceiveRequest, ReceivedMessage, RedriveRequest, Redriven, Run,
    SendRequest, SettleRequest, SettledMessage, WaitingAction, WaitingMessage, WaitingRequest,
    dead_letter,
};
use mainstem::format::attributes::DeadReason;
use mainstem::format::batch::{Batch, BatchBuilder, NewMeta};
use mainstem::message::{MessageId, QueueId, QueueOffset};

use crate::rig::{Rig, late};

pub(crate) const TOPIC: &str = "t";
pub(crate) const GROUP: &str = "g";
pub(crate) const DEAD: &str = "%DLQ%g";

/// The answer of a request, as far as there is one.
pub(crate) type Told<T> = Option<Result<T, BrokerError>>;

/// A message where it lies, as anybody sees it who reads by offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lying {
    pub(crate) id: MessageId,
    pub(crate) queue: u32,
    pub(crate) offset: u64,
    pub(crate) body: String,
    /// Of a dead letter, or one that is back: why, after how many deliveries, how often it went back, whether it is.
    pub(crate) history: Option<(DeadReason, u32, u32, bool)>,
}

/// What there is to see of a topic for the group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) progress: Vec<QueueProgress>,
    pub(crate) waiting: Vec<WaitingMessage>,
    pub(crate) lying: Vec<Lying>,
}

impl View {
    /// Messages that are not finished: ready, leased, waiting.
    pub(crate) fn split(&self) -> (u64, u64, u64) {
        let sum = |of: fn(&QueueProgress) -> u64| self.progress.iter().map(of).sum();
        (sum(|of| of.ready), sum(|of| of.leased), sum(|of| of.waiting))
    }

    pub(crate) fn open(&self) -> u64 {
        let (ready, leased, waiting) = self.split();
        ready + leased + waiting
    }
}

pub(crate) fn body_of(batch: &[u8]) -> String {
    let batch = Batch::parse(batch).unwrap();
    let (_, body) = batch.messages().next().unwrap().unwrap();
    String::from_utf8(body.to_vec()).unwrap()
}

fn lying(records: &[mainstem::store::StoredRecord]) -> Vec<Lying> {
    let one = |record: &mainstem::store::StoredRecord| Lying {
        id: MessageId { epoch: record.epoch, offset: record.offset, index: 0 },
        queue: record.queue.get(),
        offset: record.first_queue_offset.get(),
        body: body_of(&record.batch),
        history: dead_letter(&record.attributes)
            .map(|of| (of.reason, of.deliveries, of.redriven, of.is_back)),
    };
    records.iter().map(one).collect()
}

impl Rig {
    fn broker(&self) -> Arc<Broker> {
        Arc::clone(&self.broker)
    }

    /// Sends one message to a queue, or to that of its message group, and tells which that is.
    pub(crate) fn send(
        &mut self,
        queue: u32,
        body: &str,
        message_group: Option<&str>,
    ) -> Told<u32> {
        let mut batch = BatchBuilder::new();
        batch.push(&NewMeta { message_group, ..NewMeta::default() }, body.as_bytes());
        let (broker, batch) = (self.broker(), batch.finish());
        // A message group has its queue.
        let queue = message_group.is_none().then_some(QueueId::new(queue));
        self.carry(async move {
            let deadline = late();
            let request = SendRequest { topic: TOPIC, queue, batch, session: None, deadline };
            broker.send(request).await.map(|stored| stored.queue.get())
        })
    }

    pub(crate) fn receive(
        &mut self,
        topic: &'static str,
        max_messages: u32,
        invisible: Duration,
    ) -> Told<Vec<ReceivedMessage>> {
        let broker = self.broker();
        self.carry(async move {
            let filter = Expression::parse(Language::Tags, "*").unwrap();
            let request = ReceiveRequest {
                group: GROUP,
                topic,
                filter: &filter,
                max_messages,
                max_bytes: 1 << 20,
                invisible,
                client: None,
                holder: "somebody",
                wait: Duration::ZERO,
                attempt: "",
                deadline: late(),
            };
            broker.receive_messages(request).await.map(|received| received.messages)
        })
    }

    pub(crate) fn ack(&mut self, handles: Vec<String>) -> Told<Vec<bool>> {
        let broker = self.broker();
        self.carry(async move {
            let handles: Vec<_> = handles.iter().map(String::as_str).collect();
            broker.ack(GROUP, TOPIC, &handles, late()).await
        })
    }

    pub(crate) fn hold(&mut self, handle: String, hold: Hold) -> Told<Result<String, ExtendFault>> {
        let broker = self.broker();
        self.carry(async move {
            let entries = [ExtendEntry { handle: &handle, hold }];
            let held = broker.extend(GROUP, TOPIC, &entries, late()).await;
            held.map(|mut held| held.remove(0))
        })
    }

    pub(crate) fn forward(&mut self, handle: String) -> Told<()> {
        let broker = self.broker();
        self.carry(async move {
            broker.forward_to_dead_letters(GROUP, TOPIC, (&handle, 0), late()).await
        })
    }

    pub(crate) fn settle_waiting(
        &mut self,
        ids: Vec<MessageId>,
        action: WaitingAction,
    ) -> Told<Vec<SettledMessage>> {
        let broker = self.broker();
        self.carry(async move {
            let request = SettleRequest {
                group: GROUP,
                topic: TOPIC,
                ids: &ids,
                max: 100,
                action,
                deadline: late(),
            };
            broker.settle_waiting(&request).await
        })
    }

    pub(crate) fn redrive(&mut self, max: u32) -> Told<Vec<Redriven>> {
        let broker = self.broker();
        self.carry(async move {
            let request = RedriveRequest {
                group: GROUP,
                ids: &[],
                only: OnlySuch::default(),
                max,
                per_second: None,
                for_all: false,
                run: Run::Real,
                deadline: late(),
            };
            broker.redrive(&request).await.map(|page| page.dead_letters)
        })
    }

    /// What was delivered too often becomes dead letters. `false`: not all of it.
    pub(crate) fn tend(&mut self) -> Option<bool> {
        let broker = self.broker();
        self.carry(async move { broker.tend_due().await })
    }

    /// All that there is to see of a topic; nothing if it is not there.
    pub(crate) fn view(&mut self, topic: &'static str) -> View {
        let broker = self.broker();
        let view = self.answer(async move {
            let mut view = View::default();
            let queues = match broker.describe_topic(topic, 0, 1, late()).await {
                Ok(described) => described.topic.settings().queues,
                Err(BrokerError::NoTopic { .. }) => return view,
                Err(error) => panic!("{error}"),
            };
            view.progress = broker.progress(GROUP, topic, 0, queues, late()).await.unwrap();
            let request =
                WaitingRequest { group: GROUP, topic, after: None, limit: 1_000, deadline: late() };
            view.waiting = broker.list_waiting(&request).await.unwrap().messages;
            for queue in 0..queues {
                let mut offset = QueueOffset::ZERO;
                loop {
                    let pull = PullRequest {
                        topic,
                        queue: QueueId::new(queue),
                        offset,
                        max_messages: 1_000,
                        max_bytes: 1 << 20,
                        wait: Duration::ZERO,
                        tags: "",
                        epoch: None,
                        group: None,
                        deadline: late(),
                    };
                    let pulled = broker.pull(pull).await.unwrap();
                    if pulled.records.is_empty() {
                        break;
                    }
                    view.lying.extend(lying(&pulled.records));
                    offset = pulled.next;
                }
            }
            view
        });
        view.unwrap_or_default()
    }
}
