//! Which factors tasks choose, and whether instances of a task choose alike.
//!
//! An instance a has at every place p an indicator vector v_ap: 1 for the factors that it chose, 0 for the others; of methods that
//! choose by token the share of its tokens that chose each. Two instances overlap by
//!
//! ```text
//! J(a, b) = mean_p  sum_e min(v_ape, v_bpe) / sum_e max(v_ape, v_bpe)
//! ```
//!
//! the Jaccard index of what they chose, 1 where it is the same and 0 where nothing is.

use super::scores::{Scores, mean};
use super::uses::{Place, Uses, uses};
use super::{TaskBatches, check_tasks, embedding};
use crate::adapter::{Adapter, Bank};
use crate::data::Batch;
use crate::model::Model;
use crate::nn::Choices;
use crate::tape::inside;
use crate::train::{RouterLoad, plain_pass, summed_loss};
use crate::{Error, Result, no_grad};
use rayon::prelude::*;
use serde::Serialize;

/// The most instances, all pairs of which are compared, and the most values of their vectors.
const MOST: usize = 2000;
const MOST_VALUES: usize = 1 << 28;

/// The choices of an adapter's routers by task.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Routing {
    pub tasks: Vec<String>,
    /// The task of each instance, by number.
    pub instances: Vec<usize>,
    /// The mean overlap of instances of two tasks; on the diagonal of two instances of a task: its consistency. None where
    /// a task has one instance.
    pub overlap: Scores,
    /// By task the share of the instances whose nearest other one, by overlap, is of the same task. Of several that are as near
    /// each counts its part.
    pub nearest: Vec<f64>,
    /// The same where choices say nothing of tasks: `(n_t - 1) / (n - 1)`.
    pub nearest_by_chance: Vec<f64>,
    pub layers: Vec<LayerRouting>,
    pub places: Vec<PlaceRouting>,
    /// Every instance as a point in the plane, by the distances of its indicator vectors: see [`embedding`].
    pub points: Vec<[f64; 2]>,
}

/// The choices at one place.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlaceRouting {
    #[serde(flatten)]
    pub place: Place,
    /// By task and factor the sum of the indicator vectors: how many instances chose it.
    pub counts: Vec<Vec<f64>>,
    /// The mean overlap of pairs of one task, and of pairs of two, at this place alone.
    pub within: Option<f64>,
    pub between: Option<f64>,
    /// Over the instances of all tasks.
    pub load: RouterLoad,
}

/// The means over the places of one layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerRouting {
    /// Its number; none for what acts before the first layer.
    pub layer: Option<usize>,
    pub places: usize,
    pub within: Option<f64>,
    pub between: Option<f64>,
    pub load: RouterLoad,
}

/// The choices of an adapter's routers for the instances of tasks, as at inference. Every batch goes forward once; `done` is told
/// of the instances.
///
/// ```
/// use mixlora::analyse::{TaskBatches, routing};
/// use mixlora::data::{Batch, Example};
/// use mixlora::{Device, Stream, adapter::Adapter, mixture::find, model::Model};
///
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/models/qwen3-b");
/// let device = Device::cpu();
/// let model = Model::open(path.as_ref(), &device)?;
/// let method = find("mixlora-cond")?.defaults().with("num_factors", 8)?.with("r", 2)?;
/// let adapter = Adapter::attach(&model, &method, &["q_proj".into()], Stream::new(1))?;
/// let task = |task: &str, ids: [u32; 3]| {
///     let example = Example::new(ids.to_vec(), vec![false, false, true]);
///     let batch = Batch::new(&[&example, &example], method.framing(), 0, &device)?;
///     Ok::<_, mixlora::Error>(TaskBatches { task: task.into(), batches: vec![batch] })
/// };
/// let found = routing(&model, &adapter, &[task("up", [1, 2, 3])?, task("down", [9, 8, 7])?], &mut |_| ())?;
/// // Equal instances choose the same.
/// assert_eq!(found.overlap.0[0][0], Some(1.0));
/// assert_eq!(found.places[0].place.name, "layers.0.qkv.q_proj.A");
/// assert_eq!(found.places[0].counts[0].iter().sum::<f64>(), 4.0);
/// # Ok::<(), mixlora::Error>(())
/// ```
///
/// # Errors
/// There are fewer than two tasks, one has no sample with a trained token, the method chooses nothing, there are more than
/// 2000 instances or their vectors are too long, or the device failed.
pub fn routing(
    model: &Model,
    adapter: &Adapter,
    tasks: &[TaskBatches],
    done: &mut dyn FnMut(usize),
) -> Result<Routing> {
    check_tasks(tasks)?;
    let all: usize = tasks.iter().flat_map(|task| &task.batches).map(|batch| batch.spans.len()).sum();
    if all > MOST {
        let what =
            format!("{all} instances are more than {MOST}, all pairs of which are compared: take fewer");
        return Err(Error::refused("samples", what));
    }
    let mut seen = Seen::default();
    for (number, task) in tasks.iter().enumerate() {
        for batch in &task.batches {
            seen.add(number, chosen(model, adapter, batch)?)?;
            done(batch.spans.len());
        }
    }
    if seen.places.is_empty() {
        let what = format!(
            "{} has no choice to look at: it takes all that it has for every input. Methods with a column 'routes' in \
             `mixlora methods` choose, such as mixlora-cond; what tasks do to each other without choices: `analyse interference`",
            adapter.method().name()
        );
        return Err(Error::refused("method", what));
    }
    Ok(seen.report(tasks.iter().map(|task| task.task.clone()).collect()))
}

/// What the instances of a batch chose.
fn chosen(model: &Model, adapter: &Adapter, batch: &Batch) -> Result<Vec<Uses>> {
    let record = Choices::record();
    inside(model.device(), || {
        let pass = plain_pass(&Bank::from(adapter), batch)?.with_choices(record.clone());
        no_grad(|| summed_loss(model, batch, &pass, false)).map(drop)
    })?;
    uses(model, adapter, batch, &record)
}

/// The indicator vectors of instances.
#[derive(Default)]
struct Seen {
    places: Vec<Place>,
    instances: Vec<usize>,
    /// By instance: the vectors of all places, one behind the other.
    vectors: Vec<Vec<f32>>,
}

/// What two instances have in common.
struct Pair {
    /// By place.
    overlaps: Vec<f64>,
    /// Of the whole vectors.
    square: f64,
}

impl Seen {
    /// Adds the instances of a batch of a task.
    fn add(&mut self, task: usize, uses: Vec<Uses>) -> Result<()> {
        let places: Vec<&Place> = uses.iter().flat_map(|site| &site.places).collect();
        if self.instances.is_empty() {
            self.places = places.iter().map(|&place| place.clone()).collect();
        }
        if !places.iter().copied().eq(&self.places) {
            return Err(Error::refused("adapter", "chooses at other places in other batches"));
        }
        let count = uses.first().and_then(|site| site.shares.first()).map_or(0, Vec::len);
        let vector = |instance: usize| {
            let shares = uses.iter().flat_map(|site| &site.shares);
            shares.flat_map(|place| &place[instance]).copied().collect::<Vec<f32>>()
        };
        self.vectors.extend((0..count).map(vector));
        self.instances.resize(self.instances.len() + count, task);
        let values = self.vectors.iter().map(Vec::len).sum::<usize>();
        if values > MOST_VALUES {
            let what = format!(
                "{} instances have {values} choices to compare, at most {MOST_VALUES}: take fewer",
                self.instances.len()
            );
            return Err(Error::refused("samples", what));
        }
        Ok(())
    }

    fn pair(&self, a: usize, b: usize) -> Pair {
        let mut first = 0;
        let mut square = 0.0;
        let of_place = |place: &Place| {
            let range = first..first + place.factors;
            first = range.end;
            let mut least = 0.0;
            let mut most = 0.0;
            for (&a, &b) in self.vectors[a][range.clone()].iter().zip(&self.vectors[b][range]) {
                least += f64::from(a.min(b));
                most += f64::from(a.max(b));
                square += f64::from(a - b).powi(2);
            }
            // Two that take nothing take the same.
            if most > 0.0 { least / most } else { 1.0 }
        };
        let overlaps = self.places.iter().map(of_place).collect();
        Pair { overlaps, square }
    }

    fn report(&self, tasks: Vec<String>) -> Routing {
        let n = self.instances.len();
        let mut pairs = Pairs::new(n, tasks.len(), self.places.len());
        for a in 0..n {
            let row: Vec<Pair> = (0..a).into_par_iter().map(|b| self.pair(a, b)).collect();
            row.iter().enumerate().for_each(|(b, pair)| pairs.add(&self.instances, [a, b], pair));
        }
        let places: Vec<PlaceRouting> =
            (0..self.places.len()).map(|place| self.place(place, tasks.len(), &pairs)).collect();
        let size = |task: usize| self.instances.iter().filter(|t| **t == task).count();
        let chance = |task| size(task).saturating_sub(1) as f64 / (n - 1).max(1) as f64;
        Routing {
            overlap: Scores::of(tasks.len(), |i, j| pairs.tasks[i.max(j)][i.min(j)].mean()),
            nearest: pairs.nearest(&self.instances, tasks.len()),
            nearest_by_chance: (0..tasks.len()).map(chance).collect(),
            layers: layers(&places),
            places,
            points: embedding(&pairs.squares, n),
            instances: self.instances.clone(),
            tasks,
        }
    }

    fn place(&self, number: usize, tasks: usize, pairs: &Pairs) -> PlaceRouting {
        let place = &self.places[number];
        let first: usize = self.places[..number].iter().map(|place| place.factors).sum();
        let mut counts = vec![vec![0.0; place.factors]; tasks];
        for (task, vector) in self.instances.iter().zip(&self.vectors) {
            let shares = &vector[first..first + place.factors];
            counts[*task].iter_mut().zip(shares).for_each(|(count, share)| *count += f64::from(*share));
        }
        let total = |factor: usize| counts.iter().map(|of_task| of_task[factor]).sum::<f64>();
        let all: Vec<f64> = (0..place.factors).map(total).collect();
        PlaceRouting {
            place: place.clone(),
            counts,
            within: pairs.places[number][0].mean(),
            between: pairs.places[number][1].mean(),
            load: RouterLoad::of(&all),
        }
    }
}

/// A sum and how many were added.
#[derive(Clone, Copy, Default)]
struct Sum(f64, usize);

impl Sum {
    fn add(&mut self, value: f64) {
        self.0 += value;
        self.1 += 1;
    }
    fn mean(self) -> Option<f64> {
        (self.1 > 0).then(|| self.0 / self.1 as f64)
    }
}

/// What is known of all pairs of instances.
struct Pairs {
    n: usize,
    /// Squared distances and overlaps, `[n, n]`.
    squares: Vec<f64>,
    overlaps: Vec<f64>,
    /// Overlaps of pairs of tasks, the larger number first.
    tasks: Vec<Vec<Sum>>,
    /// By place the overlaps of pairs of one task, and of two.
    places: Vec<[Sum; 2]>,
}

impl Pairs {
    fn new(n: usize, tasks: usize, places: usize) -> Self {
        Pairs {
            n,
            squares: vec![0.0; n * n],
            overlaps: vec![0.0; n * n],
            tasks: vec![vec![Sum::default(); tasks]; tasks],
            places: vec![[Sum::default(); 2]; places],
        }
    }

    fn add(&mut self, instances: &[usize], [a, b]: [usize; 2], pair: &Pair) {
        let overlap = mean(pair.overlaps.iter().copied()).unwrap_or(1.0);
        for at in [a * self.n + b, b * self.n + a] {
            self.squares[at] = pair.square;
            self.overlaps[at] = overlap;
        }
        let i = instances[a];
        let j = instances[b];
        self.tasks[i.max(j)][i.min(j)].add(overlap);
        for (sums, overlap) in self.places.iter_mut().zip(&pair.overlaps) {
            sums[usize::from(i != j)].add(*overlap);
        }
    }

    /// By task the share of instances whose nearest other one is of the task.
    fn nearest(&self, instances: &[usize], tasks: usize) -> Vec<f64> {
        let mut sums = vec![Sum::default(); tasks];
        for (a, task) in instances.iter().enumerate() {
            let overlap = |b: usize| self.overlaps[a * self.n + b];
            let others = || (0..self.n).filter(move |b| *b != a);
            let most = others().map(overlap).fold(f64::MIN, f64::max);
            let nearest: Vec<usize> = others().filter(|b| overlap(*b) == most).collect();
            let same = nearest.iter().filter(|b| instances[**b] == *task).count();
            sums[*task].add(same as f64 / nearest.len().max(1) as f64);
        }
        sums.into_iter().map(|sum| sum.mean().unwrap_or(0.0)).collect()
    }
}

/// The means over the places of each layer, in the order of layers.
fn layers(places: &[PlaceRouting]) -> Vec<LayerRouting> {
    let mut numbers: Vec<Option<usize>> = places.iter().map(|place| place.place.layer).collect();
    numbers.dedup();
    let of_layer = |layer: Option<usize>| {
        let own: Vec<&PlaceRouting> = places.iter().filter(|place| place.place.layer == layer).collect();
        let of =
            |figure: fn(&RouterLoad) -> f64| mean(own.iter().map(|place| figure(&place.load))).unwrap_or(0.0);
        LayerRouting {
            layer,
            places: own.len(),
            within: mean(own.iter().filter_map(|place| place.within)),
            between: mean(own.iter().filter_map(|place| place.between)),
            load: RouterLoad {
                load_max: of(|load| load.load_max),
                load_min: of(|load| load.load_min),
                entropy: of(|load| load.entropy),
                effective: of(|load| load.effective),
                unused: of(|load| load.unused),
            },
        }
    };
    numbers.into_iter().map(of_layer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str, factors: usize) -> Place {
        Place { name: name.into(), layer: Some(0), factors }
    }

    fn seen(instances: &[(usize, [f32; 6])]) -> Routing {
        let seen = Seen {
            places: vec![place("a", 4), place("b", 2)],
            instances: instances.iter().map(|(task, _)| *task).collect(),
            vectors: instances.iter().map(|(_, vector)| vector.to_vec()).collect(),
        };
        seen.report(vec!["x".into(), "y".into()])
    }

    const X: [f32; 6] = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0];
    const NEAR_X: [f32; 6] = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0];
    const Y: [f32; 6] = [0.0, 0.0, 1.0, 1.0, 0.0, 1.0];

    #[test]
    fn overlaps_are_those_of_sets() {
        let found = seen(&[(0, X), (0, NEAR_X), (1, Y), (1, Y)]);
        // One of three factors in common at the first place, the same at the second.
        assert_eq!(found.overlap.0[0][0], Some((1.0 / 3.0 + 1.0) / 2.0));
        assert_eq!(found.overlap.0[1][1], Some(1.0));
        // X and Y have nothing in common, NEAR_X and Y one of three at the first place.
        assert_eq!(found.overlap.0[0][1], Some((0.0 + 1.0 / 6.0) / 2.0));
        assert_eq!(found.overlap.0[0][1], found.overlap.0[1][0]);
        assert_eq!(found.places[0].counts, [[2.0, 1.0, 1.0, 0.0], [0.0, 0.0, 2.0, 2.0]]);
        assert_eq!(found.places[1].within, Some(1.0));
        assert_eq!(found.places[1].between, Some(0.0));
        assert_eq!(found.places[1].load.effective, 2.0);
        assert_eq!((&found.nearest[..], &found.nearest_by_chance[..]), (&[1.0; 2][..], &[1.0 / 3.0; 2][..]));
        assert_eq!(found.layers.len(), 1);
    }

    #[test]
    fn instances_that_choose_alike_are_as_near_to_any_task() {
        let found = seen(&[(0, X), (0, X), (1, X), (1, X), (1, X)]);
        assert_eq!(found.nearest, found.nearest_by_chance);
        assert_eq!(found.points, [[0.0; 2]; 5]);
    }

    #[test]
    fn the_order_of_instances_does_not_matter() {
        let one = seen(&[(0, X), (0, NEAR_X), (1, Y), (1, NEAR_X)]);
        let two = seen(&[(1, NEAR_X), (0, NEAR_X), (1, Y), (0, X)]);
        for (one, two) in one.overlap.0.iter().flatten().zip(two.overlap.0.iter().flatten()) {
            assert!((one.unwrap() - two.unwrap()).abs() < 1e-12);
        }
        assert_eq!(one.nearest, two.nearest);
        assert_eq!(one.places[0].counts, two.places[0].counts);
    }
}
