//! `mixlora models`

use crate::{Failure, out};
use mixlora::model::{FAMILIES, Family};
use serde_json::{Value, json};

#[derive(clap::Args)]
#[command(after_help = "Example: mixlora models --json")]
pub struct Args {
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    if args.json {
        return Ok(out::json(&FAMILIES.iter().map(|f| described(f)).collect())?);
    }
    let row = |f: &&Family| {
        let cells = [f.model_type, f.architecture.unwrap_or("-"), f.models, f.features];
        cells.map(String::from).to_vec()
    };
    let rows: Vec<Vec<String>> = FAMILIES.iter().map(row).collect();
    let head = ["model_type", "GGUF architecture", "models", "what sets it apart"];
    Ok(out::text(&out::table(&head, &rows))?)
}

fn described(f: &Family) -> Value {
    json!({
        "model_type": f.model_type,
        "gguf_architecture": f.architecture,
        "models": f.models,
        "features": f.features,
    })
}
