//! Entries of each row that a rule selects, as a mask.

use super::activation::check_finite;
use super::top_k::key;
use crate::device::{Entry, Gpu, Host, PORTABLE, Shader, Variant, params, parts};
use crate::engine::launch::{Kernel, WG, binds};
use crate::engine::{Case, Meta, Op, OpSpec, Operand, Timed, TimedSizes, operands, rows_in_parallel, run1};
use crate::rng::Stream;
use crate::simd::vectorised;
use crate::{DType, Error, Result, Tensor};
use std::ops::Add;
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: NAME,
    formula: "mask[m,e] = 1 if a rule (top k, top p, threshold) selects scores[m,e], else 0",
    shaders: &[&SHADER],
    cases,
    timed,
};

const NAME: &str = "select";
/// Longest row: every entry is compared with every other.
const MAX_ROW: usize = 1024;

static VARIANTS: &[Variant] = &[Variant {
    name: "wg256",
    consts: &[("WG", WG as u32)],
    parts: &[parts::GRID, parts::ORDER],
    backends: PORTABLE,
    workgroup_bytes: 0,
}];

params! {
    struct Params { n: u32, e: u32, rule: u32, count: u32, bound: f32 }
}

static SHADER: Shader = Shader {
    name: NAME,
    source: include_str!("../../shaders/select.wgsl"),
    params: Params::FIELDS,
    entries: &[Entry { name: "forward", variants: VARIANTS }],
};

/// Which entries of a row of scores are selected, by [`Tensor::select`].
///
/// The entries of a row are ordered from the largest to the smallest; of equal ones the lowest position comes first,
/// and NaN comes last. `rank` is the number of entries before one, and `before` the sum of their scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SelectRule {
    /// The first entries in the order, so many at most: `rank < k`.
    TopK(usize),
    /// Entries whose scores, added in the order, stay within `top_p`. For scores that are not negative, like those of
    /// a softmax (Holtzman et al. 2020, arXiv:1904.09751).
    TopP {
        /// What the sum may reach.
        top_p: f32,
        /// Entries that are selected in any case, first ones first: `rank < least`.
        least: usize,
        /// Whether the entry with which the sum exceeds `top_p` is selected too: `before <= top_p` instead of
        /// `before + score <= top_p`.
        crossing: bool,
    },
    /// Entries above a threshold: `score > t`.
    Above(f32),
}

impl SelectRule {
    fn check(&self) -> Result<()> {
        match *self {
            SelectRule::TopK(_) => Ok(()),
            SelectRule::TopP { top_p, .. } => check_finite("top_p", top_p),
            SelectRule::Above(threshold) => check_finite("threshold", threshold),
        }
    }

    fn selects<T: PartialOrd + Add<Output = T> + From<f32>>(&self, rank: usize, before: T, score: T) -> bool {
        match *self {
            SelectRule::TopK(k) => rank < k,
            SelectRule::TopP { top_p, least, crossing: true } => rank < least || before <= top_p.into(),
            SelectRule::TopP { top_p, least, crossing: false } => {
                rank < least || before + score <= top_p.into()
            }
            SelectRule::Above(threshold) => score > threshold.into(),
        }
    }

    /// The shader's parameters: the number of the rule, its count and its bound.
    fn numbers(&self) -> (u32, usize, f32) {
        match *self {
            SelectRule::TopK(k) => (0, k, 0.0),
            SelectRule::TopP { top_p, least, crossing } => (if crossing { 2 } else { 1 }, least, top_p),
            SelectRule::Above(threshold) => (3, 0, threshold),
        }
    }
}

vectorised! {
    /// For every entry of a row, how many come before it and the sum of their scores. One entry after the other is
    /// added to all that come after it, so that the sums are in the order of positions.
    fn count_before(row: &[f32], keys: &[u32], ranks: &mut [u32], sums: &mut [f32]) {
        for (other, score) in row.iter().enumerate() {
            let mine = keys[other];
            for (i, (key, (rank, sum))) in keys.iter().zip(ranks.iter_mut().zip(&mut *sums)).enumerate() {
                let is_before = mine > *key || (mine == *key && (other as u32) < i as u32);
                *rank += u32::from(is_before);
                *sum += if is_before { *score } else { 0.0 };
            }
        }
    }
}

/// `scores -> mask`
struct Select(SelectRule);

operands! {
    struct In { scores }
}

impl Op for Select {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, &In { scores }: &In<'_>) -> Result<[Meta; 1]> {
        scores.require(NAME, DType::F32)?;
        if scores.shape().rank() == 0 || scores.shape().last() > MAX_ROW {
            return Err(Error::shape(NAME, format!("rows of at most {MAX_ROW} scores"), scores.shape()));
        }
        Ok([Meta::like(scores)])
    }

    fn reference(&self, &In { scores }: &In<'_>, [mask]: [&mut Host; 1]) {
        let e = scores.shape().last().max(1);
        for (mask, row) in mask.f64_mut().chunks_mut(e).zip(scores.f64().chunks(e)) {
            let comes_before = |a: usize, b: usize| match row[a].partial_cmp(&row[b]) {
                Some(order) => order.is_gt() || (order.is_eq() && a < b),
                None if row[a].is_nan() && row[b].is_nan() => a < b,
                None => row[b].is_nan(),
            };
            for (i, on) in mask.iter_mut().enumerate() {
                let before: Vec<usize> = (0..e).filter(|&other| comes_before(other, i)).collect();
                let sum: f64 = before.iter().map(|&other| row[other]).sum();
                *on = f64::from(self.0.selects(before.len(), sum, row[i]));
            }
        }
    }

    fn cpu(&self, &In { scores }: &In<'_>, [mask]: [&mut Host; 1]) {
        let e = scores.shape().last();
        let scores = scores.f32();
        rows_in_parallel(mask.f32_mut(), e, |m, mask| {
            let row = &scores[m * e..][..e];
            let keys: Vec<u32> = row.iter().map(|score| key(*score)).collect();
            let mut ranks = vec![0; e];
            let mut sums = vec![0.0; e];
            count_before(row, &keys, &mut ranks, &mut sums);
            for (i, on) in mask.iter_mut().enumerate() {
                *on = f32::from(self.0.selects(ranks[i] as usize, sums[i], row[i]));
            }
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        let n = x.scores.len();
        let e = x.scores.shape().last();
        let (rule, count, bound) = self.0.numbers();
        let params = Params { n: n as u32, e: e as u32, rule, count: count.min(MAX_ROW) as u32, bound };
        let kernel = Kernel { shader: &SHADER, entry: "forward", variant: &VARIANTS[0] };
        kernel.run(gpu, &binds(x, y), &params, n.div_ceil(WG), 4 * n * e)
    }
}

impl Tensor {
    /// Entries of each row of scores that a rule selects: `mask[..,e]` is 1 if `self[..,e]` is selected, else 0;
    /// `[.., E] -> [.., E]`. There is no derivative.
    ///
    /// Scores are summed in the order of positions, in f32 on CPUs and GPUs.
    ///
    /// ```
    /// use mixlora::ops::select::SelectRule;
    /// use mixlora::{Device, Tensor};
    /// let scores = Tensor::from_f32(&Device::cpu(), &[1, 4], &[0.125, 0.5, 0.125, 0.25])?;
    /// assert_eq!(scores.select(&SelectRule::TopK(3))?.to_f32()?, [1.0, 1.0, 0.0, 1.0]);
    /// let top_p = SelectRule::TopP { top_p: 0.625, least: 1, crossing: true };
    /// assert_eq!(scores.select(&top_p)?.to_f32()?, [0.0, 1.0, 0.0, 1.0]);
    /// assert_eq!(scores.select(&SelectRule::Above(0.25))?.to_f32()?, [0.0, 1.0, 0.0, 0.0]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The tensor is a scalar, holds indices, or has rows of more than 1024 entries; a bound of the rule is not finite.
    pub fn select(&self, rule: &SelectRule) -> Result<Tensor> {
        rule.check()?;
        run1(&Select(*rule), In { scores: self })
    }
}

/// Multiples of 1/64 from 0 to 15/64: their sums are exact in f32, and ties are many.
fn sixty_fourths(dims: &[usize]) -> Operand {
    let bits = Stream::new(1).named("scores");
    let count = dims.iter().product::<usize>() as u32;
    let data = (0..count).map(|i| (bits.bits(i) % 16) as f32 / 64.0).collect();
    Operand::values(dims, data).frozen()
}

fn cases() -> Vec<Case> {
    let shapes: [&[usize]; 7] = [&[0, 4], &[3, 0], &[5, 1], &[9], &[2, 3, 17], &[3, 1024], &[70_000, 3]];
    let top_p = |top_p, least, crossing| SelectRule::TopP { top_p, least, crossing };
    let rules = [
        SelectRule::TopK(2),
        top_p(0.375, 0, true),
        top_p(0.375, 0, false),
        top_p(0.125, 2, false),
        SelectRule::Above(0.125),
    ];
    let case = |scores: Operand, dims: &[usize], rule: SelectRule| {
        let n: usize = dims.iter().product();
        let run = move |x: &[Tensor]| Ok(vec![x[0].select(&rule)?]);
        let e = dims[dims.len() - 1];
        Case::new(format!("{rule:?} of {dims:?}"), vec![scores], run).no_gradcheck().cost(n * e, 8 * n)
    };
    let mut all = Vec::new();
    for dims in shapes {
        all.extend(rules.map(|rule| case(sixty_fourths(dims), dims, rule)));
    }
    let odd = [f32::NAN, 0.5, f32::INFINITY, -0.0, f32::NEG_INFINITY, 0.0, f32::NAN, 0.25];
    for rule in [SelectRule::TopK(5), SelectRule::TopK(7), SelectRule::Above(0.25)] {
        all.push(case(Operand::values(&[8], odd.to_vec()).frozen(), &[8], rule));
    }
    all
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [rows, _] = sizes.plane();
    let e = 64;
    let n = rows * e;
    let costs = (4 * n * e, 8 * n);
    let scores = |dims: &[usize]| vec![sixty_fourths(dims)];
    let top_k = Timed::plain(format!("top 8 of {rows}x{e}"), scores(&[rows, e]), costs, |x| {
        x[0].select(&SelectRule::TopK(8))
    });
    let top_p = Timed::plain(format!("top p of {rows}x{e}"), scores(&[rows, e]), costs, |x| {
        x[0].select(&SelectRule::TopP { top_p: 0.5, least: 1, crossing: true })
    });
    vec![top_k, top_p]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    fn selected(row: &[f32], rule: SelectRule) -> Vec<f32> {
        let mut devices = vec![Device::cpu(), Device::reference()];
        devices.extend(Device::gpu());
        let select = |device: &Device| {
            let scores = Tensor::from_f32(device, &[1, row.len()], row).unwrap();
            scores.select(&rule).unwrap().to_f32().unwrap()
        };
        let masks: Vec<Vec<f32>> = devices.iter().map(select).collect();
        assert!(masks.iter().all(|mask| *mask == masks[0]), "{rule:?} of {row:?}: {masks:?}");
        masks[0].clone()
    }

    fn top_p(top_p: f32, least: usize, crossing: bool) -> SelectRule {
        SelectRule::TopP { top_p, least, crossing }
    }

    #[test]
    fn top_k_takes_the_lowest_position_among_equals() {
        let row = [0.25, 0.5, 0.25, 0.5];
        assert_eq!(selected(&row, SelectRule::TopK(0)), [0.0, 0.0, 0.0, 0.0]);
        assert_eq!(selected(&row, SelectRule::TopK(1)), [0.0, 1.0, 0.0, 0.0]);
        assert_eq!(selected(&row, SelectRule::TopK(3)), [1.0, 1.0, 0.0, 1.0]);
        assert_eq!(selected(&row, SelectRule::TopK(9)), [1.0, 1.0, 1.0, 1.0]);
        assert_eq!(selected(&[-1.0], SelectRule::TopK(1)), [1.0]);
        assert_eq!(selected(&[f32::NAN, -5.0], SelectRule::TopK(1)), [0.0, 1.0]);
    }

    #[test]
    fn top_p_stops_before_or_after_the_sum_is_exceeded() {
        // In order: 0.5, 0.25, 0.1875, 0.0625; sums before them 0, 0.5, 0.75, 0.9375.
        let row = [0.1875, 0.5, 0.0625, 0.25];
        assert_eq!(selected(&row, top_p(0.625, 0, true)), [0.0, 1.0, 0.0, 1.0]);
        assert_eq!(selected(&row, top_p(0.625, 0, false)), [0.0, 1.0, 0.0, 0.0]);
        // A sum that is met exactly: the next entry is the one that crosses.
        assert_eq!(selected(&row, top_p(0.75, 0, true)), [1.0, 1.0, 0.0, 1.0]);
        assert_eq!(selected(&row, top_p(0.75, 0, false)), [0.0, 1.0, 0.0, 1.0]);
        assert_eq!(selected(&row, top_p(0.25, 0, false)), [0.0, 0.0, 0.0, 0.0]);
        assert_eq!(selected(&row, top_p(0.25, 3, false)), [1.0, 1.0, 0.0, 1.0]);
        assert_eq!(selected(&row, top_p(-1.0, 1, true)), [0.0, 1.0, 0.0, 0.0]);
        // Equal scores: the first is before the second.
        assert_eq!(selected(&[0.5, 0.5], top_p(0.25, 0, true)), [1.0, 0.0]);
        assert_eq!(selected(&[1.0], top_p(0.5, 0, true)), [1.0]);
        assert_eq!(selected(&[1.0], top_p(0.5, 0, false)), [0.0]);
    }

    #[test]
    fn above_excludes_the_threshold_itself() {
        assert_eq!(selected(&[0.25, 0.5, f32::NAN], SelectRule::Above(0.25)), [0.0, 1.0, 0.0]);
        assert_eq!(selected(&[0.25], SelectRule::Above(-1.0)), [1.0]);
    }

    #[test]
    fn bad_rows_and_rules_are_errors() {
        let cpu = Device::cpu();
        let zeros = |dims: &[usize]| Tensor::zeros(&cpu, dims).unwrap();
        let error = zeros(&[2, 1025]).select(&SelectRule::TopK(1)).unwrap_err().to_string();
        assert_eq!(error, "select: expected rows of at most 1024 scores, found [2, 1025]");
        assert!(zeros(&[]).select(&SelectRule::TopK(1)).is_err());
        let error = zeros(&[1]).select(&top_p(f32::NAN, 1, true)).unwrap_err().to_string();
        assert_eq!(error, "top_p: is NaN, must be a finite number");
        assert!(zeros(&[1]).select(&SelectRule::Above(f32::INFINITY)).is_err());
        let index = Tensor::from_u32(&cpu, &[1], &[1]).unwrap();
        assert!(matches!(index.select(&SelectRule::TopK(1)), Err(Error::DType { .. })));
    }
}
