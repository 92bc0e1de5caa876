//! Derivatives on the reference back end against central differences.

use crate::rig::{Rig, changed, groups, methods, small};
use mixlora::Device;
use mixlora::check::{GRADCHECK_BOUND, gradcheck_params};
use mixlora::mixture::{CfsForm, GateScale, Method, Pool, RouterGradient, find};
use serde_json::json;

/// Checks one configuration; returns the worst error, and complains about tensors without a derivative that
/// should have one.
pub fn check(config: &Method, outs: &[usize], pool: Pool) -> f64 {
    let rig = Rig::new(config, outs, &Device::reference());
    let run = |x: &mixlora::Tensor, choices: &mixlora::nn::Choices| {
        let pass = rig.pass(pool).with_choices(choices.clone());
        let mut y = rig.forward(x, &pass)?;
        y.extend(pass.take_aux()?);
        Ok(y)
    };
    let all = gradcheck_params(&rig.params(), &rig.x(), run).unwrap();
    let label = format!("{outs:?} {pool:?} {config:?}");
    let mut worst = 0f64;
    for e in &all {
        assert!(e.error <= GRADCHECK_BOUND, "{label}: {e:?}");
        let router = e.name.contains("router") || e.name.contains("choice_embed");
        let learns = !router || config.options().router_gradient() == RouterGradient::Yes;
        assert!(e.largest > 1e-6 || !learns, "{label}: nothing flows to {}", e.name);
        worst = worst.max(e.error);
    }
    worst
}

#[test]
fn every_method_and_group() {
    let mut worst = 0f64;
    for (spec, config) in methods() {
        for outs in groups(spec) {
            worst = worst.max(check(&config, outs, Pool::PromptMask));
            let dropout = changed(&config, json!({ "lora_dropout": 0.4 }));
            worst = worst.max(check(&dropout, outs, Pool::Real));
        }
    }
    println!("worst {worst:.1e}");
}

#[test]
fn every_condition_gate_and_pool() {
    let forms = [None, Some(CfsForm::Linear), Some(CfsForm::SumProduct), Some(CfsForm::Choice)];
    let gates = [
        (false, GateScale::None, false),
        (true, GateScale::None, false),
        (true, GateScale::R, false),
        (true, GateScale::R, true),
        (true, GateScale::None, true),
    ];
    let mut worst = 0f64;
    for cfs_form in forms {
        for (gated, gate_scale, cfs_gated_input) in gates {
            let spec = find(if gated { "mixlora-cond-gated" } else { "mixlora-cond" }).unwrap();
            // Three choices of five: enough for order and ties to matter, and few values.
            let options = json!({
                "r": 3, "num_factors": 5, "cfs_form": cfs_form, "cfs_weight": 0.7, "gate_scale": gate_scale,
                "cfs_gated_input": cfs_gated_input,
            });
            let config = changed(&small(spec), options);
            for (outs, pool) in
                groups(spec).iter().flat_map(|g| [Pool::All, Pool::Instr, Pool::PromptMask].map(|p| (g, p)))
            {
                worst = worst.max(check(&config, outs, pool));
            }
        }
    }
    println!("worst {worst:.1e}");
}

#[test]
fn token_methods_with_one_choice_and_without_gates() {
    let mut worst = 0f64;
    for (_, config) in methods() {
        let one = changed(&config, json!({ "top_k": 1 }));
        worst = worst.max(check(&one, &[9], Pool::All));
    }
    for (name, gated) in [("rank-wise", false), ("rank-wise", true)] {
        let spec = find(name).unwrap();
        worst = worst.max(check(&changed(&small(spec), json!({ "gated": gated })), &[9, 5], Pool::All));
    }
    println!("worst {worst:.1e}");
}

#[test]
fn the_balance_loss_alone_trains_the_router_of_one_expert() {
    let spec = find("mixlora-ffn").unwrap();
    let config = changed(&small(spec), json!({ "top_k": 1 }));
    let rig = Rig::new(&config, &[], &Device::reference());
    let gradient = |config: &Method| {
        let rig = Rig::new(config, &[], &Device::reference());
        let mut all = rig.step(&rig.x(), &rig.pass(Pool::All)).unwrap().0;
        all.remove("grad router").map_or(0.0, |g| g.iter().fold(0f64, |m, v| m.max(v.abs())))
    };
    assert!(gradient(&config) > 1e-3);
    assert!(gradient(&changed(&config, json!({ "aux_loss_coef": 0.0 }))) < 1e-12);
    // Padding does not count: other values there leave the loss as it is.
    let aux = |moved: f64| {
        let x = rig.x();
        let mut v = x.to_f64().unwrap();
        v[(2 * crate::rig::SEQ + 4) * crate::rig::D] += moved;
        let x = mixlora::Tensor::from_f64(&rig.device, x.dims(), &v).unwrap();
        let pass = rig.pass(Pool::All);
        rig.forward(&x, &pass).unwrap();
        pass.take_aux().unwrap()[0].item().unwrap()
    };
    assert_eq!(aux(0.0), aux(9.0));
}
