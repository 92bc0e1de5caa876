//! Times of a vision tower's forward pass, compared with its dense products.

use super::{Candidate, Costs, Place, Roof, Rounds, Row, Summary, Timer, Watch, Work, measure};
use crate::model::vision::{Tower, TowerWork, VisionModel};
use crate::nn::Pass;
use crate::routing::Units;
use crate::tape::inside;
use crate::{Device, Error, Result, Stream, Tensor, no_grad};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

/// Options for timing a tower.
#[derive(Debug, Clone, Copy)]
pub struct TowerOptions {
    /// Pictures of a pass.
    pub pictures: usize,
    pub rounds: Rounds,
    /// The host's clock also where the device has timestamps.
    pub wall: bool,
}

/// A picture that stands in front of what is timed, and the vision part that sees it.
pub struct Pictured {
    pub vision: Arc<VisionModel>,
    /// What the tower reads, `[T, 3, H, W]`.
    pub pixels: Tensor,
    /// Reads the picture's file and makes those values of it, where there is a file.
    pub prepare: Option<Box<dyn Fn() -> Result<()> + Send + Sync>>,
}

impl Pictured {
    /// A made-up picture in the size that a tower is made for.
    ///
    /// # Errors
    /// The device failed.
    pub fn made_up(vision: Arc<VisionModel>) -> Result<Self> {
        let pixels = pixels(vision.tower(), 1)?;
        Ok(Pictured { vision, pixels, prepare: None })
    }

    /// Rows that it has among the tokens.
    pub(super) fn rows(&self) -> usize {
        self.pixels.dims()[0] * self.vision.config().rows()
    }

    /// What the tower makes of it.
    pub(super) fn features(&self) -> Result<Tensor> {
        forward(self.vision.tower(), &self.pixels)
    }

    /// A row for that, with samples in seconds.
    pub(super) fn row(&self, place: &Place, work: Work, timer: Timer, samples: &[f64]) -> Row {
        let [tiles, _, height, width] = *self.pixels.dims() else {
            return Row::new(place, work, timer, samples);
        };
        let tower = self.vision.tower();
        let variant = format!("{} x {height}x{width}", tiles);
        let work = Work { variant, shape: tower.config().model_type().into(), dtype: "f32".into(), ..work };
        Row::new(place, work, timer, samples).costs(Some(costs(&tower.work([tiles, height, width]))), None)
    }
}

/// Made-up pictures `[n, 3, side, side]` in the size that a tower is made for.
fn pixels(tower: &Tower, n: usize) -> Result<Tensor> {
    let side = tower.config().image_size();
    let values = Stream::new(13).named("pixels").normal_vec(n * 3 * side * side, 1.0);
    Tensor::from_f32(tower.device(), &[n, 3, side, side], &values)
}

fn forward(tower: &Tower, pixels: &Tensor) -> Result<Tensor> {
    inside(tower.device(), || no_grad(|| tower.forward(pixels, &Pass::new(Units::tokens(0)), None)))
}

/// The work of a whole pass; of values that several products read, each reads them anew.
fn costs(work: &TowerWork<'_>) -> Costs {
    let dense = dense_costs(work);
    Costs { flops: dense.flops + work.flops_beside, bytes: dense.bytes + 4.0 * work.values_beside }
}

/// The work of the dense products alone.
fn dense_costs(work: &TowerWork<'_>) -> Costs {
    let sum = |each: fn(&crate::model::vision::TowerProduct<'_>) -> f64| work.products.iter().map(each).sum();
    Costs { flops: sum(|p| p.flops()), bytes: 4.0 * sum(|p| p.values()) }
}

/// The dense products of one forward pass, on values of their own.
struct Floor<'a> {
    work: &'a TowerWork<'a>,
    /// Values `[rows, width]` for every number of rows and width.
    values: BTreeMap<(usize, usize), Tensor>,
}

impl<'a> Floor<'a> {
    fn new(work: &'a TowerWork<'a>, device: &Device) -> Result<Self> {
        let mut values = BTreeMap::new();
        for product in &work.products {
            let sizes = (product.rows, product.d_in);
            if let Entry::Vacant(entry) = values.entry(sizes) {
                let normal = Stream::new(9).normal_vec(sizes.0 * sizes.1, 1.0);
                entry.insert(Tensor::from_f32(device, &[sizes.0, sizes.1], &normal)?);
            }
        }
        Ok(Floor { work, values })
    }

    fn run(&self, device: &Device) -> Result<()> {
        let each =
            |p: &crate::model::vision::TowerProduct<'_>| p.run(&self.values[&(p.rows, p.d_in)]).map(drop);
        inside(device, || no_grad(|| self.work.products.iter().try_for_each(each)))
    }
}

/// Times the forward pass of a tower and its dense products in interleaved rounds. The ratio of the pass is to the products;
/// its percentage is of the device's roof at its intensity.
///
/// # Errors
/// No picture is asked for, or the device failed.
pub fn tower(tower: &Tower, name: &str, options: TowerOptions, roof: Option<&Roof>) -> Result<Vec<Row>> {
    let n = options.pictures;
    let side = tower.config().image_size();
    if n == 0 || n.saturating_mul(3 * side * side) > crate::shape::MAX_ELEMENTS {
        return Err(Error::config("images", n, "at least 1, and no more than fit one tensor"));
    }
    let device = tower.device();
    let pixels = pixels(tower, n)?;
    let work = tower.work([n, side, side]);
    let floor = Floor::new(&work, device)?;
    if !forward(tower, &pixels)?.to_f32()?.iter().all(|v| v.is_finite()) {
        return Err(Error::refused("tower", "makes features that are not finite"));
    }
    let whole: Candidate<'_> = Box::new(|watch: &mut Watch| {
        let times = watch.batch();
        watch.time(|| (0..times).try_for_each(|_| forward(tower, &pixels).map(drop)))
    });
    let dense: Candidate<'_> = Box::new(|watch: &mut Watch| {
        let times = watch.batch();
        watch.time(|| (0..times).try_for_each(|_| floor.run(device)))
    });
    let timer = Timer::of(device, options.wall)?;
    let samples = measure(device, timer, options.rounds, &mut [whole, dense])?;
    let place = Place::of(device);
    let row = |op: &str, samples: &[f64], costs: Costs| {
        let work = Work {
            bench: "tower".into(),
            op: op.into(),
            variant: format!("{n} x {side}x{side}"),
            shape: name.into(),
            dtype: "f32".into(),
            dir: "fwd".into(),
        };
        Row::new(&place, work, timer, samples).costs(Some(costs), roof)
    };
    let forward = row("forward", &samples[0], costs(&work));
    Ok(vec![
        forward.ratio(Summary::of_ratios(&samples[0], &samples[1])),
        row("dense products", &samples[1], dense_costs(&work)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::vision::TowerShape;

    /// Twice the multiply-adds: of CLIP's as published; of Lite0's convolutions counted by hand (0.385 with the head of classes,
    /// which no tower computes, and 0.40 where norms are counted too, as published).
    #[test]
    fn work_is_that_of_published_towers() {
        for (name, giga, bound) in [("clip-b16", 17.6, 0.04), ("efficientnet-lite0", 0.363_837, 1e-4)] {
            let shape = TowerShape::parse(name).unwrap();
            let tower = Tower::of_shape(&shape, &Device::cpu()).unwrap();
            let flops = costs(&tower.work([1, 224, 224])).flops;
            assert!((flops * 0.5e-9 / giga - 1.0).abs() < bound, "{name}: {}", flops * 0.5e-9);
        }
    }
}
