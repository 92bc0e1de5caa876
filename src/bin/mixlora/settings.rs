//! From a configuration file, options and `--set` to one [`RunConfig`].

use crate::Failure;
use crate::key_value::key_value;
use mixlora::mixture::{MethodSpec, Methods};
use mixlora::train::RunConfig;
use serde_json::Value;
use std::path::Path;

/// Settings with their origin; later layers take precedence.
pub type Layers = Vec<(String, Value)>;

/// Reads a TOML or JSON file of settings.
pub fn read_file(path: &Path) -> Result<(String, Value), Failure> {
    let refusal = |what: String| mixlora::Error::File { path: path.into(), what };
    let text = std::fs::read_to_string(path).map_err(|error| refusal(format!("cannot be read: {error}")))?;
    let value = if path.extension().is_some_and(|extension| extension == "json") {
        serde_json::from_str(&text).map_err(|error| error.to_string())
    } else {
        toml::from_str::<Value>(&text).map_err(|error| error.to_string().trim_end().to_string())
    };
    Ok((path.display().to_string(), value.map_err(refusal)?))
}

/// The layers of `--set key=value`.
pub fn set_layers(set: &[String], method: &'static MethodSpec) -> Result<Layers, Failure> {
    set.iter()
        .map(|pair| {
            let (key, value) = key_value(pair)?;
            let layer =
                RunConfig::setting(method, key, value).map_err(|error| usage(&format!("--set: {error}")))?;
            Ok(("--set".to_string(), layer))
        })
        .collect()
}

/// The layers of given options: paths with values, which are null for absent options.
pub fn option_layers(given: Vec<(&str, Value)>) -> Result<Layers, Failure> {
    let given = given.into_iter().filter(|(_, value)| !value.is_null());
    given.map(|(path, value)| Ok(("command line".to_string(), RunConfig::at(path, value)))).collect()
}

/// The method that the layers name last.
pub fn method(layers: &Layers, methods: &Methods) -> Result<&'static MethodSpec, Failure> {
    match layers.iter().rev().find_map(|(_, layer)| layer["method"].as_str()) {
        Some(name) => Ok(methods.find(name)?),
        None => Ok(methods.standard()),
    }
}

fn usage(text: &str) -> Failure {
    Failure::Usage(text.into())
}
