//! Conditional MixLoRA as VT-NLP released it: their names and layout, read as the method `vt-nlp`.
//!
//! Their trainer writes pickles, which are never read here: `adapter_model.bin` with the factors, and
//! `pytorch_model.bin` with everything, of which the tensors named `lora_` and `cmoa_` are the adapter. Saved as
//! `adapter_model.safetensors` they load; the routers may also be apart, in `non_lora_trainables.safetensors`.
//! Source: VT-NLP/MixLoRA at af5cc3f, `llava/peft_cmoa/cmoa_lora.py`, `mixture/selector.py`, and `_save` in
//! `llava/train/llava_trainer.py`.

use super::PartShape;
use super::peft_config::PeftConfig;
use crate::io::Checkpoint;
use crate::mixture::{CfsForm, ConditionKind, Method, MethodSpec, Pool, RouterInput};
use crate::model::ModelConfig;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Where LLaVA's trainers keep what is not called `lora_`.
const OTHERS: &str = "non_lora_trainables.safetensors";

/// What to do where tensors are missing: the routers are in the file of everything alone.
const CONVERT: &str = "adapter_model.bin of the release has the factors without the routers. Where you trust its \
                       pytorch_model.bin, convert that: t = torch.load('pytorch_model.bin', weights_only=True); \
                       safetensors.torch.save_file({k: v.contiguous() for k, v in t.items() if '.lora_' in k or \
                       '.cmoa_' in k}, 'adapter_model.safetensors')";

/// The tensors of a released adapter, by the part of their names from `layers.` on.
pub(super) struct Released {
    files: Vec<Checkpoint>,
    /// Short name to file and full name.
    names: BTreeMap<String, (usize, String)>,
}

/// What of a method says how the release names its parts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// Whether B's choice has a condition.
    cfs: bool,
    /// Whether one A serves all instances.
    one_a: bool,
}

impl Layout {
    pub fn of(method: &Method) -> Self {
        let options = method.tree();
        Layout { cfs: !options["cfs_form"].is_null(), one_a: options["mix_lora_a"] == false }
    }
}

/// Whether a configuration is one of the release: it writes the type LORA and says how many experts there are.
pub(super) fn is_released(c: &PeftConfig) -> bool {
    c.rest.contains_key("n_experts") || c.rest.contains_key("cond_type")
}

impl Released {
    pub fn open(dir: &Path) -> Result<Self> {
        let mut files = vec![super::layout::open_tensors(dir)?];
        if dir.join(OTHERS).is_file() {
            files.push(Checkpoint::open(dir.join(OTHERS))?);
        }
        let mut names = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            for name in file.names() {
                if let Some(at) = name.find("layers.") {
                    // Saved by PEFT itself, the adapter's name is gone from the middle.
                    let short = name[at..].replace(".default.", ".");
                    names.insert(short, (i, name.to_string()));
                }
            }
        }
        Ok(Released { files, names })
    }

    fn path(&self) -> &Path {
        self.files[0].path()
    }

    /// The options and targets that the configuration and the tensors say.
    pub fn options(
        &self,
        path: &Path,
        c: &PeftConfig,
        method: &'static MethodSpec,
        model: &ModelConfig,
    ) -> Result<(Method, Vec<String>)> {
        let no = |what: String| Err(Error::file(path, what));
        let scored = c.rest.get("used_scored_weight");
        if scored.is_some_and(|value| !value.is_null() && *value != Value::Bool(false)) {
            return no("used_scored_weight is not false, which is not computed here; false is".into());
        }
        let token = c.rest.get("use_contrastive_instr_token");
        if token.is_some_and(|value| !value.is_null() && *value != Value::Bool(false)) {
            return no("use_contrastive_instr_token is not false, and how the release stores its token is not known \
                       here: train one with the option of that name, or take an adapter without it"
                .into());
        }
        let flag = |key: &str, absent: bool| match c.rest.get(key) {
            None | Some(Value::Null) => Ok(absent),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(Error::file(path, format!("{key} is {value}, expected true or false"))),
        };
        let start = c.rest.get("mix_start_layer").filter(|value| !value.is_null());
        let start = start.map_or(Some(0), Value::as_u64);
        let Some(mix_start_layer) = start else {
            return no(format!("mix_start_layer is {}, expected a number", c.rest["mix_start_layer"]));
        };
        let cond_type = c.rest.get("cond_type").and_then(Value::as_str).unwrap_or("attr");
        let (vector, cfs_form) = match cond_type.strip_suffix("_lora_a_param") {
            Some(vector) => (vector, Some(CfsForm::SumProduct)),
            None => (cond_type, None),
        };
        let (pool, router_input) = match (vector, cfs_form) {
            ("input", _) => (Pool::All, RouterInput::Pooled),
            ("instr", _) => (Pool::Instr, RouterInput::Pooled),
            ("random", None) => (Pool::All, RouterInput::Random),
            // The mean of the base model's last states over the definition, as that of a text here.
            ("task_embed", None) => (Pool::All, RouterInput::Condition),
            _ => {
                return no(format!(
                    "cond_type '{cond_type}' is not computed here; random, task_embed, input and instr are, the last two \
                     with or without _lora_a_param"
                ));
            }
        };
        // Neither drawn factors nor a condition on A's choice leave it an effect there.
        let independent = cfs_form.is_some() || router_input == RouterInput::Random;
        let independent_rank = flag("independent_rank", true)? || independent;
        let add_noise = flag("add_noise", false)? && router_input != RouterInput::Random;
        // One A for all is a single tensor.
        let factor = |name: &str| name.contains(".lora_B.").then(|| name.rsplit_once('.')?.1.parse().ok());
        let counted = self.names.keys().filter_map(|n| factor(n)?).max().map(|e: usize| e + 1);
        let stated = c.rest.get("n_experts").and_then(Value::as_u64).map(|n| n as usize);
        let num_factors = match (counted, stated) {
            (Some(n), Some(m)) if n != m => {
                return no(format!("n_experts is {m}, but the tensors have {n} factors"));
            }
            (Some(n), _) if n > self.names.len() => {
                let what = format!("factor {} is there, but not all before it", n - 1);
                return Err(Error::file(self.path(), what));
            }
            (Some(n), _) => n,
            (None, _) => return Err(Error::file(self.path(), "has no tensors lora_B.default.0, ...")),
        };
        let condition_width = if router_input == RouterInput::Condition { model.hidden_size } else { 0 };
        let has = |t: &String| self.names.keys().any(|n| n.contains(&format!(".{t}.lora_A.")));
        let targets = model.target_modules().into_iter().filter(has).collect();
        let cfs_weight = c.rest.get("ifs_weight").and_then(Value::as_f64).unwrap_or(1.0) as f32;
        let mut options = c.with_alpha(c.lora_alpha);
        for (name, value) in [
            ("num_factors", num_factors.into()),
            ("cfs_form", cfs_form.map(CfsForm::word).into()),
            ("cfs_weight", cfs_weight.into()),
            ("pool", pool.word().into()),
            ("router_input", router_input.word().into()),
            ("independent_rank", independent_rank.into()),
            ("mix_lora_a", flag("mix_loraA", true)?.into()),
            ("mix_start_layer", mix_start_layer.into()),
            ("add_noise", add_noise.into()),
            ("condition", ConditionKind::Text.word().into()),
            ("condition_width", condition_width.into()),
        ] {
            options.insert(name.to_string(), value);
        }
        let method = method.defaults().set(&options).map_err(|error| Error::file(path, error.to_string()))?;
        Ok((method, targets))
    }

    /// Names of the release for one of our parts, in the order of its rows.
    fn stored(part: &str, rows: usize, of: Layout) -> Vec<String> {
        let (path, what) = part.rsplit_once('.').unwrap_or(("", part));
        let path = path.find("layers.").map_or(path, |at| &path[at..]);
        let factors = |side: &str| (0..rows).map(|e| format!("{path}.lora_{side}.{e}")).collect();
        // The name of the second selector is misspelt in the release.
        let b_selector = if of.cfs { "cmoa_loarB_extra_selector" } else { "cmoa_selector" };
        match what {
            // Matrices of r rows, as an ordinary LoRA's.
            "factors_a" if of.one_a => vec![format!("{path}.lora_A.0")],
            "lora_a" => vec![format!("{path}.lora_A.0")],
            "lora_b" => vec![format!("{path}.lora_B.0")],
            "factors_a" => factors("A"),
            "factors_b" => factors("B"),
            "router_a" => vec![format!("{path}.cmoa_selector.loraA_selector.weight")],
            "router_b" => vec![format!("{path}.{b_selector}.loraB_selector.weight")],
            // [E, r * d_in], slot by slot: the rows of ours, one behind the other.
            _ => vec![format!("{path}.cmoa_loarB_extra_selector.loraA_param2loraB_selector.weight")],
        }
    }

    /// Refuses files in which parts are missing (all are listed), nobody's, or of another size.
    pub fn check(&self, parts: &[PartShape], of: Layout) -> Result<()> {
        let names = |part: &PartShape| Self::stored(&part.name, part.rows, of);
        let wanted: Vec<String> = parts.iter().flat_map(names).collect();
        let have = self.names.keys().map(String::as_str);
        let extra =
            crate::io::compare_names(self.path(), have, wanted.iter().map(String::as_str)).map_err(|e| {
                let Error::File { path, what } = e else { return e };
                Error::file(&path, format!("{what}; {CONVERT}"))
            })?;
        if let Some(name) = extra.first() {
            let what = format!("{} tensors are not part of this method, such as '{name}'", extra.len());
            return Err(Error::file(self.path(), what));
        }
        parts.iter().try_for_each(|part| self.check_sizes(part, &names(part)))
    }

    /// Refuses tensors that do not hold a part's values, shared out evenly.
    fn check_sizes(&self, part: &PartShape, names: &[String]) -> Result<()> {
        let each = part.rows.saturating_mul(part.cols) / names.len().max(1);
        for short in names {
            let (file, name) = self.find(short)?;
            let dims = file.dims(name)?;
            if dims.iter().product::<usize>() != each {
                let what = format!("tensor '{name}' is {dims:?}, expected {each} values for {}", part.name);
                return Err(Error::file(file.path(), what));
            }
        }
        Ok(())
    }

    fn find(&self, short: &str) -> Result<(&Checkpoint, &str)> {
        let found = self.names.get(short).map(|(file, name)| (&self.files[*file], name.as_str()));
        found.ok_or_else(|| Error::file(self.path(), format!("tensor '{short}' is missing")))
    }

    /// The values `[rows, cols]` of one of our parts.
    pub fn values(&self, part: &str, rows: usize, cols: usize, of: Layout) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(rows * cols);
        for short in Self::stored(part, rows, of) {
            let (file, name) = self.find(&short)?;
            all.extend(file.values_f32(name)?);
        }
        Ok(all)
    }
}
