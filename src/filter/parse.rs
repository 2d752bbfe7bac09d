//! From text to condition: by precedence, with every limit.
//!
//! Only parentheses call themselves, no deeper than [`MAX_NESTING`]; all else are loops.

use super::condition::{Condition, Find, Operand, Order, Place, Truth};
use super::error::{SqlError, SqlFault};
use super::lexer::{Lexer, Token};
use super::number::Number;
use super::{MAX_COMPARISONS, MAX_NESTING, MAX_NODES, MAX_SQL_LEN};

/// How strong an operator binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Power {
    Or,
    And,
    Equality,
    Comparison,
}

/// What was read of a condition: an operand, which may be one itself.
struct Part {
    operand: Operand,
    /// Where it begins.
    at: usize,
    /// Levels of parentheses in it, and of comparisons that are compared.
    height: usize,
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The next word, and where it begins.
    token: Token<'a>,
    at: usize,
    nodes: usize,
    comparisons: usize,
}

/// The condition that `text` is.
///
/// # Errors
/// The first thing in the text that is wrong, and where.
pub(super) fn condition(text: &str) -> Result<Condition, SqlError> {
    if text.len() > MAX_SQL_LEN {
        let fault = SqlFault::TooLong { limit: MAX_SQL_LEN, found: text.len() };
        return Err(SqlError { at: MAX_SQL_LEN, fault });
    }
    let lexer = Lexer::of(text);
    let mut parser = Parser { lexer, token: Token::End, at: 0, nodes: 0, comparisons: 0 };
    parser.advance()?;
    let part = parser.expression(Power::Or, 0)?;
    if parser.token != Token::End {
        return Err(parser.unexpected("an operator or the end"));
    }
    Ok(parser.truth(part)?.0)
}

fn error<T>(at: usize, fault: SqlFault) -> Result<T, SqlError> {
    Err(SqlError { at, fault })
}

impl<'a> Parser<'a> {
    fn advance(&mut self) -> Result<(), SqlError> {
        (self.at, self.token) = self.lexer.next()?;
        Ok(())
    }

    fn unexpected(&self, expected: &'static str) -> SqlError {
        let fault = SqlFault::Unexpected { expected, found: self.token.name() };
        SqlError { at: self.at, fault }
    }

    /// Moves on if the next word is this one.
    fn took(&mut self, token: Token<'_>) -> Result<bool, SqlError> {
        let is_there = self.token == token;
        if is_there {
            self.advance()?;
        }
        Ok(is_there)
    }

    fn expect(&mut self, token: Token<'_>) -> Result<(), SqlError> {
        if self.took(token)? { Ok(()) } else { Err(self.unexpected(token.name())) }
    }

    /// Counts a node, at `at`.
    fn node(&mut self, at: usize) -> Result<(), SqlError> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return error(at, SqlFault::TooManyNodes { limit: MAX_NODES });
        }
        Ok(())
    }

    /// A comparison, at `at`, that is made of something as high as `height`.
    fn comparison(
        &mut self,
        condition: Condition,
        at: usize,
        height: usize,
    ) -> Result<Part, SqlError> {
        self.node(at)?;
        self.comparisons += 1;
        if self.comparisons > MAX_COMPARISONS {
            return error(at, SqlFault::TooManyComparisons { limit: MAX_COMPARISONS });
        }
        Ok(Part { operand: Operand::Condition(Box::new(condition)), at, height })
    }

    /// Operators that bind as strong as `floor` or stronger, with what is between them.
    fn expression(&mut self, floor: Power, nesting: usize) -> Result<Part, SqlError> {
        let mut left = self.unary(nesting)?;
        while let Some(power) = power_of(self.token).filter(|power| *power >= floor) {
            left = match power {
                Power::Or => self.logic(left, Token::Or, nesting)?,
                Power::And => self.logic(left, Token::And, nesting)?,
                Power::Equality => self.equality(left, nesting)?,
                Power::Comparison => self.comparing(left, nesting)?,
            };
            if left.height > MAX_NESTING {
                return error(left.at, SqlFault::TooDeep { limit: MAX_NESTING });
            }
        }
        Ok(left)
    }

    /// As many conditions as are joined by `operator`, in one list.
    fn logic(&mut self, left: Part, operator: Token<'a>, nesting: usize) -> Result<Part, SqlError> {
        let at = left.at;
        self.node(at)?;
        let (first, mut height) = self.truth(left)?;
        let mut all = vec![first];
        while self.took(operator)? {
            let stronger = if operator == Token::Or { Power::And } else { Power::Equality };
            let next = self.expression(stronger, nesting)?;
            let (next, next_height) = self.truth(next)?;
            all.push(next);
            height = height.max(next_height);
        }
        let condition =
            if operator == Token::Or { Condition::Any(all) } else { Condition::All(all) };
        Ok(Part { operand: Operand::Condition(Box::new(condition)), at, height })
    }

    fn equality(&mut self, left: Part, nesting: usize) -> Result<Part, SqlError> {
        let at = left.at;
        if self.took(Token::Is)? {
            let is_negated = self.took(Token::Not)?;
            self.expect(Token::Null)?;
            let height = left.height_compared();
            let condition = Condition::IsNull(left.operand);
            return self.comparison(negated_if(is_negated, condition), at, height);
        }
        let is_negated = self.token == Token::NotEqual;
        self.advance()?;
        let right = self.expression(Power::Comparison, nesting)?;
        for part in [&left, &right] {
            if part.operand == Operand::Null {
                return error(part.at, SqlFault::NullCompared);
            }
        }
        let height = left.height_compared().max(right.height_compared());
        let condition = Condition::Equal(left.operand, right.operand);
        self.comparison(negated_if(is_negated, condition), at, height)
    }

    /// An operator of the strongest kind, behind `left`.
    fn comparing(&mut self, left: Part, nesting: usize) -> Result<Part, SqlError> {
        if let Some(order) = order_of(self.token) {
            self.advance()?;
            let right = self.unary(nesting)?;
            let (at, height) = (left.at, left.height.max(right.height));
            let condition = Condition::Order(left.ordered()?, order, right.ordered()?);
            return self.comparison(condition, at, height);
        }
        let is_negated = self.took(Token::Not)?;
        let operator = self.token;
        match operator {
            Token::Between => self.between(left, is_negated, nesting),
            Token::In => self.list(left, is_negated),
            Token::Contains => self.find(left, Place::Anywhere, is_negated),
            Token::StartsWith => self.find(left, Place::Start, is_negated),
            Token::EndsWith => self.find(left, Place::End, is_negated),
            _ => Err(self.unexpected("BETWEEN, IN, CONTAINS, STARTSWITH or ENDSWITH")),
        }
    }

    fn between(&mut self, value: Part, is_negated: bool, nesting: usize) -> Result<Part, SqlError> {
        self.advance()?;
        let low = self.unary(nesting)?;
        self.expect(Token::And)?;
        let high = self.unary(nesting)?;
        let (at, low_at) = (value.at, low.at);
        let height = value.height.max(low.height).max(high.height);
        let operands = [value.ordered()?, low.ordered()?, high.ordered()?];
        if let [_, Operand::Number(low), Operand::Number(high)] = &operands
            && low.compare(*high).is_gt()
        {
            return error(low_at, SqlFault::Bounds);
        }
        let condition = Condition::Between(Box::new(operands));
        self.comparison(negated_if(is_negated, condition), at, height)
    }

    fn list(&mut self, left: Part, is_negated: bool) -> Result<Part, SqlError> {
        let Operand::Property(name) = left.operand else {
            let found = left.name();
            return error(left.at, SqlFault::NotAProperty { operator: "IN", found });
        };
        self.advance()?;
        self.expect(Token::Open)?;
        let mut texts = Vec::new();
        loop {
            self.node(self.at)?;
            texts.push(self.text()?);
            if !self.took(Token::Comma)? {
                break;
            }
        }
        self.expect(Token::Close)?;
        texts.sort_unstable();
        texts.dedup();
        let condition = Condition::In(name, texts);
        self.comparison(negated_if(is_negated, condition), left.at, left.height)
    }

    fn find(&mut self, left: Part, place: Place, is_negated: bool) -> Result<Part, SqlError> {
        let operator = self.token.name();
        if !matches!(left.operand, Operand::Property(_) | Operand::Text(_)) {
            return error(left.at, SqlFault::NotAProperty { operator, found: left.name() });
        }
        self.advance()?;
        let wanted = self.text()?;
        let find = Find { operand: left.operand, place, wanted, is_negated };
        self.comparison(Condition::Find(Box::new(find)), left.at, left.height)
    }

    fn text(&mut self) -> Result<Box<str>, SqlError> {
        let Token::Text(quoted) = self.token else { return Err(self.unexpected("text")) };
        self.advance()?;
        Ok(quoted.replace("''", "'").into())
    }

    /// `NOT` or signs, as many as there are, before what they stand for.
    fn unary(&mut self, nesting: usize) -> Result<Part, SqlError> {
        let at = self.at;
        let (mut has_not, mut is_negated) = (false, false);
        while self.took(Token::Not)? {
            (has_not, is_negated) = (true, !is_negated);
        }
        let (mut has_sign, mut is_negative) = (false, false);
        while let Token::Plus | Token::Minus = self.token {
            (has_sign, is_negative) = (true, is_negative != (self.token == Token::Minus));
            self.advance()?;
        }
        let mut part = self.primary(nesting)?;
        if has_sign {
            part = part.signed(is_negative)?;
        }
        if has_not {
            let (condition, height) = self.truth(part)?;
            self.node(at)?;
            let condition = negated_if(is_negated, condition);
            part = Part { operand: Operand::Condition(Box::new(condition)), at, height };
        }
        part.at = at;
        Ok(part)
    }

    fn primary(&mut self, nesting: usize) -> Result<Part, SqlError> {
        let at = self.at;
        if self.token == Token::Open {
            if nesting == MAX_NESTING {
                return error(at, SqlFault::TooDeep { limit: MAX_NESTING });
            }
            self.advance()?;
            let part = self.expression(Power::Or, nesting + 1)?;
            self.expect(Token::Close)?;
            let height = part.height + 1;
            return Ok(Part { operand: part.operand, at, height });
        }
        let constant = |truth| Operand::Condition(Box::new(Condition::Constant(truth)));
        let operand = match self.token {
            Token::Name(name) => Operand::Property(name.into()),
            Token::Text(_) => {
                self.node(at)?;
                return Ok(Part { operand: Operand::Text(self.text()?), at, height: 0 });
            }
            Token::Integer(digits) | Token::Decimal(digits) => match Number::read(digits) {
                Some(number) => Operand::Number(number),
                None => return error(at, SqlFault::NumberRange),
            },
            Token::True => constant(Truth::True),
            Token::False => constant(Truth::False),
            Token::Null => Operand::Null,
            _ => return Err(self.unexpected("a property, a literal or `(`")),
        };
        self.node(at)?;
        self.advance()?;
        Ok(Part { operand, at, height: 0 })
    }

    /// The part as a condition, and its height.
    fn truth(&mut self, part: Part) -> Result<(Condition, usize), SqlError> {
        let found = part.name();
        match part.operand {
            Operand::Condition(condition) => Ok((*condition, part.height)),
            Operand::Property(name) => {
                let part = self.comparison(Condition::Property(name), part.at, part.height)?;
                self.truth(part)
            }
            Operand::Null => Ok((Condition::Constant(Truth::Unknown), part.height)),
            Operand::Text(_) | Operand::Number(_) | Operand::Signed { .. } => {
                error(part.at, SqlFault::NotACondition { found })
            }
        }
    }
}

impl Part {
    /// What it is called in an error.
    fn name(&self) -> &'static str {
        match &self.operand {
            Operand::Null => "NULL",
            Operand::Text(_) => "text",
            Operand::Number(_) => "a number",
            Operand::Property(_) => "a property",
            Operand::Signed { .. } => "a property with a sign",
            Operand::Condition(condition) => match condition.as_ref() {
                Condition::Constant(Truth::True) => "TRUE",
                Condition::Constant(Truth::False) => "FALSE",
                _ => "a condition",
            },
        }
    }

    /// What the height of a comparison with it is.
    fn height_compared(&self) -> usize {
        self.height + usize::from(matches!(self.operand, Operand::Condition(_)))
    }

    /// It, if it can be less than something.
    fn ordered(self) -> Result<Operand, SqlError> {
        match &self.operand {
            Operand::Number(_) | Operand::Property(_) | Operand::Signed { .. } => Ok(self.operand),
            Operand::Null => error(self.at, SqlFault::NullCompared),
            Operand::Text(_) | Operand::Condition(_) => {
                error(self.at, SqlFault::NoOrder { found: self.name() })
            }
        }
    }

    /// It behind a sign.
    fn signed(self, is_negative: bool) -> Result<Self, SqlError> {
        let operand = match self.operand {
            Operand::Number(number) if is_negative => match number.negate() {
                Some(number) => Operand::Number(number),
                None => return error(self.at, SqlFault::NumberRange),
            },
            Operand::Number(number) => Operand::Number(number),
            Operand::Property(name) => Operand::Signed { name, is_negative },
            Operand::Signed { name, is_negative: before } => {
                Operand::Signed { name, is_negative: before != is_negative }
            }
            Operand::Null | Operand::Text(_) | Operand::Condition(_) => {
                return error(self.at, SqlFault::NoSign { found: self.name() });
            }
        };
        Ok(Self { operand, ..self })
    }
}

fn negated_if(is_negated: bool, condition: Condition) -> Condition {
    if is_negated { Condition::Not(Box::new(condition)) } else { condition }
}

fn power_of(token: Token<'_>) -> Option<Power> {
    match token {
        Token::Or => Some(Power::Or),
        Token::And => Some(Power::And),
        Token::Equal | Token::NotEqual | Token::Is => Some(Power::Equality),
        Token::Less
        | Token::LessEqual
        | Token::Greater
        | Token::GreaterEqual
        | Token::Not
        | Token::Between
        | Token::In
        | Token::Contains
        | Token::StartsWith
        | Token::EndsWith => Some(Power::Comparison),
        _ => None,
    }
}

fn order_of(token: Token<'_>) -> Option<Order> {
    match token {
        Token::Less => Some(Order::Less),
        Token::LessEqual => Some(Order::LessEqual),
        Token::Greater => Some(Order::Greater),
        Token::GreaterEqual => Some(Order::GreaterEqual),
        _ => None,
    }
}
