//! Samples as other files hold them.

use super::PictureSource;
use super::base64::encode;
use super::sample::{Body, Sample};
use crate::text::Role;
use serde_json::{Map, Value, json};

/// A sample as an object with `messages`: a prompt becomes the user's turn and its completion the assistant's, both without
/// white space at their ends. Text stays `text`. Task, condition, wrong answer and pictures stay with it; keys that are not
/// read do not. Reading the object gives the same sample.
///
/// # Errors
/// A sentence: the sample is plain text, which has no turns and is cut where it is trained, or a picture is nowhere.
///
/// ```
/// use mixlora::data::{as_messages, read_samples_from};
/// let line = r#"{"instruction": "Add.", "input": "2 and 2", "output": "4", "task": "sums"}"#;
/// let samples = read_samples_from("a.jsonl".as_ref(), line.as_bytes())?;
/// let object = as_messages(&samples[0])?;
/// assert_eq!(object["messages"][0]["content"], "Add.\n2 and 2");
/// assert_eq!(object["task"], "sums");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn as_messages(sample: &Sample) -> Result<Value, String> {
    let turn = |role: Role, content: &str| json!({ "role": role.name(), "content": content });
    let mut object = Map::new();
    match &sample.body {
        Body::Document(_) => return Err("plain text has no turns: train on it as it is".into()),
        Body::Text(text) => object.insert("text".into(), json!(text)),
        Body::Completion { prompt, completion } => {
            let turns = [turn(Role::User, prompt.trim()), turn(Role::Assistant, completion.trim())];
            object.insert("messages".into(), json!(turns))
        }
        Body::Messages(messages) => {
            let mut turns: Vec<Value> =
                messages.iter().map(|message| turn(message.role, &message.content)).collect();
            for index in &sample.untrained {
                turns[*index]["weight"] = json!(0);
            }
            object.insert("messages".into(), json!(turns))
        }
    };
    if let Some(answer) = sample.rejected.as_ref().and_then(answer) {
        object.insert("rejected".into(), json!(answer));
    }
    if !sample.pictures.is_empty() {
        let pictures = sample.pictures.iter().map(picture).collect::<Result<Vec<_>, _>>()?;
        object.insert("images".into(), json!(pictures));
    }
    if let Some(task) = &sample.task {
        object.insert("task".into(), json!(task));
    }
    if let Some(condition) = &sample.condition {
        object.insert("condition".into(), json!(condition));
    }
    Ok(object.into())
}

/// The last text of a body.
fn answer(body: &Body) -> Option<&str> {
    match body {
        Body::Completion { completion, .. } => Some(completion.trim()),
        Body::Messages(messages) => messages.last().map(|message| message.content.as_str()),
        Body::Text(_) | Body::Document(_) => None,
    }
}

/// A picture as a path from the root, or as a data URL.
fn picture(source: &PictureSource) -> Result<String, String> {
    match source {
        PictureSource::Path(path) => {
            let whole = std::path::absolute(path).map_err(|error| error.to_string())?;
            whole.to_str().map(String::from).ok_or_else(|| format!("{} is no text", path.display()))
        }
        PictureSource::Bytes(bytes) => Ok(format!("data:application/octet-stream;base64,{}", encode(bytes))),
        PictureSource::Nowhere { given, why } => Err(format!("picture {given}: {why}")),
    }
}
