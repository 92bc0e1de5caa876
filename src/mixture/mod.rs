//! The LoRA-mixture family: each method is a router, a factor layout and a balance rule over one operator.
//!
//! A method's file holds its layer and its [`MethodSpec`]. The list below is the only place that names them all;
//! see docs/ADD_A_METHOD.md. A method can also live in another crate: a `MethodSpec` of its own is attached like one of
//! the list, and [`route`], [`route_rows`] and [`mixture_linears`] are the parts that it is made of. See examples/custom_method.rs.

mod balance;
mod conditional;
mod config;
mod names;
mod pooling;
mod spec;
mod token;

pub use crate::ops::mixture_linears::mixture_linears;
pub use crate::ops::topk_routing::{Condition, Routing, Score, Table, first_choices, route, route_rows};
pub use crate::routing::{Dropout, Selection, Units};
pub use config::{CfsForm, DecodeRoute, GateScale, MethodConfig};
pub use names::find;
pub use pooling::{Pool, Span};
pub use spec::{Hook, LinearSite, MethodSpec, MlpSite};

macro_rules! methods {
    ($($name:ident),+ $(,)?) => {
        $(mod $name;)+
        /// Every method, in the order of the list.
        pub static ALL: &[&MethodSpec] = &[$(&$name::SPEC),+];
    };
}

methods! { lora, mixlora_cond, mixlora_cond_gated, vt_nlp, mixlora_ffn, smora, rank_wise, flylora }
