//! Conditions: vectors beside the text of a sample, for methods that choose by them.

use super::Units;
use crate::nn::Pass;
use crate::{Error, Result, Tensor, options, words};

words! {
    /// What a condition is made of.
    pub enum ConditionKind {
        /// A text, which becomes the mean of the frozen model's last states over its tokens.
        Text = "text",
        /// The numbers themselves.
        Vector = "vector",
    }
}

options! {
    /// A condition of each sample.
    pub struct Conditioned {
        /// What a condition is: a text, of which the mean of the frozen model's last states is taken, or a vector. A run
        /// takes it from its data.
        condition: ConditionKind = ConditionKind::Text;
        /// Numbers of a condition; of texts as many as the model is wide. 0: a run takes it from its data.
        condition_width: usize = 0;
    }
}

impl Conditioned {
    /// Numbers of a condition, where they are known.
    ///
    /// # Errors
    /// They are not.
    pub fn width(&self) -> Result<usize> {
        match self.condition_width {
            0 => Err(Error::config("condition_width", 0, "at least 1; a run takes it from its data")),
            width => Ok(width),
        }
    }

    /// The conditions of a pass, `[B, condition_width]`.
    ///
    /// # Errors
    /// The pass has none, or of another width.
    pub fn of<'a>(&self, pass: &'a Pass) -> Result<&'a Tensor> {
        let Some(conditions) = &pass.labels.conditions else {
            let what =
                "the method chooses by a condition, and there is none: give each sample a field 'condition'";
            return Err(Error::refused("condition", what));
        };
        if conditions.shape().last() != self.width()? {
            let found = conditions.shape();
            return Err(Error::shape("condition", format!("{} numbers each", self.condition_width), found));
        }
        Ok(conditions)
    }

    /// The conditions of a pass over so many rows, and its samples as units, of which each has one.
    ///
    /// # Errors
    /// As [`of`](Conditioned::of), or the rows do not divide into the samples.
    pub fn units_of<'a>(&self, pass: &'a Pass, rows: usize) -> Result<(&'a Tensor, Units)> {
        let conditions = self.of(pass)?;
        let units = pass.units_of_samples(conditions.device(), conditions.shape().rows(), rows)?;
        Ok((conditions, units))
    }
}
