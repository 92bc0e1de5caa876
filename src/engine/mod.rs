//! The machinery under the operations: how an op is described, checked, run and timed, and what back ends share.

pub(crate) mod case;
pub(crate) mod cpu;
pub(crate) mod launch;
pub(crate) mod op;
pub(crate) mod product;
mod spec;
pub(crate) mod timed;

pub use case::{Case, Operand};
pub(crate) use op::{Meta, Op, Operands, operands, rows_in_parallel, rows_per_task, run, run_in_place, run1};
pub use spec::OpSpec;
pub use timed::{Computation, Costs, Timed, TimedSizes};
