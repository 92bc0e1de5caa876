//! Features of pictures in files, where the next run finds them.

use crate::device::Place;
use crate::io::{KeptKind, KeptValues};
use crate::text::Sight;
use crate::{Device, Result};
use serde_json::{Value, json};
use std::path::Path;

const FEATURES: KeptKind = KeptKind {
    name: "features",
    hint: "--feature-cache names another folder, and --feature-memory how much stays in memory",
};

/// All that decides what a tower makes of a picture.
fn about(sight: &Sight) -> Value {
    #[cfg(feature = "images")]
    let processor = json!(sight.processor.fields());
    #[cfg(not(feature = "images"))]
    let processor = Value::Null;
    let tower = sight.vision.tower();
    let Place { crate_version, backend, adapter, driver, .. } = Place::of(tower.device());
    // On a CPU this is the number of threads, on which nothing depends.
    let driver = if matches!(tower.device(), Device::Gpu(_)) { driver } else { String::new() };
    json!({
        "tower": sight.vision.identity().tower(), "weights": tower.format().name(), "processor": processor,
        "computed": [crate_version, backend, adapter, driver],
    })
}

/// The features of one tower and one preparation of pictures in a cache folder, by the keys of the pictures.
///
/// # Errors
/// The folder is none, or cannot be read.
pub(super) fn kept_features(cache: &Path, sight: &Sight) -> Result<KeptValues> {
    let kind = sight.vision.tower().config().model_type();
    KeptValues::open(cache, kind, about(sight), FEATURES)
}
