//! Training, step by step: nothing here prints, and the caller keeps control between steps. [`Run::open`] is where a
//! run of a configuration begins.

mod align;
#[cfg(feature = "tokenizer")]
mod answers;
mod checkpoint;
#[cfg(feature = "tokenizer")]
mod conditions;
mod config;
mod curve;
#[cfg(feature = "tokenizer")]
mod features;
mod folder;
mod forced;
mod forgotten;
#[cfg(feature = "tokenizer")]
mod general;
#[cfg(feature = "tokenizer")]
mod inputs;
mod layers;
mod load;
mod loss_picture;
mod losses;
mod metrics;
#[cfg(feature = "tokenizer")]
mod multiple_choice;
#[cfg(feature = "tokenizer")]
mod needs;
mod observe;
mod optim;
mod overlap;
mod parts;
#[cfg(feature = "tokenizer")]
mod pictures;
mod plan;
mod policy;
mod preference;
mod run;
#[cfg(feature = "tokenizer")]
mod samples;
mod schedule;
mod session;
#[cfg(feature = "tokenizer")]
mod stages;
mod stored;

pub use align::Aligned;
#[cfg(feature = "tokenizer")]
pub use answers::{Question, Questions, SLACK, TaskScore, mean_exact_match};
pub use checkpoint::State;
#[cfg(feature = "tokenizer")]
pub use conditions::{condition_vector, give_conditions};
pub use config::{DeviceOptions, RunConfig, Stage, TextOptions, TrainOptions, parse_bytes};
pub(crate) use curve::{Axis, COLORS, Chart, Line, Range, escaped};
pub use folder::RunFolder;
pub use forced::{Scored, score_forced};
pub use forgotten::Forgotten;
#[cfg(feature = "tokenizer")]
pub use general::GeneralPrompts;
#[cfg(feature = "tokenizer")]
pub use inputs::Inputs;
#[cfg(feature = "tokenizer")]
pub(crate) use inputs::base_files;
pub use load::RouterLoad;
pub use loss_picture::{SMOOTH, loss_curve, loss_picture};
pub use losses::{count_usage, loss_of, losses_by_sample, losses_of};
pub(crate) use losses::{plain_pass, summed_loss};
pub use metrics::{Metrics, MetricsLog, Points};
#[cfg(feature = "tokenizer")]
pub use multiple_choice::{ChoiceOptions, ChoiceScore, Share, Weighed, weigh_choices};
pub use observe::{End, EvalReport, NO_TASK, Observer, Progress, Stop};
pub use optim::Optimizer;
pub use overlap::Judged;
pub use parts::Parts;
#[cfg(feature = "tokenizer")]
pub use pictures::{Looked, look_at_pictures, look_at_pictures_with};
pub use plan::{Fit, Plan, Planned, PlannedPictures, Saving, SeenPictures, Tiles};
pub use policy::leave_one_out;
pub use run::Run;
pub use schedule::{Decay, Schedule};
pub use session::{Session, StepReport, StepTimes, TrainConfig};
#[cfg(feature = "tokenizer")]
pub use stages::Stages;
pub use stored::StoredRun;
