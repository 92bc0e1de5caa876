//! Token sequences with their trained positions, and padded batches of them.

use super::PicturePlace;
use crate::mixture::{Framing, Pool, Span};
use crate::model::Model;
use crate::model::vision::{PictureFeatures, VisionModel};
use crate::nn::{Labels, Pass};
use crate::routing::Units;
use crate::{Device, Error, Result, Tensor};
use std::sync::Arc;

/// One sample: tokens, and which of them are trained (predicted from the ones before).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Example {
    pub ids: Vec<u32>,
    /// One flag per token. The first token is never trained: nothing comes before it.
    pub trained: Vec<bool>,
    /// Positions at the start that routers may look at: those before the first trained token.
    pub prompt: usize,
    /// The label of its task.
    pub task: Option<Arc<str>>,
    /// A number for each token, for methods that treat kinds of tokens apart; empty where all are 0.
    pub tags: Vec<u32>,
    /// The vector that its choices depend on besides its tokens.
    pub condition: Option<Arc<[f32]>>,
    /// Its pictures, in order.
    pub pictures: Vec<PicturePlace>,
    /// The same with a wrong answer.
    pub rejected: Option<Arc<Example>>,
}

impl Example {
    /// An example whose prompt ends at its first trained token. Where that is the first or second one (plain text,
    /// with or without a start token), or none is, all positions are the prompt.
    pub fn new(ids: Vec<u32>, mut trained: Vec<bool>) -> Self {
        let prompt = match trained.iter().position(|t| *t) {
            Some(0 | 1) | None => ids.len(),
            Some(n) => n,
        };
        if let Some(first) = trained.first_mut() {
            *first = false;
        }
        Example { ids, trained, prompt, ..Example::default() }
    }
    /// The same with the label of a task.
    pub fn with_task(self, task: Option<&str>) -> Self {
        Example { task: task.map(Arc::from), ..self }
    }
    /// The same with a number for each token.
    pub fn with_tags(self, tags: Vec<u32>) -> Self {
        Example { tags, ..self }
    }
    /// The same with a condition.
    pub fn with_condition(self, condition: Option<&[f32]>) -> Self {
        Example { condition: condition.map(Arc::from), ..self }
    }
    /// The same beside a wrong answer.
    pub fn with_rejected(self, rejected: Option<Example>) -> Self {
        Example { rejected: rejected.map(Arc::new), ..self }
    }
    /// Number of trained tokens.
    pub fn trained_tokens(&self) -> usize {
        self.trained.iter().skip(1).filter(|t| **t).count()
    }
}

/// Examples padded on the right to one length, on a device.
pub struct Batch {
    /// `[B, S]`
    pub ids: Tensor,
    /// The token that each position must predict, u32 `[B * S]`; `u32::MAX` where there is no loss.
    pub targets: Tensor,
    /// 1 at real positions, u32 `[B, S]`.
    pub valid: Tensor,
    /// 1.0 at real positions, `[B * S, 1]`.
    pub weights: Tensor,
    /// Routing units of instance-routed methods.
    pub units: Units,
    /// Lengths of its instances.
    pub spans: Vec<Span>,
    /// What the data says of its instances and rows.
    pub labels: Labels,
    /// Real positions.
    pub tokens: usize,
    /// Positions with a loss.
    pub trained: usize,
    source: Source,
    pictures: Option<PictureFeatures>,
}

/// The pictures of examples, at which a tower has looked; none where no example has any.
fn pictures_of(examples: &[&Example], device: &Device) -> Result<Option<PictureFeatures>> {
    let mut all = examples.iter().flat_map(|example| &example.pictures).peekable();
    if all.peek().is_none() {
        return Ok(None);
    }
    let mut vision = None;
    let mut dims = [0; 3];
    let mut values = Vec::new();
    for place in all {
        let Some(features) = &place.features else {
            return Err(Error::refused("batch", format!("no tower has looked at {}", place.source)));
        };
        let [tiles, rows, width] = features.dims;
        dims = [dims[0] + tiles, rows, width];
        values.extend_from_slice(&features.values);
        vision = Some(features.vision.clone());
    }
    let features = Tensor::from_f32(device, &dims, &values)?;
    Ok(vision.map(|vision| PictureFeatures { vision, features }))
}

/// What a batch was made of.
struct Source {
    examples: Vec<Example>,
    /// The tokens of `ids`.
    ids: Vec<u32>,
    framing: Framing,
    pad: u32,
}

impl Batch {
    /// Pads examples to their longest. `framing` is what the adapter asks for: how instances are pooled for their routers
    /// (none where no router looks at instances, which then need no position to route on), and whether a place is kept
    /// in front of each sample, before its first token. A [`Pool`] stands for a framing with that pool and no such place.
    ///
    /// # Errors
    /// There is no example, one is empty, or an instance has no position to route on.
    pub fn new(
        examples: &[&Example],
        framing: impl Into<Framing>,
        pad: u32,
        device: &Device,
    ) -> Result<Self> {
        let framing = framing.into();
        let front = framing.rows_in_front();
        let b = examples.len();
        let s = front + examples.iter().map(|e| e.ids.len()).max().unwrap_or(0);
        let fits = |e: &&Example| {
            let tagged = e.tags.is_empty() || e.tags.len() == e.ids.len();
            !e.ids.is_empty() && e.ids.len() == e.trained.len() && tagged
        };
        if b == 0 || !examples.iter().all(fits) {
            return Err(Error::refused(
                "batch",
                "an example is empty, or its flags or tags do not match its tokens",
            ));
        }
        let mut ids = vec![pad; b * s];
        let mut targets = vec![u32::MAX; b * s];
        let mut valid = vec![0u32; b * s];
        let mut tags = vec![0u32; b * s];
        for (i, e) in examples.iter().enumerate() {
            let n = e.ids.len();
            ids[i * s + front..][..n].copy_from_slice(&e.ids);
            valid[i * s..][..front + n].fill(1);
            tags[i * s + front..][..e.tags.len()].copy_from_slice(&e.tags);
            put_targets(e, &mut targets[i * s + front..]);
        }
        let span = |e: &&Example| Span { len: front + e.ids.len(), prompt: front + e.prompt };
        let spans: Vec<Span> = examples.iter().map(span).collect();
        let tagged = examples.iter().any(|e| !e.tags.is_empty());
        let labels = Labels {
            tasks: examples.iter().map(|e| e.task.clone()).collect(),
            tags: if tagged { Some(Tensor::from_u32(device, &[b * s], &tags)?) } else { None },
            conditions: conditions(examples, device)?,
            has_front: framing.front,
        };
        let weights: Vec<f32> = valid.iter().map(|&v| v as f32).collect();
        let pictures = pictures_of(examples, device)?;
        let rows = pictures.as_ref().map_or_else(Vec::new, |pictures| pictures.rows_among(&ids));
        Ok(Batch {
            ids: Tensor::from_u32(device, &[b, s], &ids)?,
            targets: Tensor::from_u32(device, &[b * s], &targets)?,
            valid: Tensor::from_u32(device, &[b, s], &valid)?,
            weights: Tensor::from_f32(device, &[b * s, 1], &weights)?,
            labels,
            units: framing.pool.unwrap_or(Pool::All).units_with_pictures(device, &spans, s, &rows)?,
            tokens: spans.iter().map(|s| s.len).sum(),
            trained: targets.iter().filter(|t| **t != u32::MAX).count(),
            spans,
            source: Source { examples: examples.iter().copied().cloned().collect(), ids, framing, pad },
            pictures,
        })
    }

    /// The same with the pictures that stand in the places of its image tokens: what the tower of a model makes of all of
    /// their tiles, one after the other, `[T, N, d]`.
    ///
    /// # Errors
    /// The device failed.
    pub fn with_pictures(mut self, vision: &Arc<VisionModel>, features: Tensor) -> Result<Self> {
        self.pictures = Some(PictureFeatures { vision: vision.clone(), features });
        self.units = self.units_by(self.source.framing.pool.unwrap_or(Pool::All))?;
        Ok(self)
    }

    /// Its pictures, where it has any.
    pub fn pictures(&self) -> Option<&PictureFeatures> {
        self.pictures.as_ref()
    }

    /// What enters the first layer in a pass where the batch has pictures: their rows among the embedded tokens, with the
    /// gradient of the projector. `[B, S, hidden_size]`
    ///
    /// # Errors
    /// The image tokens are not as many as the rows of the pictures.
    pub fn embedded(&self, model: &Model, pass: &Pass) -> Result<Option<Tensor>> {
        let Some(pictures) = &self.pictures else { return Ok(None) };
        let [b, s] = *self.ids.dims() else { return Err(Error::shape("batch", "[B, S]", self.ids.shape())) };
        pictures.embedded(model, &self.source.ids, [b, s], pass).map(Some)
    }

    /// Whether an example of it has a wrong answer.
    pub fn has_rejected(&self) -> bool {
        self.source.examples.iter().any(|example| example.rejected.is_some())
    }

    /// The wrong answers of its examples as a batch of their own, and whose they are; none where no example has one.
    ///
    /// # Errors
    /// The device failed.
    pub fn rejected(&self) -> Result<Option<(Vec<usize>, Self)>> {
        let Source { examples, framing, pad, .. } = &self.source;
        let wrong = |(i, e): (usize, &Example)| {
            let rejected = e.rejected.as_deref()?.clone();
            Some((i, Example { task: e.task.clone(), condition: e.condition.clone(), ..rejected }))
        };
        let (whose, wrong): (Vec<usize>, Vec<Example>) =
            examples.iter().enumerate().filter_map(wrong).unzip();
        if whose.is_empty() {
            return Ok(None);
        }
        if self.pictures.is_some() {
            let what = "stands beside an answer about pictures, from which no method learns yet";
            return Err(Error::refused("rejected", what));
        }
        let wrong: Vec<&Example> = wrong.iter().collect();
        Ok(Some((whose, Batch::new(&wrong, *framing, *pad, self.ids.device())?)))
    }

    /// So many copies of the batch, one behind the other.
    ///
    /// # Errors
    /// The device failed.
    pub fn repeated(&self, copies: usize) -> Result<Self> {
        let Source { examples, framing, pad, .. } = &self.source;
        let once: Vec<&Example> = examples.iter().collect();
        let batch = Batch::new(&once.repeat(copies), *framing, *pad, self.ids.device())?;
        let pictures = self.pictures.as_ref().filter(|_| batch.pictures.is_none());
        let Some(PictureFeatures { vision, features }) = pictures else { return Ok(batch) };
        let [tiles, n, d] = *features.dims() else { return Ok(batch) };
        let index: Vec<u32> = (0..(copies * tiles) as u32).map(|tile| tile % tiles as u32).collect();
        let index = Tensor::from_u32(features.device(), &[index.len()], &index)?;
        let all = features.reshape(&[tiles, n * d])?.gather_rows(&index)?;
        batch.with_pictures(vision, all.reshape(&[copies * tiles, n, d])?)
    }

    /// Routing units where instances are pooled in another way.
    ///
    /// # Errors
    /// The device failed.
    pub fn units_by(&self, pool: Pool) -> Result<Units> {
        let ids = &self.source.ids;
        let rows = self.pictures.as_ref().map_or_else(Vec::new, |pictures| pictures.rows_among(ids));
        pool.units_with_pictures(self.ids.device(), &self.spans, self.ids.shape().last(), &rows)
    }

    /// The targets of one of its instances; no other position has a loss.
    ///
    /// # Errors
    /// The device failed.
    pub fn targets_of(&self, instance: usize) -> Result<Tensor> {
        let length = self.ids.shape().last();
        let mut targets = vec![u32::MAX; self.targets.len()];
        if let Some(example) = self.source.examples.get(instance) {
            put_targets(example, &mut targets[instance * length + self.source.framing.rows_in_front()..]);
        }
        Tensor::from_u32(self.targets.device(), self.targets.dims(), &targets)
    }
}

/// Writes the token that each position of an example must predict, where it is trained.
fn put_targets(example: &Example, targets: &mut [u32]) {
    for t in (1..example.ids.len()).filter(|&t| example.trained[t]) {
        targets[t - 1] = example.ids[t];
    }
}

/// The conditions of examples, `[B, width]`; none where no example has one.
fn conditions(examples: &[&Example], device: &Device) -> Result<Option<Tensor>> {
    let Some(width) = examples.iter().find_map(|e| e.condition.as_ref()).map(|c| c.len()) else {
        return Ok(None);
    };
    let mut values = Vec::new();
    for example in examples {
        match &example.condition {
            Some(condition) if condition.len() == width => values.extend_from_slice(condition),
            _ => {
                let what = format!("an example has no condition of {width} numbers, but others of it have");
                return Err(Error::refused("batch", what));
            }
        }
    }
    Tensor::from_f32(device, &[examples.len(), width], &values).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_next_tokens() {
        let a = Example::new(vec![5, 6, 7, 8], vec![false, false, true, true]);
        let b = Example::new(vec![9, 4], vec![false, true]);
        assert_eq!((a.prompt, b.prompt, a.trained_tokens()), (2, 2, 2));
        let batch = Batch::new(&[&a, &b], Pool::Real, 0, &Device::cpu()).unwrap();
        let no = u32::MAX;
        assert_eq!(batch.ids.to_u32().unwrap(), [5, 6, 7, 8, 9, 4, 0, 0]);
        assert_eq!(batch.targets.to_u32().unwrap(), [no, 7, 8, no, 4, no, no, no]);
        assert_eq!(batch.valid.to_u32().unwrap(), [1, 1, 1, 1, 1, 1, 0, 0]);
        assert_eq!((batch.tokens, batch.trained, batch.units.count()), (6, 3, 2));
        assert_eq!(batch.targets_of(1).unwrap().to_u32().unwrap(), [no, no, no, no, 4, no, no, no]);
    }

    #[test]
    fn a_place_in_front_shifts_everything() {
        let a = Example::new(vec![5, 6, 7, 8], vec![false, false, true, true]).with_tags(vec![1, 2, 3, 4]);
        let b = Example::new(vec![9, 4], vec![false, true]);
        let framing = Framing { pool: Some(Pool::PromptMask), front: true };
        let batch = Batch::new(&[&a, &b], framing, 0, &Device::cpu()).unwrap();
        let no = u32::MAX;
        assert_eq!(batch.ids.to_u32().unwrap(), [0, 5, 6, 7, 8, 0, 9, 4, 0, 0]);
        assert_eq!(batch.targets.to_u32().unwrap(), [no, no, 7, 8, no, no, 4, no, no, no]);
        assert_eq!(batch.valid.to_u32().unwrap(), [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]);
        assert_eq!(batch.labels.tags.as_ref().unwrap().to_u32().unwrap(), [0, 1, 2, 3, 4, 0, 0, 0, 0, 0]);
        assert_eq!(batch.spans, [Span { len: 5, prompt: 3 }, Span { len: 3, prompt: 3 }]);
        assert_eq!((batch.tokens, batch.trained), (8, 3));
        let of_b = batch.targets_of(1).unwrap().to_u32().unwrap();
        assert_eq!(of_b, [no, no, no, no, no, no, 4, no, no, no]);
    }

    #[test]
    fn labels_of_samples_reach_the_batch() {
        let a = Example::new(vec![5, 6, 7], vec![false, false, true]).with_task(Some("sums"));
        let b = Example::new(vec![9, 4], vec![false, true]).with_tags(vec![3, 1]);
        let batch = Batch::new(&[&a, &b], None, 0, &Device::cpu()).unwrap();
        assert_eq!(batch.labels.tasks, [Some("sums".into()), None]);
        assert_eq!(batch.labels.tags.unwrap().to_u32().unwrap(), [0, 0, 0, 3, 1, 0]);
        let plain = Batch::new(&[&a], None, 0, &Device::cpu()).unwrap();
        assert!(plain.labels.tags.is_none());
        let short = b.clone().with_tags(vec![1]);
        assert!(Batch::new(&[&short], None, 0, &Device::cpu()).is_err());
    }
}
