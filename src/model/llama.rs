//! The decoder: pre-norm blocks of causal grouped-query attention and a gated MLP.

use super::positions::Positions;
use super::{Fingerprint, KvCache, LlamaConfig};
use crate::nn::{LinearGroup, Mlp, Pass};
use crate::ops::rope::Rope;
use crate::{Device, Error, Result, Tensor, Weight, checkpoint_many};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// One decoder block. Norm weights are frozen tensors `[hidden_size]`.
#[derive(Clone)]
pub struct Layer {
    pub(super) input_norm: Tensor,
    /// q_proj, k_proj, v_proj.
    pub(super) qkv: LinearGroup,
    /// o_proj.
    pub(super) o: LinearGroup,
    pub(super) post_norm: Tensor,
    pub(super) mlp: Mlp,
}

/// A frozen decoder with places for adapters.
pub struct Llama {
    pub(super) config: LlamaConfig,
    pub(super) device: Device,
    pub(super) embed: Weight,
    pub(super) layers: Vec<Arc<Layer>>,
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

/// A group of linears by its place: the hook for adapters.
pub struct Site<'a> {
    /// Unique in the model, for example `layers.3.qkv`.
    pub name: String,
    /// Path of each linear as Hugging Face names it, for example `model.layers.3.self_attn.q_proj`.
    pub linears: Vec<String>,
    pub group: &'a mut LinearGroup,
}

/// An MLP block by its place.
pub struct MlpSite<'a> {
    pub name: String,
    /// Path as Hugging Face names it, for example `model.layers.3.mlp`.
    pub path: String,
    pub mlp: &'a mut Mlp,
}

impl Llama {
    /// Its configuration.
    pub fn config(&self) -> &LlamaConfig {
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
        let groups = |l: &Arc<Layer>| {
            let all = [&l.qkv, &l.o, &l.mlp.gate_up, &l.mlp.down];
            all.into_iter().flat_map(|g| g.linears.iter()).map(|l| l.weight.bytes()).sum::<u64>()
        };
        let head = if self.config.tie_word_embeddings { 0 } else { self.head.bytes() };
        self.embed.bytes() + head + self.layers.iter().map(groups).sum::<u64>()
    }

    /// Calls `f` with every group of linears that read the same input, in order.
    pub fn for_each_site(&mut self, mut f: impl FnMut(Site<'_>) -> Result<()>) -> Result<()> {
        for (i, layer) in self.layers.iter_mut().map(Arc::make_mut).enumerate() {
            let path = |names: &[&str]| names.iter().map(|n| format!("model.layers.{i}.{n}")).collect();
            let sites = [
                ("qkv", path(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]), &mut layer.qkv),
                ("o", path(&["self_attn.o_proj"]), &mut layer.o),
                ("gate_up", path(&["mlp.gate_proj", "mlp.up_proj"]), &mut layer.mlp.gate_up),
                ("down", path(&["mlp.down_proj"]), &mut layer.mlp.down),
            ];
            for (name, linears, group) in sites {
                f(Site { name: format!("layers.{i}.{name}"), linears, group })?;
            }
        }
        Ok(())
    }

    /// Calls `f` with every MLP block, in order.
    pub fn for_each_mlp(&mut self, mut f: impl FnMut(MlpSite<'_>) -> Result<()>) -> Result<()> {
        for (i, layer) in self.layers.iter_mut().map(Arc::make_mut).enumerate() {
            f(MlpSite {
                name: format!("layers.{i}.mlp"),
                path: format!("model.layers.{i}.mlp"),
                mlp: &mut layer.mlp,
            })?;
        }
        Ok(())
    }

    /// Hidden states after the final norm, `[B, S, hidden_size]`, of tokens `[B, S]`.
    ///
    /// # Errors
    /// Tokens are not `[B, S]`, or positions go beyond [`max_positions`](LlamaConfig::max_positions).
    pub fn forward(&self, ids: &Tensor, pass: &Pass, step: Step<'_>) -> Result<Tensor> {
        let [b, s] = *ids.dims() else {
            return Err(Error::Shape { op: "llama", what: format!("tokens {} are not [B, S]", ids.shape()) });
        };
        let Step { valid, mut cache, mut hidden, recompute } = step;
        let past = cache.as_ref().map_or(0, |c| c.len());
        let most = self.positions.most();
        if past + s > most {
            let what = match self.config.sliding_window {
                Some(w) if w == most => format!(
                    "{} positions, but the model's sliding window has {w}; longer sequences are not computed",
                    past + s
                ),
                _ => format!("{} positions, but the model has {most}", past + s),
            };
            return Err(Error::Shape { op: "llama", what });
        }
        let rope = self.positions.table(&self.device, past + s)?;
        let positions: Vec<u32> = (0..b).flat_map(|_| past as u32..(past + s) as u32).collect();
        let positions = Tensor::from_u32(&self.device, &[b, s], &positions)?;
        let mut x = self.embed.embedding(ids)?;
        let config = Arc::new(self.config.clone());
        for (i, layer) in self.layers.iter().enumerate() {
            if let Some(h) = &mut hidden {
                h.push(x.detach());
            }
            let block = Block {
                index: i,
                layer: layer.clone(),
                config: config.clone(),
                rope: rope.clone(),
                positions: positions.clone(),
                valid: valid.cloned(),
            };
            x = match recompute && cache.is_none() {
                true => block.recomputed(&x, pass)?,
                false => block.forward(&x, cache.as_deref_mut(), pass)?,
            };
        }
        if let Some(h) = &mut hidden {
            h.push(x.detach());
        }
        let out = x.rms_norm(&self.norm, self.config.rms_norm_eps)?;
        if let Some(h) = &mut hidden {
            h.push(out.detach());
        }
        if let Some(c) = cache {
            c.advance(s);
        }
        Ok(out)
    }

    /// Logits `[.., vocab_size]` of hidden states.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        hidden.linear(&self.head, None)
    }
}

/// A decoder block with all that one pass through it needs, so that it can be run again later.
struct Block {
    index: usize,
    layer: Arc<Layer>,
    config: Arc<LlamaConfig>,
    rope: Rope,
    positions: Tensor,
    valid: Option<Tensor>,
}

impl Block {
    fn forward(&self, x: &Tensor, cache: Option<&mut KvCache>, pass: &Pass) -> Result<Tensor> {
        let (c, layer) = (&self.config, &self.layer);
        let (b, s) = (x.dims()[0], x.dims()[1]);
        let h = x.rms_norm(&layer.input_norm, c.rms_norm_eps)?;
        let mut qkv = layer.qkv.forward(&h, pass)?.into_iter();
        let mut heads = |n: usize| match qkv.next() {
            Some(t) => t.reshape(&[b, s, n, c.head_dim]),
            None => Err(Error::Shape { op: "llama", what: "an adapter returned too few outputs".into() }),
        };
        let q = heads(c.num_attention_heads)?.rope(&self.rope, &self.positions)?;
        let k = heads(c.num_key_value_heads)?.rope(&self.rope, &self.positions)?;
        let v = heads(c.num_key_value_heads)?;
        let (valid, scale) = (self.valid.as_ref(), (c.head_dim as f32).powf(-0.5));
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
        let run = move |x: &[Tensor]| {
            let pass = if ran.swap(true, Relaxed) { &again } else { &first };
            let mut out = vec![self.forward(&x[0], None, pass)?];
            out.extend(pass.take_aux());
            Ok(out)
        };
        let mut out = checkpoint_many(&[x], run)?.into_iter();
        let y =
            out.next().ok_or_else(|| Error::Shape { op: "llama", what: "a block returned nothing".into() });
        out.for_each(|aux| pass.add_aux(aux));
        y
    }
}
