//! Offsets: committed, asked for, reset, and who did; and those of a topic by edge.

use mainstem::proto::commit_offset::Condition;
use mainstem::proto::offset_change::Kind;
use mainstem::proto::position::{At, Edge};
use mainstem::proto::{
    CommitOffset, CommitOffsetsRequest, CommittedOffsetsRequest, CreateGroupRequest,
    DeleteGroupRequest, GroupConfig, ListOffsetHistoryRequest, ListOffsetHistoryResponse,
    OffsetChange, OffsetChangePlace, OffsetRange, Position, QueryOffsetsRequest, QueueProgress,
    ResetOffsetsRequest, ResetOffsetsResponse, TopicConfig, UpdateGroupRequest,
};
use tonic::{Code, Status};

use crate::support::{Server, batch, detail, refusal, refused, to};

/// A server with the group `g` and the topic `t` with three queues, of which two hold two and three messages.
async fn server() -> Server {
    let server = Server::start().await;
    server.create("t", TopicConfig { queues: 3, ..TopicConfig::default() }).await;
    server.send(to("t", Some(0), batch(&["a", "b"]))).await.unwrap();
    server.send(to("t", Some(1), batch(&["c", "d", "e"]))).await.unwrap();
    create_group(&server, "g", None).await;
    server
}

async fn create_group(server: &Server, name: &str, initial: Option<At>) {
    let config = GroupConfig {
        initial_position: initial.map(|at| Position { at: Some(at) }),
        ..GroupConfig::default()
    };
    let request = CreateGroupRequest { name: name.to_owned(), config: Some(config) };
    server.admin.clone().create_group(request).await.unwrap();
}

fn at(queue: u32, offset: u64) -> CommitOffset {
    CommitOffset { topic: "t".to_owned(), queue, offset, condition: None, known_queues: None }
}

async fn commit(server: &Server, offsets: &[CommitOffset]) -> Result<(), Status> {
    commit_by(server, offsets, "").await
}

async fn commit_by(server: &Server, offsets: &[CommitOffset], by: &str) -> Result<(), Status> {
    let (group, offsets, by) = ("g".to_owned(), offsets.to_vec(), by.to_owned());
    let request = CommitOffsetsRequest { group, offsets, by };
    server.broker.clone().commit_offsets(request).await.map(|_| ())
}

/// What is remembered of `g` in `t`.
fn history(queue: Option<u32>) -> ListOffsetHistoryRequest {
    let (group, topic) = ("g".to_owned(), "t".to_owned());
    ListOffsetHistoryRequest { group, topic, queue, after: None, limit: 0 }
}

async fn ask(
    server: &Server,
    request: ListOffsetHistoryRequest,
) -> Result<ListOffsetHistoryResponse, Status> {
    server.admin.clone().list_offset_history(request).await.map(tonic::Response::into_inner)
}

async fn changes(server: &Server, queue: Option<u32>) -> Vec<OffsetChange> {
    let answer = ask(server, history(queue)).await.unwrap();
    assert!(!answer.more);
    answer.changes
}

/// Queue, kind, old, new and by whom of each.
fn what(changes: &[OffsetChange]) -> Vec<(u32, Kind, Option<u64>, u64, &str)> {
    changes.iter().map(|row| (row.queue, row.kind(), row.old, row.new, row.by.as_str())).collect()
}

async fn committed(server: &Server, queue: u32) -> Result<u64, Status> {
    let request = CommittedOffsetsRequest {
        group: "g".to_owned(),
        topic: "t".to_owned(),
        queue: Some(queue),
        ..CommittedOffsetsRequest::default()
    };
    let answer = server.broker.clone().committed_offsets(request).await?.into_inner();
    assert_eq!(answer.queues.len(), 1);
    Ok(answer.queues[0].committed.unwrap())
}

async fn progress(server: &Server, group: &str, first: u32, limit: u32) -> Vec<QueueProgress> {
    let request = CommittedOffsetsRequest {
        group: group.to_owned(),
        topic: "t".to_owned(),
        queue: None,
        first_queue: first,
        limit,
    };
    let answer = server.broker.clone().committed_offsets(request).await.unwrap().into_inner();
    answer.queues.into_iter().map(without_time).collect()
}

/// A row whose lag in time was looked at: it is there if the group has something to do.
pub(crate) fn without_time(row: QueueProgress) -> QueueProgress {
    let range = row.range.unwrap();
    let is_behind = row.next.max(range.min) < range.max;
    assert_eq!(row.lag_ms.is_some_and(|ms| ms < 600_000), is_behind, "{row:?}");
    QueueProgress { lag_ms: None, ..row }
}

fn row(queue: u32, max: u64, committed: Option<u64>, next: u64, lag: u64) -> QueueProgress {
    let (range, ready) = (Some(OffsetRange { min: 0, max }), max.saturating_sub(next));
    QueueProgress { queue, range, committed, next, lag, ready, ..QueueProgress::default() }
}

/// A reset of `g` in `t`.
fn reset(queue: Option<u32>, to: At) -> ResetOffsetsRequest {
    ResetOffsetsRequest {
        group: "g".to_owned(),
        topic: "t".to_owned(),
        queue,
        to: Some(Position { at: Some(to) }),
        dry_run: false,
        by: String::new(),
    }
}

async fn run(
    server: &Server,
    request: ResetOffsetsRequest,
) -> Result<ResetOffsetsResponse, Status> {
    server.admin.clone().reset_offsets(request).await.map(tonic::Response::into_inner)
}

/// Queue, old, from and new of each row.
fn moves(reset: &ResetOffsetsResponse) -> Vec<(u32, Option<u64>, u64, u64)> {
    reset.queues.iter().map(|row| (row.queue, row.old, row.from, row.new)).collect()
}

fn earliest() -> At {
    At::Edge(Edge::Earliest.into())
}

fn latest() -> At {
    At::Edge(Edge::Latest.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_can_be_asked_for() {
    let server = server().await;
    commit(&server, &[at(1, 2), at(0, 0)]).await.unwrap();
    assert_eq!(committed(&server, 1).await.unwrap(), 2);
    assert_eq!(committed(&server, 0).await.unwrap(), 0);
    let rows = [row(0, 2, Some(0), 0, 2), row(1, 3, Some(2), 2, 1), row(2, 0, None, 0, 0)];
    assert_eq!(progress(&server, "g", 0, 0).await, rows);
    assert_eq!(progress(&server, "g", 1, 1).await, rows[1..2]);
    assert_eq!(progress(&server, "g", 3, 1).await, []);
    assert_eq!(server.metric("mainstem_commits_total").await, Some(1));
    assert_eq!(server.metric("mainstem_committed_offsets").await, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_committed_is_told_as_that_and_never_as_zero() {
    let server = server().await;
    let answer = committed(&server, 0).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "OFFSET_NOT_FOUND"));
    commit(&server, &[at(1, 2)]).await.unwrap();
    let answer = committed(&server, 0).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "OFFSET_NOT_FOUND"));
    assert_eq!(progress(&server, "g", 0, 1).await, [row(0, 2, None, 0, 2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_without_offsets_goes_on_at_its_initial_position() {
    let server = server().await;
    create_group(&server, "end", Some(latest())).await;
    let rows = [row(0, 2, None, 2, 2), row(1, 3, None, 3, 3), row(2, 0, None, 0, 0)];
    assert_eq!(progress(&server, "end", 0, 0).await, rows);
    // Nobody stores messages in that future.
    create_group(&server, "future", Some(At::TimeMs(u64::MAX))).await;
    assert_eq!(progress(&server, "future", 0, 0).await, rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_can_be_committed_right_after_the_send_that_made_it() {
    let server = server().await;
    for round in 0..200 {
        let sent = server.send(to("t", Some(2), batch(&["x"]))).await.unwrap();
        assert_eq!(sent.first_queue_offset, round);
        commit(&server, &[at(2, round + 1)]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_above_the_end_is_refused_with_range_and_epoch_and_nothing_is_committed() {
    let server = server().await;
    let status = commit(&server, &[at(0, 1), at(1, 4)]).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    let told = "offset 4 of queue 1 of topic t is outside of what is there, 0 up to 3";
    assert_eq!(status.message(), told);
    let why = detail(&status);
    assert_eq!(why.reason, "OFFSET_OUT_OF_RANGE");
    assert_eq!((why.range, why.epoch), (Some(OffsetRange { min: 0, max: 3 }), Some(1)));
    let answer = committed(&server, 0).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "OFFSET_NOT_FOUND"));
    commit(&server, &[at(1, 3)]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lower_offset_is_accepted_and_counted() {
    let server = server().await;
    commit(&server, &[at(0, 2), at(1, 2)]).await.unwrap();
    commit(&server, &[at(0, 2), at(1, 3)]).await.unwrap();
    assert_eq!(server.metric("mainstem_rewinds_total").await, Some(0));
    commit(&server, &[at(0, 1), at(1, 0)]).await.unwrap();
    assert_eq!(server.metric("mainstem_rewinds_total").await, Some(2));
    assert_eq!(committed(&server, 1).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_with_an_expectation_takes_place_only_if_it_is_met() {
    let server = server().await;
    let expecting = |expected, offset| CommitOffset {
        condition: Some(Condition::Expected(expected)),
        ..at(0, offset)
    };
    let none = |is_set, offset| CommitOffset {
        condition: Some(Condition::ExpectNone(is_set)),
        ..at(0, offset)
    };
    let conflict = async |offsets: &[CommitOffset]| {
        let status = commit(&server, offsets).await.unwrap_err();
        let why = detail(&status);
        assert_eq!((status.code(), why.reason.as_str()), (Code::Aborted, "CONFLICT"));
        why.current
    };
    assert_eq!(conflict(&[expecting(0, 1)]).await, None);
    commit(&server, &[none(true, 1)]).await.unwrap();
    assert_eq!(conflict(&[none(true, 2)]).await, Some(1));
    assert_eq!(conflict(&[at(1, 1), expecting(0, 2)]).await, Some(1));
    let answer = committed(&server, 1).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "OFFSET_NOT_FOUND"));
    commit(&server, &[expecting(1, 2), at(1, 1)]).await.unwrap();
    commit(&server, &[none(false, 0)]).await.unwrap();
    assert_eq!(
        (committed(&server, 0).await.unwrap(), committed(&server, 1).await.unwrap()),
        (0, 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_make_no_sense_are_refused_whole() {
    let server = server().await;
    let answer = commit(&server, &[]).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_REQUEST"));
    let answer = commit(&server, &[at(0, 1), at(1, 1), at(0, 1)]).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_REQUEST"));
    let answer = commit(&server, &[at(0, 1), at(3, 0)]).await;
    assert_eq!(refusal(answer), refused(Code::InvalidArgument, "BAD_QUEUE"));
    let unknown = CommitOffset { topic: "u".to_owned(), ..at(0, 0) };
    let answer = commit(&server, &[at(0, 1), unknown]).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "UNKNOWN_TOPIC"));
    let status = commit(&server, &vec![at(0, 1); 10_001]).await.unwrap_err();
    assert_eq!((status.code(), detail(&status).limit), (Code::OutOfRange, Some(10_000)));
    let answer = committed(&server, 0).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "OFFSET_NOT_FOUND"));
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_that_make_no_sense_are_refused() {
    let server = server().await;
    let ask = async |group: &str, topic: &str, queue, limit| {
        let request = CommittedOffsetsRequest {
            group: group.to_owned(),
            topic: topic.to_owned(),
            queue,
            first_queue: 0,
            limit,
        };
        refusal(server.broker.clone().committed_offsets(request).await)
    };
    assert_eq!(ask("h", "t", None, 0).await, refused(Code::NotFound, "UNKNOWN_GROUP"));
    assert_eq!(ask("", "t", None, 0).await, refused(Code::InvalidArgument, "BAD_NAME"));
    assert_eq!(ask("g", "u", None, 0).await, refused(Code::NotFound, "UNKNOWN_TOPIC"));
    assert_eq!(ask("g", "t", Some(3), 0).await, refused(Code::InvalidArgument, "BAD_QUEUE"));
    assert_eq!(ask("g", "t", None, 10_001).await, refused(Code::OutOfRange, "TOO_LARGE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_edges_of_a_topic_are_its_offsets_by_queue() {
    let server = server().await;
    let ask = async |topic: &str, first_queue, limit, at: Option<At>| {
        let at = at.map(|at| Position { at: Some(at) });
        let topic = topic.to_owned();
        let request = QueryOffsetsRequest { topic, first_queue, limit, at };
        let answer = server.broker.clone().query_offsets(request).await?;
        let queues = answer.into_inner().queues;
        let row = |row: &mainstem::proto::QueueOffset| (row.queue, row.range, row.offset);
        Ok::<_, Status>(queues.iter().map(row).collect::<Vec<_>>())
    };
    let range = |max| Some(OffsetRange { min: 0, max });
    let first = [(0, range(2), 0), (1, range(3), 0), (2, range(0), 0)];
    assert_eq!(ask("t", 0, 0, Some(earliest())).await.unwrap(), first);
    let last = [(0, range(2), 2), (1, range(3), 3), (2, range(0), 0)];
    assert_eq!(ask("t", 0, 0, Some(latest())).await.unwrap(), last);
    assert_eq!(ask("t", 1, 1, Some(latest())).await.unwrap(), last[1..2]);
    // Beyond every message: the end.
    assert_eq!(ask("t", 0, 0, Some(At::TimeMs(u64::MAX))).await.unwrap(), last);

    let bad = |reason| refused(Code::InvalidArgument, reason);
    assert_eq!(refusal(ask("t", 0, 0, None).await), bad("BAD_REQUEST"));
    assert_eq!(refusal(ask("t", 0, 0, Some(At::Offset(1))).await), bad("BAD_REQUEST"));
    assert_eq!(refusal(ask("t", 0, 0, Some(At::Edge(7))).await), bad("BAD_REQUEST"));
    assert_eq!(refusal(ask("t", 3, 0, Some(latest())).await), bad("BAD_QUEUE"));
    let unknown = refused(Code::NotFound, "UNKNOWN_TOPIC");
    assert_eq!(refusal(ask("u", 0, 0, Some(latest())).await), unknown);
    let large = refused(Code::OutOfRange, "TOO_LARGE");
    assert_eq!(refusal(ask("t", 0, 10_001, Some(latest())).await), large);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_moves_all_queues_and_counts_what_comes_again_and_what_does_not() {
    let server = server().await;
    commit(&server, &[at(0, 2), at(1, 1)]).await.unwrap();
    let back = run(&server, reset(None, earliest())).await.unwrap();
    let moved = [(0, Some(2), 2, 0), (1, Some(1), 1, 0), (2, None, 0, 0)];
    assert_eq!((moves(&back), back.again, back.skipped), (moved.to_vec(), 3, 0));
    let ahead = run(&server, reset(None, latest())).await.unwrap();
    let moved = [(0, Some(0), 0, 2), (1, Some(0), 0, 3), (2, Some(0), 0, 0)];
    assert_eq!((moves(&ahead), ahead.again, ahead.skipped), (moved.to_vec(), 0, 5));
    let one = run(&server, reset(Some(1), At::Offset(2))).await.unwrap();
    assert_eq!((moves(&one), one.again), (vec![(1, Some(3), 3, 2)], 1));
    let rows = [row(0, 2, Some(2), 2, 0), row(1, 3, Some(2), 2, 1), row(2, 0, Some(0), 0, 0)];
    assert_eq!(progress(&server, "g", 0, 0).await, rows);
    assert_eq!(server.metric("mainstem_rewinds_total").await, Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_answers_the_same_and_changes_nothing() {
    let server = server().await;
    commit(&server, &[at(1, 3)]).await.unwrap();
    let before = progress(&server, "g", 0, 0).await;
    let appended = server.metric("mainstem_position_bytes{mark=\"appended\"}").await;
    let request = reset(None, earliest());
    let dry = ResetOffsetsRequest { dry_run: true, ..request.clone() };
    let dry = run(&server, dry).await.unwrap();
    assert_eq!(progress(&server, "g", 0, 0).await, before);
    assert_eq!(server.metric("mainstem_position_bytes{mark=\"appended\"}").await, appended);
    assert_eq!(run(&server, request).await.unwrap(), dry);
    assert_eq!(progress(&server, "g", 1, 1).await, [row(1, 3, Some(0), 0, 3)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_without_offsets_can_be_reset() {
    let server = server().await;
    let ahead = run(&server, reset(None, latest())).await.unwrap();
    let moved = [(0, None, 0, 2), (1, None, 0, 3), (2, None, 0, 0)];
    assert_eq!((moves(&ahead), ahead.again, ahead.skipped), (moved.to_vec(), 0, 5));
    assert_eq!(committed(&server, 2).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_that_a_queue_cannot_follow_moves_none() {
    let server = server().await;
    commit(&server, &[at(1, 1)]).await.unwrap();
    let status = run(&server, reset(None, At::Offset(2))).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    assert_eq!(detail(&status).range, Some(OffsetRange { min: 0, max: 0 }));
    assert_eq!(committed(&server, 1).await.unwrap(), 1);

    let bad = |reason| refused(Code::InvalidArgument, reason);
    let request = ResetOffsetsRequest { to: None, ..reset(None, earliest()) };
    assert_eq!(refusal(run(&server, request).await), bad("BAD_REQUEST"));
    assert_eq!(refusal(run(&server, reset(None, At::Edge(5))).await), bad("BAD_REQUEST"));
    assert_eq!(refusal(run(&server, reset(Some(3), earliest())).await), bad("BAD_QUEUE"));
    let request = ResetOffsetsRequest { topic: "u".to_owned(), ..reset(None, earliest()) };
    let unknown = refused(Code::NotFound, "UNKNOWN_TOPIC");
    assert_eq!(refusal(run(&server, request).await), unknown);
    let request = ResetOffsetsRequest { group: "h".to_owned(), ..reset(None, earliest()) };
    let unknown = refused(Code::NotFound, "UNKNOWN_GROUP");
    assert_eq!(refusal(run(&server, request).await), unknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_again_has_no_offsets() {
    let server = server().await;
    commit(&server, &[at(0, 2), at(1, 3)]).await.unwrap();
    server.delete("t").await;
    assert_eq!(server.metric("mainstem_committed_offsets").await, Some(0));
    let answer = committed(&server, 0).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "UNKNOWN_TOPIC"));
    server.create("t", TopicConfig { queues: 3, ..TopicConfig::default() }).await;
    let answer = committed(&server, 0).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "OFFSET_NOT_FOUND"));
    let (data, ended) = server.stop();
    ended.await.unwrap().unwrap();
    let server = Server::on(data, &[]).await;
    let answer = committed(&server, 0).await;
    assert_eq!(refusal(answer), refused(Code::NotFound, "OFFSET_NOT_FOUND"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_group_can_be_reset() {
    let server = server().await;
    let config = GroupConfig { enabled: Some(false), ..GroupConfig::default() };
    let request = UpdateGroupRequest { name: "g".to_owned(), config: Some(config) };
    server.admin.clone().update_group(request).await.unwrap();
    run(&server, reset(None, latest())).await.unwrap();
    assert_eq!(committed(&server, 1).await.unwrap(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_queues_of_the_widest_topic_are_reset_at_once() {
    let server = server().await;
    server.create("wide", TopicConfig { queues: 65_536, ..TopicConfig::default() }).await;
    server.send(to("wide", Some(65_535), batch(&["x"]))).await.unwrap();
    let request = ResetOffsetsRequest { topic: "wide".to_owned(), ..reset(None, latest()) };
    let done = run(&server, request).await.unwrap();
    assert_eq!((done.queues.len(), done.skipped), (65_536, 1));
    assert_eq!(done.queues[65_535].new, 1);
    assert_eq!(server.metric("mainstem_offset_changes").await, Some(65_536));
    let request = ListOffsetHistoryRequest { topic: "wide".to_owned(), ..history(Some(65_535)) };
    let told = ask(&server, request).await.unwrap().changes;
    assert_eq!(what(&told), [(65_535, Kind::Reset, None, 1, "")]);
    assert_eq!(server.metric("mainstem_committed_offsets").await, Some(65_536));
    let memory = server.metric("mainstem_offsets_bytes").await.unwrap();
    assert!((786_432..800_000).contains(&memory), "{memory}");
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_rewinds_and_commits_with_a_name_are_remembered_and_no_others() {
    let server = server().await;
    commit(&server, &[at(0, 1), at(1, 1)]).await.unwrap();
    commit(&server, &[at(1, 3)]).await.unwrap();
    assert_eq!(changes(&server, None).await, []);
    assert_eq!(server.metric("mainstem_offset_changes").await, Some(0));

    // One queue goes back, the other one forward.
    commit(&server, &[at(0, 2), at(1, 2)]).await.unwrap();
    commit_by(&server, &[at(0, 2), at(1, 3), at(2, 0)], "ann@desk").await.unwrap();
    let request = ResetOffsetsRequest { by: "bob".to_owned(), ..reset(None, earliest()) };
    run(&server, ResetOffsetsRequest { dry_run: true, ..request.clone() }).await.unwrap();
    run(&server, request.clone()).await.unwrap();
    run(&server, request).await.unwrap();
    run(&server, reset(Some(1), latest())).await.unwrap();
    // What is so already is no change.
    commit_by(&server, &[at(1, 3)], "ann@desk").await.unwrap();

    let (all, reset) = (changes(&server, None).await, Kind::Reset);
    let expected = [
        (1, reset, Some(0), 3, ""),
        (0, reset, Some(2), 0, "bob"),
        (1, reset, Some(3), 0, "bob"),
        (1, Kind::Commit, Some(2), 3, "ann@desk"),
        (2, Kind::Commit, None, 0, "ann@desk"),
        (1, Kind::Rewind, Some(3), 2, ""),
    ];
    assert_eq!(what(&all), expected);
    assert_eq!(server.metric("mainstem_offset_changes").await, Some(6));
    assert_eq!((all[1].position, all[1].time_ms), (all[2].position, all[2].time_ms));
    assert!(all.is_sorted_by(|a, b| a.position >= b.position && a.time_ms >= b.time_ms));
    for row in &all {
        let address: std::net::SocketAddr = row.address.parse().unwrap();
        assert!(address.ip().is_loopback() && address.port() != server.at.grpc.port(), "{address}");
    }
    let of_queue = changes(&server, Some(0)).await;
    assert_eq!(of_queue, all[1..2]);

    let (data, ended) = server.stop();
    ended.await.unwrap().unwrap();
    let server = Server::on(data, &[]).await;
    assert_eq!(changes(&server, None).await, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_comes_in_pages_and_has_a_hundred_changes_of_a_queue() {
    let server = server().await;
    for _ in 0..60 {
        commit(&server, &[at(0, 2), at(1, 3)]).await.unwrap();
        commit(&server, &[at(0, 0), at(1, 0)]).await.unwrap();
    }
    commit_by(&server, &[at(0, 1)], "ann").await.unwrap();
    let all = changes(&server, None).await;
    assert_eq!(all.len(), 121);
    for _ in 0..60 {
        commit_by(&server, &[at(0, 2)], "ann").await.unwrap();
        commit(&server, &[at(0, 0)]).await.unwrap();
    }
    assert_eq!(changes(&server, Some(0)).await.len(), 100);
    assert_eq!(changes(&server, Some(1)).await.len(), 60);
    let all = changes(&server, None).await;
    let (mut pages, mut after) = (Vec::new(), None);
    loop {
        let answer = ask(&server, ListOffsetHistoryRequest { limit: 7, after, ..history(None) });
        let answer = answer.await.unwrap();
        assert!(answer.changes.len() == 7 || !answer.more);
        let place =
            |row: &OffsetChange| OffsetChangePlace { position: row.position, queue: row.queue };
        after = answer.changes.last().map(place);
        pages.extend(answer.changes);
        if !answer.more {
            break;
        }
    }
    assert_eq!((pages.len(), pages), (160, all));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_is_gone_with_its_group_or_its_topic() {
    let server = server().await;
    run(&server, reset(None, latest())).await.unwrap();
    assert_eq!(server.metric("mainstem_offset_changes").await, Some(3));
    let request = DeleteGroupRequest { name: "g".to_owned() };
    server.admin.clone().delete_group(request).await.unwrap();
    let unknown = refused(Code::NotFound, "UNKNOWN_GROUP");
    assert_eq!(refusal(ask(&server, history(None)).await), unknown);
    create_group(&server, "g", None).await;
    assert_eq!(changes(&server, None).await, []);
    run(&server, reset(Some(1), latest())).await.unwrap();
    assert_eq!(changes(&server, None).await.len(), 1);
    server.delete("t").await;
    let unknown = refused(Code::NotFound, "UNKNOWN_TOPIC");
    assert_eq!(refusal(ask(&server, history(None)).await), unknown);
    assert_eq!(server.metric("mainstem_offset_changes").await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_callers_and_questions_about_the_history_that_make_no_sense_are_refused() {
    let server = server().await;
    let longest = "x".repeat(128);
    commit_by(&server, &[at(0, 1)], &longest).await.unwrap();
    assert_eq!(changes(&server, None).await[0].by, longest);
    let status = commit_by(&server, &[at(0, 2)], &"x".repeat(129)).await.unwrap_err();
    assert_eq!((status.code(), detail(&status).limit), (Code::OutOfRange, Some(128)));
    let bad = |reason| refused(Code::InvalidArgument, reason);
    let answer = commit_by(&server, &[at(0, 2)], "an\nn").await;
    assert_eq!(refusal(answer), bad("BAD_REQUEST"));
    let request = ResetOffsetsRequest { by: "\u{1b}[2J".to_owned(), ..reset(None, latest()) };
    assert_eq!(refusal(run(&server, request).await), bad("BAD_REQUEST"));
    assert_eq!(committed(&server, 0).await.unwrap(), 1);

    assert_eq!(refusal(ask(&server, history(Some(3))).await), bad("BAD_QUEUE"));
    let request = ListOffsetHistoryRequest { limit: 10_001, ..history(None) };
    let large = refused(Code::OutOfRange, "TOO_LARGE");
    assert_eq!(refusal(ask(&server, request).await), large);
}
