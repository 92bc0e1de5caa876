//! What a run writes into its folder: checkpoints, and what is needed to look into a step that diverged.

use super::Run;
use crate::train::checkpoint::{OPTIMIZER, STATE, optimizer_bytes};
use crate::train::loss_curve;
use crate::train::observe::Observer;
use crate::{Error, Result, atomic};
use serde_json::json;

impl Run {
    /// Writes a checkpoint.
    ///
    /// # Errors
    /// It cannot be written; earlier ones are intact.
    pub fn save(&mut self, observer: &mut dyn Observer, best: bool) -> Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let base =
            self.config.model.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let mut files = self.session.adapter.files(&self.session.model, &base)?;
        files.push((OPTIMIZER.into(), optimizer_bytes(&self.session.optimizer)?));
        let state = serde_json::to_vec_pretty(&self.state)
            .map_err(|error| Error::refused(STATE, error.to_string()))?;
        files.push((STATE.into(), state));
        let dir = folder.save(self.state.step, &files, best, self.config.train.keep)?;
        // The picture is for people: a run does not fail for it.
        let metrics = folder.path().join("metrics.jsonl");
        let title = format!("{} on {base}", self.config.method.name());
        let drawn = loss_curve(&metrics, &title)
            .and_then(|svg| atomic::write(&folder.path().join("loss.svg"), svg.as_bytes()));
        self.saved = Some(self.state.step);
        self.record(observer, json!({ "t": "save", "step": self.state.step, "best": best }));
        if let Err(e) = drawn {
            self.warn(observer, &e.to_string());
        }
        observer.saved(&dir, best);
        Ok(())
    }

    /// Puts adapter, state and the lines of the examples where a step diverged into the folder; what was said, with
    /// where that is.
    pub(super) fn keep_diverged(&self, what: &str, ids: &[Vec<usize>]) -> String {
        let Some(folder) = &self.folder else { return what.into() };
        let lines: Vec<usize> = ids.iter().flatten().map(|&i| self.train.lines[i]).collect();
        let about = json!({ "what": what, "state": self.state, "data": self.config.data, "lines": lines });
        let dir = folder.path().join("diverged");
        let written = self.session.adapter.files(&self.session.model, "").and_then(|mut files| {
            files.push((STATE.into(), format!("{about:#}").into_bytes()));
            crate::io::folder::write(&dir, &files)
        });
        match written {
            Ok(()) => format!("{what}; see {}", dir.display()),
            Err(e) => format!("{what}; it could not be kept for inspection: {e}"),
        }
    }
}
