//! Whole experts for each token of a block, with a loss that spreads the load (MixLoRA, arXiv:2404.15159).

use crate::mixture::losses::{Counted, switch_loss, z_loss};
use crate::mixture::site::part;
use crate::mixture::{Ask, Gate, MlpBuild, Router, Routes, Routing, Rule, Selection, Units, route};
use crate::nn::{Param, Pass};
use crate::ops::routing_load::routing_load;
use crate::ops::select::SelectRule;
use crate::{Result, Tensor};

/// Which experts a token gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ExpertChoice {
    /// The k best, gates the softmax over them.
    TopK(usize),
    /// The best ones until their probabilities exceed this; gates are the probabilities.
    TopP(f32),
    /// The best one, while it has room: so many tokens of a sequence, in order. Its gate is its probability in training
    /// and 1 else; tokens without a place keep their input.
    Switch { capacity: usize, jitter: f32 },
}

/// Coefficients of the losses of [`TokenExperts`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertLosses {
    /// Of `E sum_e f_e P_e`.
    pub balance: f32,
    /// Of the mean squared log-sum of the logits.
    pub z: f32,
}

/// Chooses among `experts` LoRAs of a block.
pub struct TokenExperts {
    site: String,
    /// `[E, hidden]`
    router: Param,
    experts: usize,
    rank: usize,
    chosen: ExpertChoice,
    routing: Routing,
    losses: ExpertLosses,
}

impl TokenExperts {
    /// A fresh router, normal with a standard deviation.
    ///
    /// # Errors
    /// The device has no memory for it.
    pub fn new(
        at: &MlpBuild<'_>,
        [experts, rank]: [usize; 2],
        chosen: ExpertChoice,
        losses: ExpertLosses,
        std: f32,
    ) -> Result<Self> {
        let parts = vec![(part(&at.site.path, "router"), experts)];
        let router = at.normal(parts, at.site.hidden_size, std, true)?;
        let rule = match chosen {
            ExpertChoice::TopK(k) => Rule::top_k(k, Gate::Softmax),
            _ => Rule::top_k(1, Gate::None),
        };
        let site = at.site.name.clone();
        Ok(TokenExperts { site, router, experts, rank, chosen, routing: rule.routing()?, losses })
    }

    /// All experts in order for every token; those that do not act have the gate 0.
    fn until(&self, top_p: f32, logits: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let e = self.experts;
        let m = logits.shape().rows();
        let p = logits.softmax()?;
        let rule = SelectRule::TopP { top_p, least: 1, crossing: true };
        let mask = match ask.forced {
            Some(mask) => mask.reshape(&[m, e])?,
            None => p.detach().select(&rule)?,
        };
        let all: Vec<u32> = (0..m * e).map(|i| (i % e) as u32).collect();
        let all = Tensor::from_u32(logits.device(), &[1, 1, m, e], &all)?;
        let gates = p.mul(&mask)?.reshape(&[1, m, e])?;
        let selection = Selection::new(all, Some(gates), &Units::tokens(m), e, self.rank)?;
        Ok(selection.with_mask(mask.reshape(&[m, 1, e])?))
    }

    /// The best expert where it has room.
    fn placed(&self, capacity: usize, logits: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let m = logits.shape().rows();
        let device = logits.device();
        let z = logits.reshape(&[m, 1, 1, self.experts])?;
        let best = route(&z, None, None, ask.forced, &self.routing, &Units::tokens(m), self.rank)?;
        let hits = one_hot(best.idx(), m, self.experts)?;
        let placed = places(&hits, capacity, ask.pass)?;
        let share = if ask.pass.train {
            logits.softmax()?.mul(&hits)?.sum_last()?.reshape(&[m, 1])?
        } else {
            Tensor::full(device, &[m, 1], 1.0)?
        };
        let gates = share.mul(&placed)?;
        let passed = share.sub(&gates)?;
        Ok(best.with_gates(gates.reshape(&[1, m, 1])?).with_passed(passed))
    }

    fn add_losses(&self, logits: &Tensor, choice: &Selection, pass: &Pass) -> Result<()> {
        let tokens = Counted::of(pass, logits.shape().rows());
        if self.losses.balance > 0.0 {
            let load = match choice.record().filter(|record| record.dims().len() == 3) {
                Some(mask) => tokens.sum(&mask.reshape(logits.dims())?)?,
                None => {
                    routing_load(choice.idx(), self.experts, tokens.weights())?.reshape(&[self.experts])?
                }
            };
            let loss = switch_loss(&tokens.sum(&logits.softmax()?)?, &load, self.experts, tokens.count())?;
            pass.add_aux(loss.scale(self.losses.balance)?);
        }
        if self.losses.z > 0.0 {
            pass.add_aux(z_loss(logits, &tokens)?.scale(self.losses.z)?);
        }
        Ok(())
    }

    /// The tokens as the router sees them: in training each value times a factor near 1.
    fn seen(&self, rows: &Tensor, pass: &Pass) -> Result<Tensor> {
        match self.chosen {
            ExpertChoice::Switch { jitter, .. } if jitter > 0.0 && pass.train => {
                let noise = pass.stream.named(&self.site).named("jitter").uniform_vec(rows.len(), jitter);
                let factors: Vec<f32> = noise.into_iter().map(|v| 1.0 + v).collect();
                rows.mul(&Tensor::from_f32(rows.device(), rows.dims(), &factors)?)
            }
            _ => Ok(rows.clone()),
        }
    }
}

/// Entries `[1, 1, M, 1]` as `[M, E]` with a 1 at each.
pub(in crate::mixture) fn one_hot(idx: &Tensor, m: usize, e: usize) -> Result<Tensor> {
    let eye: Vec<f32> = (0..e * e).map(|i| if i / e == i % e { 1.0 } else { 0.0 }).collect();
    Tensor::from_f32(idx.device(), &[e, e], &eye)?.gather_rows(&idx.reshape(&[m])?)
}

/// 1 for the tokens that count and are among the first `capacity` of their sequence with the same expert, `[M, 1]`.
fn places(hits: &Tensor, capacity: usize, pass: &Pass) -> Result<Tensor> {
    let [m, e] = *hits.dims() else { return hits.sum_last() };
    let device = hits.device();
    let hits = match &pass.valid {
        Some((weights, _)) => hits.mul(weights)?,
        None => hits.clone(),
    };
    let b = pass.samples(m);
    let s = m / b;
    // Position first: one product with a triangle counts along all sequences.
    let order = |across: usize, along: usize| -> Result<Tensor> {
        let at: Vec<u32> = (0..m).map(|i| (i % across * along + i / across) as u32).collect();
        Tensor::from_u32(device, &[m], &at)
    };
    let triangle: Vec<f32> = (0..s * s).map(|i| f32::from(u8::from(i % s <= i / s))).collect();
    let triangle = Tensor::from_f32(device, &[s, s], &triangle)?;
    let along = hits.gather_rows(&order(b, s)?)?.reshape(&[s, b * e])?;
    let counts = triangle.matmul(&along)?.reshape(&[m, e])?.gather_rows(&order(s, b)?)?;
    let room = counts.scale(-1.0)?.select(&SelectRule::Above(-(capacity as f32 + 0.5)))?;
    room.mul(&hits)?.sum_last()?.reshape(&[m, 1])
}

impl Router for TokenExperts {
    const UNIT: Routes = Routes::Token;

    fn pool(&self) -> (usize, usize) {
        (self.experts, self.rank)
    }

    fn choose(&self, rows: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let m = rows.shape().rows();
        let logits = self.seen(rows, ask.pass)?.matmul_nt(&self.router.tensor())?;
        let choice = match self.chosen {
            ExpertChoice::TopK(_) => {
                let z = logits.reshape(&[m, 1, 1, self.experts])?;
                route(&z, None, None, ask.forced, &self.routing, &Units::tokens(m), self.rank)?
            }
            ExpertChoice::TopP(top_p) => self.until(top_p, &logits, ask)?,
            ExpertChoice::Switch { capacity, .. } => self.placed(capacity, &logits, ask)?,
        };
        if ask.pass.train {
            self.add_losses(&logits, &choice, ask.pass)?;
        }
        Ok(choice)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.router.clone()]
    }
}
