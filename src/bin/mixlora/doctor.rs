//! `mixlora doctor`

use crate::device_args::why_auto;
use crate::ops_test::{self, Devices, Jobs, Tested};
use crate::{Failure, out};
use mixlora::Device;
use mixlora::ops::ALL;
use serde_json::{Value, json};

/// The central kernels.
const CENTRAL: [&str; 3] = ["topk_routing", "factor_gather", "fused_ba_matmul"];
/// The index of the case that a short test runs; earlier cases have degenerate sizes.
const SHORT_CASE: usize = 3;

#[derive(clap::Args)]
#[command(after_help = "\
The self-test runs a case of top-k routing, factor gather and the fused product, forward and backward, and compares it \
with the f64 reference; --full runs every case of every op. Software drivers are slower than the CPU and take long to \
compile kernels: they are tested when they are named. Exit code 1 when a number is wrong; a machine without a GPU is \
fine.

Example: mixlora doctor --full --device gpu")]
pub struct Args {
    /// What to test: auto (the CPU, and the best GPU), cpu, gpu, all (a software adapter too where there is no other),
    /// or part of an adapter's name.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Test every case of every operation, as `mixlora ops test` does.
    #[arg(long)]
    full: bool,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    if args.device == "reference" {
        let text = "--device reference is what the others are compared with; use auto, cpu, gpu, all or an adapter's name";
        return Err(Failure::Usage(text.into()));
    }
    let auto = Device::auto()?;
    let mut report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
        "cpu_features": cpu_features(),
        "threads": rayon::current_num_threads(),
        "adapters": adapters(),
        "auto": { "device": auto.name(), "why": why_auto(&auto) },
    });
    // The devices are printed first, because a test can take a while.
    if !args.json {
        out::text(&render(&report))?;
    }
    let devices = Devices { cpu: Some(Device::cpu()), gpu: gpu(&args.device)? };
    let tests = if args.full {
        Jobs::of(ALL, |_| true).run(&devices, true)?
    } else {
        let central: Vec<_> = ALL.iter().filter(|op| CENTRAL.contains(&op.name)).copied().collect();
        Jobs::of(&central, |case| case == SHORT_CASE).run(&devices, false)?
    };
    let holds = tests.iter().all(|tested| tested.failures.is_empty());
    if args.json {
        report["self_test"] = json!({
            "gpu": devices.gpu.as_ref().map(Device::name),
            "ops": tests.iter().map(|tested| json!({
                "op": tested.op, "cases": tested.cases, "cpu": tested.cpu, "gpu": tested.gpu, "failures": tested.failures,
            })).collect::<Vec<_>>(),
            "holds": holds,
        });
        out::json(&report)?;
    } else {
        out::text(&render_tests(&tests, devices.gpu.as_ref()))?;
    }
    if holds { Ok(()) } else { Err(Failure::Check) }
}

/// The GPU to test, if any.
fn gpu(device: &str) -> Result<Option<Device>, Failure> {
    match device {
        "cpu" => Ok(None),
        "all" => ops_test::gpu_if_any(true),
        "auto" => match Device::auto()? {
            Device::Cpu(_) | Device::Reference => Ok(None),
            gpu => Ok(Some(gpu)),
        },
        name => Ok(Some(crate::device(name)?)),
    }
}

/// The instruction sets of the CPU that speed up products.
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
    all.iter().filter(|feature| feature.1).map(|feature| feature.0).collect()
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
        .map(|adapter| {
            let limits = adapter
                .floor()
                .map(|limit| json!({ "limit": limit.limit, "have": limit.have, "need": limit.need }));
            let features: Vec<_> = used
                .iter()
                .filter(|feature| adapter.features.contains(feature.1))
                .map(|feature| feature.0)
                .collect();
            json!({
                "name": adapter.name,
                "backend": adapter.backend.to_string(),
                "class": format!("{:?}", adapter.class).to_lowercase(),
                "driver": adapter.driver,
                "memory_mib": adapter.memory.map(|bytes| bytes >> 20),
                "shader_compiler": shader_compiler(adapter.backend),
                "features": features,
                "limits": limits,
                "below_floor": adapter.below_floor,
            })
        })
        .collect()
}

/// The compilers from WGSL to the code of the device.
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

fn words(list: &Value) -> String {
    let words: Vec<_> = list.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if words.is_empty() { "none".into() } else { words.join(" ") }
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap_or("none")
}

fn render(report: &Value) -> String {
    let mut text = format!(
        "mixlora {} on {} {}\n",
        string(&report["version"]),
        string(&report["os"]),
        string(&report["arch"])
    );
    text += &format!("CPU: {} threads, {}\n", report["threads"], words(&report["cpu_features"]));
    let adapters: &[Value] = report["adapters"].as_array().map_or(&[], Vec::as_slice);
    if adapters.is_empty() {
        text += "no GPU adapter\n";
    }
    for (i, adapter) in adapters.iter().enumerate() {
        let memory = adapter["memory_mib"].as_u64().map_or("unknown".into(), |mib| format!("{mib} MiB"));
        text += &format!(
            "\nadapter {i}: {}\n  {}, {}, driver {}\n  memory: {memory}\n  shaders: {}\n  features used: {}\n",
            string(&adapter["name"]),
            string(&adapter["backend"]),
            string(&adapter["class"]),
            string(&adapter["driver"]),
            string(&adapter["shader_compiler"]),
            words(&adapter["features"])
        );
        let rows: Vec<Vec<String>> = adapter["limits"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|limit| {
                let verdict = if limit["have"].as_u64() >= limit["need"].as_u64() { "ok" } else { "BELOW" };
                vec![
                    string(&limit["limit"]).into(),
                    limit["have"].to_string(),
                    limit["need"].to_string(),
                    verdict.into(),
                ]
            })
            .collect();
        for line in out::table(&["limit", "here", "needed", ""], &rows).lines() {
            text += &format!("  {line}\n");
        }
        if let Some(reason) = adapter["below_floor"].as_str() {
            text += &format!("  {reason}\n");
        }
        if adapter["class"] == "software" {
            text += &format!("  a software driver: tested with --device '{}'\n", string(&adapter["name"]));
        }
    }
    text + &format!(
        "\n--device auto takes {}: {}\n",
        string(&report["auto"]["device"]),
        string(&report["auto"]["why"])
    )
}

fn render_tests(tests: &[Tested], gpu: Option<&Device>) -> String {
    let show = |error: Option<f64>| error.map_or("-".to_string(), out::error);
    let rows: Vec<Vec<String>> = tests
        .iter()
        .map(|tested| {
            let verdict = if tested.failures.is_empty() { "ok" } else { "FAILED" };
            vec![
                tested.op.into(),
                tested.cases.to_string(),
                show(tested.cpu),
                show(tested.gpu),
                verdict.into(),
            ]
        })
        .collect();
    let mut text =
        format!("\nself-test, errors against the f64 reference, GPU: {}\n", gpu.map_or("none", Device::name));
    text += &out::table(&["op", "cases", "cpu", "gpu", "verdict"], &rows);
    for failure in tests.iter().flat_map(|tested| &tested.failures) {
        text += &format!("FAILED {failure}\n");
    }
    text
}
