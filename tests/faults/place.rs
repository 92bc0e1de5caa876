//! A folder to work in.

use crate::common::tiny::write_text_model;
use serde_json::Value;
use std::path::PathBuf;

/// A folder with the tiny text model as `model`.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_text_model(&dir.path().join("model"));
        Place(dir)
    }
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }
    /// The lines of a run's log; one that a crash cut short is left out.
    pub fn metrics(&self, run: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}
