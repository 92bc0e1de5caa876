//! Element types of tensors.

/// Element type of a [`Tensor`](crate::Tensor).
///
/// `F32` is the type of values: on the reference device it is held and computed in f64.
/// `U32` is the type of indices. Storage formats of frozen weights are a matter of
/// [`Weight`](crate::Weight), not of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// Values.
    F32,
    /// Indices and counts.
    U32,
}

impl DType {
    /// Lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::U32 => "u32",
        }
    }
    /// Bytes of one element in device memory.
    pub const fn size(self) -> usize {
        4
    }
}
