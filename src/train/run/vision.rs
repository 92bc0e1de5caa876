//! What a run does with the vision part of its model.

use crate::Result;
use crate::adapter::{Adapter, VisionPart};
use crate::model::Model;
use crate::model::vision::VisionModel;
use crate::train::{Session, TrainOptions};
use std::sync::Arc;

/// A session at its first step. With a vision part the adapter must be of that one, brings its projector along, and
/// remembers it; the projector is trained where the options give it a rate.
pub(super) fn session(
    model: Arc<Model>,
    adapter: Adapter,
    vision: Option<(Arc<VisionModel>, VisionPart)>,
    options: &TrainOptions,
    steps: usize,
) -> Result<Session> {
    let Some((vision, here)) = vision else { return Session::new(model, adapter, options.session(steps)) };
    let mut own = false;
    if let Some(there) = adapter.vision() {
        there.check(&here)?;
        there.put_into(&vision)?;
        own = !there.projector().is_empty();
    }
    let rate = options.projector_rate();
    let part = if own || rate.is_some() { here.with_projector(&vision) } else { here };
    let session = Session::new(model, adapter.with_vision(Some(part)), options.session(steps))?;
    match rate {
        Some(rate) => session.with_projector(&vision, rate),
        None => Ok(session),
    }
}
