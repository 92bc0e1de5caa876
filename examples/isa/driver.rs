//! A Vulkan driver: compiling a kernel and asking what became of it.

use ash::{ext, khr, vk};
use std::ffi::{CStr, CString};
use std::fmt;

/// A kernel in SPIR-V, and the interface that it needs.
pub struct Kernel {
    pub words: Vec<u32>,
    pub entry: String,
    /// Group and binding.
    pub storage: Vec<(u32, u32)>,
    /// Bytes of push constants.
    pub push: u32,
    /// Whether the size of a subgroup may vary.
    pub varying: bool,
}

/// What the driver tells of a kernel.
pub struct Compiled {
    pub statistics: Vec<(String, u64)>,
    /// Name and text of each representation.
    pub texts: Vec<(String, String)>,
    pub wave: u32,
    /// Waves on a SIMD at once, as far as registers and workgroup memory allow.
    pub waves: u64,
}

impl Compiled {
    fn statistic(&self, name: &str) -> u64 {
        self.statistics.iter().find(|s| s.0 == name).map_or(0, |s| s.1)
    }
    pub fn spills(&self) -> u64 {
        self.statistic("Spilled VGPRs") + self.statistic("Spilled SGPRs")
    }
    pub fn code_bytes(&self) -> u64 {
        self.statistic("Code size")
    }
    pub fn workgroup_bytes(&self) -> u64 {
        self.statistic("LDS size")
    }
    /// The machine code as text; empty where the driver's LLVM does not know the GPU.
    pub fn assembly(&self) -> &str {
        self.texts.iter().find(|(name, _)| name == "Assembly").map_or("", |(_, text)| text)
    }
}

impl fmt::Display for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let registers = self.statistic("VGPRs");
        let instructions = self.statistic("Instructions");
        let Compiled { wave, waves, .. } = self;
        let (spills, code, lds) = (self.spills(), self.code_bytes(), self.workgroup_bytes());
        write!(
            f,
            "wave {wave}, registers {registers:3}, spills {spills}, waves {waves:2}, LDS {lds:5} B, code {code:5} B, \
             instructions {instructions}"
        )
    }
}

pub struct Driver {
    pub name: String,
    pub coop: bool,
    /// The smallest subgroup.
    least: u32,
    device: ash::Device,
    reports: khr::pipeline_executable_properties::Device,
    _instance: ash::Instance,
    _library: ash::Entry,
}

impl Driver {
    /// The first Vulkan device, with every core feature that it has, and bounds of buffers checked as wgpu asks for
    /// it.
    pub fn open() -> Result<Self, String> {
        let failed = |error: vk::Result| error.to_string();
        // SAFETY: calls of the Vulkan API in their order, with structures that live until the call returns.
        unsafe {
            let library = ash::Entry::load().map_err(|error| error.to_string())?;
            let app = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
            let info = vk::InstanceCreateInfo::default().application_info(&app);
            let instance = library.create_instance(&info, None).map_err(failed)?;
            let physical =
                *instance.enumerate_physical_devices().map_err(failed)?.first().ok_or("no Vulkan device")?;
            let mut sizes = vk::PhysicalDeviceVulkan13Properties::default();
            let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut sizes);
            instance.get_physical_device_properties2(physical, &mut properties);
            let name =
                properties.properties.device_name_as_c_str().unwrap_or(c"").to_string_lossy().into_owned();
            let least = sizes.min_subgroup_size;
            let offered = instance.enumerate_device_extension_properties(physical).map_err(failed)?;
            let has = |n: &CStr| offered.iter().any(|e| e.extension_name_as_c_str() == Ok(n));
            let coop = has(khr::cooperative_matrix::NAME);
            let mut names = vec![khr::pipeline_executable_properties::NAME.as_ptr()];
            if coop {
                names.push(khr::cooperative_matrix::NAME.as_ptr());
            }
            let robust2 = has(ext::robustness2::NAME);
            if robust2 {
                names.push(ext::robustness2::NAME.as_ptr());
            }
            let mut f11 = vk::PhysicalDeviceVulkan11Features::default();
            let mut f12 = vk::PhysicalDeviceVulkan12Features::default();
            let mut f13 = vk::PhysicalDeviceVulkan13Features::default();
            let mut reports = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default();
            let mut matrices = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default();
            let mut checks = vk::PhysicalDeviceRobustness2FeaturesEXT::default();
            let mut all = vk::PhysicalDeviceFeatures2::default();
            all = all.push_next(&mut f11).push_next(&mut f12).push_next(&mut f13).push_next(&mut reports);
            if coop {
                all = all.push_next(&mut matrices);
            }
            if robust2 {
                all = all.push_next(&mut checks);
            }
            instance.get_physical_device_features2(physical, &mut all);
            all.features.robust_buffer_access = 1;
            let queues = [vk::DeviceQueueCreateInfo::default().queue_priorities(&[1.0])];
            let info = vk::DeviceCreateInfo::default()
                .queue_create_infos(&queues)
                .enabled_extension_names(&names)
                .push_next(&mut all);
            let device = instance.create_device(physical, &info, None).map_err(failed)?;
            let reports = khr::pipeline_executable_properties::Device::new(&instance, &device);
            Ok(Driver { name, coop, least, device, reports, _instance: instance, _library: library })
        }
    }

    /// Compiles a kernel.
    pub fn compile(&self, kernel: &Kernel) -> Result<Compiled, String> {
        let d = &self.device;
        let failed = |error: vk::Result| error.to_string();
        // SAFETY: as above; the module and the pipeline are not used after they are destroyed.
        unsafe {
            let code = vk::ShaderModuleCreateInfo::default().code(&kernel.words);
            let module = d.create_shader_module(&code, None).map_err(failed)?;
            let mut layouts = Vec::new();
            for group in 0..kernel.storage.iter().map(|b| b.0 + 1).max().unwrap_or(0) {
                let own = kernel.storage.iter().filter(|b| b.0 == group);
                let binding = |b: &(u32, u32)| {
                    vk::DescriptorSetLayoutBinding::default()
                        .binding(b.1)
                        .descriptor_type(vk::DescriptorType::STORAGE_BUFFER)
                        .descriptor_count(1)
                        .stage_flags(vk::ShaderStageFlags::COMPUTE)
                };
                let bindings: Vec<_> = own.map(binding).collect();
                let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
                layouts.push(d.create_descriptor_set_layout(&info, None).map_err(failed)?);
            }
            let push = vk::PushConstantRange::default().stage_flags(vk::ShaderStageFlags::COMPUTE);
            let push = [push.size(kernel.push.max(4).next_multiple_of(4))];
            let info =
                vk::PipelineLayoutCreateInfo::default().set_layouts(&layouts).push_constant_ranges(&push);
            let layout = d.create_pipeline_layout(&info, None).map_err(failed)?;
            let entry = CString::new(kernel.entry.as_str()).map_err(|e| e.to_string())?;
            let mut stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(&entry);
            if kernel.varying {
                stage = stage.flags(vk::PipelineShaderStageCreateFlags::ALLOW_VARYING_SUBGROUP_SIZE);
            }
            let kept = vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
                | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR;
            let info = [vk::ComputePipelineCreateInfo::default().stage(stage).layout(layout).flags(kept)];
            let made = d.create_compute_pipelines(vk::PipelineCache::null(), &info, None);
            let pipeline = made.map_err(|(_, e)| failed(e))?[0];
            let compiled = self.ask(pipeline);
            d.destroy_pipeline(pipeline, None);
            d.destroy_shader_module(module, None);
            compiled.map_err(failed)
        }
    }

    /// # Safety
    /// The pipeline is one of this device.
    unsafe fn ask(&self, pipeline: vk::Pipeline) -> Result<Compiled, vk::Result> {
        // SAFETY: the caller's pipeline; texts are written into buffers of the sizes that the driver asked for.
        unsafe {
            let of = vk::PipelineInfoKHR::default().pipeline(pipeline);
            let wave = self.reports.get_pipeline_executable_properties(&of)?[0].subgroup_size;
            let info = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline);
            let named = |n: Result<&CStr, _>| n.unwrap_or(c"").to_string_lossy().into_owned();
            let statistics = self.reports.get_pipeline_executable_statistics(&info)?;
            let statistics: Vec<_> =
                statistics.iter().map(|s| (named(s.name_as_c_str()), s.value.u64)).collect();
            // Sizes first, then texts of these sizes.
            let get = self.reports.fp().get_pipeline_executable_internal_representations_khr;
            let mut count = 0;
            get(self.device.handle(), &info, &mut count, std::ptr::null_mut()).result()?;
            let mut parts = vec![vk::PipelineExecutableInternalRepresentationKHR::default(); count as usize];
            get(self.device.handle(), &info, &mut count, parts.as_mut_ptr()).result()?;
            let mut bytes: Vec<Vec<u8>> = parts.iter().map(|p| vec![0; p.data_size]).collect();
            for (part, bytes) in parts.iter_mut().zip(&mut bytes) {
                part.p_data = bytes.as_mut_ptr().cast();
            }
            get(self.device.handle(), &info, &mut count, parts.as_mut_ptr()).result()?;
            let texts = parts.iter().zip(bytes).map(|(p, b)| {
                (named(p.name_as_c_str()), String::from_utf8_lossy(&b).trim_end_matches('\0').to_string())
            });
            let per_simd =
                |s: &[(String, u64)]| s.iter().find(|s| s.0 == "Subgroups per SIMD").map_or(0, |s| s.1);
            // Where waves of 32 exist, the driver counts in these.
            let waves = per_simd(&statistics) * u64::from(self.least) / u64::from(wave.max(1));
            Ok(Compiled { statistics, texts: texts.collect(), wave, waves })
        }
    }
}
