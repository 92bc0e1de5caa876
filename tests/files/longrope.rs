//! The border of a longrope: sequences up to the original context have the short factors, longer ones the long factors,
//! in cached decoding too. What is right is computed here, in f64, from the formulas that transformers has for Phi-3.

use mixlora::adapter::Conversation;
use mixlora::io::Checkpoint;
use mixlora::model::{Model, Step};
use mixlora::nn::Pass;
use mixlora::{Device, Tensor, mixture::Units, no_grad};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;

/// Largest difference, relative to the largest logit: f64 on both sides, constants in f32.
const BOUND: f64 = 1e-6;
/// The same on the CPU, in f32.
const BOUND_CPU: f64 = 1e-4;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/phi3-a")
}

/// A Phi-3 of plain loops.
struct Phi3 {
    file: Checkpoint,
    config: Value,
}

type Rows = Vec<Vec<f64>>;

impl Phi3 {
    fn open() -> Self {
        let config = std::fs::read_to_string(folder().join("config.json")).unwrap();
        let file = Checkpoint::open(folder().join("model.safetensors")).unwrap();
        Phi3 { file, config: serde_json::from_str(&config).unwrap() }
    }

    fn size(&self, name: &str) -> usize {
        self.config[name].as_u64().unwrap() as usize
    }

    fn tensor(&self, name: &str) -> Vec<f64> {
        self.file.values_f32(name).unwrap().into_iter().map(f64::from).collect()
    }

    /// `x W^T`
    fn linear(&self, x: &Rows, name: &str) -> Rows {
        let weight = self.tensor(name);
        let dot = |row: &[f64], weight: &[f64]| row.iter().zip(weight).map(|(x, w)| x * w).sum();
        x.iter().map(|row| weight.chunks(row.len()).map(|weight| dot(row, weight)).collect()).collect()
    }

    fn norm(&self, x: &Rows, name: &str) -> Rows {
        let weight = self.tensor(name);
        let eps = self.config["rms_norm_eps"].as_f64().unwrap();
        let scaled = |row: &Vec<f64>| {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
            row.iter().zip(&weight).map(|(x, w)| x / (mean + eps).sqrt() * w).collect()
        };
        x.iter().map(scaled).collect()
    }

    /// A head turned by its position, with one of both lists of factors.
    fn rotated(&self, head: &[f64], position: usize, factors: &str) -> Vec<f64> {
        let dims = (head.len() as f64 * self.config["partial_rotary_factor"].as_f64().unwrap()) as usize;
        let factors = self.config["rope_scaling"][factors].as_array().unwrap();
        let original = self.size("original_max_position_embeddings") as f64;
        let longer = self.size("max_position_embeddings") as f64 / original;
        let amplitude = (1.0 + longer.ln() / original.ln()).sqrt();
        let theta = self.config["rope_theta"].as_f64().unwrap();
        let mut out = head.to_vec();
        for i in 0..dims / 2 {
            let frequency = theta.powf(-2.0 * i as f64 / dims as f64) / factors[i].as_f64().unwrap();
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let [first, second] = [head[i], head[i + dims / 2]];
            out[i] = amplitude * (first * cos - second * sin);
            out[i + dims / 2] = amplitude * (second * cos + first * sin);
        }
        out
    }

    fn attention(&self, h: &Rows, layer: &str, factors: &str) -> Rows {
        let [heads, kv] = ["num_attention_heads", "num_key_value_heads"].map(|name| self.size(name));
        let width = self.size("hidden_size") / heads;
        let qkv = self.linear(h, &format!("{layer}.self_attn.qkv_proj.weight"));
        let part = |at: usize, number: usize| &qkv[at][number * width..(number + 1) * width];
        let mut out = vec![Vec::new(); h.len()];
        for (at, out) in out.iter_mut().enumerate() {
            for head in 0..heads {
                let group = head * kv / heads;
                let q = self.rotated(part(at, head), at, factors);
                let score = |key: usize| {
                    let k = self.rotated(part(key, heads + group), key, factors);
                    (q.iter().zip(&k).map(|(q, k)| q * k).sum::<f64>() / (width as f64).sqrt()).exp()
                };
                let scores: Vec<f64> = (0..=at).map(score).collect();
                let total: f64 = scores.iter().sum();
                let value = |i: usize| {
                    let values = scores.iter().enumerate();
                    values.map(|(key, score)| score / total * part(key, heads + kv + group)[i]).sum::<f64>()
                };
                out.extend((0..width).map(value));
            }
        }
        self.linear(&out, &format!("{layer}.self_attn.o_proj.weight"))
    }

    fn mlp(&self, h: &Rows, layer: &str) -> Rows {
        let both = self.linear(h, &format!("{layer}.mlp.gate_up_proj.weight"));
        let gated = |row: &Vec<f64>| {
            let (gate, up) = row.split_at(row.len() / 2);
            gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
        };
        self.linear(&both.iter().map(gated).collect(), &format!("{layer}.mlp.down_proj.weight"))
    }

    /// Logits of all positions, with the given factors whatever the length.
    fn logits_with(&self, ids: &[u32], factors: &str) -> Rows {
        let d = self.size("hidden_size");
        let embedding = self.tensor("model.embed_tokens.weight");
        let mut x: Rows = ids.iter().map(|&id| embedding[id as usize * d..][..d].to_vec()).collect();
        let add = |x: &mut Rows, y: Rows| {
            x.iter_mut().zip(y).for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x += y));
        };
        for layer in (0..self.size("num_hidden_layers")).map(|i| format!("model.layers.{i}")) {
            let h = self.norm(&x, &format!("{layer}.input_layernorm.weight"));
            add(&mut x, self.attention(&h, &layer, factors));
            let h = self.norm(&x, &format!("{layer}.post_attention_layernorm.weight"));
            add(&mut x, self.mlp(&h, &layer));
        }
        self.linear(&self.norm(&x, "model.norm.weight"), "model.embed_tokens.weight")
    }

    /// The factors of a sequence, and the others.
    fn factors(&self, length: usize) -> [&'static str; 2] {
        let mut both = ["short_factor", "long_factor"];
        if length > self.size("original_max_position_embeddings") {
            both.reverse();
        }
        both
    }

    /// Logits of all positions of a sequence.
    fn logits(&self, ids: &[u32]) -> Rows {
        self.logits_with(ids, self.factors(ids.len())[0])
    }
}

/// The largest difference relative to the largest value.
fn worst(got: impl IntoIterator<Item = f64>, want: &[f64]) -> f64 {
    let largest = want.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    let got: Vec<f64> = got.into_iter().collect();
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).fold(0f64, |worst, (got, want)| worst.max((got - want).abs())) / largest
}

fn tokens(count: usize) -> Vec<u32> {
    (0..count).map(|i| (3 + 37 * i % 280) as u32).collect()
}

fn model(device: &Device) -> Arc<Model> {
    Model::open_f32(&folder(), device).unwrap()
}

fn logits(model: &Model, ids: &[u32]) -> Vec<f64> {
    let input = Tensor::from_u32(model.device(), &[1, ids.len()], ids).unwrap();
    let pass = Pass::new(Units::instances(model.device(), 1, ids.len()).unwrap());
    let run = || model.logits(&model.forward(&input, &pass, Step::default())?)?.to_f64();
    no_grad(run).unwrap()
}

/// The loops themselves are right: transformers stored these, on both sides of the border.
#[test]
fn the_computation_here_is_that_of_transformers() {
    let phi3 = Phi3::open();
    let stored = Checkpoint::open(folder().join("reference.safetensors")).unwrap();
    for (ids, rows, n) in [("short.ids", "short.logits", 24), ("ids", "logits", 40)] {
        let dims = stored.dims(ids).unwrap().to_vec();
        let ids = stored.indices(ids, &dims, 296).unwrap();
        let want = stored.values_f32(rows).unwrap().into_iter().map(f64::from).collect::<Vec<_>>();
        let error = worst(phi3.logits(&ids[..n]).concat(), &want);
        assert!(error < 1e-5, "{rows}: {error:.1e}");
    }
}

#[test]
fn factors_change_behind_the_original_context() {
    let phi3 = Phi3::open();
    let original = phi3.size("original_max_position_embeddings");
    for device in [Device::reference(), Device::cpu()] {
        let model = model(&device);
        let bound = if device.name() == "cpu" { BOUND_CPU } else { BOUND };
        for length in [original - 1, original, original + 1, original + 2] {
            let ids = tokens(length);
            let want = phi3.logits(&ids).concat();
            let error = worst(logits(&model, &ids), &want);
            println!("{} {length}: {error:.1e}", device.name());
            assert!(error < bound, "{} {length}: {error:.1e}", device.name());
            let other = phi3.logits_with(&ids, phi3.factors(length)[1]).concat();
            assert!(worst(other, &want) > 0.1, "the other factors are told apart");
        }
    }
}

/// Decoding in parts of any size gives what the whole sequence gives: beyond the border everything is turned anew.
#[test]
fn cached_decoding_crosses_the_border() {
    let phi3 = Phi3::open();
    let original = phi3.size("original_max_position_embeddings");
    let ones = |count: usize| vec![1; count];
    for device in [Device::reference(), Device::cpu()] {
        let model = model(&device);
        let bound = if device.name() == "cpu" { BOUND_CPU } else { BOUND };
        for (name, parts) in [
            ("token by token", [vec![original - 3], ones(7)].concat()),
            ("up to the border", vec![original, 1, 3]),
            ("over it at once", vec![original - 12, 5, 10, 1, 1]),
            ("from beyond", vec![original + 1, 1, 4]),
        ] {
            let ids = tokens(parts.iter().sum());
            let mut conversation = Conversation::new(&model, None, 1);
            let mut read = 0;
            for part in parts {
                conversation.push(&ids[read..read + part]).unwrap();
                read += part;
                assert_eq!(conversation.len(), read);
                let want = phi3.logits(&ids[..read]).pop().unwrap();
                let got = conversation.logits(0).iter().map(|&logit| f64::from(logit));
                // Logits of a conversation are f32.
                let error = worst(got, &want);
                assert!(error < bound, "{name} on {}, {read} tokens: {error:.1e}", device.name());
            }
        }
    }
}

/// Sequences side by side cross together, each with its own tokens.
#[test]
fn sequences_of_a_batch_cross_the_border() {
    let phi3 = Phi3::open();
    let original = phi3.size("original_max_position_embeddings");
    let all = tokens(2 * (original + 3));
    let rows: Vec<&[u32]> = all.chunks(original + 3).collect();
    let model = model(&Device::cpu());
    let mut conversation = Conversation::new(&model, None, 2);
    for (from, to) in [(0, original - 1), (original - 1, original + 1), (original + 1, original + 3)] {
        conversation.push(&rows.iter().flat_map(|row| row[from..to].to_vec()).collect::<Vec<_>>()).unwrap();
        for (number, row) in rows.iter().enumerate() {
            let want = phi3.logits(&row[..to]).pop().unwrap();
            let error = worst(conversation.logits(number).iter().map(|&logit| f64::from(logit)), &want);
            assert!(error < BOUND_CPU, "row {number}, {to} tokens: {error:.1e}");
        }
    }
}
