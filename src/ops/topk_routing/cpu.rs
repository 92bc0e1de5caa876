//! One side on the CPU, in f32: the routers of tokens, whose units are many. `math.rs` has both sides and says what is
//! computed.

use super::{Routing, Score};
use crate::engine::cpu::math::{exp, sigmoid};
use crate::ops::top_k::largest;
use crate::simd::{Target, vectorised};
use rayon::prelude::*;

/// Units of a task.
const UNITS: usize = 64;

/// Logits `[G, L, 1, E]` and a balancing bias `[L, E]`.
pub(super) struct OneSide<'a> {
    pub routing: &'a Routing,
    pub z: &'a [f32],
    pub bias: Option<&'a [f32]>,
    /// G, L, E
    pub sizes: (usize, usize, usize),
}

vectorised! {
    /// The scores of a row of logits.
    fn scores(score: Score, z: &[f32], bias: &[f32], out: &mut [f32]) {
        match score {
            Score::Logits => out.copy_from_slice(z),
            Score::Sigmoid => {
                for ((out, z), bias) in out.iter_mut().zip(z).zip(bias) {
                    *out = sigmoid(*z) + bias;
                }
            }
            Score::Magnitude => {
                for ((out, z), bias) in out.iter_mut().zip(z).zip(bias) {
                    *out = (z + bias).abs();
                }
            }
        }
    }
}

/// Replaces the scores of the chosen by gates without their scale; returns the sum of the scores of shares.
fn gates_of(score: Score, chosen: &mut [f32]) -> f32 {
    if score == Score::Sigmoid {
        let sum: f32 = chosen.iter().sum();
        let share = chosen.len() as f32 / sum;
        chosen.iter_mut().for_each(|q| *q *= share);
        return sum;
    }
    let top = chosen.iter().fold(f32::MIN, |top, v| top.max(*v));
    chosen.iter_mut().for_each(|v| *v = exp(Target, *v - top));
    let sum: f32 = chosen.iter().sum();
    chosen.iter_mut().for_each(|v| *v /= sum);
    sum
}

impl OneSide<'_> {
    /// Logits and biases of a linear and a unit; no biases where scores are the logits.
    fn row(&self, l: usize, unit: usize) -> (&[f32], &[f32]) {
        let (_, linears, e) = self.sizes;
        let bias = self.bias.map_or(&[][..], |bias| &bias[l * e..(l + 1) * e]);
        (&self.z[(unit * linears + l) * e..][..e], bias)
    }

    /// The scores of the chosen of a unit.
    fn chosen(&self, l: usize, unit: usize, idx: &[u32], out: &mut [f32]) {
        let (z, bias) = self.row(l, unit);
        for (out, &i) in out.iter_mut().zip(idx) {
            let i = i as usize;
            let z = z[i];
            *out = match self.routing.score {
                Score::Logits => z,
                Score::Sigmoid => sigmoid(z) + bias[i],
                Score::Magnitude => (z + bias[i]).abs(),
            };
        }
    }

    /// The choices `[L, 1, G, K]`.
    pub fn choose(&self, idx: &mut [u32]) {
        let ((units, _, e), k) = (self.sizes, self.routing.k);
        idx.par_chunks_mut(k * UNITS).enumerate().for_each(|(t, idx)| {
            let mut values = vec![0f32; e];
            let mut order = Vec::with_capacity(e);
            for (i, idx) in (t * UNITS..).zip(idx.chunks_mut(k)) {
                let (z, bias) = self.row(i / units, i % units);
                scores(self.routing.score, z, bias, &mut values);
                largest(&values, &mut order, idx);
            }
        });
    }

    /// The gates `[L, G, K]` of choices.
    pub fn gates(&self, idx: &[u32], gates: &mut [f32]) {
        let ((units, ..), k) = (self.sizes, self.routing.k);
        let parts = gates.par_chunks_mut(k * UNITS).zip(idx.par_chunks(k * UNITS));
        parts.enumerate().for_each(|(t, (gates, idx))| {
            for (i, (gates, idx)) in (t * UNITS..).zip(gates.chunks_mut(k).zip(idx.chunks(k))) {
                self.chosen(i / units, i % units, idx, gates);
                gates_of(self.routing.score, gates);
                gates.iter_mut().for_each(|g| *g *= self.routing.gate_scale);
            }
        });
    }

    /// The gradient of the logits from that of the gates, or (`sparse`) of the chosen logits alone, `[G, L * K]`.
    pub fn backward(&self, idx: &[u32], dgates: &[f32], sparse: bool, dz: &mut [f32]) {
        let ((units, linears, e), k) = (self.sizes, self.routing.k);
        let width = if sparse { k } else { e };
        dz.par_chunks_mut((linears * width * UNITS).max(1)).enumerate().for_each(|(t, dz)| {
            let mut d = vec![0f32; k];
            for (row, dz) in dz.chunks_mut(width.max(1)).enumerate() {
                let l = row % linears;
                let unit = t * UNITS + row / linears;
                let of = (l * units + unit) * k..(l * units + unit + 1) * k;
                let idx = &idx[of.clone()];
                self.backward_of(l, unit, idx, &dgates[of], &mut d);
                if sparse {
                    dz.copy_from_slice(&d);
                    continue;
                }
                dz.fill(0.0);
                idx.iter().zip(&d).for_each(|(&i, d)| dz[i as usize] += d);
            }
        });
    }

    /// The gradient of the chosen logits of a unit.
    fn backward_of(&self, l: usize, unit: usize, idx: &[u32], dgates: &[f32], d: &mut [f32]) {
        let score = self.routing.score;
        let scale = self.routing.gate_scale;
        self.chosen(l, unit, idx, d);
        let sum = gates_of(score, d);
        let z = self.row(l, unit).0;
        let k = idx.len() as f32;
        let along = d.iter().zip(dgates).map(|(g, d)| g * scale * d).sum::<f32>();
        // What was a gate becomes its gradient.
        for ((d, dgate), &i) in d.iter_mut().zip(dgates).zip(idx) {
            let z = z[i as usize];
            *d = match score {
                Score::Sigmoid => (k * scale * dgate - along) / sum * sigmoid(z) * sigmoid(-z),
                _ => *d * (scale * dgate - along),
            };
        }
    }
}
