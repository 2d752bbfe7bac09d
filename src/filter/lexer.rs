//! Words of a condition, one at a time.

use super::error::{SqlError, SqlFault};

/// A word. `End` stands behind the last one, again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    End,
    Name(&'a str),
    /// What is between the quotes, as it stands there.
    Text(&'a str),
    /// Digits.
    Integer(&'a str),
    /// Digits with a point, an exponent or both.
    Decimal(&'a str),
    And,
    Between,
    Contains,
    EndsWith,
    False,
    In,
    Is,
    Not,
    Null,
    Or,
    StartsWith,
    True,
    Open,
    Close,
    Comma,
    Plus,
    Minus,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

const KEYWORDS: &[(&str, Token<'_>)] = &[
    ("and", Token::And),
    ("between", Token::Between),
    ("contains", Token::Contains),
    ("endswith", Token::EndsWith),
    ("false", Token::False),
    ("in", Token::In),
    ("is", Token::Is),
    ("not", Token::Not),
    ("null", Token::Null),
    ("or", Token::Or),
    ("startswith", Token::StartsWith),
    ("true", Token::True),
];

/// Longer ones before those they begin with.
const SYMBOLS: &[(&str, Token<'_>)] = &[
    ("(", Token::Open),
    (")", Token::Close),
    (",", Token::Comma),
    ("+", Token::Plus),
    ("-", Token::Minus),
    ("=", Token::Equal),
    ("<>", Token::NotEqual),
    ("<=", Token::LessEqual),
    ("<", Token::Less),
    (">=", Token::GreaterEqual),
    (">", Token::Greater),
];

impl Token<'_> {
    /// What it is called in an error.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::End => "the end",
            Self::Name(_) => "a property",
            Self::Text(_) => "text",
            Self::Integer(_) | Self::Decimal(_) => "a number",
            Self::And => "AND",
            Self::Between => "BETWEEN",
            Self::Contains => "CONTAINS",
            Self::EndsWith => "ENDSWITH",
            Self::False => "FALSE",
            Self::In => "IN",
            Self::Is => "IS",
            Self::Not => "NOT",
            Self::Null => "NULL",
            Self::Or => "OR",
            Self::StartsWith => "STARTSWITH",
            Self::True => "TRUE",
            Self::Open => "`(`",
            Self::Close => "`)`",
            Self::Comma => "`,`",
            Self::Plus => "`+`",
            Self::Minus => "`-`",
            Self::Equal => "`=`",
            Self::NotEqual => "`<>`",
            Self::Less => "`<`",
            Self::LessEqual => "`<=`",
            Self::Greater => "`>`",
            Self::GreaterEqual => "`>=`",
        }
    }
}

/// A text, and how far it was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lexer<'a> {
    text: &'a str,
    rest: &'a str,
}

impl<'a> Lexer<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        Self { text, rest: text }
    }

    /// The next word and where it begins.
    pub(super) fn next(&mut self) -> Result<(usize, Token<'a>), SqlError> {
        self.skip_blanks()?;
        let at = self.at();
        let Some(first) = self.rest.chars().next() else { return Ok((at, Token::End)) };
        let is_number = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
        let token = match first {
            'a'..='z' | 'A'..='Z' | '_' | '$' => self.word(),
            '\'' => self.text()?,
            '.' if is_number(self.rest.get(1..).unwrap_or_default()) => self.number()?,
            '0'..='9' => self.number()?,
            found => {
                let symbol = SYMBOLS.iter().find(|(symbol, _)| self.rest.starts_with(symbol));
                let (symbol, token) = symbol.ok_or(self.error(SqlFault::Character { found }))?;
                self.take(symbol.len());
                *token
            }
        };
        Ok((at, token))
    }

    fn at(&self) -> usize {
        self.text.len() - self.rest.len()
    }

    fn error(&self, fault: SqlFault) -> SqlError {
        SqlError { at: self.at(), fault }
    }

    /// Moves on over `len` bytes, which end between two characters.
    fn take(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        taken
    }

    fn take_while(&mut self, is_part: impl Fn(char) -> bool) -> &'a str {
        self.take(self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len()))
    }

    fn skip_blanks(&mut self) -> Result<(), SqlError> {
        loop {
            self.take_while(|c| matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0c'));
            if self.rest.starts_with("--") {
                self.take_while(|c| !matches!(c, '\n' | '\r'));
            } else if let Some(comment) = self.rest.strip_prefix("/*") {
                let len = comment.find("*/").ok_or(self.error(SqlFault::OpenComment))?;
                self.take(len + "/**/".len());
            } else {
                return Ok(());
            }
        }
    }

    fn word(&mut self) -> Token<'a> {
        let word = self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '$'));
        let keyword = KEYWORDS.iter().find(|(keyword, _)| keyword.eq_ignore_ascii_case(word));
        keyword.map_or(Token::Name(word), |(_, token)| *token)
    }

    fn text(&mut self) -> Result<Token<'a>, SqlError> {
        let mut len = 1;
        loop {
            let rest = self.rest.get(len..).unwrap_or_default();
            len += rest.find('\'').ok_or(self.error(SqlFault::OpenText))? + 1;
            // A doubled quote is one that belongs to the text.
            if !self.rest.get(len..).unwrap_or_default().starts_with('\'') {
                break;
            }
            len += 1;
        }
        let quoted = self.take(len);
        Ok(Token::Text(quoted.get(1..len - 1).unwrap_or_default()))
    }

    fn number(&mut self) -> Result<Token<'a>, SqlError> {
        let start = *self;
        let whole = self.take_while(|c| c.is_ascii_digit());
        let mut is_integer = true;
        if self.rest.starts_with('.') {
            is_integer = false;
            self.take(1);
            self.take_while(|c| c.is_ascii_digit());
        }
        if let Some(len) = exponent_len(self.rest) {
            is_integer = false;
            self.take(len);
        }
        let len = start.rest.len() - self.rest.len();
        let digits = start.rest.get(..len).unwrap_or_default();
        if !is_integer {
            return Ok(Token::Decimal(digits));
        }
        if whole.len() > 1 && whole.starts_with('0') {
            return Err(start.error(SqlFault::LeadingZero));
        }
        // Of 64 bits, where that mattered.
        if self.rest.starts_with(['l', 'L']) {
            self.take(1);
        }
        Ok(Token::Integer(digits))
    }
}

/// Of an exponent at the beginning of `text`.
fn exponent_len(text: &str) -> Option<usize> {
    let rest = text.strip_prefix(['e', 'E'])?;
    let digits = rest.strip_prefix(['+', '-']).unwrap_or(rest);
    let behind = digits.trim_start_matches(|c: char| c.is_ascii_digit());
    (behind.len() < digits.len()).then(|| text.len() - behind.len())
}
