//! Values of `--set KEY=VALUE`.

use crate::Failure;
use serde_json::Value;

/// A key and its value. What is not JSON is a string.
pub fn key_value(pair: &str) -> Result<(&str, Value), Failure> {
    let Some((key, value)) = pair.split_once('=') else {
        return Err(Failure::Usage(format!("--set {pair}: KEY=VALUE is needed")));
    };
    let value = serde_json::from_str(value.trim()).unwrap_or_else(|_| Value::from(value.trim()));
    Ok((key.trim(), value))
}
