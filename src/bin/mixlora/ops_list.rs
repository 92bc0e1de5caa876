//! `mixlora ops list`

use crate::{Failure, out};
use mixlora::device::Shader;
use mixlora::ops::{ALL, OpSpec};
use serde_json::json;

#[derive(clap::Args)]
#[command(after_help = "Example: mixlora ops list --json")]
pub struct Args {
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    if args.json {
        out::json(&ALL.iter().map(|op| describe(op)).collect())?;
        return Ok(());
    }
    let rows: Vec<Vec<String>> = ALL
        .iter()
        .map(|op| {
            let shaders: Vec<&str> = op.shaders.iter().map(|shader| shader.name).collect();
            let entries: usize = op.shaders.iter().map(|shader| shader.entries.len()).sum();
            vec![
                op.name.into(),
                op.formula.into(),
                if shaders.is_empty() { "-".into() } else { shaders.join(" ") },
                entries.to_string(),
                variants(op).to_string(),
            ]
        })
        .collect();
    out::text(&out::table(&["op", "formula", "shaders", "entries", "variants"], &rows))?;
    Ok(())
}

/// The number of variants of the kernels of an op.
pub fn variants(op: &OpSpec) -> usize {
    op.shaders.iter().flat_map(|shader| shader.entries).map(|entry| entry.variants.len()).sum()
}

fn describe(op: &OpSpec) -> serde_json::Value {
    json!({
        "op": op.name,
        "formula": op.formula,
        "shaders": op.shaders.iter().map(|shader| describe_shader(shader)).collect::<Vec<_>>(),
        "cases": (op.cases)().into_iter().map(|case| case.label).collect::<Vec<_>>(),
    })
}

fn describe_shader(shader: &Shader) -> serde_json::Value {
    let entries = shader.entries.iter().map(|entry| {
        let variants = entry.variants.iter().map(|variant| {
            json!({
                "name": variant.name,
                "consts": variant.consts.iter().map(|&(name, value)| (name.to_string(), value.into())).collect::<serde_json::Map<_, _>>(),
                "spirv": variant.backends.spirv,
                "msl": variant.backends.msl,
                "hlsl": variant.backends.hlsl,
                "workgroup_bytes": variant.workgroup_bytes,
            })
        });
        json!({ "name": entry.name, "variants": variants.collect::<Vec<_>>() })
    });
    json!({ "file": format!("shaders/{}.wgsl", shader.name), "entries": entries.collect::<Vec<_>>() })
}
