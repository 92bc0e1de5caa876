//! Parsing of one line of a data file.

use super::Condition;
use super::keys::{Obeyed, is_known, marker, refused, way_out};
use crate::text::{Message, Role};
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::Value;
use std::fmt;

/// The content of a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A conversation.
    Messages(Vec<Message>),
    /// A prompt with its completion.
    Completion { prompt: String, completion: String },
    /// Plain text.
    Text(String),
}

impl Body {
    /// The name of its keys in a file.
    pub fn kind(&self) -> &'static str {
        match self {
            Body::Messages(_) => "messages",
            Body::Completion { .. } => "prompt and completion",
            Body::Text(_) => "text",
        }
    }
}

/// One line of a data file.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Sample {
    /// The line number, from 1.
    pub line: usize,
    /// An optional label; statistics are kept per label.
    pub task: Option<String>,
    /// What choices depend on besides the text, for methods that choose by it.
    pub condition: Option<Condition>,
    /// The same with a wrong answer, for methods that learn from both.
    pub rejected: Option<Body>,
    pub body: Body,
    /// Indices of the assistant's messages that the sample excludes from training.
    pub untrained: Vec<usize>,
    /// Keys that are not read; those of a message begin with `messages.`.
    pub unread: Vec<String>,
}

impl Sample {
    /// A sample without excluded messages.
    pub fn new(line: usize, task: Option<String>, body: Body) -> Self {
        Sample {
            line,
            task,
            condition: None,
            rejected: None,
            body,
            untrained: Vec::new(),
            unread: Vec::new(),
        }
    }
}

/// A column (from 1) and a description of the problem there.
pub(super) type Mistake = (usize, String);

/// Parses a line.
pub(super) fn parse(number: usize, line: &[u8]) -> Result<Sample, Mistake> {
    let text = std::str::from_utf8(line).map_err(|error| {
        let at = error.valid_up_to() + 1;
        (at, format!("invalid UTF-8 at byte {at}"))
    })?;
    let raw: Raw = serde_json::from_str(text.trim_end()).map_err(|error| not_json(text, &error))?;
    raw.sample(number).map_err(|what| (1, what))
}

/// The message of the JSON parser, or a better one for known mistakes of other programs.
fn not_json(text: &str, error: &serde_json::Error) -> Mistake {
    let column = error.column().max(1);
    let said = error.to_string();
    let about_escapes = said.contains("hex escape") || said.contains("unicode code point");
    if let Some((column, escape)) = lone_surrogate(text).filter(|_| about_escapes) {
        let what = format!("{escape} is half of a character (a lone surrogate), which no text can hold");
        return (column, what);
    }
    // The parser stops at such a word, or after its first letter or sign.
    let near = &text.as_bytes()[column.saturating_sub(2).min(text.len())..];
    let starts = |word: &str| {
        near.starts_with(word.as_bytes())
            || near.get(1..).is_some_and(|next| next.starts_with(word.as_bytes()))
    };
    if let Some(word) = ["-Infinity", "Infinity", "NaN"].into_iter().find(|word| starts(word)) {
        return (column, format!("{word} is not a JSON value; where a number is missing, write null"));
    }
    if text.trim_start().starts_with("{'") || ["None", "True", "False"].into_iter().any(starts) {
        return (column, "is written as Python prints it, not as JSON; json.dumps writes JSON".into());
    }
    // The message already names the column.
    let what = said.rsplit_once(" at line ").map_or(said.as_str(), |(what, _)| what);
    (column, what.to_string())
}

/// Finds the first escape of an unpaired surrogate and its column.
fn lone_surrogate(text: &str) -> Option<Mistake> {
    let unit = |at: usize| {
        let digits = text.get(at..)?.strip_prefix("\\u")?.get(..4)?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut at = 0;
    while let Some(next) = text.get(at..)?.find('\\') {
        at += next;
        at += match (unit(at), unit(at + 6)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0xd800..=0xdfff), _) => return Some((at + 1, text[at..at + 6].to_string())),
            (Some(_), _) => 6,
            // An escaped character, which may be a backslash.
            (None, _) => 1 + text[at + 1..].chars().next()?.len_utf8(),
        };
    }
    None
}

/// The object of a line. A null value counts as absent, because exporters of tables write every column.
#[derive(Default)]
struct Raw {
    messages: Option<Turns>,
    prompt: Option<Text>,
    completion: Option<Text>,
    rejected: Option<Answer>,
    text: Option<Text>,
    task: Option<String>,
    condition: Option<Condition>,
    unread: Vec<String>,
}

/// Reads the value of a key; errors name the key.
fn value<'de, A: MapAccess<'de>, T: Deserialize<'de>>(map: &mut A, key: &str) -> Result<T, A::Error> {
    map.next_value().map_err(|error| A::Error::custom(format!("field '{key}': {error}")))
}

/// Skips an unknown key; a key that would change the training is an error.
fn other<'de, A: MapAccess<'de>>(map: &mut A, key: &str, unread: &mut Vec<String>) -> Result<(), A::Error> {
    if is_known(key) {
        let refused = refused(key, &value(map, key)?);
        return refused.map_or(Ok(()), |why| Err(A::Error::custom(format!("field '{key}' {why}"))));
    }
    if map.next_value::<Option<IgnoredAny>>()?.is_some() {
        unread.push(key.to_string());
    }
    Ok(())
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RawVisitor;
        impl<'de> Visitor<'de> for RawVisitor {
            type Value = Raw;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut raw = Raw::default();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "messages" => raw.messages = map.next_value()?,
                        "prompt" => raw.prompt = value(&mut map, &key)?,
                        "completion" => raw.completion = value(&mut map, &key)?,
                        "chosen" => raw.completion = value::<_, Option<Answer>>(&mut map, &key)?.map(|a| a.0),
                        "rejected" => raw.rejected = value(&mut map, &key)?,
                        "text" => raw.text = value(&mut map, &key)?,
                        "task" => raw.task = value(&mut map, &key)?,
                        "condition" => raw.condition = value(&mut map, &key)?,
                        _ => other(&mut map, &key, &mut raw.unread)?,
                    }
                }
                Ok(raw)
            }
        }
        deserializer.deserialize_map(RawVisitor)
    }
}

impl Raw {
    fn sample(self, line: usize) -> Result<Sample, String> {
        let mut unread = self.unread;
        let mut untrained = Vec::new();
        let body = match (self.messages, self.prompt, self.completion, self.text) {
            (Some(Turns(turns)), None, None, None) => {
                let excluded =
                    |turn: &Turn| turn.trained == Some(false) && turn.message.role == Role::Assistant;
                untrained.extend((0..turns.len()).filter(|&index| excluded(&turns[index])));
                let of_turns =
                    turns.iter().flat_map(|turn| &turn.unread).map(|key| format!("messages.{key}"));
                unread.extend(of_turns);
                Body::Messages(check_turns(turns)?)
            }
            (None, Some(prompt), Some(completion), None) => {
                refuse_marker("'prompt'", &prompt.0)?;
                Body::Completion { prompt: prompt.0, completion: completion.0 }
            }
            (None, None, None, Some(text)) => Body::Text(text.0),
            (None, Some(_), None, None) => return Err("field 'completion' is missing beside 'prompt'".into()),
            (None, None, Some(_), None) => return Err("field 'prompt' is missing beside 'completion'".into()),
            (None, None, None, None) => {
                let what = "field 'messages' is missing (or 'prompt' and 'completion', or 'text')";
                return Err(format!("{what}{}", way_out(&unread)));
            }
            _ => {
                return Err(
                    "more than one of 'messages', 'prompt' with 'completion', and 'text'; one is wanted"
                        .into(),
                );
            }
        };
        unread.sort_unstable();
        unread.dedup();
        let rejected = self.rejected.map(|Answer(answer)| with_answer(&body, answer.0)).transpose()?;
        match &self.condition {
            Some(Condition::Text(text)) if text.trim().is_empty() => {
                return Err("field 'condition' is empty".into());
            }
            Some(Condition::Vector(v)) if v.is_empty() || v.iter().any(|v| !v.is_finite()) => {
                return Err("field 'condition' has no numbers, or one that is too large".into());
            }
            _ => {}
        }
        Ok(Sample { line, task: self.task, condition: self.condition, rejected, body, untrained, unread })
    }
}

/// The answer to a prompt: a text. Other tools also write lists of messages, which may differ before the answer.
struct Answer(Text);

impl<'de> Deserialize<'de> for Answer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Array(_) => Err(D::Error::custom(
                "is a list of messages; write the answer alone as a text, beside 'prompt' or 'messages'",
            )),
            other => Text::deserialize(other).map(Answer).map_err(D::Error::custom),
        }
    }
}

/// The same body with another answer at its end.
fn with_answer(body: &Body, answer: String) -> Result<Body, String> {
    match body.clone() {
        Body::Completion { prompt, .. } => Ok(Body::Completion { prompt, completion: answer }),
        Body::Messages(mut messages) => match messages.last_mut() {
            Some(last) if last.role == Role::Assistant => {
                last.content = answer;
                Ok(Body::Messages(messages))
            }
            _ => Err("field 'rejected' needs messages that end with the assistant's".into()),
        },
        Body::Text(_) => Err("field 'rejected' needs a 'prompt' or 'messages', not 'text'".into()),
    }
}

fn check_turns(turns: Vec<Turn>) -> Result<Vec<Message>, String> {
    match turns.first() {
        None => return Err("'messages' is empty".into()),
        Some(first) if first.message.role == Role::Assistant => {
            return Err("messages[0] is the assistant's: nothing comes before it".into());
        }
        Some(_) => {}
    }
    for (index, turn) in turns.iter().enumerate() {
        let role = turn.message.role;
        if index > 0 && role == Role::System {
            return Err(format!("messages[{index}] has role 'system', which only the first may have"));
        }
        if role != Role::Assistant {
            refuse_marker(&format!("messages[{index}]"), &turn.message.content)?;
            if turn.trained == Some(true) {
                let what = "is to be trained, but only turns of the assistant are";
                return Err(format!("messages[{index}] of role '{}' {what}", role.name()));
            }
        }
    }
    Ok(turns.into_iter().map(|turn| turn.message).collect())
}

/// Refuses text with the mark of an image.
fn refuse_marker(place: &str, text: &str) -> Result<(), String> {
    match marker(text) {
        Some(found) => Err(format!("{place} holds '{found}': images are not read")),
        None => Ok(()),
    }
}

/// A string; numbers and lists of parts are refused.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.to_string()))
            }
            fn visit_string<E: de::Error>(self, text: String) -> Result<Text, E> {
                Ok(Text(text))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Text, A::Error> {
                while let Some(part) = seq.next_element::<Value>()? {
                    if let Some(kind) = part["type"].as_str().filter(|kind| *kind != "text") {
                        return Err(A::Error::custom(format!(
                            "has a part of type '{kind}': only text is read"
                        )));
                    }
                }
                Err(A::Error::custom("is a list of parts, a string is expected"))
            }
        }
        deserializer.deserialize_any(TextVisitor)
    }
}

/// One message.
struct Turn {
    message: Message,
    /// The training flag of the message.
    trained: Option<bool>,
    unread: Vec<String>,
}

impl<'de> Deserialize<'de> for Turn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TurnVisitor;
        impl<'de> Visitor<'de> for TurnVisitor {
            type Value = Turn;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object with 'role' and 'content'")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Turn, A::Error> {
                let mut role = None;
                let mut content = None;
                let mut obeyed = Obeyed::default();
                let mut unread = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "role" => role = value::<A, Option<RoleName>>(&mut map, &key)?,
                        "content" => content = value::<A, Option<Text>>(&mut map, &key)?,
                        _ if Obeyed::KEYS.contains(&key.as_str()) => {
                            let wanted: Value = value(&mut map, &key)?;
                            let set = obeyed.set(&wanted);
                            set.map_err(|what| A::Error::custom(format!("field '{key}': {what}")))?;
                        }
                        _ => other(&mut map, &key, &mut unread)?,
                    }
                }
                let role = role.ok_or_else(|| A::Error::custom("field 'role' is missing"))?.0;
                let content = content.ok_or_else(|| A::Error::custom("field 'content' is missing"))?.0;
                Ok(Turn { message: Message::new(role, content), trained: obeyed.trained(), unread })
            }
        }
        deserializer.deserialize_map(TurnVisitor)
    }
}

struct Turns(Vec<Turn>);

impl<'de> Deserialize<'de> for Turns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TurnsVisitor;
        impl<'de> Visitor<'de> for TurnsVisitor {
            type Value = Turns;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list of messages")
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Turns, A::Error> {
                let mut turns = Vec::new();
                let in_message =
                    |at: usize| move |error| A::Error::custom(format!("messages[{at}]: {error}"));
                while let Some(turn) = seq.next_element().map_err(in_message(turns.len()))? {
                    turns.push(turn);
                }
                Ok(Turns(turns))
            }
        }
        deserializer.deserialize_seq(TurnsVisitor)
    }
}

/// A role by its name.
struct RoleName(Role);

impl<'de> Deserialize<'de> for RoleName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = Text::deserialize(deserializer)?.0;
        let known = Role::ALL.into_iter().find(|role| role.name() == name);
        let hint = match name.as_str() {
            "tool" | "function" | "ipython" | "observation" => ": calls of tools are not read",
            "human" => "; write 'user'",
            "gpt" | "model" | "bot" | "chatbot" => "; write 'assistant'",
            "developer" => "; write 'system'",
            _ => "",
        };
        known
            .map(RoleName)
            .ok_or_else(|| D::Error::custom(format!("'{name}' is not one of system, user, assistant{hint}")))
    }
}
