//! The fragments of `shaders/common/`, by name.

macro_rules! parts {
    ($($(#[$doc:meta])* $name:ident = $file:literal;)+) => {
        $($(#[$doc])* pub const $name: &str = include_str!(concat!("../../shaders/common/", $file, ".wgsl"));)+
    };
}

parts! {
    /// `linear_group(workgroup_id, num_workgroups)`.
    GRID = "grid";
    /// `workgroup_sum(value, lid)` and `workgroup_max(value, lid)`; needs `WG`.
    SUM = "sum";
    /// The same interface where one invocation does the whole item.
    SUM_LANE = "sum_lane";
    /// `workgroup_best(pair, lid)`: the largest value and its index; needs `WG`.
    BEST = "best";
    /// The same interface where one invocation does the whole item.
    BEST_LANE = "best_lane";
    /// `random_uniform(key, index)`.
    RANDOM = "random";
    /// `unit_of(row)` and `pick(unit, slot)`; needs `UNITS`, `idx`, `row_unit`.
    SLOTS = "slots";
    /// `drop_factor(index)`; needs `RANDOM` and `DROP`.
    DROPOUT = "dropout";
    /// `load_w(i)` from f32.
    LOAD_F32 = "load_f32";
    /// `load_w(i)` from f16.
    LOAD_F16 = "load_f16";
    /// `load_w(i)` from bf16.
    LOAD_BF16 = "load_bf16";
}
