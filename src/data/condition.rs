//! Conditions beside the text of a sample.

use serde::{Deserialize, Serialize};

/// What the choices for a sample depend on besides its text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a text or an array of numbers")]
pub enum Condition {
    Text(String),
    Vector(Vec<f32>),
}
