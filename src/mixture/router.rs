//! What a router is, and the protocol around its choices, written once for every kind of site.

use super::{Routes, Selection};
use crate::nn::{Param, Pass};
use crate::{Result, Tensor};

/// What a router is told besides its input.
pub struct Ask<'a> {
    pub pass: &'a Pass,
    /// Choices `[L, P, G, K]` to take instead of the best ones, or the mask `[M, L, E]` that a dense selection kept; gates
    /// are computed for them.
    pub forced: Option<&'a Tensor>,
}

/// Chooses factors for the linears of a site: how units are scored, which factors are selected, how they are gated.
///
/// [`decide`] freezes, forces, records and counts around it; a router does none of that.
pub trait Router: Send + Sync {
    /// Which rows choose together.
    const UNIT: Routes;
    /// Entries of the pool that it chooses from, and pool rows of each.
    fn pool(&self) -> (usize, usize);
    /// Whether it chooses: what does is recorded, forced and frozen. A router that only weighs all there is does not.
    fn chooses(&self) -> bool {
        Self::UNIT != Routes::None
    }
    /// Rows that A's pool has for each linear, where it has others than B's: choices of A are among them.
    fn rows_of_a(&self) -> Option<usize> {
        None
    }
    /// The choice for an input.
    ///
    /// # Errors
    /// The shapes do not fit, or forced choices are none of this pool.
    fn choose(&self, x: &Tensor, ask: &Ask<'_>) -> Result<Selection>;
    /// Its parameters, frozen ones included.
    fn params(&self) -> Vec<Param> {
        Vec::new()
    }
    /// Counts a choice in its statistics. Called once per choice; [`Pass::counts`] says whether it is to count.
    ///
    /// # Errors
    /// The device failed.
    fn count(&self, _choice: &Selection, _pass: &Pass) -> Result<()> {
        Ok(())
    }
    /// Called after each optimizer step: updates without a gradient, such as balancing biases.
    ///
    /// # Errors
    /// The device failed.
    fn after_step(&self) -> Result<()> {
        Ok(())
    }
}

/// The choice of a site in a pass: frozen, forced or free, and then recorded and counted.
///
/// # Errors
/// As [`Router::choose`]; choices are forced, but none is stored for the site.
pub fn decide<R: Router>(router: &R, site: &str, x: &Tensor, pass: &Pass) -> Result<Selection> {
    if !router.chooses() {
        return router.choose(x, &Ask { pass, forced: None });
    }
    if R::UNIT == Routes::Instance
        && let Some(kept) = pass.choices.frozen(site)
    {
        let (factors, block) = router.pool();
        let choice = Selection::new(kept.choice, kept.gates, &pass.units, factors, block)?;
        return match router.rows_of_a() {
            Some(rows) => choice.with_rows_of_a(rows),
            None => Ok(choice),
        };
    }
    let forced = pass.choices.forced(site)?;
    let choice = router.choose(x, &Ask { pass, forced: forced.as_ref() })?;
    pass.choices.keep(site, &choice);
    router.count(&choice, pass)?;
    Ok(choice)
}
