//! Rules of the house that a compiler does not check: who may use whom, what is listed where, sizes, links.

#[path = "house/imports.rs"]
mod imports;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Modules in the order data flows. A module may use its own line and the lines above, none below.
const LAYERS: &[&[&str]] = &[
    &["error", "dtype", "shape", "rng", "simd", "atomic", "allocator", "names"],
    &["device"],
    &["tensor", "tape", "weight"],
    &["engine"],
    &["routing"],
    &["ops"],
    &["nn"],
    &["mixture"],
    &["io"],
    &["picture"],
    &["model"],
    &["adapter"],
    &["text"],
    &["data"],
    &["train"],
    &["analyse"],
    &["check"],
    &["bench"],
    &["study"],
];
const MAX_SOURCE_LINES: usize = 450;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(folder)];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// A path as people write it.
fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/")
}

/// The text without comments and without unit tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or("");
    text.lines().map(|l| l.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// The first names behind every `crate::`, groups in braces included.
fn used(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            names.push(identifier(rest).to_string());
            continue;
        };
        let (mut depth, mut item) = (0, String::new());
        for c in group.chars() {
            match c {
                ',' | '}' if depth == 0 => {
                    names.push(identifier(item.trim()).to_string());
                    item.clear();
                    if c == '}' {
                        break;
                    }
                }
                c => {
                    depth += i32::from(c == '{') - i32::from(c == '}');
                    item.push(c);
                }
            }
        }
    }
    names.retain(|n| !n.is_empty());
    names
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|l| l.contains(&module))
}

/// Which module each name of the crate's root comes from.
fn root_names() -> BTreeMap<String, String> {
    let lib = code(&read("src/lib.rs"));
    let mut names = BTreeMap::new();
    for line in lib.split(';') {
        let Some(path) = line.trim().rsplit('\n').next().and_then(|l| l.trim().strip_prefix("pub use "))
        else {
            continue;
        };
        let module = identifier(path);
        for item in path[module.len()..].split(|c: char| !c.is_alphanumeric() && c != '_') {
            names.insert(item.to_string(), module.to_string());
        }
    }
    names.extend(exported_macros());
    names
}

/// The module of each macro that stands at the crate's root.
fn exported_macros() -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for path in files("src", "rs") {
        for rest in code(&read(&path)).split("#[macro_export]").skip(1) {
            let macro_name = identifier(rest.trim_start().trim_start_matches("macro_rules!").trim_start());
            names.insert(macro_name.to_string(), module_of(&path));
        }
    }
    names
}

/// The first name of a source file's path in the crate.
fn module_of(path: &Path) -> String {
    name(path)["src/".len()..].split(['/', '.']).next().unwrap().to_string()
}

#[test]
fn no_import_goes_against_the_flow() {
    let names = root_names();
    let mut failed = Vec::new();
    for path in files("src", "rs") {
        let file = name(&path);
        let module = module_of(&path);
        if module == "lib" || module == "bin" {
            continue;
        }
        let Some(own) = layer(&module) else {
            failed.push(format!("{file}: module '{module}' has no line in tests/house.rs"));
            continue;
        };
        for used in used(&code(&read(&path))) {
            let from = names.get(&used).unwrap_or(&used);
            match layer(from) {
                Some(other) if other > own => failed.push(format!("{file} ({module}) uses {used} of {from}")),
                Some(_) => {}
                None => failed.push(format!("{file}: where does 'crate::{used}' come from?")),
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn imports_are_read_right() {
    let text = "use crate::{A, b::{C, D}, e};\nuse crate::f::G; let x = crate::h(1); // crate::no\n";
    assert_eq!(used(&code(text)), ["A", "b", "e", "f", "h"]);
    assert_eq!(root_names()["Tensor"], "tensor");
    assert_eq!(root_names()["backward"], "tape");
    assert_eq!(root_names()["options"], "mixture");
}

#[test]
fn only_the_program_prints_and_exits() {
    let words = [
        "println!",
        "print!(",
        "eprint",
        "dbg!",
        "process::exit",
        "process::abort",
        "todo!",
        "unimplemented!",
    ];
    for path in files("src", "rs").iter().filter(|p| !name(p).starts_with("src/bin/")) {
        let code = code(&read(path));
        for word in words {
            assert!(!code.contains(word), "{}: {word}", name(path));
        }
    }
}

#[test]
fn every_op_file_is_in_the_list() {
    let listed: Vec<&str> = mixlora::ops::ALL.iter().map(|op| op.name).collect();
    let mut found = 0;
    for path in files("src/ops", "rs") {
        if code(&read(&path)).contains("static SPEC: OpSpec") {
            found += 1;
            let file = if path.ends_with("mod.rs") { path.parent().unwrap() } else { &path };
            let stem = file.file_stem().unwrap().to_string_lossy();
            assert!(listed.contains(&&*stem), "{} is not in the list of src/ops/mod.rs", name(&path));
        }
    }
    assert_eq!(found, listed.len(), "{listed:?}");
}

/// A method says itself what is special about it; other code asks, and does not look at names.
#[test]
fn methods_are_not_told_apart_by_their_names() {
    let names: Vec<String> =
        mixlora::mixture::methods::ALL.iter().map(|m| format!("\"{}\"", m.name)).collect();
    // Kinds of reference files are often called like a method.
    let elsewhere =
        |p: &&PathBuf| !name(p).starts_with("src/mixture/methods/") && name(p) != "src/check/golden/kinds.rs";
    let mut found = Vec::new();
    for path in files("src", "rs").iter().filter(elsewhere) {
        let code = code(&read(path));
        // What GGUF and PEFT call a LoRA is theirs.
        let code = code.replace("(\"adapter.type\", \"lora\")", "");
        found.extend(names.iter().filter(|n| code.contains(*n)).map(|n| format!("{}: {n}", name(path))));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn files_stay_small() {
    for path in files("src", "rs") {
        let lines = read(&path).lines().count();
        assert!(lines <= MAX_SOURCE_LINES, "{}: {lines} lines, at most {MAX_SOURCE_LINES}", name(&path));
    }
}

/// Whether a line begins unsafe code: a block, a function, or an implementation.
fn is_unsafe(line: &str) -> bool {
    let line = line.split("//").next().unwrap_or("");
    ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|word| line.contains(word))
}

#[test]
fn unsafe_code_has_its_reason() {
    let mut found = Vec::new();
    for path in files("src", "rs") {
        let text = read(&path);
        let lines: Vec<&str> = text.lines().collect();
        for at in (0..lines.len()).filter(|&at| is_unsafe(lines[at])) {
            let near = &lines[at.saturating_sub(6)..=at];
            if !near.iter().any(|line| line.contains("SAFETY") || line.contains("# Safety")) {
                found.push(format!("{}:{}: {}", name(&path), at + 1, lines[at].trim()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Code for GPUs alone lies in files of its own, which a few lines leave out.
#[test]
fn few_lines_depend_on_the_feature_gpu() {
    let lines = |path: &PathBuf| {
        let text = read(path);
        text.lines().filter(|l| l.contains("cfg") && l.contains("feature = \"gpu\"")).count()
    };
    let count: usize = files("src", "rs").iter().map(lines).sum();
    assert!((1..70).contains(&count), "{count} lines");
}

/// How often names are bound to a tuple of values, as in `let (a, b) = (1, 2);`.
fn tuple_lets(code: &str) -> usize {
    let is_tuple = |rest: &&str| {
        let Some((names, behind)) = rest.split_once(')') else { return false };
        let Some((kind, value)) = behind.split_once('=') else { return false };
        let plain = !names.contains('(') && !kind.contains([';', '{']);
        plain && value.trim_start().starts_with('(')
    };
    code.split("let (").skip(1).filter(is_tuple).count()
}

#[test]
fn a_let_has_one_name() {
    assert_eq!(tuple_lets("let (a, b) = (1, 2); let (c, d) = f(1); let (mut e, f): (u8, u8) =\n (3, 4);"), 2);
    let mut lets = 0;
    let mut tuples = 0;
    for path in files("src", "rs") {
        let code = code(&read(&path));
        lets += code.matches("let ").count();
        tuples += tuple_lets(&code);
    }
    assert!(100 * tuples < lets, "{tuples} of {lets} bind a tuple to names: use one `let` for each");
}

#[test]
fn flags_are_asked_by_if() {
    let mut found = Vec::new();
    for path in files("src", "rs") {
        let code = code(&read(&path));
        let lines =
            code.lines().filter(|l| ["true =>", "false =>"].iter().any(|arm| l.trim().starts_with(arm)));
        found.extend(lines.map(|l| format!("{}: {}", name(&path), l.trim())));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_table_of_places_is_true() {
    let text = read("docs/ARCHITECTURE.md");
    let table = text.split("## Where is").nth(1).expect("a section 'Where is'");
    let table = table.split("\n## ").next().unwrap_or("");
    let mut places = 0;
    for row in table.lines().filter(|l| l.starts_with('|')) {
        for place in row.split('`').skip(1).step_by(2).filter(|p| p.contains('/')) {
            places += 1;
            assert!(root().join(place).exists(), "docs/ARCHITECTURE.md: there is no {place}");
        }
    }
    assert!(places > 10, "{places} places");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut documents = files("docs", "md");
    documents.extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|f| root().join(f)));
    for path in documents {
        for link in read(&path).split("](").skip(1).filter_map(|l| l.split([')', '#']).next()) {
            if link.is_empty() || link.contains("://") {
                continue;
            }
            let target = path.parent().unwrap().join(link);
            assert!(target.exists(), "{}: there is no {link}", name(&path));
        }
    }
}

/// `docs/BAD_INPUT.md` names tests as `binary::function`, or `file::function` for unit tests.
#[test]
fn tests_that_documents_name_exist() {
    let text = read("docs/BAD_INPUT.md");
    let names: Vec<&str> = text.split('`').skip(1).step_by(2).filter(|name| name.contains("::")).collect();
    assert!(names.len() >= 54, "{} names", names.len());
    for name in names {
        let (place, function) = name.split_once("::").unwrap();
        let places = if place.ends_with(".rs") {
            vec![root().join(place)]
        } else {
            let mut places = files(&format!("tests/{place}"), "rs");
            places.push(root().join(format!("tests/{place}.rs")));
            places
        };
        let wanted = format!("fn {function}(");
        let found =
            places.iter().any(|p| std::fs::read_to_string(p).is_ok_and(|text| text.contains(&wanted)));
        assert!(found, "docs/BAD_INPUT.md: there is no test {name}");
    }
}
