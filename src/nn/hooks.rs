//! The hooks through which adapters join a model, and the adapters of one pass by their sites.

use super::{Mlp, Param, Pass};
use crate::{Linear, Result, Tensor};
use std::sync::Arc;

/// An adapter of linears that read the same input.
pub trait LinearAdapter: Send + Sync {
    /// The outputs of all linears, base product included.
    fn forward(&self, x: &Tensor, linears: &[Linear], pass: &Pass) -> Result<Vec<Tensor>>;
    /// Its parameters, frozen ones included.
    fn params(&self) -> Vec<Param>;
    /// Called after each optimizer step: updates without a gradient, such as balancing biases.
    fn after_step(&self) -> Result<()> {
        Ok(())
    }
}

/// An adapter of a whole gated MLP block.
pub trait MlpAdapter: Send + Sync {
    /// The output of the block, base products included.
    fn forward(&self, x: &Tensor, mlp: &Mlp, pass: &Pass) -> Result<Tensor>;
    /// Its parameters, frozen ones included.
    fn params(&self) -> Vec<Param>;
    /// Called after each optimizer step.
    fn after_step(&self) -> Result<()> {
        Ok(())
    }
}

/// An adapter around a block: an MLP block of any kind, or a whole decoder layer with its residual sums.
pub trait BlockAdapter: Send + Sync {
    /// What is in place of the block's output for `x`. `block` computes the block itself; it is called at most once.
    fn forward(
        &self,
        x: &Tensor,
        block: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
        pass: &Pass,
    ) -> Result<Tensor>;
    /// Its parameters, frozen ones included.
    fn params(&self) -> Vec<Param>;
    /// Called after each optimizer step.
    fn after_step(&self) -> Result<()> {
        Ok(())
    }
}

/// Prompts of samples, pooled as the adapter's routers see them, before the first layer.
pub struct Prompts {
    /// Values of each.
    pub width: usize,
    /// `[N, width]`
    pub rows: Vec<f32>,
    /// The task of each sample, where it has one.
    pub tasks: Vec<Option<Arc<str>>>,
}

impl Prompts {
    /// The values of one.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.rows[i * self.width..][..self.width]
    }
}

/// An adapter that decides once per pass, before the first layer. The other sites find what it decided in
/// [`Pass::decision`].
pub trait BeforeForward: Send + Sync {
    /// The decision for a pass over the embedded input `x [B, S, hidden_size]`. `base` runs the model without any
    /// adapter, over a key/value cache of its own, and gives the hidden states behind its last norm.
    fn decide(
        &self,
        x: &Tensor,
        base: &mut dyn FnMut() -> Result<Tensor>,
        pass: &Pass,
    ) -> Result<Vec<Tensor>>;
    /// Whether it is fitted to prompts of the training data before the first step.
    fn fits(&self) -> bool {
        false
    }
    /// Is fitted to prompts.
    ///
    /// # Errors
    /// There are too few of them, or their tasks are unknown.
    fn fit(&self, _prompts: &Prompts) -> Result<()> {
        Ok(())
    }
    /// How many prompts get what is their task's, of how many that have a task; none where it knows no tasks.
    ///
    /// # Errors
    /// A task is unknown.
    fn told_apart(&self, _prompts: &Prompts) -> Result<Option<[usize; 2]>> {
        Ok(None)
    }
    /// A learned vector `[1, hidden_size]` that stands in front of each sample, in the place that
    /// [`Labels::has_front`](super::Labels::has_front) keeps.
    fn front(&self) -> Option<Tensor> {
        None
    }
    /// Sees the states `[B, S, hidden_size]` behind the last norm of a pass in training, to add auxiliary losses to it.
    fn learn(&self, _states: &Tensor, _pass: &Pass) -> Result<()> {
        Ok(())
    }
    /// A learned factor on the language model's loss in training, a scalar; none where it is 1.
    fn loss_factor(&self) -> Result<Option<Tensor>> {
        Ok(None)
    }
    /// Its parameters, frozen ones included.
    fn params(&self) -> Vec<Param>;
    /// Called after each optimizer step.
    fn after_step(&self) -> Result<()> {
        Ok(())
    }
}

/// The adapter of one site.
#[derive(Clone)]
pub enum SiteAdapter {
    /// Of a group of linears: of those with these numbers, of all where there are none.
    Linears(Arc<dyn LinearAdapter>, Vec<usize>),
    Mlp(Arc<dyn MlpAdapter>),
    Block(Arc<dyn BlockAdapter>),
    Before(Arc<dyn BeforeForward>),
}

impl SiteAdapter {
    /// Its parameters, frozen ones included.
    pub fn params(&self) -> Vec<Param> {
        match self {
            SiteAdapter::Linears(a, _) => a.params(),
            SiteAdapter::Mlp(a) => a.params(),
            SiteAdapter::Block(a) => a.params(),
            SiteAdapter::Before(a) => a.params(),
        }
    }
    /// Updates without a gradient, after each optimizer step.
    pub fn after_step(&self) -> Result<()> {
        match self {
            SiteAdapter::Linears(a, _) => a.after_step(),
            SiteAdapter::Mlp(a) => a.after_step(),
            SiteAdapter::Block(a) => a.after_step(),
            SiteAdapter::Before(a) => a.after_step(),
        }
    }
}

/// The adapters of a model by the numbers of their sites. A [`Pass`] carries them; the model itself has none.
#[derive(Clone, Default)]
pub struct SiteAdapters(Vec<Option<SiteAdapter>>);

impl SiteAdapters {
    /// Puts an adapter at a site, in place of what was there.
    pub fn set(&mut self, site: usize, adapter: SiteAdapter) {
        if self.0.len() <= site {
            self.0.resize(site + 1, None);
        }
        self.0[site] = Some(adapter);
    }
    /// The adapter of a site.
    pub fn get(&self, site: usize) -> Option<&SiteAdapter> {
        self.0.get(site)?.as_ref()
    }
    /// What decides before the first layer.
    pub fn before(&self) -> Option<&dyn BeforeForward> {
        self.0.iter().flatten().find_map(|adapter| match adapter {
            SiteAdapter::Before(before) => Some(&**before),
            _ => None,
        })
    }
    /// All adapters: those of linears, then those of MLP blocks, of blocks, and of the whole pass, each by their sites.
    pub fn iter(&self) -> impl Iterator<Item = &SiteAdapter> {
        let rank = |a: &SiteAdapter| match a {
            SiteAdapter::Linears(..) => 0,
            SiteAdapter::Mlp(_) => 1,
            SiteAdapter::Block(_) => 2,
            SiteAdapter::Before(_) => 3,
        };
        (0..4).flat_map(move |kind| self.0.iter().flatten().filter(move |a| rank(a) == kind))
    }
}

impl std::fmt::Debug for SiteAdapters {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "SiteAdapters({})", self.0.iter().flatten().count())
    }
}
