//! Samples from JSONL files: one object a line, with `messages`, `prompt` and `completion`, or `text`.

use crate::error::Problem;
use crate::text::{Message, Role};
use crate::{Error, Result};
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, de};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Longest line that is read, in bytes.
pub const MAX_LINE: u64 = 64 << 20;
/// Problems of one file that are listed; the rest is counted.
pub const MAX_PROBLEMS: usize = 20;

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
pub struct Sample {
    /// From 1.
    pub line: usize,
    /// An optional label; statistics are kept per label.
    pub task: Option<String>,
    pub body: Body,
}

/// Collects problems up to the limit.
#[derive(Default)]
pub(super) struct Problems {
    list: Vec<Problem>,
    more: usize,
}

impl Problems {
    pub(super) fn add(&mut self, line: usize, column: usize, what: impl Into<String>) {
        if self.list.len() < MAX_PROBLEMS {
            self.list.push(Problem { line, column, what: what.into() });
        } else {
            self.more += 1;
        }
    }
    pub(super) fn result<T>(self, path: &Path, value: T) -> Result<T> {
        match self.list.is_empty() {
            true => Ok(value),
            false => Err(Error::Data { path: path.into(), problems: self.list, more: self.more }),
        }
    }
}

/// Reads the samples of a file.
///
/// # Errors
/// All places that cannot be used are listed at once, up to [`MAX_PROBLEMS`]. A file without samples is an error.
pub fn read_samples(path: &Path) -> Result<Vec<Sample>> {
    let fail = |e: std::io::Error| Error::file(path, format!("cannot be read: {e}"));
    let mut reader = BufReader::new(File::open(path).map_err(fail)?);
    let mut problems = Problems::default();
    let mut samples = Vec::new();
    let (mut bytes, mut number) = (Vec::new(), 0);
    let mut first = true;
    loop {
        bytes.clear();
        number += 1;
        let read = (&mut reader).take(MAX_LINE + 1).read_until(b'\n', &mut bytes).map_err(fail)?;
        if read == 0 {
            break;
        }
        if read as u64 > MAX_LINE && bytes.last() != Some(&b'\n') {
            problems.add(number, 0, format!("the line is longer than {} MiB", MAX_LINE >> 20));
            break;
        }
        let skipped = if number == 1 && bytes.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        let line = &bytes[skipped..];
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        if first && let Some(what) = not_lines(path, line) {
            problems.add(0, 0, what);
            break;
        }
        first = false;
        match parse(line) {
            Ok((task, body)) => samples.push(Sample { line: number, task, body }),
            Err((column, what)) => problems.add(number, column + skipped, what),
        }
    }
    if samples.is_empty() && problems.list.is_empty() {
        let what = if number == 1 { "the file is empty" } else { "the file holds no sample" };
        problems.add(0, 0, what);
    }
    problems.result(path, samples)
}

/// What a file is, if it is JSON in another layout; told from its first line.
fn not_lines(path: &Path, line: &[u8]) -> Option<String> {
    let cure = "write one object a line, for example with `jq -c";
    if line.trim_ascii_start().starts_with(b"[") {
        return Some(format!("is a JSON array, not JSONL; {cure} '.[]'`"));
    }
    let cut = serde_json::from_slice::<IgnoredAny>(line).is_err_and(|e| e.is_eof());
    if !cut || !line.ends_with(b"\n") {
        return None;
    }
    // One value that goes on over several lines.
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_LINE).read_to_end(&mut bytes).ok()?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let value = serde_json::Deserializer::from_slice(bytes).into_iter::<IgnoredAny>().next()?;
    value.is_ok().then(|| format!("is pretty-printed JSON, not JSONL; {cure} .`"))
}

/// The sample of one line, or the column (from 1) and what is wrong.
fn parse(line: &[u8]) -> std::result::Result<(Option<String>, Body), (usize, String)> {
    let text = std::str::from_utf8(line).map_err(|e| {
        let at = e.valid_up_to() + 1;
        (at, format!("invalid UTF-8 at byte {at}"))
    })?;
    let raw: Raw = serde_json::from_str(text.trim_end()).map_err(|e| {
        let text = e.to_string();
        // The place is told apart from the text.
        let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
        (e.column().max(1), what.to_string())
    })?;
    raw.body().map_err(|what| (1, what))
}

/// A line's object. Other keys are left alone.
#[derive(Default)]
struct Raw {
    messages: Option<Turns>,
    prompt: Option<Text>,
    completion: Option<Text>,
    text: Option<Text>,
    task: Option<String>,
}

/// The value of a key, whose errors name the key.
fn value<'de, A: MapAccess<'de>, T: Deserialize<'de>>(
    map: &mut A,
    key: &str,
) -> std::result::Result<T, A::Error> {
    map.next_value().map_err(|e| A::Error::custom(format!("field '{key}': {e}")))
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Raw;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Raw, A::Error> {
                let mut raw = Raw::default();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "messages" => raw.messages = Some(map.next_value()?),
                        "prompt" => raw.prompt = Some(value(&mut map, &key)?),
                        "completion" => raw.completion = Some(value(&mut map, &key)?),
                        "text" => raw.text = Some(value(&mut map, &key)?),
                        "task" => raw.task = value(&mut map, &key)?,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(raw)
            }
        }
        d.deserialize_map(V)
    }
}

impl Raw {
    fn body(self) -> std::result::Result<(Option<String>, Body), String> {
        let body = match (self.messages, self.prompt, self.completion, self.text) {
            (Some(turns), None, None, None) => Body::Messages(check_turns(turns.0)?),
            (None, Some(prompt), Some(completion), None) => {
                Body::Completion { prompt: prompt.0, completion: completion.0 }
            }
            (None, None, None, Some(text)) => Body::Text(text.0),
            (None, Some(_), None, None) => return Err("field 'completion' is missing beside 'prompt'".into()),
            (None, None, Some(_), None) => return Err("field 'prompt' is missing beside 'completion'".into()),
            (None, None, None, None) => {
                return Err("field 'messages' is missing (or 'prompt' and 'completion', or 'text')".into());
            }
            _ => {
                return Err(
                    "more than one of 'messages', 'prompt' with 'completion', and 'text'; one is wanted"
                        .into(),
                );
            }
        };
        Ok((self.task, body))
    }
}

fn check_turns(turns: Vec<Message>) -> std::result::Result<Vec<Message>, String> {
    match turns.first() {
        None => Err("'messages' is empty".into()),
        Some(first) if first.role == Role::Assistant => {
            Err("messages[0] is the assistant's: nothing comes before it".into())
        }
        Some(_) => match turns.iter().skip(1).position(|m| m.role == Role::System) {
            Some(i) => Err(format!("messages[{}] has role 'system', which only the first may have", i + 1)),
            None => Ok(turns),
        },
    }
}

/// Text that is not null, not a number, and not a list of parts.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Text;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> std::result::Result<Text, E> {
                Ok(Text(v.to_string()))
            }
            fn visit_string<E: de::Error>(self, v: String) -> std::result::Result<Text, E> {
                Ok(Text(v))
            }
            fn visit_unit<E: de::Error>(self) -> std::result::Result<Text, E> {
                Err(E::custom("is null, a string is expected"))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, _: A) -> std::result::Result<Text, A::Error> {
                Err(A::Error::custom("is a list of parts, a string is expected"))
            }
        }
        d.deserialize_any(V)
    }
}

/// One message, told apart from other errors by its place in the list.
struct Turn(Message);

impl<'de> Deserialize<'de> for Turn {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Turn;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with 'role' and 'content'")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Turn, A::Error> {
                let (mut role, mut content) = (None, None);
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "role" => {
                            let name = value::<A, Text>(&mut map, &key)?.0;
                            let found = Role::ALL.into_iter().find(|r| r.name() == name);
                            role = Some(found.ok_or_else(|| {
                                A::Error::custom(format!(
                                    "role '{name}' is not one of system, user, assistant"
                                ))
                            })?);
                        }
                        "content" => content = Some(value::<A, Text>(&mut map, &key)?),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                let role = role.ok_or_else(|| A::Error::custom("field 'role' is missing"))?;
                let content = content.ok_or_else(|| A::Error::custom("field 'content' is missing"))?;
                Ok(Turn(Message { role, content: content.0 }))
            }
        }
        d.deserialize_map(V)
    }
}

struct Turns(Vec<Message>);

impl<'de> Deserialize<'de> for Turns {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Turns;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of messages")
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Turns, A::Error> {
                let mut turns = Vec::new();
                while let Some(Turn(message)) = seq.next_element()? {
                    turns.push(message);
                }
                Ok(Turns(turns))
            }
        }
        d.deserialize_seq(V)
    }
}

/// The files of a data set, each if it is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DataFiles {
    pub train: Option<PathBuf>,
    pub valid: Option<PathBuf>,
    pub test: Option<PathBuf>,
}

impl DataFiles {
    /// A folder with `train.jsonl`, `valid.jsonl`, `test.jsonl`, of which one at least is there; or one file, which
    /// then is the training data.
    pub fn find(path: &Path) -> Result<Self> {
        if path.is_file() {
            return Ok(DataFiles { train: Some(path.into()), ..Self::default() });
        }
        if !path.is_dir() {
            return Err(Error::file(path, "there is no such file or folder"));
        }
        let file = |name: &str| Some(path.join(name)).filter(|p| p.is_file());
        let found =
            DataFiles { train: file("train.jsonl"), valid: file("valid.jsonl"), test: file("test.jsonl") };
        if found == Self::default() {
            return Err(Error::file(path, "holds no train.jsonl, valid.jsonl or test.jsonl"));
        }
        Ok(found)
    }

    /// Those that are there, in this order: train, valid, test.
    pub fn all(&self) -> impl Iterator<Item = &Path> {
        [&self.train, &self.valid, &self.test].into_iter().flatten().map(PathBuf::as_path)
    }
}
