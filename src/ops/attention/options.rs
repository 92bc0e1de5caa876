//! What a call of attention may ask for.

use crate::ops::activation::check_cap;
use crate::{Error, Result};

/// How the scores of [`Tensor::attention`](crate::Tensor::attention) are made and which of them count.
///
/// ```
/// use mixlora::ops::attention::AttentionOptions;
/// // A sliding layer of Gemma 2.
/// let sliding = AttentionOptions { window: Some(4096), softcap: Some(50.0), ..AttentionOptions::default() };
/// assert!(sliding.causal && sliding.scale.is_none());
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionOptions {
    /// Whether a query sees no key behind its own position. Default: true.
    pub causal: bool,
    /// Keys at distance 0 to window - 1 are seen, a query's own position included (Beltagy et al. 2020,
    /// arXiv:2004.05150). Default: none, every distance.
    pub window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)` before the mask (Gemma 2, arXiv:2408.00118). Default: none.
    pub softcap: Option<f32>,
    /// What products of q and k are multiplied by. Default: none, which is `1 / sqrt(D)`.
    pub scale: Option<f32>,
}

impl Default for AttentionOptions {
    fn default() -> Self {
        AttentionOptions { causal: true, window: None, softcap: None, scale: None }
    }
}

impl AttentionOptions {
    pub(super) fn check(&self) -> Result<()> {
        if self.window == Some(0) {
            let expected = "at least 1: a query sees itself; none sees all";
            return Err(Error::config("attention window", 0, expected));
        }
        self.softcap.map_or(Ok(()), |cap| check_cap("attention softcap", cap))?;
        if let Some(scale) = self.scale.filter(|scale| !scale.is_finite()) {
            return Err(Error::config("attention scale", scale, "a finite number"));
        }
        Ok(())
    }
}
