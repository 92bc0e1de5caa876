//! What commands print with: plain tables and JSON on stdout, notes on stderr.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};

/// Text for a terminal: control characters in it, as names and texts of files may have, are shown and not obeyed.
fn harmless<'a>(text: &'a str, to: &impl IsTerminal) -> Cow<'a, str> {
    if to.is_terminal() { escaped(text) } else { text.into() }
}

fn escaped(text: &str) -> Cow<'_, str> {
    let acts = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(acts) {
        return text.into();
    }
    let shown = |c: char| if acts(c) { format!("\\x{:02x}", u32::from(c)) } else { c.into() };
    text.chars().map(shown).collect()
}

/// Prints lines on stdout.
pub fn text(lines: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let lines = harmless(lines.trim_end(), &out);
    writeln!(out, "{lines}")?;
    out.flush()
}

/// Prints a piece of text on stdout, at once.
pub fn stream(piece: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let piece = harmless(piece, &out);
    out.write_all(piece.as_bytes())?;
    out.flush()
}

/// Prints text on stdout of which some parts are marked: inverted on a terminal, in double brackets elsewhere.
pub fn marked(parts: &[(bool, String)]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let [open, close] = if out.is_terminal() { ["\x1b[7m", "\x1b[0m"] } else { ["[[", "]]"] };
    for (mark, part) in parts {
        let part = harmless(part, &out);
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
    // Nobody is left to tell when stderr is closed.
    let mut err = std::io::stderr();
    let line = harmless(line, &err);
    let _ = writeln!(err, "{line}");
}

/// Prints what the user should know of, each on a line.
pub fn notes(notes: &[String]) {
    notes.iter().for_each(|n| note(&format!("note: {n}")));
}

/// Asks on stderr.
pub fn prompt(text: &str) {
    let mut err = std::io::stderr();
    let text = harmless(text, &err);
    let _ = write!(err, "{text}").and_then(|()| err.flush());
}

/// Shows on stderr what is being done, when a person watches.
pub fn progress(line: &str) {
    if std::io::stderr().is_terminal() {
        note(line);
    }
}

/// A table for stdout: no wider than the terminal.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    crate::table::table(head, rows, crate::table::width())
}

/// A relative error as a table shows it.
pub fn error(e: f64) -> String {
    if e == 0.0 { "0".into() } else { format!("{e:.1e}") }
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
