//! A decoder block as its description has it: norms, attention, MLP, and what is added to the state.

use super::experts::{Experts, KeptExperts};
use super::sites::{at, number};
use super::{KvCache, ModelConfig, QkNorm};
use crate::model::LayerConfig;
use crate::nn::{Activation, Aux, BlockAdapter, JointLoss, LinearGroup, Mlp, Part, Pass, SiteAdapter};
use crate::ops::attention::AttentionOptions;
use crate::ops::rope::Rope;
use crate::{Error, Result, Tensor, checkpoint_many};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// A frozen norm.
#[derive(Clone)]
pub(super) struct NormLayer {
    /// As it multiplies: with the 1 that some families add.
    pub weight: Tensor,
    /// Of layer norms; zeros where the model has none.
    pub bias: Option<Tensor>,
}

impl NormLayer {
    pub fn forward(&self, x: &Tensor, config: &ModelConfig) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => x.layer_norm(&self.weight, bias, config.norm.eps),
            None => x.rms_norm(&self.weight, config.norm.eps),
        }
    }
}

/// The norms of a block, in the order of [`BlockNorms`](super::BlockNorms).
#[derive(Clone)]
pub(super) struct LayerNorms {
    pub before_attention: Option<NormLayer>,
    pub after_attention: Option<NormLayer>,
    pub before_mlp: Option<NormLayer>,
    pub after_mlp: Option<NormLayer>,
}

/// The MLP of a block.
#[derive(Clone)]
pub(super) enum FeedForward {
    Gated(Mlp),
    /// Gate and up in one linear, or a first linear without a gate.
    Single {
        first: LinearGroup,
        down: LinearGroup,
        activation: Activation,
        gated: bool,
    },
    Experts(Box<Experts>),
}

impl FeedForward {
    fn forward(&self, x: &Tensor, pass: &Pass, kept: Option<&KeptExperts>) -> Result<Tensor> {
        match self {
            FeedForward::Gated(mlp) => mlp.forward(x, pass),
            FeedForward::Experts(experts) => experts.forward(x, pass, kept),
            FeedForward::Single { first, down, activation, gated } => {
                let h = first.forward(x, pass)?.swap_remove(0);
                let h = if *gated {
                    let f = h.shape().last() / 2;
                    let halves = columns(&h, &[f, f])?;
                    activation.combine(&halves[0], &halves[1])?
                } else {
                    activation.apply(&h)?
                };
                Ok(down.forward(&h, pass)?.swap_remove(0))
            }
        }
    }

    /// The linears of its sites.
    pub fn groups(&self) -> Vec<&LinearGroup> {
        match self {
            FeedForward::Gated(mlp) => vec![&mlp.gate_up, &mlp.down],
            FeedForward::Single { first, down, .. } => vec![first, down],
            FeedForward::Experts(_) => Vec::new(),
        }
    }

    /// Bytes of weights that are at no site.
    pub fn expert_bytes(&self) -> u64 {
        match self {
            FeedForward::Experts(experts) => experts.bytes(),
            _ => 0,
        }
    }
}

/// One decoder block, frozen.
#[derive(Clone)]
pub(super) struct Layer {
    pub config: LayerConfig,
    pub norms: LayerNorms,
    /// q, k and v, or all in one.
    pub qkv: LinearGroup,
    pub o: LinearGroup,
    /// Norms of q and of k.
    pub qk_norms: Option<[Tensor; 2]>,
    pub mlp: FeedForward,
}

impl Layer {
    /// The linears of its sites, in their order.
    pub fn groups(&self) -> Vec<&LinearGroup> {
        let mut all = vec![&self.qkv, &self.o];
        all.extend(self.mlp.groups());
        all
    }
}

/// What all blocks of one pass share.
pub(super) struct Run {
    pub config: Arc<ModelConfig>,
    pub ropes: Vec<Rope>,
    pub positions: Tensor,
    /// Which key positions are real.
    pub valid: Option<Tensor>,
}

/// A decoder block with all that one pass through it needs, so that it can be run again later.
pub(super) struct Block {
    pub index: usize,
    pub layer: Arc<Layer>,
    pub run: Arc<Run>,
    /// Where the experts that its tokens choose are kept, if anybody asks.
    pub experts: Option<Arc<KeptExperts>>,
}

/// The block with adapters around it, each around those before it.
fn around(
    adapters: &[Part<'_, &dyn BlockAdapter>],
    x: &Tensor,
    block: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let Some((outer, inner)) = adapters.split_last() else { return block(x) };
    let mut last = None;
    let mut within = |x: &Tensor| {
        let y = around(inner, x, block)?;
        last = Some(y.clone());
        Ok(y)
    };
    let y = outer.adapter.forward(x, &mut within, &outer.pass)?;
    match last {
        Some(last) if outer.scale != 1.0 => last.add(&y.add_scaled(&last, -1.0)?.scale(outer.scale)?),
        _ => Ok(y),
    }
}

fn too_few() -> Error {
    Error::shape("model", "an output of an adapter for each linear", "fewer")
}

/// Whether each auxiliary loss of a block is a share in a joint one, and its number of tensors.
type Kinds = Vec<(Option<JointLoss>, usize)>;

impl Block {
    /// The number of a site of this layer.
    fn site(&self, which: usize) -> Option<usize> {
        Some(number(self.index, which))
    }

    pub fn forward(&self, x: &Tensor, mut cache: Option<&mut KvCache>, pass: &Pass) -> Result<Tensor> {
        let adapters = pass.parts(self.site(at::BLOCK), SiteAdapter::block);
        around(&adapters, x, &mut |x| self.frozen(x, cache.as_deref_mut(), pass))
    }

    /// The block itself, with the adapters inside it.
    fn frozen(&self, x: &Tensor, cache: Option<&mut KvCache>, pass: &Pass) -> Result<Tensor> {
        let c = &*self.run.config;
        let layer = &*self.layer;
        let norm = |x: Tensor, norm: &Option<NormLayer>| match norm {
            Some(norm) => norm.forward(&x, c),
            None => Ok(x),
        };
        let add = |x: &Tensor, y: &Tensor| match c.residual_scale {
            1.0 => x.add(y),
            scale => x.add_scaled(y, scale),
        };
        let h = norm(x.clone(), &layer.norms.before_attention)?;
        let a = self.attention(&h, cache, pass)?;
        let a = norm(layer.o.forward(&a, pass)?.swap_remove(0), &layer.norms.after_attention)?;
        let x = add(x, &a)?;
        let h = if c.parallel { h } else { norm(x.clone(), &layer.norms.before_mlp)? };
        let experts = self.experts.as_deref();
        let beside = pass.parts(self.site(at::MLP), SiteAdapter::block);
        let y = around(&beside, &h, &mut |h| layer.mlp.forward(h, pass, experts))?;
        add(&x, &norm(y, &layer.norms.after_mlp)?)
    }

    /// What the heads give, side by side, before the last projection.
    fn attention(&self, h: &Tensor, cache: Option<&mut KvCache>, pass: &Pass) -> Result<Tensor> {
        let c = &*self.run.config;
        let layer = &*self.layer;
        let b = h.dims()[0];
        let s = h.dims()[1];
        let [q_heads, kv_heads] = [c.num_attention_heads, c.num_key_value_heads];
        let mut qkv = layer.qkv.forward(h, pass)?;
        if c.fused_qkv {
            let widths = [q_heads, kv_heads, kv_heads].map(|n| n * c.head_dim);
            qkv = columns(qkv.first().ok_or_else(too_few)?, &widths)?;
        }
        let Ok([q, k, v]) = <[Tensor; 3]>::try_from(qkv) else { return Err(too_few()) };
        let heads = |t: Tensor, n: usize, norm: Option<&Tensor>| -> Result<Tensor> {
            let dims = [b, s, n, c.head_dim];
            match (c.qk_norm, norm) {
                (Some(QkNorm::Head), Some(w)) => t.reshape(&dims)?.rms_norm(w, c.norm.eps),
                (Some(QkNorm::Whole), Some(w)) => t.rms_norm(w, c.norm.eps)?.reshape(&dims),
                _ => t.reshape(&dims),
            }
        };
        let norms = layer.qk_norms.as_ref();
        let mut q = heads(q, q_heads, norms.map(|n| &n[0]))?;
        let mut k = heads(k, kv_heads, norms.map(|n| &n[1]))?;
        let v = heads(v, kv_heads, None)?;
        if let Some(rope) = layer.config.rope.and_then(|i| self.run.ropes.get(i)) {
            q = q.rope(rope, &self.run.positions)?;
            k = k.rope(rope, &self.run.positions)?;
        }
        let valid = self.run.valid.as_ref();
        let options = AttentionOptions {
            scale: Some(c.attention_scale),
            window: layer.config.window,
            softcap: c.attention_softcap,
            causal: c.causal,
        };
        let a = match cache {
            None => q.attention(&k, &v, valid, &options)?,
            Some(cache) => {
                let (k, v) = cache.append(self.index, &k, &v)?;
                q.cached_attention(&k, &v, cache.len() + s, valid, &options)?
            }
        };
        a.reshape(&[b, s, q_heads * c.head_dim])
    }

    /// The same as [`forward`](Block::forward), keeping nothing but its input: routers are replayed when it runs again.
    pub fn recomputed(self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let (first, again) = pass.twice();
        let ran = AtomicBool::new(false);
        let inputs: Vec<&Tensor> = std::iter::once(x).chain(pass.decisions()).collect();
        let kinds: Arc<Mutex<Kinds>> = Arc::default();
        let within = kinds.clone();
        let run = move |x: &[Tensor]| {
            // Decisions are inputs of the block: their gradient is that of all blocks together.
            let pass = if ran.swap(true, Relaxed) { &again } else { &first }.with_decisions(&x[1..]);
            let mut out = vec![self.forward(&x[0], None, &pass)?];
            let added = pass.take_shares();
            // What was added is the same when the block runs again: only its tensors are outputs.
            out.extend(added.iter().flat_map(|aux| aux.values.clone()));
            let kinds = added.iter().map(|aux| (aux.joint, aux.values.len())).collect();
            *within.lock().unwrap_or_else(PoisonError::into_inner) = kinds;
            Ok(out)
        };
        let mut out = checkpoint_many(&inputs, run)?.into_iter();
        let y = out.next().ok_or_else(|| Error::shape("model", "an output of a block", "none"));
        for &(joint, count) in kinds.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            pass.put_aux(Aux { values: out.by_ref().take(count).collect(), joint });
        }
        y
    }
}

/// Splits the columns of `x` `[.., sum of widths]`.
fn columns(x: &Tensor, widths: &[usize]) -> Result<Vec<Tensor>> {
    let outer = &x.dims()[..x.dims().len() - 1];
    let total = x.shape().last();
    let rows: usize = outer.iter().product();
    // Pieces as long as all widths allow are the rows of a table.
    let piece = widths.iter().fold(0, |a, &b| gcd(a, b)).max(1);
    let table = x.reshape(&[rows * total / piece, piece])?;
    let mut first = 0;
    let part = |&width: &usize| {
        let pieces = first / piece..(first + width) / piece;
        first += width;
        let at: Vec<u32> = (0..rows)
            .flat_map(|row| pieces.clone().map(move |p| (row * (total / piece) + p) as u32))
            .collect();
        let index = Tensor::from_u32(x.device(), &[at.len()], &at)?;
        table.gather_rows(&index)?.reshape(&[outer, &[width]].concat())
    };
    widths.iter().map(part).collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
