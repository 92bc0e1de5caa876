//! `mixlora config init`, `mixlora config schema` and `mixlora config check`

use crate::config_schema::schema;
use crate::config_settings::find;
use crate::settings::read_file;
use crate::{Failure, out};
use mixlora::mixture::{Field, Methods, methods};
use mixlora::train::RunConfig;
use serde_json::Value;
use std::path::PathBuf;

#[derive(clap::Subcommand)]
pub enum Config {
    /// Print every setting of a run with its default, as a file to edit.
    Init(InitArgs),
    /// Print what a file of settings may hold, as a JSON Schema for editors and other programs.
    Schema(SchemaArgs),
    /// Read a file of settings and list everything that is wrong with it.
    Check(CheckArgs),
}

#[derive(clap::Args)]
#[command(after_help = "Example: mixlora config init --method mixlora-cond > run.toml")]
pub struct InitArgs {
    /// Whose defaults; see `mixlora methods`. vt-nlp sets everything as its authors released it.
    #[arg(long, default_value = methods::STANDARD.name)]
    method: String,
}

#[derive(clap::Args)]
#[command(after_help = "\
The schema is of draft 2020-12. Editors with support for TOML take it by the first line of a file: \
#:schema ./mixlora.schema.json

Example: mixlora config schema --method mixlora-cond > mixlora.schema.json")]
pub struct SchemaArgs {
    /// Whose options and defaults; see `mixlora methods`.
    #[arg(long, default_value = methods::STANDARD.name)]
    method: String,
}

#[derive(clap::Args)]
#[command(after_help = "Example: mixlora config check run.toml")]
pub struct CheckArgs {
    /// A TOML or JSON file.
    file: PathBuf,
}

pub fn run(command: &Config) -> Result<(), Failure> {
    match command {
        Config::Init(args) => {
            let config = RunConfig::defaults(Methods::builtin().find(&args.method)?)?;
            Ok(out::text(&toml_text(&config)?)?)
        }
        Config::Schema(args) => {
            let config = RunConfig::defaults(Methods::builtin().find(&args.method)?)?;
            Ok(out::json(&schema(&config)?)?)
        }
        Config::Check(args) => {
            let layers = [read_file(&args.file)?];
            let config = RunConfig::checked(&layers, &Methods::builtin()).map_err(Failure::of_all)?;
            config.method.notes().iter().for_each(|text| out::note(&format!("note: {text}")));
            Ok(out::text(&format!("{} is fine: method {}", args.file.display(), config.method.name()))?)
        }
    }
}

/// Settings as TOML with a comment for each; settings without a default are commented out.
pub fn toml_text(config: &RunConfig) -> mixlora::Result<String> {
    let tree = config.tree()?;
    let options = config.method.options().fields();
    let mut plain =
        String::from("# Settings of `mixlora train --config`. What is left out has the value shown.\n\n");
    let mut sections = String::new();
    for (key, value) in tree.as_object().into_iter().flatten() {
        match value.as_object() {
            None => plain += &setting(about(key), key, value),
            Some(_) if key == "options" => {
                sections += &format!("\n[options]\n# of {}\n", config.method.name());
                options.iter().for_each(|field| sections += &option(field));
            }
            Some(section) => {
                sections += &format!("\n[{key}]\n");
                for (name, value) in section {
                    sections += &setting(about(&format!("{key}.{name}")), name, value);
                }
            }
        }
    }
    Ok(plain + &sections)
}

/// An option of a method with its type and range.
fn option(field: &Field) -> String {
    let range = if field.range.is_full() { String::new() } else { format!(", {}", field.range) };
    setting(&format!("{} ({}{range})", field.doc, field.type_text()), field.name, &field.value)
}

fn about(path: &str) -> &'static str {
    find(path).map_or("", |setting| setting.about)
}

fn setting(about: &str, name: &str, value: &Value) -> String {
    // Numbers, strings, booleans and lists of strings are written alike in JSON and TOML.
    match value {
        Value::Null => format!("# {about}\n# {name} =\n"),
        Value::String(text) if text.is_empty() => format!("# {about}\n# {name} = \"...\"\n"),
        value => format!("# {about}\n{name} = {value}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_settings::SETTINGS;

    #[test]
    fn every_setting_is_described_and_the_text_is_read_back() {
        for &method in Methods::builtin().all() {
            let defaults = RunConfig::defaults(method).unwrap();
            let mut paths = Vec::new();
            for (key, value) in defaults.tree().unwrap().as_object().unwrap() {
                match value.as_object() {
                    None => paths.push(key.clone()),
                    Some(_) if key == "options" => {}
                    Some(section) => paths.extend(section.keys().map(|name| format!("{key}.{name}"))),
                }
            }
            let mut described: Vec<&str> = SETTINGS.iter().map(|setting| setting.path).collect();
            paths.sort();
            described.sort();
            assert_eq!(paths, described);
            assert!(defaults.method.options().fields().iter().all(|field| !field.doc.is_empty()));
            let read: Value = toml::from_str(&toml_text(&defaults).unwrap()).unwrap();
            let again = RunConfig::layered(&[("text".into(), read)], &Methods::builtin()).unwrap();
            assert_eq!(again, defaults, "{}", method.name);
        }
    }
}
