//! The gRPC front: protobuf in, domain types out, and back. With `client`, the only room that names generated types.
//!
//! | file | holds |
//! | --- | --- |
//! | [`listen`] | the port: accept loop, HTTP/2 settings, caps, drain |
//! | `calls.rs` | the calls of a connection, in its task |
//! | `opening.rs` | how a connection begins: TLS or not, and the preface of HTTP/2 |
//! | [`tls`] | a certificate and its key, from PEM to what the port needs |
//! | `serve.rs` | what surrounds every call: panics, and the bytes of requests and answers |
//! | `codec.rs` | the codec of unary calls, which bounds the fields of a message |
//! | `outgoing.rs` | answers on their way out: in pieces, counted until they have left |
//! | `raw.rs` | streams without a codec in between |
//! | `pace.rs` | how fast a request must arrive |
//! | [`native`] | `mainstem.v1`, one file per family of calls |
//! | [`rocketmq`] | `apache.rocketmq.v2`, likewise |
//!
//! Runs on tokio tasks: one that accepts, one per connection with its calls.

pub(crate) mod calls;
pub(crate) mod codec;
pub(crate) mod listen;
pub(crate) mod native;
pub(crate) mod opening;
mod outgoing;
mod pace;
mod raw;
mod rocketmq;
mod serve;
pub(crate) mod tls;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::codegen::http::HeaderMap;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;

use crate::broker::Broker;
use crate::proto;

pub(crate) use serve::Guarded;
use serve::{local, peer};

/// Whose health is told: the server's own, and that of the services that clients come for.
const HEALTH_OF: [&str; 3] = ["", "mainstem.v1.Broker", "apache.rocketmq.v2.MessagingService"];

/// The longest that a call may take, whatever its caller is ready to wait.
const MAX_CALL: Duration = Duration::from_secs(60);

/// The header in which a caller says how long he waits.
const TIMEOUT: &str = "grpc-timeout";

/// Why the services could not be put together: a defect of the build.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The compiled-in descriptors cannot be read.
    #[error("the descriptors for reflection cannot be read")]
    Descriptors(#[from] tonic_reflection::server::Error),
}

/// Every service of the port. `advertised` is the address, with its port, that clients of RocketMQ are told; `None`:
/// the one that they used.
///
/// # Errors
/// The descriptors for reflection cannot be read.
pub(crate) async fn services(
    broker: Arc<Broker>,
    advertised: Option<&str>,
) -> Result<(Guarded<Routes>, Health), ServiceError> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let health_of = Health { reporter };
    health_of.tell(tonic_health::ServingStatus::Serving).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(proto::rocketmq::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let routes = native::routes(Arc::clone(&broker))
        .add_service(rocketmq::service(Arc::clone(&broker), advertised))
        .add_service(health)
        .add_service(reflection)
        .prepare();
    Ok((Guarded::new(routes, broker), health_of))
}

/// What the health service answers.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    reporter: HealthReporter,
}

impl Health {
    /// Says from now on that nothing is served.
    pub(crate) async fn stop(&self) {
        self.tell(tonic_health::ServingStatus::NotServing).await;
    }

    async fn tell(&self, status: tonic_health::ServingStatus) {
        for name in HEALTH_OF {
            self.reporter.set_service_status(name, status).await;
        }
    }
}

/// When the caller stops waiting: his own deadline if it comes before the server's.
fn deadline(metadata: &MetadataMap) -> Instant {
    until(metadata.get(TIMEOUT).and_then(|value| value.to_str().ok()))
}

/// The same, of a call without a codec.
fn deadline_of(headers: &HeaderMap) -> Instant {
    until(headers.get(TIMEOUT).and_then(|value| value.to_str().ok()))
}

fn until(asked: Option<&str>) -> Instant {
    let wait = asked.and_then(timeout).unwrap_or(MAX_CALL).min(MAX_CALL);
    Instant::now() + wait
}

/// A `grpc-timeout`: at most eight digits and a unit. What does not read so is no deadline.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_timeout_is_digits_and_a_unit() {
        assert_eq!(timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(timeout("0n"), Some(Duration::ZERO));
        for text in ["", "S", "1", "1s", "123456789S", "-1S", "+1S", "1 S", "1µ"] {
            assert_eq!(timeout(text), None, "{text}");
        }
    }
}
