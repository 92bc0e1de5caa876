//! A readback under way.

use super::gpu::Gpu;
use super::lock;
use crate::{Error, Result};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

/// Whether the data is here, and who waits for it.
#[derive(Default)]
pub(super) struct Slot {
    pub done: Option<std::result::Result<(), String>>,
    pub waker: Option<Waker>,
}

/// A readback under way: wait for it, or await it.
///
/// Awaiting polls the device by itself, so it works on any executor.
pub struct Pending {
    pub(super) gpu: Arc<Gpu>,
    pub(super) staging: Option<wgpu::Buffer>,
    pub(super) slot: Arc<Mutex<Slot>>,
}

impl Pending {
    /// Blocks until the data is here.
    pub fn wait(self) -> Result<Vec<u32>> {
        while lock(&self.slot).done.is_none() {
            self.gpu.wait()?;
            // Another thread's poll may have taken the callback and not run it yet.
            std::thread::yield_now();
        }
        self.take()
    }

    fn take(&self) -> Result<Vec<u32>> {
        let done = lock(&self.slot).done.clone();
        match done {
            Some(Ok(())) => {}
            Some(Err(e)) => return Err(self.gpu.diagnose(Error::Gpu(e))),
            None => return Err(Error::Gpu("readback did not finish".into())),
        }
        let Some(staging) = &self.staging else { return Ok(Vec::new()) };
        let view = staging.get_mapped_range(..).map_err(|error| Error::Gpu(error.to_string()))?;
        let words = bytemuck::pod_collect_to_vec(&view);
        drop(view);
        staging.unmap();
        Ok(words)
    }
}

impl Future for Pending {
    type Output = Result<Vec<u32>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Err(e) = self.gpu.device.poll(wgpu::PollType::Poll) {
            return Poll::Ready(Err(self.gpu.diagnose(Error::Gpu(e.to_string()))));
        }
        let mut slot = lock(&self.slot);
        if slot.done.is_some() {
            drop(slot);
            return Poll::Ready(self.take());
        }
        slot.waker = Some(cx.waker().clone());
        drop(slot);
        if let Err(e) = self.gpu.check() {
            return Poll::Ready(Err(e));
        }
        // No thread of ours drives the device: ask to be polled again.
        std::thread::yield_now();
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
