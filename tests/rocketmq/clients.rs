//! Heartbeat, NotifyClientTermination, and who is connected, as operators see it.

use mainstem::proto::rocketmq::{
    ClientType, Code, HeartbeatRequest, NotifyClientTerminationRequest, Resource,
};
use mainstem::proto::{
    self, Client, ClientKind, DescribeClientRequest, FilterKind, GroupConfig, ListClientsRequest,
};

use crate::support::{CLIENT, Server, Telemetry, code, request, request_of, resource, soon};
use crate::telemetry::{consumer, producer};

async fn heartbeat(server: &Server, client_type: i32, group: Option<Resource>) -> Code {
    heartbeat_of(server, CLIENT, client_type, group).await
}

async fn heartbeat_of(server: &Server, id: &str, kind: i32, group: Option<Resource>) -> Code {
    let asked = request_of(id, HeartbeatRequest { group, client_type: kind });
    code(&server.calls.clone().heartbeat(asked).await.unwrap().into_inner().status)
}

async fn goodbye(server: &Server, group: Option<Resource>) -> Code {
    let asked = request(NotifyClientTerminationRequest { group });
    code(&server.calls.clone().notify_client_termination(asked).await.unwrap().into_inner().status)
}

async fn clients(server: &Server) -> Vec<Client> {
    let asked = ListClientsRequest::default();
    server.admin.clone().list_clients(asked).await.unwrap().into_inner().clients
}

async fn ids(server: &Server) -> Vec<String> {
    clients(server).await.into_iter().map(|client| client.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_of_a_client_that_nobody_knows_makes_it_known_by_what_it_says() {
    let server = Server::start().await;
    for (client_type, group, expected) in [
        (0, None, Code::UnrecognizedClientType),
        (4, Some(resource("g")), Code::UnrecognizedClientType),
        (99, None, Code::UnrecognizedClientType),
        (2, None, Code::IllegalConsumerGroup),
        (2, Some(resource("a.b")), Code::IllegalConsumerGroup),
    ] {
        assert_eq!(heartbeat(&server, client_type, group).await, expected, "{client_type}");
    }
    assert_eq!(clients(&server).await, []);
    for (client_type, kind, group) in [
        (1, ClientKind::Producer, None),
        (2, ClientKind::PushConsumer, Some("g")),
        (3, ClientKind::SimpleConsumer, Some("g")),
        (5, ClientKind::LitePushConsumer, Some("g")),
        (6, ClientKind::LiteSimpleConsumer, Some("g")),
    ] {
        let id = format!("client-{client_type}");
        assert_eq!(heartbeat_of(&server, &id, client_type, group.map(resource)).await, Code::Ok);
        let asked = DescribeClientRequest { id };
        let shown = server.admin.clone().describe_client(asked).await.unwrap().into_inner();
        let shown = shown.client.unwrap();
        assert_eq!((shown.kind(), shown.group.as_str()), (kind, group.unwrap_or_default()));
        assert_eq!((shown.language.as_str(), shown.version.as_str()), ("JAVA", "5.2.1"));
    }
    assert_eq!(clients(&server).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_after_settings_is_ok_for_every_kind() {
    let server = Server::start().await;
    let kinds = [
        ClientType::Producer,
        ClientType::PushConsumer,
        ClientType::SimpleConsumer,
        ClientType::LitePushConsumer,
        ClientType::LiteSimpleConsumer,
    ];
    for kind in kinds {
        let mut telemetry = server.telemetry(CLIENT, "JAVA").await;
        let mut settings = match kind {
            ClientType::Producer => producer(&["t"]),
            _ => consumer("g", &["t"]),
        };
        settings.client_type = Some(kind.into());
        telemetry.ask(settings).await;
        // What it says of its kind by then is not asked for.
        let group = (kind != ClientType::Producer).then(|| resource("g"));
        assert_eq!(heartbeat(&server, 0, group).await, Code::Ok, "{kind:?}");
        assert_eq!(goodbye(&server, None).await, Code::Ok);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_who_is_connected_and_what_for() {
    let server = Server::start().await;
    let mut first = server.telemetry("b", "PYTHON").await;
    first.ask(consumer("g", &["t", "u"])).await;
    let mut second = server.telemetry("a", "GO").await;
    second.ask(producer(&["t"])).await;
    assert_eq!(ids(&server).await, ["a", "b"]);
    let asked = ListClientsRequest { after: String::new(), limit: 1 };
    let page = server.admin.clone().list_clients(asked).await.unwrap().into_inner();
    assert_eq!((page.clients.len(), page.more), (1, true));

    let asked = DescribeClientRequest { id: "b".to_owned() };
    let shown = server.admin.clone().describe_client(asked).await.unwrap().into_inner();
    let shown = shown.client.unwrap();
    assert!(shown.address.starts_with("127.0.0.1:"), "{}", shown.address);
    assert!(shown.idle_ms <= shown.age_ms && shown.age_ms < 20_000, "{shown:?}");
    let subscription = |topic: &str| proto::Subscription {
        topic: topic.to_owned(),
        kind: FilterKind::Tags.into(),
        expression: "a || b".to_owned(),
    };
    let expected = Client {
        id: "b".to_owned(),
        kind: ClientKind::PushConsumer.into(),
        language: "PYTHON".to_owned(),
        version: "5.2.1".to_owned(),
        hostname: "producer.example".to_owned(),
        group: "g".to_owned(),
        subscriptions: vec![subscription("t"), subscription("u")],
        streams: 1,
        address: shown.address.clone(),
        age_ms: shown.age_ms,
        idle_ms: shown.idle_ms,
        ..Client::default()
    };
    assert_eq!(shown, expected);

    let asked = DescribeClientRequest { id: "nobody".to_owned() };
    let refused = server.admin.clone().describe_client(asked).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_says_goodbye_is_gone_and_gets_no_commands() {
    let server = Server::start().await;
    let mut telemetry = server.telemetry(CLIENT, "JAVA").await;
    telemetry.ask(consumer("g", &["t"])).await;
    assert_eq!(goodbye(&server, Some(resource("a.b"))).await, Code::IllegalConsumerGroup);
    assert_eq!(ids(&server).await, [CLIENT]);
    assert_eq!(goodbye(&server, Some(resource("g"))).await, Code::Ok);
    assert_eq!(ids(&server).await, [""; 0]);
    server.create_group("g", GroupConfig::default()).await;
    assert!(telemetry.is_silent().await);
    assert_eq!(goodbye(&server, Some(resource("g"))).await, Code::Ok, "also of nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_stream_is_gone_stays_known_for_a_while() {
    let server = Server::start().await;
    let mut telemetry = server.telemetry(CLIENT, "JAVA").await;
    telemetry.ask(consumer("g", &["t"])).await;
    assert_eq!(clients(&server).await[0].streams, 1);
    let Telemetry { commands, mut answers } = telemetry;
    drop(commands);
    assert_eq!(soon(answers.message()).await.unwrap(), None);
    while clients(&server).await[0].streams == 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(ids(&server).await, [CLIENT]);
}
