//! The decoder: the blocks that a description asks for, one after the other.

use super::block::{Block, Layer, NormLayer, Run};
use super::experts::KeptExperts;
use super::positions::Positions;
use super::{Fingerprint, KvCache, ModelConfig, Site};
use crate::nn::{LinearGroup, Pass};
use crate::routing::Units;
use crate::{DType, Device, Error, Linear, Result, Tensor, Weight, no_grad};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

/// The number of the site before the first layer.
const START: usize = 0;

/// A frozen decoder. It is never changed: adapters travel with the [`Pass`], and threads share one model.
pub struct Model {
    pub(super) config: Arc<ModelConfig>,
    pub(super) device: Device,
    pub(super) embed: Weight,
    pub(super) layers: Vec<Arc<Layer>>,
    pub(super) sites: Vec<Site>,
    pub(super) norm: NormLayer,
    /// The embedding itself when tied.
    pub(super) head: Weight,
    /// Angles of each rotation.
    pub(super) positions: Vec<Positions>,
    /// What was odd about the files, for the user.
    pub(super) notes: Vec<String>,
    pub(super) origin: PathBuf,
    pub(super) fingerprint: Fingerprint,
}

/// What a forward pass reads.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// Tokens, u32 `[B, S]`.
    Tokens(&'a Tensor),
    /// What enters the first layer, `[B, S, hidden_size]`: tokens by [`Model::embed`], images, or what was made of them.
    Embeddings(&'a Tensor),
}

impl<'a> From<&'a Tensor> for Input<'a> {
    /// Whole numbers are tokens, other values are embeddings.
    fn from(t: &'a Tensor) -> Self {
        match t.dtype() {
            DType::U32 => Input::Tokens(t),
            _ => Input::Embeddings(t),
        }
    }
}

/// What one forward pass is given besides its input.
#[derive(Default)]
pub struct Step<'a> {
    /// Which key positions are real, u32 `[B, S]`; all when absent.
    pub valid: Option<&'a Tensor>,
    /// Positions of the input, u32 `[B, S]`, by which it is rotated; those behind the cache when absent.
    pub positions: Option<&'a Tensor>,
    /// Positions before these, whose keys and values are kept here.
    pub cache: Option<&'a mut KvCache>,
    /// Collects the state before each layer, after the last, and after the final norm.
    pub hidden: Option<&'a mut Vec<Tensor>>,
    /// Collects the experts that the tokens choose in each layer of experts, u32 `[B, S, chosen]`, the likeliest first.
    pub experts: Option<&'a mut Vec<Tensor>>,
    /// Keeps only the state between layers and computes each layer again in the backward pass: less memory for
    /// about a third more time, and the same gradients.
    pub recompute: bool,
}

/// What a pass collects for its caller.
#[derive(Default)]
struct Seen<'a> {
    hidden: Option<&'a mut Vec<Tensor>>,
    experts: Option<&'a mut Vec<Tensor>>,
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
        let experts = self.layers.iter().map(|l| l.mlp.expert_bytes()).sum::<u64>();
        self.embed.bytes() + head + experts + self.linears().map(|(_, l)| l.weight.bytes()).sum::<u64>()
    }

    /// The linears of all sites, with their paths as Hugging Face names them.
    pub fn linears(&self) -> impl Iterator<Item = (&str, &Linear)> {
        let groups = self.layers.iter().flat_map(|l| l.groups());
        groups.flat_map(|group: &LinearGroup| {
            let paths = group.site.into_iter().flat_map(|site| &self.sites[site].linears);
            paths.map(|l| l.path.as_str()).zip(&group.linears)
        })
    }

    /// The places where adapters can join, in the order of their numbers.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// What enters the first layer for tokens `[B, S]`: `[B, S, hidden_size]`.
    ///
    /// # Errors
    /// A token has no row in the embedding.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        scaled(self.embed.embedding(ids)?, self.config.embedding_scale)
    }

    /// Hidden states after the final norm, `[B, S, hidden_size]`, of tokens `[B, S]` or of their embeddings.
    ///
    /// # Errors
    /// The input has another shape, or positions go beyond [`max_positions`](ModelConfig::max_positions).
    pub fn forward<'a>(&self, input: impl Into<Input<'a>>, pass: &Pass, step: Step<'_>) -> Result<Tensor> {
        let Step { valid, positions, mut cache, hidden, experts, recompute } = step;
        let seen = Seen { hidden, experts };
        let bad = |t: &Tensor, expected: &str| Error::shape("model", expected, t.shape());
        let x = match input.into() {
            Input::Tokens(ids) if ids.dims().len() == 2 => self.embed(ids)?,
            Input::Tokens(ids) => return Err(bad(ids, "tokens [B, S]")),
            Input::Embeddings(x) => x.clone(),
        };
        let [b, s, d] = *x.dims() else { return Err(bad(&x, "embeddings [B, S, hidden_size]")) };
        if d != self.config.hidden_size {
            return Err(bad(&x, &format!("embeddings of {} values", self.config.hidden_size)));
        }
        let past = cache.as_ref().map_or(0, |c| c.len());
        self.check_positions(past + s)?;
        let x = if past == 0 { with_front(x, pass)? } else { x };
        let (positions, last) = match positions {
            Some(given) => {
                let last = given.to_u32()?.iter().max().map_or(0, |&p| p as usize + 1);
                self.check_positions(last)?;
                (given.clone(), last)
            }
            None => {
                let at: Vec<u32> = (0..b).flat_map(|_| past as u32..(past + s) as u32).collect();
                (Tensor::from_u32(&self.device, &[b, s], &at)?, past + s)
            }
        };
        let tables = self.positions.iter().map(|p| p.table(&self.device, last.max(past + s), past + s));
        let ropes = tables.collect::<Result<_>>()?;
        let run = Arc::new(Run { config: self.config.clone(), ropes, positions, valid: valid.cloned() });
        // Of several that decide, all see one base pass.
        let mut states: Option<Tensor> = None;
        let mut base = || match &states {
            Some(states) => Ok(states.clone()),
            None => {
                let kept = cache.as_deref_mut().map(KvCache::base);
                let new =
                    self.run_layers(x.clone(), &pass.of_base(), &run, kept, Seen::default(), recompute)?;
                Ok(states.insert(new).clone())
            }
        };
        let decided = pass.after_decisions(START, |adapter, pass| adapter.decide(&x, &mut base, pass))?;
        let pass = decided.as_ref().unwrap_or(pass);
        let out = self.run_layers(x, pass, &run, cache, seen, recompute)?;
        if let Some(before) = pass.adapters.as_ref().filter(|_| pass.train).and_then(|a| a.before()) {
            before.learn(&out, pass)?;
        }
        Ok(out)
    }

    fn check_positions(&self, count: usize) -> Result<()> {
        let most = self.config.max_positions();
        if count <= most {
            return Ok(());
        }
        Err(Error::shape("model", format!("at most {most} positions, which the model has"), count))
    }

    /// All layers and the last norm, from the embedded input.
    fn run_layers(
        &self,
        mut x: Tensor,
        pass: &Pass,
        run: &Arc<Run>,
        mut cache: Option<&mut KvCache>,
        seen: Seen<'_>,
        recompute: bool,
    ) -> Result<Tensor> {
        let count = x.dims()[1];
        let Seen { mut hidden, experts } = seen;
        let kept = experts.is_some().then(Arc::<KeptExperts>::default);
        for (i, layer) in self.layers.iter().enumerate() {
            if let Some(h) = &mut hidden {
                h.push(x.detach());
            }
            let block = Block { index: i, layer: layer.clone(), run: run.clone(), experts: kept.clone() };
            x = match cache.as_deref_mut() {
                None if recompute => block.recomputed(&x, pass)?,
                cache => block.forward(&x, cache, pass)?,
            };
        }
        if let Some(h) = &mut hidden {
            h.push(x.detach());
        }
        let out = self.norm.forward(&x, &self.config)?;
        if let Some(h) = &mut hidden {
            h.push(out.detach());
        }
        if let (Some(experts), Some(kept)) = (experts, kept) {
            experts.append(&mut kept.lock().unwrap_or_else(PoisonError::into_inner));
        }
        if let Some(cache) = cache {
            cache.advance(count);
        }
        Ok(out)
    }

    /// The mean over the tokens of the states behind the last norm, without adapters.
    ///
    /// # Errors
    /// There are no tokens, or one that the model does not know.
    pub fn mean_state(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        if tokens.is_empty() {
            return Err(Error::refused("text", "has no tokens: there is no state to take"));
        }
        let ids = Tensor::from_u32(&self.device, &[1, tokens.len()], tokens)?;
        let pass = Pass::new(Units::tokens(tokens.len()));
        let sum = no_grad(|| self.forward(&ids, &pass, Step::default())?.sum_rows())?;
        sum.scale(1.0 / tokens.len() as f32)?.to_f32()
    }

    /// Logits `[.., vocab_size]` of hidden states.
    ///
    /// # Errors
    /// The states have another width.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = scaled(hidden.linear(&self.head, None)?, self.config.logit_scale)?;
        match self.config.logit_softcap {
            Some(cap) => logits.softcap(cap),
            None => Ok(logits),
        }
    }

    /// Sum of the cross-entropy of hidden states `[M, hidden_size]` with the next tokens u32 `[M]`; `u32::MAX` stands
    /// where there is no loss.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn loss(&self, rows: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let rows = scaled(rows.clone(), self.config.logit_scale)?;
        rows.head_loss(&self.head, targets, self.config.logit_softcap)
    }
}

/// The embedded input `[B, S, d]` with the vector that the adapter has learned in the place in front of each sample.
fn with_front(x: Tensor, pass: &Pass) -> Result<Tensor> {
    let adapters = pass.adapters.iter().chain(pass.bank.iter().map(|member| &member.adapters));
    let mut fronts = adapters.filter_map(|adapters| adapters.before()?.front());
    let front = match (fronts.next(), pass.labels.has_front) {
        (None, false) => return Ok(x),
        (Some(front), true) => front,
        (Some(_), false) => {
            let what = "the adapter has a learned vector in front of each sample, and the batch keeps no place for it: \
                        make it with the adapter's framing";
            return Err(Error::refused("batch", what));
        }
        (None, true) => {
            let what = "the batch keeps a place in front of each sample, and the pass has no adapter with a vector for it";
            return Err(Error::refused("batch", what));
        }
    };
    let [b, s, d] = *x.dims() else { return Ok(x) };
    let rows = |in_front: f32, others: f32| {
        let of_row = |row| if row % s == 0 { in_front } else { others };
        Tensor::from_f32(x.device(), &[b * s, 1], &(0..b * s).map(of_row).collect::<Vec<_>>())
    };
    let tokens = x.reshape(&[b * s, d])?.mul(&rows(0.0, 1.0)?)?;
    rows(1.0, 0.0)?.matmul(&front)?.add(&tokens)?.reshape(&[b, s, d])
}

/// `x` times a factor that is mostly 1.
pub(super) fn scaled(x: Tensor, factor: f32) -> Result<Tensor> {
    if factor == 1.0 { Ok(x) } else { x.scale(factor) }
}
