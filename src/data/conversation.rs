//! Encoding of conversations: which tokens of a rendered text are a turn of the assistant.

use super::encode::{Encoder, Explained};
use super::picture::Shown;
use super::turns::{Turns, overlapping};
use super::{Example, LossOn};
use crate::Error;
use crate::text::{Message, Piece, Role};
use std::ops::Range;

impl Encoder {
    /// A conversation; the turns listed in `untrained` are not trained.
    pub(super) fn conversation(
        &self,
        messages: &[Message],
        untrained: &[usize],
        shown: &[Shown],
    ) -> Explained<Example> {
        let template =
            self.template.as_ref().ok_or("the model has no chat template; name one, for example chatml")?;
        let all = self.options.loss_on == LossOn::All;
        let explain = |error: Error| error.to_string();
        let (text, generated) = if template.marks_generation() && !all {
            let marked =
                template.render_marked(messages, self.tokenizer.special_tokens()).map_err(explain)?;
            (marked.text, Some(marked.generated))
        } else {
            (self.tokenizer.render(template, messages, false).map_err(explain)?, None)
        };
        let expanded = self.expanded(&text, shown)?;
        let pieces = self.pieces(&expanded.text)?;
        let mut trained = vec![all; pieces.len()];
        if let Some(generated) = generated {
            let generated = generated.into_iter().map(|part| expanded.range_of(part)).collect();
            self.train_generated(messages, generated, untrained, &pieces, &mut trained)?;
        } else if !all || !untrained.is_empty() {
            // Turns are found in the text as the template writes it, with one mark for a picture.
            let own = if shown.is_empty() { None } else { Some(self.pieces(&text)?) };
            let turns = Turns {
                tokenizer: &self.tokenizer,
                template,
                messages,
                text: &text,
                pieces: own.as_ref().unwrap_or(&pieces),
                ends: &self.ends,
            };
            // With `all`, the turns that the sample excludes are cleared; otherwise the other turns are set.
            for (index, range) in
                turns.find()?.into_iter().filter(|(index, _)| untrained.contains(index) == all)
            {
                let turn = self.tokens_of_turn(index, expanded.range_of(range), &pieces)?;
                trained[turn].fill(!all);
            }
        }
        let ids = pieces.iter().map(|piece| piece.id).collect();
        let example = Example { ids, trained, ..Example::default() };
        self.placed(example, 0, &pieces, &expanded, shown)
    }

    /// Trains the ranges that the template marks; a turn may have several.
    fn train_generated(
        &self,
        messages: &[Message],
        generated: Vec<Range<usize>>,
        untrained: &[usize],
        pieces: &[Piece],
        trained: &mut [bool],
    ) -> Explained<()> {
        let turns: Vec<usize> =
            (0..messages.len()).filter(|&index| messages[index].role == Role::Assistant).collect();
        if generated.is_empty() && !turns.is_empty() {
            return Err(format!("the template marks 0 generated parts for {} assistant turns", turns.len()));
        }
        let parts = if generated.len() == turns.len() { generated } else { joined(generated) };
        if parts.len() == turns.len() {
            for (&i, part) in turns.iter().zip(parts).filter(|(i, _)| !untrained.contains(i)) {
                let turn = self.tokens_of_turn(i, part, pieces)?;
                trained[turn].fill(true);
            }
            return Ok(());
        }
        if !untrained.is_empty() {
            return Err(format!(
                "the template marks {} generated parts for {} assistant turns, so that those that are not to be trained \
                 cannot be told apart",
                parts.len(),
                turns.len()
            ));
        }
        let mut ended = false;
        for part in parts {
            let tokens = overlapping(pieces, &part);
            ended |= pieces[tokens.clone()].iter().any(|piece| self.ends.contains(&piece.id));
            trained[tokens].fill(true);
        }
        if ended || self.options.allow_untrained_eos {
            return Ok(());
        }
        Err(format!(
            "no end token is trained in what the template marks as generated, so that the model would never learn to \
             stop; end tokens of this vocabulary: {}",
            self.known_ends()
        ))
    }

    fn known_ends(&self) -> String {
        let known: Vec<String> = self.ends.iter().filter_map(|&id| self.tokenizer.token(id)).collect();
        if known.is_empty() { "none".into() } else { known.join(" ") }
    }

    /// The tokens of a turn up to its last end token; what the template puts behind that is not the model's to say.
    fn tokens_of_turn(&self, i: usize, range: Range<usize>, pieces: &[Piece]) -> Explained<Range<usize>> {
        let turn = overlapping(pieces, &range);
        let end = pieces[turn.clone()].iter().rposition(|piece| self.ends.contains(&piece.id));
        let stop = match end {
            Some(end) => turn.start + end + 1,
            None if self.options.allow_untrained_eos => turn.end,
            None => {
                return Err(format!(
                    "messages[{i}]: no end token is trained in this assistant turn, so that the model would never \
                     learn to stop; end tokens of this vocabulary: {}",
                    self.known_ends()
                ));
            }
        };
        Ok(turn.start..stop)
    }
}

/// Joins adjacent ranges.
fn joined(parts: Vec<Range<usize>>) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = Vec::with_capacity(parts.len());
    for part in parts {
        match out.last_mut() {
            Some(last) if last.end == part.start => last.end = part.end,
            _ => out.push(part),
        }
    }
    out
}
