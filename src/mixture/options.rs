//! Options: declared once with type, default, range, one line of text and a source. Everything else reads that
//! declaration: files, the command line, the generated documents.

use crate::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::fmt;
use std::ops::{Bound, RangeBounds};

/// Options by name, as files have them.
pub type Tree = Map<String, Value>;

/// What kind of value an option takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Integer,
    Number,
    Flag,
    Text,
    /// Several values of a kind: in JSON an array, on the command line with commas between them.
    List(&'static Kind),
    /// One of these words.
    Word(&'static [&'static str]),
}

/// A type that options can have.
pub trait OptionValue: Serialize + DeserializeOwned {
    const KIND: Kind;
    /// Whether it may be absent (`null`).
    const OPTIONAL: bool = false;
    /// The number that must lie in the range; none where there is no number.
    fn number(&self) -> Option<f64> {
        None
    }
}

impl OptionValue for usize {
    const KIND: Kind = Kind::Integer;
    fn number(&self) -> Option<f64> {
        Some(*self as f64)
    }
}

impl OptionValue for f32 {
    const KIND: Kind = Kind::Number;
    fn number(&self) -> Option<f64> {
        Some(*self as f64)
    }
}

impl OptionValue for bool {
    const KIND: Kind = Kind::Flag;
}

impl OptionValue for String {
    const KIND: Kind = Kind::Text;
}

impl<T: OptionValue> OptionValue for Option<T> {
    const KIND: Kind = T::KIND;
    const OPTIONAL: bool = true;
    fn number(&self) -> Option<f64> {
        self.as_ref().and_then(T::number)
    }
}

/// The numbers that an option may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range(Bound<f64>, Bound<f64>);

impl Range {
    /// A range as Rust writes it: `1.0..`, `0.0..=1.0`, or a pair of bounds.
    pub fn new(range: impl RangeBounds<f64>) -> Self {
        Range(range.start_bound().cloned(), range.end_bound().cloned())
    }
    /// The range between two bounds.
    pub const fn between(low: Bound<f64>, high: Bound<f64>) -> Self {
        Range(low, high)
    }
    /// Where it begins and ends.
    pub const fn bounds(&self) -> [Bound<f64>; 2] {
        [self.0, self.1]
    }
    /// Whether a number lies in it. NaN and the infinities never do.
    pub fn contains(&self, v: f64) -> bool {
        v.is_finite() && (self.0, self.1).contains(&v)
    }
    /// Whether every finite number lies in it.
    pub fn is_full(&self) -> bool {
        matches!((self.0, self.1), (Bound::Unbounded, Bound::Unbounded))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0, self.1) {
            (Bound::Unbounded, Bound::Unbounded) => write!(formatter, "a number"),
            (Bound::Included(low), Bound::Unbounded) => write!(formatter, "at least {low}"),
            (Bound::Excluded(low), Bound::Unbounded) => write!(formatter, "above {low}"),
            (low, high) => {
                let start = match low {
                    Bound::Included(v) => format!("[{v}"),
                    Bound::Excluded(v) => format!("({v}"),
                    Bound::Unbounded => "(-inf".into(),
                };
                match high {
                    Bound::Included(v) => write!(formatter, "in {start}, {v}]"),
                    Bound::Excluded(v) => write!(formatter, "in {start}, {v})"),
                    Bound::Unbounded => write!(formatter, "in {start}, inf)"),
                }
            }
        }
    }
}

/// One option with its present value.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    pub name: &'static str,
    pub kind: Kind,
    /// Whether it may be absent (`null`).
    pub optional: bool,
    pub range: Range,
    /// What it is, in one line.
    pub doc: String,
    /// Where it comes from.
    pub source: &'static str,
    pub value: Value,
    number: Option<f64>,
}

impl Field {
    /// Describes an option. `options!` calls this.
    pub fn new<T: OptionValue>(
        name: &'static str,
        value: &T,
        range: Range,
        doc: &str,
        source: &'static str,
    ) -> Self {
        Field {
            name,
            kind: T::KIND,
            optional: T::OPTIONAL,
            range,
            doc: doc.split_whitespace().collect::<Vec<_>>().join(" "),
            source,
            value: as_written(value),
            number: value.number(),
        }
    }

    /// Refuses a number outside of the range.
    ///
    /// # Errors
    /// The number is outside; the error names the range.
    pub fn check(&self) -> Result<()> {
        match self.number {
            Some(v) if !self.range.contains(v) => {
                // An f32 in the error is written as it was given.
                let given = if self.kind == Kind::Number { (v as f32).to_string() } else { v.to_string() };
                Err(Error::config(self.name, given, self.range))
            }
            _ => Ok(()),
        }
    }

    /// The type as people write it: `integer`, `number or null`, `r | none`.
    pub fn type_text(&self) -> String {
        let kind = match self.kind {
            Kind::Integer => "integer".into(),
            Kind::Number => "number".into(),
            Kind::Flag => "true or false".into(),
            Kind::Text => "text".into(),
            Kind::List(_) => "list".into(),
            Kind::Word(words) => words.join(" | "),
        };
        if self.optional { format!("{kind}, or absent") } else { kind }
    }
}

/// A value as JSON, by way of text: an f32 such as 0.01 stays as it is written.
fn as_written(value: &impl Serialize) -> Value {
    let text = serde_json::to_string(value);
    text.ok().and_then(|t| serde_json::from_str(&t).ok()).unwrap_or(Value::Null)
}

/// A struct of options, declared with [`options!`](crate::options).
pub trait Options {
    /// All options with their present values; those of shared groups first.
    fn fields(&self) -> Vec<Field>;
    /// Takes the options that a tree has, and leaves the others as they are. Unknown names are passed over.
    ///
    /// # Errors
    /// A value has the wrong type; the error names the option.
    fn read(&mut self, tree: &Tree) -> Result<()>;
}

/// Takes one option from a tree. `options!` calls this.
///
/// # Errors
/// The value has the wrong type.
pub fn read_option<T: OptionValue>(tree: &Tree, name: &str, into: &mut T) -> Result<()> {
    if let Some(value) = tree.get(name) {
        // A reference to a Value deserializes without a copy, with the same messages as from text.
        *into = T::deserialize(value).map_err(|error| Error::refused(name, error.to_string()))?;
    }
    Ok(())
}

/// Declares a struct of options.
///
/// Each option has a line of text, a name, a type, a default and, if needed, a range and a source. Shared groups come
/// in as members, with other defaults where a method has its own. From the declaration come [`Default`] and
/// [`Options`](crate::mixture::Options): reading and writing by name, checks, and the documents.
///
/// ```
/// use mixlora::mixture::{Lora, Options, TopK};
/// mixlora::options! {
///     /// Options of an example.
///     pub struct Example use [lora: Lora { r: 8 }, choice: TopK] {
///         /// Least score of a chosen rank.
///         floor: f32 = 0.5, in 0.0..=1.0, "this example";
///     }
/// }
/// let names: Vec<&str> = Example::default().fields().iter().map(|f| f.name).collect();
/// assert_eq!(names, ["r", "lora_alpha", "lora_dropout", "top_k", "floor"]);
/// ```
#[macro_export]
macro_rules! options {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident $(use [$($group:ident: $Group:ident $({ $($set:tt)* })?),* $(,)?])? {
            $(
                $(#[doc = $doc:literal])+
                $field:ident: $ty:ty = $default:expr $(, in $range:expr)? $(, $source:literal)?;
            )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        $vis struct $name {
            $($(#[doc = "A shared group of options."] pub $group: $Group,)*)?
            $($(#[doc = $doc])+ pub $field: $ty,)*
        }
        impl Default for $name {
            #[allow(clippy::needless_update)]
            fn default() -> Self {
                $name {
                    $($($group: $Group { $($($set)*,)? ..$Group::default() },)*)?
                    $($field: $default,)*
                }
            }
        }
        impl $crate::mixture::Options for $name {
            #[allow(unused_mut, clippy::vec_init_then_push)]
            fn fields(&self) -> Vec<$crate::mixture::Field> {
                let mut all = Vec::new();
                $($(all.extend($crate::mixture::Options::fields(&self.$group));)*)?
                $(all.push($crate::mixture::Field::new(
                    stringify!($field),
                    &self.$field,
                    $crate::options!(@range $($range)?),
                    concat!($($doc),+),
                    $crate::options!(@source $($source)?),
                ));)*
                all
            }
            #[allow(unused_variables)]
            fn read(&mut self, tree: &$crate::mixture::Tree) -> $crate::Result<()> {
                $($($crate::mixture::Options::read(&mut self.$group, tree)?;)*)?
                $($crate::mixture::read_option(tree, stringify!($field), &mut self.$field)?;)*
                Ok(())
            }
        }
    };
    (@range) => { $crate::mixture::Range::new(..) };
    (@range $range:expr) => { $crate::mixture::Range::new($range) };
    (@source) => { "" };
    (@source $source:literal) => { $source };
}

/// Declares an option type whose values are words.
///
/// ```
/// mixlora::words! {
///     /// How a set of scores is normalised.
///     pub enum Norm {
///         /// They sum to 1.
///         Sum = "sum",
///         /// Not at all.
///         Raw = "raw",
///     }
/// }
/// assert_eq!("raw".parse::<Norm>()?, Norm::Raw);
/// # Ok::<(), mixlora::Error>(())
/// ```
#[macro_export]
macro_rules! words {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $word:literal),+ $(,)? }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $name { $($(#[doc = $doc])+ $variant),+ }
        impl $name {
            /// All of its words.
            pub const WORDS: &'static [&'static str] = &[$($word),+];
            /// The word of a value.
            pub fn word(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }
        }
        impl std::str::FromStr for $name {
            type Err = $crate::Error;
            fn from_str(text: &str) -> $crate::Result<Self> {
                match text {
                    $($word => Ok($name::$variant),)+
                    _ => {
                        Err($crate::Error::Config {
                        field: stringify!($name).into(),
                        expected: format!("one of {}", $name::WORDS.join(", ")),
                        found: format!("'{text}'"),
                    })
                    }
                }
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
                s.serialize_str(self.word())
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(d)?;
                match text.as_str() {
                    $($word => Ok($name::$variant),)+
                    _ => Err(serde::de::Error::unknown_variant(&text, $name::WORDS)),
                }
            }
        }
        impl $crate::mixture::OptionValue for $name {
            const KIND: $crate::mixture::Kind = $crate::mixture::Kind::Word($name::WORDS);
        }
    };
}
