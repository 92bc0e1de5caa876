//! `ept`: experts of several grains over one low-rank core, chosen by token and task (EPT, arXiv:2603.12577).
//!
//! `y = W x + s sum over the top k of p_e W_e x`, where `W_e` is the core `B A` widened by a kernel: every value of the core
//! becomes that value times the kernel `K_e [t, t]`, a deconvolution of stride t, so `W_e = (B A) (x) K_e` in Kronecker's sense, cut to the
//! linear's size. `p = softmax(W_r (x + v_task) / temperature)` with a learned vector for each task. To the loss comes the InfoNCE of
//! the samples' mean inputs with the vectors of their tasks. Kernels start at zero.
//!
//! `W_e x` is never formed: with A and B spread to rows (k, i), that hold a value at every t-th place from i on, it is
//! `B' (K_e applied to the groups of t of A' x)`. The rows of all sides stand beside each other, so that A' and B' are one
//! product each.

use crate::mixture::losses::info_nce;
use crate::mixture::routers::{Gated, one_hot};
use crate::mixture::{
    Ask, Axes, Gate, LinearBuild, LinearSite, List, Lora, MethodOptions, MethodSpec, Router, RouterGradient,
    Routes, RowMemory, Rule, Score, Select, Selection, SiteMemory, Tasks, TopK, decide, enough,
};
use crate::nn::{LinearAdapter, Param, Pass};
use crate::ops::factor_expand::expand_by;
use crate::{Device, Error, Linear, Result, Tensor, options};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "ept",
    paper: "EPT, arXiv:2603.12577",
    when: "many known tasks, and experts of a few values each",
    equation: "y = W x + s sum over the top k of p_e ((B A) (x) K_e) x, p = softmax(W_r (x + v_task) / temperature)\nloss: InfoNCE of the samples' mean inputs with the vectors of their tasks",
    differs: "The core is one for each group of linears that read the same input, not one for the whole model. How the task enters the router, and \
              what InfoNCE compares, is our reading; lora_alpha / r stands for the paper's d_t / T. Where by_task makes the gates those of the task alone, \
              one matrix for each task is equal to the update, but none is merged.",
    axes: Axes {
        input: "the linear's input plus a learned vector of the task",
        entry: "kernel t x t over a shared low-rank core",
        balance: "InfoNCE with the task",
        trained: "all",
    },
    routes: Routes::Token,
    trainable: "E d_in + sum t^2, and r (d_in + d_out) / t_1 + tasks d_in for each group of linears",
    run: &[("train.learning_rate", "3e-4")],
    options: || Box::new(Ept::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `ept`.
    pub struct Ept use [lora: Lora { r: 8 }, choice: TopK { top_k: 2 }, tasks: Tasks] {
        /// The side of each expert's kernel, in rising order.
        kernels: List<usize> = List(vec![2, 2, 4, 4, 6, 6, 8, 8]), "arXiv:2603.12577";
        /// What the logits are divided by.
        temperature: f32 = 0.05, in 0.001.., "arXiv:2603.12577";
        /// Whether the gates depend on the task alone, and not on the token.
        by_task: bool = false;
        /// Coefficient of the contrast between tasks.
        contrast_coef: f32 = 0.1, in 0.0.., "arXiv:2603.12577";
        /// What similarities are divided by in the contrast.
        contrast_temperature: f32 = 0.1, in 0.001..;
    }
}

impl Ept {
    /// Each side of a kernel with the experts that have it.
    fn sides(&self) -> BTreeMap<usize, Range<usize>> {
        let mut sides: BTreeMap<usize, Range<usize>> = BTreeMap::new();
        for (expert, &side) in self.kernels.0.iter().enumerate() {
            sides.entry(side).or_insert(expert..expert).end = expert + 1;
        }
        sides
    }
    /// The smallest side: the core is as wide as it needs.
    fn least(&self) -> usize {
        self.kernels.0.first().copied().unwrap_or(1).max(1)
    }
}

/// Chooses experts by token and task.
struct TaskRouter {
    linears: usize,
    options: Ept,
    /// Of the contrast: this group's share of it.
    contrast: f32,
    /// `[L * E, d_in]`
    router: Param,
    /// `[tasks, d_in]`
    vectors: Param,
}

impl TaskRouter {
    /// InfoNCE of the mean input of each sample, of tokens that count, with the vectors of the tasks.
    fn loss(&self, rows: &Tensor, of_rows: &Tensor, numbers: &[u32], pass: &Pass) -> Result<Tensor> {
        let mut hits = one_hot(of_rows, rows.shape().rows(), numbers.len())?;
        if let Some((valid, _)) = &pass.valid {
            hits = hits.mul(valid)?;
        }
        // Cosines need no division by the number of tokens.
        let sums = hits.matmul_tn(rows)?;
        info_nce(&sums, &self.vectors.tensor(), numbers, self.options.contrast_temperature)
    }
}

impl Router for TaskRouter {
    const UNIT: Routes = Routes::Token;

    fn pool(&self) -> (usize, usize) {
        (self.options.kernels.0.len(), self.options.lora.r)
    }

    fn choose(&self, x: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let o = &self.options;
        let device = x.device();
        let m = x.shape().rows();
        let rows = x.reshape(&[m, x.shape().last()])?;
        let numbers: Vec<u32> = o.tasks.numbers(ask.pass)?.into_iter().map(|n| n as u32).collect();
        let of_rows = ask.pass.sample_of_rows(device, numbers.len(), m)?;
        if ask.pass.train && self.contrast > 0.0 {
            ask.pass.add_aux(self.loss(&rows, &of_rows, &numbers, ask.pass)?.scale(self.contrast)?);
        }
        let router = self.router.tensor();
        let of_tasks = self.vectors.tensor().matmul_nt(&router)?;
        let of_samples = of_tasks.gather_rows(&Tensor::from_u32(device, &[numbers.len()], &numbers)?)?;
        let mut logits = of_samples.gather_rows(&of_rows)?;
        if !o.by_task {
            logits = logits.add(&rows.matmul_nt(&router)?)?;
        }
        let logits = logits.scale(1.0 / o.temperature)?.reshape(&[m, self.linears, o.kernels.0.len()])?;
        let Gated { gates, mask } = Gated::top_k(&logits, o.choice.top_k, ask.forced)?;
        Selection::dense(gates, mask, &ask.pass.units, o.lora.r)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.router.clone(), self.vectors.clone()]
    }
}

/// Linears with kernels over a core.
struct Cored {
    site: String,
    router: TaskRouter,
    /// `[r, w]` and `[r, h]`: all linears take their first columns of the second.
    a: Param,
    b: Param,
    /// One `[E_t * t, t]` per linear for each side t of a kernel.
    kernels: BTreeMap<usize, Vec<Param>>,
    layout: Layout,
    scale: f32,
    dropout: f32,
}

/// Where sides and experts stand beside each other, in products over all of them.
struct Layout {
    /// For each side t, where the values of its kernels stand in all kernels `[sum over e of t_e, S]`, S the sum of the sides.
    kernels: Vec<Tensor>,
    /// 1 where a row of all kernels is one of expert e, `[sum of t_e, E]`.
    experts: Tensor,
    /// 1 where a row of all kernels adds to a place of the code, `[S, sum of t_e]`.
    places: Tensor,
}

impl Layout {
    fn new(device: &Device, sides: &BTreeMap<usize, Range<usize>>) -> Result<Self> {
        // A row of all kernels: its expert, and the place of the code that it adds to.
        let mut rows: Vec<(usize, usize)> = Vec::new();
        let mut kernels = Vec::new();
        let code: usize = sides.keys().sum();
        let all: usize = sides.iter().map(|(side, experts)| side * experts.len()).sum();
        let mut first = 0;
        for (&side, experts) in sides {
            let mut index = vec![u32::MAX; all * code];
            for value in 0..experts.len() * side * side {
                let row = rows.len() + value / side;
                index[row * code + first + value % side] = value as u32;
            }
            kernels.push(Tensor::from_u32(device, &[1, all * code], &index)?);
            rows.extend(experts.clone().flat_map(|expert| (0..side).map(move |i| (expert, first + i))));
            first += side;
        }
        let hit = |a: usize, b: usize| f32::from(u8::from(a == b));
        let count = sides.values().map(|experts| experts.len()).sum();
        let experts: Vec<f32> =
            rows.iter().flat_map(|(expert, _)| (0..count).map(move |e| hit(e, *expert))).collect();
        let places: Vec<f32> =
            (0..code).flat_map(|place| rows.iter().map(move |(_, to)| hit(place, *to))).collect();
        Ok(Layout {
            kernels,
            experts: Tensor::from_f32(device, &[all, count], &experts)?,
            places: Tensor::from_f32(device, &[code, all], &places)?,
        })
    }

    /// The kernels of all experts of a linear as one matrix `[sum of t_e, S]`, 0 outside of each one's side.
    fn join<'a>(&self, kernels: impl Iterator<Item = &'a Param>) -> Result<Tensor> {
        let mut joined: Option<Tensor> = None;
        for (kernel, index) in kernels.zip(&self.kernels) {
            let values = kernel.tensor().reshape(&[1, kernel.value().len()])?.pick(index)?;
            joined = Some(match joined {
                Some(others) => others.add(&values)?,
                None => values,
            });
        }
        let [code, all] = *self.places.dims() else { return self.places.sum() };
        joined.ok_or_else(|| Error::refused("kernels", "are none"))?.reshape(&[all, code])
    }
}

/// Rows (k, t, i), i below the side t, of a core `[r, w]`: value j of row k stands at place j t + i. `[r * S, width]`.
fn spread<'a>(core: &Tensor, sides: impl Iterator<Item = &'a usize>, width: usize) -> Result<Tensor> {
    let r = core.dims()[0];
    let mut index = Vec::new();
    for &side in sides {
        for i in 0..side {
            let first = index.len();
            index.resize(first + width, u32::MAX);
            for (value, at) in (i..width).step_by(side).enumerate() {
                index[first + at] = value as u32;
            }
        }
    }
    let rows = index.len() / width.max(1);
    let index = Tensor::from_u32(core.device(), &[r, index.len()], &index.repeat(r))?;
    core.pick(&index)?.reshape(&[r * rows, width])
}

impl Cored {
    /// What the experts make of a code `[M, r S]`, with gates `[M, E]`: the groups of each side times its experts' kernels.
    fn mixed(&self, code: &Tensor, kernels: &Tensor, gates: &Tensor) -> Result<Tensor> {
        let r = self.router.options.lora.r;
        let [m, width] = *code.dims() else { return Err(Error::shape("ept", "[M, r S]", code.shape())) };
        let made = code.reshape(&[m * r, width / r])?.matmul_nt(kernels)?;
        let gates = gates.matmul_nt(&self.layout.experts)?.repeat_rows(r)?;
        made.mul(&gates)?.matmul_nt(&self.layout.places)?.reshape(&[m, width])
    }
}

impl LinearAdapter for Cored {
    fn forward(&self, x: &Tensor, linears: &[Linear], pass: &Pass) -> Result<Vec<Tensor>> {
        let choice = decide(&self.router, &self.site, x, pass)?;
        let none = || Error::shape("ept", "a dense selection", "none");
        let gates = choice.row_gates().ok_or_else(none)?;
        let m = x.shape().rows();
        let d = x.shape().last();
        let rows = x.reshape(&[m, d])?;
        let branch = match pass.dropout(&self.site, self.dropout) {
            Some(dropout) => rows.dropout(dropout.p, dropout.stream)?,
            None => rows.clone(),
        };
        let code = branch.matmul_nt(&spread(&self.a.tensor(), self.kernels.keys(), d)?)?;
        let whole = Selection::whole(x.device(), &pass.units, 1, code.shape().last())?;
        let lead = &x.dims()[..x.dims().len() - 1];
        let mut outputs = Vec::with_capacity(linears.len());
        for (l, linear) in linears.iter().enumerate() {
            let y = rows.linear(&linear.weight, linear.bias.as_ref())?;
            let width = y.shape().last();
            let kernels = self.layout.join(self.kernels.values().map(|of_linears| &of_linears[l]))?;
            let mixed = self.mixed(&code, &kernels, &Gated::of_linear(gates, l)?)?;
            let b = spread(&self.b.tensor(), self.kernels.keys(), width)?;
            let y = expand_by(y, &mixed, &b, &whole, self.scale)?;
            outputs.push(y.reshape(&[lead, &[width]].concat())?);
        }
        Ok(outputs)
    }

    fn params(&self) -> Vec<Param> {
        let own = [&self.a, &self.b].into_iter().chain(self.kernels.values().flatten()).cloned();
        own.chain(self.router.params()).collect()
    }
}

impl MethodOptions for Ept {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    /// lora_alpha / r is 1.
    fn default_alpha(&self) -> f32 {
        self.lora.r as f32
    }
    fn check(&self) -> Result<()> {
        let List(sides) = &self.kernels;
        if sides.contains(&0) || !sides.is_sorted() {
            let found = format!("{sides:?}");
            return Err(Error::config("kernels", found, "sides of at least 1 in rising order"));
        }
        enough(("top_k", self.choice.top_k), ("kernels", sides.len()))
    }
    fn tasks(&self) -> Option<&Tasks> {
        Some(&self.tasks)
    }
    fn chooses_by_task(&self) -> bool {
        true
    }
    fn rule(&self) -> Rule {
        Rule { score: Score::Softmax, select: Select::TopK(self.choice.top_k), gate: Gate::Score }
    }
    fn router_gradient(&self) -> RouterGradient {
        RouterGradient::Yes
    }
    fn row_memory(&self) -> RowMemory {
        let r = self.lora.r as f64;
        let sides: usize = self.sides().keys().sum();
        let all: usize = self.kernels.0.iter().sum();
        let e = self.kernels.0.len() as f64;
        RowMemory { per_linear: r * (sides + 2 * all) as f64 + 4.0 * e, ..RowMemory::ROUTED }
    }
    fn site_memory(&self, site: &LinearSite) -> SiteMemory {
        // The code, and spread factors with their places, of the shared A and of B for each linear.
        let widths = site.d_in + site.linears.iter().map(|(_, out)| out).sum::<usize>();
        let sides: usize = self.sides().keys().sum();
        let code = self.lora.r * sides;
        SiteMemory { per_row: code as f64, once: 2.0 * (code * widths) as f64 }
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        let r = self.lora.r;
        at.site.fits("r", r)?;
        if let Some(side) = self.kernels.0.iter().find(|side| **side > at.site.d_in) {
            let most = format!("at most {}: the inputs of {}", at.site.d_in, at.site.name);
            return Err(Error::config("kernels", side, most));
        }
        let linears = at.site.linears.len();
        let core = |what: &str, width: usize, std: f32| {
            at.normal(vec![(at.site.shared_part(what), r)], width.div_ceil(self.least()), std, true)
        };
        let widest = at.site.linears.iter().map(|(_, out)| *out).max().unwrap_or(1);
        let zeros = |side: usize, count: usize| -> Result<Vec<Param>> {
            let parts = at.site.parts(&format!("kernel_{side}"), count * side).into_iter();
            parts.map(|part| Param::drawn(at.device, vec![part], side, true, |_, n| vec![0.0; n])).collect()
        };
        let kernels = self.sides().into_iter().map(|(side, experts)| Ok((side, zeros(side, experts.len())?)));
        let tasks = self.tasks.tasks.0.len().max(1);
        let router = TaskRouter {
            linears,
            options: self.clone(),
            contrast: self.contrast_coef * linears as f32 / at.site.all.max(1) as f32,
            router: at.inputs("router", self.kernels.0.len())?,
            vectors: at.normal(
                vec![(at.site.shared_part("task_vectors"), tasks)],
                at.site.d_in,
                1.0,
                true,
            )?,
        };
        Ok(Arc::new(Cored {
            site: at.site.name.clone(),
            router,
            a: core("core_a", at.site.d_in, 1.0 / (at.site.d_in as f32).sqrt())?,
            b: core("core_b", widest, 1.0 / (r as f32).sqrt())?,
            kernels: kernels.collect::<Result<_>>()?,
            layout: Layout::new(at.device, &self.sides())?,
            scale: self.scale(),
            dropout: self.lora.lora_dropout,
        }))
    }
}
