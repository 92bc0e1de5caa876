//! [`Pass`]: what one forward pass carries along besides its tensors.

use super::{Member, SiteAdapters};
use crate::routing::{Dropout, Selection, Units};
use crate::{Error, Result, Stream, Tensor};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// What a site chose in an earlier pass.
#[derive(Debug, Clone)]
pub struct Kept {
    /// `[L, P, G, K]`
    pub idx: Tensor,
    /// `[L, G, K]`, without history; none where every gate is 1.
    pub gates: Option<Tensor>,
    /// Entries of the pool that was chosen from; 0 when it is not known.
    pub factors: usize,
}

type Sites = Arc<Mutex<BTreeMap<String, Kept>>>;

/// What to do with the choices of routers, site by site.
///
/// Recomputation under [`checkpoint`](crate::checkpoint), frozen routing in decoding, comparison with stored
/// choices and inspection are all this: record in one pass, force or freeze in another.
#[derive(Debug, Clone, Default)]
pub enum Choices {
    /// Routers choose; nothing is kept.
    #[default]
    Free,
    /// Routers choose, and the choices are kept by site.
    Record(Sites),
    /// Every site takes its kept choice; gates are computed for it.
    Force(Sites),
    /// Sites that choose per instance take their kept choice and gates, and route no more: a conversation stays
    /// with what its prompt chose. Sites that choose per token go on choosing.
    Freeze(Sites),
}

impl Choices {
    /// Starts a record.
    pub fn record() -> Self {
        Choices::Record(Arc::default())
    }
    /// Forces given choices: site to `idx [L, P, G, K]`. Indices that are too large are refused on host devices; on
    /// a GPU they are not read back, and give values without meaning.
    pub fn force(choices: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        let kept = choices.into_iter().map(|(site, idx)| (site, Kept { idx, gates: None, factors: 0 }));
        Choices::Force(Arc::new(Mutex::new(kept.collect())))
    }
    /// The same choices, forced.
    pub fn replay(&self) -> Self {
        self.sites().map_or(Choices::Free, |s| Choices::Force(s.clone()))
    }
    /// The same choices with their gates, frozen.
    pub fn freeze(&self) -> Self {
        self.sites().map_or(Choices::Free, |s| Choices::Freeze(s.clone()))
    }
    fn sites(&self) -> Option<&Sites> {
        match self {
            Choices::Free => None,
            Choices::Record(s) | Choices::Force(s) | Choices::Freeze(s) => Some(s),
        }
    }
    fn kept(&self, site: &str) -> Option<Kept> {
        self.sites()?.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get(site).cloned()
    }
    /// What every site chose, in the order of their names.
    pub fn all(&self) -> Vec<(String, Kept)> {
        let sites = self.sites().map(|s| s.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        sites.iter().flat_map(|s| s.iter().map(|(name, kept)| (name.clone(), kept.clone()))).collect()
    }
    /// The kept choice of a site.
    pub fn get(&self, site: &str) -> Option<Tensor> {
        self.kept(site).map(|k| k.idx)
    }
    /// The choice that a site must take, if choices are forced.
    pub fn forced(&self, site: &str) -> Result<Option<Tensor>> {
        match self {
            Choices::Force(_) => match self.get(site) {
                Some(idx) => Ok(Some(idx)),
                None => {
                    Err(Error::refused(site, "no choice is stored for this site, but choices are forced"))
                }
            },
            _ => Ok(None),
        }
    }
    /// The choice and gates that an instance-routed site is frozen to, if it is.
    pub fn frozen(&self, site: &str) -> Option<Kept> {
        if let Choices::Freeze(_) = self { self.kept(site) } else { None }
    }
    /// Keeps what an instance-routed site chose, where choices are recorded.
    pub fn keep(&self, site: &str, selection: &Selection) {
        if let Choices::Record(map) = self {
            let kept = Kept {
                idx: selection.idx().clone(),
                gates: selection.gates().map(Tensor::detach),
                factors: selection.factors(),
            };
            map.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(site.to_string(), kept);
        }
    }
}

/// What the data says of the instances and rows of a pass.
#[derive(Debug, Clone, Default)]
pub struct Labels {
    /// The task of each instance, where it has one; empty where there is no data.
    pub tasks: Vec<Option<Arc<str>>>,
    /// A number for each row, u32 `[M]`; none where all are 0.
    pub tags: Option<Tensor>,
}

/// One forward pass: routing units, randomness, choices, and the auxiliary losses that it collects.
#[derive(Debug, Clone)]
pub struct Pass {
    /// Routing units of methods that choose per instance. Methods that choose per token make their own.
    pub units: Units,
    /// Whether dropout acts and load statistics count. A pass with forced choices does not count: it repeats one.
    pub train: bool,
    /// Randomness of this pass: dropout draws from sub-streams named by site.
    pub stream: Stream,
    /// What happens to choices.
    pub choices: Choices,
    /// Tokens that count in balance statistics: 1 or 0 for each, `[M, 1]`, and how many are 1. All when absent.
    pub valid: Option<(Tensor, usize)>,
    /// What the data says of its instances and rows.
    pub labels: Arc<Labels>,
    /// The adapters of this pass; none for the frozen model.
    pub adapters: Option<Arc<SiteAdapters>>,
    /// What was decided before the first layer, for all sites; empty where nothing was.
    pub decision: Vec<Tensor>,
    /// Further adapters that act beside `adapters`, each with units and choices of its own.
    pub bank: Vec<Member>,
    aux: Arc<Mutex<Vec<Tensor>>>,
}

impl Pass {
    /// A pass for inference.
    pub fn new(units: Units) -> Self {
        Pass {
            units,
            train: false,
            stream: Stream::new(0),
            choices: Choices::Free,
            valid: None,
            labels: Arc::default(),
            adapters: None,
            decision: Vec::new(),
            bank: Vec::new(),
            aux: Arc::default(),
        }
    }
    /// A pass for training, with the randomness of this step.
    pub fn training(units: Units, stream: Stream) -> Self {
        Pass { train: true, stream, ..Pass::new(units) }
    }
    /// The same pass with other routing choices.
    pub fn with_choices(self, choices: Choices) -> Self {
        Pass { choices, ..self }
    }
    /// The same pass with what the data says of its rows.
    pub fn with_labels(self, labels: Labels) -> Self {
        Pass { labels: Arc::new(labels), ..self }
    }
    /// The same pass with these adapters, or with none.
    pub fn with_adapters(self, adapters: impl Into<Option<Arc<SiteAdapters>>>) -> Self {
        Pass { adapters: adapters.into(), ..self }
    }
    /// The same pass over other routing units, for all its adapters.
    pub fn with_units(self, units: Units) -> Self {
        let bank = self.bank.into_iter().map(|member| Member { units: units.clone(), ..member }).collect();
        Pass { units, bank, ..self }
    }
    /// The same pass with these adapters together, in place of those that it has. A single one with a scale of 1 is the
    /// adapter of the pass.
    pub fn with_bank(self, bank: Vec<Member>) -> Self {
        match <[Member; 1]>::try_from(bank) {
            Ok([only]) if only.scale == 1.0 => {
                let Member { adapters, units, choices, decision, .. } = only;
                Pass { adapters: Some(adapters), units, choices, decision, bank: Vec::new(), ..self }
            }
            Ok([only]) => Pass { adapters: None, bank: vec![only], ..self },
            Err(bank) => Pass { adapters: None, bank, ..self },
        }
    }
    /// The pass as one member of its bank sees it.
    pub(super) fn seen_by(&self, number: usize, member: &Member) -> Pass {
        Pass {
            units: member.units.clone(),
            choices: member.choices.clone(),
            decision: member.decision.clone(),
            adapters: Some(member.adapters.clone()),
            bank: Vec::new(),
            stream: self.stream.fork(number as u64),
            ..self.clone()
        }
    }
    /// This pass for a block that is computed twice: the first records its choices, the second repeats them and
    /// counts nothing. Both collect their auxiliary losses apart from this one.
    pub(crate) fn twice(&self) -> (Pass, Pass) {
        let mut first = Pass { aux: Arc::default(), ..self.clone() };
        let mut again = Pass { aux: Arc::default(), ..self.clone() };
        let firsts = std::iter::once(&mut first.choices).chain(first.bank.iter_mut().map(|m| &mut m.choices));
        let agains = std::iter::once(&mut again.choices).chain(again.bank.iter_mut().map(|m| &mut m.choices));
        for (first, again) in firsts.zip(agains) {
            if let Choices::Free = first {
                *first = Choices::record();
            }
            if let Choices::Record(_) = first {
                *again = first.replay();
            }
        }
        (first, again)
    }
    /// A pass of the frozen model over the same rows: without adapters, and without a trace in this one.
    pub(crate) fn of_base(&self) -> Pass {
        Pass { adapters: None, bank: Vec::new(), choices: Choices::Free, aux: Arc::default(), ..self.clone() }
    }
    /// Dropout of an adapter's input in this pass, drawn by site; none outside of training.
    pub fn dropout(&self, site: &str, p: f32) -> Option<Dropout> {
        (self.train && p > 0.0).then(|| Dropout { stream: self.stream.named(site), p })
    }
    /// Whether load statistics count the choices of this pass.
    pub fn counts(&self) -> bool {
        self.train && !matches!(self.choices, Choices::Force(_))
    }
    /// Adds an auxiliary loss to those of this pass: a scalar, already times its coefficient.
    pub fn add_aux(&self, loss: Tensor) {
        self.aux.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(loss);
    }
    /// Takes the auxiliary losses collected so far: scalars, already times their coefficients. A block under
    /// [`checkpoint_many`](crate::checkpoint_many) takes them inside and returns them, or they have no gradient.
    pub fn take_aux(&self) -> Vec<Tensor> {
        std::mem::take(&mut self.aux.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}
