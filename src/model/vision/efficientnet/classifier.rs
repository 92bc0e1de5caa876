//! The classes that an EfficientNet was trained on: what its own package computes.

use super::EfficientNetConfig;
use super::load::{Names, TOWER};
use super::net::{EfficientNet, Pointwise};
use crate::model::load::Source;
use crate::model::vision::VisionFiles;
use crate::model::vision::load::finite;
use crate::model::{Expected, LoadOptions};
use crate::{Device, Error, Result, Tensor};

/// An EfficientNet-Lite with its head and its classes. A tower has none of these.
pub struct Classifier {
    net: EfficientNet,
    head: Pointwise,
    classes: Pointwise,
}

const HEAD: Names<'_> = Names { before: "", conv: "_conv_head", norm: "_bn1" };

impl EfficientNetConfig {
    /// All tensors, those of the head and of the classes too.
    pub(super) fn all_tensors(&self) -> Vec<Expected> {
        let blocks = self.blocks().len();
        let one = (1, "1");
        let head = (self.head_channels, "head_channels");
        let classes = (self.num_labels, "num_labels");
        let mut all = self.tensors(blocks);
        all.extend(HEAD.tensors([head, (self.width(blocks), "channels of the last stage"), one, one]));
        all.push(Expected::matrix(format!("{TOWER}_fc.weight"), classes, head));
        all.push(Expected::vector(format!("{TOWER}_fc.bias"), classes));
        all
    }
}

impl Classifier {
    /// Builds a network with its classes from open files.
    ///
    /// # Errors
    /// Tensors are missing or have other shapes than the configuration says, or the device refuses them.
    pub fn load(
        config: &EfficientNetConfig,
        files: &VisionFiles,
        device: &Device,
        options: &LoadOptions,
    ) -> Result<Self> {
        let tensors = config.all_tensors();
        files.check(&tensors)?;
        finite(files, &tensors, options)?;
        let source = files.source(device, options);
        let vector = |name: &str| source.vector(&format!("{TOWER}{name}"));
        let weight = vector("_fc.weight")?.reshape(&[config.num_labels, config.head_channels])?;
        Ok(Classifier {
            net: config.assemble(config.blocks().len(), device, &source)?,
            head: HEAD.pointwise(&source, device, config.batch_norm_eps)?,
            classes: Pointwise { weight, bias: vector("_fc.bias")? },
        })
    }

    /// Logits of the classes `[B, num_labels]` of pictures `[B, 3, H, W]`: `W mean(relu6(head(features))) + b`.
    ///
    /// # Errors
    /// The pictures have not three channels, or no pixels.
    pub fn logits(&self, pixels: &Tensor) -> Result<Tensor> {
        let features = self.net.forward(pixels, None)?;
        let [b, rows, d] = *features.dims() else {
            return Err(Error::shape("tower", "[B, rows, d]", features.shape()));
        };
        let head = self.head.forward(&features.reshape(&[b * rows, d])?)?.relu6()?;
        self.classes.forward(&head.sum_groups(rows)?.scale(1.0 / rows as f32)?)
    }
}
