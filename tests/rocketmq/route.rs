//! QueryRoute and QueryAssignment.

use mainstem::proto::rocketmq::{
    self as v2, Address, AddressScheme, Code, Endpoints, MessageType, Permission,
    QueryAssignmentRequest, QueryAssignmentResponse, QueryRouteRequest, QueryRouteResponse,
    Resource,
};
use mainstem::proto::{Access, GroupConfig, TopicConfig, TopicType, UpdateTopicRequest};
use prost::Message as _;

use crate::support::{Server, code, request, resource};

fn used() -> Endpoints {
    let addresses = [("10.1.1.2", 7001), ("10.1.1.1", 7000)];
    Endpoints {
        scheme: AddressScheme::IPv4.into(),
        addresses: addresses.map(|(host, port)| Address { host: host.to_owned(), port }).into(),
    }
}

async fn route_to(
    server: &Server,
    topic: Resource,
    endpoints: Option<Endpoints>,
) -> QueryRouteResponse {
    let asked = request(QueryRouteRequest { topic: Some(topic), endpoints });
    server.calls.clone().query_route(asked).await.unwrap().into_inner()
}

async fn route(server: &Server, topic: &str) -> QueryRouteResponse {
    route_to(server, resource(topic), Some(used())).await
}

/// A client that sends to this topic finds it.
pub(crate) async fn is_found(server: &Server, topic: &str) {
    assert_eq!(code(&route(server, topic).await.status), Code::Ok);
}

async fn assignment(server: &Server, topic: &str, group: &str) -> QueryAssignmentResponse {
    let asked = QueryAssignmentRequest {
        topic: Some(resource(topic)),
        group: Some(resource(group)),
        endpoints: Some(used()),
    };
    server.calls.clone().query_assignment(request(asked)).await.unwrap().into_inner()
}

fn ids(answer: &QueryAssignmentResponse) -> Vec<i32> {
    answer.assignments.iter().map(|one| one.message_queue.as_ref().unwrap().id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_lists_the_queues_from_0_on_under_one_broker_at_the_address_that_was_used() {
    let server = Server::start().await;
    server.create("orders", TopicType::Normal, 3).await;
    let topic = Resource { resource_namespace: "ns".to_owned(), name: "orders".to_owned() };
    let answer = route_to(&server, topic.clone(), Some(used())).await;
    assert_eq!(code(&answer.status), Code::Ok);
    let broker = v2::Broker { name: "mainstem".to_owned(), id: 0, endpoints: Some(used()) };
    let queue = |id| v2::MessageQueue {
        topic: Some(topic.clone()),
        id,
        permission: Permission::ReadWrite.into(),
        broker: Some(broker.clone()),
        accept_message_types: vec![MessageType::Normal.into()],
    };
    assert_eq!(answer.message_queues, [0, 1, 2].map(queue));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_without_an_address_names_the_one_where_the_call_arrived() {
    let server = Server::start().await;
    server.create("orders", TopicType::Normal, 1).await;
    let answer = route_to(&server, resource("orders"), None).await;
    let told = answer.message_queues[0].broker.as_ref().unwrap().endpoints.as_ref().unwrap();
    let port = server.at.grpc.port().into();
    assert_eq!(told.addresses, [Address { host: "127.0.0.1".to_owned(), port }]);
    assert_eq!(told.scheme(), AddressScheme::IPv4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_advertised_address_wins_over_the_one_that_was_used() {
    let server = Server::with(&["server.advertise=broker.example:18081"]).await;
    let answer = route(&server, "orders").await;
    let told = answer.message_queues[0].broker.as_ref().unwrap().endpoints.as_ref().unwrap();
    assert_eq!(told.addresses, [Address { host: "broker.example".to_owned(), port: 18_081 }]);
    assert_eq!(told.scheme(), AddressScheme::DomainName);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_routes_have_the_same_bytes() {
    let server = Server::start().await;
    let first = route(&server, "orders").await.encode_to_vec();
    for _ in 0..9 {
        assert_eq!(route(&server, "orders").await.encode_to_vec(), first);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_says_what_the_topic_takes_and_never_nothing() {
    let server = Server::start().await;
    for (name, topic_type, taken) in [
        ("normal", TopicType::Normal, &[1][..]),
        ("fifo", TopicType::Fifo, &[2]),
        ("delay", TopicType::Delay, &[3]),
        ("transaction", TopicType::Transaction, &[4]),
        ("mixed", TopicType::Mixed, &[1, 2, 3, 4]),
    ] {
        server.create(name, topic_type, 2).await;
        for queue in route(&server, name).await.message_queues {
            assert_eq!(queue.accept_message_types, taken, "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_to_an_unknown_topic_is_not_found_where_topics_are_not_made_by_their_use() {
    let server = Server::with(&["broker.auto_create_topics=false"]).await;
    let answer = route(&server, "unknown").await;
    assert_eq!((code(&answer.status), answer.message_queues), (Code::TopicNotFound, Vec::new()));
    for name in ["a.b", &"x".repeat(128), "", " ", "TBW102", "rmq_sys_x"] {
        let answer = route(&server, name).await;
        assert_eq!((code(&answer.status), answer.message_queues), (Code::IllegalTopic, Vec::new()));
    }
    // Legal, as the names of dead letters have such characters; nobody can make it.
    for name in ["%DLQ%g", "a|b"] {
        assert_eq!(code(&route(&server, name).await.status), Code::TopicNotFound, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_makes_an_unknown_topic_that_takes_all_kinds_as_a_send_does() {
    let server = Server::start().await;
    let answer = route(&server, "unknown").await;
    assert_eq!(answer.message_queues.len(), 4);
    assert_eq!(answer.message_queues[0].accept_message_types, [1, 2, 3, 4]);
    assert_eq!(code(&route(&server, "%DLQ%g").await.status), Code::TopicNotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_and_assignments_list_64_queues_at_most() {
    let server = Server::start().await;
    server.create("wide", TopicType::Normal, 1_000).await;
    assert_eq!(route(&server, "wide").await.message_queues.len(), 64);
    let ordered = GroupConfig { ordered: Some(true), ..GroupConfig::default() };
    server.create_group("g", ordered).await;
    assert_eq!(ids(&assignment(&server, "wide", "g").await), Vec::from_iter(0..64));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assignment_is_any_queue_of_a_plain_group_and_each_queue_of_an_ordered_one() {
    let server = Server::start().await;
    server.create("orders", TopicType::Fifo, 3).await;
    let ordered = GroupConfig { ordered: Some(true), ..GroupConfig::default() };
    server.create_group("ordered", ordered).await;
    let plain = assignment(&server, "orders", "nobody_made_it").await;
    assert_eq!((code(&plain.status), ids(&plain)), (Code::Ok, vec![-1]));
    let queue = plain.assignments[0].message_queue.as_ref().unwrap();
    assert_eq!(queue.broker.as_ref().unwrap().endpoints, Some(used()));
    assert_eq!(queue.topic, Some(resource("orders")));
    assert_eq!(ids(&assignment(&server, "orders", "ordered").await), [0, 1, 2]);

    let refused = assignment(&server, "nothing", "ordered").await;
    assert_eq!((code(&refused.status), ids(&refused)), (Code::TopicNotFound, vec![]));
    let refused = assignment(&server, "orders", "a.b").await;
    assert_eq!(code(&refused.status), Code::IllegalConsumerGroup);
    let refused = assignment(&server, "a.b", "ordered").await;
    assert_eq!(code(&refused.status), Code::IllegalTopic);
}

async fn allow(server: &Server, topic: &str, access: Access) {
    let config = TopicConfig { access: access.into(), ..TopicConfig::default() };
    let asked = UpdateTopicRequest {
        name: topic.to_owned(),
        config: Some(config),
        ..UpdateTopicRequest::default()
    };
    server.admin.clone().update_topic(asked).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_cannot_be_read_has_no_assignment_and_its_route_says_so() {
    let server = Server::start().await;
    server.create("orders", TopicType::Normal, 1).await;
    allow(&server, "orders", Access::WriteOnly).await;
    assert_eq!(code(&assignment(&server, "orders", "g").await.status), Code::Forbidden);
    let queue = &route(&server, "orders").await.message_queues[0];
    assert_eq!(queue.permission(), Permission::Write);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_queue_of_a_route_says_what_may_be_done_with_it() {
    let server = Server::start().await;
    server.create("orders", TopicType::Normal, 2).await;
    for (access, permission) in [
        (Access::WriteOnly, Permission::Write),
        (Access::ReadOnly, Permission::Read),
        (Access::NoAccess, Permission::None),
        (Access::ReadWrite, Permission::ReadWrite),
    ] {
        allow(&server, "orders", access).await;
        let route = route(&server, "orders").await;
        let told: Vec<_> = route.message_queues.iter().map(|queue| queue.permission()).collect();
        assert_eq!(told, [permission; 2]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_cannot_be_dialled_is_refused() {
    let server = Server::start().await;
    let of = |host: &str, port| Endpoints {
        scheme: AddressScheme::DomainName.into(),
        addresses: vec![Address { host: host.to_owned(), port }],
    };
    for endpoints in [of("", 80), of("h", 0), of("h", 65_536)] {
        let answer = route_to(&server, resource("orders"), Some(endpoints)).await;
        assert_eq!(code(&answer.status), Code::IllegalAccessPoint);
    }
}
