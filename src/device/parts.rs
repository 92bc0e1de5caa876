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
    /// `random_uniform(key, index)`.
    RANDOM = "random";
}
