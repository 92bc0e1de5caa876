//! Grouped-query attention in the manner of FlashAttention-2 (Dao 2023, arXiv:2307.08691).
//!
//! The forward pass keeps one logsumexp per query; the backward pass recomputes the weights from it. Keys that no query
//! of a block can see are never read.

mod cases;
mod cpu;
mod gpu;
mod options;

pub use options::AttentionOptions;

use crate::device::{Entry, Gpu, Host, PORTABLE, Shader, Variant, params, parts};
use crate::engine::{Meta, Op, OpSpec, operands, run};
use crate::tape::Node;
use crate::{DType, Error, Result, Tensor};
use std::ops::Range;
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "attention",
    formula: "o = softmax(cap(scale q k^T) + mask) v",
    shaders: &[&SHADER, &SLICES],
    cases: cases::cases,
    timed: cases::timed,
};

const fn variant(name: &'static str, consts: &'static [(&'static str, u32)], bytes: u32) -> Variant {
    Variant {
        name,
        consts,
        parts: &[parts::GRID, parts::SOFTCAP],
        backends: PORTABLE,
        workgroup_bytes: bytes,
    }
}
/// By the length of a head's rows. Some back ends count every workgroup variable of the file.
const fn widths(bytes: u32) -> [Variant; 3] {
    [
        variant("d64", &[("NJ", 1)], bytes),
        variant("d128", &[("NJ", 2)], bytes),
        variant("d256", &[("NJ", 4)], bytes),
    ]
}
static VARIANTS: [Variant; 3] = widths(4 * (4 * 288 + 2 * 1056 + 128 + 32));

params! {
    struct Params {
        b: u32, s: u32, t: u32, room: u32, h: u32, kv: u32, d: u32, behind: u32, ahead: u32, masked: u32,
        scale: f32, cap: f32,
    }
}

static SHADER: Shader = Shader {
    name: "attention",
    source: include_str!("../../../shaders/attention.wgsl"),
    params: Params::FIELDS,
    entries: &[
        Entry { name: "forward", variants: &VARIANTS },
        Entry { name: "stats", variants: VARIANTS.split_at(1).0 },
        Entry { name: "backward_q", variants: &VARIANTS },
        Entry { name: "backward_kv", variants: &VARIANTS },
    ],
};
static SLICES: Shader = Shader {
    name: "attention_slices",
    params: Params::FIELDS,
    source: include_str!("../../../shaders/attention_slices.wgsl"),
    entries: &[
        Entry { name: "slices", variants: &SLICES_VARIANT },
        Entry { name: "merge", variants: &SLICES_VARIANT },
    ],
};
static SLICES_VARIANT: [Variant; 1] = [variant("default", &[], 4 * (256 + 512 + 64))];
/// Longest row of a head: what the accumulators of an invocation hold.
const MAX_HEAD: usize = 256;

/// Shapes of one call: q `[B, S, H, D]`, k and v `[B, room, KV, D]`, of which T rows count. The query at position `p` sees
/// positions `p - behind ..= p + ahead`.
#[derive(Debug, Clone, Copy)]
struct Dims {
    b: usize,
    s: usize,
    t: usize,
    room: usize,
    h: usize,
    kv: usize,
    d: usize,
    behind: usize,
    ahead: usize,
    scale: f32,
    softcap: Option<f32>,
}

impl Dims {
    /// Position of the first query.
    fn offset(&self) -> usize {
        self.t - self.s
    }

    /// The keys that query `i` sees, the key mask aside.
    fn seen(&self, i: usize) -> Range<usize> {
        let position = self.offset() + i;
        position.saturating_sub(self.behind)..self.t.min(position + self.ahead + 1)
    }

    /// `keys` of the rows of k and v count, or all.
    fn of(
        [q, k, v]: [&Tensor; 3],
        valid: Option<&Tensor>,
        keys: Option<usize>,
        options: &AttentionOptions,
    ) -> Result<Dims> {
        let refuse = |why: &str| {
            let shapes = format!("q {}, k {}, v {}", q.shape(), k.shape(), v.shape());
            Err(Error::shape("attention", why, shapes))
        };
        options.check()?;
        let ([b, s, h, d], [kb, room, kv, kd]) = (q.dims(), k.dims()) else {
            return refuse("q [B, S, H, D], k and v [B, T, KV, D]");
        };
        if k.shape() != v.shape() || b != kb || d != kd {
            return refuse("k and v of one shape, with the batch and the head size of q");
        }
        if *kv == 0 || !h.is_multiple_of(*kv) || *h == 0 {
            return refuse("a number of query heads that is a multiple of the number of key heads");
        }
        let t = keys.unwrap_or(*room);
        if t > *room {
            return refuse(&format!("at least {t} keys"));
        }
        if t < *s {
            return refuse("at least as many keys as queries");
        }
        if *d == 0 || *d > MAX_HEAD {
            return refuse(&format!("a head size of 1 to {MAX_HEAD}"));
        }
        if let Some(m) = valid.filter(|m| m.dims() != [*b, t]) {
            return refuse(&format!("a key mask [B, T], not {}", m.shape()));
        }
        let reach = options.window.map_or(t, |window| (window - 1).min(t));
        Ok(Dims {
            b: *b,
            s: *s,
            t,
            room: *room,
            h: *h,
            kv: *kv,
            d: *d,
            behind: reach,
            ahead: if options.causal { 0 } else { reach },
            scale: options.scale.unwrap_or((*d as f32).powf(-0.5)),
            softcap: options.softcap,
        })
    }

    /// The same, of operands that were accepted before.
    fn accepted(
        qkv: [&Tensor; 3],
        valid: Option<&Tensor>,
        keys: Option<usize>,
        options: &AttentionOptions,
    ) -> Dims {
        Dims::of(qkv, valid, keys, options).expect("checked by infer")
    }

    /// Calls `f` with every visible pair of query and key: batch, query head, query, key.
    fn pairs(&self, valid: Option<&[u32]>, mut f: impl FnMut(usize, usize, usize, usize)) {
        for b in 0..self.b {
            for h in 0..self.h {
                for i in 0..self.s {
                    for j in self.seen(i).filter(|j| valid.is_none_or(|m| m[b * self.t + j] != 0)) {
                        f(b, h, i, j);
                    }
                }
            }
        }
    }
    /// First element of a query's row.
    fn query(&self, b: usize, i: usize, h: usize) -> usize {
        ((b * self.s + i) * self.h + h) * self.d
    }
    /// First element of a key's row, for a query head.
    fn key(&self, b: usize, j: usize, h: usize) -> usize {
        ((b * self.room + j) * self.kv + h / (self.h / self.kv)) * self.d
    }
    /// Scale times the inner product of a query and a key, capped.
    fn score(&self, q: &[f64], k: &[f64], b: usize, h: usize, i: usize, j: usize) -> f64 {
        let q = &q[self.query(b, i, h)..];
        let k = &k[self.key(b, j, h)..];
        let score = self.scale as f64 * (0..self.d).map(|c| q[c] * k[c]).sum::<f64>();
        self.softcap.map_or(score, |cap| cap as f64 * (score / cap as f64).tanh())
    }
    /// Derivative of a score with respect to the inner product.
    fn slope(&self, score: f64) -> f64 {
        self.scale as f64 * self.softcap.map_or(1.0, |cap| 1.0 - (score / cap as f64).powi(2))
    }
}

/// `(q, k, v[, valid]) -> (o, lse)`
struct Forward {
    options: AttentionOptions,
    /// Keys that count; by default all.
    keys: Option<usize>,
}

/// `(q, k, v, o, lse, dy[, valid]) -> (dq, dk, dv)`
struct Backward {
    options: AttentionOptions,
}

operands! {
    struct In { q, k, v; valid }
}

impl Op<2> for Forward {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        "attention"
    }

    fn infer(&self, &In { q, k, v, valid }: &In<'_>) -> Result<[Meta; 2]> {
        [q, k, v].iter().try_for_each(|t| t.require(self.name(), DType::F32))?;
        valid.map_or(Ok(()), |t| t.require(self.name(), DType::U32))?;
        let dims = Dims::of([q, k, v], valid, self.keys, &self.options)?;
        Ok([Meta::like(q), Meta::f32(&[dims.b, dims.h, dims.s])?])
    }

    fn reference(&self, &In { q, k, v, valid }: &In<'_>, [o, lse]: [&mut Host; 2]) {
        let z = Dims::accepted([q, k, v], valid, self.keys, &self.options);
        let q = q.f64();
        let k = k.f64();
        let v = v.f64();
        let valid = valid.map(|m| m.u32());
        let o = o.f64_mut();
        let lse = lse.f64_mut();
        let mut top = vec![f64::NEG_INFINITY; lse.len()];
        let mut total = vec![0.0; lse.len()];
        let row = |b: usize, h: usize, i: usize| (b * z.h + h) * z.s + i;
        z.pairs(valid, |b, h, i, j| top[row(b, h, i)] = top[row(b, h, i)].max(z.score(q, k, b, h, i, j)));
        z.pairs(valid, |b, h, i, j| {
            total[row(b, h, i)] += (z.score(q, k, b, h, i, j) - top[row(b, h, i)]).exp()
        });
        for r in 0..lse.len() {
            lse[r] = if total[r] == 0.0 { 0.0 } else { top[r] + total[r].ln() };
        }
        o.fill(0.0);
        z.pairs(valid, |b, h, i, j| {
            let p = (z.score(q, k, b, h, i, j) - lse[row(b, h, i)]).exp();
            for c in 0..z.d {
                o[z.query(b, i, h) + c] += p * v[z.key(b, j, h) + c];
            }
        });
    }

    fn cpu(&self, &In { q, k, v, valid }: &In<'_>, [o, lse]: [&mut Host; 2]) {
        let dims = Dims::accepted([q, k, v], valid, self.keys, &self.options);
        cpu::forward(&dims, host_inputs([q, k, v], valid), o.f32_mut(), lse.f32_mut());
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 2]) -> Result<()> {
        let qkv = [x.q, x.k, x.v];
        let dims = Dims::of(qkv, x.valid, self.keys, &self.options)?;
        gpu::forward(gpu, &dims, &device_inputs(qkv, x.valid), y[0].buffer(), y[1].buffer())
    }
}

fn host_inputs<'a>([q, k, v]: [&'a Tensor; 3], valid: Option<&'a Tensor>) -> cpu::Inputs<'a> {
    cpu::Inputs { q: q.f32(), k: k.f32(), v: v.f32(), valid: valid.map(|m| m.u32()) }
}

fn device_inputs<'a>(qkv: [&'a Tensor; 3], valid: Option<&'a Tensor>) -> gpu::Inputs<'a> {
    gpu::Inputs { qkv: qkv.map(|t| t.buffer()), valid: valid.map(|m| m.buffer()) }
}

operands! {
    struct BackwardIn { q, k, v, o, lse, dy; valid }
}

impl Op<3> for Backward {
    type In<'a> = BackwardIn<'a>;

    fn name(&self) -> &'static str {
        "attention"
    }

    fn infer(&self, x: &BackwardIn<'_>) -> Result<[Meta; 3]> {
        Ok([x.q, x.k, x.v].map(Meta::like))
    }

    fn reference(
        &self,
        &BackwardIn { q, k, v, o, lse, dy, valid }: &BackwardIn<'_>,
        [dq, dk, dv]: [&mut Host; 3],
    ) {
        let z = Dims::accepted([q, k, v], valid, None, &self.options);
        let q = q.f64();
        let k = k.f64();
        let v = v.f64();
        let valid = valid.map(|m| m.u32());
        let o = o.f64();
        let lse = lse.f64();
        let dy = dy.f64();
        let dq = dq.f64_mut();
        let dk = dk.f64_mut();
        let dv = dv.f64_mut();
        [&mut *dq, &mut *dk, &mut *dv].into_iter().for_each(|g| g.fill(0.0));
        z.pairs(valid, |b, h, i, j| {
            let qi = z.query(b, i, h);
            let kj = z.key(b, j, h);
            let score = z.score(q, k, b, h, i, j);
            let p = (score - lse[(b * z.h + h) * z.s + i]).exp();
            // dL/dp minus its mean under p, which is dy . o.
            let dp: f64 = (0..z.d).map(|c| dy[qi + c] * (v[kj + c] - o[qi + c])).sum();
            let ds = p * dp * z.slope(score);
            for c in 0..z.d {
                dq[qi + c] += ds * k[kj + c];
                dk[kj + c] += ds * q[qi + c];
                dv[kj + c] += p * dy[qi + c];
            }
        });
    }

    fn cpu(&self, x: &BackwardIn<'_>, [dq, dk, dv]: [&mut Host; 3]) {
        let qkv = [x.q, x.k, x.v];
        let dims = Dims::accepted(qkv, x.valid, None, &self.options);
        let kept = cpu::Outputs { o: x.o.f32(), lse: x.lse.f32(), dy: x.dy.f32() };
        cpu::backward(&dims, host_inputs(qkv, x.valid), kept, dq.f32_mut(), dk.f32_mut(), dv.f32_mut());
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &BackwardIn<'_>, y: &[Tensor; 3]) -> Result<()> {
        let qkv = [x.q, x.k, x.v];
        let dims = Dims::of(qkv, x.valid, None, &self.options)?;
        let kept = [x.o.buffer(), x.lse.buffer(), x.dy.buffer()];
        let grads = [y[0].buffer(), y[1].buffer(), y[2].buffer()];
        gpu::backward(gpu, &dims, &device_inputs(qkv, x.valid), kept, grads)
    }
}

impl Tensor {
    /// Attention `o = softmax(cap(scale q k^T) + mask) v`, `self` = q.
    ///
    /// q `[B, S, H, D]`, k and v `[B, T, KV, D]` with T >= S and H a multiple of KV: consecutive query heads
    /// share a key head (Ainslie et al. 2023, arXiv:2305.13245). Query i sits at position `T - S + i`, so that k and v
    /// may begin with a cache; what it sees from there, and how scores are scaled and capped, `options` say. By default
    /// attention is causal: the keys up to its own position. `valid` `[B, T]` holds 0 where a key is padding; a query
    /// that sees no key gives zeros. Result `[B, S, H, D]`.
    ///
    /// ```
    /// use mixlora::{Device, Tensor, ops::attention::AttentionOptions};
    /// let cpu = Device::cpu();
    /// let q = Tensor::full(&cpu, &[1, 2, 1, 1], 1.0)?;
    /// let v = Tensor::from_f32(&cpu, &[1, 2, 1, 1], &[1.0, 3.0])?;
    /// let causal = AttentionOptions::default();
    /// assert_eq!(q.attention(&q, &v, None, &causal)?.to_f32()?, [1.0, 2.0]);
    /// let window = AttentionOptions { window: Some(1), ..causal };
    /// assert_eq!(q.attention(&q, &v, None, &window)?.to_f32()?, [1.0, 3.0]);
    /// let both = AttentionOptions { causal: false, ..causal };
    /// assert_eq!(q.attention(&q, &v, None, &both)?.to_f32()?, [2.0, 2.0]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The shapes do not fit, D is above 256, the window is 0, the cap is not positive, or the scale is not finite.
    pub fn attention(
        &self,
        k: &Tensor,
        v: &Tensor,
        valid: Option<&Tensor>,
        options: &AttentionOptions,
    ) -> Result<Tensor> {
        let options = *options;
        let [o, lse] = run(&Forward { options, keys: None }, In { q: self, k, v, valid })?;
        if !crate::tape::recording(&[self, k, v]) {
            return Ok(o);
        }
        let need = [self, k, v].map(|t| t.requires_grad());
        let kept = [self, k, v, &o].map(|t| t.detach());
        let valid = valid.map(|m| m.detach());
        Ok(Node::record("attention", &[self, k, v], o, move |dy| {
            let [q, k, v, o] = &kept;
            let inputs = BackwardIn { q, k, v, o, lse: &lse, dy: &dy, valid: valid.as_ref() };
            let grads = run(&Backward { options }, inputs)?;
            Ok(grads.into_iter().zip(need).map(|(g, need)| need.then_some(g)).collect())
        }))
    }

    /// [`attention`](Tensor::attention) over the first `keys` rows of a cache: k and v `[B, room, KV, D]` hold more, which
    /// are not read; `valid` is `[B, keys]`. Not recorded.
    ///
    /// # Errors
    /// As for attention, or the cache has fewer rows.
    pub fn cached_attention(
        &self,
        k: &Tensor,
        v: &Tensor,
        keys: usize,
        valid: Option<&Tensor>,
        options: &AttentionOptions,
    ) -> Result<Tensor> {
        let forward = Forward { options: *options, keys: Some(keys) };
        let [o, _] = run(&forward, In { q: self, k, v, valid })?;
        Ok(o)
    }
}

#[cfg(test)]
mod tests {
    use super::AttentionOptions;
    use crate::{Device, Tensor};

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let t = |dims: &[usize]| Tensor::zeros(&Device::cpu(), dims).unwrap();
        let options = AttentionOptions::default();
        let q = t(&[1, 2, 4, 8]);
        for bad in [[2, 2, 4, 8], [1, 1, 4, 8], [1, 2, 3, 8], [1, 2, 0, 8], [1, 2, 4, 7]] {
            assert!(q.attention(&t(&bad), &t(&bad), None, &options).is_err(), "{bad:?}");
        }
        assert!(q.attention(&q, &t(&[1, 2, 2, 8]), None, &options).is_err());
        assert!(q.attention(&q, &q, Some(&t(&[1, 2])), &options).is_err(), "a mask of values");
        let mask = Tensor::from_u32(&Device::cpu(), &[1, 3], &[1; 3]).unwrap();
        assert!(q.attention(&q, &q, Some(&mask), &options).is_err());
        let wide = t(&[1, 1, 1, 257]);
        assert!(wide.attention(&wide, &wide, None, &options).is_err());
    }

    #[test]
    fn options_that_cannot_be_are_refused_by_name() {
        let q = Tensor::zeros(&Device::cpu(), &[1, 2, 4, 8]).unwrap();
        let plain = AttentionOptions::default();
        for (bad, what) in [
            (AttentionOptions { window: Some(0), ..plain }, "attention window: is 0"),
            (AttentionOptions { softcap: Some(0.0), ..plain }, "attention softcap: is 0"),
            (AttentionOptions { softcap: Some(f32::NAN), ..plain }, "attention softcap: is NaN"),
            (AttentionOptions { scale: Some(f32::INFINITY), ..plain }, "attention scale: is inf"),
        ] {
            let error = q.attention(&q, &q, None, &bad).unwrap_err().to_string();
            assert!(error.starts_with(what), "{error}");
        }
    }
}
