//! `mixlora inspect --image`

use crate::model_path::model_path;
use crate::{Failure, out};
use mixlora::Error;
use mixlora::picture::{Alpha, Limits, PictureFile, Processor, Tiles};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[group(skip)]
pub struct Args {
    /// A picture: PNG, JPEG, WebP, GIF or BMP. What its file is, and how it is read.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["path", "tensors", "check"])]
    pub image: Option<PathBuf>,
    /// A model's directory, or its preprocessor_config.json: what the model sees of the picture.
    #[arg(long, value_name = "DIR", requires = "image", value_parser = model_path())]
    model: Option<PathBuf>,
    /// What becomes of transparency: drop or white. By default what the model's family does, else drop.
    #[arg(long, value_name = "RULE", requires = "image", value_parser = ["drop", "white"])]
    alpha: Option<String>,
    /// Write what the model sees as a PNG file: all tiles on one sheet. Without --model, the picture as it is read.
    #[arg(long, value_name = "FILE", requires = "image")]
    png: Option<PathBuf>,
    /// Pictures of more pixels are refused before they are decoded.
    #[arg(long, value_name = "N", requires = "image", default_value_t = Limits::default().pixels)]
    max_pixels: u64,
}

pub fn run(image: &Path, args: &Args, as_json: bool) -> Result<(), Failure> {
    let limits = Limits { pixels: args.max_pixels, ..Limits::default() };
    let file = PictureFile::open(image, &limits)?;
    let processor = args.model.as_deref().map(Processor::of_model).transpose()?;
    let alpha = Alpha::ALL.into_iter().find(|alpha| args.alpha.as_deref() == Some(alpha.name()));
    let processor = processor.map(|own| Processor { alpha: alpha.unwrap_or(own.alpha), ..own });
    let decoded = file.decode(processor.as_ref().map_or(alpha.unwrap_or_default(), |own| own.alpha))?;
    let tiles = processor.as_ref().map(|own| own.tiles(&decoded.picture)).transpose();
    let tiles = tiles.map_err(|error| Error::File { path: image.into(), what: error.to_string() })?;
    if let Some(path) = &args.png {
        let shown = tiles.as_ref().map_or_else(|| Ok(decoded.picture.clone()), Tiles::sheet)?;
        mixlora::atomic::write(path, &shown.to_png()?)?;
    }
    let mut report = serde_json::to_value(file.about()).unwrap_or(Value::Null);
    report["path"] = json!(image);
    report["transparent"] = json!(decoded.transparent);
    report["checksum"] = json!(format!("{:08x}", decoded.picture.checksum()));
    report["notes"] = json!(decoded.notes);
    if let (Some(processor), Some(tiles)) = (&processor, &tiles) {
        report["model"] = json!({
            "processor": processor, "steps": processor.to_string(), "tiles": tiles.count(), "rows": tiles.rows(),
            "columns": tiles.columns(), "height": tiles.height(), "width": tiles.width(),
            "checksum": format!("{:08x}", tiles.checksum()),
        });
    }
    if as_json {
        out::json(&report)?
    } else {
        out::text(&text(&report, tiles.as_ref()))?
    }
    Ok(())
}

fn text(report: &Value, tiles: Option<&Tiles>) -> String {
    let part = |key: &str| match &report[key] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut text = format!("kind: {} ({}, {} bytes)\n", part("kind"), part("pixel"), part("bytes"));
    let turned = if report["orientation"] == 1 { "upright as stored" } else { "turned upright" };
    text += &format!("size: {} x {} (width x height)\n", part("width"), part("height"));
    text += &format!("EXIF orientation: {} ({turned})\n", part("orientation"));
    if report["alpha"] == true {
        text += &format!(
            "transparent: {:.2} % of the pixels\n",
            100.0 * report["transparent"].as_f64().unwrap_or(0.0)
        );
    }
    text += &format!("pixels: checksum {}\n", part("checksum"));
    if let Some(tiles) = tiles {
        let grid = if tiles.rows() == 0 {
            "the whole picture".to_string()
        } else {
            format!("{} rows of {}, and the whole picture", tiles.rows(), tiles.columns())
        };
        let model = &report["model"];
        text += &format!("steps: {}\n", model["steps"].as_str().unwrap_or_default());
        text += &format!(
            "tiles: {} of {} x {} (height x width): {grid}\n",
            tiles.count(),
            tiles.height(),
            tiles.width()
        );
        text +=
            &format!("what the model sees: checksum {}\n", model["checksum"].as_str().unwrap_or_default());
    }
    for note in report["notes"].as_array().into_iter().flatten() {
        text += &format!("note: {}\n", note.as_str().unwrap_or_default());
    }
    text
}
