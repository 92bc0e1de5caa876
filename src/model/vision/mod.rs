//! Models that see: a vision tower, a projector into a decoder's width, and where its rows stand among the tokens.

mod config;
mod efficientnet;
#[cfg(feature = "images")]
mod export;
mod features;
mod files;
mod identity;
mod load;
mod mmproj;
mod place;
mod positions;
mod products;
mod projector;
mod shape;
mod tower;
mod vit;
mod vit_config;

pub use config::{Feature, TowerConfig, VisionConfig};
pub use efficientnet::{Classifier, EfficientNetConfig, Stage, write_tower};
pub use features::{PictureFeatures, VisionModel};
pub use files::VisionFiles;
pub use identity::VisionIdentity;
pub(crate) use identity::differences;
pub(crate) use load::assemble;
pub use place::VisionPlace;
pub use products::{TowerProduct, TowerWork};
pub use projector::{Projector, ProjectorKind};
pub use shape::TowerShape;
pub use tower::Tower;
pub use vit_config::VitConfig;
