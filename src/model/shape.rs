//! Models by their sizes alone, with random weights: for measuring speed and memory without a file.

use super::describe::describe;
use super::families::{Facts, of_model_type};
use super::load::{Source, assemble};
use super::{Expected, Model, ModelConfig, model_config};
use crate::io::read_json;
use crate::{Device, Error, Format, Result, Tensor, Weight};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The sizes of a published model, and a storage format for its matrices.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelShape {
    /// As it was asked for.
    pub name: String,
    pub config: ModelConfig,
    pub format: Format,
}

/// Sizes of a decoder with SwiGLU and without biases.
struct Sizes {
    name: &'static str,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
    tied: bool,
}

const KNOWN: [Sizes; 4] = [
    Sizes {
        name: "smollm2-135m",
        hidden: 576,
        intermediate: 1536,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        vocab: 49_152,
        tied: true,
    },
    // Llama 3.2 1B.
    Sizes {
        name: "llama-1b",
        hidden: 2048,
        intermediate: 8192,
        layers: 16,
        heads: 32,
        kv_heads: 8,
        vocab: 128_256,
        tied: true,
    },
    // Llama 3.1 8B.
    Sizes {
        name: "llama-8b",
        hidden: 4096,
        intermediate: 14_336,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        vocab: 128_256,
        tied: false,
    },
    // Llama 2 7B.
    Sizes {
        name: "llama-7b",
        hidden: 4096,
        intermediate: 11_008,
        layers: 32,
        heads: 32,
        kv_heads: 32,
        vocab: 32_000,
        tied: false,
    },
];

/// Positions of every model by shape: enough for what is measured.
const POSITIONS: usize = 8192;

impl ModelShape {
    /// A shape by its name, with `-FORMAT` behind it for another format than bf16: `llama-1b`, `llama-7b-q4_k`. `q4`
    /// is short for q4_k, `q8` for q8_0.
    ///
    /// # Errors
    /// There is no such shape or format, or a row of the model has no whole number of the format's blocks.
    pub fn parse(name: &str) -> Result<Self> {
        let bad = |what: String| Err(Error::refused("shape", what));
        let Some(sizes) = KNOWN.iter().find(|s| name.starts_with(s.name)) else {
            let known = KNOWN.map(|s| s.name).join(", ");
            return bad(format!("there is no shape '{name}'; the shapes are {known}"));
        };
        let format = match name[sizes.name.len()..].strip_prefix('-') {
            None if name == sizes.name => Some(Format::Bf16),
            None => None,
            Some("q4") => Some(Format::Q4_K),
            Some("q8") => Some(Format::Q8_0),
            Some(other) => Format::ALL.into_iter().find(|f| f.name() == other),
        };
        let Some(format) = format else {
            let known = Format::ALL.map(Format::name).join(", ");
            return bad(format!(
                "'{name}' is {} with no format behind it; the formats are {known}",
                sizes.name
            ));
        };
        whole_blocks(sizes.name, [sizes.hidden, sizes.intermediate], format)?;
        let facts = Facts {
            hidden_size: sizes.hidden,
            intermediate_size: sizes.intermediate,
            num_hidden_layers: sizes.layers,
            num_attention_heads: sizes.heads,
            num_key_value_heads: Some(sizes.kv_heads),
            vocab_size: sizes.vocab,
            max_position_embeddings: POSITIONS,
            rms_norm_eps: Some(1e-5),
            tie_word_embeddings: Some(sizes.tied),
            ..Facts::default()
        };
        let config = describe(
            of_model_type("llama").map_err(|error| Error::refused("shape", error))?,
            "llama",
            &facts,
            Value::Null,
        )?;
        Ok(ModelShape { name: name.into(), config, format })
    }
}

impl ModelShape {
    /// The sizes that the `config.json` of a folder has, for a folder without weights. Matrices are in the format of its
    /// `torch_dtype`, else in f32.
    ///
    /// # Errors
    /// The configuration is none that is read.
    pub fn of_config(dir: &Path) -> Result<Self> {
        let config = model_config(dir)?;
        let all: Value = read_json(&dir.join("config.json"))?;
        let dtype =
            [&all, &all["text_config"]].into_iter().flat_map(|all| [&all["torch_dtype"], &all["dtype"]]);
        let format = match dtype.filter_map(Value::as_str).next() {
            Some("float16") => Format::F16,
            Some("bfloat16") => Format::Bf16,
            _ => Format::F32,
        };
        let name = dir.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
        Ok(ModelShape { name, config, format })
    }
}

/// Refuses rows that are no whole number of a format's blocks.
fn whole_blocks(name: &str, sizes: [usize; 2], format: Format) -> Result<()> {
    let block = format.block_len();
    let Some(size) = sizes.into_iter().find(|n| n % block != 0) else { return Ok(()) };
    let what =
        format!("rows of {size} values in {name} are no whole number of {} blocks of {block}", format.name());
    Err(Error::refused("shape", what))
}

/// Random tensors of a shape. Matrices have values of deviation one, and norms bring what they multiply down to the
/// size that makes their products about one, so that no softmax is sharp.
pub(super) struct MadeUp<'a> {
    device: &'a Device,
    format: Format,
    dims: HashMap<String, Vec<usize>>,
}

impl<'a> MadeUp<'a> {
    pub fn new(device: &'a Device, format: Format, expected: Vec<Expected>) -> Self {
        let dims = expected.into_iter().map(|e| (e.name, e.axes.iter().map(|a| a.0).collect()));
        MadeUp { device, format, dims: dims.collect() }
    }

    pub fn dims(&self, name: &str) -> Result<&[usize]> {
        let dims = self.dims.get(name).map(Vec::as_slice);
        dims.ok_or_else(|| Error::refused("shape", format!("has no tensor '{name}'")))
    }
}

impl Source for MadeUp<'_> {
    fn weight(&self, name: &str) -> Result<Weight> {
        match *self.dims(name)? {
            [rows, cols] => Weight::made_up(self.device, [rows, cols], self.format, name),
            ref dims => Err(Error::refused("shape", format!("tensor '{name}' is {dims:?}, not a matrix"))),
        }
    }
    fn vector(&self, name: &str) -> Result<Tensor> {
        let dims = self.dims(name)?;
        let width = dims.iter().product::<usize>();
        Tensor::full(self.device, dims, (width as f32).powf(-0.5))
    }
}

impl Model {
    /// A model with the sizes of a shape and random weights, the same each time.
    ///
    /// # Errors
    /// The device refuses it.
    pub fn of_shape(shape: &ModelShape, device: &Device) -> Result<Arc<Self>> {
        let source = MadeUp::new(device, shape.format, shape.config.tensors());
        let model = assemble(shape.config.clone(), device, &source)?;
        Ok(Arc::new(Model { origin: PathBuf::from(&shape.name), ..model }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_sizes_and_a_format() {
        let shape = ModelShape::parse("smollm2-135m").unwrap();
        assert_eq!((shape.config.parameters(), shape.format), (134_515_008, Format::Bf16));
        assert_eq!(ModelShape::parse("llama-7b-q4").unwrap().format, Format::Q4_K);
        assert_eq!(ModelShape::parse("llama-1b-q8_0").unwrap().config.parameters(), 1_235_814_400);
        assert_eq!(ModelShape::parse("llama-7b").unwrap().config.parameters(), 6_738_415_616);
        assert_eq!(ModelShape::parse("llama-8b-q4_k").unwrap().config.parameters(), 8_030_261_248);
        for (name, text) in
            [("gpt", "smollm2-135m, llama-1b"), ("llama-1b-q3", "q4_k"), ("llama-1bf16", "q4_k")]
        {
            let e = ModelShape::parse(name).unwrap_err().to_string();
            assert!(e.contains(text), "{e}");
        }
        let e = ModelShape::parse("smollm2-135m-q4_k").unwrap_err().to_string();
        assert!(e.contains("576") && e.contains("256"), "{e}");
    }
}
