//! Frequencies of rotary embeddings: how far a position turns each pair of a head, by the kinds that models have.

use crate::{Error, Result};
use std::f64::consts::TAU;

/// How a model stretches its rotary embedding beyond the context that it was first trained on. The names of fields are
/// those of `rope_scaling` in `config.json`.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum RopeScaling {
    /// `f = base^(-2i / dims)` (Su et al. 2021, arXiv:2104.09864).
    #[default]
    Default,
    /// `f / factor` (Chen et al. 2023, arXiv:2306.15595).
    Linear { factor: f64 },
    /// Slow frequencies are divided by the factor, fast ones are kept, those between are blended.
    Llama3(Llama3),
    /// The same idea with a ramp over the pairs, and an amplitude.
    Yarn(Yarn),
    /// Each frequency is divided by a factor of its own, which depends on the length of the sequence.
    LongRope(LongRope),
    /// Each frequency is divided by a factor of its own, one for each pair, as GGUF files have it.
    Factors(Vec<f64>),
}

/// Llama 3.1's scaling (Grattafiori et al. 2024, arXiv:2407.21783): with `turns = original f / 2 pi` and
/// `kept = (turns - low) / (high - low)` within 0 and 1, `f (1 - kept) / factor + f kept`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3 {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original_max_position_embeddings: usize,
}

/// YaRN (Peng et al. 2023, arXiv:2309.00071): `f (1 - ramp) + f ramp / factor` with `ramp = (i - low) / (high - low)` within
/// 0 and 1, where `low` and `high` are the pairs that turn `beta_fast` and `beta_slow` times in the original context:
/// `dims ln(original / (2 pi beta)) / (2 ln base)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    pub factor: f64,
    pub original_max_position_embeddings: usize,
    pub beta_fast: f64,
    pub beta_slow: f64,
    /// With both, the amplitude is `m(mscale) / m(mscale_all_dim)`, `m(x) = 0.1 x ln(factor) + 1`; else `m(1)`.
    pub mscale: Option<f64>,
    pub mscale_all_dim: Option<f64>,
    /// The amplitude itself, in place of the formula.
    pub attention_factor: Option<f64>,
    /// Whether `low` and `high` are rounded outwards to whole pairs.
    pub truncate: bool,
}

impl Yarn {
    /// The settings of the paper: 32 and 1 turns, whole pairs, amplitude `0.1 ln(factor) + 1`.
    pub fn new(factor: f64, original_max_position_embeddings: usize) -> Self {
        Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: None,
            mscale_all_dim: None,
            attention_factor: None,
            truncate: true,
        }
    }

    fn amplitude(&self) -> f64 {
        let m = |x: f64| if self.factor <= 1.0 { 1.0 } else { 0.1 * x * self.factor.ln() + 1.0 };
        match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(given), ..) => given,
            // A scale of 0 counts as none.
            (None, Some(scale), Some(all)) if scale != 0.0 && all != 0.0 => m(scale) / m(all),
            _ => m(1.0),
        }
    }
}

/// LongRoPE (Ding et al. 2024, arXiv:2402.13753), as Phi-3 has it: `f / long_factor` in sequences longer than the original
/// context, else `f / short_factor`; the amplitude is `sqrt(1 + ln(max / original) / ln(original))` in both cases.
#[derive(Debug, Clone, PartialEq)]
pub struct LongRope {
    pub short_factor: Vec<f64>,
    pub long_factor: Vec<f64>,
    pub max_position_embeddings: usize,
    pub original_max_position_embeddings: usize,
    /// The amplitude itself, in place of the formula.
    pub attention_factor: Option<f64>,
}

impl LongRope {
    fn amplitude(&self) -> f64 {
        let original = self.original_max_position_embeddings as f64;
        let stretch = self.max_position_embeddings as f64 / original;
        let formula = if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / original.ln()).sqrt() };
        self.attention_factor.unwrap_or(formula)
    }
}

/// What [`Rope`](super::Rope) tabulates: `amplitude cos(t f)` and `amplitude sin(t f)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Frequencies {
    /// Radians from one position to the next, for each pair.
    pub per_pair: Vec<f64>,
    /// What rotated values are multiplied by: the attention factor of YaRN and LongRoPE.
    pub amplitude: f64,
}

fn refuse(field: &str, what: String) -> Error {
    Error::refused(format!("rope {field}"), what)
}

fn positive(field: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(Error::config(format!("rope {field}"), value, "a positive number"))
}

fn one_for_each_pair(field: &str, factors: &[f64], pairs: usize) -> Result<()> {
    if factors.len() != pairs {
        let what = format!("has {} numbers, must have one for each of {pairs} rotated pairs", factors.len());
        return Err(refuse(field, what));
    }
    factors.iter().enumerate().try_for_each(|(i, factor)| positive(&format!("{field}[{i}]"), *factor))
}

impl RopeScaling {
    /// The frequencies of the first `dims` values of a head, for sequences of `length` positions.
    ///
    /// ```
    /// use mixlora::ops::rope::RopeScaling;
    /// let plain = RopeScaling::Default.frequencies(4, 100.0, 1)?;
    /// let halved = RopeScaling::Linear { factor: 2.0 }.frequencies(4, 100.0, 1)?;
    /// assert_eq!((plain.per_pair, halved.per_pair), (vec![1.0, 0.1], vec![0.5, 0.05]));
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// A setting that cannot be, by its name in `config.json`: `dims` is odd or 0, a number is not positive and finite,
    /// there is not one factor for each pair, or bounds lie the wrong way round.
    pub fn frequencies(&self, dims: usize, base: f64, length: usize) -> Result<Frequencies> {
        if dims == 0 || !dims.is_multiple_of(2) {
            return Err(refuse("dims", format!("is {dims}, must be even and above 0: pairs are rotated")));
        }
        positive("base", base)?;
        self.check(dims, base)?;
        let plain = (0..dims / 2).map(|i| base.powf(-2.0 * i as f64 / dims as f64));
        let over = |factors: &[f64]| plain.clone().zip(factors).map(|(f, by)| f / by).collect();
        Ok(match self {
            RopeScaling::Default => Frequencies { per_pair: plain.collect(), amplitude: 1.0 },
            RopeScaling::Linear { factor } => {
                Frequencies { per_pair: plain.map(|f| f / factor).collect(), amplitude: 1.0 }
            }
            RopeScaling::Llama3(s) => {
                let scaled = |f: f64| {
                    let turns = s.original_max_position_embeddings as f64 * f / TAU;
                    let kept = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
                    let kept = kept.clamp(0.0, 1.0);
                    (1.0 - kept) * f / s.factor + kept * f
                };
                Frequencies { per_pair: plain.map(scaled).collect(), amplitude: 1.0 }
            }
            RopeScaling::Yarn(s) => {
                let pair = |turns: f64| {
                    let original = s.original_max_position_embeddings as f64;
                    dims as f64 * (original / (turns * TAU)).ln() / (2.0 * base.ln())
                };
                let bounds = [pair(s.beta_fast), pair(s.beta_slow)];
                let [low, high] = if s.truncate { [bounds[0].floor(), bounds[1].ceil()] } else { bounds };
                let low = low.max(0.0);
                let high = high.min(dims as f64 - 1.0);
                // Bounds at one place make a step.
                let width = if low == high { 0.001 } else { high - low };
                let scaled = |(i, f): (usize, f64)| {
                    let ramp = ((i as f64 - low) / width).clamp(0.0, 1.0);
                    f / s.factor * ramp + f * (1.0 - ramp)
                };
                Frequencies { per_pair: plain.enumerate().map(scaled).collect(), amplitude: s.amplitude() }
            }
            RopeScaling::LongRope(s) => {
                let long = length > s.original_max_position_embeddings;
                let factors = if long { &s.long_factor } else { &s.short_factor };
                Frequencies { per_pair: over(factors), amplitude: s.amplitude() }
            }
            RopeScaling::Factors(factors) => Frequencies { per_pair: over(factors), amplitude: 1.0 },
        })
    }

    fn check(&self, dims: usize, base: f64) -> Result<()> {
        let original = |n: usize| positive("original_max_position_embeddings", n as f64);
        match self {
            RopeScaling::Default => Ok(()),
            RopeScaling::Linear { factor } => positive("factor", *factor),
            RopeScaling::Llama3(s) => {
                positive("factor", s.factor)?;
                positive("low_freq_factor", s.low_freq_factor)?;
                positive("high_freq_factor", s.high_freq_factor)?;
                original(s.original_max_position_embeddings)?;
                if s.low_freq_factor < s.high_freq_factor {
                    return Ok(());
                }
                let what = format!("is {}, must be below high_freq_factor", s.low_freq_factor);
                Err(refuse("low_freq_factor", format!("{what} ({})", s.high_freq_factor)))
            }
            RopeScaling::Yarn(s) => {
                positive("factor", s.factor)?;
                positive("beta_fast", s.beta_fast)?;
                positive("beta_slow", s.beta_slow)?;
                original(s.original_max_position_embeddings)?;
                positive("attention_factor", s.amplitude())?;
                if s.beta_slow > s.beta_fast {
                    let what = format!("is {}, must be at most beta_fast ({})", s.beta_slow, s.beta_fast);
                    return Err(refuse("beta_slow", what));
                }
                if base <= 1.0 {
                    return Err(refuse("base", format!("is {base}, must be above 1 for yarn")));
                }
                Ok(())
            }
            RopeScaling::LongRope(s) => {
                original(s.original_max_position_embeddings)?;
                positive("max_position_embeddings", s.max_position_embeddings as f64)?;
                positive("attention_factor", s.amplitude())?;
                one_for_each_pair("short_factor", &s.short_factor, dims / 2)?;
                one_for_each_pair("long_factor", &s.long_factor, dims / 2)
            }
            RopeScaling::Factors(factors) => one_for_each_pair("factors", factors, dims / 2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// The kind that `rope_scaling` of a reference names.
    fn scaling(case: &Value) -> RopeScaling {
        let all = &case["rope_scaling"];
        let number = |name: &str| all[name].as_f64();
        let length = |value: &Value| value.as_u64().unwrap() as usize;
        let list = |name: &str| all[name].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        let factor = || number("factor").unwrap();
        let original = || length(&all["original_max_position_embeddings"]);
        match all["rope_type"].as_str().unwrap() {
            "linear" => RopeScaling::Linear { factor: factor() },
            "llama3" => RopeScaling::Llama3(Llama3 {
                factor: factor(),
                low_freq_factor: number("low_freq_factor").unwrap(),
                high_freq_factor: number("high_freq_factor").unwrap(),
                original_max_position_embeddings: original(),
            }),
            "yarn" => {
                let paper = Yarn::new(factor(), original());
                RopeScaling::Yarn(Yarn {
                    beta_fast: number("beta_fast").unwrap_or(paper.beta_fast),
                    beta_slow: number("beta_slow").unwrap_or(paper.beta_slow),
                    mscale: number("mscale"),
                    mscale_all_dim: number("mscale_all_dim"),
                    attention_factor: number("attention_factor"),
                    truncate: all["truncate"].as_bool().unwrap_or(paper.truncate),
                    ..paper
                })
            }
            "longrope" => RopeScaling::LongRope(LongRope {
                short_factor: list("short_factor"),
                long_factor: list("long_factor"),
                max_position_embeddings: length(&case["max_position_embeddings"]),
                original_max_position_embeddings: length(&case["original_max_position_embeddings"]),
                attention_factor: number("attention_factor"),
            }),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn every_kind_agrees_with_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/rope.json");
        let cases: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut kinds = std::collections::BTreeMap::new();
        for case in &cases {
            *kinds.entry(case["rope_scaling"]["rope_type"].as_str().unwrap()).or_insert(0) += 1;
            let dims = case["dims"].as_u64().unwrap() as usize;
            let length = case["length"].as_u64().unwrap() as usize;
            let base = case["rope_theta"].as_f64().unwrap();
            let got = scaling(case).frequencies(dims, base, length).unwrap();
            let want = case["frequencies"].as_array().unwrap();
            assert_eq!(got.per_pair.len(), want.len(), "{case}");
            for (got, want) in got.per_pair.iter().zip(want) {
                let want = want.as_f64().unwrap();
                assert!((got - want).abs() <= 1e-12 * want, "{got} {want} in {case}");
            }
            let want = case["amplitude"].as_f64().unwrap();
            assert!((got.amplitude - want).abs() <= 1e-12 * want, "{} in {case}", got.amplitude);
        }
        assert!(kinds["yarn"] >= 8 && kinds.len() == 4, "{kinds:?}");
    }

    #[test]
    fn settings_that_cannot_be_are_refused_by_name() {
        let yarn = Yarn::new(4.0, 64);
        let long = LongRope {
            short_factor: vec![1.0; 4],
            long_factor: vec![1.0, 2.0, -1.0, 1.0],
            max_position_embeddings: 64,
            original_max_position_embeddings: 32,
            attention_factor: None,
        };
        let llama3 = Llama3 {
            factor: 8.0,
            low_freq_factor: 4.0,
            high_freq_factor: 1.0,
            original_max_position_embeddings: 64,
        };
        for (scaling, base, what) in [
            (RopeScaling::Default, f64::NAN, "rope base: is NaN, must be a positive number"),
            (RopeScaling::Linear { factor: 0.0 }, 1e4, "rope factor: is 0, must be a positive number"),
            (
                RopeScaling::Llama3(llama3),
                1e4,
                "rope low_freq_factor: is 4, must be below high_freq_factor (1)",
            ),
            (RopeScaling::Yarn(yarn), 1.0, "rope base: is 1, must be above 1 for yarn"),
            (
                RopeScaling::Yarn(Yarn { beta_slow: 40.0, ..yarn }),
                1e4,
                "rope beta_slow: is 40, must be at most beta_fast (32)",
            ),
            (
                RopeScaling::Yarn(Yarn { mscale: Some(-9.0), mscale_all_dim: Some(1.0), ..yarn }),
                1e4,
                "rope attention_factor: is -0.217",
            ),
            (
                RopeScaling::LongRope(long.clone()),
                1e4,
                "rope long_factor[2]: is -1, must be a positive number",
            ),
            (
                RopeScaling::LongRope(LongRope { short_factor: vec![1.0; 3], ..long }),
                1e4,
                "rope short_factor: has 3 numbers, must have one for each of 4 rotated pairs",
            ),
            (RopeScaling::Factors(vec![1.0; 5]), 1e4, "rope factors: has 5 numbers"),
        ] {
            let error = scaling.frequencies(8, base, 10).unwrap_err().to_string();
            assert!(error.starts_with(what), "{error}\n{what}");
        }
        let odd = RopeScaling::Default.frequencies(7, 1e4, 1).unwrap_err().to_string();
        assert!(odd.starts_with("rope dims: is 7, must be even"), "{odd}");
    }
}
