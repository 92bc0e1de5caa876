//! `mixlora doctor`

use crate::{Failure, ops_test, out};
use mixlora::Device;
use mixlora::ops::{ALL, OpSpec};
use serde_json::{Value, json};

/// What the self-test runs when the crate has them: the kernels that everything else stands on.
const HEART: [&str; 3] = ["topk_routing", "factor_gather", "fused_ba_matmul"];
const OTHERWISE: [&str; 3] = ["elementwise", "reduce", "rms_norm"];

#[derive(clap::Args)]
#[command(after_help = "\
The self-test runs a few ops on the CPU and on a GPU, forward and backward, and compares both with the f64 \
reference. Exit code 1 when a number is wrong; a machine without a GPU is fine.

Example: mixlora doctor --json")]
pub struct Args {
    /// The GPU to test: gpu (the best adapter) or part of an adapter's name.
    #[arg(long, default_value = "gpu")]
    device: String,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let gpu = match args.device.as_str() {
        "gpu" => ops_test::gpu_if_any()?,
        "cpu" => None,
        name @ ("reference" | "auto" | "all") => {
            return Err(Failure::Usage(format!(
                "--device {name} is not a GPU; use gpu or an adapter's name"
            )));
        }
        name => Some(crate::device(name)?),
    };
    let auto = Device::auto()?;
    out::progress("self-test");
    let cpu = Device::cpu();
    cpu.set_guard(true);
    gpu.iter().for_each(|g| g.set_guard(true));
    let tests: Vec<_> =
        self_test_ops().into_iter().map(|op| ops_test::lanes(op, Some(&cpu), gpu.as_ref())).collect();
    let holds = tests.iter().all(|t| t.failures.is_empty());
    let report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
        "cpu_features": cpu_features(),
        "threads": rayon::current_num_threads(),
        "adapters": adapters(),
        "auto": { "device": auto.name(), "why": why(&auto) },
        "self_test": {
            "gpu": gpu.as_ref().map(Device::name),
            "ops": tests.iter().map(|t| json!({
                "op": t.op, "cases": t.cases, "cpu": t.cpu, "gpu": t.gpu, "failures": t.failures,
            })).collect::<Vec<_>>(),
            "holds": holds,
        },
    });
    if args.json {
        out::json(&report)?;
    } else {
        out::text(&render(&report, &tests))?;
    }
    if holds { Ok(()) } else { Err(Failure::Check) }
}

fn self_test_ops() -> Vec<&'static OpSpec> {
    let pick = |names: &[&str]| -> Vec<&'static OpSpec> {
        ALL.iter().filter(|op| names.contains(&op.name)).copied().collect()
    };
    let heart = pick(&HEART);
    if heart.is_empty() { pick(&OTHERWISE) } else { heart }
}

/// Instruction sets that the CPU path can gain from.
fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let all = [
        ("avx", std::is_x86_feature_detected!("avx")),
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("fma", std::is_x86_feature_detected!("fma")),
        ("f16c", std::is_x86_feature_detected!("f16c")),
        ("avx512f", std::is_x86_feature_detected!("avx512f")),
    ];
    #[cfg(target_arch = "aarch64")]
    let all = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let all: [(&str, bool); 0] = [];
    all.iter().filter(|f| f.1).map(|f| f.0).collect()
}

#[cfg(feature = "gpu")]
fn adapters() -> Vec<Value> {
    let used = [
        ("immediates", mixlora::wgpu::Features::IMMEDIATES),
        ("timestamps", mixlora::wgpu::Features::TIMESTAMP_QUERY),
        ("cooperative matrices", mixlora::wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX),
    ];
    Device::list()
        .into_iter()
        .map(|a| {
            let limits = a.floor().map(|l| json!({ "limit": l.limit, "have": l.have, "need": l.need }));
            let features: Vec<_> = used.iter().filter(|f| a.features.contains(f.1)).map(|f| f.0).collect();
            json!({
                "name": a.name,
                "backend": a.backend.to_string(),
                "class": format!("{:?}", a.class).to_lowercase(),
                "driver": a.driver,
                "shader_compiler": shader_compiler(a.backend),
                "features": features,
                "limits": limits,
                "below_floor": a.below_floor,
            })
        })
        .collect()
}

/// Who turns our WGSL into the device's code.
#[cfg(feature = "gpu")]
fn shader_compiler(backend: mixlora::wgpu::Backend) -> &'static str {
    use mixlora::wgpu::Backend;
    match backend {
        Backend::Vulkan => "WGSL by naga to SPIR-V, then the driver",
        Backend::Metal => "WGSL by naga to MSL, then Metal",
        Backend::Dx12 => "WGSL by naga to HLSL, then DXC where dxcompiler.dll is found, else FXC",
        _ => "WGSL by naga",
    }
}

#[cfg(not(feature = "gpu"))]
fn adapters() -> Vec<Value> {
    Vec::new()
}

/// Why `auto` takes this device.
fn why(auto: &Device) -> String {
    #[cfg(feature = "gpu")]
    {
        use mixlora::device::AdapterClass;
        if let Device::Gpu(gpu) = auto {
            return match gpu.class() {
                AdapterClass::Software => {
                    "MIXLORA_REQUIRE_GPU=1 asks for a GPU, and this is the best adapter".into()
                }
                class => format!("it is the best adapter ({})", format!("{class:?}").to_lowercase()),
            };
        }
        match Device::list().iter().find(|a| a.class != AdapterClass::Software) {
            Some(a) => match &a.below_floor {
                Some(reason) => reason.clone(),
                None => format!("'{}' could not be opened", a.name),
            },
            None if Device::list().is_empty() => "there is no Vulkan, Metal or DX12 adapter".into(),
            None => "the only adapters are software drivers, which are slower than the CPU path".into(),
        }
    }
    #[cfg(not(feature = "gpu"))]
    {
        let _ = auto;
        "this build has no GPU support".into()
    }
}

fn words(list: &Value) -> String {
    let words: Vec<_> = list.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if words.is_empty() { "none".into() } else { words.join(" ") }
}

fn string(v: &Value) -> &str {
    v.as_str().unwrap_or("none")
}

fn render(r: &Value, tests: &[ops_test::Tested]) -> String {
    let mut text =
        format!("mixlora {} on {} {}\n", string(&r["version"]), string(&r["os"]), string(&r["arch"]));
    text += &format!("CPU: {} threads, {}\n", r["threads"], words(&r["cpu_features"]));
    let adapters: &[Value] = r["adapters"].as_array().map_or(&[], Vec::as_slice);
    if adapters.is_empty() {
        text += "no GPU adapter\n";
    }
    for (i, a) in adapters.iter().enumerate() {
        text += &format!(
            "\nadapter {i}: {}\n  {}, {}, driver {}\n  shaders: {}\n  features used: {}\n",
            string(&a["name"]),
            string(&a["backend"]),
            string(&a["class"]),
            string(&a["driver"]),
            string(&a["shader_compiler"]),
            words(&a["features"])
        );
        let rows: Vec<Vec<String>> = a["limits"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|l| {
                let verdict = if l["have"].as_u64() >= l["need"].as_u64() { "ok" } else { "BELOW" };
                vec![string(&l["limit"]).into(), l["have"].to_string(), l["need"].to_string(), verdict.into()]
            })
            .collect();
        for line in out::table(&["limit", "here", "needed", ""], &rows).lines() {
            text += &format!("  {line}\n");
        }
        if let Some(reason) = a["below_floor"].as_str() {
            text += &format!("  {reason}\n");
        }
    }
    text +=
        &format!("\n--device auto takes {}: {}\n\n", string(&r["auto"]["device"]), string(&r["auto"]["why"]));
    let show = |e: Option<f64>| e.map_or("-".to_string(), out::error);
    let rows: Vec<Vec<String>> = tests
        .iter()
        .map(|t| {
            let verdict = if t.failures.is_empty() { "ok" } else { "FAILED" };
            vec![t.op.into(), t.cases.to_string(), show(t.cpu), show(t.gpu), verdict.into()]
        })
        .collect();
    text +=
        &format!("self-test, errors against the f64 reference, GPU: {}\n", string(&r["self_test"]["gpu"]));
    text += &out::table(&["op", "cases", "cpu", "gpu", "verdict"], &rows);
    for failure in tests.iter().flat_map(|t| &t.failures) {
        text += &format!("FAILED {failure}\n");
    }
    text
}
