//! Shapes of questions: which keys they have, and how a question is put, as lm-evaluation-harness puts it.

use super::MultipleChoice;
use super::object::{Choices, Object, Word};
use crate::words;

words! {
    /// The keys of questions with answers to choose from.
    pub enum ChoiceShape {
        /// `question`, `choices` with `text` and `label`, `answerKey`.
        Arc = "arc",
        /// `passage`, `question`, and `answer` as true or false.
        BoolQ = "boolq",
        /// `ctx_a` and `ctx_b` or `ctx`, `activity_label`, `endings`, `label`.
        HellaSwag = "hellaswag",
        /// `question`, `choices`, `answer`, and perhaps `subject`.
        Mmlu = "mmlu",
        /// `prompt`, `choices`, and `answer` as an index.
        Plain = "plain",
    }
}

impl ChoiceShape {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            ChoiceShape::Arc => "ARC",
            ChoiceShape::BoolQ => "BoolQ",
            ChoiceShape::HellaSwag => "HellaSwag",
            ChoiceShape::Mmlu => "MMLU",
            ChoiceShape::Plain => "prompt and choices",
        }
    }

    /// Its keys.
    fn keys(self) -> &'static str {
        match self {
            ChoiceShape::Arc => "question, choices with text and label, answerKey",
            ChoiceShape::BoolQ => "passage, question, answer",
            ChoiceShape::HellaSwag => "ctx_a and ctx_b or ctx, activity_label, endings, label",
            ChoiceShape::Mmlu => "question, choices, answer",
            ChoiceShape::Plain => "prompt, choices, answer",
        }
    }
}

/// A question that has its texts and no place yet.
fn unplaced(prompt: String, choices: Vec<String>, answer: usize) -> MultipleChoice {
    let spaced = true;
    MultipleChoice {
        line: 0,
        element: None,
        task: None,
        system: String::new(),
        prompt,
        choices,
        answer,
        spaced,
    }
}

impl Object {
    /// The shape that its keys are of.
    pub fn shape(&self) -> Result<ChoiceShape, String> {
        match (&self.choices, self.prompt.is_some()) {
            _ if self.endings.is_some() => Ok(ChoiceShape::HellaSwag),
            (Some(Choices::Labelled { .. }), _) => Ok(ChoiceShape::Arc),
            (Some(Choices::List(_)), true) => Ok(ChoiceShape::Plain),
            (Some(Choices::List(_)), false) => Ok(ChoiceShape::Mmlu),
            (None, _) if self.passage.is_some() => Ok(ChoiceShape::BoolQ),
            (None, _) => {
                let known = ["arc", "boolq", "hellaswag", "mmlu", "plain"];
                let known = known.iter().filter_map(|word| word.parse::<ChoiceShape>().ok());
                let known: Vec<_> =
                    known.map(|shape| format!("{} ({})", shape.name(), shape.keys())).collect();
                Err(format!("has no answers to choose from; known are {}", known.join(", ")))
            }
        }
    }

    /// The question of a shape.
    pub fn question(self, shape: ChoiceShape) -> Result<MultipleChoice, String> {
        let task = self.task.clone();
        let question = match shape {
            ChoiceShape::Arc => self.arc(),
            ChoiceShape::BoolQ => self.boolq(),
            ChoiceShape::HellaSwag => self.hellaswag(),
            ChoiceShape::Mmlu => self.mmlu(),
            ChoiceShape::Plain => self.plain(),
        }?;
        if question.prompt.trim().is_empty() {
            return Err("the prompt is empty: there is nothing that an answer could follow".into());
        }
        let count = question.choices.len();
        if count < 2 {
            let few = if count == 0 { "there are no choices" } else { "there is one choice only" };
            return Err(format!("{few}: at least two are needed to choose from"));
        }
        if let Some(empty) = question.choices.iter().position(|choice| choice.trim().is_empty()) {
            return Err(format!("choice {empty}, counted from 0, is empty: write its text or leave it out"));
        }
        Ok(MultipleChoice { task: task.or(question.task), ..question })
    }

    fn arc(self) -> Result<MultipleChoice, String> {
        let shape = ChoiceShape::Arc;
        let question = needed(self.question, "question", shape)?;
        let Some(Choices::Labelled { text, label }) = self.choices else {
            return Err(missing("choices with text and label", shape));
        };
        let key = needed(self.answer_key, "answerKey", shape)?.to_string();
        if text.len() != label.len() {
            return Err(format!("choices: {} texts, but {} labels", text.len(), label.len()));
        }
        let labels: Vec<String> = label.iter().map(Word::to_string).collect();
        // What is too few to choose from is said so, not that the answer is not among it.
        let answer = labels.iter().position(|label| *label == key).or((text.len() < 2).then_some(0));
        let answer = answer.ok_or_else(|| {
            format!("answerKey: is {key:?}, must be one of the labels {}{}", labels.join(", "), hidden(&key))
        })?;
        Ok(unplaced(format!("Question: {question}\nAnswer:"), text, answer))
    }

    fn boolq(self) -> Result<MultipleChoice, String> {
        let shape = ChoiceShape::BoolQ;
        let passage = needed(self.passage, "passage", shape)?;
        let question = needed(self.question, "question", shape)?;
        let answer = match needed(self.answer.or(self.label), "answer", shape)? {
            Word::Truth(truth) => usize::from(truth),
            Word::Number(number @ (0 | 1)) => number as usize,
            other => return Err(format!("answer: is {:?}, must be true or false", other.to_string())),
        };
        let prompt = format!("{passage}\nQuestion: {question}?\nAnswer:");
        Ok(unplaced(prompt, ["no", "yes"].map(String::from).to_vec(), answer))
    }

    fn hellaswag(self) -> Result<MultipleChoice, String> {
        let shape = ChoiceShape::HellaSwag;
        let activity = needed(self.activity_label, "activity_label", shape)?;
        let context = match (self.ctx_a, self.ctx_b, self.ctx) {
            (Some(a), Some(b), _) => format!("{a} {}", capitalized(&b)),
            (.., ctx) => needed(ctx, "ctx", shape)?,
        };
        let endings = needed(self.endings, "endings", shape)?.0;
        let answer = index("label", &needed(self.label, "label", shape)?, endings.len(), false)?;
        let endings = endings.iter().map(|ending| cleaned(ending)).collect();
        Ok(unplaced(cleaned(&format!("{activity}: {context}")), endings, answer))
    }

    fn mmlu(self) -> Result<MultipleChoice, String> {
        let shape = ChoiceShape::Mmlu;
        let question = needed(self.question, "question", shape)?;
        let choices = listed(self.choices, shape)?;
        if choices.len() > 26 {
            return Err(format!("{} choices: letters name 26 at most", choices.len()));
        }
        let answer = index("answer", &needed(self.answer, "answer", shape)?, choices.len(), true)?;
        let letters: Vec<String> = (b'A'..=b'Z').take(choices.len()).map(|l| char::from(l).into()).collect();
        if let Some(empty) = choices.iter().position(|choice| choice.trim().is_empty()) {
            return Err(format!("choice {empty}, counted from 0, is empty: write its text or leave it out"));
        }
        let mut prompt = stripped(&question).to_string();
        for (letter, choice) in letters.iter().zip(&choices) {
            prompt += &format!("\n{letter}. {choice}");
        }
        let about = |subject: &String| {
            let subject = subject.replace('_', " ");
            format!("The following are multiple choice questions (with answers) about {subject}.\n\n")
        };
        let system = self.subject.as_ref().map_or_else(String::new, about);
        Ok(MultipleChoice { task: self.subject, system, ..unplaced(prompt + "\nAnswer:", letters, answer) })
    }

    fn plain(self) -> Result<MultipleChoice, String> {
        let shape = ChoiceShape::Plain;
        let prompt = needed(self.prompt, "prompt", shape)?;
        let choices = listed(self.choices, shape)?;
        let answer = index("answer", &needed(self.answer, "answer", shape)?, choices.len(), false)?;
        Ok(MultipleChoice { spaced: false, ..unplaced(prompt, choices, answer) })
    }
}

fn missing(key: &str, shape: ChoiceShape) -> String {
    format!("has no {key}; the shape of {} has {}", shape.name(), shape.keys())
}

fn needed<T>(value: Option<T>, key: &str, shape: ChoiceShape) -> Result<T, String> {
    value.ok_or_else(|| missing(key, shape))
}

fn listed(choices: Option<Choices>, shape: ChoiceShape) -> Result<Vec<String>, String> {
    match choices {
        Some(Choices::List(list)) => Ok(list),
        _ => Err(missing("choices as a list of texts", shape)),
    }
}

/// What to say of an answer that test sets leave out.
fn hidden(answer: &str) -> &'static str {
    let hides = answer.is_empty() || answer == "-1";
    if hides { "; a test set that hides its answers cannot be scored: take its validation set" } else { "" }
}

/// The index of an answer among so many; with `letters`, A is the first one.
fn index(key: &str, word: &Word, count: usize, letters: bool) -> Result<usize, String> {
    let number = match word {
        Word::Number(number) => usize::try_from(*number).ok(),
        Word::Text(text) => match text.as_bytes() {
            [letter @ b'A'..=b'Z'] if letters => Some(usize::from(letter - b'A')),
            _ => text.trim().parse().ok(),
        },
        Word::Truth(_) => None,
    };
    // What is too few to choose from is said so, not that the answer is beyond it.
    let number = if count < 2 { Some(0) } else { number.filter(|number| *number < count) };
    let word = word.to_string();
    let range = || format!("the index of a choice, 0 to {}", count.saturating_sub(1));
    number.ok_or_else(|| format!("{key}: is {word:?}, must be {}{}", range(), hidden(&word)))
}

/// A text without the white space around it, as Python strips it.
fn stripped(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c))
}

/// The first letter upper case, the others lower case.
fn capitalized(text: &str) -> String {
    let mut rest = text.chars();
    let Some(first) = rest.next() else { return String::new() };
    let mut upper = first.to_uppercase();
    let start = upper.next().unwrap_or(first).to_string();
    // Of a letter that becomes several ones only the first is upper case.
    start + &upper.flat_map(char::to_lowercase).collect::<String>() + &rest.as_str().to_lowercase()
}

/// A text of HellaSwag without what its source, WikiHow, left in it: titles and notes in brackets.
fn cleaned(text: &str) -> String {
    let text = stripped(text).replace(" [title]", ". ");
    let mut clean = String::new();
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        let inside = &rest[open..];
        match inside.find([']', '\n']) {
            Some(end) if inside[end..].starts_with(']') => {
                clean += &rest[..open];
                rest = &inside[end + 1..];
            }
            // A note ends in its line: none of the brackets up to here opens one.
            end => {
                let end = end.unwrap_or(inside.len());
                clean += &rest[..open + end];
                rest = &inside[end..];
            }
        }
    }
    (clean + rest).replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the text clean-up of lm-evaluation-harness and Python's `str.capitalize` gave.
    #[test]
    fn texts_are_cleaned_as_by_the_harness() {
        for (text, clean) in [
            ("  Baking: mix [step] it  well ", "Baking: mix it well"),
            ("How to paint [title] Prime [substeps] it.", "How to paint. Prime it."),
            ("a [b\nc] d [e] f", "a [b\nc] d f"),
            ("open [ only", "open [ only"),
            ("[x [y] z]", " z]"),
            ("four    spaces", "four  spaces"),
        ] {
            assert_eq!(cleaned(text), clean, "{text:?}");
        }
        for (text, capital) in [("he LIFTS", "He lifts"), ("", ""), ("ßa", "Ssa"), ("éCOLE", "École")] {
            assert_eq!(capitalized(text), capital);
        }
    }
}
