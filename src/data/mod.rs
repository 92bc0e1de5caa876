//! Training data: JSONL files become `Sample`s, samples become [`Example`]s of tokens, and a [`Sampler`] chooses the
//! examples of each [`Batch`].

mod batch;
mod condition;
mod dataset;
#[cfg(feature = "tokenizer")]
mod encode;
#[cfg(feature = "tokenizer")]
mod files;
#[cfg(feature = "tokenizer")]
mod jsonl;
#[cfg(feature = "tokenizer")]
mod keys;
#[cfg(feature = "tokenizer")]
mod sample;
mod sampler;
#[cfg(feature = "tokenizer")]
mod survey;
#[cfg(feature = "tokenizer")]
mod turns;

pub use batch::{Batch, Example};
pub use condition::Condition;
pub use dataset::{Counts, Dataset};
#[cfg(feature = "tokenizer")]
pub use encode::{EncodeOptions, Encoded, Encoder, LossOn};
#[cfg(feature = "tokenizer")]
pub use files::{DataFiles, MAX_LINE};
#[cfg(feature = "tokenizer")]
pub use jsonl::{MAX_PROBLEMS, read_samples, read_samples_from};
#[cfg(feature = "tokenizer")]
pub use sample::{Body, Sample};
pub use sampler::{Cursor, Sampler, SamplerConfig};
#[cfg(feature = "tokenizer")]
pub use survey::{oddities, shared};
