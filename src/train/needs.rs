//! What a run takes of the data that it has read.

use super::{Fit, Inputs, Plan, PlannedPictures, RunConfig, Tiles};
use crate::data::{Dataset, PicturePlace};
use crate::model::Weights;
use crate::model::vision::VisionPlace;
use crate::{Device, Result};
use std::collections::HashMap;

impl Inputs {
    /// How much memory the run will take, on a device where it is known: for the longest example, and at most as many
    /// examples as there are.
    ///
    /// # Errors
    /// An option does not fit the model, or the vision part cannot be read.
    pub fn plan(&self, device: Option<&Device>) -> Result<Plan> {
        let config = self.resolved(device)?;
        let pictures = self.pictures(config.device.weights)?;
        Plan::with_pictures(&self.model, &self.at_most(&config), self.longest(), device, pictures.as_ref())
    }

    /// Settings with the format of the weights, where they leave it open.
    pub(super) fn resolved(&self, device: Option<&Device>) -> Result<RunConfig> {
        let mut config = self.config.clone();
        if config.device.weights == Weights::Auto {
            let pictures = self.pictures(Weights::F32)?;
            let at_most = self.at_most(&config);
            config.device.weights =
                Plan::weights(&self.model, &at_most, self.longest(), device, pictures.as_ref())?;
        }
        Ok(config)
    }

    /// Takes the gentlest settings with which the run fits into its budget, or without one into what the device has free.
    /// The options that say what is changed; none where no settings fit, and nothing changes.
    ///
    /// # Errors
    /// Those of [`plan`](Inputs::plan).
    pub fn fit(&mut self, device: Option<&Device>) -> Result<Option<String>> {
        let config = self.resolved(device)?;
        let plan = |config: &RunConfig| {
            let pictures = self.pictures(config.device.weights)?;
            Plan::sized(&self.model, &self.at_most(config), self.longest(), device, pictures.as_ref())
        };
        let fit = Fit::find(&self.model, &config, plan)?;
        Ok(fit.map(|fit| {
            self.config = fit.config;
            fit.saving.options(&config)
        }))
    }

    /// Tokens of the longest example.
    fn longest(&self) -> usize {
        self.sets().flat_map(|set| set.lengths()).max().unwrap_or(1)
    }

    fn sets(&self) -> impl Iterator<Item = &Dataset> {
        std::iter::once(&self.train).chain(&self.valid)
    }

    /// Settings with a micro-batch of no more examples than there are.
    fn at_most(&self, config: &RunConfig) -> RunConfig {
        let most = self.sets().map(|set| set.examples.len()).max().unwrap_or(1);
        let mut config = config.clone();
        config.train.micro_batch = config.train.micro_batch.min(most);
        // Wrong answers go through the model as the right ones do.
        if self.train.examples.iter().any(|example| example.rejected.is_some()) {
            config.train.micro_batch *= 2;
        }
        config
    }

    /// The pictures of the data, by their headers, with the vision part that sees them; none where there are none.
    fn pictures(&self, weights: Weights) -> Result<Option<PlannedPictures>> {
        let examples: Vec<_> = self.sets().flat_map(|set| &set.examples).map(|e| &e.pictures).collect();
        let pictures: HashMap<_, _> = examples.iter().copied().flatten().map(|p| (&p.source, p)).collect();
        let place = VisionPlace::of(&self.config.model, self.config.vision.as_deref())?;
        let (Some(place), Some(largest)) = (place, pictures.values().max_by_key(|p| p.tile[0] * p.tile[1]))
        else {
            return Ok(None);
        };
        let Some(config) = place.config(self.model.config().hidden_size, 0)? else { return Ok(None) };
        let planned = PlannedPictures::new(config, Some(&place.files()?), weights);
        let of_example = |places: &Vec<PicturePlace>| places.iter().map(PicturePlace::tiles).sum();
        Ok(Some(PlannedPictures {
            tile: largest.tile,
            tiles: Tiles {
                picture: pictures.values().map(|place| place.tiles()).max().unwrap_or(1),
                example: examples.into_iter().map(of_example).max().unwrap_or(1),
                all: pictures.values().map(|place| place.tiles()).sum(),
            },
            pictures: pictures.len(),
            kept_at_most: self.config.text.feature_bytes()?,
            ..planned
        }))
    }
}
