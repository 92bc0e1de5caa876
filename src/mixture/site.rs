//! Where an adapter joins a model, and how its parameters are made there.

use crate::nn::Param;
use crate::{Device, Error, Result, Stream, Tensor};

/// What a site is, or is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SitePart {
    /// An attention block.
    Attention,
    /// An MLP block of any kind, experts too.
    Mlp,
    /// One of the experts of a model that is a mixture of experts itself.
    Expert,
    /// What chooses among these.
    ExpertRouter,
    /// A linear of the projector between a vision tower and the decoder.
    Projector,
    /// A whole decoder layer.
    Layer,
    /// Anything else.
    Other,
}

/// A place in a model's depth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Number of the layer, from 0.
    pub layer: usize,
    /// Number of layers.
    pub layers: usize,
}

impl Depth {
    /// The only layer: for a layer outside of a model.
    pub const ONLY: Depth = Depth { layer: 0, layers: 1 };
}

/// A group of linears that read the same input.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearSite {
    /// Where in the model; also the key of its choices and random streams.
    pub name: String,
    pub depth: Depth,
    pub part: SitePart,
    /// The number of its first linear among all that the adapter takes, in the order of sites.
    pub first: usize,
    /// Linears of the whole model that the adapter takes.
    pub all: usize,
    pub d_in: usize,
    /// Name and outputs of each linear.
    pub linears: Vec<(String, usize)>,
}

/// The name of a part: `linear.what`, or `what` for a linear without a name.
pub(super) fn part(linear: &str, what: &str) -> String {
    if linear.is_empty() { what.to_string() } else { format!("{linear}.{what}") }
}

/// Refuses an update of a rank above both sides of a linear.
fn fits(name: &str, what: &str, rank: usize, d_in: usize, d_out: usize) -> Result<()> {
    let most = d_in.min(d_out);
    if rank <= most {
        return Ok(());
    }
    Err(Error::config(what, rank, format!("in 1..={most}: {name} is a linear {d_in} -> {d_out}")))
}

impl LinearSite {
    /// Linears outside of a model, for tests and measurements.
    pub fn alone(name: &str, d_in: usize, linears: Vec<(String, usize)>) -> Self {
        let all = linears.len();
        let part = SitePart::Other;
        LinearSite { name: name.into(), depth: Depth::ONLY, part, first: 0, all, d_in, linears }
    }
    /// Refuses an update of a rank that no linear of this size can have.
    ///
    /// # Errors
    /// The rank is larger than both sides of a linear; the error names the linear.
    pub fn fits(&self, what: &str, rank: usize) -> Result<()> {
        self.linears.iter().try_for_each(|(n, out)| fits(&part(&self.name, n), what, rank, self.d_in, *out))
    }
    /// The name of a part that all linears share.
    pub fn shared_part(&self, what: &str) -> String {
        part(&self.name, what)
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
    pub depth: Depth,
    pub hidden_size: usize,
    pub intermediate_size: usize,
}

impl MlpSite {
    /// A block outside of a model, for tests and measurements.
    pub fn alone(name: &str, hidden_size: usize, intermediate_size: usize) -> Self {
        let path = String::new();
        MlpSite { name: name.into(), path, depth: Depth::ONLY, hidden_size, intermediate_size }
    }
    /// Refuses an update of a rank that the block's linears cannot have.
    ///
    /// # Errors
    /// The rank is larger than both sides.
    pub fn fits(&self, what: &str, rank: usize) -> Result<()> {
        fits(&self.name, what, rank, self.hidden_size, self.intermediate_size)
    }
}

/// A place that the state `[.., hidden_size]` of the model passes: around an MLP block or a decoder layer, or before the
/// first one.
#[derive(Debug, Clone, PartialEq)]
pub struct StateSite {
    /// Where in the model; also the key of its choices and random streams.
    pub name: String,
    /// In front of the names of its parameters; may be empty.
    pub path: String,
    pub depth: Depth,
    pub part: SitePart,
    pub hidden_size: usize,
    /// Linears of the whole model that the adapter takes.
    pub linears: usize,
}

impl StateSite {
    /// Refuses an update of a rank above the width of the state.
    ///
    /// # Errors
    /// The rank is larger.
    pub fn fits(&self, what: &str, rank: usize) -> Result<()> {
        fits(&self.name, what, rank, self.hidden_size, self.hidden_size)
    }
}

/// Makes the parameters of an adapter at a site. Every part is drawn from a stream of its own name: its values depend
/// neither on its neighbours nor on the group.
pub struct Build<'a, S> {
    pub site: &'a S,
    pub device: &'a Device,
    pub stream: Stream,
}

/// Builds the adapter of a group of linears.
pub type LinearBuild<'a> = Build<'a, LinearSite>;
/// Builds the adapter around a block, or before the first layer.
pub type StateBuild<'a> = Build<'a, StateSite>;
/// Builds the adapter of an MLP block.
pub type MlpBuild<'a> = Build<'a, MlpSite>;

impl<S> Build<'_, S> {
    /// Named rows `[rows, cols]`, uniform in `-bound..bound`.
    pub fn uniform(
        &self,
        parts: Vec<(String, usize)>,
        cols: usize,
        bound: f32,
        trained: bool,
    ) -> Result<Param> {
        Param::drawn(self.device, parts, cols, trained, |name, n| {
            self.stream.named(name).uniform_vec(n, bound)
        })
    }
    /// Named rows `[rows, cols]`, normal with a standard deviation.
    pub fn normal(&self, parts: Vec<(String, usize)>, cols: usize, std: f32, trained: bool) -> Result<Param> {
        Param::drawn(self.device, parts, cols, trained, |name, n| self.stream.named(name).normal_vec(n, std))
    }
}

impl LinearBuild<'_> {
    /// `rows` trained rows for every linear, `[L * rows, d_in]`, uniform in `-1/sqrt(d_in)..1/sqrt(d_in)`: the A side
    /// of an update, or a router.
    pub fn inputs(&self, what: &str, rows: usize) -> Result<Param> {
        let bound = 1.0 / (self.site.d_in as f32).sqrt();
        self.uniform(self.site.parts(what, rows), self.site.d_in, bound, true)
    }
    /// The same as a parameter of its own for each linear, `[rows, d_in]`.
    ///
    /// # Errors
    /// The device has no memory for it.
    pub fn each(&self, what: &str, rows: usize) -> Result<Vec<Param>> {
        self.apart(what, rows, self.site.d_in, 1.0 / (self.site.d_in as f32).sqrt())
    }
    /// A trained parameter `[rows, cols]` for each linear, uniform in `-bound..bound`.
    ///
    /// # Errors
    /// The device has no memory for it.
    pub fn apart(&self, what: &str, rows: usize, cols: usize, bound: f32) -> Result<Vec<Param>> {
        let parts = self.site.parts(what, rows).into_iter();
        parts.map(|part| self.uniform(vec![part], cols, bound, true)).collect()
    }
    /// A trained pool `[rows, d_out]` of zeros for every linear, the B side: an adapter starts as no change at all.
    pub fn outputs(&self, what: &str, rows: usize) -> Result<Vec<Param>> {
        let parts = self.site.parts(what, rows).into_iter().zip(&self.site.linears);
        parts
            .map(|((name, _), (_, out))| Param::new(name, Tensor::zeros(self.device, &[rows, *out])?, true))
            .collect()
    }
}
