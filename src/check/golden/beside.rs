//! Gradients of frozen linears: those of zeros beside them.

use crate::io::Checkpoint;
use crate::model::{Site, SiteKind, SiteLinear};
use crate::nn::{LinearAdapter, Param, Pass, SiteAdapter, SiteAdapters};
use crate::{Device, Linear, Result, Tensor};
use std::sync::Arc;

/// Zeros beside frozen linears: their gradients are those of the weights and of the biases.
struct Beside {
    weights: Vec<Param>,
    biases: Vec<Param>,
}

impl LinearAdapter for Beside {
    fn forward(&self, x: &Tensor, linears: &[Linear], _: &Pass) -> Result<Vec<Tensor>> {
        let rows = x.reshape(&[x.shape().rows(), x.shape().last()])?;
        let ones = Tensor::full(x.device(), &[x.shape().rows(), 1], 1.0)?;
        let parts = linears.iter().zip(self.weights.iter().zip(&self.biases));
        let output = |(linear, (w, b)): (&Linear, (&Param, &Param))| {
            let y = x.linear(&linear.weight, linear.bias.as_ref())?;
            let beside = rows.matmul_nt(&w.tensor())?.add(&ones.matmul_nt(&b.tensor())?)?;
            y.add(&beside.reshape(y.dims())?)
        };
        parts.map(output).collect()
    }
    fn params(&self) -> Vec<Param> {
        self.weights.iter().chain(&self.biases).cloned().collect()
    }
}

/// Adapters of zeros beside the linears of which a file has gradients, under `grad.` and their paths without `prefix`;
/// and their parameters, which are called like the tensors.
pub(super) fn beside(
    file: &Checkpoint,
    device: &Device,
    sites: &[Site],
    prefix: &str,
) -> Result<(SiteAdapters, Vec<Param>)> {
    let mut adapters = SiteAdapters::default();
    let mut params = Vec::new();
    let name = |l: &SiteLinear, what: &str| {
        let path = l.path.strip_prefix(prefix).unwrap_or(&l.path);
        format!("{path}.{what}")
    };
    for (number, site) in sites.iter().enumerate().filter(|(_, s)| s.kind != SiteKind::Mlp) {
        let wanted = |l: &SiteLinear| {
            ["weight", "bias"].iter().any(|what| file.has(&format!("grad.{}", name(l, what))))
        };
        if !site.linears.iter().any(wanted) {
            continue;
        }
        let zeros = |name: String, dims: [usize; 2]| Param::new(name, Tensor::zeros(device, &dims)?, true);
        let weight = |l: &SiteLinear| zeros(name(l, "weight"), [l.d_out, l.d_in]);
        let bias = |l: &SiteLinear| zeros(name(l, "bias"), [l.d_out, 1]);
        let beside = Beside {
            weights: site.linears.iter().map(weight).collect::<Result<_>>()?,
            biases: site.linears.iter().map(bias).collect::<Result<_>>()?,
        };
        params.extend(beside.params());
        adapters.set(number, SiteAdapter::Linears(Arc::new(beside), Vec::new()));
    }
    Ok((adapters, params))
}
