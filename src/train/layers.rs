//! Settings in layers: the defaults of a method, a file, the command line; each a tree of the names of [`RunConfig`].

use super::RunConfig;
use crate::mixture::find;
use crate::names::nearest;
use crate::{Error, Result};
use serde_json::{Map, Value};

impl RunConfig {
    /// The configuration as a tree of its names.
    pub fn tree(&self) -> Result<Value> {
        // By way of text: it keeps an f32 such as 0.01 as it is written.
        let text = serde_json::to_string(self);
        let tree = text.and_then(|t| serde_json::from_str(&t));
        tree.map_err(|e| Error::config("configuration", e.to_string()))
    }

    /// Layers of settings over the defaults of the method that they name, the last one wins. Each layer is a tree of
    /// the names above, with where it comes from.
    ///
    /// # Errors
    /// A key is unknown (a near one is named), or a value has the wrong type or cannot work: the first of these.
    pub fn layered(layers: &[(String, Value)]) -> Result<Self> {
        Self::checked(layers).map_err(|mut errors| errors.swap_remove(0))
    }

    /// The same with everything that is wrong.
    ///
    /// # Errors
    /// All of them, at least one. A setting that cannot work is set back to its default to find the next.
    pub fn checked(layers: &[(String, Value)]) -> std::result::Result<Self, Vec<Error>> {
        let defaults =
            method_of(layers).and_then(RunConfig::defaults).and_then(|c| c.tree()).map_err(|e| vec![e])?;
        let mut all = defaults.clone();
        let mut errors = Vec::new();
        for (from, layer) in layers {
            let mut unfit = Vec::new();
            merge(&mut all, layer, "", &mut unfit);
            errors.extend(unfit.into_iter().map(|e| of_layer(from, e)));
        }
        loop {
            match RunConfig::of_tree(&all) {
                Ok(config) if errors.is_empty() => return Ok(config),
                Ok(_) => return Err(errors),
                Err(e) => {
                    let mended = set_back(&mut all, &defaults, &e);
                    errors.push(e);
                    if !mended {
                        return Err(errors);
                    }
                }
            }
        }
    }

    fn of_tree(tree: &Value) -> Result<Self> {
        let mut config: RunConfig = serde_path_to_error::deserialize(tree).map_err(|e| {
            let path = e.path().to_string();
            Error::config(path, e.into_inner().to_string())
        })?;
        config.check()?;
        config.method = find(&config.method)?.name.into();
        Ok(config)
    }

    /// The layer of one setting `key = value`. The key is a path such as `train.seed`, or the name alone where only one
    /// section has it.
    ///
    /// # Errors
    /// There is no such name, or several sections have it.
    pub fn setting(method: &str, key: &str, value: Value) -> Result<Value> {
        let all = RunConfig::defaults(method)?.tree()?;
        let at = |path: &[&str]| {
            path.iter().rev().fold(value.clone(), |v, k| Value::Object(Map::from_iter([(k.to_string(), v)])))
        };
        let path: Vec<&str> = key.split('.').collect();
        if path.len() > 1 || all.get(key).is_some() {
            return Ok(at(&path));
        }
        let sections: Vec<(&String, &Map<String, Value>)> =
            all.as_object().into_iter().flatten().filter_map(|(k, v)| Some((k, v.as_object()?))).collect();
        let having: Vec<&str> =
            sections.iter().filter(|(_, v)| v.contains_key(key)).map(|(k, _)| k.as_str()).collect();
        match having[..] {
            [section] => Ok(at(&[section, key])),
            [] => {
                let known: Vec<String> = sections.iter().flat_map(|(_, v)| v.keys().cloned()).collect();
                Err(Error::config(key, unknown(key, &known)))
            }
            _ => Err(Error::config(
                key,
                format!(
                    "is in several sections: write {}",
                    having.iter().map(|s| format!("{s}.{key}")).collect::<Vec<_>>().join(" or ")
                ),
            )),
        }
    }

    /// Values that differ, as `path: old -> new`.
    ///
    /// # Errors
    /// A configuration cannot be turned into a tree.
    pub fn differences(&self, other: &RunConfig) -> Result<Vec<(String, String)>> {
        let mut found = Vec::new();
        differ(&self.tree()?, &other.tree()?, "", &mut found);
        Ok(found)
    }
}

/// The method that the layers name last.
fn method_of(layers: &[(String, Value)]) -> Result<&str> {
    match layers.iter().rev().find_map(|(_, v)| v.get("method")) {
        None => Ok("mixlora-cond"),
        Some(Value::String(name)) => Ok(name),
        Some(other) => Err(Error::config("method", format!("is {other}, must be a name"))),
    }
}

/// An error with the layer that it is in.
fn of_layer(from: &str, e: Error) -> Error {
    match e {
        Error::Config { field, what } => Error::Config { field: format!("{from}: {field}"), what },
        e => e,
    }
}

/// Sets what an error names back to its default. False where that is nothing that layers have changed.
fn set_back(all: &mut Value, defaults: &Value, e: &Error) -> bool {
    let Error::Config { field, .. } = e else { return false };
    let pointer = format!("/{}", field.split('[').next().unwrap_or_default().replace('.', "/"));
    match (all.pointer_mut(&pointer), defaults.pointer(&pointer)) {
        (Some(value), Some(default)) if value != default => {
            *value = default.clone();
            true
        }
        _ => false,
    }
}

/// Sections, or a value that replaces another.
fn section(value: &Value) -> Option<&Map<String, Value>> {
    value.as_object()
}

fn joined(path: &str, key: &str) -> String {
    if path.is_empty() { key.into() } else { format!("{path}.{key}") }
}

/// Puts a layer over a tree that has every key there is; what does not fit in is an error.
fn merge(into: &mut Value, layer: &Value, path: &str, errors: &mut Vec<Error>) {
    let Some(layer) = section(layer) else {
        errors.push(Error::config(path, format!("is {layer}, must be a section of options")));
        return;
    };
    for (key, value) in layer {
        let here = joined(path, key);
        let known: Vec<String> = section(into).into_iter().flatten().map(|(k, _)| k.clone()).collect();
        match into.get_mut(key) {
            None => errors.push(Error::config(here, unknown(key, &known))),
            Some(slot) if slot.is_object() => merge(slot, value, &here, errors),
            Some(slot) => *slot = value.clone(),
        }
    }
}

fn differ(a: &Value, b: &Value, path: &str, found: &mut Vec<(String, String)>) {
    match (section(a), section(b)) {
        (Some(x), Some(y)) => {
            for (key, value) in x {
                differ(value, y.get(key).unwrap_or(&Value::Null), &joined(path, key), found);
            }
        }
        _ if a != b => found.push((path.into(), format!("{a} -> {b}"))),
        _ => {}
    }
}

/// Names that other programs give to settings, and those of here.
const ELSEWHERE: &[(&[&str], &str)] = &[
    (&["lr"], "train.learning_rate"),
    (&["rank", "lora_r", "lora_rank"], "options.r"),
    (&["alpha"], "options.lora_alpha"),
    (&["dropout"], "options.lora_dropout"),
    (&["batch_size", "per_device_train_batch_size", "micro_batch_size"], "train.micro_batch"),
    (&["gradient_accumulation_steps", "grad_accumulation_steps"], "train.grad_accumulation"),
    (&["max_steps", "num_steps", "iters"], "train.steps"),
    (&["num_epochs", "num_train_epochs"], "train.epochs"),
    (&["warmup"], "train.warmup_steps"),
    (&["lr_scheduler", "lr_scheduler_type"], "train.schedule"),
    (&["gradient_checkpointing", "grad_checkpoint"], "train.recompute"),
    (&["max_seq_length", "max_seq_len", "seq_len", "sequence_len", "cutoff_len"], "text.max_length"),
    (&["lora_target_modules", "targets"], "target_modules"),
];

/// What is said of a name that is none: the one that was meant, where that can be told, else where the list is.
fn unknown(name: &str, known: &[String]) -> String {
    let elsewhere = ELSEWHERE.iter().find(|(names, _)| names.contains(&name));
    let here = elsewhere.map(|(_, here)| format!("; here it is {here}"));
    let near = || nearest(name, known).map(|n| format!("; did you mean '{n}'?"));
    match here.or_else(near) {
        Some(hint) => format!("is unknown{hint}"),
        None => "is unknown; `mixlora config init` prints all settings".into(),
    }
}
