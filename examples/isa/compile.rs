//! Kernels as they are dispatched, in the SPIR-V that wgpu hands to a Vulkan driver.

use super::driver::Kernel;
use mixlora::bench::tune::{ProductKernel, product_kernels};
use mixlora::device::{COOP_8, COOP_16, Shader, Variant, compose};
use naga::AddressSpace;
use naga::back::spv;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};

/// A kernel of the project with the constants that a dispatch gives it.
pub struct Dispatched {
    /// `shader::entry kernel variant`
    pub name: String,
    shader: &'static Shader,
    entry: &'static str,
    variant: &'static Variant,
    consts: Vec<(&'static str, u32)>,
    coop: bool,
}

/// Every kernel: products in the tilings that are dispatched, the others as declared. Cooperative matrices of 8 x 8 are
/// left out, those of 16 x 16 unless `coop`.
pub fn dispatched(coop: bool) -> Vec<Dispatched> {
    let shaders = mixlora::ops::ALL.iter().flat_map(|op| op.shaders).chain(mixlora::bench::SHADERS).copied();
    let mut shaders: Vec<&'static Shader> = shaders.collect();
    shaders.sort_by_key(|shader| shader.name);
    shaders.dedup_by_key(|shader| shader.name);
    let products = product_kernels();
    let mut all = Vec::new();
    for shader in shaders {
        for entry in shader.entries {
            for variant in entry.variants.iter().filter(|variant| variant.backends.spirv) {
                let of_matrices = [COOP_8, COOP_16].contains(&variant.backends);
                if variant.backends == COOP_8 || of_matrices && !coop {
                    continue;
                }
                let one = |kernel: Option<&ProductKernel>| {
                    let sizes = kernel.map_or(&[][..], |kernel| &kernel.consts);
                    let value = |&(name, declared): &(&'static str, u32)| {
                        let given = sizes.iter().find(|(other, _)| *other == name);
                        (name, given.map_or(declared, |(_, value)| *value))
                    };
                    let called = kernel.map_or(String::new(), |kernel| format!(" {}", kernel.name));
                    Dispatched {
                        name: format!("{}::{}{called} {}", shader.name, entry.name, variant.name),
                        shader,
                        entry: entry.name,
                        variant,
                        consts: variant.consts.iter().map(value).collect(),
                        coop: of_matrices,
                    }
                };
                let tilings: Vec<_> = products.iter().filter(|kernel| kernel.entry == entry.name).collect();
                if variant.consts.iter().any(|(name, _)| *name == "LANES") {
                    all.extend(tilings.into_iter().map(|kernel| one(Some(kernel))));
                } else {
                    all.push(one(None));
                }
            }
        }
    }
    all
}

impl Dispatched {
    /// The kernel in SPIR-V, with what `edit` makes of every file.
    pub fn kernel(&self, edit: &dyn Fn(&'static str) -> String) -> Result<Kernel, String> {
        let parts: Vec<String> = self.variant.parts.iter().map(|part| edit(part)).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let text = compose(self.shader, &self.consts, &parts, true);
        // The file itself comes last.
        let text = text.replacen(self.shader.source, &edit(self.shader.source), 1);
        translate(&text, self.entry, self.coop)
    }
}

/// SPIR-V as wgpu 30 writes it for shaders without run-time checks on Vulkan 1.3.
fn translate(text: &str, entry: &str, coop: bool) -> Result<Kernel, String> {
    let module = naga::front::wgsl::parse_str(text).map_err(|e| e.emit_to_string(text))?;
    let mut allowed = Capabilities::SHADER_FLOAT16_IN_FLOAT32 | Capabilities::IMMEDIATES;
    allowed |= Capabilities::SUBGROUP | Capabilities::SHADER_FLOAT16;
    allowed.set(Capabilities::COOPERATIVE_MATRIX, coop);
    let info = Validator::new(ValidationFlags::all(), allowed)
        .subgroup_stages(ShaderStages::COMPUTE)
        .subgroup_operations(SubgroupOperationSet::all())
        .validate(&module)
        .map_err(|e| e.emit_to_string(text))?;
    let unchecked = BoundsCheckPolicy::Unchecked;
    let options = spv::Options {
        lang_version: (1, 6),
        flags: spv::WriterFlags::LABEL_VARYINGS,
        bounds_check_policies: BoundsCheckPolicies {
            index: unchecked,
            buffer: unchecked,
            image_load: unchecked,
            binding_array: unchecked,
        },
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        emit_int_div_checks: false,
        ..spv::Options::default()
    };
    let stage = spv::PipelineOptions { shader_stage: naga::ShaderStage::Compute, entry_point: entry.into() };
    let words = spv::write_vec(&module, &info, &options, Some(&stage)).map_err(|e| e.to_string())?;
    let mut kernel = Kernel { words, entry: entry.into(), storage: Vec::new(), push: 0, varying: coop };
    for (_, global) in module.global_variables.iter() {
        match (global.space, &global.binding) {
            (AddressSpace::Storage { .. }, Some(at)) => kernel.storage.push((at.group, at.binding)),
            (AddressSpace::Immediate, _) => {
                kernel.push += module.types[global.ty].inner.size(module.to_ctx())
            }
            _ => {}
        }
    }
    kernel.storage.sort();
    kernel.storage.dedup();
    Ok(kernel)
}
