//! A new projector's first lesson, without the decoder's layers: rows of a picture whose mean, weighted by the question,
//! points to the answer.
//!
//! A projector that is drawn at random teaches the decoder nothing for hundreds of steps. Here it learns from the training
//! examples alone, on features that a tower has computed: with `z_i` the projected rows of a picture, `q` the mean embedding
//! of the question's tokens, `e_c` the embedding of the first token of answer c,
//!
//! ```text
//! a = softmax_i(<Wq norm(q), Wk z_i> / sqrt(d))      v = sum_i a_i z_i      p(c) = softmax_c(20 cos(v, e_c))
//! ```
//!
//! and the cross-entropy of the answers is lowered. `Wq` and `Wk` are thrown away; at the end the rows get the length of
//! the embedding's.

use crate::data::{Dataset, Example, FeatureValues};
use crate::model::Model;
use crate::model::vision::{ProjectorKind, VisionModel};
use crate::nn::Param;
use crate::tape::inside;
use crate::train::{Decay, Optimizer, Schedule};
use crate::{Device, Error, Result, Stream, Tensor, no_grad};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::Range;

const BATCH: usize = 64;
const WEIGHT_DECAY: f64 = 0.05;
/// On the features.
const DROPOUT: f32 = 0.1;
/// What cosines are multiplied by.
const SHARPNESS: f32 = 20.0;
/// Added to a channel's deviation.
const EPS: f64 = 1e-6;

/// How a new projector is aligned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Align {
    pub epochs: usize,
    pub learning_rate: f64,
    pub stream: Stream,
}

/// What came of a new projector's first lesson: the number of examples, of answers among them, and the mean loss of the
/// first and of the last epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Aligned {
    pub examples: usize,
    pub answers: usize,
    pub first_loss: f64,
    pub last_loss: f64,
}

/// Examples about one picture.
struct Lessons {
    /// Of each example `[rows, d]`, as its tower made them.
    features: Vec<FeatureValues>,
    rows: usize,
    d: usize,
    /// `[n, width]`, each with mean 0 and variance 1.
    questions: Vec<f32>,
    /// The number of each answer.
    answers: Vec<u32>,
    /// `[answers, width]`, each of length 1.
    targets: Vec<f32>,
    /// Mean and deviation of each channel.
    channels: Vec<Channel>,
    /// The root mean square of the values of the embedding's rows.
    length: f64,
}

impl Align {
    /// Aligns the projector of a vision part to a decoder, on the examples whose one picture is one tile; a tower has
    /// looked at them.
    ///
    /// # Errors
    /// There are no such examples, they have one answer alone, or the projector has no biases.
    pub fn run(&self, model: &Model, vision: &VisionModel, data: &Dataset) -> Result<Aligned> {
        inside(model.device(), || self.lower(model, vision, data))
    }

    fn lower(&self, model: &Model, vision: &VisionModel, data: &Dataset) -> Result<Aligned> {
        let device = model.device();
        let projector = vision.projector();
        if matches!(projector.kind(), ProjectorKind::Shuffle { .. }) {
            let what = "is for the projector of a tower alone: linear, or mlp2x_gelu";
            return Err(Error::refused("train.align_epochs", what));
        }
        let lessons = Lessons::of(model, data)?;
        let n = lessons.answers.len();
        let width = model.config().hidden_size;
        let bound = (width as f32).sqrt().recip();
        let drawn = |name: &str| {
            let values = self.stream.named(name).uniform_vec(width * width, bound);
            Param::new(name, Tensor::from_f32(device, &[width, width], &values)?, true)
        };
        let heads = [drawn("query")?, drawn("key")?];
        let mut optimizer = Optimizer::new(projector.params().into_iter().chain(heads.clone()).collect())?;
        optimizer.weight_decay = WEIGHT_DECAY;
        let targets = Tensor::from_f32(device, &[lessons.targets.len() / width, width], &lessons.targets)?;
        let per_epoch = n.div_ceil(BATCH);
        let steps = self.epochs * per_epoch;
        let schedule = Schedule {
            learning_rate: self.learning_rate,
            warmup_steps: 0,
            decay: Decay::Cosine,
            ..Schedule::default()
        };
        let mut losses = Vec::with_capacity(steps);
        for epoch in 0..self.epochs {
            let order = shuffled(n, self.stream.named("order").fork(epoch as u64));
            for (i, batch) in order.chunks(BATCH).enumerate() {
                let step = epoch * per_epoch + i;
                let loss = self.loss(vision, &heads, &lessons, &targets, batch, step)?;
                losses.push(loss.item()?);
                let gradients = loss.backward()?;
                let norm = optimizer.norm(&gradients, 1.0)?;
                optimizer.update(&gradients, 1.0, schedule.rate(step, steps), &norm, Some(1.0))?;
            }
        }
        lessons.settle(vision)?;
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len().max(1) as f64;
        Ok(Aligned {
            examples: n,
            answers: lessons.targets.len() / width,
            first_loss: mean(&losses[..per_epoch.min(losses.len())]),
            last_loss: mean(&losses[losses.len().saturating_sub(per_epoch)..]),
        })
    }

    /// The mean cross-entropy of a batch.
    fn loss(
        &self,
        vision: &VisionModel,
        [query, key]: &[Param; 2],
        lessons: &Lessons,
        targets: &Tensor,
        batch: &[usize],
        step: usize,
    ) -> Result<Tensor> {
        let rows = lessons.rows;
        let width = targets.shape().last();
        let b = batch.len();
        let device = targets.device();
        let features = lessons.standardised(device, batch)?;
        let features = features.dropout(DROPOUT, self.stream.named("dropout").fork(step as u64))?;
        let z = vision.projector().forward(&features)?;
        let questions: Vec<f32> =
            batch.iter().flat_map(|&i| &lessons.questions[i * width..][..width]).copied().collect();
        let q = Tensor::from_f32(device, &[b, width], &questions)?;
        let q = q.matmul_nt(&query.tensor())?.repeat_rows(rows)?;
        let scores = z.matmul_nt(&key.tensor())?.mul(&q)?.sum_last()?.reshape(&[b, rows])?;
        let a = scores.scale((width as f32).sqrt().recip())?.softmax()?.reshape(&[b * rows, 1])?;
        let v = z.mul(&a)?.sum_groups(rows)?;
        let ones = Tensor::full(device, &[width], 1.0)?;
        let cosines = v.rms_norm(&ones, 1e-12)?.matmul_nt(targets)?;
        let logits = cosines.scale(SHARPNESS / (width as f32).sqrt())?;
        let answers: Vec<u32> = batch.iter().map(|&i| lessons.answers[i]).collect();
        let answers = Tensor::from_u32(device, &[b, 1], &answers)?;
        logits.log_softmax()?.pick(&answers)?.mean()?.scale(-1.0)
    }
}

/// The numbers below `n` in an order of their own.
fn shuffled(n: usize, stream: Stream) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_key(|&i| (stream.bits(i as u32), i));
    order
}

/// The tokens of an example's prompt that are of no picture.
fn asked(example: &Example) -> impl Iterator<Item = u32> {
    let of_picture = |at: &usize| example.pictures.iter().any(|place| place.span.contains(at));
    (0..example.prompt).filter(move |at| !of_picture(at)).map(|at| example.ids[at])
}

impl Lessons {
    fn of(model: &Model, data: &Dataset) -> Result<Self> {
        let refused = |what: &str| Err(Error::refused("train.align_epochs", what));
        let about_one = |e: &&Example| matches!(&e.pictures[..], [one] if one.tiles() == 1);
        let examples: Vec<&Example> =
            data.examples.iter().filter(|e| about_one(e) && e.prompt < e.ids.len()).collect();
        let Some(first) = examples.first().and_then(|e| e.pictures[0].features.as_ref()) else {
            return refused("needs examples with one picture, at which the tower looks as a whole");
        };
        let [_, rows, d] = first.dims;
        let mut numbers = BTreeMap::new();
        let mut answers = Vec::new();
        let mut questions = Vec::new();
        let mut features = Vec::new();
        for example in &examples {
            let next = numbers.len() as u32;
            answers.push(*numbers.entry(example.ids[example.prompt]).or_insert(next));
            questions.push(asked(example).collect::<Vec<u32>>());
            features.extend(example.pictures[0].features.as_ref().map(|seen| seen.values.clone()));
        }
        if numbers.len() < 2 {
            return refused("needs at least two answers that begin differently");
        }
        if features.len() != examples.len() || features.iter().any(|values| values.len() != rows * d) {
            return refused("needs pictures that all have as many rows");
        }
        let mut by_number: Vec<(u32, u32)> = numbers.into_iter().map(|(id, number)| (number, id)).collect();
        by_number.sort_unstable();
        let answer_ids: Vec<u32> = by_number.into_iter().map(|(_, id)| id).collect();
        let (targets, length) = directions(model, &answer_ids)?;
        let channels = channels(features.iter().flat_map(|values| values.chunks(d)), d);
        let questions = means(model, &questions)?;
        Ok(Lessons { features, rows, d, questions, answers, targets, channels, length })
    }

    /// The features of some examples, standardised, `[n, rows, d]`.
    fn standardised(&self, device: &Device, examples: &[usize]) -> Result<Tensor> {
        let mut values = Vec::with_capacity(examples.len() * self.rows * self.d);
        for row in examples.iter().flat_map(|&i| self.features[i].chunks(self.d)) {
            values.extend(row.iter().zip(&self.channels).map(|(&x, channel)| channel.standardised(x)));
        }
        Tensor::from_f32(device, &[examples.len(), self.rows, self.d], &values)
    }

    /// Makes a projector of standardised features one of features as they are, whose rows are as long as the embedding's.
    fn settle(&self, vision: &VisionModel) -> Result<()> {
        let params = vision.projector().params();
        let [weight, bias, ..] = &params[..] else { return Ok(()) };
        let device = weight.value().device().clone();
        let put = |param: &Param, values: &[f32]| {
            let dims = param.value().dims().to_vec();
            param.set(Tensor::from_f32(&device, &dims, values)?)
        };
        let some: Vec<usize> = (0..self.answers.len().min(4 * BATCH)).collect();
        let features = self.standardised(&device, &some)?;
        let z = no_grad(|| vision.projector().forward(&features))?.to_f32()?;
        let squares: f64 = z.iter().map(|&z| f64::from(z) * f64::from(z)).sum();
        let factor = self.length / (squares / z.len().max(1) as f64).sqrt().max(1e-12);
        for last in params.iter().rev().take(2) {
            let values: Vec<f32> =
                last.value().to_f32()?.iter().map(|&v| (f64::from(v) * factor) as f32).collect();
            put(last, &values)?;
        }
        let mut w = weight.value().to_f32()?;
        let mut b = bias.value().to_f32()?;
        fold(&mut w, &mut b, &self.channels);
        put(weight, &w)?;
        put(bias, &b)
    }
}

/// Makes a linear of standardised values, `W (x - mean) / deviation + b`, one of the values as they are.
fn fold(w: &mut [f32], b: &mut [f32], channels: &[Channel]) {
    for (w, b) in w.chunks_mut(channels.len()).zip(b) {
        let mut shift = 0.0;
        for (w, channel) in w.iter_mut().zip(channels) {
            let scaled = f64::from(*w) / channel.deviation;
            shift += scaled * channel.mean;
            *w = scaled as f32;
        }
        *b = (f64::from(*b) - shift) as f32;
    }
}

/// What the values of a channel are like.
#[derive(Debug, Clone, Copy)]
struct Channel {
    mean: f64,
    deviation: f64,
}

impl Channel {
    fn standardised(self, x: f32) -> f32 {
        ((f64::from(x) - self.mean) / self.deviation) as f32
    }
}

/// Mean and deviation of the `d` channels of rows.
fn channels<'a>(rows: impl Iterator<Item = &'a [f32]>, d: usize) -> Vec<Channel> {
    let mut sums = vec![[0.0f64; 2]; d];
    let mut count = 0.0;
    for row in rows {
        count += 1.0;
        for ([sum, squares], &x) in sums.iter_mut().zip(row) {
            *sum += f64::from(x);
            *squares += f64::from(x) * f64::from(x);
        }
    }
    let n = f64::max(count, 1.0);
    let channel = |[sum, squares]: [f64; 2]| {
        let mean = sum / n;
        Channel { mean, deviation: (squares / n - mean * mean).max(0.0).sqrt() + EPS }
    };
    sums.into_iter().map(channel).collect()
}

/// The embeddings of tokens, one after the other.
fn embedded(model: &Model, ids: &[u32]) -> Result<Vec<f32>> {
    let ids = Tensor::from_u32(model.device(), &[1, ids.len()], ids)?;
    no_grad(|| model.embed(&ids))?.to_f32()
}

/// The embeddings of tokens, each of length 1, and the root mean square of their values before.
fn directions(model: &Model, ids: &[u32]) -> Result<(Vec<f32>, f64)> {
    let width = model.config().hidden_size;
    let mut values = embedded(model, ids)?;
    let squares = |row: &[f32]| row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    let length = (squares(&values) / values.len().max(1) as f64).sqrt();
    for row in values.chunks_mut(width) {
        let norm = squares(row).sqrt().max(1e-12);
        row.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    }
    Ok((values, length))
}

/// The mean embedding of the tokens of each question, with mean 0 and variance 1.
fn means(model: &Model, questions: &[Vec<u32>]) -> Result<Vec<f32>> {
    let width = model.config().hidden_size;
    let mut places: BTreeMap<u32, usize> = BTreeMap::new();
    for &id in questions.iter().flatten() {
        let next = places.len();
        places.entry(id).or_insert(next);
    }
    let mut ids = vec![0; places.len()];
    places.iter().for_each(|(&id, &at)| ids[at] = id);
    let table = embedded(model, &ids)?;
    let row = |at: usize| -> Range<usize> { at * width..(at + 1) * width };
    let mut all = Vec::with_capacity(questions.len() * width);
    for question in questions {
        let mut mean = vec![0f64; width];
        for id in question {
            mean.iter_mut().zip(&table[row(places[id])]).for_each(|(m, &x)| *m += f64::from(x));
        }
        let centre = mean.iter().sum::<f64>() / width as f64;
        let variance = mean.iter().map(|m| (m - centre) * (m - centre)).sum::<f64>() / width as f64;
        let deviation = variance.sqrt().max(1e-12);
        all.extend(mean.iter().map(|m| ((m - centre) / deviation) as f32));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folded_linear_computes_the_same() {
        let d = 5;
        let mut given = Stream::new(1).normal_vec(40 * d, 3.0);
        given.iter_mut().skip(2).step_by(d).for_each(|x| *x += 100.0);
        let channels = channels(given.chunks(d), d);
        let x: Vec<f32> =
            given.iter().zip(channels.iter().cycle()).map(|(&x, channel)| channel.standardised(x)).collect();
        for c in 0..d {
            let of = || x.iter().skip(c).step_by(d).map(|&x| f64::from(x));
            assert!((of().sum::<f64>() / 40.0).abs() < 1e-5);
            assert!((of().map(|x| x * x).sum::<f64>() / 40.0 - 1.0).abs() < 1e-4);
        }
        let w = Stream::new(2).normal_vec(3 * d, 1.0);
        let b = Stream::new(3).normal_vec(3, 1.0);
        let mut folded = w.clone();
        let mut shifted = b.clone();
        fold(&mut folded, &mut shifted, &channels);
        let linear = |w: &[f32], b: f32, x: &[f32]| -> f64 {
            w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() + f64::from(b)
        };
        for (x, given) in x.chunks(d).zip(given.chunks(d)) {
            for row in 0..3 {
                let at = row * d..(row + 1) * d;
                let want = linear(&w[at.clone()], b[row], x);
                let got = linear(&folded[at], shifted[row], given);
                assert!((got - want).abs() < 1e-4, "{got} {want}");
            }
        }
    }

    #[test]
    fn every_number_comes_once() {
        let mut order = shuffled(50, Stream::new(4));
        assert_ne!(order, (0..50).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..50).collect::<Vec<_>>());
    }
}
