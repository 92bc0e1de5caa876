//! Limits that the engine's work account lacks: for joined and repeated lists, which are not charged, for nested values,
//! and for text that grows by a large factor.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// Bytes per unit of the engine's work account.
pub(super) const UNIT: u64 = 64;
/// The largest nesting of lists and maps.
const MAX_DEPTH: usize = 32;
/// The variable that holds the largest number of bytes of text in a list or map.
pub(super) const TEXT_LIMIT: &str = "mixlora_text";

pub(super) fn refused(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

/// Fails if the remaining work does not suffice for `bytes` bytes; they are charged when they exist.
pub(super) fn afford(state: &State, bytes: usize) -> Result<(), Error> {
    let left = state.fuel_levels().map_or(u64::MAX, |(_, left)| left.saturating_mul(UNIT));
    if bytes as u64 <= left { Ok(()) } else { Err(Error::from(ErrorKind::OutOfFuel)) }
}

fn is_container(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Map | ValueKind::Seq | ValueKind::Iterable)
}

/// Checks the size and depth of a value, and evaluates a lazy one.
pub(super) fn checked(state: &State, value: Value) -> Result<Value, Error> {
    if !is_container(&value) {
        return Ok(value);
    }
    let value = if value.kind() == ValueKind::Iterable {
        let mut items = Vec::new();
        for item in value.try_iter()? {
            if items.len() % 4 == 0 {
                state.consume_fuel(1)?;
            }
            items.push(item);
        }
        Value::from(items)
    } else {
        value
    };
    let limit = state.lookup(TEXT_LIMIT).and_then(|limit| limit.as_usize()).unwrap_or(0);
    text_of(state, &value, 0, limit)?;
    Ok(value)
}

/// Counts the bytes of text in a value.
fn text_of(state: &State, value: &Value, depth: usize, limit: usize) -> Result<usize, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.len());
    }
    if !is_container(value) {
        return Ok(8);
    }
    if depth == MAX_DEPTH {
        return Err(refused(format!("lists and maps in one another are more than {MAX_DEPTH} deep")));
    }
    let mut bytes = 0_usize;
    for (index, item) in value.try_iter()?.enumerate() {
        if index % 16 == 0 {
            state.consume_fuel(1)?;
        }
        if value.kind() == ValueKind::Map {
            bytes += text_of(state, &value.get_item(&item)?, depth + 1, limit)?;
        }
        bytes += text_of(state, &item, depth + 1, limit)?;
        if bytes > limit {
            return Err(refused(format!("a list or map with more than {limit} bytes of text")));
        }
    }
    Ok(bytes)
}

/// Checks a value that becomes an attribute of a namespace; a namespace that contains itself would be endless.
pub(super) fn held(state: &State, value: Value) -> Result<Value, Error> {
    let value = checked(state, value)?;
    if holds_namespace(&value) {
        return Err(refused("a namespace cannot be an attribute of a namespace"));
    }
    Ok(value)
}

fn holds_namespace(value: &Value) -> bool {
    let Some(object) = value.as_object() else { return false };
    if object.type_name().ends_with("Namespace") {
        return true;
    }
    is_container(value)
        && value.try_iter().is_ok_and(|mut items| {
            items.any(|item| {
                let inner = (value.kind() == ValueKind::Map).then(|| value.get_item(&item).ok()).flatten();
                holds_namespace(&item) || inner.is_some_and(|inner| holds_namespace(&inner))
            })
        })
}
