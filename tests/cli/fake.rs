//! A broker in memory for tests of the command line: both services of the protocol, and faults on demand.
//!
//! Store times count up from 2026-07-01T12:00:00Z, so that outputs can be compared byte for byte. Faults hang on the
//! name of the topic:
//!
//! | topic | fault |
//! | --- | --- |
//! | `damaged` | offsets 2 to 3 of every queue cannot be read |
//! | `truncated` | one message an answer; between the second and the third a power cut took the second |
//! | `incomplete` | queries say that messages may be missing |
//! | `busy` | the first two sends are refused with "try again" |
//! | `unsure` | sends are stored, but not durable in time |
//! | `silent` | the connection's answer is a code without details |
//! | `lossy` | the answers to the first two sends are lost: stored, and not known to be |

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use mainstem::proto::admin_server::{Admin, AdminServer};
use mainstem::proto::broker_server::{Broker, BrokerServer};
use mainstem::proto::query_messages_request::{Order, Selector};
use mainstem::proto::{self, OffsetRange};
use prost::Message as _;
use tonic::{Code, Request, Response, Status};

const NOON: u64 = 1_782_907_200_000;
const EPOCH: u64 = 1;

struct Topic {
    id: u64,
    config: proto::TopicConfig,
    queues: Vec<Vec<proto::Record>>,
    next_queue: u32,
    refused: u32,
}

/// A producer session: the answer to its last batch, which has the sequence `last`.
#[derive(Default)]
struct Session {
    id: u64,
    epoch: u64,
    last: u64,
    answer: proto::SendResponse,
}

#[derive(Default)]
struct State {
    sessions: BTreeMap<String, Session>,
    topics: BTreeMap<String, Topic>,
    next_topic: u64,
    physical: u64,
    records: u64,
}

/// The broker. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<State>>);

impl Fake {
    /// Serves on a free port until the process ends; returns the address.
    pub(crate) fn start() -> SocketAddr {
        let fake = Self::default();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
                tonic::transport::Server::builder()
                    .add_service(BrokerServer::new(fake.clone()).max_decoding_message_size(9 << 20))
                    .add_service(AdminServer::new(fake))
                    .serve_with_incoming(incoming)
                    .await
                    .unwrap();
            });
        });
        address
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl State {
    fn create(&mut self, name: &str, config: Option<proto::TopicConfig>) -> proto::Topic {
        let mut config = config.unwrap_or_default();
        if config.queues == 0 {
            config.queues = 4;
        }
        if config.flush() == proto::FlushMode::Unspecified {
            config.set_flush(proto::FlushMode::Sync);
        }
        if config.r#type() == proto::TopicType::Unspecified {
            config.set_type(proto::TopicType::Mixed);
        }
        if config.access() == proto::Access::Unspecified {
            config.set_access(proto::Access::ReadWrite);
        }
        config.retention_ms.get_or_insert(72 * 3_600_000);
        config.retention_bytes.get_or_insert(u64::MAX);
        self.next_topic += 1;
        let topic = Topic {
            id: self.next_topic,
            queues: vec![Vec::new(); config.queues as usize],
            config,
            next_queue: 0,
            refused: 0,
        };
        let shown = topic.shown(name);
        self.topics.insert(name.to_owned(), topic);
        shown
    }

    /// The first answer to a batch that its session has stored before.
    fn stored(&self, mark: proto::SessionMark) -> Result<Option<proto::SendResponse>, Status> {
        let session = self.sessions.values().find(|session| session.id == mark.id);
        let session = session.ok_or_else(no_session)?;
        if mark.epoch != session.epoch {
            let said = "another producer has opened the session since";
            return Err(refuse(Code::FailedPrecondition, said, "FENCED"));
        }
        let answer = proto::SendResponse { duplicate: true, ..session.answer };
        Ok((mark.sequence == session.last).then_some(answer))
    }

    fn topic(&mut self, name: &str) -> Result<&mut Topic, Status> {
        self.topics.get_mut(name).ok_or_else(|| {
            refuse(Code::NotFound, &format!("topic {name} does not exist"), "UNKNOWN_TOPIC")
        })
    }
}

impl Topic {
    fn shown(&self, name: &str) -> proto::Topic {
        proto::Topic { name: name.to_owned(), id: self.id, config: Some(self.config) }
    }

    fn queue(&self, queue: u32) -> Result<&Vec<proto::Record>, Status> {
        self.queues.get(queue as usize).ok_or_else(|| {
            refuse(Code::InvalidArgument, &format!("there is no queue {queue}"), "BAD_QUEUE")
        })
    }
}

fn range(records: &[proto::Record]) -> OffsetRange {
    let max = records.last().map_or(0, |last| last.first_queue_offset + u64::from(last.count));
    OffsetRange { min: 0, max }
}

#[tonic::async_trait]
impl Broker for Fake {
    async fn send(
        &self,
        request: Request<proto::SendRequest>,
    ) -> Result<Response<proto::SendResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state();
        if let Err(error) = mainstem::format::batch::check(&request.batch) {
            let mut detail = detail("TOO_LARGE");
            detail.limit = error.limit();
            return Err(refuse_with(Code::OutOfRange, &error.to_string(), &detail));
        }
        let parsed = proto::Batch::decode(request.batch.clone()).unwrap();
        if !state.topics.contains_key(&request.topic) {
            state.create(&request.topic, None);
        }
        let stored = request.session.map(|mark| state.stored(mark)).transpose()?;
        let physical = state.physical;
        let store_time_ms = NOON + state.records;
        let topic = state.topic(&request.topic)?;
        match request.topic.as_str() {
            "busy" if topic.refused < 2 => {
                topic.refused += 1;
                let mut detail = detail("OVERLOADED");
                detail.retry_after_ms = Some(20);
                return Err(refuse_with(Code::ResourceExhausted, "too many sends", &detail));
            }
            "unsure" => {
                let mut detail = detail("FLUSH_TIMEOUT");
                detail.stored = proto::error::Stored::Unknown.into();
                let said = "stored, not yet durable";
                return Err(refuse_with(Code::DeadlineExceeded, said, &detail));
            }
            "silent" => return Err(Status::unavailable("the connection was reset")),
            "lossy" if topic.refused < 2 && stored == Some(None) => topic.refused = 1,
            "lossy" if topic.refused == 1 => {
                topic.refused = 2;
                return Err(Status::unavailable("the connection was reset"));
            }
            _ => {}
        }
        if let Some(Some(answer)) = stored {
            return Ok(Response::new(answer));
        }
        let grouped = parsed.metas.iter().any(|meta| !meta.message_group.is_empty());
        let queue = request.queue.unwrap_or(if grouped { 1 } else { topic.next_queue });
        let records = topic.queue(queue)?;
        let record = proto::Record {
            dead_letter: None,
            epoch: EPOCH,
            physical_offset: physical,
            first_queue_offset: range(records).max,
            count: parsed.metas.len() as u32,
            store_time_ms,
            batch: request.batch,
        };
        let answer = proto::SendResponse {
            queue,
            first_queue_offset: record.first_queue_offset,
            physical_offset: physical,
            epoch: EPOCH,
            store_time_ms,
            count: record.count,
            duplicate: false,
        };
        let is_lost = request.topic == "lossy" && topic.refused == 1;
        topic.queues[queue as usize].push(record);
        topic.next_queue = (topic.next_queue + 1) % topic.config.queues;
        state.physical += 0x1000;
        state.records += 1;
        if let Some(mark) = request.session {
            for session in state.sessions.values_mut().filter(|session| session.id == mark.id) {
                (session.last, session.answer) = (mark.sequence, answer);
            }
        }
        if is_lost {
            return Err(Status::unavailable("the connection was reset"));
        }
        Ok(Response::new(answer))
    }

    async fn open_session(
        &self,
        request: Request<proto::OpenSessionRequest>,
    ) -> Result<Response<proto::OpenSessionResponse>, Status> {
        let name = request.into_inner().name;
        if name.is_empty() {
            let said = "a producer session's name cannot be empty";
            return Err(refuse(Code::InvalidArgument, said, "BAD_NAME"));
        }
        let mut state = self.state();
        let id = state.sessions.len() as u64 + 1;
        let new = Session { id, ..Session::default() };
        let session = state.sessions.entry(name).or_insert(new);
        session.epoch += 1;
        Ok(Response::new(proto::OpenSessionResponse {
            id: session.id,
            epoch: session.epoch,
            next_sequence: session.last + 1,
        }))
    }

    async fn close_session(
        &self,
        request: Request<proto::CloseSessionRequest>,
    ) -> Result<Response<proto::CloseSessionResponse>, Status> {
        let closed = self.state().sessions.remove(&request.into_inner().name);
        closed.map(|_| Response::new(proto::CloseSessionResponse {})).ok_or_else(no_session)
    }

    type PullStreamStream = tokio_stream::Empty<Result<proto::PullStreamResponse, Status>>;

    async fn pull_stream(
        &self,
        _: Request<proto::PullStreamRequest>,
    ) -> Result<Response<Self::PullStreamStream>, Status> {
        Err(Status::unimplemented("no test of the command line pulls so"))
    }

    type SendStreamStream = tokio_stream::Empty<Result<proto::SendStreamResponse, Status>>;

    async fn send_stream(
        &self,
        _: Request<tonic::Streaming<proto::SendStreamRequest>>,
    ) -> Result<Response<Self::SendStreamStream>, Status> {
        Err(Status::unimplemented("no test of the command line sends so"))
    }

    async fn pull(
        &self,
        request: Request<proto::PullRequest>,
    ) -> Result<Response<proto::PullResponse>, Status> {
        let request = request.into_inner();
        let deadline = Instant::now() + Duration::from_millis(request.wait_ms.into());
        loop {
            {
                let mut state = self.state();
                let records = state.topic(&request.topic)?.queue(request.queue)?;
                let range = range(records);
                if request.offset > range.max {
                    let mut detail = detail("OFFSET_OUT_OF_RANGE");
                    detail.range = Some(range);
                    let said = format!("offset {} is outside of the queue", request.offset);
                    return Err(refuse_with(Code::OutOfRange, &said, &detail));
                }
                if request.topic == "damaged" && (2..4).contains(&request.offset) {
                    let mut detail = detail("DAMAGED");
                    detail.next_offset = Some(4);
                    return Err(refuse_with(Code::DataLoss, "damaged", &detail));
                }
                let is_truncated = request.topic == "truncated";
                if is_truncated && (request.offset, request.epoch) == (2, EPOCH) {
                    let mut detail = detail("TRUNCATED");
                    (detail.next_offset, detail.epoch) = (Some(1), Some(EPOCH + 1));
                    return Err(refuse_with(Code::OutOfRange, "truncated", &detail));
                }
                let most = if is_truncated { 1 } else { request.max_messages.max(1) };
                let epoch = if is_truncated { request.epoch.max(EPOCH) } else { EPOCH };
                let mut found = Vec::new();
                let mut count = 0;
                let mut next = request.offset;
                for record in records {
                    let end = record.first_queue_offset + u64::from(record.count);
                    let damage = request.topic == "damaged" && record.first_queue_offset == 2;
                    if end <= request.offset {
                        continue;
                    }
                    if damage || count >= most {
                        break;
                    }
                    count += record.count;
                    next = end;
                    found.push(record.clone());
                }
                if !found.is_empty() || Instant::now() >= deadline {
                    return Ok(Response::new(proto::PullResponse {
                        records: found,
                        next_offset: next,
                        range: Some(range),
                        epoch,
                    }));
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    type ConsumeStream = tokio_stream::Empty<Result<proto::ConsumeResponse, Status>>;

    async fn consume(
        &self,
        _: Request<tonic::Streaming<proto::ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        Err(Status::unimplemented("no test of the command line consumes so"))
    }

    async fn receive(
        &self,
        _: Request<proto::ReceiveRequest>,
    ) -> Result<Response<proto::ReceiveResponse>, Status> {
        Err(Status::unimplemented("receive"))
    }

    async fn ack(
        &self,
        _: Request<proto::AckRequest>,
    ) -> Result<Response<proto::AckResponse>, Status> {
        Err(Status::unimplemented("ack"))
    }

    async fn extend(
        &self,
        _: Request<proto::ExtendRequest>,
    ) -> Result<Response<proto::ExtendResponse>, Status> {
        Err(Status::unimplemented("extend"))
    }

    async fn query_messages(
        &self,
        request: Request<proto::QueryMessagesRequest>,
    ) -> Result<Response<proto::QueryMessagesResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state();
        let mut all = Vec::new();
        for (name, topic) in &state.topics {
            for (queue, records) in topic.queues.iter().enumerate() {
                for record in records {
                    all.extend(singles(name, queue as u32, record));
                }
            }
        }
        all.sort_by_key(|(found, _)| found.store_time_ms);
        if request.order() == Order::NewestFirst {
            all.reverse();
        }
        let selector = request.selector.clone().unwrap();
        let incomplete = matches!(&selector, Selector::Key(by) if by.topic == "incomplete");
        match &selector {
            Selector::Key(by) => state.topic(&by.topic).map(|_| ())?,
            Selector::ProducerId(by) => state.topic(&by.topic).map(|_| ())?,
            _ => {}
        }
        let mut found: Vec<_> = all
            .into_iter()
            .filter(|(found, meta)| match &selector {
                Selector::Key(by) => found.topic == by.topic && meta.keys.contains(&by.key),
                Selector::ProducerId(by) => found.topic == by.topic && meta.id == by.id,
                Selector::MessageId(id) => found.message_id == *id,
                Selector::Offset(by) => {
                    (&found.topic, found.queue, found.queue_offset)
                        == (&by.topic, by.queue, by.offset)
                }
            })
            .map(|(found, _)| found)
            .filter(|found| request.begin_ms.is_none_or(|begin| begin <= found.store_time_ms))
            .filter(|found| request.end_ms.is_none_or(|end| found.store_time_ms <= end))
            .collect();
        if found.is_empty() && matches!(selector, Selector::MessageId(_)) {
            let said = "no message has this id";
            return Err(refuse(Code::NotFound, said, "MESSAGE_NOT_FOUND"));
        }
        // Pages of two, so that every test with three messages turns a page.
        let first: usize = request.page_token.parse().unwrap_or(0);
        let page = (request.limit as usize).min(2);
        let more = found.len() > first + page;
        let messages = found.drain(first.min(found.len())..).take(page).collect();
        Ok(Response::new(proto::QueryMessagesResponse {
            messages,
            next_page_token: if more { (first + page).to_string() } else { String::new() },
            complete: !incomplete,
            incomplete_reason: if incomplete { "an index is rebuilt".into() } else { "".into() },
        }))
    }

    async fn commit_offsets(
        &self,
        _: Request<proto::CommitOffsetsRequest>,
    ) -> Result<Response<proto::CommitOffsetsResponse>, Status> {
        Err(without_groups())
    }

    async fn committed_offsets(
        &self,
        _: Request<proto::CommittedOffsetsRequest>,
    ) -> Result<Response<proto::CommittedOffsetsResponse>, Status> {
        Err(without_groups())
    }

    async fn query_offsets(
        &self,
        _: Request<proto::QueryOffsetsRequest>,
    ) -> Result<Response<proto::QueryOffsetsResponse>, Status> {
        Err(without_groups())
    }
}

fn singles(
    topic: &str,
    queue: u32,
    record: &proto::Record,
) -> Vec<(proto::FoundMessage, proto::Meta)> {
    let batch = proto::Batch::decode(record.batch.clone()).unwrap();
    let mut at = 0;
    let mut out = Vec::new();
    for (index, meta) in batch.metas.into_iter().enumerate() {
        let end = at + meta.body_len as usize;
        let single = proto::Batch {
            bodies_len: meta.body_len,
            bodies: batch.bodies.slice(at..end),
            metas: vec![meta.clone()],
            ..proto::Batch::default()
        };
        at = end;
        let found = proto::FoundMessage {
            dead_letter: None,
            message_id: format!("{:x}-{:x}-{index:x}", record.epoch, record.physical_offset),
            topic: topic.to_owned(),
            queue,
            queue_offset: record.first_queue_offset + index as u64,
            store_time_ms: record.store_time_ms,
            batch: single.encode_to_vec().into(),
        };
        out.push((found, meta));
    }
    out
}

#[tonic::async_trait]
impl Admin for Fake {
    async fn create_topic(
        &self,
        request: Request<proto::CreateTopicRequest>,
    ) -> Result<Response<proto::CreateTopicResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state();
        if let Some(topic) = state.topics.get(&request.name) {
            let wanted = request.config.unwrap_or_default();
            if wanted.queues != 0 && wanted.queues != topic.config.queues {
                let said = format!("topic {} exists with other settings", request.name);
                return Err(refuse(Code::AlreadyExists, &said, "TOPIC_EXISTS"));
            }
            let topic = Some(topic.shown(&request.name));
            return Ok(Response::new(proto::CreateTopicResponse { topic }));
        }
        if request.name.contains('%') {
            let said = "a topic's name is 1 to 127 letters, digits, '_' and '-'";
            return Err(refuse(Code::InvalidArgument, said, "BAD_NAME"));
        }
        let topic = Some(state.create(&request.name, request.config));
        Ok(Response::new(proto::CreateTopicResponse { topic }))
    }

    async fn delete_topic(
        &self,
        request: Request<proto::DeleteTopicRequest>,
    ) -> Result<Response<proto::DeleteTopicResponse>, Status> {
        let name = request.into_inner().name;
        let mut state = self.state();
        state.topic(&name)?;
        state.topics.remove(&name);
        Ok(Response::new(proto::DeleteTopicResponse {}))
    }

    async fn update_topic(
        &self,
        request: Request<proto::UpdateTopicRequest>,
    ) -> Result<Response<proto::UpdateTopicResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state();
        let topic = state.topic(&request.name)?;
        let new = request.config.unwrap_or_default();
        let old = &mut topic.config;
        if new.queues != 0 && new.queues < old.queues {
            let said = format!("the topic has {} queues and cannot have fewer", old.queues);
            return Err(refuse(Code::InvalidArgument, &said, "BAD_REQUEST"));
        }
        if new.queues > old.queues && old.r#type() == proto::TopicType::Fifo && !request.force {
            let said = "this breaks the order of the message groups of a FIFO topic";
            return Err(refuse(Code::FailedPrecondition, said, "NEEDS_FORCE"));
        }
        if new.queues != 0 {
            old.queues = new.queues;
            topic.queues.resize(new.queues as usize, Vec::new());
        }
        if new.flush() != proto::FlushMode::Unspecified {
            old.flush = new.flush;
        }
        if new.r#type() != proto::TopicType::Unspecified {
            old.r#type = new.r#type;
        }
        if new.access() != proto::Access::Unspecified {
            old.access = new.access;
        }
        old.retention_ms = new.retention_ms.or(old.retention_ms);
        old.retention_bytes = new.retention_bytes.or(old.retention_bytes);
        let topic = Some(topic.shown(&request.name));
        Ok(Response::new(proto::UpdateTopicResponse { topic }))
    }

    /// Counts up to three queues, and takes nothing away.
    async fn purge_topic(
        &self,
        request: Request<proto::PurgeTopicRequest>,
    ) -> Result<Response<proto::PurgeTopicResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state();
        let topic = state.topic(&request.name)?;
        let messages = match request.queue {
            Some(queue) => {
                let range = range(topic.queue(queue)?);
                let up_to = request.up_to.unwrap_or(range.max);
                if up_to > range.max {
                    let mut detail = detail("OFFSET_OUT_OF_RANGE");
                    detail.range = Some(range);
                    return Err(refuse_with(Code::OutOfRange, "outside", &detail));
                }
                Some(up_to)
            }
            None if topic.queues.len() <= 3 => {
                Some(topic.queues.iter().map(|records| range(records).max).sum())
            }
            None => None,
        };
        Ok(Response::new(proto::PurgeTopicResponse { messages }))
    }

    /// In pages of two.
    async fn list_topics(
        &self,
        request: Request<proto::ListTopicsRequest>,
    ) -> Result<Response<proto::ListTopicsResponse>, Status> {
        let after = request.into_inner().after;
        let state = self.state();
        let mut topics: Vec<_> = state
            .topics
            .iter()
            .filter(|(name, _)| **name > after)
            .map(|(name, topic)| topic.shown(name))
            .collect();
        let more = topics.len() > 2;
        topics.truncate(2);
        Ok(Response::new(proto::ListTopicsResponse { topics, more }))
    }

    /// In pages of three queues.
    async fn describe_topic(
        &self,
        request: Request<proto::DescribeTopicRequest>,
    ) -> Result<Response<proto::DescribeTopicResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state();
        let topic = state.topic(&request.name)?;
        let queues = topic
            .queues
            .iter()
            .enumerate()
            .skip(request.first_queue as usize)
            .take(3)
            .map(|(queue, records)| proto::QueueDescription {
                queue: queue as u32,
                range: Some(range(records)),
            })
            .collect();
        let topic = Some(topic.shown(&request.name));
        Ok(Response::new(proto::DescribeTopicResponse { topic, queues }))
    }

    async fn status(
        &self,
        _: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::StatusResponse>, Status> {
        let state = self.state();
        Ok(Response::new(proto::StatusResponse {
            version: "0.0.0".into(),
            store_id: "00112233445566778899aabbccddeeff".into(),
            epoch: EPOCH,
            watermarks: Some(proto::Watermarks {
                appended: state.physical,
                dispatched: state.physical,
                flushed: 0,
                min: 0,
            }),
            topics: state.topics.len() as u64,
            queues: state.topics.values().map(|topic| topic.queues.len() as u64).sum(),
            segments: 2,
            unsealed_segments: 1,
            disk_free: 3 << 30,
            start_report: vec!["nothing to replay".into()],
            damaged: vec![proto::DamagedRange { begin: 4096, end: 8192 }],
            flush_default: "sync".into(),
            disk_reserve: 512 << 20,
            scrub: Some(proto::ScrubStatus { last_pass_ms: Some(NOON), bytes: 8192 }),
            clock_behind_ms: 90_000,
            ..proto::StatusResponse::default()
        }))
    }

    /// In pages of two.
    async fn list_sessions(
        &self,
        request: Request<proto::ListSessionsRequest>,
    ) -> Result<Response<proto::ListSessionsResponse>, Status> {
        let after = request.into_inner().after;
        let state = self.state();
        let sessions = state.sessions.iter().filter(|(name, _)| **name > after);
        let mut sessions: Vec<_> = sessions.map(|(name, session)| session.shown(name)).collect();
        let more = sessions.len() > 2;
        sessions.truncate(2);
        Ok(Response::new(proto::ListSessionsResponse { sessions, more }))
    }

    async fn describe_session(
        &self,
        request: Request<proto::DescribeSessionRequest>,
    ) -> Result<Response<proto::DescribeSessionResponse>, Status> {
        let name = request.into_inner().name;
        let state = self.state();
        let session = state.sessions.get(&name).ok_or_else(no_session)?;
        let session = Some(session.shown(&name));
        Ok(Response::new(proto::DescribeSessionResponse { session }))
    }

    /// One in each page.
    async fn list_clients(
        &self,
        request: Request<proto::ListClientsRequest>,
    ) -> Result<Response<proto::ListClientsResponse>, Status> {
        let after = request.into_inner().after;
        let mut clients = clients().into_iter().filter(|client| client.id > after);
        let first = clients.next().into_iter().collect();
        let more = clients.next().is_some();
        Ok(Response::new(proto::ListClientsResponse { clients: first, more }))
    }

    async fn describe_client(
        &self,
        request: Request<proto::DescribeClientRequest>,
    ) -> Result<Response<proto::DescribeClientResponse>, Status> {
        let id = request.into_inner().id;
        let client = clients().into_iter().find(|client| client.id == id);
        let said = "there is no such client, or it has not been heard of for too long";
        let client = client.ok_or_else(|| refuse(Code::NotFound, said, "UNKNOWN_CLIENT"))?;
        Ok(Response::new(proto::DescribeClientResponse { client: Some(client) }))
    }

    type VerifyStoreStream =
        tokio_stream::Iter<std::vec::IntoIter<Result<proto::VerifyStoreResponse, Status>>>;

    async fn verify_store(
        &self,
        _: Request<proto::VerifyStoreRequest>,
    ) -> Result<Response<Self::VerifyStoreStream>, Status> {
        use proto::verify_store_response::Event;
        let found = |kind: &str, whose: Option<(u64, u32, OffsetRange)>, what: &str| {
            Event::Finding(proto::VerifyFinding {
                kind: kind.to_owned(),
                file: "commitlog/00000000000000000000.log".to_owned(),
                range: Some(proto::DamagedRange { begin: 4096, end: 8192 }),
                topic_id: whose.map(|(topic, _, _)| topic),
                queue: whose.map(|(_, queue, _)| queue),
                offsets: whose.map(|(_, _, offsets)| offsets),
                what: what.to_owned(),
            })
        };
        let events = [
            Event::Progress(proto::VerifyProgress { done: 4096, total: 65536 }),
            found("damaged", None, "header checksum is 0x00000001, expected 0x00000002"),
            found("lost", Some((1, 3, OffsetRange { min: 2, max: 4 })), "it lies in damaged bytes"),
            Event::Summary(proto::VerifySummary {
                segments: 2,
                records: 30,
                messages: 40,
                log_bytes: 65536,
                derived_files: 2,
                damaged: 1,
                damaged_bytes: 4096,
                ..proto::VerifySummary::default()
            }),
        ];
        let events = events.map(|event| Ok(proto::VerifyStoreResponse { event: Some(event) }));
        Ok(Response::new(tokio_stream::iter(Vec::from(events))))
    }

    async fn create_group(
        &self,
        _: Request<proto::CreateGroupRequest>,
    ) -> Result<Response<proto::CreateGroupResponse>, Status> {
        Err(without_groups())
    }

    async fn update_group(
        &self,
        _: Request<proto::UpdateGroupRequest>,
    ) -> Result<Response<proto::UpdateGroupResponse>, Status> {
        Err(without_groups())
    }

    async fn delete_group(
        &self,
        _: Request<proto::DeleteGroupRequest>,
    ) -> Result<Response<proto::DeleteGroupResponse>, Status> {
        Err(without_groups())
    }

    async fn list_groups(
        &self,
        _: Request<proto::ListGroupsRequest>,
    ) -> Result<Response<proto::ListGroupsResponse>, Status> {
        Err(without_groups())
    }

    async fn describe_group(
        &self,
        _: Request<proto::DescribeGroupRequest>,
    ) -> Result<Response<proto::DescribeGroupResponse>, Status> {
        Err(without_groups())
    }

    async fn redrive_dead_letters(
        &self,
        _: Request<proto::RedriveDeadLettersRequest>,
    ) -> Result<Response<proto::RedriveDeadLettersResponse>, Status> {
        Err(without_groups())
    }

    async fn list_waiting(
        &self,
        _: Request<proto::ListWaitingRequest>,
    ) -> Result<Response<proto::ListWaitingResponse>, Status> {
        Err(without_groups())
    }

    async fn settle_waiting(
        &self,
        _: Request<proto::SettleWaitingRequest>,
    ) -> Result<Response<proto::SettleWaitingResponse>, Status> {
        Err(without_groups())
    }

    async fn reset_offsets(
        &self,
        _: Request<proto::ResetOffsetsRequest>,
    ) -> Result<Response<proto::ResetOffsetsResponse>, Status> {
        Err(without_groups())
    }

    async fn list_offset_history(
        &self,
        _: Request<proto::ListOffsetHistoryRequest>,
    ) -> Result<Response<proto::ListOffsetHistoryResponse>, Status> {
        Err(without_groups())
    }
}

impl Session {
    /// Idle for a minute and a half, always.
    fn shown(&self, name: &str) -> proto::ProducerSession {
        proto::ProducerSession {
            name: name.to_owned(),
            id: self.id,
            epoch: self.epoch,
            last_sequence: self.last,
            idle_ms: 90_000,
        }
    }
}

/// Who is connected over the protocol of RocketMQ.
fn clients() -> [proto::Client; 2] {
    let consumer = proto::Client {
        id: "billing@17@0@k3f9".into(),
        kind: proto::ClientKind::PushConsumer.into(),
        language: "JAVA".into(),
        version: "5.2.1".into(),
        hostname: "billing".into(),
        address: "10.0.0.7:50122".into(),
        group: "billing".into(),
        subscriptions: vec![proto::Subscription {
            topic: "orders".into(),
            kind: proto::FilterKind::Tags.into(),
            expression: "paid || sent".into(),
        }],
        age_ms: 3 * 3_600_000,
        idle_ms: 4_000,
        streams: 1,
        ..proto::Client::default()
    };
    let producer = proto::Client {
        id: "shop@3@0@k3fa".into(),
        kind: proto::ClientKind::Producer.into(),
        language: "PYTHON".into(),
        version: "5.1.2".into(),
        hostname: "shop".into(),
        address: "10.0.0.9:41000".into(),
        topics: vec!["orders".into()],
        age_ms: 61_000,
        idle_ms: 9_000,
        streams: 1,
        ..proto::Client::default()
    };
    [consumer, producer]
}

fn no_session() -> Status {
    let said = "there is no such producer session; open it by its name";
    refuse(Code::NotFound, said, "UNKNOWN_SESSION")
}

#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<AnyMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AnyMessage {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// Consumer groups are tested with a real broker.
fn without_groups() -> Status {
    Status::unimplemented("no consumer groups here")
}

fn detail(reason: &str) -> proto::Error {
    proto::Error { reason: reason.to_owned(), ..proto::Error::default() }
}

fn refuse(code: Code, said: &str, reason: &str) -> Status {
    refuse_with(code, said, &detail(reason))
}

fn refuse_with(code: Code, said: &str, detail: &proto::Error) -> Status {
    let any = AnyMessage {
        type_url: "type.googleapis.com/mainstem.v1.Error".to_owned(),
        value: detail.encode_to_vec(),
    };
    let status = RpcStatus { code: code as i32, message: said.to_owned(), details: vec![any] };
    Status::with_details(code, said, status.encode_to_vec().into())
}
