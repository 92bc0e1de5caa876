//! What is read from files and written to them: models, adapters, tensors, in every format.

#[path = "../common/mod.rs"]
mod common;

mod adapters;
mod bad_files;
mod data_files;
mod families;
mod family_adapters;
mod formats;
mod gguf;
mod longrope;
mod merged_families;
mod pth;
mod safetensors;
mod stored;
mod weights;
