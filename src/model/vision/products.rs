//! What a tower's forward pass multiplies: for measuring how much of the time that takes.

use super::Tower;
use super::tower::Net;
use super::vit::Vit;
use crate::{Result, Tensor, Weight};

/// A dense product of a tower's forward pass with one of its matrices.
pub struct TowerProduct<'a> {
    /// Rows that are multiplied.
    pub rows: usize,
    pub d_in: usize,
    pub d_out: usize,
    matrix: Matrix<'a>,
}

enum Matrix<'a> {
    Weight(&'a Weight),
    Tensor(&'a Tensor),
}

/// The work of a tower's forward pass.
pub struct TowerWork<'a> {
    /// The dense products with frozen matrices.
    pub products: Vec<TowerProduct<'a>>,
    /// Multiplications and additions beside them: attention, or convolutions of single channels.
    pub flops_beside: f64,
    /// Values that these read and write.
    pub values_beside: f64,
}

impl<'a> TowerProduct<'a> {
    pub(super) fn of_tensor(rows: usize, matrix: &'a Tensor) -> Self {
        let [d_out, d_in] = [matrix.shape().rows(), matrix.shape().last()];
        TowerProduct { rows, d_in, d_out, matrix: Matrix::Tensor(matrix) }
    }

    fn of_weight(rows: usize, weight: &'a Weight) -> Self {
        TowerProduct { rows, d_in: weight.cols(), d_out: weight.rows(), matrix: Matrix::Weight(weight) }
    }

    /// The product of values `[rows, d_in]`, as the tower makes it.
    ///
    /// # Errors
    /// The values have another shape, or the device failed.
    pub fn run(&self, x: &Tensor) -> Result<Tensor> {
        match self.matrix {
            Matrix::Weight(weight) => x.linear(weight, None),
            Matrix::Tensor(matrix) => x.matmul_nt(matrix),
        }
    }

    /// Multiplications and additions.
    pub fn flops(&self) -> f64 {
        2.0 * self.rows as f64 * self.d_in as f64 * self.d_out as f64
    }

    /// Values that it reads and writes.
    pub fn values(&self) -> f64 {
        (self.rows * (self.d_in + self.d_out) + self.d_in * self.d_out) as f64
    }
}

impl Tower {
    /// The work of a forward pass over so many pictures of a height and a width.
    pub fn work(&self, [pictures, height, width]: [usize; 3]) -> TowerWork<'_> {
        match &self.net {
            Net::Vit(vit) => vit.work([pictures, height, width]),
            Net::EfficientNet(net) => net.work([pictures, height, width]),
        }
    }
}

impl Vit {
    fn work(&self, [pictures, height, width]: [usize; 3]) -> TowerWork<'_> {
        let patches = (height / self.config.patch_size) * (width / self.config.patch_size);
        let rows = self.config.rows(patches);
        let mut products = vec![TowerProduct::of_tensor(pictures * patches, &self.patch)];
        let layers = self.layers.iter().take(self.feature.layer);
        let linears = layers.flat_map(|layer| layer.groups()).flat_map(|group| &group.linears);
        products.extend(linears.map(|linear| TowerProduct::of_weight(pictures * rows, &linear.weight)));
        // Queries with keys, and what they choose of the values, in each layer.
        let each = (pictures * rows * self.config.layers.hidden_size * self.feature.layer) as f64;
        TowerWork { products, flops_beside: 4.0 * rows as f64 * each, values_beside: 4.0 * each }
    }
}
