//! Llama-family decoders: configuration, weights, forward pass, key/value cache, generation.
//!
//! Models know the adapter hooks of [`nn`](crate::nn), never a method.

mod config;
mod files;
mod fingerprint;
mod generate;
mod gguf_config;
mod hf_config;
mod hub;
mod kv_cache;
mod llama;
mod load;
mod names;
mod place;
mod positions;
mod quantised;
mod save;
mod shape;

pub use config::{Llama3Scaling, LlamaConfig, RopeScaling};
pub use files::{Expected, ModelFiles, gguf_name, gguf_row, model_config};
pub use fingerprint::Fingerprint;
pub use generate::{Generation, Sampler, Sampling};
pub use hub::hub_snapshot;
pub use kv_cache::KvCache;
pub use llama::{Llama, MlpSite, Site, Step};
pub use load::LoadOptions;
pub use place::ModelPlace;
pub use save::Change;
pub use shape::ModelShape;
