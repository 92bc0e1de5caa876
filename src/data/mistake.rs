//! What is wrong with JSON, and where.

/// A description of a problem and its place in an object: the line from 0, the column from 1.
pub(super) struct Mistake {
    pub row: usize,
    pub column: usize,
    pub what: String,
}

/// The text of bytes, which must be UTF-8.
pub(super) fn utf8(bytes: &[u8]) -> Result<&str, Mistake> {
    std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let row = before.iter().filter(|byte| **byte == b'\n').count();
        let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let column = before.len() - start + 1;
        Mistake { row, column, what: format!("invalid UTF-8 at byte {column}") }
    })
}

/// The message of the JSON parser, or a better one for known mistakes of other programs.
pub(super) fn not_json(text: &str, error: &serde_json::Error) -> Mistake {
    let row = error.line().saturating_sub(1);
    let line = text.split('\n').nth(row).unwrap_or(text);
    let (column, what) = in_line(text, line, error);
    Mistake { row, column, what }
}

/// The column and the message.
fn in_line(text: &str, line: &str, error: &serde_json::Error) -> (usize, String) {
    let column = error.column().max(1);
    let said = error.to_string();
    let about_escapes = said.contains("hex escape") || said.contains("unicode code point");
    if let Some((column, escape)) = lone_surrogate(line).filter(|_| about_escapes) {
        let what = format!("{escape} is half of a character (a lone surrogate), which no text can hold");
        return (column, what);
    }
    // The parser stops at such a word, or after its first letter or sign.
    let near = &line.as_bytes()[column.saturating_sub(2).min(line.len())..];
    let starts = |word: &str| {
        near.starts_with(word.as_bytes())
            || near.get(1..).is_some_and(|next| next.starts_with(word.as_bytes()))
    };
    if let Some(word) = ["-Infinity", "Infinity", "NaN"].into_iter().find(|word| starts(word)) {
        return (column, format!("{word} is not a JSON value; where a number is missing, write null"));
    }
    if text.trim_start().starts_with("{'") || ["None", "True", "False"].into_iter().any(starts) {
        return (column, "is written as Python prints it, not as JSON; json.dumps writes JSON".into());
    }
    // The message already names the column.
    let what = said.rsplit_once(" at line ").map_or(said.as_str(), |(what, _)| what);
    (column, what.to_string())
}

/// Finds the first escape of an unpaired surrogate and its column.
fn lone_surrogate(text: &str) -> Option<(usize, String)> {
    let unit = |at: usize| {
        let digits = text.get(at..)?.strip_prefix("\\u")?.get(..4)?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut at = 0;
    while let Some(next) = text.get(at..)?.find('\\') {
        at += next;
        at += match (unit(at), unit(at + 6)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0xd800..=0xdfff), _) => return Some((at + 1, text[at..at + 6].to_string())),
            (Some(_), _) => 6,
            // An escaped character, which may be a backslash.
            (None, _) => 1 + text[at + 1..].chars().next()?.len_utf8(),
        };
    }
    None
}
