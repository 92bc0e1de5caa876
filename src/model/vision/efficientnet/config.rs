//! What an EfficientNet-Lite is made of, as `config.json` says it.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Values of `model_type` that are read.
pub(in crate::model::vision) const KINDS: [&str; 1] = ["efficientnet-lite0"];
/// Side of the stem's windows and their step.
pub(super) const STEM: [usize; 2] = [3, 2];
/// Blocks of all stages together.
const MOST_BLOCKS: usize = 256;

/// An EfficientNet-Lite, described: a stem of 3 x 3 windows at steps of 2, stages of blocks, and a head for classes. What
/// `config.json` leaves out is Lite0's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EfficientNetConfig {
    pub model_type: String,
    /// Side of the pictures that it is made for, in pixels; others are seen too.
    pub image_size: usize,
    /// Channels behind the stem.
    pub stem_channels: usize,
    pub stages: Vec<Stage>,
    /// Channels of the head, for classes alone.
    pub head_channels: usize,
    /// Classes.
    pub num_labels: usize,
    pub batch_norm_eps: f64,
}

/// Blocks of one width. Each is three convolutions: of single pixels to `expand_ratio` times the channels (not where that
/// is 1), of each channel on its own, and of single pixels to `channels`. The first block has the stride, and the others
/// add what they read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    pub num_blocks: usize,
    /// Side of the windows of each channel.
    pub kernel_size: usize,
    pub stride: usize,
    pub expand_ratio: usize,
    pub channels: usize,
}

/// One block of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model::vision) struct BlockConfig {
    pub kernel: usize,
    pub stride: usize,
    /// Channels that it reads, has inside, and writes.
    pub d_in: usize,
    pub inside: usize,
    pub d_out: usize,
}

impl BlockConfig {
    /// Whether channels are made more at first.
    pub fn expands(&self) -> bool {
        self.inside != self.d_in
    }
    /// Whether what it reads is added to what it makes.
    pub fn adds(&self) -> bool {
        self.stride == 1 && self.d_in == self.d_out
    }
}

impl Default for EfficientNetConfig {
    /// Lite0 for pictures of 224 x 224 pixels and the 1000 classes of ImageNet.
    fn default() -> Self {
        let stage = |[num_blocks, kernel_size, stride, expand_ratio, channels]: [usize; 5]| Stage {
            num_blocks,
            kernel_size,
            stride,
            expand_ratio,
            channels,
        };
        let stages = [
            [1, 3, 1, 1, 16],
            [2, 3, 2, 6, 24],
            [2, 5, 2, 6, 40],
            [3, 3, 2, 6, 80],
            [3, 5, 1, 6, 112],
            [4, 5, 2, 6, 192],
            [1, 3, 1, 6, 320],
        ];
        EfficientNetConfig {
            model_type: KINDS[0].into(),
            image_size: 224,
            stem_channels: 32,
            stages: stages.map(stage).into(),
            head_channels: 1280,
            num_labels: 1000,
            batch_norm_eps: 1e-3,
        }
    }
}

impl EfficientNetConfig {
    /// Whether a configuration is that of an EfficientNet-Lite.
    pub(in crate::model::vision) fn describes(value: &Value) -> bool {
        value["model_type"].as_str().is_some_and(|name| KINDS.contains(&name))
    }

    /// The network that the JSON object of its configuration describes.
    ///
    /// # Errors
    /// A field has another type, or a size cannot be.
    pub fn from_json(value: &Value) -> Result<Self> {
        let config = EfficientNetConfig::deserialize(value)
            .map_err(|e| Error::refused("config of an EfficientNet", e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let within = |field: &str, n: usize, most: usize| {
            if (1..=most).contains(&n) {
                return Ok(());
            }
            Err(Error::config(field, n, format!("in 1..={most}")))
        };
        within("image_size", self.image_size, 1 << 14)?;
        within("stem_channels", self.stem_channels, 1 << 14)?;
        within("head_channels", self.head_channels, 1 << 16)?;
        within("num_labels", self.num_labels, 1 << 20)?;
        within("number of stages", self.stages.len(), MOST_BLOCKS)?;
        for (i, stage) in self.stages.iter().enumerate() {
            let within = |field: &str, n: usize, most: usize| within(&format!("stages.{i}.{field}"), n, most);
            within("num_blocks", stage.num_blocks, MOST_BLOCKS)?;
            within("kernel_size", stage.kernel_size, 31)?;
            within("stride", stage.stride, 8)?;
            within("expand_ratio", stage.expand_ratio, 64)?;
            within("channels", stage.channels, 1 << 14)?;
        }
        within("number of blocks", self.stages.iter().map(|stage| stage.num_blocks).sum(), MOST_BLOCKS)?;
        if !(self.batch_norm_eps > 0.0 && self.batch_norm_eps.is_finite()) {
            return Err(Error::config("batch_norm_eps", self.batch_norm_eps, "a positive number"));
        }
        Ok(())
    }

    /// Its blocks, one after the other.
    pub(in crate::model::vision) fn blocks(&self) -> Vec<BlockConfig> {
        let mut d_in = self.stem_channels;
        let mut all = Vec::new();
        for stage in &self.stages {
            for number in 0..stage.num_blocks {
                all.push(BlockConfig {
                    kernel: stage.kernel_size,
                    stride: if number == 0 { stage.stride } else { 1 },
                    d_in,
                    inside: d_in * stage.expand_ratio,
                    d_out: stage.channels,
                });
                d_in = stage.channels;
            }
        }
        all
    }

    /// Channels behind so many blocks.
    pub(in crate::model::vision) fn width(&self, blocks: usize) -> usize {
        self.blocks()[..blocks].last().map_or(self.stem_channels, |block| block.d_out)
    }

    /// The most values that stand beside each other while pictures of a height and a width go through: of a block what it
    /// reads, and what it has inside before and behind an operation.
    pub(crate) fn widest(&self, [height, width]: [usize; 2]) -> usize {
        let [window, stride] = STEM;
        let mut sides = [height, width].map(|side| side.div_ceil(stride));
        let pixels = |[height, width]: [usize; 2]| height * width;
        let mut most = pixels(sides) * (3 * window * window + 2 * self.stem_channels);
        for block in self.blocks() {
            let before = pixels(sides);
            sides = sides.map(|side| side.div_ceil(block.stride));
            let wide = if block.expands() { before * block.inside } else { 0 };
            // A convolution, its bias and its activation.
            let behind = 3 * pixels(sides) * block.inside;
            most = most.max(before * block.d_in + wide + wide.max(behind));
        }
        most
    }

    /// Pixels along a side behind so many blocks, of a picture of `image_size`.
    pub(in crate::model::vision) fn grid(&self, blocks: usize) -> usize {
        let [_, stem] = STEM;
        let behind_stem = self.image_size.div_ceil(stem);
        self.blocks()[..blocks].iter().fold(behind_stem, |side, block| side.div_ceil(block.stride))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_left_out_is_that_of_lite0() {
        let lite0 = EfficientNetConfig::from_json(&json!({ "model_type": "efficientnet-lite0" })).unwrap();
        assert_eq!(lite0, EfficientNetConfig::default());
        assert_eq!((lite0.blocks().len(), lite0.width(16), lite0.grid(16)), (16, 320, 7));
        let small = json!({ "model_type": "efficientnet-lite0", "image_size": 128 });
        let small = EfficientNetConfig::from_json(&small).unwrap();
        assert_eq!((small.grid(16), small.grid(0), small.width(0)), (4, 64, 32));
        let written = serde_json::to_value(&small).unwrap();
        assert_eq!(EfficientNetConfig::from_json(&written).unwrap(), small);
    }

    #[test]
    fn sizes_that_cannot_be_are_named() {
        let refused = |more: Value, what: &str| {
            let mut all = json!({ "model_type": "efficientnet-lite0" });
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let error = EfficientNetConfig::from_json(&all).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        refused(json!({ "image_size": 0 }), "image_size: is 0");
        refused(json!({ "stem_channels": "32" }), "expected usize");
        refused(json!({ "stages": [] }), "number of stages");
        refused(json!({ "batch_norm_eps": -1.0 }), "batch_norm_eps");
        let stage = |kernel: usize, blocks: usize| json!({ "num_blocks": blocks, "kernel_size": kernel, "stride": 1, "expand_ratio": 1, "channels": 8 });
        refused(json!({ "stages": [stage(0, 1)] }), "stages.0.kernel_size");
        refused(json!({ "stages": [stage(3, 200), stage(3, 200)] }), "number of blocks");
    }
}
