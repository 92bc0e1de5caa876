//! A decoder's files by the names of Hugging Face, whichever kind they are: a GGUF file, or a folder of safetensors.

use super::names::{self, Names};
use super::{BlockNorms, Expected, ModelConfig, ModelPlace, Weights, gguf_config, hf_config};
use crate::io::{Checkpoint, GgufFile, RawTensor};
use crate::{Device, Error, Result, Weight};
use std::path::Path;

/// An open model: its configuration, and its tensors with the names and the row order of Hugging Face.
#[derive(Debug)]
pub struct ModelFiles {
    kind: Kind,
    config: ModelConfig,
}

#[derive(Debug)]
enum Kind {
    Gguf(GgufFile),
    Folder(Checkpoint, Names),
}

/// Names of Hugging Face, and what llama.cpp has in their place. Those of norms depend on what they stand before.
const NAMES: [(&str, &str); 20] = [
    ("model.embed_tokens.", "token_embd."),
    ("model.norm.", "output_norm."),
    ("lm_head.", "output."),
    ("model.layers.", "blk."),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
    ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
    ("mlp.gate.", "ffn_gate_inp."),
];

/// The linears of experts, and the tensors in which llama.cpp stacks them.
const EXPERTS: [(&str, &str); 6] = [
    ("gate_proj", "ffn_gate_exps"),
    ("up_proj", "ffn_up_exps"),
    ("down_proj", "ffn_down_exps"),
    ("w1", "ffn_gate_exps"),
    ("w3", "ffn_up_exps"),
    ("w2", "ffn_down_exps"),
];

/// The expert that a name is of: its number, its linear, and the path of the layer with a dot behind it.
fn expert(name: &str) -> Option<(usize, &str, &str)> {
    let (before, rest) = name.split_once(".experts.")?;
    let (layer, _) = before.rsplit_once('.')?;
    let mut rest = rest.split('.');
    let number = rest.next()?.parse().ok()?;
    Some((number, rest.next()?, &name[..=layer.len()]))
}

impl ModelConfig {
    /// The name that llama.cpp gives a tensor of this model, by its name in Hugging Face. Experts are stacked in one
    /// tensor.
    pub fn gguf_name(&self, name: &str) -> String {
        if let Some((_, linear, layer)) = expert(name)
            && let Some((_, stacked)) = EXPERTS.iter().find(|(ours, _)| *ours == linear)
        {
            return format!("{}{stacked}.weight", layer.replacen("model.layers.", "blk.", 1));
        }
        let mut name = name.replacen("block_sparse_moe.gate.", "mlp.gate.", 1);
        if name.starts_with("model.layers.") {
            let norms: Vec<_> = self.norms.names().collect();
            if let Some((ours, theirs)) = norms.iter().find(|(ours, _)| name.contains(&format!(".{ours}."))) {
                name = name.replacen(&format!(".{ours}."), &format!(".{theirs}."), 1);
            }
        }
        gguf_name(&name)
    }
}

/// The name that llama.cpp gives a tensor of a plain decoder.
///
/// ```
/// let name = mixlora::model::gguf_name("model.layers.3.self_attn.q_proj.weight");
/// assert_eq!(name, "blk.3.attn_q.weight");
/// ```
pub fn gguf_name(name: &str) -> String {
    let mut out = name.to_string();
    for (ours, theirs) in NAMES.into_iter().chain(BlockNorms::PRE.names()) {
        // Whole parts are compared: some names end like others.
        match out.find(ours) {
            Some(0) => out = out.replacen(ours, theirs, 1),
            Some(at) if out.as_bytes()[at - 1] == b'.' => out = out.replacen(ours, theirs, 1),
            _ => {}
        }
    }
    out
}

/// Whether the rows of a tensor stand in another order in GGUF files: for some families llama.cpp interleaves the halves
/// of each q and k head; Hugging Face's order has the first halves of all pairs, then the second ones.
fn interleaved(config: &ModelConfig, name: &str) -> bool {
    config.gguf_interleaved && (name.contains("q_proj") || name.contains("k_proj"))
}

/// Row of a GGUF file that is row `row` of Hugging Face's q or k.
fn interleaved_row(head_dim: usize, row: usize) -> usize {
    let half = head_dim / 2;
    let head = row / head_dim;
    let s = row % head_dim / half;
    let i = row % half;
    head * head_dim + 2 * i + s
}

/// Hugging Face's row that stands at row `at` of a GGUF file's tensor.
pub fn gguf_row(config: &ModelConfig, name: &str, at: usize) -> usize {
    if !interleaved(config, name) {
        return at;
    }
    let hd = config.head_dim;
    let half = config.head_dim / 2;
    let head = at / hd;
    let i = at % hd / 2;
    let s = at % 2;
    head * hd + s * half + i
}

/// The configuration of a model: what [`ModelPlace::of`] takes. Weights are not looked at.
///
/// # Errors
/// The path holds no supported model.
pub fn model_config(path: &Path) -> Result<ModelConfig> {
    match ModelPlace::of(path)? {
        ModelPlace::Folder(dir) => hf_config::read(&dir),
        ModelPlace::Gguf(file) => gguf_config::read(&GgufFile::open(file)?),
    }
}

impl ModelConfig {
    /// The configuration of an open GGUF file.
    ///
    /// # Errors
    /// Its architecture or an option of it is not supported, or an entry is missing.
    pub fn of_gguf(file: &GgufFile) -> Result<Self> {
        gguf_config::read(file)
    }
}

impl ModelFiles {
    /// Opens a model: a `.gguf` file, or a directory with `config.json` and safetensors, as [`ModelPlace::of`] finds
    /// them. Only headers are read.
    ///
    /// # Errors
    /// The path holds no supported model; the error names the file and the field.
    pub fn open(path: &Path) -> Result<Self> {
        match ModelPlace::of(path)? {
            ModelPlace::Folder(dir) => {
                let config = hf_config::read(&dir)?;
                let checkpoint = Checkpoint::open(&dir)?;
                check_layers(checkpoint.path(), &config, checkpoint.names().count())?;
                let names = names::find(&checkpoint)?;
                Ok(ModelFiles { kind: Kind::Folder(checkpoint, names), config })
            }
            ModelPlace::Gguf(file) => Self::from_gguf(GgufFile::open(file)?),
        }
    }

    /// The model of an open GGUF file.
    ///
    /// # Errors
    /// Its architecture or an option of it is not supported, or an entry is missing.
    pub fn from_gguf(file: GgufFile) -> Result<Self> {
        let config = gguf_config::read(&file)?;
        check_layers(file.path(), &config, file.tensors().len())?;
        Ok(ModelFiles { kind: Kind::Gguf(file), config })
    }

    /// Its configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }
    /// The GGUF file, if it is one.
    pub fn gguf(&self) -> Option<&GgufFile> {
        match &self.kind {
            Kind::Gguf(file) => Some(file),
            Kind::Folder(..) => None,
        }
    }
    /// The file, or the index of several, for messages.
    pub fn path(&self) -> &Path {
        match &self.kind {
            Kind::Gguf(f) => f.path(),
            Kind::Folder(c, _) => c.path(),
        }
    }
    /// An index that was not looked at, since `model.safetensors` is beside it.
    pub fn passed_over(&self) -> Option<&Path> {
        match &self.kind {
            Kind::Gguf(_) => None,
            Kind::Folder(c, _) => c.passed_over(),
        }
    }

    /// The name of a tensor in these files.
    pub fn stored_name(&self, name: &str) -> String {
        match &self.kind {
            Kind::Gguf(_) => self.config.gguf_name(name),
            Kind::Folder(_, names) => names.get(name).map_or(name, String::as_str).to_string(),
        }
    }

    /// Every tensor that the configuration asks for: name and shape, with the fields that give it.
    pub fn expected(&self) -> Vec<Expected> {
        self.config.tensors()
    }

    /// Checks that all tensors are there with the shapes of the configuration, and gives back those that are too
    /// many.
    ///
    /// # Errors
    /// Tensors are missing, and all are listed; or a shape is another, with the fields of the configuration.
    pub fn check(&self) -> Result<Vec<String>> {
        let expected = self.expected();
        let names: Vec<String> = expected.iter().map(|e| self.stored_name(&e.name)).collect();
        let wanted = names.iter().map(String::as_str);
        let extra = match &self.kind {
            Kind::Gguf(file) => file.expect_tensors(wanted)?,
            Kind::Folder(checkpoint, _) => checkpoint.expect_tensors(wanted)?,
        };
        for e in &expected {
            let found = self.dims(&e.name)?;
            e.check(&found).map_err(|what| {
                Error::file(self.path(), format!("tensor '{}' {what}", self.stored_name(&e.name)))
            })?;
        }
        // Known to be of no use: tables of angles in old checkpoints, factors that are read with the configuration,
        // and heads of models whose head is the embedding.
        let rope_tables = ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"];
        let idle = |n: &String| {
            n.ends_with("rotary_emb.inv_freq") || rope_tables.contains(&n.as_str()) || n == "lm_head.weight"
        };
        // Those of a vision part are for another reader.
        let seeing =
            ["vision_tower.", "vision_model.", "multi_modal_projector.", "mm_projector.", "connector."];
        let idle = |n: &String| idle(n) || seeing.iter().any(|part| n.contains(part));
        Ok(extra.into_iter().filter(|n| !idle(n)).collect())
    }

    /// Length of each axis of a tensor, outermost first.
    fn dims(&self, name: &str) -> Result<Vec<usize>> {
        let stacked = expert(name).is_some();
        let name = self.stored_name(name);
        match &self.kind {
            // One of the stacked matrices.
            Kind::Gguf(file) if stacked => {
                Ok(file.tensor(&name)?.dims.iter().rev().skip(1).copied().collect())
            }
            Kind::Gguf(file) => Ok(file.tensor(&name)?.dims.iter().rev().copied().collect()),
            Kind::Folder(checkpoint, _) => Ok(checkpoint.dims(&name)?.to_vec()),
        }
    }

    /// A tensor as it stands in the file.
    ///
    /// # Errors
    /// There is none of that name, or its type is not read.
    pub fn raw(&self, name: &str) -> Result<RawTensor<'_>> {
        let number = expert(name).map(|(number, ..)| number);
        let name = self.stored_name(name);
        match (&self.kind, number) {
            (Kind::Gguf(file), Some(number)) => self.of_stack(&name, file.raw(&name)?, number),
            _ => self.raw_stored(&name),
        }
    }

    /// One of the matrices that a tensor stacks.
    fn of_stack<'a>(&self, name: &str, stack: RawTensor<'a>, number: usize) -> Result<RawTensor<'a>> {
        let count = self.config.experts.map_or(0, |e| e.count).max(1);
        let rows = stack.rows / count;
        let bytes = stack.bytes.len() / count;
        if stack.axes != 3 || rows * count != stack.rows || number >= count {
            let what = format!("tensor '{name}' does not stack {count} matrices");
            return Err(Error::file(self.path(), what));
        }
        Ok(RawTensor { rows, axes: 2, bytes: &stack.bytes[number * bytes..][..bytes], ..stack })
    }

    fn raw_stored(&self, name: &str) -> Result<RawTensor<'_>> {
        match &self.kind {
            Kind::Gguf(file) => file.raw(name),
            Kind::Folder(checkpoint, _) => checkpoint.raw(name),
        }
    }

    /// Where row `i` of Hugging Face's order is in the file, for tensors whose order differs.
    fn row_order(&self, name: &str) -> Option<impl Fn(usize) -> usize> {
        let head_dim = self.config.head_dim;
        let other = matches!(&self.kind, Kind::Gguf(_)) && interleaved(&self.config, name);
        other.then_some(move |row| interleaved_row(head_dim, row))
    }

    /// A matrix with its rows in Hugging Face's order.
    ///
    /// # Errors
    /// Those of [`raw`](ModelFiles::raw), a value is too large for the format, or the device refuses it.
    pub fn weight(&self, name: &str, device: &Device, weights: Weights) -> Result<Weight> {
        let t = self.raw(name)?;
        let weight = Weight::from_bytes(device, [t.rows, t.cols], t.bytes, t.format);
        let weight = weight.store_as(weights.of(t.format, t.cols));
        let built = match self.row_order(name) {
            Some(order) => weight.rows(order).build(),
            None => weight.build(),
        };
        built.map_err(|error| match error {
            Error::Shape { .. } => {
                Error::file(self.path(), format!("tensor '{}': {error}", self.stored_name(name)))
            }
            error => error,
        })
    }

    /// All values of a tensor, with its rows in Hugging Face's order.
    ///
    /// # Errors
    /// Those of [`raw`](ModelFiles::raw).
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        let t = self.raw(name)?;
        let mut values = t.values()?;
        if self.config.norm.one_more && matches!(self.kind, Kind::Gguf(_)) && name.ends_with("norm.weight") {
            // GGUF files have the 1 in their norms.
            values.iter_mut().for_each(|v| *v -= 1.0);
        }
        let Some(order) = self.row_order(name) else { return Ok(values) };
        // A bias has one value for each row of its matrix.
        let (rows, cols) = if t.axes == 1 { (t.cols, 1) } else { (t.rows, t.cols) };
        Ok((0..rows).flat_map(|r| values[order(r) * cols..][..cols].to_vec()).collect())
    }
}

/// Refuses more layers than the tensors of the files are half enough for: the list of what is missing would be as long
/// as the number says.
fn check_layers(path: &Path, config: &ModelConfig, tensors: usize) -> Result<()> {
    let layers = config.num_hidden_layers;
    let each = config.layer_tensors(0).len();
    if each.min(9) * layers <= 2 * tensors {
        return Ok(());
    }
    let what = format!(
        "num_hidden_layers is {layers} in the configuration, but there are {tensors} tensors; a layer has \
         {each}"
    );
    Err(Error::file(path, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_worlds() {
        for (ours, theirs) in [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("lm_head.weight", "output.weight"),
            ("model.norm.weight", "output_norm.weight"),
            ("model.layers.10.input_layernorm.weight", "blk.10.attn_norm.weight"),
            ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
            ("model.layers.1.self_attn.k_proj.bias", "blk.1.attn_k.bias"),
            ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
        ] {
            assert_eq!(gguf_name(ours), theirs);
        }
    }

    #[test]
    fn interleaving_is_an_order() {
        let order: Vec<usize> = (0..8).map(|r| interleaved_row(4, r)).collect();
        assert_eq!(order, [0, 2, 1, 3, 4, 6, 5, 7]);
        let order: Vec<usize> = (0..12).map(|r| interleaved_row(6, r)).collect();
        assert_eq!(order, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }
}
