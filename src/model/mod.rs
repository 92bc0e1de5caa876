//! Llama-family decoders: configuration, weights, forward pass, key/value cache, generation.
//!
//! Models know the adapter hooks of [`nn`](crate::nn), never a method.

mod config;
mod generate;
mod kv_cache;
mod llama;
mod load;

pub use config::{LlamaConfig, RopeScaling};
pub use generate::{Generation, Sampler, Sampling};
pub use kv_cache::KvCache;
pub use llama::{Llama, MlpSite, Site, Step};
