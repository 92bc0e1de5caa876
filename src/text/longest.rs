//! The longest string of a JSON value, measured without keeping the value.

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::fmt::Formatter;

/// Bytes of the longest string in a value of JSON, keys included.
pub(super) struct Longest(pub usize);

impl<'de> Deserialize<'de> for Longest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = Longest;
            fn expecting(&self, f: &mut Formatter) -> std::fmt::Result {
                f.write_str("a value")
            }
            fn visit_str<E>(self, text: &str) -> std::result::Result<Longest, E> {
                Ok(Longest(text.len()))
            }
            fn visit_bool<E>(self, _: bool) -> std::result::Result<Longest, E> {
                Ok(Longest(0))
            }
            fn visit_i64<E>(self, _: i64) -> std::result::Result<Longest, E> {
                Ok(Longest(0))
            }
            fn visit_u64<E>(self, _: u64) -> std::result::Result<Longest, E> {
                Ok(Longest(0))
            }
            fn visit_f64<E>(self, _: f64) -> std::result::Result<Longest, E> {
                Ok(Longest(0))
            }
            fn visit_unit<E>(self) -> std::result::Result<Longest, E> {
                Ok(Longest(0))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Longest, A::Error> {
                let mut longest = 0;
                while let Some(Longest(length)) = items.next_element()? {
                    longest = longest.max(length);
                }
                Ok(Longest(longest))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> std::result::Result<Longest, A::Error> {
                let mut longest = 0;
                while let Some((key, Longest(length))) = fields.next_entry::<Cow<str>, _>()? {
                    longest = longest.max(key.len()).max(length);
                }
                Ok(Longest(longest))
            }
        }
        deserializer.deserialize_any(Strings)
    }
}
