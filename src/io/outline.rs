//! Checks of JSON before a parser copies it: the size of lists and objects, and unique names.

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

/// The largest number of entries of an object. Models have a few thousand tensors.
const MAX_ENTRIES: usize = 50_000;
/// The largest number of items of a list. Lists in headers are shapes and pairs of offsets.
const MAX_ITEMS: usize = 8;

/// An object with unique keys.
pub(super) struct Unique<V>(pub BTreeMap<String, V>);

fn entries<'de, V: Deserialize<'de>, A: MapAccess<'de>>(mut map: A) -> Result<BTreeMap<String, V>, A::Error> {
    let mut all = BTreeMap::new();
    while let Some((key, value)) = map.next_entry::<String, V>()? {
        if all.contains_key(&key) {
            return Err(A::Error::custom(format!("'{key}' occurs twice")));
        }
        if all.len() == MAX_ENTRIES {
            return Err(A::Error::custom(format!("more than {MAX_ENTRIES} entries")));
        }
        all.insert(key, value);
    }
    Ok(all)
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Object<V> {
            type Value = Unique<V>;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Unique<V>, A::Error> {
                entries(map).map(Unique)
            }
        }
        deserializer.deserialize_map(Object(PhantomData))
    }
}

/// Any value, checked but not stored: objects and lists are short, and names occur once.
pub(super) struct Outline;

impl<'de> Deserialize<'de> for Outline {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Outline;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a value")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Outline, A::Error> {
                entries::<Outline, A>(map).map(|_| Outline)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Outline, A::Error> {
                let mut items = 0;
                while list.next_element::<Outline>()?.is_some() {
                    items += 1;
                    if items > MAX_ITEMS {
                        return Err(A::Error::custom(format!("a list of more than {MAX_ITEMS} items")));
                    }
                }
                Ok(Outline)
            }
            fn visit_bool<E>(self, _: bool) -> Result<Outline, E> {
                Ok(Outline)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Outline, E> {
                Ok(Outline)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Outline, E> {
                Ok(Outline)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Outline, E> {
                Ok(Outline)
            }
            fn visit_str<E>(self, _: &str) -> Result<Outline, E> {
                Ok(Outline)
            }
            fn visit_unit<E>(self) -> Result<Outline, E> {
                Ok(Outline)
            }
        }
        deserializer.deserialize_any(Any)
    }
}
