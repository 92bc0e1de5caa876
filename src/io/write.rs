//! Writing safetensors.

use crate::{Error, Result};
use safetensors::tensor::{Dtype, TensorView};

/// A named f32 tensor in host memory, row-major.
pub struct Named {
    pub name: String,
    pub dims: Vec<usize>,
    pub values: Vec<f32>,
}

/// Serialises f32 tensors as a safetensors file, sorted by name: the bytes depend on the tensors alone.
///
/// # Errors
/// Two tensors have the same name, or a shape does not fit its values.
///
/// ```
/// use mixlora::io::{Checkpoint, Named, safetensors_bytes};
/// let tensor = Named { name: "a".into(), dims: vec![2, 2], values: vec![1.0, 2.0, 3.0, 4.0] };
/// let bytes = safetensors_bytes(vec![tensor])?;
/// let checkpoint = Checkpoint::from_bytes("memory", bytes)?;
/// assert_eq!(checkpoint.f32("a", &[2, 2])?, [1.0, 2.0, 3.0, 4.0]);
/// # Ok::<(), mixlora::Error>(())
/// ```
pub fn safetensors_bytes(mut tensors: Vec<Named>) -> Result<Vec<u8>> {
    tensors.sort_by(|one, other| one.name.cmp(&other.name));
    if let Some(pair) = tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(Error::refused(&pair[0].name, "two tensors have this name"));
    }
    let not_serialised = |error: safetensors::SafeTensorError| {
        Error::refused("safetensors", format!("cannot be serialised: {error}"))
    };
    let views = tensors
        .iter()
        .map(|tensor| {
            let view = TensorView::new(Dtype::F32, tensor.dims.clone(), bytemuck::cast_slice(&tensor.values));
            Ok((tensor.name.as_str(), view.map_err(not_serialised)?))
        })
        .collect::<Result<Vec<_>>>()?;
    // Loaders of Hugging Face require the format of the tensors.
    let format = [("format".to_string(), "pt".to_string())];
    safetensors::serialize(views, Some(format.into())).map_err(not_serialised)
}
