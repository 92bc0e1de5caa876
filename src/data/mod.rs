//! From text to batches.

mod batch;
#[cfg(feature = "tokenizer")]
mod encode;
#[cfg(feature = "tokenizer")]
mod jsonl;
mod sampler;

pub use batch::{Batch, Example};
#[cfg(feature = "tokenizer")]
pub use encode::{Counts, Dataset, EncodeOptions, Encoded, Encoder, LossOn};
#[cfg(feature = "tokenizer")]
pub use jsonl::{Body, DataFiles, MAX_LINE, MAX_PROBLEMS, Sample, read_samples};
pub use sampler::{Cursor, Sampler, SamplerConfig};
