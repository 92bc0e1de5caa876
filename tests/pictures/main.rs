//! Pictures: decoding, towers, projectors, data, and models that see.

#[path = "../common/mod.rs"]
mod common;

mod among_pictures;
mod data;
mod decoding;
mod efficientnet;
mod feature_cache;
mod projector;
mod vision;
