//! A method at its own hook on frozen weights, outside of a model: what is checked, replayed and timed.

use crate::mixture::{Depth, Hook, LinearSite, Method, MlpSite, SitePart, StateSite};
use crate::nn::{BeforeForward, LinearGroup, Mlp, Param, Pass, SiteAdapter};
use crate::{Error, Linear, Result, Stream, Tensor};
use std::sync::Arc;

#[derive(Clone)]
enum Body {
    Linears(LinearGroup),
    Mlp(Box<Mlp>),
}

/// Frozen weights at one site, and the adapter of a method there, if there is one.
///
/// ```
/// # use mixlora::{Device, Format, Linear, Stream, Tensor, Weight, check::Subject, mixture::{Units, find}, nn::Pass};
/// let device = Device::cpu();
/// let weight = Weight::new(&device, 3, 4, &[0.5; 12], Format::F32)?;
/// let frozen = Subject::linears(vec![Linear { weight, bias: None }]);
/// let lora = find("lora")?.defaults().with("r", 2)?;
/// let adapted = frozen.adapted(&lora, "layer", &["q_proj"], Stream::new(1))?;
/// assert_eq!(adapted.params().len(), 2);
/// let x = Tensor::full(&device, &[5, 4], 1.0)?;
/// let y = adapted.forward(&x, &Pass::new(Units::tokens(5)))?;
/// assert_eq!(y[0].dims(), [5, 3]);
/// # Ok::<(), mixlora::Error>(())
/// ```
#[derive(Clone)]
pub struct Subject {
    body: Body,
    adapter: Option<SiteAdapter>,
    /// What decides before it, from the input as if that were what the frozen model makes of it.
    before: Option<Arc<dyn BeforeForward>>,
}

impl Subject {
    /// Linears that read the same input, for methods that take linears.
    pub fn linears(linears: Vec<Linear>) -> Self {
        Subject { body: Body::Linears(LinearGroup::frozen(linears)), adapter: None, before: None }
    }

    /// A gated MLP block, for methods that take blocks.
    pub fn mlp(mlp: Mlp) -> Self {
        Subject { body: Body::Mlp(Box::new(mlp)), adapter: None, before: None }
    }

    /// Whether a method with that hook takes linears.
    pub fn takes_linears(hook: Hook) -> bool {
        hook == Hook::Linear
    }

    /// The same weights with a fresh adapter of a method. `names` are those of the linears; blocks have none.
    ///
    /// # Errors
    /// The method's hook is none of these weights, or its options do not fit them.
    pub fn adapted(&self, method: &Method, site: &str, names: &[&str], stream: Stream) -> Result<Self> {
        let spec = method.spec();
        let nothing = || Error::refused("method", format!("{} builds nothing at its own hook", spec.name));
        let mut before = None;
        let adapter = match (&self.body, spec.hook) {
            (Body::Linears(group), Hook::Linear) => {
                let Some(Linear { weight: first, .. }) = group.linears.first() else {
                    return Err(Error::refused("linears", "there are none to adapt"));
                };
                let outs = group.linears.iter().map(|l| l.weight.rows());
                let linears = names.iter().map(|n| n.to_string()).zip(outs).collect();
                let site = LinearSite::alone(site, first.cols(), linears);
                let start = StateSite {
                    name: site.name.clone(),
                    path: String::new(),
                    depth: Depth::ONLY,
                    part: SitePart::Other,
                    hidden_size: site.d_in,
                    linears: site.all,
                };
                before = method.build_before(&start, first.device(), stream)?;
                SiteAdapter::Linears(method.build(&site, first.device(), stream)?, Vec::new())
            }
            (Body::Mlp(mlp), Hook::Mlp) => {
                let gate = &mlp.gate_up.linears[0].weight;
                let site = MlpSite::alone(site, gate.cols(), gate.rows());
                let built = method.build_mlp(&site, gate.device(), stream)?;
                SiteAdapter::Mlp(built.ok_or_else(nothing)?)
            }
            (Body::Mlp(mlp), Hook::Block) => {
                let gate = &mlp.gate_up.linears[0].weight;
                let site = StateSite {
                    name: site.into(),
                    path: String::new(),
                    depth: Depth::ONLY,
                    part: SitePart::Mlp,
                    hidden_size: gate.cols(),
                    linears: 0,
                };
                let built = method.build_block(&site, gate.device(), stream)?;
                SiteAdapter::Block(built.ok_or_else(nothing)?)
            }
            _ => {
                let what = format!("{} takes a {}, which this is not", spec.name, spec.hook.name());
                return Err(Error::refused("method", what));
            }
        };
        Ok(Subject { body: self.body.clone(), adapter: Some(adapter), before })
    }

    /// The parameters of its adapter, frozen ones included.
    pub fn params(&self) -> Vec<Param> {
        let before = self.before.iter().flat_map(|before| before.params());
        self.adapter.iter().flat_map(SiteAdapter::params).chain(before).collect()
    }

    /// Updates without a gradient, after an optimizer step.
    ///
    /// # Errors
    /// The device failed.
    pub fn after_step(&self) -> Result<()> {
        self.adapter.iter().try_for_each(SiteAdapter::after_step)
    }

    /// The outputs of the linears, or that of the block.
    ///
    /// # Errors
    /// The input does not fit.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Vec<Tensor>> {
        let decided;
        let pass = match &self.before {
            Some(before) if pass.decision.is_empty() => {
                let decision = before.decide(x, &mut || Ok(x.clone()), pass)?;
                let mut after = pass.clone();
                after.decision = decision;
                decided = after;
                &decided
            }
            _ => pass,
        };
        match (&self.body, &self.adapter) {
            (Body::Linears(group), Some(SiteAdapter::Linears(adapter, _))) => {
                adapter.forward(x, &group.linears, pass)
            }
            (Body::Linears(group), _) => group.forward(x, pass),
            (Body::Mlp(mlp), Some(SiteAdapter::Mlp(adapter))) => Ok(vec![adapter.forward(x, mlp, pass)?]),
            (Body::Mlp(mlp), Some(SiteAdapter::Block(adapter))) => {
                Ok(vec![adapter.forward(x, &mut |x| mlp.forward(x, pass), pass)?])
            }
            (Body::Mlp(mlp), _) => Ok(vec![mlp.forward(x, pass)?]),
        }
    }
}
