//! One object of a file of questions: its keys, whatever the shape.

use super::super::mistake::{Mistake, not_json, utf8};
use super::MAX_CHOICES;
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// The keys of all shapes. A null value counts as absent; other keys are not read.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Object {
    pub prompt: Option<String>,
    pub question: Option<String>,
    pub passage: Option<String>,
    pub ctx: Option<String>,
    pub ctx_a: Option<String>,
    pub ctx_b: Option<String>,
    pub activity_label: Option<String>,
    pub subject: Option<String>,
    pub task: Option<String>,
    pub choices: Option<Choices>,
    pub endings: Option<Texts>,
    pub answer: Option<Word>,
    pub label: Option<Word>,
    #[serde(rename = "answerKey")]
    pub answer_key: Option<Word>,
}

impl Object {
    pub fn parse(bytes: &[u8]) -> Result<Self, Mistake> {
        let text = utf8(bytes)?;
        let mut json = serde_json::Deserializer::from_str(text.trim_end());
        let parsed = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let path = error.path().to_string();
            let mistake = not_json(text, error.inner());
            let named = error.inner().is_data() && path != ".";
            let what = if named { format!("{path}: {}", mistake.what) } else { mistake.what };
            Mistake { what, ..mistake }
        })?;
        json.end().map_err(|error| not_json(text, &error))?;
        Ok(parsed)
    }

    /// Which keys an object has; none where it is no object.
    pub fn keys(bytes: &[u8]) -> Option<Keys> {
        serde_json::from_slice(bytes).ok()
    }
}

/// Whether keys that tell kinds of data apart are there.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Keys {
    choices: Option<IgnoredAny>,
    endings: Option<IgnoredAny>,
    passage: Option<IgnoredAny>,
    question: Option<IgnoredAny>,
    messages: Option<IgnoredAny>,
    conversations: Option<IgnoredAny>,
    completion: Option<IgnoredAny>,
    output: Option<IgnoredAny>,
    text: Option<IgnoredAny>,
}

impl Keys {
    /// Whether there are answers to choose from, and no answer to say.
    pub fn asks_to_choose(&self) -> bool {
        let said = [&self.messages, &self.conversations, &self.completion, &self.output, &self.text];
        let chosen = self.choices.is_some() || self.endings.is_some();
        said.iter().all(|key| key.is_none())
            && (chosen || (self.passage.is_some() && self.question.is_some()))
    }
}

/// A text, a number or a truth value, for answers that are written in each of these ways.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Word {
    Text(String),
    Number(i64),
    Truth(bool),
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Word::Text(text) => f.write_str(text),
            Word::Number(number) => write!(f, "{number}"),
            Word::Truth(truth) => write!(f, "{truth}"),
        }
    }
}

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct One;
        impl Visitor<'_> for One {
            type Value = Word;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, an integer, true or false")
            }
            fn visit_bool<E: de::Error>(self, truth: bool) -> Result<Word, E> {
                Ok(Word::Truth(truth))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Word, E> {
                Ok(Word::Number(number))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Word, E> {
                Ok(Word::Number(i64::try_from(number).unwrap_or(i64::MAX)))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Word, E> {
                Ok(Word::Text(text.into()))
            }
        }
        json.deserialize_any(One)
    }
}

/// The elements of a list, few enough to choose from.
fn few<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(mut list: A) -> Result<Vec<T>, A::Error> {
    let mut few = Vec::new();
    while let Some(one) = list.next_element()? {
        if few.len() == MAX_CHOICES {
            return Err(de::Error::custom(format!("has more than {MAX_CHOICES} elements")));
        }
        few.push(one);
    }
    Ok(few)
}

/// A short list.
struct Few<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Few<T> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct List<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
            type Value = Few<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Few<T>, A::Error> {
                few(list).map(Few)
            }
        }
        json.deserialize_seq(List(std::marker::PhantomData))
    }
}

/// A short list of texts.
pub(super) struct Texts(pub Vec<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        Few::deserialize(json).map(|Few(texts)| Texts(texts))
    }
}

/// What is chosen from.
pub(super) enum Choices {
    List(Vec<String>),
    /// Each with a label, in two lists.
    Labelled {
        text: Vec<String>,
        label: Vec<Word>,
    },
}

impl<'de> Deserialize<'de> for Choices {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Choices;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of texts, or an object of two lists, text and label")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Choices, A::Error> {
                few(list).map(Choices::List)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Choices, A::Error> {
                let mut text = None;
                let mut label = None;
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "text" => text = Some(map.next_value::<Few<String>>()?.0),
                        "label" => label = Some(map.next_value::<Few<Word>>()?.0),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                match (text, label) {
                    (Some(text), Some(label)) => Ok(Choices::Labelled { text, label }),
                    (None, _) => Err(de::Error::custom("has no list 'text'")),
                    (_, None) => Err(de::Error::custom("has no list 'label'")),
                }
            }
        }
        json.deserialize_any(Either)
    }
}
