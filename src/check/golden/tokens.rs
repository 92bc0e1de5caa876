//! Files of kind `tokens`: strings and chats with their expected token ids.

use super::{Measured, Replay};
use crate::io::read_text;
use crate::text::{Message, ModelText, Role};
use crate::{Error, Result};
use serde::Deserialize;
use std::path::Path;

#[derive(Deserialize)]
struct Line {
    text: String,
    ids: Vec<u32>,
    decoded: Option<String>,
    messages: Option<Vec<Said>>,
    #[serde(default)]
    add_generation_prompt: bool,
}

#[derive(Deserialize)]
struct Said {
    role: String,
    content: String,
}

impl Line {
    fn holds(&self, model: &ModelText) -> Result<bool> {
        let mut holds = true;
        if let (Some(messages), Some(template)) = (&self.messages, &model.template) {
            let role = |name: &str| match name {
                "system" => Ok(Role::System),
                "user" => Ok(Role::User),
                "assistant" => Ok(Role::Assistant),
                other => Err(Error::refused("role", format!("'{other}' is unknown"))),
            };
            let messages = messages
                .iter()
                .map(|said| Ok(Message::new(role(&said.role)?, said.content.clone())))
                .collect::<Result<Vec<_>>>()?;
            holds &= model.tokenizer.render(template, &messages, self.add_generation_prompt)? == self.text;
        }
        holds &= model.tokenizer.encode(&self.text, true)? == self.ids;
        if let Some(decoded) = &self.decoded {
            holds &= model.tokenizer.decode(&self.ids, false) == *decoded;
        }
        Ok(holds)
    }
}

pub(super) fn replay(path: &Path, model: &ModelText) -> Result<Replay> {
    let text = read_text(path)?;
    let mut differ = 0;
    let mut total = 0;
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let in_line = |error: String| Error::file(path, format!("line {}: {error}", index + 1));
        let line: Line = serde_json::from_str(line).map_err(|error| in_line(error.to_string()))?;
        differ += usize::from(!line.holds(model).map_err(|error| in_line(error.to_string()))?);
        total += 1;
    }
    let errors =
        vec![Measured { name: format!("of {total} texts differing"), error: differ as f64, bound: 0.0 }];
    Ok(Replay { path: path.to_path_buf(), kind: "tokens".into(), errors, choices: total > 0 })
}
