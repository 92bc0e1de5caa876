//! What only a plain LoRA can do: become part of the weights, or a file for other programs.

use super::{Adapter, Matrix};
use crate::io::gguf::{GgufWriter, Value};
use crate::mixture::SitePart;
use crate::model::{Model, gguf_row};
use crate::{Device, Error, Format, Result, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// Both factors of a linear, in host memory.
struct Pair {
    r: usize,
    /// `[r, d_in]`
    a: Vec<f32>,
    /// `[r, d_out]`
    b: Vec<f32>,
}

impl Adapter {
    /// Refuses what depends on the input; `what` is what was asked for.
    fn must_be_plain(&self, what: &str) -> Result<()> {
        if self.method.spec().mergeable {
            return Ok(());
        }
        Err(Error::refused(
            "method",
            format!(
                "{what} needs an update that is the same for every input; {} chooses its factors by the input, so no \
                 single matrix is equal to it. Keep it as an adapter beside the model (generate, chat and eval take \
                 --adapter), or train a plain LoRA (--method lora)",
                self.method.name()
            ),
        ))
    }

    /// Refuses a method that cannot be merged, and says why.
    pub fn check_mergeable(&self) -> Result<()> {
        self.must_be_plain("merging")
    }

    /// `lora_alpha / r`
    fn plain_scale(&self) -> f32 {
        self.method.options().scale()
    }

    /// The factors of every linear, by its path.
    fn pairs(&self) -> Result<BTreeMap<String, Pair>> {
        let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
        for p in self.params() {
            for matrix in Matrix::of(&p, &p.value())? {
                let Some((path, which)) = matrix.name.rsplit_once('.') else { continue };
                let pair = pairs.entry(path.into()).or_insert(Pair { r: matrix.rows, a: vec![], b: vec![] });
                *(if which == "lora_a" { &mut pair.a } else { &mut pair.b }) = matrix.values;
            }
        }
        Ok(pairs)
    }

    /// Writes the model with the update added to its weights: `W + (lora_alpha / r) B A`, as a Hugging Face directory
    /// without tokenizer files. The directory must exist.
    ///
    /// # Errors
    /// The method's update depends on the input, or the directory cannot be written.
    pub fn merge(&self, model: &Model, dir: &Path, format: Format) -> Result<()> {
        self.check_mergeable()?;
        model.save(dir, format, &self.update_of_weights()?)
    }

    /// Adds the update to the values of a matrix, by its name.
    fn update_of_weights(&self) -> Result<impl Fn(&str, &mut [f32]) -> Result<()>> {
        let pairs = self.pairs()?;
        let scale = self.plain_scale();
        let cpu = Device::cpu();
        Ok(move |name: &str, values: &mut [f32]| {
            let Some(pair) = name.strip_suffix(".weight").and_then(|path| pairs.get(path)) else {
                return Ok(());
            };
            let tensor = |v: &[f32]| Tensor::from_f32(&cpu, &[pair.r, v.len() / pair.r], v);
            // B is kept as [r, out]: its transpose times A.
            let update = tensor(&pair.b)?.matmul_tn(&tensor(&pair.a)?)?.to_f32()?;
            values.iter_mut().zip(update).for_each(|(w, u)| *w += scale * u);
            Ok(())
        })
    }

    /// Writes the merged model as a GGUF file: see [`Model::save_gguf`].
    ///
    /// # Errors
    /// The method's update depends on the input, or those of [`Model::save_gguf`].
    pub fn merge_gguf(
        &self,
        model: &Model,
        path: &Path,
        format: Format,
        text: Vec<(String, Value)>,
    ) -> Result<()> {
        self.check_mergeable()?;
        model.save_gguf(path, format, text, &self.update_of_weights()?)
    }

    /// Writes the update as a GGUF adapter that llama.cpp loads with `--lora`.
    ///
    /// # Errors
    /// The method's update depends on the input, llama.cpp's names of the model's family are not known, or the file cannot
    /// be written.
    pub fn export_gguf(&self, model: &Model, path: &Path) -> Result<()> {
        self.must_be_plain("a GGUF adapter")?;
        if self.method.options().takes(SitePart::Expert) {
            let what = "llama.cpp has the experts of a layer in one tensor, and no GGUF adapter for a part of it; merging \
                        writes a Hugging Face directory";
            return Err(Error::refused("method", what));
        }
        let c = model.config();
        let Some(architecture) = c.gguf_architecture() else {
            let what = format!(
                "llama.cpp's names of a {} model are not known, so no GGUF adapter can be written; the adapter's own \
                 directory is in PEFT's format, and merging writes a Hugging Face directory",
                c.model_type
            );
            return Err(Error::refused("model", what));
        };
        let mut file = GgufWriter::default();
        for (key, text) in
            [("general.type", "adapter"), ("general.architecture", architecture), ("adapter.type", "lora")]
        {
            file.set(key, Value::String(text.into()));
        }
        // llama.cpp divides by r itself.
        file.set("adapter.lora.alpha", Value::F32(self.method.options().alpha()));
        for (path, pair) in self.pairs()? {
            let name = c.gguf_name(&format!("{path}.weight"));
            let (r, out) = (pair.r, pair.b.len() / pair.r);
            // Row i of the file's B is the row that the file's weights have there.
            let b: Vec<f32> = (0..out)
                .flat_map(|i| {
                    let row = gguf_row(c, &path, i);
                    (0..r).map(move |k| (k, row))
                })
                .map(|(k, row)| pair.b[k * out + row])
                .collect();
            file.tensor(format!("{name}.lora_a"), vec![pair.a.len() / r, r], pair.a);
            file.tensor(format!("{name}.lora_b"), vec![r, out], b);
        }
        file.write(path)
    }
}
