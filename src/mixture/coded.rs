//! Linears whose update mixes the low-rank code: `y = W x + bias + s C(A x) B`, where a method says what C does.

use super::{LinearBuild, Lora, MethodOptions, RowMemory, Selection};
use crate::nn::{LinearAdapter, Param, Pass};
use crate::ops::factor_expand::expand_by;
use crate::{Linear, Result, Tensor};
use std::sync::Arc;

/// What becomes of the code of each token between A and B.
pub trait Code: Send + Sync {
    /// The code `[M, n]` for B's n rows, of one linear, from `u = A x [M, r]` and the tokens `x [M, d_in]`.
    ///
    /// # Errors
    /// The device failed, or the pass lacks what the method needs.
    fn code(&self, linear: usize, u: &Tensor, x: &Tensor, pass: &Pass) -> Result<Tensor>;
    /// What is in place of the frozen output `[M, d_out]` of one linear.
    ///
    /// # Errors
    /// The device failed.
    fn base(&self, _linear: usize, base: Tensor) -> Result<Tensor> {
        Ok(base)
    }
    /// Its parameters, frozen ones included.
    fn params(&self) -> Vec<Param>;
}

/// Linears that read the same input, with a code of its own for each.
pub struct CodedLinears<C> {
    site: String,
    code: C,
    /// One `[r, d_in]` per linear.
    a: Vec<Param>,
    /// One `[n, d_out]` per linear.
    b: Vec<Param>,
    scale: f32,
    dropout: f32,
}

impl<C: Code + 'static> CodedLinears<C> {
    /// The layer of a method: fresh factors, `rows` rows of A and `codes` rows of B for each linear, and its code.
    ///
    /// # Errors
    /// The rank does not fit a linear.
    pub fn adapter(
        options: &dyn MethodOptions,
        at: &LinearBuild<'_>,
        [rows, codes]: [usize; 2],
        code: C,
    ) -> Result<Arc<dyn LinearAdapter>> {
        at.site.fits("r", rows)?;
        let a = at.each("lora_a", rows)?;
        let b = at.outputs("lora_b", codes)?;
        Self::around(options, at, a, b, code)
    }

    /// The same around given factors, one A and one B for each linear.
    ///
    /// # Errors
    /// None that factors which exist can have.
    pub fn around(
        options: &dyn MethodOptions,
        at: &LinearBuild<'_>,
        a: Vec<Param>,
        b: Vec<Param>,
        code: C,
    ) -> Result<Arc<dyn LinearAdapter>> {
        Ok(Arc::new(CodedLinears {
            site: at.site.name.clone(),
            code,
            a,
            b,
            scale: options.scale(),
            dropout: options.lora().lora_dropout,
        }))
    }
}

/// What a row keeps besides `per_linear` values at each linear: its input where the code reads it, and the input of the
/// branch. With dropout that is one of its own: three of hidden size, and one behind gate and up.
pub fn coded_memory(lora: &Lora, per_linear: f64, reads_input: bool) -> RowMemory {
    let dropout = lora.lora_dropout > 0.0;
    let input = if reads_input || !dropout { RowMemory::ROUTED } else { RowMemory::PLAIN };
    let copies = f64::from(u8::from(dropout));
    RowMemory { per_linear, hidden: input.hidden + 3.0 * copies, product: input.product + copies, ..input }
}

impl<C: Code> LinearAdapter for CodedLinears<C> {
    fn forward(&self, x: &Tensor, linears: &[Linear], pass: &Pass) -> Result<Vec<Tensor>> {
        let m = x.shape().rows();
        let rows = x.reshape(&[m, x.shape().last()])?;
        let branch = match pass.dropout(&self.site, self.dropout) {
            Some(dropout) => rows.dropout(dropout.p, dropout.stream)?,
            None => rows.clone(),
        };
        let output = |(l, linear): (usize, &Linear)| {
            let u = branch.matmul_nt(&self.a[l].tensor())?;
            let code = self.code.code(l, &u, &rows, pass)?;
            let whole = Selection::whole(x.device(), &pass.units, 1, code.shape().last())?;
            let base = self.code.base(l, rows.linear(&linear.weight, linear.bias.as_ref())?)?;
            let y = expand_by(base, &code, &self.b[l].tensor(), &whole, self.scale)?;
            y.reshape(&[&x.dims()[..x.dims().len() - 1], &[linear.weight.rows()]].concat())
        };
        linears.iter().enumerate().map(output).collect()
    }

    fn params(&self) -> Vec<Param> {
        self.a.iter().chain(&self.b).cloned().chain(self.code.params()).collect()
    }
}
