//! What a method keeps for the backward pass, as memory plans count it.

/// What a layer keeps per row for the backward pass besides what the frozen model keeps, for memory plans.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowMemory {
    /// Floats per adapted linear, such as the products with the chosen A factors.
    pub per_linear: f64,
    /// Floats of a layer beside those.
    pub per_layer: f64,
    /// How many times gate and up are kept: once per chosen expert of a block.
    pub gate_up: f64,
    /// How many values of the hidden size are kept that are computed again without the method: the norms' outputs where a
    /// router reads them.
    pub hidden: f64,
    /// How many values of the hidden size are kept once, whatever the layers are: states of a pass before the pass.
    pub before: f64,
    /// How many times the product of gate and up is kept, which is computed again without the method.
    pub product: f64,
}

impl RowMemory {
    /// Of a method whose routers read nothing, or what is computed again.
    pub const PLAIN: RowMemory =
        RowMemory { per_linear: 0.0, per_layer: 0.0, gate_up: 1.0, hidden: 0.0, before: 0.0, product: 0.0 };
    /// Of a method with a router at each linear, which keeps what it reads: both norms' outputs, and the product of gate and
    /// up.
    pub const ROUTED: RowMemory = RowMemory { hidden: 2.0, product: 1.0, ..RowMemory::PLAIN };
}

/// What a group of linears keeps for the backward pass beside its [`RowMemory`], in floats.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SiteMemory {
    /// For each row, such as copies of outputs.
    pub per_row: f64,
    /// Once, such as factors that are computed from others.
    pub once: f64,
}
