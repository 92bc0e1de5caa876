//! What the vision part of a model takes.

use crate::Format;
use crate::model::Weights;
use crate::model::vision::{ProjectorKind, TowerConfig, TowerShape, VisionConfig, VisionFiles};

/// The vision part of a run, and the pictures that go through it.
#[derive(Debug, Clone)]
pub struct PlannedPictures {
    pub config: VisionConfig,
    /// Bytes of the tower's weights.
    pub weights: u64,
    /// Height and width of a tile.
    pub tile: [usize; 2],
    /// Tiles of one picture at most, of one example at most, and of all pictures.
    pub tiles: Tiles,
    /// Pictures of the data.
    pub pictures: usize,
    /// Bytes of features that stay in memory at most; more are in files.
    pub kept_at_most: u64,
}

/// Numbers of tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiles {
    pub picture: usize,
    pub example: usize,
    pub all: usize,
}

impl Tiles {
    /// Those of one picture, which each example has.
    pub fn of_one(tiles: usize) -> Self {
        Tiles { picture: tiles, example: tiles, all: tiles }
    }
}

impl PlannedPictures {
    /// One picture of one tile in the size that the tower is made for, at which a tower of random weights looks.
    pub fn of_shape(shape: &TowerShape, width: usize) -> Self {
        Self::new(shape.vision(width, 0), None, Weights::File)
    }

    /// One picture of one tile. Without files, weights are as if those had f32.
    pub fn new(config: VisionConfig, files: Option<&VisionFiles>, weights: Weights) -> Self {
        let format = |name: &str, cols: usize| {
            weights.of(files.and_then(|files| files.format(name)).unwrap_or(Format::F32), cols)
        };
        let side = config.tower.image_size();
        PlannedPictures {
            weights: 4 * config.tower.stored_words(config.feature, format) as u64,
            config,
            tile: [side, side],
            tiles: Tiles::of_one(1),
            pictures: 1,
            kept_at_most: u64::MAX,
        }
    }

    /// Values of the features of a tile.
    fn tile_values(&self) -> f64 {
        let [rows, width] = self.features();
        rows * width
    }

    /// Rows of the features of a tile, and values of a row.
    fn features(&self) -> [f64; 2] {
        let config = &self.config;
        let [height, width] = self.tile;
        let rows = match &config.tower {
            TowerConfig::Vit(vit) => {
                let patches = (height / vit.patch_size) * (width / vit.patch_size);
                patches + usize::from(config.feature.class_token)
            }
            TowerConfig::EfficientNet(_) => {
                let grid = config.tower.grid(config.feature);
                grid * grid
            }
        };
        [rows as f64, config.tower.width(config.feature) as f64]
    }

    /// Rows among the tokens of one example.
    pub fn rows(&self) -> usize {
        self.tiles.example * self.config.rows()
    }

    /// Bytes of all features, and of those that stay in memory.
    pub fn kept(&self) -> (u64, u64) {
        let all = (4.0 * self.tile_values() * self.tiles.all as f64) as u64;
        (all, all.min(self.kept_at_most))
    }

    /// Values of the projector.
    pub fn projector(&self) -> f64 {
        let tensors = self.config.projector_tensors().into_iter();
        tensors.map(|e| e.axes.iter().map(|axis| axis.0 as f64).product::<f64>()).sum()
    }

    /// Floats that the tower has at a time while it looks at a picture.
    pub fn looking(&self) -> f64 {
        let tiles = self.tiles.picture as f64;
        let [height, width] = self.tile;
        let pixels = 3.0 * (height * width) as f64;
        match &self.config.tower {
            TowerConfig::Vit(vit) => {
                let patches = (height / vit.patch_size) * (width / vit.patch_size);
                let rows = vit.rows(patches) as f64;
                let d = vit.layers.hidden_size as f64;
                let f = vit.layers.intermediate_size as f64;
                // A block has its input, what its norms, attention, projection and sum make of it, both sides of the MLP's
                // activation, and what comes out.
                let layer = rows * (7.0 * d + 2.0 * f);
                // Pixels as patches, and runs of pixels by their numbers.
                let cut = pixels * (1.0 + (vit.patch_size as f64).recip()) + rows * d;
                tiles * (pixels + layer.max(cut))
            }
            TowerConfig::EfficientNet(net) => tiles * (pixels + net.widest(self.tile) as f64),
        }
    }

    /// Floats that a batch of `examples` has besides its text: features, and what the projector makes of them and keeps
    /// for its gradient where it is `trained`; and those that pass through. `positions` are those of the batch.
    pub fn in_batch(&self, examples: f64, positions: f64, trained: bool) -> (f64, f64) {
        let tiles = examples * self.tiles.example as f64;
        let features = tiles * self.tile_values();
        let width = self.config.width as f64;
        let rows = tiles * self.config.rows() as f64;
        let inner = match self.config.projector {
            ProjectorKind::Linear => 0.0,
            ProjectorKind::Mlp(_) => 2.0 * rows * width,
            // Neighbours side by side.
            ProjectorKind::Shuffle { .. } => features,
        };
        let rows = rows * width;
        let kept = if trained { features + inner } else { features };
        (kept, rows + 2.0 * positions * width)
    }
}
