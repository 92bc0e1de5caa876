//! A method on a model: one adapter for every targeted place, and how it is stored.

mod base;
mod conversation;
mod locate;
mod peft;
mod peft_config;
mod plain;
mod released;

use crate::mixture::{Hook, LinearSite, MethodConfig, MethodSpec, MlpSite};
use crate::model::{Llama, Site};
use crate::nn::{LinearAdapter, MlpAdapter, Param};
use crate::{Device, Error, Result, Stream};
use std::sync::Arc;

pub use conversation::Conversation;
pub use locate::{BEST, LAST, STEP_PREFIX, locate, pointed};
pub use peft::AdapterOptions;

/// The linears of a decoder block that adapters can take.
pub const TARGETS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// A method, its options, and its parts on a model.
pub struct Adapter {
    pub(crate) method: &'static MethodSpec,
    pub(crate) config: MethodConfig,
    pub(crate) targets: Vec<String>,
    linears: Vec<Arc<dyn LinearAdapter>>,
    mlps: Vec<Arc<dyn MlpAdapter>>,
}

/// Checks names of target modules.
///
/// # Errors
/// None is given, or one is unknown: the error lists the names that there are.
pub fn check_targets(targets: &[String]) -> Result<()> {
    if targets.is_empty() {
        return Err(Error::config("target_modules", "is empty: name at least one projection"));
    }
    match targets.iter().find(|t| !TARGETS.contains(&t.as_str())) {
        None => Ok(()),
        Some(t) => Err(Error::config(
            "target_modules",
            format!("'{t}' matches nothing; there are {}", TARGETS.join(", ")),
        )),
    }
}

/// The linears of a group that an adapter takes: which they are, and their place.
fn taken(method: &MethodSpec, targets: &[String], site: &Site<'_>) -> Option<(Vec<usize>, LinearSite)> {
    let wanted = |path: &str| {
        let takes_block = method.hook == Hook::Mlp && path.contains(".mlp.");
        targets.iter().any(|t| path.ends_with(t.as_str())) && !takes_block
    };
    let chosen: Vec<usize> = (0..site.linears.len()).filter(|&i| wanted(&site.linears[i])).collect();
    let weight = |i: usize| &site.group.linears[i].weight;
    let place = LinearSite {
        name: site.name.clone(),
        d_in: weight(*chosen.first()?).cols(),
        linears: chosen.iter().map(|&i| (site.linears[i].clone(), weight(i).rows())).collect(),
    };
    Some((chosen, place))
}

/// A part of a parameter, which has a name of its own in a file.
pub(crate) struct PartShape {
    pub name: String,
    pub rows: usize,
    pub cols: usize,
}

impl PartShape {
    fn of(param: &Param) -> Vec<Self> {
        let cols = param.value().shape().last();
        param.parts().iter().map(|(name, rows)| PartShape { name: name.clone(), rows: *rows, cols }).collect()
    }
}

impl Adapter {
    /// The parts that [`attach`](Adapter::attach) would make, in their order. They are made without values, so that
    /// options which a file only claims cost no memory.
    ///
    /// # Errors
    /// Those of `attach`.
    pub(crate) fn parts(
        model: &mut Llama,
        method: &MethodSpec,
        config: &MethodConfig,
        targets: &[String],
    ) -> Result<Vec<PartShape>> {
        check_targets(targets)?;
        let device = Device::shapes_only();
        let stream = Stream::new(0);
        let hidden_size = model.config().hidden_size;
        let intermediate_size = model.config().intermediate_size;
        let mut params = Vec::new();
        model.for_each_site(|site| {
            if let Some((_, place)) = taken(method, targets, &site) {
                params.extend(method.build(config, &place, &device, stream)?.params());
            }
            Ok(())
        })?;
        if method.hook == Hook::Mlp {
            model.for_each_mlp(|site| {
                let place = MlpSite { name: site.name, path: site.path, hidden_size, intermediate_size };
                let built = method.build_mlp(config, &place, &device, stream)?;
                params.extend(built.into_iter().flat_map(|block| block.params()));
                Ok(())
            })?;
        }
        Ok(params.iter().flat_map(PartShape::of).collect())
    }

    /// Puts a fresh adapter on a model. The output of the model does not change: updates start at zero.
    ///
    /// # Errors
    /// An option cannot work, or a target does not exist.
    pub fn attach(
        model: &mut Llama,
        method: &'static MethodSpec,
        config: &MethodConfig,
        targets: &[String],
        stream: Stream,
    ) -> Result<Self> {
        check_targets(targets)?;
        let device = model.device().clone();
        let (hidden_size, intermediate_size) = (model.config().hidden_size, model.config().intermediate_size);
        let mut adapter = Adapter {
            method,
            config: method.resolved(config),
            targets: targets.to_vec(),
            linears: Vec::new(),
            mlps: Vec::new(),
        };
        model.for_each_site(|site| {
            let Some((chosen, place)) = taken(method, targets, &site) else {
                site.group.adapter = None;
                return Ok(());
            };
            let built = method.build(config, &place, &device, stream)?;
            adapter.linears.push(built.clone());
            site.group.adapter = Some(built);
            site.group.adapted = chosen;
            Ok(())
        })?;
        if method.hook == Hook::Mlp {
            model.for_each_mlp(|site| {
                let place = MlpSite { name: site.name, path: site.path, hidden_size, intermediate_size };
                if let Some(built) = method.build_mlp(config, &place, &device, stream)? {
                    adapter.mlps.push(built.clone());
                    site.mlp.adapter = Some(built);
                }
                Ok(())
            })?;
        }
        Ok(adapter)
    }

    /// The method.
    pub fn method(&self) -> &'static MethodSpec {
        self.method
    }
    /// Its options.
    pub fn config(&self) -> &MethodConfig {
        &self.config
    }
    /// All parameters, frozen ones included, in a fixed order.
    pub fn params(&self) -> Vec<Param> {
        let linears = self.linears.iter().flat_map(|a| a.params());
        linears.chain(self.mlps.iter().flat_map(|a| a.params())).collect()
    }
    /// Trained parameters, in a fixed order.
    pub fn trainable(&self) -> Vec<Param> {
        self.params().into_iter().filter(Param::trainable).collect()
    }
    /// Number of trained values.
    pub fn trainable_values(&self) -> usize {
        self.trainable().iter().map(|p| p.value().len()).sum()
    }
    /// Updates without a gradient, after each optimizer step.
    pub fn after_step(&self) -> Result<()> {
        self.linears.iter().try_for_each(|a| a.after_step())?;
        self.mlps.iter().try_for_each(|a| a.after_step())
    }
}
