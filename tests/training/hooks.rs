//! Adapters of every hook on models of several families: gradients against differences, several adapters on one model,
//! and a pass of the frozen model before the pass.

use mixlora::adapter::{ALL_LINEAR, Adapter, AdapterOptions, Conversation};
use mixlora::check::{GRADCHECK_BOUND, gradcheck_params};
use mixlora::mixture::{
    Hook, Lora, MethodOptions, MethodSpec, Methods, RouterGradient, SitePart, StateBuild, Units, find,
};
use mixlora::model::{Input, Model, SiteKind, Step};
use mixlora::nn::{
    BeforeForward, BlockAdapter, Choices, LinearAdapter, Param, Pass, SiteAdapter, SiteAdapters,
};
use mixlora::{Device, Linear, Result, Stream, Tensor, no_grad, options};
use std::path::PathBuf;
use std::sync::Arc;

const FAMILIES: [&str; 5] = ["qwen3-b", "gemma3-b", "phi3-a", "smollm3-a", "qwen2_moe-a"];

fn open(family: &str, device: &Device) -> Arc<Model> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(family);
    Model::open_f32(&path, device).unwrap()
}

/// Values in place of the zeros that an adapter starts from.
fn noise(adapter: &Adapter, seed: u64) {
    for p in adapter.trainable() {
        let value = p.value();
        let values = Stream::new(seed).named(&p.name()).normal_vec(value.len(), 0.1);
        p.set(Tensor::from_f32(value.device(), value.dims(), &values).unwrap()).unwrap();
    }
}

/// Derivatives of the last states by all trained parameters and by the input, against differences.
fn check(name: &str, model: &Model, params: &[Param], sites: &Arc<SiteAdapters>, recompute: bool) {
    let (b, s, d) = (1, 4, model.config().hidden_size);
    let x = Tensor::from_f32(model.device(), &[b, s, d], &Stream::new(2).normal_vec(b * s * d, 1.0)).unwrap();
    let run = |x: &Tensor, choices: &Choices| -> Result<Vec<Tensor>> {
        let units = Units::instances(x.device(), b, s)?;
        let pass = Pass::new(units).with_choices(choices.clone()).with_adapters(sites.clone());
        let step = Step { recompute, ..Step::default() };
        Ok(vec![model.forward(Input::Embeddings(x), &pass, step)?])
    };
    let errors = gradcheck_params(params, &x, run).unwrap();
    assert!(errors.len() > 1, "{name}: nothing is trained");
    for e in errors {
        // Ten times the bound of one op: a whole model bends more within a step.
        assert!(e.error < 10.0 * GRADCHECK_BOUND, "{name} {}: {:.1e}", e.name, e.error);
    }
}

#[test]
fn an_mlp_adapter_uses_the_activation_of_its_model() {
    let model = open("gemma3-b", &Device::reference());
    let method = find("mixlora-ffn").unwrap().defaults();
    let adapter = Adapter::attach(&model, &method, &[ALL_LINEAR.into()], Stream::new(1)).unwrap();
    // Untouched, it changes nothing: which it would with another activation.
    let ids = Tensor::from_u32(model.device(), &[1, 6], &[2, 5, 9, 11, 7, 3]).unwrap();
    let pass = Pass::new(Units::instances(model.device(), 1, 6).unwrap());
    let states =
        |pass: &Pass| no_grad(|| model.forward(&ids, pass, Step::default())).unwrap().to_f64().unwrap();
    let plain = states(&pass);
    let adapted = states(&pass.clone().with_adapters(adapter.sites().clone()));
    let worst = plain.iter().zip(&adapted).fold(0.0, |w: f64, (a, b)| w.max((a - b).abs()));
    assert!(worst < 1e-6, "{worst}");
    noise(&adapter, 3);
    check("mixlora-ffn", &model, &adapter.trainable()[..3], adapter.sites(), true);
    // Models without such blocks say so.
    let e = Adapter::attach(&open("phi3-a", &Device::cpu()), &method, &[ALL_LINEAR.into()], Stream::new(1));
    assert!(e.err().unwrap().to_string().contains("gated MLP blocks"));
}

/// A low-rank update beside a block, of its input.
struct Beside {
    a: Param,
    b: Param,
}

impl Beside {
    fn new(device: &Device, name: &str, d: usize) -> Self {
        let draw = |part: &str| {
            let values = Stream::new(4).named(name).named(part).normal_vec(2 * d, 0.3);
            Tensor::from_f32(device, &[2, d], &values).unwrap()
        };
        let param = |part: &str| Param::new(format!("{name}.{part}"), draw(part), true).unwrap();
        Beside { a: param("a"), b: param("b") }
    }
    fn update(&self, x: &Tensor) -> Result<Tensor> {
        let rows = x.reshape(&[x.shape().rows(), x.shape().last()])?;
        rows.matmul_nt(&self.a.tensor())?.matmul(&self.b.tensor())?.reshape(x.dims())
    }
}

impl BlockAdapter for Beside {
    fn forward(
        &self,
        x: &Tensor,
        block: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
        _: &Pass,
    ) -> Result<Tensor> {
        block(x)?.add(&self.update(x)?)
    }
    fn params(&self) -> Vec<Param> {
        vec![self.a.clone(), self.b.clone()]
    }
}

/// A gate per token, from the states of the frozen model, that scales an update of all its sites.
struct Decides {
    w: Param,
}

impl BeforeForward for Decides {
    fn decide(&self, _: &Tensor, base: &mut dyn FnMut() -> Result<Tensor>, _: &Pass) -> Result<Vec<Tensor>> {
        let h = base()?;
        let rows = h.reshape(&[h.shape().rows(), h.shape().last()])?;
        Ok(vec![rows.matmul_nt(&self.w.tensor())?.sigmoid()?])
    }
    fn params(&self) -> Vec<Param> {
        vec![self.w.clone()]
    }
}

/// An update of linears times the decision of the pass.
struct Gated(Vec<Beside>);

impl LinearAdapter for Gated {
    fn forward(&self, x: &Tensor, linears: &[Linear], pass: &Pass) -> Result<Vec<Tensor>> {
        let gate = &pass.decision[0];
        let rows = x.reshape(&[x.shape().rows(), x.shape().last()])?;
        let output = |(l, beside): (&Linear, &Beside)| {
            let y = x.linear(&l.weight, l.bias.as_ref())?;
            let update = rows.matmul_nt(&beside.a.tensor())?.matmul(&beside.b.tensor())?.mul(gate)?;
            y.add(&update.reshape(y.dims())?)
        };
        linears.iter().zip(&self.0).map(output).collect()
    }
    fn params(&self) -> Vec<Param> {
        self.0.iter().flat_map(BlockAdapter::params).collect()
    }
}

fn block_adapters(model: &Model) -> SiteAdapters {
    let mut all = SiteAdapters::default();
    for (number, site) in model.sites().iter().enumerate().filter(|(_, s)| s.kind == SiteKind::Block) {
        let beside = Beside::new(model.device(), &site.name, site.width);
        all.set(number, SiteAdapter::Block(Arc::new(beside)));
    }
    all
}

fn deciding_adapters(model: &Model) -> SiteAdapters {
    let (mut all, device) = (SiteAdapters::default(), model.device());
    for (number, site) in model.sites().iter().enumerate() {
        if site.kind == SiteKind::Start {
            let values = Stream::new(8).normal_vec(site.width, 0.3);
            let w = Tensor::from_f32(device, &[1, site.width], &values).unwrap();
            let decides = Decides { w: Param::new("w", w, true).unwrap() };
            all.set(number, SiteAdapter::Before(Arc::new(decides)));
        }
        if site.name.ends_with(".o") {
            let l = &site.linears[0];
            let draw = |what: &str, d: usize| {
                let values = Stream::new(9).named(&l.path).named(what).normal_vec(2 * d, 0.3);
                Param::new(
                    format!("{}.{what}", l.path),
                    Tensor::from_f32(device, &[2, d], &values).unwrap(),
                    true,
                )
            };
            let beside = Beside { a: draw("a", l.d_in).unwrap(), b: draw("b", l.d_out).unwrap() };
            all.set(number, SiteAdapter::Linears(Arc::new(Gated(vec![beside])), Vec::new()));
        }
    }
    all
}

#[test]
fn adapters_around_blocks_and_before_the_pass_train() {
    for family in FAMILIES {
        let model = open(family, &Device::reference());
        for sites in [block_adapters(&model), deciding_adapters(&model)] {
            let params: Vec<Param> = sites.iter().flat_map(|a| a.params()).collect();
            // The first and the last: those between are alike.
            let some = [params[0].clone(), params[params.len() - 1].clone()];
            let sites = Arc::new(sites);
            check(family, &model, &some, &sites, false);
            check(family, &model, &some[..1], &sites, true);
        }
    }
}

/// The pass before the pass has a cache of its own: token by token it decides what it decides for all at once.
#[test]
fn a_pass_before_the_pass_is_cached() {
    let model = open("gemma3-b", &Device::cpu());
    let sites = Arc::new(deciding_adapters(&model));
    let ids: Vec<u32> = (0..24).map(|i| 3 + i * 7 % 200).collect();
    let run = |ids: &[u32], cache: Option<&mut mixlora::model::KvCache>| {
        let t = Tensor::from_u32(model.device(), &[1, ids.len()], ids).unwrap();
        let units = Units::instances(model.device(), 1, ids.len()).unwrap();
        let pass = Pass::new(units).with_adapters(sites.clone());
        let step = Step { cache, ..Step::default() };
        no_grad(|| model.forward(&t, &pass, step)).unwrap().to_f32().unwrap()
    };
    let whole = run(&ids, None);
    let mut cache = mixlora::model::KvCache::default();
    let parts: Vec<f32> = ids.chunks(5).flat_map(|ids| run(ids, Some(&mut cache))).collect();
    let worst = whole.iter().zip(&parts).fold(0f32, |w, (a, b)| w.max((a - b).abs()));
    assert!(worst < 1e-4, "{worst}");
}

/// Threads share a model, each with its own adapter, and get what each gets alone.
#[test]
fn adapters_of_one_model_do_not_touch_each_other() {
    let model = open("qwen3-b", &Device::cpu());
    let adapter = |seed: u64| {
        let method = find("mixlora-cond").unwrap().defaults();
        let adapter = Adapter::attach(&model, &method, &[ALL_LINEAR.into()], Stream::new(seed)).unwrap();
        noise(&adapter, seed);
        adapter
    };
    let adapters = [None, Some(adapter(1)), Some(adapter(2))];
    let answer = |adapter: Option<&Adapter>| {
        let mut c = Conversation::new(&model, adapter, 1);
        c.push(&[4, 8, 15, 16, 23, 42]).unwrap();
        c.logits(0).to_vec()
    };
    let alone: Vec<Vec<f32>> = adapters.iter().map(|a| answer(a.as_ref())).collect();
    assert!(alone[0] != alone[1] && alone[1] != alone[2]);
    std::thread::scope(|scope| {
        for i in 0..9 {
            let (answer, adapters, alone) = (&answer, &adapters, &alone);
            scope.spawn(move || assert_eq!(answer(adapters[i % 3].as_ref()), alone[i % 3]));
        }
    });
}

options! {
    /// Options of a method beside blocks.
    pub struct Sides use [lora: Lora { r: 2, lora_alpha: None, lora_dropout: 0.0 }] {
        /// Whether it is beside whole layers; else it is beside their MLP blocks.
        layers: bool = false;
    }
}

static SIDES: MethodSpec = MethodSpec {
    name: "sides",
    paper: "-",
    when: "never",
    hook: Hook::Block,
    trainable: "2 r hidden",
    options: || Box::new(Sides::default()),
    ..MethodSpec::PLAIN
};

impl MethodOptions for Sides {
    fn spec(&self) -> &'static MethodSpec {
        &SIDES
    }
    fn lora(&self) -> &Lora {
        &self.lora
    }
    fn router_gradient(&self) -> RouterGradient {
        RouterGradient::NoRouter
    }
    fn block(&self, at: &StateBuild<'_>) -> Result<Option<Arc<dyn BlockAdapter>>> {
        let wanted = if self.layers { SitePart::Layer } else { SitePart::Mlp };
        let build = || Beside::new(at.device, &at.site.path, at.site.hidden_size);
        Ok((at.site.part == wanted).then(|| Arc::new(build()) as Arc<dyn BlockAdapter>))
    }
}

/// A method of another crate beside MLP blocks of every kind, experts too, or beside whole layers: attached by its
/// options, trained, and stored like any other.
#[test]
fn methods_take_blocks_of_every_family() {
    for family in FAMILIES {
        let model = open(family, &Device::reference());
        let layers = model.config().num_hidden_layers;
        let mut shifted = Vec::new();
        for whole in [false, true] {
            let method = SIDES.defaults().with("layers", whole).unwrap();
            let adapter = Adapter::attach(&model, &method, &[ALL_LINEAR.into()], Stream::new(1)).unwrap();
            let params = adapter.params();
            assert_eq!(params.len(), 2 * layers, "{family}");
            check(family, &model, &params[..1], adapter.sites(), false);
            let x = Tensor::full(model.device(), &[1, 3, model.config().hidden_size], 0.5).unwrap();
            let pass = Pass::new(Units::tokens(3)).with_adapters(adapter.sites().clone());
            let y = model.forward(Input::Embeddings(&x), &pass, Step::default()).unwrap();
            shifted.push(y.to_f64().unwrap());
        }
        assert!(shifted[0] != shifted[1], "{family}: they are different places");
    }
    let model = open("qwen3-b", &Device::cpu());
    let method = SIDES.defaults();
    let adapter = Adapter::attach(&model, &method, &[ALL_LINEAR.into()], Stream::new(1)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    adapter.save(dir.path(), &model, "base").unwrap();
    let methods = Methods::builtin().with(&SIDES);
    let options = AdapterOptions { methods, ..AdapterOptions::default() };
    let again = Adapter::load_with(dir.path(), &model, &options).unwrap();
    let values =
        |a: &Adapter| -> Vec<Vec<f32>> { a.params().iter().map(|p| p.value().to_f32().unwrap()).collect() };
    assert_eq!(values(&again), values(&adapter));
}

/// The balance loss of llava-mole is one of all blocks, with the same gradients where blocks are computed again.
#[test]
fn sites_make_a_loss_together() {
    let model = open("qwen3-b", &Device::reference());
    let method = find("llava-mole").unwrap().defaults().with("r", 2).unwrap();
    let adapter = Adapter::attach(&model, &method, &[ALL_LINEAR.into()], Stream::new(1)).unwrap();
    noise(&adapter, 3);
    let ids = Tensor::from_u32(model.device(), &[1, 6], &[2, 5, 9, 11, 7, 3]).unwrap();
    let run = |recompute: bool| {
        let units = Units::instances(model.device(), 1, 6).unwrap();
        let pass = Pass::training(units, Stream::new(1)).with_adapters(adapter.sites().clone());
        model.forward(&ids, &pass, Step { recompute, ..Step::default() }).unwrap();
        let losses = pass.take_aux().unwrap();
        assert_eq!(losses.len(), 1, "one loss of {} blocks", model.config().num_hidden_layers);
        let gradients = losses[0].backward().unwrap();
        let of = |p: &Param| p.gradient(&gradients).map(|g| g.to_f64().unwrap());
        let routers = adapter.params().into_iter().filter(|p| p.name().ends_with("router"));
        (losses[0].item().unwrap(), routers.map(|p| of(&p).unwrap()).collect::<Vec<_>>())
    };
    let (kept, again) = (run(false), run(true));
    assert_eq!(kept, again);
    assert!(kept.1.iter().all(|g| g.iter().any(|v| v.abs() > 1e-12)), "every block's router learns from it");
    // Products of means over all blocks: a third of the tokens for each of three experts would give 1 / 3.
    let loss = kept.0 / 0.01;
    assert!(loss > 0.2 && loss < 1.0, "{loss}");
}
