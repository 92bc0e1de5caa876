//! `x-lora`: trained LoRAs, mixed for each token by a classifier of what the frozen model makes of it (arXiv:2402.07148).
//!
//! `h` are the states behind the last norm of a pass without adapters; `z = MLP(h)`, one number for each expert, or for each
//! linear and expert; `g = softmax(z / temperature)`; `y = W x + s sum_e g_e B_e A_e x`. Only the MLP is trained.

use crate::mixture::routers::dense_memory;
use crate::mixture::{
    Ask, Axes, Experts, Gate, LinearBuild, Lora, MethodOptions, MethodSpec, RoutedLinears, Router,
    RouterGradient, Routes, RowMemory, Rule, Score, Select, Selection, StateBuild, TakesExperts, enough,
};
use crate::nn::{BeforeForward, LinearAdapter, Param, Pass};
use crate::ops::select::SelectRule;
use crate::{Error, Result, Tensor, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "x-lora",
    aliases: &["xlora"],
    paper: "X-LoRA, arXiv:2402.07148",
    when: "LoRAs that are there already, to be mixed by what a text is about",
    equation: "y = W x + s sum_e g_e B_e A_e x, g = softmax(MLP(h) / temperature), h the last states of a pass without adapters",
    differs: "The first pass has no adapters, as in PEFT with scaling_pass_value = 0.",
    axes: Axes {
        input: "the last states of a pass without adapters",
        entry: "LoRA of rank r, trained before",
        balance: "none",
        trained: "the router",
    },
    routes: Routes::Token,
    trainable: "E hidden + E with depth = 1, whatever the linears",
    options: || Box::new(XLora::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `x-lora`.
    pub struct XLora use [lora: Lora { r: 8 }, experts: Experts { num_experts: 4 }] {
        /// Linears of the classifier, with ReLU between.
        depth: usize = 1, in 1.0..=16.0, "arXiv:2402.07148";
        /// Width between them.
        size: usize = 2048, in 1.0.., "arXiv:2402.07148";
        /// Dropout between them.
        classifier_dropout: f32 = 0.2, in 0.0..1.0, "arXiv:2402.07148";
        /// Gates for each linear of the model, instead of the same for all.
        layerwise: bool = false, "arXiv:2402.07148";
        /// Gates are the softmax of the classifier's outputs, instead of these themselves.
        softmax: bool = true, "arXiv:2402.07148";
        /// What the outputs are divided by in the softmax.
        temperature: f32 = 1.0, in 0.01.., "arXiv:2402.07148";
        /// Experts that act, the others get the gate 0; absent: all of them.
        top_k: Option<usize> = None, in 1.0.., "arXiv:2402.07148";
        /// Gates of those that act are once more the softmax over them, of the gates that they had.
        softmax_topk: bool = false, "arXiv:2402.07148";
        /// Factor on what the experts add.
        global_scaling: f32 = 1.0, "arXiv:2402.07148";
        /// The experts learn too.
        train_experts: bool = false, "arXiv:2402.07148";
    }
}

/// A linear of the classifier with its bias.
struct Dense {
    weight: Param,
    bias: Param,
}

/// Turns the states of a pass without adapters into the gates `[M, sets * E]` of that pass.
struct Classifier {
    site: String,
    options: XLora,
    layers: Vec<Dense>,
}

impl Classifier {
    fn new(options: &XLora, at: &StateBuild<'_>) -> Result<Self> {
        let e = options.experts.num_experts;
        let outputs = if options.layerwise { e * at.site.linears } else { e };
        let mut width = at.site.hidden_size;
        let mut layers = Vec::new();
        for number in 1..=options.depth {
            let rows = if number == options.depth { outputs } else { options.size };
            let bound = 1.0 / (width as f32).sqrt();
            let name = format!("classifier_{number}");
            let bias = vec![(format!("{name}_bias"), 1)];
            layers.push(Dense {
                weight: at.uniform(vec![(name, rows)], width, bound, true)?,
                bias: at.uniform(bias, rows, bound, true)?,
            });
            width = rows;
        }
        Ok(Classifier { site: at.site.name.clone(), options: options.clone(), layers })
    }

    /// Gates `[M, sets * E]` for states `[M, hidden_size]`.
    fn gates(&self, states: &Tensor, pass: &Pass) -> Result<Tensor> {
        let o = &self.options;
        let mut z = states.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            let bias = layer.bias.tensor();
            z = z.matmul_nt(&layer.weight.tensor())?.add(&bias.reshape(&[bias.len()])?)?;
            if i + 1 < self.layers.len() {
                z = z.relu()?;
                if let Some(drop) = pass.dropout(&format!("{}.{i}", self.site), o.classifier_dropout) {
                    z = z.dropout(drop.p, drop.stream)?;
                }
            }
        }
        let dims = z.dims().to_vec();
        let e = o.experts.num_experts;
        let mut gates = z.reshape(&[z.len() / e, e])?;
        if o.softmax {
            gates = gates.scale(1.0 / o.temperature)?.softmax()?;
        }
        if let Some(top_k) = o.top_k {
            let chosen = gates.detach().select(&SelectRule::TopK(top_k))?;
            gates = if o.softmax_topk { softmax_over(&gates, &chosen)? } else { gates.mul(&chosen)? };
        }
        gates.reshape(&dims)
    }
}

/// What is added to the exponent of what is not chosen.
const FAR_BELOW: f32 = -1e30;

/// The softmax over the entries with a 1 in `chosen`; 0 for the others.
fn softmax_over(gates: &Tensor, chosen: &Tensor) -> Result<Tensor> {
    let all = Tensor::full(chosen.device(), chosen.dims(), FAR_BELOW)?;
    gates.add(&all.add_scaled(chosen, -FAR_BELOW)?)?.softmax()
}

impl BeforeForward for Classifier {
    fn decide(
        &self,
        _x: &Tensor,
        base: &mut dyn FnMut() -> Result<Tensor>,
        pass: &Pass,
    ) -> Result<Vec<Tensor>> {
        let states = base()?;
        let states = states.reshape(&[states.shape().rows(), states.shape().last()])?;
        Ok(vec![self.gates(&states, pass)?])
    }

    fn params(&self) -> Vec<Param> {
        self.layers.iter().flat_map(|layer| [layer.weight.clone(), layer.bias.clone()]).collect()
    }
}

/// Takes the gates of a site's linears from those that were decided before the first layer.
struct Decided {
    linears: usize,
    /// Where the gates of its linears begin in a row of the decision, and how far those of the next linear are.
    first: usize,
    step: usize,
    experts: usize,
    rank: usize,
}

impl Router for Decided {
    const UNIT: Routes = Routes::Token;

    fn pool(&self) -> (usize, usize) {
        (self.experts, self.rank)
    }

    fn chooses(&self) -> bool {
        false
    }

    fn choose(&self, x: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let [l, e] = [self.linears, self.experts];
        let m = x.shape().rows();
        let Some(decided) = ask.pass.decision.first() else {
            return Err(Error::refused(
                "pass",
                "x-lora decides before the first layer, and nothing is decided",
            ));
        };
        if decided.dims().first() != Some(&m) {
            return Err(Error::shape("x-lora", format!("gates of {m} rows"), decided.shape()));
        }
        let of_row: Vec<u32> = (0..l * e).map(|i| (self.first + i / e * self.step + i % e) as u32).collect();
        let index = Tensor::from_u32(x.device(), &[m, l * e], &of_row.repeat(m))?;
        let gates = decided.pick(&index)?.reshape(&[m, l, e])?;
        Selection::dense(gates, None, &ask.pass.units, self.rank)
    }
}

impl MethodOptions for XLora {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn scale(&self) -> f32 {
        self.alpha() / self.lora.r as f32 * self.global_scaling
    }
    fn check(&self) -> Result<()> {
        if let Some(top_k) = self.top_k {
            enough(("top_k", top_k), ("num_experts", self.experts.num_experts))?;
        }
        if self.softmax_topk && self.top_k.is_none() {
            return Err(Error::refused("softmax_topk", "needs a top_k: the experts that it is over"));
        }
        Ok(())
    }
    fn rule(&self) -> Rule {
        Rule { score: Score::Softmax, select: Select::All, gate: Gate::Score }
    }
    fn router_gradient(&self) -> RouterGradient {
        match self.top_k {
            Some(1) if self.softmax_topk => {
                RouterGradient::No("with top_k = 1 and softmax_topk the only gate is always 1")
            }
            _ => RouterGradient::Yes,
        }
    }
    fn takes_experts(&self) -> TakesExperts {
        TakesExperts::Needed
    }
    fn row_memory(&self) -> RowMemory {
        // Its routers read nothing at the linears. States of the pass before and the embedded input stay.
        let per_linear = dense_memory(&self.experts, &self.lora).per_linear;
        RowMemory { per_linear, before: 3.0, ..RowMemory::PLAIN }
    }
    fn before(&self, at: &StateBuild<'_>) -> Result<Option<Arc<dyn BeforeForward>>> {
        Ok(Some(Arc::new(Classifier::new(self, at)?)))
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        let [e, r] = [self.experts.num_experts, self.lora.r];
        at.site.fits("r", r)?;
        let step = if self.layerwise { e } else { 0 };
        let router = Decided {
            linears: at.site.linears.len(),
            first: at.site.first * step,
            step,
            experts: e,
            rank: r,
        };
        let a = at.inputs("lora_a", e * r)?;
        let b = at.outputs("lora_b", e * r)?;
        let kept = |pool: Param| if self.train_experts { Ok(pool) } else { pool.untrained() };
        let b = b.into_iter().map(kept).collect::<Result<_>>()?;
        Ok(RoutedLinears::adapter(self, at, router, kept(a)?, b))
    }
}
