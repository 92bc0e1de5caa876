//! What a method tells the list: its options, and how it builds its layers.

use super::MethodConfig;
use crate::nn::{LinearAdapter, MlpAdapter};
use crate::{Device, Error, Result, Stream};
use std::sync::Arc;

/// Where a method joins a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Every adapted linear, in groups that read the same input.
    Linear,
    /// The MLP block as a whole; the other linears get a plain LoRA.
    Mlp,
}

impl Hook {
    /// For tables.
    pub const fn name(self) -> &'static str {
        match self {
            Hook::Linear => "linear",
            Hook::Mlp => "mlp block",
        }
    }
}

/// A group of linears that read the same input.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearSite {
    /// Where in the model; also the key of its choices and random streams.
    pub name: String,
    pub d_in: usize,
    /// Name and outputs of each linear.
    pub linears: Vec<(String, usize)>,
}

/// The name of a part: `linear.what`, or `what` for a linear without a name.
pub(super) fn part(linear: &str, what: &str) -> String {
    if linear.is_empty() { what.to_string() } else { format!("{linear}.{what}") }
}

/// Refuses an update of a rank above both sides of a linear.
pub(super) fn fits(name: &str, what: &str, rank: usize, d_in: usize, d_out: usize) -> Result<()> {
    let most = d_in.min(d_out);
    match rank <= most {
        true => Ok(()),
        false => Err(Error::config(
            what,
            format!("is {rank}, must be in 1..={most}: {name} is a linear {d_in} -> {d_out}"),
        )),
    }
}

impl LinearSite {
    /// Refuses an update of a rank that no linear of this size can have.
    pub fn fits(&self, what: &str, rank: usize) -> Result<()> {
        self.linears.iter().try_for_each(|(n, out)| fits(&part(&self.name, n), what, rank, self.d_in, *out))
    }
    /// The names of one part of every linear, with its rows.
    pub fn parts(&self, what: &str, rows: usize) -> Vec<(String, usize)> {
        self.linears.iter().map(|(n, _)| (part(n, what), rows)).collect()
    }
}

/// A gated MLP block.
#[derive(Debug, Clone, PartialEq)]
pub struct MlpSite {
    /// Where in the model; also the key of its choices and random streams.
    pub name: String,
    /// In front of the names of its parameters; may be empty.
    pub path: String,
    pub hidden_size: usize,
    pub intermediate_size: usize,
}

type BuildLinear = fn(&MethodConfig, &LinearSite, &Device, Stream) -> Result<Arc<dyn LinearAdapter>>;
type BuildMlp = fn(&MethodConfig, &MlpSite, &Device, Stream) -> Result<Arc<dyn MlpAdapter>>;

/// One entry of the method list.
pub struct MethodSpec {
    /// Name in files and on the command line.
    pub name: &'static str,
    /// Source.
    pub paper: &'static str,
    pub hook: Hook,
    /// Trained parameters of one linear `d_in -> d_out` (of one block for the MLP hook).
    pub trainable: &'static str,
    /// Whether the adapter can be merged into the weights: only where the update does not depend on the input.
    pub mergeable: bool,
    /// The options it starts from.
    pub defaults: fn() -> MethodConfig,
    /// Refuses options that cannot work.
    pub check: fn(&MethodConfig) -> Result<()>,
    /// Why the router gets no gradient from the task, if it has a router and gets none.
    pub router_without_gradient: fn(&MethodConfig) -> Option<&'static str>,
    /// `lora_alpha` where none is set.
    pub alpha: fn(&MethodConfig) -> usize,
    /// Whether it has a router at all.
    pub has_router: bool,
    pub linear: BuildLinear,
    /// For the MLP hook.
    pub mlp: Option<BuildMlp>,
}

impl MethodSpec {
    /// Whether the router learns from the task, for tables: yes, no, or - without a router.
    pub fn router_gradient(&self, config: &MethodConfig) -> &'static str {
        match ((self.router_without_gradient)(config), self.has_router) {
            (_, false) => "-",
            (Some(_), true) => "no",
            (None, true) => "yes",
        }
    }
    /// What the user should know about these options: printed when a method is configured.
    pub fn notes(&self, config: &MethodConfig) -> Vec<String> {
        let why = (self.router_without_gradient)(config).filter(|_| self.has_router);
        why.map(|w| format!("{}: the router receives no task gradient: {w}", self.name)).into_iter().collect()
    }
    /// The options with the alpha that is computed with.
    pub fn resolved(&self, config: &MethodConfig) -> MethodConfig {
        let alpha = config.lora_alpha.unwrap_or((self.alpha)(config) as f32);
        MethodConfig { lora_alpha: Some(alpha), ..config.clone() }
    }
    /// Checks the options and builds the adapter of a group of linears.
    pub fn build(
        &self,
        config: &MethodConfig,
        site: &LinearSite,
        device: &Device,
        stream: Stream,
    ) -> Result<Arc<dyn LinearAdapter>> {
        config.check()?;
        (self.check)(config)?;
        (self.linear)(&self.resolved(config), site, device, stream.named(&site.name))
    }
    /// Checks the options and builds the adapter of an MLP block, for methods that take blocks.
    pub fn build_mlp(
        &self,
        config: &MethodConfig,
        site: &MlpSite,
        device: &Device,
        stream: Stream,
    ) -> Result<Option<Arc<dyn MlpAdapter>>> {
        config.check()?;
        (self.check)(config)?;
        self.mlp
            .map(|build| build(&self.resolved(config), site, device, stream.named(&site.name)))
            .transpose()
    }
}
