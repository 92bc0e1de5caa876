//! Keys and values of the positions so far, layer by layer.

use crate::{Result, Tensor};

/// The cache of one running sequence (or of a batch of equal lengths).
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    layers: Vec<Option<(Tensor, Tensor)>>,
    len: usize,
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

    /// Puts a layer's new keys and values behind the old ones and returns all of them.
    pub(super) fn append(&mut self, layer: usize, k: Tensor, v: Tensor) -> Result<(Tensor, Tensor)> {
        if self.layers.len() <= layer {
            self.layers.resize(layer + 1, None);
        }
        let all = match self.layers[layer].take() {
            Some((old_k, old_v)) => (old_k.append_rows(&k)?, old_v.append_rows(&v)?),
            None => (k, v),
        };
        self.layers[layer] = Some(all.clone());
        Ok(all)
    }

    /// Counts the positions of a finished step.
    pub(super) fn advance(&mut self, n: usize) {
        self.len += n;
    }
}
