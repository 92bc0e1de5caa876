//! Output of commands: plain tables and JSON on stdout, notes on stderr.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};

/// Escapes control characters in text for a terminal; names and texts of files may contain them.
fn escaped_for<'a>(text: &'a str, to: &impl IsTerminal) -> Cow<'a, str> {
    if to.is_terminal() { escaped(text) } else { text.into() }
}

fn escaped(text: &str) -> Cow<'_, str> {
    let is_active = |character: char| character.is_control() && character != '\n' && character != '\t';
    if !text.contains(is_active) {
        return text.into();
    }
    let shown = |character: char| {
        if is_active(character) { format!("\\x{:02x}", u32::from(character)) } else { character.into() }
    };
    text.chars().map(shown).collect()
}

/// Prints lines on stdout.
pub fn text(lines: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let lines = escaped_for(lines.trim_end(), &out);
    writeln!(out, "{lines}")?;
    out.flush()
}

/// Prints a piece of text on stdout without a line end.
pub fn stream(piece: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let piece = escaped_for(piece, &out);
    out.write_all(piece.as_bytes())?;
    out.flush()
}

/// Prints text on stdout and marks some parts: inverted on a terminal, in double brackets elsewhere.
pub fn marked(parts: &[(bool, String)]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let [open, close] = if out.is_terminal() { ["\x1b[7m", "\x1b[0m"] } else { ["[[", "]]"] };
    for (mark, part) in parts {
        let part = escaped_for(part, &out);
        if *mark { write!(out, "{open}{part}{close}")? } else { write!(out, "{part}")? }
    }
    out.flush()
}

/// Prints a value as JSON on stdout.
pub fn json(value: &serde_json::Value) -> std::io::Result<()> {
    text(&format!("{value:#}"))
}

/// Prints a line on stderr.
pub fn note(line: &str) {
    // An error is ignored: with stderr closed, it cannot be reported.
    let mut err = std::io::stderr();
    let line = escaped_for(line, &err);
    let _ = writeln!(err, "{line}");
}

/// Prints notes to the user, each on a line.
pub fn notes(notes: &[String]) {
    notes.iter().for_each(|text| note(&format!("note: {text}")));
}

/// Prints a prompt on stderr.
pub fn prompt(text: &str) {
    let mut err = std::io::stderr();
    let text = escaped_for(text, &err);
    let _ = write!(err, "{text}").and_then(|()| err.flush());
}

/// Prints progress on stderr if that is a terminal.
pub fn progress(line: &str) {
    if std::io::stderr().is_terminal() {
        note(line);
    }
}

/// A table for stdout, no wider than the terminal.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    crate::table::table(head, rows, crate::table::width())
}

/// A relative error for a table.
pub fn error(value: f64) -> String {
    if value == 0.0 { "0".into() } else { format!("{value:.1e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(escaped("a\tb\nü"), "a\tb\nü");
        assert_eq!(escaped("\x1b[31m\r\u{9b}2J\x7f"), "\\x1b[31m\\x0d\\x9b2J\\x7f");
    }
}
