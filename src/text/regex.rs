//! Character classes in the patterns of `tokenizer.json`, as Oniguruma, the engine of Python's tokenizers, defines them.
//!
//! The engine of this build has the same escapes and POSIX names, but other sets: its `[[:alpha:]]` is ASCII.

use serde_json::Value;

/// The members of a POSIX class.
fn posix(name: &str) -> Option<&'static str> {
    Some(match name {
        "alnum" => r"\p{Alphabetic}\p{Nd}",
        "alpha" => r"\p{Alphabetic}",
        "ascii" => r"\x00-\x7F",
        "blank" => r"\p{Zs}\t",
        "cntrl" => r"\p{Cc}",
        "digit" => r"\p{Nd}",
        "graph" => r"[^\p{White_Space}\p{Cc}\p{Cn}]",
        "lower" => r"\p{Lowercase}",
        "print" => r"[^\p{White_Space}\p{Cc}\p{Cn}]\p{Zs}",
        "punct" => r"\p{P}\p{S}",
        "space" => r"\p{White_Space}",
        "upper" => r"\p{Uppercase}",
        "word" => r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}",
        "xdigit" => "0-9A-Fa-f",
        _ => return None,
    })
}

/// Further members of `\w` in Oniguruma, which come from its own table.
const LATIN_1: &str = r"\u{B2}\u{B3}\u{B9}\u{BC}-\u{BE}";

fn class(name: &str, negated: bool) -> Option<String> {
    posix(name).map(|members| format!("[{}{members}]", if negated { "^" } else { "" }))
}

/// The expansion of an escape and its length in bytes; none if both engines read it alike.
fn escape(rest: &str, in_class: bool) -> Option<(String, usize)> {
    let letter = rest.chars().nth(1)?;
    if let 'p' | 'P' = letter {
        let name = rest[2..].strip_prefix('{')?.split_once('}')?.0;
        let (negated, name) = name.strip_prefix('^').map_or((false, name), |name| (true, name));
        let text = class(&name.to_lowercase(), negated != (letter == 'P'));
        // Other names are the same in both engines, except for the leading `^`.
        let text = text
            .or_else(|| negated.then(|| format!(r"\{}{{{name}}}", if letter == 'p' { 'P' } else { 'p' })));
        return text.map(|text| (text, rest.find('}').unwrap_or(rest.len() - 1) + 1));
    }
    let word = format!("[{}{LATIN_1}]", posix("word")?);
    let text = match letter {
        'w' => word,
        'W' => format!("[^{}{LATIN_1}]", posix("word")?),
        'b' if !in_class => format!("(?:(?<={word})(?!{word})|(?<!{word})(?={word}))"),
        'B' if !in_class => format!("(?:(?<={word})(?={word})|(?<!{word})(?!{word}))"),
        _ => return None,
    };
    Some((text, 2))
}

/// Expands every class of a pattern.
fn rewrite(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut rest = pattern;
    let mut depth = 0_usize;
    while let Some(first) = rest.chars().next() {
        let mut taken = first.len_utf8();
        if first == '\\' {
            let (text, len) = escape(rest, depth > 0).unwrap_or_else(|| {
                let len = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
                (rest[..len].to_string(), len)
            });
            out += &text;
            rest = &rest[len..];
            continue;
        }
        if first == '[' {
            let name = rest
                .strip_prefix("[:")
                .filter(|_| depth > 0)
                .and_then(|rest| rest.split_once(":]"))
                .map(|(name, _)| name);
            let members = name.and_then(|name| class(name.trim_start_matches('^'), name.starts_with('^')));
            if let (Some(name), Some(members)) = (name, members) {
                out += &members;
                rest = &rest[name.len() + 4..];
                continue;
            }
            depth += 1;
            // A bracket at the start of a class is a member.
            taken += usize::from(rest[taken..].starts_with('^'));
            taken += usize::from(rest[taken..].starts_with(']'));
        } else if first == ']' {
            depth = depth.saturating_sub(1);
        }
        out += &rest[..taken];
        rest = &rest[taken..];
    }
    out
}

/// Rewrites every pattern in a part of a `tokenizer.json` and returns whether one has changed.
pub(super) fn rewrite_patterns(part: &mut Value) -> bool {
    match part {
        Value::Array(items) => items.iter_mut().fold(false, |changed, item| rewrite_patterns(item) | changed),
        Value::Object(fields) => fields.iter_mut().fold(false, |changed, (key, value)| match value {
            Value::String(pattern) if key == "Regex" => {
                let new = rewrite(pattern);
                let other = new != *pattern;
                *pattern = new;
                changed | other
            }
            value => rewrite_patterns(value) | changed,
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_written_out() {
        assert_eq!(rewrite(r"[[:alpha:]]+|\d"), r"[[\p{Alphabetic}]]+|\d");
        assert_eq!(rewrite(r"[^\s[:^digit:]]"), r"[^\s[^\p{Nd}]]");
        assert_eq!(
            rewrite(r"\\w[]\w]"),
            r"\\w[][\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\u{B2}\u{B3}\u{B9}\u{BC}-\u{BE}]]"
        );
        assert_eq!(rewrite(r"\p{^L}\p{Alnum}\P{L}"), r"\P{L}[\p{Alphabetic}\p{Nd}]\P{L}");
        // Patterns of common models stay as they are.
        for same in
            [r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+(?!\S)", r"'s|[\p{P}\$\+<=>\^~\|`]+", "[0-9][é:]", r"\"]
        {
            assert_eq!(rewrite(same), same);
        }
    }
}
