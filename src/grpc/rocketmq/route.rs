//! QueryRoute, QueryAssignment: where the queues of a topic are, which is here.
//!
//! Clients leave the address that they were given for the one in these answers, and keep connections by its text. So
//! they are told the address that they used, as they wrote it, unless one is configured; whoever does not say which
//! one he used is told the one where his call arrived.
//!
//! The broker chooses the queue of a send, and serves a receive from all queues. So an answer lists [`MAX_QUEUES`]
//! queues at most, whatever the topic has.

use std::net::{IpAddr, SocketAddr};

use tonic::Request;

use super::status::{self, Refusal};
use super::{Caller, clients, convert};
use crate::broker::{Broker, BrokerError, TopicEntry};
use crate::grpc::{deadline, local};
use crate::message::TopicType;
use crate::proto::rocketmq::{
    Address, AddressScheme, Assignment, Broker as WireBroker, Code, Endpoints, MessageQueue,
    MessageType, Permission, QueryAssignmentRequest, QueryAssignmentResponse, QueryRouteRequest,
    QueryRouteResponse, Resource,
};

/// The most queues in an answer.
const MAX_QUEUES: u32 = 64;

/// The most addresses that a client may say it has used.
const MAX_ADDRESSES: usize = 32;

/// Bytes of a host's name at most.
const MAX_HOST: usize = 255;

/// The name of the one broker there is. Clients keep queues by it, so it never changes.
const BROKER_NAME: &str = "mainstem";

/// The queue of an assignment that stands for all.
const ANY_QUEUE: i32 = -1;

/// The address that clients are told, if one is configured.
#[derive(Debug)]
pub(super) struct Advertised(Option<Endpoints>);

impl Advertised {
    /// Of an address with its port, `host:port`, which was checked where it was read.
    pub(super) fn new(address: Option<&str>) -> Self {
        Self(address.and_then(|address| {
            let (host, port) = address.rsplit_once(':')?;
            let host = host.trim_start_matches('[').trim_end_matches(']');
            Some(one(host.to_owned(), port.parse().ok()?))
        }))
    }

    /// What a client is told that says it has used `asked`.
    fn endpoints(&self, asked: Option<Endpoints>) -> Result<Endpoints, Refusal> {
        if let Some(configured) = &self.0 {
            return Ok(configured.clone());
        }
        match asked {
            Some(asked) if !asked.addresses.is_empty() => checked(asked),
            _ => match local() {
                Some(arrived) => Ok(of_socket(arrived)),
                None => {
                    let fault = "the request does not say which address it used";
                    Err(Refusal::new(Code::IllegalAccessPoint, fault))
                }
            },
        }
    }
}

/// What a client has used, if it can be told other clients.
fn checked(mut asked: Endpoints) -> Result<Endpoints, Refusal> {
    let is_legal = |address: &Address| {
        (1..=65_535).contains(&address.port)
            && !address.host.trim().is_empty()
            && address.host.len() <= MAX_HOST
    };
    if asked.addresses.len() > MAX_ADDRESSES || !asked.addresses.iter().all(is_legal) {
        let fault = "an address has a host and a port from 1 to 65535, and there are 32 at most";
        return Err(Refusal::new(Code::IllegalAccessPoint, fault));
    }
    if asked.scheme() == AddressScheme::Unspecified {
        let first = asked.addresses.first().map_or("", |address| address.host.as_str());
        asked.scheme = scheme(first).into();
    }
    Ok(asked)
}

fn scheme(host: &str) -> AddressScheme {
    match host.parse() {
        Ok(IpAddr::V4(_)) => AddressScheme::IPv4,
        Ok(IpAddr::V6(_)) => AddressScheme::IPv6,
        Err(_) => AddressScheme::DomainName,
    }
}

fn of_socket(address: SocketAddr) -> Endpoints {
    one(address.ip().to_string(), address.port())
}

fn one(host: String, port: u16) -> Endpoints {
    let scheme = scheme(&host).into();
    Endpoints { scheme, addresses: vec![Address { host, port: port.into() }] }
}

pub(super) async fn query_route(
    broker: &Broker,
    advertised: &Advertised,
    request: Request<QueryRouteRequest>,
) -> Result<QueryRouteResponse, Refusal> {
    Caller::check(request.metadata().as_ref())?;
    let deadline = deadline(request.metadata());
    let QueryRouteRequest { topic, endpoints } = request.into_inner();
    let name = convert::topic(topic.as_ref())?;
    let endpoints = advertised.endpoints(endpoints)?;
    let entry = broker.open_topic(name, deadline).await?;
    let queues = ids(&entry).map(|id| MessageQueue {
        accept_message_types: accepted(entry.settings().topic_type),
        ..queue(topic.as_ref(), id, &entry, &endpoints)
    });
    let message_queues = queues.collect();
    Ok(QueryRouteResponse { status: Some(status::ok()), message_queues })
}

pub(super) async fn query_assignment(
    broker: &Broker,
    advertised: &Advertised,
    request: Request<QueryAssignmentRequest>,
) -> Result<QueryAssignmentResponse, Refusal> {
    Caller::check(request.metadata().as_ref())?;
    let deadline = deadline(request.metadata());
    let QueryAssignmentRequest { topic, group, endpoints } = request.into_inner();
    let name = convert::topic(topic.as_ref())?;
    let group = convert::group(group.as_ref())?;
    let endpoints = advertised.endpoints(endpoints)?;
    let entry = broker.known_topic(name, deadline).await?;
    if !entry.settings().access.read {
        return Err(BrokerError::Forbidden { what: "read" }.into());
    }
    clients::subscribes(broker, group, name, deadline).await;
    let is_ordered =
        broker.group_settings(group, deadline).await?.is_some_and(|group| group.ordered);
    let ids = if is_ordered { ids(&entry).collect() } else { vec![ANY_QUEUE] };
    let assignments = ids.into_iter().map(|id| Assignment {
        message_queue: Some(queue(topic.as_ref(), id, &entry, &endpoints)),
    });
    let assignments = assignments.collect();
    Ok(QueryAssignmentResponse { status: Some(status::ok()), assignments })
}

fn ids(topic: &TopicEntry) -> impl Iterator<Item = i32> + use<> {
    // Queues are fewer than 2³¹ even without the bound.
    0..topic.settings().queues.min(MAX_QUEUES) as i32
}

fn queue(
    topic: Option<&Resource>,
    id: i32,
    entry: &TopicEntry,
    endpoints: &Endpoints,
) -> MessageQueue {
    let access = entry.settings().access;
    let permission = match (access.read, access.write) {
        (true, true) => Permission::ReadWrite,
        (true, false) => Permission::Read,
        (false, true) => Permission::Write,
        (false, false) => Permission::None,
    };
    MessageQueue {
        topic: topic.cloned(),
        id,
        permission: permission.into(),
        broker: Some(WireBroker {
            name: BROKER_NAME.to_owned(),
            id: 0,
            endpoints: Some(endpoints.clone()),
        }),
        accept_message_types: Vec::new(),
    }
}

/// What a topic of this type takes; never nothing, which clients could not bear.
fn accepted(topic_type: TopicType) -> Vec<i32> {
    let types: &[MessageType] = match topic_type {
        TopicType::Normal => &[MessageType::Normal],
        TopicType::Fifo => &[MessageType::Fifo],
        TopicType::Delay => &[MessageType::Delay],
        TopicType::Transaction => &[MessageType::Transaction],
        TopicType::Mixed => {
            &[MessageType::Normal, MessageType::Fifo, MessageType::Delay, MessageType::Transaction]
        }
    };
    types.iter().map(|one| i32::from(*one)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(advertised: Option<&str>, asked: Option<Endpoints>) -> Result<Endpoints, Code> {
        Advertised::new(advertised).endpoints(asked).map_err(|refusal| refusal.code)
    }

    #[test]
    fn an_address_is_told_as_it_was_used_or_as_it_is_configured() {
        let used = Endpoints {
            scheme: AddressScheme::IPv4.into(),
            addresses: ["10.0.0.2", "10.0.0.1"]
                .map(|host| Address { host: host.to_owned(), port: 80 })
                .into(),
        };
        assert_eq!(told(None, Some(used.clone())), Ok(used.clone()));
        for (address, host, scheme) in [
            ("broker.example:8081", "broker.example", AddressScheme::DomainName),
            ("192.0.2.1:8081", "192.0.2.1", AddressScheme::IPv4),
            ("[2001:db8::1]:8081", "2001:db8::1", AddressScheme::IPv6),
        ] {
            let told = told(Some(address), Some(used.clone())).unwrap();
            let addresses = vec![Address { host: host.to_owned(), port: 8081 }];
            assert_eq!(told, Endpoints { scheme: scheme.into(), addresses });
        }
    }

    #[test]
    fn an_address_that_nobody_can_dial_is_refused_and_a_scheme_is_never_left_open() {
        let of = |scheme: AddressScheme, host: &str, port| Endpoints {
            scheme: scheme.into(),
            addresses: vec![Address { host: host.to_owned(), port }],
        };
        for (host, port) in [("h", 0), ("h", -1), ("h", 65_536), ("", 80), (" ", 80)] {
            let refused = told(None, Some(of(AddressScheme::DomainName, host, port)));
            assert_eq!(refused, Err(Code::IllegalAccessPoint), "{host}:{port}");
        }
        let mut many = of(AddressScheme::IPv4, "10.0.0.1", 80);
        many.addresses = vec![many.addresses[0].clone(); 33];
        assert_eq!(told(None, Some(many)), Err(Code::IllegalAccessPoint));
        for (host, scheme) in [
            ("localhost", AddressScheme::DomainName),
            ("127.0.0.1", AddressScheme::IPv4),
            ("::1", AddressScheme::IPv6),
        ] {
            let told = told(None, Some(of(AddressScheme::Unspecified, host, 80)));
            assert_eq!(told, Ok(of(scheme, host, 80)));
        }
    }
}
