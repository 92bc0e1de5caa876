//! Files in and out.

mod safetensors;

pub use self::safetensors::{StoredTensor, TensorFile};
