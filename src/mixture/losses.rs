//! Auxiliary losses, as functions with gradients on every backend.
//!
//! Written for E experts and T tokens that count, with logits `z`, `p = softmax(z)`, `P_e = mean p_e`, `f_e = mean [e is
//! chosen]` without gradient; means are over the tokens that count ([`Counted`]), so padding is left out of all of them.
//! A matrix may hold several linears side by side, `[M, L * E]`: the result is then the sum of their losses.
//!
//! | function | formula | source |
//! |---|---|---|
//! | [`switch_loss`] | `E sum_e f_e P_e` | arXiv:2101.03961 |
//! | [`cv_squared`] | `var(v) / (mean(v)^2 + 1e-10)`, divisor n - 1 | arXiv:1701.06538 |
//! | [`z_loss`] | `mean logsumexp(z)^2` | arXiv:2202.08906 |
//! | [`shannon_entropy`] | `mean -sum_e p_e log p_e` | |
//! | [`tsallis_entropy`], [`renyi_entropy`] | see there | arXiv:2504.00661 |
//! | [`effective_support`] | `1 / sum_e p_e^2`, no loss but a figure | ReMix |
//! | [`rsl`] | `alpha sum_e P_e f_e + lambda mean H(p)` | arXiv:2507.00029 |
//! | [`localized_balance`] | CV^2 of gate mass, weighed by the sample's type | arXiv:2312.09979 |
//! | [`info_nce`] | `mean -log softmax(cos(q, k) / tau)[label]` | arXiv:1807.03748 |
//! | [`sup_con`] | mean over anchors of the mean `-log softmax` of their positives | arXiv:2004.11362 |
//! | [`preference`] | behaviour cloning and a contrast of better and worse | arXiv:2605.27762 |

use crate::nn::Pass;
use crate::{Error, Result, Tensor};

/// The tokens of a pass that losses are means over: those that are no padding.
#[derive(Debug, Clone)]
pub struct Counted {
    /// 1 or 0 for each token, `[M, 1]`, where some do not count.
    weights: Option<Tensor>,
    count: usize,
}

impl Counted {
    /// All of so many tokens.
    pub fn all(tokens: usize) -> Self {
        Counted { weights: None, count: tokens }
    }

    /// Those with a 1 in `weights [M, 1]`, `count` of them.
    pub fn weighted(weights: Tensor, count: usize) -> Self {
        Counted { weights: Some(weights), count }
    }

    /// The tokens of a pass over so many rows that count in it.
    pub fn of(pass: &Pass, rows: usize) -> Self {
        match &pass.valid {
            Some((weights, count)) => Counted::weighted(weights.clone(), *count),
            None => Counted::all(rows),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }
    /// 1 or 0 for each token, `[M, 1]`; none where all count.
    pub fn weights(&self) -> Option<&Tensor> {
        self.weights.as_ref()
    }

    /// Sums over the tokens: `[M, N] -> [N]`.
    ///
    /// # Errors
    /// There are more or fewer rows than tokens.
    pub fn sum(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weights {
            Some(weights) => x.mul(weights)?.sum_rows(),
            None => x.sum_rows(),
        }
    }

    /// Means over the tokens: `[M, N] -> [N]`.
    ///
    /// # Errors
    /// As [`sum`](Counted::sum).
    pub fn mean(&self, x: &Tensor) -> Result<Tensor> {
        self.sum(x)?.scale(1.0 / self.count.max(1) as f32)
    }
}

/// `E sum_e f_e P_e`, from `sum_p [N]` and `load [N]`: sums of p and of choices over `tokens` tokens. Least at an even
/// load. Gradient through p alone (Fedus et al. 2021, arXiv:2101.03961; where k are chosen, f sums to k).
///
/// # Errors
/// The shapes do not fit.
pub fn switch_loss(sum_p: &Tensor, load: &Tensor, experts: usize, tokens: usize) -> Result<Tensor> {
    let n = tokens.max(1) as f32;
    sum_p.mul(&load.detach())?.sum()?.scale(experts as f32 / (n * n))
}

/// `var(v) / (mean(v)^2 + 1e-10)` of all values of a tensor, with the divisor n - 1 (Shazeer et al. 2017,
/// arXiv:1701.06538); 0 of a single value.
///
/// # Errors
/// The device failed.
pub fn cv_squared(v: &Tensor) -> Result<Tensor> {
    let n = v.len();
    let v = v.reshape(&[1, n])?;
    let mean = v.mean()?.reshape(&[1, 1])?;
    let apart = v.add_scaled(&mean, -1.0)?;
    let variance = apart.mul(&apart)?.sum()?.scale(1.0 / n.saturating_sub(1).max(1) as f32)?;
    let square = mean.mul(&mean)?.reshape(&[])?;
    variance.mul(&square.power(-1.0, 1e-10)?)
}

/// `mean logsumexp(z)^2` of logits `[M, L, E]` or `[M, E]`; of several linears the sum (Zoph et al. 2022,
/// arXiv:2202.08906).
///
/// # Errors
/// The shapes do not fit.
pub fn z_loss(logits: &Tensor, tokens: &Counted) -> Result<Tensor> {
    let log_p = logits.log_softmax()?;
    // z - log p is the same for every expert: its mean under p has the gradient p.
    let lse = log_p.exp()?.mul(&logits.sub(&log_p)?)?.sum_last()?;
    mean_of_rows(&lse.mul(&lse)?, tokens)
}

/// The mean over tokens of a value for each row and linear, summed over linears: `[M]` or `[M, L]` to a scalar.
///
/// # Errors
/// The shapes do not fit.
pub fn mean_of_rows(values: &Tensor, tokens: &Counted) -> Result<Tensor> {
    let rows = values.dims().first().copied().unwrap_or(1);
    let columns = values.len() / rows.max(1);
    tokens.mean(&values.reshape(&[rows, columns])?)?.sum()
}

/// `H(p) = -sum_e p_e log p_e` of each row of logits: `[.., E] -> [..]`, in nats.
///
/// # Errors
/// The device failed.
pub fn shannon_entropy(logits: &Tensor) -> Result<Tensor> {
    let log_p = logits.log_softmax()?;
    log_p.exp()?.mul(&log_p)?.sum_last()?.scale(-1.0)
}

/// How many experts share the probability of each token: `(sum p)^2 / sum p^2 = 1 / sum_e p_e^2`, `p [M, E] -> [M]`; 1 where
/// one has all of it, E where all are equal.
///
/// # Errors
/// The device failed.
pub fn effective_support(p: &Tensor) -> Result<Tensor> {
    p.mul(p)?.sum_last()?.power(-1.0, 0.0)
}

/// `[(1 - sum_e p'_e^q) / (q - 1)] / [(1 - E^(1-q)) / (q - 1)]` of each row, `p' = p + eps`: between 0 and about 1. With
/// q = 1 it is `-sum p' log p' / log E`. One expert has the entropy 0 (DynMoLE, arXiv:2504.00661).
///
/// # Errors
/// The device failed.
pub fn tsallis_entropy(p: &Tensor, q: f32, eps: f32) -> Result<Tensor> {
    let e = p.shape().last();
    if e <= 1 {
        return zero_entropy(p);
    }
    if q == 1.0 {
        return shifted_shannon(p, eps);
    }
    // f64: q - 1 is small, and so are both differences.
    let most = 1.0 - (e as f64).powf(1.0 - q as f64);
    let sum = p.power(q, eps)?.sum_last()?;
    let one = Tensor::full(p.device(), sum.dims(), 1.0)?;
    one.sub(&sum)?.scale((1.0 / most) as f32)
}

/// `log(sum_e p'_e^q + 1e-10) / (1 - q) / log E` of each row, `p' = p + eps`; as [`tsallis_entropy`] for q = 1 and for
/// one expert (DynMoLE, arXiv:2504.00661).
///
/// # Errors
/// The device failed.
pub fn renyi_entropy(p: &Tensor, q: f32, eps: f32) -> Result<Tensor> {
    let e = p.shape().last();
    if e <= 1 {
        return zero_entropy(p);
    }
    if q == 1.0 {
        return shifted_shannon(p, eps);
    }
    let factor = 1.0 / ((1.0 - q as f64) * (e as f64).ln());
    p.power(q, eps)?.sum_last()?.log_shifted(1e-10)?.scale(factor as f32)
}

fn zero_entropy(p: &Tensor) -> Result<Tensor> {
    let rows = p.dims().split_last().map_or(&[][..], |(_, rows)| rows);
    Tensor::zeros(p.device(), rows)
}

fn shifted_shannon(p: &Tensor, eps: f32) -> Result<Tensor> {
    let e = p.shape().last() as f64;
    let log = p.log_shifted(eps)?;
    // (p + eps) log (p + eps)
    let product = p.mul(&log)?.add_scaled(&log, eps)?;
    product.sum_last()?.scale((-1.0 / e.ln()) as f32)
}

/// Routing specialisation: `alpha sum_e P_e f_e + lambda mean H(p)`, with f the load of each expert, which sums to 1
/// (LoRA-Mixer, arXiv:2507.00029). The paper prints a minus before lambda, which would raise the entropy that its text
/// wants low: a negative `lambda` gives that form.
///
/// # Errors
/// The shapes do not fit.
pub fn rsl(logits: &Tensor, load: &Tensor, tokens: &Counted, alpha: f32, lambda: f32) -> Result<Tensor> {
    let rows = logits.dims()[0];
    let p = logits.softmax()?.reshape(&[rows, logits.len() / rows.max(1)])?;
    let balance = tokens.mean(&p)?.mul(&load.detach())?.sum()?.scale(alpha)?;
    let entropy = mean_of_rows(&shannon_entropy(logits)?, tokens)?;
    balance.add_scaled(&entropy, lambda)
}

/// `CV^2` of `mass [B, E]`, the sum of the gates of each sample, times `1 + delta` for the first half of the experts
/// where the sample's type is 1 and for the second half where it is 0, times `1 - delta` elsewhere (LoRAMoE,
/// arXiv:2312.09979). At its least the experts that `1 + delta` marks have less mass.
///
/// # Errors
/// The number of experts is odd, or there is not one type for each sample.
pub fn localized_balance(mass: &Tensor, types: &[usize], delta: f32) -> Result<Tensor> {
    let [samples, experts] = *mass.dims() else {
        return Err(Error::shape("localized_balance", "mass [B, E]", mass.shape()));
    };
    if experts % 2 != 0 || samples != types.len() {
        let found = format!("{experts} experts, {} types of {samples} samples", types.len());
        return Err(Error::shape(
            "localized_balance",
            "an even number of experts, a type for each sample",
            found,
        ));
    }
    let marked = |kind: usize, e: usize| (kind == 1 && e < experts / 2) || (kind == 0 && e >= experts / 2);
    let weight = |kind: usize, e: usize| if marked(kind, e) { 1.0 + delta } else { 1.0 - delta };
    let weights: Vec<f32> = types.iter().flat_map(|&t| (0..experts).map(move |e| weight(t, e))).collect();
    cv_squared(&mass.mul(&Tensor::from_f32(mass.device(), &[samples, experts], &weights)?)?)
}

/// Rows divided by their norm: `x / sqrt(sum x^2 + eps)`, `[.., D]`.
///
/// # Errors
/// The device failed.
pub fn normalised(x: &Tensor, eps: f32) -> Result<Tensor> {
    let d = x.shape().last().max(1);
    let weight = Tensor::full(x.device(), &[d], 1.0 / (d as f32).sqrt())?;
    x.rms_norm(&weight, eps / d as f32)
}

/// `mean -log softmax(cos(query_b, key_i) / tau)[label_b]` for queries `[B, D]` and keys `[N, D]` (InfoNCE, van den Oord et
/// al. 2018, arXiv:1807.03748).
///
/// # Errors
/// The shapes do not fit.
pub fn info_nce(query: &Tensor, keys: &Tensor, labels: &[u32], tau: f32) -> Result<Tensor> {
    let similarity = normalised(query, 1e-24)?.matmul_nt(&normalised(keys, 1e-24)?)?.scale(1.0 / tau)?;
    let log_p = log_probabilities(&similarity, labels)?;
    log_p.sum()?.scale(-1.0 / labels.len().max(1) as f32)
}

/// Supervised contrast of states `[B, D]` (Khosla et al. 2020, arXiv:2004.11362, `L_out`): the mean over samples i with a positive of
/// `-1/|P_i| sum_{p in P_i} log( exp(z_i . z_p / tau) / sum_{a != i} exp(z_i . z_a / tau) )`, with z the states divided by
/// their norms and P_i the other samples of i's class. 0 where no two samples share a class. 0.07 is the `tau` of the authors' code.
///
/// # Errors
/// There is not one class for each state.
pub fn sup_con<C: PartialEq>(states: &Tensor, classes: &[C], tau: f32) -> Result<Tensor> {
    let n = classes.len();
    if states.dims().len() != 2 || states.dims()[0] != n {
        return Err(Error::shape("sup_con", format!("states of {n} samples, [B, D]"), states.shape()));
    }
    let positives = |i: usize| (0..n).filter(move |&j| j != i && classes[j] == classes[i]);
    let anchors = (0..n).filter(|&i| positives(i).next().is_some()).count();
    let device = states.device();
    if anchors == 0 {
        return Tensor::zeros(device, &[]);
    }
    let mut share = vec![0.0; n * n];
    for i in 0..n {
        let each = 1.0 / (anchors * positives(i).count().max(1)) as f32;
        positives(i).for_each(|j| share[i * n + j] = each);
    }
    // A sample is not compared with itself.
    let own: Vec<f32> = (0..n * n).map(|at| if at % (n + 1) == 0 { -1e30 } else { 0.0 }).collect();
    let z = normalised(states, 1e-24)?;
    let similarity = z.matmul_nt(&z)?.scale(1.0 / tau)?.add(&Tensor::from_f32(device, &[n, n], &own)?)?;
    let share = Tensor::from_f32(device, &[n, n], &share)?;
    similarity.log_softmax()?.mul(&share)?.sum()?.scale(-1.0)
}

/// `log softmax(logits)[label]` of each row: `[M, V] -> [M]`; 0 where the label is `u32::MAX`.
///
/// # Errors
/// There is not one label for each row.
pub fn log_probabilities(logits: &Tensor, labels: &[u32]) -> Result<Tensor> {
    let index = Tensor::from_u32(logits.device(), &[labels.len(), 1], labels)?;
    logits.log_softmax()?.pick(&index)?.reshape(&[labels.len()])
}

/// Behaviour cloning of the better answers, and a contrast with the worse ones.
pub struct Preference {
    /// `-sum log p(better) / labels`.
    pub cloning: Tensor,
    /// `mean softplus(-(log p(better) - log p(worse)) / tau)`.
    pub contrast: Tensor,
}

/// Both terms for logits `[N, S, V]` with `labels` labels for each (`u32::MAX` where a position does not count); log
/// probabilities are summed over a sequence (PEAM, arXiv:2605.27762; the form of the contrast is ours).
///
/// # Errors
/// The shapes do not fit.
pub fn preference(
    [better, worse]: [&Tensor; 2],
    [better_labels, worse_labels]: [&[u32]; 2],
    tau: f32,
) -> Result<Preference> {
    let sums = |logits: &Tensor, labels: &[u32]| -> Result<Tensor> {
        let [n, s, v] = *logits.dims() else {
            return Err(Error::shape("preference", "logits [N, S, V]", logits.shape()));
        };
        log_probabilities(&logits.reshape(&[n * s, v])?, labels)?.reshape(&[n, s])?.sum_last()
    };
    let better = sums(better, better_labels)?;
    let worse = sums(worse, worse_labels)?;
    let counted = better_labels.iter().filter(|label| **label != u32::MAX).count().max(1);
    Ok(Preference {
        cloning: better.sum()?.scale(-1.0 / counted as f32)?,
        contrast: better.sub(&worse)?.scale(-1.0 / tau)?.softplus()?.mean()?,
    })
}
