//! What a run does with the vision part of its model.

use crate::adapter::{Adapter, VisionPart};
use crate::data::Dataset;
use crate::model::Model;
use crate::model::vision::VisionModel;
use crate::train::align::{Align, Aligned};
use crate::train::{Session, TrainOptions};
use crate::{Result, Stream};
use std::sync::Arc;

/// The learning rate of a new projector that learns alone.
const ALIGN_RATE: f64 = 1e-3;

/// A session at its first step, and what came of aligning a new projector. With a vision part the adapter must be of that one, brings its projector along, and
/// remembers it; the projector is trained where the options give it a rate.
pub(super) fn session(
    model: Arc<Model>,
    adapter: Adapter,
    vision: Option<(Arc<VisionModel>, VisionPart)>,
    data: &Dataset,
    options: &TrainOptions,
    steps: usize,
) -> Result<(Session, Option<Aligned>)> {
    let Some((vision, here)) = vision else {
        return Ok((Session::new(model, adapter, options.session(steps))?, None));
    };
    let mut own = false;
    if let Some(there) = adapter.vision() {
        there.check(&here)?;
        there.put_into(&vision)?;
        own = !there.projector().is_empty();
    }
    let mut aligned = None;
    if !own && options.align_epochs > 0 {
        let stream = Stream::new(options.seed).named("align");
        let align = Align { epochs: options.align_epochs, learning_rate: ALIGN_RATE, stream };
        aligned = Some(align.run(&model, &vision, data)?);
    }
    let rate = options.projector_rate();
    let part = if own || rate.is_some() || aligned.is_some() { here.with_projector(&vision) } else { here };
    let session = Session::new(model, adapter.with_vision(Some(part)), options.session(steps))?;
    let session = match rate {
        Some(rate) => session.with_projector(&vision, rate)?,
        None => session,
    };
    Ok((session, aligned))
}
