//! The filter `tojson` of transformers: Python's `json.dumps`, by default without escapes of non-ASCII characters.

use super::checked::{afford, refused};
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, State};

const MAX_DEPTH: usize = 64;
const MAX_INDENT: usize = 64;

/// Options of the written JSON.
struct Style {
    ascii: bool,
    indent: Option<String>,
    comma: String,
    colon: String,
    sorted: bool,
}

/// The filter.
pub(super) fn to_json(
    state: &State,
    value: &Value,
    ascii: Option<bool>,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let indent = indent.or(options.get("indent")?).filter(|indent| !indent.is_none());
    let indent = indent.map(|indent| indent_of(&indent)).transpose()?;
    let separators: Option<Value> = options.get("separators")?;
    let separators =
        separators.filter(|value| !value.is_none()).map(|value| separators_of(&value)).transpose()?;
    let comma = if indent.is_some() { "," } else { ", " };
    let (comma, colon) = separators.unwrap_or_else(|| (comma.into(), ": ".into()));
    let style = Style {
        ascii: ascii.or(options.get("ensure_ascii")?).unwrap_or(false),
        indent,
        comma,
        colon,
        sorted: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut out = String::new();
    style.write(state, value, 0, &mut out)?;
    Ok(out)
}

/// An indent given as a text or a number of spaces; a negative number means none, as in Python.
fn indent_of(value: &Value) -> Result<String, Error> {
    let indent = match value.as_str() {
        Some(text) => text.to_string(),
        None => " ".repeat(usize::try_from(i64::try_from(value.clone())?).unwrap_or(0).min(MAX_INDENT + 1)),
    };
    if indent.len() > MAX_INDENT {
        return Err(refused(format!("tojson: an indent of more than {MAX_INDENT}")));
    }
    Ok(indent)
}

fn separators_of(value: &Value) -> Result<(String, String), Error> {
    let texts: Vec<String> = value.try_iter()?.filter_map(|item| item.as_str().map(String::from)).collect();
    match <[String; 2]>::try_from(texts) {
        Ok([comma, colon]) if value.len() == Some(2) => Ok((comma, colon)),
        _ => Err(refused("tojson: separators are two texts, as in (',', ':')")),
    }
}

impl Style {
    fn write(&self, state: &State, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(refused(format!("tojson: nested deeper than {MAX_DEPTH}")));
        }
        match value.kind() {
            ValueKind::Map => {
                let mut pairs = Vec::new();
                for key in value.try_iter()? {
                    pairs.push((key_text(&key)?, value.get_item(&key)?));
                }
                if self.sorted {
                    pairs.sort_by(|one, other| one.0.cmp(&other.0));
                }
                self.write_items(['{', '}'], pairs.into_iter(), depth, state, out, &|(key, item), out| {
                    self.write_text(&key, out)?;
                    out.push_str(&self.colon);
                    self.write(state, &item, depth + 1, out)
                })
            }
            ValueKind::Seq | ValueKind::Iterable => {
                self.write_items(['[', ']'], value.try_iter()?, depth, state, out, &|item, out| {
                    self.write(state, &item, depth + 1, out)
                })
            }
            ValueKind::None => {
                out.push_str("null");
                Ok(())
            }
            ValueKind::Bool => {
                out.push_str(if value.is_true() { "true" } else { "false" });
                Ok(())
            }
            ValueKind::Number => {
                out.push_str(&number(value));
                Ok(())
            }
            ValueKind::String => self.write_text(value.as_str().unwrap_or(""), out),
            kind => Err(refused(format!("tojson: {kind} cannot be written"))),
        }
    }

    fn write_items<T>(
        &self,
        brackets: [char; 2],
        items: impl Iterator<Item = T>,
        depth: usize,
        state: &State,
        out: &mut String,
        write: &dyn Fn(T, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let break_line = |out: &mut String, depth: usize| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        out.push(brackets[0]);
        let mut empty = true;
        for item in items {
            afford(state, out.len())?;
            if !empty {
                out.push_str(&self.comma);
            }
            empty = false;
            break_line(out, depth + 1);
            write(item, out)?;
        }
        if !empty {
            break_line(out, depth);
        }
        out.push(brackets[1]);
        Ok(())
    }

    fn write_text(&self, text: &str, out: &mut String) -> Result<(), Error> {
        let json = serde_json::to_string(text).map_err(|error| refused(error.to_string()))?;
        if !self.ascii || json.is_ascii() {
            out.push_str(&json);
            return Ok(());
        }
        for character in json.chars() {
            if character.is_ascii() {
                out.push(character);
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
        Ok(())
    }
}

/// The text of a key, as in Python.
fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or("").to_string()),
        ValueKind::Number => Ok(number(key)),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::None => Ok("null".into()),
        kind => Err(refused(format!("tojson: {kind} cannot be a key"))),
    }
}

/// The text of a number, as in Python.
fn number(value: &Value) -> String {
    let Some(float) = f64::try_from(value.clone()).ok().filter(|_| !value.is_integer()) else {
        return value.to_string();
    };
    if float.is_nan() {
        return "NaN".into();
    }
    if float.is_infinite() {
        return if float > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let text = format!("{float:?}");
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_pythons() {
        for (value, wanted) in
            [(1e16, "1e+16"), (0.1, "0.1"), (1e-7, "1e-07"), (3.0, "3.0"), (f64::INFINITY, "Infinity")]
        {
            assert_eq!(number(&Value::from(value)), wanted);
        }
        assert_eq!(number(&Value::from(-7)), "-7");
    }
}
