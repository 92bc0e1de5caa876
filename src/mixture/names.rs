//! From a name to its method.

use super::{ALL, MethodSpec};
use crate::names::nearest;
use crate::{Error, Result};

/// Names of papers, and what they are here.
const ALIASES: [(&str, &str); 3] = [
    ("conditional-mixlora", "mixlora-cond"),
    ("cond-mixlora", "mixlora-cond"),
    ("mixlora-conditional", "mixlora-cond"),
];

/// A name that two papers have.
const AMBIGUOUS: &str = "mixlora";

/// The method of that name, or of the name that its paper has for it.
///
/// # Errors
/// There is none; the error lists all names, and the nearest one.
pub fn find(name: &str) -> Result<&'static MethodSpec> {
    let plain = name.to_lowercase().replace(['_', ' '], "-");
    let own = ALIASES.iter().find(|(alias, _)| *alias == plain).map_or(plain.as_str(), |(_, own)| own);
    ALL.iter().copied().find(|m| m.name == own).ok_or_else(|| unknown(name, &plain))
}

fn unknown(name: &str, plain: &str) -> Error {
    let names: Vec<String> = ALL.iter().map(|m| m.name.to_string()).collect();
    let hint = match (plain, nearest(plain, &names)) {
        (AMBIGUOUS, _) => {
            "; two papers have that name: mixlora-cond chooses factors per instance, mixlora-ffn experts per token".into()
        }
        (_, Some(near)) => format!("; did you mean '{near}'?"),
        (_, None) => String::new(),
    };
    let list = names.join(", ");
    Error::config("method", format!("'{name}' is unknown{hint}; known are {list}: see `mixlora methods`"))
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
