//! From a tower's features to rows among a decoder's tokens.

use crate::model::Activation;
use crate::nn::Param;
use crate::{Error, Result, Tensor};

/// How features become rows of the decoder's width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProjectorKind {
    /// `W f + b`
    Linear,
    /// `W2 act(W1 f + b1) + b2`
    Mlp(Activation),
    /// `W` times the features of `factor x factor` neighbours side by side, in the order (row, column, channel).
    Shuffle { factor: usize },
}

impl ProjectorKind {
    /// The paths of its linears in Hugging Face's files.
    pub fn linears(self) -> &'static [&'static str] {
        match self {
            ProjectorKind::Linear => &["multi_modal_projector.linear_1"],
            ProjectorKind::Mlp(_) => &["multi_modal_projector.linear_1", "multi_modal_projector.linear_2"],
            ProjectorKind::Shuffle { .. } => &["connector.modality_projection.proj"],
        }
    }

    /// Values of an input row of the first linear, of features of a width.
    pub fn width_in(self, features: usize) -> usize {
        match self {
            ProjectorKind::Shuffle { factor } => features * factor * factor,
            _ => features,
        }
    }
}

/// A linear whose weights may be trained whole.
#[derive(Clone)]
pub(super) struct Full {
    /// `[d_out, d_in]`
    pub weight: Param,
    /// `[d_out]`
    pub bias: Option<Param>,
}

impl Full {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul_nt(&self.weight.tensor())?;
        match &self.bias {
            Some(bias) => y.add(&bias.tensor()),
            None => Ok(y),
        }
    }
}

/// A projector; its weights are trained whole, or frozen.
#[derive(Clone)]
pub struct Projector {
    pub(super) kind: ProjectorKind,
    pub(super) linears: Vec<Full>,
}

impl Projector {
    /// How it is built.
    pub fn kind(&self) -> ProjectorKind {
        self.kind
    }

    /// Its weights and biases, in order, with Hugging Face's names.
    pub fn params(&self) -> Vec<Param> {
        self.linears.iter().flat_map(|l| std::iter::once(&l.weight).chain(&l.bias)).cloned().collect()
    }

    /// Rows `[T * N', width]` of the features `[T, N, d]` of T pictures or tiles.
    ///
    /// # Errors
    /// The features have another width, or are no square of whole blocks where neighbours are joined.
    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        let [t, n, d] = *features.dims() else {
            return Err(Error::shape("projector", "features [T, N, d]", features.shape()));
        };
        let rows = match self.kind {
            ProjectorKind::Shuffle { factor } => shuffled(features, factor)?,
            _ => features.reshape(&[t * n, d])?,
        };
        let mut x = rows;
        for (i, linear) in self.linears.iter().enumerate() {
            if let (1.., ProjectorKind::Mlp(activation)) = (i, self.kind) {
                x = activation.apply(&x)?;
            }
            x = linear.forward(&x)?;
        }
        Ok(x)
    }
}

/// Blocks of `factor x factor` neighbours of a square grid, each as one row.
fn shuffled(features: &Tensor, factor: usize) -> Result<Tensor> {
    let [t, n, d] = *features.dims() else {
        return Err(Error::shape("projector", "[T, N, d]", features.shape()));
    };
    let side = n.isqrt();
    if side * side != n || !side.is_multiple_of(factor) {
        let expected = format!("a square of blocks of {factor} x {factor} patches");
        return Err(Error::shape("projector", expected, format!("{n} patches")));
    }
    let blocks = side / factor;
    let mut index = Vec::with_capacity(t * n);
    for tile in 0..t {
        for block in 0..blocks * blocks {
            for place in 0..factor * factor {
                let row = block / blocks * factor + place / factor;
                let column = block % blocks * factor + place % factor;
                index.push((tile * n + row * side + column) as u32);
            }
        }
    }
    let index = Tensor::from_u32(features.device(), &[t * n], &index)?;
    let rows = features.reshape(&[t * n, d])?.gather_rows(&index)?;
    rows.reshape(&[t * blocks * blocks, factor * factor * d])
}
