//! Buffers that a device keeps.

use std::collections::HashMap;
use std::sync::Mutex;

/// Free buffers by size, and in guard mode every buffer made, with its used bytes.
#[derive(Default)]
pub(super) struct Pool {
    pub free: Mutex<HashMap<u64, Vec<wgpu::Buffer>>>,
    pub guarded: Mutex<Vec<(wgpu::Buffer, u64)>>,
}
