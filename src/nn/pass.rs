//! [`Pass`]: what one forward pass carries along besides its tensors.

use super::aux_loss::{DRAWS, finished};
use super::{Aux, JointLoss, Member, SiteAdapters};
use crate::routing::{Dropout, Selection, Units};
use crate::{Device, Error, Result, Stream, Tensor};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// What a site chose in an earlier pass.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Entries, u32 `[L, P, G, K]`; of a dense selection which entries act, f32 `[M, L, E]`.
    pub choice: Tensor,
    /// `[L, G, K]`, without history; none where every gate is 1, and for dense selections.
    pub gates: Option<Tensor>,
    /// Entries of the pool that was chosen from; 0 when it is not known.
    pub factors: usize,
}

/// The sum of what sites added, one tensor each.
fn total(shares: &[Vec<Tensor>]) -> Result<Tensor> {
    let mut all = shares.iter().flatten();
    let Some(first) = all.next() else { return Err(Error::refused("pass", "no site has drawn")) };
    all.try_fold(first.clone(), |sum, share| sum.add(share))
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
    /// Forces given choices: site to entries `[L, P, G, K]`, or a mask `[M, L, E]` as it was kept. Indices that are too large are refused on host devices; on
    /// a GPU they are not read back, and give values without meaning.
    pub fn force(choices: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        let kept = choices.into_iter().map(|(site, choice)| (site, Kept { choice, gates: None, factors: 0 }));
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
        self.kept(site).map(|k| k.choice)
    }
    /// The choice that a site must take, if choices are forced.
    pub fn forced(&self, site: &str) -> Result<Option<Tensor>> {
        match self {
            Choices::Force(_) => match self.get(site) {
                Some(choice) => Ok(Some(choice)),
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
    /// Keeps what a site chose, where choices are recorded.
    pub fn keep(&self, site: &str, selection: &Selection) {
        if let (Choices::Record(map), Some(choice)) = (self, selection.record()) {
            let kept = Kept {
                choice: choice.clone(),
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
    /// A vector for each instance, `[B, width]`; none where the data has none.
    pub conditions: Option<Tensor>,
    /// Whether the first row of each instance is the place of a vector that the adapter has learned, before its tokens.
    pub has_front: bool,
}

/// One forward pass: routing units, randomness, choices, and the auxiliary losses that it collects.
#[derive(Debug, Clone)]
pub struct Pass {
    /// Routing units of methods that choose per instance. Methods that choose per token make their own.
    pub units: Units,
    /// Whether dropout acts and load statistics count. A pass with forced choices does not count: it repeats one.
    pub train: bool,
    /// The optimizer step that it belongs to, from 0, for what changes during training; none outside of it.
    pub step: Option<usize>,
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
    /// Noise by site, where it is given.
    given: Arc<BTreeMap<String, Tensor>>,
    aux: Arc<Mutex<Vec<Aux>>>,
}

impl Pass {
    /// A pass for inference.
    pub fn new(units: Units) -> Self {
        Pass {
            units,
            train: false,
            step: None,
            stream: Stream::new(0),
            choices: Choices::Free,
            valid: None,
            labels: Arc::default(),
            adapters: None,
            decision: Vec::new(),
            bank: Vec::new(),
            given: Arc::default(),
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
    /// Normal noise of a site, mean 0 and deviation 1: a function of the pass's randomness, the site and the place in the
    /// tensor alone, or what was [given](Pass::with_noise) instead.
    ///
    /// # Errors
    /// The device failed.
    pub fn noise(&self, site: &str, device: &Device, dims: &[usize]) -> Result<Tensor> {
        if let Some(noise) = self.given.get(site) {
            return Ok(noise.clone());
        }
        let count = dims.iter().product();
        Tensor::from_f32(device, dims, &self.stream.named(site).named("noise").normal_vec(count, 1.0))
    }
    /// Gumbel noise of the linears of a site, `-log(-log u)` of uniform u, `[rows, L, 1, entries]`: for each linear a function
    /// of the pass's randomness, its name, the row and the entry, whatever stands beside it.
    ///
    /// # Errors
    /// The device failed.
    pub fn gumbel(&self, device: &Device, linears: &[String], rows: usize, entries: usize) -> Result<Tensor> {
        let streams: Vec<Stream> =
            linears.iter().map(|name| self.stream.named(name).named("gumbel")).collect();
        let noise = |stream: &Stream, i: usize| {
            let u = f64::from(stream.uniform(i as u32)).max(1e-8);
            -(-u.ln()).ln() as f32
        };
        let of_row = |row: usize| {
            let entry = move |stream| (0..entries).map(move |e| noise(stream, row * entries + e));
            streams.iter().flat_map(entry)
        };
        let values: Vec<f32> = (0..rows).flat_map(of_row).collect();
        Tensor::from_f32(device, &[rows, linears.len(), 1, entries], &values)
    }
    /// The same pass with the noise of a site instead of what would be drawn.
    pub fn with_noise(mut self, site: &str, noise: Tensor) -> Self {
        Arc::make_mut(&mut self.given).insert(site.to_string(), noise);
        self
    }
    /// The sample of each of `rows` rows, u32 `[M]`: by the units where these are samples, else samples of equal length.
    ///
    /// # Errors
    /// The rows do not divide into the samples.
    pub fn sample_of_rows(&self, device: &Device, samples: usize, rows: usize) -> Result<Tensor> {
        if let Some(row_unit) = self.units.row_unit().filter(|_| self.units.count() == samples) {
            return Ok(row_unit.clone());
        }
        if samples == 0 || !rows.is_multiple_of(samples) {
            return Err(Error::shape("pass", format!("rows of {samples} samples"), rows));
        }
        let each: Vec<u32> = (0..rows).map(|row| (row / (rows / samples)) as u32).collect();
        Tensor::from_u32(device, &[rows], &each)
    }
    /// Units that are the samples: those of the pass where it has as many, else samples of equal length.
    ///
    /// # Errors
    /// The rows do not divide into the samples.
    pub fn units_of_samples(&self, device: &Device, samples: usize, rows: usize) -> Result<Units> {
        if self.units.count() == samples && self.units.rows() == rows {
            return Ok(self.units.clone());
        }
        if samples == 0 || !rows.is_multiple_of(samples) {
            return Err(Error::shape("pass", format!("rows of {samples} samples"), rows));
        }
        Units::instances(device, samples, rows / samples)
    }
    /// The pass over other rows: `rows` for each part of an instance, such as a tile of a picture, where `instances` has the
    /// instance of each part. A part is a routing unit with the labels of its instance; routers are free there, and all
    /// rows count.
    ///
    /// # Errors
    /// The device failed.
    pub(crate) fn over_parts(&self, device: &Device, instances: &[u32], rows: usize) -> Result<Self> {
        let units = Units::instances(device, instances.len(), rows)?;
        let task = |&instance: &u32| self.labels.tasks.get(instance as usize).cloned().flatten();
        let labelled = !self.labels.tasks.is_empty();
        let of_parts = |conditions: &Tensor| {
            conditions.gather_rows(&Tensor::from_u32(device, &[instances.len()], instances)?)
        };
        let labels = Labels {
            tasks: if labelled { instances.iter().map(task).collect() } else { Vec::new() },
            conditions: self.labels.conditions.as_ref().map(of_parts).transpose()?,
            ..Labels::default()
        };
        let mut pass = self.clone().with_units(units).with_labels(labels).with_choices(Choices::Free);
        pass.bank.iter_mut().for_each(|member| member.choices = Choices::Free);
        pass.valid = None;
        Ok(pass)
    }
    /// Samples of a pass over so many rows: what the data says, or one.
    pub fn samples(&self, rows: usize) -> usize {
        match self.labels.tasks.len() {
            0 if self.units.is_tokens() => 1,
            0 => self.units.count().max(1),
            count if rows.is_multiple_of(count) => count,
            _ => 1,
        }
    }
    /// Whether load statistics count the choices of this pass.
    pub fn counts(&self) -> bool {
        self.train && !matches!(self.choices, Choices::Force(_))
    }
    /// Adds an auxiliary loss to those of this pass: a scalar, already times its coefficient.
    pub fn add_aux(&self, loss: Tensor) {
        self.put_aux(Aux { values: vec![loss], joint: None });
    }
    /// Adds a site's share to a loss that the sites of this pass make together.
    pub fn add_share(&self, joint: JointLoss, values: Vec<Tensor>) {
        self.put_aux(Aux { values, joint: Some(joint) });
    }
    /// Adds how likely a site's drawn choices were, as a logarithm for each sample `[B]`.
    pub fn add_log_probability(&self, of_samples: Tensor) {
        self.add_share(JointLoss { name: DRAWS, coefficient: 0.0, finish: total }, vec![of_samples]);
    }
    /// Takes what sites added of their draws: the sum for each sample, where any site drew.
    ///
    /// # Errors
    /// Sites have counted other samples.
    pub fn take_log_probability(&self) -> Result<Option<Tensor>> {
        let (draws, others): (Vec<Aux>, Vec<Aux>) =
            self.take_shares().into_iter().partition(Aux::is_of_draws);
        others.into_iter().for_each(|aux| self.put_aux(aux));
        let shares: Vec<Vec<Tensor>> = draws.into_iter().map(|aux| aux.values).collect();
        (!shares.is_empty()).then(|| total(&shares)).transpose()
    }
    pub(crate) fn put_aux(&self, aux: Aux) {
        self.aux.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(aux);
    }
    /// Takes what was added as it is. A block under [`checkpoint_many`](crate::checkpoint_many) takes it inside and
    /// returns its tensors, or they have no gradient.
    pub(crate) fn take_shares(&self) -> Vec<Aux> {
        std::mem::take(&mut self.aux.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
    /// Takes the auxiliary losses collected so far: scalars, already times their coefficients. What sites added of their
    /// draws is no loss, and is dropped where it was not [taken](Pass::take_log_probability) before.
    ///
    /// # Errors
    /// A loss that sites make together cannot be computed.
    pub fn take_aux(&self) -> Result<Vec<Tensor>> {
        finished(self.take_shares().into_iter().filter(|aux| !aux.is_of_draws()).collect())
    }
}
