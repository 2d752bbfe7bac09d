//! What a lease is worth by now.
//!
//! | the message | the lease | is |
//! | --- | --- | --- |
//! | is in a queue that was reset since | any of before | stale |
//! | is open | its last one, whether its time is over or not | held |
//! | is open | an earlier one | stale |
//! | is open | a later one, of an epoch that ended unclean: its record is lost | held |
//! | was never offered | of an epoch that ended unclean: its record is lost | lost |
//! | is finished | the one that it ended by, or a later one whose record is lost | finished |
//! | was made a dead letter by the broker | any | stale |
//! | is finished | another one | stale |
//!
//! Every claim that comes here is one that this broker made out: its receipt is signed.

use super::{Leases, Place};
use crate::message::{Epoch, LeaseId};

/// What a receipt says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) place: Place,
    pub(crate) lease: LeaseId,
    /// Whether it is the message's first.
    pub(crate) is_first: bool,
}

/// What is true of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The message is open, and the holder may finish it or keep it on.
    Held,
    /// The message is finished, by this lease.
    Finished,
    /// The message was never offered, as far as the log knows.
    Lost,
    /// The lease is worth nothing any more.
    Stale,
}

impl Leases {
    /// What a claim is worth, with the group's position in its queue and the epoch of now.
    pub(crate) fn standing(&self, claim: Claim, position: u64, now: Epoch) -> Standing {
        let Claim { place: (queue, offset), lease, is_first } = claim;
        if self.revoked.get(&queue).is_some_and(|revoked| lease <= *revoked) {
            return Standing::Stale;
        }
        let may_be_lost = lease.epoch < now;
        if let Some(open) = self.get(claim.place) {
            let is_held = lease == open.lease || lease > open.lease && may_be_lost;
            return if is_held { Standing::Held } else { Standing::Stale };
        }
        if offset >= self.cursor(queue, position) {
            return if may_be_lost { Standing::Lost } else { Standing::Stale };
        }
        let is_its_own = match self.ended.get(&claim.place) {
            Some(ended) => lease == *ended || lease > *ended && may_be_lost,
            None => is_first,
        };
        if is_its_own { Standing::Finished } else { Standing::Stale }
    }
}
