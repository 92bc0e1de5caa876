//! From a name to its method.

use super::{Files, MethodSpec, methods};
use crate::names::nearest;
use crate::{Error, Result};
use std::path::Path;

/// A name that two papers have.
const AMBIGUOUS: &str = "mixlora";

/// The methods that a program knows: those of this crate, and its own. It is given to whatever reads names of methods
/// from files.
///
/// ```
/// use mixlora::mixture::{Methods, methods};
/// assert_eq!(Methods::builtin().find("conditional-mixlora")?.name, "mixlora-cond");
/// # Ok::<(), mixlora::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Methods(Vec<&'static MethodSpec>);

impl Default for Methods {
    fn default() -> Self {
        Methods::builtin()
    }
}

impl Methods {
    /// The methods of this crate.
    pub fn builtin() -> Self {
        Methods(methods::ALL.to_vec())
    }

    /// These and another one, which takes the place of one with the same name.
    pub fn with(mut self, spec: &'static MethodSpec) -> Self {
        self.0.retain(|m| m.name != spec.name);
        self.0.push(spec);
        self
    }

    /// All of them, in order.
    pub fn all(&self) -> &[&'static MethodSpec] {
        &self.0
    }

    /// The method that is trained where none is named.
    pub fn standard(&self) -> &'static MethodSpec {
        methods::STANDARD
    }

    /// The method of that name, or of the name that its paper has for it.
    ///
    /// # Errors
    /// There is none; the error lists all names, and the nearest one.
    pub fn find(&self, name: &str) -> Result<&'static MethodSpec> {
        let plain = name.to_lowercase().replace(['_', ' '], "-");
        let named = |m: &&&MethodSpec| m.name == plain || m.aliases.contains(&plain.as_str());
        self.0.iter().find(named).copied().ok_or_else(|| self.unknown(name, &plain))
    }

    /// The first method whose adapters are stored like that.
    ///
    /// # Errors
    /// There is none.
    pub fn of_files(&self, files: Files) -> Result<&'static MethodSpec> {
        let found = self.0.iter().find(|m| m.files == files).copied();
        found.ok_or_else(|| Error::refused("method", format!("none is stored as {files:?}")))
    }

    /// Whether any method has an option of that name.
    pub fn know_option(&self, name: &str) -> bool {
        self.0.iter().any(|m| m.option_names().contains(&name))
    }

    /// What is said of names in a stored file that are no option of its method. Files of version 0.1.0 have the options
    /// of all methods; those say nothing.
    pub fn notes_of(&self, file: &Path, spec: &MethodSpec, unknown: &[String]) -> Vec<String> {
        let odd: Vec<&str> = unknown.iter().map(String::as_str).filter(|n| !self.know_option(n)).collect();
        if odd.is_empty() {
            return Vec::new();
        }
        let names = odd.join(", ");
        vec![format!("{}: {names}: not an option of {}, passed over", file.display(), spec.name)]
    }

    fn unknown(&self, name: &str, plain: &str) -> Error {
        let names: Vec<String> = self.0.iter().map(|m| m.name.to_string()).collect();
        let hint = match nearest(plain, &names) {
            _ if plain == AMBIGUOUS => format!("; {}", methods::TWO_PAPERS),
            Some(near) => format!("; did you mean '{near}'?"),
            None => String::new(),
        };
        let list = names.join(", ");
        Error::refused(
            "method",
            format!("'{name}' is unknown{hint}; known are {list}: see `mixlora methods`"),
        )
    }
}

/// The method of this crate of that name: [`Methods::find`] among [`Methods::builtin`].
///
/// # Errors
/// There is none; the error lists all names, and the nearest one.
pub fn find(name: &str) -> Result<&'static MethodSpec> {
    Methods::builtin().find(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_papers_are_found_and_near_ones_are_named() {
        for name in ["mixlora-cond", "conditional-mixlora", "Conditional MixLoRA", "cond_mixlora"] {
            assert_eq!(find(name).unwrap().name, "mixlora-cond", "{name}");
        }
        let error = |name: &str| find(name).err().unwrap().to_string();
        assert!(
            error("mixlora").contains("mixlora-cond chooses")
                && error("mixlora").contains("mixlora-ffn experts")
        );
        assert!(error("mixlora-con").contains("did you mean 'mixlora-cond'?"));
        assert!(error("dora-the-explorer").contains("is unknown; known are lora, mixlora-cond"));
    }
}
