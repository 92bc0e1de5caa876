//! A method that lives outside of the crate, with options of its own: pairs of rank-1 factors per instance, of which a
//! router picks r and scales them by gates. docs/ADD_A_METHOD.md explains each line; inside the crate it would be one
//! file and a word.
//!
//! ```text
//! cargo run --release --example custom_method
//! ```

use mixlora::adapter::{Adapter, AdapterOptions};
use mixlora::data::{Batch, Example};
use mixlora::mixture::{
    Ask, Factors, Gate, Instance, LinearBuild, Lora, MethodOptions, MethodSpec, Methods, RoutedLinears,
    Router, RouterGradient, Routes, Rule, Selection, enough, route,
};
use mixlora::model::Model;
use mixlora::nn::{LinearAdapter, Param};
use mixlora::train::{Decay, Schedule, Session, TrainConfig};
use mixlora::{Device, Result, Stream, Tensor, options};
use std::sync::Arc;

#[allow(dead_code)]
#[path = "../tests/common/tiny.rs"]
mod tiny;

static TIED_PAIRS: MethodSpec = MethodSpec {
    name: "tied-pairs",
    paper: "examples/custom_method.rs",
    when: "an example",
    routes: Routes::Instance,
    trainable: "E (2 d_in + d_out)",
    options: || Box::new(TiedPairs::default()),
    ..MethodSpec::PLAIN
};

options! {
    /// Options of `tied-pairs`.
    pub struct TiedPairs use [lora: Lora { r: 4 }, factors: Factors { num_factors: 8 }, instance: Instance] {
        /// Factor on the logits before gates are computed: larger is nearer to a hard choice.
        sharpness: f32 = 1.0, in 0.1..=10.0, "examples/custom_method.rs";
    }
}

impl MethodOptions for TiedPairs {
    fn spec(&self) -> &'static MethodSpec {
        &TIED_PAIRS
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn check(&self) -> Result<()> {
        enough(("r", self.lora.r), ("num_factors", self.factors.num_factors))
    }
    fn router_gradient(&self) -> RouterGradient {
        RouterGradient::Yes
    }
    fn instance(&self) -> Option<&Instance> {
        Some(&self.instance)
    }
    fn linear(&self, at: &LinearBuild<'_>) -> Result<Arc<dyn LinearAdapter>> {
        let (r, e) = (self.lora.r, self.factors.num_factors);
        at.site.fits("r", r)?;
        let router = Pairs {
            linears: at.site.linears.len(),
            factors: e,
            chosen: r,
            sharpness: self.sharpness,
            weight: at.inputs("router", e)?,
        };
        Ok(RoutedLinears::adapter(self, at, router, at.inputs("factors_a", e)?, at.outputs("factors_b", e)?))
    }
}

/// Chooses pairs by the pooled input of an instance.
struct Pairs {
    linears: usize,
    factors: usize,
    chosen: usize,
    sharpness: f32,
    /// `[L * E, d_in]`
    weight: Param,
}

impl Router for Pairs {
    const UNIT: Routes = Routes::Instance;

    fn pool(&self) -> (usize, usize) {
        (self.factors, 1)
    }
    fn choose(&self, x: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let units = &ask.pass.units;
        let z = x.pool_rows(units)?.matmul_nt(&self.weight.tensor())?.scale(self.sharpness)?;
        let z = z.reshape(&[units.count(), self.linears, 1, self.factors])?;
        let mut routing = Rule::top_k(self.chosen, Gate::Softmax).routing()?;
        routing.gate_scale = self.chosen as f32;
        route(&z, None, None, ask.forced, &routing, units, 1)
    }
    fn params(&self) -> Vec<Param> {
        vec![self.weight.clone()]
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join(format!("mixlora_custom_method_{}", std::process::id()));
    tiny::write_model(&dir, 64, 64);
    let device = Device::cpu();
    let model = Model::open(&dir, &device)?;
    // Its options are checked as those of the list are.
    let method = TIED_PAIRS.defaults().with("sharpness", 2.0)?;
    assert!(method.with("sharpness", 99).is_err() && method.with("top_k", 2).is_err());
    let targets = ["q_proj", "v_proj", "down_proj"].map(String::from);
    let adapter = Adapter::attach(&model, &method, &targets, Stream::new(0))?;
    let router = adapter.params().into_iter().find(|p| p.name().contains("router")).expect("it has a router");
    let before = router.value().to_f32()?;

    // Answers that repeat the first token of the prompt.
    let example = |i: u32| {
        let ids = vec![i + 3, 1, i % 5, 2, i + 3, i + 3, i + 3];
        Example::new(ids, (0..7).map(|at| at > 3).collect())
    };
    let examples: Vec<Example> = (0..16).map(example).collect();
    let pool = method.options().instance().map(|instance| instance.pool);
    let batch = Batch::new(&examples.iter().collect::<Vec<_>>(), pool, 0, &device)?;
    let schedule =
        Schedule { learning_rate: 1e-2, warmup_steps: 0, decay: Decay::Constant, ..Schedule::default() };
    let mut session =
        Session::new(model, adapter, TrainConfig { schedule, steps: 60, ..TrainConfig::default() })?;
    let first = session.step(std::slice::from_ref(&batch))?.loss;
    let mut last = first;
    while session.steps_done() < session.config.steps {
        last = session.step(std::slice::from_ref(&batch))?.loss;
    }
    println!("{}: loss {first:.3} at first, {last:.3} after {} steps", method.name(), session.steps_done());
    assert!(last < 0.7 * first, "it learns");
    assert_ne!(router.value().to_f32()?, before, "and so does its router");

    // From disk it is found in a registry that knows it; this crate alone does not.
    let saved = dir.join("adapter");
    session.adapter.save(&saved, &session.model, "tiny")?;
    let fresh = Model::open(&dir, &device)?;
    assert!(Adapter::load(&saved, &fresh).is_err());
    let methods = Methods::builtin().with(&TIED_PAIRS);
    let options = AdapterOptions { methods, ..AdapterOptions::default() };
    let loaded = Adapter::load_with(&saved, &fresh, &options)?;
    assert_eq!(loaded.method().tree()["sharpness"], 2.0);
    assert_eq!(loaded.to_safetensors()?, session.adapter.to_safetensors()?);
    Ok(std::fs::remove_dir_all(&dir)?)
}
