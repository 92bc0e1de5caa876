//! The analyses of tasks: interference against differences of losses, routing of every method that routes.

use mixlora::adapter::Adapter;
use mixlora::analyse::{Interference, TaskBatches, interference, routing};
use mixlora::data::{Batch, Example};
use mixlora::mixture::{Method, Methods, Routes, Side, find};
use mixlora::model::Model;
use mixlora::nn::{Param, Pass};
use mixlora::train::{loss_of, losses_by_sample};
use mixlora::{Device, Stream, Tensor, backward};
use std::sync::Arc;

fn model(device: &Device) -> Arc<Model> {
    let path = crate::common::edit::golden().join("models/qwen3-b");
    Model::open(&path, device).unwrap()
}

/// An adapter of which no parameter is zero.
fn moved(model: &Model, method: &Method, targets: &[&str]) -> Adapter {
    let targets: Vec<String> = targets.iter().map(|target| target.to_string()).collect();
    let adapter = Adapter::attach(model, method, &targets, Stream::new(3)).unwrap();
    for param in adapter.trainable() {
        let old = param.value();
        let noise = Stream::new(4).named(&param.name()).normal_vec(old.len(), 0.3);
        let new: Vec<f64> = old.to_f64().unwrap().iter().zip(noise).map(|(v, n)| v + f64::from(n)).collect();
        param.set(Tensor::from_f64(old.device(), old.dims(), &new).unwrap()).unwrap();
    }
    adapter
}

/// A sample of a task: a prompt of tokens of its own, and an answer.
fn example(task: usize, sample: usize) -> Example {
    let noise = Stream::new(task as u64).fork(sample as u64);
    let ids: Vec<u32> = (0..7).map(|at| 60 * task as u32 + noise.bits(at) % 40).collect();
    let name = ["one", "two"][task % 2];
    Example::new(ids, vec![false, false, false, false, true, true, true]).with_task(Some(name))
}

/// Two tasks of so many samples, each in a batch of its own.
fn tasks(method: &Method, samples: usize, device: &Device) -> Vec<TaskBatches> {
    let wants_condition = method.options().condition().is_some();
    let batch = |task: usize, sample: usize| {
        let condition = [0.1 * (1.0 + task as f32); 32];
        let example = example(task, sample).with_condition(wants_condition.then_some(&condition[..]));
        Batch::new(&[&example], method.framing(), 0, device).unwrap()
    };
    let of_task = |task: usize| TaskBatches {
        task: ["one", "two"][task].into(),
        batches: (0..samples).map(|sample| batch(task, sample)).collect(),
    };
    (0..2).map(of_task).collect()
}

fn loss(model: &Model, adapter: &Adapter, batch: &Batch) -> f64 {
    loss_of(model, adapter, batch).unwrap() / batch.trained as f64
}

/// The value of a parameter moved by a multiple of a direction.
fn step(param: &Param, from: &[f64], direction: &[f64], by: f64) {
    let moved: Vec<f64> = from.iter().zip(direction).map(|(v, d)| v + by * d).collect();
    let dims = param.value().dims().to_vec();
    param.set(Tensor::from_f64(param.value().device(), &dims, &moved).unwrap()).unwrap();
}

/// Parameters by side and layer, as their names say.
fn groups(adapter: &Adapter) -> Vec<(Side, usize, Vec<Param>)> {
    let mut groups: Vec<(Side, usize, Vec<Param>)> = Vec::new();
    for param in adapter.trainable() {
        let name = param.name();
        let layer = name.split("layers.").nth(1).unwrap().split('.').next().unwrap().parse().unwrap();
        let side = if name.ends_with("_a") { Side::A } else { Side::B };
        match groups.iter_mut().find(|(s, l, _)| (*s, *l) == (side, layer)) {
            Some((.., params)) => params.push(param),
            None => groups.push((side, layer, vec![param])),
        }
    }
    groups
}

fn cell(found: &Interference, side: Side, layer: usize, i: usize, j: usize) -> f64 {
    let side = found.sides.iter().find(|of| of.side == side).unwrap();
    side.layers.iter().find(|of| of.layer == Some(layer)).unwrap().scores.0[i][j].unwrap()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The score from gradients that are central differences of losses, value by value, in f64.
#[test]
fn interference_is_that_of_differences_of_losses() {
    let device = Device::reference();
    let model = model(&device);
    let method = find("lora").unwrap().defaults().with("r", 1).unwrap();
    let adapter = moved(&model, &method, &["k_proj"]);
    let tasks = tasks(&method, 2, &device);
    let found = interference(&model, &adapter, &tasks, &mut |_| ()).unwrap();
    assert_eq!(found.tasks, ["one", "two"]);
    assert_eq!(found.batches, [2, 2]);
    let mut compared = 0;
    for (side, layer, params) in groups(&adapter) {
        let [param] = &params[..] else { panic!("one parameter of a side of a layer") };
        let value = param.value().to_f64().unwrap();
        let gradient = |batch: &Batch| -> Vec<f64> {
            let slope = |at: usize| {
                let unit: Vec<f64> = (0..value.len()).map(|i| f64::from(u8::from(i == at))).collect();
                let moved = |by: f64| {
                    step(param, &value, &unit, by);
                    loss(&model, &adapter, batch)
                };
                (moved(1e-5) - moved(-1e-5)) / 2e-5
            };
            let all = (0..value.len()).map(slope).collect();
            step(param, &value, &value, 0.0);
            all
        };
        let gradients: Vec<Vec<Vec<f64>>> =
            tasks.iter().map(|task| task.batches.iter().map(gradient).collect()).collect();
        let change = |j: usize, g: &[f64]| {
            let each = gradients[j].iter().map(|of_j| dot(of_j, g) / dot(of_j, of_j).sqrt());
            each.sum::<f64>() / gradients[j].len() as f64
        };
        for (i, of_i) in gradients.iter().enumerate() {
            for j in 0..2 {
                let ratios = of_i.iter().map(|g| change(j, g) / change(i, g));
                let wanted = ratios.sum::<f64>() / of_i.len() as f64;
                let cell = cell(&found, side, layer, i, j);
                let error = (cell - wanted).abs();
                assert!(error < 1e-5 * wanted.abs().max(1.0), "{side:?} {layer}: {cell} {wanted}");
                compared += usize::from(i != j && wanted.abs() > 1e-3);
            }
        }
    }
    assert!(compared >= 12, "{compared} cells that are not zero");
}

/// The first-order form is what real steps tend to as they get small.
#[test]
fn small_steps_agree_with_the_first_order() {
    let device = Device::reference();
    let model = model(&device);
    let method =
        find("mixlora-cond").unwrap().defaults().with("num_factors", 4).unwrap().with("r", 2).unwrap();
    let adapter = moved(&model, &method, &["q_proj", "k_proj", "down_proj"]);
    let tasks = tasks(&method, 2, &device);
    let found = interference(&model, &adapter, &tasks, &mut |_| ()).unwrap();
    assert_eq!(found.sides.iter().map(|side| side.side).collect::<Vec<_>>(), [Side::A, Side::B]);
    let gradients = |batch: &Batch| {
        let pass = Pass::new(batch.units.clone()).with_labels(batch.labels.clone());
        let pass = pass.with_adapters(adapter.sites().clone());
        let loss = losses_by_sample(&model, batch, &pass).unwrap().remove(0);
        backward(&[(&loss, Tensor::full(&device, loss.dims(), 1.0).unwrap())]).unwrap()
    };
    for (side, layer, params) in groups(&adapter).into_iter().filter(|(_, layer, _)| layer % 3 == 0) {
        let values: Vec<Vec<f64>> = params.iter().map(|param| param.value().to_f64().unwrap()).collect();
        let direction = |batch: &Batch| -> Vec<Vec<f64>> {
            let gradients = gradients(batch);
            let of = |param: &Param| param.gradient(&gradients).unwrap().to_f64().unwrap();
            let all: Vec<Vec<f64>> = params.iter().map(of).collect();
            let norm = all.iter().map(|g| dot(g, g)).sum::<f64>().sqrt();
            all.into_iter().map(|g| g.into_iter().map(|g| g / norm).collect()).collect()
        };
        let directions: Vec<Vec<Vec<Vec<f64>>>> =
            tasks.iter().map(|task| task.batches.iter().map(direction).collect()).collect();
        // D_j L_i(x_i), by steps that are taken.
        let change = |j: usize, batch: &Batch, eta: f64| {
            let before = loss(&model, &adapter, batch);
            let by = |direction: &Vec<Vec<f64>>| {
                let all = || params.iter().zip(&values).zip(direction);
                all().for_each(|((param, value), direction)| step(param, value, direction, -eta));
                let after = loss(&model, &adapter, batch);
                all().for_each(|((param, value), direction)| step(param, value, direction, 0.0));
                before - after
            };
            directions[j].iter().map(by).sum::<f64>() / directions[j].len() as f64
        };
        for (i, j) in [(0, 1), (1, 0)] {
            let wanted = |eta: f64| {
                let ratio = |batch: &Batch| change(j, batch, eta) / change(i, batch, eta);
                tasks[i].batches.iter().map(ratio).sum::<f64>() / tasks[i].batches.len() as f64
            };
            let cell = cell(&found, side, layer, i, j);
            let errors = [1e-3, 1e-5].map(|eta| (wanted(eta) - cell).abs());
            assert!(errors[1] < 1e-4 * cell.abs().max(1.0), "{side:?} {layer}: {cell} {errors:?}");
            assert!(errors[1] < errors[0], "{side:?} {layer}: {cell} {errors:?}");
        }
    }
}

#[test]
fn devices_agree() {
    let method =
        find("mixlora-cond").unwrap().defaults().with("num_factors", 4).unwrap().with("r", 2).unwrap();
    let of = |device: &Device| {
        let model = model(device);
        let adapter = moved(&model, &method, &["all-linear"]);
        interference(&model, &adapter, &tasks(&method, 3, device), &mut |_| ()).unwrap()
    };
    let reference = of(&Device::reference());
    for device in [Device::cpu()].into_iter().chain(crate::common::gpu()) {
        let found = of(&device);
        for (wanted, found) in reference.sides.iter().zip(&found.sides) {
            assert_eq!((wanted.side, wanted.values), (found.side, found.values));
            for (wanted, found) in wanted.layers.iter().zip(&found.layers) {
                let cells = wanted.of_means.0.iter().flatten().zip(found.of_means.0.iter().flatten());
                for (wanted, found) in cells {
                    assert!((wanted.unwrap() - found.unwrap()).abs() < 1e-3, "{wanted:?} {found:?}");
                }
            }
        }
    }
}

/// The methods that fit the tiny model as they are, and what is chosen where.
#[test]
fn every_method_can_be_looked_at() {
    let device = Device::cpu();
    let model = model(&device);
    let small = serde_json::json!({ "r": 2, "num_factors": 4, "num_experts": 3, "top_k": 2, "tasks": ["one", "two"] });
    let mut looked = 0;
    let mut routed = 0;
    for &spec in Methods::builtin().all() {
        let method = crate::common::method(spec.name, small.clone());
        let targets = ["all-linear".to_string()];
        // Some need experts, or a model that is a mixture of experts.
        let Ok(adapter) = Adapter::attach(&model, &method, &targets, Stream::new(1)) else { continue };
        for param in adapter.trainable() {
            let old = param.value();
            let noise = Stream::new(4).named(&param.name()).normal_vec(old.len(), 0.1);
            let new: Vec<f32> = old.to_f32().unwrap().iter().zip(noise).map(|(v, n)| v + n).collect();
            param.set(Tensor::from_f32(&device, old.dims(), &new).unwrap()).unwrap();
        }
        let tasks = tasks(&method, 2, &device);
        let found = interference(&model, &adapter, &tasks, &mut |_| ());
        let found = found.unwrap_or_else(|error| panic!("{}: {error}", spec.name));
        for scores in found.sides.iter().flat_map(|side| &side.layers).map(|layer| &layer.scores) {
            for i in 0..2 {
                assert!(scores.0[i][i].is_none_or(|cell| (cell - 1.0).abs() < 1e-9), "{}", spec.name);
                assert!(scores.0[i].iter().flatten().all(|cell| cell.is_finite()), "{}", spec.name);
            }
        }
        looked += 1;
        match routing(&model, &adapter, &tasks, &mut |_| ()) {
            Ok(found) => {
                routed += 1;
                assert_ne!(spec.routes, Routes::None, "{}", spec.name);
                assert_eq!(found.points.len(), 4);
                let cells = || found.overlap.0.iter().flatten().map(|cell| cell.unwrap());
                assert!(
                    cells().all(|cell| (0.0..=1.0).contains(&cell)),
                    "{}: {:?}",
                    spec.name,
                    found.overlap
                );
                if spec.routes == Routes::Task {
                    assert_eq!((found.overlap.0[0][0], found.overlap.0[1][1]), (Some(1.0), Some(1.0)));
                }
                for place in &found.places {
                    // Each instance counts alike at a place, whatever chooses there.
                    let sums = place.counts.iter().map(|counts| counts.iter().sum::<f64>());
                    let sums: Vec<f64> = sums.collect();
                    assert!(sums.iter().all(|sum| *sum > 0.0), "{}: {place:?}", spec.name);
                }
            }
            Err(error) => {
                let said = error.to_string();
                assert!(said.contains("has no choice to look at"), "{}: {said}", spec.name);
            }
        }
    }
    assert!(looked >= 20 && routed >= 12, "{looked} methods, {routed} with choices");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let device = Device::cpu();
    let model = model(&device);
    let method = find("lora").unwrap().defaults().with("r", 2).unwrap();
    let adapter = moved(&model, &method, &["q_proj"]);
    let refused =
        |tasks: &[TaskBatches]| interference(&model, &adapter, tasks, &mut |_| ()).unwrap_err().to_string();
    let mut both = tasks(&method, 1, &device);
    let said = routing(&model, &adapter, &both, &mut |_| ()).unwrap_err().to_string();
    assert!(said.contains("lora has no choice to look at") && said.contains("mixlora-cond"), "{said}");
    assert!(refused(&both[..1]).contains("at least two are needed"));
    both[1].batches.clear();
    assert!(refused(&both).contains("'two' has no sample with a trained token"));
    let frozen = Adapter::attach(&model, &method, &["q_proj".into()], Stream::new(1)).unwrap();
    let zero = interference(&model, &frozen, &tasks(&method, 2, &device), &mut |_| ()).unwrap();
    // B = 0: A has no gradient, which is no score of 0.
    assert!(zero.sides[0].scores.0.iter().flatten().all(Option::is_none));
    assert_eq!(zero.sides[0].layers[0].silent, [2, 2]);
    assert!(zero.sides[1].scores.0.iter().flatten().all(Option::is_some));
    let broken = moved(&model, &method, &["q_proj"]);
    let param = broken.trainable().remove(0);
    param.set(Tensor::full(&device, param.value().dims(), f32::NAN).unwrap()).unwrap();
    let said = interference(&model, &broken, &tasks(&method, 1, &device), &mut |_| ()).unwrap_err();
    assert!(said.to_string().contains("of task 'one' is not finite"), "{said}");
}
