//! Modelfiles: what Ollama is told of a GGUF file.

use super::{Message, ModelText, Role};
use crate::Result;
use std::fmt::Write;

/// A form of conversations in which each turn is written alike but for its role and its text.
struct Form {
    /// Before the role, between it and the text, and behind that.
    turn: [&'static str; 3],
    /// What the model's own role is called.
    assistant: &'static str,
}

const FORMS: [Form; 3] = [
    Form { turn: ["<|im_start|>", "\n", "<|im_end|>\n"], assistant: "assistant" },
    Form { turn: ["<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"], assistant: "assistant" },
    Form { turn: ["<start_of_turn>", "\n", "<end_of_turn>\n"], assistant: "model" },
];

impl Form {
    /// A conversation up to the start of the model's answer.
    fn render(&self, turns: &[(&str, &str)]) -> String {
        let [start, middle, end] = self.turn;
        let turn = |(role, text): &(&str, &str)| {
            let role = if *role == "assistant" { self.assistant } else { role };
            format!("{start}{role}{middle}{text}{end}")
        };
        turns.iter().map(turn).collect::<String>() + &format!("{start}{}{middle}", self.assistant)
    }

    /// The system text that a conversation begins with, or none; nothing where it is of another form.
    fn system(&self, text: &str, turns: &[(&str, &str)]) -> Option<Option<String>> {
        let [start, middle, end] = self.turn;
        let before = text.strip_suffix(&self.render(turns))?;
        if before.is_empty() {
            return Some(None);
        }
        let system = before.strip_prefix(&format!("{start}system{middle}"))?.strip_suffix(end)?;
        (!system.contains("\"\"\"")).then(|| Some(system.to_string()))
    }

    /// The same as a template of Go.
    fn template(&self) -> String {
        let [start, middle, end] = self.turn;
        let role = if self.assistant == "assistant" {
            "{{ .Role }}".to_string()
        } else {
            format!(
                "{{{{ if eq .Role \"assistant\" }}}}{}{{{{ else }}}}{{{{ .Role }}}}{{{{ end }}}}",
                self.assistant
            )
        };
        format!(
            "{{{{- range .Messages }}}}{start}{role}{middle}{{{{ .Content }}}}{end}{{{{ end }}}}{start}{}{middle}",
            self.assistant
        )
    }
}

impl ModelText {
    /// A Modelfile for Ollama: the file, the form of conversations where it is one of those that are known (else Ollama looks
    /// for it in the file), the system text that the chat template writes where there is none, and the tokens that end an
    /// answer.
    ///
    /// # Errors
    /// The chat template refuses a conversation.
    pub fn modelfile(&self, file: &str) -> Result<String> {
        let mut out = format!("FROM {file}\n");
        if let Some((form, system)) = self.form()? {
            // Writing to a string does not fail.
            let _ = writeln!(out, "TEMPLATE \"\"\"{}\"\"\"", form.template());
            if let Some(system) = system {
                let _ = writeln!(out, "SYSTEM \"\"\"{system}\"\"\"");
            }
        }
        for end in self.tokenizer.end_tokens() {
            if let Some(token) = self.tokenizer.token(end) {
                let _ = writeln!(out, "PARAMETER stop \"{token}\"");
            }
        }
        Ok(out)
    }

    /// The form that the template writes, and the system text that it adds.
    fn form(&self) -> Result<Option<(&'static Form, Option<String>)>> {
        if self.template.is_none() {
            return Ok(None);
        }
        let turns = [("user", "one"), ("assistant", "two"), ("user", "three")];
        let message = |&(role, text): &(&str, &str)| {
            Message::new(if role == "user" { Role::User } else { Role::Assistant }, text)
        };
        let rendered = self.prompt(&turns.iter().map(message).collect::<Vec<_>>())?;
        let bos = self.tokenizer.bos().and_then(|id| self.tokenizer.token(id)).unwrap_or_default();
        // Ollama writes the start token itself, which may also be how turns begin.
        let without = rendered.strip_prefix(&bos).unwrap_or(&rendered);
        let found = FORMS.iter().flat_map(|form| [(form, rendered.as_str()), (form, without)]);
        let mut found = found.filter_map(|(form, text)| Some((form, form.system(text, &turns)?)));
        Ok(found.next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_of_go_say_what_is_rendered() {
        let [chatml, _, gemma] = &FORMS;
        assert_eq!(
            chatml.template(),
            "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
        );
        assert!(
            gemma.template().contains("{{ if eq .Role \"assistant\" }}model{{ else }}{{ .Role }}{{ end }}")
        );
        let turns = [("user", "Hi"), ("assistant", "Yes")];
        let plain = chatml.render(&turns);
        assert_eq!(chatml.system(&plain, &turns), Some(None));
        let with_system = format!("<|im_start|>system\nBe kind.<|im_end|>\n{plain}");
        assert_eq!(chatml.system(&with_system, &turns), Some(Some("Be kind.".into())));
        assert_eq!(gemma.system(&plain, &turns), None);
        let text = gemma.render(&[("user", "Hi"), ("assistant", "Yes")]);
        assert_eq!(
            text,
            "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nYes<end_of_turn>\n<start_of_turn>model\n"
        );
    }
}
