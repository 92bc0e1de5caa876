//! The decoder: pre-norm blocks of causal grouped-query attention and a gated MLP.

use super::positions::Positions;
use super::{Fingerprint, KvCache, ModelConfig, Site};
use crate::nn::{LinearGroup, Mlp, Pass, SiteAdapter};
use crate::ops::rope::Rope;
use crate::{Device, Error, Linear, Result, Tensor, Weight, checkpoint_many};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The number of the site before the first layer.
const START: usize = 0;

/// One decoder block. Norm weights are frozen tensors `[hidden_size]`.
#[derive(Clone)]
pub struct Layer {
    /// The number of its block's site.
    pub(super) site: usize,
    pub(super) input_norm: Tensor,
    /// q_proj, k_proj, v_proj.
    pub(super) qkv: LinearGroup,
    /// o_proj.
    pub(super) o: LinearGroup,
    pub(super) post_norm: Tensor,
    pub(super) mlp: Mlp,
}

/// A frozen decoder. It is never changed: adapters travel with the [`Pass`], and threads share one model.
pub struct Model {
    pub(super) config: Arc<ModelConfig>,
    pub(super) device: Device,
    pub(super) embed: Weight,
    pub(super) layers: Vec<Arc<Layer>>,
    pub(super) sites: Vec<Site>,
    pub(super) norm: Tensor,
    /// The embedding itself when tied.
    pub(super) head: Weight,
    pub(super) positions: Positions,
    /// What was odd about the files, for the user.
    pub(super) notes: Vec<String>,
    pub(super) origin: PathBuf,
    pub(super) fingerprint: Fingerprint,
}

/// What one forward pass is given besides tokens.
#[derive(Default)]
pub struct Step<'a> {
    /// Which key positions are real, u32 `[B, S]`; all when absent.
    pub valid: Option<&'a Tensor>,
    /// Positions before these, whose keys and values are kept here.
    pub cache: Option<&'a mut KvCache>,
    /// Collects the state before each layer, after the last, and after the final norm.
    pub hidden: Option<&'a mut Vec<Tensor>>,
    /// Keeps only the state between layers and computes each layer again in the backward pass: less memory for
    /// about a third more time, and the same gradients.
    pub recompute: bool,
}

impl Model {
    /// Its configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }
    /// The file or directory that it was read from.
    pub fn origin(&self) -> &Path {
        &self.origin
    }
    /// What tells it from other models of its sizes: its norms, which every file of a model has, however its matrices
    /// are stored.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }
    /// What was odd about its files but no error: one sentence each, to be shown to the user.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
    /// Where it lives.
    pub fn device(&self) -> &Device {
        &self.device
    }
    /// The output head, `[vocab_size, hidden_size]`.
    pub fn head(&self) -> &Weight {
        &self.head
    }
    /// Bytes of all weights in their storage formats.
    pub fn weight_bytes(&self) -> u64 {
        let head = if self.config.tie_word_embeddings { 0 } else { self.head.bytes() };
        self.embed.bytes() + head + self.linears().map(|(_, l)| l.weight.bytes()).sum::<u64>()
    }

    /// The groups of linears of every layer, with the paths of their linears as Hugging Face names them.
    pub fn linears(&self) -> impl Iterator<Item = (&str, &Linear)> {
        let groups = self.layers.iter().flat_map(|l| [&l.qkv, &l.o, &l.mlp.gate_up, &l.mlp.down]);
        groups.flat_map(|group| {
            let paths = group.site.into_iter().flat_map(|site| &self.sites[site].linears);
            paths.map(|l| l.path.as_str()).zip(&group.linears)
        })
    }

    /// The places where adapters can join, in the order of their numbers.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// Hidden states after the final norm, `[B, S, hidden_size]`, of tokens `[B, S]`.
    ///
    /// # Errors
    /// Tokens are not `[B, S]`, or positions go beyond [`max_positions`](ModelConfig::max_positions).
    pub fn forward(&self, ids: &Tensor, pass: &Pass, step: Step<'_>) -> Result<Tensor> {
        let [b, s] = *ids.dims() else {
            return Err(Error::Shape { op: "model", what: format!("tokens {} are not [B, S]", ids.shape()) });
        };
        let Step { valid, mut cache, mut hidden, recompute } = step;
        let past = cache.as_ref().map_or(0, |c| c.len());
        let rope = self.rope(past + s)?;
        let positions: Vec<u32> = (0..b).flat_map(|_| past as u32..(past + s) as u32).collect();
        let positions = Tensor::from_u32(&self.device, &[b, s], &positions)?;
        let x = self.embed.embedding(ids)?;
        let run = Arc::new(Run { config: self.config.clone(), rope, positions, valid: valid.cloned() });
        let decided = match pass.adapter(Some(START)) {
            Some(SiteAdapter::Before(adapter)) => {
                let mut base = || {
                    let frozen = pass.of_base();
                    let kept = cache.as_deref_mut().map(KvCache::base);
                    self.layers(x.clone(), &frozen, &run, kept, None, recompute)
                };
                let decision = adapter.decide(&x, &mut base, pass)?;
                Some(pass.decided(decision))
            }
            _ => None,
        };
        self.layers(x, decided.as_ref().unwrap_or(pass), &run, cache, hidden.as_deref_mut(), recompute)
    }

    /// Tables of angles for so many positions.
    fn rope(&self, count: usize) -> Result<Rope> {
        let most = self.positions.most();
        if count > most {
            let what = match self.config.sliding_window {
                Some(w) if w == most => format!(
                    "{count} positions, but the model's sliding window has {w}; longer sequences are not computed"
                ),
                _ => format!("{count} positions, but the model has {most}"),
            };
            return Err(Error::Shape { op: "model", what });
        }
        self.positions.table(&self.device, count)
    }

    /// All layers and the last norm, from the embedded input.
    fn layers(
        &self,
        mut x: Tensor,
        pass: &Pass,
        run: &Arc<Run>,
        mut cache: Option<&mut KvCache>,
        mut hidden: Option<&mut Vec<Tensor>>,
        recompute: bool,
    ) -> Result<Tensor> {
        let count = x.dims()[1];
        for (i, layer) in self.layers.iter().enumerate() {
            if let Some(h) = &mut hidden {
                h.push(x.detach());
            }
            let block = Block { index: i, layer: layer.clone(), run: run.clone() };
            x = match cache.as_deref_mut() {
                None if recompute => block.recomputed(&x, pass)?,
                cache => block.forward(&x, cache, pass)?,
            };
        }
        if let Some(h) = &mut hidden {
            h.push(x.detach());
        }
        let out = x.rms_norm(&self.norm, self.config.rms_norm_eps)?;
        if let Some(h) = &mut hidden {
            h.push(out.detach());
        }
        if let Some(cache) = cache {
            cache.advance(count);
        }
        Ok(out)
    }

    /// Logits `[.., vocab_size]` of hidden states.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        hidden.linear(&self.head, None)
    }
}

/// What all blocks of one pass share.
struct Run {
    config: Arc<ModelConfig>,
    rope: Rope,
    positions: Tensor,
    /// Which key positions are real.
    valid: Option<Tensor>,
}

/// A decoder block with all that one pass through it needs, so that it can be run again later.
struct Block {
    index: usize,
    layer: Arc<Layer>,
    run: Arc<Run>,
}

impl Block {
    fn forward(&self, x: &Tensor, mut cache: Option<&mut KvCache>, pass: &Pass) -> Result<Tensor> {
        match pass.adapter(Some(self.layer.site)) {
            Some(SiteAdapter::Block(adapter)) => {
                adapter.forward(x, &mut |x| self.frozen(x, cache.as_deref_mut(), pass), pass)
            }
            _ => self.frozen(x, cache, pass),
        }
    }

    fn frozen(&self, x: &Tensor, cache: Option<&mut KvCache>, pass: &Pass) -> Result<Tensor> {
        let (c, layer) = (&self.run.config, &self.layer);
        let (b, s) = (x.dims()[0], x.dims()[1]);
        let h = x.rms_norm(&layer.input_norm, c.rms_norm_eps)?;
        let mut qkv = layer.qkv.forward(&h, pass)?.into_iter();
        let mut heads = |n: usize| match qkv.next() {
            Some(t) => t.reshape(&[b, s, n, c.head_dim]),
            None => Err(Error::Shape { op: "model", what: "an adapter returned too few outputs".into() }),
        };
        let q = heads(c.num_attention_heads)?.rope(&self.run.rope, &self.run.positions)?;
        let k = heads(c.num_key_value_heads)?.rope(&self.run.rope, &self.run.positions)?;
        let v = heads(c.num_key_value_heads)?;
        let (valid, scale) = (self.run.valid.as_ref(), (c.head_dim as f32).powf(-0.5));
        let a = match cache {
            None => q.attention(&k, &v, valid, scale)?,
            Some(cache) => {
                let (k, v) = cache.append(self.index, &k, &v)?;
                q.cached_attention(&k, &v, cache.len() + s, valid, scale)?
            }
        };
        let a = a.reshape(&[b, s, c.num_attention_heads * c.head_dim])?;
        let x = x.add(&layer.o.forward(&a, pass)?.swap_remove(0))?;
        let h = x.rms_norm(&layer.post_norm, c.rms_norm_eps)?;
        x.add(&layer.mlp.forward(&h, pass)?)
    }

    /// The same, keeping nothing but its input: routers are replayed when it runs again.
    fn recomputed(self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let (first, again) = pass.twice();
        let ran = AtomicBool::new(false);
        let inputs: Vec<&Tensor> = std::iter::once(x).chain(&pass.decision).collect();
        let run = move |x: &[Tensor]| {
            let mut pass = if ran.swap(true, Relaxed) { again.clone() } else { first.clone() };
            // Decisions are inputs of the block: their gradient is that of all blocks together.
            pass.decision = x[1..].to_vec();
            let mut out = vec![self.forward(&x[0], None, &pass)?];
            out.extend(pass.take_aux());
            Ok(out)
        };
        let mut out = checkpoint_many(&inputs, run)?.into_iter();
        let y =
            out.next().ok_or_else(|| Error::Shape { op: "model", what: "a block returned nothing".into() });
        out.for_each(|aux| pass.add_aux(aux));
        y
    }
}
