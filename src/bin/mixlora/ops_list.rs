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
            let shaders: Vec<&str> = op.shaders.iter().map(|s| s.name).collect();
            let entries: usize = op.shaders.iter().map(|s| s.entries.len()).sum();
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

/// How many ways there are to compile the kernels of an op.
pub fn variants(op: &OpSpec) -> usize {
    op.shaders.iter().flat_map(|s| s.entries).map(|e| e.variants.len()).sum()
}

fn describe(op: &OpSpec) -> serde_json::Value {
    json!({
        "op": op.name,
        "formula": op.formula,
        "shaders": op.shaders.iter().map(|s| shader(s)).collect::<Vec<_>>(),
        "cases": (op.cases)().into_iter().map(|c| c.label).collect::<Vec<_>>(),
    })
}

fn shader(shader: &Shader) -> serde_json::Value {
    let entries = shader.entries.iter().map(|entry| {
        let variants = entry.variants.iter().map(|v| {
            json!({
                "name": v.name,
                "consts": v.consts.iter().map(|&(k, n)| (k.to_string(), n.into())).collect::<serde_json::Map<_, _>>(),
                "spirv": v.backends.spirv,
                "msl": v.backends.msl,
                "hlsl": v.backends.hlsl,
                "workgroup_bytes": v.workgroup_bytes,
            })
        });
        json!({ "name": entry.name, "variants": variants.collect::<Vec<_>>() })
    });
    json!({ "file": format!("shaders/{}.wgsl", shader.name), "entries": entries.collect::<Vec<_>>() })
}
