//! Documents that are generated from the program.

use mixlora::mixture::{Field, MethodSpec, Methods};
use std::path::Path;

const HEAD: &str = "\
# Methods

This page is generated from the methods' own declarations, by a test:
`MIXLORA_WRITE_DOCS=1 cargo test --release --test commands documents`. How a method is added: [ADD_A_METHOD.md](ADD_A_METHOD.md).

E: `num_factors` or `num_experts`; d_in, d_out: sides of one linear. 'Routes' are the rows that choose together;
'rule' is how a router scores, selects and gates, with the formulas of
[`Score`, `Select` and `Gate`](../src/mixture/rule.rs); 'router learns' says whether the task trains the router. Both are
those of the method's defaults.

| method | take it for | hook | routes | rule | trained values of a linear | router learns | merges | source |
|---|---|---|---|---|---|---|---|---|
";

fn row(m: &'static MethodSpec) -> String {
    let defaults = m.defaults();
    let router = defaults.options().router_gradient().name();
    let rule = defaults.options().rule().to_string();
    let merges = if m.mergeable { "yes" } else { "no" };
    let cells = [m.name, m.when, m.hook.name(), m.routes.name(), &rule, m.trainable, router, merges, m.paper]
        .join(" | ");
    format!("| {cells} |\n")
}

fn option(f: &Field) -> String {
    let default = if f.value.is_null() { "absent".into() } else { f.value.to_string().replace('"', "") };
    let range = if f.range.is_full() { String::new() } else { f.range.to_string() };
    let kind = f.type_text().replace('|', "\\|");
    format!(
        "| `{}` | {kind} | {default} | {range} | {} | {} |\n",
        f.name,
        f.doc.replace('|', "\\|"),
        f.source
    )
}

fn page() -> String {
    let methods = Methods::builtin();
    let mut page = HEAD.to_string();
    methods.all().iter().for_each(|m| page += &row(m));
    for &m in methods.all() {
        page += &format!("\n## {}\n\n{}. Take it for: {}.\n", m.name, m.paper, m.when);
        page += &format!("\n```text\n{}\n```\n", m.equation);
        let axes = m.axes;
        page += &format!(
            "\nIts router looks at: {}. An entry of its pool: {}. Balance: {}. Trained: {}.\n",
            axes.input, axes.entry, axes.balance, axes.trained
        );
        if !m.differs.is_empty() {
            page += &format!("\nDiffers from its source: {}\n", m.differs);
        }
        page += "\n| option | type | default | range | what it is | source |\n|---|---|---|---|---|---|\n";
        m.defaults().options().fields().iter().for_each(|f| page += &option(f));
        for (path, value) in m.run {
            page += &format!("\nIts authors' runs have `{path}` = {value}.\n");
        }
        m.defaults().notes().iter().for_each(|n| page += &format!("\nNote: {n}.\n"));
    }
    page
}

#[test]
fn the_page_of_methods_is_as_generated() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/METHODS.md");
    if std::env::var_os("MIXLORA_WRITE_DOCS").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap().replace("\r\n", "\n");
    assert!(stored == page(), "docs/METHODS.md is not as generated: {HEAD}");
}

#[test]
fn no_two_methods_share_all_coordinates() {
    let mut seen = std::collections::BTreeMap::new();
    for &m in Methods::builtin().all() {
        assert!(!m.equation.is_empty(), "{}: has no equation", m.name);
        let rule = m.defaults().options().rule().to_string();
        let place = format!("{:?} {:?} {rule} {:?}", m.hook, m.routes, m.axes);
        assert_eq!(seen.insert(place, m.name), None, "{}", m.name);
    }
}
