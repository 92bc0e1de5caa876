//! Frozen output head and cross-entropy as one op: no logits tensor, no second product in the backward pass.
//!
//! With `p = softmax(h W^T)` the derivative of the loss is `p W - W[target]`: attention with W as keys and
//! values, so the online softmax of FlashAttention (Milakov & Gimelshein 2018, arXiv:1805.02867; Dao 2022,
//! arXiv:2205.14135) gives loss and derivative in one walk over the vocabulary.

mod cpu;
mod gpu;

use crate::device::{Entry, Gpu, Host, PORTABLE, Shader, Variant, parts};
use crate::engine::launch::each_format;
use crate::engine::{Case, Computation, Meta, Op, OpSpec, Operand, Timed, TimedSizes, operands, run};
use crate::rng::Stream;
use crate::tape::Node;
use crate::weight::{Format, Weight, sample};
use crate::{DType, Device, Error, Result, Tensor};
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "head_loss",
    formula: "sum over rows of -log softmax(h W^T)[target]",
    shaders: &[&SHADER],
    cases,
    timed,
};

const fn variant(name: &'static str, step: &'static [(&'static str, u32)], all: Parts) -> Variant {
    // Some back ends count every workgroup variable of the file.
    let bytes = 4 * (2 * 256 + 2 * 16 * 65);
    Variant { name, consts: step, parts: all, backends: PORTABLE, workgroup_bytes: bytes }
}
type Parts = &'static [&'static str];

macro_rules! loads {
    ($load:ident) => {
        &[parts::GRID, parts::SUM, parts::HALF, parts::$load]
    };
}
macro_rules! logits {
    ($name:literal, $load:ident, $load4:ident) => {
        variant(concat!("logits_", $name), &[("WG", 256), ("STEP", 0)], loads!($load))
    };
}
macro_rules! gradient {
    ($name:literal, $load:ident, $load4:ident) => {
        variant(concat!("gradient_", $name), &[("WG", 256), ("STEP", 1)], loads!($load))
    };
}
const FORMATS: usize = Format::ALL.len();
/// By step and format.
static VARIANTS: [Variant; 2 * FORMATS] = each_format!(logits, gradient);
static SHADER: Shader = Shader {
    name: "head_loss",
    source: include_str!("../../../shaders/head_loss.wgsl"),
    entries: &[
        Entry { name: "compact", variants: VARIANTS.split_at(1).0 },
        Entry { name: "direct", variants: &VARIANTS },
        Entry { name: "tile", variants: &VARIANTS },
        Entry { name: "update", variants: VARIANTS.split_at(1).0 },
        Entry { name: "finish", variants: VARIANTS.split_at(FORMATS).0 },
        Entry { name: "total", variants: VARIANTS.split_at(1).0 },
    ],
};

/// A position without loss.
const NONE: u32 = u32::MAX;
/// Which kernel computes the products; tests force each.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kernel {
    Direct,
    Tile,
}

/// `(h, targets) -> (loss[, dh])`
#[derive(Clone)]
struct HeadLoss {
    weight: Weight,
    gradient: bool,
    /// Only tests set it.
    force: Option<Kernel>,
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
        let refuse = |what| Err(Error::shape(self.name(), what));
        if h.shape().last() != w.cols() || h.shape().rank() == 0 {
            return refuse(format!("hidden states {} for a head [{}, {}]", h.shape(), w.rows(), w.cols()));
        }
        if w.rows() == 0 {
            return refuse("the head has no rows".into());
        }
        if targets.len() != h.shape().rows() {
            return refuse(format!("{} targets for hidden states {}", targets.len(), h.shape()));
        }
        if !w.device().same(h.device()) {
            return refuse(format!("the head is on '{}', not on '{}'", w.device().name(), h.device().name()));
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
            let z: Vec<f64> = w.iter().map(|w| w.iter().zip(h).map(|(w, h)| w * h).sum()).collect();
            let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = z.iter().map(|z| (z - top).exp()).sum();
            *loss += top + total.ln() - z.get(target as usize).unwrap_or(&f64::NAN);
            if !self.gradient {
                continue;
            }
            for (v, w) in w.iter().enumerate() {
                let p = (z[v] - top).exp() / total - f64::from(u8::from(v == target as usize));
                dh[r * d..][..d].iter_mut().zip(*w).for_each(|(g, w)| *g += p * w);
            }
        }
    }

    fn cpu(&self, &In { h, targets }: &In<'_>, [loss, dh]: [&mut Host; 2]) {
        let dh = self.gradient.then(|| dh.f32_mut());
        loss.f32_mut()[0] = cpu::loss(&self.weight, h.f32(), targets.u32(), dh);
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
    /// Cross-entropy of a frozen output head, summed: `sum_r -log softmax(h[r] W^T)[targets[r]]`, `self` = h.
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
    /// assert!((h.head_loss(&w, &targets)?.item()? - 4f64.ln()).abs() < 1e-6);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// D of h and W differ, there is not one target per row, or W is on another device.
    pub fn head_loss(&self, weight: &Weight, targets: &Tensor) -> Result<Tensor> {
        HeadLoss { weight: weight.clone(), gradient: false, force: None }.record(self, targets)
    }
}

/// Targets cycle through the vocabulary; every `skip`-th position has no loss.
fn case([r, d, v]: [usize; 3], skip: usize, format: Format, shard: u64, force: Option<Kernel>) -> Case {
    let targets = (0..r).map(|i| if i % skip == skip - 1 { NONE } else { (i * 7 % v) as u32 }).collect();
    let inputs = vec![Operand::normal("h", &[r, d]), Operand::indices(&[r], targets)];
    // Blocks have values of about 1 instead, which makes the softmax sharper.
    let values = match format.block_len() {
        1 => Stream::new(3).named("head").normal_vec(v * d, 2.0 / (d.max(1) as f32).sqrt()),
        _ => vec![],
    };
    let blocks = if values.is_empty() { sample(format, v, d, 3) } else { vec![] };
    let how = force.map_or(String::new(), |f| format!(" {f:?}"));
    let label = format!("R{r} D{d} V{v} {} shards of {shard} B, skip {skip}{how}", format.name());
    Case::new(label, inputs, move |x| {
        let device = x[0].device();
        let weight = match format.block_len() {
            1 => Weight::sharded(device, v, d, &values, format, shard)?,
            _ => Weight::raw_sharded(device, [v, d], &blocks, [format; 2], None, shard)?,
        };
        Ok(vec![HeadLoss { weight, gradient: false, force }.record(&x[0], &x[1])?])
    })
    .sums(d.max(v).max(r))
    .cost(4 * r * v * d, 4 * (2 * r * d + v * d))
}

fn cases() -> Vec<Case> {
    let whole = 1 << 26;
    let mut all = vec![
        case([0, 3, 5], 2, Format::F32, whole, None),
        // No position has a loss.
        case([3, 2, 5], 1, Format::F32, whole, None),
        case([1, 1, 1], 2, Format::F32, whole, None).floor(1.0),
        case([5, 3, 7], 3, Format::F32, whole, None),
        case([7, 5, 33], 4, Format::F16, 100, None),
        case([7, 5, 33], 4, Format::Bf16, 100, None),
        case([67, 33, 130], 2, Format::F32, 6000, None),
        case([40, 64, 2500], 3, Format::F16, whole, None),
        case([1100, 7, 4100], 2, Format::F32, whole, None),
        case([70_000, 2, 3], 5, Format::F32, whole, None),
    ];
    let mut frozen = case([9, 6, 50], 2, Format::F32, 500, None);
    frozen.inputs = frozen.inputs.into_iter().map(Operand::frozen).collect();
    frozen.label += " loss only";
    all.push(frozen);
    for format in Format::ALL {
        let (d, shard) = match format.block_len() {
            1 => (35, 8000),
            block => (block, 60 * 4 * format.row_words(block) as u64),
        };
        for kernel in [Kernel::Direct, Kernel::Tile] {
            all.push(case([70, d, 150], 3, format, shard, Some(kernel)));
        }
    }
    all
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [r, d, v] = sizes.pick([33, 64, 500], [256, 576, 8192]);
    let targets = Operand::indices(&[r], (0..r).map(|i| (i * 7 % v) as u32).collect());
    let make = move |device: &Device| -> Result<Computation> {
        let values = Stream::new(3).named("head").normal_vec(v * d, 0.05);
        let w = Weight::new(device, v, d, &values, Format::F32)?;
        Ok(Box::new(move |x| Ok(vec![x[0].head_loss(&w, &x[1])?])))
    };
    // The gradient of the hidden states is made on the way.
    let costs = (4 * r * v * d, 4 * (2 * r * d + v * d));
    let inputs = vec![Operand::normal("h", &[r, d]), targets];
    vec![Timed::new(format!("{r}x{d} of {v}"), inputs, costs, make).sums(r.max(d).max(v))]
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
        assert!(h(&[4, 3]).head_loss(&w, &targets(4)).is_err());
        assert!(h(&[4, 2]).head_loss(&w, &targets(3)).is_err());
        assert!(h(&[4, 2]).head_loss(&w, &h(&[4])).is_err());
        let elsewhere = Weight::new(&Device::cpu(), 3, 2, &[1.0; 6], Format::F32).unwrap();
        assert!(h(&[4, 2]).head_loss(&elsewhere, &targets(4)).is_err());
    }

    #[test]
    fn a_target_outside_of_the_vocabulary_is_seen() {
        let mut devices = vec![Device::reference(), Device::cpu()];
        devices.extend(Device::gpu());
        devices.dedup_by(|a, b| a.same(b));
        for device in devices {
            let w = Weight::new(&device, 3, 2, &[1.0; 6], Format::F32).unwrap();
            let targets = Tensor::from_u32(&device, &[2], &[0, 3]).unwrap();
            let loss = Tensor::zeros(&device, &[2, 2]).unwrap().head_loss(&w, &targets).unwrap();
            assert!(loss.item().unwrap().is_nan(), "{device:?}");
        }
    }
}
