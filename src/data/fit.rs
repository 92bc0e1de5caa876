//! What is cut of an example that is too long.

use super::Example;
use super::encode::{Encoder, Explained};
use super::picture::Shown;
use crate::text::{Message, Role};
use std::ops::Range;

impl Encoder {
    /// Cuts an example to the largest length: first after the last trained token, then at the start, so that the end of
    /// the answer is kept. A start token stays first. Pictures and the answer behind them are never cut: an example that
    /// is too long for them stays so.
    pub(super) fn fit(&self, mut example: Example) -> (Example, bool) {
        let max = self.options.max_length;
        if example.ids.len() <= max {
            return (example, false);
        }
        let trained = example.trained.iter().rposition(|trained| *trained);
        let end = trained.map_or(example.ids.len(), |last| last + 1);
        let end = end.max(example.pictures.last().map_or(0, |picture| picture.span.end)).max(max);
        example.ids.truncate(end);
        example.trained.truncate(end);
        let start = usize::from(example.ids.first().is_some_and(|id| Some(*id) == self.tokenizer.bos()));
        if example.pictures.is_empty() {
            example.ids.drain(start..start + end - max);
            example.trained.drain(start..start + end - max);
        } else {
            cut_around_pictures(&mut example, start, end - max);
        }
        (example, true)
    }

    /// A conversation with pictures, without as many of its first exchanges as it takes to fit. Those with pictures stay,
    /// and so does the last one. The flag says that some are missing.
    pub(super) fn within_length(
        &self,
        messages: &[Message],
        untrained: &[usize],
        shown: &[Shown],
    ) -> Explained<(Example, bool)> {
        let fits = |example: &Example| {
            let trained = example.trained.iter().rposition(|trained| *trained);
            trained.map_or(example.ids.len(), |last| last + 1) <= self.options.max_length
        };
        let without = |count: usize, spare: &[Range<usize>]| {
            let left: Vec<usize> = (0..messages.len())
                .filter(|at| !spare[..count].iter().any(|exchange| exchange.contains(at)))
                .collect();
            let kept: Vec<Message> = left.iter().map(|&at| messages[at].clone()).collect();
            let excluded: Vec<usize> = (0..left.len()).filter(|&at| untrained.contains(&left[at])).collect();
            self.conversation(&kept, &excluded, shown)
        };
        let whole = self.conversation(messages, untrained, shown)?;
        let spare = spare_exchanges(messages);
        if fits(&whole) || spare.is_empty() {
            return Ok((whole, false));
        }
        // The fewest that are enough, else all of them.
        let mut few = 1;
        let mut many = spare.len();
        while few < many {
            let middle = (few + many) / 2;
            if fits(&without(middle, &spare)?) { many = middle } else { few = middle + 1 }
        }
        Ok((without(few, &spare)?, true))
    }
}

/// The messages from each of the user's to the next, but for the last exchange and those with pictures.
fn spare_exchanges(messages: &[Message]) -> Vec<Range<usize>> {
    let asks =
        |at: &usize| messages[*at].role == Role::User && (*at == 0 || messages[*at - 1].role != Role::User);
    let starts: Vec<usize> = (0..messages.len()).filter(asks).collect();
    let exchanges = starts.windows(2).map(|pair| pair[0]..pair[1]);
    exchanges.filter(|exchange| messages[exchange.clone()].iter().all(|m| m.pictures == 0)).collect()
}

/// Removes tokens from a place on: text before the last answer, outside the spans of pictures.
fn cut_around_pictures(example: &mut Example, start: usize, count: usize) {
    let last = example.trained.iter().rposition(|trained| *trained).unwrap_or(example.ids.len());
    let answer = example.trained[..last].iter().rposition(|trained| !*trained).map_or(0, |at| at + 1);
    let is_text = |at: &usize| !example.pictures.iter().any(|picture| picture.span.contains(at));
    let cut: Vec<usize> = (start..answer.max(start)).filter(is_text).take(count).collect();
    let stays = |at: usize| cut.binary_search(&at).is_err();
    let left: Vec<usize> = (0..example.ids.len()).filter(|&at| stays(at)).collect();
    for picture in &mut example.pictures {
        let before = cut.partition_point(|&at| at < picture.span.start);
        picture.span = picture.span.start - before..picture.span.end - before;
    }
    example.ids = left.iter().map(|&at| example.ids[at]).collect();
    example.trained = left.iter().map(|&at| example.trained[at]).collect();
}
