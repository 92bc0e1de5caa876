//! An adapter without a model: what a folder holds, to be read, changed, written and attached.

use super::base::Base;
use super::layout::{self, MixloraConfig};
use super::{Adapter, PartShape, VisionPart};
use crate::io::{Named, read_json, safetensors_bytes};
use crate::mixture::{Method, MethodSpec, Methods};
use crate::model::Model;
use crate::nn::Param;
use crate::{Error, Result, Stream, Tensor, atomic};
use std::collections::HashMap;
use std::path::Path;

/// How an adapter is taken from its files.
#[derive(Debug, Clone, Default)]
pub struct AdapterOptions {
    /// Takes an adapter that was trained on other weights, if the shapes fit.
    pub force: bool,
    /// The methods that its files may name.
    pub methods: Methods,
}

/// A named matrix in host memory, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// As the parts of parameters are named, for example `model.layers.0.self_attn.q_proj.lora_a`.
    pub name: String,
    pub rows: usize,
    pub cols: usize,
    pub values: Vec<f32>,
}

impl Matrix {
    /// The parts of a tensor of a parameter's shape.
    ///
    /// # Errors
    /// The values cannot be read from the device.
    pub fn of(param: &Param, tensor: &Tensor) -> Result<Vec<Self>> {
        let part = |(name, rows, values): (String, usize, Vec<f64>)| {
            let cols = values.len() / rows.max(1);
            Matrix { name, rows, cols, values: values.into_iter().map(|v| v as f32).collect() }
        };
        Ok(param.split(tensor)?.into_iter().map(part).collect())
    }

    /// The transpose.
    pub fn transposed(self) -> Self {
        let values = transpose(&self.values, self.rows, self.cols);
        Matrix { name: self.name, rows: self.cols, cols: self.rows, values }
    }

    /// The matrix as a file has it, under another name.
    pub(crate) fn named(self, name: String) -> Named {
        Named { name, dims: vec![self.rows, self.cols], values: self.values }
    }
}

/// The transpose of a matrix, row by row.
pub(super) fn transpose(v: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| v[r * cols + c])).collect()
}

/// Matrices as a safetensors file with the names that the method's files have.
pub(super) fn to_safetensors(method: &MethodSpec, matrices: Vec<Matrix>) -> Result<Vec<u8>> {
    let stored = matrices.into_iter().map(|matrix| {
        let (name, transposed) = layout::stored_name(method, &matrix.name);
        if transposed { matrix.transposed().named(name) } else { matrix.named(name) }
    });
    safetensors_bytes(stored.collect())
}

/// A method, its options and its matrices, without a model: of a folder that this crate wrote, or of an adapter.
///
/// ```no_run
/// use mixlora::adapter::AdapterWeights;
/// use mixlora::mixture::Methods;
/// use std::path::Path;
/// // Half of an adapter, without a look at its base.
/// let mut weights = AdapterWeights::read(Path::new("run/best"), &Methods::builtin())?;
/// for b in weights.matrices.iter_mut().filter(|m| m.name.ends_with("_b")) {
///     b.values.iter_mut().for_each(|v| *v *= 0.5);
/// }
/// weights.save(Path::new("half"))?;
/// # Ok::<(), mixlora::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct AdapterWeights {
    pub method: Method,
    pub targets: Vec<String>,
    pub matrices: Vec<Matrix>,
    /// What its base model is called.
    pub base_name: String,
    base: Base,
    vision: Option<VisionPart>,
}

impl AdapterWeights {
    /// The present values of an adapter of a model.
    ///
    /// # Errors
    /// The values cannot be read from the device.
    pub fn of(adapter: &Adapter, model: &Model, base_name: &str) -> Result<Self> {
        let each = adapter.params().iter().map(|p| Matrix::of(p, &p.value())).collect::<Result<Vec<_>>>()?;
        Ok(AdapterWeights {
            method: adapter.method.clone(),
            targets: adapter.targets.clone(),
            matrices: each.into_iter().flatten().collect(),
            base_name: base_name.into(),
            base: Base::of(model),
            vision: adapter.vision().map(VisionPart::copied).transpose()?,
        })
    }

    /// Reads the folder of an adapter that this crate wrote; `methods` are those that it may be of.
    ///
    /// # Errors
    /// A file is missing or malformed; the error names it.
    pub fn read(dir: &Path, methods: &Methods) -> Result<Self> {
        let dir = &super::locate(dir)?;
        let path = dir.join(layout::OWN);
        let config: MixloraConfig = read_json(&path)?;
        config.check_version(&path)?;
        let (method, _) = config.method(&path, methods)?;
        let file = layout::open_tensors(dir)?;
        let mut matrices = Vec::new();
        for name in file.names().map(String::from).collect::<Vec<_>>() {
            let [rows, cols] = *file.dims(&name)? else {
                return Err(Error::file(file.path(), format!("tensor '{name}' is no matrix")));
            };
            let (part, transposed) = layout::part_name(method.spec(), &name);
            let matrix = Matrix { name: part, rows, cols, values: file.values_f32(&name)? };
            matrices.push(if transposed { matrix.transposed() } else { matrix });
        }
        let base_name = layout::base_name(dir).unwrap_or_default();
        // Files of version 0.1.0 leave the alpha out where it is the method's own.
        let method = method.resolved();
        let vision = config.vision.map(|base| VisionPart::read(dir, base)).transpose()?;
        let targets = config.target_modules;
        Ok(AdapterWeights { method, targets, matrices, base_name, base: config.base, vision })
    }

    /// The matrix of a part.
    pub fn matrix(&self, name: &str) -> Option<&Matrix> {
        self.matrices.iter().find(|m| m.name == name)
    }

    /// The files of the adapter's directory, by name. Their bytes depend on the values alone.
    ///
    /// # Errors
    /// The options cannot be written.
    pub fn files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let vision = self.vision.as_ref();
        let base = vision.map(VisionPart::base);
        let mut files = layout::texts(&self.method, &self.targets, &self.base, &self.base_name, base)?;
        let tensors = to_safetensors(self.method.spec(), self.matrices.clone())?;
        files.push((layout::TENSORS.into(), tensors));
        files.extend(vision.map(VisionPart::file).transpose()?.flatten());
        Ok(files)
    }

    /// Writes the adapter into a directory, which is created. Every file is written whole or not at all.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir)
            .map_err(|error| Error::file(dir, format!("cannot be created: {error}")))?;
        self.files()?.iter().try_for_each(|(name, bytes)| atomic::write(&dir.join(name), bytes))
    }

    /// The adapter on a model.
    ///
    /// # Errors
    /// The model is another one than the adapter's base (unless forced), or a matrix is missing, too many or of another
    /// shape.
    pub fn attach(&self, model: &Model, options: &AdapterOptions) -> Result<Adapter> {
        if !options.force {
            self.base.check(Path::new("adapter"), Some(&self.base_name), model)?;
        }
        let projector = self.vision.as_ref().map_or(&[][..], VisionPart::mixed_projector);
        let parts = Adapter::parts(model, projector, &self.method, &self.targets)?;
        parts.iter().try_for_each(|part| self.check(part))?;
        if let Some(m) = self.matrices.iter().find(|m| !parts.iter().any(|p| p.name == m.name)) {
            return Err(Error::refused(&m.name, "is for a place that this adapter does not have"));
        }
        let stream = Stream::new(0);
        let adapter = Adapter::attach_beside(model, projector, &self.method, &self.targets, stream)?;
        let values = |part: &str| self.matrix(part).map(|m| m.values.clone()).unwrap_or_default();
        adapter.fill_with(|part, _, _| Ok(values(part)))?;
        Ok(adapter.with_vision(self.vision.clone()))
    }

    fn check(&self, part: &PartShape) -> Result<()> {
        let fail = |what: String| Err(Error::refused(&part.name, what));
        match self.matrix(&part.name) {
            None => fail("is missing".into()),
            Some(m) if (m.rows, m.cols) == (part.rows, part.cols) && m.values.len() == m.rows * m.cols => {
                Ok(())
            }
            Some(m) => fail(format!(
                "has {} values as [{}, {}], expected [{}, {}]",
                m.values.len(),
                m.rows,
                m.cols,
                part.rows,
                part.cols
            )),
        }
    }
}

impl Adapter {
    /// Puts values into the parameters, part by part: name, rows, columns.
    pub(super) fn fill_with(&self, read: impl Fn(&str, usize, usize) -> Result<Vec<f32>>) -> Result<()> {
        for p in self.params() {
            let value = p.value();
            let width = value.len() / p.parts().iter().map(|p| p.1).sum::<usize>().max(1);
            let mut parts = HashMap::new();
            for (part, rows) in p.parts() {
                parts.insert(part.clone(), read(part, *rows, width)?);
            }
            p.load(value.device(), |part| parts.get(part).cloned())?;
        }
        Ok(())
    }
}
