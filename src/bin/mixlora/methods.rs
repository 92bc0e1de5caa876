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
    /// Print where each method stands among the others: what routes, what is scored and selected, what an entry is.
    #[arg(long, conflicts_with = "json")]
    axes: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let methods = Methods::builtin();
    let methods = methods.all();
    if args.json {
        return Ok(out::json(&Value::Array(methods.iter().map(|method| described(method)).collect()))?);
    }
    if args.axes {
        let rows: Vec<Vec<String>> = methods.iter().map(|method| coordinates(method)).collect();
        return Ok(out::text(&out::table(&AXES, &rows))?);
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

const AXES: [&str; 10] =
    ["method", "hook", "unit", "router's input", "score", "select", "gate", "entry", "balance", "trained"];

/// The coordinates of a method under its defaults.
fn coordinates(method: &'static MethodSpec) -> Vec<String> {
    let rule = method.defaults().options().rule();
    let axes = method.axes;
    let cells = [method.name, method.hook.name(), method.routes.name(), axes.input, rule.score.name()];
    let more = [rule.gate.name(), axes.entry, axes.balance, axes.trained];
    let select = rule.select.to_string();
    cells.into_iter().map(String::from).chain([select]).chain(more.map(String::from)).collect()
}

fn described(method: &'static MethodSpec) -> Value {
    let defaults = method.defaults();
    let options: Vec<Value> = defaults.options().fields().iter().map(option).collect();
    json!({
        "name": method.name,
        "aliases": method.aliases,
        "when": method.when,
        "paper": method.paper,
        "equation": method.equation,
        "differs": method.differs,
        "axes": {
            "input": method.axes.input, "entry": method.axes.entry, "balance": method.axes.balance,
            "trained": method.axes.trained,
        },
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
