//! Files of losses and schedules without a layer.

use super::kinds::Config;
use super::{BOUND, Compare, Measured, Replay, tensor};
use crate::io::Checkpoint;
use crate::mixture::TopKSchedule;
use crate::mixture::losses::{
    Counted, cv_squared, info_nce, localized_balance, mean_of_rows, preference, renyi_entropy, rsl,
    shannon_entropy, sup_con, switch_loss, tsallis_entropy, z_loss,
};
use crate::ops::select::SelectRule;
use crate::{Device, Error, Result, Tensor};
use serde_json::{Map, Value};

/// Kinds whose files are losses or schedules.
pub(super) const KINDS: &[&str] = &["router_losses", "infonce", "sup_con", "preference", "topk_schedule"];

/// The bound of entropies that divide by a small `q - 1`.
const ENTROPY_BOUND: f64 = 3e-5;

pub(super) fn replay(
    file: &Checkpoint,
    kind: &str,
    values: &Map<String, Value>,
    device: &Device,
) -> Result<Replay> {
    let config = Config { kind, values };
    let sizes: &[&str] = match kind {
        "router_losses" => &["batch", "seq", "E", "k"],
        "infonce" => &["batch", "d", "tasks"],
        "sup_con" => &["batch", "d", "tasks"],
        "preference" => &["batch", "seq", "vocab"],
        _ => &["steps"],
    };
    if sizes.iter().any(|name| config.number(name) == 0) {
        return Err(Error::file(file.path(), "config has a size of 0"));
    }
    let mut compare = Compare::new(file);
    match kind {
        "router_losses" => router_losses(file, &config, device, &mut compare)?,
        "infonce" => {
            let [b, d, n] = ["batch", "d", "tasks"].map(|name| config.number(name));
            let query = tensor(file, device, "query", &[b, d])?.leaf();
            let keys = tensor(file, device, "keys", &[n, d])?.leaf();
            let labels = file.indices("label", &[b], n)?;
            let loss = info_nce(&query, &keys, &labels, number(&config, "tau"))?;
            with_gradients(&mut compare, "infonce", &loss, &[("query", &query), ("keys", &keys)], BOUND)?;
        }
        "sup_con" => {
            let [b, d, n] = ["batch", "d", "tasks"].map(|name| config.number(name));
            let states = tensor(file, device, "states", &[b, d])?.leaf();
            let labels = file.indices("label", &[b], n)?;
            let loss = || sup_con(&states, &labels, number(&config, "tau"));
            with_gradients(&mut compare, "sup_con", &loss()?, &[("states", &states)], BOUND)?;
            // Its own gradient stands in the place of that of an output, too.
            let gradients = loss()?.backward()?;
            let of_states = gradients.get(&states).map_or_else(|| Ok(vec![0.0; b * d]), Tensor::to_f64)?;
            compare.within("grad_states", &of_states, BOUND)?;
        }
        "preference" => preferences(file, &config, device, &mut compare)?,
        _ => schedule(file, &config, &mut compare)?,
    }
    compare.finish(kind, true)
}

fn number(config: &Config<'_>, name: &str) -> f32 {
    config.real(name).unwrap_or(0.0) as f32
}

/// A loss with its gradients, `name.value` and `name.grad_<tensor>` of the file.
fn with_gradients(
    compare: &mut Compare<'_>,
    name: &str,
    loss: &Tensor,
    of: &[(&str, &Tensor)],
    bound: f64,
) -> Result<()> {
    compare.within(&format!("{name}.value"), &[loss.item()?], bound)?;
    let gradients = loss.backward()?;
    for (tensor, leaf) in of {
        let stored = format!("{name}.grad_{tensor}");
        if compare.file.has(&stored) {
            let got = gradients.get(leaf).map_or_else(|| Ok(vec![0.0; leaf.len()]), Tensor::to_f64)?;
            compare.within(&stored, &got, bound)?;
        }
    }
    Ok(())
}

/// A loss of the logits `[T, E]`.
type LossOfLogits<'a> = dyn Fn(&Tensor) -> Result<Tensor> + 'a;

fn router_losses(
    file: &Checkpoint,
    config: &Config<'_>,
    device: &Device,
    compare: &mut Compare<'_>,
) -> Result<()> {
    let [b, s, e, k] = ["batch", "seq", "E", "k"].map(|name| config.number(name));
    let m = b * s;
    let tokens = if file.has("valid") {
        let flags: Vec<f32> = file.integers("valid", &[b, s])?.into_iter().map(|flag| flag as f32).collect();
        let count = flags.iter().filter(|flag| **flag > 0.0).count();
        Counted::weighted(Tensor::from_f32(device, &[m, 1], &flags)?, count)
    } else {
        Counted::all(m)
    };
    let types = file.indices("types", &[b], 2)?.into_iter().map(|kind| kind as usize).collect::<Vec<_>>();
    let [q, eps, delta, alpha, lambda] =
        ["q", "eps", "delta", "rsl_alpha", "rsl_lambda"].map(|name| number(config, name));
    let losses: [(&str, &LossOfLogits<'_>); 10] = [
        ("switch", &|z| switch_loss(&tokens.sum(&z.softmax()?)?, &load(z, k, &tokens)?, e, tokens.count())),
        ("switch_normalised", &|z| {
            let load = load(z, k, &tokens)?.scale(1.0 / k as f32)?;
            switch_loss(&tokens.sum(&z.softmax()?)?, &load, e, tokens.count())
        }),
        ("cv2", &|z| cv_squared(&tokens.sum(&z.softmax()?)?)),
        ("z", &|z| z_loss(z, &tokens)),
        ("tsallis", &|z| mean_of_rows(&tsallis_entropy(&z.softmax()?, q, eps)?, &tokens)),
        ("renyi", &|z| mean_of_rows(&renyi_entropy(&z.softmax()?, q, eps)?, &tokens)),
        ("shannon", &|z| mean_of_rows(&shannon_entropy(z)?, &tokens)),
        ("rsl_peaked", &|z| rsl(z, &share(z, k, &tokens)?, &tokens, alpha, lambda)),
        ("rsl_printed", &|z| rsl(z, &share(z, k, &tokens)?, &tokens, alpha, -lambda)),
        ("localized", &|z| {
            let p = z.softmax()?;
            let p = tokens.weights().map_or(Ok(p.clone()), |weights| p.mul(weights))?;
            localized_balance(&p.sum_groups(s)?, &types, delta)
        }),
    ];
    for (name, loss) in losses {
        if !file.has(&format!("{name}.value")) {
            continue;
        }
        let logits = tensor(file, device, "logits", &[m, e])?.leaf();
        let bound = if matches!(name, "tsallis" | "renyi") { ENTROPY_BOUND } else { BOUND };
        with_gradients(compare, name, &loss(&logits)?, &[("logits", &logits)], bound)?;
    }
    Ok(())
}

/// How many tokens have each expert among their k best.
fn load(logits: &Tensor, k: usize, tokens: &Counted) -> Result<Tensor> {
    tokens.sum(&logits.detach().select(&SelectRule::TopK(k))?)
}

/// The same as shares that sum to 1.
fn share(logits: &Tensor, k: usize, tokens: &Counted) -> Result<Tensor> {
    load(logits, k, tokens)?.scale(1.0 / (k * tokens.count().max(1)) as f32)
}

fn preferences(
    file: &Checkpoint,
    config: &Config<'_>,
    device: &Device,
    compare: &mut Compare<'_>,
) -> Result<()> {
    let [n, s, v] = ["batch", "seq", "vocab"].map(|name| config.number(name));
    let labels = |name: &str| -> Result<Vec<u32>> {
        let label = |value: i64| u32::try_from(value).unwrap_or(u32::MAX);
        Ok(file.integers(name, &[n, s])?.into_iter().map(label).collect())
    };
    let [good, bad] = [labels("better_labels")?, labels("worse_labels")?];
    let weight = number(config, "weight");
    for name in ["bc", "contrast", "total"] {
        let better = tensor(file, device, "better", &[n, s, v])?.leaf();
        let worse = tensor(file, device, "worse", &[n, s, v])?.leaf();
        let terms = preference([&better, &worse], [&good, &bad], number(config, "tau"))?;
        let loss = match name {
            "bc" => terms.cloning,
            "contrast" => terms.contrast,
            _ => terms.cloning.add_scaled(&terms.contrast, weight)?,
        };
        with_gradients(compare, name, &loss, &[("better", &better), ("worse", &worse)], BOUND)?;
    }
    Ok(())
}

fn schedule(file: &Checkpoint, config: &Config<'_>, compare: &mut Compare<'_>) -> Result<()> {
    let list = |name: &str| -> Vec<usize> {
        let values = config.values.get(name).and_then(Value::as_array);
        values.into_iter().flatten().filter_map(Value::as_u64).map(|v| v as usize).collect()
    };
    let [starts, untils] = [list("k_start"), list("until")];
    let steps = config.number("steps");
    if starts.len() != untils.len() {
        return Err(Error::file(file.path(), "k_start and until have different lengths"));
    }
    let k = file.integers("k", &[starts.len(), steps])?;
    let rescale = file.f32("rescale", &[starts.len(), steps])?;
    let mut worst = [0f64; 2];
    for (layer, (&start, &until)) in starts.iter().zip(&untils).enumerate() {
        let schedule = TopKSchedule {
            start,
            target: config.number("k_target"),
            until,
            linear: config.text("mode") == "linear",
        };
        for step in 0..steps {
            let at = layer * steps + step;
            worst[0] = worst[0].max((schedule.k(step) as f64 - k[at] as f64).abs());
            worst[1] = worst[1].max((schedule.rescale(step) - rescale[at]).abs() as f64);
        }
    }
    for (name, error) in ["k", "rescale"].into_iter().zip(worst) {
        compare.errors.push(Measured { name: name.into(), error, bound: BOUND });
    }
    Ok(())
}
