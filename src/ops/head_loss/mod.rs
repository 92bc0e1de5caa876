//! Frozen output head and cross-entropy as one op: no logits tensor, no second product in the backward pass.
//!
//! With `p = softmax(h W^T)` the derivative of the loss is `p W - W[target]`: attention with W as keys and
//! values, so the online softmax of FlashAttention (Milakov & Gimelshein 2018, arXiv:1805.02867; Dao 2022,
//! arXiv:2205.14135) gives loss and derivative in one walk over the vocabulary.

mod cases;
mod cpu;
mod gpu;

use super::activation::check_cap;
use crate::device::{Entry, Gpu, Host, PORTABLE, Shader, Variant, params, parts};
use crate::engine::launch::each_format;
use crate::engine::product::{TILE_BYTES, Tiling, VECTOR_BYTES};
use crate::engine::{Meta, Op, OpSpec, operands, run};
use crate::tape::Node;
use crate::weight::{Format, Weight};
use crate::{DType, Error, Result, Tensor};
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "head_loss",
    formula: "sum over rows of -log softmax(cap(h W^T))[target]",
    shaders: &[&SHADER, &PRODUCT],
    cases: cases::cases,
    timed: cases::timed,
};

macro_rules! by_row {
    ($name:literal, $load:ident, $load4:ident, $piece:ident) => {
        Variant {
            name: $name,
            consts: &[("WG", 256)],
            parts: &[parts::GRID, parts::SUM, parts::HALF, parts::SOFTCAP, parts::$load],
            backends: PORTABLE,
            // Some back ends count every workgroup variable of the file.
            workgroup_bytes: 4 * 2 * 256,
        }
    };
}
/// By format.
static VARIANTS: [Variant; Format::ALL.len()] = each_format!(by_row);

params! {
    struct Params {
        r: u32, d: u32, vocabulary: u32, w_words: u32, first: u32, len: u32, line: u32, start: u32, nan: f32,
        cap: f32,
    }
}

static SHADER: Shader = Shader {
    name: "head_loss",
    source: include_str!("../../../shaders/head_loss.wgsl"),
    params: Params::FIELDS,
    entries: &[
        Entry { name: "compact", variants: VARIANTS.split_at(1).0 },
        Entry { name: "update", variants: VARIANTS.split_at(1).0 },
        Entry { name: "normalize", variants: &VARIANTS },
        Entry { name: "total", variants: VARIANTS.split_at(1).0 },
    ],
};

macro_rules! product {
    ($name:expr, $tb:literal $step:literal, $bytes:expr, [$($part:ident),+]) => {
        Variant {
            name: $name,
            consts: &[
                ("R", 8), ("V", 1), ("X", 8), ("Y", 8), ("LANES", 64), ("TA", 0), ("TB", $tb), ("EDGE", 0),
                ("STEP", $step),
            ],
            parts: &[parts::PRODUCT, parts::GRID, parts::HALF, $(parts::$part),+],
            backends: PORTABLE,
            workgroup_bytes: $bytes,
        }
    };
}
macro_rules! products {
    ($bytes:expr) => {{
        macro_rules! logits {
                        ($name:literal, $load:ident, $load4:ident, $piece:ident) => {
                            product!(concat!("logits_", $name), 1 0, $bytes, [READ4, $load4])
                        };
                    }
        macro_rules! gradient {
                        ($name:literal, $load:ident, $load4:ident, $piece:ident) => {
                            product!(concat!("gradient_", $name), 0 1, $bytes, [READ4_ANY, $load, LOAD4_ANY])
                        };
                    }
        &each_format!(logits, gradient)
    }};
}
macro_rules! streamed {
    ($name:literal, $load:ident, $load4:ident, $piece:ident) => {
        product!(
            concat!("logits_", $name), 1 0, VECTOR_BYTES,
            [READ4, $load4, WORDS4, PIECE, $piece, PRODUCT_STREAM]
        )
    };
}

macro_rules! logits_ahead {
    ($name:literal, $load:ident, $load4:ident, $piece:ident) => {
        product!(concat!("logits_", $name), 1 0, TILE_BYTES, [READ4, $load4, PRODUCT_AHEAD])
    };
}
macro_rules! gradient_ahead {
    ($name:literal, $load:ident, $load4:ident, $piece:ident) => {
        product!(concat!("gradient_", $name), 0 1, TILE_BYTES, [READ4, $load4, PRODUCT_AHEAD])
    };
}

params! {
    struct ProductParams {
        m: u32, n: u32, k: u32, groups: u32, a_stride: u32, a_first: u32, w_first: u32, w_words: u32, line: u32,
    }
}

static PRODUCT: Shader = Shader {
    name: "head_product",
    source: include_str!("../../../shaders/head_product.wgsl"),
    params: ProductParams::FIELDS,
    entries: &[
        Entry { name: "direct", variants: products!(0) },
        Entry { name: "tile", variants: products!(TILE_BYTES) },
        Entry { name: "vector", variants: products!(VECTOR_BYTES) },
        Entry { name: "stream", variants: &each_format!(streamed) },
        Entry { name: "ahead", variants: &each_format!(logits_ahead, gradient_ahead) },
    ],
};

/// A position without loss.
const NONE: u32 = u32::MAX;
/// `(h, targets) -> (loss[, dh])`
#[derive(Clone)]
struct HeadLoss {
    weight: Weight,
    gradient: bool,
    softcap: Option<f32>,
    /// The kernel of the products; only tests set it.
    force: Option<Tiling>,
}

operands! {
    struct In { h, targets }
}

impl Op<2> for HeadLoss {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        "head_loss"
    }

    fn infer(&self, &In { h, targets }: &In<'_>) -> Result<[Meta; 2]> {
        h.require(self.name(), DType::F32)?;
        targets.require(self.name(), DType::U32)?;
        let w = &self.weight;
        let refuse = |expected: String, found: String| Err(Error::shape(self.name(), expected, found));
        if h.shape().last() != w.cols() || h.shape().rank() == 0 {
            return refuse(format!("hidden states of {} values", w.cols()), h.shape().to_string());
        }
        self.softcap.map_or(Ok(()), |cap| check_cap("head_loss softcap", cap))?;
        if w.rows() == 0 {
            return refuse("a head with rows".into(), "none".into());
        }
        if targets.len() != h.shape().rows() {
            return refuse(format!("a target for each row of {}", h.shape()), targets.len().to_string());
        }
        if !w.device().same(h.device()) {
            return refuse(
                format!("hidden states on '{}', where the head is", w.device().name()),
                format!("'{}'", h.device().name()),
            );
        }
        let dh = if self.gradient { Meta::like(h) } else { Meta::f32(&[0])? };
        Ok([Meta::f32(&[])?, dh])
    }

    fn reference(&self, &In { h, targets }: &In<'_>, [loss, dh]: [&mut Host; 2]) {
        let d = self.weight.cols();
        let h = h.f64();
        let targets = targets.u32();
        let w: Vec<&[f64]> =
            self.weight.shards().iter().flat_map(|s| s.data.f64().chunks(d.max(1))).collect();
        let loss = &mut loss.f64_mut()[0];
        let dh = dh.f64_mut();
        *loss = 0.0;
        dh.fill(0.0);
        for (r, &target) in targets.iter().enumerate().filter(|(_, t)| **t != NONE) {
            let h = &h[r * d..][..d];
            let logit = |w: &&[f64]| {
                let z: f64 = w.iter().zip(h).map(|(w, h)| w * h).sum();
                self.softcap.map_or(z, |cap| cap as f64 * (z / cap as f64).tanh())
            };
            let z: Vec<f64> = w.iter().map(logit).collect();
            let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = z.iter().map(|z| (z - top).exp()).sum();
            *loss += top + total.ln() - z.get(target as usize).unwrap_or(&f64::NAN);
            if !self.gradient {
                continue;
            }
            for (v, w) in w.iter().enumerate() {
                let p = (z[v] - top).exp() / total - f64::from(u8::from(v == target as usize));
                let slope = self.softcap.map_or(1.0, |cap| 1.0 - (z[v] / cap as f64).powi(2));
                dh[r * d..][..d].iter_mut().zip(*w).for_each(|(g, w)| *g += p * slope * w);
            }
        }
    }

    fn cpu(&self, &In { h, targets }: &In<'_>, [loss, dh]: [&mut Host; 2]) {
        let dh = self.gradient.then(|| dh.f32_mut());
        loss.f32_mut()[0] = cpu::loss(&self.weight, self.softcap, h.f32(), targets.u32(), dh);
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 2]) -> Result<()> {
        gpu::walk(self, gpu, x, y)
    }
}

impl HeadLoss {
    /// The op as a tensor function, with its derivative.
    fn record(mut self, h: &Tensor, targets: &Tensor) -> Result<Tensor> {
        self.gradient = crate::tape::recording(&[h]);
        let [loss, dh] = run(&self, In { h, targets })?;
        let dims = h.dims().to_vec();
        Ok(Node::record("head_loss", &[h], loss, move |dy| {
            let row = dh.reshape(&[1, dh.len()])?;
            Ok(vec![Some(row.mul(&dy.reshape(&[1, 1])?)?.reshape(&dims)?)])
        }))
    }
}

impl Tensor {
    /// Cross-entropy of a frozen output head, summed: `sum_r -log softmax(h[r] W^T)[targets[r]]`, `self` = h. With a
    /// softcap, logits become `cap * tanh(logit / cap)` before the softmax; logits that a model scales are those of a
    /// scaled h.
    ///
    /// h `[.., D]`, W `[V, D]`, one target per row of h, `u32::MAX` at positions without loss; the result is a
    /// scalar. The gradient of h is computed on the way and only when it is needed; no `[rows, V]` is stored.
    /// A target that is not below V makes the loss NaN.
    ///
    /// ```
    /// use mixlora::{Device, Format, Tensor, Weight};
    /// let cpu = Device::cpu();
    /// let w = Weight::new(&cpu, 4, 1, &[0.5; 4], Format::F32)?;
    /// let h = Tensor::full(&cpu, &[2, 1], 3.0)?;
    /// let targets = Tensor::from_u32(&cpu, &[2], &[1, u32::MAX])?;
    /// assert!((h.head_loss(&w, &targets, None)?.item()? - 4f64.ln()).abs() < 1e-6);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// D of h and W differ, there is not one target per row, W is on another device, or the cap is not positive.
    pub fn head_loss(&self, weight: &Weight, targets: &Tensor, softcap: Option<f32>) -> Result<Tensor> {
        HeadLoss { weight: weight.clone(), gradient: false, softcap, force: None }.record(self, targets)
    }
}

#[cfg(test)]
mod tests {
    use crate::{Device, Format, Tensor, Weight};

    #[test]
    fn operands_that_do_not_fit_are_refused() {
        let cpu = Device::cpu();
        let w = Weight::new(&cpu, 3, 2, &[1.0; 6], Format::F32).unwrap();
        let h = |dims: &[usize]| Tensor::zeros(&cpu, dims).unwrap();
        let targets = |n: usize| Tensor::from_u32(&cpu, &[n], &vec![0; n]).unwrap();
        assert!(h(&[4, 3]).head_loss(&w, &targets(4), None).is_err());
        assert!(h(&[4, 2]).head_loss(&w, &targets(3), None).is_err());
        assert!(h(&[4, 2]).head_loss(&w, &h(&[4]), None).is_err());
        let elsewhere = Weight::new(&Device::cpu(), 3, 2, &[1.0; 6], Format::F32).unwrap();
        let error = h(&[4, 2]).head_loss(&w, &targets(4), Some(0.0)).unwrap_err().to_string();
        assert_eq!(error, "head_loss softcap: is 0, must be a positive number");
        assert!(h(&[4, 2]).head_loss(&elsewhere, &targets(4), None).is_err());
    }

    #[test]
    fn a_target_outside_of_the_vocabulary_is_seen() {
        let mut devices = vec![Device::reference(), Device::cpu()];
        devices.extend(Device::gpu());
        devices.dedup_by(|a, b| a.same(b));
        for device in devices {
            let w = Weight::new(&device, 3, 2, &[1.0; 6], Format::F32).unwrap();
            let targets = Tensor::from_u32(&device, &[2], &[0, 3]).unwrap();
            let loss = Tensor::zeros(&device, &[2, 2]).unwrap().head_loss(&w, &targets, None).unwrap();
            assert!(loss.item().unwrap().is_nan(), "{device:?}");
        }
    }
}
