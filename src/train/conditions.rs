//! From the conditions of samples to vectors: texts by way of the frozen model.

use super::RunConfig;
use crate::data::{Condition, Dataset};
use crate::mixture::ConditionKind;
use crate::model::Model;
use crate::text::Tokenizer;
use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// The vector of a condition: itself, or the mean of the frozen model's last states over the tokens of a text, of which as
/// many count as the model's context holds.
///
/// # Errors
/// The text has no tokens, or the device failed.
pub fn condition_vector(condition: &Condition, model: &Model, tokenizer: &Tokenizer) -> Result<Vec<f32>> {
    match condition {
        Condition::Vector(values) => Ok(values.clone()),
        Condition::Text(text) => {
            let mut ids = tokenizer.encode_start(text)?;
            ids.truncate(model.config().max_positions());
            model.mean_state(&ids)
        }
    }
}

/// Gives the examples of a set the vectors of their conditions, for methods that choose by them; equal texts are read once.
///
/// # Errors
/// Those of [`condition_vector`].
pub fn give_conditions(set: &mut Dataset, model: &Model, tokenizer: &Tokenizer) -> Result<()> {
    let mut known: HashMap<&str, Arc<[f32]>> = HashMap::new();
    for (example, condition) in set.examples.iter_mut().zip(&set.conditions) {
        let Some(condition) = condition else { continue };
        let vector = || condition_vector(condition, model, tokenizer).map(Arc::from);
        example.condition = Some(match condition {
            Condition::Vector(_) => vector()?,
            Condition::Text(text) => match known.get(text.as_str()) {
                Some(found) => found.clone(),
                None => known.entry(text).or_insert(vector()?).clone(),
            },
        });
    }
    Ok(())
}

/// Gives a method that chooses by condition the kind and the width of those of its data, and refuses samples that have none
/// or another kind.
pub(super) fn with_conditions(
    config: &mut RunConfig,
    sets: [Option<&Dataset>; 2],
    hidden: usize,
) -> Result<()> {
    let Some(own) = config.method.options().condition() else { return Ok(()) };
    let mut first: Option<(ConditionKind, usize)> = None;
    for set in sets.into_iter().flatten() {
        for (condition, line) in set.conditions.iter().zip(&set.lines) {
            let refused = |what: String| {
                let place = format!("the sample of line {line} in {}", config.data.display());
                Err(Error::refused("condition", format!("{place} {what}")))
            };
            let found = match condition {
                Some(Condition::Text(_)) => (ConditionKind::Text, hidden),
                Some(Condition::Vector(values)) => (ConditionKind::Vector, values.len()),
                None => {
                    let name = config.method.name();
                    return refused(format!("has no 'condition', and {name} chooses by it"));
                }
            };
            if *first.get_or_insert(found) != found {
                return refused("is of another kind or length than those before".into());
            }
        }
    }
    let Some((kind, width)) = first else { return Ok(()) };
    if own.condition_width != 0 && own.condition_width != width {
        let expected = format!("{width}, the width of the data's conditions");
        return Err(Error::config("options.condition_width", own.condition_width, expected));
    }
    config.method = config.method.with("condition", kind.word())?.with("condition_width", width)?;
    Ok(())
}
