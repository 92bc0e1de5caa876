//! Options with several values.

use super::{Kind, OptionValue};
use serde::{Deserialize, Deserializer, Serialize};
use std::str::FromStr;

/// Several values of one option: an array in JSON, `a,b,c` on the command line.
///
/// ```
/// use mixlora::mixture::List;
/// let read = |text: &str| serde_json::from_str::<List<usize>>(text).unwrap();
/// assert_eq!(read("[2, 4]"), List(vec![2, 4]));
/// assert_eq!(read("\"2, 4\""), List(vec![2, 4]));
/// assert_eq!(read("3"), List(vec![3]));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct List<T>(pub Vec<T>);

/// What a list may be written as.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written<T> {
    Values(Vec<T>),
    Text(String),
    One(T),
}

impl<'de, T: Deserialize<'de> + FromStr> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let values = |text: &str| -> Option<Vec<T>> {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            parts.map(|part| part.parse().ok()).collect()
        };
        let wrong = || serde::de::Error::custom("is no list of values of the right type");
        match Written::<T>::deserialize(deserializer).map_err(|_| wrong())? {
            Written::Values(all) => Ok(List(all)),
            Written::One(one) => Ok(List(vec![one])),
            Written::Text(text) => values(&text).map(List).ok_or_else(wrong),
        }
    }
}

impl<T: OptionValue + FromStr> OptionValue for List<T> {
    const KIND: Kind = Kind::List(&T::KIND);
}
