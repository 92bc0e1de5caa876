//! The operations, one file each.
//!
//! An op's file holds its three lanes (reference in f64, CPU, GPU), the `Tensor` method that users call with
//! its derivative, and the op's [`OpSpec`]: shaders and test cases. The list below is the only place that
//! names them all; see docs/ADD_AN_OP.md.

pub use crate::engine::{Case, OpSpec, Operand};

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        $($(#[$doc])* pub mod $name;)+
        /// Every op, in the order of the list.
        pub static ALL: &[&OpSpec] = &[$(&$name::SPEC),+];
    };
}

ops! {
    /// Causal grouped-query attention with a key mask.
    attention,
    /// Sums, products, scaling: `y = a + b`, `a * b`, `s x`.
    elementwise,
    /// Frozen output head and cross-entropy: `sum -log softmax(h W^T)[target]`.
    head_loss,
    /// Dense products: `a b`, `a b^T`, `a^T b`.
    matmul,
    /// Sums over everything, rows, or the last axis.
    reduce,
    /// `y = x / rms(x) * w`.
    rms_norm,
    /// The pooled routing input of every unit.
    pool_rows,
    /// What the chosen factors of A say for every factor of B.
    condition_rows,
    /// Top-k routing: ordered choices and gates.
    topk_routing,
    /// The frozen product with the low-rank update in its epilogue.
    fused_ba_matmul,
    /// The shrink of a mixture, by rows of a pool.
    factor_gather,
    /// Gradients of factor pools, by sorted segments.
    factor_scatter,
    /// Gradients of gates.
    gate_grad,
    /// The one operator: frozen linears with routed low-rank updates.
    mixture_linears,
    /// The expand apart from a product, for experts inside a block.
    factor_expand,
    /// Rows repeated for their experts, and summed back.
    repeat_rows,
    /// New positions in the room of key/value caches.
    write_rows,
    /// How often factors were chosen, and balancing biases.
    routing_load,
    /// `silu`, `gelu`, `gelu_erf`, `sigmoid`, and `silu(gate) * up`.
    activation,
    /// `y = e^x / sum e^x` over the last axis.
    softmax,
    /// `y[i] = table[index[i]]`.
    gather_rows,
    /// Rows of a frozen weight in any format: `y[i] = W[index[i]]`.
    embedding,
    /// Rotary position embedding.
    rope,
    /// `y = (x - mean(x)) / sqrt(var(x) + eps) * w + b`.
    layer_norm,
    /// `y = x / (1 - p)` with probability `1 - p`, else 0.
    dropout,
    /// Positions of the k largest values of each row.
    top_k,
    /// One step of AdamW, in place.
    adamw,
    /// `sqrt(sum x^2)` over a list of tensors, and `min(1, max_norm / norm)`.
    global_norm,
}
