//! `dps`: a LoRA more for each stage, those before frozen but for how strongly they count (ScaleZero, dynamic parameter scaling).
//!
//! `y = alpha_0 (W x + bias) + s sum over j <= stage of alpha_j B_j A_j x`, `alpha = 1 + 0.2 tanh(logit)`. A stage trains its own A and
//! B, and the logits of all before it.

use crate::mixture::{
    Axes, Code, CodedLinears, LinearBuild, LinearSite, Lora, MethodOptions, MethodSpec, RouterGradient,
    Routes, RowMemory, SiteMemory, Tree, coded_memory,
};
use crate::nn::{LinearAdapter, Param, Pass};
use crate::{Result, Tensor, options};
use std::sync::Arc;

/// The entry of the list.
pub static SPEC: MethodSpec = MethodSpec {
    name: "dps",
    aliases: &["scalezero"],
    paper: "ScaleZero (DPS), arXiv:2509.07945",
    when: "stages that add capacity to what is learned, without undoing it",
    equation: "y = a_0 (W x + bias) + s sum over j <= stage of a_j B_j A_j x, a = 1 + 0.2 tanh(logit)\na stage trains its own B and A, and the logits of those before",
    differs: "The frozen model stands for the weights that the paper trains in its stage 0.",
    axes: Axes {
        input: "nothing: all act",
        entry: "LoRA of rank r, one for each stage",
        balance: "none",
        trained: "the last stage's LoRA and the scales of those before",
    },
    routes: Routes::None,
    trainable: "r (d_in + d_out) + stage",
    options: || Box::new(Dps::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `dps`.
    pub struct Dps use [lora: Lora { r: 64, lora_alpha: Some(32.0), lora_dropout: 0.1 }] {
        /// The stage that is trained, from 1: as many LoRAs act. A run in stages sets it.
        stage: usize = 1, in 1.0..=64.0, "opendilab/LightZero";
        /// How far a scale can go from 1.
        scale_range: f32 = 0.2, in 0.0..1.0, "opendilab/LightZero";
    }
}

/// Scales of the frozen output and of each stage's LoRA.
struct Stack {
    stages: usize,
    rank: usize,
    range: f32,
    /// One `[stages, 1]` per linear: of the frozen output, and of the LoRAs of the stages before. The own one counts as 1.
    logits: Vec<Param>,
}

impl Stack {
    /// `1 + range tanh(logit)` of some rows, `[1, rows]`, 1 behind the last; `tanh v = 2 sigmoid(2 v) - 1`.
    fn scales(&self, linear: usize, rows: std::ops::Range<usize>) -> Result<Tensor> {
        let logits = self.logits[linear].tensor().reshape(&[1, self.stages])?;
        let index: Vec<u32> = rows.map(|row| row as u32).collect();
        // What is beyond the logits is picked as 0.
        let logits = logits.pick(&Tensor::from_u32(logits.device(), &[1, index.len()], &index)?)?;
        let least = Tensor::full(logits.device(), logits.dims(), 1.0 - self.range)?;
        least.add_scaled(&logits.scale(2.0)?.sigmoid()?, 2.0 * self.range)
    }
}

impl Code for Stack {
    fn code(&self, linear: usize, u: &Tensor, _: &Tensor, _: &Pass) -> Result<Tensor> {
        let scales = self.scales(linear, 1..self.stages + 1)?.reshape(&[self.stages, 1])?;
        u.mul(&scales.repeat_rows(self.rank)?.reshape(&[self.stages * self.rank])?)
    }
    fn base(&self, linear: usize, base: Tensor) -> Result<Tensor> {
        base.mul(&self.scales(linear, 0..1)?.repeat_rows(base.shape().rows())?)
    }
    fn params(&self) -> Vec<Param> {
        self.logits.clone()
    }
}

impl MethodOptions for Dps {
    fn spec(&self) -> &'static MethodSpec {
        &SPEC
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn router_gradient(&self) -> RouterGradient {
        RouterGradient::NoRouter
    }
    fn at_stage(&self, stage: usize, _task: Option<&str>) -> Tree {
        Tree::from_iter([("stage".to_string(), (stage + 1).into())])
    }
    fn row_memory(&self) -> RowMemory {
        coded_memory(&self.lora, 2.0 * (self.stage * self.lora.r) as f64, false)
    }
    /// The frozen outputs, whose scale is trained.
    fn site_memory(&self, site: &LinearSite) -> SiteMemory {
        SiteMemory { per_row: site.linears.iter().map(|(_, out)| *out as f64).sum(), once: 0.0 }
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        let [stages, r] = [self.stage, self.lora.r];
        at.site.fits("r", r)?;
        let a = at.each("lora_a", stages * r)?;
        let b = at.outputs("lora_b", stages * r)?;
        let scale = |(name, _)| Param::new(name, Tensor::zeros(at.device, &[stages, 1])?, true);
        let logits = at.site.parts("scale", stages).into_iter().map(scale).collect::<Result<Vec<_>>>()?;
        let kept = |params: &[Param], rows: std::ops::Range<usize>| {
            params.iter().try_for_each(|param| param.freeze_rows(&param.name(), rows.clone()))
        };
        kept(&a, 0..(stages - 1) * r)?;
        kept(&b, 0..(stages - 1) * r)?;
        CodedLinears::around(self, at, a, b, Stack { stages, rank: r, range: self.scale_range, logits })
    }
}
