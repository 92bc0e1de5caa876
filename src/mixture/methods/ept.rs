//! `ept`: experts of several grains over one low-rank core, chosen by token and task (EPT, arXiv:2603.12577).
//!
//! `y = W x + s sum over the top k of p_e W_e x`, where `W_e` is the core `B A` widened by a kernel: every value of the core
//! becomes that value times the kernel `K_e [t, t]`, a deconvolution of stride t, so `W_e = (B A) (x) K_e` in Kronecker's sense, cut to the
//! linear's size. `p = softmax(W_r (x + v_task) / temperature)` with a learned vector for each task. To the loss comes the InfoNCE of
//! the samples' mean inputs with the vectors of their tasks. Kernels start at zero.
//!
//! `W_e x` is never formed: with A and B spread to rows (k, i), that hold a value at every t-th place from i on, it is
//! `B' (K_e applied to the groups of t of A' x)`.

use crate::mixture::losses::info_nce;
use crate::mixture::routers::{Gated, columns, one_hot};
use crate::mixture::{
    Ask, Axes, Gate, LinearBuild, LinearSite, List, Lora, MethodOptions, MethodSpec, Router, RouterGradient,
    Routes, RowMemory, Rule, Score, Select, Selection, SiteMemory, Tasks, TopK, decide, enough,
};
use crate::nn::{LinearAdapter, Param, Pass};
use crate::ops::factor_expand::expand_by;
use crate::{Error, Linear, Result, Tensor, options};
use std::collections::BTreeMap;
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
    fn sides(&self) -> BTreeMap<usize, std::ops::Range<usize>> {
        let mut sides: BTreeMap<usize, std::ops::Range<usize>> = BTreeMap::new();
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
    scale: f32,
    dropout: f32,
}

/// Rows (k, i), i below t, of a core `[r, w]`: value j of row k stands at place j t + i. `[r * t, width]`.
fn spread(core: &Tensor, t: usize, width: usize) -> Result<Tensor> {
    let r = core.dims()[0];
    let place = |i: usize, at: usize| if at % t == i { (at / t) as u32 } else { u32::MAX };
    let row: Vec<u32> = (0..t).flat_map(|i| (0..width).map(move |at| place(i, at))).collect();
    let index = Tensor::from_u32(core.device(), &[r, t * width], &row.repeat(r))?;
    core.pick(&index)?.reshape(&[r * t, width])
}

impl Cored {
    /// What the experts of one side add to the code: `[M, r t]` from the groups of t of `u`, with gates `[M, E_t]`.
    fn mixed(&self, u: &Tensor, kernels: &Param, gates: &Tensor) -> Result<Tensor> {
        let r = self.router.options.lora.r;
        let [m, experts] = [gates.dims()[0], gates.dims()[1]];
        let t = u.shape().last() / r;
        let groups = u.reshape(&[m * r, t])?.matmul_nt(&kernels.tensor())?;
        let gated = groups.gate_groups(&gates.repeat_rows(r)?)?;
        gated.reshape(&[m * r * experts, t])?.sum_groups(experts)?.reshape(&[m, r * t])
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
        let mut outputs = Vec::with_capacity(linears.len());
        for linear in linears {
            outputs.push(rows.linear(&linear.weight, linear.bias.as_ref())?);
        }
        for (side, experts) in self.router.options.sides() {
            let u = branch.matmul_nt(&spread(&self.a.tensor(), side, d)?)?;
            let whole = Selection::whole(x.device(), &pass.units, 1, u.shape().last())?;
            for (l, y) in outputs.iter_mut().enumerate() {
                let gates = columns(&Gated::of_linear(gates, l)?, experts.clone())?;
                let code = self.mixed(&u, &self.kernels[&side][l], &gates)?;
                let b = spread(&self.b.tensor(), side, y.shape().last())?;
                *y = expand_by(y.clone(), &code, &b, &whole, self.scale)?;
            }
        }
        let lead = &x.dims()[..x.dims().len() - 1];
        outputs.into_iter().map(|y| y.reshape(&[lead, &[y.shape().last()]].concat())).collect()
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
        RowMemory { per_linear: r * (sides + all) as f64 + (r + 4.0) * e, ..RowMemory::ROUTED }
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
            scale: self.scale(),
            dropout: self.lora.lora_dropout,
        }))
    }
}
