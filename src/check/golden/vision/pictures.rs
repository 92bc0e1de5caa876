//! Files of pictures: the decoded file, what processors make of it, and resizing alone.

use super::super::{Measured, Replay, vision};
use crate::io::Checkpoint;
use crate::picture::{Alpha, Filter, Limits, Picture, PictureFile, Processor, Tiles};
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The bound on the mean difference of a decoded JPEG file in levels: decoders differ.
const JPEG_MEAN: f64 = 0.5;

/// A processor of a file, and the grid that it makes.
#[derive(Deserialize)]
struct Processed {
    rows: usize,
    cols: usize,
    config: Map<String, Value>,
}

/// A resizing of a file, by heights and widths.
#[derive(Deserialize)]
struct Resizing {
    from: [usize; 2],
    to: [usize; 2],
    filters: Vec<Filter>,
}

fn metadata<T: serde::de::DeserializeOwned>(file: &Checkpoint, key: &str) -> Result<T> {
    serde_json::from_str(file.metadata(key)?)
        .map_err(|error| Error::file(file.path(), format!("metadata '{key}': {error}")))
}

/// A tensor of bytes `[height, width, 3]`.
fn stored_picture(file: &Checkpoint, name: &str) -> Result<Picture> {
    let &[height, width, 3] = file.dims(name)? else {
        return Err(Error::file(file.path(), format!("tensor '{name}' is no picture [height, width, 3]")));
    };
    Picture::new(width, height, file.tensor_bytes(name)?.to_vec())
        .map_err(|error| Error::file(file.path(), format!("tensor '{name}': {error}")))
}

/// The largest and the mean difference of bytes; both are infinite where there are more of one than of the other.
fn differences(one: &[u8], other: &[u8]) -> (f64, f64) {
    if one.len() != other.len() {
        return (f64::INFINITY, f64::INFINITY);
    }
    let each = || one.iter().zip(other).map(|(one, other)| f64::from(one.abs_diff(*other)));
    (each().fold(0.0, f64::max), each().sum::<f64>() / one.len().max(1) as f64)
}

fn exact(name: String, error: f64) -> Measured {
    Measured { name, error, bound: 0.0 }
}

/// Compares a decoded picture with a stored one, and returns the stored one.
fn decoded(
    file: &Checkpoint,
    opened: &PictureFile,
    alpha: Alpha,
    name: &str,
    errors: &mut Vec<Measured>,
) -> Result<Picture> {
    let picture = opened.decode(alpha)?.picture;
    if !file.has(name) {
        return Ok(picture);
    }
    let stored = stored_picture(file, name)?;
    let same_size = picture.width() == stored.width();
    let (largest, mean) =
        if same_size { differences(picture.rgb(), stored.rgb()) } else { differences(&[0], &[]) };
    if opened.about().kind == "JPEG" {
        errors.push(Measured { name: format!("{name} (mean)"), error: mean, bound: JPEG_MEAN });
        errors.push(Measured { name: format!("{name} (largest)"), error: largest, bound: 255.0 });
    } else {
        errors.push(exact(name.to_string(), largest));
    }
    Ok(stored)
}

/// Replays a file of a picture: levels that differ after decoding, and in what each processor makes of the stored pixels.
pub(super) fn replay(file: &Checkpoint) -> Result<Replay> {
    let processors: BTreeMap<String, Processed> = metadata(file, "processors")?;
    let bytes = file.tensor_bytes("file")?.to_vec();
    let opened = PictureFile::from_bytes(file.path().with_extension(""), bytes, &Limits::default())?;
    let mut errors = Vec::new();
    let plain = decoded(file, &opened, Alpha::Drop, "rgb", &mut errors)?;
    let mut on_white = None;
    if file.has("rgb_on_white") {
        on_white = Some(decoded(file, &opened, Alpha::White, "rgb_on_white", &mut errors)?);
    }
    let mut choices = true;
    for (name, processed) in &processors {
        let processor = Processor::of_settings(file.path(), &processed.config)?;
        let white = on_white.as_ref().filter(|_| processor.alpha == Alpha::White);
        let tiles = processor.tiles(white.unwrap_or(&plain))?;
        choices &= (tiles.rows(), tiles.columns()) == (processed.rows, processed.cols);
        errors.extend(compare(file, name, &processor, &tiles)?);
    }
    Ok(Replay { path: file.path().to_path_buf(), kind: vision::PICTURE.into(), errors, choices })
}

/// Compares bytes, and values of the last tile where the file has them.
fn compare(file: &Checkpoint, name: &str, processor: &Processor, tiles: &Tiles) -> Result<Vec<Measured>> {
    let u8_name = format!("{name}.u8");
    let dims = [tiles.count(), tiles.height(), tiles.width(), 3];
    let same = file.dims(&u8_name)? == dims;
    let largest =
        if same { differences(tiles.bytes(), file.tensor_bytes(&u8_name)?).0 } else { f64::INFINITY };
    let mut measured = vec![exact(u8_name, largest)];
    let values_name = format!("{name}.pixel_values");
    if file.has(&values_name) {
        let values = processor.values(tiles);
        let last = values.len() / tiles.count();
        let stored = file.f32(&values_name, &[1, 3, tiles.height(), tiles.width()])?;
        let pairs = values[values.len() - last..].iter().zip(&stored);
        let error = pairs.fold(0.0, |worst: f64, (one, other)| worst.max(f64::from((one - other).abs())));
        measured.push(exact(values_name, error));
    }
    Ok(measured)
}

/// Replays a file of resizings: levels that differ.
pub(super) fn replay_resize(file: &Checkpoint) -> Result<Replay> {
    let cases: Vec<Resizing> = metadata(file, "cases")?;
    let mut errors = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let picture = stored_picture(file, &format!("{index}.in"))?;
        let [height, width] = case.to;
        if [picture.height(), picture.width()] != case.from {
            return Err(Error::file(
                file.path(),
                format!("tensor '{index}.in' has another size than its case"),
            ));
        }
        for filter in &case.filters {
            let name = format!("{index}.{filter}");
            let stored = stored_picture(file, &name)?;
            if [stored.height(), stored.width()] != case.to {
                return Err(Error::file(
                    file.path(),
                    format!("tensor '{name}' has another size than its case"),
                ));
            }
            let made = picture.resized(width, height, *filter);
            errors.push(exact(name, differences(made.rgb(), stored.rgb()).0));
        }
    }
    Ok(Replay { path: file.path().to_path_buf(), kind: vision::RESIZE.into(), errors, choices: true })
}
