//! One line of a data file: what it says, and what other tools' keys ask for.

use super::keys::{Obeyed, is_known, marker, refused, way_out};
use crate::text::{Message, Role};
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::Value;
use std::fmt;

/// What a sample says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    Messages(Vec<Message>),
    Completion { prompt: String, completion: String },
    Text(String),
}

impl Body {
    /// The key that a file uses for it.
    pub fn kind(&self) -> &'static str {
        match self {
            Body::Messages(_) => "messages",
            Body::Completion { .. } => "prompt and completion",
            Body::Text(_) => "text",
        }
    }
}

/// One line of a data file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sample {
    /// From 1.
    pub line: usize,
    /// An optional label; statistics are kept per label.
    pub task: Option<String>,
    pub body: Body,
    /// Assistant turns that the sample itself leaves out of training, by their place in the messages.
    pub untrained: Vec<usize>,
    /// Keys that are not read; those of a message begin with `messages.`.
    pub unread: Vec<String>,
}

impl Sample {
    /// A sample all of whose turns may be trained.
    pub fn new(line: usize, task: Option<String>, body: Body) -> Self {
        Sample { line, task, body, untrained: Vec::new(), unread: Vec::new() }
    }
}

/// A column (from 1), and what is wrong there.
pub(super) type Wrong = (usize, String);

/// The sample of a line.
pub(super) fn parse(number: usize, line: &[u8]) -> Result<Sample, Wrong> {
    let text = std::str::from_utf8(line).map_err(|error| {
        let at = error.valid_up_to() + 1;
        (at, format!("invalid UTF-8 at byte {at}"))
    })?;
    let raw: Raw = serde_json::from_str(text.trim_end()).map_err(|error| not_json(text, &error))?;
    raw.sample(number).map_err(|what| (1, what))
}

/// The words of the parser, or a better reason where what was written is known from other programs.
fn not_json(text: &str, error: &serde_json::Error) -> Wrong {
    let column = error.column().max(1);
    let said = error.to_string();
    let about_escapes = said.contains("hex escape") || said.contains("unicode code point");
    if let Some((column, escape)) = lone_surrogate(text).filter(|_| about_escapes) {
        let what = format!("{escape} is half of a character (a lone surrogate), which no text can hold");
        return (column, what);
    }
    // The parser stops at such a word, or behind its first letter or sign.
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
    // The place is told apart from the text.
    let what = said.rsplit_once(" at line ").map_or(said.as_str(), |(what, _)| what);
    (column, what.to_string())
}

/// The first escape of a surrogate that is not one of a pair, with its column.
fn lone_surrogate(text: &str) -> Option<Wrong> {
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

/// A line's object. A key that is null counts as one that is not there: exporters of tables write every column.
#[derive(Default)]
struct Raw {
    messages: Option<Turns>,
    prompt: Option<Text>,
    completion: Option<Text>,
    text: Option<Text>,
    task: Option<String>,
    unread: Vec<String>,
}

/// The value of a key, whose errors name the key.
fn value<'de, A: MapAccess<'de>, T: Deserialize<'de>>(map: &mut A, key: &str) -> Result<T, A::Error> {
    map.next_value().map_err(|error| A::Error::custom(format!("field '{key}': {error}")))
}

/// Reads over a key that is no field; one that would change what is trained is an error.
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
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Raw;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut raw = Raw::default();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "messages" => raw.messages = map.next_value()?,
                        "prompt" => raw.prompt = value(&mut map, &key)?,
                        "completion" => raw.completion = value(&mut map, &key)?,
                        "text" => raw.text = value(&mut map, &key)?,
                        "task" => raw.task = value(&mut map, &key)?,
                        _ => other(&mut map, &key, &mut raw.unread)?,
                    }
                }
                Ok(raw)
            }
        }
        d.deserialize_map(V)
    }
}

impl Raw {
    fn sample(self, line: usize) -> Result<Sample, String> {
        let mut unread = self.unread;
        let mut untrained = Vec::new();
        let body = match (self.messages, self.prompt, self.completion, self.text) {
            (Some(Turns(turns)), None, None, None) => {
                let left_out =
                    |turn: &Turn| turn.trained == Some(false) && turn.message.role == Role::Assistant;
                untrained.extend((0..turns.len()).filter(|&place| left_out(&turns[place])));
                let of_turns =
                    turns.iter().flat_map(|turn| &turn.unread).map(|key| format!("messages.{key}"));
                unread.extend(of_turns);
                Body::Messages(check_turns(turns)?)
            }
            (None, Some(prompt), Some(completion), None) => {
                no_marker("'prompt'", &prompt.0)?;
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
        Ok(Sample { line, task: self.task, body, untrained, unread })
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
    for (i, turn) in turns.iter().enumerate() {
        let role = turn.message.role;
        if i > 0 && role == Role::System {
            return Err(format!("messages[{i}] has role 'system', which only the first may have"));
        }
        if role != Role::Assistant {
            no_marker(&format!("messages[{i}]"), &turn.message.content)?;
            if turn.trained == Some(true) {
                let what = "is to be trained, but only turns of the assistant are";
                return Err(format!("messages[{i}] of role '{}' {what}", role.name()));
            }
        }
    }
    Ok(turns.into_iter().map(|turn| turn.message).collect())
}

/// Refuses text that stands around an image.
fn no_marker(place: &str, text: &str) -> Result<(), String> {
    match marker(text) {
        Some(found) => Err(format!("{place} holds '{found}': images are not read")),
        None => Ok(()),
    }
}

/// Text that is not a number, and not a list of parts.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Text;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Text, E> {
                Ok(Text(v.to_string()))
            }
            fn visit_string<E: de::Error>(self, v: String) -> Result<Text, E> {
                Ok(Text(v))
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
        d.deserialize_any(V)
    }
}

/// One message.
struct Turn {
    message: Message,
    /// What the message says of its training.
    trained: Option<bool>,
    unread: Vec<String>,
}

impl<'de> Deserialize<'de> for Turn {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Turn;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with 'role' and 'content'")
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
                Ok(Turn { message: Message { role, content }, trained: obeyed.trained(), unread })
            }
        }
        d.deserialize_map(V)
    }
}

struct Turns(Vec<Turn>);

impl<'de> Deserialize<'de> for Turns {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Turns;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of messages")
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Turns, A::Error> {
                let mut turns = Vec::new();
                let place = |at: usize| move |error| A::Error::custom(format!("messages[{at}]: {error}"));
                while let Some(turn) = seq.next_element().map_err(place(turns.len()))? {
                    turns.push(turn);
                }
                Ok(Turns(turns))
            }
        }
        d.deserialize_seq(V)
    }
}

/// A role by its name.
struct RoleName(Role);

impl<'de> Deserialize<'de> for RoleName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let name = Text::deserialize(d)?.0;
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
