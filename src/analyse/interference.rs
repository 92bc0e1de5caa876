//! Task interference: what a step for one task does to the loss of another.
//!
//! For a group of parameters theta (one side of one layer), with g(x) the gradient of the loss of x and `|g|` its norm, a step
//! for a sample of task j changes the loss of a sample of task i by
//!
//! ```text
//! D_j L_i(x_i) = E_{x_j}[ L_i(x_i; theta) - L_i(x_i; theta - eta g(x_j) / |g(x_j)|) ]
//!              = eta <u_j, g(x_i)> + O(eta^2),   u_j = E_{x_j}[ g(x_j) / |g(x_j)| ]
//! I[i][j]      = E_{x_i}[ D_j L_i(x_i) / D_i L_i(x_i) ]
//! ```
//!
//! The first-order form is what is computed: eta cancels, and no parameter moves.

use super::scores::{Scores, mean};
use super::{TaskBatches, check_tasks};
use crate::adapter::{Adapter, Bank};
use crate::data::Batch;
use crate::mixture::Side;
use crate::model::{Model, SiteKind};
use crate::nn::Param;
use crate::tape::inside;
use crate::train::{plain_pass, summed_loss};
use crate::{Error, Gradients, Result, Tensor, backward};
use serde::Serialize;

/// The most bytes of directions that are kept, 4 for each trained value and task.
const MOST: usize = 8 << 30;

/// Interference between tasks through the parameters of an adapter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Interference {
    pub tasks: Vec<String>,
    /// Batches of each task, each an x of the formulas.
    pub batches: Vec<usize>,
    /// For each side that has trained parameters: A, B, the rest.
    pub sides: Vec<SideScores>,
}

/// Interference through one side of all updates.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SideScores {
    pub side: Side,
    /// Trained values.
    pub values: usize,
    /// `I`, the mean over layers.
    pub scores: Scores,
    /// The ratio of means of a step in all layers at once, as long in each: the changes of the layers are summed before they
    /// are divided.
    pub of_means: Scores,
    pub layers: Vec<LayerScores>,
}

/// Interference through one side of one layer's updates.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerScores {
    /// Its number; none for what acts before the first layer.
    pub layer: Option<usize>,
    /// Trained values.
    pub values: usize,
    /// `I[i][j]`, a mean of ratios: 1 on the diagonal, negative where a step for task j raises the loss of task i. None
    /// where one of the tasks has no gradient.
    pub scores: Scores,
    /// `E_{x_i}[D_j L_i] / eta`, what the loss of task i falls by for a step of length 1, to first order.
    pub changes: Scores,
    /// The ratio of means, `E_{x_i}[D_j L_i] / E_{x_i}[D_i L_i]`: the same where all batches of a task agree. A mean of
    /// ratios hangs on batches whose denominator is near zero; this does not.
    pub of_means: Scores,
    /// Batches of each task without a gradient, which count nowhere.
    pub silent: Vec<usize>,
    /// Batches of each task whose loss a step for their own task raises: their ratios have the opposite sign.
    pub contrary: Vec<usize>,
}

/// Interference between tasks through the trained parameters of an adapter, by side and layer. Losses are means over the
/// trained tokens of a batch, without dropout and without auxiliary losses. Every batch goes forward and backward twice;
/// `done` is told of each time.
///
/// ```
/// use mixlora::analyse::{TaskBatches, interference};
/// use mixlora::data::{Batch, Example};
/// use mixlora::{Device, Stream, adapter::Adapter, mixture::find, model::Model};
///
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/models/qwen3-b");
/// let device = Device::cpu();
/// let model = Model::open(path.as_ref(), &device)?;
/// let lora = find("lora")?.defaults().with("r", 2)?;
/// let adapter = Adapter::attach(&model, &lora, &["q_proj".into()], Stream::new(1))?;
/// let batch = |ids: &[u32]| {
///     let example = Example::new(ids.to_vec(), vec![true; ids.len()]);
///     Batch::new(&[&example], None, 0, &device)
/// };
/// let task = |task: &str, batches| TaskBatches { task: task.into(), batches };
/// let tasks = [task("up", vec![batch(&[1, 2, 3])?]), task("down", vec![batch(&[3, 2, 1])?])];
/// let found = interference(&model, &adapter, &tasks, &mut |_| ())?;
/// // B = 0 in a fresh adapter, so that A has no gradient yet.
/// assert_eq!(found.sides[0].scores.0, [[None, None], [None, None]]);
/// assert_eq!(found.sides[1].scores.0[0][0], Some(1.0));
/// # Ok::<(), mixlora::Error>(())
/// ```
///
/// # Errors
/// There are fewer than two tasks, one has no sample with a trained token, nothing is trained, the directions of all
/// tasks take more than 8 GiB, a gradient is not finite, or the device failed.
pub fn interference(
    model: &Model,
    adapter: &Adapter,
    tasks: &[TaskBatches],
    done: &mut dyn FnMut(usize),
) -> Result<Interference> {
    check_tasks(tasks)?;
    let groups = groups(model, adapter);
    if groups.is_empty() {
        return Err(Error::refused("adapter", "has no trained parameter: there is no gradient to look at"));
    }
    let values: usize = groups.iter().map(|group| group.values).sum();
    if values.saturating_mul(4 * tasks.len()) > MOST {
        let what = format!(
            "{values} trained values and {} tasks need more than {} GiB for their directions: take fewer tasks",
            tasks.len(),
            MOST >> 30
        );
        return Err(Error::refused("task", what));
    }
    let mut counters: Vec<Counter> =
        groups.iter().map(|group| Counter::new(tasks.len(), group.values)).collect();
    for count in [Counter::direct, Counter::measure] {
        for (number, TaskBatches { task, batches }) in tasks.iter().enumerate() {
            for batch in batches.iter().filter(|batch| batch.trained > 0) {
                let gradients = gradients(model, adapter, batch)?;
                for (group, counter) in groups.iter().zip(&mut counters) {
                    let gradient = group.gradient(&gradients)?;
                    if !gradient.iter().all(|value| value.is_finite()) {
                        let what = format!("the gradient of a sample of task '{task}' is not finite");
                        return Err(Error::refused("adapter", what));
                    }
                    count(counter, number, &gradient);
                }
                done(1);
            }
        }
    }
    let of_side = |side: Side| {
        let of = |(group, counter): (&Group, &Counter)| {
            (group.side == side).then(|| counter.scores(group.layer, group.values))
        };
        let layers: Vec<LayerScores> = groups.iter().zip(&counters).filter_map(of).collect();
        (!layers.is_empty()).then(|| SideScores {
            side,
            values: layers.iter().map(|layer| layer.values).sum(),
            scores: Scores::mean(layers.iter().map(|layer| &layer.scores)),
            of_means: of_means(&layers.iter().map(|layer| &layer.changes).collect::<Vec<_>>()),
            layers,
        })
    };
    Ok(Interference {
        tasks: tasks.iter().map(|task| task.task.clone()).collect(),
        batches: tasks.iter().map(|task| task.batches.len()).collect(),
        sides: [Side::A, Side::B, Side::Rest].into_iter().filter_map(of_side).collect(),
    })
}

/// The trained parameters of one side of one layer.
struct Group {
    side: Side,
    layer: Option<usize>,
    params: Vec<Param>,
    values: usize,
}

impl Group {
    /// Its gradient; zeros where the loss does not depend on a parameter.
    fn gradient(&self, gradients: &Gradients) -> Result<Vec<f64>> {
        let mut all = Vec::with_capacity(self.values);
        for param in &self.params {
            match param.gradient(gradients) {
                Some(gradient) => all.extend(gradient.to_f64()?),
                None => all.resize(all.len() + param.value().len(), 0.0),
            }
        }
        Ok(all)
    }
}

/// The groups of an adapter, by layer.
fn groups(model: &Model, adapter: &Adapter) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (number, site) in model.sites().iter().enumerate() {
        let layer = (site.kind != SiteKind::Start).then_some(site.layer);
        let params = adapter.sites().get(number).map(|at| at.params()).unwrap_or_default();
        for param in params.into_iter().filter(Param::trainable) {
            let name = param.parts().first().map_or("", |(name, _)| name.rsplit('.').next().unwrap_or(""));
            let side = adapter.method().options().side(name);
            let values = param.value().len();
            match groups.iter_mut().find(|group| group.side == side && group.layer == layer) {
                Some(group) => {
                    group.params.push(param);
                    group.values += values;
                }
                None => groups.push(Group { side, layer, params: vec![param], values }),
            }
        }
    }
    groups
}

/// Gradients of the mean loss of a batch.
fn gradients(model: &Model, adapter: &Adapter, batch: &Batch) -> Result<Gradients> {
    inside(model.device(), || {
        let pass = plain_pass(&Bank::from(adapter), batch)?;
        let loss = summed_loss(model, batch, &pass, false)?;
        let seed = Tensor::full(loss.device(), loss.dims(), 1.0 / batch.trained as f32)?;
        backward(&[(&loss, seed)])
    })
}

/// The ratios of changes, summed over groups, to those of a step for the task itself.
fn of_means(changes: &[&Scores]) -> Scores {
    let ratio = |i: usize, j: usize| {
        let pairs = changes.iter().filter_map(|group| Some([group.0[i][j]?, group.0[i][i]?]));
        let [other, own] = pairs.fold([0.0; 2], |sums, pair| [sums[0] + pair[0], sums[1] + pair[1]]);
        (own != 0.0).then(|| other / own)
    };
    Scores::of(changes.first().map_or(0, |first| first.0.len()), ratio)
}

/// What is counted of one group: first the direction of each task, then what a step along each does.
struct Counter {
    /// Sums of `g / |g|` over the batches of a task that have a gradient, and how many these are.
    directions: Vec<(Vec<f32>, usize)>,
    /// `D_j L_i(x_i) / eta` of each j, by i and x_i.
    changes: Vec<Vec<Vec<f64>>>,
    silent: Vec<usize>,
}

impl Counter {
    fn new(tasks: usize, values: usize) -> Self {
        Counter {
            directions: vec![(vec![0.0; values], 0); tasks],
            changes: vec![Vec::new(); tasks],
            silent: vec![0; tasks],
        }
    }

    /// Adds a batch to the direction of its task.
    fn direct(&mut self, task: usize, gradient: &[f64]) {
        let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
        if norm > 0.0 {
            let (sum, count) = &mut self.directions[task];
            sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += (g / norm) as f32);
            *count += 1;
        }
    }

    /// Measures what a step along each direction does to a batch of a task.
    fn measure(&mut self, task: usize, gradient: &[f64]) {
        if gradient.iter().all(|g| *g == 0.0) {
            self.silent[task] += 1;
            return;
        }
        let change = |(sum, count): &(Vec<f32>, usize)| {
            let product = sum.iter().zip(gradient).map(|(u, g)| f64::from(*u) * g).sum::<f64>();
            product / (*count).max(1) as f64
        };
        self.changes[task].push(self.directions.iter().map(change).collect());
    }

    fn scores(&self, layer: Option<usize>, values: usize) -> LayerScores {
        let tasks = self.directions.len();
        let defined = |j: usize| self.directions[j].1 > 0;
        let ratio = |i: usize, j: usize| {
            let usable = self.changes[i].iter().filter(|change| change[i] != 0.0);
            mean(usable.map(|change| change[j] / change[i])).filter(|_| defined(j))
        };
        let change =
            |i: usize, j: usize| mean(self.changes[i].iter().map(|change| change[j])).filter(|_| defined(j));
        let against = |(i, changes): (usize, &Vec<Vec<f64>>)| changes.iter().filter(|c| c[i] < 0.0).count();
        let changes = Scores::of(tasks, change);
        LayerScores {
            layer,
            values,
            scores: Scores::of(tasks, ratio),
            of_means: of_means(&[&changes]),
            changes,
            silent: self.silent.clone(),
            contrary: self.changes.iter().enumerate().map(against).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scores of tasks by the gradients of their batches.
    fn of(tasks: &[&[&[f64]]]) -> LayerScores {
        let mut counter = Counter::new(tasks.len(), tasks[0][0].len());
        for count in [Counter::direct, Counter::measure] {
            for (task, batches) in tasks.iter().enumerate() {
                batches.iter().for_each(|gradient| count(&mut counter, task, gradient));
            }
        }
        counter.scores(None, 0)
    }

    #[test]
    fn opposite_tasks_have_minus_one_and_unrelated_ones_zero() {
        let found = of(&[&[&[3.0, 0.0, 4.0]], &[&[-0.3, 0.0, -0.4]], &[&[0.0, 9.0, 0.0]]]);
        let wanted = [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
        for (row, wanted) in found.scores.0.iter().zip(wanted) {
            for (cell, wanted) in row.iter().zip(wanted) {
                assert!((cell.unwrap() - wanted).abs() < 1e-7, "{found:?}");
            }
        }
        for (ratios, means) in found.scores.0.iter().flatten().zip(found.of_means.0.iter().flatten()) {
            assert!((ratios.unwrap() - means.unwrap()).abs() < 1e-9, "{found:?}");
        }
        // A step of the same length along a direction at 60 degrees helps half as much.
        let found = of(&[&[&[2.0, 0.0]], &[&[0.5, 0.75f64.sqrt()]]]);
        assert!((found.scores.0[0][1].unwrap() - 0.5).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn the_order_of_batches_and_tasks_does_not_matter() {
        let a: [&[f64]; 2] = [&[1.0, 2.0], &[0.5, -1.0]];
        let b: [&[f64]; 3] = [&[2.0, 0.1], &[-1.0, 1.0], &[0.2, 0.2]];
        let one = of(&[&a, &b]);
        let two = of(&[&[b[2], b[0], b[1]], &[a[1], a[0]]]);
        for (i, j) in [(0, 1), (1, 0), (0, 0), (1, 1)] {
            for [one, two] in [[&one.scores, &two.scores], [&one.of_means, &two.of_means]] {
                let difference = one.0[i][j].unwrap() - two.0[1 - i][1 - j].unwrap();
                assert!(difference.abs() < 1e-6, "{one:?} {two:?}");
            }
        }
        assert!(one.scores.0[1][0] != one.of_means.0[1][0], "batches of b do not agree: {one:?}");
    }

    #[test]
    fn batches_without_a_gradient_count_nowhere() {
        let with = of(&[&[&[0.0, 0.0], &[1.0, 2.0]], &[&[2.0, 1.0]], &[&[0.0, 0.0]]]);
        let without = of(&[&[&[1.0, 2.0]], &[&[2.0, 1.0]]]);
        assert_eq!(with.silent, [1, 0, 1]);
        assert_eq!(with.scores.0[0][..2], without.scores.0[0]);
        assert_eq!(with.scores.0[2], [None, None, None]);
        assert_eq!((with.scores.0[0][2], with.of_means.0[1][2]), (None, None));
    }

    #[test]
    fn a_batch_against_its_own_task_is_counted() {
        let found = of(&[&[&[1.0, 0.0], &[1.0, 0.0], &[-2.0, 0.0]], &[&[1.0, 0.0]]]);
        assert_eq!(found.contrary, [1, 0]);
        // The step of task 0 is a third as long as it could be: two batches agree, and one is against them.
        assert!((found.changes.0[1][0].unwrap() - 1.0 / 3.0).abs() < 1e-6, "{found:?}");
        assert_eq!((found.changes.0[0][0], found.of_means.0[0][1]), (Some(0.0), None));
        assert!((found.scores.0[0][1].unwrap() - 3.0).abs() < 1e-6, "{found:?}");
    }
}
