//! Adapters that act together on one model.

use super::Adapter;
use crate::mixture::Framing;
use crate::{Error, Result};

/// Adapters of one model that act together, each with a scale: at every site
/// `y = base(x) + sum_i s_i (f_i(x) - base(x))`, where `f_i` is the site with adapter i alone. One adapter with a scale
/// of 1 is used as it is; more cost the base product of a site once more each.
///
/// ```
/// # use mixlora::{Device, Stream, adapter::{Adapter, Bank, Conversation}, mixture::find, model::Model};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/models/qwen3-b");
/// let model = Model::open(path.as_ref(), &Device::cpu())?;
/// let lora = find("lora")?.defaults().with("r", 4)?;
/// let adapter = |seed| Adapter::attach(&model, &lora, &["all-linear".into()], Stream::new(seed));
/// let bank = Bank::from(adapter(1)?).with(adapter(2)?, 0.5)?;
/// let mut conversation = Conversation::new(&model, bank, 1);
/// conversation.push(&[4, 8, 15])?;
/// # Ok::<(), mixlora::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Bank(Vec<(Adapter, f32)>);

impl Bank {
    /// The same with one more adapter, whose update is scaled. Adding two adapters is not adding their weights' ranks:
    /// each routes on its own.
    ///
    /// # Errors
    /// The scale is not a finite number, or one of several adapters puts a vector in front of each sample, which the others
    /// have not learned to read.
    pub fn with(mut self, adapter: Adapter, scale: f32) -> Result<Self> {
        if !scale.is_finite() {
            return Err(Error::config("scale", scale, "a finite number"));
        }
        self.0.push((adapter, scale));
        if self.0.len() > 1 && self.framing().front {
            let what = "one of the adapters puts a learned vector in front of each sample, which all would see: it acts \
                        alone only";
            return Err(Error::refused("adapter", what));
        }
        Ok(self)
    }

    /// The adapters with their scales, in order.
    pub fn adapters(&self) -> &[(Adapter, f32)] {
        &self.0
    }

    /// Whether it is the frozen model alone.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an adapter chooses by a condition beside the text.
    pub fn chooses_by_condition(&self) -> bool {
        self.0.iter().any(|(adapter, _)| adapter.method().options().condition().is_some())
    }

    /// What they ask of batches: instances are pooled as the first adapter that chooses by instance says.
    pub fn framing(&self) -> Framing {
        let each = || self.0.iter().map(|(adapter, _)| adapter.method().framing());
        Framing { pool: each().find_map(|f| f.pool), front: each().any(|f| f.front) }
    }
}

impl From<Adapter> for Bank {
    fn from(adapter: Adapter) -> Self {
        Bank(vec![(adapter, 1.0)])
    }
}

impl From<&Adapter> for Bank {
    fn from(adapter: &Adapter) -> Self {
        Bank::from(adapter.clone())
    }
}

impl From<Option<&Adapter>> for Bank {
    fn from(adapter: Option<&Adapter>) -> Self {
        adapter.map_or_else(Bank::default, Bank::from)
    }
}

impl From<&Bank> for Bank {
    fn from(bank: &Bank) -> Self {
        bank.clone()
    }
}
