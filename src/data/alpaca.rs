//! Samples with `instruction`, `input` and `output`, as Alpaca and LLaMA-Factory write them.

use super::message::{Text, Turn, Turns};
use crate::text::Role;

/// What such a sample says.
#[derive(Default)]
pub(super) struct Alpaca {
    pub instruction: Option<Text>,
    /// What the instruction is about; empty in many samples.
    pub input: Option<Text>,
    pub output: Option<Text>,
    /// Earlier questions with their answers.
    pub history: Option<Vec<(Text, Text)>>,
}

impl Alpaca {
    /// Names of the keys that are there.
    pub fn keys(&self) -> impl Iterator<Item = String> {
        let there = [
            ("instruction", self.instruction.is_some()),
            ("input", self.input.is_some()),
            ("output", self.output.is_some()),
            ("history", self.history.is_some()),
        ];
        there.into_iter().filter(|(_, there)| *there).map(|(key, _)| key.to_string())
    }

    /// A conversation: the earlier exchanges, then the instruction with its input in a line below as the user's turn.
    pub fn turns(self) -> Result<Turns, String> {
        let Text(mut question) = self.instruction.ok_or("field 'instruction' is missing")?;
        let Text(answer) = self.output.ok_or("field 'output' is missing beside 'instruction'")?;
        if let Some(Text(input)) = self.input.filter(|input| !input.0.is_empty()) {
            if !question.is_empty() {
                question.push('\n');
            }
            question += &input;
        }
        let earlier = self.history.into_iter().flatten().map(|(question, answer)| (question.0, answer.0));
        let exchanges = earlier.chain([(question, answer)]);
        let turns = exchanges.flat_map(|(question, answer)| {
            [Turn::plain(Role::User, question), Turn::plain(Role::Assistant, answer)]
        });
        Ok(Turns(turns.collect()))
    }
}
