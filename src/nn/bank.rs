//! Several adapters in one pass: `y = base(x) + sum_i s_i (f_i(x) - base(x))` at every site.

use super::{BeforeForward, BlockAdapter, LinearAdapter, MlpAdapter, Pass, SiteAdapter, SiteAdapters};
use crate::nn::Choices;
use crate::routing::Units;
use crate::{Result, Tensor};
use std::borrow::Cow;
use std::sync::Arc;

/// One adapter of a pass that has several, with what is its own in the pass.
#[derive(Debug, Clone)]
pub struct Member {
    pub adapters: Arc<SiteAdapters>,
    /// Factor on what the adapter adds to the frozen model.
    pub scale: f32,
    /// Its routing units.
    pub units: Units,
    /// What happens to its choices.
    pub choices: Choices,
    /// What it decided before the first layer.
    pub decision: Vec<Tensor>,
}

impl Member {
    /// An adapter with a scale, whose routers are free.
    pub fn new(adapters: Arc<SiteAdapters>, scale: f32, units: Units) -> Self {
        Member { adapters, scale, units, choices: Choices::Free, decision: Vec::new() }
    }
}

/// An adapter that takes part at a site, with the pass that it sees.
pub(crate) struct Part<'a, A> {
    pub adapter: A,
    pub scale: f32,
    pub pass: Cow<'a, Pass>,
}

impl Pass {
    /// The adapters at a site of the kind that `kind` picks.
    pub(crate) fn parts<'a, A>(
        &'a self,
        site: Option<usize>,
        kind: fn(&'a SiteAdapter) -> Option<A>,
    ) -> Vec<Part<'a, A>> {
        let Some(site) = site else { return Vec::new() };
        let at = |adapters: &'a SiteAdapters| adapters.get(site).and_then(kind);
        let alone = self.adapters.as_deref().and_then(at);
        let alone = alone.map(|adapter| Part { adapter, scale: 1.0, pass: Cow::Borrowed(self) });
        let members = self.bank.iter().enumerate().filter_map(|(i, member)| {
            let pass = || Cow::Owned(self.seen_by(i, member));
            at(&member.adapters).map(|adapter| Part { adapter, scale: member.scale, pass: pass() })
        });
        alone.into_iter().chain(members).collect()
    }

    /// Whether linears at one of these sites have an adapter.
    pub(crate) fn adapts(&self, sites: [Option<usize>; 2]) -> bool {
        sites.into_iter().any(|site| !self.parts(site, SiteAdapter::linears).is_empty())
    }

    /// The pass after what its adapters decide at a site; none where nothing is decided.
    pub(crate) fn after_decisions(
        &self,
        site: usize,
        mut decide: impl FnMut(&dyn BeforeForward, &Pass) -> Result<Vec<Tensor>>,
    ) -> Result<Option<Pass>> {
        let mut decided = None;
        if let Some(SiteAdapter::Before(adapter)) = self.adapters.as_ref().and_then(|a| a.get(site)) {
            decided.get_or_insert_with(|| self.clone()).decision = decide(&**adapter, self)?;
        }
        for (i, member) in self.bank.iter().enumerate() {
            if let Some(SiteAdapter::Before(adapter)) = member.adapters.get(site) {
                let decision = decide(&**adapter, &self.seen_by(i, member))?;
                decided.get_or_insert_with(|| self.clone()).bank[i].decision = decision;
            }
        }
        Ok(decided)
    }

    /// Every decision of the pass, in a fixed order.
    pub(crate) fn decisions(&self) -> impl Iterator<Item = &Tensor> {
        self.decision.iter().chain(self.bank.iter().flat_map(|member| &member.decision))
    }

    /// The same pass with other values of its decisions, in the order of [`decisions`](Pass::decisions).
    pub(crate) fn with_decisions(&self, values: &[Tensor]) -> Pass {
        let mut pass = self.clone();
        let places = pass.decision.iter_mut().chain(pass.bank.iter_mut().flat_map(|m| &mut m.decision));
        places.zip(values).for_each(|(place, value)| *place = value.clone());
        pass
    }
}

impl SiteAdapter {
    /// As an adapter of linears, with the numbers of those that it takes.
    pub(crate) fn linears(&self) -> Option<(&dyn LinearAdapter, &[usize])> {
        if let SiteAdapter::Linears(adapter, taken) = self { Some((&**adapter, taken)) } else { None }
    }
    /// As an adapter of an MLP block.
    pub(crate) fn mlp(&self) -> Option<&dyn MlpAdapter> {
        if let SiteAdapter::Mlp(adapter) = self { Some(&**adapter) } else { None }
    }
    /// As an adapter of a decoder block.
    pub(crate) fn block(&self) -> Option<&dyn BlockAdapter> {
        if let SiteAdapter::Block(adapter) = self { Some(&**adapter) } else { None }
    }
}

/// `base + sum_i s_i (f_i - base)` for each output; `f` itself of a single part with a scale of 1.
pub(crate) fn blend<A>(
    parts: &[Part<'_, A>],
    base: impl FnOnce() -> Result<Vec<Tensor>>,
    adapted: impl Fn(&Part<'_, A>) -> Result<Vec<Tensor>>,
) -> Result<Vec<Tensor>> {
    if let [only] = parts
        && only.scale == 1.0
    {
        return adapted(only);
    }
    let base = base()?;
    let mut sums = base.clone();
    for part in parts {
        for (sum, (y, base)) in sums.iter_mut().zip(adapted(part)?.iter().zip(&base)) {
            *sum = sum.add(&y.add_scaled(base, -1.0)?.scale(part.scale)?)?;
        }
    }
    Ok(sums)
}
