//! Folders whose weights were quantised in a way that is not read: who did it, and what to use instead.

use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// What to use instead.
const CURE: &str = "give the folder of the model before it was quantised, or a .gguf file of it";
/// Tables of `config.json` that say how. MLX writes its own under both of the first names.
const TABLES: [&str; 3] = ["quantization", "quantization_config", "compression_config"];
/// Files in which quantisers once put what they did, and which those are.
const SIDE_FILES: [(&str, &str); 2] = [("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ")];

/// Refuses weights that `config.json`, or a file beside it, calls quantised.
pub(super) fn check(dir: &Path, config: &Value) -> Result<()> {
    let says = |field: &&str| config[field].as_object().is_some_and(|table| !table.is_empty());
    if let Some(field) = TABLES.into_iter().find(says) {
        let by = method(field, &config[field]);
        let what = format!("{field} says that the weights are quantised ({by}), which is not read; {CURE}");
        return Err(Error::file(dir.join("config.json"), what));
    }
    match SIDE_FILES.iter().find(|(name, _)| dir.join(name).is_file()) {
        None => Ok(()),
        Some((name, by)) => {
            let what = format!("says that the weights are quantised ({by}), which is not read; {CURE}");
            Err(Error::file(dir.join(name), what))
        }
    }
}

/// Who quantised the weights, by the table that says how.
fn method(field: &str, table: &Value) -> String {
    let loads = |bits: &str| table[bits] == true;
    let name = match table["quant_method"].as_str() {
        Some(name) => name,
        None if field == "quantization" => "MLX",
        None if loads("load_in_4bit") || loads("load_in_8bit") => "bitsandbytes",
        None => "quant_method is missing",
    };
    let bits = match &table["bits"] {
        Value::Number(bits) => Some(bits.to_string()),
        _ if loads("load_in_4bit") => Some("4".to_string()),
        _ if loads("load_in_8bit") => Some("8".to_string()),
        _ => None,
    };
    bits.map_or(name.to_string(), |bits| format!("{name}, {bits} bits"))
}
