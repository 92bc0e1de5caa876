//! What an adapter remembers of the model it was trained on.

use crate::model::vision::VisionIdentity;
use crate::model::{Fingerprint, Model, SiteLinear};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;

/// Sizes of the base model, and the fingerprint of its norms, which every file of a model has with the same values but
/// for their rounding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Base {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    vocab_size: usize,
    /// Absent in adapters of version 0.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    norms: Option<Fingerprint>,
}

/// What tells a vision part from others, as `mixlora.json` has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct VisionBase {
    #[serde(flatten)]
    pub identity: VisionIdentity,
    /// Whether the projector was trained, and is in a file of its own.
    pub projector_trained: bool,
    /// What is done to pictures, as a processor describes it.
    pub processor: Map<String, Value>,
    /// The linears of the projector, where the adapter has a part there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mixed_projector: Vec<SiteLinear>,
}

impl Base {
    pub fn of(model: &Model) -> Self {
        let c = model.config();
        Base {
            model_type: c.model_type.clone(),
            hidden_size: c.hidden_size,
            intermediate_size: c.intermediate_size,
            num_hidden_layers: c.num_hidden_layers,
            num_attention_heads: c.num_attention_heads,
            num_key_value_heads: c.num_key_value_heads,
            vocab_size: c.vocab_size,
            norms: Some(model.fingerprint().clone()),
        }
    }

    /// Refuses another model than this one. `name` is what the adapter calls its base.
    pub fn check(&self, file: &Path, name: Option<&str>, model: &Model) -> Result<()> {
        let here = Base::of(model);
        // Files of Mistral may say llama, which computes the same.
        let kind = |b: &Base| b.model_type.replace("mistral", "llama");
        let mut differ = Vec::new();
        if kind(self) != kind(&here) {
            differ.push(format!("model_type {} there and {} here", self.model_type, here.model_type));
        }
        for (field, there, here) in [
            ("hidden_size", self.hidden_size, here.hidden_size),
            ("intermediate_size", self.intermediate_size, here.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers, here.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads, here.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads, here.num_key_value_heads),
            ("vocab_size", self.vocab_size, here.vocab_size),
        ] {
            if there != here {
                differ.push(format!("{field} {there} there and {here} here"));
            }
        }
        let why = match (differ.is_empty(), &self.norms) {
            (false, _) => differ.join(", "),
            (true, Some(norms)) if !norms.matches(model.fingerprint()) => {
                "the sizes are the same, the weights are not; --force uses it all the same".into()
            }
            _ => return Ok(()),
        };
        let (name, this) = (name.unwrap_or("another model"), model.origin().display());
        Err(Error::file(file, format!("was trained on '{name}', but this is '{this}': {why}")))
    }
}
