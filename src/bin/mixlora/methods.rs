//! `mixlora methods`

use crate::{Failure, out};
use mixlora::mixture::{ALL, MethodSpec};
use mixlora::train::RunConfig;
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

/// Which method to take for what.
const WHEN: &[(&str, &str)] = &[
    ("lora", "a first run, or a result that must merge, or load in PEFT and llama.cpp"),
    ("mixlora-cond", "several tasks with one adapter, as in the paper (Conditional MixLoRA)"),
    ("mixlora-cond-gated", "the same, with routers that learn"),
    ("vt-nlp", "repeating the paper's own runs"),
    ("mixlora-ffn", "a choice per token: whole LoRA experts in the MLP blocks"),
    ("smora", "a choice per token among single ranks"),
    ("rank-wise", "the same as smora with softmax gates"),
    ("flylora", "few trained values and no router"),
];

fn when(method: &MethodSpec) -> &'static str {
    WHEN.iter().find(|(name, _)| *name == method.name).map_or("-", |(_, when)| when)
}

pub fn run(args: &Args) -> Result<(), Failure> {
    if args.json {
        return Ok(out::json(&ALL.iter().map(|m| described(m)).collect::<Result<_, _>>()?)?);
    }
    let rows: Vec<Vec<String>> = ALL
        .iter()
        .map(|m| {
            let router = m.router_gradient(&(m.defaults)());
            let mergeable = if m.mergeable { "yes" } else { "no" };
            [m.name, when(m), m.hook.name(), m.trainable, router, mergeable, m.paper]
                .map(String::from)
                .to_vec()
        })
        .collect();
    let head = ["method", "take it for", "hook", "trainable", "router gradient", "mergeable", "paper"];
    let mut text = out::table(&head, &rows);
    for note in ALL.iter().flat_map(|m| m.notes(&(m.defaults)())) {
        text += &format!("note: {note}\n");
    }
    Ok(out::text(&text)?)
}

fn described(m: &MethodSpec) -> mixlora::Result<Value> {
    let defaults = (m.defaults)();
    Ok(json!({
        "name": m.name,
        "when": when(m),
        "paper": m.paper,
        "hook": m.hook.name(),
        "trainable": m.trainable,
        "router_gradient": m.router_gradient(&defaults),
        "mergeable": m.mergeable,
        "notes": m.notes(&defaults),
        // From the tree of settings, which keeps an f32 as it is written.
        "defaults": RunConfig::defaults(m.name)?.tree()?["options"],
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_says_when_to_take_it() {
        let names: Vec<&str> = ALL.iter().map(|m| m.name).collect();
        assert_eq!(WHEN.iter().map(|(name, _)| *name).collect::<Vec<_>>(), names);
    }
}
