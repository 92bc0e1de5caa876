//! A transformer that sees: patches become rows, and layers without a causal mask make features of them.

use super::config::CHANNELS;
use super::positions::resized;
use super::{Feature, VitConfig};
use crate::model::Site;
use crate::model::block::{Block, Layer, NormLayer, Run};
use crate::nn::Pass;
use crate::{Device, Error, Result, Tensor};
use std::sync::Arc;

/// A frozen transformer that sees.
pub(super) struct Vit {
    pub(super) config: VitConfig,
    pub(super) feature: Feature,
    pub(super) device: Device,
    /// `[hidden_size, patch_values]`
    pub(super) patch: Tensor,
    /// `[hidden_size]`
    pub(super) patch_bias: Option<Tensor>,
    /// `[1, hidden_size]`
    pub(super) class: Option<Tensor>,
    /// `[rows, hidden_size]`
    pub(super) positions: Tensor,
    pub(super) first_norm: Option<NormLayer>,
    pub(super) layers: Vec<Arc<Layer>>,
    /// What all layers of all passes share.
    pub(super) run: Arc<Run>,
    pub(super) last_norm: Option<NormLayer>,
    pub(super) sites: Vec<Site>,
}

impl Vit {
    /// Features `[B, rows, hidden_size]` of pictures `[B, 3, H, W]`, whose values are as the tower's processor makes them.
    /// `hidden` collects the state before each layer and behind the last that is computed.
    pub fn forward(
        &self,
        pixels: &Tensor,
        pass: &Pass,
        mut hidden: Option<&mut Vec<Tensor>>,
    ) -> Result<Tensor> {
        let mut x = self.embed(pixels)?;
        for (index, layer) in self.layers.iter().take(self.feature.layer).enumerate() {
            if let Some(hidden) = &mut hidden {
                hidden.push(x.detach());
            }
            let block = Block { index, layer: layer.clone(), run: self.run.clone(), experts: None };
            x = block.forward(&x, None, pass)?;
        }
        if let Some(hidden) = hidden {
            hidden.push(x.detach());
        }
        if let Some(norm) = &self.last_norm {
            x = norm.forward(&x, &self.config.layers)?;
        }
        if self.config.class_token && !self.feature.class_token { without_first(&x) } else { Ok(x) }
    }

    /// What enters the first layer, `[B, rows, hidden_size]`: `W patch + b`, behind the class token, plus positions.
    fn embed(&self, pixels: &Tensor) -> Result<Tensor> {
        let config = &self.config;
        let p = config.patch_size;
        let [b, CHANNELS, h, w] = *pixels.dims() else {
            return Err(Error::shape("tower", "pictures [B, 3, H, W]", pixels.shape()));
        };
        if h == 0 || w == 0 || !h.is_multiple_of(p) || !w.is_multiple_of(p) {
            let expected = format!("sides that are multiples of the patch of {p} pixels");
            return Err(Error::shape("tower", expected, format!("{h} x {w} pixels")));
        }
        let grid = [h / p, w / p];
        let patches = grid[0] * grid[1];
        let kept = usize::from(config.class_token);
        let rows = config.rows(patches);
        let d = config.layers.hidden_size;

        let mut x = self.patches(pixels, grid)?.matmul_nt(&self.patch)?;
        if let Some(bias) = &self.patch_bias {
            x = x.add(bias)?;
        }
        let mut table = match resized(&self.device, config.grid(), grid, kept)? {
            Some(matrix) => matrix.matmul(&self.positions)?,
            None => self.positions.clone(),
        };
        if let Some(class) = &self.class {
            // Its row has no patch: rows of the picture move on by one, and the first is cleared.
            let from = |row: usize| (row / rows * patches + (row % rows).saturating_sub(kept)) as u32;
            let index: Vec<u32> = (0..b * rows).map(from).collect();
            let shown: Vec<f32> = (0..b * rows).map(|row| f32::from(u8::from(row % rows >= kept))).collect();
            x = x.gather_rows(&Tensor::from_u32(&self.device, &[b * rows], &index)?)?;
            x = x.mul(&Tensor::from_f32(&self.device, &[b * rows, 1], &shown)?)?;
            let first: Vec<f32> = (0..rows).map(|row| f32::from(u8::from(row == 0))).collect();
            table = table.add(&Tensor::from_f32(&self.device, &[rows, 1], &first)?.matmul(class)?)?;
        }
        let x = x.reshape(&[b, rows * d])?.add(&table.reshape(&[rows * d])?)?.reshape(&[b, rows, d])?;
        match &self.first_norm {
            Some(norm) => norm.forward(&x, &config.layers),
            None => Ok(x),
        }
    }

    /// The patches of pictures, row by row: `[B * patches, 3 * p * p]`, each (channel, row, column).
    fn patches(&self, pixels: &Tensor, [rows, columns]: [usize; 2]) -> Result<Tensor> {
        let p = self.config.patch_size;
        let b = pixels.dims()[0];
        // Runs of p pixels are the rows of a table.
        let runs = CHANNELS * rows * p * columns;
        let mut index = Vec::with_capacity(b * runs);
        for patch in 0..b * rows * columns {
            let picture = patch / (rows * columns);
            let row = patch % (rows * columns) / columns;
            for line in 0..CHANNELS * p {
                let at = (line / p * rows + row) * p + line % p;
                index.push((picture * runs + at * columns + patch % columns) as u32);
            }
        }
        let table = pixels.reshape(&[b * runs, p])?;
        let index = Tensor::from_u32(&self.device, &[index.len()], &index)?;
        table.gather_rows(&index)?.reshape(&[b * rows * columns, CHANNELS * p * p])
    }
}

/// The rows behind the first of each picture.
fn without_first(x: &Tensor) -> Result<Tensor> {
    let [b, rows, d] = *x.dims() else { return Err(Error::shape("tower", "[B, rows, d]", x.shape())) };
    let index: Vec<u32> = (0..b).flat_map(|i| (1..rows).map(move |row| (i * rows + row) as u32)).collect();
    let index = Tensor::from_u32(x.device(), &[b * (rows - 1)], &index)?;
    x.reshape(&[b * rows, d])?.gather_rows(&index)?.reshape(&[b, rows - 1, d])
}
