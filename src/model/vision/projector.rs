//! From a tower's features to rows among a decoder's tokens.

use crate::model::Activation;
use crate::nn::{LinearGroup, Param, Pass};
use crate::{Error, Linear, Result, Tensor, Weight};
use std::sync::{Arc, Mutex};

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

/// Linears as frozen weights, and how often their parameters had changed.
type Frozen = Option<(Vec<u64>, Vec<Linear>)>;

/// A projector; its weights are trained whole, or frozen.
#[derive(Clone)]
pub struct Projector {
    kind: ProjectorKind,
    linears: Vec<Full>,
    frozen: Arc<Mutex<Frozen>>,
}

impl Projector {
    pub(super) fn new(kind: ProjectorKind, linears: Vec<Full>) -> Self {
        Projector { kind, linears, frozen: Arc::default() }
    }

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
        self.run(features, |i, x| self.linears[i].forward(x))
    }

    /// The same in a pass, whose adapters may have a part at the linears: the sites behind those of the decoder, the first
    /// of which has the number `first_site`. Each tile is a routing unit, with the labels of its instance in the pass; its
    /// weights are then frozen.
    ///
    /// # Errors
    /// As [`forward`](Projector::forward), or those of an adapter.
    pub fn forward_in(
        &self,
        features: &Tensor,
        pass: &Pass,
        first_site: usize,
        instances: &[u32],
    ) -> Result<Tensor> {
        let sites = first_site..first_site + self.linears.len();
        if !sites.clone().any(|site| pass.adapts([Some(site), None])) {
            return self.forward(features);
        }
        let joined = match self.kind {
            ProjectorKind::Shuffle { factor } => factor * factor,
            _ => 1,
        };
        let rows = features.dims().get(1).map_or(0, |rows| rows / joined);
        let pass = pass.over_parts(features.device(), instances, rows)?;
        let linears = self.frozen()?;
        self.run(features, |i, x| {
            let group = LinearGroup::at(first_site + i, vec![linears[i].clone()]);
            group.forward(x, &pass)?.pop().ok_or_else(|| Error::shape("projector", "one output", 0))
        })
    }

    /// Its linears as frozen weights, made anew where a parameter has changed.
    fn frozen(&self) -> Result<Vec<Linear>> {
        let changes: Vec<u64> = self.params().iter().map(Param::changes).collect();
        let mut kept = self.frozen.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((_, linears)) = kept.as_ref().filter(|(of, _)| *of == changes) {
            return Ok(linears.clone());
        }
        let frozen = |full: &Full| {
            let value = full.weight.value();
            let [rows, cols] = *value.dims() else {
                return Err(Error::shape("projector", "[d_out, d_in]", value.shape()));
            };
            let weight = Weight::from_values(value.device(), [rows, cols], &value.to_f32()?).build()?;
            Ok(Linear { weight, bias: full.bias.as_ref().map(|bias| bias.value().detach()) })
        };
        let linears = self.linears.iter().map(frozen).collect::<Result<Vec<_>>>()?;
        *kept = Some((changes, linears.clone()));
        Ok(linears)
    }

    fn run(&self, features: &Tensor, linear: impl Fn(usize, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let [t, n, d] = *features.dims() else {
            return Err(Error::shape("projector", "features [T, N, d]", features.shape()));
        };
        let rows = match self.kind {
            ProjectorKind::Shuffle { factor } => shuffled(features, factor)?,
            _ => features.reshape(&[t * n, d])?,
        };
        let mut x = rows;
        for i in 0..self.linears.len() {
            if let (1.., ProjectorKind::Mlp(activation)) = (i, self.kind) {
                x = activation.apply(&x)?;
            }
            x = linear(i, &x)?;
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
