//! Encoding of samples as tokens with their trained positions.

use super::picture::Shown;
use super::problems::Problems;
use super::sample::{Body, Sample};
use super::{Counts, Dataset, Example, OnBadImage};
use crate::text::{ChatTemplate, Expanded, PictureTokens, Piece, Tokenizer};
use crate::{Error, Result};
use rayon::prelude::*;
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
    /// What becomes of samples with pictures that cannot be read.
    pub on_bad_image: OnBadImage,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        EncodeOptions {
            loss_on: LossOn::Assistant,
            max_length: 1024,
            max_untrained: 0.05,
            allow_untrained_eos: false,
            on_bad_image: OnBadImage::Error,
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
    /// Its answer and its pictures are longer than the largest length: the example is longer too.
    pub too_long: bool,
}

/// A result whose error is a sentence.
pub(super) type Explained<T> = std::result::Result<T, String>;

/// Why a sample has no example.
pub(super) enum Fault {
    Sample(String),
    /// A picture cannot be read.
    Picture(String),
}

impl From<String> for Fault {
    fn from(what: String) -> Self {
        Fault::Sample(what)
    }
}

impl From<&str> for Fault {
    fn from(what: &str) -> Self {
        Fault::Sample(what.into())
    }
}

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
    pub(super) tokenizer: Tokenizer,
    pub(super) template: Option<ChatTemplate>,
    pub(super) options: EncodeOptions,
    pub(super) ends: Vec<u32>,
    pub(super) pictures: Option<PictureTokens>,
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
        let tokenizer = tokenizer.clone();
        Ok(Encoder { tokenizer, template: template.cloned(), options, ends, pictures: None })
    }

    /// The same for a model that sees; nothing changes where it does not.
    ///
    /// # Errors
    /// The tokenizer does not know the token of pictures.
    pub fn with_pictures(self, pictures: Option<PictureTokens>) -> Result<Self> {
        pictures.as_ref().map_or(Ok(()), |pictures| pictures.check(&self.tokenizer))?;
        Ok(Encoder { pictures, ..self })
    }

    /// Encodes one sample; a sample without content becomes an example without tokens, and of a document the first of its
    /// examples is given.
    ///
    /// # Errors
    /// The template fails, or its assistant turns cannot be located or have no end token; or a picture cannot be read.
    pub fn sample(&self, path: &Path, sample: &Sample) -> Result<Encoded> {
        let encoded = self.encode_all(sample).and_then(|all| {
            let truncated = all.len() > 1;
            let first = all.into_iter().next().ok_or("the document has no text")?;
            Ok(Encoded { truncated: truncated || first.truncated, ..first })
        });
        encoded.map_err(|(Fault::Sample(what) | Fault::Picture(what))| Error::Data {
            path: path.into(),
            problems: vec![sample.problem(what)],
            more: 0,
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
            let encoded = self.encode_all(sample);
            step();
            encoded
        };
        let done: Vec<std::result::Result<Vec<Encoded>, Fault>> = samples.par_iter().map(watched).collect();
        let mut data = Dataset::default();
        data.counts.samples = samples.len();
        let mut problems = Problems::default();
        let mut first_untrained = None;
        let each = |(sample, all): (_, std::result::Result<Vec<_>, _>)| match all {
            Ok(all) => all.into_iter().map(|encoded| (sample, Ok(encoded))).collect(),
            Err(fault) => vec![(sample, Err(fault))],
        };
        for (sample, encoded) in samples.iter().zip(done).flat_map(each) {
            match encoded {
                Err(Fault::Picture(_)) if self.options.on_bad_image == OnBadImage::Skip => {
                    data.counts.bad_pictures += 1;
                    data.counts.first_bad_picture.get_or_insert(sample.line);
                }
                Err(Fault::Sample(what) | Fault::Picture(what)) => problems.push(sample.problem(what)),
                Ok(encoded) if encoded.too_long => data.counts.too_long += 1,
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
        let Counts { samples: total, untrained, empty, too_long, bad_pictures, .. } = data.counts;
        if let Some(line) =
            first_untrained.filter(|_| untrained as f64 > self.options.max_untrained * total as f64)
        {
            let share = self.options.max_untrained * 100.0;
            let what = format!(
                "{untrained} of {total} samples have no trained token, the first is here; {share} % are allowed"
            );
            problems.add(line, 0, what);
        } else if data.examples.is_empty() {
            let mut what = format!("no sample is left: {empty} are empty, {untrained} have no trained token");
            if too_long + bad_pictures > 0 {
                what += &format!(
                    ", {too_long} are too long with their pictures, {bad_pictures} have a picture that cannot be read"
                );
            }
            problems.add(0, 0, what);
        }
        problems.result(path, data)
    }

    /// Encodes a sample as the examples that it takes: one, but for documents.
    fn encode_all(&self, sample: &Sample) -> std::result::Result<Vec<Encoded>, Fault> {
        match &sample.body {
            Body::Document(text) => Ok(self.document(text)?),
            _ => Ok(vec![self.encode_pair(sample)?]),
        }
    }

    /// Encodes a text as examples of the largest length, each beginning with the last token of the one before, so that all
    /// tokens but the first are trained once.
    fn document(&self, text: &str) -> Explained<Vec<Encoded>> {
        let whole = self.expanded(text, &[])?;
        let all = self.plain(&self.pieces(&whole.text)?, 0, &whole, &[])?.ids;
        let most = self.options.max_length;
        let starts = (0..all.len().saturating_sub(1)).step_by(most - 1);
        let examples = starts.map(|start| {
            let ids = all[start..all.len().min(start.saturating_add(most))].to_vec();
            let mut trained = vec![true; ids.len()];
            trained[0] = false;
            let prompt = ids.len();
            let example = Example { ids, trained, prompt, ..Example::default() };
            Encoded { example, truncated: false, joined: false, too_long: false }
        });
        Ok(examples.collect())
    }

    /// Encodes a sample, and the same with its wrong answer where it has one.
    fn encode_pair(&self, sample: &Sample) -> std::result::Result<Encoded, Fault> {
        let shown = self.show(sample)?;
        let encoded = self.encode(sample, &shown)?;
        let Some(body) = &sample.rejected else { return Ok(encoded) };
        let wrong = self.encode(&Sample { body: body.clone(), ..sample.clone() }, &shown)?;
        let too_long = encoded.too_long || wrong.too_long;
        let wrong = wrong.example;
        if wrong.trained_tokens() == 0 {
            return Err("its 'rejected' has no trained token".into());
        }
        Ok(Encoded { example: encoded.example.with_rejected(Some(wrong)), too_long, ..encoded })
    }

    fn encode(&self, sample: &Sample, shown: &[Shown]) -> Explained<Encoded> {
        let mut joined = false;
        let mut shortened = false;
        let tokens = match &sample.body {
            Body::Messages(messages) if shown.is_empty() => {
                self.conversation(messages, &sample.untrained, shown)?
            }
            Body::Messages(messages) => {
                let (example, fewer) = self.within_length(messages, &sample.untrained, shown)?;
                shortened = fewer;
                example
            }
            Body::Completion { prompt, completion } if prompt.is_empty() && completion.is_empty() => {
                Example::default()
            }
            Body::Completion { prompt, completion } => {
                let whole = self.expanded(&format!("{prompt}{completion}"), shown)?;
                let (prompt, completion) = whole.text.split_at(whole.place_of(prompt.len()));
                let (pieces, apart) = self.completion(prompt, completion)?;
                joined = apart;
                let start = if self.options.loss_on == LossOn::All { 0 } else { prompt.len() };
                self.plain(&pieces, start, &whole, shown)?
            }
            Body::Text(text) | Body::Document(text) if text.is_empty() => Example::default(),
            Body::Text(text) | Body::Document(text) => {
                let whole = self.expanded(text, shown)?;
                self.plain(&self.pieces(&whole.text)?, 0, &whole, shown)?
            }
        };
        let (mut example, truncated) = self.fit(tokens);
        let too_long = !shown.is_empty() && example.ids.len() > self.options.max_length;
        // Text has no prompt: its routers see all of it.
        let whole = matches!(sample.body, Body::Text(_)) || self.options.loss_on == LossOn::All;
        let before = example.trained.iter().position(|trained| *trained).unwrap_or(example.ids.len());
        example.prompt = if whole { example.ids.len() } else { before };
        if let Some(first) = example.trained.first_mut() {
            *first = false;
        }
        Ok(Encoded { example, truncated: truncated || shortened, joined, too_long })
    }

    pub(super) fn pieces(&self, text: &str) -> Explained<Vec<Piece>> {
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
    fn plain(&self, pieces: &[Piece], start: usize, whole: &Expanded, shown: &[Shown]) -> Explained<Example> {
        let mut example = Example::default();
        if let Some(bos) = self.tokenizer.bos().filter(|_| self.tokenizer.add_bos())
            && pieces.first().is_none_or(|piece| piece.id != bos)
        {
            example.ids.push(bos);
            example.trained.push(false);
        }
        let before = example.ids.len();
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
        self.placed(example, before, pieces, whole, shown)
    }
}
