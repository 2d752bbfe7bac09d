//! What consumers hold of a queue, as rows of fields.
//!
//! | at | len | row of leases given, 24 bytes                                           |
//! | -: | --: | ----------------------------------------------------------------------- |
//! |  0 |   4 | queue                                                                   |
//! |  4 |   4 | messages, at least 1                                                    |
//! |  8 |   8 | queue offset of the first                                               |
//! | 16 |   4 | which delivery it is, from 1; 0: not delivered, passed over for now     |
//! | 20 |   4 | hash of the message group, 0 without one                                |
//!
//! | at | len | row of messages finished, 16 bytes                                      |
//! | -: | --: | ----------------------------------------------------------------------- |
//! |  0 |   4 | queue                                                                   |
//! |  4 |   4 | messages, at least 1                                                    |
//! |  8 |   8 | queue offset of the first                                               |
//!
//! | at | len | row of leases changed, 24 bytes                                         |
//! | -: | --: | ----------------------------------------------------------------------- |
//! |  0 |   4 | queue                                                                   |
//! |  4 |   4 | state and flags, as below                                               |
//! |  8 |   8 | queue offset                                                            |
//! | 16 |   8 | when it is due, ms on the store clock                                   |
//!
//! | at | len | row of an open message, in snapshots, 80 bytes                          |
//! | -: | --: | ----------------------------------------------------------------------- |
//! |  0 |   4 | queue                                                                   |
//! |  4 |   4 | state: 0 not delivered, 1 leased, 2 waits; flags: 256 the next delivery counts as this one, 512 had more than one lease |
//! |  8 |   8 | queue offset                                                            |
//! | 16 |   8 | when it is due, ms on the store clock                                   |
//! | 24 |   8 | epoch of its last lease                                                 |
//! | 32 |   8 | number of its last lease                                                |
//! | 40 |   4 | deliveries                                                              |
//! | 44 |   4 | hash of the message group, 0 without one                                |
//! | 48 |   8 | hash of the client that it is leased to for as long as it lives, 0 without one |
//! | 56 |   8 | when it was delivered first, ms on the clock of leases, 0: never        |
//! | 64 |   8 | when it was delivered last                                              |
//! | 72 |   8 | hash of who got it last, 0 if he is not known                           |
//!
//! | at | len | row of a last lease, in snapshots, 32 bytes                             |
//! | -: | --: | ----------------------------------------------------------------------- |
//! |  0 |   4 | queue                                                                   |
//! |  4 |   4 | zero                                                                    |
//! |  8 |   8 | queue offset                                                            |
//! | 16 |   8 | epoch                                                                   |
//! | 24 |   8 | number                                                                  |
//!
//! | at | len | row of messages given for a try of a receive, in snapshots, 56 bytes    |
//! | -: | --: | ----------------------------------------------------------------------- |
//! |  0 |   4 | queue                                                                   |
//! |  4 |   4 | zero                                                                    |
//! |  8 |   8 | queue offset of the first                                               |
//! | 16 |   8 | queue offset of the last                                                |
//! | 24 |   8 | epoch of their lease                                                    |
//! | 32 |   8 | number of their lease                                                   |
//! | 40 |   8 | hash of the try                                                         |
//! | 48 |   8 | when the try got them first, ms on the clock of leases                  |

use super::super::fields::Field;
use super::super::{DecodeError, u32_at, u64_at};
use super::rows;
use crate::message::{Epoch, LeaseId, QueueId, QueueOffset, Timestamp};

const GIVEN_LEN: usize = 24;
const FINISHED_LEN: usize = 16;
const CHANGED_LEN: usize = 24;
const OPEN_LEN: usize = 80;
const LAST_LEN: usize = 32;
const TRIED_LEN: usize = 56;

/// Rows of one field, whatever they are.
pub(super) const MAX_ROWS: usize = 800;
const _: () = assert!(MAX_ROWS * OPEN_LEN < 1 << 16, "a field fits its length");
const _: () = assert!(TRIED_LEN <= OPEN_LEN, "and one of the shorter rows too");
const _: () = assert!(MAX_ROWS.is_multiple_of(2), "both cursors of a queue stand in one field");

const STATE: u32 = 0xff;
const SAME_DELIVERY: u32 = 256;
const RENEWED: u32 = 512;

/// How a message stands that is not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenState {
    /// Nobody got it yet: those before it in its message group come first.
    Ahead,
    /// Somebody has it until it is due.
    Leased,
    /// It was given back, and can be delivered when it is due.
    Waiting,
}

impl OpenState {
    const ALL: [Self; 3] = [Self::Ahead, Self::Leased, Self::Waiting];

    fn code(self) -> u32 {
        match self {
            Self::Ahead => 0,
            Self::Leased => 1,
            Self::Waiting => 2,
        }
    }
}

/// Messages of a queue, one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which queue.
    pub queue: QueueId,
    /// The first of them.
    pub first: QueueOffset,
    /// How many, at least 1.
    pub count: u32,
}

/// Messages that somebody got, or that were passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GivenRun {
    /// Which messages.
    pub run: Run,
    /// Which delivery of each it is; 0: none, it was passed over for now.
    pub delivery: u32,
    /// Hash of their message group, 0 without one.
    pub group_hash: u32,
}

/// A lease that became another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedLease {
    /// Of which queue.
    pub queue: QueueId,
    /// Of which message.
    pub offset: QueueOffset,
    /// Whether somebody still has it.
    pub state: OpenState,
    /// Whether the next delivery counts as this one.
    pub same_delivery: bool,
    /// Until when, or from when on.
    pub due: Timestamp,
}

/// A message that is not finished, with all that there is to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenMessage {
    /// Its queue.
    pub queue: QueueId,
    /// Its place there.
    pub offset: QueueOffset,
    /// How it stands.
    pub state: OpenState,
    /// Whether the next delivery counts as this one.
    pub same_delivery: bool,
    /// Whether it had more leases than one.
    pub renewed: bool,
    /// When it can be delivered again.
    pub due: Timestamp,
    /// The last one; the lowest of all if there was none.
    pub lease: LeaseId,
    /// How often it was delivered.
    pub deliveries: u32,
    /// Hash of its message group, 0 without one.
    pub group_hash: u32,
    /// Hash of the client with which its lease ends, 0 without one.
    pub client: u64,
    /// When it was delivered first, on the clock of leases; 0: never.
    pub first_delivered: Timestamp,
    /// When it was delivered last.
    pub last_delivered: Timestamp,
    /// Hash of who got it last, 0 if he is not known.
    pub holder: u64,
}

/// The last lease of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastLease {
    /// Of which queue.
    pub queue: QueueId,
    /// Of which message; the first if it is of the queue.
    pub offset: QueueOffset,
    /// Which.
    pub lease: LeaseId,
}

/// Messages of a queue that were given for a try of a receive. Others may lie between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tried {
    /// Of which queue.
    pub queue: QueueId,
    /// The first of them.
    pub first: QueueOffset,
    /// The last of them.
    pub last: QueueOffset,
    /// The lease of all of them.
    pub lease: LeaseId,
    /// Hash of the try.
    pub attempt: u64,
    /// When the try got them first, on the clock of leases.
    pub delivered: Timestamp,
}

fn numbers<const N: usize>(out: &mut Vec<u8>, words: [u32; 2], longs: [u64; N]) {
    words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    longs.iter().for_each(|long| out.extend_from_slice(&long.to_le_bytes()));
}

/// Fails for a row of no message, or one that goes beyond the last offset.
fn run_at(field: Field<'_>, row: &[u8]) -> Result<Run, DecodeError> {
    let (first, count) = (u64_at(row, 8)?, u32_at(row, 4)?);
    if count == 0 || first.checked_add(u64::from(count)).is_none() {
        return Err(field.meaningless());
    }
    Ok(Run { queue: QueueId::new(u32_at(row, 0)?), first: QueueOffset::new(first), count })
}

pub(super) fn given_rows(runs: &[GivenRun]) -> Vec<u8> {
    let mut out = Vec::with_capacity(runs.len() * GIVEN_LEN);
    for GivenRun { run, delivery, group_hash } in runs {
        let tail = u64::from(*delivery) | u64::from(*group_hash) << u32::BITS;
        numbers(&mut out, [run.queue.get(), run.count], [run.first.get(), tail]);
    }
    out
}

pub(super) fn given_of(field: Field<'_>) -> Result<Vec<GivenRun>, DecodeError> {
    rows(field, GIVEN_LEN, |row| {
        let run = run_at(field, row)?;
        Ok(GivenRun { run, delivery: u32_at(row, 16)?, group_hash: u32_at(row, 20)? })
    })
}

pub(super) fn finished_rows(runs: &[Run]) -> Vec<u8> {
    let mut out = Vec::with_capacity(runs.len() * FINISHED_LEN);
    for run in runs {
        numbers(&mut out, [run.queue.get(), run.count], [run.first.get()]);
    }
    out
}

pub(super) fn finished_of(field: Field<'_>) -> Result<Vec<Run>, DecodeError> {
    rows(field, FINISHED_LEN, |row| run_at(field, row))
}

fn word(state: OpenState, same_delivery: bool, renewed: bool) -> u32 {
    let flags = u32::from(same_delivery) * SAME_DELIVERY + u32::from(renewed) * RENEWED;
    state.code() | flags
}

fn state_at(field: Field<'_>, row: &[u8]) -> Result<(OpenState, bool, bool), DecodeError> {
    let word = u32_at(row, 4)?;
    let state = OpenState::ALL.into_iter().find(|state| state.code() == word & STATE);
    match state {
        Some(state) if word & !(STATE | SAME_DELIVERY | RENEWED) == 0 => {
            Ok((state, word & SAME_DELIVERY != 0, word & RENEWED != 0))
        }
        _ => Err(field.meaningless()),
    }
}

pub(super) fn changed_rows(leases: &[ChangedLease]) -> Vec<u8> {
    let mut out = Vec::with_capacity(leases.len() * CHANGED_LEN);
    for change in leases {
        let word = word(change.state, change.same_delivery, false);
        numbers(&mut out, [change.queue.get(), word], [change.offset.get(), change.due.get()]);
    }
    out
}

pub(super) fn changed_of(field: Field<'_>) -> Result<Vec<ChangedLease>, DecodeError> {
    rows(field, CHANGED_LEN, |row| {
        let (state, same_delivery, renewed) = state_at(field, row)?;
        if renewed || state == OpenState::Ahead {
            return Err(field.meaningless());
        }
        Ok(ChangedLease {
            queue: QueueId::new(u32_at(row, 0)?),
            offset: QueueOffset::new(u64_at(row, 8)?),
            state,
            same_delivery,
            due: Timestamp::new(u64_at(row, 16)?),
        })
    })
}

pub(super) fn open_rows(messages: &[OpenMessage]) -> Vec<u8> {
    let mut out = Vec::with_capacity(messages.len() * OPEN_LEN);
    for open in messages {
        let word = word(open.state, open.same_delivery, open.renewed);
        let tail = u64::from(open.deliveries) | u64::from(open.group_hash) << u32::BITS;
        let LeaseId { epoch, number } = open.lease;
        let longs = [
            open.offset.get(),
            open.due.get(),
            epoch.get(),
            number,
            tail,
            open.client,
            open.first_delivered.get(),
            open.last_delivered.get(),
            open.holder,
        ];
        numbers(&mut out, [open.queue.get(), word], longs);
    }
    out
}

pub(super) fn open_of(field: Field<'_>) -> Result<Vec<OpenMessage>, DecodeError> {
    rows(field, OPEN_LEN, |row| {
        let (state, same_delivery, renewed) = state_at(field, row)?;
        Ok(OpenMessage {
            queue: QueueId::new(u32_at(row, 0)?),
            offset: QueueOffset::new(u64_at(row, 8)?),
            state,
            same_delivery,
            renewed,
            due: Timestamp::new(u64_at(row, 16)?),
            lease: lease_at(row, 24)?,
            deliveries: u32_at(row, 40)?,
            group_hash: u32_at(row, 44)?,
            client: u64_at(row, 48)?,
            first_delivered: Timestamp::new(u64_at(row, 56)?),
            last_delivered: Timestamp::new(u64_at(row, 64)?),
            holder: u64_at(row, 72)?,
        })
    })
}

pub(super) fn last_rows(leases: &[LastLease]) -> Vec<u8> {
    let mut out = Vec::with_capacity(leases.len() * LAST_LEN);
    for LastLease { queue, offset, lease } in leases {
        numbers(&mut out, [queue.get(), 0], [offset.get(), lease.epoch.get(), lease.number]);
    }
    out
}

pub(super) fn last_of(field: Field<'_>) -> Result<Vec<LastLease>, DecodeError> {
    rows(field, LAST_LEN, |row| {
        if u32_at(row, 4)? != 0 {
            return Err(field.meaningless());
        }
        Ok(LastLease {
            queue: QueueId::new(u32_at(row, 0)?),
            offset: QueueOffset::new(u64_at(row, 8)?),
            lease: lease_at(row, 16)?,
        })
    })
}

pub(super) fn tried_rows(tried: &[Tried]) -> Vec<u8> {
    let mut out = Vec::with_capacity(tried.len() * TRIED_LEN);
    for Tried { queue, first, last, lease, attempt, delivered } in tried {
        let LeaseId { epoch, number } = *lease;
        let longs = [first.get(), last.get(), epoch.get(), number, *attempt, delivered.get()];
        numbers(&mut out, [queue.get(), 0], longs);
    }
    out
}

pub(super) fn tried_of(field: Field<'_>) -> Result<Vec<Tried>, DecodeError> {
    rows(field, TRIED_LEN, |row| {
        let (first, last) = (u64_at(row, 8)?, u64_at(row, 16)?);
        if u32_at(row, 4)? != 0 || last < first {
            return Err(field.meaningless());
        }
        Ok(Tried {
            queue: QueueId::new(u32_at(row, 0)?),
            first: QueueOffset::new(first),
            last: QueueOffset::new(last),
            lease: lease_at(row, 24)?,
            attempt: u64_at(row, 40)?,
            delivered: Timestamp::new(u64_at(row, 48)?),
        })
    })
}

fn lease_at(row: &[u8], at: usize) -> Result<LeaseId, DecodeError> {
    let epoch = Epoch::new(u64_at(row, at)?);
    Ok(LeaseId { epoch, number: u64_at(row, at + size_of::<u64>())? })
}

/// Names, each behind its length in one byte; what is beyond 255 bytes of one is left out.
pub(super) fn names(names: &[String]) -> Vec<u8> {
    let mut out = Vec::new();
    for name in names {
        let most = (0..=usize::from(u8::MAX)).rev().find_map(|len| name.get(..len.min(name.len())));
        let name = most.unwrap_or_default();
        out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(name.as_bytes());
    }
    out
}

pub(super) fn names_of(field: Field<'_>) -> Result<Vec<String>, DecodeError> {
    let (mut names, mut rest) = (Vec::new(), field.bytes()?);
    while let Some((len, behind)) = rest.split_first() {
        let (name, behind) =
            behind.split_at_checked(usize::from(*len)).ok_or(field.meaningless())?;
        names.push(str::from_utf8(name).map_err(|_| field.meaningless())?.to_owned());
        rest = behind;
    }
    Ok(names)
}
