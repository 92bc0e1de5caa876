//! Parsing of one object of a data file.

use super::alpaca::Alpaca;
use super::columns::Columns;
use super::given::Given;
use super::keys::{marker, other, says_nothing, value, way_out};
use super::message::{Text, Turn, Turns};
use super::mistake::{Mistake, not_json, utf8};
use super::places::Pictures;
use super::{Condition, PictureSource};
use crate::Problem;
use crate::text::{Message, PICTURE, Role};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;
use std::path::Path;

/// The content of a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A conversation.
    Messages(Vec<Message>),
    /// A prompt with its completion.
    Completion { prompt: String, completion: String },
    /// Plain text.
    Text(String),
    /// Plain text of any length: each of its tokens is trained, in as many examples as it takes.
    Document(String),
}

impl Body {
    /// The name of its keys in a file.
    pub fn kind(&self) -> &'static str {
        match self {
            Body::Messages(_) => "messages",
            Body::Completion { .. } => "prompt and completion",
            Body::Text(_) => "text",
            Body::Document(_) => "plain text",
        }
    }
}

/// The keys that a sample was written with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Written {
    Messages,
    /// `conversations`, as ShareGPT and LLaVA write them.
    ShareGpt,
    /// `instruction`, `input` and `output`.
    Alpaca,
    /// `prompt` and `completion`.
    Completion,
    Text,
}

impl Written {
    pub fn name(self) -> &'static str {
        match self {
            Written::Messages => "messages",
            Written::ShareGpt => "conversations (ShareGPT)",
            Written::Alpaca => "instruction and output (Alpaca)",
            Written::Completion => "prompt and completion",
            Written::Text => "text",
        }
    }
}

/// One object of a data file.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Sample {
    /// The number of the line where it begins, from 1.
    pub line: usize,
    /// Its number in an array, from 1; none in a file of lines.
    pub element: Option<usize>,
    /// An optional label; statistics are kept per label.
    pub task: Option<String>,
    /// What choices depend on besides the text, for methods that choose by it.
    pub condition: Option<Condition>,
    /// The same with a wrong answer, for methods that learn from both.
    pub rejected: Option<Body>,
    pub body: Body,
    pub written: Written,
    /// Its pictures, in the order of their places, each of which is a [`PICTURE`] in the body.
    pub pictures: Vec<PictureSource>,
    /// Indices of the assistant's messages that the sample excludes from training.
    pub untrained: Vec<usize>,
    /// Keys that are not read; those of a message begin with `messages.`.
    pub unread: Vec<String>,
}

impl Sample {
    /// A sample without excluded messages.
    pub fn new(line: usize, task: Option<String>, body: Body) -> Self {
        let written = match &body {
            Body::Messages(_) => Written::Messages,
            Body::Completion { .. } => Written::Completion,
            Body::Text(_) | Body::Document(_) => Written::Text,
        };
        Sample {
            line,
            element: None,
            task,
            condition: None,
            rejected: None,
            body,
            written,
            pictures: Vec::new(),
            untrained: Vec::new(),
            unread: Vec::new(),
        }
    }

    /// A problem of the sample.
    pub fn problem(&self, what: impl std::fmt::Display) -> Problem {
        let what = match self.element {
            Some(element) => format!("element {element}: {what}"),
            None => what.to_string(),
        };
        Problem { line: self.line, column: 0, what }
    }
}

/// Parses an object that begins in a line. Paths of pictures are of `folder`.
pub(super) fn parse(line: usize, bytes: &[u8], folder: &Path, columns: &Columns) -> Result<Sample, Mistake> {
    let text = utf8(bytes)?;
    let mut json = serde_json::Deserializer::from_str(text.trim_end());
    let raw = RawSeed(columns).deserialize(&mut json);
    let raw = raw.and_then(|raw| json.end().map(|()| raw)).map_err(|error| not_json(text, &error))?;
    raw.sample(line, folder).map_err(|what| Mistake { row: 0, column: 1, what })
}

/// The sample of an object of a row, which has keys of samples already.
pub(super) fn of_object(object: Map<String, Value>, line: usize, folder: &Path) -> Result<Sample, String> {
    let raw = RawSeed(&Columns::default()).deserialize(Value::Object(object));
    raw.map_err(|error| error.to_string())?.sample(line, folder)
}

/// The object of a line. A null value counts as absent, because exporters of tables write every column.
#[derive(Default)]
struct Raw {
    messages: Option<Turns>,
    prompt: Option<Text>,
    completion: Option<Text>,
    rejected: Option<Answer>,
    text: Option<Text>,
    alpaca: Alpaca,
    system: Option<Text>,
    task: Option<String>,
    condition: Option<Condition>,
    images: Vec<Given>,
    unread: Vec<String>,
    /// Its messages are `conversations`.
    share_gpt: bool,
}

/// Reads an object whose keys may have other names.
struct RawSeed<'a>(&'a Columns);

impl<'de> DeserializeSeed<'de> for RawSeed<'_> {
    type Value = Raw;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        struct RawVisitor<'a>(&'a Columns);
        impl<'de> Visitor<'de> for RawVisitor<'_> {
            type Value = Raw;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut raw = Raw::default();
                while let Some(name) = map.next_key::<String>()? {
                    let Some(key) = self.0.key(&name).map(String::from) else {
                        map.next_value::<IgnoredAny>()?;
                        raw.unread.push(name);
                        continue;
                    };
                    match key.as_str() {
                        "messages" | "conversations" => raw.turns(map.next_value()?, &key)?,
                        "prompt" => raw.prompt = value(&mut map, &key)?,
                        "completion" => raw.completion = value(&mut map, &key)?,
                        "chosen" => raw.completion = value::<_, Option<Answer>>(&mut map, &key)?.map(|a| a.0),
                        "rejected" => raw.rejected = value(&mut map, &key)?,
                        "text" => raw.text = value(&mut map, &key)?,
                        "task" => raw.task = value::<_, Option<String>>(&mut map, &key)?.or(raw.task),
                        "task_name" => raw.task = raw.task.or(value(&mut map, &key)?),
                        "image" | "images" => raw.pictures(value(&mut map, &key)?, &key)?,
                        "condition" => raw.condition = value(&mut map, &key)?,
                        "instruction" => raw.alpaca.instruction = value(&mut map, &key)?,
                        "input" => raw.alpaca.input = value(&mut map, &key)?,
                        "output" => raw.alpaca.output = value(&mut map, &key)?,
                        "history" => raw.alpaca.history = value(&mut map, &key)?,
                        "system" => raw.system = value(&mut map, &key)?,
                        _ => other(&mut map, &key, &mut raw.unread)?,
                    }
                }
                Ok(raw)
            }
        }
        deserializer.deserialize_map(RawVisitor(self.0))
    }
}

impl Raw {
    fn turns<E: serde::de::Error>(&mut self, turns: Option<Turns>, key: &str) -> Result<(), E> {
        if self.messages.is_some() && turns.is_some() {
            return Err(E::custom(format!("field '{key}': 'messages' and 'conversations'; one is wanted")));
        }
        self.share_gpt |= turns.is_some() && key == "conversations";
        self.messages = self.messages.take().or(turns);
        Ok(())
    }

    /// Makes messages of an instruction, and puts a system text in front of them.
    fn join(&mut self) -> Result<Written, String> {
        let other = self.messages.is_some() || self.prompt.is_some() || self.text.is_some();
        let mut alpaca = std::mem::take(&mut self.alpaca);
        let mut written = if self.share_gpt { Written::ShareGpt } else { Written::Messages };
        if other || alpaca.instruction.is_none() {
            self.unread.extend(alpaca.keys());
        } else {
            // The chosen answer of a pair.
            alpaca.output = alpaca.output.or(self.completion.take());
            self.messages = Some(alpaca.turns()?);
            written = Written::Alpaca;
        }
        if let Some(Text(system)) = self.system.take().filter(|system| !system.0.is_empty()) {
            let Some(Turns(turns)) = &mut self.messages else {
                return Err("field 'system' is beside no messages: write it into 'prompt' or 'text'".into());
            };
            if turns.first().is_some_and(|turn| turn.role == Role::System) {
                return Err("field 'system' is beside a message of role 'system'; one is wanted".into());
            }
            turns.insert(0, Turn::plain(Role::System, system));
        }
        Ok(written)
    }

    fn pictures<E: serde::de::Error>(&mut self, given: Value, key: &str) -> Result<(), E> {
        if says_nothing(&given) {
            return Ok(());
        }
        if !self.images.is_empty() {
            return Err(E::custom(format!("field '{key}': 'image' and 'images'; one is wanted")));
        }
        self.images = Given::list(&given).map_err(|what| E::custom(format!("field '{key}' {what}")))?;
        Ok(())
    }

    fn sample(mut self, line: usize, folder: &Path) -> Result<Sample, String> {
        let of_messages = self.join()?;
        let mut unread = self.unread;
        let mut untrained = Vec::new();
        let mut pictures = Pictures::new(self.images);
        let body = match (self.messages, self.prompt, self.completion, self.text) {
            (Some(Turns(turns)), None, None, None) => {
                let excluded = |turn: &Turn| turn.trained == Some(false) && turn.role == Role::Assistant;
                untrained.extend((0..turns.len()).filter(|&index| excluded(&turns[index])));
                let of_turns =
                    turns.iter().flat_map(|turn| &turn.unread).map(|key| format!("messages.{key}"));
                unread.extend(of_turns);
                check_turns(&turns)?;
                Body::Messages(turns.into_iter().map(|turn| pictures.message(turn)).collect())
            }
            (None, Some(prompt), Some(completion), None) => {
                refuse_marker("'prompt'", &prompt.0)?;
                pictures.text(&prompt.0, true);
                pictures.text(&completion.0, false);
                Body::Completion { prompt: prompt.0, completion: completion.0 }
            }
            (None, None, None, Some(text)) => {
                pictures.text(&text.0, false);
                Body::Text(text.0)
            }
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
        let pictures = pictures.sources(folder)?;
        unread.sort_unstable();
        unread.dedup();
        let rejected = self.rejected.map(|Answer(answer)| {
            if !pictures.is_empty() && answer.0.contains(PICTURE) {
                return Err(format!("field 'rejected' holds '{PICTURE}': pictures stand in the prompt"));
            }
            with_answer(&body, answer.0)
        });
        let rejected = rejected.transpose()?;
        match &self.condition {
            Some(Condition::Text(text)) if text.trim().is_empty() => {
                return Err("field 'condition' is empty".into());
            }
            Some(Condition::Vector(v)) if v.is_empty() || v.iter().any(|v| !v.is_finite()) => {
                return Err("field 'condition' has no numbers, or one that is too large".into());
            }
            _ => {}
        }
        let condition = self.condition;
        let sample = Sample::new(line, self.task, body);
        let written = if matches!(sample.body, Body::Messages(_)) { of_messages } else { sample.written };
        Ok(Sample { written, condition, rejected, pictures, untrained, unread, ..sample })
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
                if last.pictures > 0 {
                    return Err("field 'rejected' is beside an answer with pictures".into());
                }
                last.content = answer;
                Ok(Body::Messages(messages))
            }
            _ => Err("field 'rejected' needs messages that end with the assistant's".into()),
        },
        Body::Text(_) | Body::Document(_) => {
            Err("field 'rejected' needs a 'prompt' or 'messages', not 'text'".into())
        }
    }
}

fn check_turns(turns: &[Turn]) -> Result<(), String> {
    match turns.first() {
        None => return Err("'messages' is empty".into()),
        Some(first) if first.role == Role::Assistant => {
            return Err("messages[0] is the assistant's: nothing comes before it".into());
        }
        Some(_) => {}
    }
    for (index, turn) in turns.iter().enumerate() {
        let role = turn.role;
        if index > 0 && role == Role::System {
            return Err(format!("messages[{index}] has role 'system', which only the first may have"));
        }
        if role != Role::Assistant {
            refuse_marker(&format!("messages[{index}]"), &turn.content.text)?;
            if turn.trained == Some(true) {
                let what = "is to be trained, but only turns of the assistant are";
                return Err(format!("messages[{index}] of role '{}' {what}", role.name()));
            }
        }
    }
    Ok(())
}

/// Refuses text with a mark that other tools have for pictures.
fn refuse_marker(place: &str, text: &str) -> Result<(), String> {
    match marker(text) {
        Some(found) => Err(format!("{place} holds '{found}': the place of a picture is '{PICTURE}' here")),
        None => Ok(()),
    }
}
