//! What a method keeps for the backward pass, for memory plans.

/// What a layer keeps per row for the backward pass besides what the frozen model keeps, for memory plans.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowMemory {
    /// Floats per adapted linear, such as the products with the chosen A factors.
    pub per_linear: f64,
    /// How many times gate, up and their product are kept: once per chosen expert of a block.
    pub mlp_copies: f64,
}

/// What a group of linears keeps for the backward pass beside its [`RowMemory`], in floats.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SiteMemory {
    /// For each row, such as copies of outputs.
    pub per_row: f64,
    /// Once, such as factors that are computed from others.
    pub once: f64,
}
