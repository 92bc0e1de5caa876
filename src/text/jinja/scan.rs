//! A scanner for tags that distinguishes only the tokens at which values begin and end.

/// The kind of a token within an expression.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// An opening bracket; `literal` if it opens a list, map or tuple and not a call or an index.
    Open {
        literal: bool,
    },
    Close,
    /// A separator of values: a comma, a comparison, `and`, `if` ...
    Boundary,
    /// `+` and `-` between two values.
    Sum,
    /// `~`
    Concat,
    /// `*`, `/`, `//` and `%`.
    Times,
    /// `%` after a text.
    Format,
    /// A text.
    Literal,
    /// A number, or a word of the language with a value, as `true`.
    Number,
    Name,
    /// A part of a value: a dot, a filter's bar, a sign.
    Other,
    /// The start of a tag.
    End,
}

/// Words that separate values.
const BETWEEN: &[&str] = &["and", "or", "not", "if", "else", "in", "recursive"];
/// Words at the start of a tag that are followed by a value.
const TAGS: &[&str] = &["elif", "for", "set", "with", "do", "filter", "macro", "include", "import", "from"];

/// The token at the start of a text without leading whitespace, and its length in bytes.
pub(super) fn scan(text: &str, before: Token) -> (Token, usize) {
    let first = text.chars().next().unwrap_or(' ');
    let value = matches!(before, Token::Close | Token::Literal | Token::Number | Token::Name);
    match first {
        '\'' | '"' => (Token::Literal, quoted(text, first)),
        '0'..='9' => (Token::Number, number(text)),
        character if character.is_alphabetic() || character == '_' => {
            let len = text
                .find(|character: char| !character.is_alphanumeric() && character != '_')
                .unwrap_or(text.len());
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
        character => (Token::Other, character.len_utf8()),
    }
}

fn word(word: &str, before: Token) -> Token {
    match word {
        // The name of a test is not a value.
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
    for (at, character) in text.char_indices().skip(1) {
        if character == quote && !escaped {
            return at + 1;
        }
        escaped = character == '\\' && !escaped;
    }
    text.len()
}

fn number(text: &str) -> usize {
    let digits = |at: usize| {
        let rest = text.get(at..).unwrap_or("");
        at + rest
            .find(|character: char| !character.is_alphanumeric() && character != '_')
            .unwrap_or(rest.len())
    };
    let mut end = digits(0);
    if text[end..].starts_with('.')
        && text[end + 1..].starts_with(|character: char| character.is_ascii_digit())
    {
        end = digits(end + 1);
    }
    // The sign of an exponent.
    if text[..end].ends_with(['e', 'E']) && text[end..].starts_with(['+', '-']) && !text.starts_with("0x") {
        end = digits(end + 1);
    }
    end
}
