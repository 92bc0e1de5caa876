//! An adapter that begins with what another one has learned.

use super::{Adapter, Matrix};
use crate::{Error, Result};
use std::collections::HashMap;

impl Adapter {
    /// Takes the values of another adapter of the same method: those of a smaller one become the first rows, what is new
    /// stays as it was made.
    ///
    /// # Errors
    /// The methods differ, or the other one has more rows, other widths, or parts that this one does not have.
    pub fn start_from(&self, other: &Adapter) -> Result<()> {
        let refused = |what: String| Err(Error::refused("start_from", what));
        if self.method.name() != other.method.name() {
            let what = format!("is a {}, but the run trains a {}", other.method.name(), self.method.name());
            return refused(what);
        }
        let mut parts: HashMap<String, Matrix> = HashMap::new();
        for param in other.params() {
            parts.extend(Matrix::of(&param, &param.value())?.into_iter().map(|m| (m.name.clone(), m)));
        }
        for param in self.params() {
            let mut new = Matrix::of(&param, &param.value())?;
            for matrix in &mut new {
                let Some(old) = parts.remove(&matrix.name) else { continue };
                if old.cols != matrix.cols || old.rows > matrix.rows {
                    return refused(format!(
                        "has {} with {} rows of {} values, which do not go into {} rows of {}",
                        matrix.name, old.rows, old.cols, matrix.rows, matrix.cols
                    ));
                }
                matrix.values[..old.values.len()].copy_from_slice(&old.values);
            }
            let device = param.value().device().clone();
            param.load(&device, |part| new.iter().find(|m| m.name == part).map(|m| m.values.clone()))?;
        }
        match parts.keys().min() {
            Some(name) => {
                refused(format!("has '{name}', for which there is no place: other targets or options"))
            }
            None => Ok(()),
        }
    }
}
