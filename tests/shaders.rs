//! Every entry and variant of every shader, checked without an adapter: naga validates it and translates it to
//! each back end it declares; limits that neither naga nor wgpu checks are checked here.

use mixlora::device::{COOP_8, COOP_16, Entry, Field, MAX_PARAM_BYTES, Shader, Variant};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, Scalar, ShaderStage, StructMember, TypeInner};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const MAX_WORKGROUP_BYTES: u32 = 16 << 10;
const MAX_STORAGE_BINDINGS: usize = 8;
const MAX_INVOCATIONS: u32 = 256;

fn shaders() -> Vec<&'static Shader> {
    let mut all: Vec<&'static Shader> =
        mixlora::ops::ALL.iter().flat_map(|op| op.shaders).chain(mixlora::bench::SHADERS).copied().collect();
    all.sort_by_key(|s| s.name);
    all.dedup_by_key(|s| s.name);
    all
}

/// Calls `check` for every entry, variant and way to pass parameters, and fails with all complaints at once.
fn for_each(check: impl Fn(&Shader, &Entry, &Variant, bool) -> Result<(), String>) {
    let mut failed = Vec::new();
    let mut checked = 0;
    for shader in shaders() {
        for entry in shader.entries {
            for variant in entry.variants {
                for immediates in [true, false] {
                    checked += 1;
                    if let Err(e) = check(shader, entry, variant, immediates) {
                        let way = if immediates { "immediates" } else { "uniform" };
                        failed.push(format!("{}::{} {} {way}: {e}", shader.name, entry.name, variant.name));
                    }
                }
            }
        }
    }
    assert!(checked > 0, "no shader was checked");
    assert!(failed.is_empty(), "{} of {checked} failed:\n{}", failed.len(), failed.join("\n"));
}

/// Parsed and validated with what the floor offers, and nothing else; with cooperative matrices where declared.
fn validated(shader: &Shader, variant: &Variant, immediates: bool) -> Result<(Module, ModuleInfo), String> {
    let text = variant.text(shader, immediates);
    let module = naga::front::wgsl::parse_str(&text).map_err(|e| e.emit_to_string(&text))?;
    // unpack2x16float is part of the floor: every Vulkan, Metal and DX12 adapter has it.
    let mut allowed = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    allowed.set(Capabilities::IMMEDIATES, immediates);
    let coop = Capabilities::COOPERATIVE_MATRIX | Capabilities::SHADER_FLOAT16 | Capabilities::SUBGROUP;
    allowed.set(coop, [COOP_8, COOP_16].contains(&variant.backends));
    let info = Validator::new(ValidationFlags::all(), allowed)
        .validate(&module)
        .map_err(|e| e.emit_to_string(&text))?;
    Ok((module, info))
}

fn spirv(module: &Module, info: &ModuleInfo, entry: &str) -> Result<(), String> {
    use naga::back::spv;
    let stage = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: entry.into() };
    spv::write_vec(module, info, &spv::Options::default(), Some(&stage))
        .map(|_| ())
        .map_err(|e| format!("SPIR-V: {e}"))
}

fn msl(module: &Module, info: &ModuleInfo, entry: &str) -> Result<(), String> {
    use naga::back::msl;
    let options = msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
    let stage = msl::PipelineOptions {
        entry_point: Some((ShaderStage::Compute, entry.into())),
        ..Default::default()
    };
    msl::write_string(module, info, &options, &stage).map(|_| ()).map_err(|e| format!("MSL: {e}"))
}

fn hlsl(module: &Module, info: &ModuleInfo, entry: &str) -> Result<(), String> {
    use naga::back::hlsl;
    // Shader model 5.1 is what the older DX12 compiler takes.
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V5_1,
        fake_missing_bindings: true,
        immediates_target: Some(hlsl::BindTarget::default()),
        ..Default::default()
    };
    let stage = hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, entry.into())) };
    let mut text = String::new();
    let written = hlsl::Writer::new(&mut text, &options, &stage)
        .write(module, info, None)
        .map_err(|e| format!("HLSL: {e}"))?;
    written
        .entry_point_names
        .into_iter()
        .try_for_each(|name| name.map(|_| ()).map_err(|e| format!("HLSL: {e}")))
}

#[test]
fn every_variant_translates_to_each_back_end_it_declares() {
    for_each(|shader, entry, variant, immediates| {
        let (module, info) = validated(shader, variant, immediates)?;
        if !module.entry_points.iter().any(|e| e.name == entry.name && e.stage == ShaderStage::Compute) {
            return Err("the file has no such compute entry".into());
        }
        let declared = variant.backends;
        if !(declared.spirv || declared.msl || declared.hlsl) {
            return Err("declares no back end".into());
        }
        if declared.spirv {
            spirv(&module, &info, entry.name)?;
        }
        if declared.msl {
            msl(&module, &info, entry.name)?;
        }
        if declared.hlsl {
            // This writer has panicked on valid modules before.
            std::panic::catch_unwind(|| hlsl(&module, &info, entry.name))
                .unwrap_or_else(|_| Err("HLSL: the writer panicked".into()))?;
        }
        Ok(())
    });
}

#[test]
fn every_variant_stays_within_the_floor() {
    for_each(|shader, entry, variant, immediates| {
        let (module, info) = validated(shader, variant, immediates)?;
        let index = module.entry_points.iter().position(|e| e.name == entry.name).ok_or("no such entry")?;
        let uses = info.get_entry_point(index);
        let (mut workgroup, mut storage, mut params) = (0, 0, 0);
        for (handle, global) in module.global_variables.iter() {
            if uses[handle].is_empty() {
                continue;
            }
            let size = module.types[global.ty].inner.size(module.to_ctx());
            match global.space {
                AddressSpace::WorkGroup => workgroup += size,
                AddressSpace::Storage { .. } => {
                    storage += 1;
                    match &global.binding {
                        Some(b) if b.group == 0 && (b.binding as usize) < MAX_STORAGE_BINDINGS => {}
                        b => return Err(format!("operands are bindings 0..8 of group 0, this has {b:?}")),
                    }
                }
                AddressSpace::Immediate | AddressSpace::Uniform => params += size,
                _ => {}
            }
        }
        let invocations: u32 = module.entry_points[index].workgroup_size.iter().product();
        let bounds = [
            ("bytes of workgroup memory (declared)", workgroup, variant.workgroup_bytes),
            ("bytes of workgroup memory", variant.workgroup_bytes, MAX_WORKGROUP_BYTES),
            ("storage bindings", storage as u32, MAX_STORAGE_BINDINGS as u32),
            ("invocations", invocations, MAX_INVOCATIONS),
            ("bytes of parameters", params, MAX_PARAM_BYTES as u32),
        ];
        for (what, have, most) in bounds {
            if have > most {
                return Err(format!("{have} {what}, at most {most}"));
            }
        }
        Ok(())
    });
}

/// What a module says of its `Params`: name, type, offset and size of each field.
fn params_of(module: &Module) -> Result<Vec<Field>, String> {
    let ty = module.types.iter().map(|(_, ty)| ty).find(|ty| ty.name.as_deref() == Some("Params"));
    let Some(TypeInner::Struct { members, .. }) = ty.map(|ty| &ty.inner) else {
        return Err("has no struct Params".into());
    };
    let field = |member: &StructMember| {
        let inner = &module.types[member.ty].inner;
        let kind = match *inner {
            TypeInner::Scalar(Scalar::U32) => "u32",
            TypeInner::Scalar(Scalar::F32) => "f32",
            _ => return Err(format!("{:?} is neither u32 nor f32", member.name)),
        };
        let name = member.name.clone().unwrap_or_default().leak();
        let size = inner.size(module.to_ctx()) as usize;
        Ok(Field { name, kind, offset: member.offset as usize, size })
    };
    members.iter().map(field).collect()
}

#[test]
fn parameters_are_the_same_on_both_sides() {
    for_each(|shader, _, variant, immediates| {
        let text = variant.text(shader, immediates);
        let module = naga::front::wgsl::parse_str(&text).map_err(|e| e.emit_to_string(&text))?;
        let file = params_of(&module)?;
        if file != shader.params {
            return Err(format!("the file has {file:?}\nthe host has {:?}", shader.params));
        }
        Ok(())
    });
}

#[test]
fn a_moved_field_is_seen() {
    let mean = |params: &str| {
        params_of(&naga::front::wgsl::parse_str(&format!("struct Params {{ {params} }}")).unwrap()).unwrap()
    };
    let fields = mean("n: u32, d: u32, eps: f32");
    assert_eq!(fields[2], Field { name: "eps", kind: "f32", offset: 8, size: 4 });
    for other in
        ["d: u32, n: u32, eps: f32", "n: u32, d: u32", "n: u32, d: u32, eps: u32", "n: u32, d: u32, e: f32"]
    {
        assert_ne!(mean(other), fields, "{other}");
    }
}

/// The text without comments.
fn code(source: &str) -> String {
    source.lines().map(|l| l.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

struct Function {
    name: String,
    /// Between the parentheses.
    params: String,
    /// From the opening brace on.
    body: String,
}

fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for part in code.split("fn ").skip(1) {
        let name: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let Some(open) = part.find('{') else { continue };
        let mut depth = 0;
        let end = part[open..].char_indices().find_map(|(i, c)| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            (depth == 0).then_some(open + i)
        });
        let body = part[open..end.unwrap_or(part.len())].to_string();
        found.push(Function { params: part[name.len()..open].to_string(), name, body });
    }
    found
}

/// The names in a text, without the fields behind dots.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let inside = |c: char| c.is_alphanumeric() || c == '_';
    text.split(move |c| !inside(c) && c != '.').filter_map(|w| w.split('.').next()).filter(|w| !w.is_empty())
}

/// Names whose value may differ between the invocations of a workgroup: what is given per invocation, and whatever
/// is made from it. Parameters of helpers count as such.
fn varying(f: &Function) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = BTreeSet::new();
    for param in f.params.split(", ") {
        let shared = ["@builtin(workgroup_id)", "@builtin(num_workgroups)"].iter().any(|b| param.contains(b));
        if let Some((name, _)) = param.split_once(':')
            && !shared
        {
            names.extend(words(name).last().map(String::from));
        }
    }
    loop {
        let before = names.len();
        for statement in f.body.split([';', '{', '}']) {
            let Some((left, right)) = statement.split_once('=') else { continue };
            if right.starts_with('=') || left.ends_with(['!', '<', '>']) {
                continue; // a comparison
            }
            let left = left.trim_start_matches(|c: char| c.is_whitespace() || c == '(');
            let left = left.strip_prefix("for (").unwrap_or(left).trim();
            let target = left.strip_prefix("let ").or(left.strip_prefix("var ")).unwrap_or(left);
            if words(right).any(|w| names.contains(w)) {
                names.extend(words(target).next().map(String::from));
            }
        }
        if names.len() == before {
            return names;
        }
    }
}

/// The conditions of the blocks around a place, `else` included.
fn conditions(body: &str, place: usize) -> String {
    let (mut open, mut closed, mut start) = (Vec::new(), String::new(), 1);
    let mut parens = 0;
    for (i, c) in body[..place].char_indices().skip(1) {
        match c {
            '(' => parens += 1,
            ')' => parens -= 1,
            '{' => {
                let head = body[start..i].trim();
                let head =
                    if head.starts_with("else") { format!("{closed} {head}") } else { head.to_string() };
                open.push(head);
                start = i + 1;
            }
            '}' => {
                closed = open.pop().unwrap_or_default();
                start = i + 1;
            }
            ';' if parens == 0 => start = i + 1,
            _ => {}
        }
    }
    open.join(" ")
}

/// What is wrong with the barriers of a text. Neither naga nor wgpu checks this, and a workgroup that meets a
/// barrier without all of its invocations is undefined behaviour on a GPU.
fn barrier_trouble(text: &str) -> Option<String> {
    let functions = functions(&code(text));
    let mut waits: BTreeSet<String> =
        ["workgroupBarrier", "storageBarrier", "workgroupUniformLoad"].map(String::from).into();
    let calls = |body: &str, waits: &BTreeSet<String>| -> Vec<usize> {
        let mut at = Vec::new();
        for name in waits {
            let call = format!("{name}(");
            let own = |i: usize| !body[..i].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            at.extend(body.match_indices(&call).map(|(i, _)| i).filter(|&i| own(i)));
        }
        at
    };
    while let Some(f) =
        functions.iter().find(|f| !waits.contains(&f.name) && !calls(&f.body, &waits).is_empty())
    {
        waits.insert(f.name.clone());
    }
    for f in &functions {
        let barriers = calls(&f.body, &waits);
        let Some(&last) = barriers.iter().max() else { continue };
        let varying = varying(f);
        let differs = |at: usize| words(&conditions(&f.body, at)).any(|w| varying.contains(w));
        if barriers.iter().any(|&at| differs(at)) {
            return Some(format!(
                "'{}' has a barrier under a condition that may differ in a workgroup",
                f.name
            ));
        }
        let last = f.body[..last].rfind([';', '{', '}']).unwrap_or(0);
        if f.body[..last].match_indices("return").any(|(at, _)| differs(at)) {
            return Some(format!("'{}' may return in some invocations before a barrier", f.name));
        }
    }
    None
}

#[test]
fn barriers_are_met_by_the_whole_workgroup() {
    for_each(|shader, _, variant, immediates| match barrier_trouble(&variant.text(shader, immediates)) {
        Some(trouble) => Err(trouble),
        None => Ok(()),
    });
}

#[test]
fn the_barrier_check_follows_values_and_calls() {
    let entry = "fn total(v: f32) -> f32 { workgroupBarrier(); return v; }
        @compute fn main(@builtin(workgroup_id) w: vec3<u32>, @builtin(local_invocation_index) l: u32) { ";
    let good = [
        "if (w.x >= p.n) { return; } let s = total(1.0); if (l > 0u) { return; } y[l] = s;",
        "for (var k = 0u; k < p.n; k += 1u) { let s = total(1.0); if (l == k) { y[k] = s; } }",
        "let row = w.x * 2u; if (row < p.n) { workgroupBarrier(); } else { total(1.0); }",
    ];
    let bad = [
        "let i = w.x * WG + l; if (i >= p.n) { return; } let s = total(1.0);",
        "for (var k = l; k < p.n; k += WG) { workgroupBarrier(); }",
        "var live = true; live = l < p.n; if (live) { y[l] = 1.0; } else { total(1.0); }",
    ];
    for text in good {
        assert_eq!(barrier_trouble(&format!("{entry}{text} }}")), None, "{text}");
    }
    for text in bad {
        assert!(barrier_trouble(&format!("{entry}{text} }}")).is_some(), "{text}");
    }
}

fn wgsl_files(folder: &str) -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files: Vec<PathBuf> = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "wgsl"));
    files.sort();
    let name = |p: &Path| p.file_stem().unwrap().to_string_lossy().into_owned();
    files.iter().map(|p| (name(p), std::fs::read_to_string(p).unwrap())).collect()
}

#[test]
fn every_file_is_described_and_used() {
    let used: BTreeSet<_> = shaders().iter().map(|s| s.name.to_string()).collect();
    let mut failed = Vec::new();
    for (name, text) in wgsl_files("shaders") {
        if !text.starts_with(&format!("// {name}.wgsl - ")) {
            failed.push(format!("{name}: the first line is not '// {name}.wgsl - what it computes'"));
        }
        let header: Vec<&str> = text.lines().take_while(|l| l.starts_with("//")).collect();
        for word in ["Entries", "Shapes", "Grid", "Prelude", "Cost"] {
            if !header.iter().any(|l| l.starts_with(&format!("// {word}"))) {
                failed.push(format!("{name}: the header has no line '// {word}'"));
            }
        }
        if !used.contains(&name) {
            failed.push(format!("{name}: no op names this file"));
        }
        // Entries that nothing declares would never be checked or run.
        if let Some(shader) = shaders().iter().find(|s| s.name == name) {
            let code = code(&text);
            for part in code.split("@compute").skip(1) {
                let entry = part.split("fn ").nth(1).and_then(|p| p.split('(').next()).unwrap_or("");
                if shader.entry(entry).is_none() {
                    failed.push(format!("{name}: the entry '{entry}' is not declared"));
                }
            }
        }
    }
    let parts = include_str!("../src/device/parts.rs");
    for (name, text) in wgsl_files("shaders/common") {
        if !text.starts_with("// Fragment: ") {
            failed.push(format!("common/{name}: the first line is not '// Fragment: what it offers'"));
        }
        if !parts.contains(&format!("\"{name}\"")) {
            failed.push(format!("common/{name}: not listed in src/device/parts.rs"));
        }
    }
    for (name, text) in wgsl_files("shaders").into_iter().chain(wgsl_files("shaders/common")) {
        if code(&text).contains("enable subgroups") {
            failed.push(format!("{name}: 'enable subgroups' does not parse; leave the line out"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
