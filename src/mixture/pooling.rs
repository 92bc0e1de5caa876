//! From a padded batch to routing units: which rows of an instance its router looks at.

use super::Units;
use crate::{Device, Error, Result, words};

words! {
    /// How the rows of an instance are pooled into its routing input.
    pub enum Pool {
        /// Mean over the positions before the first trained token; padding and the answer stay out.
        PromptMask = "prompt_mask",
        /// Mean over every position that the layer sees, padding and answer included (as released).
        All = "all",
        /// Mean over the real positions.
        Real = "real",
        /// The first position.
        Instr = "instr",
        /// The last prompt position.
        LastToken = "last_token",
        /// Mean over the prompt without the rows of its pictures.
        Text = "text",
        /// Mean over the rows of the prompt's pictures.
        Image = "image",
    }
}

/// One instance of a batch: how many positions are real, and how many of these come before the first trained one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub len: usize,
    pub prompt: usize,
}

/// What an adapter asks of the batches that it sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Framing {
    /// How instances are pooled for their routers; none where no router looks at instances.
    pub pool: Option<Pool>,
    /// Whether a place is kept in front of each sample, for a vector that the adapter has learned.
    pub front: bool,
}

impl Framing {
    /// Rows that stand before the first token of a sample: 0 or 1.
    pub fn rows_in_front(self) -> usize {
        usize::from(self.front)
    }
}

impl From<Option<Pool>> for Framing {
    fn from(pool: Option<Pool>) -> Self {
        Framing { pool, front: false }
    }
}

impl From<Pool> for Framing {
    fn from(pool: Pool) -> Self {
        Framing::from(Some(pool))
    }
}

impl Pool {
    /// Whether an instance needs a prompt to route on.
    pub fn needs_prompt(self) -> bool {
        matches!(self, Pool::PromptMask | Pool::LastToken | Pool::Text | Pool::Image)
    }

    /// Routing units of a batch padded on the right to `seq` rows per instance.
    ///
    /// # Errors
    /// A span does not fit, or an instance has no position to pool (its index is named).
    ///
    /// ```
    /// use mixlora::{Device, mixture::{Pool, Span}};
    /// let spans = [Span { len: 5, prompt: 3 }, Span { len: 4, prompt: 2 }];
    /// let units = Pool::PromptMask.units(&Device::cpu(), &spans, 6)?;
    /// assert_eq!((units.count(), units.rows()), (2, 12));
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    pub fn units(self, device: &Device, spans: &[Span], seq: usize) -> Result<Units> {
        self.units_with_pictures(device, spans, seq, &[])
    }

    /// The same where some rows are those of pictures: a flag for each row of the batch, or none where it has no pictures.
    /// A prompt without pictures, or of pictures alone, is pooled whole.
    ///
    /// # Errors
    /// As [`units`](Pool::units).
    pub fn units_with_pictures(
        self,
        device: &Device,
        spans: &[Span],
        seq: usize,
        pictures: &[bool],
    ) -> Result<Units> {
        let mut weight = vec![0.0f32; spans.len() * seq];
        for (i, (s, w)) in spans.iter().zip(weight.chunks_mut(seq.max(1))).enumerate() {
            let fail = |what: String| Err(Error::refused("pool", format!("instance {i}: {what}")));
            if s.len > seq || s.prompt > s.len {
                return fail(format!("{s:?} does not fit {seq} positions"));
            }
            let range = match self {
                Pool::PromptMask | Pool::Text | Pool::Image => 0..s.prompt,
                Pool::All => 0..seq,
                Pool::Real => 0..s.len,
                Pool::Instr => 0..1.min(s.len),
                Pool::LastToken => s.prompt.saturating_sub(1)..s.prompt,
            };
            if range.is_empty() {
                return fail(format!("no position to route on with pool {self:?}; use pool = \"real\""));
            }
            let picture = |row: &usize| pictures.get(i * seq + row).copied().unwrap_or(false);
            let wanted: Vec<usize> = match self {
                Pool::Text => range.clone().filter(|row| !picture(row)).collect(),
                Pool::Image => range.clone().filter(picture).collect(),
                _ => Vec::new(),
            };
            let rows = if wanted.is_empty() { range.collect() } else { wanted };
            let share = 1.0 / rows.len() as f32;
            rows.into_iter().for_each(|row| w[row] = share);
        }
        let starts: Vec<usize> = (0..=spans.len()).map(|i| i * seq).collect();
        Units::ranges(device, &starts, &weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;

    #[test]
    fn padding_and_answers_stay_out() {
        let cpu = Device::cpu();
        let spans = [Span { len: 3, prompt: 2 }, Span { len: 4, prompt: 1 }];
        let x = Tensor::from_f32(&cpu, &[8, 1], &[1., 2., 4., 8., 16., 32., 64., 128.]).unwrap();
        let pooled = |p: Pool| x.pool_rows(&p.units(&cpu, &spans, 4).unwrap()).unwrap().to_f32().unwrap();
        assert_eq!(pooled(Pool::PromptMask), [1.5, 16.0]);
        assert_eq!(pooled(Pool::All), [3.75, 60.0]);
        assert_eq!(pooled(Pool::Instr), [1.0, 16.0]);
        assert_eq!(pooled(Pool::LastToken), [2.0, 16.0]);
        let real = pooled(Pool::Real);
        assert!((real[0] - 7.0 / 3.0).abs() < 1e-6 && real[1] == 60.0);
        // Row 1 of the first instance is one of a picture; the second has none.
        let pictures = [false, true, false, false, false, false, false, false];
        let pooled = |p: Pool| {
            let units = p.units_with_pictures(&cpu, &spans, 4, &pictures).unwrap();
            x.pool_rows(&units).unwrap().to_f32().unwrap()
        };
        assert_eq!(pooled(Pool::PromptMask), [1.5, 16.0]);
        assert_eq!(pooled(Pool::Text), [1.0, 16.0]);
        assert_eq!(pooled(Pool::Image), [2.0, 16.0]);
        let none = [Span { len: 3, prompt: 0 }];
        assert!(Pool::PromptMask.units(&cpu, &none, 4).unwrap_err().to_string().contains("instance 0"));
    }
}
