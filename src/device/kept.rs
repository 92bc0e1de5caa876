//! What a run leaves for the next one on the same adapter and driver: the driver's compiled kernels, where it gives
//! them away, and the list of kernels, which the next run compiles on threads while it loads its weights.
//!
//! A kernel that was compiled ahead is used only where a launch asks for the same text: a foreign or old list costs
//! time, never a result. See docs/decisions/0005-kernels-are-compiled-ahead.md.

use super::lock;
use super::pipelines::{Compiler, Pipeline, Recipe};
use crate::{Error, Result, atomic};
use std::collections::{HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

const MAGIC: &[u8; 8] = b"kernels1";
/// A file never holds more: what would make it larger is left out.
const MAX_BYTES: usize = 64 << 20;
const MAX_KERNELS: usize = 512;
/// Threads that compile ahead at most; weights are read meanwhile.
const MAX_THREADS: usize = 4;

#[derive(Default)]
struct State {
    waiting: VecDeque<Recipe>,
    busy: HashSet<Recipe>,
    done: HashMap<Recipe, Pipeline>,
}

/// Work of the threads.
#[derive(Default)]
struct Ahead {
    state: Mutex<State>,
    changed: Condvar,
}

/// A recipe that a thread is busy with; whoever waits for it wakes up when it is dropped, whatever happened.
struct Busy<'a> {
    ahead: &'a Ahead,
    recipe: Recipe,
    made: Option<Pipeline>,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.ahead.state);
        state.busy.remove(&self.recipe);
        if let Some(made) = self.made.take() {
            state.done.insert(self.recipe.clone(), made);
        }
        self.ahead.changed.notify_all();
    }
}

impl Ahead {
    fn next(&self) -> Option<Busy<'_>> {
        let mut state = lock(&self.state);
        let recipe = state.waiting.pop_front()?;
        state.busy.insert(recipe.clone());
        Some(Busy { ahead: self, recipe, made: None })
    }

    /// The pipeline if it was compiled ahead, or is being compiled; else nobody will.
    fn take(&self, recipe: &Recipe) -> Option<Pipeline> {
        let mut state = lock(&self.state);
        state.waiting.retain(|r| r != recipe);
        while state.busy.contains(recipe) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.done.remove(recipe)
    }
}

/// The file of one adapter and driver.
pub(super) struct Kept {
    path: PathBuf,
    cache: Option<wgpu::PipelineCache>,
    known: Vec<Recipe>,
    used: Mutex<Vec<Recipe>>,
    ahead: Arc<Ahead>,
    threads: Vec<JoinHandle<()>>,
}

impl Kept {
    /// Reads what earlier runs left in `folder`. A file that is damaged or too large counts as none.
    pub fn open(folder: &Path, info: &wgpu::AdapterInfo, device: &wgpu::Device) -> Self {
        let path = folder.join("kernels").join(file_name(info));
        let (known, data) = std::fs::metadata(&path)
            .ok()
            .filter(|m| m.len() <= MAX_BYTES as u64)
            .and_then(|_| std::fs::read(&path).ok())
            .and_then(|bytes| unpack(&bytes))
            .unwrap_or_default();
        let cache = device.features().contains(wgpu::Features::PIPELINE_CACHE).then(|| {
            let data = (!data.is_empty()).then_some(&data[..]);
            // SAFETY: the data is what this adapter and driver gave, by the file's name and checksum.
            unsafe {
                device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
                    label: Some("mixlora"),
                    data,
                    fallback: true,
                })
            }
        });
        Kept { path, cache, known, used: Mutex::default(), ahead: Arc::default(), threads: Vec::new() }
    }

    /// The driver's own cache, if it has one.
    pub fn cache(&self) -> Option<wgpu::PipelineCache> {
        self.cache.clone()
    }

    /// Starts to compile what earlier runs launched.
    pub fn compile_ahead(&mut self, compiler: &Compiler) {
        lock(&self.ahead.state).waiting = self.known.iter().cloned().collect();
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let count = (cores / 2).clamp(1, MAX_THREADS).min(self.known.len());
        self.threads = (0..count)
            .map(|_| {
                let ahead = self.ahead.clone();
                let compiler = compiler.clone();
                std::thread::spawn(move || {
                    while let Some(mut busy) = ahead.next() {
                        busy.made = compiler.attempt(&busy.recipe);
                    }
                })
            })
            .collect();
    }

    /// Notes that a launch needs this kernel, and gives it if it was compiled ahead.
    pub fn take(&self, recipe: &Recipe) -> Option<Pipeline> {
        lock(&self.used).push(recipe.clone());
        self.ahead.take(recipe)
    }
}

impl Drop for Kept {
    /// Leaves what the next run needs, where this one launched something new. A file that cannot be written is none.
    fn drop(&mut self) {
        lock(&self.ahead.state).waiting.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let used = std::mem::take(self.used.get_mut().unwrap_or_else(PoisonError::into_inner));
        let known: HashSet<&Recipe> = self.known.iter().collect();
        if used.iter().all(|r| known.contains(r)) {
            return;
        }
        let now: HashSet<&Recipe> = used.iter().collect();
        let earlier = self.known.iter().filter(|r| !now.contains(r));
        let recipes: Vec<&Recipe> = used.iter().chain(earlier).take(MAX_KERNELS).collect();
        let data = self.cache.as_ref().and_then(|c| c.get_data()).unwrap_or_default();
        if let Some(bytes) = pack(&recipes, &data) {
            let _ = write(&self.path, &bytes);
        }
    }
}

/// A name for each adapter, driver and version of the crate.
pub(super) fn file_name(info: &wgpu::AdapterInfo) -> String {
    let adapter = wgpu::util::pipeline_cache_key(info)
        .unwrap_or_else(|| format!("{}_{}_{}", info.backend, info.vendor, info.device));
    let exact = [&info.name, &info.driver, &info.driver_info, env!("CARGO_PKG_VERSION")].join("\n");
    format!("{adapter}_{:08x}", crc32fast::hash(exact.as_bytes()))
}

/// Magic, checksum of the rest, length of the list, list, data. Data that is too large is left out.
fn pack(recipes: &[&Recipe], data: &[u8]) -> Option<Vec<u8>> {
    let list = serde_json::to_vec(recipes).ok()?;
    let head = MAGIC.len() + 4 + 8;
    if head + list.len() > MAX_BYTES {
        return None;
    }
    let data = if head + list.len() + data.len() > MAX_BYTES { &[] } else { data };
    let rest = [&(list.len() as u64).to_le_bytes(), &list[..], data].concat();
    Some([&MAGIC[..], &crc32fast::hash(&rest).to_le_bytes(), &rest].concat())
}

fn unpack(bytes: &[u8]) -> Option<(Vec<Recipe>, Vec<u8>)> {
    let (sum, rest) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<4>()?;
    if crc32fast::hash(rest) != u32::from_le_bytes(*sum) {
        return None;
    }
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let (list, data) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let recipes: Vec<Recipe> = serde_json::from_slice(list).ok()?;
    (recipes.len() <= MAX_KERNELS).then(|| (recipes, data.to_vec()))
}

/// Writes a file, and the folder where there is none.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        let made = std::fs::create_dir_all(folder);
        made.map_err(|error| Error::file(folder, format!("cannot be created: {error}")))?;
    }
    atomic::write(path, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(n: usize) -> Recipe {
        let text = format!("fn main() {{}} // {n}");
        Recipe { shader: format!("s{n}"), entry: "main".into(), text, writes: vec![false, true], params: 4 }
    }

    #[test]
    fn damaged_files_count_as_none() {
        let a = recipe(1);
        let b = recipe(2);
        let bytes = pack(&[&a, &b], b"data").unwrap();
        assert_eq!(unpack(&bytes), Some((vec![a.clone(), b], b"data".to_vec())));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(unpack(&bad), None, "byte {at}");
            assert_eq!(unpack(&bytes[..at]), None, "cut at {at}");
        }
        let rest = [&u64::MAX.to_le_bytes()[..], b"[]"].concat();
        let long = [&MAGIC[..], &crc32fast::hash(&rest).to_le_bytes(), &rest].concat();
        assert_eq!(unpack(&long), None);
        let (_, data) = unpack(&pack(&[&a], &vec![0; MAX_BYTES]).unwrap()).unwrap();
        assert!(data.is_empty(), "too large");
    }

    #[test]
    fn who_waits_for_a_kernel_wakes_up_whatever_happens() {
        let ahead = Ahead::default();
        lock(&ahead.state).waiting.extend([recipe(1), recipe(2)]);
        let busy = ahead.next().unwrap();
        assert_eq!(busy.recipe, recipe(1));
        std::thread::scope(|s| {
            let waits = s.spawn(|| ahead.take(&recipe(1)).is_none());
            std::thread::sleep(std::time::Duration::from_millis(20));
            drop(busy);
            assert!(waits.join().unwrap(), "it failed, so there is none");
        });
        assert!(ahead.take(&recipe(2)).is_none() && ahead.next().is_none(), "taken out of the queue");
    }
}
