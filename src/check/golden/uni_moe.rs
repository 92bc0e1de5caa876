//! A layer of experts of a mixture-of-experts model with a LoRA on every linear of every expert.

use super::kinds::Config;
use super::mixture::{Comparison, blocks};
use super::{BOUND, Replay, bounded, tensor};
use crate::adapter::build_sites;
use crate::io::Checkpoint;
use crate::mixture::{Method, Units, methods};
use crate::model::{Experts, ExpertsConfig, Site, SiteKind, SiteLinear, experts_by_tag};
use crate::nn::{Activation, LinearGroup, Mlp, Pass};
use crate::{Device, Error, Format, Linear, Result, Stream, Tensor, Weight, backward};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

pub(super) const KIND: &str = "uni_moe";

/// The linears of an expert, and whether they are as wide as the expert at their output, else at their input.
const LINEARS: [(&str, bool); 3] = [("gate", true), ("up", true), ("down", false)];

/// The layer of a file.
struct Layer<'a> {
    file: &'a Checkpoint,
    device: &'a Device,
    experts: usize,
    width: usize,
    hidden: usize,
}

impl Layer<'_> {
    /// Inputs and outputs of a linear.
    fn sides(&self, wide: bool) -> [usize; 2] {
        if wide { [self.width, self.hidden] } else { [self.hidden, self.width] }
    }

    fn site(&self, name: String, kind: SiteKind, linears: Vec<SiteLinear>) -> Site {
        let width = linears.first().map_or(self.width, |l| l.d_in);
        Site { path: name.clone(), name, kind, layer: 0, layers: 1, linears, width, inner: width }
    }

    /// The router, and for each expert gate with up, and down.
    fn sites(&self) -> Vec<Site> {
        let linear = |path: String, [d_in, d_out]: [usize; 2]| SiteLinear { path, d_in, d_out };
        let router = vec![linear("router".into(), [self.width, self.experts])];
        let mut all = vec![self.site("router".into(), SiteKind::ExpertRouter, router)];
        for e in 0..self.experts {
            let of = |(what, wide): &(&str, bool)| linear(format!("{e}.{what}"), self.sides(*wide));
            for (name, linears) in [("gate_up", &LINEARS[..2]), ("down", &LINEARS[2..])] {
                let linears = linears.iter().map(of).collect();
                all.push(self.site(format!("{e}.{name}"), SiteKind::ExpertLinears, linears));
            }
        }
        all
    }

    /// Block `expert` of a tensor of equal blocks.
    fn block(&self, name: &str, expert: usize, dims: [usize; 2]) -> Result<Vec<f32>> {
        let all = self.file.f32(name, &[self.experts, dims[0], dims[1]])?;
        let size = dims[0] * dims[1];
        Ok(all[expert * size..][..size].to_vec())
    }

    fn frozen(&self, name: &str, expert: usize, [d_in, d_out]: [usize; 2]) -> Result<Linear> {
        let values = self.block(name, expert, [d_out, d_in])?;
        Ok(Linear { weight: Weight::new(self.device, d_out, d_in, &values, Format::F32)?, bias: None })
    }

    fn experts(&self, chosen: usize, renormalise: bool) -> Result<Experts> {
        let [count, width, d] = [self.experts, self.hidden, self.width];
        let router = self.file.f32("router", &[count, d])?;
        let router = Linear { weight: Weight::new(self.device, count, d, &router, Format::F32)?, bias: None };
        let expert = |e: usize| -> Result<Mlp> {
            let linear =
                |&(what, wide): &(&str, bool)| self.frozen(&format!("w_{what}"), e, self.sides(wide));
            let mut all = LINEARS.iter().map(linear).collect::<Result<Vec<_>>>()?;
            let down = all.split_off(2);
            Ok(Mlp {
                gate_up: LinearGroup::at(1 + 2 * e, all),
                down: LinearGroup::at(2 + 2 * e, down),
                activation: Activation::Silu,
                site: None,
            })
        };
        Ok(Experts {
            config: ExpertsConfig { count, chosen, width, renormalise, shared: None, mixtral_names: false },
            router: LinearGroup::at(0, vec![router]),
            experts: (0..count).map(expert).collect::<Result<_>>()?,
            shared: None,
        })
    }

    /// Where the file has a part of an adapter: the tensor, which block of it, its dims, and whether it is the transpose.
    fn place(&self, part: &str, rank: usize) -> Option<(String, Option<usize>, [usize; 2], bool)> {
        let (path, side) = part.split_once(".lora_")?;
        let dims = |[d_in, d_out]: [usize; 2]| if side == "a" { [rank, d_in] } else { [d_out, rank] };
        match path.split_once('.') {
            None => Some((format!("router_{side}"), None, dims([self.width, self.experts]), side == "b")),
            Some((expert, what)) => {
                let (_, wide) = LINEARS.iter().find(|(name, _)| *name == what)?;
                let expert = expert.parse().ok()?;
                Some((format!("{side}_{what}"), Some(expert), dims(self.sides(*wide)), side == "b"))
            }
        }
    }

    /// The values of a part, as pools have them.
    fn part(&self, part: &str, rank: usize) -> Option<Vec<f32>> {
        let (name, expert, dims, transposed) = self.place(part, rank)?;
        let values = match expert {
            Some(expert) => self.block(&name, expert, dims).ok()?,
            None => self.file.f32(&name, &dims).ok()?,
        };
        Some(if transposed { blocks(&values, dims[0], dims[1]) } else { values })
    }
}

/// Replays a file: output, gradients, and how often each tag chose each expert.
pub(super) fn replay(file: &Checkpoint, values: &Map<String, Value>, device: &Device) -> Result<Replay> {
    let config = Config { kind: KIND, values };
    let [b, s, d, hidden, e, k, r] =
        ["batch", "seq", "in", "hidden", "E", "k", "r"].map(|n| config.number(n));
    if [b, s, d, hidden, e, k, r].contains(&0) || k > e {
        return Err(Error::file(
            file.path(),
            "config has a size of 0, or more experts chosen than there are",
        ));
    }
    bounded(file, "experts", &[e, r, hidden.max(d)])?;
    bounded(file, "rows", &[b, s, d])?;
    let x = tensor(file, device, "x", &[b, s, d])?.leaf();
    let layer = Layer { file, device, experts: e, width: d, hidden };
    let in_file = |error: Error| Error::file(file.path(), error.to_string());
    let options = json!({
        "r": r, "lora_alpha": values.get("alpha"), "adapt_router": config.flag("adapt_router"),
    });
    let changes = options.as_object().cloned().unwrap_or_default();
    let method: Method = methods::uni_moe::SPEC.defaults().set(&changes).map_err(in_file)?;
    let experts = layer.experts(k, config.flag("renormalise"))?;
    let adapters =
        Arc::new(build_sites(&layer.sites(), &method, &[], device, Stream::new(0)).map_err(in_file)?);
    let params: Vec<_> = adapters.iter().flat_map(|adapter| adapter.params()).collect();
    for param in &params {
        param.load(device, |part| layer.part(part, r)).map_err(in_file)?;
    }

    let pass = Pass::new(Units::instances(device, b, s)?).with_adapters(adapters);
    let chosen = Mutex::new(Vec::new());
    let y = experts.forward(&x, &pass, Some(&chosen))?;
    let mut all = Comparison::new(file);
    all.compare.within("y", &y.to_f64()?, BOUND)?;
    let tags: Vec<u32> = file.integers("tags", &[b, s])?.into_iter().map(|tag| tag as u32).collect();
    for chosen in chosen.into_inner().unwrap_or_default() {
        let counts = experts_by_tag(&chosen, &tags, e).map_err(in_file)?;
        let want = file.integers("by_tag", &[counts.len(), e])?;
        all.choices &= counts.iter().flatten().map(|&count| count as i64).eq(want);
    }

    let gradients = backward(&[(&y, tensor(file, device, "grad_y", &[b, s, d])?)])?;
    let dx = gradients.get(&x).map(Tensor::to_f64).transpose()?.unwrap_or_default();
    all.scale = dx.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
    all.gradient("grad_x", &dx, BOUND)?;
    // An expert that no token chose has no gradient: zeros in the file.
    let mut stacked: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for param in &params {
        let zeros = || Tensor::zeros(device, param.value().dims());
        let gradient = param.gradient(&gradients).cloned().map_or_else(zeros, Ok)?;
        for (part, _, values) in param.split(&gradient)? {
            let Some((name, _, dims, transposed)) = layer.place(&part, r) else { continue };
            // Experts come in order.
            let values = if transposed { blocks(&values, dims[1], dims[0]) } else { values };
            stacked.entry(name).or_default().extend(values);
        }
    }
    for (name, values) in &stacked {
        all.gradient(&format!("grad_{name}"), values, BOUND)?;
    }
    all.compare.finish(KIND, all.choices)
}
