//! What a client is told about how to behave: its own settings, with the broker's words written over them.
//!
//! | who | what | why it must be so |
//! | --- | --- | --- |
//! | producers | pauses that grow | other kinds of pauses end some clients at their start |
//! | consumers | a list of pauses, in whole seconds | one client knows no other kind, and reads seconds alone |
//! | all | no metrics | clients would look for somebody who takes them |
//!
//! What a client says about these itself counts for nothing.

use crate::broker::limits;
use crate::message::GroupSettings;
use crate::proto::rocketmq::settings::PubSub;
use crate::proto::rocketmq::{
    CustomizedBackoff, ExponentialBackoff, Metric, Publishing, RetryPolicy, Settings, Subscription,
    retry_policy,
};

use super::time;

/// How often a producer sends a message until it gives up.
const SEND_ATTEMPTS: i32 = 3;

/// Messages that a consumer asks for at once.
const RECEIVE_BATCH: i32 = 32;

/// Seconds that a receive waits.
const POLLING_SECONDS: u64 = 20;

/// Lite topics that a client may subscribe to.
const LITE_SUBSCRIPTIONS: i32 = 2_000;

/// Bytes of a lite topic's name.
const LITE_TOPIC_LEN: i32 = 64;

/// The settings of a client that told `own`, and whose group is as `group` says.
pub(super) fn answer(own: &Settings, group: &GroupSettings) -> Settings {
    let (backoff, pub_sub) = match &own.pub_sub {
        Some(PubSub::Publishing(own)) => (of_producer(), PubSub::Publishing(publishing(own))),
        Some(PubSub::Subscription(own)) => {
            (of_consumer(group), PubSub::Subscription(subscription(own, group)))
        }
        None => return Settings::default(),
    };
    Settings {
        client_type: own.client_type,
        access_point: own.access_point.clone(),
        backoff_policy: Some(backoff),
        request_timeout: own.request_timeout,
        user_agent: own.user_agent.clone(),
        metric: Some(Metric { on: false, endpoints: None }),
        client_properties: own.client_properties.clone(),
        pub_sub: Some(pub_sub),
    }
}

fn seconds(seconds: u64) -> prost_types::Duration {
    time::wire(std::time::Duration::from_secs(seconds))
}

fn publishing(own: &Publishing) -> Publishing {
    Publishing {
        topics: own.topics.clone(),
        max_body_size: i32::try_from(limits::BODY_LEN).unwrap_or(i32::MAX),
        validate_message_type: true,
    }
}

fn subscription(own: &Subscription, group: &GroupSettings) -> Subscription {
    Subscription {
        group: own.group.clone(),
        subscriptions: own.subscriptions.clone(),
        fifo: Some(group.ordered),
        receive_batch_size: Some(RECEIVE_BATCH),
        long_polling_timeout: Some(seconds(POLLING_SECONDS)),
        lite_subscription_quota: Some(LITE_SUBSCRIPTIONS),
        max_lite_topic_size: Some(LITE_TOPIC_LEN),
    }
}

fn of_producer() -> RetryPolicy {
    let backoff = ExponentialBackoff {
        initial: Some(prost_types::Duration { seconds: 0, nanos: 10_000_000 }),
        max: Some(seconds(1)),
        multiplier: 2.0,
    };
    let strategy = Some(retry_policy::Strategy::ExponentialBackoff(backoff));
    RetryPolicy { max_attempts: SEND_ATTEMPTS, strategy }
}

fn of_consumer(group: &GroupSettings) -> RetryPolicy {
    // Rounded up: a client waits rather too long than not long enough.
    let whole = |ms: &u64| seconds(ms.div_ceil(1_000));
    let next = group.retry_delays_ms.iter().map(whole).collect();
    let max_attempts =
        group.max_attempts.map_or(i32::MAX, |most| i32::try_from(most).unwrap_or(i32::MAX));
    let strategy = Some(retry_policy::Strategy::CustomizedBackoff(CustomizedBackoff { next }));
    RetryPolicy { max_attempts, strategy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_of_a_consumer_are_whole_seconds_and_attempts_without_a_limit_are_as_many_as_fit() {
        let group = GroupSettings {
            max_attempts: None,
            retry_delays_ms: vec![0, 1, 1_000, 1_500],
            ..GroupSettings::default()
        };
        let policy = of_consumer(&group);
        let Some(retry_policy::Strategy::CustomizedBackoff(backoff)) = policy.strategy else {
            unreachable!("consumers get a list")
        };
        assert_eq!(backoff.next, [0, 1, 1, 2].map(seconds));
        assert_eq!(policy.max_attempts, i32::MAX);
    }
}
