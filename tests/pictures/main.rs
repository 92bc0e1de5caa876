//! Pictures: decoding, towers, projectors, data, and models that see.

#[path = "../common/mod.rs"]
mod common;

mod among_pictures;
mod efficientnet;
mod feature_cache;
mod picture_data;
mod pictures;
mod projector;
mod vision;
