//! Updates that are no LoRA experts: modulated outputs, kernels over a core.

use crate::acceptance::{error, method, product, read, softmax, update};
use crate::rig::{D, GROUPS, Rig, values};
use mixlora::Device;
use mixlora::mixture::Pool;
use serde_json::json;

#[test]
fn modulate_with_one_expert_is_another_linear() {
    let device = Device::reference();
    let out = GROUPS[0][0];
    for shift in [true, false] {
        let method = method("modulate", json!({ "num_experts": 1, "top_k": 1, "shift": shift }));
        let rig = Rig::new(&method, GROUPS[0], &device);
        let p = read(&rig.param("scale"));
        let q = if shift { read(&rig.param("shift")) } else { vec![0.0; out] };
        let w: Vec<f64> = values("w0", out * D, 0.3).into_iter().map(f64::from).collect();
        let bias = values("w0.bias", out, 0.3);
        // (1 + p) W and (1 + p) bias + q
        let merged: Vec<f64> = w.iter().enumerate().map(|(i, w)| (1.0 + p[i / D]) * w).collect();
        let mut want = product(&rig.x().to_f64().unwrap(), &merged, D);
        for (i, y) in want.iter_mut().enumerate() {
            let o = i % out;
            *y += (1.0 + p[o]) * f64::from(bias[o]) + q[o];
        }
        let got = rig.forward(&rig.x(), &rig.pass(Pool::Real)).unwrap()[0].to_f64().unwrap();
        assert!(error(&got, &want) < 1e-12, "{:.1e}", error(&got, &want));
    }
}

/// `W_e` of each expert of an `ept` rig, `[out, D]`: every value of the core times the expert's kernel, cut to size.
fn kronecker(rig: &Rig, kernels: &[usize], r: usize, out: usize) -> Vec<Vec<f64>> {
    let [a, b] = ["core_a", "core_b"].map(|name| read(&rig.param(name)));
    let [wide, high] = [a.len() / r, b.len() / r];
    let core = |i: usize, j: usize| (0..r).map(|k| b[k * high + i] * a[k * wide + j]).sum::<f64>();
    let matrix = |(e, &t): (usize, &usize)| {
        let earlier = kernels[..e].iter().filter(|&&side| side == t).count();
        let kernel = read(&rig.param(&format!("kernel_{t}")));
        let kernel = |i: usize, j: usize| kernel[(earlier * t + i) * t + j];
        let value = |o: usize, i: usize| core(o / t, i / t) * kernel(o % t, i % t);
        (0..out).flat_map(|o| (0..D).map(move |i| (o, i))).map(|(o, i)| value(o, i)).collect()
    };
    kernels.iter().enumerate().map(matrix).collect()
}

#[test]
fn ept_experts_are_kronecker_products_which_merge_for_a_task() {
    let kernels = [1, 2, 2, 3, 4];
    let out = GROUPS[0][0];
    for by_task in [true, false] {
        let options = json!({
            "kernels": kernels, "top_k": 3, "by_task": by_task, "temperature": 0.25, "lora_alpha": 6.0, "r": 3,
        });
        let method = method("ept", options);
        let rig = Rig::new(&method, GROUPS[0], &Device::reference());
        let matrices = kronecker(&rig, &kernels, 3, out);
        let x = rig.x().to_f64().unwrap();
        let got = update(&rig, &rig.x(), &rig.pass(Pool::Real));
        // The samples have the tasks a, b and a.
        let vectors = read(&rig.param("task_vectors"));
        let gates = |row: usize| -> Vec<f64> {
            let task = [0, 1, 0][row / 5];
            let token = if by_task { 0.0 } else { 1.0 };
            let seen: Vec<f64> = (0..D).map(|i| vectors[task * D + i] + token * x[row * D + i]).collect();
            let logits = product(&seen, &read(&rig.param("router")), D);
            let p = softmax(&logits.iter().map(|z| z / 0.25).collect::<Vec<_>>());
            let mut order: Vec<usize> = (0..p.len()).collect();
            order.sort_by(|&i, &j| p[j].total_cmp(&p[i]));
            (0..p.len()).map(|e| if order[..3].contains(&e) { p[e] } else { 0.0 }).collect()
        };
        let merged = |row: usize| -> Vec<f64> {
            let gates = gates(row);
            let value = |at: usize| matrices.iter().zip(&gates).map(|(w, g)| 2.0 * g * w[at]).sum();
            (0..out * D).map(value).collect()
        };
        if by_task {
            // One matrix for each task.
            assert_eq!(merged(0), merged(14));
            assert_ne!(merged(0), merged(5));
        }
        let want: Vec<f64> = (0..15).flat_map(|row| product(&x[row * D..][..D], &merged(row), D)).collect();
        assert!(error(&got, &want) < 1e-12, "{by_task}: {:.1e}", error(&got, &want));
    }
    // A second linear takes the first columns of the core's wide side.
    let method = method("ept", json!({ "kernels": [2, 5], "top_k": 2, "r": 2 }));
    let rig = Rig::new(&method, GROUPS[1], &Device::cpu());
    let widths = ["core_a", "core_b"].map(|name| rig.param(name).value().dims().to_vec());
    assert_eq!(widths, [[2, 5], [2, 4]]);
}
