//! What the release of Conditional MixLoRA lets one change of its routing.

use super::{Beside, Cfs, CfsForm, Conditioned, Depth, Entries, Gate, Prunes, Rule, Score, Select, SitePart};
use crate::{Error, Result, options, words};

words! {
    /// What the routers of Conditional MixLoRA look at.
    pub enum RouterInput {
        /// The pooled input of the instance.
        Pooled = "pooled",
        /// The condition beside its text, such as the definition of its task.
        Condition = "condition",
        /// Nothing: factors are drawn.
        Random = "random",
    }
}

options! {
    /// What the release of Conditional MixLoRA lets one change of its routing.
    pub struct Ablations {
        /// What routers look at: the pooled input, the sample's condition (such as the definition of its task), or nothing:
        /// factors are then drawn uniformly in each pass.
        router_input: RouterInput = RouterInput::Pooled, "VT-NLP/MixLoRA";
        /// Whether B has a choice of its own; else it takes A's, and factors are chosen in pairs.
        independent_rank: bool = true, "VT-NLP/MixLoRA";
        /// Whether A is chosen; else one A of rank r serves all instances, and B alone is chosen.
        mix_lora_a: bool = true, "VT-NLP/MixLoRA";
        /// The first layer with a mixture: those below have an ordinary LoRA of rank r.
        mix_start_layer: usize = 0, "VT-NLP/MixLoRA";
        /// Whether the projector of a model that sees has a mixture too, in place of being trained whole: its routers look at
        /// the sample's condition, such as the definition of its task, whatever the others look at.
        mix_mm_projector: bool = false, "VT-NLP/MixLoRA";
        /// Whether normal noise of deviation 1/r is added to what is ranked, at inference too.
        add_noise: bool = false, "VT-NLP/MixLoRA";
    }
}

impl Ablations {
    /// Refuses what cannot work together.
    ///
    /// # Errors
    /// The first combination that cannot; the error names an option.
    pub fn check(&self, cfs: &Cfs) -> Result<()> {
        let refused = |option: &str, what: &str| Err(Error::refused(option, what));
        let drawn = self.router_input == RouterInput::Random;
        if cfs.cfs_form.is_some() {
            if drawn {
                return refused(
                    "router_input",
                    "random draws factors, which look at nothing: cfs_form must be null",
                );
            }
            if !self.independent_rank {
                return refused(
                    "independent_rank",
                    "false gives B the choice of A, without a condition: cfs_form must be null",
                );
            }
            if !self.mix_lora_a {
                return refused(
                    "mix_lora_a",
                    "false leaves no choice of A to look at: cfs_form must be null",
                );
            }
        }
        if drawn && self.add_noise {
            return refused(
                "add_noise",
                "true adds noise to scores, and with router_input = random there are none",
            );
        }
        if !self.independent_rank && !self.mix_lora_a {
            return refused(
                "mix_lora_a",
                "false leaves no choice of A, which independent_rank = false gives to B",
            );
        }
        Ok(())
    }

    /// The same for a method whose factors have gates.
    ///
    /// # Errors
    /// As [`check`](Ablations::check).
    pub fn check_gated(&self, cfs: &Cfs, gated_input: bool) -> Result<()> {
        if self.router_input == RouterInput::Random {
            let what = "random factors have no scores, of which gates are made: take mixlora-cond";
            return Err(Error::refused("router_input", what));
        }
        if self.add_noise && gated_input && cfs.cfs_form.is_some() {
            let what =
                "true adds noise to A's scores, and cfs_gated_input has no form with it: one must be false";
            return Err(Error::refused("add_noise", what));
        }
        self.check(cfs)
    }

    /// The rule of a method without gates that chooses so many factors.
    pub fn rule(&self, chosen: usize) -> Rule {
        match self.router_input {
            RouterInput::Random => {
                Rule { score: Score::None, select: Select::TopK(chosen), gate: Gate::None }
            }
            _ => Rule::top_k(chosen, Gate::None),
        }
    }

    /// The conditions that routers look at, where they do.
    pub fn condition<'a>(&self, condition: &'a Conditioned) -> Option<&'a Conditioned> {
        (self.router_input == RouterInput::Condition || self.mix_mm_projector).then_some(condition)
    }

    /// Whether a mixture is put on linears of that part of a model.
    pub fn takes(&self, part: SitePart) -> bool {
        match part {
            SitePart::Projector => self.mix_mm_projector,
            SitePart::Expert | SitePart::ExpertRouter => false,
            _ => true,
        }
    }

    /// The routing of a place: that of a projector looks at the condition, and begins at no layer.
    pub(super) fn at(&self, part: SitePart) -> Self {
        match part {
            SitePart::Projector => {
                Ablations { router_input: RouterInput::Condition, mix_start_layer: 0, ..self.clone() }
            }
            _ => self.clone(),
        }
    }

    /// What can be dropped of the pools of a method that chooses so many factors.
    pub fn prunes(&self, cfs: &Cfs, chosen: usize) -> Prunes {
        if self.router_input == RouterInput::Random {
            return Prunes::No("its factors are drawn, and none is used less than others");
        }
        let one = Beside::Rows(1);
        // The condition has a map to B's factors for each slot, or one for all.
        let slots = if cfs.cfs_form == Some(CfsForm::Choice) { 1 } else { chosen };
        let of_a = vec![("router_a", one), ("choice_embed", one)];
        let of_b = vec![("router_b", one), ("router_cfs", Beside::Rows(slots))];
        let sides = if !self.independent_rank {
            vec![Entries { factors: &["factors_a", "factors_b"], beside: of_a }]
        } else if !self.mix_lora_a {
            vec![Entries { factors: &["factors_b"], beside: of_b }]
        } else {
            vec![
                Entries { factors: &["factors_a"], beside: of_a },
                Entries { factors: &["factors_b"], beside: of_b },
            ]
        };
        Prunes::Rows { size: "num_factors", sides }
    }

    /// Whether a layer has an ordinary LoRA.
    ///
    /// # Errors
    /// The mixture would start behind the last layer.
    pub fn is_below_start(&self, depth: Depth) -> Result<bool> {
        if self.mix_start_layer > depth.layers {
            let expected = format!("at most {}, the number of layers", depth.layers);
            return Err(Error::config("mix_start_layer", self.mix_start_layer, expected));
        }
        Ok(depth.layer < self.mix_start_layer)
    }

    /// The parts of the routers: of the sides that they choose on.
    pub(super) fn routed_sides(&self) -> &'static [&'static str] {
        match (self.router_input, self.independent_rank, self.mix_lora_a) {
            (RouterInput::Random, _, _) => &[],
            (_, false, _) => &["router_a"],
            (_, _, false) => &["router_b"],
            _ => &["router_a", "router_b"],
        }
    }
}
