//! What a method tells the list, and a method with its options.

use super::options::{Field, Options, Tree};
use super::tasks::Tasks;
use super::{
    Conditioned, Files, Framing, Hook, Instance, LinearBuild, LinearSite, Lora, MlpBuild, MlpSite,
    Preference, Prunes, RouterGradient, Routes, RowMemory, Rule, Side, SiteMemory, SitePart, StateBuild,
    StateSite, TakesExperts,
};
use crate::names::nearest;
use crate::nn::{BeforeForward, BlockAdapter, LinearAdapter, MlpAdapter};
use crate::{Device, Error, Result, Stream};
use serde_json::Value;
use std::fmt;
use std::sync::Arc;

/// A method's options, and what is made from them. Implemented by a struct that [`options!`](crate::options) declares.
pub trait MethodOptions: Options + fmt::Debug + Send + Sync + 'static {
    /// The method whose options these are.
    fn spec(&self) -> &'static MethodSpec;
    /// Rank, alpha and dropout.
    fn lora(&self) -> &Lora;
    /// `lora_alpha` where none is set.
    fn default_alpha(&self) -> f32 {
        2.0 * self.lora().r as f32
    }
    /// `lora_alpha`: the one that is set, or the method's own.
    fn alpha(&self) -> f32 {
        self.lora().lora_alpha.unwrap_or(self.default_alpha())
    }
    /// Factor on the update.
    fn scale(&self) -> f32 {
        self.alpha() / self.lora().r as f32
    }
    /// Refuses combinations that cannot work. Ranges are checked before.
    ///
    /// # Errors
    /// The first that cannot work; the error names an option.
    fn check(&self) -> Result<()> {
        Ok(())
    }
    /// How its router scores, selects and gates.
    fn rule(&self) -> Rule {
        Rule::EVERYTHING
    }
    /// Passes over each sample of a step, each with choices of its own, from which routers learn by policy gradient; 1
    /// where they learn otherwise.
    fn draws(&self) -> usize {
        1
    }
    /// Whether the task trains the router.
    fn router_gradient(&self) -> RouterGradient;
    /// How instances are pooled and decoded, of methods that route by instance.
    fn instance(&self) -> Option<&Instance> {
        None
    }
    /// The tasks that it knows, of methods that choose or learn by task: its training data needs task labels. Where it knows
    /// none, a run gives it those of its data.
    fn tasks(&self) -> Option<&Tasks> {
        None
    }
    /// Whether its training data must have task labels.
    fn needs_tasks(&self) -> bool {
        self.tasks().is_some()
    }
    /// The conditions that it chooses by, of methods that do: its training data needs them.
    fn condition(&self) -> Option<&Conditioned> {
        None
    }
    /// Whether it puts a learned vector in front of each sample, which batches keep a place for.
    fn has_front(&self) -> bool {
        false
    }
    /// What it learns from wrong answers beside right ones, of methods that do.
    fn preference(&self) -> Option<&Preference> {
        None
    }
    /// What of its options changes at a stage of a stream of tasks, from 0: what the stage trains, what stays as it is.
    fn at_stage(&self, _stage: usize, _task: Option<&str>) -> Tree {
        Tree::new()
    }
    /// The side of the update that a part of its parameters belongs to, by the part's name behind the linear's.
    fn side(&self, part: &str) -> Side {
        match part {
            "lora_a" | "factors_a" => Side::A,
            "lora_b" | "factors_b" => Side::B,
            _ => Side::Rest,
        }
    }
    /// Share of the values of its factors that one input meets.
    fn active_share(&self) -> f64 {
        1.0
    }
    /// What of its pools can be dropped after training.
    fn prunes(&self) -> Prunes {
        Prunes::No("it has no pools of rank-1 rows of which a router chooses")
    }
    /// Whether trained LoRAs can be its experts: its pools are then `lora_a` and `lora_b`, and its options have
    /// `num_experts`.
    fn takes_experts(&self) -> TakesExperts {
        TakesExperts::No
    }
    /// Whether it takes linears of that part of a model. One that takes experts needs a model that has some.
    fn takes(&self, part: SitePart) -> bool {
        !matches!(part, SitePart::Expert | SitePart::ExpertRouter | SitePart::Projector)
    }
    /// Whether it needs the task of what it generates.
    fn chooses_by_task(&self) -> bool {
        self.spec().routes == Routes::Task
    }
    /// What a row keeps for the backward pass.
    fn row_memory(&self) -> RowMemory {
        let base = if self.spec().routes == Routes::Token { RowMemory::ROUTED } else { RowMemory::PLAIN };
        RowMemory { per_linear: self.lora().r as f64, ..base }
    }
    /// What it keeps at a group of linears besides, where that depends on their widths.
    fn site_memory(&self, _site: &LinearSite) -> SiteMemory {
        SiteMemory::default()
    }
    /// What `bench layer` times: labels, and the options that differ from the defaults. `factors` and `r` are the sizes
    /// that its user asks for, for methods that have pools of factors.
    fn variants(&self, _factors: &[usize], _r: usize) -> Vec<(String, Tree)> {
        vec![(format!("r {}", self.lora().r), Tree::new())]
    }
    /// The adapter of a group of linears, of methods that take linears.
    ///
    /// # Errors
    /// The options do not fit the site.
    fn linear(&self, _at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        Err(Error::refused("method", format!("{} takes no single linears", self.spec().name)))
    }
    /// The adapter of an MLP block, of methods that take blocks.
    ///
    /// # Errors
    /// The options do not fit the site.
    fn mlp(&self, _at: &MlpBuild<'_>) -> Result<Option<Arc<dyn MlpAdapter>>> {
        Ok(None)
    }
    /// The adapter around an MLP block or a decoder layer, of methods that take them; the site's `part` says which.
    ///
    /// # Errors
    /// The options do not fit the site.
    fn block(&self, _at: &StateBuild<'_>) -> Result<Option<Arc<dyn BlockAdapter>>> {
        Ok(None)
    }
    /// What decides before the first layer, of methods that decide once per pass.
    ///
    /// # Errors
    /// The options do not fit the site.
    fn before(&self, _at: &StateBuild<'_>) -> Result<Option<Arc<dyn BeforeForward>>> {
        Ok(None)
    }
}

/// Where a method stands among the others, beside its hook, its routing unit and its [`Rule`]. No two methods agree in
/// all of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Axes {
    /// What its router looks at.
    pub input: &'static str,
    /// What an entry of its pool is.
    pub entry: &'static str,
    /// What keeps entries in use.
    pub balance: &'static str,
    /// What is trained.
    pub trained: &'static str,
}

/// One entry of the method list.
pub struct MethodSpec {
    /// Name in files and on the command line.
    pub name: &'static str,
    /// Other names, such as those of papers.
    pub aliases: &'static [&'static str],
    /// Source.
    pub paper: &'static str,
    /// When to take it, in a few words.
    pub when: &'static str,
    /// What it computes, in plain text; a line for each equation.
    pub equation: &'static str,
    /// Where it differs from what its authors published or released.
    pub differs: &'static str,
    pub axes: Axes,
    pub hook: Hook,
    /// Which rows choose together.
    pub routes: Routes,
    /// Trained parameters of one linear `d_in -> d_out` (of one block for the MLP hook).
    pub trainable: &'static str,
    /// Whether the adapter can be merged into the weights: only where the update does not depend on the input.
    pub mergeable: bool,
    pub files: Files,
    /// Settings of a run that the method's authors used, where they are not this program's: path and JSON value.
    pub run: &'static [(&'static str, &'static str)],
    /// Its options with their defaults.
    pub options: fn() -> Box<dyn MethodOptions>,
}

impl MethodSpec {
    /// What most methods have in common, to be completed: an own name, options and texts are needed.
    pub const PLAIN: MethodSpec = MethodSpec {
        name: "",
        aliases: &[],
        paper: "",
        when: "",
        equation: "",
        differs: "",
        axes: Axes { input: "the linear's input", entry: "LoRA of rank r", balance: "none", trained: "all" },
        hook: Hook::Linear,
        routes: Routes::None,
        trainable: "",
        mergeable: false,
        files: Files::Own,
        run: &[],
        options: || Box::new(super::methods::lora::PlainLora::default()),
    };

    /// The method with its defaults.
    pub fn defaults(&'static self) -> Method {
        Method { options: Arc::from((self.options)()) }
    }
    /// The names of its options.
    pub fn option_names(&self) -> Vec<&'static str> {
        (self.options)().fields().iter().map(|f| f.name).collect()
    }
}

impl fmt::Debug for MethodSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "MethodSpec({})", self.name)
    }
}

/// A method with its options, all of which are in their ranges.
///
/// ```
/// use mixlora::mixture::find;
/// let method = find("smora")?.defaults().with("r", 32)?;
/// assert_eq!(method.options().lora().r, 32);
/// let error = method.with("num_factors", 8).unwrap_err().to_string();
/// assert!(error.contains("no option of smora") && error.contains("bias_lr"));
/// # Ok::<(), mixlora::Error>(())
/// ```
#[derive(Clone)]
pub struct Method {
    options: Arc<dyn MethodOptions>,
}

impl Method {
    /// A method with typed options.
    ///
    /// # Errors
    /// An option is out of its range, or options do not work together.
    pub fn new(options: impl MethodOptions) -> Result<Self> {
        Self::checked(Arc::new(options))
    }

    fn checked(options: Arc<dyn MethodOptions>) -> Result<Self> {
        options.fields().iter().try_for_each(Field::check)?;
        options.check()?;
        Ok(Method { options })
    }

    /// What the method is.
    pub fn spec(&self) -> &'static MethodSpec {
        self.options.spec()
    }
    /// Its name.
    pub fn name(&self) -> &'static str {
        self.spec().name
    }
    /// Its options.
    pub fn options(&self) -> &dyn MethodOptions {
        &*self.options
    }
    /// What it asks of the batches that it sees.
    pub fn framing(&self) -> Framing {
        let pool = self.options.instance().map(|instance| instance.pool);
        Framing { pool, front: self.options.has_front() }
    }
    /// Its options by name.
    pub fn tree(&self) -> Tree {
        self.options.fields().into_iter().map(|f| (f.name.to_string(), f.value)).collect()
    }

    /// The same with one option changed.
    ///
    /// # Errors
    /// As [`set`](Method::set).
    pub fn with(&self, name: &str, value: impl Into<Value>) -> Result<Self> {
        self.set(&Tree::from_iter([(name.to_string(), value.into())]))
    }

    /// The same with options changed.
    ///
    /// # Errors
    /// A name is no option of this method (its own are listed, the nearest is named), or a value cannot be.
    pub fn set(&self, changes: &Tree) -> Result<Self> {
        for name in changes.keys() {
            self.must_have(name)?;
        }
        self.merged(changes)
    }

    /// The options of a stored file over the defaults: what the file does not say has the method's default. Names that
    /// are no option of the method are returned.
    ///
    /// # Errors
    /// A value cannot be.
    pub fn stored(&self, tree: &Tree) -> Result<(Self, Vec<String>)> {
        let names = self.spec().option_names();
        let unknown = tree.keys().filter(|k| !names.contains(&k.as_str())).cloned().collect();
        Ok((self.merged(tree)?, unknown))
    }

    fn merged(&self, changes: &Tree) -> Result<Self> {
        let mut options = (self.spec().options)();
        options.read(&self.tree())?;
        options.read(changes)?;
        Self::checked(Arc::from(options))
    }

    /// Refuses a name that is no option of this method.
    ///
    /// # Errors
    /// It is none; the method's own are listed, and the nearest is named.
    pub fn must_have(&self, name: &str) -> Result<()> {
        let own = self.spec().option_names();
        if own.contains(&name) {
            return Ok(());
        }
        let known: Vec<String> = own.iter().map(|n| n.to_string()).collect();
        let near = nearest(name, &known).map_or(String::new(), |n| format!("; did you mean '{n}'?"));
        let what = format!("is no option of {}{near}; its options are {}", self.name(), own.join(", "));
        Err(Error::refused(name, what))
    }

    /// The same with the alpha that is computed with, whoever chose it.
    pub fn resolved(&self) -> Self {
        self.with("lora_alpha", as_written(self.options.alpha())).unwrap_or_else(|_| self.clone())
    }

    /// What the user should know about these options: printed when a method is configured.
    pub fn notes(&self) -> Vec<String> {
        match self.options.router_gradient() {
            RouterGradient::No(why) => {
                vec![format!("{}: the router receives no task gradient: {why}", self.name())]
            }
            _ => Vec::new(),
        }
    }

    /// Builds the adapter of a group of linears.
    ///
    /// # Errors
    /// The options do not fit the site.
    pub fn build(
        &self,
        site: &LinearSite,
        device: &Device,
        stream: Stream,
    ) -> Result<Arc<dyn LinearAdapter>> {
        self.options.linear(&LinearBuild { site, device, stream: stream.named(&site.name) })
    }

    /// Builds the adapter of an MLP block, for methods that take blocks.
    ///
    /// # Errors
    /// The options do not fit the site.
    pub fn build_mlp(
        &self,
        site: &MlpSite,
        device: &Device,
        stream: Stream,
    ) -> Result<Option<Arc<dyn MlpAdapter>>> {
        self.options.mlp(&MlpBuild { site, device, stream: stream.named(&site.name) })
    }

    /// Builds the adapter around a block, for methods that take whole blocks.
    ///
    /// # Errors
    /// The options do not fit the site.
    pub fn build_block(
        &self,
        site: &StateSite,
        device: &Device,
        stream: Stream,
    ) -> Result<Option<Arc<dyn BlockAdapter>>> {
        self.options.block(&StateBuild { site, device, stream: stream.named(&site.name) })
    }

    /// Builds what decides before the first layer, for methods that decide once per pass.
    ///
    /// # Errors
    /// The options do not fit the site.
    pub fn build_before(
        &self,
        site: &StateSite,
        device: &Device,
        stream: Stream,
    ) -> Result<Option<Arc<dyn BeforeForward>>> {
        self.options.before(&StateBuild { site, device, stream: stream.named(&site.name) })
    }
}

/// An f32 as JSON has it when it is written as text.
fn as_written(v: f32) -> Value {
    serde_json::from_str(&v.to_string()).unwrap_or(Value::Null)
}

impl PartialEq for Method {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.spec(), other.spec()) && self.tree() == other.tree()
    }
}

impl fmt::Debug for Method {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {:?}", self.name(), self.options)
    }
}
