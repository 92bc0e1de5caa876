//! The folder of a study: its finished cells, and the report of them.

use super::{Cell, FORMAT, Place, Report, Study};
use crate::atomic;
use crate::io::cannot_read;
use crate::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// `DIR/cells/*.json`, and what is said of them in `DIR`.
pub struct StudyFolder(PathBuf);

impl StudyFolder {
    /// The folder, made where it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(dir: &Path) -> Result<Self> {
        let cells = dir.join("cells");
        fs::create_dir_all(&cells)
            .map_err(|error| Error::file(&cells, format!("cannot be made: {error}")))?;
        Ok(StudyFolder(dir.into()))
    }

    fn path(&self, study: &Study, place: &Place) -> PathBuf {
        self.0.join("cells").join(study.file_name(place))
    }

    /// The finished cell of a place, if it is there.
    ///
    /// # Errors
    /// The file is no cell, or one of other options, data, model or settings than the study's.
    pub fn read(&self, study: &Study, place: &Place, fingerprint: &str) -> Result<Option<Cell>> {
        let path = self.path(study, place);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).map_err(cannot_read(&path))?;
        let cell: Cell = serde_json::from_str(&text).map_err(|error| {
            Error::file(&path, format!("is no cell of a study: {error}; remove it to train it anew"))
        })?;
        let row = &study.rows[place.row];
        let other = |what: &str| {
            Err(Error::file(&path, format!("is of {what}; remove it, or take another folder with --out")))
        };
        if cell.format != FORMAT {
            return other(&format!("format {}, and this program writes {FORMAT}", cell.format));
        }
        if cell.study != fingerprint {
            return other("other data, another model or other settings than those of the study");
        }
        if cell.name != row.name || cell.learning_rate != place.learning_rate || cell.seed != place.seed {
            return other("another place of the study");
        }
        // A run completes the options with what it takes from its data; a cell has none that later versions added.
        let given = row.config.method.tree();
        let defaults = row.config.method.spec().defaults().tree();
        let differs = |(name, value): (&String, &serde_json::Value)| {
            let taken = ["tasks", "condition", "condition_width"].contains(&name.as_str());
            !taken && cell.options.get(name).or(defaults.get(name)) != Some(value)
        };
        if cell.method != row.config.method.name() || given.iter().any(differs) {
            return other("other options than those of the study");
        }
        Ok(Some(cell))
    }

    /// Writes a finished cell: all of it or nothing.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, study: &Study, place: &Place, cell: &Cell) -> Result<()> {
        let path = self.path(study, place);
        let text = lines(cell).map_err(|error| Error::file(&path, error.to_string()))?;
        atomic::write(&path, text.as_bytes())
    }

    /// Writes `report.md`, `report.json` and the pictures; their paths.
    ///
    /// # Errors
    /// One cannot be written.
    pub fn report(&self, report: &Report) -> Result<Vec<PathBuf>> {
        let mut files =
            vec![("report.md".to_string(), report.markdown()), ("report.json".into(), report.json())];
        files.extend(report.pictures().into_iter().map(|picture| (picture.file.to_string(), picture.svg)));
        let mut paths = Vec::new();
        for (name, text) in files {
            let path = self.0.join(name);
            atomic::write(&path, text.as_bytes())?;
            paths.push(path);
        }
        Ok(paths)
    }
}

/// A cell as JSON with a line for each field: small, and its changes can be read.
fn lines(cell: &Cell) -> serde_json::Result<String> {
    let fields = match serde_json::to_value(cell)? {
        serde_json::Value::Object(fields) => fields,
        other => return Ok(other.to_string()),
    };
    let field = |(name, value): (String, serde_json::Value)| format!("  {name:?}: {value}");
    let fields: Vec<String> = fields.into_iter().map(field).collect();
    Ok(format!("{{\n{}\n}}\n", fields.join(",\n")))
}
