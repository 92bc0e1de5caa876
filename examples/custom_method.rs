//! A method that lives outside of the crate: pairs of rank-1 factors per instance, of which a router picks r and
//! scales them by gates. docs/ADD_A_METHOD.md explains each line; inside the crate it would be one file and a word.
//!
//! ```text
//! cargo run --release --example custom_method
//! ```

use mixlora::adapter::Adapter;
use mixlora::data::{Batch, Example};
use mixlora::mixture::{Hook, LinearSite, MethodConfig, MethodSpec, Routing, mixture_linears, route};
use mixlora::model::Llama;
use mixlora::nn::{LinearAdapter, Param, Pass};
use mixlora::train::{Decay, Schedule, Session, TrainConfig};
use mixlora::{Device, Linear, Result, Stream, Tensor};
use std::sync::Arc;

#[allow(dead_code)]
#[path = "../tests/common/tiny.rs"]
mod tiny;

static TIED_PAIRS: MethodSpec = MethodSpec {
    name: "tied-pairs",
    paper: "examples/custom_method.rs",
    hook: Hook::Linear,
    trainable: "E (2 d_in + d_out)",
    mergeable: false,
    defaults: || MethodConfig { gated: true, num_factors: 8, ..MethodConfig::default() },
    check: |c| match c.r <= c.num_factors {
        true => Ok(()),
        false => Err(mixlora::Error::Config { field: "r".into(), what: "is larger than num_factors".into() }),
    },
    router_without_gradient: |c| (c.r == 1).then_some("with r = 1 the only gate is always 1"),
    alpha: |c| 2 * c.num_factors,
    has_router: true,
    linear: |c, site, device, stream| Ok(Arc::new(TiedPairs::new(c, site, device, stream)?)),
    mlp: None,
};

struct TiedPairs {
    site: LinearSite,
    config: MethodConfig,
    /// `[L * E, d_in]`
    router: Param,
    /// `[L * E, d_in]`
    a: Param,
    /// One `[E, d_out]` per linear.
    b: Vec<Param>,
}

impl TiedPairs {
    fn new(c: &MethodConfig, site: &LinearSite, device: &Device, stream: Stream) -> Result<Self> {
        site.fits("r", c.r)?;
        let (e, bound) = (c.num_factors, 1.0 / (site.d_in as f32).sqrt());
        let draw = |name: &str, n| stream.named(name).uniform_vec(n, bound);
        // Zeros: an adapter starts as no change at all.
        let b = site.linears.iter().map(|(name, out)| {
            Param::new(format!("{name}.factors_b"), Tensor::zeros(device, &[e, *out])?, true)
        });
        Ok(TiedPairs {
            site: site.clone(),
            config: c.clone(),
            router: Param::drawn(device, site.parts("router", e), site.d_in, true, draw)?,
            a: Param::drawn(device, site.parts("factors_a", e), site.d_in, true, draw)?,
            b: b.collect::<Result<_>>()?,
        })
    }
}

impl LinearAdapter for TiedPairs {
    fn forward(&self, x: &Tensor, linears: &[Linear], pass: &Pass) -> Result<Vec<Tensor>> {
        let MethodConfig { r, num_factors: e, lora_dropout, .. } = self.config;
        let (l, g) = (self.site.linears.len(), pass.units.count());
        let z = x.pool_rows(&pass.units)?.matmul_nt(&self.router.tensor())?.reshape(&[g, l, 1, e])?;
        let mut routing = Routing::new(r);
        (routing.gated, routing.gate_scale) = (true, r as f32);
        let forced = pass.choices.forced(&self.site.name)?;
        let s = route(&z, None, None, forced.as_ref(), &routing, &pass.units, 1)?;
        pass.choices.keep(&self.site.name, &s);
        let b: Vec<Tensor> = self.b.iter().map(Param::tensor).collect();
        let dropout = pass.dropout(&self.site.name, lora_dropout);
        mixture_linears(x, linears, &self.a.tensor(), &b, &s, self.config.scaling(r), dropout)
    }

    fn params(&self) -> Vec<Param> {
        [self.a.clone()].into_iter().chain(self.b.clone()).chain([self.router.clone()]).collect()
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join(format!("mixlora_custom_method_{}", std::process::id()));
    tiny::write_model(&dir, 64, 64);
    let device = Device::cpu();
    let mut model = Llama::open(&dir, &device, false)?;
    std::fs::remove_dir_all(&dir)?;
    let options = (TIED_PAIRS.defaults)();
    let targets = ["q_proj", "v_proj", "down_proj"].map(String::from);
    let adapter = Adapter::attach(&mut model, &TIED_PAIRS, &options, &targets, Stream::new(0))?;
    let router = adapter.params().into_iter().find(|p| p.name().contains("router")).expect("it has a router");
    let before = router.value().to_f32()?;

    // Answers that repeat the first token of the prompt.
    let example = |i: u32| {
        let ids = vec![i + 3, 1, i % 5, 2, i + 3, i + 3, i + 3];
        Example::new(ids, (0..7).map(|at| at > 3).collect())
    };
    let examples: Vec<Example> = (0..16).map(example).collect();
    let batch = Batch::new(&examples.iter().collect::<Vec<_>>(), options.pool, 0, &device)?;
    let schedule = Schedule { learning_rate: 1e-2, warmup_steps: 0, decay: Decay::Constant };
    let mut session =
        Session::new(model, adapter, TrainConfig { schedule, steps: 60, ..TrainConfig::default() })?;
    let first = session.step(std::slice::from_ref(&batch))?.loss;
    let mut last = first;
    while session.steps_done() < session.config.steps {
        last = session.step(std::slice::from_ref(&batch))?.loss;
    }
    println!("{}: loss {first:.3} at first, {last:.3} after {} steps", TIED_PAIRS.name, session.steps_done());
    assert!(last < 0.7 * first, "it learns");
    assert_ne!(router.value().to_f32()?, before, "and so does its router");
    Ok(())
}
