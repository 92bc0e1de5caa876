//! X-LoRAs of Hugging Face PEFT: a folder with the classifier, and the folders of the LoRAs that it names.

use super::experts::{Expert, with_experts};
use super::layout::open_tensors;
use super::{ALL_LINEAR, Adapter};
use crate::mixture::Tree;
use crate::mixture::methods::x_lora;
use crate::model::Model;
use crate::{Error, Result, Stream};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::json;
use std::fmt;
use std::path::{Path, PathBuf};

/// `adapter_config.json` of an X-LoRA.
#[derive(Deserialize)]
struct XLoraConfig {
    adapters: InOrder,
    #[serde(default = "yes")]
    enable_softmax: bool,
    #[serde(default)]
    enable_softmax_topk: bool,
    #[serde(default)]
    layerwise_scalings: bool,
    #[serde(default = "one_layer")]
    xlora_depth: usize,
    #[serde(default = "width")]
    xlora_size: usize,
    #[serde(default = "dropout")]
    xlora_dropout_p: f32,
    #[serde(default)]
    use_trainable_adapters: bool,
    #[serde(default = "one")]
    softmax_temperature: f32,
    #[serde(default)]
    top_k_lora: Option<usize>,
    #[serde(default)]
    scaling_pass_value: f32,
    #[serde(default = "one")]
    global_scaling_weight: f32,
}

fn yes() -> bool {
    true
}
fn one_layer() -> usize {
    1
}
fn width() -> usize {
    2048
}
fn dropout() -> f32 {
    0.2
}
fn one() -> f32 {
    1.0
}

/// The entries of an object in the order of the file, which is that of the experts.
struct InOrder(Vec<(String, String)>);

impl<'de> Deserialize<'de> for InOrder {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = InOrder;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("adapters by name")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<InOrder, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(InOrder(entries))
            }
        }
        from.deserialize_map(Entries)
    }
}

impl XLoraConfig {
    /// The options that say the same.
    fn options(&self) -> Result<Tree> {
        if self.scaling_pass_value != 0.0 {
            let value = self.scaling_pass_value;
            return Err(Error::config("scaling_pass_value", value, "0: the first pass has no adapters here"));
        }
        let options = json!({
            "depth": self.xlora_depth, "size": self.xlora_size, "classifier_dropout": self.xlora_dropout_p,
            "layerwise": self.layerwise_scalings, "softmax": self.enable_softmax,
            "temperature": self.softmax_temperature, "top_k": self.top_k_lora,
            "softmax_topk": self.enable_softmax_topk, "global_scaling": self.global_scaling_weight,
            "train_experts": self.use_trainable_adapters,
        });
        Ok(options.as_object().cloned().unwrap_or_default())
    }
}

/// Where the folder of an expert is: as the file says, seen from its own folder or from here, or beside it under its name.
fn expert_folder(dir: &Path, name: &str, path: &str) -> Result<PathBuf> {
    let places = [dir.join(path), PathBuf::from(path), dir.join(name)];
    let found = places.iter().find(|place| place.join("adapter_config.json").is_file());
    found.cloned().ok_or_else(|| {
        let what = format!(
            "names the adapter '{name}' at '{path}', which is not there; put its folder into {}",
            dir.join(name).display()
        );
        Error::file(dir.join("adapter_config.json"), what)
    })
}

/// Loads an X-LoRA of PEFT and its experts.
pub(super) fn load(dir: &Path, path: &Path, config: serde_json::Value, model: &Model) -> Result<Adapter> {
    let wrap = |error: Error| Error::file(path, error.to_string());
    let config: XLoraConfig =
        serde_json::from_value(config).map_err(|error| Error::file(path, error.to_string()))?;
    let InOrder(adapters) = &config.adapters;
    let open = |(name, at): &(String, String)| {
        let folder = expert_folder(dir, name, at)?;
        Expert::open(&format!("{name}={}", folder.display()), model.config())
    };
    let experts = adapters.iter().map(open).collect::<Result<Vec<_>>>()?;
    if experts.is_empty() {
        return Err(Error::file(path, "names no adapters: there is nothing to mix"));
    }
    let method = x_lora::SPEC.defaults().set(&config.options().map_err(wrap)?).map_err(wrap)?;
    let (method, targets) = with_experts(&method, &[ALL_LINEAR.to_string()], &experts).map_err(wrap)?;
    let adapter = Adapter::attach(model, &method, &targets, Stream::new(0)).map_err(wrap)?;
    adapter.take_experts(&experts, model)?;

    // A torch Sequential: linears, with a ReLU and perhaps a dropout between them, all numbered.
    let file = open_tensors(dir)?;
    let step = if config.xlora_dropout_p > 0.0 { 3 } else { 2 };
    let stem = file.names().find_map(|name| Some(format!("{}{CLASSIFIER}", name.split_once(CLASSIFIER)?.0)));
    let stem = stem.ok_or_else(|| {
        let what = "has no classifier: it is not an X-LoRA, or was written by a version of PEFT that leaves out \
                    what has the number of an adapter in its name (0.21 does, 0.18 does not)";
        Error::file(file.path(), what)
    })?;
    for param in adapter.params() {
        for (part, rows) in param.parts() {
            let Some(number) = part.strip_prefix("classifier_") else { continue };
            let number_of = |text: &str| text.parse::<usize>().unwrap_or(1) - 1;
            let width = param.value().shape().last();
            let (name, dims) = match number.strip_suffix("_bias") {
                Some(number) => (format!("{stem}{}.bias", number_of(number) * step), vec![width]),
                None => (format!("{stem}{}.weight", number_of(number) * step), vec![*rows, width]),
            };
            let values = file.f32(&name, &dims)?;
            let device = param.value().device().clone();
            param.load(&device, |_| Some(values.clone()))?;
        }
    }
    Ok(adapter)
}

/// What the names of the classifier's layers have in common.
const CLASSIFIER: &str = "internal_xlora_classifier.layers.";
