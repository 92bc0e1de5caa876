//! The operations, one file each.
//!
//! An op's file holds its three lanes (reference in f64, CPU, GPU), the `Tensor` method that users call with
//! its derivative, and the op's [`OpSpec`]: shaders and test cases. The list below is the only place that
//! names them all; see docs/ADD_AN_OP.md. Those that users call by more than a method of `Tensor` are `pub`.

pub use crate::engine::{Case, Computation, Costs, OpSpec, Operand, Timed, TimedSizes};

macro_rules! ops {
    ($($(#[$doc:meta])* $vis:vis $name:ident),+ $(,)?) => {
        $($(#[$doc])* $vis mod $name;)+
        /// Every op, in the order of the list.
        pub static ALL: &[&OpSpec] = &[$(&$name::SPEC),+];
    };
}

ops! {
    /// Grouped-query attention with a key mask, causal or both ways, in windows, with soft caps.
    pub attention,
    /// Sums, products, scaling: `y = a + b`, `a * b`, `s x`.
    elementwise,
    /// Frozen output head and cross-entropy: `sum -log softmax(h W^T)[target]`, with a soft cap of logits.
    head_loss,
    /// Dense products: `a b`, `a b^T`, `a^T b`.
    pub(crate) matmul,
    /// Sums over everything, rows, or the last axis.
    reduce,
    /// `y = x / rms(x) * w`.
    rms_norm,
    /// The pooled routing input of every unit.
    pool_rows,
    /// What the chosen factors of A say for every factor of B.
    pub condition_rows,
    /// Top-k routing: ordered choices and gates.
    pub topk_routing,
    /// The frozen product with the low-rank update in its epilogue.
    fused_ba_matmul,
    /// The shrink of a mixture, by rows of a pool.
    factor_gather,
    /// Gradients of factor pools, by sorted segments.
    factor_scatter,
    /// Gradients of gates.
    gate_grad,
    /// Gates of groups of neighbouring columns: `y[m,j] = u[m,j] g[m,j/r]`.
    gate_groups,
    /// The one operator: frozen linears with routed low-rank updates.
    pub mixture_linears,
    /// The expand apart from a product, for experts inside a block.
    pub(crate) factor_expand,
    /// Rows repeated for their experts, and summed back.
    repeat_rows,
    /// New positions in the room of key/value caches.
    write_rows,
    /// How often factors were chosen, and balancing biases.
    pub(crate) routing_load,
    /// `silu`, `gelu`, `gelu_erf`, `relu`, `relu6`, `softplus`, `sigmoid`, `cap * tanh(x / cap)`, exponentials, logarithms,
    /// powers, and `silu(gate) * up`, `gelu(gate) * up`.
    activation,
    /// `y = e^x / sum e^x` over the last axis, and its logarithm.
    softmax,
    /// `y[i] = table[index[i]]`.
    gather_rows,
    /// Rows of a frozen weight in any format: `y[i] = W[index[i]]`.
    embedding,
    /// Rotary position embedding of whole heads or their first values, with scaled frequencies.
    pub rope,
    /// `y = (x - mean(x)) / sqrt(var(x) + eps) * w + b`.
    layer_norm,
    /// Depthwise convolution of pictures, and their windows as rows.
    depthwise_conv,
    /// `y = x / (1 - p)` with probability `1 - p`, else 0.
    dropout,
    /// Positions of the k largest values of each row.
    top_k,
    /// Entries of each row that a rule selects: the k largest, those within a sum, those above a threshold.
    pub select,
    /// `y[m,j] = x[m,index[m,j]]`.
    pick,
    /// One step of AdamW, in place.
    pub adamw,
    /// `sqrt(sum x^2)` over a list of tensors, and `min(1, max_norm / norm)`.
    pub global_norm,
}

/// The op of docs/ADD_AN_OP.md, word for word: `build.rs` cuts it from the page.
#[cfg(test)]
mod negate {
    include!(concat!(env!("OUT_DIR"), "/recipe/src/ops/negate.rs"));
}

#[cfg(test)]
mod tests {
    use super::{OpSpec, TimedSizes, negate};
    use crate::Device;
    use crate::check::{bits, gradcheck, parity};

    #[test]
    fn the_recipe_is_an_op() {
        let spec: &OpSpec = &negate::SPEC;
        let cpu = Device::cpu();
        cpu.set_guard(true);
        let mut devices = vec![cpu.clone()];
        devices.extend(Device::gpu());
        for case in (spec.cases)() {
            for device in &devices {
                let found = parity(&case, device).unwrap();
                assert!(found.holds(), "{}: {found}", case.label);
            }
            assert!(!case.gradcheck || gradcheck(&case).unwrap() < 1e-6, "{}", case.label);
            assert_eq!(bits(&case, &cpu).unwrap(), bits(&case, &cpu).unwrap());
        }
        for timed in (spec.timed)(&TimedSizes { small: true, products: &[], formats: &[] }) {
            assert!(parity(&timed.case(), &cpu).unwrap().holds());
        }
    }

    #[test]
    fn the_shader_of_the_recipe_is_valid() {
        use naga::valid::{Capabilities, ValidationFlags, Validator};
        for shader in negate::SPEC.shaders {
            let variants = shader.entries.iter().flat_map(|entry| entry.variants);
            for (variant, immediates) in variants.flat_map(|v| [(v, false), (v, true)]) {
                let text = variant.text(shader, immediates);
                let module = naga::front::wgsl::parse_str(&text).unwrap();
                let mut allowed = Capabilities::empty();
                allowed.set(Capabilities::IMMEDIATES, immediates);
                Validator::new(ValidationFlags::all(), allowed).validate(&module).unwrap();
            }
        }
    }
}
