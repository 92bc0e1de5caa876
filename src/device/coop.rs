//! Cooperative matrices: what an adapter offers, and whether this device computes right with them.

use super::options::CoopSize;
use crate::{Error, Result};
use std::sync::OnceLock;
use wgpu::Features;

/// What a shader with cooperative matrices needs.
pub(super) const FEATURES: Features =
    Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(Features::SHADER_F16).union(Features::SUBGROUP);

/// Subgroups of a workgroup that compute.
const SUBGROUPS: u32 = 4;

/// What an adapter offers: the largest size there is.
pub(super) fn offered(adapter: &wgpu::Adapter) -> std::result::Result<CoopSize, &'static str> {
    use wgpu::CooperativeScalarType::{F16, F32};
    if !adapter.features().contains(FEATURES) {
        return Err("the adapter has no cooperative matrices");
    }
    let listed = adapter.cooperative_matrix_properties();
    let fits = |side: u32| {
        listed
            .iter()
            .any(|p| [p.m_size, p.n_size, p.k_size] == [side; 3] && (p.ab_type, p.cr_type) == (F16, F32))
    };
    let side = [16, 8].into_iter().find(|&s| fits(s));
    let side = side.ok_or("the adapter has no cooperative matrices of f16 operands and f32 sums")?;
    // Where subgroups are smaller than their largest size, some have nothing to compute.
    let lanes = SUBGROUPS * adapter.get_info().subgroup_max_size;
    if lanes > 256 { Err("the adapter's subgroups are too large") } else { Ok(CoopSize { side, lanes }) }
}

/// Cooperative matrices on an open device: asked for, offered, and found right.
#[derive(Debug)]
pub(super) struct Coop {
    size: std::result::Result<CoopSize, &'static str>,
    /// What is wrong with its results, if anything; filled by the first product that asks.
    wrong: OnceLock<Option<String>>,
}

impl Coop {
    pub fn new(size: std::result::Result<CoopSize, &'static str>) -> Self {
        Coop { size, wrong: OnceLock::new() }
    }

    /// Whether a device was opened with them.
    pub fn was_asked_for(&self) -> bool {
        self.size.is_ok()
    }

    /// The size to use, after `test` passed once.
    pub fn tested(&self, test: impl FnOnce(CoopSize) -> Result<()>) -> Option<CoopSize> {
        let size = self.size.ok()?;
        let wrong = self.wrong.get_or_init(|| test(size).err().map(|e: Error| e.to_string()));
        wrong.is_none().then_some(size)
    }

    /// Why they are not used, if that is known.
    pub fn note(&self) -> Option<String> {
        match (&self.size, self.wrong.get()) {
            (Err(why), _) => Some(why.to_string()),
            (_, Some(Some(wrong))) => Some(format!("cooperative matrices failed the self-test: {wrong}")),
            _ => None,
        }
    }
}
