//! The network from its tensors, by the names of EfficientNet-PyTorch. Batch norms become part of the convolutions.

use super::EfficientNetConfig;
use super::config::{BlockConfig, STEM};
use super::net::{Block, Depthwise, EfficientNet, Pointwise};
use crate::model::Expected;
use crate::model::load::Source;
use crate::model::tensors::Axis;
use crate::model::vision::config::CHANNELS;
use crate::{Device, Error, Result, Tensor};

/// What names begin with here; files have it or not.
pub(super) const TOWER: &str = "vision_model.";
/// The vectors of a batch norm.
const NORM: [&str; 4] = ["weight", "bias", "running_mean", "running_var"];

/// A convolution and its batch norm by their names.
#[derive(Clone, Copy)]
pub(super) struct Names<'a> {
    pub before: &'a str,
    pub conv: &'a str,
    pub norm: &'a str,
}

impl Names<'_> {
    fn weight(self) -> String {
        format!("{TOWER}{}{}.weight", self.before, self.conv)
    }
    fn norm(self, vector: &str) -> String {
        format!("{TOWER}{}{}.{vector}", self.before, self.norm)
    }

    /// The tensors of a convolution whose weight has these axes.
    pub fn tensors(self, axes: [Axis; 4]) -> Vec<Expected> {
        let vector = |name: &&str| Expected::vector(self.norm(name), axes[0]);
        let weight = Expected { name: self.weight(), axes: axes.into() };
        std::iter::once(weight).chain(NORM.iter().map(vector)).collect()
    }

    /// Weight `[d_out, ..]` and bias `[d_out]` of the convolution with the norm behind it:
    /// `w gamma / sqrt(var + eps)` and `beta - mean gamma / sqrt(var + eps)`, in f64.
    fn folded(self, source: &impl Source, eps: f64) -> Result<(Vec<f32>, Vec<f32>)> {
        let mut weight = source.vector(&self.weight())?.to_f32()?;
        let vector = |name: &str| source.vector(&self.norm(name))?.to_f32();
        let [gamma, beta, mean, var] = NORM.map(vector);
        let gamma = gamma?;
        let mut bias = beta?;
        let mean = mean?;
        let var = var?;
        let each = weight.len() / bias.len().max(1);
        for (channel, weight) in weight.chunks_mut(each.max(1)).enumerate() {
            let spread = f64::from(var[channel]) + eps;
            if spread <= 0.0 {
                let what = format!("holds the variance {}, which is negative", var[channel]);
                return Err(Error::refused(self.norm("running_var"), what));
            }
            let scale = f64::from(gamma[channel]) / spread.sqrt();
            weight.iter_mut().for_each(|w| *w = (f64::from(*w) * scale) as f32);
            bias[channel] = (f64::from(bias[channel]) - f64::from(mean[channel]) * scale) as f32;
        }
        Ok((weight, bias))
    }

    pub fn pointwise(self, source: &impl Source, device: &Device, eps: f64) -> Result<Pointwise> {
        let (weight, bias) = self.folded(source, eps)?;
        let d_out = bias.len();
        Ok(Pointwise {
            weight: Tensor::from_f32(device, &[d_out, weight.len() / d_out.max(1)], &weight)?,
            bias: Tensor::from_f32(device, &[d_out], &bias)?,
        })
    }

    fn depthwise(
        self,
        source: &impl Source,
        device: &Device,
        config: &BlockConfig,
        eps: f64,
    ) -> Result<Depthwise> {
        let (stored, bias) = self.folded(source, eps)?;
        let d = bias.len();
        let window = config.kernel * config.kernel;
        let weight: Vec<f32> = (0..window * d).map(|at| stored[at % d * window + at / d]).collect();
        Ok(Depthwise {
            weight: Tensor::from_f32(device, &[config.kernel, config.kernel, d], &weight)?,
            bias: Tensor::from_f32(device, &[d], &bias)?,
            stride: config.stride,
        })
    }
}

const STEM_NAMES: Names<'_> = Names { before: "", conv: "_conv_stem", norm: "_bn0" };

impl BlockConfig {
    fn names(before: &str) -> [Names<'_>; 3] {
        [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
            .map(|(conv, norm)| Names { before, conv, norm })
    }

    fn tensors(&self, before: &str) -> Vec<Expected> {
        let [expand, depthwise, project] = Self::names(before);
        let one = (1, "1");
        let d_in = (self.d_in, "channels");
        let inside = (self.inside, "channels times expand_ratio");
        let k = (self.kernel, "kernel_size");
        let mut all = if self.expands() { expand.tensors([inside, d_in, one, one]) } else { Vec::new() };
        all.extend(depthwise.tensors([inside, one, k, k]));
        all.extend(project.tensors([(self.d_out, "channels"), inside, one, one]));
        all
    }

    fn assemble(&self, before: &str, source: &impl Source, device: &Device, eps: f64) -> Result<Block> {
        let [expand, depthwise, project] = Self::names(before);
        let expand = if self.expands() { Some(expand.pointwise(source, device, eps)?) } else { None };
        Ok(Block {
            expand,
            depthwise: depthwise.depthwise(source, device, self, eps)?,
            project: project.pointwise(source, device, eps)?,
            adds: self.adds(),
        })
    }
}

impl EfficientNetConfig {
    /// The tensors up to a block.
    pub(in crate::model::vision) fn tensors(&self, blocks: usize) -> Vec<Expected> {
        let k = (STEM[0], "3");
        let stem = [(self.stem_channels, "stem_channels"), (CHANNELS, "channels of a picture"), k, k];
        let mut all = STEM_NAMES.tensors(stem);
        for (i, block) in self.blocks()[..blocks].iter().enumerate() {
            all.extend(block.tensors(&format!("_blocks.{i}.")));
        }
        all
    }

    /// The network up to a block.
    pub(in crate::model::vision) fn assemble(
        &self,
        blocks: usize,
        device: &Device,
        source: &impl Source,
    ) -> Result<EfficientNet> {
        let eps = self.batch_norm_eps;
        let block =
            |(i, block): (usize, &BlockConfig)| block.assemble(&format!("_blocks.{i}."), source, device, eps);
        Ok(EfficientNet {
            stem: STEM_NAMES.pointwise(source, device, eps)?,
            blocks: self.blocks()[..blocks].iter().enumerate().map(block).collect::<Result<_>>()?,
        })
    }
}
