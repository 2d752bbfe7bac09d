//! A server of its own for each test, and the words the tests are written in.

use std::time::Duration;

use bytes::Bytes;
use mainstem::config::Config;
use mainstem::format::batch::{BatchBuilder, NewMeta};
use mainstem::proto::admin_client::AdminClient;
use mainstem::proto::broker_client::BrokerClient;
use mainstem::proto::query_messages_request::{ByKey, Selector};
use mainstem::proto::{
    self, CreateTopicRequest, FoundMessage, PullRequest, PullResponse, QueryMessagesRequest,
    QueryMessagesResponse, SendRequest, SendResponse, TopicConfig,
};
use mainstem::server::{self, Listening, ServerError, Spawned};
use prost::Message as _;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A running server, its data, and clients of it.
pub(crate) struct Server {
    pub(crate) at: Listening,
    pub(crate) broker: BrokerClient<Channel>,
    pub(crate) admin: AdminClient<Channel>,
    pub(crate) channel: Channel,
    pub(crate) data: TempDir,
    spawned: Spawned,
}

impl Server {
    /// With the defaults, but small segments.
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With settings as `--set` takes them.
    pub(crate) async fn with(settings: &[&str]) -> Self {
        Self::on(tempfile::tempdir().unwrap(), settings).await
    }

    /// On the data of a server that was stopped.
    pub(crate) async fn on(data: TempDir, settings: &[&str]) -> Self {
        let mut sets = vec![
            "server.listen=127.0.0.1:0".to_owned(),
            "server.http=127.0.0.1:0".to_owned(),
            "store.segment_size=64MiB".to_owned(),
            format!("server.data={}", data.path().join("data").display()),
        ];
        sets.extend(settings.iter().map(|set| (*set).to_owned()));
        let config = Config::load(None, &sets).unwrap();
        let is_plain = config.tls.plain;
        let spawned = server::spawn(config).await.unwrap();
        let at = spawned.listening();
        let endpoint = Channel::from_shared(format!("http://{}", at.grpc)).unwrap();
        // Who is not served without TLS does not try to.
        let channel =
            if is_plain { endpoint.connect().await.unwrap() } else { endpoint.connect_lazy() };
        let broker = BrokerClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        let admin = AdminClient::new(channel.clone());
        Self { at, broker, admin, channel, data, spawned }
    }

    /// Asks the server to stop, and gives what is needed to wait for the end.
    pub(crate) fn stop(self) -> (TempDir, JoinHandle<Result<(), ServerError>>) {
        (self.data, self.spawned.stopping())
    }

    pub(crate) async fn create(&self, name: &str, config: TopicConfig) -> proto::Topic {
        let request = CreateTopicRequest { name: name.to_owned(), config: Some(config) };
        self.admin.clone().create_topic(request).await.unwrap().into_inner().topic.unwrap()
    }

    pub(crate) async fn delete(&self, name: &str) {
        let request = proto::DeleteTopicRequest { name: name.to_owned() };
        self.admin.clone().delete_topic(request).await.unwrap();
    }

    pub(crate) async fn send(&self, request: SendRequest) -> Result<SendResponse, Status> {
        self.broker.clone().send(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn pull(&self, request: PullRequest) -> Result<PullResponse, Status> {
        self.broker.clone().pull(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn query(
        &self,
        request: QueryMessagesRequest,
    ) -> Result<QueryMessagesResponse, Status> {
        self.broker.clone().query_messages(request).await.map(tonic::Response::into_inner)
    }

    /// A page of a key's messages.
    pub(crate) async fn by_key(&self, topic: &str, key: &str) -> QueryMessagesResponse {
        self.query(key_query(topic, key)).await.unwrap()
    }

    /// Status line and body of a page over HTTP.
    pub(crate) async fn http(&self, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.at.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    /// The value of a metric, by its name and labels as they stand in the text.
    pub(crate) async fn metric(&self, name: &str) -> Option<u64> {
        let (_, text) = self.http("/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        Some(line.parse().unwrap())
    }

    /// Waits until a metric has a value.
    pub(crate) async fn until_metric(&self, name: &str, value: u64) {
        while self.metric(name).await != Some(value) {
            tokio::task::yield_now().await;
        }
    }
}

/// Nothing here may take so long.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("took too long")
}

/// A batch of bodies, one message each, nothing else.
pub(crate) fn batch(bodies: &[&str]) -> Bytes {
    batch_with(bodies, &NewMeta::default())
}

/// A batch of bodies whose messages are otherwise alike.
pub(crate) fn batch_with(bodies: &[&str], meta: &NewMeta<'_>) -> Bytes {
    let mut builder = BatchBuilder::new();
    for body in bodies {
        builder.push(meta, body.as_bytes());
    }
    builder.finish()
}

/// A batch with a wire form that the builder would not make.
pub(crate) fn wire(batch: &proto::Batch) -> Bytes {
    batch.encode_to_vec().into()
}

/// A correct batch of one, to be made wrong.
pub(crate) fn honest(body: &[u8]) -> proto::Batch {
    let len = u32::try_from(body.len()).unwrap();
    proto::Batch {
        metas: vec![proto::Meta { body_len: len, ..proto::Meta::default() }],
        codec: 0,
        bodies_len: len,
        bodies_crc: u32::try_from(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, body))
            .unwrap(),
        bodies: Bytes::copy_from_slice(body),
    }
}

pub(crate) fn to(topic: &str, queue: Option<u32>, batch: Bytes) -> SendRequest {
    SendRequest { topic: topic.to_owned(), queue, batch, session: None }
}

pub(crate) fn from(topic: &str, queue: u32, offset: u64) -> PullRequest {
    PullRequest { topic: topic.to_owned(), queue, offset, ..PullRequest::default() }
}

pub(crate) fn key_query(topic: &str, key: &str) -> QueryMessagesRequest {
    QueryMessagesRequest {
        selector: Some(Selector::Key(ByKey { topic: topic.to_owned(), key: key.to_owned() })),
        ..QueryMessagesRequest::default()
    }
}

/// The bodies of the messages that a query has found.
pub(crate) fn bodies(found: &[FoundMessage]) -> Vec<String> {
    let body = |message: &FoundMessage| {
        let batch = proto::Batch::decode(message.batch.clone()).unwrap();
        assert_eq!(batch.metas.len(), 1, "found messages stand alone");
        String::from_utf8(batch.bodies.to_vec()).unwrap()
    };
    found.iter().map(body).collect()
}

/// google.rpc.Status.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// google.protobuf.Any.
#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// The details of a refusal.
pub(crate) fn detail(status: &Status) -> proto::Error {
    let rpc = RpcStatus::decode(status.details()).unwrap();
    assert_eq!(rpc.code, i32::from(status.code()));
    assert_eq!(rpc.message, status.message());
    assert_eq!(rpc.details.len(), 1, "{status:?}");
    assert_eq!(rpc.details[0].type_url, "type.googleapis.com/mainstem.v1.Error");
    proto::Error::decode(rpc.details[0].value.clone()).unwrap()
}

/// Code and reason of a refusal that stored nothing.
#[track_caller]
pub(crate) fn refusal<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    let detail = detail(&status);
    assert_eq!(detail.stored(), proto::error::Stored::No);
    (status.code(), detail.reason)
}

/// What `refusal` gives.
pub(crate) fn refused(code: Code, reason: &str) -> (Code, String) {
    (code, reason.to_owned())
}
