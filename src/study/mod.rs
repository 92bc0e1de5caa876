mod cell;
mod file;
mod measure;
mod train;
pub use cell::*;
