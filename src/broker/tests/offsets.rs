//! Commits, resets and what a time means.

use super::*;

/// Retention may overtake a reader before he commits; a reset to the begin of a queue finds the first message that is
/// there. What is gone is neither lag nor skipped.
#[tokio::test]
async fn what_was_read_can_be_committed_when_it_is_gone_and_counts_as_nothing() {
    let (broker, _dir) = broker(BrokerConfig::default());
    for _ in 0..5 {
        broker.send(to("t", 1)).await.unwrap();
    }
    broker.create_group("g", &crate::message::GroupSettings::default(), soon()).await.unwrap();
    let commit = |offset| CommitOffset {
        topic: "t",
        queue: QueueId::ZERO,
        offset: QueueOffset::new(offset),
        expected: Expected::Any,
        known_queues: None,
    };
    broker.commit_offsets("g", &[commit(1)], Caller::default(), soon()).await.unwrap();
    let topic = broker.state.topics.get("t").unwrap();
    let purged = [(QueueId::ZERO, QueueOffset::new(3))];
    topic.handle().expire(crate::message::PhysicalOffset::ZERO, Timestamp::ZERO, &purged);
    let range = QueueRange { min: QueueOffset::new(3), max: QueueOffset::new(5) };

    broker.commit_offsets("g", &[commit(2)], Caller::default(), soon()).await.unwrap();
    let now = broker.progress("g", "t", 0, 1, soon()).await.unwrap();
    assert_eq!((now[0].committed, now[0].range), (Some(QueueOffset::new(2)), range));
    assert_eq!(now[0].lag(), 2);
    let refused = broker.commit_offsets("g", &[commit(6)], Caller::default(), soon()).await;
    let refused = refused.unwrap_err();
    let BrokerError::CommitOutOfRange { range: told, .. } = refused else { panic!("{refused:?}") };
    assert_eq!(told, range);
    let reset = |to| ResetRequest {
        group: "g",
        topic: "t",
        queue: Some(QueueId::ZERO),
        to,
        caller: Caller::default(),
        run: Run::Real,
    };
    let moved = broker.reset_offsets(reset(Position::Earliest), soon()).await.unwrap();
    assert_eq!((moved[0].from, moved[0].new), (QueueOffset::new(2), range.min));
    assert_eq!((moved[0].again(), moved[0].skipped()), (0, 0));
    let refused = broker.reset_offsets(reset(Position::Offset(QueueOffset::new(2))), soon()).await;
    assert_eq!(refused.unwrap_err().reason(), Reason::OffsetOutOfRange);
    broker.commit_offsets("g", &[commit(0)], Caller::default(), soon()).await.unwrap();
    let moved = broker.reset_offsets(reset(Position::Latest), soon()).await.unwrap();
    assert_eq!((moved[0].again(), moved[0].skipped()), (0, 2));
    let moved = broker.reset_offsets(reset(Position::Earliest), soon()).await.unwrap();
    assert_eq!((moved[0].again(), moved[0].skipped()), (2, 0));
    let moved = broker.reset_offsets(reset(Position::Time(Timestamp::ZERO)), soon()).await;
    assert_eq!(moved.unwrap()[0].new, range.min);
    broker.close().unwrap();
}

/// A group that begins at the end: what a queue got that came between the look and the first commit was passed over.
#[tokio::test]
async fn a_queue_that_came_after_the_look_begins_at_its_first_message() {
    let (broker, _dir) = broker(BrokerConfig::default());
    let initial_position = crate::message::InitialPosition::Latest;
    let latest = crate::message::GroupSettings { initial_position, ..Default::default() };
    let wide = TopicSettings { queues: 3, ..broker.topic_defaults() };
    fn of(topic: &str, queue: u32, known_queues: Option<u32>) -> CommitOffset<'_> {
        let (queue, offset, expected) = (QueueId::new(queue), QueueOffset::ZERO, Expected::Any);
        CommitOffset { topic, queue, offset, expected, known_queues }
    }
    let cases = [
        (vec![(0, None)], [Some(0), None, None]),
        (vec![(0, Some(1))], [Some(0), Some(0), Some(0)]),
        (vec![(0, Some(2)), (1, None)], [Some(0), Some(0), Some(0)]),
        (vec![(0, Some(2)), (1, Some(1))], [Some(0), Some(0), Some(0)]),
        (vec![(0, Some(9))], [Some(0), None, None]),
        (vec![(0, Some(0))], [Some(0), Some(0), Some(0)]),
        (vec![(0, Some(2))], [Some(0), None, Some(0)]),
    ];
    for (number, (commits, wanted)) in cases.into_iter().enumerate() {
        let (topic, group) = (format!("t{number}"), format!("g{number}"));
        broker.create_topic(&topic, wide, soon()).await.unwrap();
        broker.create_group(&group, &latest, soon()).await.unwrap();
        let name = topic.as_str();
        let commits: Vec<_> =
            commits.into_iter().map(|(queue, known)| of(name, queue, known)).collect();
        broker.commit_offsets(&group, &commits, Caller::default(), soon()).await.unwrap();
        let now = broker.progress(&group, &topic, 0, 9, soon()).await.unwrap();
        let now: Vec<_> = now.iter().map(|queue| queue.committed.map(QueueOffset::get)).collect();
        assert_eq!(now, wanted, "{commits:?}");
    }
    broker.close().unwrap();
}

/// Every time between the first message and behind the last: the first message that was stored then or later.
#[tokio::test]
async fn a_time_is_the_offset_of_the_first_message_stored_then_or_later() {
    let (broker, _dir) = broker(BrokerConfig::default());
    let mut stored = Vec::new();
    for _ in 0..20 {
        stored.push(broker.send(to("t", 1)).await.unwrap().store_time);
    }
    let (first, last) = (stored[0].get(), stored[19].get());
    for time in first - 1..=last + 1 {
        let at = Position::Time(Timestamp::new(time));
        let found = broker.offsets_at("t", QueueId::ZERO, 1, at, soon()).await.unwrap();
        let expected = stored.iter().take_while(|stored| stored.get() < time).count();
        assert_eq!(found[0].offset, QueueOffset::new(expected as u64), "{time} of {stored:?}");
    }
    let dry = ResetRequest {
        group: "g",
        topic: "t",
        queue: Some(QueueId::ZERO),
        to: Position::Time(stored[10]),
        caller: Caller::default(),
        run: Run::Dry,
    };
    broker.create_group("g", &crate::message::GroupSettings::default(), soon()).await.unwrap();
    let planned = broker.reset_offsets(dry, soon()).await.unwrap();
    let expected = stored.iter().take_while(|earlier| **earlier < stored[10]).count();
    assert_eq!(planned[0].new, QueueOffset::new(expected as u64));
    broker.close().unwrap();
}
