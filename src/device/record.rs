//! Recording: dispatches and copies go into one command encoder, which is submitted in bounded batches
//! or when something is read.

use super::buffer::GpuBuffer;
use super::dispatch::{Bind, Dispatch, Grid};
use super::gpu::Gpu;
use super::lock;
use super::pending::{Pending, Slot};
use super::recorder::{MAX_DISPATCHES, PARAM_SLOT, PROFILED_PER_SET, Profile, Recorder, Waiting};
use super::shader::MAX_PARAM_BYTES;
use super::stats::{KernelTime, Stats};
use crate::{Error, Result};
use std::sync::{Arc, Mutex};

impl Gpu {
    fn encoder<'a>(&self, recorder: &'a mut Recorder) -> &'a mut wgpu::CommandEncoder {
        recorder.pass = None;
        let descriptor = wgpu::CommandEncoderDescriptor { label: Some("mixlora: launches and copies") };
        recorder.encoder.get_or_insert_with(|| self.device.create_command_encoder(&descriptor))
    }

    /// Records one kernel launch. A grid without workgroups is skipped.
    pub(crate) fn dispatch(&self, d: Dispatch<'_>) -> Result<()> {
        debug_assert!(d.params.len() <= MAX_PARAM_BYTES);
        debug_assert_eq!(d.params.len(), d.shader.params.iter().map(|f| f.size).sum::<usize>());
        let (x, y, z) = match d.grid {
            Grid::Linear(n) => {
                let x = n.min(65_535);
                (x, if x == 0 { 0 } else { n.div_ceil(x) }, 1)
            }
            Grid::Xyz(x, y, z) => (x, y, z),
        };
        if x * y * z == 0 {
            return Ok(());
        }
        if x.max(y).max(z) > 65_535 {
            let expected = format!("at most 65535 workgroups each way for {}", d.name());
            return Err(Error::shape("dispatch", expected, format!("{x} x {y} x {z}")));
        }
        self.check()?;
        let label = d.name();
        let pipeline = self.pipeline(&d)?;
        let entries: Vec<_> = d
            .bind
            .iter()
            .enumerate()
            .map(|(i, b)| wgpu::BindGroupEntry { binding: i as u32, resource: b.resource() })
            .collect();
        let bind_group = self.scoped(|| {
            self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(&label),
                layout: &pipeline.layout,
                entries: &entries,
            })
        });
        let bind_group = bind_group.map_err(|error| match error {
            Error::Gpu(what) => Error::Gpu(format!("{label}: {what}")),
            other => other,
        })?;
        let mut guard = lock(&self.recorder);
        let recorder = &mut *guard;
        self.begin_pass(recorder, &d)?;
        let offset = recorder.params.len();
        if !self.immediates() {
            recorder.params.extend_from_slice(d.params);
            recorder.params.resize(offset + PARAM_SLOT, 0);
        }
        let pass = recorder.pass.as_mut().expect("opened above");
        pass.set_pipeline(&pipeline.raw);
        pass.set_bind_group(0, &bind_group, &[]);
        if self.immediates() {
            pass.set_immediates(0, d.params);
        } else {
            let (_, group) = recorder.uniform.as_ref().expect("opened above");
            pass.set_bind_group(1, group, &[offset as u32]);
        }
        pass.dispatch_workgroups(x as u32, y as u32, z as u32);
        let bytes = d.bind.iter().map(Bind::bytes).sum::<u64>();
        recorder.waiting.dispatches += 1;
        recorder.waiting.flops += d.flops;
        recorder.waiting.bytes += bytes;
        recorder.stats.dispatches += 1;
        recorder.stats.bytes_bound += bytes;
        if recorder.profile.is_some() {
            recorder.pass = None;
        }
        self.submit_enough(recorder)
    }

    fn begin_pass(&self, recorder: &mut Recorder, d: &Dispatch<'_>) -> Result<()> {
        if !self.immediates() && recorder.uniform.is_none() {
            let size = (MAX_DISPATCHES * PARAM_SLOT) as u64;
            let layout = self.params_layout()?;
            recorder.uniform = Some(self.scoped(|| {
                let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("params"),
                    size,
                    usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                });
                let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                    label: Some("params"),
                    layout: &layout,
                    entries: &[wgpu::BindGroupEntry {
                        binding: 0,
                        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                            buffer: &buffer,
                            offset: 0,
                            size: wgpu::BufferSize::new(MAX_PARAM_BYTES as u64),
                        }),
                    }],
                });
                (buffer, group)
            })?);
        }
        if recorder.pass.is_none() {
            let writes = match &mut recorder.profile {
                Some(p) => {
                    let place = p.labels.len() % PROFILED_PER_SET;
                    if place == 0 {
                        p.sets.push(self.timestamps()?);
                    }
                    p.labels.push((d.shader.name, d.entry));
                    p.sets.last().map(|set| (set.clone(), 2 * place as u32))
                }
                None => None,
            };
            // A profiled launch has a pass of its own.
            let label = writes.as_ref().map_or_else(|| "mixlora: launches".into(), |_| d.name());
            let encoder = self.encoder(recorder);
            let pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: Some(&label),
                timestamp_writes: writes.as_ref().map(|(set, i)| wgpu::ComputePassTimestampWrites {
                    query_set: set,
                    beginning_of_pass_write_index: Some(*i),
                    end_of_pass_write_index: Some(*i + 1),
                }),
            });
            recorder.pass = Some(pass.forget_lifetime());
        }
        Ok(())
    }

    /// Submits what is recorded.
    pub fn flush(&self) -> Result<()> {
        self.flush_locked(&mut lock(&self.recorder))
    }

    /// Submits when enough waits, so that neither a driver's patience nor its memory for commands runs out.
    fn submit_enough(&self, recorder: &mut Recorder) -> Result<()> {
        if recorder.waiting.enough() { self.flush_locked(recorder) } else { Ok(()) }
    }

    fn flush_locked(&self, recorder: &mut Recorder) -> Result<()> {
        recorder.pass = None;
        recorder.uploaded = 0;
        let Some(encoder) = recorder.encoder.take() else { return self.check() };
        let params = std::mem::take(&mut recorder.params);
        recorder.waiting = Waiting::default();
        recorder.stats.submits += 1;
        self.scoped(|| {
            if let (Some((buffer, _)), false) = (&recorder.uniform, params.is_empty()) {
                self.queue.write_buffer(buffer, 0, &params);
            }
            self.queue.submit([encoder.finish()]);
        })
    }

    /// Submits, waits, and reports any error so far.
    pub fn sync(&self) -> Result<()> {
        self.flush()?;
        self.wait()
    }

    pub(super) fn wait(&self) -> Result<()> {
        let polled = self.device.poll(wgpu::PollType::wait_indefinitely());
        self.check()?;
        polled.map(|_| ()).map_err(|error| Error::Gpu(error.to_string()))
    }

    /// Fills a buffer from host memory, in order with what is recorded.
    pub(crate) fn upload(&self, dst: &GpuBuffer, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return self.check();
        }
        self.check()?;
        let mut recorder = lock(&self.recorder);
        if recorder.encoder.is_none() {
            // Nothing recorded could still use an earlier life of this buffer.
            self.scoped(|| self.queue.write_buffer(&dst.raw, 0, data))?;
            recorder.uploaded += data.len() as u64;
            if recorder.uploaded > 64 << 20 {
                // Writes wait in staging memory until a submit.
                recorder.uploaded = 0;
                self.scoped(|| self.queue.submit([]))?;
            }
            return Ok(());
        }
        let staging = self.scoped(|| {
            let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("upload"),
                size: data.len() as u64,
                usage: wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: true,
            });
            if let Ok(mut view) = staging.get_mapped_range_mut(..) {
                view.copy_from_slice(data);
            }
            staging.unmap();
            staging
        })?;
        self.encoder(&mut recorder).copy_buffer_to_buffer(&staging, 0, &dst.raw, 0, data.len() as u64);
        Ok(())
    }

    /// Copies one buffer over another of the same size.
    pub(crate) fn copy(&self, src: &GpuBuffer, dst: &GpuBuffer) -> Result<()> {
        if src.bytes > 0 {
            let mut recorder = lock(&self.recorder);
            self.encoder(&mut recorder).copy_buffer_to_buffer(&src.raw, 0, &dst.raw, 0, src.bytes);
            recorder.waiting.bytes += 2 * src.bytes;
            self.submit_enough(&mut recorder)?;
        }
        self.check()
    }

    /// Fills a buffer with zeros.
    pub(crate) fn clear(&self, dst: &GpuBuffer) -> Result<()> {
        if dst.bytes > 0 {
            let mut recorder = lock(&self.recorder);
            self.encoder(&mut recorder).clear_buffer(&dst.raw, 0, Some(dst.bytes));
        }
        self.check()
    }

    /// Starts to read a buffer back.
    pub(crate) fn read(self: &Arc<Self>, src: &GpuBuffer) -> Result<Pending> {
        self.read_words(&src.raw, src.bytes)
    }

    pub(super) fn read_words(self: &Arc<Self>, src: &wgpu::Buffer, bytes: u64) -> Result<Pending> {
        self.check()?;
        let slot = Arc::new(Mutex::new(Slot::default()));
        let pending = |staging| Pending { gpu: self.clone(), staging, slot: slot.clone() };
        if bytes == 0 {
            lock(&slot).done = Some(Ok(()));
            return Ok(pending(None));
        }
        let mut recorder = lock(&self.recorder);
        recorder.stats.readbacks += 1;
        let staging = self.scoped(|| {
            let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("readback"),
                size: bytes,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            self.encoder(&mut recorder).copy_buffer_to_buffer(src, 0, &staging, 0, bytes);
            staging
        })?;
        self.flush_locked(&mut recorder)?;
        drop(recorder);
        let s = slot.clone();
        self.scoped(|| {
            staging.map_async(wgpu::MapMode::Read, .., move |result| {
                let mut s = lock(&s);
                s.done = Some(result.map_err(|error| error.to_string()));
                if let Some(w) = s.waker.take() {
                    w.wake();
                }
            })
        })?;
        Ok(pending(Some(staging)))
    }

    /// Counters so far.
    pub fn stats(&self) -> Stats {
        lock(&self.recorder).stats
    }
    /// Starts the counters again.
    pub fn reset_stats(&self) {
        lock(&self.recorder).stats = Stats::default();
    }

    /// Starts to time every kernel launch. False where the device has no timestamps.
    pub fn start_profile(&self) -> Result<bool> {
        if !self.features.contains(wgpu::Features::TIMESTAMP_QUERY) {
            return Ok(false);
        }
        self.flush()?;
        lock(&self.recorder).profile = Some(Profile::default());
        Ok(true)
    }

    fn timestamps(&self) -> Result<wgpu::QuerySet> {
        self.scoped(|| {
            self.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("profile"),
                ty: wgpu::QueryType::Timestamp,
                count: 2 * PROFILED_PER_SET as u32,
            })
        })
    }

    /// Ends the profile and returns the launches in order.
    pub fn take_profile(self: &Arc<Self>) -> Result<Vec<KernelTime>> {
        let Some(profile) = lock(&self.recorder).profile.take() else { return Ok(Vec::new()) };
        let period = self.queue.get_timestamp_period() as f64;
        let time = |low: u32, high: u32| (low as u64 | (high as u64) << 32) as f64;
        let mut launches = Vec::with_capacity(profile.labels.len());
        for (set, labels) in profile.sets.iter().zip(profile.labels.chunks(PROFILED_PER_SET)) {
            let words = self.resolve(set, labels.len())?;
            let ticks: &[[u32; 4]] = bytemuck::cast_slice(&words);
            launches.extend(labels.iter().zip(ticks).map(|(&(shader, entry), t)| KernelTime {
                shader,
                entry,
                nanoseconds: (time(t[2], t[3]) - time(t[0], t[1])).max(0.0) * period,
            }));
        }
        Ok(launches)
    }

    /// Reads the timestamps of the first launches of a set.
    fn resolve(self: &Arc<Self>, set: &wgpu::QuerySet, launches: usize) -> Result<Vec<u32>> {
        let bytes = 16 * launches as u64;
        let buffer = self.scoped(|| {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("profile"),
                size: bytes,
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        })?;
        let mut recorder = lock(&self.recorder);
        self.encoder(&mut recorder).resolve_query_set(set, 0..2 * launches as u32, &buffer, 0);
        drop(recorder);
        self.read_words(&buffer, bytes)?.wait()
    }
}
