//! EfficientNet-Lite (Tan & Le 2019, arXiv:1905.11946; Lite: without squeeze-and-excitation, ReLU6 for the activation):
//! convolutions whose channels lie last, so that those of one pixel are products.

mod classifier;
mod config;
mod convert;
mod load;
mod net;

pub use classifier::Classifier;
pub(super) use config::KINDS;
pub use config::{EfficientNetConfig, Stage};
pub use convert::write_tower;
pub(super) use net::EfficientNet;
