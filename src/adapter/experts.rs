//! Trained LoRAs as the experts of a method that mixes them.

use super::layout::{MixloraConfig, OWN};
use super::peft_config::{PeftConfig, read_config};
use super::{ALL_LINEAR, Adapter, Matrix, locate};
use crate::io::read_json;
use crate::mixture::{Files, Method, Methods, TakesExperts};
use crate::model::{Model, ModelConfig};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A trained LoRA that is to be an expert, of this crate or of PEFT; its options are read, its values are not yet.
pub struct Expert {
    /// What it is called: where a method knows tasks, the task that is its own.
    pub name: String,
    dir: PathBuf,
    lora: Method,
    targets: Vec<String>,
}

/// The name and the path of `NAME=DIR` or of `DIR` alone, whose last part is then the name.
pub(crate) fn named_path(text: &str) -> (String, &Path) {
    match text.split_once('=') {
        Some((name, dir)) if !name.is_empty() && !name.contains(['/', '\\']) => (name.into(), Path::new(dir)),
        _ => {
            let name = Path::new(text).file_name();
            (name.map_or_else(|| text.into(), |name| name.to_string_lossy().into_owned()), Path::new(text))
        }
    }
}

impl Expert {
    /// Reads what a LoRA is: `DIR` or `NAME=DIR`, where DIR is the folder of an adapter or of a run.
    ///
    /// # Errors
    /// It is no LoRA, or its targets are none of the model.
    pub fn open(text: &str, model: &ModelConfig) -> Result<Self> {
        let (name, dir) = named_path(text);
        let dir = locate(dir)?;
        let (lora, targets) = match dir.join(OWN) {
            own if own.exists() => {
                let config: MixloraConfig = read_json(&own)?;
                config.check_version(&own)?;
                let (method, _) = config.method(&own, &Methods::builtin())?;
                if method.spec().files != Files::Peft {
                    let what = format!("is a {}; only LoRAs can be experts", method.name());
                    return Err(Error::file(&own, what));
                }
                (method, config.target_modules)
            }
            _ => {
                let path = dir.join("adapter_config.json");
                let lora = Methods::builtin().of_files(Files::Peft)?;
                PeftConfig::of(&path, read_config(&path)?)?.lora_options(&path, lora, model)?
            }
        };
        Ok(Expert { name, dir, lora, targets })
    }

    /// Reads what several are.
    ///
    /// # Errors
    /// Those of [`open`](Expert::open).
    pub fn open_all(texts: &[String], model: &ModelConfig) -> Result<Vec<Self>> {
        texts.iter().map(|text| Expert::open(text, model)).collect()
    }

    fn rank(&self) -> usize {
        self.lora.options().lora().r
    }
    fn scale(&self) -> f32 {
        self.lora.options().alpha() / self.rank() as f32
    }
}

/// The method with as many experts, of a rank that holds each, and its tasks their names where it knows none; and the
/// targets, which are those of the experts where all are asked for.
///
/// # Errors
/// The method takes none or needs some, two have the same name, or their linears are others.
pub fn with_experts(
    method: &Method,
    targets: &[String],
    experts: &[Expert],
) -> Result<(Method, Vec<String>)> {
    let Some(first) = experts.first() else {
        if method.options().takes_experts() == TakesExperts::Needed {
            let what = format!(
                "{} mixes LoRAs that are trained already: name their folders with --experts",
                method.name()
            );
            return Err(Error::refused("experts", what));
        }
        return Ok((method.clone(), targets.to_vec()));
    };
    if method.options().takes_experts() == TakesExperts::No {
        let taking = Methods::builtin();
        let taking =
            taking.all().iter().filter(|m| m.defaults().options().takes_experts() != TakesExperts::No);
        let taking: Vec<&str> = taking.map(|m| m.name).collect();
        let what = format!("{} takes no trained LoRAs as experts; {} do", method.name(), taking.join(", "));
        return Err(Error::refused("experts", what));
    }
    let targets = match targets {
        [all] if all == ALL_LINEAR => first.targets.clone(),
        given => given.to_vec(),
    };
    let sorted = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort();
        names
    };
    for (i, expert) in experts.iter().enumerate() {
        if sorted(&expert.targets) != sorted(&targets) {
            let what = format!(
                "'{}' adapts {}, but the run's target_modules are {}: experts must adapt the same linears",
                expert.name,
                expert.targets.join(", "),
                targets.join(", ")
            );
            return Err(Error::refused("experts", what));
        }
        if experts[..i].iter().any(|other| other.name == expert.name) {
            let what = format!("two are called '{}'; give them names: NAME=DIR", expert.name);
            return Err(Error::refused("experts", what));
        }
    }
    let rank = experts.iter().map(Expert::rank).max().unwrap_or(1);
    let scale = experts.iter().map(Expert::scale).fold(0.0, f32::max);
    let mut method = method
        .with("num_experts", experts.len())?
        .with("r", rank)?
        .with("lora_alpha", scale * rank as f32)?;
    if method.options().tasks().is_some_and(|tasks| tasks.tasks.0.is_empty()) {
        method = method.with("tasks", experts.iter().map(|e| e.name.clone()).collect::<Vec<_>>())?;
    }
    Ok((method, targets))
}

/// A pool of experts of `rank` rows each, from one matrix for each, times a factor; missing rows are 0.
pub(crate) fn pool(experts: &[(Matrix, f32)], rank: usize, cols: usize) -> Vec<f32> {
    let mut all = vec![0.0; experts.len() * rank * cols];
    for (block, (matrix, factor)) in all.chunks_mut((rank * cols).max(1)).zip(experts) {
        block.iter_mut().zip(&matrix.values).for_each(|(value, v)| *value = v * factor);
    }
    all
}

impl Adapter {
    /// Puts trained LoRAs in the place of its experts. A scale of their own goes into B.
    ///
    /// # Errors
    /// A LoRA is of another base model or of other linears, or a file is damaged.
    pub fn take_experts(&self, experts: &[Expert], model: &Model) -> Result<()> {
        let options = self.method.options();
        let rank = options.lora().r;
        let scale = options.alpha() / rank as f32;
        let mut loaded = Vec::new();
        for expert in experts {
            let adapter = Adapter::load(&expert.dir, model)?;
            let parts =
                adapter.params().iter().map(|p| Matrix::of(p, &p.value())).collect::<Result<Vec<_>>>()?;
            let parts = parts.into_iter().flatten().map(|matrix| (matrix.name.clone(), matrix));
            loaded.push((parts.collect::<HashMap<_, _>>(), expert));
        }
        for param in self.params() {
            let device = param.value().device().clone();
            let cols = param.value().shape().last();
            let mut values = HashMap::new();
            for (part, rows) in param.parts() {
                if let Some(pool) = pool_of(&loaded, part, [*rows, rank, cols], scale)? {
                    values.insert(part.clone(), pool);
                }
            }
            if values.len() == param.parts().len() {
                param.load(&device, |part| values.get(part).cloned())?;
            }
        }
        Ok(())
    }
}

/// The pool of a part `[rows, cols]` from the matrices that experts have there; none where they have none.
fn pool_of(
    loaded: &[(HashMap<String, Matrix>, &Expert)],
    part: &str,
    [rows, rank, cols]: [usize; 3],
    scale: f32,
) -> Result<Option<Vec<f32>>> {
    // Copies of where experts started are named after them.
    let name = part.strip_suffix("_start").unwrap_or(part);
    let of_b = name.ends_with(".lora_b");
    let mut each = Vec::new();
    for (parts, expert) in loaded {
        let Some(matrix) = parts.get(name) else { return Ok(None) };
        each.push((matrix.clone(), if of_b { expert.scale() / scale } else { 1.0 }));
    }
    let fits = each.iter().all(|(matrix, _)| matrix.cols == cols && matrix.rows <= rank);
    if each.is_empty() || (fits && each.len() * rank == rows) {
        return Ok((!each.is_empty()).then(|| pool(&each, rank, cols)));
    }
    let found: Vec<_> = each.iter().map(|(matrix, _)| [matrix.rows, matrix.cols]).collect();
    let wanted = format!("{} matrices of at most [{rank}, {cols}]", rows / rank.max(1));
    Err(Error::config(part, format!("{found:?}"), wanted))
}
