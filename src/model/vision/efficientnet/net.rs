//! The network: a stem, and blocks of convolutions, with batch norms in their weights.

use super::config::STEM;
use crate::model::vision::config::CHANNELS;
use crate::model::vision::{TowerProduct, TowerWork};
use crate::{Error, Result, Tensor};

/// A convolution of single pixels, or of windows that are rows: `W x + b`.
pub(super) struct Pointwise {
    /// `[d_out, d_in]`
    pub weight: Tensor,
    /// `[d_out]`
    pub bias: Tensor,
}

/// A convolution of each channel on its own.
pub(super) struct Depthwise {
    /// `[k, k, d]`
    pub weight: Tensor,
    /// `[d]`
    pub bias: Tensor,
    pub stride: usize,
}

/// A block, inverted: narrow, wide inside, narrow.
pub(super) struct Block {
    pub expand: Option<Pointwise>,
    pub depthwise: Depthwise,
    pub project: Pointwise,
    /// Whether what it reads is added.
    pub adds: bool,
}

/// A frozen EfficientNet-Lite up to a block.
pub(in crate::model::vision) struct EfficientNet {
    /// Of windows in the order channel, row, column.
    pub(super) stem: Pointwise,
    pub(super) blocks: Vec<Block>,
}

impl Pointwise {
    /// `[.., d_in] -> [.., d_out]`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let shape = x.shape().with_last(self.bias.len())?;
        let rows = x.reshape(&[x.shape().rows(), x.shape().last()])?;
        rows.matmul_nt(&self.weight)?.add(&self.bias)?.reshape(shape.dims())
    }
}

impl Block {
    /// Pixels `[B, h, w, d]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let wide = match &self.expand {
            Some(expand) => expand.forward(x)?.relu6()?,
            None => x.clone(),
        };
        let Depthwise { weight, bias, stride } = &self.depthwise;
        let y = wide.depthwise_conv(weight, *stride)?.add(bias)?.relu6()?;
        let y = self.project.forward(&y)?;
        if self.adds { y.add(x) } else { Ok(y) }
    }
}

impl EfficientNet {
    /// Features `[B, rows, d]` of pictures `[B, 3, H, W]` of any sides, row by row.
    pub fn forward(&self, pixels: &Tensor, mut hidden: Option<&mut Vec<Tensor>>) -> Result<Tensor> {
        let [b, channels, h, w] = *pixels.dims() else {
            return Err(Error::shape("tower", "pictures [B, 3, H, W]", pixels.shape()));
        };
        if channels != CHANNELS || h == 0 || w == 0 {
            return Err(Error::shape("tower", "pictures [B, 3, H, W] with pixels", pixels.shape()));
        }
        let rows = |x: &Tensor| {
            let d = x.shape().last();
            x.reshape(&[b, x.shape().rows() / b.max(1), d])
        };
        let [k, stride] = STEM;
        let mut x = self.stem.forward(&pixels.windows(k, stride)?)?.relu6()?;
        for block in &self.blocks {
            if let Some(hidden) = &mut hidden {
                hidden.push(rows(&x)?);
            }
            x = block.forward(&x)?;
        }
        let features = rows(&x)?;
        if let Some(hidden) = hidden {
            hidden.push(features.clone());
        }
        Ok(features)
    }

    /// The work of a forward pass over so many pictures of a height and a width.
    pub fn work(&self, [pictures, height, width]: [usize; 3]) -> TowerWork<'_> {
        let [_, stride] = STEM;
        let mut sides = [height, width].map(|side| side.div_ceil(stride));
        let pixels = |[height, width]: [usize; 2]| pictures * height * width;
        let mut products = vec![TowerProduct::of_tensor(pixels(sides), &self.stem.weight)];
        let [mut flops_beside, mut values_beside] = [0.0; 2];
        for block in &self.blocks {
            let before = pixels(sides);
            products.extend(block.expand.iter().map(|e| TowerProduct::of_tensor(before, &e.weight)));
            sides = sides.map(|side| side.div_ceil(block.depthwise.stride));
            let behind = pixels(sides);
            let channels = block.depthwise.bias.len() as f64;
            flops_beside += 2.0 * behind as f64 * block.depthwise.weight.len() as f64;
            values_beside += (before + behind) as f64 * channels;
            products.push(TowerProduct::of_tensor(behind, &block.project.weight));
        }
        TowerWork { products, flops_beside, values_beside }
    }
}
