//! Causal grouped-query attention in the manner of FlashAttention-2 (Dao 2023, arXiv:2307.08691).
//!
//! The forward pass keeps one logsumexp per query; the backward pass recomputes the weights from it.

mod cpu;
mod gpu;

use crate::device::{Entry, Gpu, Host, PORTABLE, Shader, Variant, parts};
use crate::engine::{Case, Meta, Op, OpSpec, Operand, Timed, TimedSizes, operands, run};
use crate::tape::Node;
use crate::{DType, Error, Result, Tensor};
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "attention",
    formula: "o = softmax(scale q k^T + causal and key mask) v",
    shaders: &[&SHADER],
    cases,
    timed,
};

const fn variant(name: &'static str, consts: &'static [(&'static str, u32)], bytes: u32) -> Variant {
    Variant { name, consts, parts: &[parts::GRID], backends: PORTABLE, workgroup_bytes: bytes }
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
static SHADER: Shader = Shader {
    name: "attention",
    source: include_str!("../../../shaders/attention.wgsl"),
    entries: &[
        Entry { name: "forward", variants: &VARIANTS },
        Entry { name: "stats", variants: VARIANTS.split_at(1).0 },
        Entry { name: "backward_q", variants: &VARIANTS },
        Entry { name: "backward_kv", variants: &VARIANTS },
    ],
};
/// Longest row of a head: what the accumulators of an invocation hold.
const MAX_HEAD: usize = 256;

/// Shapes of one call: q `[B, S, H, D]`, k and v `[B, room, KV, D]`, of which T rows count.
#[derive(Debug, Clone, Copy)]
struct Dims {
    b: usize,
    s: usize,
    t: usize,
    room: usize,
    h: usize,
    kv: usize,
    d: usize,
    scale: f32,
}

impl Dims {
    /// Position of the first query.
    fn offset(&self) -> usize {
        self.t - self.s
    }

    /// `keys` of the rows of k and v count, or all.
    fn of([q, k, v]: [&Tensor; 3], valid: Option<&Tensor>, keys: Option<usize>, scale: f32) -> Result<Dims> {
        let refuse = |why: &str| {
            let shapes = format!("q {}, k {}, v {}", q.shape(), k.shape(), v.shape());
            Err(Error::shape("attention", format!("{shapes}: {why}")))
        };
        let ([b, s, h, d], [kb, room, kv, kd]) = (q.dims(), k.dims()) else {
            return refuse("q must be [B, S, H, D], k and v [B, T, KV, D]");
        };
        if k.shape() != v.shape() || b != kb || d != kd {
            return refuse("k and v must have one shape, and batch and head size of q");
        }
        if *kv == 0 || !h.is_multiple_of(*kv) || *h == 0 {
            return refuse("the number of query heads must be a multiple of the number of key heads");
        }
        let t = keys.unwrap_or(*room);
        if t > *room {
            return refuse(&format!("there are no {t} keys"));
        }
        if t < *s {
            return refuse("there are fewer keys than queries");
        }
        if *d == 0 || *d > MAX_HEAD {
            return refuse(&format!("the head size must be 1 to {MAX_HEAD}"));
        }
        if let Some(m) = valid.filter(|m| m.dims() != [*b, t]) {
            return refuse(&format!("the key mask {} must be [B, T]", m.shape()));
        }
        Ok(Dims { b: *b, s: *s, t, room: *room, h: *h, kv: *kv, d: *d, scale })
    }

    /// The same, of operands that were accepted before.
    fn accepted(qkv: [&Tensor; 3], valid: Option<&Tensor>, keys: Option<usize>, scale: f32) -> Dims {
        Dims::of(qkv, valid, keys, scale).expect("checked by infer")
    }

    /// Calls `f` with every visible pair of query and key: batch, query head, query, key.
    fn pairs(&self, valid: Option<&[u32]>, mut f: impl FnMut(usize, usize, usize, usize)) {
        for b in 0..self.b {
            for h in 0..self.h {
                for i in 0..self.s {
                    for j in (0..=self.offset() + i).filter(|j| valid.is_none_or(|m| m[b * self.t + j] != 0))
                    {
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
    /// Scale times the inner product of a query and a key.
    fn score(&self, q: &[f64], k: &[f64], b: usize, h: usize, i: usize, j: usize) -> f64 {
        let (q, k) = (&q[self.query(b, i, h)..], &k[self.key(b, j, h)..]);
        self.scale as f64 * (0..self.d).map(|c| q[c] * k[c]).sum::<f64>()
    }
}

/// `(q, k, v[, valid]) -> (o, lse)`
struct Forward {
    scale: f32,
    /// Keys that count; by default all.
    keys: Option<usize>,
}

/// `(q, k, v, o, lse, dy[, valid]) -> (dq, dk, dv)`
struct Backward {
    scale: f32,
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
        let dims = Dims::of([q, k, v], valid, self.keys, self.scale)?;
        Ok([Meta::like(q), Meta::f32(&[dims.b, dims.h, dims.s])?])
    }

    fn reference(&self, &In { q, k, v, valid }: &In<'_>, [o, lse]: [&mut Host; 2]) {
        let z = Dims::accepted([q, k, v], valid, self.keys, self.scale);
        let (q, k, v, valid) = (q.f64(), k.f64(), v.f64(), valid.map(|m| m.u32()));
        let (o, lse) = (o.f64_mut(), lse.f64_mut());
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
        let dims = Dims::accepted([q, k, v], valid, self.keys, self.scale);
        cpu::forward(&dims, host_inputs([q, k, v], valid), o.f32_mut(), lse.f32_mut());
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 2]) -> Result<()> {
        let qkv = [x.q, x.k, x.v];
        let dims = Dims::of(qkv, x.valid, self.keys, self.scale)?;
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
        let z = Dims::accepted([q, k, v], valid, None, self.scale);
        let (q, k, v, valid) = (q.f64(), k.f64(), v.f64(), valid.map(|m| m.u32()));
        let (o, lse, dy) = (o.f64(), lse.f64(), dy.f64());
        let (dq, dk, dv) = (dq.f64_mut(), dk.f64_mut(), dv.f64_mut());
        [&mut *dq, &mut *dk, &mut *dv].into_iter().for_each(|g| g.fill(0.0));
        z.pairs(valid, |b, h, i, j| {
            let (qi, kj) = (z.query(b, i, h), z.key(b, j, h));
            let p = (z.score(q, k, b, h, i, j) - lse[(b * z.h + h) * z.s + i]).exp();
            // dL/dp minus its mean under p, which is dy . o.
            let dp: f64 = (0..z.d).map(|c| dy[qi + c] * (v[kj + c] - o[qi + c])).sum();
            let ds = p * dp * z.scale as f64;
            for c in 0..z.d {
                dq[qi + c] += ds * k[kj + c];
                dk[kj + c] += ds * q[qi + c];
                dv[kj + c] += p * dy[qi + c];
            }
        });
    }

    fn cpu(&self, x: &BackwardIn<'_>, [dq, dk, dv]: [&mut Host; 3]) {
        let qkv = [x.q, x.k, x.v];
        let dims = Dims::accepted(qkv, x.valid, None, self.scale);
        let kept = cpu::Outputs { o: x.o.f32(), lse: x.lse.f32(), dy: x.dy.f32() };
        cpu::backward(&dims, host_inputs(qkv, x.valid), kept, dq.f32_mut(), dk.f32_mut(), dv.f32_mut());
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &BackwardIn<'_>, y: &[Tensor; 3]) -> Result<()> {
        let qkv = [x.q, x.k, x.v];
        let dims = Dims::of(qkv, x.valid, None, self.scale)?;
        let kept = [x.o.buffer(), x.lse.buffer(), x.dy.buffer()];
        let grads = [y[0].buffer(), y[1].buffer(), y[2].buffer()];
        gpu::backward(gpu, &dims, &device_inputs(qkv, x.valid), kept, grads)
    }
}

impl Tensor {
    /// Causal attention `o = softmax(scale q k^T) v`, `self` = q.
    ///
    /// q `[B, S, H, D]`, k and v `[B, T, KV, D]` with T >= S and H a multiple of KV: consecutive query heads
    /// share a key head (Ainslie et al. 2023, arXiv:2305.13245). Query i sits at position `T - S + i` and sees
    /// the keys up to there, so that k and v may begin with a cache. `valid` `[B, T]` holds 0 where a key is
    /// padding; a query that sees no key gives zeros. Result `[B, S, H, D]`.
    ///
    /// ```
    /// use mixlora::{Device, Tensor};
    /// let cpu = Device::cpu();
    /// let q = Tensor::full(&cpu, &[1, 2, 1, 1], 1.0)?;
    /// let v = Tensor::from_f32(&cpu, &[1, 2, 1, 1], &[1.0, 3.0])?;
    /// assert_eq!(q.attention(&q, &v, None, 1.0)?.to_f32()?, [1.0, 2.0]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The shapes do not fit, or D is above 256.
    pub fn attention(&self, k: &Tensor, v: &Tensor, valid: Option<&Tensor>, scale: f32) -> Result<Tensor> {
        let [o, lse] = run(&Forward { scale, keys: None }, In { q: self, k, v, valid })?;
        if !crate::tape::recording(&[self, k, v]) {
            return Ok(o);
        }
        let need = [self, k, v].map(|t| t.requires_grad());
        let kept = [self, k, v, &o].map(|t| t.detach());
        let valid = valid.map(|m| m.detach());
        Ok(Node::record("attention", &[self, k, v], o, move |dy| {
            let [q, k, v, o] = &kept;
            let inputs = BackwardIn { q, k, v, o, lse: &lse, dy: &dy, valid: valid.as_ref() };
            let grads = run(&Backward { scale }, inputs)?;
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
        scale: f32,
    ) -> Result<Tensor> {
        let [o, _] = run(&Forward { scale, keys: Some(keys) }, In { q: self, k, v, valid })?;
        Ok(o)
    }
}

fn case([b, s, t, h, kv, d]: [usize; 6], padding: Option<fn(usize, usize) -> u32>) -> Case {
    let keys = [b, t, kv, d];
    let mut inputs =
        vec![Operand::normal("q", &[b, s, h, d]), Operand::normal("k", &keys), Operand::normal("v", &keys)];
    if let Some(f) = padding {
        let mask = (0..b * t).map(|i| f(i / t, i % t)).collect();
        inputs.push(Operand::indices(&[b, t], mask));
    }
    let scale = 1.0 / (d as f32).sqrt();
    let masked = if padding.is_some() { " masked" } else { "" };
    let pairs = b * h * s * (t - s) + b * h * s * (s + 1) / 2;
    Case::new(format!("B{b} S{s} T{t} H{h}/{kv} D{d}{masked}"), inputs, move |x| {
        Ok(vec![x[0].attention(&x[1], &x[2], x.get(3), scale)?])
    })
    .sums(d.max(t * h / kv))
    .cost(4 * pairs * d, 4 * (2 * b * s * h * d + 2 * b * t * kv * d))
    // With one visible key the weight is 1 whatever the score: gradients of q and k are zero on paper.
    .floor(if t == 1 { 1.0 } else { 1e-30 })
}

/// Over the first rows of a cache; the others hold NaN.
fn cached([b, s, t, room, h, kv, d]: [usize; 7]) -> Case {
    let keys = [b, t, kv, d];
    let inputs = [("q", [b, s, h, d]), ("k", keys), ("v", keys)];
    let inputs = inputs.iter().map(|(name, dims)| Operand::normal(name, dims).frozen()).collect();
    let mask: Vec<u32> = (0..b * t).map(|i| u32::from(i % 7 != 3)).collect();
    Case::new(format!("B{b} S{s} T{t} of {room} H{h}/{kv} D{d}"), inputs, move |x| {
        let device = x[0].device();
        let mut cache = [1, 2].map(|_| Tensor::full(device, &[b, room, kv, d], f32::NAN));
        for (cache, x) in cache.iter_mut().zip(&x[1..]) {
            if let Ok(cache) = cache {
                cache.write_rows(0, x)?;
            }
        }
        let ([k, v], valid) = (cache, Tensor::from_u32(device, &[b, t], &mask)?);
        Ok(vec![x[0].cached_attention(&k?, &v?, t, Some(&valid), 0.3)?])
    })
    .sums(t * d)
    // Making the caches counts: they are filled, written, and bound as a whole.
    .cost(4 * b * h * s * t * d, 8 * b * (s * h * d + kv * d * (3 * room + t)))
}

fn cases() -> Vec<Case> {
    // Padding on the left of every second sequence, so that its first queries see nothing; holes; nothing visible.
    let left: fn(usize, usize) -> u32 = |b, j| u32::from(b % 2 == 0 || j >= 3);
    let holes: fn(usize, usize) -> u32 = |b, j| ((b + j) % 3) as u32;
    let none: fn(usize, usize) -> u32 = |b, _| b as u32;
    let mut all = vec![
        case([0, 3, 3, 2, 1, 4], None),
        case([2, 0, 0, 2, 1, 4], None),
        case([1, 0, 5, 2, 1, 4], Some(left)),
        case([1, 1, 1, 1, 1, 1], None),
        case([2, 5, 5, 2, 2, 3], Some(left)),
        case([2, 4, 9, 4, 2, 8], Some(holes)),
        case([2, 3, 3, 2, 1, 4], Some(none)),
        case([1, 1, 200, 3, 1, 16], None),
        case([2, 67, 67, 6, 2, 64], Some(left)),
        case([1, 130, 163, 2, 1, 72], None),
        case([1, 40, 40, 2, 1, 256], Some(holes)),
        case([1, 33, 300, 1, 1, 130], None),
        case([2, 200, 231, 2, 1, 8], Some(holes)),
        case([1, 400, 400, 1, 1, 4], None),
    ];
    // More workgroups than a grid has in one dimension. Forward only: lavapipe takes 10 s for the rest.
    let mut many = case([33_000, 1, 2, 2, 1, 1], None);
    many.inputs = many.inputs.into_iter().map(Operand::frozen).collect();
    all.push(many);
    all.extend([cached([2, 1, 5, 9, 4, 2, 8]), cached([2, 3, 40, 64, 2, 1, 16])]);
    all
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [h, kv, d] = [9, 3, 64];
    let case = |s: usize| {
        let key = |name| Operand::normal(name, &[1, s, kv, d]);
        let pairs = h * s * (s + 1) / 2;
        let bytes = 8 * s * d * (h + kv);
        let inputs = vec![Operand::normal("q", &[1, s, h, d]), key("k"), key("v")];
        // Two products forward; backward five, with the scores computed again.
        Timed::plain(format!("1x{s}x{h}/{kv}x{d}"), inputs, (4 * pairs * d, bytes), |x| {
            x[0].attention(&x[1], &x[2], None, 0.125)
        })
        .sums(s * h / kv)
        .backward(10 * pairs * d, 2 * bytes)
    };
    sizes.pick([67, 450], [512, 2048]).map(case).into()
}

#[cfg(test)]
mod tests {
    use crate::{Device, Tensor};

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let t = |dims: &[usize]| Tensor::zeros(&Device::cpu(), dims).unwrap();
        let q = t(&[1, 2, 4, 8]);
        for bad in [[2, 2, 4, 8], [1, 1, 4, 8], [1, 2, 3, 8], [1, 2, 0, 8], [1, 2, 4, 7]] {
            assert!(q.attention(&t(&bad), &t(&bad), None, 1.0).is_err(), "{bad:?}");
        }
        assert!(q.attention(&q, &t(&[1, 2, 2, 8]), None, 1.0).is_err());
        assert!(q.attention(&q, &q, Some(&t(&[1, 2])), 1.0).is_err(), "a mask of values");
        let mask = Tensor::from_u32(&Device::cpu(), &[1, 3], &[1; 3]).unwrap();
        assert!(q.attention(&q, &q, Some(&mask), 1.0).is_err());
        let wide = t(&[1, 1, 1, 257]);
        assert!(wide.attention(&wide, &wide, None, 1.0).is_err());
    }
}
