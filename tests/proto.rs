//! The RocketMQ 5 protocol as it was compiled, against a table: names, numbers, types and streams are a contract with
//! every client that was ever built from it.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use mainstem::proto::rocketmq;
use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet,
};

const PACKAGE: &str = "apache.rocketmq.v2";

/// One block per enum, message and service. A name with a dot is one inside of a message; `in` names the oneof.
const TABLE: &str = "\
enum TransactionResolution
  0 TRANSACTION_RESOLUTION_UNSPECIFIED
  1 COMMIT
  2 ROLLBACK
enum TransactionSource
  0 SOURCE_UNSPECIFIED
  1 SOURCE_CLIENT
  2 SOURCE_SERVER_CHECK
enum Permission
  0 PERMISSION_UNSPECIFIED
  1 NONE
  2 READ
  3 WRITE
  4 READ_WRITE
enum FilterType
  0 FILTER_TYPE_UNSPECIFIED
  1 TAG
  2 SQL
enum AddressScheme
  0 ADDRESS_SCHEME_UNSPECIFIED
  1 IPv4
  2 IPv6
  3 DOMAIN_NAME
enum MessageType
  0 MESSAGE_TYPE_UNSPECIFIED
  1 NORMAL
  2 FIFO
  3 DELAY
  4 TRANSACTION
  5 LITE
  6 PRIORITY
enum DigestType
  0 DIGEST_TYPE_UNSPECIFIED
  1 CRC32
  2 MD5
  3 SHA1
enum ClientType
  0 CLIENT_TYPE_UNSPECIFIED
  1 PRODUCER
  2 PUSH_CONSUMER
  3 SIMPLE_CONSUMER
  4 PULL_CONSUMER
  5 LITE_PUSH_CONSUMER
  6 LITE_SIMPLE_CONSUMER
enum Encoding
  0 ENCODING_UNSPECIFIED
  1 IDENTITY
  2 GZIP
enum Code
  0 CODE_UNSPECIFIED
  20000 OK
  30000 MULTIPLE_RESULTS
  40000 BAD_REQUEST
  40001 ILLEGAL_ACCESS_POINT
  40002 ILLEGAL_TOPIC
  40003 ILLEGAL_CONSUMER_GROUP
  40004 ILLEGAL_MESSAGE_TAG
  40005 ILLEGAL_MESSAGE_KEY
  40006 ILLEGAL_MESSAGE_GROUP
  40007 ILLEGAL_MESSAGE_PROPERTY_KEY
  40008 INVALID_TRANSACTION_ID
  40009 ILLEGAL_MESSAGE_ID
  40010 ILLEGAL_FILTER_EXPRESSION
  40011 ILLEGAL_INVISIBLE_TIME
  40012 ILLEGAL_DELIVERY_TIME
  40013 INVALID_RECEIPT_HANDLE
  40014 MESSAGE_PROPERTY_CONFLICT_WITH_TYPE
  40015 UNRECOGNIZED_CLIENT_TYPE
  40016 MESSAGE_CORRUPTED
  40017 CLIENT_ID_REQUIRED
  40018 ILLEGAL_POLLING_TIME
  40019 ILLEGAL_OFFSET
  40020 ILLEGAL_LITE_TOPIC
  40021 INVALID_CLIENT_PROPERTIES
  40100 UNAUTHORIZED
  40200 PAYMENT_REQUIRED
  40300 FORBIDDEN
  40400 NOT_FOUND
  40401 MESSAGE_NOT_FOUND
  40402 TOPIC_NOT_FOUND
  40403 CONSUMER_GROUP_NOT_FOUND
  40404 OFFSET_NOT_FOUND
  40800 REQUEST_TIMEOUT
  41300 PAYLOAD_TOO_LARGE
  41301 MESSAGE_BODY_TOO_LARGE
  41302 MESSAGE_BODY_EMPTY
  42800 PRECONDITION_FAILED
  42900 TOO_MANY_REQUESTS
  42901 LITE_TOPIC_QUOTA_EXCEEDED
  42902 LITE_SUBSCRIPTION_QUOTA_EXCEEDED
  43100 REQUEST_HEADER_FIELDS_TOO_LARGE
  43101 MESSAGE_PROPERTIES_TOO_LARGE
  50000 INTERNAL_ERROR
  50001 INTERNAL_SERVER_ERROR
  50002 HA_NOT_AVAILABLE
  50100 NOT_IMPLEMENTED
  50400 PROXY_TIMEOUT
  50401 MASTER_PERSISTENCE_TIMEOUT
  50402 SLAVE_PERSISTENCE_TIMEOUT
  50500 UNSUPPORTED
  50501 VERSION_UNSUPPORTED
  50502 VERIFY_FIFO_MESSAGE_UNSUPPORTED
  60000 FAILED_TO_CONSUME_MESSAGE
enum Language
  0 LANGUAGE_UNSPECIFIED
  1 JAVA
  2 CPP
  3 DOT_NET
  4 GOLANG
  5 RUST
  6 PYTHON
  7 PHP
  8 NODE_JS
  9 RUBY
  10 OBJECTIVE_C
  11 DART
  12 KOTLIN
enum LiteSubscriptionAction
  0 PARTIAL_ADD
  1 PARTIAL_REMOVE
  2 COMPLETE_ADD
  3 COMPLETE_REMOVE
enum QueryOffsetPolicy
  0 BEGINNING
  1 END
  2 TIMESTAMP
enum OffsetOption.Policy
  0 LAST
  1 MIN
  2 MAX
message FilterExpression
  1 type: FilterType
  2 expression: string
message RetryPolicy
  1 max_attempts: int32
  2 exponential_backoff: ExponentialBackoff in strategy
  3 customized_backoff: CustomizedBackoff in strategy
message ExponentialBackoff
  1 initial: Duration
  2 max: Duration
  3 multiplier: float
message CustomizedBackoff
  1 next: repeated Duration
message Resource
  1 resource_namespace: string
  2 name: string
message SubscriptionEntry
  1 topic: Resource
  2 expression: FilterExpression
message Address
  1 host: string
  2 port: int32
message Endpoints
  1 scheme: AddressScheme
  2 addresses: repeated Address
message Broker
  1 name: string
  2 id: int32
  3 endpoints: Endpoints
message MessageQueue
  1 topic: Resource
  2 id: int32
  3 permission: Permission
  4 broker: Broker
  5 accept_message_types: repeated MessageType
message Digest
  1 type: DigestType
  2 checksum: string
message SystemProperties
  1 tag: optional string
  2 keys: repeated string
  3 message_id: string
  4 body_digest: Digest
  5 body_encoding: Encoding
  6 message_type: MessageType
  7 born_timestamp: Timestamp
  8 born_host: string
  9 store_timestamp: optional Timestamp
  10 store_host: string
  11 delivery_timestamp: optional Timestamp
  12 receipt_handle: optional string
  13 queue_id: int32
  14 queue_offset: optional int64
  15 invisible_duration: optional Duration
  16 delivery_attempt: optional int32
  17 message_group: optional string
  18 trace_context: optional string
  19 orphaned_transaction_recovery_duration: optional Duration
  20 dead_letter_queue: optional DeadLetterQueue
  21 lite_topic: optional string
  22 priority: optional int32
message DeadLetterQueue
  1 topic: string
  2 message_id: string
message Message
  1 topic: Resource
  2 user_properties: map<string, string>
  3 system_properties: SystemProperties
  4 body: bytes
message Assignment
  1 message_queue: MessageQueue
message Status
  1 code: Code
  2 message: string
message UA
  1 language: Language
  2 version: string
  3 platform: string
  4 hostname: string
message Settings
  1 client_type: optional ClientType
  2 access_point: optional Endpoints
  3 backoff_policy: optional RetryPolicy
  4 request_timeout: optional Duration
  5 publishing: Publishing in pub_sub
  6 subscription: Subscription in pub_sub
  7 user_agent: UA
  8 metric: Metric
  9 client_properties: map<string, string>
message Publishing
  1 topics: repeated Resource
  2 max_body_size: int32
  3 validate_message_type: bool
message Subscription
  1 group: optional Resource
  2 subscriptions: repeated SubscriptionEntry
  3 fifo: optional bool
  4 receive_batch_size: optional int32
  5 long_polling_timeout: optional Duration
  6 lite_subscription_quota: optional int32
  7 max_lite_topic_size: optional int32
message Metric
  1 on: bool
  2 endpoints: optional Endpoints
message OffsetOption
  1 policy: OffsetOption.Policy in offset_type
  2 offset: int64 in offset_type
  3 tail_n: int64 in offset_type
  4 timestamp: int64 in offset_type
message QueryRouteRequest
  1 topic: Resource
  2 endpoints: Endpoints
message QueryRouteResponse
  1 status: Status
  2 message_queues: repeated MessageQueue
message SendMessageRequest
  1 messages: repeated Message
message SendResultEntry
  1 status: Status
  2 message_id: string
  3 transaction_id: string
  4 offset: int64
  5 recall_handle: string
message SendMessageResponse
  1 status: Status
  2 entries: repeated SendResultEntry
message QueryAssignmentRequest
  1 topic: Resource
  2 group: Resource
  3 endpoints: Endpoints
message QueryAssignmentResponse
  1 status: Status
  2 assignments: repeated Assignment
message ReceiveMessageRequest
  1 group: Resource
  2 message_queue: MessageQueue
  3 filter_expression: FilterExpression
  4 batch_size: int32
  5 invisible_duration: optional Duration
  6 auto_renew: bool
  7 long_polling_timeout: optional Duration
  8 attempt_id: optional string
message ReceiveMessageResponse
  1 status: Status in content
  2 message: Message in content
  3 delivery_timestamp: Timestamp in content
message AckMessageEntry
  1 message_id: string
  2 receipt_handle: string
  3 lite_topic: optional string
message AckMessageRequest
  1 group: Resource
  2 topic: Resource
  3 entries: repeated AckMessageEntry
message AckMessageResultEntry
  1 message_id: string
  2 receipt_handle: string
  3 status: Status
message AckMessageResponse
  1 status: Status
  2 entries: repeated AckMessageResultEntry
message ForwardMessageToDeadLetterQueueRequest
  1 group: Resource
  2 topic: Resource
  3 receipt_handle: string
  4 message_id: string
  5 delivery_attempt: int32
  6 max_delivery_attempts: int32
  7 lite_topic: optional string
message ForwardMessageToDeadLetterQueueResponse
  1 status: Status
message HeartbeatRequest
  1 group: optional Resource
  2 client_type: ClientType
message HeartbeatResponse
  1 status: Status
message EndTransactionRequest
  1 topic: Resource
  2 message_id: string
  3 transaction_id: string
  4 resolution: TransactionResolution
  5 source: TransactionSource
  6 trace_context: string
message EndTransactionResponse
  1 status: Status
message PrintThreadStackTraceCommand
  1 nonce: string
message ReconnectEndpointsCommand
  1 nonce: string
message ThreadStackTrace
  1 nonce: string
  2 thread_stack_trace: optional string
message VerifyMessageCommand
  1 nonce: string
  2 message: Message
message VerifyMessageResult
  1 nonce: string
message RecoverOrphanedTransactionCommand
  1 message: Message
  2 transaction_id: string
message NotifyUnsubscribeLiteCommand
  1 lite_topic: string
message TelemetryCommand
  1 status: optional Status
  2 settings: Settings in command
  3 thread_stack_trace: ThreadStackTrace in command
  4 verify_message_result: VerifyMessageResult in command
  5 recover_orphaned_transaction_command: RecoverOrphanedTransactionCommand in command
  6 print_thread_stack_trace_command: PrintThreadStackTraceCommand in command
  7 verify_message_command: VerifyMessageCommand in command
  8 reconnect_endpoints_command: ReconnectEndpointsCommand in command
  9 notify_unsubscribe_lite_command: NotifyUnsubscribeLiteCommand in command
message NotifyClientTerminationRequest
  1 group: optional Resource
message NotifyClientTerminationResponse
  1 status: Status
message ChangeInvisibleDurationRequest
  1 group: Resource
  2 topic: Resource
  3 receipt_handle: string
  4 invisible_duration: Duration
  5 message_id: string
  6 lite_topic: optional string
  7 suspend: optional bool
message ChangeInvisibleDurationResponse
  1 status: Status
  2 receipt_handle: string
message PullMessageRequest
  1 group: Resource
  2 message_queue: MessageQueue
  3 offset: int64
  4 batch_size: int32
  5 filter_expression: FilterExpression
  6 long_polling_timeout: Duration
message PullMessageResponse
  1 status: Status in content
  2 message: Message in content
  3 next_offset: int64 in content
message UpdateOffsetRequest
  1 group: Resource
  2 message_queue: MessageQueue
  3 offset: int64
message UpdateOffsetResponse
  1 status: Status
message GetOffsetRequest
  1 group: Resource
  2 message_queue: MessageQueue
message GetOffsetResponse
  1 status: Status
  2 offset: int64
message QueryOffsetRequest
  1 message_queue: MessageQueue
  2 query_offset_policy: QueryOffsetPolicy
  3 timestamp: optional Timestamp
message QueryOffsetResponse
  1 status: Status
  2 offset: int64
message RecallMessageRequest
  1 topic: Resource
  2 recall_handle: string
message RecallMessageResponse
  1 status: Status
  2 message_id: string
message SyncLiteSubscriptionRequest
  1 action: LiteSubscriptionAction
  2 topic: Resource
  3 group: Resource
  4 lite_topic_set: repeated string
  5 version: optional int64
  6 offset_option: optional OffsetOption
message SyncLiteSubscriptionResponse
  1 status: Status
service MessagingService
  QueryRoute: QueryRouteRequest -> QueryRouteResponse
  Heartbeat: HeartbeatRequest -> HeartbeatResponse
  SendMessage: SendMessageRequest -> SendMessageResponse
  QueryAssignment: QueryAssignmentRequest -> QueryAssignmentResponse
  ReceiveMessage: ReceiveMessageRequest -> stream ReceiveMessageResponse
  AckMessage: AckMessageRequest -> AckMessageResponse
  ForwardMessageToDeadLetterQueue: ForwardMessageToDeadLetterQueueRequest -> ForwardMessageToDeadLetterQueueResponse
  PullMessage: PullMessageRequest -> stream PullMessageResponse
  UpdateOffset: UpdateOffsetRequest -> UpdateOffsetResponse
  GetOffset: GetOffsetRequest -> GetOffsetResponse
  QueryOffset: QueryOffsetRequest -> QueryOffsetResponse
  EndTransaction: EndTransactionRequest -> EndTransactionResponse
  Telemetry: stream TelemetryCommand -> stream TelemetryCommand
  NotifyClientTermination: NotifyClientTerminationRequest -> NotifyClientTerminationResponse
  ChangeInvisibleDuration: ChangeInvisibleDurationRequest -> ChangeInvisibleDurationResponse
  RecallMessage: RecallMessageRequest -> RecallMessageResponse
  SyncLiteSubscription: SyncLiteSubscriptionRequest -> SyncLiteSubscriptionResponse
";

/// The blocks by their first line.
fn blocks(table: &str) -> BTreeMap<String, String> {
    let mut blocks: BTreeMap<String, String> = BTreeMap::new();
    let mut title = "";
    for line in table.lines() {
        if !line.starts_with(' ') {
            title = line;
            assert_eq!(blocks.insert(title.to_owned(), String::new()), None, "{title} twice");
        } else {
            let block = blocks.get_mut(title).unwrap();
            writeln!(block, "{line}").unwrap();
        }
    }
    blocks
}

/// The files of the protocol in the form of the table.
fn compiled() -> String {
    let files = FileDescriptorSet::decode(rocketmq::DESCRIPTORS).unwrap().file;
    let mut table = String::new();
    for file in files.iter().filter(|file| file.package() == PACKAGE) {
        describe(file, &mut table);
    }
    table
}

fn describe(file: &FileDescriptorProto, table: &mut String) {
    assert_eq!(file.syntax(), "proto3", "{}", file.name());
    file.enum_type.iter().for_each(|one| describe_enum("", one, table));
    file.message_type.iter().for_each(|one| describe_message(one, table));
    for service in &file.service {
        writeln!(table, "service {}", service.name()).unwrap();
        for method in &service.method {
            let stream = |is_stream| if is_stream { "stream " } else { "" };
            let (before, after) =
                (stream(method.client_streaming()), stream(method.server_streaming()));
            let (input, output) = (short(method.input_type()), short(method.output_type()));
            writeln!(table, "  {}: {before}{input} -> {after}{output}", method.name()).unwrap();
        }
    }
}

fn describe_enum(outer: &str, one: &EnumDescriptorProto, table: &mut String) {
    writeln!(table, "enum {outer}{}", one.name()).unwrap();
    for value in &one.value {
        writeln!(table, "  {} {}", value.number(), value.name()).unwrap();
    }
}

fn describe_message(message: &DescriptorProto, table: &mut String) {
    writeln!(table, "message {}", message.name()).unwrap();
    for field in &message.field {
        writeln!(table, "  {} {}: {}", field.number(), field.name(), kind(message, field)).unwrap();
    }
    let outer = format!("{}.", message.name());
    message.enum_type.iter().for_each(|one| describe_enum(&outer, one, table));
    let nested = message.nested_type.iter().filter(|nested| !is_map_entry(nested));
    assert_eq!(nested.map(DescriptorProto::name).next(), None, "messages stand alone");
}

fn is_map_entry(message: &DescriptorProto) -> bool {
    message.options.as_ref().is_some_and(|options| options.map_entry())
}

/// Type, label and oneof.
fn kind(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let entry = message.nested_type.iter().filter(|nested| is_map_entry(nested));
    let inside = |name: &str| format!(".{PACKAGE}.{}.{name}", message.name());
    if let Some(entry) = entry.into_iter().find(|it| inside(it.name()) == field.type_name()) {
        let [key, value] = entry.field.as_slice() else { return format!("{entry:?}") };
        return format!("map<{}, {}>", scalar(key), scalar(value));
    }
    if field.proto3_optional() {
        return format!("optional {}", scalar(field));
    }
    if let Some(index) = field.oneof_index {
        let oneof = &message.oneof_decl[usize::try_from(index).unwrap()];
        return format!("{} in {}", scalar(field), oneof.name());
    }
    match field.label() {
        Label::Repeated => format!("repeated {}", scalar(field)),
        Label::Optional | Label::Required => scalar(field),
    }
}

fn scalar(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => short(field.type_name()),
        other => other.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

/// A name of the package, or one of the two of Google, without its package.
fn short(name: &str) -> String {
    let name = name.trim_start_matches('.');
    let own = name.strip_prefix(PACKAGE).and_then(|rest| rest.strip_prefix('.'));
    match (own, name) {
        (Some(own), _) => own.to_owned(),
        (None, "google.protobuf.Duration") => "Duration".to_owned(),
        (None, "google.protobuf.Timestamp") => "Timestamp".to_owned(),
        (None, name) => format!("foreign {name}"),
    }
}

#[test]
fn every_name_number_and_type_of_the_protocol_is_as_clients_know_it() {
    let (wanted, found) = (blocks(TABLE), blocks(&compiled()));
    assert_eq!(wanted.len(), 80, "14 enums, 22 + 43 messages, one service");
    for (title, block) in &wanted {
        assert_eq!(found.get(title), Some(block), "{title}");
    }
    let more: Vec<_> = found.keys().filter(|title| !wanted.contains_key(*title)).collect();
    assert_eq!(more, [""; 0], "what is in the files stands in the table");
}

#[test]
fn files_are_found_where_reflection_looks_for_them() {
    let files = FileDescriptorSet::decode(rocketmq::DESCRIPTORS).unwrap().file;
    let mut names: Vec<_> = files.iter().map(FileDescriptorProto::name).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "apache/rocketmq/v2/definition.proto",
            "apache/rocketmq/v2/service.proto",
            "google/protobuf/duration.proto",
            "google/protobuf/timestamp.proto",
        ]
    );
}

#[test]
fn a_wrong_number_label_or_oneof_is_seen() {
    let field = |number, name: &str| FieldDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        label: Some(Label::Optional.into()),
        r#type: Some(Type::Int64.into()),
        ..Default::default()
    };
    let mut message = DescriptorProto {
        name: Some("M".to_owned()),
        field: vec![field(1, "a"), field(2, "b"), field(3, "c"), field(4, "d")],
        oneof_decl: vec![
            prost_types::OneofDescriptorProto { name: Some("x".to_owned()), options: None },
            prost_types::OneofDescriptorProto { name: Some("_c".to_owned()), options: None },
        ],
        ..Default::default()
    };
    message.field[1].oneof_index = Some(0);
    message.field[2].oneof_index = Some(1);
    message.field[2].proto3_optional = Some(true);
    message.field[3].label = Some(Label::Repeated.into());
    let mut table = String::new();
    describe_message(&message, &mut table);
    let lines = ["1 a: int64", "2 b: int64 in x", "3 c: optional int64", "4 d: repeated int64"];
    assert_eq!(table, format!("message M\n  {}\n", lines.join("\n  ")));
}
