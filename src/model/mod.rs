//! Decoders: families, configuration, weights, forward pass, key/value cache, generation.
//!
//! Models know the adapter hooks of [`nn`](crate::nn), never a method.

mod block;
mod config;
mod decoder;
mod describe;
mod experts;
mod families;
mod files;
mod fingerprint;
mod generate;
mod gguf_config;
mod hf_config;
mod hub;
mod kv_cache;
mod load;
mod names;
mod place;
mod positions;
mod quantised;
mod requantise;
mod rope;
mod save;
mod save_gguf;
mod shape;
mod sites;
mod tensors;
pub mod vision;
mod weights;
mod write_config;

pub use crate::nn::Activation;
pub use crate::ops::rope::RopeScaling;
pub use config::{BlockNorms, ExpertsConfig, LayerConfig, LayerNames, MlpKind, ModelConfig, Norm, QkNorm};
pub use decoder::{Input, Model, Step};
pub(crate) use experts::Experts;
pub use experts::experts_by_tag;
pub use families::{FAMILIES, Family};
pub use files::{ModelFiles, gguf_name, gguf_row, model_config};
pub use fingerprint::Fingerprint;
pub use generate::{Generation, Sampler, Sampling};
pub use hub::hub_snapshot;
pub use kv_cache::KvCache;
pub use load::LoadOptions;
pub(crate) use load::Source;
pub use place::ModelPlace;
pub use rope::RopeConfig;
pub use save::Change;
pub use shape::ModelShape;
pub use sites::{Site, SiteKind, SiteLinear};
pub use tensors::Expected;
pub use weights::Weights;
