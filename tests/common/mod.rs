//! Shared by the integration tests.
#![allow(dead_code)]

use mixlora::Device;

/// A GPU device; without an adapter the row says SKIPPED, or fails when `MIXLORA_REQUIRE_GPU=1`.
pub fn gpu() -> Option<Device> {
    #[cfg(feature = "gpu")]
    match Device::gpu() {
        Ok(d) => return Some(d),
        Err(e) if std::env::var("MIXLORA_REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("{e}"),
        Err(e) => eprintln!("SKIPPED: {e}"),
    }
    None
}

#[cfg(feature = "cli")]
pub mod cli;
pub mod edit;
pub mod families;
#[cfg(feature = "tokenizer")]
pub mod gguf;
pub mod seeing;
#[cfg(feature = "gpu")]
pub mod share;
#[cfg(feature = "tokenizer")]
pub mod text;
pub mod tiny;

/// A method with those of the given options that it has.
pub fn method(name: &str, options: serde_json::Value) -> mixlora::mixture::Method {
    let defaults = mixlora::mixture::find(name).unwrap().defaults();
    defaults.stored(options.as_object().unwrap()).unwrap().0
}
