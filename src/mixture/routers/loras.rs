//! The best LoRA experts for each token, at linears.

use crate::mixture::losses::Counted;
use crate::mixture::{
    Ask, LinearBuild, Router, Routes, Routing, Rule, Selection, TemperatureSchedule, TopKSchedule, Units,
    route, route_rows,
};
use crate::nn::{Param, Pass};
use crate::ops::routing_load::routing_load;
use crate::{Result, Tensor};

/// What a loss of sparse routing is computed from.
pub struct Chosen<'a> {
    /// `[M, L, E]`
    pub logits: Tensor,
    pub choice: &'a Selection,
    pub ask: &'a Ask<'a>,
}

impl Chosen<'_> {
    /// The tokens that losses are means over.
    pub fn counted(&self) -> Counted {
        Counted::of(self.ask.pass, self.logits.dims()[0])
    }

    /// How often each expert was chosen by tokens that count, `[L, E]`.
    ///
    /// # Errors
    /// The device failed.
    pub fn load(&self) -> Result<Tensor> {
        let experts = self.logits.shape().last();
        routing_load(self.choice.idx(), experts, self.counted().weights())
    }
}

/// An auxiliary loss of sparse routing, times its coefficient.
pub trait ChoiceLoss: Send + Sync {
    /// Its coefficient; 0 leaves it out.
    fn coefficient(&self) -> f32;
    /// The loss without its coefficient.
    ///
    /// # Errors
    /// The device failed, or the pass lacks what the loss needs.
    fn loss(&self, chosen: &Chosen<'_>) -> Result<Tensor>;
}

/// Chooses among `experts` LoRAs for each token by its products with a router's rows.
pub struct TokenLoras<A> {
    linears: usize,
    experts: usize,
    rank: usize,
    /// `[L * E, d_in]`
    router: Param,
    /// What the logits are divided by before they become gates.
    temperature: TemperatureSchedule,
    /// With as many choices as at the end of training.
    routing: Routing,
    choices: Option<TopKSchedule>,
    loss: A,
}

impl<A: ChoiceLoss> TokenLoras<A> {
    /// Around a router `[L * E, d_in]`.
    ///
    /// # Errors
    /// An expert has a rank that a linear cannot have, or no kernel computes the rule.
    pub fn new(
        at: &LinearBuild<'_>,
        router: Param,
        [experts, rank]: [usize; 2],
        rule: Rule,
        temperature: TemperatureSchedule,
        loss: A,
    ) -> Result<Self> {
        at.site.fits("r", rank)?;
        let linears = at.site.linears.len();
        let routing = rule.routing()?;
        Ok(TokenLoras { linears, experts, rank, router, temperature, routing, choices: None, loss })
    }
}

impl<A> TokenLoras<A> {
    /// The same with other numbers of choices during training.
    pub fn with_choices(self, choices: Option<TopKSchedule>) -> Self {
        TokenLoras { choices, ..self }
    }

    /// The temperature of a pass, and its routing.
    fn at(&self, pass: &Pass) -> (f32, Routing) {
        let step = pass.step.unwrap_or(usize::MAX);
        let k = self.choices.map_or(self.routing.k, |choices| choices.k(step));
        (self.temperature.at(step), Routing { k, ..self.routing.clone() })
    }
}

impl<A: ChoiceLoss> Router for TokenLoras<A> {
    const UNIT: Routes = Routes::Token;

    fn pool(&self) -> (usize, usize) {
        (self.experts, self.rank)
    }

    fn choose(&self, x: &Tensor, ask: &Ask<'_>) -> Result<Selection> {
        let m = x.shape().rows();
        let rows = x.reshape(&[m, x.shape().last()])?;
        let router = self.router.tensor();
        let (temperature, routing) = self.at(ask.pass);
        let scaled = |t: Tensor| if temperature == 1.0 { Ok(t) } else { t.scale(1.0 / temperature) };
        if !ask.pass.train || self.loss.coefficient() == 0.0 {
            // Gates need the chosen logits alone, and so do gradients.
            let router = scaled(router)?;
            return route_rows(&rows, &router, self.linears, None, ask.forced, &routing, self.rank);
        }
        let logits = rows.matmul_nt(&router)?.reshape(&[m, self.linears, self.experts])?;
        let z = scaled(logits.clone())?.reshape(&[m, self.linears, 1, self.experts])?;
        let choice = route(&z, None, None, ask.forced, &routing, &Units::tokens(m), self.rank)?;
        let loss = self.loss.loss(&Chosen { logits, choice: &choice, ask })?;
        ask.pass.add_aux(loss.scale(self.loss.coefficient())?);
        Ok(choice)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.router.clone()]
    }
}
