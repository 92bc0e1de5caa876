//! The LoRA-mixture family: each method is a router, a layout of factors and a balance rule over one operator.
//!
//! | word | meaning |
//! |---|---|
//! | method | what is trained: [`MethodSpec`] in the list, [`Method`] with its options |
//! | option | a named value of a method, declared once with [`options!`](crate::options) |
//! | site | a place in a model: a group of linears that read one input, an MLP block, a whole block, the start |
//! | unit | rows that choose together: an instance, a token, a task ([`Routes`]) |
//! | router | chooses factors for units ([`Router`]) by a rule: score, select, gate ([`Rule`]) |
//! | factor, expert | an entry of a pool: a rank-1 update, or a LoRA of its own |
//!
//! A method's file in `methods/` declares its options and says which router it puts over which pools: one of `routers/`,
//! or its own, where no other method has it. A method can also live in another crate: see docs/ADD_A_METHOD.md and examples/custom_method.rs.

mod ablations;
mod balance;
mod coded;
mod condition;
mod discriminant;
mod front;
mod groups;
mod kinds;
mod list;
pub mod losses;
mod memory;
pub mod methods;
mod options;
mod pooling;
mod prunes;
mod registry;
mod routed;
mod routed_mlp;
mod router;
pub mod routers;
mod rule;
mod schedule;
mod site;
mod spec;
mod tasks;

pub use crate::ops::mixture_linears::mixture_linears;
pub use crate::ops::topk_routing::{Condition, Routing, Table, first_choices, route, route_rows};
pub use crate::routing::{Dropout, Selection, Units};
pub use ablations::{Ablations, RouterInput};
pub use coded::{Code, CodedLinears, coded_memory};
pub use condition::{ConditionKind, Conditioned};
pub use front::InstrToken;
pub use groups::{
    AuxLoss, BiasBalance, Cfs, CfsForm, DecodeRoute, Experts, Factors, GateScale, Instance, Lora, Preference,
    Sparse, TopK, enough,
};
pub use kinds::{Files, Hook, RouterGradient, Routes, Side, TakesExperts};
pub use list::List;
pub use memory::{RowMemory, SiteMemory};
pub use options::{Field, Kind, OptionValue, Options, Range, Tree, read_option};
pub use pooling::{Framing, Pool, Span};
pub use prunes::{Beside, Entries, Prunes};
pub use registry::{Methods, find};
pub use routed::RoutedLinears;
pub use routed_mlp::RoutedMlp;
pub use router::{Ask, Router, decide};
pub use rule::{Gate, Rule, Score, Select};
pub use schedule::{StageRule, TemperatureSchedule, TopKSchedule};
pub use site::{Build, Depth, LinearBuild, LinearSite, MlpBuild, MlpSite, SitePart, StateBuild, StateSite};
pub use spec::{Axes, Method, MethodOptions, MethodSpec};
pub use tasks::{Tasks, labels_of_rows};
