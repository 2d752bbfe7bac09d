//! Which messages a consumer wants: expressions of tags, and conditions in a small part of SQL92.
//!
//! | file | holds |
//! | --- | --- |
//! | `lexer.rs`, `parse.rs` | text to condition; every limit |
//! | `condition.rs` | a condition, and what it says about a message |
//! | `number.rs` | numbers that compare exactly, integers with decimals too |
//! | `subject.rs` | what a condition sees of a message |
//! | `error.rs` | what is wrong with a text, and where |
//!
//! Tags are those of [`TagFilter`]. The language of conditions is RocketMQ's, from weak to strong:
//!
//! | level | operators |
//! | --- | --- |
//! | 1 | `OR` |
//! | 2 | `AND` |
//! | 3 | `=`, `<>`, `IS NULL`, `IS NOT NULL` |
//! | 4 | `<`, `<=`, `>`, `>=`, `[NOT] BETWEEN 1 AND 2`, `[NOT] IN ('a', 'b')`, `[NOT] CONTAINS 'a'`, `STARTSWITH`, `ENDSWITH` |
//! | 5 | `NOT`, `+`, `-`: `NOT a = b` is `(NOT a) = b` |
//! | 6 | literals, properties, parentheses |
//!
//! A property is a letter of ASCII, `_` or `$`, then those and digits; case counts. Keywords are in any case. Text is
//! in single quotes, `''` is one quote in it. Comments go from `--` to the end of the line, or from `/*` to `*/`.
//!
//! Conditions are true, false or unknown, as in SQL; a message is wanted if its condition is true. All properties are
//! text, and take the type of what they are compared with:
//!
//! | case | result |
//! | --- | --- |
//! | a property that is not there, but in the cases below | unknown |
//! | `IS [NOT] NULL` | true or false; of a condition: whether it is unknown |
//! | `CONTAINS` and its like, positive or negated: no such property, or `''` to look for | false |
//! | a property as a condition, or beside one: `a`, `a = TRUE` | true if its text is `true` in any case, else false |
//! | a number with text that is none, or with a literal of another type | unknown |
//! | `=` and `<>` of text, also of two properties | of the bytes |
//! | `<` of two properties | of numbers |
//! | `BETWEEN` | both ends belong to it |
//! | bounds in the wrong order; `NULL` with `=` or as a bound; `<` and `BETWEEN` with text, `TRUE` or a condition | refused |
//!
//! Numbers in properties are decimal, with sign, fraction or exponent as one likes. Up to 38 digits an integer is
//! exact, all else is as near as 64 bits of floating point come. What is too large even for that is no number.
//!
//! All work is bounded by the text, which is refused beyond 4 KiB, 32 levels of parentheses, 256 comparisons or 1024
//! nodes. A comparison asks for each of its properties once; a property is found by a walk over those of the message.
//! Nothing is allocated to evaluate a condition, unless the subject has to make what it is asked for.
//!
//! No state, no tasks, no threads: whoever asks keeps the expressions, and what they cost him.

mod condition;
mod error;
mod lexer;
mod number;
mod parse;
mod subject;
#[cfg(test)]
mod tests;

use std::fmt;

use self::condition::Condition;
pub use self::error::{FilterError, SqlError, SqlFault};
pub use self::subject::Subject;
use crate::format::batch::TagFilter;

/// Bytes of a condition at most.
pub const MAX_SQL_LEN: usize = 4096;

/// Levels of parentheses at most; comparisons of comparisons, as in `a = b = c`, count as levels too.
pub const MAX_NESTING: usize = 32;

/// Comparisons of a condition at most.
pub const MAX_COMPARISONS: usize = 256;

/// Conditions of any kind, operands and elements of lists, all together, at most.
pub const MAX_NODES: usize = 1024;

/// The language of an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// Tags, joined by `||`.
    Tags,
    /// A condition on properties.
    Sql,
}

/// Which messages a consumer wants. Equal ones want the same, however they were written.
#[derive(Clone, Debug, PartialEq)]
pub enum Expression {
    /// Those with one of these tags, or all.
    Tags(TagFilter),
    /// Those for which a condition is true.
    Sql(SqlFilter),
}

/// A condition that was understood. Spaces, comments and the case of keywords make no difference to whether two are
/// equal.
#[derive(Clone, Debug)]
pub struct SqlFilter {
    text: Box<str>,
    condition: Condition,
}

/// What an expression said about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict<'a> {
    /// Whether the message is wanted.
    pub is_match: bool,
    /// Conditions looked at, at most [`MAX_NODES`]: what it cost.
    pub steps: u32,
    /// The first property that was compared with a number, but holds text that is none: the comparison was unknown, and
    /// somebody may have meant something else.
    pub no_number: Option<&'a str>,
}

impl Expression {
    /// The expression that `text` means in `language`. Nothing means all in tags, and is refused in SQL.
    ///
    /// # Errors
    /// Which limit the text exceeds, or what in it was not understood, and where.
    pub fn parse(language: Language, text: &str) -> Result<Self, FilterError> {
        match language {
            Language::Tags => Ok(Self::Tags(TagFilter::parse(text)?)),
            Language::Sql => Ok(Self::Sql(SqlFilter::parse(text)?)),
        }
    }

    /// Whether the message is wanted.
    pub fn matches(&self, message: &impl Subject) -> bool {
        self.evaluate(message).is_match
    }

    /// Whether the message is wanted, and what is to be counted of that.
    pub fn evaluate(&self, message: &impl Subject) -> Verdict<'_> {
        match self {
            Self::Tags(filter) => {
                Verdict { is_match: filter.matches(message.tag()), steps: 1, no_number: None }
            }
            Self::Sql(filter) => filter.condition.evaluate(message),
        }
    }
}

/// As it can be parsed again: tags in order and once each, a condition as it was written.
impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tags(TagFilter::All) => f.write_str("*"),
            Self::Tags(TagFilter::AnyOf(tags)) => {
                for (index, name) in tags.names().enumerate() {
                    let before = if index == 0 { "" } else { " || " };
                    write!(f, "{before}{name}")?;
                }
                Ok(())
            }
            Self::Sql(filter) => f.write_str(&filter.text),
        }
    }
}

impl SqlFilter {
    fn parse(text: &str) -> Result<Self, SqlError> {
        Ok(Self { condition: parse::condition(text)?, text: text.into() })
    }
}

impl PartialEq for SqlFilter {
    fn eq(&self, other: &Self) -> bool {
        self.condition == other.condition
    }
}
