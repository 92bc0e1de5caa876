//! `mixlora methods`

use crate::{Failure, out};
use mixlora::mixture::{Field, MethodSpec, Methods};
use serde_json::{Value, json};

#[derive(clap::Args)]
#[command(after_help = "\
'trainable' counts one linear d_in -> d_out with E factors (or experts), or one MLP block for the MLP hook. 'router \
gradient' says whether the task trains the router under the method's defaults.

Example: mixlora methods --json")]
pub struct Args {
    /// Print JSON, with every default option, instead of a table.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let methods = Methods::builtin();
    let methods = methods.all();
    if args.json {
        return Ok(out::json(&Value::Array(methods.iter().map(|m| described(m)).collect()))?);
    }
    let row = |m: &&'static MethodSpec| {
        let router = m.defaults().options().router_gradient().name();
        let mergeable = if m.mergeable { "yes" } else { "no" };
        let cells = [m.name, m.when, m.hook.name(), m.routes.name(), m.trainable, router, mergeable, m.paper];
        cells.map(String::from).to_vec()
    };
    let head =
        ["method", "take it for", "hook", "routes", "trainable", "router gradient", "mergeable", "paper"];
    let mut text = out::table(&head, &methods.iter().map(row).collect::<Vec<_>>());
    for note in methods.iter().flat_map(|m| m.defaults().notes()) {
        text += &format!("note: {note}\n");
    }
    Ok(out::text(&text)?)
}

fn described(m: &'static MethodSpec) -> Value {
    let defaults = m.defaults();
    let options: Vec<Value> = defaults.options().fields().iter().map(option).collect();
    json!({
        "name": m.name,
        "aliases": m.aliases,
        "when": m.when,
        "paper": m.paper,
        "hook": m.hook.name(),
        "routes": m.routes.name(),
        "trainable": m.trainable,
        "router_gradient": defaults.options().router_gradient().name(),
        "mergeable": m.mergeable,
        "notes": defaults.notes(),
        "options": options,
        "defaults": defaults.tree(),
    })
}

fn option(f: &Field) -> Value {
    let range = if f.range.is_full() { Value::Null } else { json!(f.range.to_string()) };
    json!({
        "name": f.name, "type": f.type_text(), "default": f.value, "range": range, "about": f.doc, "source": f.source,
    })
}
