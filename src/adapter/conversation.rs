//! How the passes of a conversation route: its prompt, and what comes behind.

use super::Adapter;
use crate::mixture::{DecodeRoute, Pool, Span, Units};
use crate::model::{Generation, Model};
use crate::nn::{Choices, Pass, SiteAdapters};
use crate::{Device, Result};
use std::sync::Arc;

/// Sequences of one length that a model continues, with the adapter's routing: a conversation, or a batch of prompts.
///
/// The first tokens are the prompt: instance-routed methods choose on them as in training, where only the positions
/// before the answer are looked at. What comes behind keeps that choice or is routed anew, as `decode_route` says.
/// Methods that choose per token are not concerned.
pub struct Conversation {
    generation: Generation,
    adapters: Option<Arc<SiteAdapters>>,
    pool: Pool,
    route: DecodeRoute,
    rows: usize,
    /// What the prompt chose.
    choices: Choices,
    /// Whether the prompt has chosen.
    chosen: bool,
    /// Units of the rows before, which are mostly those of the next ones.
    units: Option<Units>,
}

impl Conversation {
    /// Sequences without a token yet, of a model with or without an adapter; `route` instead of the adapter's own.
    pub fn new(
        model: &Arc<Model>,
        adapter: Option<&Adapter>,
        route: Option<DecodeRoute>,
        rows: usize,
    ) -> Self {
        // Methods that do not route by instance have no use for its units.
        let own = adapter.and_then(|a| a.method().options().instance());
        let own = own.map_or((Pool::Real, DecodeRoute::FreezePrefill), |i| (i.pool, i.decode_route));
        let generation = Generation::new(model, rows);
        Conversation {
            generation,
            adapters: adapter.map(|a| a.sites().clone()),
            pool: own.0,
            route: route.unwrap_or(own.1),
            rows,
            choices: Choices::record(),
            chosen: false,
            units: None,
        }
    }

    /// Runs tokens `[rows, n]` behind those before.
    ///
    /// # Errors
    /// As [`Generation::push`]; what could not be pushed has changed nothing where it is refused before it is run.
    pub fn push(&mut self, tokens: &[u32]) -> Result<()> {
        self.generation.check(tokens)?;
        let choices = match (self.chosen, self.route) {
            (false, _) => self.choices.clone(),
            (true, DecodeRoute::FreezePrefill) => self.choices.freeze(),
            (true, DecodeRoute::PerStep) => Choices::Free,
        };
        let units = self.units(tokens.len() / self.rows)?;
        let pass = Pass::new(units).with_choices(choices).with_adapters(self.adapters.clone());
        self.generation.push(tokens, &pass)?;
        self.chosen = true;
        Ok(())
    }

    /// Units of `n` new positions of each sequence.
    fn units(&mut self, n: usize) -> Result<Units> {
        if let Some(units) = self.units.as_ref().filter(|u| u.rows() == n * self.rows) {
            return Ok(units.clone());
        }
        let spans = vec![Span { len: n, prompt: n }; self.rows];
        let units = self.pool.units(self.device(), &spans, n)?;
        self.units = Some(units.clone());
        Ok(units)
    }

    /// Forgets all tokens, to read them again in another way: what the prompt chose stays.
    pub fn restart(&mut self) {
        self.generation.restart();
    }

    fn device(&self) -> &Device {
        self.generation.device()
    }
    /// Logits of the next token of a sequence.
    pub fn logits(&self, row: usize) -> &[f32] {
        self.generation.logits(row)
    }
    /// Positions so far.
    pub fn len(&self) -> usize {
        self.generation.len()
    }
    /// True before the first tokens.
    pub fn is_empty(&self) -> bool {
        self.generation.is_empty()
    }
    /// Positions that are left.
    pub fn room(&self) -> usize {
        self.generation.room()
    }
    /// What the prompt chose, site by site.
    pub fn choices(&self) -> &Choices {
        &self.choices
    }
}
