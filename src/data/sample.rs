//! Parsing of one object of a data file.

use super::given::Given;
use super::keys::{marker, other, says_nothing, value, way_out};
use super::message::{Text, Turn, Turns};
use super::mistake::{Mistake, not_json};
use super::{Condition, PictureSource};
use crate::Problem;
use crate::text::{Message, PICTURE, Role};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;
use std::collections::VecDeque;
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
        Sample {
            line,
            element: None,
            task,
            condition: None,
            rejected: None,
            body,
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
pub(super) fn parse(line: usize, bytes: &[u8], folder: &Path) -> Result<Sample, Mistake> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let row = before.iter().filter(|byte| **byte == b'\n').count();
        let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let at = before.len() - start + 1;
        Mistake { row, column: at, what: format!("invalid UTF-8 at byte {at}") }
    })?;
    let raw: Raw = serde_json::from_str(text.trim_end()).map_err(|error| not_json(text, &error))?;
    raw.sample(line, folder).map_err(|what| Mistake { row: 0, column: 1, what })
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
    images: Vec<Given>,
    unread: Vec<String>,
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
    fn turns<E: serde::de::Error>(&mut self, turns: Option<Turns>, key: &str) -> Result<(), E> {
        if self.messages.is_some() && turns.is_some() {
            return Err(E::custom(format!("field '{key}': 'messages' and 'conversations'; one is wanted")));
        }
        self.messages = self.messages.take().or(turns);
        Ok(())
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

    fn sample(self, line: usize, folder: &Path) -> Result<Sample, String> {
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
        Ok(Sample { condition, rejected, pictures, untrained, unread, ..sample })
    }
}

/// The pictures of a sample, as its places are met.
struct Pictures {
    /// Those of its list that no place has taken.
    listed: VecDeque<Given>,
    list: usize,
    taken: Vec<Given>,
    /// Places that take one of the list.
    places: usize,
}

impl Pictures {
    fn new(listed: Vec<Given>) -> Self {
        Pictures { list: listed.len(), listed: listed.into(), taken: Vec::new(), places: 0 }
    }

    /// Meets a place: with a picture of its own, or for the next one of the list.
    fn meet(&mut self, own: Option<Given>) {
        self.places += usize::from(own.is_none());
        self.taken.extend(own.or_else(|| self.listed.pop_front()));
    }

    /// Meets the marks of a text; their number. Without a list of pictures only a question can have any: elsewhere a
    /// mark is text.
    fn text(&mut self, text: &str, asks: bool) -> usize {
        let marks = if asks || self.list > 0 { text.matches(PICTURE).count() } else { 0 };
        (0..marks).for_each(|_| self.meet(None));
        marks
    }

    fn message(&mut self, turn: Turn) -> Message {
        let pictures = match turn.content.parts {
            Some(parts) => {
                let count = parts.len();
                parts.into_iter().for_each(|own| self.meet(own));
                count
            }
            None => self.text(&turn.content.text, turn.role != Role::Assistant),
        };
        Message { pictures, ..Message::new(turn.role, turn.content.text) }
    }

    /// Where its pictures are, if there is a place for each.
    fn sources(self, folder: &Path) -> Result<Vec<PictureSource>, String> {
        let Pictures { list, taken, places, .. } = self;
        if places != list {
            let pictures = |n: usize| if n == 1 { "1 picture".into() } else { format!("{n} pictures") };
            let places = if places == 1 { "1 place".into() } else { format!("{places} places") };
            let cure = format!("each '{PICTURE}' in a message, or part of type 'image', is the place of one");
            return Err(format!("has {places} for {} in 'images': {cure}", pictures(list)));
        }
        if !taken.is_empty() && !cfg!(feature = "images") {
            return Err("has pictures, which this program was built without (feature 'images')".into());
        }
        Ok(taken.into_iter().map(|given| given.source(folder)).collect())
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
        Body::Text(_) => Err("field 'rejected' needs a 'prompt' or 'messages', not 'text'".into()),
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
