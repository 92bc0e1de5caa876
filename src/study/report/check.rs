//! Whether cells belong together.

use super::{Cell, Description, Error, FINAL, Result, TUNING};
use crate::study::cell::FORMAT;
use crate::study::stats::{answers, mean_of_tasks, same_questions};
use std::collections::{BTreeMap, BTreeSet};

/// Exact match of a cell on a part: the mean over tasks.
pub(super) fn exact_match(cell: &Cell, part: &str) -> Option<f64> {
    mean_of_tasks(&answers(cell.parts.get(part)?))
}

/// The cells by row, learning rate and seed.
pub(super) fn sorted<'a>(cells: &'a [Cell], description: &Description) -> Result<Vec<&'a Cell>> {
    check(description)?;
    let place = |cell: &Cell| description.rows.iter().position(|row| *row == cell.name);
    let mut sorted: Vec<&Cell> = cells.iter().collect();
    sorted.sort_by(|a, b| {
        let rates = a.learning_rate.total_cmp(&b.learning_rate);
        place(a).cmp(&place(b)).then(rates).then(a.seed.cmp(&b.seed))
    });
    let mut asked = BTreeMap::new();
    for (number, cell) in sorted.iter().enumerate() {
        let refuse = |what: String| {
            let Cell { name, learning_rate, seed, .. } = cell;
            Err(Error::refused(
                "cells",
                format!("row '{name}', learning rate {learning_rate:e}, seed {seed}: {what}"),
            ))
        };
        if cell.format != FORMAT {
            return refuse(format!("has format {}, this version reads {FORMAT}", cell.format));
        }
        if place(cell).is_none() {
            return refuse("the study has no such row".into());
        }
        if cell.study != sorted[0].study {
            return refuse(format!("is of study '{}', others are of '{}'", cell.study, sorted[0].study));
        }
        if !(cell.learning_rate.is_finite() && cell.learning_rate > 0.0) {
            return refuse("a learning rate must be above 0".into());
        }
        if let Some(before) =
            number.checked_sub(1).map(|before| sorted[before]).filter(|b| b.name == cell.name)
        {
            if before.learning_rate == cell.learning_rate && before.seed == cell.seed {
                return refuse("there are two of it, keep one".into());
            }
            if before.method != cell.method || before.options != cell.options {
                return refuse("its method or an option is not that of the other cells of its row".into());
            }
        }
        for (name, part) in &cell.parts {
            if !description.parts.contains(name) {
                return refuse(format!("the study has no part '{name}'"));
            }
            if part.tasks.is_empty() {
                return refuse(format!("part '{name}' has no task"));
            }
            for (task, answers) in &part.tasks {
                if answers.right.is_empty() || answers.right.bytes().any(|sign| sign != b'0' && sign != b'1')
                {
                    return refuse(format!(
                        "part '{name}', task '{task}': answers must be signs 0 and 1, at least one"
                    ));
                }
            }
            let first = *asked.entry(name).or_insert(part);
            if !same_questions(first, part) {
                return refuse(format!(
                    "part '{name}' has other tasks or numbers of questions than in other cells"
                ));
            }
        }
    }
    Ok(sorted)
}

fn check(description: &Description) -> Result<()> {
    let names: BTreeSet<&String> = description.rows.iter().collect();
    if names.len() < description.rows.len() {
        return Err(Error::refused("rows", "a name stands there twice"));
    }
    if let Some(missing) = description.baselines.iter().find(|name| !names.contains(name)) {
        return Err(Error::refused("baselines", format!("there is no row '{missing}'")));
    }
    let parts: BTreeSet<&str> = description.parts.iter().map(String::as_str).collect();
    if parts.len() < description.parts.len() || !parts.contains(TUNING) || !parts.contains(FINAL) {
        let what =
            format!("are {:?}; each may be there once, '{TUNING}' and '{FINAL}' must be", description.parts);
        return Err(Error::refused("parts", what));
    }
    Ok(())
}
