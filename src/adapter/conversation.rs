//! How the passes of a conversation route: its prompt, and what comes behind.

use super::{Adapter, Bank};
use crate::mixture::{DecodeRoute, Pool, Span, Units};
use crate::model::vision::PictureFeatures;
use crate::model::{Generation, Model};
use crate::nn::{Choices, Labels, Member, Pass, SiteAdapters};
use crate::tape::inside;
use crate::{Device, Error, Result, Tensor, no_grad};
use std::sync::Arc;

/// What an adapter does in a conversation.
struct Routed {
    adapters: Arc<SiteAdapters>,
    scale: f32,
    pool: Pool,
    route: DecodeRoute,
    /// What the prompt chose.
    choices: Choices,
    /// Units of the rows before, which are mostly those of the next ones.
    units: Option<Units>,
}

impl Routed {
    fn new(adapter: &Adapter, scale: f32) -> Self {
        // Methods that do not route by instance have no use for its units.
        let own = adapter.method().options().instance();
        let own = own.map_or((Pool::Real, DecodeRoute::FreezePrefill), |i| (i.pool, i.decode_route));
        let adapters = adapter.sites().clone();
        Routed { adapters, scale, pool: own.0, route: own.1, choices: Choices::record(), units: None }
    }

    /// Units of `n` new positions of each sequence, of which those with a flag are rows of pictures.
    fn units(&mut self, device: &Device, rows: usize, n: usize, pictures: &[bool]) -> Result<Units> {
        let spans = vec![Span { len: n, prompt: n }; rows];
        if !pictures.is_empty() {
            return self.pool.units_with_pictures(device, &spans, n, pictures);
        }
        if let Some(units) = self.units.as_ref().filter(|u| u.rows() == n * rows) {
            return Ok(units.clone());
        }
        let units = self.pool.units(device, &spans, n)?;
        self.units = Some(units.clone());
        Ok(units)
    }

    /// Its part in a pass over such units.
    fn member(&mut self, units: Units, chosen: bool) -> Result<Member> {
        let choices = match (chosen, self.route) {
            (false, _) => self.choices.clone(),
            (true, DecodeRoute::FreezePrefill) => self.choices.freeze(),
            (true, DecodeRoute::PerStep) => Choices::Free,
        };
        Ok(Member { choices, ..Member::new(self.adapters.clone(), self.scale, units) })
    }
}

/// Sequences of one length that a model continues, with the adapters' routing: a conversation, or a batch of prompts.
///
/// The first tokens are the prompt: instance-routed methods choose on them as in training, where only the positions
/// before the answer are looked at. What comes behind keeps that choice or is routed anew, as `decode_route` says.
/// Methods that choose per token are not concerned.
pub struct Conversation {
    generation: Generation,
    bank: Vec<Routed>,
    rows: usize,
    labels: Labels,
    /// Whether the prompt has chosen.
    chosen: bool,
}

impl Conversation {
    /// `rows` sequences without a token yet, of a model with an adapter, several ([`Bank`]) or none.
    pub fn new(model: &Arc<Model>, adapters: impl Into<Bank>, rows: usize) -> Self {
        let bank = adapters.into();
        let labels = Labels { has_front: bank.framing().front, ..Labels::default() };
        let bank = bank.adapters().iter().map(|(adapter, scale)| Routed::new(adapter, *scale)).collect();
        let generation = Generation::new(model, rows);
        Conversation { generation, bank, rows, labels, chosen: false }
    }

    /// The same with another way to route what is generated than the adapters' own, where one is given.
    pub fn with_route(mut self, route: Option<DecodeRoute>) -> Self {
        self.bank.iter_mut().for_each(|routed| routed.route = route.unwrap_or(routed.route));
        self
    }

    /// The same with the task of each sequence, where it has one: for methods that choose by task.
    pub fn with_tasks<'a>(mut self, tasks: impl IntoIterator<Item = Option<&'a str>>) -> Self {
        self.labels.tasks = tasks.into_iter().map(|task| task.map(Arc::from)).collect();
        self
    }

    /// The same with the condition of each sequence: for methods that choose by it.
    ///
    /// # Errors
    /// There is not one for each sequence, or their lengths differ.
    pub fn with_conditions(mut self, conditions: &[Vec<f32>]) -> Result<Self> {
        let width = conditions.first().map_or(0, Vec::len);
        let all = conditions.concat();
        if width == 0 || conditions.len() != self.rows || conditions.iter().any(|c| c.len() != width) {
            let found: Vec<usize> = conditions.iter().map(Vec::len).collect();
            let expected = format!("as many numbers for each of {} sequences", self.rows);
            return Err(Error::config("condition", format!("{found:?} numbers"), expected));
        }
        self.labels.conditions = Some(Tensor::from_f32(self.generation.device(), &[self.rows, width], &all)?);
        Ok(self)
    }

    /// Runs tokens `[rows, n]` behind those before.
    ///
    /// # Errors
    /// As [`Generation::push`]; what could not be pushed has changed nothing where it is refused before it is run.
    pub fn push(&mut self, tokens: &[u32]) -> Result<()> {
        self.run(tokens, None)
    }

    /// The same with pictures, whose rows stand in the places of image tokens.
    ///
    /// # Errors
    /// As [`push`](Conversation::push); or the image tokens are not as many as the rows of the pictures.
    pub fn push_with_pictures(&mut self, tokens: &[u32], pictures: &PictureFeatures) -> Result<()> {
        self.run(tokens, Some(pictures))
    }

    fn run(&mut self, tokens: &[u32], pictures: Option<&PictureFeatures>) -> Result<()> {
        let front = self.rows_in_front();
        if front == 0 || tokens.is_empty() {
            return self.run_framed(tokens, pictures);
        }
        // Which token holds the place does not matter, if it is none of a picture: the adapter's vector is there.
        let held = pictures.map_or(0, |pictures| u32::from(pictures.rows_among(&[0]) == [true]));
        let each = tokens.chunks(tokens.len().div_ceil(self.rows.max(1)));
        let framed: Vec<u32> = each.flat_map(|sequence| [&[held], sequence].concat()).collect();
        self.run_framed(&framed, pictures)
    }

    fn run_framed(&mut self, tokens: &[u32], pictures: Option<&PictureFeatures>) -> Result<()> {
        self.generation.check(tokens, pictures.is_some())?;
        let n = tokens.len() / self.rows;
        let device = self.generation.device().clone();
        let flags = pictures.map_or_else(Vec::new, |pictures| pictures.rows_among(tokens));
        let member = |routed: &mut Routed| {
            let units = routed.units(&device, self.rows, n, &flags)?;
            routed.member(units, self.chosen)
        };
        let members = self.bank.iter_mut().map(member).collect::<Result<Vec<_>>>()?;
        let units = match members.first() {
            Some(first) => first.units.clone(),
            None => Units::tokens(tokens.len()),
        };
        let pass = Pass::new(units).with_labels(self.labels.clone()).with_bank(members);
        match pictures {
            Some(pictures) => {
                let model = self.generation.model();
                let embedded = || pictures.embedded(model, tokens, [self.rows, n], &pass);
                let embedded = inside(&device, || no_grad(embedded))?;
                self.generation.push_embedded(tokens, &embedded, &pass)?;
            }
            None => self.generation.push(tokens, &pass)?,
        }
        self.chosen = true;
        Ok(())
    }

    /// Forgets all tokens, to read them again in another way: what the prompt chose stays.
    pub fn restart(&mut self) {
        self.generation.restart();
    }

    /// Its model.
    pub fn model(&self) -> &Arc<Model> {
        self.generation.model()
    }
    /// Logits of the next token of a sequence.
    pub fn logits(&self, row: usize) -> &[f32] {
        self.generation.logits(row)
    }
    /// Positions so far.
    pub fn len(&self) -> usize {
        self.generation.len()
    }
    /// True before the first tokens.
    pub fn is_empty(&self) -> bool {
        self.generation.is_empty()
    }
    /// Positions that are left for tokens.
    pub fn room(&self) -> usize {
        self.generation.room().saturating_sub(self.rows_in_front())
    }
    /// Rows that the next push puts in front of each sequence.
    fn rows_in_front(&self) -> usize {
        usize::from(self.labels.has_front && self.generation.is_empty())
    }
    /// What the prompt chose, site by site, for each adapter.
    pub fn choices(&self) -> impl Iterator<Item = &Choices> {
        self.bank.iter().map(|routed| &routed.choices)
    }
}
