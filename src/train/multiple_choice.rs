//! Questions with answers to choose from, scored by the probability of each answer behind the prompt.

use super::forced::{log_sum_exp, look_at_trained};
use crate::adapter::Bank;
use crate::data::{Example, MultipleChoice};
use crate::mixture::Pool;
use crate::model::Model;
use crate::text::{Message, ModelText, Role};
use crate::{Error, Result};

/// Questions whose tokens are there at once.
const AT_ONCE: usize = 128;

/// How questions are put to a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChoiceOptions {
    /// Put the prompt as a user's turn with the model's chat template; else the answer goes on with the prompt's text.
    pub in_chat: bool,
    /// Sequences that go through the model together.
    pub together: usize,
}

/// What a model makes of the answers of one question.
#[derive(Debug, Clone, PartialEq)]
pub struct Weighed {
    /// The sum of the log-probabilities of each answer's tokens, in nats.
    pub log_probabilities: Vec<f64>,
    /// Tokens that were cut from the start of a prompt, so that the longest answer fits the model's context.
    pub cut: usize,
}

impl Weighed {
    /// The likeliest answer; of equal ones the first.
    pub fn best(&self) -> usize {
        self.best_by(|_| 1.0)
    }

    /// The likeliest answer of a question by the log-probability divided by the number of its characters.
    pub fn best_by_characters(&self, question: &MultipleChoice) -> usize {
        self.best_by(|choice| question.choices[choice].chars().count() as f64)
    }

    /// The same by the bytes of UTF-8.
    pub fn best_by_bytes(&self, question: &MultipleChoice) -> usize {
        self.best_by(|choice| question.choices[choice].len() as f64)
    }

    fn best_by(&self, length: impl Fn(usize) -> f64) -> usize {
        let mut best = (0, f64::NEG_INFINITY);
        for (choice, log_probability) in self.log_probabilities.iter().enumerate() {
            let score = log_probability / length(choice);
            if score > best.1 {
                best = (choice, score);
            }
        }
        best.0
    }
}

/// A sequence that goes through the model, for one answer or for several that differ in their last token alone.
struct Sequence {
    example: Example,
    question: usize,
    /// Answers with their last tokens.
    answers: Vec<(usize, u32)>,
}

/// Weighs the answers of questions, by a model with adapters or none. `progress` is told how many are done.
///
/// The boundary between prompt and answer is that of lm-evaluation-harness: white space at the prompt's end goes to the
/// answer, and the answer's tokens are those of both texts together beyond as many as the prompt alone has.
///
/// # Errors
/// A text cannot be encoded, an answer alone is longer than the model's context, or the device failed; the line is named.
pub fn weigh_choices(
    model: &Model,
    text: &ModelText,
    adapters: impl Into<Bank>,
    questions: &[MultipleChoice],
    options: ChoiceOptions,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Weighed>> {
    let bank = adapters.into();
    if bank.chooses_by_condition() {
        let what = "chooses by a condition, which questions with answers to choose from do not have";
        return Err(Error::refused("adapter", what));
    }
    let room = model.config().max_positions() - bank.framing().rows_in_front();
    let put = Put { text, in_chat: options.in_chat, room, rows: model.config().vocab_size };
    // Where a router looks at the answer too, each answer needs a pass of its own.
    let of_prompt = |pool: Pool| pool.needs_prompt() || pool == Pool::Instr;
    let shared = bank.adapters().iter().all(|(adapter, _)| adapter.pool().is_none_or(of_prompt));
    let pad = text.tokenizer.pad_within(model.config().vocab_size);
    let mut weighed = Vec::with_capacity(questions.len());
    for some in questions.chunks(AT_ONCE) {
        let mut sequences = Vec::new();
        let first = weighed.len();
        for question in some {
            let at = |e: Error| Error::refused(question.place(), e.to_string());
            let cut = put.sequences(question, weighed.len() - first, shared, &mut sequences).map_err(at)?;
            let log_probabilities = vec![0.0; question.choices.len()];
            weighed.push(Weighed { log_probabilities, cut });
        }
        let examples: Vec<&Example> = sequences.iter().map(|sequence| &sequence.example).collect();
        let looked = look_at_trained(model, &bank, &examples, pad, options.together, |at, logits| {
            let sequence = &sequences[at.example];
            let all = log_sum_exp(logits);
            let log_probability = |token: u32| f64::from(logits[token as usize]) - all;
            let is_last = at.number + 1 == sequence.example.trained_tokens();
            let last = |(_, token): &(usize, u32)| log_probability(*token);
            if is_last {
                sequence.answers.iter().map(last).collect()
            } else {
                vec![log_probability(at.target); sequence.answers.len()]
            }
        })?;
        for (sequence, tokens) in sequences.iter().zip(looked) {
            for (number, (choice, _)) in sequence.answers.iter().enumerate() {
                let sum = tokens.iter().map(|of_answers| of_answers[number]).sum();
                weighed[first + sequence.question].log_probabilities[*choice] = sum;
            }
        }
        progress(weighed.len());
    }
    Ok(weighed)
}

/// How questions become tokens.
struct Put<'a> {
    text: &'a ModelText,
    in_chat: bool,
    /// Tokens of a sequence at most.
    room: usize,
    /// Rows of the embedding.
    rows: usize,
}

impl Put<'_> {
    /// All text before an answer.
    fn context(&self, question: &MultipleChoice) -> Result<String> {
        let MultipleChoice { system, prompt, .. } = question;
        if !self.in_chat {
            return Ok(format!("{system}{prompt}"));
        }
        let user = [Message::new(Role::User, prompt.as_str())];
        if system.is_empty() {
            return self.text.prompt(&user);
        }
        let both = [vec![Message::new(Role::System, system.as_str())], user.to_vec()].concat();
        // Some templates know no system; the prompt says all that is needed.
        self.text.prompt(&both).or_else(|_| self.text.prompt(&user))
    }

    /// Adds the sequences of a question; how many tokens were cut from its prompt.
    fn sequences(
        &self,
        question: &MultipleChoice,
        number: usize,
        shared: bool,
        sequences: &mut Vec<Sequence>,
    ) -> Result<usize> {
        let context = self.context(question)?;
        let start = context.trim_end();
        let space = &context[start.len()..];
        let before = self.encoded(start)?.len();
        let first = sequences.len();
        let mut most = 0;
        for choice in 0..question.choices.len() {
            let answer = question.continuation(choice, self.in_chat);
            let mut ids = self.encoded(&format!("{start}{space}{answer}"))?;
            let length = ids.len().saturating_sub(before);
            if before == 0 || length == 0 {
                let what = "has no token of its own behind the prompt; put white space between them";
                return Err(Error::refused(format!("choice {choice}, counted from 0,"), what));
            }
            if length >= self.room {
                let what = format!("has {length} tokens, the model's context {}", self.room);
                return Err(Error::refused(format!("choice {choice}, counted from 0,"), what));
            }
            let cut = ids.len().saturating_sub(self.room);
            ids.drain(..cut);
            most = most.max(cut);
            let last = ids[ids.len() - 1];
            let same = |other: &&mut Sequence| {
                let there = &other.example;
                let beginning = there.ids[..there.ids.len() - 1] == ids[..ids.len() - 1];
                beginning && there.trained_tokens() == length
            };
            match sequences[first..].iter_mut().find(same).filter(|_| shared) {
                Some(sequence) => sequence.answers.push((choice, last)),
                None => {
                    let trained = (0..ids.len()).map(|at| at >= ids.len() - length).collect();
                    let prompt = ids.len() - length;
                    let example = Example::new(ids, trained).with_task(question.task.as_deref());
                    let example = Example { prompt, ..example };
                    sequences.push(Sequence { example, question: number, answers: vec![(choice, last)] });
                }
            }
        }
        Ok(most)
    }

    fn encoded(&self, text: &str) -> Result<Vec<u32>> {
        let tokenizer = &self.text.tokenizer;
        let ids = if self.in_chat { tokenizer.encode(text, true) } else { tokenizer.encode_start(text) }?;
        match ids.iter().find(|id| **id as usize >= self.rows) {
            Some(id) => {
                let what = format!("is not known to the model: its embedding has {} rows", self.rows);
                Err(Error::refused(format!("token {id}"), what))
            }
            None => Ok(ids),
        }
    }
}

/// A share of questions with its standard error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    pub mean: f64,
    /// The standard deviation over questions divided by the root of their number; none of one question.
    pub error: Option<f64>,
}

impl Share {
    /// Of so many right ones among so many.
    fn of(right: usize, questions: usize) -> Self {
        let n = questions as f64;
        let mean = right as f64 / n.max(1.0);
        let error = (questions > 1).then(|| (mean * (1.0 - mean) / (n - 1.0)).sqrt());
        Share { mean, error }
    }

    /// Of several sets of questions: each counts by its size, and errors are pooled within the sets.
    fn pooled(sets: &[(Share, usize)]) -> Self {
        let all: usize = sets.iter().map(|(_, n)| n).sum();
        let mean = sets.iter().map(|(share, n)| share.mean * *n as f64).sum::<f64>() / all.max(1) as f64;
        let squares = |(share, n): &(Share, usize)| {
            let (error, n) = (share.error.unwrap_or(0.0), *n as f64);
            (n - 1.0) * error * error * n
        };
        let free = all.saturating_sub(sets.len());
        let variance = sets.iter().map(squares).sum::<f64>() / free.max(1) as f64;
        Share { mean, error: (free > 0).then(|| (variance / all as f64).sqrt()) }
    }
}

/// How many answers of a task are right.
#[derive(Debug, Clone, PartialEq)]
pub struct ChoiceScore {
    pub questions: usize,
    /// By the log-probability of the answer.
    pub acc: Share,
    /// By the same per character.
    pub acc_norm: Share,
    /// By the same per byte.
    pub acc_bytes: Share,
}

impl ChoiceScore {
    /// Of questions of which these are right, by the three ways.
    pub fn of(right: &[[bool; 3]]) -> Self {
        let share = |way: usize| Share::of(right.iter().filter(|r| r[way]).count(), right.len());
        ChoiceScore { questions: right.len(), acc: share(0), acc_norm: share(1), acc_bytes: share(2) }
    }

    /// Over all tasks, as lm-evaluation-harness adds up a group: tasks count by their size, errors are pooled.
    pub fn over(tasks: &[&ChoiceScore]) -> Self {
        let pooled = |share: fn(&ChoiceScore) -> Share| {
            Share::pooled(&tasks.iter().map(|task| (share(task), task.questions)).collect::<Vec<_>>())
        };
        ChoiceScore {
            questions: tasks.iter().map(|task| task.questions).sum(),
            acc: pooled(|task| task.acc),
            acc_norm: pooled(|task| task.acc_norm),
            acc_bytes: pooled(|task| task.acc_bytes),
        }
    }
}
