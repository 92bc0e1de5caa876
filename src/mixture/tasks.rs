//! Task labels, for methods that choose or learn by task: from the data's words to numbers.

use super::List;
use crate::nn::Pass;
use crate::{Error, Result, options};
use std::sync::Arc;

options! {
    /// Tasks by their labels.
    pub struct Tasks {
        /// The labels of the tasks, in the order of their numbers; empty: those of the training data.
        tasks: List<String> = List(Vec::new());
    }
}

impl Tasks {
    /// The number of a task.
    ///
    /// # Errors
    /// It is unknown; the error lists the known ones.
    pub fn number(&self, label: &str) -> Result<usize> {
        let List(known) = &self.tasks;
        known.iter().position(|task| task == label).ok_or_else(|| {
            let list = if known.is_empty() { "none".into() } else { known.join(", ") };
            Error::refused("task", format!("'{label}' is unknown; known are {list}"))
        })
    }

    /// The number of each sample of a pass.
    ///
    /// # Errors
    /// A sample has no task, or one that is unknown.
    pub fn numbers(&self, pass: &Pass) -> Result<Vec<usize>> {
        let tasks = &pass.labels.tasks;
        if tasks.is_empty() {
            return Err(self.missing("the samples have no task labels"));
        }
        let number = |(i, task): (usize, &Option<Arc<str>>)| match task {
            Some(label) => self.number(label),
            None => Err(self.missing(&format!("sample {i} of the batch has no task"))),
        };
        tasks.iter().enumerate().map(number).collect()
    }

    fn missing(&self, what: &str) -> Error {
        let known = self.tasks.0.join(", ");
        Error::refused("task", format!("{what}, but the method chooses by task; known tasks are {known}"))
    }
}

/// The number of the task of each of `rows` rows, `u32::MAX` for those of samples without a task: the rows of a sample
/// follow each other.
///
/// # Errors
/// A task is unknown, or there are more tasks than experts.
pub fn labels_of_rows(pass: &Pass, rows: usize, tasks: &Tasks, experts: usize) -> Result<Vec<u32>> {
    let labels = &pass.labels;
    if labels.tasks.is_empty() || !rows.is_multiple_of(labels.tasks.len()) {
        return Ok(vec![u32::MAX; rows]);
    }
    let number = |task: &Option<Arc<str>>| match task {
        None => Ok(u32::MAX),
        Some(label) => match tasks.number(label)? {
            number if number < experts => Ok(number as u32),
            number => {
                let what =
                    format!("'{label}' is task {number}, but there are {experts} experts: raise num_experts");
                Err(Error::refused("task", what))
            }
        },
    };
    let each = labels.tasks.iter().map(number).collect::<Result<Vec<_>>>()?;
    let of_sample = rows / each.len();
    Ok(each.into_iter().flat_map(|number| vec![number; of_sample]).collect())
}
