//! Training data: files of JSON, tables and text become `Sample`s, samples become [`Example`]s of tokens, and a [`Sampler`] chooses the
//! examples of each [`Batch`].

#[cfg(feature = "tokenizer")]
mod alpaca;
#[cfg(feature = "tokenizer")]
mod array;
#[cfg(feature = "tokenizer")]
mod ask;
#[cfg(feature = "tokenizer")]
mod base64;
mod batch;
mod columns;
mod condition;
#[cfg(feature = "tokenizer")]
mod conversation;
#[cfg(feature = "tokenizer")]
mod convert;
mod dataset;
#[cfg(feature = "tokenizer")]
mod encode;
#[cfg(feature = "tokenizer")]
mod files;
#[cfg(feature = "tokenizer")]
mod fit;
#[cfg(feature = "tokenizer")]
mod given;
#[cfg(feature = "tokenizer")]
mod gzip;
#[cfg(feature = "tokenizer")]
mod jsonl;
#[cfg(feature = "tokenizer")]
mod keys;
#[cfg(feature = "tokenizer")]
mod layout;
#[cfg(all(feature = "tokenizer", feature = "images"))]
mod look;
#[cfg(feature = "tokenizer")]
mod message;
#[cfg(feature = "tokenizer")]
mod mistake;
#[cfg(feature = "tokenizer")]
mod multiple_choice;
#[cfg(feature = "tokenizer")]
mod objects;
mod picture;
#[cfg(feature = "tokenizer")]
mod places;
#[cfg(feature = "tokenizer")]
mod problems;
#[cfg(feature = "tokenizer")]
mod sample;
mod sampler;
#[cfg(feature = "tokenizer")]
mod show;
#[cfg(feature = "tokenizer")]
mod split;
#[cfg(feature = "tokenizer")]
mod survey;
#[cfg(feature = "tokenizer")]
mod table;
#[cfg(feature = "tokenizer")]
mod turns;

#[cfg(feature = "tokenizer")]
pub(crate) use ask::Asked;
pub use batch::{Batch, Example};
pub use columns::Columns;
pub use condition::Condition;
#[cfg(feature = "tokenizer")]
pub use convert::as_messages;
pub use dataset::{Counts, Dataset};
#[cfg(feature = "tokenizer")]
pub use encode::{EncodeOptions, Encoded, Encoder, LossOn};
#[cfg(feature = "tokenizer")]
pub use files::{DataFiles, MAX_LINE};
#[cfg(feature = "tokenizer")]
pub use jsonl::{read_samples, read_samples_from, read_samples_with};
#[cfg(feature = "tokenizer")]
pub use layout::{ReadOptions, recognised};
#[cfg(all(feature = "tokenizer", feature = "images"))]
pub use look::Pictures;
#[cfg(feature = "tokenizer")]
pub use multiple_choice::{
    ChoiceShape, MAX_CHOICES, MultipleChoice, MultipleChoices, is_multiple_choice, read_multiple_choice,
};
pub use picture::{FeatureValues, Features, OnBadImage, PicturePlace, PictureSource};
#[cfg(feature = "tokenizer")]
pub use problems::MAX_PROBLEMS;
#[cfg(feature = "tokenizer")]
pub use sample::{Body, Sample, Written};
pub use sampler::{Cursor, Sampler, SamplerConfig};
#[cfg(feature = "tokenizer")]
pub use split::set_apart;
#[cfg(feature = "tokenizer")]
pub use survey::{oddities, shared};
