//! Encoding of samples as tokens with their trained positions.

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

/// The trained tokens of conversations and completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LossOn {
    /// The turns of the assistant, each with its end token.
    #[default]
    Assistant,
    /// All tokens.
    All,
}

/// Options for encoding samples as examples.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodeOptions {
    pub loss_on: LossOn,
    /// The largest length of an example in tokens.
    pub max_length: usize,
    /// The largest share of samples without a trained token, 0 to 1.
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

/// An encoded sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    pub example: Example,
    /// Tokens were cut off.
    pub truncated: bool,
    /// Tokenising prompt and completion as one text would give the prompt other tokens.
    pub joined: bool,
}

/// A result whose error is a sentence.
type Explained<T> = std::result::Result<T, String>;

/// Encodes samples for one model.
///
/// ```
/// use mixlora::data::{Body, EncodeOptions, Encoder, Sample};
/// use mixlora::text::{Tokenizer, Vocab};
/// let tokens: Vec<String> = ["a", "b", "<end>"].map(String::from).to_vec();
/// let merges = Some(Vec::new());
/// let types = vec![1, 1, 3];
/// let eos = Some(2);
/// let vocab = Vocab { model: "gpt2".into(), pre: "gpt-2".into(), tokens, merges, types, eos, ..Vocab::default() };
/// let encoder = Encoder::new(&Tokenizer::from_vocab(vocab)?, None, EncodeOptions::default())?;
/// let sample = Sample::new(1, None, Body::Completion { prompt: "a".into(), completion: "b".into() });
/// let example = encoder.sample("data.jsonl".as_ref(), &sample)?.example;
/// assert_eq!(example.ids, [0, 1, 2]);
/// assert_eq!(example.trained, [false, true, true]);
/// # Ok::<(), mixlora::Error>(())
/// ```
#[derive(Debug)]
pub struct Encoder {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    options: EncodeOptions,
    ends: Vec<u32>,
}

impl Encoder {
    /// Makes an encoder; only conversations need a template.
    ///
    /// # Errors
    /// `max_length` is less than 2, so that no token could be trained.
    pub fn new(
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        options: EncodeOptions,
    ) -> Result<Self> {
        if options.max_length < 2 {
            return Err(Error::config("max_length", options.max_length, "at least 2"));
        }
        let ends = tokenizer.end_tokens();
        Ok(Encoder { tokenizer: tokenizer.clone(), template: template.cloned(), options, ends })
    }

    /// Encodes one sample; a sample without content becomes an example without tokens.
    ///
    /// # Errors
    /// The template fails, or its assistant turns cannot be located or have no end token.
    pub fn sample(&self, path: &Path, sample: &Sample) -> Result<Encoded> {
        self.encode_pair(sample).map_err(|what| {
            let problems = vec![Problem { line: sample.line, column: 0, what }];
            Error::Data { path: path.into(), problems, more: 0 }
        })
    }

    /// Encodes the samples of a file.
    ///
    /// # Errors
    /// Samples cannot be encoded (all are listed, up to a limit), too many samples have no trained token, or no example
    /// is left.
    pub fn dataset(&self, path: &Path, samples: &[Sample]) -> Result<Dataset> {
        self.dataset_watched(path, samples, &|| ())
    }

    /// Like [`dataset`](Encoder::dataset); `step` is called after each sample, by several threads.
    ///
    /// # Errors
    /// The same as for [`dataset`](Encoder::dataset).
    pub fn dataset_watched(
        &self,
        path: &Path,
        samples: &[Sample],
        step: &(dyn Fn() + Sync),
    ) -> Result<Dataset> {
        let watched = |sample: &Sample| {
            let encoded = self.encode_pair(sample);
            step();
            encoded
        };
        let done: Vec<Explained<Encoded>> = samples.par_iter().map(watched).collect();
        let mut data = Dataset::default();
        data.counts.samples = samples.len();
        let mut problems = Problems::default();
        let mut first_untrained = None;
        for (sample, encoded) in samples.iter().zip(done) {
            match encoded {
                Err(what) => problems.add(sample.line, 0, what),
                Ok(encoded) if encoded.example.ids.is_empty() => data.counts.empty += 1,
                Ok(encoded) if encoded.example.trained_tokens() == 0 => {
                    data.counts.untrained += 1;
                    first_untrained.get_or_insert(sample.line);
                }
                Ok(encoded) => {
                    data.counts.truncated += usize::from(encoded.truncated);
                    if encoded.joined {
                        data.counts.joined += 1;
                        data.counts.first_joined.get_or_insert(sample.line);
                    }
                    data.examples.push(encoded.example.with_task(sample.task.as_deref()));
                    data.tasks.push(sample.task.clone());
                    data.conditions.push(sample.condition.clone());
                    data.lines.push(sample.line);
                }
            }
        }
        let Counts { samples: total, untrained, empty, .. } = data.counts;
        if let Some(line) =
            first_untrained.filter(|_| untrained as f64 > self.options.max_untrained * total as f64)
        {
            let share = self.options.max_untrained * 100.0;
            let what = format!(
                "{untrained} of {total} samples have no trained token, the first is here; {share} % are allowed"
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

    /// Encodes a sample, and the same with its wrong answer where it has one.
    fn encode_pair(&self, sample: &Sample) -> Explained<Encoded> {
        let encoded = self.encode(sample)?;
        let Some(body) = &sample.rejected else { return Ok(encoded) };
        let wrong = self.encode(&Sample { body: body.clone(), ..sample.clone() })?.example;
        if wrong.trained_tokens() == 0 {
            return Err("its 'rejected' has no trained token".into());
        }
        Ok(Encoded { example: encoded.example.with_rejected(Some(wrong)), ..encoded })
    }

    fn encode(&self, sample: &Sample) -> Explained<Encoded> {
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
        // Text has no prompt: its routers see all of it.
        let whole = matches!(sample.body, Body::Text(_)) || self.options.loss_on == LossOn::All;
        let before = example.trained.iter().position(|trained| *trained).unwrap_or(example.ids.len());
        example.prompt = if whole { example.ids.len() } else { before };
        if let Some(first) = example.trained.first_mut() {
            *first = false;
        }
        Ok(Encoded { example, truncated, joined })
    }

    fn pieces(&self, text: &str) -> Explained<Vec<Piece>> {
        self.tokenizer.encode_pieces(text, true).map_err(|error| error.to_string())
    }

    /// The pieces of a prompt and its completion, which begin with those of the prompt alone, as at inference. The flag
    /// says that one text of both has other tokens, as after a prompt that ends in a space.
    fn completion(&self, prompt: &str, completion: &str) -> Explained<(Vec<Piece>, bool)> {
        let one = self.pieces(&format!("{prompt}{completion}"))?;
        let mut pieces = self.pieces(prompt)?;
        let prompt_len = pieces.len();
        let begins =
            one.len() >= prompt_len && one.iter().zip(&pieces).all(|(whole, part)| whole.id == part.id);
        if begins && one[prompt_len..].iter().all(|piece| piece.source.start >= prompt.len()) {
            return Ok((one, false));
        }
        for piece in self.continued(completion)? {
            let source = prompt.len() + piece.source.start..prompt.len() + piece.source.end;
            pieces.push(Piece { source, ..piece });
        }
        Ok((pieces, true))
    }

    /// The pieces of a text that continues another one: without the space that some vocabularies put before a text.
    fn continued(&self, text: &str) -> Explained<Vec<Piece>> {
        for before in ["\n", "."] {
            let pieces = self.pieces(&format!("{before}{text}"))?;
            let first =
                pieces.iter().position(|piece| piece.source.end > before.len()).unwrap_or(pieces.len());
            if pieces[first..].iter().all(|piece| piece.source.start >= before.len()) {
                let shifted = |piece: &Piece| Piece {
                    id: piece.id,
                    source: piece.source.start - before.len()..piece.source.end - before.len(),
                };
                return Ok(pieces[first..].iter().map(shifted).collect());
            }
        }
        self.pieces(text)
    }

    /// Plain text that is trained from a byte on, followed by the end token.
    fn plain(&self, pieces: &[Piece], start: usize) -> Explained<Example> {
        let mut example = Example::default();
        if let Some(bos) = self.tokenizer.bos().filter(|_| self.tokenizer.add_bos())
            && pieces.first().is_none_or(|piece| piece.id != bos)
        {
            example.ids.push(bos);
            example.trained.push(false);
        }
        for piece in pieces {
            example.ids.push(piece.id);
            example.trained.push(piece.source.end > start && piece.source.end > piece.source.start);
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

    /// A conversation; the turns listed in `untrained` are not trained.
    fn conversation(&self, messages: &[Message], untrained: &[usize]) -> Explained<Example> {
        let template =
            self.template.as_ref().ok_or("the model has no chat template; name one, for example chatml")?;
        let all = self.options.loss_on == LossOn::All;
        let explain = |error: Error| error.to_string();
        let (text, generated) = if template.marks_generation() && !all {
            let marked =
                template.render_marked(messages, self.tokenizer.special_tokens()).map_err(explain)?;
            (marked.text, Some(marked.generated))
        } else {
            (self.tokenizer.render(template, messages, false).map_err(explain)?, None)
        };
        let pieces = self.pieces(&text)?;
        let mut trained = vec![all; pieces.len()];
        if let Some(generated) = generated {
            self.train_generated(messages, generated, untrained, &pieces, &mut trained)?;
        } else if !all || !untrained.is_empty() {
            let ends = &self.ends;
            let turns =
                Turns { tokenizer: &self.tokenizer, template, messages, text: &text, pieces: &pieces, ends };
            // With `all`, the turns that the sample excludes are cleared; otherwise the other turns are set.
            for (index, range) in
                turns.find()?.into_iter().filter(|(index, _)| untrained.contains(index) == all)
            {
                let turn = self.tokens_of_turn(index, range, &pieces)?;
                trained[turn].fill(!all);
            }
        }
        let ids = pieces.iter().map(|piece| piece.id).collect();
        Ok(Example { ids, trained, ..Example::default() })
    }

    /// Trains the ranges that the template marks; a turn may have several.
    fn train_generated(
        &self,
        messages: &[Message],
        generated: Vec<Range<usize>>,
        untrained: &[usize],
        pieces: &[Piece],
        trained: &mut [bool],
    ) -> Explained<()> {
        let turns: Vec<usize> =
            (0..messages.len()).filter(|&index| messages[index].role == Role::Assistant).collect();
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
            ended |= pieces[tokens.clone()].iter().any(|piece| self.ends.contains(&piece.id));
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
    fn tokens_of_turn(&self, i: usize, range: Range<usize>, pieces: &[Piece]) -> Explained<Range<usize>> {
        let turn = overlapping(pieces, &range);
        let end = pieces[turn.clone()].iter().rposition(|piece| self.ends.contains(&piece.id));
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

    /// Cuts an example to the largest length: first after the last trained token, then at the start, so that the end of
    /// the answer is kept. A start token stays first.
    fn fit(&self, mut example: Example) -> (Example, bool) {
        let max = self.options.max_length;
        let truncated = example.ids.len() > max;
        if truncated {
            let end = example
                .trained
                .iter()
                .rposition(|trained| *trained)
                .map_or(example.ids.len(), |last| last + 1);
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

/// The tokens that share a byte with a range of the text.
fn overlapping(pieces: &[Piece], part: &Range<usize>) -> Range<usize> {
    let inside = |piece: &Piece| {
        piece.source.end > part.start && piece.source.start < part.end && !piece.source.is_empty()
    };
    // Tokens are in the order of the text.
    let from = pieces.partition_point(|piece| piece.source.end <= part.start);
    let to = pieces.partition_point(|piece| piece.source.start < part.end).max(from);
    let first = pieces[from..to].iter().position(inside).map_or(to, |at| from + at);
    let stop = pieces[first..to].iter().rposition(inside).map_or(first, |at| first + at + 1);
    first..stop
}

/// Joins adjacent ranges.
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
