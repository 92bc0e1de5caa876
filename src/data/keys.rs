//! Keys of other tools' samples. Some are obeyed; those that would change the meaning of a sample are refused, because a
//! model must not learn something else than the sample says.

use serde::Deserialize;
use serde::de::{Error as _, IgnoredAny, MapAccess};
use serde_json::Value;

/// Refused keys with the message for each.
const REFUSED: &[(&[&str], &str)] = &[
    (
        &["image_file", "image_path", "image_url", "image_urls"],
        "is not supported: the pictures of a sample are its 'images'",
    ),
    (&["video", "videos", "audio", "audios"], "is not supported: only text and pictures are read"),
    (
        &["tools", "functions", "tool_calls", "tool_call_id", "function_call"],
        "is not supported: calls of tools are not read",
    ),
    (
        &["reasoning", "reasoning_content", "thinking", "thinking_content"],
        "is not supported: write reasoning into 'content', between the marks that the model puts around it",
    ),
    (
        &["documents", "chat_template", "chat_template_kwargs"],
        "is not supported: templates get messages alone",
    ),
    (
        &[
            "loss_mask",
            "loss_scale",
            "loss_weight",
            "mask",
            "masked",
            "sample_weight",
            "train_detail",
            "train_on_inputs",
            "training_detail",
        ],
        "is not supported: 'weight' 0 or 1 of a message says whether it is trained",
    ),
];

/// Marks of pictures in the texts of other tools, which are not those of data files here.
const MARKERS: [&str; 3] = ["<|image|>", "<|image_pad|>", "<image_placeholder>"];

/// The weight of a message; the weight of a whole sample is refused.
const WEIGHT: &str = "weight";

/// Reads the value of a key; errors name the key.
pub(super) fn value<'de, A: MapAccess<'de>, T: Deserialize<'de>>(
    map: &mut A,
    key: &str,
) -> Result<T, A::Error> {
    map.next_value().map_err(|error| A::Error::custom(format!("field '{key}': {error}")))
}

/// Skips an unknown key; a key that would change the training is an error.
pub(super) fn other<'de, A: MapAccess<'de>>(
    map: &mut A,
    key: &str,
    unread: &mut Vec<String>,
) -> Result<(), A::Error> {
    if is_known(key) {
        let refused = refused(key, &value(map, key)?);
        return refused.map_or(Ok(()), |why| Err(A::Error::custom(format!("field '{key}' {why}"))));
    }
    if map.next_value::<Option<IgnoredAny>>()?.is_some() {
        unread.push(key.to_string());
    }
    Ok(())
}

/// Tests whether other tools give a key a meaning.
fn is_known(key: &str) -> bool {
    key == WEIGHT || REFUSED.iter().any(|(keys, _)| keys.contains(&key))
}

/// The reason for refusing a known key with this value; none if the key can be ignored.
fn refused(key: &str, value: &Value) -> Option<String> {
    if key == WEIGHT {
        let weighs = !matches!(flag(value), Ok(None | Some(true)));
        let cure = "a whole sample cannot be weighted; leave it out, or weight its messages";
        return weighs.then(|| format!("is {value}: {cure}"));
    }
    let why = REFUSED.iter().find(|(keys, _)| keys.contains(&key))?.1;
    (!says_nothing(value)).then(|| why.into())
}

/// Tests whether a value is one that exporters write for an absent value.
pub(super) fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.iter().all(says_nothing),
        Value::Object(fields) => fields.values().all(says_nothing),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// Finds a mark of an image in a text.
pub(super) fn marker(text: &str) -> Option<&'static str> {
    MARKERS.into_iter().find(|mark| text.contains(mark))
}

/// Advice for a sample with the keys of another layout.
pub(super) fn way_out(keys: &[String]) -> String {
    let contains = |key: &str| keys.iter().any(|present| present == key);
    let pairs: &[(&str, &str)] = &[
        ("conversation", ""),
        ("question", "answer"),
        ("query", "response"),
        ("input", "output"),
        ("input", "target"),
        ("instruction", "response"),
    ];
    match pairs.iter().find(|(asks, answers)| contains(asks) && (answers.is_empty() || contains(answers))) {
        Some((asks, "")) => format!("; name it as --columns {asks}=messages"),
        Some((asks, answers)) => format!("; name them as --columns {asks}=prompt,{answers}=completion"),
        None => String::new(),
    }
}

/// The training flag of a message: `weight`, as in the formats of OpenAI and Mistral, and its synonyms.
#[derive(Default)]
pub(super) struct Obeyed(Option<bool>);

impl Obeyed {
    pub const KEYS: [&str; 5] = [WEIGHT, "train", "trainable", "training", "loss"];

    /// Sets the flag from the value of one of the keys.
    pub fn set(&mut self, value: &Value) -> Result<(), String> {
        let wanted = flag(value)?;
        match (self.0, wanted) {
            (Some(old), Some(new)) if old != new => Err(format!("is {value}, another key says the opposite")),
            (old, new) => {
                self.0 = new.or(old);
                Ok(())
            }
        }
    }

    pub fn trained(&self) -> Option<bool> {
        self.0
    }
}

/// Reads a value as yes, no or absent.
fn flag(value: &Value) -> Result<Option<bool>, String> {
    match value {
        Value::Null => Ok(None),
        Value::Bool(on) => Ok(Some(*on)),
        number if number.as_f64() == Some(0.0) => Ok(Some(false)),
        number if number.as_f64() == Some(1.0) => Ok(Some(true)),
        other => Err(format!("is {other}, only 0 and 1 are supported")),
    }
}
