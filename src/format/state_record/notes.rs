//! What is remembered of changes of committed offsets, as fields.

use std::net::SocketAddr;
use std::sync::Arc;

use super::super::fields::{Field, put_field};
use super::super::{DecodeError, u32_at, u64_at};
use super::{offset_rows, offsets_of, put_u64, rows};
use crate::message::{QueueId, QueueOffset, Timestamp};

const MOVE_LEN: usize = size_of::<u32>() + 2 * size_of::<u64>();

/// Moves in one transition.
pub(super) const MAX_MOVES: usize = 3_000;
const _: () = assert!(MAX_MOVES * MOVE_LEN < 1 << 16, "a field fits its length");

/// What made a group go on elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetCause {
    /// A commit.
    Commit,
    /// A reset.
    Reset,
}

/// When and why offsets changed, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetNote {
    /// When, on the store clock.
    pub at: Timestamp,
    /// Why.
    pub cause: OffsetCause,
    /// Where the request came from, if it came over a network.
    pub address: Option<SocketAddr>,
    /// Who did it, as he said himself.
    pub by: Option<Box<str>>,
}

/// A queue's committed offset became another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetMove {
    /// Which queue.
    pub queue: QueueId,
    /// What was committed before.
    pub old: Option<QueueOffset>,
    /// What is from then on.
    pub new: QueueOffset,
}

pub(super) fn put_note(out: &mut Vec<u8>, note: &OffsetNote) {
    put_u64(out, 5, note.at.get());
    let cause = match note.cause {
        OffsetCause::Commit => 1,
        OffsetCause::Reset => 2,
    };
    put_field(out, 6, &[cause]);
    if let Some(address) = note.address {
        put_field(out, 7, address.to_string().as_bytes());
    }
    if let Some(by) = &note.by {
        put_field(out, 8, by.as_bytes());
    }
}

/// Whether a transition has one.
pub(super) fn is_there(fields: &[Field<'_>; 4]) -> bool {
    fields.iter().any(|field| field.optional().is_some())
}

pub(super) fn note_of(fields: [Field<'_>; 4]) -> Result<Arc<OffsetNote>, DecodeError> {
    let [at, cause, address, by] = fields;
    let address_of =
        |field: Field<'_>| field.text()?.parse::<SocketAddr>().map_err(|_| field.meaningless());
    Ok(Arc::new(OffsetNote {
        at: Timestamp::new(at.u64()?),
        cause: cause.code(|code| match code {
            1 => Some(OffsetCause::Commit),
            2 => Some(OffsetCause::Reset),
            _ => None,
        })?,
        address: address.optional().map(address_of).transpose()?,
        by: by.optional().map(|by| by.text().map(Box::from)).transpose()?,
    }))
}

pub(super) fn put_moves(out: &mut Vec<u8>, moves: &[OffsetMove]) {
    let (mut moved, mut first) = (Vec::new(), Vec::new());
    for OffsetMove { queue, old, new } in moves {
        let Some(old) = old else {
            first.push((*queue, *new));
            continue;
        };
        moved.extend_from_slice(&queue.get().to_le_bytes());
        moved.extend_from_slice(&old.get().to_le_bytes());
        moved.extend_from_slice(&new.get().to_le_bytes());
    }
    if !moved.is_empty() {
        put_field(out, 4, &moved);
    }
    if !first.is_empty() {
        put_field(out, 9, &offset_rows(&first));
    }
}

pub(super) fn moves_of(moved: Field<'_>, new: Field<'_>) -> Result<Vec<OffsetMove>, DecodeError> {
    let move_of = |row: &[u8]| {
        Ok(OffsetMove {
            queue: QueueId::new(u32_at(row, 0)?),
            old: Some(QueueOffset::new(u64_at(row, 4)?)),
            new: QueueOffset::new(u64_at(row, 12)?),
        })
    };
    let of_rows = |field| rows(field, MOVE_LEN, move_of);
    let mut moves = moved.optional().map_or(Ok(Vec::new()), of_rows)?;
    let first = new.optional().map_or(Ok(Vec::new()), offsets_of)?;
    moves.extend(first.into_iter().map(|(queue, new)| OffsetMove { queue, old: None, new }));
    moves.sort_unstable_by_key(|change| change.queue);
    Ok(moves)
}
