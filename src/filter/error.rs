//! What is wrong with the text of an expression, and where.

use crate::format::batch::TagFilterError;

/// Why a text is no expression. Nothing was kept of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// It was to be tags.
    #[error(transparent)]
    Tags(#[from] TagFilterError),
    /// It was to be a condition.
    #[error(transparent)]
    Sql(#[from] SqlError),
}

/// Where a text stops to be a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at byte {at}: {fault}")]
pub struct SqlError {
    /// Bytes of the text before it.
    pub at: usize,
    /// What is wrong there.
    pub fault: SqlFault,
}

/// What is wrong with the text of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SqlFault {
    /// Too much text.
    #[error("condition of {found} bytes exceeds the limit of {limit}")]
    TooLong {
        /// Bytes at most.
        limit: usize,
        /// Bytes.
        found: usize,
    },
    /// Too many parentheses inside each other.
    #[error("more than {limit} levels of parentheses")]
    TooDeep {
        /// Levels at most.
        limit: usize,
    },
    /// Too many comparisons.
    #[error("more than {limit} comparisons")]
    TooManyComparisons {
        /// Comparisons at most.
        limit: usize,
    },
    /// Too many conditions of any kind, operands and elements of lists, all together.
    #[error("more than {limit} conditions, operands and elements of lists")]
    TooManyNodes {
        /// Nodes at most.
        limit: usize,
    },
    /// A character that begins nothing.
    #[error("unexpected character {found:?}")]
    Character {
        /// The character.
        found: char,
    },
    /// Text without an end.
    #[error("text without a closing quote")]
    OpenText,
    /// A comment without an end.
    #[error("comment without an end")]
    OpenComment,
    /// A number such as `007`.
    #[error("integer with a leading zero")]
    LeadingZero,
    /// A number that cannot be told exactly enough.
    #[error("number out of range")]
    NumberRange,
    /// Something else should stand there.
    #[error("expected {expected}, found {found}")]
    Unexpected {
        /// What may stand there.
        expected: &'static str,
        /// What stands there.
        found: &'static str,
    },
    /// Text or a number where something true or false is wanted.
    #[error("{found} is not a condition")]
    NotACondition {
        /// What it is.
        found: &'static str,
    },
    /// A sign before something else than a number or a property.
    #[error("{found} has no sign")]
    NoSign {
        /// What it is.
        found: &'static str,
    },
    /// Not a number and no property, beside `<` and its like or `BETWEEN`.
    #[error("{found} is neither more nor less than anything; only numbers and properties are")]
    NoOrder {
        /// What it is.
        found: &'static str,
    },
    /// `NULL` as an operand.
    #[error("NULL is equal to nothing; say IS NULL or IS NOT NULL")]
    NullCompared,
    /// `BETWEEN` a larger and a smaller number.
    #[error("the bounds are in the wrong order")]
    Bounds,
    /// Not a property, before an operator that wants one.
    #[error("{operator} looks into a property, not into {found}")]
    NotAProperty {
        /// The operator.
        operator: &'static str,
        /// What it is.
        found: &'static str,
    },
}
