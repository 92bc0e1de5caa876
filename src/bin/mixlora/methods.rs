//! `mixlora methods`

use crate::{Failure, out};
use mixlora::mixture::ALL;
use serde_json::json;

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
    if args.json {
        let list: Vec<_> = ALL
            .iter()
            .map(|m| {
                let defaults = (m.defaults)();
                json!({
                    "name": m.name,
                    "paper": m.paper,
                    "hook": m.hook.name(),
                    "trainable": m.trainable,
                    "router_gradient": m.router_gradient(&defaults),
                    "mergeable": m.mergeable,
                    "notes": m.notes(&defaults),
                    "defaults": defaults,
                })
            })
            .collect();
        out::json(&json!(list))?;
        return Ok(());
    }
    let rows: Vec<Vec<String>> = ALL
        .iter()
        .map(|m| {
            let router = m.router_gradient(&(m.defaults)());
            let mergeable = if m.mergeable { "yes" } else { "no" };
            [m.name, m.hook.name(), m.trainable, router, mergeable, m.paper].map(String::from).to_vec()
        })
        .collect();
    let head = ["method", "hook", "trainable", "router gradient", "mergeable", "paper"];
    let mut text = out::table(&head, &rows);
    for note in ALL.iter().flat_map(|m| m.notes(&(m.defaults)())) {
        text += &format!("note: {note}\n");
    }
    Ok(out::text(&text)?)
}
