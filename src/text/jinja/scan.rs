//! The tokens of a tag, as far as it matters where a value begins and ends.

/// What a token is to the expression around it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// A bracket; `literal` where it opens a list, a map or a tuple, not a call or an index.
    Open {
        literal: bool,
    },
    Close,
    /// What stands between values: commas, comparisons, `and`, `if` ...
    Boundary,
    /// `+` and `-` between two values.
    Sum,
    /// `~`
    Concat,
    /// `*`, `/`, `//` and `%`.
    Times,
    /// `%` behind a text.
    Format,
    /// A text.
    Literal,
    /// A number, or another word of the language that is a value.
    Number,
    Name,
    /// A part of a value: a dot, a filter's bar, a sign.
    Other,
    /// None yet.
    End,
}

/// Words between values.
const BETWEEN: &[&str] = &["and", "or", "not", "if", "else", "in", "recursive"];
/// Words that open a tag, and have a value behind them.
const TAGS: &[&str] = &["elif", "for", "set", "with", "do", "filter", "macro", "include", "import", "from"];

/// The token at the start of a text that does not start with white space, and its bytes.
pub(super) fn scan(text: &str, before: Token) -> (Token, usize) {
    let first = text.chars().next().unwrap_or(' ');
    let value = matches!(before, Token::Close | Token::Literal | Token::Number | Token::Name);
    match first {
        '\'' | '"' => (Token::Literal, quoted(text, first)),
        '0'..='9' => (Token::Number, number(text)),
        c if c.is_alphabetic() || c == '_' => {
            let len = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
            (word(&text[..len], before), len)
        }
        '(' | '[' | '{' => (Token::Open { literal: !value }, 1),
        ')' | ']' | '}' => (Token::Close, 1),
        ',' | ':' | ';' => (Token::Boundary, 1),
        '=' | '!' | '<' | '>' => (Token::Boundary, 1 + usize::from(text[1..].starts_with('='))),
        '+' | '-' if value => (Token::Sum, 1),
        '~' => (Token::Concat, 1),
        '%' if before == Token::Literal => (Token::Format, 1),
        '%' => (Token::Times, 1),
        '*' if text.starts_with("**") => (Token::Other, 2),
        '*' if value => (Token::Times, 1),
        '/' => (Token::Times, 1 + usize::from(text.starts_with("//"))),
        c => (Token::Other, c.len_utf8()),
    }
}

fn word(word: &str, before: Token) -> Token {
    match word {
        // A test's name is no value of its own.
        "is" => Token::Other,
        "true" | "false" | "none" | "True" | "False" | "None" => Token::Number,
        _ if before == Token::Other => Token::Name,
        _ if BETWEEN.contains(&word) => Token::Boundary,
        _ if before == Token::End && TAGS.contains(&word) => Token::Boundary,
        _ => Token::Name,
    }
}

fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if c == quote && !escaped {
            return at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    text.len()
}

fn number(text: &str) -> usize {
    let digits = |at: usize| {
        let rest = text.get(at..).unwrap_or("");
        at + rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
    };
    let mut end = digits(0);
    if text[end..].starts_with('.') && text[end + 1..].starts_with(|c: char| c.is_ascii_digit()) {
        end = digits(end + 1);
    }
    // The sign of an exponent.
    if text[..end].ends_with(['e', 'E']) && text[end..].starts_with(['+', '-']) && !text.starts_with("0x") {
        end = digits(end + 1);
    }
    end
}
