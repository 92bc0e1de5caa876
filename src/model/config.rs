//! The configuration of a decoder, with the names of Hugging Face's `config.json`.

use crate::{Error, Result};

/// Long-context scaling of rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// As Hugging Face's `rope_type: llama3` says it.
    Llama3(Llama3Scaling),
    /// What each frequency is divided by, `[head_dim / 2]`, as GGUF files have it.
    Factors(Vec<f32>),
}

/// Llama 3.1's scaling: slow frequencies are divided by `factor`, fast ones are kept, those between are blended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3Scaling {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original_max_position_embeddings: f64,
}

impl Llama3Scaling {
    /// A frequency, scaled.
    fn apply(&self, f: f64) -> f64 {
        // Turns within the old context.
        let turns = self.original_max_position_embeddings * f / std::f64::consts::TAU;
        let smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
        let smooth = smooth.clamp(0.0, 1.0);
        (1.0 - smooth) * f / self.factor + smooth * f
    }
}

/// A Llama-family decoder: Llama 2 and 3, Mistral, Qwen2, SmolLM2.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub model_type: String,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    /// Positions that a query sees, itself included. Longer sequences are refused: the window is not computed.
    pub sliding_window: Option<usize>,
    pub rms_norm_eps: f32,
    pub rope_theta: f64,
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have biases (Qwen2, some Llamas).
    pub attention_bias: bool,
    /// Whether o has one (some Llamas).
    pub o_proj_bias: bool,
    /// Whether gate, up and down have one (some Llamas).
    pub mlp_bias: bool,
}

impl ModelConfig {
    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// The first field that cannot be, with the values.
    pub fn check(self) -> Result<Self> {
        let bad = |field: &str, what: String| Err(Error::config(field, what));
        for (field, v) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            // The largest models stay far below; beyond, sizes would overflow.
            if v == 0 || v >= 1 << 28 {
                return bad(field, format!("is {v}, must be in 1..{}", 1 << 28));
            }
        }
        let (h, kv) = (self.num_attention_heads, self.num_key_value_heads);
        if h % kv != 0 {
            return bad(
                "num_attention_heads",
                format!("({h}) must be a multiple of num_key_value_heads ({kv})"),
            );
        }
        if !self.head_dim.is_multiple_of(2) || self.head_dim > 256 {
            return bad("head_dim", format!("is {}, must be even and at most 256", self.head_dim));
        }
        if self.sliding_window == Some(0) {
            return bad("sliding_window", "is 0, must be at least 1, or null for none".into());
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return bad("rms_norm_eps", format!("is {}, must be in (0, 1)", self.rms_norm_eps));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return bad("rope_theta", format!("is {}, must be a positive number", self.rope_theta));
        }
        Ok(self)
    }

    /// Rotary frequencies `theta^(-2i/head_dim)`, scaled where the model asks for it.
    pub fn rope_frequencies(&self) -> Vec<f64> {
        let d = self.head_dim as f64;
        let base = (0..self.head_dim / 2).map(|i| self.rope_theta.powf(-2.0 * i as f64 / d));
        match &self.rope_scaling {
            None => base.collect(),
            Some(RopeScaling::Llama3(s)) => base.map(|f| s.apply(f)).collect(),
            Some(RopeScaling::Factors(by)) => base.zip(by).map(|(f, by)| f / *by as f64).collect(),
        }
    }

    /// Llama 3's scaling that gives these factors, if one does. Only the ratios of three of its numbers can be told;
    /// the old context is taken as 8192, as Llama 3.1 has it.
    pub(super) fn llama3_of(&self, factors: &[f32]) -> Option<Llama3Scaling> {
        let factor = factors.iter().fold(1.0f64, |a, &b| a.max(b as f64));
        let original = 8192.0;
        let plain = ModelConfig { rope_scaling: None, ..self.clone() }.rope_frequencies();
        // Blended frequencies lie on a line: smooth = (turns - low) / (high - low).
        let blended = plain.iter().zip(factors).filter_map(|(f, &by)| {
            let smooth = (1.0 / by as f64 - 1.0 / factor) / (1.0 - 1.0 / factor);
            (smooth > 1e-6 && smooth < 1.0 - 1e-6).then_some((original * f / std::f64::consts::TAU, smooth))
        });
        let blended: Vec<(f64, f64)> = blended.collect();
        let (first, last) = (blended.first()?, blended.last()?);
        let slope = (first.1 - last.1) / (first.0 - last.0);
        let low = last.0 - last.1 / slope;
        // A number of turns that was written with few digits is taken at its word.
        let tidy = |v: f64| if (v - v.round()).abs() < 1e-3 { v.round() } else { v };
        let found = Llama3Scaling {
            factor,
            low_freq_factor: tidy(low),
            high_freq_factor: tidy(low + 1.0 / slope),
            original_max_position_embeddings: original,
        };
        let same = |(f, &by): (&f64, &f32)| (f / found.apply(*f) / by as f64 - 1.0).abs() < 1e-5;
        (slope > 0.0 && plain.iter().zip(factors).all(same)).then_some(found)
    }

    /// Positions that a sequence may have: the context, or the sliding window if that is shorter.
    pub fn max_positions(&self) -> usize {
        self.sliding_window.map_or(self.max_position_embeddings, |w| w.min(self.max_position_embeddings))
    }

    /// Whether the architecture is Llama's, which Mistral's is too; GGUF files do not tell them apart.
    pub fn is_llama(&self) -> bool {
        matches!(self.model_type.as_str(), "llama" | "mistral")
    }

    /// Whether a projection has a bias.
    pub fn has_bias(&self, projection: &str) -> bool {
        match projection {
            p if p.ends_with("o_proj") => self.o_proj_bias,
            p if p.contains("mlp.") => self.mlp_bias,
            _ => self.attention_bias,
        }
    }

    /// Parameters of the decoder, the embedding counted once.
    pub fn parameters(&self) -> u64 {
        // Sizes that a file only claims have products beyond 64 bits.
        let (d, f) = (self.hidden_size as u128, self.intermediate_size as u128);
        let (q, kv) = (
            (self.num_attention_heads * self.head_dim) as u128,
            (self.num_key_value_heads * self.head_dim) as u128,
        );
        let some = |there: bool, n: u128| if there { n } else { 0 };
        let bias = some(self.attention_bias, q + 2 * kv)
            + some(self.o_proj_bias, d)
            + some(self.mlp_bias, 2 * f + d);
        let layer = 2 * d + d * (q + 2 * kv) + q * d + 3 * d * f + bias;
        let heads = if self.tie_word_embeddings { 1 } else { 2 };
        let all = heads * d * self.vocab_size as u128 + self.num_hidden_layers as u128 * layer + d;
        u64::try_from(all).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn smollm2() -> ModelConfig {
        ModelConfig {
            model_type: "llama".into(),
            hidden_size: 576,
            intermediate_size: 1536,
            num_hidden_layers: 30,
            num_attention_heads: 9,
            num_key_value_heads: 3,
            head_dim: 64,
            vocab_size: 49152,
            max_position_embeddings: 8192,
            sliding_window: None,
            rms_norm_eps: 1e-5,
            rope_theta: 100_000.0,
            rope_scaling: None,
            tie_word_embeddings: true,
            attention_bias: false,
            o_proj_bias: false,
            mlp_bias: false,
        }
    }

    #[test]
    fn counts_parameters() {
        assert_eq!(smollm2().parameters(), 134_515_008);
    }

    #[test]
    fn refuses_what_cannot_be() {
        assert!(smollm2().check().is_ok());
        let e = ModelConfig { num_key_value_heads: 4, ..smollm2() }.check().unwrap_err().to_string();
        assert!(e.contains("(9)") && e.contains("(4)"), "{e}");
        assert!(ModelConfig { head_dim: 0, ..smollm2() }.check().is_err());
        assert!(ModelConfig { vocab_size: 1 << 31, ..smollm2() }.check().is_err());
    }

    #[test]
    fn scaled_frequencies_keep_the_fast_ones() {
        let scaling = Llama3Scaling {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        let plain = smollm2().rope_frequencies();
        let llama3 = ModelConfig { rope_scaling: Some(RopeScaling::Llama3(scaling)), ..smollm2() };
        let scaled = llama3.rope_frequencies();
        assert_eq!(plain[0], scaled[0]);
        approx::assert_relative_eq!(plain[31] / scaled[31], 8.0, epsilon = 1e-12);
        let factors: Vec<f32> = plain.iter().zip(&scaled).map(|(a, b)| (a / b) as f32).collect();
        assert_eq!(smollm2().llama3_of(&factors), Some(scaling), "what the factors came from");
        let table = ModelConfig { rope_scaling: Some(RopeScaling::Factors(factors.clone())), ..smollm2() };
        for (a, b) in table.rope_frequencies().iter().zip(&scaled) {
            approx::assert_relative_eq!(a, b, max_relative = 1e-7);
        }
        let other: Vec<f32> = factors.iter().map(|f| f * f).collect();
        assert_eq!(smollm2().llama3_of(&other), None);
    }
}
