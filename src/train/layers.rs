//! Settings in layers: the defaults of a method, a file, the command line; each a tree of the names of [`RunConfig`].

use super::config::within;
use super::{DeviceOptions, RunConfig, Stage, TextOptions, TrainOptions};
use crate::mixture::{Method, MethodSpec, Methods};
use crate::names::nearest;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// A configuration without its method, as files have it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sections {
    model: PathBuf,
    #[serde(default)]
    vision: Option<PathBuf>,
    data: PathBuf,
    target_modules: Vec<String>,
    experts: Vec<String>,
    start_from: Option<PathBuf>,
    task: Option<String>,
    stages: Vec<Stage>,
    train: TrainOptions,
    text: TextOptions,
    device: DeviceOptions,
}

/// Settings by the names that they have now.
fn by_new_names(layer: &Value) -> Value {
    let mut layer = layer.clone();
    let device = layer.get_mut("device").and_then(Value::as_object_mut);
    // Whether quantised weights stay as they are; else they were f32.
    if let Some(device) = device
        && let Some(kept) = device.remove("keep_quantised")
    {
        let weights = kept.as_bool().map_or(kept, |kept| Value::from(if kept { "file" } else { "f32" }));
        device.entry("weights").or_insert(weights);
    }
    layer
}

impl RunConfig {
    /// The configuration as a tree of its names.
    ///
    /// # Errors
    /// A path is not UTF-8.
    pub fn tree(&self) -> Result<Value> {
        let RunConfig {
            model,
            vision,
            data,
            method,
            target_modules,
            experts,
            start_from,
            task,
            stages,
            train,
            text,
            device,
        } = self.clone();
        let sections = Sections {
            model,
            vision,
            data,
            target_modules,
            experts,
            start_from,
            task,
            stages,
            train,
            text,
            device,
        };
        // By way of text: it keeps an f32 such as 0.01 as it is written.
        let written = serde_json::to_string(&sections);
        let mut tree: Map<String, Value> = written
            .and_then(|t| serde_json::from_str(&t))
            .map_err(|error| Error::refused("configuration", error.to_string()))?;
        tree.insert("method".into(), method.name().into());
        tree.insert("options".into(), method.tree().into());
        Ok(Value::Object(tree))
    }

    /// Layers of settings over the defaults of the method that they name, the last one wins. Each layer is a tree of
    /// the names above, with where it comes from.
    ///
    /// # Errors
    /// A key is unknown (a near one is named), or a value has the wrong type or cannot work: the first of these.
    pub fn layered(layers: &[(String, Value)], methods: &Methods) -> Result<Self> {
        Self::checked(layers, methods).map_err(|mut errors| errors.swap_remove(0))
    }

    /// The same with everything that is wrong.
    ///
    /// # Errors
    /// All of them, at least one. A setting that cannot work is set back to its default to find the next.
    pub fn checked(layers: &[(String, Value)], methods: &Methods) -> std::result::Result<Self, Vec<Error>> {
        let method = method_of(layers, methods).map_err(|error| vec![error])?;
        let defaults = RunConfig::defaults(method).and_then(|c| c.tree()).map_err(|error| vec![error])?;
        let mut all = defaults.clone();
        let mut errors = Vec::new();
        for (from, layer) in layers {
            let mut unfit = Vec::new();
            merge(&mut all, &by_new_names(layer), "", &method.defaults(), &mut unfit);
            errors.extend(unfit.into_iter().map(|e| of_layer(from, e)));
        }
        loop {
            match RunConfig::of_tree(&all, method) {
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

    /// The settings of a stored run over the defaults of its method: what was not known when it was stored has the
    /// method's default, and what is not known here is passed over, with a note for each.
    ///
    /// # Errors
    /// The method is unknown, one of its options cannot work, or a value has the wrong type. What else cannot work is
    /// seen when changes are laid over it.
    pub fn stored(tree: &Value, methods: &Methods) -> Result<(Self, Vec<String>)> {
        let layers = [(String::new(), tree.clone())];
        let method = method_of(&layers, methods)?;
        let mut all = RunConfig::defaults(method)?.tree()?;
        let mut unfit = Vec::new();
        merge(&mut all, &by_new_names(tree), "", &method.defaults(), &mut unfit);
        let note = |e: Error| match e.field() {
            // Runs of version 0.1.0 have the options of all methods.
            Some(field) if field.strip_prefix("options.").is_some_and(|n| methods.know_option(n)) => None,
            Some(field) => Some(format!("{field}: unknown to this version, passed over")),
            None => Some(e.to_string()),
        };
        let notes = unfit.into_iter().filter_map(note).collect();
        Ok((RunConfig::parse(&all, method)?, notes))
    }

    fn of_tree(tree: &Value, method: &'static MethodSpec) -> Result<Self> {
        let config = Self::parse(tree, method)?;
        config.check()?;
        Ok(config)
    }

    /// Reads a tree that has every name. Options of the method are checked, other values may still be impossible.
    fn parse(tree: &Value, method: &'static MethodSpec) -> Result<Self> {
        let mut sections = tree.as_object().cloned().unwrap_or_default();
        sections.remove("method");
        let options = sections.remove("options").and_then(|o| o.as_object().cloned()).unwrap_or_default();
        let method = method.defaults().set(&options).map_err(|error| within("options", error))?;
        let sections = serde_path_to_error::deserialize(&Value::Object(sections)).map_err(|e| {
            let path = e.path().to_string();
            Error::refused(path, e.into_inner().to_string())
        })?;
        let Sections {
            model,
            vision,
            data,
            target_modules,
            experts,
            start_from,
            task,
            stages,
            train,
            text,
            device,
        } = sections;
        Ok(RunConfig {
            model,
            vision,
            data,
            method,
            target_modules,
            experts,
            start_from,
            task,
            stages,
            train,
            text,
            device,
        })
    }

    /// The same with settings as a method's list has them: paths, and values as JSON.
    pub(super) fn with_settings(self, settings: &[(&str, &str)]) -> Result<Self> {
        let mut all = self.tree()?;
        for (path, text) in settings {
            let value: Value =
                serde_json::from_str(text).map_err(|error| Error::refused(*path, error.to_string()))?;
            let mut unfit = Vec::new();
            merge(&mut all, &at(path, value), "", &self.method, &mut unfit);
            if let Some(e) = unfit.pop() {
                return Err(e);
            }
        }
        Self::of_tree(&all, self.method.spec())
    }

    /// The layer of one value at a path such as `train.seed`.
    pub fn at(path: &str, value: Value) -> Value {
        at(path, value)
    }

    /// The layer of one setting `key = value`. The key is a path such as `train.seed`, or the name alone where only one
    /// section has it.
    ///
    /// # Errors
    /// There is no such name, or several sections have it.
    pub fn setting(method: &'static MethodSpec, key: &str, value: Value) -> Result<Value> {
        let all = RunConfig::defaults(method)?.tree()?;
        if key.contains('.') || all.get(key).is_some() {
            return Ok(at(key, value));
        }
        let sections: Vec<(&String, &Map<String, Value>)> =
            all.as_object().into_iter().flatten().filter_map(|(k, v)| Some((k, v.as_object()?))).collect();
        let having: Vec<&str> =
            sections.iter().filter(|(_, v)| v.contains_key(key)).map(|(k, _)| k.as_str()).collect();
        match having[..] {
            [section] => Ok(at(&format!("{section}.{key}"), value)),
            [] => {
                let known: Vec<String> = sections.iter().flat_map(|(_, v)| v.keys().cloned()).collect();
                let hint = hint(key, &known);
                let own = method.option_names().join(", ");
                let what = format!("is unknown{hint}; the options of {} are {own}", method.name);
                Err(Error::refused(key, what))
            }
            _ => Err(Error::refused(
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

/// The tree of one value at a path of names with dots.
pub(super) fn at(path: &str, value: Value) -> Value {
    let put = |v, key: &str| Value::Object(Map::from_iter([(key.to_string(), v)]));
    path.rsplit('.').fold(value, put)
}

/// The method that the layers name last.
fn method_of(layers: &[(String, Value)], methods: &Methods) -> Result<&'static MethodSpec> {
    match layers.iter().rev().find_map(|(_, v)| v.get("method")) {
        None => Ok(methods.standard()),
        Some(Value::String(name)) => methods.find(name),
        Some(other) => Err(Error::config("method", other, "a name")),
    }
}

/// An error with the layer that it is in.
fn of_layer(from: &str, e: Error) -> Error {
    e.rename(|field| format!("{from}: {field}"))
}

/// Sets what an error names back to its default. False where that is nothing that layers have changed.
fn set_back(all: &mut Value, defaults: &Value, e: &Error) -> bool {
    let Some(field) = e.field() else { return false };
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
fn merge(into: &mut Value, layer: &Value, path: &str, method: &Method, errors: &mut Vec<Error>) {
    let Some(layer) = section(layer) else {
        errors.push(Error::config(path, layer, "a section of options"));
        return;
    };
    for (key, value) in layer {
        let here = joined(path, key);
        let known: Vec<String> = section(into).into_iter().flatten().map(|(k, _)| k.clone()).collect();
        match into.get_mut(key) {
            None if path == "options" && elsewhere(key).is_none() => {
                errors.extend(method.must_have(key).err().map(|e| within(path, e)));
            }
            None => errors.push(Error::refused(here, unknown(key, &known))),
            Some(slot) if slot.is_object() => merge(slot, value, &here, method, errors),
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
    (&["projector_lr", "mm_projector_lr"], "train.projector_learning_rate"),
    (&["rank", "lora_r", "lora_rank"], "options.r"),
    (&["alpha"], "options.lora_alpha"),
    (&["dropout"], "options.lora_dropout"),
    (&["batch_size", "per_device_train_batch_size", "micro_batch_size"], "train.micro_batch"),
    (&["gradient_accumulation_steps", "grad_accumulation_steps"], "train.grad_accumulation"),
    (&["max_steps", "num_steps", "iters"], "train.steps"),
    (&["num_epochs", "num_train_epochs"], "train.epochs"),
    (&["warmup"], "train.warmup_steps"),
    (&["early_stopping_patience", "early_stopping"], "train.patience"),
    (&["lr_scheduler", "lr_scheduler_type"], "train.schedule"),
    (&["min_lr", "eta_min", "lr_end"], "train.min_learning_rate"),
    (&["num_cycles"], "train.restarts"),
    (&["gradient_checkpointing", "grad_checkpoint"], "train.recompute"),
    (&["max_seq_length", "max_seq_len", "seq_len", "sequence_len", "cutoff_len"], "text.max_length"),
    (&["lora_target_modules", "targets"], "target_modules"),
];

/// The name here of a setting of another program.
fn elsewhere(name: &str) -> Option<&'static str> {
    ELSEWHERE.iter().find(|(names, _)| names.contains(&name)).map(|(_, here)| *here)
}

/// The name that was meant, where that can be told.
fn hint(name: &str, known: &[String]) -> String {
    match elsewhere(name) {
        Some(here) => format!("; here it is {here}"),
        None => nearest(name, known).map_or(String::new(), |n| format!("; did you mean '{n}'?")),
    }
}

/// What is said of a name that is none: the one that was meant, where that can be told, else where the list is.
fn unknown(name: &str, known: &[String]) -> String {
    let hint = hint(name, known);
    if hint.is_empty() {
        return "is unknown; `mixlora config init` prints all settings".into();
    }
    format!("is unknown{hint}")
}
