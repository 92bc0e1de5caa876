//! The graph of imports: which source file uses which. Modules are named by their first two names, as `nn::pass`.

use super::{code, files, identifier, name, read};
use std::collections::{BTreeMap, BTreeSet};

/// Every module with those that it uses.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// The names of a source file's path: `src/nn/pass.rs` is `nn`, `pass`.
fn place(file: &str) -> Vec<&str> {
    let path = file["src/".len()..].trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').collect()
}

fn module(path: &[&str]) -> String {
    path[..path.len().min(2)].join("::")
}

/// The paths of a use declaration: groups in braces are taken apart.
fn expand(text: &str) -> Vec<String> {
    let Some((before, inside)) = text.split_once('{') else {
        return vec![text.split(" as ").next().unwrap_or("").trim().to_string()];
    };
    let inside = inside.rsplit_once('}').map_or(inside, |(inside, _)| inside);
    let mut depth = 0;
    let items = inside.split(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    let items = items.map(str::trim).filter(|item| !item.is_empty());
    items.flat_map(|item| expand(&format!("{}{item}", before.trim()))).collect()
}

/// The paths that code uses: by declarations, and in between as `crate::..` and `super::..`.
fn paths(code: &str) -> Vec<String> {
    let declared = code.split("use ").skip(1).filter_map(|rest| rest.split(';').next());
    let mut all: Vec<String> = declared.flat_map(expand).collect();
    for word in code.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':') {
        if word.starts_with("crate::") || word.starts_with("super::") {
            all.push(word.trim_end_matches(':').to_string());
        }
    }
    all
}

/// Names that modules pass on from their files, with where they are from: `nn::Pass` is `nn::pass::Pass`.
fn passed_on() -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for file in
        files("src", "rs").iter().map(|p| name(p)).filter(|f| f.ends_with("mod.rs") || f == "src/lib.rs")
    {
        let folder = if file == "src/lib.rs" { String::new() } else { place(&file).join("::") + "::" };
        for rest in code(&read(&file)).split("pub").skip(1) {
            let rest = rest.trim_start_matches("(crate)").trim_start_matches("(super)");
            let Some(used) = rest.strip_prefix(" use ").and_then(|rest| rest.split(';').next()) else {
                continue;
            };
            for path in expand(used) {
                let path = path.trim_start_matches("self::").trim_start_matches("crate::");
                let last = path.rsplit("::").next().unwrap_or("");
                names.insert(format!("{folder}{last}"), format!("{folder}{path}"));
            }
        }
    }
    names
}

/// A path from the root of the crate, seen from the module `here`; none for a path of another crate.
fn absolute(path: &str, here: &[&str]) -> Option<String> {
    if let Some(path) = path.strip_prefix("crate::") {
        return Some(path.to_string());
    }
    let mut rest = path;
    let mut up = here.len();
    while let Some(behind) = rest.strip_prefix("super::") {
        rest = behind;
        up = up.checked_sub(1)?;
    }
    (rest.len() < path.len()).then(|| here[..up].iter().map(|n| format!("{n}::")).collect::<String>() + rest)
}

/// The module that a path leads to.
fn target(
    mut path: String,
    modules: &BTreeSet<String>,
    passed_on: &BTreeMap<String, String>,
) -> Option<String> {
    for _ in 0..5 {
        let names: Vec<&str> = path.split("::").collect();
        let heads = [names[..1].join("::"), module(&names)];
        let from = heads.iter().find(|head| !modules.contains(*head) && passed_on.contains_key(*head));
        let Some(from) = from else {
            return heads.into_iter().rev().find(|head| modules.contains(head));
        };
        path = path.replacen(from, &passed_on[from], 1);
    }
    None
}

fn graph() -> Graph {
    let passed_on = passed_on();
    let sources: Vec<String> = files("src", "rs").iter().map(|p| name(p)).collect();
    let sources = sources.iter().filter(|f| !f.starts_with("src/bin/") && *f != "src/lib.rs");
    let modules: BTreeSet<String> = sources.clone().map(|f| module(&place(f))).collect();
    let mut graph = Graph::new();
    for file in sources {
        let here = place(file);
        let uses = graph.entry(module(&here)).or_default();
        if here.len() == 1 && file.ends_with("/mod.rs") {
            // What a folder passes on is looked through.
            continue;
        }
        let paths = paths(&code(&read(file)));
        let targets = paths.iter().filter_map(|path| target(absolute(path, &here)?, &modules, &passed_on));
        uses.extend(targets.filter(|target| *target != module(&here)));
    }
    graph
}

/// The modules that one reaches by its imports, over others too.
fn reached(graph: &Graph, from: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![from];
    while let Some(next) = open.pop() {
        open.extend(graph[next].iter().filter(|to| found.insert((*to).clone())).map(String::as_str));
    }
    found
}

/// Groups of modules each of which reaches all of its group.
fn circles(graph: &Graph) -> BTreeSet<Vec<&str>> {
    let reached: BTreeMap<&str, _> = graph.keys().map(|m| (m.as_str(), reached(graph, m))).collect();
    let circle = |(module, all): (&&str, &BTreeSet<String>)| {
        let back = all.iter().filter(|other| reached[other.as_str()].contains(*module));
        graph.keys().map(String::as_str).filter(|m| back.clone().any(|b| b == m)).collect::<Vec<_>>()
    };
    reached.iter().map(circle).filter(|circle| circle.len() > 1).collect()
}

#[test]
fn imports_have_few_circles() {
    let graph = graph();
    let circles = circles(&graph);
    assert!((1..=MAX_CIRCLES).contains(&circles.len()), "{} circles: {circles:#?}", circles.len());
}

const MAX_CIRCLES: usize = 3;

#[test]
fn the_graph_is_read_right() {
    assert_eq!(
        expand("crate::{A, b::{C, D as E}, e}"),
        ["crate::A", "crate::b::C", "crate::b::D", "crate::e"]
    );
    assert_eq!(absolute("super::super::a::B", &["nn", "x", "y"]).unwrap(), "nn::a::B");
    assert_eq!(absolute("std::fmt", &["nn"]), None);
    let graph = graph();
    assert!(graph["device::kernel"].contains("device::gpu"), "{:?}", graph["device::kernel"]);
    assert!(graph["tensor"].contains("tape") && graph["tape"].contains("tensor"), "by the names of the root");
    let edge = |from: &str, to: &[&str]| (from.to_string(), to.iter().map(|m| m.to_string()).collect());
    let small = Graph::from([edge("a", &["b"]), edge("b", &["c"]), edge("c", &["b"]), edge("d", &["d"])]);
    assert_eq!(circles(&small), BTreeSet::from([vec!["b", "c"]]));
}

/// The modules that one declares as public, a macro's list included.
fn public_modules(code: &str) -> Vec<&str> {
    let plain = code.split("pub mod ").skip(1).map(identifier);
    let listed = code.lines().filter_map(|line| line.strip_prefix("    pub ")?.strip_suffix(','));
    plain.chain(listed).filter(|name| !name.is_empty() && identifier(name) == *name).collect()
}

/// Whether code has a public item of its own, not only public methods.
fn has_public_items(code: &str) -> bool {
    const ITEMS: [&str; 9] = ["fn", "struct", "enum", "trait", "const", "static", "type", "use", "mod"];
    let item = |line: &str| line.strip_prefix("pub ").is_some_and(|rest| ITEMS.contains(&identifier(rest)));
    code.lines().any(|line| item(line) || line.contains("$(#[$doc])* pub "))
}

#[test]
fn public_modules_have_public_items() {
    let mut seen = 0;
    for file in files("src", "rs").iter().map(|p| name(p)).filter(|f| !f.starts_with("src/bin/")) {
        let folder = file
            .trim_end_matches("lib.rs")
            .trim_end_matches("mod.rs")
            .trim_end_matches(".rs")
            .trim_end_matches('/');
        for module in public_modules(&code(&read(&file))) {
            let sources = [format!("{folder}/{module}.rs"), format!("{folder}/{module}/mod.rs")];
            let Some(source) = sources.iter().find(|f| super::root().join(f).exists()) else {
                panic!("{file}: where is the module {module}?");
            };
            seen += 1;
            assert!(has_public_items(&code(&read(source))), "{source}: nothing is public in a public module");
        }
    }
    assert!(seen > 20, "{seen} public modules");
}
