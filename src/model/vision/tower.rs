//! A frozen vision tower of any kind.

use super::efficientnet::EfficientNet;
use super::vit::Vit;
use super::{Feature, TowerConfig};
use crate::model::Site;
use crate::nn::Pass;
use crate::{Device, Format, Result, Tensor};

/// A frozen vision tower. Adapters of a [`Pass`] join it at its [`sites`](Tower::sites), as they join a decoder.
pub struct Tower {
    pub(super) config: TowerConfig,
    pub(super) feature: Feature,
    pub(super) device: Device,
    pub(super) net: Net,
}

/// What a tower computes with.
pub(super) enum Net {
    Vit(Box<Vit>),
    EfficientNet(EfficientNet),
}

impl Tower {
    /// Its configuration.
    pub fn config(&self) -> &TowerConfig {
        &self.config
    }
    /// Which of its states are features. Layers behind them are not loaded.
    pub fn feature(&self) -> Feature {
        self.feature
    }
    /// Where it lives.
    pub fn device(&self) -> &Device {
        &self.device
    }
    /// The format of the weights of its linears.
    pub fn format(&self) -> Format {
        match &self.net {
            Net::Vit(vit) => {
                let first = vit.layers.first().and_then(|layer| layer.qkv.linears.first());
                first.map_or(Format::F32, |linear| linear.weight.format())
            }
            Net::EfficientNet(_) => Format::F32,
        }
    }
    /// The places where adapters can join, in the order of their numbers. Convolutions have none.
    pub fn sites(&self) -> &[Site] {
        match &self.net {
            Net::Vit(vit) => &vit.sites,
            Net::EfficientNet(_) => &[],
        }
    }

    /// Features `[B, rows, width]` of pictures `[B, 3, H, W]`, whose values are as the tower's processor makes them: a row for
    /// each place of the grid, row by row. `hidden` collects the state before each layer and behind the last that is
    /// computed.
    ///
    /// Features of convolutions have no derivative.
    ///
    /// # Errors
    /// There are not three channels, or the sides are no multiples of a transformer's patch.
    pub fn forward(&self, pixels: &Tensor, pass: &Pass, hidden: Option<&mut Vec<Tensor>>) -> Result<Tensor> {
        match &self.net {
            Net::Vit(vit) => vit.forward(pixels, pass, hidden),
            Net::EfficientNet(net) => net.forward(pixels, hidden),
        }
    }
}
