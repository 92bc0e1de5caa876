//! What a trained adapter does with its tasks: whether they disturb each other, and which factors they choose.
//!
//! The two analyses of Conditional MixLoRA (Shen et al. 2024, arXiv:2402.15896, sections on interference and on
//! routing) for every method: [`interference`] looks at gradients, [`routing`] at choices. Nothing is trained, and no
//! parameter changes. The command is `mixlora analyse`; what figures mean: docs/ANALYSES.md.

mod embedding;
mod interference;
mod routing;
mod scores;
mod svg;
mod uses;

use crate::data::Batch;
use crate::{Error, Result};

pub use embedding::embedding;
pub use interference::{Interference, LayerScores, SideScores, interference};
pub use routing::{LayerRouting, PlaceRouting, Routing, routing};
pub use scores::Scores;
pub(crate) use svg::COLORS;
pub use svg::{HeatMap, Panel, Scale, Scatter, page};
pub use uses::Place;

/// The batches of a task.
pub struct TaskBatches {
    pub task: String,
    pub batches: Vec<Batch>,
}

/// Refuses what cannot be compared.
fn check_tasks(tasks: &[TaskBatches]) -> Result<()> {
    if tasks.len() < 2 {
        let what = format!(
            "tasks are compared with each other: at least two are needed, there are {}; give each sample a field 'task'",
            tasks.len()
        );
        return Err(Error::refused("task", what));
    }
    for TaskBatches { task, batches } in tasks {
        if batches.iter().all(|batch| batch.trained == 0) {
            return Err(Error::refused("task", format!("'{task}' has no sample with a trained token")));
        }
    }
    Ok(())
}
