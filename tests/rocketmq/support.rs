//! A server of its own for each test, and the words the tests are written in.

use std::future::Future;
use std::time::Duration;

use mainstem::config::Config;
use mainstem::proto::admin_client::AdminClient;
use mainstem::proto::rocketmq::messaging_service_client::MessagingServiceClient;
use mainstem::proto::rocketmq::telemetry_command::Command;
use mainstem::proto::rocketmq::{
    self as v2, Code, Message, Resource, SendMessageRequest, SendMessageResponse, Settings, Status,
    SystemProperties, TelemetryCommand,
};
use mainstem::proto::{
    CreateGroupRequest, CreateTopicRequest, GroupConfig, TopicConfig, TopicType,
};
use mainstem::server::{self, Listening, Spawned};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

/// The id of the client that most tests are.
pub(crate) const CLIENT: &str = "host@1@0@abc";

/// A running server, its data, and clients of it.
pub(crate) struct Server {
    pub(crate) at: Listening,
    pub(crate) calls: MessagingServiceClient<Channel>,
    pub(crate) admin: AdminClient<Channel>,
    pub(crate) channel: Channel,
    pub(crate) data: TempDir,
    spawned: Spawned,
}

impl Server {
    /// With the defaults, but small segments and acknowledgements from memory.
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With settings as `--set` takes them.
    pub(crate) async fn with(settings: &[&str]) -> Self {
        Self::over(tempfile::tempdir().unwrap(), settings).await
    }

    /// A stop, and a start over the same data.
    pub(crate) async fn again(self) -> Self {
        let Self { data, spawned, .. } = self;
        spawned.stop().await.unwrap();
        Self::over(data, &[]).await
    }

    async fn over(data: TempDir, settings: &[&str]) -> Self {
        let mut sets = vec![
            "server.listen=127.0.0.1:0".to_owned(),
            "server.http=127.0.0.1:0".to_owned(),
            "store.segment_size=64MiB".to_owned(),
            "store.flush=async".to_owned(),
            format!("server.data={}", data.path().join("data").display()),
        ];
        sets.extend(settings.iter().map(|set| (*set).to_owned()));
        let spawned = server::spawn(Config::load(None, &sets).unwrap()).await.unwrap();
        let at = spawned.listening();
        let endpoint = Channel::from_shared(format!("http://{}", at.grpc)).unwrap();
        let channel = endpoint.connect().await.unwrap();
        let calls =
            MessagingServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        let admin = AdminClient::new(channel.clone());
        Self { at, calls, admin, channel, data, spawned }
    }

    /// Asks it to stop, and waits for its end.
    pub(crate) async fn stop(self) {
        self.spawned.stop().await.unwrap();
    }

    pub(crate) async fn create(&self, name: &str, topic_type: TopicType, queues: u32) {
        let config = TopicConfig { queues, r#type: topic_type.into(), ..TopicConfig::default() };
        let request = CreateTopicRequest { name: name.to_owned(), config: Some(config) };
        self.admin.clone().create_topic(request).await.unwrap();
    }

    pub(crate) async fn create_group(&self, name: &str, config: GroupConfig) {
        let request = CreateGroupRequest { name: name.to_owned(), config: Some(config) };
        self.admin.clone().create_group(request).await.unwrap();
    }

    /// The answer to a send, whose call itself ends well.
    pub(crate) async fn send(&self, messages: Vec<Message>) -> SendMessageResponse {
        let request = request(SendMessageRequest { messages });
        self.calls.clone().send_message(request).await.unwrap().into_inner()
    }

    /// The code of a send's answer.
    pub(crate) async fn code_of(&self, messages: Vec<Message>) -> Code {
        code(&self.send(messages).await.status)
    }

    /// A connection of its own.
    pub(crate) async fn connect(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.at.grpc)).unwrap();
        endpoint.connect().await.unwrap()
    }

    /// A Telemetry stream of a client in this language.
    pub(crate) async fn telemetry(&self, id: &str, language: &'static str) -> Telemetry {
        self.telemetry_over(&self.channel, id, language).await
    }

    /// The same over another connection.
    pub(crate) async fn telemetry_over(
        &self,
        channel: &Channel,
        id: &str,
        language: &'static str,
    ) -> Telemetry {
        let (commands, outgoing) = mpsc::channel(4);
        let mut request = request_of(id, ReceiverStream::new(outgoing));
        request.metadata_mut().insert("x-mq-language", language.parse().unwrap());
        let mut calls = MessagingServiceClient::new(channel.clone());
        let answers = calls.telemetry(request).await.unwrap().into_inner();
        Telemetry { commands, answers }
    }
}

/// Both directions of a Telemetry stream.
pub(crate) struct Telemetry {
    pub(crate) commands: mpsc::Sender<TelemetryCommand>,
    pub(crate) answers: Streaming<TelemetryCommand>,
}

impl Telemetry {
    pub(crate) async fn tell(&self, settings: Settings) {
        let command = Some(Command::Settings(settings));
        self.commands.send(TelemetryCommand { status: None, command }).await.unwrap();
    }

    /// The settings that come next, with the status that must be with them.
    pub(crate) async fn settings(&mut self) -> Settings {
        let command = soon(self.answers.message()).await.unwrap().expect("the stream has ended");
        assert_eq!(code(&command.status), Code::Ok);
        match command.command {
            Some(Command::Settings(settings)) => settings,
            other => panic!("{other:?}"),
        }
    }

    /// Tells settings, and gives what comes back.
    pub(crate) async fn ask(&mut self, settings: Settings) -> Settings {
        self.tell(settings).await;
        self.settings().await
    }

    /// Whether nothing comes for a while.
    pub(crate) async fn is_silent(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(300), self.answers.message()).await.is_err()
    }
}

/// Nothing here may take so long.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("took too long")
}

/// A request of the client that most tests are.
pub(crate) fn request<T>(message: T) -> Request<T> {
    request_of(CLIENT, message)
}

/// A request of a client.
pub(crate) fn request_of<T>(id: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("x-mq-client-id", id.parse().unwrap());
    metadata.insert("x-mq-language", "JAVA".parse().unwrap());
    metadata.insert("x-mq-client-version", "5.2.1".parse().unwrap());
    request
}

pub(crate) fn resource(name: &str) -> Resource {
    Resource { resource_namespace: String::new(), name: name.to_owned() }
}

#[track_caller]
pub(crate) fn code(status: &Option<Status>) -> Code {
    status.as_ref().expect("every answer has a status").code()
}

/// The codes of a send's entries.
pub(crate) fn codes(answer: &SendMessageResponse) -> Vec<Code> {
    answer.entries.iter().map(|entry| code(&entry.status)).collect()
}

/// A correct message.
pub(crate) fn message(topic: &str, id: &str) -> Message {
    Message {
        topic: Some(resource(topic)),
        system_properties: Some(SystemProperties {
            message_id: id.to_owned(),
            born_host: "producer.example".to_owned(),
            born_timestamp: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
            body_encoding: v2::Encoding::Identity.into(),
            ..SystemProperties::default()
        }),
        body: "body".into(),
        ..Message::default()
    }
}

/// The same, changed.
pub(crate) fn with(topic: &str, id: &str, change: impl FnOnce(&mut SystemProperties)) -> Message {
    let mut message = message(topic, id);
    change(message.system_properties.as_mut().unwrap());
    message
}
