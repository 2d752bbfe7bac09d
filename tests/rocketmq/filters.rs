//! Members of a group that want different messages of a topic: what each of them is told, and what an operator sees.

use mainstem::proto::rocketmq::{Code, ReceiveMessageRequest};
use mainstem::proto::{
    DescribeGroupRequest, GroupConfig, GroupTopic, OtherFilters, QueueProgress, TopicType,
};

use crate::consumer::{Answer, Consumer, sql, system, tags};
use crate::support::{CLIENT, Server, Telemetry, code, message, soon, with};
use crate::telemetry::consumer;

/// The filter of the settings that a consumer tells here.
const TOLD: &str = "a || b";

/// A topic with a message of the tag `a`, and a group with a rule for other filters.
async fn with_rule(rule: OtherFilters) -> Server {
    let server = Server::start().await;
    server.create("t", TopicType::Normal, 1).await;
    let config = GroupConfig { other_filters: rule.into(), ..GroupConfig::default() };
    server.create_group("g", config).await;
    let tagged = with("t", "1", |system| system.tag = Some("a".to_owned()));
    assert_eq!(server.code_of(vec![tagged, message("t", "2")]).await, Code::Ok);
    server
}

/// The text beside the code with which settings are answered.
async fn text(telemetry: &mut Telemetry) -> String {
    telemetry.tell(consumer("g", &["t"])).await;
    let answer = soon(telemetry.answers.message()).await.unwrap().unwrap();
    assert_eq!(code(&answer.status), Code::Ok);
    assert!(answer.command.is_some(), "the settings are there");
    answer.status.unwrap().message
}

impl Answer {
    fn ids(&self) -> Vec<&str> {
        self.messages.iter().map(|message| system(message).message_id.as_str()).collect()
    }
}

async fn receive_with(server: &Server, filter: &str) -> Answer {
    let consumer = Consumer::new(server, "g", "t");
    let filter_expression = if filter.contains('=') { sql(filter) } else { tags(filter) };
    consumer.look(ReceiveMessageRequest { filter_expression, ..consumer.asks() }).await
}

/// What an operator sees of the filters of the group.
async fn seen(server: &Server) -> (Vec<String>, u64) {
    let asked = DescribeGroupRequest { name: "g".to_owned(), ..DescribeGroupRequest::default() };
    let described = server.admin.clone().describe_group(asked).await.unwrap().into_inner();
    let [GroupTopic { filters, filter_mismatches, queues, .. }] = described.topics.as_slice()
    else {
        panic!("{described:?}")
    };
    assert!(matches!(queues.as_slice(), [QueueProgress { .. }]));
    (filters.clone(), *filter_mismatches)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_another_filter_is_served_and_told_so_beside_its_settings_and_an_operator_too()
 {
    let server = with_rule(OtherFilters::Warn).await;
    let mut telemetry = server.telemetry(CLIENT, "JAVA").await;
    assert_eq!(text(&mut telemetry).await, "OK", "nobody has asked for messages yet");
    assert_eq!(receive_with(&server, "TAGS = 'a'").await.ids(), ["1"]);
    assert_eq!(seen(&server).await, (vec!["TAGS = 'a'".to_owned()], 0));
    let told = text(&mut telemetry).await;
    assert!(told.starts_with("OK; "), "{told}");
    assert!(told.contains("topic t ") && told.contains("TAGS = 'a'"), "{told}");
    assert!(!told.contains("refused"), "{told}");
    // It is served all the same, and both are shown.
    assert_eq!(receive_with(&server, TOLD).await.code, Code::MessageNotFound);
    assert_eq!(seen(&server).await, (vec!["TAGS = 'a'".to_owned(), TOLD.to_owned()], 1));
    assert_eq!(text(&mut telemetry).await, told, "each time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_another_filter_is_told_which_one_it_should_be_where_it_is_refused() {
    let server = with_rule(OtherFilters::Refuse).await;
    assert_eq!(receive_with(&server, "TAGS = 'a'").await.ids(), ["1"]);
    let refused = receive_with(&server, TOLD).await;
    assert_eq!(refused.code, Code::IllegalFilterExpression);
    assert!(refused.text.contains("TAGS = 'a'"), "{}", refused.text);
    assert_eq!(seen(&server).await, (vec!["TAGS = 'a'".to_owned()], 1));
    // Its settings come as ever, and its stream stays open: clients do not get on without.
    let mut telemetry = server.telemetry(CLIENT, "PYTHON").await;
    for _ in 0..2 {
        let told = text(&mut telemetry).await;
        assert!(told.starts_with("OK; receives are refused"), "{told}");
        assert!(told.contains("TAGS = 'a'"), "{told}");
    }
    assert!(telemetry.is_silent().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_group_goes_on_to_the_next_filter_two_are_served_and_a_third_one_is_refused() {
    let server = with_rule(OtherFilters::Roll).await;
    assert_eq!(receive_with(&server, "TAGS = 'a'").await.ids(), ["1"]);
    let mut telemetry = server.telemetry(CLIENT, "JAVA").await;
    let told = text(&mut telemetry).await;
    assert!(told.contains("TAGS = 'a'") && !told.contains("refused"), "{told}");
    assert_eq!(server.code_of(vec![message("t", "3")]).await, Code::Ok);
    assert_eq!(receive_with(&server, "*").await.ids(), ["3"]);
    let refused = receive_with(&server, TOLD).await;
    assert_eq!(refused.code, Code::IllegalFilterExpression);
    assert!(refused.text.contains("TAGS = 'a'"), "{}", refused.text);
    let told = text(&mut telemetry).await;
    assert!(told.starts_with("OK; receives are refused"), "{told}");
    assert_eq!(seen(&server).await.0, ["TAGS = 'a'", "*"]);
}
