//! A method on a model: one adapter for every targeted place, and how it is stored.

mod bank;
mod base;
mod carry;
mod conversation;
mod experts;
mod layout;
mod locate;
mod peft;
mod peft_config;
mod plain;
mod prune;
mod released;
mod vision;
mod weights;
mod xlora;

use crate::mixture::{Depth, Hook, LinearSite, Method, MlpSite, Pool, SitePart, StateSite};
use crate::model::{Model, ModelConfig, Site, SiteKind, SiteLinear};
use crate::nn::{Param, SiteAdapter, SiteAdapters};
use crate::{Device, Error, Result, Stream};
use std::borrow::Cow;
use std::sync::Arc;

pub use bank::Bank;
pub use conversation::Conversation;
pub use experts::{Expert, with_experts};
pub(crate) use experts::{named_path, pool as expert_pool};
pub use locate::{BEST, LAST, STAGE_PREFIX, STAGES, STEP_PREFIX, locate, pointed};
pub use prune::{Keep, Pruned, Usage};
pub use vision::VisionPart;
pub use weights::{AdapterOptions, AdapterWeights, Matrix};

/// A method with its options, and its parts at the sites of a model. It joins a pass through [`sites`](Adapter::sites);
/// the model itself stays as it is. Cloning gives the same adapter.
#[derive(Clone)]
pub struct Adapter {
    pub(crate) method: Method,
    pub(crate) targets: Vec<String>,
    pub(crate) notes: Vec<String>,
    vision: Option<VisionPart>,
    /// The linears of the projector, where it has a part there.
    projector: Vec<SiteLinear>,
    sites: Arc<SiteAdapters>,
}

/// Target modules that stand for every linear of a model that an adapter can take.
pub const ALL_LINEAR: &str = "all-linear";

/// Refuses an empty list of target modules.
pub(crate) fn check_targets(targets: &[String]) -> Result<()> {
    if targets.is_empty() {
        return Err(Error::refused(
            "target_modules",
            "is empty: name at least one projection, or all-linear",
        ));
    }
    Ok(())
}

/// The target modules of a model by name; [`ALL_LINEAR`] stands for all of them.
///
/// # Errors
/// None is given, or one is unknown: the error lists the names that there are.
pub fn resolve_targets(targets: &[String], config: &ModelConfig) -> Result<Vec<String>> {
    check_targets(targets)?;
    let known = config.target_modules();
    if targets == [ALL_LINEAR] {
        return Ok(known);
    }
    match targets.iter().find(|t| !known.contains(t)) {
        None => Ok(targets.to_vec()),
        Some(t) => Err(Error::refused(
            "target_modules",
            format!("'{t}' matches nothing; there are {}", known.join(", ")),
        )),
    }
}

/// The depth of a site in its model.
fn depth(site: &Site) -> Depth {
    Depth { layer: site.layer, layers: site.layers }
}

/// The linears of a site that an adapter takes: which they are, and their place.
fn taken(method: &Method, targets: &[String], site: &Site) -> Option<(Vec<usize>, LinearSite)> {
    let part = match (site.kind, method.spec().hook) {
        (_, Hook::Block) | (SiteKind::MlpLinears, Hook::Mlp) => return None,
        (SiteKind::MlpLinears, _) => SitePart::Mlp,
        (SiteKind::AttentionLinears, _) => SitePart::Attention,
        (SiteKind::ExpertLinears, _) => SitePart::Expert,
        (SiteKind::ExpertRouter, _) => SitePart::ExpertRouter,
        (SiteKind::ProjectorLinears, _) => SitePart::Projector,
        _ => return None,
    };
    if !method.options().takes(part) {
        return None;
    }
    // Experts and projectors are taken whole: target modules name the linears of other blocks.
    let whole = matches!(part, SitePart::Expert | SitePart::ExpertRouter | SitePart::Projector);
    let wanted = |l: &SiteLinear| whole || targets.iter().any(|t| l.path.ends_with(t.as_str()));
    let chosen: Vec<usize> = (0..site.linears.len()).filter(|&i| wanted(&site.linears[i])).collect();
    let linear = |&i: &usize| (site.linears[i].path.clone(), site.linears[i].d_out);
    let place = LinearSite {
        name: site.name.clone(),
        depth: depth(site),
        part,
        first: 0,
        all: 0,
        d_in: site.linears[*chosen.first()?].d_in,
        linears: chosen.iter().map(linear).collect(),
    };
    Some((chosen, place))
}

/// The groups of linears that a method takes.
pub(crate) fn linear_sites<'a>(
    sites: &'a [Site],
    method: &'a Method,
    targets: &'a [String],
) -> impl Iterator<Item = LinearSite> + 'a {
    sites.iter().filter_map(move |site| taken(method, targets, site)).map(|(_, place)| place)
}

/// A gated MLP block.
fn mlp_site(site: &Site) -> MlpSite {
    MlpSite {
        name: site.name.clone(),
        path: site.path.clone(),
        depth: depth(site),
        hidden_size: site.width,
        intermediate_size: site.inner,
    }
}

/// A block as a function of the state, or the start.
fn state_site(site: &Site, linears: usize) -> StateSite {
    StateSite {
        name: site.name.clone(),
        path: site.path.clone(),
        depth: depth(site),
        part: match site.kind {
            SiteKind::Block => SitePart::Layer,
            SiteKind::Mlp => SitePart::Mlp,
            _ => SitePart::Other,
        },
        hidden_size: site.width,
        linears,
    }
}

/// Builds what a method puts at the given sites, by their numbers.
pub(crate) fn build_sites(
    sites: &[Site],
    method: &Method,
    targets: &[String],
    device: &Device,
    stream: Stream,
) -> Result<SiteAdapters> {
    let hook = method.spec().hook;
    let linears = linear_sites(sites, method, targets).map(|place| place.linears.len()).sum();
    let mut first = 0;
    let mut all = SiteAdapters::default();
    for (number, site) in sites.iter().enumerate() {
        let built = match (site.kind, hook) {
            (SiteKind::Start, _) => {
                method.build_before(&state_site(site, linears), device, stream)?.map(SiteAdapter::Before)
            }
            (SiteKind::Block | SiteKind::Mlp, Hook::Block) => {
                method.build_block(&state_site(site, linears), device, stream)?.map(SiteAdapter::Block)
            }
            (SiteKind::Mlp, Hook::Mlp) if site.inner > 0 => {
                method.build_mlp(&mlp_site(site), device, stream)?.map(SiteAdapter::Mlp)
            }
            _ => match taken(method, targets, site) {
                Some((chosen, mut place)) => {
                    place.first = first;
                    place.all = linears;
                    first += chosen.len();
                    Some(SiteAdapter::Linears(method.build(&place, device, stream)?, chosen))
                }
                None => None,
            },
        };
        if let Some(built) = built {
            all.set(number, built);
        }
    }
    let gated = sites.iter().any(|site| site.kind == SiteKind::Mlp && site.inner > 0);
    if hook == Hook::Mlp && !gated {
        let what = format!("{} takes gated MLP blocks, and this model has none", method.spec().name);
        return Err(Error::refused("method", what));
    }
    let experts = sites.iter().any(|site| site.kind == SiteKind::ExpertLinears);
    if method.options().takes(SitePart::Expert) && !experts {
        let what = format!(
            "{} adapts the experts of a model that is a mixture of experts, such as Mixtral or Qwen-MoE, and this model \
             has none; block-moe and mixlora-ffn bring experts of their own",
            method.spec().name
        );
        return Err(Error::refused("method", what));
    }
    let projector = sites.iter().any(|site| site.kind == SiteKind::ProjectorLinears);
    if method.options().takes(SitePart::Projector) && !projector {
        let what = "is for a model that sees, with pictures in the training data: there is no projector here";
        return Err(Error::refused("mix_mm_projector", what));
    }
    Ok(all)
}

/// The sites of a model, and behind them those of a projector with a mixture.
fn sites_with<'a>(model: &'a Model, projector: &[SiteLinear]) -> Cow<'a, [Site]> {
    let own = model.sites();
    if projector.is_empty() {
        return Cow::Borrowed(own);
    }
    let layers = model.config().num_hidden_layers;
    Cow::Owned(own.iter().cloned().chain(Site::of_projector(projector, layers)).collect())
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
        model: &Model,
        projector: &[SiteLinear],
        method: &Method,
        targets: &[String],
    ) -> Result<Vec<PartShape>> {
        let targets = resolve_targets(targets, model.config())?;
        let device = Device::shapes_only();
        let sites = sites_with(model, projector);
        let sites = build_sites(&sites, method, &targets, &device, Stream::new(0))?;
        Ok(sites.iter().flat_map(|a| a.params()).flat_map(|p| PartShape::of(&p)).collect())
    }

    /// A fresh adapter for a model. The output of the model does not change: updates start at zero.
    ///
    /// # Errors
    /// An option cannot work, or a target does not exist.
    pub fn attach(model: &Model, method: &Method, targets: &[String], stream: Stream) -> Result<Self> {
        Self::attach_beside(model, &[], method, targets, stream)
    }

    /// The same for a model that sees through a projector of these linears
    /// ([`VisionConfig::projector_places`](crate::model::vision::VisionConfig::projector_places)), on which methods with `mix_mm_projector` put a
    /// mixture too.
    ///
    /// # Errors
    /// Those of [`attach`](Adapter::attach).
    pub fn attach_beside(
        model: &Model,
        projector: &[SiteLinear],
        method: &Method,
        targets: &[String],
        stream: Stream,
    ) -> Result<Self> {
        let targets = resolve_targets(targets, model.config())?;
        let mixed = method.options().takes(SitePart::Projector);
        let projector = if mixed { projector.to_vec() } else { Vec::new() };
        let sites = sites_with(model, &projector);
        let sites = Arc::new(build_sites(&sites, method, &targets, model.device(), stream)?);
        Ok(Adapter { method: method.resolved(), targets, notes: Vec::new(), vision: None, projector, sites })
    }

    /// The same, trained with a vision part.
    pub fn with_vision(self, vision: Option<VisionPart>) -> Self {
        let vision = vision.map(|part| part.with_mixture(self.projector.clone()));
        Adapter { vision, ..self }
    }

    /// Its parts by the numbers of the model's sites, for a [`Pass`](crate::nn::Pass).
    pub fn sites(&self) -> &Arc<SiteAdapters> {
        &self.sites
    }
    /// The method, with the options and the alpha that it computes with.
    pub fn method(&self) -> &Method {
        &self.method
    }
    /// What instances are pooled by, of a method that chooses by instance.
    pub fn pool(&self) -> Option<Pool> {
        self.method.options().instance().map(|instance| instance.pool)
    }
    /// The vision part that it was trained with; none where it was trained without pictures.
    pub fn vision(&self) -> Option<&VisionPart> {
        self.vision.as_ref()
    }
    /// What the user should know about the files that it was read from.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
    /// All parameters, frozen ones included, in a fixed order.
    pub fn params(&self) -> Vec<Param> {
        self.sites.iter().flat_map(|a| a.params()).collect()
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
        self.sites.iter().try_for_each(|a| a.after_step())
    }
}
