//! Methods and formatting of Python's strings.

use super::checked::{afford, checked, refused};
use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Rest, Tuple, Value, ValueOrKwargs, from_args};
use minijinja::{Error, State};
use minijinja_contrib::pycompat::unknown_method_callback;

/// The largest number of digits of a width or precision.
const MAX_DIGITS: usize = 4;
/// Bytes of a list entry.
const SLOT: usize = 32;

/// Calls a method that the engine lacks.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(done) = call_on_text(state, text, method, args)?
    {
        return Ok(done);
    }
    match (method, args) {
        ("index", [wanted]) if value.as_str().is_none() => {
            let at = value.try_iter()?.position(|item| item == *wanted);
            at.map(Value::from).ok_or_else(|| refused("index: the value is not in the list"))
        }
        _ => unknown_method_callback(state, value, method, args),
    }
}

/// Calls a method of a text that needs a limit or that the library of methods lacks.
fn call_on_text(state: &mut State, text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "format" => formatted(state, FormatStyle::StrFormat, text, args)?,
        "split" | "rsplit" => split(state, text, args, method == "rsplit")?,
        "splitlines" => {
            let (keep, options): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.or(options.get("keepends")?).unwrap_or(false);
            options.assert_all_used()?;
            afford(state, SLOT * text.matches('\n').count())?;
            let whole = text.split_inclusive('\n');
            let bare = |line: &str| {
                line.strip_suffix('\n')
                    .map_or(line, |line| line.strip_suffix('\r').unwrap_or(line))
                    .to_string()
            };
            whole.map(|line| if keep { line.to_string() } else { bare(line) }).map(Value::from).collect()
        }
        "replace" => {
            let (old, new, _): (&str, &str, Option<i64>) = from_args(args)?;
            afford(state, text.matches(old).count().saturating_mul(new.len()))?;
            return Ok(None);
        }
        "join" => {
            let (items,): (Value,) = from_args(args)?;
            let items = checked(state, items)?;
            afford(state, items.len().unwrap_or(0).saturating_mul(text.len()))?;
            return Ok(None);
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            partition(text, separator, method == "rpartition")?
        }
        "ljust" | "rjust" | "center" | "zfill" => pad(state, text, method, args)?,
        "swapcase" => {
            let () = from_args(args)?;
            let swap = |character: char| {
                if character.is_lowercase() {
                    character.to_uppercase().to_string()
                } else {
                    character.to_lowercase().to_string()
                }
            };
            Value::from(text.chars().map(swap).collect::<String>())
        }
        "casefold" => {
            let () = from_args(args)?;
            Value::from(text.to_lowercase())
        }
        "index" | "rindex" => {
            let (part,): (&str,) = from_args(args)?;
            let at = if method == "index" { text.find(part) } else { text.rfind(part) };
            let at = at.ok_or_else(|| refused(format!("{method}: substring not found")))?;
            Value::from(text[..at].chars().count())
        }
        _ => return Ok(None),
    }))
}

fn split(state: &State, text: &str, args: &[Value], from_end: bool) -> Result<Value, Error> {
    let (separator, most, options): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
    let named: Option<String> = options.get("sep")?;
    let separator = separator.or(named.as_deref());
    let most = most.or(options.get("maxsplit")?).and_then(|most| usize::try_from(most).ok());
    options.assert_all_used()?;
    let pieces = most.map_or(usize::MAX, |most| most.saturating_add(1));
    let Some(separator) = separator else {
        afford(state, SLOT * text.split_whitespace().count().min(pieces))?;
        return Ok(split_at_space(text, pieces, from_end).into_iter().map(Value::from).collect());
    };
    if separator.is_empty() {
        return Err(refused("split: the separator is empty"));
    }
    afford(state, SLOT * text.matches(separator).count().min(pieces))?;
    let mut parts: Vec<&str> = if from_end {
        text.rsplitn(pieces, separator).collect()
    } else {
        text.splitn(pieces, separator).collect()
    };
    if from_end {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Splits at whitespace into at most `pieces` words; the last one (from the end: the first) keeps the rest.
fn split_at_space(text: &str, pieces: usize, from_end: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = if from_end { text.trim_end() } else { text.trim_start() };
    while !rest.is_empty() {
        let at = if from_end { rest.rfind(char::is_whitespace) } else { rest.find(char::is_whitespace) };
        let Some(at) = at.filter(|_| parts.len() + 1 < pieces) else {
            parts.push(rest);
            break;
        };
        let (before, after) = rest.split_at(at);
        parts.push(if from_end { after.trim_start() } else { before });
        rest = if from_end { before.trim_end() } else { after.trim_start() };
    }
    if from_end {
        parts.reverse();
    }
    parts
}

fn partition(text: &str, separator: &str, from_end: bool) -> Result<Value, Error> {
    if separator.is_empty() {
        return Err(refused("partition: the separator is empty"));
    }
    let parts = match if from_end { text.rsplit_once(separator) } else { text.split_once(separator) } {
        Some((before, after)) => [before, separator, after],
        None if from_end => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from).to_vec())))
}

fn pad(state: &State, text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (usize, Option<&str>) = from_args(args)?;
    let fill = if method == "zfill" { "0" } else { fill.unwrap_or(" ") };
    if fill.chars().count() != 1 {
        return Err(refused(format!("{method}: the fill must be one character")));
    }
    let missing = width.saturating_sub(text.chars().count());
    afford(state, missing.saturating_mul(fill.len()))?;
    let left = match method {
        "ljust" => 0,
        // For an odd width, Python puts the odd space to the left.
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    let sign = text.len()
        - if method == "zfill" { text.strip_prefix(['-', '+']).unwrap_or(text).len() } else { text.len() };
    let before = fill.repeat(left);
    let after = fill.repeat(missing - left);
    Ok(Value::from(format!("{}{before}{}{after}", &text[..sign], &text[sign..])))
}

/// Formats a text after checking how long the result can become.
fn formatted(state: &mut State, style: FormatStyle, text: &str, args: &[Value]) -> Result<Value, Error> {
    let mut longest = 0;
    for arg in args {
        checked(state, arg.clone())?;
        let len = |value: &Value| value.as_str().map_or_else(|| value.to_string().len(), str::len);
        let inner = arg.is_kwargs().then(|| arg.try_iter().ok()).flatten();
        let inner = inner
            .into_iter()
            .flatten()
            .filter_map(|key| arg.get_item(&key).ok())
            .map(|value| len(&value))
            .max();
        longest = longest.max(inner.unwrap_or_else(|| len(arg)));
    }
    let mut widths = 0;
    for digits in
        text.split(|character: char| !character.is_ascii_digit()).filter(|digits| !digits.is_empty())
    {
        if digits.len() > MAX_DIGITS {
            return Err(refused(format!(
                "format: {digits} is no width or precision, at most {MAX_DIGITS} digits are"
            )));
        }
        widths += digits.parse::<usize>().unwrap_or(0);
    }
    let fields = text.matches(if style == FormatStyle::Printf { '%' } else { '{' }).count();
    afford(state, fields.saturating_mul(longest).saturating_add(widths).saturating_add(text.len()))?;
    format(style, text, args).map(Value::from)
}

/// The operator `%` with a tuple or a single value: `'%s and %s' % (a, b)`.
pub(super) fn percent(state: &mut State, text: &str, value: Value) -> Result<Value, Error> {
    let args: Vec<Value> = if value.is_tuple() { value.try_iter()?.collect() } else { vec![value] };
    formatted(state, FormatStyle::Printf, text, &args)
}

/// The filter `format`.
pub(super) fn format_filter(
    state: &mut State,
    text: &str,
    args: Rest<ValueOrKwargs>,
) -> Result<Value, Error> {
    formatted(state, FormatStyle::Printf, text, &args.into_values())
}
