//! A condition, and what it says about a message.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::number::Number;
use super::{Subject, Verdict};

/// True, false or unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truth {
    True,
    False,
    Unknown,
}

/// What is true or false of a message, or unknown. No deeper than a few calls for each level of
/// [`MAX_NESTING`](super::MAX_NESTING): it is evaluated and dropped by recursion.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Condition {
    Constant(Truth),
    /// A property as it is.
    Property(Box<str>),
    Not(Box<Condition>),
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Equal(Operand, Operand),
    Order(Operand, Order, Operand),
    /// Value, lower and upper bound.
    Between(Box<[Operand; 3]>),
    /// Sorted, each once.
    In(Box<str>, Vec<Box<str>>),
    Find(Box<Find>),
    IsNull(Operand),
}

/// What is compared.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operand {
    Null,
    Text(Box<str>),
    Number(Number),
    Property(Box<str>),
    /// A property as a number, behind a sign.
    Signed {
        name: Box<str>,
        is_negative: bool,
    },
    Condition(Box<Condition>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

/// A search in the text of an operand. Negated it is not the opposite: where there is nothing to search both are false.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Find {
    pub(super) operand: Operand,
    pub(super) place: Place,
    pub(super) wanted: Box<str>,
    pub(super) is_negated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Anywhere,
    Start,
    End,
}

impl From<bool> for Truth {
    fn from(is_true: bool) -> Self {
        if is_true { Self::True } else { Self::False }
    }
}

impl std::ops::Not for Truth {
    type Output = Self;

    fn not(self) -> Self {
        match self {
            Self::True => Self::False,
            Self::False => Self::True,
            Self::Unknown => Self::Unknown,
        }
    }
}

impl Condition {
    /// What it says about `message`.
    pub(super) fn evaluate(&self, message: &impl Subject) -> Verdict<'_> {
        let mut evaluation = Evaluation { message, steps: 0, no_number: None };
        let truth = evaluation.condition(self);
        let Evaluation { steps, no_number, .. } = evaluation;
        Verdict { is_match: truth == Truth::True, steps, no_number }
    }
}

/// The value of an operand; `'c` is the condition, `'m` the message.
enum Value<'c, 'm> {
    Null,
    Literal(&'c str),
    /// Name and text, which takes the type of what it is compared with.
    Property(&'c str, Cow<'m, str>),
    Number(Number),
    Bool(bool),
}

impl<'v> Value<'v, 'v> {
    /// Text, if it is one.
    fn into_text(self) -> Option<Cow<'v, str>> {
        match self {
            Self::Literal(text) => Some(Cow::Borrowed(text)),
            Self::Property(_, text) => Some(text),
            Self::Null | Self::Number(_) | Self::Bool(_) => None,
        }
    }
}

struct Evaluation<'c, 'm, S> {
    message: &'m S,
    steps: u32,
    no_number: Option<&'c str>,
}

impl<'c, 'm, S: Subject> Evaluation<'c, 'm, S> {
    fn condition(&mut self, condition: &'c Condition) -> Truth {
        self.steps = self.steps.saturating_add(1);
        match condition {
            Condition::Constant(truth) => *truth,
            Condition::Property(name) => {
                self.message.property(name).map_or(Truth::Unknown, |text| is_true(&text).into())
            }
            Condition::Not(inner) => !self.condition(inner),
            Condition::All(all) => self.first(all, Truth::False),
            Condition::Any(any) => self.first(any, Truth::True),
            Condition::Equal(left, right) => self.equal(left, right),
            Condition::Order(left, order, right) => {
                let found = self.number(left).zip(self.number(right));
                found.map_or(Truth::Unknown, |(a, b)| order.holds(a.compare(b)).into())
            }
            Condition::Between(operands) => {
                let [value, low, high] = operands.as_ref();
                let bounds = self.number(low).zip(self.number(high));
                let found = self.number(value).zip(bounds);
                found.map_or(Truth::Unknown, |(value, (low, high))| {
                    (low.compare(value).is_le() && value.compare(high).is_le()).into()
                })
            }
            Condition::In(name, texts) => match self.message.property(name) {
                None => Truth::Unknown,
                Some(text) => texts.binary_search_by(|one| one.as_ref().cmp(&*text)).is_ok().into(),
            },
            Condition::Find(find) => self.find(find),
            Condition::IsNull(operand) => matches!(self.value(operand), Value::Null).into(),
        }
    }

    /// `decided` if one of the conditions is, else unknown if one of them is, else the opposite.
    fn first(&mut self, conditions: &'c [Condition], decided: Truth) -> Truth {
        let mut truth = !decided;
        for condition in conditions {
            match self.condition(condition) {
                found if found == decided => return decided,
                Truth::Unknown => truth = Truth::Unknown,
                _ => {}
            }
        }
        truth
    }

    fn equal(&mut self, left: &'c Operand, right: &'c Operand) -> Truth {
        let is_equal = match (self.value(left), self.value(right)) {
            (Value::Number(a), Value::Number(b)) => a == b,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Property(_, text), Value::Bool(other))
            | (Value::Bool(other), Value::Property(_, text)) => is_true(&text) == other,
            (Value::Property(name, text), Value::Number(other))
            | (Value::Number(other), Value::Property(name, text)) => {
                let Some(number) = self.read(name, &text) else { return Truth::Unknown };
                number == other
            }
            (left, right) => match (left.into_text(), right.into_text()) {
                (Some(left), Some(right)) => left == right,
                _ => return Truth::Unknown,
            },
        };
        is_equal.into()
    }

    fn find(&mut self, find: &'c Find) -> Truth {
        let wanted = find.wanted.as_ref();
        let text = self.value(&find.operand).into_text();
        let Some(text) = text.filter(|_| !wanted.is_empty()) else { return Truth::False };
        let is_there = match find.place {
            Place::Anywhere => text.contains(wanted),
            Place::Start => text.starts_with(wanted),
            Place::End => text.ends_with(wanted),
        };
        (is_there != find.is_negated).into()
    }

    fn value(&mut self, operand: &'c Operand) -> Value<'c, 'm> {
        match operand {
            Operand::Null => Value::Null,
            Operand::Text(text) => Value::Literal(text),
            Operand::Number(number) => Value::Number(*number),
            Operand::Property(name) => {
                let text = self.message.property(name);
                text.map_or(Value::Null, |text| Value::Property(name, text))
            }
            Operand::Signed { .. } => self.number(operand).map_or(Value::Null, Value::Number),
            Operand::Condition(condition) => match self.condition(condition) {
                Truth::True => Value::Bool(true),
                Truth::False => Value::Bool(false),
                Truth::Unknown => Value::Null,
            },
        }
    }

    /// The operand as a number, if it is one.
    fn number(&mut self, operand: &'c Operand) -> Option<Number> {
        match operand {
            Operand::Number(number) => Some(*number),
            Operand::Property(name) => {
                let text = self.message.property(name)?;
                self.read(name, &text)
            }
            Operand::Signed { name, is_negative } => {
                let text = self.message.property(name)?;
                let number = self.read(name, &text)?;
                if *is_negative { number.negate() } else { Some(number) }
            }
            Operand::Null | Operand::Text(_) | Operand::Condition(_) => None,
        }
    }

    /// The number that the text of a property is, and word of it if it is none.
    fn read(&mut self, name: &'c str, text: &str) -> Option<Number> {
        let number = Number::read(text);
        if number.is_none() {
            self.no_number.get_or_insert(name);
        }
        number
    }
}

impl Order {
    fn holds(self, found: Ordering) -> bool {
        match self {
            Self::Less => found.is_lt(),
            Self::LessEqual => found.is_le(),
            Self::Greater => found.is_gt(),
            Self::GreaterEqual => found.is_ge(),
        }
    }
}

/// What the text of a property is beside a condition.
fn is_true(text: &str) -> bool {
    text.eq_ignore_ascii_case("true")
}
