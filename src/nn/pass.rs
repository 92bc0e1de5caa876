//! [`Pass`]: what one forward pass carries along besides its tensors.

use crate::ops::Units;
use crate::ops::slots::Dropout;
use crate::{Error, Result, Stream, Tensor};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// What to do with the choices of routers, site by site.
///
/// Recomputation under [`checkpoint`](crate::checkpoint), frozen routing in decoding, comparison with stored
/// choices and inspection are all this: record in one pass, force in another.
#[derive(Debug, Clone, Default)]
pub enum Choices {
    /// Routers choose; nothing is kept.
    #[default]
    Free,
    /// Routers choose, and the choices are kept by site.
    Record(Arc<Mutex<BTreeMap<String, Tensor>>>),
    /// Every site takes its kept choice.
    Force(Arc<Mutex<BTreeMap<String, Tensor>>>),
}

impl Choices {
    /// Starts a record.
    pub fn record() -> Self {
        Choices::Record(Arc::default())
    }
    /// Forces given choices: site to `idx [L, P, G, K]`. Indices that are too large are refused on host devices; on
    /// a GPU they are not read back, and give values without meaning.
    pub fn force(choices: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        Choices::Force(Arc::new(Mutex::new(choices.into_iter().collect())))
    }
    /// The same choices, forced.
    pub fn replay(&self) -> Self {
        match self {
            Choices::Record(map) | Choices::Force(map) => Choices::Force(map.clone()),
            Choices::Free => Choices::Free,
        }
    }
    /// The kept choice of a site.
    pub fn get(&self, site: &str) -> Option<Tensor> {
        match self {
            Choices::Free => None,
            Choices::Record(map) | Choices::Force(map) => {
                map.lock().unwrap_or_else(|e| e.into_inner()).get(site).cloned()
            }
        }
    }
    /// The choice that a site must take, if choices are forced.
    pub(crate) fn forced(&self, site: &str) -> Result<Option<Tensor>> {
        match self {
            Choices::Force(_) => match self.get(site) {
                Some(idx) => Ok(Some(idx)),
                None => Err(Error::config(site, "no choice is stored for this site, but choices are forced")),
            },
            _ => Ok(None),
        }
    }
    pub(crate) fn keep(&self, site: &str, idx: &Tensor) {
        if let Choices::Record(map) = self {
            map.lock().unwrap_or_else(|e| e.into_inner()).insert(site.to_string(), idx.clone());
        }
    }
}

/// One forward pass: routing units, randomness, choices, and the auxiliary losses that it collects.
#[derive(Debug, Clone)]
pub struct Pass {
    /// Routing units of methods that choose per instance. Methods that choose per token make their own.
    pub units: Units,
    /// Whether dropout acts and load statistics count. A pass with forced choices does not count: it repeats one.
    pub train: bool,
    /// Randomness of this pass: dropout draws from sub-streams named by site.
    pub stream: Stream,
    /// What happens to choices.
    pub choices: Choices,
    /// Tokens that count in balance statistics: 1 or 0 for each, `[M, 1]`, and how many are 1. All when absent.
    pub valid: Option<(Tensor, usize)>,
    aux: Arc<Mutex<Vec<Tensor>>>,
}

impl Pass {
    /// A pass for inference.
    pub fn new(units: Units) -> Self {
        let (train, choices, aux) = (false, Choices::Free, Arc::default());
        Pass { units, train, stream: Stream::new(0), choices, valid: None, aux }
    }
    /// A pass for training, with the randomness of this step.
    pub fn training(units: Units, stream: Stream) -> Self {
        Pass { train: true, stream, ..Pass::new(units) }
    }
    /// The same pass with other routing choices.
    pub fn with_choices(self, choices: Choices) -> Self {
        Pass { choices, ..self }
    }
    /// Dropout of an adapter's input in this pass, drawn by site; none outside of training.
    pub(crate) fn dropout(&self, site: &str, p: f32) -> Option<Dropout> {
        (self.train && p > 0.0).then(|| Dropout { stream: self.stream.named(site), p })
    }
    /// Whether load statistics count the choices of this pass.
    pub(crate) fn counts(&self) -> bool {
        self.train && !matches!(self.choices, Choices::Force(_))
    }
    pub(crate) fn add_aux(&self, loss: Tensor) {
        self.aux.lock().unwrap_or_else(|e| e.into_inner()).push(loss);
    }
    /// Takes the auxiliary losses collected so far: scalars, already times their coefficients.
    pub fn take_aux(&self) -> Vec<Tensor> {
        std::mem::take(&mut self.aux.lock().unwrap_or_else(|e| e.into_inner()))
    }
}
