//! `mixlora-fitted`: Conditional MixLoRA with a router that is fitted to the data before training, pairs that all inputs share,
//! and a core between what the two sides chose.

use crate::mixture::discriminant::{Discriminant, Vectors};
use crate::mixture::routers::one_hot;
use crate::mixture::{
    Ask, Axes, Gate, Instance, LinearBuild, LinearSite, Lora, MethodOptions, MethodSpec, RoutedLinears,
    Router, RouterGradient, Routes, Routing, RowMemory, Rule, Selection, SiteMemory, StateBuild, Tasks,
    decide, enough, mixture_linears, route,
};
use crate::nn::{BeforeForward, LinearAdapter, Param, Pass, Prompts};
use crate::{Error, Linear, Result, Stream, Tensor, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "mixlora-fitted",
    paper: "this crate, after Shen et al. 2024",
    when: "several tasks that contradict each other, with one adapter",
    equation: "y = W x + s sum_{i, j in S(g)} C_ij b_j (a_i . x), S(g) = the shared pairs and those of group g\ng = the largest of w_g . h + c_g, h = the pooled embeddings of the prompt, one g for all layers; s = lora_alpha / r",
    axes: Axes {
        input: "mean of the embedded prompt, once for all layers",
        entry: "pairs of rank-1 factors, of a group or shared",
        balance: "none",
        trained: "factors and core; the router is fitted before",
    },
    routes: Routes::Instance,
    trainable: "E (d_in + d_out) + E^2, E = r - own + groups own",
    options: || Box::new(MixloraFitted::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `mixlora-fitted`.
    pub struct MixloraFitted use [lora: Lora { r: 4 }, instance: Instance, tasks: Tasks] {
        /// Pairs that a group has for itself, of the r that an input gets; the others are shared by all inputs.
        own: usize = 1, in 1.0..;
        /// So many groups, which are clusters of the prompts (k-means); absent: a group for each task, by the labels of the
        /// training data. Neither needs a label afterwards.
        clusters: Option<usize> = None, in 1.0..=4096.0;
        /// Whether a learned core of E x E values joins what A and B chose; it begins as the identity, which pairs factor i of A
        /// with factor i of B.
        core: bool = true;
    }
}

impl MixloraFitted {
    fn groups(&self) -> usize {
        self.clusters.unwrap_or(self.tasks.tasks.0.len().max(1))
    }
    /// Pairs that every input uses.
    fn shared(&self) -> usize {
        self.lora.r - self.own
    }
    /// Pairs of a linear, the shared ones first.
    fn pairs(&self) -> usize {
        self.shared() + self.groups() * self.own
    }
    /// The group of a pair; none of one that is shared.
    fn group_of(&self, pair: usize) -> Option<usize> {
        pair.checked_sub(self.shared()).map(|pair| pair / self.own)
    }
}

/// What shared pairs have in place of their group's score: above all others.
const ALWAYS: f32 = 1e30;

/// Scores the groups of each prompt, before the first layer.
struct Groups {
    options: MixloraFitted,
    stream: Stream,
    /// `[G, hidden_size]`
    weights: Param,
    /// `[G, 1]`
    biases: Param,
}

impl Groups {
    fn rule(&self) -> Result<Discriminant> {
        let values = |param: &Param| param.value().to_f64();
        Ok(Discriminant { weights: values(&self.weights)?, biases: values(&self.biases)? })
    }

    /// The number of each prompt's task, of those that have one.
    fn numbers<'a>(&'a self, prompts: &'a Prompts) -> impl Iterator<Item = Result<(usize, usize)>> + 'a {
        let known = prompts.tasks.iter().enumerate().filter_map(|(i, task)| Some((i, task.as_deref()?)));
        known.map(|(i, task)| Ok((i, self.options.tasks.number(task)?)))
    }
}

impl BeforeForward for Groups {
    fn decide(
        &self,
        x: &Tensor,
        _base: &mut dyn FnMut() -> Result<Tensor>,
        pass: &Pass,
    ) -> Result<Vec<Tensor>> {
        let o = &self.options;
        let pooled = x.detach().pool_rows(&pass.units)?;
        let biases = self.biases.value().reshape(&[o.groups()])?;
        let scores = pooled.matmul_nt(&self.weights.value())?.add(&biases)?;
        let pairs = o.pairs();
        let of_pair: Vec<u32> = (0..pairs).map(|p| o.group_of(p).map_or(u32::MAX, |g| g as u32)).collect();
        let always: Vec<f32> = (0..pairs).map(|p| o.group_of(p).map_or(ALWAYS, |_| 0.0)).collect();
        let units = pass.units.count();
        let index = Tensor::from_u32(x.device(), &[units, pairs], &of_pair.repeat(units))?;
        Ok(vec![scores.pick(&index)?.add(&Tensor::from_f32(x.device(), &[pairs], &always)?)?])
    }

    fn fits(&self) -> bool {
        true
    }

    fn fit(&self, prompts: &Prompts) -> Result<()> {
        let groups = self.options.groups();
        let rule = match self.options.clusters {
            Some(groups) => {
                let vectors = Vectors::new(prompts.width, &prompts.rows);
                Discriminant::of_clusters(&vectors, groups, self.stream)?
            }
            None => {
                let (rows, of): (Vec<usize>, Vec<usize>) =
                    self.numbers(prompts).collect::<Result<Vec<_>>>()?.into_iter().unzip();
                let values: Vec<f32> = rows.iter().flat_map(|&row| prompts.row(row)).copied().collect();
                Discriminant::of_labels(&Vectors::new(prompts.width, &values), &of, groups)?
            }
        };
        let device = self.weights.value().device().clone();
        self.weights.set(Tensor::from_f64(&device, &[groups, prompts.width], &rule.weights)?)?;
        self.biases.set(Tensor::from_f64(&device, &[groups, 1], &rule.biases)?)
    }

    fn told_apart(&self, prompts: &Prompts) -> Result<Option<[usize; 2]>> {
        if self.options.clusters.is_some() {
            return Ok(None);
        }
        let rule = self.rule()?;
        let numbers = self.numbers(prompts).collect::<Result<Vec<_>>>()?;
        let right = numbers.iter().filter(|(row, number)| {
            let row: Vec<f64> = prompts.row(*row).iter().map(|&v| f64::from(v)).collect();
            rule.group(&row) == *number
        });
        Ok(Some([right.count(), numbers.len()]))
    }

    fn params(&self) -> Vec<Param> {
        vec![self.weights.clone(), self.biases.clone()]
    }
}

/// Takes the pairs of the group that was decided before the first layer.
struct OfGroup {
    linears: usize,
    pairs: usize,
    routing: Routing,
}

impl Router for OfGroup {
    const UNIT: Routes = Routes::Instance;

    fn pool(&self) -> (usize, usize) {
        (self.pairs, 1)
    }

    fn choose(&self, _x: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let units = &ask.pass.units;
        let Some(scores) = ask.pass.decision.first() else {
            let what = "mixlora-fitted decides before the first layer, and nothing is decided";
            return Err(Error::refused("pass", what));
        };
        let dims = [units.count(), self.linears, 1, self.pairs];
        route(
            &scores.repeat_rows(self.linears)?.reshape(&dims)?,
            None,
            None,
            ask.forced,
            &self.routing,
            units,
            1,
        )
    }
}

/// Linears with a core between the factors of both sides.
struct Cored {
    site: String,
    router: OfGroup,
    /// `[L * E, d_in]`
    a: Param,
    /// One `[E, d_out]` per linear.
    b: Vec<Param>,
    /// One `[E, E]` per linear: row i has what factor i of A gives to each factor of B.
    cores: Vec<Param>,
    scale: f32,
    dropout: f32,
}

impl Cored {
    /// The chosen factors of A as a pool of one entry for each unit, `[L * U * r, d_in]`, and what they meet on B's side after
    /// the core, one `[U * r, d_out]` per linear.
    fn chosen(&self, choice: &Selection) -> Result<(Tensor, Vec<Tensor>)> {
        let [l, _, u, r] = *choice.idx().dims() else {
            return Err(Error::shape("mixlora-fitted", "choices [L, 1, U, r]", choice.idx().shape()));
        };
        let e = self.router.pairs;
        let a = self.a.tensor();
        let hits = one_hot(choice.idx(), l * u * r, e)?;
        let of_a = hits.reshape(&[l, u * r, e])?.matmul(&a.reshape(&[l, e, a.shape().last()])?)?;
        let of_a = of_a.reshape(&[l * u * r, a.shape().last()])?;
        let mut of_b = Vec::with_capacity(l);
        for (linear, (core, b)) in self.cores.iter().zip(&self.b).enumerate() {
            let rows: Vec<u32> = (0..u * r).map(|row| (linear * u * r + row) as u32).collect();
            let hits = hits.gather_rows(&Tensor::from_u32(hits.device(), &[u * r], &rows)?)?;
            let unit = hits.sum_groups(r)?.repeat_rows(r)?;
            of_b.push(hits.matmul(&core.tensor())?.mul(&unit)?.matmul(&b.tensor())?);
        }
        Ok((of_a, of_b))
    }
}

impl LinearAdapter for Cored {
    fn forward(&self, x: &Tensor, linears: &[Linear], pass: &Pass) -> Result<Vec<Tensor>> {
        let choice = decide(&self.router, &self.site, x, pass)?;
        let [l, _, u, r] = *choice.idx().dims() else {
            return Err(Error::shape("mixlora-fitted", "choices [L, 1, U, r]", choice.idx().shape()));
        };
        let (a, b) = self.chosen(&choice)?;
        let own: Vec<u32> = (0..u as u32).collect();
        let own = Tensor::from_u32(x.device(), &[l, 1, u, 1], &own.repeat(l))?;
        let own = Selection::new(own, None, &pass.units, u, r)?;
        let dropout = pass.dropout(&self.site, self.dropout);
        mixture_linears(x, linears, &a, &b, &own, self.scale, dropout)
    }

    fn params(&self) -> Vec<Param> {
        std::iter::once(&self.a).chain(&self.b).chain(&self.cores).cloned().collect()
    }
}

impl MethodOptions for MixloraFitted {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn check(&self) -> Result<()> {
        enough(("own", self.own), ("r", self.lora.r))
    }
    fn rule(&self) -> Rule {
        Rule::top_k(self.lora.r, Gate::None)
    }
    fn active_share(&self) -> f64 {
        self.lora.r as f64 / self.pairs() as f64
    }
    fn router_gradient(&self) -> RouterGradient {
        RouterGradient::No("its router is fitted to the prompts of the data before the first step")
    }
    fn instance(&self) -> Option<&Instance> {
        Some(&self.instance)
    }
    fn tasks(&self) -> Option<&Tasks> {
        self.clusters.is_none().then_some(&self.tasks)
    }
    fn row_memory(&self) -> RowMemory {
        RowMemory { per_linear: self.lora.r as f64, ..RowMemory::PLAIN }
    }
    fn site_memory(&self, site: &LinearSite) -> SiteMemory {
        // The chosen factors of both sides, for each sample of a step: a few rows.
        let widths: usize = site.linears.iter().map(|(_, out)| site.d_in + out).sum();
        let once = if self.core { 4 * self.lora.r * widths } else { 0 };
        SiteMemory { once: once as f64, ..SiteMemory::default() }
    }
    fn before(&self, at: &StateBuild<'_>) -> Result<Option<Arc<dyn BeforeForward>>> {
        let groups = self.groups();
        let width = at.site.hidden_size;
        let bound = 1.0 / (width as f32).sqrt();
        Ok(Some(Arc::new(Groups {
            options: self.clone(),
            stream: at.stream.named("clusters"),
            weights: at.uniform(vec![("router".into(), groups)], width, bound, false)?,
            biases: at.uniform(vec![("router_bias".into(), groups)], 1, bound, false)?,
        })))
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        at.site.fits("r", self.lora.r)?;
        let pairs = self.pairs();
        let router = OfGroup {
            linears: at.site.linears.len(),
            pairs,
            routing: Routing { sides: 1, ..self.rule().routing()? },
        };
        let a = at.inputs("factors_a", pairs)?;
        let b = at.outputs("factors_b", pairs)?;
        if !self.core {
            return Ok(RoutedLinears::adapter(self, at, router, a, b));
        }
        let identity =
            |_: &str, n: usize| (0..n).map(|i| f32::from(u8::from(i / pairs == i % pairs))).collect();
        let core = |part| Param::drawn(at.device, vec![part], pairs, true, identity);
        let cores = at.site.parts("core", pairs).into_iter().map(core).collect::<Result<_>>()?;
        let site = at.site.name.clone();
        let (scale, dropout) = (self.scale(), self.lora.lora_dropout);
        Ok(Arc::new(Cored { site, router, a, b, cores, scale, dropout }))
    }
}
