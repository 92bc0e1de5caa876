//! Auxiliary losses of a pass: of one site each, or made by several sites together.

use crate::{Result, Tensor};

/// A loss that the sites of a pass make together: each adds its share, and it is computed from all of them at the end.
#[derive(Debug, Clone, Copy)]
pub struct JointLoss {
    /// Shares with the same name belong together.
    pub name: &'static str,
    pub coefficient: f32,
    /// The loss from the shares, each the tensors that a site added.
    pub finish: fn(&[Vec<Tensor>]) -> Result<Tensor>,
}

/// What a site added: a loss, times its coefficient, or its share in a joint one.
#[derive(Debug, Clone)]
pub(crate) struct Aux {
    pub values: Vec<Tensor>,
    pub joint: Option<JointLoss>,
}

/// The name of what sites say of their draws: log-probabilities, which are no loss.
pub(super) const DRAWS: &str = "log-probability of draws";

impl Aux {
    pub fn is_of_draws(&self) -> bool {
        self.joint.is_some_and(|joint| joint.name == DRAWS)
    }
}

/// The losses of all that was added, in the order in which their first shares were.
pub(super) fn finished(all: Vec<Aux>) -> Result<Vec<Tensor>> {
    let mut losses: Vec<Aux> = Vec::new();
    let mut shares: Vec<(JointLoss, Vec<Vec<Tensor>>)> = Vec::new();
    for aux in all {
        let Some(joint) = aux.joint else {
            losses.push(aux);
            continue;
        };
        match shares.iter_mut().find(|(other, _)| other.name == joint.name) {
            Some((_, shares)) => shares.push(aux.values),
            None => shares.push((joint, vec![aux.values])),
        }
    }
    let joint = shares.iter().map(|(joint, shares)| (joint.finish)(shares)?.scale(joint.coefficient));
    losses.into_iter().flat_map(|aux| aux.values).map(Ok).chain(joint).collect()
}
