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
        return Ok(out::json(&Value::Array(methods.iter().map(|method| described(method)).collect()))?);
    }
    let row = |method: &&'static MethodSpec| {
        let router = method.defaults().options().router_gradient().name();
        let mergeable = if method.mergeable { "yes" } else { "no" };
        let cells = [
            method.name,
            method.when,
            method.hook.name(),
            method.routes.name(),
            method.trainable,
            router,
            mergeable,
            method.paper,
        ];
        cells.map(String::from).to_vec()
    };
    let head =
        ["method", "take it for", "hook", "routes", "trainable", "router gradient", "mergeable", "paper"];
    let mut text = out::table(&head, &methods.iter().map(row).collect::<Vec<_>>());
    for note in methods.iter().flat_map(|method| method.defaults().notes()) {
        text += &format!("note: {note}\n");
    }
    Ok(out::text(&text)?)
}

fn described(method: &'static MethodSpec) -> Value {
    let defaults = method.defaults();
    let options: Vec<Value> = defaults.options().fields().iter().map(option).collect();
    json!({
        "name": method.name,
        "aliases": method.aliases,
        "when": method.when,
        "paper": method.paper,
        "hook": method.hook.name(),
        "routes": method.routes.name(),
        "rule": defaults.options().rule().to_string(),
        "trainable": method.trainable,
        "router_gradient": defaults.options().router_gradient().name(),
        "mergeable": method.mergeable,
        "notes": defaults.notes(),
        "options": options,
        "defaults": defaults.tree(),
    })
}

fn option(field: &Field) -> Value {
    let range = if field.range.is_full() { Value::Null } else { json!(field.range.to_string()) };
    json!({
        "name": field.name, "type": field.type_text(), "default": field.value, "range": range, "about": field.doc, "source": field.source,
    })
}
