//! Fresh messages that cannot be decoded: a group must come past them, and none may be finished without its dead letter
//! in the log. So they are never leased; a look that comes to some
//!
//! | and | leaves the group |
//! | --- | --- |
//! | has something of the queue in front of them | in front of them: they are for the next look |
//! | nothing in front of them | behind them, with the record that has their dead letters |
//! | these cannot be made now | behind them, and each open by itself, to become one later |
//! | nor may so many be open, or it is not known what they would wait for in an ordered group | in front of them: the queue is held up, one of the group tries again each second, and who tried and finds nothing else in his time is told why |

use std::time::Duration;

use tokio::time::Instant;

use super::hand::Hand;
use crate::broker::Broker;
use crate::broker::dead_letter::{Buried, Lost};
use crate::broker::error::BrokerError;

/// How long a look makes dead letters of fresh messages: others are in its hand.
const BURY: Duration = Duration::from_millis(500);

impl Broker {
    /// Comes past fresh messages that cannot be decoded, if they are the first of what a queue in the hand has, which
    /// ends at `max`. `group_hash` is that of their message group, if it is known.
    pub(super) async fn pass_lost(
        &self,
        hand: &mut Hand<'_>,
        at: usize,
        (mut lost, group_hash): (Lost, Option<u32>),
        max: u64,
    ) {
        let Some(in_hand) = hand.queues.get_mut(at) else { return };
        (in_hand.has_more, in_hand.is_before_lost) = (true, true);
        if in_hand.fresh.from < lost.fresh.from {
            return;
        }
        let consumer = hand.receiver.consumer;
        if !hand.cannot_bury {
            let error = match self.try_to_bury(hand, at, &mut lost).await {
                Ok(Buried::Done { .. }) => {
                    if let Some(in_hand) = hand.queues.get_mut(at) {
                        in_hand.is_before_lost = false;
                    }
                    self.was_read(hand, at, max);
                    return;
                }
                // Somebody has moved the group, or it takes too long: the next look begins where it is now.
                Ok(Buried::Stale) => return,
                Err(error) => error,
            };
            let messages: u64 = lost.letters.iter().map(|(_, messages)| u64::from(*messages)).sum();
            let what = "messages that cannot be decoded are no dead letter yet";
            tracing::warn!(%error, messages, "{what}");
            // Nor will others be in this look.
            (hand.cannot_bury, hand.held_up) = (true, Some(error));
        }
        let messages: u64 = lost.letters.iter().map(|(_, messages)| u64::from(*messages)).sum();
        let open = messages + lost.fresh.kept.len() as u64;
        let Some(in_hand) = hand.queues.get_mut(at) else { return };
        let has_order = group_hash.is_some() || !consumer.group.settings().ordered;
        let may_open = open <= in_hand.room as u64 && self.state.offsets.may_open(consumer, open);
        if !has_order || !may_open {
            in_hand.is_held_up = true;
            return;
        }
        let apart = lost.letters.iter().flat_map(|(first, messages)| {
            (*first..first + u64::from(*messages)).map(|offset| (offset, group_hash.unwrap_or(0)))
        });
        let fresh = &mut in_hand.fresh;
        let passed = (lost.fresh.to - lost.fresh.from).saturating_sub(open);
        self.counters.filtered.add(passed);
        fresh.kept.extend(lost.fresh.kept.iter().copied().chain(apart));
        fresh.kept.sort_unstable();
        fresh.to = lost.fresh.to;
        in_hand.room = in_hand.room.saturating_sub(fresh.kept.len());
        in_hand.is_before_lost = false;
        self.was_read(hand, at, max);
    }

    /// Makes their dead letters, for half a second; the queue in the hand begins behind what became some.
    async fn try_to_bury(
        &self,
        hand: &mut Hand<'_>,
        at: usize,
        lost: &mut Lost,
    ) -> Result<Buried, BrokerError> {
        let (receiver, kept) = (hand.receiver, lost.fresh.kept.len());
        let deadline = receiver.request.deadline.min(Instant::now() + BURY);
        let buried = self.bury_fresh(receiver.consumer, lost, deadline).await;
        let Some(in_hand) = hand.queues.get_mut(at) else { return buried };
        if lost.fresh.from > in_hand.fresh.from {
            hand.buried += 1;
        }
        let opened = kept - lost.fresh.kept.len();
        in_hand.room = in_hand.room.saturating_sub(opened);
        (in_hand.fresh.from, in_hand.fresh.to) = (lost.fresh.from, lost.fresh.from);
        if opened > 0 {
            receiver.ready.wake_for(lost.kept_for);
        }
        buried
    }
}
