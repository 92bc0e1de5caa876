//! From text to batches.

mod batch;
mod dataset;
#[cfg(feature = "tokenizer")]
mod encode;
#[cfg(feature = "tokenizer")]
mod jsonl;
mod sampler;
#[cfg(feature = "tokenizer")]
mod turns;

pub use batch::{Batch, Example};
pub use dataset::{Counts, Dataset};
#[cfg(feature = "tokenizer")]
pub use encode::{EncodeOptions, Encoded, Encoder, LossOn};
#[cfg(feature = "tokenizer")]
pub use jsonl::{Body, DataFiles, MAX_LINE, MAX_PROBLEMS, Sample, read_samples};
pub use sampler::{Cursor, Sampler, SamplerConfig};
