//! The methods, one file each: options, router, pools. This list is the only place that names them all.

use super::MethodSpec;

macro_rules! methods {
    ($($name:ident),+ $(,)?) => {
        $(pub mod $name;)+
        /// Every method, in the order of the list.
        pub static ALL: &[&MethodSpec] = &[$(&$name::SPEC),+];
    };
}

methods! {
    lora, mixlora_cond, mixlora_cond_gated, mixlora_fitted, vt_nlp, mixlora_ffn, llava_mole, block_moe, mola, meteora, dynmole, ld_mole,
    loramoe, lora_mixer, moelora, hydra, comol, mora_cl, smora, rank_wise, flylora, modulate, personal, ept, uni_moe,
    x_lora, cond_router, remix, dps, peam,
}

/// The method that is trained where none is named.
pub const STANDARD: &MethodSpec = &mixlora_cond::SPEC;

/// What is said of a name that two papers have.
pub(super) const TWO_PAPERS: &str =
    "two papers have that name: mixlora-cond chooses factors per instance, mixlora-ffn experts per token";
