//! The routers' mathematics for one routing unit and one linear, in f64: what `topk_routing` specifies.

use super::{Condition, Routing, Score};

/// Logits and tables of one (linear, unit).
pub(super) struct Unit<'a> {
    pub routing: &'a Routing,
    /// Logits of side A, `[E]`.
    pub za: &'a [f64],
    /// Logits of side B, `[E]`, or empty.
    pub zb: &'a [f64],
    /// Balancing bias `[E]`, or empty.
    pub bias: &'a [f64],
    /// Condition table `[E, E, S]` of this linear, if there is one. Only rows of chosen factors are read.
    pub table: Option<Values<'a>>,
    /// The table holds the rows of this unit's choices instead: `[K, E]`.
    pub of_choices: bool,
}

/// Values of either host lane, read one by one.
#[derive(Clone, Copy)]
pub(super) enum Values<'a> {
    F64(&'a [f64]),
    F32(&'a [f32]),
}

impl Values<'_> {
    fn at(&self, i: usize) -> f64 {
        match self {
            Values::F64(v) => v[i],
            Values::F32(v) => v[i] as f64,
        }
    }
}

/// What one unit chose.
#[derive(Debug, Default)]
pub(super) struct Choice {
    pub a: Vec<u32>,
    pub b: Vec<u32>,
    pub gates: Vec<f64>,
}

/// Gradients of one unit.
pub(super) struct UnitGrad {
    /// Of the logits of A's choices; the others have none.
    pub chosen: Vec<f64>,
    pub zb: Vec<f64>,
    /// Gradient of the table rows of the chosen factors, `[S, E]`; of a table of choices `[K, E]`.
    pub rows: Vec<f64>,
}

fn softmax(z: &[f64]) -> Vec<f64> {
    let top = z.iter().fold(f64::MIN, |m, &v| m.max(v));
    let e: Vec<f64> = z.iter().map(|v| (v - top).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.into_iter().map(|v| v / sum).collect()
}

fn sigmoid(v: f64) -> f64 {
    1.0 / (1.0 + (-v).exp())
}

/// Indices of the `k` largest, in descending order, lowest index first on ties; a NaN counts as the lowest.
fn top_k(scores: &[f64], k: usize) -> Vec<u32> {
    let key = |i: u32| {
        let v = scores[i as usize];
        if v.is_nan() { f64::MIN } else { v }
    };
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    let best_first = |i: &u32, j: &u32| key(*j).total_cmp(&key(*i)).then(i.cmp(j));
    if k < order.len() {
        order.select_nth_unstable_by(k, best_first);
        order.truncate(k);
    }
    order.sort_unstable_by(best_first);
    order
}

fn at(values: &[f64], idx: &[u32]) -> Vec<f64> {
    idx.iter().map(|&i| values[i as usize]).collect()
}

/// Adds `d[k]` at `idx[k]`.
pub(super) fn spread(d: &[f64], idx: &[u32], n: usize) -> Vec<f64> {
    let mut out = vec![0.0; n];
    idx.iter().zip(d).for_each(|(&i, d)| out[i as usize] += d);
    out
}

/// Gradient through a softmax `p`.
fn softmax_grad(p: &[f64], d: &[f64]) -> Vec<f64> {
    let mean: f64 = p.iter().zip(d).map(|(p, d)| p * d).sum();
    p.iter().zip(d).map(|(p, d)| p * (d - mean)).collect()
}

/// The condition on A's choice: `softmax(q)` and its inner softmaxes.
struct Conditional {
    /// `P_k = softmax_e(f_k C[I_k, e, k])`; for the choice form empty.
    shares: Vec<Vec<f64>>,
    /// Factor on each chosen A: its gate, or 1.
    f: Vec<f64>,
    p: Vec<f64>,
}

impl Unit<'_> {
    fn score_a(&self) -> Vec<f64> {
        let biased = |f: fn(f64) -> f64| self.za.iter().zip(self.bias).map(move |(&z, d)| (f(z), *d));
        match self.routing.score {
            Score::Logits => self.za.to_vec(),
            Score::Sigmoid => biased(sigmoid).map(|(q, d)| q + d).collect(),
            Score::Magnitude => biased(|z| z).map(|(z, d)| (z + d).abs()).collect(),
        }
    }

    /// Gates of chosen scores, without the gate scale.
    fn gates(&self, chosen: &[f64]) -> Vec<f64> {
        match self.routing.score {
            Score::Sigmoid => {
                let sum: f64 = chosen.iter().sum();
                chosen.iter().map(|q| chosen.len() as f64 * q / sum).collect()
            }
            _ => softmax(chosen),
        }
    }

    /// Entry (k, e) of the table rows of A's choice.
    fn row(&self, a: &[u32], k: usize, e: usize) -> f64 {
        let n = self.za.len();
        let s = self.routing.table_slots();
        let at = if self.of_choices { k * n + e } else { (a[k] as usize * n + e) * s + k.min(s - 1) };
        self.table.map_or(0.0, |t| t.at(at))
    }

    fn conditional(&self, c: &Condition, a: &[u32], alpha: &[f64]) -> Conditional {
        let n = self.za.len();
        let k = a.len();
        let scale = self.routing.gate_scale as f64;
        let f: Vec<f64> = alpha.iter().map(|g| if c.gated_input { scale * g } else { 1.0 }).collect();
        let entry = |k: usize, e: usize| self.row(a, k, e);
        if c.choice {
            let q: Vec<f64> = (0..n).map(|e| (0..k).map(|k| entry(k, e)).sum::<f64>() / k as f64).collect();
            return Conditional { shares: vec![], f, p: softmax(&q) };
        }
        let shares: Vec<Vec<f64>> =
            (0..k).map(|k| softmax(&(0..n).map(|e| f[k] * entry(k, e)).collect::<Vec<_>>())).collect();
        let q: Vec<f64> = (0..n).map(|e| shares.iter().map(|p| p[e]).sum()).collect();
        Conditional { shares, f, p: softmax(&q) }
    }

    fn score_b(&self, c: &Option<Conditional>) -> Vec<f64> {
        match (c, &self.routing.condition) {
            (Some(c), Some(o)) => {
                softmax(self.zb).iter().zip(&c.p).map(|(p, q)| p + o.weight as f64 * q).collect()
            }
            _ => self.zb.to_vec(),
        }
    }

    /// Chooses (or takes the forced choices) and computes the gates.
    pub fn forward(&self, forced: Option<(&[u32], &[u32])>) -> Choice {
        let r = self.routing;
        let score_a = self.score_a();
        let a = forced.map_or_else(|| top_k(&score_a, r.k), |f| f.0.to_vec());
        let alpha = self.gates(&at(&score_a, &a));
        let mut gates: Vec<f64> = alpha.iter().map(|g| g * r.gate_scale as f64).collect();
        let mut b = Vec::new();
        if r.sides == 2 {
            let conditional = r.condition.as_ref().map(|c| self.conditional(c, &a, &alpha));
            let score_b = self.score_b(&conditional);
            b = forced.map_or_else(|| top_k(&score_b, r.k), |f| f.1.to_vec());
            let beta = self.gates(&at(&score_b, &b));
            gates.iter_mut().zip(beta).for_each(|(g, b)| *g *= b * r.gate_scale as f64);
        }
        Choice { a, b, gates }
    }

    /// Gradients of the logits and of the chosen table rows, from those of the gates.
    pub fn backward(&self, a: &[u32], b: &[u32], dgates: &[f64]) -> UnitGrad {
        let r = self.routing;
        let n = self.za.len();
        let scale = r.gate_scale as f64;
        let score_a = self.score_a();
        let alpha = self.gates(&at(&score_a, a));
        let mut grad = UnitGrad { chosen: vec![], zb: vec![], rows: vec![] };
        let mut d_alpha: Vec<f64> = dgates.iter().map(|d| d * scale).collect();
        if r.sides == 2 {
            let conditional = r.condition.as_ref().map(|c| self.conditional(c, a, &alpha));
            let beta = self.gates(&at(&self.score_b(&conditional), b));
            let d_beta: Vec<f64> = d_alpha.iter().zip(&alpha).map(|(d, a)| d * scale * a).collect();
            d_alpha.iter_mut().zip(&beta).for_each(|(d, b)| *d *= scale * b);
            let d_score = spread(&softmax_grad(&beta, &d_beta), b, n);
            match (&conditional, &r.condition) {
                (Some(c), Some(o)) => {
                    grad.zb = softmax_grad(&softmax(self.zb), &d_score);
                    grad.rows = self.backward_condition(c, o, a, &d_score, &mut d_alpha);
                }
                _ => grad.zb = d_score,
            }
        }
        grad.chosen = match r.score {
            Score::Sigmoid => {
                let k = a.len() as f64;
                let sum = at(&score_a, a).iter().sum::<f64>();
                let mean: f64 = alpha.iter().zip(&d_alpha).map(|(g, d)| g / k * d).sum();
                d_alpha.iter().map(|d| k / sum * (d - mean)).collect()
            }
            _ => softmax_grad(&alpha, &d_alpha),
        };
        if r.score == Score::Sigmoid {
            for (d, z) in grad.chosen.iter_mut().zip(at(self.za, a)) {
                *d *= sigmoid(z) * (1.0 - sigmoid(z));
            }
        }
        grad
    }

    /// Gradient of the table rows; where the condition sees gated factors, also of A's gates.
    fn backward_condition(
        &self,
        c: &Conditional,
        o: &Condition,
        a: &[u32],
        d_score: &[f64],
        d_alpha: &mut [f64],
    ) -> Vec<f64> {
        let weighted: Vec<f64> = d_score.iter().map(|d| d * o.weight as f64).collect();
        let dq = softmax_grad(&c.p, &weighted);
        if o.choice {
            let row: Vec<f64> = dq.iter().map(|d| d / a.len() as f64).collect();
            return row.repeat(if self.of_choices { a.len() } else { 1 });
        }
        let mut rows = Vec::new();
        for (k, p) in c.shares.iter().enumerate() {
            let d = softmax_grad(p, &dq);
            if o.gated_input {
                let along: f64 = d.iter().enumerate().map(|(e, d)| d * self.row(a, k, e)).sum();
                d_alpha[k] += self.routing.gate_scale as f64 * along;
            }
            rows.extend(d.iter().map(|d| d * c.f[k]));
        }
        rows
    }
}
