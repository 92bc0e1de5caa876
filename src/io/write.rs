//! Writing safetensors.

use crate::{Error, Result};
use safetensors::tensor::{Dtype, TensorView};

/// A named f32 tensor in host memory.
pub struct Named {
    pub name: String,
    pub dims: Vec<usize>,
    pub values: Vec<f32>,
}

/// The bytes of a safetensors file of f32 tensors, in the order of their names: they depend on the tensors alone.
///
/// # Errors
/// Two tensors have one name, or a shape does not fit its values.
pub fn safetensors_bytes(mut tensors: Vec<Named>) -> Result<Vec<u8>> {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(w) = tensors.windows(2).find(|w| w[0].name == w[1].name) {
        return Err(Error::config(&w[0].name, "two tensors have this name"));
    }
    let bad =
        |e: safetensors::SafeTensorError| Error::config("safetensors", format!("cannot be serialised: {e}"));
    let views = tensors
        .iter()
        .map(|t| {
            let view = TensorView::new(Dtype::F32, t.dims.clone(), bytemuck::cast_slice(&t.values));
            Ok((t.name.as_str(), view.map_err(bad)?))
        })
        .collect::<Result<Vec<_>>>()?;
    // Hugging Face's loaders want to know that the tensors are for PyTorch.
    let format = [("format".to_string(), "pt".to_string())];
    safetensors::serialize(views, Some(format.into())).map_err(bad)
}
