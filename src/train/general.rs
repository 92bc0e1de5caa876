//! General prompts, and what the base model says to them.

use super::Forgotten;
use super::answers::greedy;
use super::forced::{likeliest, log_sum_exp, look};
use crate::adapter::{Bank, Conversation};
use crate::data::{Batch, Body, Encoder, Example, Sample};
use crate::model::Model;
use crate::text::{Message, ModelText, Role};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Questions and requests of everyday, one a line.
const PROMPTS: &str = include_str!("../../data/general/prompts.txt");
/// Tokens of an answer, at most.
const MOST: usize = 24;
/// Prompts that go through the model together.
const TOGETHER: usize = 8;

/// General prompts with the answers of a base model.
pub struct GeneralPrompts {
    examples: Vec<Example>,
    pad: u32,
}

impl GeneralPrompts {
    /// Asks a base model, as the user of a chat where it has a template.
    ///
    /// # Errors
    /// A prompt cannot be encoded, or the device failed.
    pub fn new(model: &Arc<Model>, text: &ModelText, encoder: &Encoder) -> Result<Self> {
        let mut by_length: BTreeMap<usize, Vec<Vec<u32>>> = BTreeMap::new();
        for (i, prompt) in PROMPTS.lines().enumerate() {
            let body = match text.template {
                Some(_) => {
                    Body::Messages(vec![Message::new(Role::User, prompt), Message::new(Role::Assistant, "")])
                }
                None => Body::Completion { prompt: prompt.into(), completion: String::new() },
            };
            let Some(asked) = encoder.asked(text, &Sample::new(i + 1, None, body))? else { continue };
            by_length.entry(asked.prompt.ids.len()).or_default().push(asked.prompt.ids);
        }
        let mut examples = Vec::new();
        for prompts in by_length.values().flat_map(|prompts| prompts.chunks(TOGETHER)) {
            let mut conversation = Conversation::new(model, Bank::default(), prompts.len());
            conversation.push(&prompts.concat())?;
            let answers = greedy(&mut conversation, prompts.len(), MOST, &text.tokenizer.end_tokens())?;
            for (prompt, answer) in prompts.iter().zip(answers).filter(|(_, answer)| !answer.is_empty()) {
                let trained = [vec![false; prompt.len()], vec![true; answer.len()]].concat();
                examples.push(Example::new([prompt.as_slice(), &answer].concat(), trained));
            }
        }
        if examples.is_empty() {
            return Err(Error::refused("model", "answers no general prompt"));
        }
        Ok(GeneralPrompts { examples, pad: text.tokenizer.pad_within(model.config().vocab_size) })
    }

    /// Compares a model with adapters with itself without.
    ///
    /// # Errors
    /// The device failed.
    pub fn forgotten(&self, model: &Model, adapters: impl Into<Bank>) -> Result<Forgotten> {
        let bank = adapters.into();
        let (mut kl, mut tokens, mut unchanged) = (0.0, 0, 0);
        for examples in self.examples.chunks(TOGETHER) {
            let examples: Vec<&Example> = examples.iter().collect();
            let batch = |bank: &Bank| Batch::new(&examples, bank.framing(), self.pad, model.device());
            let rows = |batch: &Batch| -> Result<Vec<usize>> {
                let targets = batch.targets.to_u32()?;
                Ok((0..targets.len()).filter(|&row| targets[row] != u32::MAX).collect())
            };
            let plain = Bank::default();
            let of_base = batch(&plain)?;
            let base = look(model, &plain, &of_base, &rows(&of_base)?, |_, logits| logits.to_vec())?;
            let adapted = batch(&bank)?;
            let at = rows(&adapted)?;
            let compared = look(model, &bank, &adapted, &at, |i, logits| {
                (divergence(&base[i], logits), likeliest(&base[i]) == likeliest(logits))
            })?;
            let length = adapted.targets.len() / examples.len();
            let mut same = vec![true; examples.len()];
            for (row, (distance, equal)) in at.iter().zip(&compared) {
                kl += distance;
                same[row / length] &= equal;
            }
            tokens += at.len();
            unchanged += same.iter().filter(|same| **same).count();
        }
        let prompts = self.examples.len();
        Ok(Forgotten { prompts, kl: kl / tokens.max(1) as f64, unchanged: unchanged as f64 / prompts as f64 })
    }
}

/// `KL(p || q)` of two distributions by their logits, in nats.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (of_p, of_q) = (log_sum_exp(p), log_sum_exp(q));
    let term = |(p, q): (&f32, &f32)| {
        let log_p = f64::from(*p) - of_p;
        log_p.exp() * (log_p - f64::from(*q) + of_q)
    };
    // Rounding may leave a little below 0.
    p.iter().zip(q).map(term).sum::<f64>().max(0.0)
}
