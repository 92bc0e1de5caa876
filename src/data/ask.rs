//! Samples as questions: the prompt before their answer.

use super::encode::{Encoder, Fault};
use super::{Body, Example, OnBadImage, Sample};
use crate::text::{Message, ModelText, PICTURE, Role};
use crate::{Error, Result};

/// The prompt of a sample, and the answer that is wanted.
pub(crate) struct Asked {
    /// Its tokens, and where its pictures stand among them; nothing is trained.
    pub prompt: Example,
    /// What was asked, for people.
    pub shown: String,
    pub answer: String,
}

impl Encoder {
    /// The prompt before the answer of a sample: its completion, or the assistant's turn at its end. None where it has no
    /// such answer, or a picture that cannot be read where those are skipped.
    ///
    /// # Errors
    /// There is no template for a conversation, the template or the tokenizer fails on the sample, or a picture cannot be
    /// read; the line is named.
    pub(crate) fn asked(&self, text: &ModelText, sample: &Sample) -> Result<Option<Asked>> {
        let at = |what: String| Error::refused(format!("line {}", sample.line), what);
        let plain = matches!(sample.body, Body::Completion { .. });
        let (prompt, shown, answer) = match &sample.body {
            Body::Text(_) | Body::Document(_) => return Ok(None),
            Body::Completion { prompt, completion } => (prompt.clone(), prompt.clone(), completion),
            Body::Messages(messages) => match messages.split_last() {
                Some((last, before))
                    if last.role == Role::Assistant && !sample.untrained.contains(&before.len()) =>
                {
                    let prompt = text.prompt(before).map_err(|error| at(error.to_string()))?;
                    (prompt, said(before), &last.content)
                }
                _ => return Ok(None),
            },
        };
        match self.prompt(sample, &prompt, plain) {
            Ok(prompt) => Ok(Some(Asked { prompt, shown, answer: answer.clone() })),
            Err(Fault::Picture(_)) if self.options.on_bad_image == OnBadImage::Skip => Ok(None),
            Err(Fault::Sample(what) | Fault::Picture(what)) => Err(at(what)),
        }
    }

    /// The tokens of a prompt with the rows of its pictures; plain text has the tokens of a text's start.
    fn prompt(&self, sample: &Sample, prompt: &str, plain: bool) -> std::result::Result<Example, Fault> {
        let shown = self.show(sample)?;
        let whole = self.expanded(prompt, &shown)?;
        let ids = if plain {
            self.tokenizer.encode_start(&whole.text)
        } else {
            self.tokenizer.encode(&whole.text, true)
        };
        let ids = ids.map_err(|error| error.to_string())?;
        let trained = vec![false; ids.len()];
        let example = Example::new(ids, trained).with_task(sample.task.as_deref());
        if shown.is_empty() {
            return Ok(example);
        }
        let pieces = self.pieces(&whole.text)?;
        let before = example.ids.len() - pieces.len();
        Ok(self.placed(example, before, &pieces, &whole, &shown)?)
    }
}

/// The last thing that the user said, without the places of pictures.
fn said(messages: &[Message]) -> String {
    messages
        .iter()
        .rfind(|m| m.role == Role::User)
        .map_or_else(String::new, |m| m.content.replace(PICTURE, ""))
}
