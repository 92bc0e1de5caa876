//! `mixlora data show`

use crate::data_text::TextArgs;
use crate::{Failure, out};
use mixlora::data::{DataFiles, Encoded, PicturePlace, Sample};
use mixlora::text::Tokenizer;
use serde_json::{Value, json};
use std::path::PathBuf;

#[cfg(feature = "images")]
use mixlora::{
    Error,
    picture::{Limits, Processor},
};
#[cfg(feature = "images")]
use std::path::Path;

#[derive(clap::Args)]
#[command(after_help = "\
Shows samples as the model reads them. Trained text is inverted on a terminal, and stands in [[double brackets]] \
elsewhere. A picture is shown as [image TOKENS, WIDTHxHEIGHT, TILES]; --png writes what the model sees of it.

Example: mixlora data show my-data --model my-model -n 2")]
pub struct Args {
    /// A folder with train.jsonl, valid.jsonl, test.jsonl (the first that is there is shown), or one file.
    path: PathBuf,
    #[command(flatten)]
    text: TextArgs,
    /// How many samples.
    #[arg(short = 'n', long, default_value_t = 3)]
    number: usize,
    /// Write what the model sees of each picture into this folder, as LINE-NUMBER.png: all tiles on one sheet.
    #[cfg(feature = "images")]
    #[arg(long, value_name = "DIR", requires = "model")]
    png: Option<PathBuf>,
    /// Print JSON: tokens, and which of them are trained.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let options = args.text.options();
    let side = args.text.side()?;
    out::notes(&side.notes);
    let encoder = args.text.encoder(&side)?;
    let files = DataFiles::find(&args.path)?;
    let Some(path) = files.all().next() else { return Ok(()) };
    let samples = options.read(path)?;
    let shown = samples.iter().take(args.number);
    let shown = shown.map(|sample| encoder.sample(path, sample).map(|encoded| (sample, encoded)));
    let shown = shown.collect::<Result<Vec<_>, mixlora::Error>>()?;
    #[cfg(feature = "images")]
    if let (Some(folder), Some(model)) = (&args.png, &args.text.model) {
        write_pictures(folder, model, &shown)?;
    }
    if args.json {
        let list = shown.iter().map(|(sample, encoded)| {
            json!({
                "line": sample.line,
                "task": sample.task,
                "ids": encoded.example.ids,
                "trained": encoded.example.trained,
                "truncated": encoded.truncated,
                "too_long": encoded.too_long,
                "pictures": encoded.example.pictures.iter().map(picture_json).collect::<Vec<_>>(),
                "parts": parts(&side.tokenizer, encoded),
            })
        });
        return Ok(out::json(&json!(list.collect::<Vec<_>>()))?);
    }
    let mut text = Vec::new();
    for (index, (sample, encoded)) in shown.iter().enumerate() {
        let space = if index > 0 { "\n" } else { "" };
        text.push((false, format!("{space}{}", head(&path.display().to_string(), sample, encoded))));
        text.extend(parts(&side.tokenizer, encoded));
        text.push((false, "\n".into()));
    }
    Ok(out::marked(&text)?)
}

fn head(path: &str, sample: &Sample, encoded: &Encoded) -> String {
    let tokens = encoded.example.ids.len();
    let trained = encoded.example.trained_tokens();
    let task = sample.task.as_ref().map_or(String::new(), |task| format!(", task {task}"));
    let cut = match encoded {
        Encoded { too_long: true, .. } => ", left out: too long with its pictures",
        Encoded { truncated: true, .. } => ", cut to fit",
        _ => "",
    };
    format!("--- {path}:{}{task}: {tokens} tokens, {trained} trained{cut}\n", sample.line)
}

/// The text in runs of trained and untrained tokens. A character of several tokens belongs to the last one.
fn parts(tokenizer: &Tokenizer, encoded: &Encoded) -> Vec<(bool, String)> {
    let mut parts: Vec<(bool, String)> = Vec::new();
    let mut add = |trained: bool, text: Option<String>| {
        let Some(text) = text else { return };
        match parts.last_mut() {
            Some((same, part)) if *same == trained => part.push_str(&text),
            _ => parts.push((trained, text)),
        }
    };
    let mut decoder = tokenizer.decoder(&[], false);
    let mut last = false;
    let mut pictures = encoded.example.pictures.iter().peekable();
    for (at, (&id, &trained)) in encoded.example.ids.iter().zip(&encoded.example.trained).enumerate() {
        if let Some(picture) = pictures.next_if(|picture| at >= picture.span.start) {
            add(last, decoder.finish());
            decoder = tokenizer.decoder(&[], false);
            add(false, Some(described(picture)));
        }
        if encoded.example.pictures.iter().any(|picture| picture.span.contains(&at)) {
            continue;
        }
        add(trained, decoder.push(id));
        last = trained;
    }
    add(last, decoder.finish());
    parts
}

/// What stands in the place of a picture's tokens.
fn described(picture: &PicturePlace) -> String {
    let [height, width] = picture.tile;
    let tiles = if picture.tiles() == 1 { "1 tile".into() } else { format!("{} tiles", picture.tiles()) };
    format!("[image {} tokens, {width}x{height}, {tiles}]", picture.span.len())
}

fn picture_json(picture: &PicturePlace) -> Value {
    json!({
        "source": picture.source.to_string(),
        "first_token": picture.span.start,
        "tokens": picture.span.len(),
        "grid": picture.grid,
        "tiles": picture.tiles(),
        "height": picture.tile[0],
        "width": picture.tile[1],
    })
}

/// Writes the tiles of every picture on a sheet.
#[cfg(feature = "images")]
fn write_pictures(folder: &Path, model: &Path, shown: &[(&Sample, Encoded)]) -> Result<(), Failure> {
    let processor = Processor::of_model(model)?;
    let in_folder = |error| Error::File { path: folder.into(), what: format!("cannot be made: {error}") };
    std::fs::create_dir_all(folder).map_err(in_folder)?;
    for (sample, encoded) in shown {
        let name = sample.element.unwrap_or(sample.line);
        for (at, picture) in encoded.example.pictures.iter().enumerate() {
            let file = picture.source.open(&Limits::default())?;
            let tiles = processor.tiles(&file.decode(processor.alpha)?.picture)?;
            let path = folder.join(format!("{name}-{}.png", at + 1));
            mixlora::atomic::write(&path, &tiles.sheet()?.to_png()?)?;
            out::note(&format!("note: {} is {} as the model sees it", path.display(), picture.source));
        }
    }
    Ok(())
}
