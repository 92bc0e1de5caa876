//! Exact match: questions with short answers, answered by generating.

use super::{Judged, NO_TASK, condition_vector};
use crate::adapter::{Bank, Conversation};
use crate::data::{Asked, Batch, Condition, Dataset, Encoder, Example, Features, PictureSource, Sample};
use crate::mixture::{DecodeRoute, Pool};
use crate::model::vision::PictureFeatures;
use crate::model::{Model, Sampler, Sampling};
use crate::tape::inside;
use crate::text::ModelText;
use crate::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Tokens that an answer may have beyond its reference: what is longer cannot be equal.
pub const SLACK: usize = 4;
/// Questions that are answered together, so that weights are read once for many rows.
const TOGETHER: usize = 16;

/// A prompt with the answer that is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    pub task: Option<String>,
    /// What choices depend on besides it.
    pub condition: Option<Condition>,
    /// What was asked, for people.
    pub shown: String,
    pub reference: String,
    /// Its tokens, and where its pictures stand.
    prompt: Example,
    reference_tokens: usize,
}

impl Question {
    /// Its task, for tables.
    pub fn task_name(&self) -> &str {
        self.task.as_deref().unwrap_or(NO_TASK)
    }
}

/// Questions of a file, encoded once and answered by one model or several.
#[derive(Clone)]
pub struct Questions {
    text: ModelText,
    pub list: Vec<Question>,
    /// Samples with an answer that is longer than was asked for.
    pub too_long: usize,
    /// Samples with a picture that no tower has looked at, which are not asked.
    pub unseen: usize,
    /// How answers are routed; as the adapter says where it is none.
    pub route: Option<DecodeRoute>,
    /// Tokens that answers may have; none for no more than exact match needs, which depends on the answers that are wanted.
    pub longest: Option<usize>,
}

/// Right answers of a task.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct TaskScore {
    pub task: String,
    pub right: usize,
    pub questions: usize,
    /// Questions that the commonest reference would answer.
    pub commonest: usize,
}

impl TaskScore {
    /// Share of right answers, 0 to 1.
    pub fn exact_match(&self) -> f64 {
        self.right as f64 / self.questions.max(1) as f64
    }
}

impl Questions {
    /// The samples whose last turn is the assistant's, or that have a completion, and whose answer has at most
    /// `max_tokens` tokens; plain text has no answer. The prompt is all before that turn. `encoder` is the one that made the
    /// samples examples; before questions with pictures are asked, [`show`](Questions::show) gives them what a tower saw.
    ///
    /// # Errors
    /// The template or the tokenizer fails on a sample, or a picture cannot be read; the line is named.
    pub fn new(text: &ModelText, encoder: &Encoder, samples: &[Sample], max_tokens: usize) -> Result<Self> {
        let mut list = Vec::new();
        let mut too_long = 0;
        for sample in samples {
            let at = |e: Error| Error::refused(format!("line {}", sample.line), e.to_string());
            let Some(Asked { prompt, shown, answer: reference }) = encoder.asked(text, sample)? else {
                continue;
            };
            let reference_tokens = text.tokenizer.encode(&reference, false).map_err(at)?.len();
            if reference_tokens > max_tokens {
                too_long += 1;
                continue;
            }
            if prompt.ids.is_empty() {
                continue;
            }
            let task = sample.task.clone();
            let condition = sample.condition.clone();
            list.push(Question { task, condition, shown, reference, prompt, reference_tokens });
        }
        Ok(Questions { text: text.clone(), list, too_long, unseen: 0, route: None, longest: None })
    }

    /// Gives pictures what a tower made of them for the examples of a dataset. Questions with others are left out.
    pub fn show(&mut self, data: &Dataset) {
        let places = data.examples.iter().flat_map(|example| &example.pictures);
        let seen: HashMap<&PictureSource, &Features> =
            places.filter_map(|place| Some((&place.source, place.features.as_ref()?))).collect();
        let before = self.list.len();
        self.list.retain_mut(|question| {
            let mut pictures = question.prompt.pictures.iter_mut();
            pictures.all(|place| {
                place.features = seen.get(&place.source).map(|&features| features.clone());
                place.features.is_some()
            })
        });
        self.unseen += before - self.list.len();
    }

    /// Keeps so many questions at most. Says how many are not asked, if any are not; `max_tokens` is the longest answer
    /// that was allowed.
    pub fn limit(&mut self, most: usize, max_tokens: usize) -> Option<String> {
        let beyond = self.list.len().saturating_sub(most);
        self.list.truncate(most);
        let reasons = [
            (self.too_long, format!("have answers of more than {max_tokens} tokens")),
            (self.unseen, "have a picture that is not among those of the examples".to_string()),
            (beyond, format!("are beyond the first {most}")),
        ];
        let reasons: Vec<String> =
            reasons.iter().filter(|(n, _)| *n > 0).map(|(n, text)| format!("{n} {text}")).collect();
        let all = self.list.len() + self.too_long + self.unseen + beyond;
        let asked = self.list.len();
        let text =
            || format!("exact match asks {asked} of {all} samples with an answer: {}", reasons.join(", "));
        (!reasons.is_empty()).then(text)
    }

    /// The most likely answer to each question, token by token, in batches of prompts of one length. `progress` is
    /// told how many are answered, and asked whether to go on: false stops with the answers so far. Prompts that are
    /// longer than the model's context get no answer.
    ///
    /// # Errors
    /// The device fails, or the model gives no finite logits.
    pub fn answer(
        &self,
        model: &Arc<Model>,
        adapters: impl Into<Bank>,
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Vec<Option<String>>> {
        let bank = adapters.into();
        let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, q) in self.list.iter().enumerate() {
            by_length.entry(q.prompt.ids.len()).or_default().push(i);
        }
        let mut answers = vec![None; self.list.len()];
        let mut done = 0;
        for group in by_length.values().flat_map(|g| g.chunks(TOGETHER)) {
            let front = bank.framing().rows_in_front();
            if front + self.list[group[0]].prompt.ids.len() > model.config().max_positions() {
                break;
            }
            for (&i, answer) in group.iter().zip(self.answer_group(model, &bank, group)?) {
                answers[i] = Some(answer);
            }
            done += group.len();
            if !progress(done) {
                break;
            }
        }
        Ok(answers)
    }

    fn answer_group(&self, model: &Arc<Model>, bank: &Bank, group: &[usize]) -> Result<Vec<String>> {
        let tokenizer = &self.text.tokenizer;
        let ends = tokenizer.end_tokens();
        let questions: Vec<&Question> = group.iter().map(|&i| &self.list[i]).collect();
        let needed = questions.iter().map(|q| q.reference_tokens).max().unwrap_or(0) + SLACK;
        let longest = self.longest.unwrap_or(needed);
        let mut conversation = Conversation::new(model, bank, group.len())
            .with_route(self.route)
            .with_tasks(questions.iter().map(|q| q.task.as_deref()));
        if bank.chooses_by_condition() {
            let vector = |q: &&Question| {
                let condition = q.condition.as_ref();
                condition.map_or(Ok(Vec::new()), |c| condition_vector(c, model, tokenizer))
            };
            conversation =
                conversation.with_conditions(&questions.iter().map(vector).collect::<Result<Vec<_>>>()?)?;
        }
        let prompts: Vec<u32> = questions.iter().flat_map(|q| q.prompt.ids.iter().copied()).collect();
        match pictures_of(model, &questions)? {
            Some(pictures) => conversation.push_with_pictures(&prompts, &pictures)?,
            None => conversation.push(&prompts)?,
        }
        let said = greedy(&mut conversation, group.len(), longest, &ends)?;
        Ok(said.iter().map(|ids| tokenizer.decode(ids, true)).collect())
    }

    /// How much each answer has in common with the wanted one; none of questions without an answer. Answers must not end
    /// early for it: [`longest`](Questions::longest).
    pub fn judge(&self, answers: &[Option<String>]) -> Vec<Option<Judged>> {
        let judged = |(q, answer): (&Question, &Option<String>)| {
            answer.as_ref().map(|answer| Judged::of(answer, &q.reference))
        };
        self.list.iter().zip(answers).map(judged).collect()
    }

    /// Right answers by task, in the order of their names: equal to the reference but for white space around.
    pub fn score(&self, answers: &[Option<String>]) -> Vec<TaskScore> {
        let mut tasks: BTreeMap<&str, (usize, usize, BTreeMap<&str, usize>)> = BTreeMap::new();
        for (q, answer) in self.list.iter().zip(answers) {
            let Some(answer) = answer else { continue };
            let (right, n, references) = tasks.entry(q.task_name()).or_default();
            *right += usize::from(answer.trim() == q.reference.trim());
            *n += 1;
            *references.entry(q.reference.trim()).or_default() += 1;
        }
        let score =
            |(task, (right, questions, references)): (&str, (usize, usize, BTreeMap<&str, usize>))| {
                let commonest = references.values().max().copied().unwrap_or(0);
                TaskScore { task: task.into(), right, questions, commonest }
            };
        tasks.into_iter().map(score).collect()
    }
}

/// The likeliest continuation of each sequence of a conversation, up to an end token, which stays out, or so many tokens.
pub(super) fn greedy(
    conversation: &mut Conversation,
    rows: usize,
    most: usize,
    ends: &[u32],
) -> Result<Vec<Vec<u32>>> {
    let mut sampler = Sampler::new(Sampling::default())?;
    let mut said: Vec<Vec<u32>> = vec![Vec::new(); rows];
    let mut ended = vec![false; rows];
    for _ in 0..most.min(conversation.room()) {
        let next: Vec<u32> = (0..rows).map(|row| sampler.next(conversation.logits(row))).collect();
        for (row, token) in next.iter().enumerate() {
            ended[row] |= ends.contains(token);
            if !ended[row] {
                said[row].push(*token);
            }
        }
        if ended.iter().all(|e| *e) || conversation.room() == 0 {
            break;
        }
        // Rows that have ended go on in silence: nothing is lost but their share of the work.
        conversation.push(&next)?;
    }
    Ok(said)
}

/// Mean of the tasks' exact match: every task counts the same.
pub fn mean_exact_match(scores: &[TaskScore]) -> f64 {
    scores.iter().map(TaskScore::exact_match).sum::<f64>() / scores.len().max(1) as f64
}

/// The pictures of prompts of one length; none where no prompt has any.
fn pictures_of(model: &Model, questions: &[&Question]) -> Result<Option<PictureFeatures>> {
    let prompts: Vec<&Example> = questions.iter().map(|q| &q.prompt).collect();
    if prompts.iter().all(|prompt| prompt.pictures.is_empty()) {
        return Ok(None);
    }
    let batch = inside(model.device(), || Batch::new(&prompts, Pool::All, 0, model.device()))?;
    Ok(batch.pictures().cloned())
}
