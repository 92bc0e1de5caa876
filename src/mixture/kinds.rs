//! The words that say what kind of method one is.

/// Where a method joins a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Every adapted linear, in groups that read the same input.
    Linear,
    /// The MLP block as a whole; the other linears get what the method's `linear` builds.
    Mlp,
    /// Around a block: an MLP block of any kind, or a decoder layer; linears inside stay as they are.
    Block,
}

impl Hook {
    /// For tables.
    pub const fn name(self) -> &'static str {
        match self {
            Hook::Linear => "linear",
            Hook::Mlp => "mlp block",
            Hook::Block => "block",
        }
    }
}

/// Which rows of a batch choose together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routes {
    /// Nothing is chosen.
    None,
    /// An instance: the rows that [`Instance::pool`](super::Instance::pool) names stand for it.
    Instance,
    /// Every token by itself.
    Token,
    /// The instances of one task, by its label.
    Task,
    /// An instance, by the condition beside its text.
    Condition,
}

impl Routes {
    /// For tables.
    pub const fn name(self) -> &'static str {
        match self {
            Routes::None => "-",
            Routes::Instance => "instance",
            Routes::Token => "token",
            Routes::Task => "task",
            Routes::Condition => "condition",
        }
    }
}

/// Whether the task trains a method's router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterGradient {
    /// There is no router.
    NoRouter,
    Yes,
    /// It has an estimate of the task's gradient instead: which.
    Estimated(&'static str),
    /// It stays as drawn, or other losses alone train it: why.
    No(&'static str),
}

impl RouterGradient {
    /// For tables.
    pub const fn name(self) -> &'static str {
        match self {
            RouterGradient::NoRouter => "-",
            RouterGradient::Yes => "yes",
            RouterGradient::Estimated(_) => "estimated",
            RouterGradient::No(_) => "no",
        }
    }
}

/// The side of an update `s B A x` that a trained parameter belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub enum Side {
    /// What reads a linear's input.
    A,
    /// What writes to its output.
    B,
    /// Neither: routers, gates, vectors, and updates without two factors.
    Rest,
}

impl Side {
    /// For tables.
    pub const fn name(self) -> &'static str {
        match self {
            Side::A => "A",
            Side::B => "B",
            Side::Rest => "rest",
        }
    }
}

/// How a method's adapters are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// As a LoRA of PEFT, which other programs load.
    Peft,
    /// With the names and shapes of this crate.
    Own,
    /// The same; adapters of VT-NLP's release are read as this method.
    OwnOrReleased,
}

/// Whether trained LoRAs can be the experts of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakesExperts {
    /// It has none of its own kind.
    No,
    /// Instead of fresh ones.
    Optional,
    /// Without them there is nothing to mix.
    Needed,
}
