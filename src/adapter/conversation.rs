//! How the passes of a conversation route: its prompt, and what comes behind.

use super::Adapter;
use crate::mixture::{DecodeRoute, Pool, Span};
use crate::model::{Generation, Llama};
use crate::nn::{Choices, Pass};
use crate::{Device, Result};

/// Sequences of one length that a model continues, with the adapter's routing: a conversation, or a batch of prompts.
///
/// The first tokens are the prompt: instance-routed methods choose on them as in training, where only the positions
/// before the answer are looked at. What comes behind keeps that choice or is routed anew, as `decode_route` says.
/// Methods that choose per token are not concerned.
pub struct Conversation<'a> {
    generation: Generation<'a>,
    pool: Pool,
    route: DecodeRoute,
    rows: usize,
    /// What the prompt chose.
    choices: Choices,
}

impl<'a> Conversation<'a> {
    /// Sequences without a token yet, of a model with or without an adapter; `route` instead of the adapter's own.
    pub fn new(model: &'a Llama, adapter: Option<&Adapter>, route: Option<DecodeRoute>, rows: usize) -> Self {
        let own = adapter.map_or((Pool::Real, DecodeRoute::FreezePrefill), |a| {
            let c = a.config();
            (c.pool, c.decode_route)
        });
        let generation = Generation::new(model, rows);
        Conversation {
            generation,
            pool: own.0,
            route: route.unwrap_or(own.1),
            rows,
            choices: Choices::record(),
        }
    }

    /// Runs tokens `[rows, n]` behind those before.
    ///
    /// # Errors
    /// There are none, or the context is full.
    pub fn push(&mut self, tokens: &[u32]) -> Result<()> {
        let device = self.device().clone();
        let n = tokens.len() / self.rows.max(1);
        let spans = vec![Span { len: n, prompt: n }; self.rows];
        let units = self.pool.units(&device, &spans, n)?;
        let choices = match (self.generation.is_empty(), self.route) {
            (true, _) => self.choices.clone(),
            (false, DecodeRoute::FreezePrefill) => self.choices.freeze(),
            (false, DecodeRoute::PerStep) => Choices::Free,
        };
        self.generation.push(tokens, &Pass::new(units).with_choices(choices))
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
