//! From stored pictures and messages to what a model reads: pixels, rendered texts, tokens.

use super::model::Samples;
use crate::io::Checkpoint;
use crate::model::vision::VisionPlace;
use crate::model::{LoadOptions, Model};
use crate::picture::{Limits, PictureFile};
use crate::text::{Message, ModelText, PICTURE, Role, Seen, Sight};
use crate::{Error, Result, Stream};
use serde::Deserialize;
use std::path::Path;

#[derive(Deserialize)]
struct StoredMessage {
    role: String,
    content: Vec<Part>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Part {
    Image,
    Text { text: String },
}

impl StoredMessage {
    fn message(&self) -> Message {
        let role = if self.role == Role::Assistant.name() { Role::Assistant } else { Role::User };
        let text = |part: &Part| match part {
            Part::Image => PICTURE.to_string(),
            Part::Text { text } => text.clone(),
        };
        let pictures = self.content.iter().filter(|part| matches!(part, Part::Image)).count();
        Message { role, content: self.content.iter().map(text).collect(), pictures }
    }
}

/// Compares every sample; the names of what differs.
pub(super) fn differences(
    file: &Checkpoint,
    dir: &Path,
    model: &Model,
    samples: &Samples,
) -> Result<Vec<String>> {
    let text = ModelText::from_folder(dir)?;
    let place = VisionPlace::Model(dir.to_path_buf());
    let options = &LoadOptions::default();
    let sight = Sight::open(&place, model, &text.tokenizer, options, false, Stream::new(0))?;
    let sight = sight.ok_or_else(|| Error::file(dir, "has no vision part"))?;
    let template = text.template.as_ref().ok_or_else(|| Error::file(dir, "has no chat template"))?;
    let parse = |error: serde_json::Error| Error::file(file.path(), format!("metadata: {error}"));
    let conversations: Vec<Vec<StoredMessage>> =
        serde_json::from_str(file.metadata("messages")?).map_err(parse)?;
    let texts: Vec<String> = serde_json::from_str(file.metadata("texts")?).map_err(parse)?;
    let pixels = file.values_f32("pixel_values")?;
    let mut differ = Vec::new();
    let mut at = 0;
    let mut note = |same: bool, what: String| differ.extend((!same).then_some(what));
    let [_, s] = samples.dims;
    for (i, (conversation, want)) in conversations.iter().zip(&texts).enumerate() {
        let messages: Vec<Message> = conversation.iter().map(StoredMessage::message).collect();
        let mut pictures: Vec<Seen> = Vec::new();
        for k in 0..messages.iter().map(|message| message.pictures).sum() {
            let name = format!("image.{i}.{k}");
            let bytes = file.tensor_bytes(&name)?.to_vec();
            let picture =
                PictureFile::from_bytes(&name, bytes, &Limits::default())?.decode(sight.processor.alpha)?;
            let seen = sight.look(&picture.picture)?;
            note(pixels.get(at..at + seen.values.len()) == Some(&seen.values), format!("pixels of {name}"));
            at += seen.values.len();
            pictures.push(seen);
        }
        let rendered = text.tokenizer.render(template, &messages, false)?;
        note(rendered == *want, format!("text {i}: {rendered:?}"));
        let ids = text.tokenizer.encode(&sight.expand(&rendered, &pictures)?, true)?;
        let stored = &samples.ids[i * s..][..samples.length(i)];
        note(ids == stored, format!("tokens of text {i}: {ids:?}"));
    }
    Ok(differ)
}
