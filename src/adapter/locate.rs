//! From what a user names to the folder of an adapter: the folder itself, or a training run.

use crate::io::folder;
use crate::{Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Names of the step folders of a run.
pub const STEP_PREFIX: &str = "step-";
/// File of a run that names its best step folder.
pub const BEST: &str = "best";
/// File of a run that names its last step folder.
pub const LAST: &str = "last";

/// Names of the folders of a run's stages, from 1.
pub const STAGE_PREFIX: &str = "stage-";
/// File of a run in stages.
pub const STAGES: &str = "stages.json";

/// The run of the last stage that has a checkpoint.
fn last_stage(dir: &Path) -> Option<PathBuf> {
    let stages = (1..).map(|number| dir.join(format!("{STAGE_PREFIX}{number}")));
    stages.take_while(|stage| stage.join(LAST).is_file()).last()
}

/// The folder of the adapter that a path stands for: an adapter folder; a run, of which the best checkpoint is taken
/// or, without one, the last; a run in stages, of which the last one is taken; or a run's file `best` or `last`. A
/// checkpoint's checksums are verified.
///
/// # Errors
/// The path is none of these, or the checkpoint is damaged.
pub fn locate(path: &Path) -> Result<PathBuf> {
    if path.join(STAGES).is_file()
        && let Some(stage) = last_stage(path)
    {
        return locate(&stage);
    }
    let dir = if path.is_file() {
        pointed(path)?
    } else {
        match [BEST, LAST].iter().map(|p| path.join(p)).find(|p| p.is_file()) {
            Some(pointer) if !path.join("adapter_config.json").exists() => pointed(&pointer)?,
            _ => path.to_path_buf(),
        }
    };
    if dir.join(folder::MANIFEST).exists() {
        folder::verify(&dir)?;
    }
    Ok(dir)
}

/// The step folder that a file of a run names.
pub fn pointed(pointer: &Path) -> Result<PathBuf> {
    let fail = |what: String| Error::file(pointer, what);
    let mut text = String::new();
    let read = File::open(pointer).and_then(|f| f.take(100).read_to_string(&mut text));
    // Anything but a short line of text is some other file.
    let name = read.map_or("", |_| text.trim());
    let number = name.strip_prefix(STEP_PREFIX).is_some_and(|n| n.parse::<u64>().is_ok());
    let dir = pointer.with_file_name(name);
    if number && dir.is_dir() {
        Ok(dir)
    } else {
        Err(fail(
        "is neither an adapter folder nor a run's file that names a step folder beside it; give the folder".into(),
    ))
    }
}
