//! Llama-family decoders: configuration, weights, forward pass, key/value cache, generation.
//!
//! Models know the adapter hooks of [`nn`](crate::nn), never a method.

mod config;
mod generate;
mod kv_cache;
mod llama;
mod load;
mod save;

pub use config::{LlamaConfig, RopeScaling};
pub use generate::{Generation, Sampler, Sampling};
pub use kv_cache::KvCache;
pub use llama::{Llama, MlpSite, Site, Step};
pub use load::model_config;
pub(crate) use load::{gguf_name, gguf_row};
pub use save::Change;
