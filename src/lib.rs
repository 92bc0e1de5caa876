#![doc = include_str!("../README.md")]
#![warn(clippy::undocumented_unsafe_blocks, clippy::match_bool)]

/// The page on methods, whose code is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../docs/ADD_A_METHOD.md")]
struct AddAMethod;

mod allocator;
mod dtype;
mod engine;
mod error;
mod names;
mod rng;
mod routing;
mod shape;
mod simd;
mod tape;
mod tensor;
mod weight;

pub mod adapter;
pub mod analyse;
pub mod atomic;
pub mod bench;
pub mod check;
pub mod data;
pub mod device;
pub mod io;
pub mod mixture;
pub mod model;
pub mod nn;
pub mod ops;
#[cfg(feature = "images")]
pub mod picture;
pub mod study;
#[cfg(feature = "tokenizer")]
pub mod text;
pub mod train;

pub use allocator::Allocator;
pub use device::Device;
pub use dtype::DType;
pub use error::{Error, Problem, Result};
pub use rng::{Stream, threefry2x32};
pub use shape::Shape;
pub use tape::{Gradients, backward, checkpoint, checkpoint_many, no_grad};
pub use tensor::Tensor;
pub use weight::{Format, Linear, Shard, Weight, WeightBuilder};

#[cfg(feature = "gpu")]
pub use wgpu;
