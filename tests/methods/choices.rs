//! Recorded, forced and refused choices; independence of linears.

use crate::rig::{
    GROUPS, Rig, SITE, SPANS, changed, chosen, devices, entries, groups, methods, number, small,
};
use mixlora::check::Deviation;
use mixlora::mixture::{Hook, Method, MethodSpec, Pool, Select, find};
use mixlora::nn::Choices;
use mixlora::{Device, Error, Tensor};
use serde_json::json;

#[test]
fn a_replay_gives_the_same_bits() {
    for device in devices() {
        for (spec, config) in methods() {
            let rig = Rig::new(&config, GROUPS[1], &device);
            let free = rig.step(&rig.x(), &rig.pass(Pool::Real)).unwrap();
            let record = Choices::record();
            let recorded = rig.pass(Pool::Real).with_choices(record.clone());
            assert_eq!(free, rig.step(&rig.x(), &recorded).unwrap(), "{}", spec.name);
            let replayed = rig.pass(Pool::Real).with_choices(record.replay());
            assert_eq!(free, rig.step(&rig.x(), &replayed).unwrap(), "{} on {device:?}", spec.name);
        }
    }
}

#[test]
fn choices_can_be_read() {
    let spec = find("mixlora-cond").unwrap();
    let config = small(spec);
    let r = number(&config, "r");
    for device in devices() {
        let rig = Rig::new(&config, GROUPS[1], &device);
        let record = Choices::record();
        rig.forward(&rig.x(), &rig.pass(Pool::Real).with_choices(record.clone())).unwrap();
        let idx = record.get(SITE).unwrap();
        assert_eq!(idx.dims(), [3, 2, SPANS.len(), r]);
        for list in idx.to_u32().unwrap().chunks(r) {
            let mut sorted = list.to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            assert!(sorted.len() == r && sorted[r - 1] < number(&config, "num_factors") as u32);
        }
        assert!(record.get("elsewhere").is_none() && Choices::Free.get(SITE).is_none());
    }
}

#[test]
fn choices_that_cannot_be_are_typed_errors() {
    for device in devices() {
        for (spec, config) in methods() {
            let rig = Rig::new(&config, GROUPS[1], &device);
            let record = Choices::record();
            rig.forward(&rig.x(), &rig.pass(Pool::Real).with_choices(record.clone())).unwrap();
            // Methods that take all there is have nothing to choose, and take no choices.
            let Some(idx) = chosen(&record) else {
                assert_eq!(
                    config.options().rule().select,
                    Select::All,
                    "{}: choices are not kept",
                    spec.name
                );
                continue;
            };
            let run = |forced: Option<Tensor>| {
                let choices = Choices::force(forced.map(|t| (SITE.to_string(), t)));
                rig.step(&rig.x(), &rig.pass(Pool::Real).with_choices(choices))
            };
            let label = format!("{} on {device:?}", spec.name);
            match run(None) {
                Err(Error::Refused { field, what }) => {
                    assert!(field == SITE && what.contains("no choice"), "{what}")
                }
                other => panic!("{label}: {other:?}"),
            }
            if let [m, l, e] = *idx.dims() {
                let wrong = Tensor::zeros(&device, &[m + 1, l, e]).unwrap();
                assert!(matches!(run(Some(wrong)), Err(Error::Shape { .. })), "{label}");
                let numbers = Tensor::from_u32(&device, idx.dims(), &vec![0; idx.len()]).unwrap();
                assert!(matches!(run(Some(numbers)), Err(Error::DType { .. })), "{label}");
                run(Some(idx)).unwrap();
                continue;
            }
            let [l, p, g, k] = *idx.dims() else { panic!("{idx:?}") };
            let values = idx.to_u32().unwrap();
            for dims in
                [vec![l, p, g + 1, k], vec![l, p, g, k + 1], vec![l, p + 1, g, k], vec![l * p * g * k]]
            {
                let n = dims.iter().product();
                let wrong = Tensor::from_u32(&device, &dims, &vec![0; n]).unwrap();
                assert!(matches!(run(Some(wrong)), Err(Error::Shape { .. })), "{label}: {dims:?}");
            }
            let floats = Tensor::zeros(&device, idx.dims()).unwrap();
            assert!(matches!(run(Some(floats)), Err(Error::DType { .. })), "{label}");
            for (at, too_large) in [(0, u32::MAX), (values.len() - 1, 1000)] {
                let mut values = values.clone();
                values[at] = too_large;
                let done = run(Some(Tensor::from_u32(&device, idx.dims(), &values).unwrap()));
                // A GPU's indices are not read back: kernels stay inside their buffers whatever they say.
                match device.name() == Device::cpu().name() || device.same(&Device::reference()) {
                    false => drop(done),
                    true => match done {
                        Err(Error::Shape { found, .. }) => {
                            assert!(found.contains(&too_large.to_string()), "{found}")
                        }
                        other => panic!("{label}: {other:?}"),
                    },
                }
            }
            // The device still works.
            run(Some(idx)).unwrap();
        }
    }
}

/// The methods whose updates have an input of their own.
fn with_dropout() -> impl Iterator<Item = (&'static MethodSpec, Method)> {
    methods().filter(|(spec, _)| spec.option_names().contains(&"lora_dropout"))
}

#[test]
fn dropout_acts_after_routing_and_alike_on_all_lanes() {
    for (spec, config) in with_dropout() {
        let with = changed(&config, json!({ "lora_dropout": 0.5 }));
        for outs in groups(spec) {
            let mut of_lanes = Vec::new();
            for device in devices() {
                let choice = |c: &Method| {
                    let rig = Rig::new(c, outs, &device);
                    let record = Choices::record();
                    let y =
                        rig.forward(&rig.x(), &rig.pass(Pool::Real).with_choices(record.clone())).unwrap();
                    (chosen(&record).map(|t| entries(&t)), y[0].to_f64().unwrap())
                };
                let (dropped, plain) = (choice(&with), choice(&config));
                assert_eq!(dropped.0, plain.0, "{} on {device:?}", spec.name);
                of_lanes.push(dropped.1.clone());
                assert_ne!(dropped.1, plain.1, "{}: dropout does nothing", spec.name);
            }
            // Another mask would change values by much more than rounding.
            for lane in &of_lanes[1..] {
                let e = Deviation::of(lane, &of_lanes[0], 1e-3).max;
                assert!(e < 1e-5, "{}: {e:.1e}", spec.name);
            }
        }
    }
}

#[test]
fn no_dropout_outside_of_training() {
    for (spec, config) in methods() {
        let device = Device::cpu();
        let out = |dropout: f32| {
            let rig = Rig::new(&changed(&config, json!({ "lora_dropout": dropout })), GROUPS[0], &device);
            let mut pass = rig.pass(Pool::Real);
            pass.train = false;
            rig.forward(&rig.x(), &pass).unwrap()[0].to_f32().unwrap()
        };
        assert_eq!(out(0.0), out(0.5), "{}", spec.name);
    }
}

/// The entries of each of two linears; `dims` are those of one alone. Masks have the linears inside.
fn of_linears(dims: &[usize], both: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let [_, _, e] = *dims else {
        let (first, second) = both.split_at(both.len() / 2);
        return (first.to_vec(), second.to_vec());
    };
    let of = |linear: usize| both.chunks(e).skip(linear).step_by(2).flatten().copied().collect();
    (of(0), of(1))
}

/// A group of linears gives what its linears give one by one: same names, same random values, own choices.
#[test]
fn linears_of_a_group_choose_for_themselves() {
    for device in devices() {
        for (spec, config) in methods().filter(|(s, _)| s.hook == Hook::Linear) {
            let group = Rig::new(&config, &[6, 6], &device);
            let record = Choices::record();
            let y = group.forward(&group.x(), &group.pass(Pool::Real).with_choices(record.clone())).unwrap();
            let alone = Rig::new(&config, &[6], &device);
            let own = Choices::record();
            let y0 = alone.forward(&alone.x(), &alone.pass(Pool::Real).with_choices(own.clone())).unwrap();
            // A matrix product may take another path for another width: rounding, no more.
            let (got, want) = (y[0].to_f64().unwrap(), y0[0].to_f64().unwrap());
            let e = Deviation::of(&got, &want, 1e-3);
            assert!(e.max < 1e-5, "{} on {device:?}: {e:?}", spec.name);
            if let (Some(both), Some(one)) = (chosen(&record), chosen(&own)) {
                let own = one.dims().to_vec();
                let one = entries(&one);
                let both = entries(&both);
                let (first, second) = of_linears(&own, &both);
                // One decision for the whole model is the same for both.
                let decided = spec.name == "mixlora-fitted";
                assert_eq!(first == second, decided, "{}: both linears chose alike", spec.name);
                assert_eq!(first, one, "{} on {device:?}", spec.name);
            }
        }
    }
}

/// Every B is reached through an input of its own: dropout must act on each.
#[test]
fn dropout_acts_on_every_branch() {
    let device = Device::cpu();
    for (spec, config) in with_dropout() {
        for outs in groups(spec) {
            let is_b = |name: &str| name.ends_with("_b") && !name.contains("router");
            let rig =
                |dropout: f32| Rig::new(&changed(&config, json!({ "lora_dropout": dropout })), outs, &device);
            let names: Vec<String> = rig(0.0).params().iter().map(|p| p.name()).filter(|n| is_b(n)).collect();
            assert!(!names.is_empty(), "{}: B factors are named *_b", spec.name);
            for name in names {
                let out = |dropout: f32| -> Vec<Vec<f32>> {
                    let rig = rig(dropout);
                    for p in rig.params().iter().filter(|p| is_b(&p.name()) && p.name() != name) {
                        p.set(p.value().scale(0.0).unwrap()).unwrap();
                    }
                    let y = rig.forward(&rig.x(), &rig.pass(Pool::Real)).unwrap();
                    y.iter().map(|t| t.to_f32().unwrap()).collect()
                };
                assert_ne!(out(0.0), out(0.5), "{} {name}: dropout does nothing", spec.name);
            }
        }
    }
}
