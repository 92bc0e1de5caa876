//! `mixlora config schema`: settings as a JSON Schema.

use crate::config_settings::{STAGE, Setting, Takes, find};
use mixlora::mixture::{Kind, Range};
use mixlora::train::RunConfig;
use serde_json::{Map, Value, json};
use std::ops::Bound;

/// The schema of a file of settings, with the defaults of this configuration.
pub fn schema(config: &RunConfig) -> mixlora::Result<Value> {
    let method = config.method.spec();
    let mut properties = Map::new();
    for (key, value) in config.tree()?.as_object().into_iter().flatten() {
        let schema = match value.as_object() {
            Some(_) if key == "options" => {
                let fields = config.method.options().fields();
                let options = fields.iter().map(|field| {
                    let schema = of_kind(&field.kind, &field.range, field.optional);
                    (field.name.to_string(), described(schema, &field.doc, Some(&field.value)))
                });
                table(options.collect(), &format!("options of {}", config.method.name()))
            }
            Some(section) => {
                let settings = section.iter().map(|(name, value)| {
                    (name.clone(), find(&format!("{key}.{name}")).map_or(json!({}), |s| of_setting(s, value)))
                });
                table(settings.collect(), "")
            }
            None if key == "method" => {
                let names: Vec<&str> =
                    std::iter::once(method.name).chain(method.aliases.iter().copied()).collect();
                let about = find(key).map_or("", |setting| setting.about);
                described(json!({ "enum": names }), about, Some(value))
            }
            None => find(key).map_or(json!({}), |setting| of_setting(setting, value)),
        };
        properties.insert(key.clone(), schema);
    }
    let mut all =
        table(properties, &format!("Settings of `mixlora train --config` with the method {}.", method.name));
    all["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    all["title"] = json!("mixlora run");
    // A file that names no method has the standard one, whose options are others.
    if method.name != mixlora::mixture::Methods::builtin().standard().name {
        all["required"] = json!(["method"]);
    }
    Ok(all)
}

/// A table of these names and no others.
fn table(properties: Map<String, Value>, about: &str) -> Value {
    let schema = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    described(schema, about, None)
}

fn described(mut schema: Value, about: &str, default: Option<&Value>) -> Value {
    if !about.is_empty() {
        schema["description"] = json!(about);
    }
    // An empty text stands for what must be given.
    if let Some(default) = default.filter(|default| default.as_str() != Some("")) {
        schema["default"] = default.clone();
    }
    schema
}

fn of_setting(setting: &Setting, default: &Value) -> Value {
    let schema = match setting.takes {
        Takes::Value(kind, range) => of_kind(&kind, &range, setting.optional),
        Takes::Texts => json!({ "type": "array", "items": { "type": "string" } }),
        Takes::Method => json!({ "type": "string" }),
        Takes::Stages => json!({ "type": "array", "items": stage() }),
    };
    described(schema, setting.about, Some(default))
}

fn stage() -> Value {
    let property = |setting: &Setting| {
        let default = if setting.optional { Value::Null } else { json!(0) };
        let given = setting.path == "data";
        let mut schema = of_setting(setting, if given { &Value::Null } else { &default });
        if given && let Some(schema) = schema.as_object_mut() {
            schema.remove("default");
        }
        (setting.path.to_string(), schema)
    };
    let mut stage = table(STAGE.iter().map(property).collect(), "");
    stage["required"] = json!(["data"]);
    stage
}

/// The schema of one value.
fn of_kind(kind: &Kind, range: &Range, optional: bool) -> Value {
    let mut schema = match kind {
        Kind::Integer => json!({ "type": "integer" }),
        Kind::Number => json!({ "type": "number" }),
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Text => json!({ "type": "string" }),
        Kind::Word(words) => json!({ "type": "string", "enum": words }),
        // A list may be written as one of its values, or as a text with commas.
        Kind::List(of) => {
            let one = of_kind(of, range, false);
            json!({ "anyOf": [{ "type": "array", "items": one }, one, { "type": "string" }] })
        }
    };
    let [low, high] = range.bounds();
    let whole = *kind == Kind::Integer;
    for (bound, [included, excluded]) in
        [(low, ["minimum", "exclusiveMinimum"]), (high, ["maximum", "exclusiveMaximum"])]
    {
        match bound {
            Bound::Included(value) => schema[included] = number(value, whole),
            Bound::Excluded(value) => schema[excluded] = number(value, whole),
            Bound::Unbounded => {}
        }
    }
    // A whole number is never below 0 here.
    if whole && low == Bound::Unbounded {
        schema["minimum"] = json!(0);
    }
    if optional {
        or_null(&mut schema);
    }
    schema
}

/// A bound as it is written: without a point where it is whole.
fn number(value: f64, whole: bool) -> Value {
    if whole && value.fract() == 0.0 { json!(value as i64) } else { json!(value) }
}

fn or_null(schema: &mut Value) {
    if let Some(kind) = schema.get_mut("type") {
        *kind = json!([kind.clone(), "null"]);
    }
    if let Some(words) = schema.get_mut("enum").and_then(Value::as_array_mut) {
        words.push(Value::Null);
    }
    if let Some(several) = schema.get_mut("anyOf").and_then(Value::as_array_mut) {
        several.push(json!({ "type": "null" }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_settings::SETTINGS;
    use mixlora::mixture::Methods;
    use mixlora::train::Stage;

    /// Whether a value is what a schema says, for the words that occur here; where it is not.
    fn unfit(schema: &Value, value: &Value, path: &str) -> Option<String> {
        let wrong = |what: &str| Some(format!("{path}: {value} {what} of {schema}"));
        for word in schema.as_object()?.keys() {
            let known = [
                "$schema",
                "title",
                "type",
                "properties",
                "additionalProperties",
                "description",
                "default",
                "items",
                "enum",
                "anyOf",
                "minimum",
                "maximum",
                "exclusiveMinimum",
                "exclusiveMaximum",
                "required",
            ];
            assert!(known.contains(&word.as_str()), "{word}");
        }
        let is = |kind: &Value| match kind.as_str().unwrap() {
            "integer" => value.is_u64() || value.is_i64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "string" => value.is_string(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            "null" => value.is_null(),
            other => panic!("{other}"),
        };
        match &schema["type"] {
            Value::Null => {}
            Value::Array(kinds) if kinds.iter().any(is) => {}
            Value::String(_) if is(&schema["type"]) => {}
            _ => return wrong("has not the type"),
        }
        if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
            return wrong("is no word");
        }
        if let Some(several) = schema["anyOf"].as_array()
            && several.iter().all(|one| unfit(one, value, path).is_some())
        {
            return wrong("is none");
        }
        if let Some(number) = value.as_f64() {
            let fits = |word: &str, fits: fn(f64, f64) -> bool| {
                schema[word].as_f64().is_none_or(|b| fits(number, b))
            };
            if !(fits("minimum", |v, b| v >= b)
                && fits("maximum", |v, b| v <= b)
                && fits("exclusiveMinimum", |v, b| v > b)
                && fits("exclusiveMaximum", |v, b| v < b))
            {
                return wrong("is beyond the bounds");
            }
        }
        for (name, value) in value.as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            match schema["properties"].get(name) {
                Some(schema) => {
                    if let Some(what) = unfit(schema, value, &path) {
                        return Some(what);
                    }
                }
                None => return Some(format!("{path} is unknown")),
            }
        }
        let required = schema["required"].as_array().into_iter().flatten();
        if value.is_object()
            && let Some(name) = required.filter_map(Value::as_str).find(|name| value.get(name).is_none())
        {
            return wrong(&format!("has no {name}"));
        }
        let items = value.as_array().into_iter().flatten();
        items.enumerate().find_map(|(i, item)| unfit(&schema["items"], item, &format!("{path}[{i}]")))
    }

    /// Tables of a schema, by path.
    fn tables(schema: &Value, found: &mut Vec<Value>) {
        if schema["type"] == "object" {
            found.push(schema.clone());
        }
        for inner in schema["properties"].as_object().into_iter().flatten() {
            tables(inner.1, found);
        }
        if schema["items"].is_object() {
            tables(&schema["items"], found);
        }
    }

    #[test]
    fn every_setting_is_in_the_schema_and_its_default_fits() {
        let standard = Methods::builtin().standard().name;
        for &method in Methods::builtin().all() {
            let defaults = RunConfig::defaults(method).unwrap();
            let tree = defaults.tree().unwrap();
            let schema = schema(&defaults).unwrap();
            assert_eq!(unfit(&schema, &tree, method.name), None);
            let mut all = 0;
            let mut check = |path: String, property: &Value, default: &Value| {
                all += 1;
                assert!(property["description"].as_str().is_some_and(|text| !text.is_empty()), "{path}");
                assert!(["type", "enum", "anyOf"].iter().any(|word| !property[word].is_null()), "{path}");
                assert_eq!(property.get("default").unwrap_or(&json!("")), default, "{path}");
            };
            for (key, value) in tree.as_object().unwrap() {
                let property = &schema["properties"][key];
                match value.as_object() {
                    None => check(key.clone(), property, value),
                    Some(section) => section.iter().for_each(|(name, value)| {
                        check(format!("{key}.{name}"), &property["properties"][name], value)
                    }),
                }
            }
            assert_eq!(all, SETTINGS.len() + defaults.method.options().fields().len());
            let mut found = Vec::new();
            tables(&schema, &mut found);
            assert_eq!(found.len(), 6, "top, options, train, text, device, a stage");
            assert!(found.iter().all(|table| table["additionalProperties"] == false));
            assert_eq!(schema["required"].is_null(), method.name == standard, "{}", method.name);
        }
    }

    #[test]
    fn a_schema_refuses_what_the_program_refuses() {
        let defaults = RunConfig::defaults(Methods::builtin().standard()).unwrap();
        let schema = schema(&defaults).unwrap();
        for (path, value) in [
            ("train.epochs", json!(0)),
            ("train.steps", json!(0)),
            ("train.steps", json!(1.5)),
            ("train.stpes", json!(1)),
            ("train.schedule", json!("cosin")),
            ("train.decay_share", json!(1.5)),
            ("options.r", json!(0)),
            ("options.lora_dropout", json!(1)),
            ("text.max_untrained", json!(-0.1)),
            ("method", json!("lora")),
            ("stages", json!([{ "steps": 3 }])),
            ("stages", json!([{ "data": "a", "step": 3 }])),
        ] {
            let layer = RunConfig::at(path, value);
            assert!(unfit(&schema, &layer, "").is_some(), "{layer}");
        }
        let fine =
            json!({ "train": { "patience": null, "epochs": 1 }, "stages": [{ "data": "a", "task": null }] });
        assert_eq!(unfit(&schema, &fine, ""), None);
    }

    /// The list says of each setting what a run really takes.
    #[test]
    fn settings_take_what_the_list_says() {
        let methods = Methods::builtin();
        let takes = |path: &str, value: Value| {
            // The least learning rate is at most the learning rate.
            let layers = [("train.learning_rate", json!(3)), (path, value)];
            let layers = layers.map(|(path, value)| ("test".to_string(), RunConfig::at(path, value)));
            RunConfig::layered(&layers, &methods).is_ok()
        };
        for setting in SETTINGS {
            let path = setting.path;
            assert_eq!(takes(path, Value::Null), setting.optional, "{path}: null");
            let (kind, range) = match setting.takes {
                Takes::Value(kind, range) => (kind, range),
                Takes::Texts => {
                    let texts = ["q_proj", "q_proj=a", "q_proj=prompt"];
                    assert!(texts.iter().any(|text| takes(path, json!([text]))), "{path}");
                    assert!(!takes(path, json!("q_proj")) && !takes(path, json!([1])), "{path}");
                    continue;
                }
                Takes::Method | Takes::Stages => continue,
            };
            let examples = [json!(true), json!(2), json!(0.5), json!("8GiB")];
            let fits = examples.map(|value| takes(path, value));
            let expected = match kind {
                Kind::Flag => [true, false, false, false],
                Kind::Integer => [false, true, false, false],
                Kind::Text => [false, false, false, true],
                Kind::Number => [false, range.contains(2.0), range.contains(0.5), false],
                Kind::Word(words) => {
                    assert!(words.iter().all(|word| takes(path, json!(word))), "{path}");
                    [false; 4]
                }
                Kind::List(_) => panic!("{path}"),
            };
            assert_eq!(fits, expected, "{path}: true, 2, 0.5, a text");
            let whole = kind == Kind::Integer;
            for (bound, outside) in range.bounds().into_iter().zip([-1.0, 1.0]) {
                let (value, inside) = match bound {
                    Bound::Included(value) => (value, true),
                    Bound::Excluded(value) => (value, false),
                    Bound::Unbounded => continue,
                };
                assert_eq!(takes(path, number(value, whole)), inside, "{path}: {value}");
                let beyond = value + outside * if whole { 1.0 } else { 1e-3 };
                assert!(!takes(path, number(beyond, whole)), "{path}: {beyond}");
            }
        }
        let stage = Stage { data: "a".into(), steps: None, task: None, solved_below: None, least_steps: 0 };
        let keys: Vec<String> =
            serde_json::to_value(stage).unwrap().as_object().unwrap().keys().cloned().collect();
        let mut listed: Vec<&str> = STAGE.iter().map(|setting| setting.path).collect();
        listed.sort_unstable();
        assert_eq!(keys, listed);
    }
}
