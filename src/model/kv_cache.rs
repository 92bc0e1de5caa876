//! Keys and values of the positions so far, layer by layer.

use crate::{Result, Tensor};

/// The cache of one running sequence (or of a batch of equal lengths).
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    /// Keys and values `[B, room, KV, D]` of the layers so far.
    layers: Vec<(Tensor, Tensor)>,
    len: usize,
    /// The cache of the same tokens in passes without adapters, where an adapter asks for them.
    base: Option<Box<KvCache>>,
}

impl KvCache {
    /// Positions in the cache.
    pub fn len(&self) -> usize {
        self.len
    }
    /// True before the first step.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The cache of the same positions without adapters.
    pub(super) fn base(&mut self) -> &mut KvCache {
        self.base.get_or_insert_default()
    }

    /// Puts a layer's new keys and values behind the old ones and returns all of them, with the room behind them.
    pub(super) fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let end = self.len + k.dims()[1];
        if self.layers.len() <= layer {
            self.layers.push((with_room(k, end)?, with_room(v, end)?));
        }
        let (all_k, all_v) = &mut self.layers[layer];
        for (all, new) in [(all_k, k), (all_v, v)] {
            if all.dims()[1] < end {
                let mut larger = with_room(new, end)?;
                larger.write_rows(0, all)?;
                *all = larger;
            }
            all.write_rows(self.len, new)?;
        }
        Ok(self.layers[layer].clone())
    }

    /// Counts the positions of a finished step.
    pub(super) fn advance(&mut self, n: usize) {
        self.len += n;
    }
}

/// Zeros for `positions` of rows like those of `like`, and for half as many again: so that all copies of a growing
/// cache cost no more than a few times its final size.
fn with_room(like: &Tensor, positions: usize) -> Result<Tensor> {
    let mut dims = like.dims().to_vec();
    dims[1] = (positions + positions / 2).next_multiple_of(64);
    Tensor::zeros(like.device(), &dims)
}
