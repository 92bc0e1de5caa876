//! From a configuration file, options and `--set` to one [`RunConfig`].

use crate::Failure;
use mixlora::mixture::{MethodSpec, Methods};
use mixlora::train::RunConfig;
use serde_json::Value;
use std::path::Path;

/// Settings with where they come from, the weakest first.
pub type Layers = Vec<(String, Value)>;

/// Reads a TOML or JSON file of settings.
pub fn read_file(path: &Path) -> Result<(String, Value), Failure> {
    let fail = |what: String| mixlora::Error::File { path: path.into(), what };
    let text = std::fs::read_to_string(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
    let value = match path.extension().is_some_and(|e| e == "json") {
        true => serde_json::from_str(&text).map_err(|e| fail(e.to_string()))?,
        false => toml::from_str::<Value>(&text).map_err(|e| fail(e.to_string().trim_end().to_string()))?,
    };
    Ok((path.display().to_string(), value))
}

/// The layers of `--set key=value`. A value is JSON, or a string where it is none.
pub fn set_layers(set: &[String], method: &'static MethodSpec) -> Result<Layers, Failure> {
    set.iter()
        .map(|pair| {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(Failure::Usage(format!("--set {pair}: KEY=VALUE is needed")));
            };
            let value = serde_json::from_str(value.trim()).unwrap_or_else(|_| Value::from(value.trim()));
            let layer =
                RunConfig::setting(method, key.trim(), value).map_err(|e| usage(&format!("--set: {e}")))?;
            Ok(("--set".to_string(), layer))
        })
        .collect()
}

/// The layers of options that were given: paths with values; null where an option was left out.
pub fn option_layers(given: Vec<(&str, Value)>) -> Result<Layers, Failure> {
    let given = given.into_iter().filter(|(_, v)| !v.is_null());
    given.map(|(path, value)| Ok(("command line".to_string(), RunConfig::at(path, value)))).collect()
}

/// The method that the layers name last.
pub fn method(layers: &Layers, methods: &Methods) -> Result<&'static MethodSpec, Failure> {
    match layers.iter().rev().find_map(|(_, v)| v["method"].as_str()) {
        Some(name) => Ok(methods.find(name)?),
        None => Ok(methods.standard()),
    }
}

fn usage(text: &str) -> Failure {
    Failure::Usage(text.into())
}
