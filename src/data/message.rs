//! Messages of a sample, as several tools write them.

use super::given::Given;
use super::keys::{Obeyed, other, value};
use crate::text::{PICTURE, Role};
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::Value;
use std::fmt;

/// A string; other values are refused.
pub(super) struct Text(pub String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Content::deserialize(deserializer)? {
            Content { parts: Some(_), .. } => {
                Err(D::Error::custom("is a list of parts, a string is expected"))
            }
            Content { text, .. } => Ok(Text(text)),
        }
    }
}

/// The content of a message: a string, or a list of parts, of which pictures become marks.
pub(super) struct Content {
    pub text: String,
    /// The pictures of parts, in order; none for the next one of the sample's list. No list where the content was no
    /// list of parts, or one without a picture.
    pub parts: Option<Vec<Option<Given>>>,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ContentVisitor;
        impl<'de> Visitor<'de> for ContentVisitor {
            type Value = Content;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content { text: text.to_string(), parts: None })
            }
            fn visit_string<E: de::Error>(self, text: String) -> Result<Content, E> {
                Ok(Content { text, parts: None })
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Content, A::Error> {
                let mut parts = Vec::new();
                while let Some(part) = seq.next_element::<Value>()? {
                    parts.push(part);
                }
                of_parts(&parts).map_err(A::Error::custom)
            }
        }
        deserializer.deserialize_any(ContentVisitor)
    }
}

/// The content that parts make.
fn of_parts(parts: &[Value]) -> Result<Content, String> {
    let mut text = String::new();
    let mut pictures = Vec::new();
    let mut marked = false;
    for (at, part) in parts.iter().enumerate() {
        let within = |what: String| format!("part {at} {what}");
        match part["type"].as_str() {
            Some("text" | "input_text") => {
                let said = part["text"].as_str().ok_or_else(|| within("has no 'text'".into()))?;
                marked |= said.contains(PICTURE);
                text += said;
            }
            Some(kind @ ("image" | "image_url" | "input_image")) => {
                let given = Given::of(part).map_err(within)?;
                if given.is_none() && kind != "image" {
                    return Err(within(format!("of type '{kind}' names no picture")));
                }
                text += PICTURE;
                pictures.push(given);
            }
            Some(kind) => {
                return Err(format!("has a part of type '{kind}': only text and pictures are read"));
            }
            None => return Err(within("has no 'type'".into())),
        }
    }
    if marked && !pictures.is_empty() {
        return Err(format!("has pictures as parts and '{PICTURE}' in a text beside them; one is wanted"));
    }
    Ok(Content { text, parts: (!pictures.is_empty()).then_some(pictures) })
}

/// One message.
pub(super) struct Turn {
    pub role: Role,
    pub content: Content,
    /// The training flag of the message.
    pub trained: Option<bool>,
    pub unread: Vec<String>,
}

impl Turn {
    /// A turn that says a text, and nothing else.
    pub fn plain(role: Role, text: String) -> Self {
        Turn { role, content: Content { text, parts: None }, trained: None, unread: Vec::new() }
    }
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
                // What LLaVA and ShareGPT call them.
                let mut from = Value::Null;
                let mut said = Value::Null;
                let mut obeyed = Obeyed::default();
                let mut unread = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "role" => role = value::<A, Option<RoleName>>(&mut map, &key)?,
                        "content" => content = value::<A, Option<Content>>(&mut map, &key)?,
                        "from" => from = map.next_value()?,
                        "value" => said = map.next_value()?,
                        _ if Obeyed::KEYS.contains(&key.as_str()) => {
                            let wanted: Value = value(&mut map, &key)?;
                            let set = obeyed.set(&wanted);
                            set.map_err(|what| A::Error::custom(format!("field '{key}': {what}")))?;
                        }
                        _ => other(&mut map, &key, &mut unread)?,
                    }
                }
                let in_field = |key: &'static str| {
                    move |error: serde_json::Error| A::Error::custom(format!("field '{key}': {error}"))
                };
                if role.is_none() && !from.is_null() {
                    let name = match from.take() {
                        Value::String(name) => Value::from(speaker(&name)),
                        other => other,
                    };
                    role = Some(RoleName::deserialize(name).map_err(in_field("from"))?);
                }
                if content.is_none() && !said.is_null() {
                    content = Some(Content::deserialize(said.take()).map_err(in_field("value"))?);
                }
                let both =
                    [("from", from), ("value", said)].into_iter().filter(|(_, value)| !value.is_null());
                unread.extend(both.map(|(key, _)| key.to_string()));
                let role = role.ok_or_else(|| A::Error::custom("field 'role' is missing"))?.0;
                let content = content.ok_or_else(|| A::Error::custom("field 'content' is missing"))?;
                Ok(Turn { role, content, trained: obeyed.trained(), unread })
            }
        }
        deserializer.deserialize_map(TurnVisitor)
    }
}

pub(super) struct Turns(pub Vec<Turn>);

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

/// The role of a speaker of LLaVA and ShareGPT.
fn speaker(name: &str) -> &str {
    match name {
        "human" => "user",
        "gpt" => "assistant",
        other => other,
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
