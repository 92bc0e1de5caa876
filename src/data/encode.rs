//! From samples to tokens with their trained positions.

use super::jsonl::Problems;
use super::sample::{Body, Sample};
use super::turns::Turns;
use super::{Counts, Dataset, Example};
use crate::error::Problem;
use crate::text::{ChatTemplate, Message, Piece, Role, Tokenizer};
use crate::{Error, Result};
use rayon::prelude::*;
use std::ops::Range;
use std::path::Path;

/// Which tokens of conversations and completions are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LossOn {
    /// What the assistant says, each turn with its end token.
    #[default]
    Assistant,
    /// Everything.
    All,
}

/// How samples become examples.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodeOptions {
    pub loss_on: LossOn,
    /// Longest example, in tokens.
    pub max_length: usize,
    /// Share of samples that may be left out for having no trained token, 0 to 1.
    pub max_untrained: f64,
    /// Accept templates and vocabularies that end no turn.
    pub allow_untrained_eos: bool,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        EncodeOptions {
            loss_on: LossOn::Assistant,
            max_length: 1024,
            max_untrained: 0.05,
            allow_untrained_eos: false,
        }
    }
}

/// A sample in tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    pub example: Example,
    /// Tokens were cut off.
    pub truncated: bool,
    /// The prompt has other tokens than it would have in one text with the completion.
    pub joined: bool,
}

type Said<T> = std::result::Result<T, String>;

/// Encodes samples for one model.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    options: EncodeOptions,
    ends: Vec<u32>,
}

impl Encoder {
    /// An encoder; only conversations need a template.
    ///
    /// # Errors
    /// The length leaves no room for a trained token.
    pub fn new(
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        options: EncodeOptions,
    ) -> Result<Self> {
        if options.max_length < 2 {
            return Err(Error::config(
                "max_length",
                format!("is {}, at least 2 is needed", options.max_length),
            ));
        }
        let ends = tokenizer.end_tokens();
        Ok(Encoder { tokenizer: tokenizer.clone(), template: template.cloned(), options, ends })
    }

    /// Encodes one sample; one without content gives an example without tokens.
    ///
    /// # Errors
    /// The template fails, or its assistant turns cannot be told apart or have no end token.
    pub fn sample(&self, path: &Path, sample: &Sample) -> Result<Encoded> {
        self.encode(sample).map_err(|what| {
            let problems = vec![Problem { line: sample.line, column: 0, what }];
            Error::Data { path: path.into(), problems, more: 0 }
        })
    }

    /// Encodes the samples of a file.
    ///
    /// # Errors
    /// All samples that cannot be encoded are listed, up to a limit. It is also an error when too many samples have
    /// no trained token, or none is left.
    pub fn dataset(&self, path: &Path, samples: &[Sample]) -> Result<Dataset> {
        self.dataset_watched(path, samples, &|| ())
    }

    /// The same; `step` is called after each sample, by several threads.
    ///
    /// # Errors
    /// Those of [`Encoder::dataset`].
    pub fn dataset_watched(
        &self,
        path: &Path,
        samples: &[Sample],
        step: &(dyn Fn() + Sync),
    ) -> Result<Dataset> {
        let watched = |sample: &Sample| {
            let encoded = self.encode(sample);
            step();
            encoded
        };
        let done: Vec<Said<Encoded>> = samples.par_iter().map(watched).collect();
        let mut data = Dataset::default();
        data.counts.samples = samples.len();
        let mut problems = Problems::default();
        let mut first_untrained = None;
        for (sample, encoded) in samples.iter().zip(done) {
            match encoded {
                Err(what) => problems.add(sample.line, 0, what),
                Ok(e) if e.example.ids.is_empty() => data.counts.empty += 1,
                Ok(e) if e.example.trained_tokens() == 0 => {
                    data.counts.untrained += 1;
                    first_untrained.get_or_insert(sample.line);
                }
                Ok(e) => {
                    data.counts.truncated += usize::from(e.truncated);
                    if e.joined {
                        data.counts.joined += 1;
                        data.counts.first_joined.get_or_insert(sample.line);
                    }
                    data.examples.push(e.example.with_task(sample.task.as_deref()));
                    data.tasks.push(sample.task.clone());
                    data.lines.push(sample.line);
                }
            }
        }
        let Counts { samples: n, untrained, empty, .. } = data.counts;
        if let Some(line) =
            first_untrained.filter(|_| untrained as f64 > self.options.max_untrained * n as f64)
        {
            let share = self.options.max_untrained * 100.0;
            let what = format!(
                "{untrained} of {n} samples have no trained token, the first is here; {share} % are allowed"
            );
            problems.add(line, 0, what);
        } else if data.examples.is_empty() {
            problems.add(
                0,
                0,
                format!("no sample is left: {empty} are empty, {untrained} have no trained token"),
            );
        }
        problems.result(path, data)
    }

    fn encode(&self, sample: &Sample) -> Said<Encoded> {
        let mut joined = false;
        let tokens = match &sample.body {
            Body::Messages(messages) => self.conversation(messages, &sample.untrained)?,
            Body::Completion { prompt, completion } if prompt.is_empty() && completion.is_empty() => {
                Example::default()
            }
            Body::Completion { prompt, completion } => {
                let (pieces, apart) = self.completion(prompt, completion)?;
                joined = apart;
                let start = if self.options.loss_on == LossOn::All { 0 } else { prompt.len() };
                self.plain(&pieces, start)?
            }
            Body::Text(text) if text.is_empty() => Example::default(),
            Body::Text(text) => self.plain(&self.pieces(text)?, 0)?,
        };
        let (mut example, truncated) = self.fit(tokens);
        // Text has no prompt: its routers look at all of it.
        let whole = matches!(sample.body, Body::Text(_)) || self.options.loss_on == LossOn::All;
        let before = example.trained.iter().position(|t| *t).unwrap_or(example.ids.len());
        example.prompt = if whole { example.ids.len() } else { before };
        if let Some(first) = example.trained.first_mut() {
            *first = false;
        }
        Ok(Encoded { example, truncated, joined })
    }

    fn pieces(&self, text: &str) -> Said<Vec<Piece>> {
        self.tokenizer.encode_pieces(text, true).map_err(|e| e.to_string())
    }

    /// The pieces of a prompt with its completion, which begin with those of the prompt alone: so it is asked later.
    /// True where one text of both would be cut otherwise, as behind a prompt that ends in a space.
    fn completion(&self, prompt: &str, completion: &str) -> Said<(Vec<Piece>, bool)> {
        let one = self.pieces(&format!("{prompt}{completion}"))?;
        let mut pieces = self.pieces(prompt)?;
        let n = pieces.len();
        let begins = one.len() >= n && one.iter().zip(&pieces).all(|(whole, part)| whole.id == part.id);
        if begins && one[n..].iter().all(|piece| piece.source.start >= prompt.len()) {
            return Ok((one, false));
        }
        for piece in self.continued(completion)? {
            let source = prompt.len() + piece.source.start..prompt.len() + piece.source.end;
            pieces.push(Piece { source, ..piece });
        }
        Ok((pieces, true))
    }

    /// Tokens of a text in the middle of another one: without the space that some vocabularies put before a text.
    fn continued(&self, text: &str) -> Said<Vec<Piece>> {
        for before in ["\n", "."] {
            let pieces = self.pieces(&format!("{before}{text}"))?;
            let first =
                pieces.iter().position(|piece| piece.source.end > before.len()).unwrap_or(pieces.len());
            if pieces[first..].iter().all(|piece| piece.source.start >= before.len()) {
                let shifted = |p: &Piece| Piece {
                    id: p.id,
                    source: p.source.start - before.len()..p.source.end - before.len(),
                };
                return Ok(pieces[first..].iter().map(shifted).collect());
            }
        }
        self.pieces(text)
    }

    /// Plain text, trained from a byte on, with the end token behind it.
    fn plain(&self, pieces: &[Piece], start: usize) -> Said<Example> {
        let mut example = Example::default();
        if let Some(bos) = self.tokenizer.bos().filter(|_| self.tokenizer.add_bos())
            && pieces.first().is_none_or(|p| p.id != bos)
        {
            example.ids.push(bos);
            example.trained.push(false);
        }
        for p in pieces {
            example.ids.push(p.id);
            example.trained.push(p.source.end > start && p.source.end > p.source.start);
        }
        match self.tokenizer.eos() {
            Some(eos) if example.ids.last() != Some(&eos) => {
                example.ids.push(eos);
                example.trained.push(true);
            }
            Some(_) => {}
            None if self.options.allow_untrained_eos => {}
            None => return Err("the vocabulary has no end token: the model would never learn to stop".into()),
        }
        Ok(example)
    }

    /// A conversation, of which some turns are not trained.
    fn conversation(&self, messages: &[Message], untrained: &[usize]) -> Said<Example> {
        let template =
            self.template.as_ref().ok_or("the model has no chat template; name one, for example chatml")?;
        let all = self.options.loss_on == LossOn::All;
        let fail = |e: Error| e.to_string();
        let (text, generated) = if template.marks_generation() && !all {
            let marked = template.render_marked(messages, self.tokenizer.special_tokens()).map_err(fail)?;
            (marked.text, Some(marked.generated))
        } else {
            (self.tokenizer.render(template, messages, false).map_err(fail)?, None)
        };
        let pieces = self.pieces(&text)?;
        let mut trained = vec![all; pieces.len()];
        if let Some(generated) = generated {
            self.train_generated(messages, generated, untrained, &pieces, &mut trained)?;
        } else if !all || !untrained.is_empty() {
            let ends = &self.ends;
            let turns =
                Turns { tokenizer: &self.tokenizer, template, messages, text: &text, pieces: &pieces, ends };
            // Of all tokens, those of the turns that the sample leaves out are not trained; else those of the others.
            for (i, range) in turns.find()?.into_iter().filter(|(i, _)| untrained.contains(i) == all) {
                let turn = self.tokens_of_turn(i, range, &pieces)?;
                trained[turn].fill(!all);
            }
        }
        let ids = pieces.iter().map(|p| p.id).collect();
        Ok(Example { ids, trained, ..Example::default() })
    }

    /// Trains the parts that the template itself marks, which may be several to a turn.
    fn train_generated(
        &self,
        messages: &[Message],
        generated: Vec<Range<usize>>,
        untrained: &[usize],
        pieces: &[Piece],
        trained: &mut [bool],
    ) -> Said<()> {
        let turns: Vec<usize> =
            (0..messages.len()).filter(|&i| messages[i].role == Role::Assistant).collect();
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
            ended |= pieces[tokens.clone()].iter().any(|p| self.ends.contains(&p.id));
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
    fn tokens_of_turn(&self, i: usize, range: Range<usize>, pieces: &[Piece]) -> Said<Range<usize>> {
        let turn = overlapping(pieces, &range);
        let end = pieces[turn.clone()].iter().rposition(|p| self.ends.contains(&p.id));
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

    /// Cuts an example to the longest length: first what follows the last trained token, then from the start, so
    /// that the end of the answer stays. A start token stays first.
    fn fit(&self, mut example: Example) -> (Example, bool) {
        let max = self.options.max_length;
        let truncated = example.ids.len() > max;
        if truncated {
            let end = example.trained.iter().rposition(|t| *t).map_or(example.ids.len(), |i| i + 1);
            let end = end.max(max);
            example.ids.truncate(end);
            example.trained.truncate(end);
            let keep = usize::from(example.ids.first().is_some_and(|id| Some(*id) == self.tokenizer.bos()));
            let cut = end - max;
            example.ids.drain(keep..keep + cut);
            example.trained.drain(keep..keep + cut);
        }
        (example, truncated)
    }
}

/// The tokens that share a byte with a part of the text.
fn overlapping(pieces: &[Piece], part: &Range<usize>) -> Range<usize> {
    let inside = |p: &Piece| p.source.end > part.start && p.source.start < part.end && !p.source.is_empty();
    // Tokens stand in the order of the text.
    let from = pieces.partition_point(|p| p.source.end <= part.start);
    let to = pieces.partition_point(|p| p.source.start < part.end).max(from);
    let first = pieces[from..to].iter().position(inside).map_or(to, |at| from + at);
    let stop = pieces[first..to].iter().rposition(inside).map_or(first, |at| first + at + 1);
    first..stop
}

/// Parts that touch become one.
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
