//! The configuration of a decoder, with the names of Hugging Face's `config.json`.

use crate::{Error, Result};
use serde::Deserialize;

/// Long-context scaling of rotary frequencies.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct RopeScaling {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original_max_position_embeddings: f64,
}

/// A Llama-family decoder: Llama 2 and 3, Mistral, Qwen2, SmolLM2.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    pub model_type: String,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f32,
    pub rope_theta: f64,
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have biases (Qwen2).
    pub attention_bias: bool,
}

/// Architectures that this decoder computes.
pub const SUPPORTED: [&str; 3] = ["llama", "mistral", "qwen2"];

impl LlamaConfig {
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
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return bad("rms_norm_eps", format!("is {}, must be in (0, 1)", self.rms_norm_eps));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return bad("rope_theta", format!("is {}, must be a positive number", self.rope_theta));
        }
        Ok(self)
    }

    /// Rotary frequencies `theta^(-2i/head_dim)`, scaled as Llama 3.1 does where the model asks for it.
    pub fn rope_frequencies(&self) -> Vec<f64> {
        let d = self.head_dim as f64;
        let base = (0..self.head_dim / 2).map(|i| self.rope_theta.powf(-2.0 * i as f64 / d));
        let Some(s) = self.rope_scaling else { return base.collect() };
        let (low, high) = (
            s.original_max_position_embeddings / s.low_freq_factor,
            s.original_max_position_embeddings / s.high_freq_factor,
        );
        base.map(|f| {
            let wavelength = std::f64::consts::TAU / f;
            if wavelength < high {
                f
            } else if wavelength > low {
                f / s.factor
            } else {
                let smooth = (s.original_max_position_embeddings / wavelength - s.low_freq_factor)
                    / (s.high_freq_factor - s.low_freq_factor);
                (1.0 - smooth) * f / s.factor + smooth * f
            }
        })
        .collect()
    }

    /// Parameters of the decoder, the embedding counted once.
    pub fn parameters(&self) -> u64 {
        let (d, f) = (self.hidden_size as u64, self.intermediate_size as u64);
        let (q, kv) = (
            (self.num_attention_heads * self.head_dim) as u64,
            (self.num_key_value_heads * self.head_dim) as u64,
        );
        let bias = if self.attention_bias { q + 2 * kv } else { 0 };
        let layer = 2 * d + d * (q + 2 * kv) + q * d + 3 * d * f + bias;
        let heads = if self.tie_word_embeddings { 1 } else { 2 };
        heads * d * self.vocab_size as u64 + self.num_hidden_layers as u64 * layer + d
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn smollm2() -> LlamaConfig {
        LlamaConfig {
            model_type: "llama".into(),
            hidden_size: 576,
            intermediate_size: 1536,
            num_hidden_layers: 30,
            num_attention_heads: 9,
            num_key_value_heads: 3,
            head_dim: 64,
            vocab_size: 49152,
            max_position_embeddings: 8192,
            rms_norm_eps: 1e-5,
            rope_theta: 100_000.0,
            rope_scaling: None,
            tie_word_embeddings: true,
            attention_bias: false,
        }
    }

    #[test]
    fn counts_parameters() {
        assert_eq!(smollm2().parameters(), 134_515_008);
    }

    #[test]
    fn refuses_what_cannot_be() {
        assert!(smollm2().check().is_ok());
        let e = LlamaConfig { num_key_value_heads: 4, ..smollm2() }.check().unwrap_err().to_string();
        assert!(e.contains("(9)") && e.contains("(4)"), "{e}");
        assert!(LlamaConfig { head_dim: 0, ..smollm2() }.check().is_err());
        assert!(LlamaConfig { vocab_size: 1 << 31, ..smollm2() }.check().is_err());
    }

    #[test]
    fn scaled_frequencies_keep_the_fast_ones() {
        let scaling = RopeScaling {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        let plain = smollm2().rope_frequencies();
        let scaled = LlamaConfig { rope_scaling: Some(scaling), ..smollm2() }.rope_frequencies();
        assert_eq!(plain[0], scaled[0]);
        approx::assert_relative_eq!(plain[31] / scaled[31], 8.0, epsilon = 1e-12);
    }
}
