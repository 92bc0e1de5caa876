//! A decoder as a GGUF file that llama.cpp loads.

use super::save::{Change, Part};
use super::{Model, ModelConfig, ModelFiles, gguf_config, gguf_row};
use crate::io::GgufFile;
use crate::io::gguf::{GgufWriter, Value};
use crate::ops::rope::RopeScaling;
use crate::{Error, Format, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// Entries of a file that are about its own tensors, or about how it is cut into parts.
const OF_TENSORS: [&str; 4] = ["general.file_type", "general.quantization_version", "split.", "quantize."];
/// Tables of factors on frequencies.
const ROPE_TABLES: [&str; 3] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];
/// `general.file_type` of llama.cpp by format.
const FILE_TYPES: [(Format, u32); 11] = [
    (Format::F32, 0),
    (Format::F16, 1),
    (Format::Q4_0, 2),
    (Format::Q4_1, 3),
    (Format::Q8_0, 7),
    (Format::Q5_0, 8),
    (Format::Q5_1, 9),
    // The files whose matrices all have the format but for the head, which llama.cpp calls small.
    (Format::Q4_K, 14),
    (Format::Q5_K, 16),
    (Format::Q6_K, 18),
    (Format::Bf16, 32),
];

/// The tensors that one of a GGUF file is made of: one, or those of all experts.
struct Stacked {
    names: Vec<String>,
    /// Outermost first.
    dims: Vec<usize>,
}

impl Model {
    /// Writes the model, its matrices changed on the way, as a GGUF file. Adapters are left out. Matrices get the format, or
    /// where their rows have no whole blocks of it the one that [`Format::for_columns`] gives; the head of 4 and 5 bits is q6_k, as
    /// llama.cpp has it. Vectors and routers of experts are f32. `text` are the entries of metadata about text, where the
    /// model was no GGUF file; those of a GGUF file are kept.
    ///
    /// # Errors
    /// llama.cpp has no name for the family, or no word for what the model computes; a value is too large for its format, or
    /// the file cannot be written.
    pub fn save_gguf(
        &self,
        path: &Path,
        format: Format,
        text: Vec<(String, Value)>,
        change: Change<'_>,
    ) -> Result<()> {
        let base = ModelFiles::open(&self.origin)?;
        let parts = self.parts();
        let mut file = GgufWriter::default();
        match base.gguf() {
            Some(base) => keep_metadata(base, &mut file),
            None => {
                self.config.describe_gguf(&mut file)?;
                if let Some(name) = base.path().parent().and_then(Path::file_name) {
                    file.set("general.name", Value::String(name.to_string_lossy().into_owned()));
                }
                text.into_iter().for_each(|(key, value)| file.set(&key, value));
            }
        }
        let number = FILE_TYPES.iter().find(|(of, _)| *of == format).map_or(0, |(_, number)| *number);
        file.set("general.file_type", Value::U32(number));
        file.set("general.quantization_version", Value::U32(2));
        for (name, values) in self.rope_tables(base.gguf())? {
            file.tensor(name, vec![values.len()], values);
        }
        for (name, stacked) in self.stacked() {
            let cols = stacked.dims.last().copied().unwrap_or(1);
            let of = &stacked.names[0];
            let head = *of == "lm_head.weight"
                || (*of == "model.embed_tokens.weight" && self.config.tie_word_embeddings);
            let wanted = match format {
                Format::Q4_K | Format::Q5_K if head => Format::Q6_K,
                format => format,
            };
            let plain = stacked.dims.len() == 1 || self.config.routes_experts(of);
            let format = if plain { Format::F32 } else { wanted.for_columns(cols) };
            let dims = stacked.dims.iter().rev().copied().collect();
            let parts = &parts;
            file.tensor_with(name, dims, format, move || {
                let mut all = Vec::new();
                for name in &stacked.names {
                    all.append(&mut self.values_of(parts, name, change)?);
                }
                Ok(all)
            });
        }
        let fail = |what: String| Error::file(path, what);
        let name = path.file_name().ok_or_else(|| fail("is not a file name".into()))?;
        let unfinished = path.with_file_name(format!(".{}.unfinished", name.to_string_lossy()));
        let written = file.write(&unfinished).and_then(|()| self.check_written(&unfinished)).and_then(|()| {
            std::fs::rename(&unfinished, path).map_err(|error| fail(format!("cannot be renamed: {error}")))
        });
        if written.is_err() {
            // What stood there before is as it was.
            let _ = std::fs::remove_file(&unfinished);
        }
        written
    }

    /// The values of a tensor in the order of rows that GGUF files have.
    fn values_of(
        &self,
        parts: &BTreeMap<String, Part<'_>>,
        name: &str,
        change: Change<'_>,
    ) -> Result<Vec<f32>> {
        let missing = || Error::refused("model", format!("tensor '{name}' is not there"));
        let (values, cols) = match parts.get(name).ok_or_else(missing)? {
            Part::Matrix(weight) => {
                let mut values = weight.to_f32()?;
                change(name, &mut values)?;
                (values, weight.cols())
            }
            // With the 1 that some norms add, as files have it.
            Part::Vector(vector, _) => (vector.to_f32()?, 1),
        };
        let rows = values.len() / cols.max(1);
        if (0..rows).all(|row| gguf_row(&self.config, name, row) == row) {
            return Ok(values);
        }
        let row = |at: usize| &values[gguf_row(&self.config, name, at) * cols..][..cols];
        Ok((0..rows).flat_map(|at| row(at).iter().copied()).collect())
    }

    /// Tensors by their names in GGUF files, in the order of the model.
    fn stacked(&self) -> Vec<(String, Stacked)> {
        let mut all: Vec<(String, Stacked)> = Vec::new();
        for tensor in self.config.tensors() {
            let name = self.config.gguf_name(&tensor.name);
            let dims: Vec<usize> = tensor.axes.iter().map(|axis| axis.0).collect();
            match all.iter_mut().rev().find(|(known, _)| *known == name) {
                Some((_, stacked)) => stacked.names.push(tensor.name),
                None => all.push((name, Stacked { names: vec![tensor.name], dims })),
            }
        }
        for (_, stacked) in &mut all {
            let experts = stacked.names[0].contains(".experts.");
            stacked.dims.splice(0..0, experts.then_some(stacked.names.len()));
        }
        all
    }

    /// Tables of factors: those of the file, or what the configuration makes.
    fn rope_tables(&self, base: Option<&GgufFile>) -> Result<Vec<(String, Vec<f32>)>> {
        let narrow = |values: &[f64]| values.iter().map(|v| *v as f32).collect::<Vec<f32>>();
        let mut all = Vec::new();
        if let Some(base) = base {
            for name in ROPE_TABLES {
                if base.tensors().contains_key(name) {
                    all.push((name.to_string(), base.values_f32(name)?));
                }
            }
            return Ok(all);
        }
        let Some(rope) = self.config.ropes.first() else { return Ok(all) };
        match &rope.scaling {
            RopeScaling::Llama3(_) => {
                let plain = RopeScaling::Default.frequencies(rope.dims, rope.theta, 1)?.per_pair;
                let scaled = rope.frequencies(1)?.per_pair;
                let factors: Vec<f64> =
                    plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled).collect();
                all.push((ROPE_TABLES[0].into(), narrow(&factors)));
            }
            RopeScaling::LongRope(long) => {
                all.push((ROPE_TABLES[1].into(), narrow(&long.long_factor)));
                all.push((ROPE_TABLES[2].into(), narrow(&long.short_factor)));
            }
            _ => {}
        }
        Ok(all)
    }

    /// Refuses a file that does not say what the model computes.
    fn check_written(&self, path: &Path) -> Result<()> {
        let read = gguf_config::read(&GgufFile::open(path)?);
        if read.is_ok_and(|read| self.config.is_same(&read)) {
            return Ok(());
        }
        let what = format!(
            "a GGUF file cannot say all that this {} model computes; merging writes a Hugging Face directory",
            self.config.model_type
        );
        Err(Error::refused("model", what))
    }
}

/// Takes over what a file says of its model and its text.
fn keep_metadata(base: &GgufFile, file: &mut GgufWriter<'_>) {
    let kept = base.metadata().iter().filter(|(key, _)| {
        !OF_TENSORS.iter().any(|start| key.starts_with(start)) && *key != "general.alignment"
    });
    kept.for_each(|(key, value)| file.set(key, value.clone()));
}

impl ModelConfig {
    /// What the model computes, in llama.cpp's words.
    fn describe_gguf(&self, file: &mut GgufWriter<'_>) -> Result<()> {
        let Some(architecture) = self.gguf_architecture() else {
            let what = format!(
                "llama.cpp's names of a {} model are not known, so no GGUF file can be written; merging writes a Hugging Face \
                 directory",
                self.model_type
            );
            return Err(Error::refused("model", what));
        };
        file.set("general.architecture", Value::String(architecture.into()));
        file.set("general.type", Value::String("model".into()));
        let mut size =
            |name: &str, n: usize| file.set(&format!("{architecture}.{name}"), Value::U32(n as u32));
        size("block_count", self.num_hidden_layers);
        size("context_length", self.max_position_embeddings);
        size("embedding_length", self.hidden_size);
        size("feed_forward_length", self.intermediate_size);
        size("attention.head_count", self.num_attention_heads);
        size("attention.head_count_kv", self.num_key_value_heads);
        size("attention.key_length", self.head_dim);
        size("attention.value_length", self.head_dim);
        size("vocab_size", self.vocab_size);
        if let Some(window) = self.layers.iter().find_map(|layer| layer.window) {
            size("attention.sliding_window", window);
        }
        if let Some(experts) = &self.experts {
            size("expert_count", experts.count);
            size("expert_used_count", experts.chosen);
            size("expert_feed_forward_length", experts.width);
            if let Some(shared) = experts.shared {
                size("expert_shared_feed_forward_length", shared);
            }
        }
        let rope = self.ropes.first();
        if let Some(rope) = rope {
            size("rope.dimension_count", rope.dims);
        }
        let mut number =
            |name: &str, v: f64| file.set(&format!("{architecture}.{name}"), Value::F32(v as f32));
        let eps =
            if self.norm.layer { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
        number(eps, self.norm.eps.into());
        if let Some(rope) = rope {
            number("rope.freq_base", rope.theta);
        }
        if let Some(local) = self.ropes.get(1) {
            number("rope.freq_base_swa", local.theta);
        }
        if let Some(cap) = self.attention_softcap {
            number("attn_logit_softcapping", cap.into());
        }
        if let Some(cap) = self.logit_softcap {
            number("final_logit_softcapping", cap.into());
        }
        match architecture {
            // Granite divides logits by its number, Cohere multiplies.
            "granite" => {
                number("embedding_scale", self.embedding_scale.into());
                number("attention.scale", self.attention_scale.into());
                number("residual_scale", self.residual_scale.into());
                number("logit_scale", 1.0 / f64::from(self.logit_scale));
            }
            "cohere2" => number("logit_scale", self.logit_scale.into()),
            _ => {}
        }
        if let Some(rope) = rope {
            scaling(&rope.scaling, architecture, file);
        }
        Ok(())
    }
}

/// How frequencies are scaled; tables are tensors.
fn scaling(scaling: &RopeScaling, architecture: &str, file: &mut GgufWriter<'_>) {
    let mut set = |name: &str, value: Value| file.set(&format!("{architecture}.rope.scaling.{name}"), value);
    let kind = |name: &str, factor: f64, set: &mut dyn FnMut(&str, Value)| {
        set("type", Value::String(name.into()));
        set("factor", Value::F32(factor as f32));
    };
    match scaling {
        RopeScaling::Linear { factor } => kind("linear", *factor, &mut set),
        RopeScaling::Yarn(yarn) => {
            kind("yarn", yarn.factor, &mut set);
            set("original_context_length", Value::U32(yarn.original_max_position_embeddings as u32));
            set("yarn_beta_fast", Value::F32(yarn.beta_fast as f32));
            set("yarn_beta_slow", Value::F32(yarn.beta_slow as f32));
        }
        RopeScaling::LongRope(long) => {
            set("original_context_length", Value::U32(long.original_max_position_embeddings as u32));
            if let Some(factor) = long.attention_factor {
                set("attn_factor", Value::F32(factor as f32));
            }
        }
        RopeScaling::Default | RopeScaling::Llama3(_) | RopeScaling::Factors(_) => {}
    }
}
